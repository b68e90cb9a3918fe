_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick-v2.py']

# The decoder, on both sources as they are released: it learns best last,
# slowly and alone. 24 minutes on one core.
load_from = \
    'work_dirs/mv2d-xray_small_roi-volume_3400i_quick-v2/iter_3400.pth'
model = dict(freeze_sources=True)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_iters=2000)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
