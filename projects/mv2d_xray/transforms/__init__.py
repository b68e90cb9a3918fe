"""From files to the network's input: loading, augmentation, packing.

Every geometric transform keeps images, 2D boxes, 3D boxes and matrices
consistent, so that ``ct2img`` still projects the boxes onto the images.
Randomness comes from NumPy's global generator, which mmengine seeds in every
worker. Images are lists of (H, W, 1) float32 line integrals.
"""

from projects.mv2d_xray.transforms.geometric import (
    ResizeXRay,
    XRayPoseError,
    XRayRandomFlip,
    XRayRandomRotate,
    XRayViewDropout,
    keep_views,
)
from projects.mv2d_xray.transforms.insertion import XRayInsertNodules
from projects.mv2d_xray.transforms.loading import LoadXRayViews
from projects.mv2d_xray.transforms.packing import PackXRayInputs
from projects.mv2d_xray.transforms.photometric import (
    XRayAcquisition,
    XRayGridMask,
    XRayPhotometric,
)

__all__ = [
    'LoadXRayViews', 'PackXRayInputs', 'ResizeXRay', 'XRayAcquisition',
    'XRayGridMask', 'XRayInsertNodules', 'XRayPhotometric', 'XRayPoseError',
    'XRayRandomFlip', 'XRayRandomRotate', 'XRayViewDropout', 'keep_views'
]
