_base_ = [
    '../_base_/models/ct-faster-rcnn_r50.py', '../_base_/schedules/ct-30e.py',
    '../_base_/datasets/mid-v2-slices.py'
]

# Document 002: Faster R-CNN with MobileNetV2.
model = dict(detector_2d=dict(
    backbone=dict(
        _delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 6),
        norm_eval=True, init_cfg=dict(
            type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2')),
    neck=dict(in_channels=[24, 32, 96, 320])))
