"""MV2D-Xray: 3D boxes of small indications from a few X-ray views.

Importing the package registers everything with mmdet3d, so a config needs
only ``custom_imports = dict(imports=['projects.mv2d_xray'])``.
"""

from .boxes import XRayBoxL1Cost
from .decoder import XRayDecoder
from .detector import MV2DXRay
from .lifting_head import XRayLiftingHead
from .position_encoding import XRayPositionEncoding
from .preprocessing import XRayDataPreprocessor
from .roi_queries import XRayRoIQueryGenerator
from .volume_head import XRayVolumeHead

__all__ = [
    'MV2DXRay', 'XRayBoxL1Cost', 'XRayDataPreprocessor', 'XRayDecoder',
    'XRayLiftingHead', 'XRayPositionEncoding', 'XRayRoIQueryGenerator',
    'XRayVolumeHead'
]
