"""The backbone of document 002 that mmdet lacks."""

from typing import List, Sequence, Tuple

from mmcv.cnn import ConvModule
from mmdet.models.layers import InvertedResidual
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['EfficientNetV2S']

# EfficientNetV2 (arXiv 2104.00298), table 4: whether fused, expansion, stride,
# channels, blocks of each stage.
_STAGES = [(True, 1, 1, 24, 2), (True, 4, 2, 48, 4), (True, 4, 2, 64, 4),
           (False, 4, 2, 128, 6), (False, 6, 1, 160, 9),
           (False, 6, 2, 256, 15)]
_STEM, _SQUEEZE = 24, .25
_NORM, _ACT = dict(type='BN', eps=1e-3), dict(type='Swish')


class _FusedMBConv(BaseModule):
    """A convolution in place of MBConv's first two, table 2 of the paper."""

    def __init__(self, channels: int, out_channels: int, expansion: int,
                 stride: int) -> None:
        super().__init__()
        first = channels * expansion if expansion > 1 else out_channels
        layers: List[nn.Module] = [ConvModule(
            channels, first, 3, stride, 1, norm_cfg=_NORM, act_cfg=_ACT)]
        if expansion > 1:
            layers.append(ConvModule(first, out_channels, 1, norm_cfg=_NORM,
                                     act_cfg=None))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, C, H, W)."""
        out = self.layers(x)
        return x + out if self.residual else out


def _mb_conv(channels: int, out_channels: int, expansion: int,
             stride: int) -> nn.Module:
    middle = channels * expansion
    return InvertedResidual(
        channels, out_channels, middle, stride=stride, norm_cfg=_NORM,
        act_cfg=_ACT, se_cfg=dict(
            channels=middle, ratio=expansion / _SQUEEZE,
            act_cfg=(_ACT, dict(type='Sigmoid'))))


@MODELS.register_module()
class EfficientNetV2S(BaseModule):
    """EfficientNetV2-S (arXiv 2104.00298) without its last convolution.

    mmdet has EfficientNet's first version alone. Without drop path; without
    weights: those of others have other names.

    Args:
        out_indices (Sequence[int]): Stages whose maps are returned: 0 and 1
            have strides 2 and 4, 2 has 8, 3 and 4 have 16, 5 has 32.
        norm_eval (bool): Whether norms keep their running statistics in
            training.
    """

    channels = tuple(stage[3] for stage in _STAGES)

    def __init__(self, out_indices: Sequence[int] = (1, 2, 4, 5),
                 norm_eval: bool = False, init_cfg=None) -> None:
        super().__init__(init_cfg or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', layer='_BatchNorm', val=1)])
        self.out_indices = tuple(out_indices)
        self.norm_eval = norm_eval
        self.stem = ConvModule(3, _STEM, 3, 2, 1, norm_cfg=_NORM,
                               act_cfg=_ACT)
        self.stages = nn.ModuleList()
        channels = _STEM
        for fused, expansion, stride, width, count in _STAGES[
                :max(out_indices) + 1]:
            block = _FusedMBConv if fused else _mb_conv
            blocks = []
            for number in range(count):
                blocks.append(block(channels, width, expansion,
                                    1 if number else stride))
                channels = width
            self.stages.append(Sequential(*blocks))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Maps of (N, 3, H, W), finest first."""
        x, found = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                found.append(x)
        return tuple(found)

    def train(self, mode: bool = True) -> 'EfficientNetV2S':
        """As in torch, but for the norms if they are to stay."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
