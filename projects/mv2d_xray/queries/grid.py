"""What query sources on a grid in space share: evidence of all views at its
voxels, and peaks of a heatmap there."""

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from projects.core import geometry
from projects.core.boxes import cells_in_boxes, draw_gaussians
from projects.mv2d_xray.queries.pooling import pool_views

__all__ = ['XRayGridHead']


class _PoolViews(torch.autograd.Function):
    """Mean and deviation over the views that see each voxel.

    The same as a masked mean and a root of a masked variance, in a third of
    the passes over the largest tensor of the network.
    """

    @staticmethod
    def forward(ctx, sampled: Tensor, seen: Tensor,
                epsilon: float) -> Tuple[Tensor, Tensor]:
        count = seen.sum(0).clamp(min=1)
        total = torch.zeros_like(sampled[0])
        square = torch.zeros_like(sampled[0])
        for view, mask in zip(sampled, seen):
            masked = view * mask
            total += masked
            square.addcmul_(masked, masked)
        mean = total.div_(count)
        variance = square.div_(count).addcmul_(mean, mean, value=-1)
        # The epsilon keeps the gradient of the root finite where all agree.
        deviation = variance.clamp_(min=0).add_(epsilon).sqrt_()
        ctx.save_for_backward(sampled, seen, mean, deviation, count)
        return mean, deviation

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_deviation: Tensor):
        sampled, seen, mean, deviation, count = ctx.saved_tensors
        slope = grad_deviation / (deviation * count)
        constant = grad_mean / count - slope * mean
        grad = torch.empty_like(sampled)
        for out, view, mask in zip(grad, sampled, seen):
            torch.addcmul(constant, slope, view, out=out)
            out *= mask
        return grad, None, None


def _pool_views(sampled: Tensor, seen: Tensor,
                epsilon: float) -> Tuple[Tensor, Tensor]:
    """As :class:`_PoolViews`, for a graph of any number of views."""
    count = seen.sum(0).clamp(min=1)
    mean = (sampled * seen).sum(0) / count
    apart = (sampled - mean) * seen
    variance = (apart * apart).sum(0) / count
    return mean, (variance + epsilon).sqrt()


def _places(points: Tensor, ct2img: Tensor, size: Tensor, covered: Tensor
            ) -> Tuple[Tensor, Tensor]:
    """Where points (N, 3) (mm) are in a map that covers an image (px), (V, N,
    2) from -1 to 1, and whether in the image, (V, N), for a graph."""
    uv, depth = geometry.project_rows(points, ct2img)
    seen = ((uv >= 0) & (uv <= size[:, None])).all(1) & (depth > 0)
    return (uv * (2 / covered)[:, None] - 1).mT, seen


def _compiled(features: Tensor, place: Tensor) -> bool:
    """Whether the views are pooled as they are sampled: on a CPU in float32,
    where cameras need no gradient."""
    return (features.device.type == 'cpu' and not place.requires_grad
            and features.dtype == place.dtype == torch.float32
            and not torch.compiler.is_exporting())


