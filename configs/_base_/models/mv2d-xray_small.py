# A small network of both query sources that trains from scratch on a CPU: a
# dilated backbone of 32 channels at stride 4, a grid of 6 mm. A run config
# gives what its data set says: bands and their number, the scene's range.
# The 2D stage: one heatmap, one box a peak (CenterNet, arXiv 1904.07850).
# Anchors of 8 px and more match few boxes of 3 to 10 px.
# A scan is normalised by its own statistics, in a test as in training, where
# it is alone in its batch: how noisy views are differs by two decades.
own_statistics = dict(track_running_stats=False)
model = dict(
    type='MV2DXRay',
    data_preprocessor=dict(type='XRayDataPreprocessor', pad_size_divisor=4),
    feat_strides=[4],
    detector_2d=dict(
        type='mmdet.CenterNet', neck=None,
        backbone=dict(
            type='mmdet3d.XRayDilatedNet', channels=32, dilations=(1, 2, 4),
            num_levels=1, norm_cfg=dict(type='BN', **own_statistics)),
        bbox_head=dict(
            type='mmdet3d.XRayCenterNetHead', in_channels=32,
            feat_channels=32, num_classes=1,
            loss_center_heatmap=dict(
                type='mmdet.GaussianFocalLoss', loss_weight=1.),
            loss_wh=dict(type='mmdet.L1Loss', loss_weight=.1),
            loss_offset=dict(type='mmdet.L1Loss', loss_weight=1.)),
        test_cfg=dict(topk=20, local_maximum_kernel=3, max_per_img=20)),
    volume_head=dict(
        type='XRayVolumeHead', in_channels=32,
        volume_range=[-144., -114., -144., 144., 114., 144.], voxel_size=6.,
        feat_channels=16, hidden_channels=24, context_channels=48,
        num_convs=2, max_queries=16, base_size=12., min_sigma=4.,
        norm_cfg=dict(type='BN3d', **own_statistics)),
    lifting_head=dict(
        type='XRayLiftingHead', in_channels=32, embed_dims=64,
        reach=20., ignore_margin=5., free_size=12.,
        roi_queries=dict(type='XRayTriangulatedQueryGenerator'),
        point_rois=dict(scale=2., min_size=8., reproject=False),
        position_encoding=dict(type='XRayPositionEncoding', num_depths=16),
        decoder=dict(
            type='XRayDecoder', num_layers=2, num_heads=4,
            feedforward_channels=128, dropout=0.),
        relevance=dict(mode='topk', num_depths=24, min_iou=.1)),
    train_rois=dict(max_per_view=10, add_gt=False, jitter=.2),
    loss_weight_3d=.1)
