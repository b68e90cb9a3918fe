default_scope = 'mmdet3d'
custom_imports = dict(imports=['projects.mv2d_xray'])

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=100,
        max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='ProgressBarHook'),
    dict(type='PlainCheckpointHook'),
    dict(type='ClassCheckHook'),
    dict(type='DrawBoxesHook'),
    dict(type='RangeCheckHook'),
]
# Curves and pictures: tensorboard --logdir work_dirs
visualizer = dict(
    type='Visualizer',
    vis_backends=[
        dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')
    ])

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=False)
log_level = 'INFO'
# Each process of a distributed training draws its own augmentation.
randomness = dict(seed=0, diff_rank_seed=True)
load_from = None
resume = False
