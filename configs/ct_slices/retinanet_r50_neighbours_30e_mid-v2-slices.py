_base_ = [
    '../_base_/models/ct-retinanet_r50.py', '../_base_/schedules/ct-30e.py',
    '../_base_/datasets/mid-v2-slices.py'
]

# Document 002: RetinaNet with ResNet-50.
