"""Test-time augmentation: what several views of the world agree on."""

from typing import List

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseTTAModel

from projects.core.boxes import (
    build_box3d_instances,
    fuse_boxes,
    gravity_boxes,
)
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
            parts, first = [], versions[0]
            world = torch.as_tensor(first.metainfo['world_augmentation'])
            for number, sample in enumerate(versions):
                found = sample.pred_instances_3d
                boxes = gravity_boxes(found.bboxes_3d)
                back = torch.as_tensor(sample.metainfo['world_augmentation']).T
                parts.append((transform_boxes(boxes, world @ back)[:, :6],
                              found.scores_3d, found.labels_3d,
                              torch.full_like(found.labels_3d, number)))
            first.pred_instances_3d = build_box3d_instances(*fuse_boxes(
                *map(torch.cat, zip(*parts)), range(len(versions)),
                self.iou_thr))
            merged.append(first)
        return merged
