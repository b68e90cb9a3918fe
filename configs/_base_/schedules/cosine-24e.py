# The papers' schedule (Betancur et al. §3.2 and their code's optimiser):
# AdamW, 500 warm-up iterations from 1/3, cosine to 1e-3 of the start over all
# epochs. Their number stands here alone: the cosine ends where they do.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=.01),
    paramwise_cfg=dict(
        custom_keys={'detector_2d.backbone': dict(lr_mult=.25)}),
    clip_grad=dict(max_norm=35., norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0,
         end=500),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0,
         eta_min_ratio=1e-3, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=3,
        save_best='mAP_3d', rule='greater'))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
