_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# The 2D stage's boxes, matched over the views and triangulated: without a
# decoder they are the result. Three quarters of an hour on one core
# with `--amp`.
model = dict(
    volume_head=None,
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    lifting_head=dict(
        decoder=None, position_encoding=None,
        scene_range=_base_.scene_range))
train_cfg = dict(max_iters=5400)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
