"""What a user could pick instead, for comparison on the same files."""

from typing import Optional, Sequence, Tuple

import torch
from mmdet3d.registry import MODELS
from torch import Tensor

from projects.mv2d_xray.queries.grid import XRayGridHead

__all__ = ['XRayScoreGrid']


@MODELS.register_module()
class XRayScoreGrid(XRayGridHead):
    """The 2D scores of all views, averaged on the grid; nothing is learned in
    3D.

    Each view's heatmap is learned, their logits are averaged at the
    projections of every voxel, which is a product of the views' evidence, and
    the peaks are the result. All boxes have ``base_size``.

    Args:
        in_channels (int): C, channels of the 2D features.
        volume_range, voxel_size, num_classes, base_size, max_queries,
            score_thr: As for :class:`XRayVolumeHead`.
        loss_heatmap_2d (dict): Of the views' heatmaps.
    """

    def __init__(self,
                 in_channels: int,
                 volume_range: Sequence[float],
                 voxel_size: float = 6.,
                 num_classes: int = 1,
                 base_size: float = 12.,
                 max_queries: int = 50,
                 score_thr: float = .01,
                 loss_heatmap_2d: dict = dict(
                     type='mmdet.GaussianFocalLoss', loss_weight=1.),
                 init_cfg=None) -> None:
        super().__init__(volume_range, voxel_size, num_classes, base_size,
                         max_queries, score_thr, False, init_cfg)
        self._build_heatmap_2d(in_channels, loss_heatmap_2d)

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
