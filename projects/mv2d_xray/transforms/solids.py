"""Random solids: how much of its contrast a finding has where.

All are (n, n, n) densities of a box [-1, 1]³, 1 inside and 0 outside, whose
edge is one cell wide. Randomness comes from NumPy's global generator.
"""

from functools import lru_cache
from math import factorial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter

__all__ = ['CELLS', 'add_core', 'add_texture', 'edge', 'lump', 'smoothed',
           'tube']

CELLS = 32
_AXIS = np.float32((np.arange(CELLS) + .5) / CELLS * 2 - 1)
_PLACES = np.stack(np.meshgrid(_AXIS, _AXIS, _AXIS, indexing='ij'))
_RADIUS = np.sqrt(np.square(_PLACES).sum(0))


def edge(depth: np.ndarray) -> np.ndarray:
    """Density at places so deep in a solid (cells)."""
    return (depth + .5).clip(0, 1)


def smoothed(shape: np.ndarray) -> np.ndarray:
    """Depth (cells), negative outside, in a boolean shape (16, 16, 16) without
    its stairs, which slices leave. It keeps its volume."""
    padded = np.pad(shape, 1)
    depth = np.where(padded, distance_transform_edt(padded) - .5,
                     .5 - distance_transform_edt(~padded))
    depth = gaussian_filter(depth.astype(np.float32), 2., truncate=2.)
    depth = np.asarray(_resampled(depth[None], CELLS * len(padded) //
                                  len(shape))[0])
    pad = (len(depth) - CELLS) // 2
    depth = depth[pad:-pad, pad:-pad, pad:-pad] * CELLS / len(shape)
    outside = depth.size - round(shape.mean() * depth.size)
    if 0 < outside < depth.size:
        depth = depth - np.partition(depth.ravel(), outside)[outside]
    return depth


def lump(roughness: float) -> np.ndarray:
    """Depth (cells) in a ball whose radius changes smoothly with direction by
    this relative deviation: a lobulated mass."""
    radius = np.ones_like(_RADIUS)
    if roughness:
        waves = _waves()
        radius = np.exp(np.float32(roughness) * np.tensordot(
            np.float32(np.random.normal(size=len(waves))), waves, 1))
    return (radius / radius.max() - _RADIUS) * (CELLS / 2)


@lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """Functions of the direction (K, n, n, n) that a random sum of is as
    likely turned any way, of deviation 1 everywhere (Kostlan's polynomials of
    the degrees 2 to 5)."""
    x, y, z = _PLACES / _RADIUS
    return np.stack([
        np.sqrt(factorial(n) / factorial(i) / factorial(j)
                / factorial(n - i - j) / 4) * x**i * y**j * z**(n - i - j)
        for n in range(2, 6) for i in range(n + 1) for j in range(n + 1 - i)
    ]).astype(np.float32)


def add_texture(density: np.ndarray, deviation: float) -> np.ndarray:
    """Vary a density smoothly over a quarter of its box by this relative
    deviation; the mean stays."""
    noise = _resampled(np.random.normal(size=(1, 6, 6, 6)).astype(
        np.float32), CELLS)[0]
    inside = noise[density > .5]
    noise = (noise - inside.mean()) / max(inside.std(), 1e-6)
    varied = density * (1 + np.float32(deviation) * noise).clip(.1)
    return varied * (density.sum() / varied.sum())


def add_core(depth: np.ndarray, density: float,
             diameter: float) -> np.ndarray:
    """A sub-solid finding: a solid core of this part of its mean diameter,
    anywhere inside, in a shell of this density."""
    extent = np.mean([np.ptp(row) + 1 for row in np.nonzero(depth > 0)])
    radius = diameter * extent / 2
    places = np.flatnonzero(depth >= min(radius, depth.max()))
    place = np.unravel_index(np.random.choice(places), depth.shape)
    away = np.sqrt(np.square(
        _PLACES - _PLACES[(slice(None), *place)][:, None, None, None]).sum(0))
    core = edge(radius - away * (CELLS / 2))
    return edge(depth) * np.maximum(core, np.float32(density))


def tube(bend: float, thickness: np.ndarray) -> np.ndarray:
    """A piece of a vessel along x, bent in y, that fades at both ends.

    Args:
        bend: Of the half box along y, how far it bends either way.
        thickness: (2,) its radius, of the half boxes along y and z.
    """
    x, y, z = _PLACES
    middle = np.float32(bend) * (1 - 2 * x**2)
    away = np.sqrt(((y - middle) / np.float32(thickness[0]))**2
                   + (z / np.float32(thickness[1]))**2)
    wide = CELLS / 2 * np.float32(min(thickness))
    return edge((1 - away) * wide) * ((1 - np.abs(x)) / .3).clip(0, 1)


def _resampled(fields: np.ndarray, count: int) -> np.ndarray:
    """Fields (K, n, n, n) on as many cells along each edge, linearly."""
    return F.interpolate(
        torch.from_numpy(fields)[None], size=(count, ) * 3, mode='trilinear',
        align_corners=False)[0].numpy()
