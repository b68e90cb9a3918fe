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
    cubes_at_depth,
    triangulate_rois,
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
                ct2img: Tensor) -> InstanceData:
        """Place one query per RoI.

        Args:
            roi_feats (Tensor): (R, C, 7, 7).
            rois (Tensor): (R, 7) view index, xyxy (px), score and label.
            cam2img, ct2img (Tensor): (V, 4, 4), the cameras.

        Returns:
            InstanceData: ``centres``, ``sizes`` (R, 3) (mm), ``content``
            (R, C).
        """
        views, rois = rois[:, 0].long(), rois[:, 1:5]
        cam2img, ct2img = cam2img[views], ct2img[views]
        content = self.describe(roi_feats, rois, cam2img)
        unit = self.place(content).sigmoid()
        uv = rois[:, :2] + unit[:, :2] * (rois[:, 2:] - rois[:, :2])
        near, far = geometry.depth_bounds(ct2img, self.scene_range).unbind(1)
        depth = near + unit[:, 2] * (far - near)
        points = geometry.unproject(uv[:, None], depth[:, None], ct2img)[:, 0]
        sizes = cubes_at_depth(rois, depth.detach()[:, None],
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
    """One query per 2D box, where the other views' boxes agree with it, see
    :func:`~projects.core.box_correlation.triangulate_rois`: a query starts as
    what classical N-view triangulation would report.

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
                cam2img: Tensor, ct2img: Tensor) -> InstanceData:
        """As :meth:`XRayRoIQueryGenerator.forward`, with ``scores`` (R,);
        ``content`` where there are ``roi_feats``."""
        views, boxes = rois[:, 0].long(), rois[:, 1:5]
        centres, edges, scores = triangulate_rois(
            boxes, views, rois[:, 5], rois[:, 6], ct2img, self.scene_range,
            self.num_depths, self.min_iou)
        queries = InstanceData(
            centres=centres, sizes=edges[:, None].expand(-1, 3),
            scores=scores)
        if roi_feats is not None:
            queries.content = self.describe(roi_feats, boxes, cam2img[views])
        return queries
