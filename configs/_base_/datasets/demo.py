_base_ = ['./quick.py']

# The set of `make demo`: nodules from 8 mm, splits train and val.
data_root = 'data/demo/'
min_diameter = 8.
bands = dict(mean=[3.1, 0., 0.], std=[1.6, .13, .34], band_sigmas=[4., 12.])

train_pipeline = _base_.train_pipeline
train_pipeline.pop(1)  # all views, always
train_pipeline[1].sizes = (8., 40.)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=min_diameter,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
test_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=min_diameter,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json'))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=min_diameter),
    dict(type='Indication2DMetric')
]
test_evaluator = val_evaluator
