_base_ = ['../_base_/faster-rcnn.py', '../_base_/lidc_1024.py',
          '../_base_/schedule_24e.py', '../_base_/runtime.py']

# The papers' variant: ResNet-50 with DCNv2 in its last two stages, FPN of
# strides 8 to 128, one query per 2D box, six decoder layers.
scene_range = [-200., -200., -200., 200., 200., 200.]
strides = [8, 16, 32, 64, 128]

model = dict(
    # Bands at four times the blur of the 256² images: the same mm.
    data_preprocessor=dict(
        type='XRayDataPreprocessor', mean=[3.1, 0., 0.], std=[1.6, .13, .34],
        band_sigmas=[16., 48.], pad_size_divisor=128),
    feat_strides=strides,
    # Ten views fit into the memory of two.
    view_chunk=2,
    detector_2d=dict(
        backbone=dict(
            type='mmdet.ResNet', depth=50, num_stages=4,
            out_indices=(0, 1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True,
            style='pytorch',
            dcn=dict(type='DCNv2', deform_groups=1,
                     fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True),
            init_cfg=dict(type='Pretrained',
                          checkpoint='torchvision://resnet50')),
        neck=dict(
            type='mmdet.FPN', in_channels=[256, 512, 1024, 2048],
            out_channels=256, start_level=1, add_extra_convs='on_output',
            num_outs=5),
        rpn_head=dict(
            in_channels=256, feat_channels=256,
            anchor_generator=dict(
                scales=[1, 2, 4], ratios=[.5, 1., 2.], strides=strides)),
        roi_head=dict(
            bbox_roi_extractor=dict(
                roi_layer=dict(sampling_ratio=0), out_channels=256,
                featmap_strides=strides[:4]),
            bbox_head=dict(in_channels=256, fc_out_channels=1024)),
        train_cfg=dict(
            rpn=dict(assigner=dict(pos_iou_thr=.7), sampler=dict(num=256)),
            rpn_proposal=dict(nms_pre=2000, max_per_img=1000),
            rcnn=dict(sampler=dict(num=512))),
        test_cfg=dict(
            rpn=dict(nms_pre=1000, max_per_img=1000),
            rcnn=dict(nms=dict(iou_threshold=.7), max_per_img=100))),
    lift_level=1,
    lifting_head=dict(
        type='XRayLiftingHead', in_channels=256, embed_dims=256,
        scene_range=scene_range,
        roi_queries=dict(type='XRayRoIQueryGenerator'),
        position_encoding=dict(type='XRayPositionEncoding', num_depths=64),
        decoder=dict(
            type='XRayDecoder', num_layers=6, num_heads=8,
            feedforward_channels=2048, dropout=.1, query_chunk=128),
        relevance=dict(mode='topk', num_depths=64, min_iou=.1)),
    train_rois=dict(max_per_view=100, add_gt=True, jitter=.2),
    loss_weight_3d=.1)

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1,
                    max_keep_ckpts=3, save_best='mAP_3d', rule='greater'))
log_processor = dict(by_epoch=True)
