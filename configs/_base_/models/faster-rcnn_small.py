# Faster R-CNN that trains from scratch on a CPU: a ResNet-18 of half the
# channels and three stages, FPN of strides 4 to 32, anchors of 6 to 109 px.
strides = [4, 8, 16, 32]
width = 48
nms = dict(type='nms', iou_threshold=.5)
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4)
assigner = dict(type='MaxIoUAssigner', ignore_iof_thr=.5)
align = dict(
    type='SingleRoIExtractor', out_channels=width, featmap_strides=strides,
    finest_scale=24,
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))
model = dict(
    detector_2d=dict(
        type='FasterRCNN',
        backbone=dict(
            type='ResNet', depth=18, base_channels=32, num_stages=3,
            strides=(1, 2, 2), dilations=(1, 1, 1), norm_eval=False,
            out_indices=(0, 1, 2)),
        neck=dict(type='FPN', in_channels=[32, 64, 128], out_channels=width,
                  num_outs=4),
        rpn_head=dict(
            type='RPNHead', in_channels=width, feat_channels=width,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[1.5, 2.25, 3.4], ratios=[1.],
                strides=strides),
            bbox_coder=dict(coder, target_stds=[1.] * 4),
            # Few anchors show anything (RetinaNet's prior).
            init_cfg=dict(
                type='Normal', layer='Conv2d', std=.01, override=dict(
                    type='Normal', name='rpn_cls', std=.01, bias_prob=.01)),
            loss_cls=dict(
                type='FocalLoss', use_sigmoid=True, gamma=2., alpha=.25,
                loss_weight=1.),
            loss_bbox=dict(type='L1Loss', loss_weight=1.)),
        roi_head=dict(
            type='StandardRoIHead', bbox_roi_extractor=align,
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=width,
                fc_out_channels=256, roi_feat_size=7, num_classes=1,
                bbox_coder=dict(coder, target_stds=[.1, .1, .2, .2]),
                loss_cls=dict(
                    type='CrossEntropyLoss', use_sigmoid=False,
                    loss_weight=1.),
                loss_bbox=dict(type='L1Loss', loss_weight=1.))),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(assigner, pos_iou_thr=.5, neg_iou_thr=.3,
                              min_pos_iou=.1, match_low_quality=True),
                sampler=dict(type='PseudoSampler'),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(nms_pre=300, max_per_img=64, nms=nms,
                              min_bbox_size=0),
            rcnn=dict(
                assigner=dict(assigner, pos_iou_thr=.5, neg_iou_thr=.5,
                              min_pos_iou=.5, match_low_quality=False),
                sampler=dict(
                    type='RandomSampler', num=32, pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(nms_pre=300, max_per_img=32, nms=nms, min_bbox_size=0),
            rcnn=dict(score_thr=.02, max_per_img=10, nms=nms))))
