_base_ = ['./quick-v2.py']

# The set of `make demo`: nodules from 8 mm, views as the preset
# `chest-radiography` gives them, in training, too.
data_root = 'data/demo-v2/'
min_diameter = 8.
released_bands = _base_.bands  # what the released `volume` was trained with
bands = dict(mean=[3.1, 0., 0.], std=[1.6, .13, .34], band_sigmas=[4., 12.])

train_pipeline = _base_.train_pipeline
train_pipeline.pop(1)  # all views, always
train_pipeline[1].sizes = (8., 40.)
train_pipeline.pop(2)  # no acquisition on top of the set's own
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, min_diameter=min_diameter,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
test_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=min_diameter),
    dict(type='Indication2DMetric')
]
test_evaluator = val_evaluator
