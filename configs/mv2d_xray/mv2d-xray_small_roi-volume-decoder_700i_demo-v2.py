_base_ = ['../_base_/datasets/demo-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Both query sources and a decoder, all trained at once.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    volume_head=dict(context_channels=24),
    lifting_head=dict(scene_range=_base_.scene_range))
train_cfg = dict(max_iters=700)
