_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Baseline: the 2D heatmaps of all views, averaged in space, no 3D network.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    volume_head=dict(
        _delete_=True, type='XRayScoreGrid',
        in_channels=_base_.model.volume_head.in_channels,
        volume_range=_base_.model.volume_head.volume_range,
        voxel_size=_base_.model.volume_head.voxel_size,
        base_size=_base_.model.volume_head.base_size,
        max_queries=_base_.model.volume_head.max_queries))
train_cfg = dict(max_iters=700)
