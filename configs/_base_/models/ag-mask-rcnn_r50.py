# Document 004's Mask R-CNN: ResNet-50 of one channel, pyramid P2 to P5 with
# anchors of 5 to 15, 15 to 40, 40 to 100 and 100 to 250 px, RoIAlign 7 x 7,
# two layers of 1024, masks of 14 x 14; cross entropy and smooth L1. What it
# does not say is as in mmdet's own.
strides = [4, 8, 16, 32]
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4)
assigner = dict(type='MaxIoUAssigner', ignore_iof_thr=.5)
nms = dict(type='nms', iou_threshold=.7)
smooth = dict(type='SmoothL1Loss', beta=1., loss_weight=1.)
align = dict(
    type='SingleRoIExtractor', out_channels=256, featmap_strides=strides,
    # Boxes of less than 20, 40 and 80 px are looked at on P2, P3 and P4.
    finest_scale=10,
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0))
model = dict(
    type='CrossViewDetector',
    # ImageNet's, as grey levels from 0 to 1.
    data_preprocessor=dict(
        type='ExamPreprocessor', mean=[.459], std=[.226],
        pad_size_divisor=32, pad_mask=True),
    detector_2d=dict(
        type='MaskRCNN',
        backbone=dict(
            type='ResNet', depth=50, in_channels=1, num_stages=4,
            out_indices=(0, 1, 2, 3), frozen_stages=-1,
            norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True,
            style='pytorch', init_cfg=dict(
                type='Pretrained', checkpoint='torchvision://resnet50')),
        neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048],
                  out_channels=256, num_outs=4),
        rpn_head=dict(
            type='RPNHead', in_channels=256, feat_channels=256,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[1., 1.6, 2.5],
                base_sizes=[5, 15, 40, 100], ratios=[.5, 1., 2.],
                strides=strides),
            bbox_coder=dict(coder, target_stds=[1.] * 4),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True,
                          loss_weight=1.),
            loss_bbox=smooth),
        roi_head=dict(
            type='StandardRoIHead', bbox_roi_extractor=align,
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=256,
                fc_out_channels=1024, roi_feat_size=7, num_classes=1,
                bbox_coder=dict(coder, target_stds=[.1, .1, .2, .2]),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False,
                              loss_weight=1.),
                loss_bbox=smooth),
            mask_roi_extractor=align,
            mask_head=dict(
                type='FCNMaskHead', num_convs=4, in_channels=256,
                conv_out_channels=256, num_classes=1, roi_feat_size=7,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True,
                               loss_weight=1.))),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(assigner, pos_iou_thr=.7, neg_iou_thr=.3,
                              min_pos_iou=.3, match_low_quality=True),
                sampler=dict(
                    type='RandomSampler', num=256, pos_fraction=.5,
                    neg_pos_ub=-1, add_gt_as_proposals=False),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=nms,
                              min_bbox_size=0),
            rcnn=dict(
                assigner=dict(assigner, pos_iou_thr=.5, neg_iou_thr=.5,
                              min_pos_iou=.5, match_low_quality=True),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                mask_size=14, pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(nms_pre=1000, max_per_img=300, nms=nms,
                     min_bbox_size=0),
            # Masses do not overlap.
            rcnn=dict(score_thr=.01, max_per_img=20, mask_thr_binary=.5,
                      nms=dict(type='nms', iou_threshold=.3)))))
