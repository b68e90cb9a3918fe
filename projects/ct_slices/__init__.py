"""Detectors of CT slices and slabs (documents 002 and 003), and what makes
3D boxes of theirs.

Importing the package registers everything with mmdet3d, so a config needs
only ``custom_imports = dict(imports=['projects.ct_slices'])``.
"""

from projects.core.engine.hooks import (
    ClassCheckHook,
    DrawBoxesHook,
    KnownViewsHook,
    PatientsSeenHook,
    PlainCheckpointHook,
    ProgressBarHook,
    RangeCheckHook,
)
from projects.core.engine.precision import BFloat16OptimWrapper
from projects.core.evaluation.metric_2d import Indication2DMetric
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.ct_slices.backbone import EfficientNetV2S
from projects.ct_slices.dataset import CTSliceDataset, PositiveShareSampler
from projects.ct_slices.detector import CTSliceDetector
from projects.ct_slices.explain import slice_target
from projects.ct_slices.malignancy import (
    CropFinding,
    MalignancyClassifier,
    MalignancyDataset,
    MalignancyMetric,
)
from projects.ct_slices.merge import SliceMerger
from projects.ct_slices.transforms import (
    CropSlice,
    FlipCTScan,
    LoadCTSlices,
    PackCTScan,
    TurnSlice,
)
from projects.ct_slices.tta import CTSliceTTAModel

__all__ = [
    'BFloat16OptimWrapper', 'CTSliceDataset', 'CTSliceDetector',
    'CTSliceTTAModel', 'ClassCheckHook', 'CropFinding', 'CropSlice',
    'DrawBoxesHook', 'EfficientNetV2S', 'FlipCTScan', 'Indication2DMetric',
    'Indication3DMetric', 'KnownViewsHook', 'LoadCTSlices',
    'MalignancyClassifier', 'MalignancyDataset', 'MalignancyMetric',
    'PackCTScan', 'PatientsSeenHook', 'PlainCheckpointHook',
    'PositiveShareSampler', 'ProgressBarHook', 'RangeCheckHook',
    'SliceMerger', 'TurnSlice', 'slice_target'
]
