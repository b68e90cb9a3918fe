# The 2D stage of the small models: one heatmap, one box a peak (CenterNet,
# arXiv 1904.07850). Anchors of 8 px and more match few boxes of 3 to 10 px.
model = dict(
    type='MV2DXRay',
    detector_2d=dict(
        type='mmdet.CenterNet', neck=None,
        bbox_head=dict(
            type='mmdet3d.XRayCenterNetHead', num_classes=1,
            loss_center_heatmap=dict(
                type='mmdet.GaussianFocalLoss', loss_weight=1.),
            loss_wh=dict(type='mmdet.L1Loss', loss_weight=.1),
            loss_offset=dict(type='mmdet.L1Loss', loss_weight=1.)),
        test_cfg=dict(topk=20, local_maximum_kernel=3, max_per_img=20)))
