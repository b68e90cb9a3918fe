"""Queries from 2D boxes: the papers' dynamic query generator."""

import torch
import torch.nn as nn
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from . import geometry

__all__ = ['XRayRoIQueryGenerator']


@MODELS.register_module()
class XRayRoIQueryGenerator(BaseModule):
    """One query per 2D box, placed in space by the network.

    MV2D (arXiv 2301.02364) §3.2, papers/000 §4.2: the RoI's features, joined
    with the intrinsics that the cropped and resized RoI would have, give a
    point in its camera frustum, and that camera's inverse gives the world.

    Args:
        embed_dims (int): C.
        scene_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        roi_size (int): Side of the RoI features. Defaults to 7.
        intrinsics_scale (float): Brings the intrinsics to the range of
            features. Defaults to 0.1, as in MV2D.
    """

    def __init__(self,
                 embed_dims: int,
                 scene_range: list,
                 roi_size: int = 7,
                 intrinsics_scale: float = .1,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.scene_range = scene_range
        self.roi_size = roi_size
        self.intrinsics_scale = intrinsics_scale
        self.convs = nn.Sequential(
            nn.Conv2d(embed_dims, embed_dims, 3, padding=1),
            nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.content = nn.Sequential(
            nn.Linear(embed_dims + 16, embed_dims), nn.ReLU(inplace=True))
        self.place = nn.Linear(embed_dims, 3)

    def init_weights(self) -> None:
        """Start at the middle of the box and of the scene box."""
        super().init_weights()
        nn.init.normal_(self.place.weight, std=.01)
        nn.init.zeros_(self.place.bias)

    def forward(self, roi_feats: Tensor, rois: Tensor, cam2img: Tensor,
                ct2img: Tensor, bounds: Tensor) -> InstanceData:
        """Place one query per RoI.

        Args:
            roi_feats (Tensor): (R, C, 7, 7).
            rois (Tensor): (R, 4) xyxy (px).
            cam2img, ct2img (Tensor): (R, 4, 4), the camera of each RoI.
            bounds (Tensor): (R, 2) nearest and farthest depth (mm).

        Returns:
            InstanceData: ``centres``, ``sizes`` (R, 3) (mm), ``content``
            (R, C).
        """
        equivalent = geometry.roi_intrinsics(cam2img, rois, self.roi_size)
        content = self.content(
            torch.cat([
                self.convs(roi_feats),
                self.intrinsics_scale * equivalent.flatten(1)
            ], 1))
        unit = self.place(content).sigmoid()
        uv = rois[:, :2] + unit[:, :2] * (rois[:, 2:] - rois[:, :2])
        depth = bounds[:, 0] + unit[:, 2] * (bounds[:, 1] - bounds[:, 0])
        points = geometry.unproject(uv[:, None], depth[:, None], ct2img)[:, 0]
        low, high = points.new_tensor(self.scene_range).view(2, 3)
        points = torch.minimum(torch.maximum(points, low), high)
        side = (rois[:, 2:] - rois[:, :2]).clamp(min=1e-3).prod(1).sqrt()
        focal = (cam2img[:, 0, 0] * cam2img[:, 1, 1]).sqrt()
        sizes = (side * depth / focal).detach()[:, None].expand(-1, 3)
        return InstanceData(centres=points, sizes=sizes, content=content)
