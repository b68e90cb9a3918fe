# The papers' schedule (Betancur et al. §3.2 and their code's optimiser): AdamW, 500
# warm-up iterations from 1/3, cosine to 1e-3 of the start, 24 epochs.
max_epochs = 24
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs,
                 val_interval=4)
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
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs,
         T_max=max_epochs, eta_min_ratio=1e-3, convert_to_iter_based=True),
]
