_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/breast.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 004's comparison: YOLO (which, it does not say), in the size of
# Mask R-CNN's small one; all else is mmdet's YOLOX.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
norm = dict(
    act_cfg=dict(type='Swish'),
    norm_cfg=dict(type='BN', momentum=.03, eps=.001))
total = dict(reduction='sum', loss_weight=1.)
model = dict(
    type='CrossViewDetector',
    data_preprocessor=dict(
        type='ExamPreprocessor', mean=[.459], std=[.226],
        pad_size_divisor=32),
    detector_2d=dict(
        type='YOLOX',
        # Its first layer takes 2 x 2 pixels as channels of 3 colours.
        backbone=dict(type='CSPDarknet', deepen_factor=.33, widen_factor=.25,
                      out_indices=(2, 3, 4), **norm),
        neck=dict(type='YOLOXPAFPN', in_channels=[64, 128, 256],
                  out_channels=64, num_csp_blocks=1, **norm),
        bbox_head=dict(
            type='YOLOXHead', num_classes=1, in_channels=64,
            feat_channels=64, **norm,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, **total),
            loss_obj=dict(type='CrossEntropyLoss', use_sigmoid=True, **total),
            loss_bbox=dict(type='IoULoss', mode='square', eps=1e-16,
                           reduction='sum', loss_weight=5.)),
        train_cfg=dict(
            assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
        test_cfg=dict(score_thr=.01, max_per_img=10,
                      nms=dict(type='nms', iou_threshold=.3))))
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
