_base_ = ['../default_runtime.py']

# Document 002: AdamW of 1e-4, cosine, at most 30 epochs, validation every 3,
# early stopping after 10 without a gain, which are four validations. It has
# half precision (--amp) and batches of 8. Warm-up, weight decay and clipping
# are choices; so is that any gain counts, where mmengine's default asks for
# 0.1. The same figure again is none.
custom_imports = dict(imports=['projects.ct_slices'], _delete_=True)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.01),
    clip_grad=dict(max_norm=35., norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0,
         eta_min_ratio=1e-3, convert_to_iter_based=True),
]
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EarlyStoppingHook', monitor='CPM', rule='greater',
         min_delta=1e-6, patience=4),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=2,
        save_best='CPM', rule='greater'))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
