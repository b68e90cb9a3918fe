_base_ = ['../_base_/centernet.py', '../_base_/phantom_256.py',
          '../_base_/runtime.py']

# A small network of both query sources that trains from scratch on a CPU: a
# dilated backbone of 32 channels at stride 4, a grid of 6 mm.
scene_range = [-200., -200., -200., 200., 200., 200.]

model = dict(
    data_preprocessor=dict(
        type='XRayDataPreprocessor', mean=[3.1, 0., 0.], std=[1.6, .13, .34],
        band_sigmas=[4., 12.], pad_size_divisor=4),
    feat_strides=[4],
    detector_2d=dict(
        backbone=dict(
            type='mmdet3d.XRayDilatedNet', channels=32, dilations=(1, 2, 4),
            num_levels=1),
        bbox_head=dict(in_channels=32, feat_channels=32)),
    volume_head=dict(
        type='XRayVolumeHead', in_channels=32,
        volume_range=[-144., -114., -144., 144., 114., 144.], voxel_size=6.,
        feat_channels=16, hidden_channels=24, num_convs=2, max_queries=16),
    lifting_head=dict(
        type='XRayLiftingHead', in_channels=32, embed_dims=64,
        scene_range=scene_range,
        roi_queries=dict(type='XRayTriangulatedQueryGenerator'),
        point_rois=dict(scale=2., min_size=8., reproject=False),
        position_encoding=dict(type='XRayPositionEncoding', num_depths=16),
        decoder=dict(
            type='XRayDecoder', num_layers=2, num_heads=4,
            feedforward_channels=128, dropout=0.),
        relevance=dict(mode='topk', num_depths=24, min_iou=.1)),
    train_rois=dict(max_per_view=10, add_gt=False, jitter=.2),
    loss_weight_3d=.1)

# One scan an iteration, about two seconds on two cores.
max_iters = 700
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters,
                 val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=.01),
    clip_grad=dict(max_norm=35., norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters,
         eta_min=4e-5),
]
