_base_ = ['./mv2d-xray_small_roi-volume_3400i_quick.py']

# Both sources, half an hour more on one core, at half of the learning rate.
load_from = 'checkpoints/mv2d-xray_small_roi-volume_3400i_quick.pth'
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=1700)
