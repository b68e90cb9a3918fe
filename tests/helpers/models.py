"""Small models of every kind, what they are fed and what they give."""

from pathlib import Path

import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/mv2d_xray'
PIPELINE = [dict(type='LoadXRayViews'), dict(type='PackXRayInputs')]
REPORT_ALL = dict(score_thr=0., iou_thr=.05, max_per_img=50)

# No 2D heads, of the images of :func:`quick`.
FEATURES = dict(
    _delete_=True, type='mmdet3d.XRayFeatureExtractor',
    backbone=dict(type='mmdet3d.XRayDilatedNet', num_levels=1))


def quick(**changes):
    """The small config, for images of 64² and a smaller volume."""
    cfg = Config.fromfile(
        CONFIGS / 'mv2d-xray_small_roi-volume-decoder_700i_demo-v2.py')
    cfg.model.data_preprocessor.band_sigmas = [1., 3.]
    cfg.model.volume_head.update(volume_range=[-96.] * 3 + [96.] * 3,
                                 voxel_size=12., score_thr=.001)
    cfg.merge_from_dict({f'model.{k}': v for k, v in changes.items()})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    head = getattr(model.detector_2d, 'bbox_head', None)
    if hasattr(head, 'wh_head'):  # untrained, its boxes have no area
        torch.nn.init.constant_(head.wh_head[-1].bias, 2.)
    return model


def retina_model():
    """The small config with another mmdet detector as 2D stage."""
    retina = dict(
        type='mmdet.RetinaNet',
        backbone=dict(
            type='mmdet.ResNet', depth=18, base_channels=16, num_stages=3,
            strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
        neck=dict(type='mmdet.FPN', in_channels=[16, 32, 64],
                  out_channels=32, num_outs=3),
        bbox_head=dict(
            type='mmdet.RetinaHead', num_classes=1, in_channels=32,
            stacked_convs=1, feat_channels=32,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator', scales=[2], ratios=[1.],
                strides=[4, 8, 16]),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder')),
        train_cfg=dict(
            assigner=dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=.5,
                          neg_iou_thr=.4, min_pos_iou=0.),
            sampler=dict(type='mmdet.PseudoSampler'), allowed_border=-1,
            pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=.05,
                      nms=dict(type='nms', iou_threshold=.5),
                      max_per_img=5))
    cfg = Config.fromfile(
        CONFIGS / 'mv2d-xray_small_roi-volume-decoder_700i_demo-v2.py').model
    cfg.detector_2d, cfg.feat_strides = retina, [4, 8, 16]
    cfg.volume_head.update(volume_range=[-96.] * 3 + [96.] * 3,
                           voxel_size=24.)
    return MODELS.build(cfg)


def full_size(name):
    """A full-size config without weights from a hub, with few boxes."""
    cfg = Config.fromfile(CONFIGS / name).model
    cfg.detector_2d.backbone.init_cfg = None
    cfg.detector_2d.train_cfg.rpn_proposal.max_per_img = 50
    cfg.detector_2d.train_cfg.rcnn.sampler.num = 32
    cfg.detector_2d.test_cfg.rpn.max_per_img = 50
    cfg.detector_2d.test_cfg.rcnn.max_per_img = 10
    if cfg.get('volume_head'):
        cfg.volume_head.update(voxel_size=30.)
    cfg.lifting_head.relevance.num_depths = 8
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def faster_rcnn():
    """Of the small models, for images with two bands."""
    cfg = Config.fromfile(
        CONFIGS / 'triangulation_faster-rcnn_5400i_quick-v2.py').model
    cfg.detector_2d.backbone.in_channels = 3
    return {'detector_2d': dict(cfg.detector_2d, _delete_=True),
            'feat_strides': cfg.feat_strides}


VARIANTS = {
    'both': {},
    'faster rcnn': faster_rcnn(),
    'roi': dict(volume_head=None),
    'volume': {'lifting_head.roi_queries': None, 'detector_2d': FEATURES},
    'peaks': dict(lifting_head=None, detector_2d=FEATURES),
    'no decoder': {'lifting_head.decoder': None},
    'all overlapped': {'lifting_head.relevance.mode': 'all'},
    'denoising': {'lifting_head.denoising': dict(
        groups=3, centre_noise=10., size_noise=.3)},
    'no 2d heatmap': {'volume_head.loss_heatmap_2d': None},
    'depth regressed, true boxes given': {
        'lifting_head.roi_queries.type': 'XRayRoIQueryGenerator',
        'train_rois': dict(max_per_view=6, add_gt=True, jitter=.2)},
    'sources frozen': {'freeze_sources': True},
    'reprojected': {'lifting_head.point_rois.reproject': True},
    'free queries at a point': {
        'volume_head': None, 'detector_2d': FEATURES,
        'lifting_head.roi_queries': None, 'lifting_head.free_queries': 9,
        'lifting_head.roi_size': 1, 'lifting_head.point_rois': dict(
            scale=0., min_size=4., reproject=True)},
    'free queries, whole views': {
        'volume_head': None, 'detector_2d': FEATURES,
        'lifting_head.roi_queries': None, 'lifting_head.free_queries': 9,
        'lifting_head.roi_size': 4,
        'lifting_head.point_rois': dict(whole_view=True)},
}


def copy_weights(source, target):
    """To a model that has fewer parts."""
    target.load_state_dict({name: value for name, value in
                            source.state_dict().items()
                            if name in target.state_dict()})


def without_area(model):
    """All boxes of CenterNet have negative edges."""
    torch.nn.init.constant_(
        model.detector_2d.bbox_head.wh_head[-1].bias, -9.)


def scans_of(root, **changes):
    """The data set of a folder's split 'train'; it gives packed samples."""
    return DATASETS.build(
        dict(dict(type='XRayDataset', data_root=str(root),
                  ann_file='lidc_infos_train.pkl', pipeline=PIPELINE),
             **changes))


def loss_of(model, batch):
    data = model.data_preprocessor(pseudo_collate(batch), True)
    losses = model(**data, mode='loss')
    return model.parse_losses(losses)


def boxes_of(model, batch):
    model.eval()
    with torch.no_grad():
        return model.test_step(pseudo_collate(batch))
