"""Queries from the evidence of all views, summed before anything is cut."""

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core import geometry
from projects.core.boxes import cells_in_boxes, draw_gaussians

__all__ = ['XRayVolumeHead']


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


@MODELS.register_module()
class XRayVolumeHead(BaseModule):
    """Centre heatmap on a world grid, from 2D features of all views.

    The features of every view are sampled at the projections of a coarse
    grid; mean and deviation over the views that see a voxel go through a
    small 3D convolutional net (ImVoxelNet, arXiv 2106.01178; VoxelPose, arXiv
    2004.06239) to a centre heatmap, sub-voxel offset and size. Its peaks know
    where they are, one per object instead of one per view.

    Args:
        in_channels (int): C, channels of the 2D features.
        volume_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        voxel_size (float): Edge of a voxel (mm).
        feat_channels (int): Channels sampled from each view.
        hidden_channels (int): Channels of the 3D net.
        num_convs (int): 3x3x3 convolutions at full resolution.
        context_channels (int, optional): Channels of the coarser context
            that is added to them. Defaults to ``hidden_channels``.
        neck (dict, optional): A 3D net in place of these convolutions and
            their coarser context, as mmdet3d's ``IndoorImVoxelNeck``; its
            first output is used.
        with_deviation (bool): Whether the 3D net sees the deviation over the
            views beside the mean.
        norm_cfg (dict): Of the 3D net and of what goes into it.
        num_classes (int): Classes of the heatmap. Defaults to 1.
        base_size (float): Size that the regression is relative to (mm): a
            usual finding's. Defaults to 12.
        max_queries (int): Peaks kept per scan, of all classes together: more
            than the findings that a scan may have, since false ones take
            places, too. Defaults to 50.
        score_thr (float): Peaks below are dropped.
        min_sigma (float): Smallest Gaussian of the heatmap target (mm):
            about two thirds of a voxel. Defaults to 4.
        loss_heatmap, loss_box, loss_heatmap_2d (dict): Losses. The 2D one
            acts on a heatmap predicted from each view's features; None
            leaves it out.
    """

    def __init__(self,
                 in_channels: int,
                 volume_range: Sequence[float],
                 voxel_size: float = 6.,
                 feat_channels: int = 24,
                 hidden_channels: int = 32,
                 num_convs: int = 3,
                 context_channels: Optional[int] = None,
                 neck: Optional[dict] = None,
                 with_deviation: bool = True,
                 norm_cfg: dict = dict(type='BN3d'),
                 num_classes: int = 1,
                 base_size: float = 12.,
                 max_queries: int = 50,
                 score_thr: float = .01,
                 min_sigma: float = 4.,
                 loss_heatmap: dict = dict(
                     type='mmdet.GaussianFocalLoss', loss_weight=1.),
                 loss_box: dict = dict(type='mmdet.L1Loss', loss_weight=1.),
                 loss_heatmap_2d: Optional[dict] = dict(
                     type='mmdet.GaussianFocalLoss', loss_weight=1.),
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.volume_range = list(volume_range)
        self.voxel_size = voxel_size
        self.base_size = base_size
        self.max_queries = max_queries
        self.score_thr = score_thr
        self.min_sigma = min_sigma
        self.num_classes = num_classes
        self.with_deviation = with_deviation
        self.reduce = nn.Conv2d(in_channels, feat_channels, 1)
        # What the 2D heatmap says of each view is evidence, too.
        sampled = feat_channels + (num_classes if loss_heatmap_2d else 0)
        channels = [(1 + with_deviation) * sampled + 1]
        channels += [hidden_channels] * num_convs

        def conv(source: int, out: int = hidden_channels,
                 stride: int = 1) -> ConvModule:
            return ConvModule(
                source, out, 3, stride=stride, padding=1,
                conv_cfg=dict(type='Conv3d'), norm_cfg=norm_cfg)

        # The views differ little from one voxel to the next, but all from 0:
        # without this the zero padding is the strongest contrast in the grid.
        self.norm = build_norm_layer(norm_cfg, channels[0])[1]
        if neck is not None:
            self.neck = MODELS.build(
                dict(neck, in_channels=channels[0],
                     out_channels=hidden_channels))
        else:
            self.neck = None
            self.convs = nn.Sequential(*(conv(c) for c in channels[:-1]))
            wide = context_channels or hidden_channels
            self.context = nn.Sequential(
                conv(hidden_channels, wide, stride=2), conv(wide))
        self.heatmap = nn.Conv3d(hidden_channels, num_classes, 1)
        self.box = nn.Conv3d(hidden_channels, 6, 1)
        self.heatmap_2d = (
            nn.Conv2d(in_channels, num_classes, 1)
            if loss_heatmap_2d else None)
        self.loss_heatmap = MODELS.build(loss_heatmap)
        self.loss_box = MODELS.build(loss_box)
        self.loss_heatmap_2d = (
            MODELS.build(loss_heatmap_2d) if loss_heatmap_2d else None)
        self.hidden_channels = hidden_channels

    def init_weights(self) -> None:
        """Start from few detections, as focal losses need."""
        super().init_weights()
        few = bias_init_with_prob(.01)
        for layer, bias in ((self.heatmap, few), (self.heatmap_2d, few),
                            (self.box, 0.)):
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

    # --------------------------------------------------------------- forward
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
        uv, depth = geometry.project(grid.reshape(-1, 3).to(ct2img), ct2img)
        size, covered = (uv.new_tensor([shape[1], shape[0]])
                         for shape in (img_shape, span or img_shape))
        place = uv / covered * 2 - 1
        seen = ((uv >= 0) & (uv <= size)).all(-1) & (depth > 0)
        seen = seen.to(features.dtype)
        sampled = F.grid_sample(
            features.contiguous(), place[:, None].to(features.dtype),
            align_corners=False)[:, :, 0]
        mean, deviation = _PoolViews.apply(sampled, seen[:, None], 1e-4)
        fraction = seen.sum(0, keepdim=True) / len(features)
        pooled = torch.cat([mean, deviation, fraction] if self.with_deviation
                           else [mean, fraction])
        return pooled.reshape(1, -1, *grid.shape[:3])

    def forward(self, features: Tensor, ct2img: Tensor,
                img_shape: Tuple[int, int],
                span: Optional[Tuple[int, int]] = None
                ) -> Tuple[Tensor, Tensor, Tensor]:
        """Predict one sample's heatmap and boxes.

        Args:
            features, ct2img, img_shape, span: As for :meth:`lift`. Of
                features in half precision the 3D net is computed in it, too.

        Returns:
            tuple: heatmap logits (classes, X, Y, Z), box code (6, X, Y, Z)
            and hidden features (C', X, Y, Z), in float32.
        """
        precision, features = features.dtype, features.float()
        sampled = self.reduce(features)
        if self.heatmap_2d is not None:
            sampled = torch.cat([sampled, self.heatmap_2d(features)], 1)
        volume = self.norm(
            self.lift(sampled, ct2img, img_shape, span)).contiguous(
                memory_format=torch.channels_last_3d)
        with torch.autocast(volume.device.type, precision,
                            enabled=precision != torch.float32):
            volume = self._net(volume).float()
        return self.heatmap(volume)[0], self.box(volume)[0], volume[0]

    def _net(self, volume: Tensor) -> Tensor:
        """The 3D net, (1, C, X, Y, Z) to (1, C', X, Y, Z)."""
        if self.neck is not None:
            return self.neck(volume)[0]
        volume = self.convs(volume)
        return volume + F.interpolate(
            self.context(volume), size=volume.shape[2:], mode='trilinear',
            align_corners=False)

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
    def loss_by_feat(self, heatmap: Tensor, code: Tensor, boxes: Tensor,
                     labels: Tensor, ignored: Tensor) -> dict:
        """Losses of one sample.

        Args:
            heatmap (Tensor): (classes, X, Y, Z) logits.
            code (Tensor): (6, X, Y, Z).
            boxes (Tensor): (N, 7) ground truth (mm).
            labels (Tensor): (N,).
            ignored (Tensor): (M, 7); where they lie nothing is learned.

        Returns:
            dict: ``loss_heatmap`` and ``loss_volume_box``.
        """
        axes = self.grid_axes(heatmap.device)
        inside = torch.stack([(boxes[:, i] >= self.volume_range[i]) &
                              (boxes[:, i] <= self.volume_range[i + 3])
                              for i in range(3)]).all(0)
        boxes, labels = boxes[inside], labels[inside]
        sigmas = (boxes[:, 3:6].mean(1) / 4).clamp(min=self.min_sigma)
        target = torch.stack([
            draw_gaussians(boxes[labels == c, :3], sigmas[labels == c], axes)
            for c in range(self.num_classes)
        ])
        reach = ignored[:, 3:6] / 2 + self.voxel_size
        left_out = cells_in_boxes(ignored[:, :3] - reach,
                                  ignored[:, :3] + reach, axes)
        weight = (~left_out | (target == 1)).to(target)
        loss_heatmap = self.loss_heatmap(
            heatmap.sigmoid().clamp(1e-4, 1 - 1e-4), target, weight=weight,
            avg_factor=max(len(boxes), 1))
        if len(boxes) == 0:
            return dict(
                loss_heatmap=loss_heatmap, loss_volume_box=code.sum() * 0)
        loss_box = self._loss_box(code, boxes, sigmas, axes)
        return dict(loss_heatmap=loss_heatmap, loss_volume_box=loss_box)

    def _loss_box(self, code: Tensor, boxes: Tensor, sigmas: Tensor,
                  axes: Sequence[Tensor]) -> Tensor:
        """Box loss of the voxels around each centre.

        The strongest voxel of a found object is often a neighbour of the one
        that holds its centre, so neighbours learn the way to it, too,
        weighted as the heatmap's target.
        """
        steps = torch.arange(-1, 2, device=code.device)
        steps = torch.cartesian_prod(steps, steps, steps)  # (27, 3)
        cells = torch.stack([(boxes[:, i, None] - axis).abs().argmin(1)
                             for i, axis in enumerate(axes)], 1)
        near = cells[:, None] + steps  # (N, 27, 3)
        size = near.new_tensor([len(axis) for axis in axes])
        inside = ((near >= 0) & (near < size)).all(-1)
        near = torch.minimum(near.clamp(min=0), size - 1).flatten(0, 1)
        points = torch.stack([axis[n] for axis, n in zip(axes, near.T)], 1)
        predicted = code[:, near[:, 0], near[:, 1], near[:, 2]].T
        distance = steps.to(code).norm(dim=1) * self.voxel_size
        weight = torch.exp(-.5 * (distance / sigmas[:, None])**2) * inside
        return self.loss_box(
            predicted,
            self.encode(boxes.repeat_interleave(len(steps), 0), points),
            weight.reshape(-1, 1).expand_as(predicted),
            avg_factor=6 * weight.sum())

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
