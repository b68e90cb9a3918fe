_base_ = ['./mv2d-xray_small_volume_3900i_quick.py']

# Turbine blades (python -m data_converters blade): a part of 80 x 48 x 112 mm
# with pores and inclusions of 1.5 to 5 mm, 0.5 mm a pixel at the isocentre.
# Everything is a third of the chest's; two classes.
data_root = 'data/blade/'
scene_range = [-50., -50., -60., 50., 50., 60.]
size_bins = {'below_2mm': (0., 2.), '2_to_3mm': (2., 3.),
             'above_3mm': (3., 1000.)}
num_classes = 2

model = dict(
    data_preprocessor=dict(
        mean=[.26, 0., 0., 0.], std=[.88, .05, .16, .39]),
    detector_2d=dict(bbox_head=dict(num_classes=num_classes)),
    volume_head=dict(
        volume_range=[-42., -30., -58., 42., 30., 58.], voxel_size=2.,
        base_size=2.5, min_sigma=1.3, num_classes=num_classes))

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
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=0., scene_range=scene_range,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=0., scene_range=scene_range))
test_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=0., scene_range=scene_range))
# A defect is a few mm: 20 mm off is not found.
val_evaluator = [
    dict(type='Indication3DMetric', size_bins=size_bins, distances=[1., 2., 3., 5.],
         match_distance=2.)
]
test_evaluator = val_evaluator

max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
