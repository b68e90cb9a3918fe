_base_ = ['./quick-v2-slices.py']

# Slabs of 7.5 mm (document 003) of the scans of `quick-v2`, each half in the
# next one again:
#   python -m data_converters benchmark quick-v2 --slices --slab-mm 7.5 \
#       --overlap 0.5 --out-dir data/quick-v2-slabs
data_root = 'data/quick-v2-slabs/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
