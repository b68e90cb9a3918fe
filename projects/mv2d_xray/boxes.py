"""3D boxes as numbers to regress, the cost of matching them, their fusion."""

from typing import Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import axis_aligned_bbox_overlaps_3d
from mmengine.structures import InstanceData
from torch import Tensor

from . import geometry

__all__ = [
    'XRayBoxL1Cost', 'corners_of', 'decode_boxes', 'encode_boxes',
    'fuse_boxes', 'gravity_boxes'
]

_EPS = 1e-5


def gravity_boxes(boxes) -> Tensor:
    """mmdet3d boxes, which are bottom-centred, to (N, 7) with the gravity
    centre (mm)."""
    return torch.cat([boxes.gravity_center, boxes.tensor[:, 3:7]], 1)


def corners_of(boxes: Tensor) -> Tensor:
    """Boxes (N, 6 or more), centre and size, to (N, 6) lowest and highest
    corner (mm)."""
    half = boxes[:, 3:6] / 2
    return torch.cat([boxes[:, :3] - half, boxes[:, :3] + half], 1)


def encode_boxes(boxes: Tensor, scene_range: Sequence[float]) -> Tensor:
    """Boxes to the code that losses and costs compare.

    Args:
        boxes (Tensor): (N, 6 or more), centre and size (mm).
        scene_range (Sequence[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).

    Returns:
        Tensor: (N, 6): centre as a fraction of the scene box, log of the
        size (mm).
    """
    return torch.cat([
        geometry.normalise_points(boxes[..., :3], scene_range),
        boxes[..., 3:6].log()
    ], -1)


def decode_boxes(centres: Tensor, sizes: Tensor, deltas: Tensor,
                 scene_range: Sequence[float]) -> Tensor:
    """Refine reference boxes as PETR does (arXiv 2203.05625) §3.3.

    Args:
        centres, sizes (Tensor): (*, 3) references (mm).
        deltas (Tensor): (*, 6): added to the centre in inverse-sigmoid space
            of the scene box and to the log of the size. 0 changes nothing.

    Returns:
        Tensor: (*, 6) centre, within the scene box, and size (mm).
    """
    unit = geometry.normalise_points(centres, scene_range)
    unit = torch.sigmoid(torch.logit(unit, eps=_EPS) + deltas[..., :3])
    return torch.cat([
        geometry.denormalise_points(unit, scene_range),
        sizes * deltas[..., 3:].clamp(-4, 4).exp()
    ], -1)


def fuse_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, sources: Tensor,
               all_sources: Sequence[int], iou_thr: float = .05,
               absent: float = .01):
    """Make one box of all that are of one object.

    Weighted box clustering (Retina U-Net, arXiv 1811.08661, §3): the best box
    takes all of its class that overlap it; their mean, weighted by score, is
    the result. Its score is that of all sources having found it: within a
    source boxes are independent hints, ``1 - prod(1 - score)``; over the
    sources the geometric mean is taken, in which one that found nothing there
    counts ``absent``.

    Args:
        boxes (Tensor): (N, 6) centre and size (mm).
        scores, labels, sources (Tensor): (N,).
        all_sources (Sequence[int]): That could have found something.
        iou_thr (float): 3D IoU with the best box, at least.
        absent (float): In (0, 1).

    Returns:
        tuple: boxes (M, 6), scores and labels (M,), best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels, sources = (
        x[order] for x in (boxes, scores, labels, sources))
    corners = corners_of(boxes)
    near = axis_aligned_bbox_overlaps_3d(corners, corners) >= iou_thr
    near = (near & (labels[:, None] == labels)).cpu()
    left, groups = torch.ones(len(boxes), dtype=torch.bool), []
    for best in range(len(boxes)):  # in the order of scores, as NMS does
        if left[best]:
            group = near[best] & left
            group[best] = True
            left &= ~group
            groups.append(group)
    if not groups:
        return boxes, scores, labels
    member = torch.stack(groups).to(boxes.device)  # (M, N)
    weight = member * scores.clamp(min=1e-6)
    fused = weight @ boxes / weight.sum(1, keepdim=True)
    missed = torch.log1p(-scores.clamp(max=1 - 1e-6))
    of_source = (sources[:, None] == sources.new_tensor(
        all_sources)).to(missed)  # (N, S)
    found = -torch.expm1(member.to(missed) @ (missed[:, None] * of_source))
    there = member.to(missed) @ of_source > 0
    score = torch.where(there, found, absent).log().mean(1).exp()
    best_first = score.argsort(descending=True, stable=True)
    kinds = labels[member.int().argmax(1)]
    return fused[best_first], score[best_first], kinds[best_first]


@TASK_UTILS.register_module()
class XRayBoxL1Cost:
    """L1 distance between box codes, as a Hungarian matching cost.

    Pairs that the predictions' ``allowed`` (N, M) rules out, where they have
    it, cost more than any other.

    Args:
        weight (float): Of the centre (1 is the whole scene box).
        size_weight (float): Of the log size. Defaults to 0.
    """

    def __init__(self, weight: float = 1., size_weight: float = 0.) -> None:
        self.weight = weight
        self.size_weight = size_weight

    def __call__(self,
                 pred_instances: InstanceData,
                 gt_instances: InstanceData,
                 img_meta=None,
                 **kwargs) -> Tensor:
        """Cost (predictions, ground truths) of ``codes`` (N, 6)."""
        pred, target = pred_instances.codes, gt_instances.codes
        cost = (self.weight * torch.cdist(pred[:, :3], target[:, :3], p=1) +
                self.size_weight *
                torch.cdist(pred[:, 3:], target[:, 3:], p=1))
        if 'allowed' in pred_instances:
            cost = cost.masked_fill(~pred_instances.allowed, 1e4)
        return cost
