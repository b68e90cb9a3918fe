# What document 002's detectors with ResNet-50 and FPN share.
model = dict(
    type='CTSliceDetector',
    data_preprocessor=dict(
        type='mmdet.DetDataPreprocessor', mean=[75.] * 3, std=[70.] * 3,
        pad_size_divisor=32),
    merge=dict(overlap_thr=.5, max_gap=2.5),
    detector_2d=dict(
        backbone=dict(
            type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3),
            frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=True),
            norm_eval=True, style='pytorch', init_cfg=dict(
                type='Pretrained', checkpoint='torchvision://resnet50')),
        neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048],
                  out_channels=256, num_outs=5)))
