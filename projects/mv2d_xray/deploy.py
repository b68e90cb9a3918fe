"""The network as one graph without mm*, for ONNX.

The same modules as in training and testing; only what a graph cannot hold is
said in another way: a loop over the views, norms by a scan's own statistics,
lists that are as long as what was found.
"""

from copy import deepcopy
from typing import Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['DeployedGraph']


class _OwnNorm(nn.Module):
    """A batch norm without running statistics, as means."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes, keepdim=True)
        scale = self.weight.view(shape) * (variance + self.eps).rsqrt()
        return x * scale + (self.bias.view(shape) - mean * scale)


def _own_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child.running_mean is None:
            setattr(module, name, _OwnNorm(child))
        else:
            _own_norms(child)


class DeployedGraph(nn.Module):
    """What the ONNX file computes.

    Args:
        model (MV2DXRay): The volume's peaks must be its result.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = deepcopy(model).eval().float()
        _own_norms(self.model)

    def forward(self, images: Tensor, ct2img: Tensor
                ) -> Tuple[Tensor, Tensor]:
        """Peaks of one scan.

        Args:
            images (Tensor): (V, 1, H, W) line integrals.
            ct2img (Tensor): (V, 4, 4).

        Returns:
            tuple: boxes (Q, 6), centre and size (mm), and scores (Q,
            classes): of the strongest class alone, 0 where there is no peak.
        """
        model = self.model
        height, width = images.shape[-2:]
        divisor = model.data_preprocessor.pad_size_divisor
        rows, columns = (
            torch.arange((size + divisor - 1) // divisor * divisor).clamp(
                max=size - 1) for size in (height, width))
        padded = images[:, :, rows][:, :, :, columns]
        features = model._extract(model.data_preprocessor.bands(padded))
        return self._volume(features[model.volume_level], ct2img,
                            (height, width), padded.shape[-2:])

    def _volume(self, features, ct2img, shape, span):
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
