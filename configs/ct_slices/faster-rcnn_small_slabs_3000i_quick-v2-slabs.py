_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/quick-v2-slabs.py',
    '../_base_/models/ct-faster-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# What stands beside the transformers on the same slabs.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
train_cfg = dict(max_iters=3000)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
