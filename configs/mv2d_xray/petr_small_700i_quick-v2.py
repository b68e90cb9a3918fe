_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick-v2.py']

# Baseline: PETR (arXiv 2203.05625), that is learned queries that attend to
# every place of every view (8 px apart) through its 3D position encoding;
# 900 queries, as there, from a trained 2D stage.
load_from = 'checkpoints/triangulation_centernet_5400i_quick-v2.pth'
model = dict(
    volume_head=None,
    detector_2d=dict(
        _delete_=True, type='mmdet3d.XRayFeatureExtractor',
        backbone=dict(_base_.model.detector_2d.backbone, num_levels=2)),
    feat_strides=[4, 8],
    lift_level=1,
    lifting_head=dict(
        roi_queries=None, free_queries=900, roi_size=32,
        point_rois=dict(whole_view=True)))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
