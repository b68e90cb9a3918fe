_base_ = ['./mv2d-xray_small.py']

# `volume` alone: its peaks are the result. No 2D heads, so all time goes into
# the grid: maps of twice the resolution, whose finest see their surroundings
# through the coarser ones, a finer grid, more of what is round a voxel.
model = dict(
    feat_strides=[2, 4],
    detector_2d=dict(
        _delete_=True, type='mmdet3d.XRayFeatureExtractor',
        backbone=dict(_base_.model.detector_2d.backbone,
                      dilations=(1, 2, 4, 8), num_finer=1),
        neck=dict(type='mmdet.FPN', in_channels=[32, 32], out_channels=24,
                  num_outs=2)),
    volume_head=dict(
        in_channels=24, voxel_size=5., min_sigma=3.3, feat_channels=12,
        context_channels=[48, 96]),
    lifting_head=None)
