"""Findings as solids: what rays see of them.

Projection is linear: what a finding adds to a ray's line integral is its
attenuation times the length of the ray in it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ive

from projects.core import geometry
from projects.core.infos import SHAPE_CELLS

__all__ = ['BALL', 'Finding', 'silhouettes']

_PLACES = np.float32((np.arange(40) + .5) / 40)  # of a ray's samples
_CORNERS = geometry.box_corners(np.array([0., 0, 0, 2, 2, 2]))
_FINE = 4.  # px, width below which a pixel's ray is not enough
_AXIS = (np.arange(SHAPE_CELLS) + .5) / SHAPE_CELLS * 2 - 1
BALL = np.square(np.meshgrid(_AXIS, _AXIS, _AXIS)).sum(0) <= 1


@dataclass
class Finding:
    """A finding as a solid that rays cross.

    Attributes:
        centre: (3,) (mm).
        to_box: (3, 3), world offsets from the centre (mm) to [-1, 1]³ of the
            finding's own box.
        shape: Boolean (n, n, n), what it fills of that box. Boxes are the
            shape's, whatever the density.
        contrast: What it adds to the attenuation (1/mm).
        label: Class.
        density: (m, m, m), how much of the contrast is where, continuous
            from cell to cell and 0 a cell outside the box. By default the
            shape's cells have all of it and hard edges.
    """
    centre: np.ndarray
    to_box: np.ndarray
    shape: np.ndarray
    contrast: float
    label: int
    density: Optional[np.ndarray] = None

    @cached_property
    def _from_box(self) -> np.ndarray:
        return np.linalg.inv(self.to_box)

    @cached_property
    def _surface(self) -> np.ndarray:
        """Centres of the filled cells that others do not surround, as offsets
        (N, 3) (mm)."""
        padded = np.pad(self.shape, 1)
        inner = self.shape.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        cells = np.argwhere(self.shape & ~inner)
        return ((cells + .5) / len(self.shape) * 2 - 1) @ self._from_box.T

    @cached_property
    def box(self) -> np.ndarray:
        """Tight box of the filled cells, (7,) (mm)."""
        centres = self._surface
        # A cell counts as the ellipsoid in it: exact along the axes, and
        # a turned ball stays a ball.
        reach = np.linalg.norm(self._from_box, axis=1) / len(self.shape)
        low, high = centres.min(0) - reach, centres.max(0) + reach
        return np.concatenate([self.centre + (low + high) / 2, high - low,
                               [0.]])

    def path(self, source: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Length of rays in it, (N,) (mm), weighted with the density, from
        source (3,) and unit directions (N, 3)."""
        start = (self.to_box @ (source - self.centre)).astype(np.float32)
        step = (self.to_box @ direction.T).astype(np.float32)  # (3, N)
        # Where a ray is in the box.
        step[np.abs(step) < 1e-9] = 1e-9
        sides = np.array([[[-1.]], [[1.]]], np.float32) * self._reach
        ends = (sides - start[:, None]) / step  # (2, 3, N)
        near, far = ends.min(0).max(0), ends.max(0).min(0)
        hit = np.flatnonzero(far > near)
        path = np.zeros(len(direction))
        if self.density is not None:
            path[hit] = _through(self.density, start, step[:, hit])
            return path
        near, length = near[hit], (far - near)[hit]
        along = near[:, None] + length[:, None] * _PLACES
        cells = start + along[..., None] * step[:, hit].T[:, None]
        # grid_sample's last coordinate is the first axis.
        filled = F.grid_sample(
            torch.from_numpy(self.shape[None, None].astype(np.float32)),
            torch.from_numpy(cells[None, None]).flip(-1), mode='nearest',
            align_corners=False)[0, 0, 0].numpy()
        path[hit] = filled.mean(1) * length
        return path

    @property
    def _reach(self) -> np.float32:
        """Half edge of what is not empty, in those of the box."""
        return np.float32(
            1 if self.density is None else 1 + 1 / len(self.density))

    def rectangle(self, ct2img: np.ndarray, img_shape: Tuple[int, int]
                  ) -> Optional[np.ndarray]:
        """Tight rectangle of the shape's pixels, whole (4,) (px), those whose
        centres see it; None where the image does not show it."""
        uv, depth = geometry.project(self.centre + self._surface, ct2img)
        if depth.min() <= 0:
            return None
        # As for the box, a cell is an ellipsoid.
        moves = geometry.image_derivative(self.centre, ct2img)
        reach = np.linalg.norm(moves @ self._from_box,
                               axis=1) / len(self.shape)
        size = img_shape[::-1]
        low = np.ceil(uv.min(0) - reach - .5).clip(0, size)
        high = (np.floor(uv.max(0) + reach - .5) + 1).clip(0, size)
        return (None if (high <= low).any() else
                np.concatenate([low, high]).astype(int))

    def project(self, ct2img: np.ndarray, img_shape: Tuple[int, int],
                spread: Sequence[float] = (0., 0., 0.)
                ) -> Optional[Tuple[np.ndarray, np.ndarray]]:
        """What a view shows of it.

        Seen from far enough, a Gaussian in space of covariance S is one in
        the image, of J S J^T with the projection's derivative J. Its
        correlation of u and v is left out: there is none where the image's
        axes are the world's, and in tilted views it is small as long as the
        deviations are alike.

        Args:
            ct2img: (4, 4).
            img_shape: Height and width (px).
            spread: Deviations along the world's axes (mm) of the point
                spread through which it is seen.

        Returns:
            tuple: Tight rectangle of what it changes, whole (4,) (px), and
            the length of the rays in it through each of these pixels, (h, w)
            (mm); None where the image does not show it. Where a density
            gives it soft edges, a pixel has the mean of its area.
        """
        corners = self.centre + self._reach * _CORNERS @ self._from_box.T
        uv, depth = geometry.project(corners, ct2img)
        if depth.min() <= 0:
            return None
        moves = geometry.image_derivative(self.centre, ct2img)
        kernels = [_kernel(sigma)
                   for sigma in np.linalg.norm(moves * spread, axis=1)]
        # What is beside the image is blurred into it.
        margin = np.array([len(k) // 2 for k in kernels])
        size = np.array(img_shape[::-1])
        low, high = (
            edge.clip(-margin, size + margin).astype(int)
            for edge in (np.floor(uv.min(0)), np.ceil(uv.max(0))))
        if (high <= low).any():
            return None
        rays = 1  # along a pixel's edge
        if self.density is not None:
            width = 2 * np.linalg.norm(self._from_box, axis=0).min()
            width *= np.linalg.norm(moves, axis=1).min()
            rays = int(np.clip(math.ceil(_FINE / width), 1, 4))
        path = self._sampled(low, high, ct2img, rays)
        if margin.any():
            low = low - margin
            path = cv2.sepFilter2D(
                np.pad(path, [(m, m) for m in margin[::-1]]), -1, kernels[0],
                kernels[1], borderType=cv2.BORDER_CONSTANT)
            skip = np.maximum(-low, 0)
            low = low + skip
            path = path[skip[1]:size[1] - low[1] + skip[1],
                        skip[0]:size[0] - low[0] + skip[0]]
        rows, columns = np.nonzero(path)
        if len(rows) == 0:
            return None
        x1, x2 = columns.min(), columns.max() + 1
        y1, y2 = rows.min(), rows.max() + 1
        return (np.array([x1, y1, x2, y2]) + np.tile(low, 2),
                path[y1:y2, x1:x2])

    def _sampled(self, low: np.ndarray, high: np.ndarray, ct2img: np.ndarray,
                 rays: int) -> np.ndarray:
        """Path through the pixels from ``low`` to ``high``, both (2,) (x and
        y), with rays² for each, (h, w) (mm)."""
        width, height = (high - low) * rays
        v, u = (np.mgrid[:height, :width] + .5) / rays
        source, direction = geometry.rays(
            np.stack([u.ravel() + low[0], v.ravel() + low[1]], -1), ct2img)
        path = self.path(source[0], direction)
        if rays == 1:
            return path.reshape(height, width)
        return path.reshape(height // rays, rays, width // rays, rays).mean(
            (1, 3))


def _through(density: np.ndarray, start: np.ndarray,
             step: np.ndarray) -> np.ndarray:
    """Path of rays start + t * step (3, N) (of the box) through a density.

    Joseph's method (IEEE TMI 1982): one sample where a ray crosses each layer
    of cells along the axis that it follows most.

    Returns:
        np.ndarray: (N,), in units of t.
    """
    axis = int(np.abs(step).sum(1).argmax())
    rows, columns = (i for i in range(3) if i != axis)
    count = density.shape[axis]
    layers = ((np.arange(count) + .5) / count * 2 - 1).astype(np.float32)
    # grid_sample's first coordinate is the last axis.
    places = np.empty((count, 1, step.shape[1], 2), np.float32)
    for place, i in ((places[:, 0, :, 0], columns), (places[:, 0, :, 1],
                                                     rows)):
        slope = step[i] / step[axis]
        np.multiply.outer(layers, slope, out=place)
        place += start[i] - start[axis] * slope
    seen = F.grid_sample(
        torch.from_numpy(np.moveaxis(density, axis, 0)[:, None].astype(
            np.float32)),
        torch.from_numpy(places), align_corners=False)
    return seen.sum((0, 1, 2)).numpy() * 2 / count / np.abs(step[axis])


def _kernel(sigma: float) -> np.ndarray:
    """Gaussian of whole pixels that has its deviation exactly, however
    narrow it is (Lindeberg, IEEE TPAMI 1990)."""
    reach = math.ceil(3 * sigma)
    kernel = ive(np.arange(-reach, reach + 1), sigma**2)
    return kernel / kernel.sum()


def silhouettes(finding: dict, ct2img: np.ndarray,
                img_shape: Tuple[int, int]) -> np.ndarray:
    """Where each view shows a finding: its shadow, in a CT slice its section.

    Args:
        finding (dict): ``centre`` and ``size`` (3,) (mm), ``label``, and
            ``shape``; an ellipsoid where that is None.
        ct2img (np.ndarray): (V, 4, 4), of X-ray views or of slices.
        img_shape (tuple[int, int]): Height and width (px).

    Returns:
        np.ndarray: Boolean (V, H, W).
    """
    shape = BALL if finding['shape'] is None else finding['shape']
    solid = Finding(finding['centre'], np.diag(2 / finding['size']), shape,
                    1., finding['label'])
    masks = np.zeros((len(ct2img), *img_shape), bool)
    if geometry.are_slices(ct2img):
        v, u = np.mgrid[:img_shape[0], :img_shape[1]] + .5
        pixels = np.stack([u.ravel(), v.ravel()], -1)
        for mask, matrix in zip(masks, ct2img):
            mask[:] = _section(solid, matrix, pixels).reshape(img_shape)
        return masks
    for mask, matrix in zip(masks, ct2img):
        seen = solid.project(matrix, img_shape)
        if seen is not None:
            (x1, y1, x2, y2), path = seen
            mask[y1:y2, x1:x2] = path > 0
    return masks


def _section(solid: Finding, ct2img: np.ndarray,
             pixels: np.ndarray) -> np.ndarray:
    """Which pixels (N, 2) of a slice (4, 4) show a finding anywhere in its
    thickness, looked at every 0.5 mm, (N,)."""
    _, thickness = geometry.slice_places(ct2img[None])
    reach = np.linalg.norm(np.linalg.inv(solid.to_box), axis=1)
    off = geometry.slice_offsets(solid.centre[None], ct2img)[0]
    inside = np.zeros(len(pixels), bool)
    if abs(off) * thickness / 2 > np.linalg.norm(reach) + thickness / 2:
        return inside
    middle = geometry.unproject(pixels, np.ones(len(pixels)), ct2img)
    steps = np.linspace(-.5, .5, math.ceil(thickness / .5) + 1)
    for step in steps * thickness:
        place = middle + step * geometry.slice_normal(ct2img)
        cells = np.floor(((place - solid.centre) @ solid.to_box.T + 1) / 2
                         * len(solid.shape)).astype(int)
        held = ((cells >= 0) & (cells < len(solid.shape))).all(1)
        inside[held] |= solid.shape[tuple(cells[held].T)]
    return inside
