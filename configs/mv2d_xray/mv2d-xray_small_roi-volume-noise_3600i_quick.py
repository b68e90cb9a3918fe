_base_ = ['./mv2d-xray_small_roi-volume_3400i_quick.py']

# For noisy views: 3e4 to 3e7 photons a pixel. Starts from a 2D stage that was
# trained for longer. An hour on one core.
load_from = 'checkpoints/triangulation_centernet_12800i_quick.pth'
train_pipeline = _base_.train_pipeline
train_pipeline.insert(3, dict(type='XRayPhotonNoise', photons=(3e4, 3e7)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=3600)
