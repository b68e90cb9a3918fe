"""Joseph's projector for one CPU core, compiled by Numba.

Line integrals of a voxel volume (Joseph, IEEE Trans. Med. Imaging 1(3), 1982):
a ray takes a bilinear sample wherever it crosses a plane of voxels of its main
axis. Where a detector's columns are parallel to the volume's last axis, as in
a scan on a circle about the patient, the rays of a column cross a plane's rows
at the same place: the samples across the column are interpolated once for all
of them.
"""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch

__all__ = ['project']

_PIECES = 8  # of an image for each thread, so that all end at about one time


def project(values: np.ndarray, source: np.ndarray, corner: np.ndarray,
            column: np.ndarray, row: np.ndarray, steps: np.ndarray,
            width: int, height: int) -> np.ndarray:
    """Line integrals along the rays of all pixels of a view.

    A pixel's ray runs along ``corner + u * column + v * row``, u and v the
    pixel's indices; lengths along a ray need not be 1. It starts at the
    source. Voxels have their value at integer indices; outside there is 0.

    Args:
        values: (X, Y, Z) float32, contiguous; runs fastest if Z is the axis
            that the detector's columns are parallel to.
        source: (3,) place of the source (voxel indices).
        corner: (3,) direction of the first pixel's ray (voxel indices).
        column, row: (3,) its change from a pixel to that in the next column
            and in the next row.
        steps: (3, 3), columns are the steps of one voxel (mm).
        width, height: Of the image (px).

    Returns:
        np.ndarray: (height, width) float32, value times mm.
    """
    image = np.empty((width, height), np.float32)
    source, corner, column, row = (
        np.asarray(v, dtype=np.float64) for v in (source, corner, column, row))
    threads = torch.get_num_threads()
    bounds = np.unique(np.linspace(
        0, width, min(threads * _PIECES, width) + 1).astype(int))
    kernel = (_columns if _shared(corner, column, row, width, height)
              else _rays)
    steps = np.ascontiguousarray(steps, dtype=np.float64)

    def run(first: int, last: int) -> None:
        kernel(values, source, corner, column, row, steps, first, last, image)

    if threads == 1:
        run(0, width)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, bounds[:-1], bounds[1:]))
    return np.ascontiguousarray(image.T)


def _shared(corner: np.ndarray, column: np.ndarray, row: np.ndarray,
            width: int, height: int) -> bool:
    """Whether columns are parallel to the last axis, and that is no ray's
    main axis."""
    if np.abs(row[:2]).max() > 1e-6 * np.abs(row[2]):
        return False
    u, v = np.array([0, width - 1]), np.array([0, height - 1])
    along = np.abs(corner[2] + u[:, None] * column[2] + v * row[2]).max(1)
    # Between its ends a row's largest step across z may be smaller.
    across = np.abs(corner[:2] + np.arange(width)[:, None] * column[:2])
    return bool(along.max() <= across.max(1).min())


