_base_ = ['./quick-v2-slices.py']

# Slabs of 7.5 mm (document 003) of the scans of `quick-v2`, each half in the
# next one again:
#   python -m data_converters benchmark quick-v2 --slices --slab-mm 7.5 \
#       --overlap 0.5 --out-dir data/quick-v2-slabs
data_root = 'data/quick-v2-slabs/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
# Document 003's bins; the threshold of F1 that its validation gives goes into
# score_thr.
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=5.,
         size_bins=_base_.size_bins),
    dict(type='Indication2DMetric', size_bins=_base_.size_bins, bins_50={
        'up_to_7mm': (0., 7.), '7_to_15mm': (7., 15.),
        'above_15mm': (15., 1000.)})
]
test_evaluator = val_evaluator
