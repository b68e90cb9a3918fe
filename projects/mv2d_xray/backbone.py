"""A small backbone that keeps fine detail, for training on a CPU."""

from typing import Sequence, Tuple

from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

__all__ = ['XRayDilatedNet']


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
    """Two strided convolutions, dilated residual blocks, coarser levels.

    An indication of 8 mm is 5 px of a 256² image: it must be seen whole at
    stride 4, with its surroundings, before anything is pooled. Dilation
    (Yu & Koltun, arXiv 1511.07122) gives the surroundings.

    Args:
        in_channels (int): Of the images. Defaults to 3.
        channels (int): C of every level. Defaults to 32.
        fine_convs (int): Convolutions at stride 2, between the strided ones.
        dilations (Sequence[int]): One block each, at stride 4.
        num_levels (int): Outputs, of strides 4, 8, 16 and so on.
        norm_cfg (dict): Defaults to batch norm.
    """

    def __init__(self,
                 in_channels: int = 3,
                 channels: int = 32,
                 fine_convs: int = 0,
                 dilations: Sequence[int] = (1, 2, 4),
                 num_levels: int = 3,
                 norm_cfg: dict = dict(type='BN'),
                 init_cfg=None) -> None:
        super().__init__(init_cfg)

        def conv(source: int, stride: int) -> ConvModule:
            return ConvModule(source, channels, 3, stride=stride, padding=1,
                              norm_cfg=norm_cfg)

        self.stem = Sequential(
            conv(in_channels, 2), *(conv(channels, 1)
                                    for _ in range(fine_convs)),
            conv(channels, 2))
        self.blocks = Sequential(
            *(_Block(channels, d, norm_cfg) for d in dilations),
            conv(channels, 1))
        self.coarser = ModuleList(
            conv(channels, 2) for _ in range(num_levels - 1))

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """(N, in_channels, H, W) to ``num_levels`` maps (N, C, h, w)."""
        levels = [self.blocks(self.stem(images))]
        for conv in self.coarser:
            levels.append(conv(levels[-1]))
        return tuple(levels)
