_base_ = ['../_base_/datasets/mid-v2.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# The network of `quick-v2`, whose weights it starts from: its cells are half
# as wide in space, and it sees one band more.
load_from = 'work_dirs/mid-v2_start.pth'
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=1200)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
