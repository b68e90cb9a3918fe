_base_ = ['./mv2d-xray_quick_volume_long_quick.py']

# The benchmark `mid`: the scans of `quick`, seen in 512². One more strided
# convolution, so that all behind it is as in `quick`: its weights fit.
data_root = 'data/mid/'
model = dict(
    data_preprocessor=dict(
        mean=[3.1, 0., 0., 0., 0.], std=[1.6, .05, .05, .13, .34],
        band_sigmas=[1.5, 3., 8., 24.], pad_size_divisor=8),
    feat_strides=[8],
    detector_2d=dict(
        backbone=dict(
            in_channels=5, stem=((16, 2), (24, 2), (32, 2)))))
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
