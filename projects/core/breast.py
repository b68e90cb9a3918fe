"""Where the breast is in a mammogram."""

from typing import List

import cv2
import numpy as np
from scipy import ndimage

__all__ = ['breast_mask', 'chest_side', 'cut_borders', 'to_eight_bits']

_OPENING = 1 / 200  # of the image's longer side: labels' lines are thinner
# Of a border's length, that a breast may reach it with. At the front it ends
# as a nipple does, at the others it may be long.
_CONTACT = dict(top=.25, bottom=.25, front=.02)


def to_eight_bits(image: np.ndarray) -> np.ndarray:
    """Grey values from 0 to 255; the brightest 0.1 % are all white.

    Args:
        image: (H, W) of any range.

    Raises:
        ValueError: There is one grey value only.
    """
    low, high = float(image.min()), float(np.percentile(image, 99.9))
    if not high > low:
        raise ValueError('expected a breast that is brighter than air, found '
                         'one grey value')
    grey = (image.astype(np.float32) - low) * (255 / (high - low))
    return np.rint(grey).clip(0, 255).astype(np.uint8)


def breast_mask(grey: np.ndarray) -> np.ndarray:
    """The largest bright piece of an image, without holes.

    Bright is what is above Otsu's threshold, taken from the square roots of
    the grey values: else it may lie between fat and gland.

    Args:
        grey: (H, W) uint8, tissue brighter than air.

    Returns:
        np.ndarray: (H, W) uint8, 0 or 1; empty where nothing is bright.
    """
    root = np.rint(np.sqrt(grey * np.float32(255))).astype(np.uint8)
    level, _ = cv2.threshold(root, 0, 255,
                             cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    reach = max(round(max(grey.shape) * _OPENING), 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE,
                                       (2 * reach + 1, 2 * reach + 1))
    bright = cv2.morphologyEx((root > level).astype(np.uint8),
                              cv2.MORPH_OPEN, kernel)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(bright)
    if count < 2:
        return bright
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return ndimage.binary_fill_holes(pieces == largest).astype(np.uint8)


def chest_side(mask: np.ndarray) -> str:
    """At which side of the image the chest wall is, 'left' or 'right': there
    the breast is higher.

    Args:
        mask: (H, W), of :func:`breast_mask`, not empty.
    """
    used = np.flatnonzero(mask.any(0))
    reach = max(len(used) // 20, 1)
    ends = [mask[:, part].sum() for part in (used[:reach], used[-reach:])]
    return 'left' if ends[0] >= ends[1] else 'right'


def cut_borders(mask: np.ndarray, side: str, view: str) -> List[str]:
    """Borders beyond which a breast goes on and at which it should end: of
    ``top``, ``bottom`` and ``front``; at the top of MLO it never ends.

    Args:
        mask: (H, W), of :func:`breast_mask`, of what the film shows.
        side: Of the chest wall, 'left' or 'right'.
        view: 'CC' or 'MLO'.
    """
    edges = dict(top=mask[0], bottom=mask[-1],
                 front=mask[:, -1 if side == 'left' else 0])
    if view == 'MLO':
        del edges['top']
    return [name for name, edge in edges.items()
            if (edge > 0).mean() > _CONTACT[name]]
