_base_ = [
    '../_base_/models/ct-retinanet_r50.py', '../_base_/schedules/ct-30e.py',
    '../_base_/datasets/mid-v2-slices.py'
]

# Document 002: RetinaNet with EfficientNetV2-S, from scratch.
model = dict(detector_2d=dict(
    backbone=dict(_delete_=True, type='mmdet3d.EfficientNetV2S'),
    neck=dict(in_channels=[48, 64, 160, 256])))
