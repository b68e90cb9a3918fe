_base_ = ['./ct-r50.py']

# Document 002's RetinaNet with ResNet-50 and FPN; anchors from 8 px on, all
# else as in mmdet's own.
model = dict(
    detector_2d=dict(
        type='RetinaNet',
        bbox_head=dict(
            type='RetinaHead', num_classes=1, in_channels=256,
            stacked_convs=4, feat_channels=256,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=2,
                scales_per_octave=3, ratios=[.7, 1., 1.4],
                strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                target_stds=[1.] * 4),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.,
                          alpha=.25, loss_weight=1.),
            loss_bbox=dict(type='L1Loss', loss_weight=1.)),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=.5, neg_iou_thr=.4,
                min_pos_iou=0., ignore_iof_thr=.5),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(
            nms_pre=1000, min_bbox_size=0, score_thr=.02,
            nms=dict(type='nms', iou_threshold=.5), max_per_img=20)))
