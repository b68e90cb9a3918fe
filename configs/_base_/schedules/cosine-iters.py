# For small networks: AdamW, 30 warm-up iterations from a tenth, then a cosine.
# A run config, or --cfg-options train_cfg.max_iters=N, says how many
# iterations: the cosine ends with them, and so does validation, which comes
# once. One scan an iteration, about two seconds on two cores.
train_cfg = dict(type='IterBasedTrainLoop', val_interval=10**9)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=.01),
    clip_grad=dict(max_norm=35., norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, eta_min=4e-5),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=100,
        max_keep_ckpts=2))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=False)
