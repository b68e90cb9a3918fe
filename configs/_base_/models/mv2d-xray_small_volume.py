_base_ = ['./mv2d-xray_small.py']

# `volume` alone: its peaks are the result. No 2D heads.
model = dict(
    detector_2d=dict(
        _delete_=True, type='mmdet3d.XRayFeatureExtractor',
        backbone=_base_.model.detector_2d.backbone),
    lifting_head=None)
