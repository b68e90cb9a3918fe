_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_demo.py']

# The benchmark `quick`: nodules from 3 mm, splits train, val and test.
data_root = 'data/quick/'
size_bins = {'3_to_5mm': (3., 5.), '5_to_8mm': (5., 8.),
             '8_to_12mm': (8., 12.), 'above_12mm': (12., 1000.)}
# A finer band than the demo's: nodules of 5 mm are 3 px wide.
model = dict(
    data_preprocessor=dict(
        mean=[3.1, 0., 0., 0.], std=[1.6, .05, .13, .34],
        band_sigmas=[1.5, 4., 12.]),
    detector_2d=dict(backbone=dict(in_channels=4)),
    volume_head=dict(context_channels=48))
train_pipeline = [
    dict(type='LoadXRayViews'),
    # Half the views cost half the time, and another half each time.
    dict(type='XRayViewDropout', prob=1., min_views=4, max_views=7),
    dict(type='XRayInsertNodules', max_nodules=20, sizes=(5., 30.)),
    dict(type='XRayRandomFlip', prob=.5),
    dict(type='XRayRandomRotate', max_angle=15.),
    dict(type='XRayPhotometric', prob=.5, gamma=1., noise=0., blur=0.,
         salt_and_pepper=0.),
    dict(type='PackXRayInputs'),
]
# What is below 5 mm is 3 px wide: neither object nor background.
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=5., pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, min_diameter=3.))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=8., size_bins=size_bins),
    dict(type='Indication2DMetric', size_bins=size_bins)
]
test_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=3.,
        ann_file='lidc_infos_test.pkl',
        coco_file='lidc_infos_test_2d_anno.coco.json'))
test_evaluator = val_evaluator
