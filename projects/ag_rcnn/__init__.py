"""Two views of one breast: Mask R-CNN and AG-RCNN (document 004).

Importing the package registers everything with mmdet3d, so a config needs
only ``custom_imports = dict(imports=['projects.ag_rcnn'])``.
"""

from projects.ag_rcnn.dataset import MammogramDataset, ViewPairDataset
from projects.ag_rcnn.detector import CrossViewDetector, ExamPreprocessor
from projects.ag_rcnn.explain import exam_target
from projects.ag_rcnn.graph import CrossViewGraph
from projects.ag_rcnn.relations import (
    CoOccurrence,
    EpipolarRelation,
    FitRelationHook,
)
from projects.ag_rcnn.transforms import (
    EachImage,
    FindNodes,
    GridNodes,
    LoadMammogram,
    MammogramTones,
    PackExam,
    ResizeMammogram,
    WarpMammogram,
)
from projects.core.engine.hooks import (
    ClassCheckHook,
    DrawBoxesHook,
    PatientsSeenHook,
    PlainCheckpointHook,
    ProgressBarHook,
    StageHook,
)
from projects.core.engine.precision import BFloat16OptimWrapper
from projects.core.evaluation.metric_images import ImageFROCMetric

__all__ = [
    'BFloat16OptimWrapper', 'ClassCheckHook', 'CoOccurrence',
    'CrossViewDetector', 'CrossViewGraph', 'DrawBoxesHook', 'EachImage',
    'EpipolarRelation', 'ExamPreprocessor', 'FindNodes', 'FitRelationHook',
    'GridNodes', 'ImageFROCMetric', 'LoadMammogram', 'MammogramDataset',
    'MammogramTones', 'PackExam', 'PatientsSeenHook', 'PlainCheckpointHook',
    'ProgressBarHook', 'ResizeMammogram', 'StageHook', 'ViewPairDataset',
    'WarpMammogram', 'exam_target'
]
