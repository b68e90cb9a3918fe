_base_ = ['./quick-v2-slices.py']

# The set of `make ct`: the CT slices of the scans of `demo-v2`, nodules from
# 8 mm:
#   python -m data_converters benchmark demo-v2 --slices --out-dir data/ct
data_root = 'data/ct/'
min_diameter = 8.
train_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
val_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
test_dataloader = dict(
    dataset=dict(data_root=data_root, min_diameter=min_diameter))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=min_diameter),
    dict(type='Indication2DMetric')
]
test_evaluator = val_evaluator
