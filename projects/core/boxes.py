"""3D boxes: two conventions of the centre, corners, fusion; and the cells of
a grid that they cover.

Boxes are ``[x, y, z, dx, dy, dz, yaw]`` of the gravity centre everywhere but
in mmdet3d's own: :func:`gravity_boxes` and :func:`lidar_boxes` are the only
way there and back.
"""

from typing import Sequence, Union

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core.fusion import ABSENT, IOU_THR, fuse_arrays

__all__ = [
    'build_box3d_instances', 'cells_in_boxes', 'corners_of', 'draw_gaussians',
    'fuse_boxes', 'fuse_versions', 'gravity_array', 'gravity_boxes',
    'lidar_boxes'
]


def gravity_boxes(boxes: LiDARInstance3DBoxes) -> Tensor:
    """mmdet3d boxes, which are bottom-centred, to (N, 7) with the gravity
    centre (mm)."""
    return torch.cat([boxes.gravity_center, boxes.tensor[:, 3:7]], 1)


def lidar_boxes(boxes: Union[Tensor, np.ndarray]) -> LiDARInstance3DBoxes:
    """Inverse of :func:`gravity_boxes`, in float32."""
    return LiDARInstance3DBoxes(
        torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 7),
        origin=(.5, .5, .5))


def gravity_array(boxes: LiDARInstance3DBoxes) -> np.ndarray:
    """:func:`gravity_boxes` as an array of float64."""
    return gravity_boxes(boxes).detach().cpu().numpy().astype(np.float64)


def corners_of(boxes: Tensor) -> Tensor:
    """Boxes (N, 6 or more), centre and size, to (N, 6) lowest and highest
    corner (mm)."""
    half = boxes[:, 3:6] / 2
    return torch.cat([boxes[:, :3] - half, boxes[:, :3] + half], 1)


def fuse_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, sources: Tensor,
               all_sources: Sequence[int], iou_thr: float = IOU_THR,
               absent: float = ABSENT):
    """:func:`~projects.core.fusion.fuse_arrays` of tensors.

    Args:
        boxes (Tensor): (N, 6) centre and size (mm).
        scores, labels, sources (Tensor): (N,).
        all_sources (Sequence[int]): That could have found something.
        iou_thr (float): 3D IoU with the best box, at least.
        absent (float): In (0, 1).

    Returns:
        tuple: boxes (M, 6), scores and labels (M,), best first.
    """
    fused = fuse_arrays(
        boxes.detach().cpu().numpy(), scores.detach().cpu().numpy(),
        labels.cpu().numpy(), sources.cpu().numpy(), list(all_sources),
        iou_thr, absent)
    return tuple(torch.from_numpy(found).to(like) for found, like in zip(
        fused, (boxes, scores, labels)))


def build_box3d_instances(boxes: Tensor, scores: Tensor,
                          labels: Tensor) -> InstanceData:
    """Predictions as mmdet3d keeps them.

    Args:
        boxes (Tensor): (N, 6) gravity centre and size (mm).
        scores, labels (Tensor): (N,).
    """
    boxes = torch.cat([boxes, boxes.new_zeros(len(boxes), 1)], 1)
    return InstanceData(
        bboxes_3d=lidar_boxes(boxes), scores_3d=scores, labels_3d=labels)


def fuse_versions(versions: Sequence[InstanceData], boxes: Sequence[Tensor],
                  iou_thr: float = IOU_THR) -> InstanceData:
    """What the predictions on versions of a scan agree on.

    Args:
        versions (Sequence[InstanceData]): ``scores_3d`` and ``labels_3d`` of
            each version.
        boxes (Sequence[Tensor]): (N, 6) of each, centre and size (mm) in one
            frame.
        iou_thr (float): As of :func:`fuse_boxes`.
    """
    labels = [found.labels_3d for found in versions]
    sources = [torch.full_like(own, i) for i, own in enumerate(labels)]
    return build_box3d_instances(*fuse_boxes(
        torch.cat(list(boxes)), torch.cat([v.scores_3d for v in versions]),
        torch.cat(labels), torch.cat(sources), range(len(versions)), iou_thr))


# ----------------------------------------------------------------------- grids
def draw_gaussians(centres: Tensor, sigmas: Tensor,
                   grids: Sequence[Tensor]) -> Tensor:
    """Heatmap of Gaussians with value 1 in the cell nearest each centre.

    As in CenterNet (arXiv 1904.07850) §3, for any number of dimensions;
    overlapping Gaussians take the maximum.

    Args:
        centres (Tensor): (N, D).
        sigmas (Tensor): (N,), in the unit of ``centres``.
        grids (Sequence[Tensor]): D sorted 1D tensors of cell centres.

    Returns:
        Tensor: (len(grids[0]), ..., len(grids[D - 1])).
    """
    shape = [len(g) for g in grids]
    heat = centres.new_zeros(shape)
    for centre, sigma in zip(centres, sigmas):
        # Snap to the cell, so that its target is exactly 1.
        axes = [
            torch.exp(-.5 * ((g - g[(g - c).abs().argmin()]) / sigma)**2)
            for g, c in zip(grids, centre)
        ]
        bump = axes[0]
        for axis in axes[1:]:
            bump = bump[..., None] * axis
        heat = torch.maximum(heat, bump)
    return heat


def cells_in_boxes(low: Tensor, high: Tensor,
                   grids: Sequence[Tensor]) -> Tensor:
    """Cells whose centre lies in any of some boxes.

    Args:
        low, high (Tensor): (N, D), the boxes' corners.
        grids (Sequence[Tensor]): As for :func:`draw_gaussians`.

    Returns:
        Tensor: (len(grids[0]), ..., len(grids[D - 1])), boolean.
    """
    inside = low.new_ones(len(low), dtype=torch.bool)
    for grid, start, end in zip(grids, low.T, high.T):
        within = (grid >= start[:, None]) & (grid <= end[:, None])
        inside = inside[..., None] & within.view(
            len(low), *[1] * (inside.dim() - 1), len(grid))
    return inside.any(0)
