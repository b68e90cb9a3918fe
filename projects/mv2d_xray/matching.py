"""Which RoIs of other views can show the same object (box correlation).

MV2D (arXiv 2301.02364) §3.3 and papers/000 §4.3: each RoI is swept along its
rays over the depths that the scene box allows, and what it would cover in
every other view is compared with that view's RoIs.
"""

from typing import Tuple

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from . import geometry

__all__ = ['relevant_rois', 'sweep_overlaps', 'cubes_at_depth']


def cubes_at_depth(rois: Tensor, depth: Tensor, cam2img: Tensor,
                   ct2img: Tensor) -> Tensor:
    """3D cubes that RoIs would show if they lay at a depth.

    Args:
        rois (Tensor): (R, 4) xyxy (px).
        depth (Tensor): (R, D) (mm).
        cam2img (Tensor): (R, 4, 4), the camera of each RoI.
        ct2img (Tensor): (R, 4, 4).

    Returns:
        Tensor: (R, D, 6) centre and size (mm).
    """
    centre = (rois[:, :2] + rois[:, 2:]) / 2
    focal = (cam2img[:, 0, 0] * cam2img[:, 1, 1]).sqrt()
    side = (rois[:, 2:] - rois[:, :2]).clamp(min=1e-3).prod(-1).sqrt()
    points = geometry.unproject(
        centre[:, None].expand(-1, depth.shape[1], -1), depth, ct2img)
    size = (side / focal)[:, None] * depth
    return torch.cat([points, size[..., None].expand(-1, -1, 3)], -1)


def sweep_overlaps(rois: Tensor, views: Tensor, cam2img: Tensor,
                   ct2img: Tensor, bounds: Tensor,
                   num_depths: int) -> Tensor:
    """Best IoU of every RoI's sweep with every RoI of the other views.

    Args:
        rois (Tensor): (R, 4) xyxy (px).
        views (Tensor): (R,) view index of each RoI.
        cam2img (Tensor): (V, 4, 4).
        ct2img (Tensor): (V, 4, 4).
        bounds (Tensor): (V, 2) nearest and farthest depth (mm).
        num_depths (int): Steps of the sweep, evenly spaced in depth.

    Returns:
        Tensor: (R, R), IoU of the row's sweep with the column's RoI; 0 within
        one view and where the sweep leaves the image side of the source.
    """
    num = len(rois)
    best = rois.new_zeros(num, num)
    if num == 0:
        return best
    steps = torch.linspace(0, 1, num_depths).to(rois)
    near, far = bounds[views].unbind(-1)
    for step in steps:  # one depth at a time keeps memory at R x R
        depth = (near + step * (far - near))[:, None]
        cubes = cubes_at_depth(rois, depth, cam2img[views],
                               ct2img[views])[:, 0]
        rects, centre_depth = geometry.project_boxes(cubes, ct2img)
        # Row i swept into the view of column j.
        swept = rects[views].transpose(0, 1)
        overlap = bbox_overlaps(
            swept, rois[None].expand_as(swept), is_aligned=True)
        seen = centre_depth[views].T > 0
        best = torch.maximum(best, overlap * seen)
    return best * (views[:, None] != views[None])


def relevant_rois(overlaps: Tensor, views: Tensor, num_views: int, mode: str,
                  min_iou: float) -> Tuple[Tensor, Tensor]:
    """RoIs that each RoI's query attends to, itself first.

    Args:
        overlaps (Tensor): (R, R) of :func:`sweep_overlaps`.
        views (Tensor): (R,) view index of each RoI.
        num_views (int): V.
        mode (str): 'topk', the best RoI of each other view; or 'all', every
            RoI that overlaps.
        min_iou (float): RoIs at or below it are not relevant.

    Returns:
        tuple: indices (R, K) and validity (R, K).
    """
    num = len(overlaps)
    own = torch.arange(num, device=overlaps.device)[:, None]
    if mode == 'all':
        count = int((overlaps > min_iou).sum(1).max()) if num else 0
        score, index = overlaps.topk(count, dim=1)
    elif mode == 'topk':
        per_view = overlaps.new_zeros(num, num_views)
        index = own.new_zeros(num, num_views)
        for view in range(num_views):
            columns = (views == view).nonzero()[:, 0]
            if len(columns):
                per_view[:, view], at = overlaps[:, columns].max(1)
                index[:, view] = columns[at]
        score = per_view
    else:
        raise ValueError(f'mode: expected "topk" or "all", found "{mode}"')
    valid = torch.cat([own >= 0, score > min_iou], 1)
    return torch.cat([own, index], 1), valid
