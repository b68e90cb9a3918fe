_base_ = ['./triangulation_centernet_5400i_quick-v2.py']

# Baseline: Faster R-CNN in place of CenterNet, with anchors as small as the
# findings, assigned at the overlaps that such anchors can have.
strides = [4, 8, 16]
nms = dict(type='nms', iou_threshold=.6)
coder = dict(type='mmdet.DeltaXYWHBBoxCoder', target_means=[0.] * 4)
assigner = dict(type='mmdet.MaxIoUAssigner', ignore_iof_thr=.5)
model = dict(
    feat_strides=strides,
    detector_2d=dict(
        _delete_=True, type='mmdet.FasterRCNN',
        backbone=dict(
            type='mmdet3d.XRayDilatedNet', in_channels=4, channels=32,
            dilations=(1, 2, 4), num_levels=3),
        rpn_head=dict(
            type='mmdet.RPNHead', in_channels=32, feat_channels=32,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator', scales=[1.25, 1.75],
                ratios=[1.], strides=strides),
            bbox_coder=dict(coder, target_stds=[1.] * 4),
            loss_cls=dict(
                type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.,
                alpha=.25, loss_weight=1.),
            loss_bbox=dict(type='mmdet.L1Loss', loss_weight=1.)),
        roi_head=dict(
            type='mmdet.StandardRoIHead',
            bbox_roi_extractor=dict(
                type='mmdet.SingleRoIExtractor',
                roi_layer=dict(
                    type='RoIAlign', output_size=7, sampling_ratio=1),
                out_channels=32, featmap_strides=strides, finest_scale=32),
            bbox_head=dict(
                type='mmdet.Shared2FCBBoxHead', in_channels=32,
                fc_out_channels=128, roi_feat_size=7, num_classes=1,
                bbox_coder=dict(coder, target_stds=[.1, .1, .2, .2]),
                loss_cls=dict(
                    type='mmdet.CrossEntropyLoss', use_sigmoid=False,
                    loss_weight=1.),
                loss_bbox=dict(type='mmdet.L1Loss', loss_weight=1.))),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(assigner, pos_iou_thr=.5, neg_iou_thr=.3,
                              min_pos_iou=.1, match_low_quality=True),
                sampler=dict(type='mmdet.PseudoSampler'),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(nms_pre=200, max_per_img=50, nms=nms,
                              min_bbox_size=0),
            rcnn=dict(
                assigner=dict(assigner, pos_iou_thr=.4, neg_iou_thr=.4,
                              min_pos_iou=.4, match_low_quality=False),
                sampler=dict(
                    type='mmdet.RandomSampler', num=32, pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(nms_pre=200, max_per_img=50, nms=nms, min_bbox_size=0),
            rcnn=dict(score_thr=.01, max_per_img=20,
                      nms=dict(type='nms', iou_threshold=.5)))))
