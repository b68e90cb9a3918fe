_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/breast.py',
    '../_base_/models/ag-mask-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 004's Mask R-CNN in small, all at once and from scratch: there is
# nothing yet that heads could be trained on first.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