@numba.njit(cache=True, nogil=True, fastmath=True)
def _columns(values, source, corner, column, row, steps, first, last, image):
    """Columns ``first`` to ``last`` of an image, as (width, height)."""
    count = values.shape[2]
    height = image.shape[1]
    line = np.zeros(count + 3, np.float32)
    slope = np.zeros(count + 3, np.float32)
    total = np.empty(height, np.float32)
    for u in range(first, last):
        d0 = corner[0] + u * column[0]
        d1 = corner[1] + u * column[1]
        d2 = corner[2] + u * column[2]
        swapped = abs(d1) > abs(d0)
        main, other = (d1, d0) if swapped else (d0, d1)
        start, beside = ((source[1], source[0]) if swapped
                         else (source[0], source[1]))
        planes = values.shape[1] if swapped else values.shape[0]
        rows = values.shape[0] if swapped else values.shape[1]
        total[:] = 0
        for i in range(planes):
            t = (i - start) / main
            if t <= 0:
                continue
            q = beside + t * other
            if q <= -1 or q >= rows:
                continue
            # Pixel v crosses the plane at z0 + v * dz.
            z0 = source[2] + t * d2
            dz = t * row[2]
            low, high = _between(z0, dz, count, height)
            if low >= high:
                continue
            j = int(np.floor(q))
            w = np.float32(q - j)
            near = np.float32(1) - w if j >= 0 else np.float32(0)
            far = w if j + 1 < rows else np.float32(0)
            j0, j1 = max(j, 0), min(j + 1, rows - 1)
            a = values[j0, i] if swapped else values[i, j0]
            b = values[j1, i] if swapped else values[i, j1]
            for k in range(count):
                line[k + 1] = near * a[k] + far * b[k]
            for k in range(count + 1):
                slope[k] = line[k + 1] - line[k]
            z = np.float32(z0 + 1)
            step = np.float32(dz)
            for v in range(low, high):
                place = z + np.float32(v) * step
                below = np.int32(place)
                total[v] += line[below] + (
                    place - np.float32(below)) * slope[below]
        for v in range(height):
            image[u, v] = total[v] * _length(
                d0, d1, d2 + v * row[2], steps) / abs(main)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _between(start, step, count, height):
    """Pixels v with -1 < start + v * step < count, a half-open range."""
    if abs(step) < 1e-12:
        inside = start > -1 and start < count
        return (0, height) if inside else (0, 0)
    one, two = (-1 - start) / step, (count - start) / step
    # A hair inside, so that rounding reads no voxel beyond the last.
    low, high = min(one, two) + 1e-3, max(one, two) - 1e-3
    return (max(int(np.ceil(low)), 0),
            min(int(np.floor(high)) + 1, height))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _length(d0, d1, d2, steps):
    """Length (mm) of a direction in voxel indices."""
    x = steps[0, 0] * d0 + steps[0, 1] * d1 + steps[0, 2] * d2
    y = steps[1, 0] * d0 + steps[1, 1] * d1 + steps[1, 2] * d2
    z = steps[2, 0] * d0 + steps[2, 1] * d1 + steps[2, 2] * d2
    return np.sqrt(x * x + y * y + z * z)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _rays(values, source, corner, column, row, steps, first, last, image):
    """As :func:`_columns`, for rays of any direction."""
    size = np.array(values.shape)
    d = np.empty(3)
    for u in range(first, last):
        for v in range(image.shape[1]):
            for a in range(3):
                d[a] = corner[a] + u * column[a] + v * row[a]
            m = np.argmax(np.abs(d))
            a, b = (1, 2) if m == 0 else ((0, 2) if m == 1 else (0, 1))
            # Planes ahead of the source in which the ray is inside.
            low, high = 0., np.inf
            for axis in (a, b):
                slope = d[axis]
                if abs(slope) < 1e-12:
                    if source[axis] <= -1 or source[axis] >= size[axis]:
                        high = -1.
                    continue
                one = (-1 - source[axis]) / slope
                two = (size[axis] - source[axis]) / slope
                low, high = max(low, min(one, two)), min(high, max(one, two))
            total = np.float32(0)
            if high > low:
                one = source[m] + low * d[m]
                two = source[m] + min(high, 1e12) * d[m]
                begin = max(int(np.floor(min(one, two))), 0)
                end = min(int(np.ceil(max(one, two))), size[m] - 1)
                for i in range(begin, end + 1):
                    t = (i - source[m]) / d[m]
                    if t <= 0:
                        continue
                    p, q = source[a] + t * d[a], source[b] + t * d[b]
                    if (p <= -1 or q <= -1 or p >= size[a]
                            or q >= size[b]):
                        continue
                    j, k = int(np.floor(p)), int(np.floor(q))
                    f, g = np.float32(p - j), np.float32(q - k)
                    one_f, one_g = np.float32(1) - f, np.float32(1) - g
                    for dj in range(2):
                        if j + dj < 0 or j + dj >= size[a]:
                            continue
                        weight = f if dj else one_f
                        for dk in range(2):
                            if k + dk < 0 or k + dk >= size[b]:
                                continue
                            share = weight * (g if dk else one_g)
                            if m == 0:
                                value = values[i, j + dj, k + dk]
                            elif m == 1:
                                value = values[j + dj, i, k + dk]
                            else:
                                value = values[j + dj, k + dk, i]
                            total += share * value
            image[u, v] = total * _length(d[0], d[1], d[2], steps) / abs(
                d[m])
