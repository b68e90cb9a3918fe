"""From raw line integrals to the network's input channels, on the device."""

from typing import List, Sequence

import torch
import torch.nn.functional as F
from mmdet3d.models.data_preprocessors import Det3DDataPreprocessor
from mmdet3d.registry import MODELS
from torch import Tensor

from projects.core.engine.bands import contrast_bands

__all__ = ['XRayDataPreprocessor']


@MODELS.register_module()
class XRayDataPreprocessor(Det3DDataPreprocessor):
    """Stacks the views of a batch and splits them into contrast bands.

    One grey channel is not copied three times: the channels are the image
    and, per scale, the image minus its blur, in which a small indication
    stands out from the anatomy. Samples may have different numbers of views,
    so views are concatenated: ``imgs`` is (sum of views, 1 + bands, H, W),
    in the order of the samples.

    Args:
        mean (Sequence[float]): Subtracted from each channel (line integral).
        std (Sequence[float]): Divides each channel (line integral).
        band_sigmas (Sequence[float]): Blur of each contrast band (px).
            Defaults to (4, 12), the scales of a 5 to 30 mm nodule at 256².
        pad_size_divisor (int): Images are padded at the right and bottom to a
            multiple of this, with their border's value. Defaults to 32.
    """

    def __init__(self,
                 mean: Sequence[float],
                 std: Sequence[float],
                 band_sigmas: Sequence[float] = (4., 12.),
                 pad_size_divisor: int = 32,
                 **kwargs) -> None:
        super().__init__(pad_size_divisor=pad_size_divisor, **kwargs)
        channels = 1 + len(band_sigmas)
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f'mean and std: expected {channels} values, one for the image '
                f'and one for each band, found {len(mean)} and {len(std)}')
        self.band_sigmas = tuple(band_sigmas)
        self.register_buffer('band_mean',
                             torch.tensor(mean).view(1, -1, 1, 1), False)
        self.register_buffer('band_std',
                             torch.tensor(std).view(1, -1, 1, 1), False)

    def collate_data(self, data: dict) -> dict:
        """Move a batch to the device, pad, concatenate and make the bands."""
        data = self.cast_data(data)
        views: List[Tensor] = data['inputs']['img']
        divisor = self.pad_size_divisor
        height = max(-(-v.shape[-2] // divisor) * divisor for v in views)
        width = max(-(-v.shape[-1] // divisor) * divisor for v in views)
        views = [
            F.pad(
                v.float(),
                (0, width - v.shape[-1], 0, height - v.shape[-2]),
                mode='replicate') for v in views
        ]
        data['inputs']['imgs'] = self.bands(torch.cat(views))
        data.setdefault('data_samples', None)
        return data

    def bands(self, images: Tensor) -> Tensor:
        """Line integrals (N, 1, H, W) to channels (N, 1 + bands, H, W), see
        :func:`~projects.core.engine.bands.contrast_bands`."""
        return (contrast_bands(images, self.band_sigmas)
                - self.band_mean) / self.band_std
