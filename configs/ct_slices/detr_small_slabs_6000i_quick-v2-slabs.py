_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/quick-v2-slabs.py',
    '../_base_/models/ct-detr_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 003 in small: DETR without deformable attention, its ablation.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
# Boxes are shares of an image: a test's are as large as the training's.
model = dict(tile=int(_base_.crop * _base_.scale))
train_cfg = dict(max_iters=6000)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=1e-4), clip_grad=dict(max_norm=.1))
