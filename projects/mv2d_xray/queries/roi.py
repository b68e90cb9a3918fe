"""Queries from 2D boxes: the papers' dynamic query generator."""

from typing import Optional

import torch
import torch.nn as nn
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core import geometry
from projects.core.box_correlation import (
    agreeing_rois,
    cubes_at_depth,
)

__all__ = ['XRayRoIQueryGenerator', 'XRayTriangulatedQueryGenerator']


@MODELS.register_module()
class XRayRoIQueryGenerator(BaseModule):
    """One query per 2D box, placed in space by the network.

    MV2D (arXiv 2301.02364) §3.2, Betancur et al. §4.2: the RoI's features,
    joined with the intrinsics that the cropped and resized RoI would have,
    give a point in its camera frustum, and that camera's inverse gives the
    world.

    Args:
        embed_dims (int, optional): C. None, where no decoder reads them,
            gives queries without content.
        scene_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        roi_size (int): Side of the RoI features. Defaults to 7.
        intrinsics_scale (float): Brings the intrinsics to the range of
            features. Defaults to 0.1, as in MV2D.
    """

    learns_place = True

    def __init__(self,
                 embed_dims: Optional[int],
                 scene_range: list,
                 roi_size: int = 7,
                 intrinsics_scale: float = .1,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.scene_range = scene_range
        self.roi_size = roi_size
        self.intrinsics_scale = intrinsics_scale
        self.place = None
        if embed_dims is None:
            if self.learns_place:
                raise ValueError(
                    f'{type(self).__name__}: expected a decoder, which '
                    'teaches it where queries lie, found none')
            return
        self.convs = nn.Sequential(
            nn.Conv2d(embed_dims, embed_dims, 3, padding=1),
            nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.content = nn.Sequential(
            nn.Linear(embed_dims + 16, embed_dims), nn.ReLU(inplace=True))
        if self.learns_place:
            self.place = nn.Linear(embed_dims, 3)

    def init_weights(self) -> None:
        """Start at the middle of the box and of the scene box."""
        super().init_weights()
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=.01)
            nn.init.zeros_(self.place.bias)

    def forward(self, roi_feats: Tensor, rois: Tensor, cam2img: Tensor,
                ct2img: Tensor, bounds: Tensor) -> InstanceData:
        """Place one query per RoI.

        Args:
            roi_feats (Tensor): (R, C, 7, 7).
            rois (Tensor): (R, 7) view index, xyxy (px), score and label.
            cam2img, ct2img (Tensor): (V, 4, 4), the cameras.
            bounds (Tensor): (V, 2) nearest and farthest depth (mm).

        Returns:
            InstanceData: ``centres``, ``sizes`` (R, 3) (mm), ``content``
            (R, C).
        """
        views, rois = rois[:, 0].long(), rois[:, 1:5]
        cam2img, ct2img = cam2img[views], ct2img[views]
        content = self.describe(roi_feats, rois, cam2img)
        unit = self.place(content).sigmoid()
        uv = rois[:, :2] + unit[:, :2] * (rois[:, 2:] - rois[:, :2])
        near, far = bounds[views].unbind(1)
        depth = near + unit[:, 2] * (far - near)
        points = geometry.unproject(uv[:, None], depth[:, None], ct2img)[:, 0]
        sizes = cubes_at_depth(rois, depth.detach()[:, None], cam2img,
                               ct2img)[:, 0, 3:]
        return InstanceData(
            centres=geometry.clamp_points(points, self.scene_range),
            sizes=sizes,
            content=content)

    def describe(self, roi_feats: Tensor, rois: Tensor,
                 cam2img: Tensor) -> Tensor:
        """Content (R, C) of RoIs (R, 4) (px) of cameras (R, 4, 4)."""
        equivalent = geometry.roi_intrinsics(cam2img, rois, self.roi_size)
        return self.content(
            torch.cat([
                self.convs(roi_feats),
                self.intrinsics_scale * equivalent.flatten(1)
            ], 1))


@MODELS.register_module()
class XRayTriangulatedQueryGenerator(XRayRoIQueryGenerator):
    """One query per 2D box, where the other views' boxes agree with it.

    Of all depths along the box's ray the one is taken at which the boxes of
    its class in the other views overlap best; the rays through the centres of
    those boxes meet in the query. Its score is the mean of the boxes' over
    all views, so that a query starts as what classical N-view triangulation
    would report.

    Args:
        num_depths (int): Steps along the ray.
        min_iou (float): Boxes that overlap less do not agree.
        *args, **kwargs: As for :class:`XRayRoIQueryGenerator`.
    """

    learns_place = False

    def __init__(self, *args, num_depths: int = 64, min_iou: float = .2,
                 **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_depths = num_depths
        self.min_iou = min_iou

    def forward(self, roi_feats: Optional[Tensor], rois: Tensor,
                cam2img: Tensor, ct2img: Tensor,
                bounds: Tensor) -> InstanceData:
        """As :meth:`XRayRoIQueryGenerator.forward`, with ``scores`` (R,);
        ``content`` where there are ``roi_feats``."""
        views, boxes, scores = rois[:, 0].long(), rois[:, 1:5], rois[:, 5]
        index, overlap = agreeing_rois(boxes, views, rois[:, 6], cam2img,
                                       ct2img, bounds, self.num_depths)
        agrees = (overlap > self.min_iou).to(boxes)
        row = torch.arange(len(boxes), device=boxes.device)
        index[row, views], agrees[row, views] = row, 1.
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        points = geometry.triangulate(
            centres[index].transpose(0, 1), ct2img, agrees.T)
        # A box that no other view confirms is put amid the scene box.
        middle = bounds[views].mean(1, keepdim=True)
        alone = cubes_at_depth(boxes, middle, cam2img[views],
                               ct2img[views])[:, 0, :3]
        points = torch.where(points.isnan(), alone, points)
        points = geometry.clamp_points(points, self.scene_range)
        _, depth = geometry.project(points, ct2img)  # (V, R)
        # Edge of the cube that each view's box would show at the point.
        sides = torch.stack([
            cubes_at_depth(boxes[index[:, v]], depth[v][:, None],
                           cam2img[v].expand(len(boxes), 4, 4),
                           ct2img[v].expand(len(boxes), 4, 4))[:, 0, 3]
            for v in range(len(ct2img))
        ], 1)
        size = (sides * agrees).sum(1) / agrees.sum(1)
        queries = InstanceData(
            centres=points, sizes=size[:, None].expand(-1, 3),
            scores=(scores[index] * agrees).sum(1) / len(ct2img))
        if roi_feats is not None:
            queries.content = self.describe(roi_feats, boxes, cam2img[views])
        return queries
