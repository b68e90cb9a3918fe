_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/quick-v2-slices.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 002's classification head: squares of 48 mm round a finding, pixels
# of 0.5 mm as those of the detector whose backbone this is. It is frozen:
# there are few hundred findings to learn from.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
custom_hooks = [hook for hook in _base_.custom_hooks
                if hook['type'] != 'DrawBoxesHook']  # there are none
tta_model = None  # fuses boxes
train_cfg = dict(max_iters=600)
model = dict(
    type='MalignancyClassifier', channels=128, mean=75., std=70., dropout=.2,
    backbone=dict(
        type='ResNet', depth=18, base_channels=32, num_stages=3,
        strides=(1, 2, 2), dilations=(1, 1, 1), norm_eval=True,
        frozen_stages=3, out_indices=(2, ), init_cfg=dict(
            type='Pretrained', prefix='detector_2d.backbone.',
            checkpoint='checkpoints/'
            'faster-rcnn_small_neighbours_6000i_quick-v2-slices.pth')))
square = dict(type='CropFinding', edge=48., size=96)
findings = dict(type='MalignancyDataset', min_diameter=3.)
test = dict(dataset=dict(findings, pipeline=[dict(square, count=5)]))
train_dataloader = dict(
    batch_size=16, sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(findings, pipeline=[dict(
        square, count=3, augment=dict(shift=3., gain=.15))]))
val_dataloader = test
test_dataloader = test
val_evaluator = dict(type='MalignancyMetric', _delete_=True)
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=.05))
