_base_ = ['./mv2d-xray_quick_volume_long_quick.py']

# For rigs that lose views: trained on four to seven of the ten at a time, as
# long. 84 minutes on one core.
model = dict(volume_head=dict(with_score=True))
max_iters = 4500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
