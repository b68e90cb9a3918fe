_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/demo-v2-slices.py',
    '../_base_/models/ct-faster-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# `make ct`: the released detector, trained on for a few minutes. A patient is
# in one split of all sets, so it has seen none of these test scans.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
load_from = (
    'checkpoints/faster-rcnn_small_neighbours_3000i_quick-v2-slices.pth')
train_cfg = dict(max_iters=400)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=.01))
