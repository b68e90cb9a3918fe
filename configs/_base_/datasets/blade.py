# Turbine blades (python -m data_converters blade): a part of 80 x 48 x 112 mm
# with pores and inclusions of 1.6 to 5 mm, 0.5 mm a pixel at the isocentre.
# All lengths in mm.
data_root = 'data/blade/'
scene_range = [-50., -50., -60., 50., 50., 60.]
size_bins = {'below_2mm': (0., 2.), '2_to_3mm': (2., 3.),
             'above_3mm': (3., 1000.)}
num_classes = 2
# Channels of a view and their statistics, for the model's preprocessor.
bands = dict(
    mean=[.26, 0., 0., 0.], std=[.88, .05, .16, .39],
    band_sigmas=[1.5, 4., 12.])

# Nothing is inserted: a pore is less than the metal round it, and outside
# the metal there are none.
train_pipeline = [
    dict(type='LoadXRayViews'),
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
        coco_file='lidc_infos_train_2d_anno.coco.json', min_diameter=0.,
        scene_range=scene_range, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json', min_diameter=0.,
        scene_range=scene_range, test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'], ann_file='lidc_infos_test.pkl',
        coco_file='lidc_infos_test_2d_anno.coco.json'))
# A defect is a few mm: 20 mm off is not found.
val_evaluator = [
    dict(type='Indication3DMetric', size_bins=size_bins,
         distances=[1., 2., 3., 5.], match_distance=2.)
]
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
