_base_ = ['./quick.py']

# The benchmark `mid`: the scans of `quick`, seen in 512².
data_root = 'data/mid/'
bands = dict(
    mean=[3.1, 0., 0., 0., 0.], std=[1.6, .05, .05, .13, .34],
    band_sigmas=[1.5, 3., 8., 24.])
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
