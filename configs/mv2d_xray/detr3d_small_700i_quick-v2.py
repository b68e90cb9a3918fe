_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick-v2.py']

# Baseline: DETR3D (arXiv 2110.06922), that is learned queries that read each
# view at the projection of their place, layer by layer, with this project's
# backbone, attention and matching; 900 queries, as there. From scratch it
# finds nothing in half an hour: it starts from a trained 2D stage.
load_from = 'checkpoints/triangulation_centernet_5400i_quick-v2.pth'
model = dict(
    volume_head=None,
    detector_2d=dict(
        _delete_=True, type='mmdet3d.XRayFeatureExtractor',
        backbone=_base_.model.detector_2d.backbone),
    lifting_head=dict(
        roi_queries=None, free_queries=900, roi_size=1,
        point_rois=dict(scale=0., min_size=4., reproject=True)))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
