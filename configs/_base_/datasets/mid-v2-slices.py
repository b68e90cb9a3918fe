_base_ = ['./quick-v2-slices.py']

# The CT slices of the scans of `mid-v2`, pixels of 0.7 mm; an epoch has one
# slice without a finding for each with one:
#   python -m data_converters benchmark mid-v2 --slices --negatives 1 \
#       --out-dir data/mid-v2-slices
data_root = 'data/mid-v2-slices/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='TurnSlice'),
    dict(type='mmdet.RandomFlip', prob=.5, direction='horizontal'),
    dict(type='mmdet.Brightness', prob=.5, min_mag=.85, max_mag=1.15),
    dict(type='mmdet.Contrast', prob=.5, min_mag=.85, max_mag=1.15),
    dict(type='mmdet.PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_pipeline = [dict(type='LoadCTSlices'), dict(type='PackCTScan')]
tta_pipeline = [test_pipeline[0], _base_.tta_pipeline[1]]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=test_pipeline))
