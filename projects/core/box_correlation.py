"""Which RoIs of other views can show the same object (box correlation).

MV2D (arXiv 2301.02364) §3.3 and Betancur et al. §4.3: each RoI is swept along
its rays over the depths that the scene box allows, and what it would cover in
every other view is compared with that view's RoIs.
"""

from typing import Iterator, Tuple

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from projects.core import geometry

__all__ = [
    'agreeing_rois', 'cubes_at_depth', 'relevant_rois', 'sweep_overlaps'
]


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


def _sweep(rois: Tensor, views: Tensor, cam2img: Tensor, ct2img: Tensor,
           bounds: Tensor, num_depths: int) -> Iterator[Tensor]:
    """IoU (R, R) of every row's RoI, swept to each depth in turn, with every
    column's."""
    steps = torch.linspace(0, 1, num_depths).to(rois)
    near, far = bounds[views].unbind(-1)
    apart = views[:, None] != views[None]
    for step in steps:  # one depth at a time keeps memory at R x R
        depth = (near + step * (far - near))[:, None]
        cubes = cubes_at_depth(rois, depth, cam2img[views],
                               ct2img[views])[:, 0]
        rects, centre_depth = geometry.project_boxes(cubes, ct2img)
        # Row i swept into the view of column j.
        swept = rects[views].transpose(0, 1)
        overlap = bbox_overlaps(
            swept, rois[None].expand_as(swept), is_aligned=True)
        yield overlap * (centre_depth[views].T > 0) * apart


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
    best = rois.new_zeros(len(rois), len(rois))
    if len(rois) == 0:
        return best
    for overlap in _sweep(rois, views, cam2img, ct2img, bounds, num_depths):
        best = torch.maximum(best, overlap)
    return best


def agreeing_rois(rois: Tensor, views: Tensor, labels: Tensor,
                  cam2img: Tensor, ct2img: Tensor, bounds: Tensor,
                  num_depths: int) -> Tuple[Tensor, Tensor]:
    """RoIs of the other views that agree best with each RoI at one depth.

    Of all depths along a RoI's rays the one is taken at which the sum over
    the views of the best IoU is largest (QAF2D, arXiv 2403.06093, keeps the
    anchors along a 2D box's rays whose reprojection fits).

    Args:
        labels (Tensor): (R,); RoIs of two classes do not agree.
        rois, views, cam2img, ct2img, bounds, num_depths: As for
            :func:`sweep_overlaps`.

    Returns:
        tuple: best RoI of each view and its IoU, each (R, V); 0 where there
        is none.
    """
    index = views.new_zeros(len(rois), len(ct2img))
    score = rois.new_zeros(len(rois), len(ct2img))
    if len(rois) == 0:
        return index, score
    same = labels[:, None] == labels
    for overlap in _sweep(rois, views, cam2img, ct2img, bounds, num_depths):
        at, value = _best_of_each_view(overlap * same, views, len(ct2img))
        better = (value.sum(1) > score.sum(1))[:, None]
        index = torch.where(better, at, index)
        score = torch.where(better, value, score)
    return index, score


def _best_of_each_view(overlaps: Tensor, views: Tensor,
                       num_views: int) -> Tuple[Tensor, Tensor]:
    """Column of each view with the largest overlap, and that, (R, V)."""
    index = views.new_zeros(len(overlaps), num_views)
    value = overlaps.new_zeros(len(overlaps), num_views)
    for view in range(num_views):
        columns = (views == view).nonzero()[:, 0]
        if len(columns):
            value[:, view], at = overlaps[:, columns].max(1)
            index[:, view] = columns[at]
    return index, value


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
        index, score = _best_of_each_view(overlaps, views, num_views)
    else:
        raise ValueError(f'mode: expected "topk" or "all", found "{mode}"')
    valid = torch.cat([own >= 0, score > min_iou], 1)
    return torch.cat([own, index], 1), valid
