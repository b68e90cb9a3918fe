_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/quick-v2-slices.py',
    '../_base_/models/ct-faster-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 002 in small: neighbouring slices as channels, trained from scratch
# on two CPU cores, 8 crops of 128 mm an iteration.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
train_cfg = dict(max_iters=6000)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
