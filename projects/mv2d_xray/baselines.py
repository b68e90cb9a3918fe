"""What a user could pick instead, for comparison on the same files."""

from typing import Optional, Tuple

import torch
from mmdet3d.registry import MODELS
from torch import Tensor

from projects.mv2d_xray.queries.volume import XRayVolumeHead

__all__ = ['XRayScoreGrid']


@MODELS.register_module()
class XRayScoreGrid(XRayVolumeHead):
    """The 2D scores of all views, averaged on the grid; nothing is learned in
    3D.

    Each view's heatmap is learned, their logits are averaged at the
    projections of every voxel, which is a product of the views' evidence, and
    the peaks are the result. All boxes have ``base_size``.

    Arguments are those of :class:`XRayVolumeHead`, of which the 3D net is
    left out.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for part in ('reduce', 'norm', 'convs', 'context', 'heatmap', 'box'):
            setattr(self, part, None)

    def forward(self, features: Tensor, ct2img: Tensor,
                img_shape: Tuple[int, int],
                span: Optional[Tuple[int, int]] = None
                ) -> Tuple[Tensor, Tensor, Tensor]:
        """As :meth:`XRayVolumeHead.forward`, without hidden features."""
        heat = self.heatmap_2d(features.float())
        pooled = self.lift(heat, ct2img, img_shape, span)[0]
        score, fraction = pooled[:self.num_classes], pooled[-1:]
        # Nothing is known of what no view shows.
        score = torch.where(fraction > 0, score, score.new_tensor(-10.))
        return score, score.new_zeros(6, *score.shape[1:]), score[:0]

    def loss_by_feat(self, *args, **kwargs) -> dict:
        """Only the 2D heatmaps are learned."""
        return dict()
