# The 2D stage: what every size of it shares. One class; losses, coders and
# samplers as in mmdet's own Faster R-CNN.
model = dict(
    type='MV2DXRay',
    detector_2d=dict(
        type='mmdet.FasterRCNN',
        rpn_head=dict(
            type='mmdet.RPNHead',
            anchor_generator=dict(type='mmdet.AnchorGenerator'),
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
                roi_layer=dict(type='RoIAlign', output_size=7)),
            bbox_head=dict(
                type='mmdet.Shared2FCBBoxHead', roi_feat_size=7,
                num_classes=1, reg_class_agnostic=False,
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
                    type='mmdet.MaxIoUAssigner', neg_iou_thr=.3,
                    min_pos_iou=.3, match_low_quality=True,
                    ignore_iof_thr=.5),
                sampler=dict(
                    type='mmdet.RandomSampler', pos_fraction=.5,
                    neg_pos_ub=-1, add_gt_as_proposals=False),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(
                nms=dict(type='nms', iou_threshold=.6), min_bbox_size=0),
            rcnn=dict(
                assigner=dict(
                    type='mmdet.MaxIoUAssigner', pos_iou_thr=.5,
                    neg_iou_thr=.5, min_pos_iou=.5, match_low_quality=False,
                    ignore_iof_thr=.5),
                sampler=dict(
                    type='mmdet.RandomSampler', pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(
                nms=dict(type='nms', iou_threshold=.6), min_bbox_size=0),
            rcnn=dict(score_thr=.05, nms=dict(type='nms')))))
