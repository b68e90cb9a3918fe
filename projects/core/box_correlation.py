"""Which RoIs of other views can show the same object (box correlation).

MV2D (arXiv 2301.02364) §3.3 and Betancur et al. §4.3: each RoI is swept along
its rays over the depths that the scene box allows, and what it would cover in
every other view is compared with that view's RoIs.

As in :mod:`projects.core.geometry`, arrays may be NumPy's or PyTorch's.
"""

from typing import TYPE_CHECKING, Iterator, Sequence, Tuple

from projects.core import geometry
from projects.core.geometry import Array

if TYPE_CHECKING:
    import torch

__all__ = [
    'agreeing_rois', 'cubes_at_depth', 'relevant_rois', 'sweep_overlaps',
    'triangulate_rois'
]


def cubes_at_depth(rois: Array, depth: Array, ct2img: Array) -> Array:
    """3D cubes that RoIs would show if they lay at a depth.

    Args:
        rois: (R, 4) xyxy (px).
        depth: (R, D) (mm).
        ct2img: (R, 4, 4), the camera of each RoI.

    Returns:
        Array: (R, D, 6) centre and size (mm).
    """
    centre = (rois[:, :2] + rois[:, 2:]) / 2
    side = (rois[:, 2:] - rois[:, :2]).clip(1e-3).prod(-1)**.5
    point = geometry.unproject(centre[:, None] + 0 * depth[..., None], depth,
                               ct2img)
    edge = (side / geometry.focal_lengths(ct2img))[:, None] * depth
    return geometry.stack([point[..., 0], point[..., 1], point[..., 2],
                           edge, edge, edge])


def _overlaps(first: Array, second: Array) -> Array:
    """IoU of rectangles (*, 4) with others, one by one."""
    shared = (first[..., 2:].clip(None, second[..., 2:])
              - first[..., :2].clip(second[..., :2])).clip(0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1)
             for each in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clip(1e-6)


def _sweep(rois: Array, views: Array, ct2img: Array, bounds: Array,
           num_depths: int) -> Iterator[Array]:
    """IoU (R, R) of every row's RoI, swept to each depth in turn, with every
    column's."""
    near, far = bounds[views][:, :1], bounds[views][:, 1:]
    apart = views[:, None] != views[None]
    for step in range(num_depths):  # one at a time keeps memory at R x R
        depth = near + step / max(num_depths - 1, 1) * (far - near)
        cubes = cubes_at_depth(rois, depth, ct2img[views])[:, 0]
        rects, centre_depth = geometry.project_boxes(cubes, ct2img)
        # Row i swept into the view of column j.
        swept = rects[views].swapaxes(0, 1)
        yield (_overlaps(swept, rois[None])
               * (centre_depth[views].T > 0) * apart)


def sweep_overlaps(rois: Array, views: Array, ct2img: Array, bounds: Array,
                   num_depths: int) -> Array:
    """Best IoU of every RoI's sweep with every RoI of the other views.

    Args:
        rois: (R, 4) xyxy (px).
        views: (R,) view index of each RoI.
        ct2img: (V, 4, 4).
        bounds: (V, 2) nearest and farthest depth (mm).
        num_depths (int): Steps of the sweep, evenly spaced in depth.

    Returns:
        Array: (R, R), IoU of the row's sweep with the column's RoI; 0 within
        one view and where the sweep leaves the image side of the source.
    """
    best = 0 * (rois[:, :1] * rois[:, 0])
    for overlap in _sweep(rois, views, ct2img, bounds, num_depths):
        best = overlap.clip(best)
    return best


