"""The network as one graph without mm*, for ONNX.

The same modules as in training and testing; only what a graph cannot hold is
said in another way: a loop over the views, norms by a scan's own statistics,
lists that are as long as what was found.
"""

from copy import deepcopy
from typing import Dict, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import CenterNetHead
from mmdet.models.utils.gaussian_target import get_local_maximum
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from projects.mv2d_xray.detector import MV2DXRay
from projects.mv2d_xray.queries.roi import XRayTriangulatedQueryGenerator

__all__ = ['DeployedGraph', 'can_be_deployed']


def can_be_deployed(model: nn.Module) -> bool:
    """Whether the boxes of a model come of a volume's peaks, of CenterNet's
    2D boxes, triangulated, or of both."""
    if not isinstance(model, MV2DXRay) or model.with_decoder:
        return False
    return not model.with_roi_queries or (
        isinstance(model.lifting_head.roi_queries,
                   XRayTriangulatedQueryGenerator)
        and isinstance(getattr(model.detector_2d, 'bbox_head', None),
                       CenterNetHead))


class _OwnNorm(nn.Module):
    """A batch norm without running statistics, as means."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        axes = [0, *range(2, x.dim())]
        mean = x.mean(axes)
        apart = x - mean.view(1, -1, *[1] * (x.dim() - 2))
        # A square would be a power in the graph, of twice the time.
        variance = (apart * apart).mean(axes)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False,
                            0., self.eps)


def _own_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child.running_mean is None:
            setattr(module, name, _OwnNorm(child))
        else:
            _own_norms(child)


class DeployedGraph(nn.Module):
    """What the ONNX file computes.

    Args:
        model (MV2DXRay): One that :func:`can_be_deployed`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = deepcopy(model).eval().float()
        _own_norms(self.model)

    def forward(self, images: Tensor, ct2img: Tensor) -> Dict[str, Tensor]:
        """What may be findings of one scan.

        Args:
            images (Tensor): (V, 1, H, W) line integrals.
            ct2img (Tensor): (V, 4, 4).

        Returns:
            dict: Of a volume its peaks: ``boxes`` (Q, 6), centre and size
            (mm), and ``scores`` (Q, classes), of the strongest class alone, 0
            where there is no peak. Where 2D boxes are triangulated ``rois``
            (V, K, 6), xyxy (px), score and label; those without an area or of
            score 0 are none.
        """
        model = self.model
        height, width = images.shape[-2:]
        divisor = model.data_preprocessor.pad_size_divisor
        rows, columns = (
            torch.arange((size + divisor - 1) // divisor * divisor).clamp(
                max=size - 1) for size in (height, width))
        padded = images[:, :, rows][:, :, :, columns]
        features = model._extract(model.data_preprocessor.bands(padded))
        found = {}
        if model.volume_head is not None:
            found['boxes'], found['scores'] = self._volume(
                features[model.volume_level], ct2img, (height, width),
                padded.shape[-2:])
        if model.with_roi_queries:
            found['rois'] = self._rois(features)
        return found

    def _rois(self, features: Tuple[Tensor, ...]) -> Tensor:
        """As mmdet's CenterNetHead decodes its maps, whose remainders no
        graph of any size of image can hold."""
        head = self.model.detector_2d.bbox_head
        heatmap, size, offset = (level[0].float() for level in head(features))
        classes, height, width = heatmap.shape[1:]
        heatmap = get_local_maximum(heatmap,
                                    head.test_cfg.local_maximum_kernel)
        score, index = heatmap.flatten(1).topk(head.test_cfg.topk)
        label, y, x = (
            axis.expand(classes, height, width).reshape(-1)[index]
            for axis in (torch.arange(classes)[:, None, None],
                         torch.arange(height)[:, None], torch.arange(width)))
        cell = (y * width + x)[:, None].expand(-1, 2, -1)
        size, offset = (level.flatten(2).gather(2, cell)
                        for level in (size, offset))
        centre = torch.stack([x, y], 1) + offset
        pixels = self.model.feat_strides[0]
        corners = (centre - size / 2) * pixels, (centre + size / 2) * pixels
        return torch.cat([*corners, score[:, None], label[:, None].float()],
                         1).transpose(1, 2)

    def _volume(self, features: Tensor, ct2img: Tensor,
                shape: Tuple[int, int], span: Tuple[int, int]
                ) -> Tuple[Tensor, Tensor]:
        head = self.model.volume_head
        heatmap, code, _ = head(features, ct2img, shape, span)
        score = head._peak_scores(heatmap)
        voxels = heatmap[0].numel()
        value, index = score.topk(min(head.max_queries, score.numel()))
        index = index % voxels
        # A voxel that peaks in several classes is one.
        again = (index[:, None] == index).triu(1).any(0)
        there = (value > head.score_thr) & ~again
        points = head.grid_points().reshape(-1, 3)[index]
        boxes = torch.cat(head.decode(code.flatten(1).T[index], points), 1)
        scores = heatmap.flatten(1).T[index].sigmoid()
        best = scores.argmax(1, keepdim=True)
        own = torch.arange(scores.shape[1]) == best
        return boxes, scores * own * there[:, None]
