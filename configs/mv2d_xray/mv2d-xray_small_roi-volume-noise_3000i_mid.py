_base_ = ['../_base_/datasets/mid.py',
          '../_base_/models/mv2d-xray_small.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# For noisy views: 3e4 to 3e7 photons a pixel, from the weights that were
# trained with them on 256². 70 minutes on one core with `--amp`.
load_from = 'checkpoints/mv2d-xray_small_roi-volume-noise_3600i_quick.pth'
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    lifting_head=dict(
        decoder=None, position_encoding=None,
        scene_range=_base_.scene_range))
train_pipeline = _base_.train_pipeline
train_pipeline.insert(3, dict(type='XRayPhotonNoise', photons=(3e4, 3e7)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=3000)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
