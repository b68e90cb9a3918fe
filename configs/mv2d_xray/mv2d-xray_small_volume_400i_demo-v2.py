_base_ = ['../_base_/datasets/demo-v2.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# The demo: the released `volume`, trained on for a few minutes. A patient is
# in one split of all sets, so it has seen none of the demo's test scans.
load_from = 'checkpoints/mv2d-xray_small_volume_5000i_quick-v2.pth'
model = dict(
    data_preprocessor=_base_.released_bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.released_bands.mean))))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_iters=400)
