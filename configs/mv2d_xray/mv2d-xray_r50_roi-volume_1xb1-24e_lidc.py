_base_ = ['../_base_/datasets/lidc.py',
          '../_base_/models/mv2d-xray_r50.py',
          '../_base_/schedules/cosine-24e.py',
          '../_base_/default_runtime.py']

# The papers' variant with the second source of queries: peaks of a volume of
# 5 mm voxels, from the stride-8 features of all views.
model = dict(
    data_preprocessor=_base_.bands,
    volume_level=0,
    volume_head=dict(
        type='XRayVolumeHead', in_channels=256,
        volume_range=[-180., -140., -180., 180., 140., 180.], voxel_size=5.,
        feat_channels=32, hidden_channels=48, num_convs=3, max_queries=100,
        base_size=12., min_sigma=4.),
    lifting_head=dict(
        scene_range=_base_.scene_range,
        point_rois=dict(scale=2., min_size=32.)))
