_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick.py']

# Both sources without a decoder: the boxes of both, fused, are the result. The
# 2D stage comes first, 3300 iterations of `triangulation_centernet_12800i_quick.py`:
#   python tools/train.py configs/mv2d_xray/triangulation_centernet_12800i_quick.py --work-dir \
#       work_dirs/2d_quick --cfg-options train_cfg.max_iters=3300 \
#       train_cfg.val_interval=3300 param_scheduler.1.end=3300
# An hour and a half on one core, both together.
load_from = 'work_dirs/2d_quick/iter_3300.pth'
model = dict(lifting_head=dict(decoder=None, position_encoding=None))

max_iters = 3400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