def pointwise(convs: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What 1x1 convolutions of one input make of it, side by side.

    On a CPU as one product of matrices: a convolution by one thread goes
    through copies of another layout, many times as slow.

    Args:
        convs: ``nn.Conv2d`` or ``nn.Conv3d``.
        x: (N, C, ...).

    Returns:
        Tensor: (N, sum of C', ...).
    """
    if x.device.type != 'cpu' or torch.compiler.is_exporting():
        return torch.cat([conv(x) for conv in convs], 1)
    weight = torch.cat([conv.weight.flatten(1) for conv in convs])
    bias = torch.cat([conv.bias for conv in convs])
    return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


class XRayGridHead(BaseModule):
    """A grid in the world, onto which 2D features are lifted, and a heatmap
    of each view that is learned beside it.

    Args:
        volume_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        voxel_size (float): Edge of a voxel (mm).
        num_classes (int): Classes of the heatmaps.
        base_size (float): Size that the regression is relative to (mm).
        max_queries (int): Peaks kept per scan, of all classes together.
        score_thr (float): Peaks below are dropped.
        with_deviation (bool): Whether :meth:`lift` gives the deviation over
            the views beside the mean.
    """

    # Of what :meth:`queries` gives as content.
    hidden_channels = 0

    def __init__(self, volume_range: Sequence[float], voxel_size: float,
                 num_classes: int, base_size: float, max_queries: int,
                 score_thr: float, with_deviation: bool,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.volume_range = list(volume_range)
        self.voxel_size = voxel_size
        self.num_classes = num_classes
        self.base_size = base_size
        self.max_queries = max_queries
        self.score_thr = score_thr
        self.with_deviation = with_deviation

    def _build_heatmap_2d(self, in_channels: int,
                          loss: Optional[dict]) -> None:
        """The views' own heatmap, from C channels; none without a loss."""
        self.heatmap_2d = (
            nn.Conv2d(in_channels, self.num_classes, 1) if loss else None)
        self.loss_heatmap_2d = MODELS.build(loss) if loss else None

    def _predictors(self) -> List[tuple]:
        """Last layers, and the score or value that they start from."""
        return [(self.heatmap_2d, bias_init_with_prob(.01))]

    def init_weights(self) -> None:
        """Start from few detections, as focal losses need."""
        super().init_weights()
        for layer, bias in self._predictors():
            if layer is not None:
                nn.init.normal_(layer.weight, std=.01)
                nn.init.constant_(layer.bias, bias)

    # ------------------------------------------------------------------ grid
    def grid_axes(self, device=None) -> List[Tensor]:
        """Voxel centres along x, y and z (mm)."""
        axes = []
        for low, high in zip(self.volume_range[:3], self.volume_range[3:]):
            count = max(int(round((high - low) / self.voxel_size)), 1)
            index = torch.arange(count, device=device, dtype=torch.float32)
            axes.append(low + (index + .5) * (high - low) / count)
        return axes

    def grid_points(self, device=None) -> Tensor:
        """Voxel centres (X, Y, Z, 3) (mm)."""
        axes = self.grid_axes(device)
        return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)

    def lift(self, features: Tensor, ct2img: Tensor,
             img_shape: Tuple[int, int],
             span: Optional[Tuple[int, int]] = None) -> Tensor:
        """Sample 2D features on the grid and pool them over views.

        Args:
            features (Tensor): (V, C, h, w).
            ct2img (Tensor): (V, 4, 4).
            img_shape (tuple[int, int]): Height and width of the images (px).
            span (tuple[int, int], optional): Height and width (px) that the
                feature maps cover: more where images were padded, at the
                right and at the bottom.

        Returns:
            Tensor: (1, 2C + 1, X, Y, Z): mean, deviation (if with it) and
            fraction of the views that see the voxel.
        """
        grid = self.grid_points(features.device)
        points = grid.reshape(-1, 3).to(ct2img)
        # Filled, not from a list: a graph keeps it for any size.
        size, covered = (
            torch.cat([points.new_full((1, ), n)
                       for n in (shape[1], shape[0])])
            for shape in (img_shape, span or img_shape))
        if torch.compiler.is_exporting():
            place, seen = _places(points, ct2img, size, covered)
        else:
            uv, depth = geometry.project(points, ct2img)
            place = uv / covered * 2 - 1
            seen = ((uv >= 0) & (uv <= size)).all(-1) & (depth > 0)
        if _compiled(features, place):
            pooled = pool_views(features, place, seen, 1e-4)
            if not self.with_deviation:
                channels = features.shape[1]
                pooled = torch.cat(
                    [pooled[:, :channels], pooled[:, 2 * channels:]], 1)
            # Torch's batch norm of channels last loses digits (7e-3 here).
            return pooled.T.contiguous().reshape(1, -1, *grid.shape[:3])
        seen = seen.to(features.dtype)
        sampled = F.grid_sample(
            features.contiguous(), place[:, None].to(features.dtype),
            align_corners=False).squeeze(2)
        pool = _pool_views if torch.compiler.is_exporting() else (
            _PoolViews.apply)
        mean, deviation = pool(sampled, seen[:, None], 1e-4)
        fraction = seen.sum(0, keepdim=True) / features.shape[0]
        pooled = torch.cat([mean, deviation, fraction] if self.with_deviation
                           else [mean, fraction])
        return pooled.reshape(1, -1, *grid.shape[:3])

    # --------------------------------------------------------------- queries
    def decode(self, code: Tensor, points: Tensor) -> Tuple[Tensor, Tensor]:
        """Box codes (N, 6) at voxel centres (N, 3) to centres, sizes (mm)."""
        centres = points + code[:, :3] * self.voxel_size
        return centres, self.base_size * code[:, 3:].clamp(-3, 3).exp()

    def encode(self, boxes: Tensor, points: Tensor) -> Tensor:
        """Inverse of :meth:`decode`: boxes (N, 7) to codes (N, 6)."""
        offset = (boxes[:, :3] - points) / self.voxel_size
        return torch.cat([offset, (boxes[:, 3:6] / self.base_size).log()], 1)

    @torch.no_grad()
    def peaks(self, heatmap: Tensor) -> Tuple[Tensor, Tensor]:
        """Strongest local maxima: flat voxel index and label, each (N,)."""
        score = self._peak_scores(heatmap)
        count = min(self.max_queries, len(score))
        value, index = score.topk(count)
        index = index[value > self.score_thr]
        voxels = heatmap[0].numel()
        return index % voxels, torch.div(index, voxels, rounding_mode='floor')

    @staticmethod
    def _peak_scores(heatmap: Tensor) -> Tensor:
        """Scores of the local maxima, 0 elsewhere, flat."""
        score = heatmap.sigmoid()
        local = F.max_pool3d(score[None], 3, 1, 1)[0] == score
        return (score * local).flatten()

    @torch.no_grad()
    def dropped(self, heatmap: Tensor) -> List[float]:
        """Scores of the peaks above the threshold that ``max_queries`` leaves
        no place for, best first."""
        score = self._peak_scores(heatmap)
        score = score[score > self.score_thr].sort(descending=True).values
        return score[self.max_queries:].tolist()

    def queries(self, heatmap: Tensor, code: Tensor,
                hidden: Tensor) -> InstanceData:
        """Peaks as queries; a voxel that peaks in several classes is one.

        Returns:
            InstanceData: ``centres`` and ``sizes`` (N, 3) (mm), ``logits``
            (N, classes) and ``content`` (N, C'), all detached from the
            heatmap's own training.
        """
        index, _ = self.peaks(heatmap)
        again = (index[:, None] == index).triu(1).any(0)
        index = index[~again]
        points = self.grid_points(heatmap.device).reshape(-1, 3)[index]
        centres, sizes = self.decode(code.flatten(1).T[index], points)
        return InstanceData(
            centres=centres.detach(), sizes=sizes.detach(),
            logits=heatmap.flatten(1).T[index].detach(),
            content=hidden.flatten(1).T[index])

    # ------------------------------------------------------------------ loss
    def loss_2d(self, features: Tensor, stride: float, boxes: List[Tensor],
                ignored: List[Tensor]) -> dict:
        """Auxiliary heatmap of each view.

        Args:
            features (Tensor): (V, C, h, w).
            stride (float): Pixels per cell.
            boxes (list[Tensor]): Per view (N, 5), xyxy (px) and label.
            ignored (list[Tensor]): Per view (M, 4), where nothing is learned.

        Returns:
            dict: ``loss_heatmap_2d``, or nothing where it is left out.
        """
        if self.heatmap_2d is None:
            return dict()
        height, width = features.shape[-2:]
        axes = [(torch.arange(n, device=features.device) + .5) * stride
                for n in (width, height)]
        targets, weights = [], []
        for view, left_out in zip(boxes, ignored):
            centres = (view[:, :2] + view[:, 2:4]) / 2
            sigmas = ((view[:, 2:4] - view[:, :2]).mean(1) / 5).clamp(
                min=stride * .6)
            labels = view[:, 4]
            targets.append(
                torch.stack([
                    draw_gaussians(centres[labels == c], sigmas[labels == c],
                                   axes).T for c in range(self.num_classes)
                ]))
            free = ~cells_in_boxes(
                left_out[:, :2] - stride / 2, left_out[:, 2:] + stride / 2,
                axes).T | (targets[-1] == 1)
            weights.append(free.to(features.dtype))
        count = max(sum(len(view) for view in boxes), 1)
        heat = self.heatmap_2d(features).sigmoid().clamp(1e-4, 1 - 1e-4)
        return dict(
            loss_heatmap_2d=self.loss_heatmap_2d(
                heat, torch.stack(targets), weight=torch.stack(weights),
                avg_factor=count))
