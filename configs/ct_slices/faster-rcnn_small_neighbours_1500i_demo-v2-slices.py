_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/demo-v2-slices.py',
    '../_base_/models/ct-faster-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# `make ct`: document 002 in small, from scratch.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
