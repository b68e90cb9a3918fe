_base_ = ['./ct-r50.py']

# Document 002's Faster R-CNN with ResNet-50 and FPN. It gives no anchors;
# these begin at 6 px, since a nodule of 5 mm has 7 pixels of 0.7 mm. All else
# is as in mmdet's own.
strides = [4, 8, 16, 32, 64]
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4)
assigner = dict(type='MaxIoUAssigner', ignore_iof_thr=.5)
nms = dict(type='nms', iou_threshold=.7)
model = dict(
    detector_2d=dict(
        type='FasterRCNN',
        rpn_head=dict(
            type='RPNHead', in_channels=256, feat_channels=256,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[1.5, 2.25],
                ratios=[.7, 1., 1.4], strides=strides),
            bbox_coder=dict(coder, target_stds=[1.] * 4),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True,
                          loss_weight=1.),
            loss_bbox=dict(type='L1Loss', loss_weight=1.)),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7,
                               sampling_ratio=0),
                out_channels=256, featmap_strides=strides[:4],
                finest_scale=28),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=256,
                fc_out_channels=1024, roi_feat_size=7, num_classes=1,
                bbox_coder=dict(coder, target_stds=[.1, .1, .2, .2]),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False,
                              loss_weight=1.),
                loss_bbox=dict(type='L1Loss', loss_weight=1.))),
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
                              min_pos_iou=.5, match_low_quality=False),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=.25,
                    neg_pos_ub=-1, add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(nms_pre=1000, max_per_img=300, nms=nms,
                     min_bbox_size=0),
            rcnn=dict(score_thr=.02, max_per_img=20,
                      nms=dict(type='nms', iou_threshold=.5)))))
