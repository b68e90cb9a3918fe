# LIDC-IDRI, 10 views x 1024², as the converter writes it. All lengths in mm.
data_root = 'data/lidc/'
scene_range = [-200., -200., -200., 200., 200., 200.]
# Channels of a view and their statistics, for the model's preprocessor: bands
# at four times the blur of 256² images, the same in mm.
bands = dict(mean=[3.1, 0., 0.], std=[1.6, .13, .34], band_sigmas=[16., 48.])

train_pipeline = [
    dict(type='LoadXRayViews'),
    dict(type='XRayRandomFlip', prob=.5),
    dict(type='XRayRandomRotate', max_angle=15.),
    dict(type='XRayPhotometric', prob=.5),
    dict(type='PackXRayInputs'),
]
test_pipeline = [
    dict(type='LoadXRayViews'),
    dict(type='PackXRayInputs'),
]

train_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_train.pkl',
        coco_file='lidc_infos_train_2d_anno.coco.json',
        scene_range=scene_range, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json',
        scene_range=scene_range, test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [dict(type='Indication3DMetric'),
                 dict(type='Indication2DMetric')]
test_evaluator = val_evaluator
