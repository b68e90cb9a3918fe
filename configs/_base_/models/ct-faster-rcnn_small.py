_base_ = ['./faster-rcnn_small.py']

# At pixels of 0.5 mm anchors of 3 to 54 mm. A run config gives what its data
# set says.
model = dict(
    type='CTSliceDetector',
    # Grey levels of a window of HU: 0 is black.
    data_preprocessor=dict(
        type='mmdet.DetDataPreprocessor', mean=[75.] * 3, std=[70.] * 3,
        pad_size_divisor=16),
    merge=dict(overlap_thr=.5, max_gap=2.5))
