"""Queries from the evidence of all views, summed before anything is cut."""

from typing import Callable, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import bias_init_with_prob
from torch import Tensor

from projects.core.boxes import cells_in_boxes, draw_gaussians
from projects.mv2d_xray.queries.grid import XRayGridHead, pointwise

__all__ = ['XRayVolumeHead']

_SMALL = 20480  # see _Conv3d


class _Conv3d(nn.Conv3d):
    """A convolution that may get its input with the zeros round it.

    By one thread, torch gives a small volume (batch x channels x X x Y up to
    20480) to code a third as fast as oneDNN's; with its border it is often
    no longer small.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, C', X', Y', Z'), as the base class."""
        if (x.device.type != 'cpu' or x[..., 0].numel() > _SMALL
                or torch.compiler.is_exporting()):
            return super().forward(x)
        border = [n for pad in self.padding[::-1] for n in (pad, pad)]
        return F.conv3d(F.pad(x, border), self.weight, self.bias, self.stride)


class _Context(nn.Module):
    """What a volume's surroundings say, from half of its resolution, which
    may have coarser surroundings of its own (U-Net, arXiv 1505.04597, with
    sums in place of concatenations).

    Args:
        channels: Of the volume and of each coarser level.
        conv: Makes a 3x3x3 convolution of channels, channels and stride.
    """

    def __init__(self, channels: Sequence[int],
                 conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.down = conv(channels[0], channels[1], 2)
        self.coarser = (_Context(channels[1:], conv)
                        if len(channels) > 2 else None)
        self.up = conv(channels[1], channels[0])

    def forward(self, volume: Tensor) -> Tensor:
        """(1, C, X, Y, Z) to the same shape."""
        context = self.down(volume)
        if self.coarser is not None:
            context = context + self.coarser(context)
        return F.interpolate(self.up(context), size=volume.shape[2:],
                             mode='trilinear', align_corners=False)


@MODELS.register_module()
class XRayVolumeHead(XRayGridHead):
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
        context_channels (int | Sequence[int], optional): Channels of the
            coarser context that is added to them, of half the resolution, and
            perhaps of a quarter and so on, each added to the one before.
            Defaults to ``hidden_channels`` at half.
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
                 context_channels: Union[int, Sequence[int], None] = None,
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
        super().__init__(volume_range, voxel_size, num_classes, base_size,
                         max_queries, score_thr, with_deviation, init_cfg)
        self.min_sigma = min_sigma
        self.reduce = nn.Conv2d(in_channels, feat_channels, 1)
        # What the 2D heatmap says of each view is evidence, too.
        sampled = feat_channels + (num_classes if loss_heatmap_2d else 0)
        channels = [(1 + with_deviation) * sampled + 1]
        channels += [hidden_channels] * num_convs

        def conv(source: int, out: int, stride: int = 1) -> ConvModule:
            return ConvModule(
                source, out, 3, stride=stride, padding=1,
                conv_cfg=dict(type=_Conv3d), norm_cfg=norm_cfg)

        # The views differ little from one voxel to the next, but all from 0:
        # without this the zero padding is the strongest contrast in the grid.
        self.norm = build_norm_layer(norm_cfg, channels[0])[1]
        if neck is not None:
            self.neck = MODELS.build(
                dict(neck, in_channels=channels[0],
                     out_channels=hidden_channels))
        else:
            self.neck = None
            self.convs = nn.Sequential(
                *(conv(c, hidden_channels) for c in channels[:-1]))
            widths = context_channels or hidden_channels
            if isinstance(widths, int):
                widths = [widths]
            self.context = _Context([hidden_channels, *widths], conv)
        self.heatmap = nn.Conv3d(hidden_channels, num_classes, 1)
        self.box = nn.Conv3d(hidden_channels, 6, 1)
        self._build_heatmap_2d(in_channels, loss_heatmap_2d)
        self.loss_heatmap = MODELS.build(loss_heatmap)
        self.loss_box = MODELS.build(loss_box)
        self.hidden_channels = hidden_channels

    def _predictors(self) -> List[tuple]:
        few = bias_init_with_prob(.01)
        return [(self.heatmap, few), (self.heatmap_2d, few), (self.box, 0.)]

    # --------------------------------------------------------------- forward
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
        sampled = pointwise(
            [c for c in (self.reduce, self.heatmap_2d) if c is not None],
            features)
        volume = self.norm(
            self.lift(sampled, ct2img, img_shape, span)).contiguous(
                memory_format=torch.channels_last_3d)
        with torch.autocast(volume.device.type, precision,
                            enabled=precision != torch.float32):
            volume = self._net(volume).float()
        found = pointwise([self.heatmap, self.box], volume)[0]
        return found[:self.num_classes], found[self.num_classes:], volume[0]

    def _net(self, volume: Tensor) -> Tensor:
        """The 3D net, (1, C, X, Y, Z) to (1, C', X, Y, Z)."""
        if self.neck is not None:
            return self.neck(volume)[0]
        volume = self.convs(volume)
        return volume + self.context(volume)

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
