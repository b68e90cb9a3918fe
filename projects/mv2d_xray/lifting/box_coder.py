"""3D boxes as numbers to regress, and the cost of matching them."""

from typing import Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core import geometry

__all__ = ['XRayBoxL1Cost', 'decode_boxes', 'encode_boxes']

_EPS = 1e-5


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
