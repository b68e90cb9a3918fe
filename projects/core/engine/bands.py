"""Contrast bands: what stands out of a blurred image."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['contrast_bands', 'gaussian_blur']

_PARTS = 8


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur single-channel images with replicated borders.

    A wide blur leaves nothing that half the resolution does not hold: from 16
    px on, images with an even number of rows and columns are blurred there,
    four times as fast, with an error of 1 % of what the blur takes away, 4 %
    at borders that are not flat.

    Args:
        images (Tensor): (N, 1, H, W).
        sigma (float): Standard deviation (px).

    Returns:
        Tensor: (N, 1, H, W).
    """
    if sigma >= 16 and not any(n % 2 for n in images.shape[-2:]):
        return F.interpolate(
            gaussian_blur(F.avg_pool2d(images, 2), sigma / 2), scale_factor=2,
            mode='bilinear', align_corners=False)
    radius = max(int(3 * sigma + .5), 1)
    taps = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-.5 * (taps.to(images) / sigma)**2)
    kernel = kernel / kernel.sum()
    along = _blurred_rows(images, kernel)
    return _blurred_rows(along.mT, kernel).mT


def _blurred_rows(images: Tensor, kernel: Tensor) -> Tensor:
    """(N, 1, H, W) along W. Convolutions are made for many channels: an
    image's parts, one above the other, are some."""
    height, width = images.shape[-2:]
    parts = 1 if height % _PARTS else _PARTS
    radius = len(kernel) // 2
    padded = F.pad(images, (radius, radius, 0, 0), mode='replicate')
    return F.conv2d(
        padded.reshape(-1, parts, height // parts, width + 2 * radius),
        kernel.expand(parts, 1, 1, -1), groups=parts).reshape(images.shape)


def contrast_bands(images: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Images and, per scale, what they have more than their blur, in which a
    small indication stands out from the anatomy. In float32 under autocast,
    too: a band is a small difference of large numbers.

    Args:
        images (Tensor): (N, 1, H, W).
        sigmas (Sequence[float]): Standard deviations of the blurs (px).

    Returns:
        Tensor: (N, 1 + bands, H, W).
    """
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([images, *(images - gaussian_blur(images, sigma)
                                    for sigma in sigmas)], 1)
