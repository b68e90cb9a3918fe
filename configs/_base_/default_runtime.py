default_scope = 'mmdet3d'
custom_imports = dict(imports=['projects.mv2d_xray'])

custom_hooks = [
    dict(type='ProgressBarHook'),
    dict(type='PlainCheckpointHook'),
    dict(type='ClassCheckHook'),
    dict(type='DrawBoxesHook'),
    dict(type='RangeCheckHook'),
    dict(type='PatientsSeenHook'),
    dict(type='KnownViewsHook'),
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
log_level = 'INFO'
# Each process of a distributed training draws its own augmentation.
randomness = dict(seed=0, diff_rank_seed=True)
load_from = None
resume = False
