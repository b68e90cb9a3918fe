"""Features of all views on a grid in space, in one pass on a CPU.

Sampling all views first takes a value for each view, channel and voxel: the
largest tensor of the network, which is written, read and kept several times.
Here a voxel's samples stay in registers; the gradient samples again. Compiled
by Numba.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Tuple

import numba
import numpy as np
import torch
from torch import Tensor

__all__ = ['pool_views']

_LANES = 8  # channels are filled up to a multiple, so that none is left over


def pool_views(features: Tensor, place: Tensor, seen: Tensor,
               epsilon: float) -> Tensor:
    """Mean and deviation of bilinear samples over the views.

    Args:
        features (Tensor): (V, C, h, w) float32 on a CPU.
        place (Tensor): (V, N, 2), where voxels are in a map, -1 to 1 from
            border to border, as for ``grid_sample``; has no gradient.
        seen (Tensor): (V, N) bool, whether a view counts.
        epsilon (float): Added to the variance, which keeps the gradient of
            its root finite where all agree.

    Returns:
        Tensor: (N, 2C + 1): mean, deviation, and share of the views that
        count. A voxel that no view sees has 0 for its mean.
    """
    return _Pool.apply(features, place, seen, epsilon)


class _Pool(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, features: Tensor, place: Tensor, seen: Tensor,
                epsilon: float) -> Tensor:
        maps = _filled_up(features)
        where, mask = place.detach().numpy(), seen.numpy()
        channels = features.shape[1]
        out = np.empty((place.shape[1], 2 * channels + 1), np.float32)

        def run(first: int, last: int) -> None:
            _forward(maps, where, mask, epsilon, first, last, out)

        _spread(run, len(out))
        pooled = torch.from_numpy(out)
        ctx.save_for_backward(features, place, seen, pooled)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple:
        features, place, seen, pooled = ctx.saved_tensors
        maps = _filled_up(features)
        back = np.zeros_like(maps)
        where, mask, out = place.numpy(), seen.numpy(), pooled.numpy()
        grad = grads[0].float().contiguous().numpy()

        def run(first: int, last: int) -> None:
            _backward(maps, where, mask, out, grad, first, last, back)

        _spread(run, len(maps))
        channels = features.shape[1]
        return (torch.from_numpy(back)[..., :channels].permute(0, 3, 2, 1),
                None, None, None)


def _filled_up(features: Tensor) -> np.ndarray:
    """(V, w, h, C'), C' a multiple of the lanes. Voxels one above another,
    which come one after another, are above one another in most views, too."""
    views, channels, height, width = features.shape
    maps = np.zeros((views, width, height, -(-channels // _LANES) * _LANES),
                    np.float32)
    maps[..., :channels] = features.detach().permute(0, 3, 2, 1).numpy()
    return maps


def _spread(run: Callable[[int, int], None], count: int) -> None:
    """Call it on parts of a range, with as many threads as torch has."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        run(0, count)
        return
    ends = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, ends[:-1], ends[1:]))


@numba.njit(cache=True, nogil=True, fastmath=True, inline='always')
def _taps(place, size):
    """Two neighbours along an axis and the weight of each; 0 outside."""
    at = ((place + np.float32(1)) * np.float32(size) - np.float32(1)) / (
        np.float32(2))
    low = int(np.floor(at))
    far = at - np.float32(low)
    near = np.float32(1) - far
    if low < 0:
        near = np.float32(0)
    if low + 1 >= size:
        far = np.float32(0)
    if low + 1 < 0 or low >= size:
        near = far = np.float32(0)
    last = size - 1
    return min(max(low, 0), last), min(max(low + 1, 0), last), near, far


@numba.njit(cache=True, nogil=True, fastmath=True)
def _forward(maps, place, seen, epsilon, first, last, out):
    views, width, height, lanes = maps.shape
    channels = out.shape[1] // 2
    total = np.empty(lanes, np.float32)
    square = np.empty(lanes, np.float32)
    start = np.empty(lanes, np.float32)
    value = np.empty(lanes, np.float32)
    for n in range(first, last):
        total[:] = 0
        square[:] = 0
        start[:] = 0
        count = 0
        for v in range(views):
            if not seen[v, n]:
                continue
            count += 1
            i, j, left, right = _taps(place[v, n, 0], width)
            k, m, up, down = _taps(place[v, n, 1], height)
            a, b, c, d = up * left, up * right, down * left, down * right
            for s in range(lanes):
                value[s] = (a * maps[v, i, k, s] + b * maps[v, j, k, s]
                            + c * maps[v, i, m, s] + d * maps[v, j, m, s])
            # Relative to the first: squares of the values themselves would
            # leave no digits for a small variance.
            if count == 1:
                start[:] = value
                continue
            for s in range(lanes):
                off = value[s] - start[s]
                total[s] += off
                square[s] += off * off
        share = np.float32(1) / np.float32(max(count, 1))
        for s in range(channels):
            off = total[s] * share
            variance = max(square[s] * share - off * off, np.float32(0))
            out[n, s] = start[s] + off
            out[n, channels + s] = np.sqrt(variance + np.float32(epsilon))
        out[n, 2 * channels] = np.float32(count) / np.float32(views)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _backward(maps, place, seen, out, grad, first, last, back):
    """Adds to ``back`` of views ``first`` to ``last``."""
    width, height, lanes = maps.shape[1:]
    channels = out.shape[1] // 2
    slope = np.zeros(lanes, np.float32)
    constant = np.zeros(lanes, np.float32)
    value = np.empty(lanes, np.float32)
    for n in range(out.shape[0]):
        count = out[n, 2 * channels] * np.float32(len(maps))
        if count < .5:
            continue
        share = np.float32(1) / count
        for s in range(channels):
            slope[s] = grad[n, channels + s] / out[n, channels + s] * share
            constant[s] = grad[n, s] * share - slope[s] * out[n, s]
        for v in range(first, last):
            if not seen[v, n]:
                continue
            i, j, left, right = _taps(place[v, n, 0], width)
            k, m, up, down = _taps(place[v, n, 1], height)
            a, b, c, d = up * left, up * right, down * left, down * right
            # One after another: at a border two of them are the same pixel.
            for s in range(lanes):
                value[s] = constant[s] + slope[s] * (
                    a * maps[v, i, k, s] + b * maps[v, j, k, s]
                    + c * maps[v, i, m, s] + d * maps[v, j, m, s])
            for s in range(lanes):
                back[v, i, k, s] += a * value[s]
            for s in range(lanes):
                back[v, j, k, s] += b * value[s]
            for s in range(lanes):
                back[v, i, m, s] += c * value[s]
            for s in range(lanes):
                back[v, j, m, s] += d * value[s]
