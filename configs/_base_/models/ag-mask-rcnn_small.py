_base_ = ['./faster-rcnn_small.py']

# With masks, and the losses of document 004.
smooth = dict(type='SmoothL1Loss', beta=1.)
model = dict(
    type='CrossViewDetector',
    data_preprocessor=dict(
        type='ExamPreprocessor', mean=[.459], std=[.226],
        pad_size_divisor=32, pad_mask=True),
    detector_2d=dict(
        type='MaskRCNN', backbone=dict(in_channels=1),
        rpn_head=dict(loss_bbox=smooth),
        roi_head=dict(
            bbox_head=dict(loss_bbox=smooth),
            mask_roi_extractor=_base_.align,
            mask_head=dict(
                type='FCNMaskHead', num_convs=2, in_channels=_base_.width,
                conv_out_channels=_base_.width, num_classes=1,
                roi_feat_size=7, loss_mask=dict(
                    type='CrossEntropyLoss', use_mask=True,
                    loss_weight=1.))),
        train_cfg=dict(rcnn=dict(mask_size=14)),
        test_cfg=dict(rcnn=dict(score_thr=.01, mask_thr_binary=.5,
                                nms=dict(iou_threshold=.3)))))
