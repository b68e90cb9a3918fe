"""Test-time augmentation: what several views of the world agree on."""

from typing import List

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseTTAModel

from projects.core.boxes import fuse_versions, gravity_boxes
from projects.core.geometry import transform_boxes

__all__ = ['XRayTTAModel']


@MODELS.register_module()
class XRayTTAModel(BaseTTAModel):
    """What the predictions on flipped and rotated versions of a scan agree on.

    Args:
        iou_thr (float): Boxes that overlap as much are of one finding.
        **kwargs: As for mmengine's ``BaseTTAModel``.
    """

    def __init__(self, iou_thr: float = .05, **kwargs) -> None:
        super().__init__(**kwargs)
        self.iou_thr = iou_thr

    def merge_preds(self, data_samples_list: List[list]) -> list:
        """One sample per scan, in the world of its first version."""
        merged = []
        for versions in data_samples_list:
            first = versions[0]
            world = torch.as_tensor(first.metainfo['world_augmentation'])
            boxes = []
            for sample in versions:
                back = torch.as_tensor(sample.metainfo['world_augmentation']).T
                boxes.append(transform_boxes(gravity_boxes(
                    sample.pred_instances_3d.bboxes_3d), world @ back)[:, :6])
            first.pred_instances_3d = fuse_versions(
                [sample.pred_instances_3d for sample in versions], boxes,
                self.iou_thr)
            merged.append(first)
        return merged
