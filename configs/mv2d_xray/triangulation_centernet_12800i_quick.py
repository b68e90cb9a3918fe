_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick.py']

# The 2D stage's boxes, matched over the views and triangulated: without a
# decoder they are the result. An hour and a half on one core.
model = dict(
    volume_head=None,
    lifting_head=dict(decoder=None, position_encoding=None))

max_iters = 12800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
