# The papers' network: ResNet-50 with DCNv2 in its last two stages, FPN of
# strides 8 to 128, one query per 2D box, six decoder layers. A run config
# gives what its data set says: bands and the scene's range. The 2D stage has
# one class; losses, coders and samplers are as in mmdet's own Faster R-CNN.
strides = [8, 16, 32, 64, 128]
model = dict(
    type='MV2DXRay',
    data_preprocessor=dict(type='XRayDataPreprocessor', pad_size_divisor=128),
    feat_strides=strides,
    # Ten views fit into the memory of two.
    view_chunk=2,
    detector_2d=dict(
        type='mmdet.FasterRCNN',
        backbone=dict(
            type='mmdet.ResNet', depth=50, num_stages=4,
            out_indices=(0, 1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True,
            style='pytorch',
            dcn=dict(type='DCNv2', deform_groups=1,
                     fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True),
            init_cfg=dict(type='Pretrained',
                          checkpoint='torchvision://resnet50')),
        neck=dict(
            type='mmdet.FPN', in_channels=[256, 512, 1024, 2048],
            out_channels=256, start_level=1, add_extra_convs='on_output',
            num_outs=5),
        rpn_head=dict(
            type='mmdet.RPNHead', in_channels=256, feat_channels=256,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator', scales=[1, 2, 4],
                ratios=[.5, 1., 2.], strides=strides),
            bbox_coder=dict(
                type='mmdet.DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                target_stds=[1.] * 4),
            loss_cls=dict(
                type='mmdet.CrossEntropyLoss', use_sigmoid=True,
                loss_weight=1.),
            loss_bbox=dict(type='mmdet.L1Loss', loss_weight=1.)),
        roi_head=dict(
            type='mmdet.StandardRoIHead',
            bbox_roi_extractor=dict(
                type='mmdet.SingleRoIExtractor',
                roi_layer=dict(
                    type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=256, featmap_strides=strides[:4]),
            bbox_head=dict(
                type='mmdet.Shared2FCBBoxHead', in_channels=256,
                fc_out_channels=1024, roi_feat_size=7, num_classes=1,
                reg_class_agnostic=False,
                bbox_coder=dict(
                    type='mmdet.DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                    target_stds=[.1, .1, .2, .2]),
                loss_cls=dict(
                    type='mmdet.CrossEntropyLoss', use_sigmoid=False,
                    loss_weight=1.),
                loss_bbox=dict(type='mmdet.L1Loss', loss_weight=1.))),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(
                    type='mmdet.MaxIoUAssigner', pos_iou_thr=.7,
                    neg_iou_thr=.3, min_pos_iou=.3, match_low_quality=True,
                    ignore_iof_thr=.5),
                sampler=dict(
                    type='mmdet.RandomSampler', num=256, pos_fraction=.5,
                    neg_pos_ub=-1, add_gt_as_proposals=False),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(
                nms_pre=2000, max_per_img=1000,
                nms=dict(type='nms', iou_threshold=.6), min_bbox_size=0),
            rcnn=dict(
                assigner=dict(
                    type='mmdet.MaxIoUAssigner', pos_iou_thr=.5,
                    neg_iou_thr=.5, min_pos_iou=.5, match_low_quality=False,
                    ignore_iof_thr=.5),
                sampler=dict(
                    type='mmdet.RandomSampler', num=512, pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(
                nms_pre=1000, max_per_img=1000,
                nms=dict(type='nms', iou_threshold=.6), min_bbox_size=0),
            rcnn=dict(
                score_thr=.05, max_per_img=100,
                nms=dict(type='nms', iou_threshold=.7)))),
    lift_level=1,
    lifting_head=dict(
        type='XRayLiftingHead', in_channels=256, embed_dims=256,
        reach=20., ignore_margin=5., free_size=12.,
        roi_queries=dict(type='XRayRoIQueryGenerator'),
        position_encoding=dict(type='XRayPositionEncoding', num_depths=64),
        decoder=dict(
            type='XRayDecoder', num_layers=6, num_heads=8,
            feedforward_channels=2048, dropout=.1, query_chunk=128),
        relevance=dict(mode='topk', num_depths=64, min_iou=.1)),
    train_rois=dict(max_per_view=100, add_gt=True, jitter=.2),
    loss_weight_3d=.1)
