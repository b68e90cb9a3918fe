_base_ = ['../default_runtime.py']

# Document 003: AdamW of 1e-4, backbone 1e-5, weight decay 1e-4, a tenth of it
# after 10 of 15 epochs, gradients of 6 batches together, clipped at 0.1, half
# precision (--amp).
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=15, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', accumulative_counts=6,
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=.1))),
    clip_grad=dict(max_norm=.1, norm_type=2))
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[10], gamma=.1)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=2,
        save_best='CPM', rule='greater'))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
