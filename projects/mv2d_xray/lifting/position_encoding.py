"""Where a query or a feature is, as numbers a network can use."""

import math

import torch
import torch.nn as nn
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from projects.core import geometry

__all__ = ['XRayPositionEncoding', 'sine_embedding']


def sine_embedding(position: Tensor, num_feats: int,
                   temperature: float = 10000.) -> Tensor:
    """Sine and cosine of each coordinate at many wavelengths.

    DETR (arXiv 2005.12872) §3.2, per coordinate as in PETR.

    Args:
        position (Tensor): (*, D), normalised to [0, 1].
        num_feats (int): Even number of features per coordinate.
        temperature (float): Ratio of longest to shortest wavelength.

    Returns:
        Tensor: (*, D * num_feats).
    """
    exponent = torch.arange(num_feats // 2, device=position.device)
    frequency = temperature**(-2 * exponent.to(position) / num_feats)
    angle = position[..., None] * 2 * math.pi * frequency
    embedding = torch.cat([angle.sin(), angle.cos()], -1)
    return embedding.flatten(-2)


@MODELS.register_module()
class XRayPositionEncoding(BaseModule):
    """3D position encoding of feature maps.

    PETR (arXiv 2203.05625) §3.2: each cell's frustum of depths as world
    points, normalised by the scene box, through 1x1 convolutions; gated by
    the features (squeeze-excite) as in PETRv2 (arXiv 2206.01256) §3.2; plus a
    sine encoding of the cell's place in the image.

    Args:
        embed_dims (int): C, channels of the features and of the encoding.
        scene_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        num_depths (int): Depths per cell. Defaults to 64.
        with_gate (bool): Gate by the features. Defaults to True.
    """

    def __init__(self,
                 embed_dims: int,
                 scene_range: list,
                 num_depths: int = 64,
                 with_gate: bool = True,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.scene_range = scene_range
        self.num_depths = num_depths
        self.embed_dims = embed_dims
        self.frustum = nn.Sequential(
            nn.Conv2d(3 * num_depths, 4 * embed_dims, 1),
            nn.ReLU(inplace=True), nn.Conv2d(4 * embed_dims, embed_dims, 1))
        self.image = nn.Sequential(
            nn.Conv2d(embed_dims, embed_dims, 1), nn.ReLU(inplace=True),
            nn.Conv2d(embed_dims, embed_dims, 1))
        self.gate = nn.Sequential(
            nn.Conv2d(embed_dims, embed_dims, 1), nn.ReLU(inplace=True),
            nn.Conv2d(embed_dims, embed_dims, 1),
            nn.Sigmoid()) if with_gate else None

    def forward(self, features: Tensor, stride: float,
                ct2img: Tensor) -> Tensor:
        """Encode one sample's feature maps.

        Args:
            features (Tensor): (V, C, h, w).
            stride (float): Pixels per cell.
            ct2img (Tensor): (V, 4, 4).

        Returns:
            Tensor: (V, C, h, w).
        """
        views, _, height, width = features.shape
        bounds = geometry.depth_bounds(ct2img, self.scene_range)
        points = geometry.frustum_points(height, width, stride, ct2img,
                                         bounds, self.num_depths)
        # Far corners of the frustum leave the scene box; logits of clamped
        # coordinates stay finite, as PETR's inverse sigmoid does.
        points = geometry.normalise_points(points, self.scene_range)
        points = torch.logit(points, eps=1e-3)
        points = points.flatten(3).permute(0, 3, 1, 2)
        encoding = self.frustum(points.to(features.dtype))
        if self.gate is not None:
            encoding = encoding * self.gate(features)
        ys = (torch.arange(height, device=features.device) + .5) / height
        xs = (torch.arange(width, device=features.device) + .5) / width
        place = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), -1)
        place = sine_embedding(place.to(features), self.embed_dims // 2)
        return encoding + self.image(place.permute(2, 0, 1)[None])
