_base_ = ['./mv2d-xray_r50_roi_1xb1-24e_lidc.py']

# The papers' variant with the second source of queries: peaks of a volume of
# 5 mm voxels, from the stride-8 features of all views.
model = dict(
    volume_level=0,
    volume_head=dict(
        type='XRayVolumeHead', in_channels=256,
        volume_range=[-180., -140., -180., 180., 140., 180.], voxel_size=5.,
        feat_channels=32, hidden_channels=48, num_convs=3, max_queries=100),
    lifting_head=dict(point_rois=dict(scale=2., min_size=32.)))
