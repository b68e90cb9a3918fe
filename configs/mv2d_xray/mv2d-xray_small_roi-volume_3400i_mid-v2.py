_base_ = ['../_base_/datasets/mid-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# The network of `quick`, whose weights it starts from (all but the first
# convolution, which sees one band more): its cells of 4 px are half as wide
# in space. An hour and a half on one core; half an hour more, as the released
# one had:
#   python tools/train.py \
#     configs/mv2d_xray/mv2d-xray_small_roi-volume_3400i_mid-v2.py --amp \
#     --work-dir work_dirs/mid_longer --cfg-options \
#     load_from=work_dirs/mv2d-xray_small_roi-volume_3400i_mid-v2/iter_3400.pth \
#     optim_wrapper.optimizer.lr=2e-3 train_cfg.max_iters=1200
load_from = 'checkpoints/mv2d-xray_small_roi-volume_3400i_quick-v2.pth'
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    lifting_head=dict(
        decoder=None, position_encoding=None,
        scene_range=_base_.scene_range))
train_cfg = dict(max_iters=3400)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
