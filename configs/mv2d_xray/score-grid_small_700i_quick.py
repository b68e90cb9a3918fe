_base_ = ['../_base_/datasets/quick.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Baseline: the 2D heatmaps of all views, averaged in space, no 3D network.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    volume_head=dict(type='XRayScoreGrid'))
train_cfg = dict(max_iters=700)
