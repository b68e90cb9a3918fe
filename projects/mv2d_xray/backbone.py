"""What makes features of views: a small backbone, a 2D stage without heads."""

from typing import Optional, Sequence, Tuple

import torch
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

__all__ = ['XRayDilatedNet', 'XRayFeatureExtractor']

_AVX2 = torch.backends.cpu.get_cpu_capability() == 'AVX2'


class _Block(BaseModule):
    """Two 3x3 convolutions, the first dilated, with a residual."""

    def __init__(self, channels: int, dilation: int, norm_cfg: dict) -> None:
        super().__init__()
        self.convs = Sequential(
            ConvModule(channels, channels, 3, padding=dilation,
                       dilation=dilation, norm_cfg=norm_cfg),
            ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg,
                       act_cfg=None))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        return self.relu(x + self.convs(x))


@MODELS.register_module()
class XRayDilatedNet(BaseModule):
    """A stem of strided convolutions, dilated residual blocks, coarser levels.

    An indication of 8 mm is 5 px of a 256² image: it must be seen whole at
    stride 4, with its surroundings, before anything is pooled. Dilation
    (Yu & Koltun, arXiv 1511.07122) gives the surroundings.

    Args:
        in_channels (int): Of the images. Defaults to 3.
        channels (int): C of every level. Defaults to 32.
        stem (Sequence[tuple[int, int]], optional): Channels and stride of
            each convolution of the stem; the last has C channels. Defaults
            to two of C channels and stride 2.
        dilations (Sequence[int]): One block each, at the stem's stride.
        num_levels (int): Outputs, of the stem's stride, twice that and so on.
        num_finer (int): Outputs of the stem's last convolutions but one,
            which come first: for a neck, since they see little of what is
            round a place.
        norm_cfg (dict): Defaults to batch norm.
    """

    def __init__(self,
                 in_channels: int = 3,
                 channels: int = 32,
                 stem: Optional[Sequence[Tuple[int, int]]] = None,
                 dilations: Sequence[int] = (1, 2, 4),
                 num_levels: int = 3,
                 num_finer: int = 0,
                 norm_cfg: dict = dict(type='BN'),
                 init_cfg=None) -> None:
        super().__init__(init_cfg)

        def conv(source: int, out: int, stride: int) -> ConvModule:
            return ConvModule(source, out, 3, stride=stride, padding=1,
                              norm_cfg=norm_cfg)

        stem = stem or ((channels, 2), (channels, 2))
        if stem[-1][0] != channels:
            raise ValueError(
                f'XRayDilatedNet: stem: expected {channels} channels at its '
                f'end, as channels says, found {stem[-1][0]}')
        if num_finer >= len(stem):
            raise ValueError(
                f'XRayDilatedNet: num_finer: expected less than {len(stem)}, '
                f'the stem\'s convolutions, found {num_finer}')
        self.num_finer = num_finer
        sources = [in_channels, *(out for out, _ in stem)]
        self.stem = Sequential(
            *(conv(source, *layer) for source, layer in zip(sources, stem)))
        self.blocks = Sequential(
            *(_Block(channels, d, norm_cfg) for d in dilations),
            conv(channels, channels, 1))
        self.coarser = ModuleList(
            conv(channels, channels, 2) for _ in range(num_levels - 1))

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """(N, in_channels, H, W) to ``num_finer`` maps of the stem's channels
        and ``num_levels`` maps (N, C, h, w)."""
        maps = [images]
        for conv in self.stem:
            maps.append(conv(maps[-1]))
        finer = maps[len(maps) - 1 - self.num_finer:-1]
        levels = [self.blocks(self._in_fast_layout(maps[-1]))]
        for conv in self.coarser:
            levels.append(conv(levels[-1]))
        return (*finer, *levels)

    def _in_fast_layout(self, x: Tensor) -> Tensor:
        """Without AVX-512, oneDNN's gradients of the blocks and of 2D heads
        are a third faster in contiguous maps. A stem and necks are not."""
        one_level = not self.num_finer and not len(self.coarser)
        if _AVX2 and self.training and one_level and x.device.type == 'cpu':
            return x.contiguous()
        return x


@MODELS.register_module()
class XRayFeatureExtractor(BaseModule):
    """A 2D stage that finds nothing in a view: backbone and neck, no heads.

    In place of an mmdet detector, whose names its tensors have, where no part
    needs 2D boxes.

    Args:
        backbone (dict): As of an mmdet detector.
        neck (dict, optional): As of an mmdet detector.
    """

    # What a detector's checkpoint may hold that this stage does not need.
    left_out = ('bbox_head.', 'rpn_head.', 'roi_head.')

    def __init__(self,
                 backbone: dict,
                 neck: Optional[dict] = None,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else None

    @property
    def with_neck(self) -> bool:
        """bool: As an mmdet detector's."""
        return self.neck is not None

    def extract_feat(self, images: Tensor) -> Tuple[Tensor, ...]:
        """(N, C, H, W) to one map (N, C', h, w) per level."""
        levels = self.backbone(images)
        return self.neck(levels) if self.with_neck else levels
