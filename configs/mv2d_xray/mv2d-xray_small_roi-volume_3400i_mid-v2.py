_base_ = ['../_base_/datasets/mid-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# The network of `quick-v2`, whose weights it starts from (all but the first
# convolution, which sees one band more): its cells of 4 px are half as wide
# in space. An hour and a half on one core.
load_from = \
    'work_dirs/mv2d-xray_small_roi-volume_3400i_quick-v2/iter_3400.pth'
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    lifting_head=dict(
        decoder=None, position_encoding=None,
        scene_range=_base_.scene_range))
train_cfg = dict(max_iters=3400)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
