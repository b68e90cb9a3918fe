_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Both sources without a decoder: the boxes of both, fused, are the result. It
# starts from a 2D stage that was trained alone.
load_from = 'checkpoints/triangulation_centernet_5400i_quick-v2.pth'
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
