_base_ = ['./quick-v2.py']

# The benchmark `mid-v2`: the scans of `quick-v2`, seen in 512².
data_root = 'data/mid-v2/'
bands = dict(
    mean=[3.1, 0., 0., 0., 0.], std=[1.6, .05, .05, .13, .34],
    band_sigmas=[1.5, 3., 8., 24.])
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