def agreeing_rois(rois: Array, views: Array, labels: Array, ct2img: Array,
                  bounds: Array, num_depths: int) -> Tuple[Array, Array]:
    """RoIs of the other views that agree best with each RoI at one depth.

    Of all depths along a RoI's rays the one is taken at which the sum over
    the views of the best IoU is largest (QAF2D, arXiv 2403.06093, keeps the
    anchors along a 2D box's rays whose reprojection fits).

    Args:
        labels: (R,); RoIs of two classes do not agree.
        rois, views, ct2img, bounds, num_depths: As for
            :func:`sweep_overlaps`.

    Returns:
        tuple: best RoI of each view and its IoU, each (R, V); 0 where there
        is none.
    """
    same = labels[:, None] == labels
    index = geometry.stack([0 * views] * len(ct2img))
    score = geometry.stack([0 * rois[:, 0]] * len(ct2img))
    for overlap in _sweep(rois, views, ct2img, bounds, num_depths):
        at, value = _best_of_each_view(overlap * same, views, len(ct2img))
        better = (value.sum(1) > score.sum(1))[:, None]
        index = at * better + index * ~better
        score = value * better + score * ~better
    return index, score


def _rows(views: Array) -> Array:
    """0 to R - 1 of (R,)."""
    return (views * 0 + 1).cumsum(0) - 1


def _best_of_each_view(overlaps: Array, views: Array,
                       num_views: int) -> Tuple[Array, Array]:
    """Column of each view with the largest overlap, and that, (R, V)."""
    index, value, rows = [], [], _rows(views)
    for view in range(num_views):
        columns = (views == view).nonzero()
        columns = columns[0] if isinstance(columns, tuple) else columns[:, 0]
        if len(columns):
            at = columns[overlaps[:, columns].argmax(1)]
            index.append(at)
            value.append(overlaps[rows, at])
        else:
            index.append(views * 0)
            value.append(overlaps.sum(1) * 0)
    return geometry.stack(index), geometry.stack(value)


def triangulate_rois(rois: Array, views: Array, scores: Array, labels: Array,
                     ct2img: Array, scene_range: Sequence[float],
                     num_depths: int, min_iou: float
                     ) -> Tuple[Array, Array, Array]:
    """One cube per 2D box, where the other views' boxes agree with it.

    Of all depths along the box's ray the one is taken at which the boxes of
    its class in the other views overlap best; the rays through the centres of
    those boxes meet in the cube's. Its score is the mean of the boxes' over
    all views, as classical N-view triangulation would report.

    Args:
        scores: (R,).
        scene_range: ``[x0, y0, z0, x1, y1, z1]`` (mm).
        num_depths (int): Steps along the ray.
        min_iou (float): Boxes that overlap less do not agree.
        rois, views, labels, ct2img: As for :func:`agreeing_rois`.

    Returns:
        tuple: centres (R, 3), edges (R,) (mm) and scores (R,). A box that no
        other view confirms is put amid the scene.
    """
    bounds = geometry.depth_bounds(ct2img, scene_range)
    index, overlap = agreeing_rois(rois, views, labels, ct2img, bounds,
                                   num_depths)
    own = geometry.stack([views == view for view in range(len(ct2img))])
    index = index * ~own + _rows(views)[:, None] * own
    agrees = ((overlap > min_iou) | own) + 0 * overlap
    uv = ((rois[:, :2] + rois[:, 2:]) / 2)[index].swapaxes(0, 1)
    points = geometry.triangulate(uv, ct2img, agrees.T)
    middle = bounds[views].mean(1)[:, None]
    alone = cubes_at_depth(rois, middle, ct2img[views])[:, 0, :3]
    lost = points != points
    points[lost] = alone[lost]
    points = geometry.clamp_points(points, scene_range)
    _, depth = geometry.project(points, ct2img)  # (V, R)
    # Edge of the cube that each view's box would show at the point.
    edges = geometry.stack([
        cubes_at_depth(rois[index[:, view]], depth[view][:, None],
                       ct2img[views * 0 + view])[:, 0, 3]
        for view in range(len(ct2img))])
    return (points, (edges * agrees).sum(1) / agrees.sum(1),
            (scores[index] * agrees).sum(1) / len(ct2img))


def relevant_rois(overlaps: 'torch.Tensor', views: 'torch.Tensor',
                  num_views: int, mode: str, min_iou: float
                  ) -> 'Tuple[torch.Tensor, torch.Tensor]':
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
    import torch
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
