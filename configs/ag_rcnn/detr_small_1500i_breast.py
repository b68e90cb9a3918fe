_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/breast.py',
    '../_base_/models/ct-detr_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 004's comparison: DETR, in the size of Mask R-CNN's small one.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
detr = _base_.model.detector_2d
model = dict(
    _delete_=True, type='CrossViewDetector',
    data_preprocessor=dict(
        type='ExamPreprocessor', mean=[.459], std=[.226],
        pad_size_divisor=32),
    detector_2d=dict(detr, backbone=dict(detr.backbone, in_channels=1)))
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=1e-4), clip_grad=dict(max_norm=.1))
