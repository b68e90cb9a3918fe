"""Joseph's projector for one CPU core, compiled by Numba.

Line integrals of a voxel volume (Joseph, IEEE Trans. Med. Imaging 1(3), 1982):
a ray takes a bilinear sample wherever it crosses a plane of voxels of its main
axis. Where a detector's columns or rows are parallel to the volume's last
axis, as in a scan on a circle about the patient, the rays of such a line of
pixels cross a plane's rows at the same place: the samples across the line are
interpolated once for all of them. Detectors that are tilted take four voxels a
sample, of several planes at once. Neither needs another copy of the volume.
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
        values: (X, Y, Z) float32, contiguous; runs fastest if the detector's
            columns or rows are parallel to Z.
        source: (3,) place of the source (voxel indices).
        corner: (3,) direction of the first pixel's ray (voxel indices).
        column, row: (3,) its change from a pixel to that in the next column
            and in the next row.
        steps: (3, 3), columns are the steps of one voxel (mm).
        width, height: Of the image (px).

    Returns:
        np.ndarray: (height, width) float32, value times mm.
    """
    source, corner, column, row = (
        np.asarray(v, dtype=np.float64) for v in (source, corner, column, row))
    steps = np.ascontiguousarray(steps, dtype=np.float64)
    image = np.empty((height, width), np.float32)
    lines = image.T
    middle = corner + (width - 1) / 2 * column + (height - 1) / 2 * row
    if _across(middle, column) < _across(middle, row):
        column, row, lines = row, column, image
    count = len(lines)
    threads = torch.get_num_threads()
    bounds = np.unique(np.linspace(
        0, count, min(threads * _PIECES, count) + 1).astype(int))
    kernel = (_columns if _shared(corner, column, row, *lines.shape)
              else _rays)

    def run(first: int, last: int) -> None:
        kernel(values, source, corner, column, row, steps, first, last, lines)

    if threads == 1:
        run(0, count)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, bounds[:-1], bounds[1:]))
    return image


def _across(middle: np.ndarray, line: np.ndarray) -> float:
    """How far the plane of the rays through a line of pixels is from holding
    the last axis, along which voxels lie side by side in memory: 0 to 1."""
    normal = np.cross(middle, line)
    return float(np.abs(normal[2]) / np.linalg.norm(normal))


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
    strides = np.array([size[1] * size[2], size[2], 1])
    flat = values.reshape(-1)
    d = np.empty(3)
    for u in range(first, last):
        for v in range(image.shape[1]):
            for axis in range(3):
                d[axis] = corner[axis] + u * column[axis] + v * row[axis]
            m = np.argmax(np.abs(d))
            a, b = (1, 2) if m == 0 else ((0, 2) if m == 1 else (0, 1))
            # In plane i the ray is at p + i * dp, q + i * dq.
            dp, dq = d[a] / d[m], d[b] / d[m]
            p, q = source[a] - source[m] * dp, source[b] - source[m] * dq
            # Planes ahead of the source in which the ray is inside.
            low, high = 0., size[m] - 1.
            if d[m] > 0:
                low = max(low, np.floor(source[m]) + 1)
            else:
                high = min(high, np.ceil(source[m]) - 1)
            low, high = _within(p, dp, size[a], low, high)
            low, high = _within(q, dq, size[b], low, high)
            begin, end = int(np.ceil(low)), int(np.floor(high)) + 1
            total = np.float32(0)
            if begin < end:
                total = _samples(
                    flat, begin * strides[m], strides[m],
                    np.float32(p + begin * dp), np.float32(dp),
                    np.float32(q + begin * dq), np.float32(dq),
                    np.int32(size[a]), np.int32(size[b]),
                    np.int32(strides[a]), np.int32(strides[b]),
                    np.int32(end - begin))
            image[u, v] = total * _length(d[0], d[1], d[2], steps) / abs(d[m])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _within(place, slope, size, low, high):
    """Where between low and high -1 <= place + i * slope <= size."""
    if abs(slope) < 1e-9:
        slope = 1e-9  # far less than a voxel over all planes
    one, two = (-1 - place) / slope, (size - place) / slope
    return max(low, min(one, two)), min(high, max(one, two))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _samples(flat, base, step, p, dp, q, dq, size_p, size_q, stride_p,
             stride_q, count):
    """Sum of samples of ``count`` planes, ``step`` voxels apart. No branch, no
    store and 32 bits: LLVM then takes several planes at once."""
    total = np.float32(0)
    zero, one = np.float32(0), np.float32(1)
    top_p, top_q = np.float32(size_p - 1), np.float32(size_q - 1)
    last_p, last_q = np.int32(max(size_p - 2, 0)), np.int32(max(size_q - 2, 0))
    next_p = np.uint64(stride_p if size_p > 1 else 0)
    next_q = np.uint64(stride_q if size_q > 1 else 0)
    for i in range(count):
        x, y = p + np.float32(i) * dp, q + np.float32(i) * dq
        # Between the last voxel and nothing: the last voxel's share.
        s, t = min(max(x, zero), top_p), min(max(y, zero), top_q)
        share = (one - abs(x - s)) * (one - abs(y - t))
        j, k = min(np.int32(s), last_p), min(np.int32(t), last_q)
        f, g = s - np.float32(j), t - np.float32(k)
        # Unsigned: no index that counts from the end.
        at = np.uint64(base + j * stride_p + k * stride_q)
        a, b = flat[at], flat[at + next_q]
        c, d = flat[at + next_p], flat[at + next_p + next_q]
        near, far = a + g * (b - a), c + g * (d - c)
        total += share * (near + f * (far - near))
        base += step
    return total
