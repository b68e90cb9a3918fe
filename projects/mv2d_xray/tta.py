"""Test-time augmentation: what several views of the world agree on."""

from typing import List

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseTTAModel
from torch import Tensor

from .boxes import gravity_boxes
from .geometry import transform_boxes
from .lifting_head import build_box3d_instances

__all__ = ['XRayTTAModel', 'fuse_boxes']


def fuse_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, passes: Tensor,
               num_passes: int, distance: float):
    """Average boxes that passes over the same object agree on.

    As weighted boxes fusion (arXiv 1910.13302), by distance of centres: the
    best box takes the nearest of every other pass; their mean, weighted by
    score, is the result, and its score is the mean over all passes, with 0
    for those that found nothing there.

    Args:
        boxes (Tensor): (N, 7) (mm).
        scores, labels, passes (Tensor): (N,), ``passes`` counts from 0.
        num_passes (int): P.
        distance (float): Of centres (mm), at most.

    Returns:
        tuple: boxes (M, 7), scores and labels (M,), best first.
    """
    left = torch.ones_like(scores, dtype=torch.bool)
    away = torch.cdist(boxes[:, :3], boxes[:, :3])
    fused, sums, kinds = [], [], []
    for best in scores.argsort(descending=True, stable=True).tolist():
        if not left[best]:
            continue
        group = [best]
        for number in range(num_passes):
            near = left & (passes == number) & (labels == labels[best]) & (
                away[best] <= distance)
            if number != passes[best] and bool(near.any()):
                group.append(int(away[best].masked_fill(
                    ~near, float('inf')).argmin()))
        left[group] = False
        weight = scores[group]
        fused.append((boxes[group] * weight[:, None]).sum(0) / weight.sum())
        sums.append(weight.sum() / num_passes)
        kinds.append(labels[best])
    if not fused:
        return boxes, scores, labels
    order = torch.stack(sums).argsort(descending=True, stable=True)
    return (torch.stack(fused)[order], torch.stack(sums)[order],
            torch.stack(kinds)[order])


@MODELS.register_module()
class XRayTTAModel(BaseTTAModel):
    """Mean of the predictions on flipped and rotated versions of a scan.

    Args:
        distance (float): Boxes of two versions whose centres are nearer (mm)
            are one.
        **kwargs: As for mmengine's ``BaseTTAModel``.
    """

    def __init__(self, distance: float = 10., **kwargs) -> None:
        super().__init__(**kwargs)
        self.distance = distance

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
                parts.append((transform_boxes(boxes, world @ back),
                              found.scores_3d, found.labels_3d,
                              torch.full_like(found.labels_3d, number)))
            boxes, scores, labels = fuse_boxes(
                *map(torch.cat, zip(*parts)), len(versions), self.distance)
            first.pred_instances_3d = build_box3d_instances(
                boxes[:, :6], scores, labels)
            merged.append(first)
        return merged
