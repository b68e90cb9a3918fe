# Document 004: SGD with momentum 0.9, weight decay 1e-4, gradients clipped at
# 1. Rates are those of stages, which a run config gives, with their lengths.
train_cfg = dict(type='EpochBasedTrainLoop', val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=.002, momentum=.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=1., norm_type=2))
param_scheduler = []
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=2,
        save_best='R@0.5', rule='greater'))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
# For several processes: what a stage leaves out has no gradient, nor has a
# graph in an exam without partners.
find_unused_parameters = True
