# 10 views x 256²; ranges are in mm and live here and in the model configs.
data_root = 'data/demo/'
scene_range = [-200., -200., -200., 200., 200., 200.]

train_pipeline = [
    dict(type='LoadXRayViews'),
    # More indications than a hundred patients have.
    dict(type='XRayInsertNodules', max_nodules=20, sizes=(8., 30.)),
    dict(type='XRayRandomFlip', prob=.5),
    dict(type='XRayRandomRotate', max_angle=15.),
    dict(type='XRayPhotometric', prob=.5, gamma=1., noise=0., blur=0.,
         salt_and_pepper=0.),
    dict(type='PackXRayInputs'),
]
test_pipeline = [
    dict(type='LoadXRayViews'),
    dict(type='PackXRayInputs'),
]

train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_train.pkl',
        coco_file='lidc_infos_train_2d_anno.coco.json', min_diameter=8.,
        scene_range=scene_range, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json', min_diameter=8.,
        scene_range=scene_range, test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [dict(type='Indication3DMetric', min_diameter=8.),
                 dict(type='Indication2DMetric')]
test_evaluator = val_evaluator

# tools/test.py --tta: each scan and its mirror image.
tta_model = dict(type='mmdet3d.XRayTTAModel')
tta_pipeline = [
    dict(type='LoadXRayViews'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='XRayRandomFlip', prob=0.),
         dict(type='XRayRandomFlip', prob=1.)],
        [dict(type='PackXRayInputs')]]),
]
