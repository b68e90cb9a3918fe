"""Findings as solids: what rays see of them.

Projection is linear: what a finding adds to a ray's line integral is its
attenuation times the length of the ray in it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from projects.core import geometry
from projects.core.infos import SHAPE_CELLS

__all__ = ['BALL', 'Finding', 'silhouettes']

_PLACES = np.float32((np.arange(40) + .5) / 40)  # of a ray's samples
_AXIS = (np.arange(SHAPE_CELLS) + .5) / SHAPE_CELLS * 2 - 1
BALL = np.square(np.meshgrid(_AXIS, _AXIS, _AXIS)).sum(0) <= 1


@dataclass
class Finding:
    """A finding as a solid that rays cross.

    Attributes:
        centre: (3,) (mm).
        to_box: (3, 3), world offsets from the centre (mm) to [-1, 1]³ of the
            finding's own box.
        shape: Boolean (n, n, n), what it fills of that box.
        contrast: What it adds to the attenuation (1/mm).
        label: Class.
    """
    centre: np.ndarray
    to_box: np.ndarray
    shape: np.ndarray
    contrast: float
    label: int

    @cached_property
    def box(self) -> np.ndarray:
        """Tight box of the filled cells, (7,) (mm)."""
        count = len(self.shape)
        cells = (np.argwhere(self.shape) + .5) / count * 2 - 1
        from_box = np.linalg.inv(self.to_box)
        centres = cells @ from_box.T
        # A cell counts as the ellipsoid in it: exact along the axes, and
        # a turned ball stays a ball.
        reach = np.linalg.norm(from_box, axis=1) / count
        low, high = centres.min(0) - reach, centres.max(0) + reach
        return np.concatenate([self.centre + (low + high) / 2, high - low,
                               [0.]])

    def path(self, source: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Length of rays in it, (N,) (mm), from source (3,) and unit
        directions (N, 3)."""
        start = (self.to_box @ (source - self.centre)).astype(np.float32)
        step = (direction @ self.to_box.T).astype(np.float32)
        # Where a ray is in the box, in even steps.
        step[np.abs(step) < 1e-9] = 1e-9
        sides = np.array([[[-1.]], [[1.]]], np.float32)
        ends = (sides - start) / step  # (2, N, 3)
        near, far = ends.min(0).max(1), ends.max(0).min(1)
        hit = np.flatnonzero(far > near)
        near, length = near[hit], (far - near)[hit]
        along = near[:, None] + length[:, None] * _PLACES
        cells = start + along[..., None] * step[hit, None]
        # grid_sample's last coordinate is the first axis.
        filled = F.grid_sample(
            torch.from_numpy(self.shape[None, None].astype(np.float32)),
            torch.from_numpy(cells[None, None]).flip(-1), mode='nearest',
            align_corners=False)[0, 0, 0].numpy()
        path = np.zeros(len(direction))
        path[hit] = filled.mean(1) * length
        return path

    def project(self, ct2img: np.ndarray, img_shape: Tuple[int, int]
                ) -> Optional[Tuple[np.ndarray, np.ndarray]]:
        """What a view shows of it.

        Args:
            ct2img: (4, 4).
            img_shape: Height and width (px).

        Returns:
            tuple: Tight rectangle, whole (4,) (px), and the length of the
            rays in it through each of its pixels, (h, w) (mm); None where
            the image does not show it.
        """
        rect, depth = geometry.project_boxes(self.box[None], ct2img[None])
        size = img_shape[::-1]
        low = np.floor(rect[0, 0, :2]).clip(0, size).astype(int)
        high = np.ceil(rect[0, 0, 2:]).clip(0, size).astype(int)
        if depth[0, 0] <= 0 or (high <= low).any():
            return None
        v, u = np.mgrid[low[1]:high[1], low[0]:high[0]] + .5
        source, direction = geometry.rays(
            np.stack([u.ravel(), v.ravel()], -1), ct2img)
        path = self.path(source[0], direction).reshape(u.shape)
        rows, columns = np.nonzero(path)
        if len(rows) == 0:
            return None
        x1, x2 = columns.min(), columns.max() + 1
        y1, y2 = rows.min(), rows.max() + 1
        return (np.array([x1, y1, x2, y2]) + np.tile(low, 2),
                path[y1:y2, x1:x2])


def silhouettes(finding: dict, ct2img: np.ndarray,
                img_shape: Tuple[int, int]) -> np.ndarray:
    """Where each view shows a finding.

    Args:
        finding (dict): ``centre`` and ``size`` (3,) (mm), ``label``, and
            ``shape``; an ellipsoid where that is None.
        ct2img (np.ndarray): (V, 4, 4).
        img_shape (tuple[int, int]): Height and width (px).

    Returns:
        np.ndarray: Boolean (V, H, W).
    """
    shape = BALL if finding['shape'] is None else finding['shape']
    solid = Finding(finding['centre'], np.diag(2 / finding['size']), shape,
                    1., finding['label'])
    masks = np.zeros((len(ct2img), *img_shape), bool)
    for mask, matrix in zip(masks, ct2img):
        seen = solid.project(matrix, img_shape)
        if seen is not None:
            (x1, y1, x2, y2), path = seen
            mask[y1:y2, x1:x2] = path > 0
    return masks
