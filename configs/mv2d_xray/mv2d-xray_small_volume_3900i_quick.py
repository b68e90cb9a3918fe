_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick.py']

# `volume` alone: its peaks are the result, all time goes into them. An hour
# and a half on one core.
model = dict(lifting_head=None, loss_weight_2d=0.)

max_iters = 3900
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
