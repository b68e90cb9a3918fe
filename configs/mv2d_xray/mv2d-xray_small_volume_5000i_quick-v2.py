_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# All time goes into the volume. An hour and a half on one core with `--amp`,
# if it does nothing else.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))))
train_cfg = dict(max_iters=5000)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
