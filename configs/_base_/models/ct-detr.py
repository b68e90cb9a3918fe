# What the detection transformers share: a head of one class, whose matching
# and losses are those of mmdet's Deformable DETR; focal loss of gamma 2 and
# alpha 0.25 (document 003).
focal = dict(type='FocalLoss', use_sigmoid=True, gamma=2., alpha=.25,
             loss_weight=2.)
# Few queries are a nodule (RetinaNet's prior); for DETR, which has another
# loss in mmdet.
prior = dict(type='Normal', layer=[], override=dict(
    type='Normal', name='fc_cls', std=.01, bias_prob=.01))
model = dict(
    type='CTSliceDetector',
    data_preprocessor=dict(
        type='mmdet.DetDataPreprocessor', mean=[75.] * 3, std=[70.] * 3,
        pad_size_divisor=32),
    merge=dict(overlap_thr=.5, max_gap=2.5),
    detector_2d=dict(
        bbox_head=dict(
            num_classes=1, sync_cls_avg_factor=True, loss_cls=focal,
            loss_bbox=dict(type='L1Loss', loss_weight=5.),
            loss_iou=dict(type='GIoULoss', loss_weight=2.)),
        train_cfg=dict(
            assigner=dict(type='HungarianAssigner', match_costs=[
                dict(type='FocalLossCost', weight=2.),
                dict(type='BBoxL1Cost', weight=5., box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.)])),
        test_cfg=dict(max_per_img=20)))
