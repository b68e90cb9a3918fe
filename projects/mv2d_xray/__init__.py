"""MV2D-Xray: 3D boxes of small indications from a few X-ray views.

Importing the package registers everything with mmdet3d, so a config needs
only ``custom_imports = dict(imports=['projects.mv2d_xray'])``.
"""

from .backbone import XRayDilatedNet
from .baselines import XRayScoreGrid
from .boxes import XRayBoxL1Cost
from .centernet import XRayCenterNetHead
from .dataset import XRayDataset
from .decoder import XRayDecoder
from .detector import MV2DXRay
from .lifting_head import XRayLiftingHead
from .metrics import XRay2DMetric, XRay3DMetric
from .position_encoding import XRayPositionEncoding
from .preprocessing import XRayDataPreprocessor
from .roi_queries import (XRayRoIQueryGenerator,
                          XRayTriangulatedQueryGenerator)
from .runtime import (XRayBFloat16OptimWrapper, XRayCheckpointHook,
                      XRayClassCheckHook, XRayProgressHook)
from .transforms import (LoadXRayViews, PackXRayInputs, ResizeXRay,
                         XRayGridMask, XRayInsertNodules, XRayPhotometric,
                         XRayPhotonNoise, XRayPoseError, XRayRandomFlip,
                         XRayRandomRotate, XRayViewDropout)
from .tta import XRayTTAModel
from .visualization import XRayDrawHook
from .volume_head import XRayVolumeHead

__all__ = [
    'LoadXRayViews', 'MV2DXRay', 'PackXRayInputs', 'ResizeXRay',
    'XRay2DMetric', 'XRay3DMetric', 'XRayBFloat16OptimWrapper',
    'XRayBoxL1Cost', 'XRayCenterNetHead', 'XRayCheckpointHook',
    'XRayClassCheckHook', 'XRayDataPreprocessor', 'XRayDataset',
    'XRayDecoder', 'XRayDilatedNet',
    'XRayDrawHook', 'XRayGridMask', 'XRayInsertNodules', 'XRayLiftingHead',
    'XRayPhotometric', 'XRayPhotonNoise', 'XRayPositionEncoding',
    'XRayPoseError', 'XRayProgressHook', 'XRayRandomFlip',
    'XRayRandomRotate', 'XRayRoIQueryGenerator', 'XRayScoreGrid',
    'XRayTTAModel', 'XRayTriangulatedQueryGenerator', 'XRayViewDropout',
    'XRayVolumeHead'
]
