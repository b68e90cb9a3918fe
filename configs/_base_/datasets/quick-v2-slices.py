# The CT slices of the scans of `quick-v2`, pixels of 1 mm, previous, this and
# next slice as channels; made by
#   python -m data_converters benchmark quick-v2 --slices \
#       --out-dir data/quick-v2-slices
# All lengths in mm.
data_root = 'data/quick-v2-slices/'
size_bins = {'3_to_5mm': (3., 5.), '5_to_8mm': (5., 8.),
             '8_to_12mm': (8., 12.), '12_to_30mm': (12., 30.),
             'above_30mm': (30., 1000.)}
# Enlarged, so that a nodule of 5 mm is more than one cell of the finest map.
scale = 2.
crop = 128  # px of 1 mm

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='CropSlice', size=crop),
    # Any other rotation makes boxes larger than what they are round.
    dict(type='TurnSlice'),
    dict(type='mmdet.RandomFlip', prob=.5, direction='horizontal'),
    dict(type='mmdet.Brightness', prob=.5, min_mag=.85, max_mag=1.15),
    dict(type='mmdet.Contrast', prob=.5, min_mag=.85, max_mag=1.15),
    dict(type='mmdet.Resize', scale_factor=scale),
    dict(type='mmdet.PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_pipeline = [
    dict(type='LoadCTSlices', scale=scale),
    dict(type='PackCTScan'),
]

# What is below 5 mm is neither object nor background.
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False,
    sampler=dict(type='PositiveShareSampler', share=.5),
    dataset=dict(
        type='CTSliceDataset', data_root=data_root,
        ann_file='lidc_infos_train.pkl',
        coco_file='lidc_infos_train_2d_anno.coco.json', min_diameter=5.,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CTSliceDataset', data_root=data_root,
        ann_file='lidc_infos_val.pkl',
        coco_file='lidc_infos_val_2d_anno.coco.json', min_diameter=3.,
        test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'], ann_file='lidc_infos_test.pkl',
        coco_file='lidc_infos_test_2d_anno.coco.json'))
val_evaluator = [
    dict(type='Indication3DMetric', min_diameter=5., size_bins=size_bins),
    dict(type='Indication2DMetric', size_bins=size_bins)
]
test_evaluator = val_evaluator

# tools/test.py --tta: each scan and its mirror image.
tta_model = dict(type='CTSliceTTAModel')
tta_pipeline = [
    test_pipeline[0],
    dict(type='TestTimeAug', transforms=[
        [dict(type='FlipCTScan'),
         dict(type='FlipCTScan', directions=['horizontal'])],
        [dict(type='PackCTScan')]]),
]
