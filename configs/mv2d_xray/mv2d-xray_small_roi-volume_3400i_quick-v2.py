_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Both sources without a decoder: the boxes of both, fused, are the result. The
# 2D stage comes first, 3300 iterations of it alone:
#   python tools/train.py \
#       configs/mv2d_xray/triangulation_centernet_12800i_quick-v2.py \
#       --work-dir work_dirs/2d_quick-v2 --cfg-options train_cfg.max_iters=3300
# An hour and a half on one core, both together.
load_from = 'work_dirs/2d_quick-v2/iter_3300.pth'
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
