"""MV2D-Xray: 3D boxes of small indications from a few X-ray views.

Importing the package registers everything with mmdet3d, so a config needs
only ``custom_imports = dict(imports=['projects.mv2d_xray'])``.
"""

from projects.core.engine.hooks import (
    ClassCheckHook,
    DrawBoxesHook,
    KnownViewsHook,
    PlainCheckpointHook,
    ProgressBarHook,
    RangeCheckHook,
)
from projects.core.engine.precision import BFloat16OptimWrapper
from projects.core.evaluation.metric_2d import Indication2DMetric
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.mv2d_xray.backbone import XRayDilatedNet, XRayFeatureExtractor
from projects.mv2d_xray.baselines import XRayScoreGrid
from projects.mv2d_xray.centernet import XRayCenterNetHead
from projects.mv2d_xray.dataset import XRayDataset
from projects.mv2d_xray.detector import MV2DXRay
from projects.mv2d_xray.explain import xray_target
from projects.mv2d_xray.lifting.box_coder import XRayBoxL1Cost
from projects.mv2d_xray.lifting.decoder import XRayDecoder
from projects.mv2d_xray.lifting.fusion import XRaySourceFusion
from projects.mv2d_xray.lifting.head import XRayLiftingHead
from projects.mv2d_xray.lifting.position_encoding import XRayPositionEncoding
from projects.mv2d_xray.preprocessing import XRayDataPreprocessor
from projects.mv2d_xray.queries.roi import (
    XRayRoIQueryGenerator,
    XRayTriangulatedQueryGenerator,
)
from projects.mv2d_xray.queries.volume import XRayVolumeHead
from projects.mv2d_xray.transforms import (
    LoadXRayViews,
    PackXRayInputs,
    ResizeXRay,
    XRayAcquisition,
    XRayGridMask,
    XRayInsertNodules,
    XRayPhotometric,
    XRayPoseError,
    XRayRandomFlip,
    XRayRandomRotate,
    XRayViewDropout,
)
from projects.mv2d_xray.tta import XRayTTAModel

__all__ = [
    'BFloat16OptimWrapper', 'ClassCheckHook', 'DrawBoxesHook',
    'Indication2DMetric', 'Indication3DMetric', 'KnownViewsHook',
    'LoadXRayViews', 'MV2DXRay',
    'PackXRayInputs', 'PlainCheckpointHook', 'ProgressBarHook',
    'RangeCheckHook', 'ResizeXRay', 'XRayAcquisition', 'XRayBoxL1Cost',
    'XRayCenterNetHead', 'XRayDataPreprocessor', 'XRayDataset', 'XRayDecoder',
    'XRayDilatedNet', 'XRayFeatureExtractor', 'XRayGridMask',
    'XRayInsertNodules', 'XRayLiftingHead', 'XRayPhotometric',
    'XRayPoseError', 'XRayPositionEncoding', 'XRayRandomFlip',
    'XRayRandomRotate', 'XRayRoIQueryGenerator',
    'XRayScoreGrid', 'XRaySourceFusion', 'XRayTTAModel',
    'XRayTriangulatedQueryGenerator', 'XRayViewDropout', 'XRayVolumeHead',
    'xray_target'
]
