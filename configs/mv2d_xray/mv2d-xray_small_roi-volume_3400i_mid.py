_base_ = ['./mv2d-xray_small_roi-volume_3400i_quick.py']

# The benchmark `mid`: the scans of `quick`, seen in 512². The network is that
# of `quick`, whose weights it starts from (all but the first convolution,
# which sees one band more): its cells of 4 px are half as wide in space.
# An hour and a half on one core; half an hour more, as the released one had:
#   python tools/train.py configs/mv2d_xray/mv2d-xray_small_roi-volume_3400i_mid.py --amp \
#       --work-dir work_dirs/mid_longer --cfg-options \
#       load_from=work_dirs/mv2d-xray_small_roi-volume_3400i_mid/iter_3400.pth \
#       optim_wrapper.optimizer.lr=2e-3 train_cfg.max_iters=1200 \
#       train_cfg.val_interval=1200 param_scheduler.1.end=1200
load_from = 'checkpoints/mv2d-xray_small_roi-volume_3400i_quick.pth'
data_root = 'data/mid/'
model = dict(
    data_preprocessor=dict(
        mean=[3.1, 0., 0., 0., 0.], std=[1.6, .05, .05, .13, .34],
        band_sigmas=[1.5, 3., 8., 24.]),
    detector_2d=dict(backbone=dict(in_channels=5)))
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
