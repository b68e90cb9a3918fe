# The benchmark `quick-v2`: phantom chests, 10 views x 256², nodules from 3 mm,
# splits train, val and test. All lengths in mm.
data_root = 'data/quick-v2/'
scene_range = [-200., -200., -200., 200., 200., 200.]
size_bins = {'3_to_5mm': (3., 5.), '5_to_8mm': (5., 8.),
             '8_to_12mm': (8., 12.), '12_to_30mm': (12., 30.),
             'above_30mm': (30., 1000.)}
# Channels of a view and their statistics, for the model's preprocessor.
bands = dict(
    mean=[3.1, 0., 0., 0.], std=[1.6, .05, .13, .34],
    band_sigmas=[1.5, 4., 12.])

train_pipeline = [
    dict(type='LoadXRayViews'),
    # Half the views cost half the time, and another half each time.
    dict(type='XRayViewDropout', prob=1., min_views=3, max_views=8),
    # More nodules than a hundred patients have, and masses, which they lack,
    # as CTs with slices of 1 to 3 mm show them, half of them with more
    # contrast than most have, from which more is learnt at first; and
    # vessels, which are none.
    dict(type='XRayInsertNodules', max_nodules=20, sizes=(5., 60.),
         spread=15., contrasts=(.7, 2.), attenuation=(.006, .03),
         point_spread=(.45, .95), slice_profile=(.5, 2.2), distractors=8),
    # What detectors make of the ideal views of the set, from half of a
    # clinical dose for all views together to twice as much for each, where
    # more can be learnt; scatter left in, partly or nearly all taken off.
    dict(type='XRayAcquisition', preset='chest-radiography', prob=.85,
         ranges=dict(
             kerma=[(.5, 8.), (8., 50.), (8., 50.)], focal_spot=(.3, 1.5),
             light_spread=(.3, 1.),
             scatter=(.07, .15), scatter_width=(120., 300.),
             scatter_corrected=[(0., 0.), (.5, .95), (.9, .97)],
             scatter_error=(0., .05), scatter_error_width=(60., 200.),
             electronic=(.5, 4.), gain=(0., .005), lag=(0., .03))),
    # Poses that are known to half a millimetre and a quarter of a degree.
    dict(type='RandomApply', prob=.5, transforms=[
        dict(type='XRayPoseError', translation=.6, rotation=.25)]),
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

# What is below 5 mm is 3 px wide: neither object nor background.
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_train.pkl',
        coco_file='lidc_infos_train_2d_anno.coco.json', min_diameter=5.,
        scene_range=scene_range, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='XRayDataset', data_root=data_root,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json', min_diameter=3.,
        scene_range=scene_range, test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'], ann_file='lidc_infos_test.pkl',
        coco_file='lidc_infos_test_2d_anno.coco.json'))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=8., size_bins=size_bins),
    dict(type='Indication2DMetric', size_bins=size_bins)
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
