_base_ = ['./mv2d-xray_quick_roi-volume_quick.py']

# The 2D stage's boxes, matched over the views and triangulated; the 3D loss is
# off, so that the lifting head leaves them as they are. An hour and a half on
# one core.
model = dict(volume_head=None, loss_weight_3d=0.)

max_iters = 12800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
