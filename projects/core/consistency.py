"""Epipolar consistency: do views of one object fit their geometry?

A plane through the sources of two views meets both detectors in a line. What
Grangeat's theorem gives for both is the same number, the derivative of the
object's integral over the plane along the plane's normal (Grangeat,
"Mathematical framework of cone beam 3D reconstruction via the first
derivative of the Radon transform", 1991; Aichert et al., "Epipolar
Consistency in Transmission Imaging", IEEE Trans. Med. Imaging 34(11), 2015).
Nothing about the object needs to be known, and nothing is reconstructed.

With ``d`` the ray of depth 1 through pixel ``p``, ``n`` the plane's normal
and ``l`` its line in the image (``n . d = l . p``), the number is

    integral of delta'(l . p) g(p) / |d| dp   times   |det d(d)/d(p)|,

the derivative, across the line, of integrals of the line integrals ``g``
along lines in the image. So each view is transformed once, and poses are
tested by sampling what came out.

Shapes: V views, P pairs of views, K planes of a pair.
"""

from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from projects.core import geometry
from projects.core.files import DataError

__all__ = [
    'Consistency', 'Pairs', 'TurnedView', 'expect_as_rig', 'find_turned_views'
]

_SIDE = 192  # px: larger images are reduced first
_DIRECTIONS = 192  # of lines in an image
_STEPS = 16  # between two lines
_SIGMA = 1.5  # px: of the derivative across lines
_FRAME = 6  # px: an object this near the image's edge is cut off by it
# Of the view's largest line integral: more than this in the frame is no noise.
_CUT = .05
_PLANES = 128  # of a pair
_TRIED = 2048  # angles, of which those are taken that meet both images


@dataclass
class Pairs:
    """What two views say of planes through both sources.

    Attributes:
        views: (P, 2) their numbers.
        values: (P, 2, K), by each of them.
        weights: (P, K), 0 where a line leaves an image inside the object, if
            that matters, or there is no plane.
    """
    views: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    def sums(self) -> Tuple[np.ndarray, np.ndarray]:
        """(P,) each: squares of the differences, and of the values."""
        first, second = self.values[:, 0], self.values[:, 1]
        return (np.sum(self.weights * (first - second)**2, -1),
                np.sum(self.weights * (first**2 + second**2), -1))

    def error(self, views: Sequence[int] = ()) -> float:
        """Differences over values, of all pairs or of those of some views: 0
        if they agree, 1 if they have nothing to do with one another; NaN if
        nothing can be compared."""
        chosen = _pairs_of(self.views, views)
        different, whole = (part[chosen].sum() for part in self.sums())
        return float(different / whole) if whole > 0 else float('nan')


class Consistency:
    """Views, ready to be compared in any poses.

    Args:
        images: V line integrals (H, W), which may differ in size; an object
            is cut off where they are not dark at their edges.
        ct2img: (V, 4, 4), of the intrinsics that hold, in whatever poses.
        planes: K, of each pair.
        truncated: Also compare what is cut off; then views agree only
            roughly. None: if otherwise less than half could be compared.

    Raises:
        ValueError: There are not as many images as matrices, an image is not
            of finite numbers, or a view is a slice, which has no source.
    """

    def __init__(self, images: Sequence[np.ndarray], ct2img: np.ndarray,
                 planes: int = _PLANES, truncated: Optional[bool] = None
                 ) -> None:
        ct2img = np.asarray(ct2img, dtype=np.float64).reshape(-1, 4, 4)
        if len(images) != len(ct2img):
            raise ValueError(f'images: expected {len(ct2img)}, one for each '
                             f'matrix, found {len(images)}')
        if geometry.are_slices(ct2img):
            raise ValueError('ct2img: expected views of a source, found '
                             'slices')
        self.ct2img = ct2img
        self.lines = _line_derivatives(images, ct2img)
        rows = np.arange(len(images))
        self.views = np.stack(np.triu_indices(len(rows), 1), -1)
        self.angles, self.towards = self._planes(planes)
        self.truncated = bool(truncated)
        if truncated is None and len(self.views):
            self.truncated = bool(self.compare().weights.mean() < .5)

    def _planes(self, count: int) -> Tuple[np.ndarray, np.ndarray]:
        """(P, K) angles of planes that meet both images, spread over them,
        and (P, 3) where they are counted from."""
        sources = geometry.camera_centres(self.ct2img)[self.views]
        line = sources[:, 1] - sources[:, 0]
        towards = np.eye(3)[np.abs(line).argmin(-1)]
        angles = np.arange(_TRIED) * np.pi / _TRIED
        chosen = np.zeros((len(self.views), count))
        for row, pair in enumerate(self.views):
            normals = geometry.epipolar_planes(
                sources[row, 0], sources[row, 1], angles, towards[row])
            meet = np.ones(_TRIED, bool)
            for view in pair:
                meet &= self.lines[view].meets(
                    geometry.plane_traces(normals, self.ct2img[view]))
            those = angles[meet]
            if len(those):
                chosen[row] = those[
                    np.linspace(0, len(those) - 1, count).round().astype(int)]
        return chosen, towards

    def compare(self, ct2img: Optional[np.ndarray] = None,
                views: Sequence[int] = (),
                images: Optional[Sequence[int]] = None) -> Pairs:
        """What pairs of views say of their planes.

        Args:
            ct2img: (V, 4, 4), in place of those that the views came with.
            views: Only pairs of these.
            images: V numbers, where the views have one another's.
        """
        matrices = self.ct2img if ct2img is None else ct2img
        rows = np.flatnonzero(_pairs_of(self.views, views))
        pairs = self.views[rows]
        sources = geometry.camera_centres(matrices)[pairs]
        normals = geometry.epipolar_planes(
            sources[:, 0], sources[:, 1], self.angles[rows],
            self.towards[rows])
        values = np.zeros((len(pairs), 2, self.angles.shape[1]))
        weights = np.ones((len(pairs), self.angles.shape[1]))
        for number in range(len(matrices)):
            at = np.nonzero(pairs == number)
            if len(at[0]):
                lines = self.lines[number if images is None
                                   else images[number]]
                values[at], whole = lines.sample(geometry.plane_traces(
                    normals[at[0]], matrices[number]), self.truncated)
                weights[at[0]] *= whole
        return Pairs(pairs, values, weights)


def _pairs_of(pairs: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Which pairs (P, 2) have one of some views, all if there are none."""
    return np.isin(pairs, list(views)).any(-1) | (len(views) == 0)


class _LineDerivatives:
    """One view: for each line in its image, how fast the integral along it
    changes across it."""

    def __init__(self, image: np.ndarray, ct2img: np.ndarray) -> None:
        image = np.asarray(image, dtype=np.float32)
        if image.ndim != 2 or not np.isfinite(image).all():
            raise ValueError('image: expected rows and columns of finite '
                             f'numbers, found shape {image.shape}'
                             + (' with others' if image.ndim == 2 else ''))
        height, width = image.shape
        self.zoom = min(_SIDE / max(height, width), 1.)
        if self.zoom < 1:
            image = cv2.resize(
                image, None, fx=self.zoom, fy=self.zoom,
                interpolation=cv2.INTER_AREA)
        self.scale = np.array([width / image.shape[1],
                               height / image.shape[0]])
        self.shape = image.shape
        v, u = np.mgrid[:image.shape[0], :image.shape[1]] + .5
        pixels = np.stack([u * self.scale[0], v * self.scale[1],
                           np.ones_like(u)], -1)
        self.back = np.linalg.inv(ct2img[:3, :3])
        weighted = image / np.linalg.norm(pixels @ self.back.T, axis=-1)
        edge = np.abs(image)
        edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = 0
        self.limit = _CUT * _FRAME * np.percentile(np.abs(image), 99.5)
        # What is integrated along lines, then given to `take`.
        self.weighted, self.edge = weighted, edge
        # Of the pixels that were reduced.
        self.area = abs(np.linalg.det(self.back)) * self.scale.prod()

    def take(self, sums: np.ndarray, edges: np.ndarray) -> None:
        """Line integrals of both (directions, offsets)."""
        del self.weighted, self.edge
        derivative = cv2.filter2D(
            sums, cv2.CV_32F, _derivative_of_gaussian(_SIGMA)[None],
            borderType=cv2.BORDER_CONSTANT)
        self.derivative = _wrapped(derivative, -1).astype(float)
        self.cut = _wrapped(edges > self.limit, 1).astype(float)

    def _places(self, lines: np.ndarray) -> tuple:
        """Lines (*, 3) (px) as length of (a, b), sign, angle (rad) and
        distance from the image's middle (px), of the reduced image."""
        scaled = lines[..., :2] * self.scale
        length = np.linalg.norm(scaled, axis=-1)
        middle = np.array(self.shape[::-1]) / 2
        # A plane parallel to the detector has no line.
        offset = -(lines[..., 2] + scaled @ middle) / np.where(
            length > 0, length, np.nan)
        angle = np.arctan2(scaled[..., 1], scaled[..., 0])
        sign = np.where((angle < 0) | (angle >= np.pi), -1., 1.)
        return length, sign, angle % np.pi, sign * offset

    def meets(self, lines: np.ndarray) -> np.ndarray:
        """Whether lines (*, 3) meet the image, (*,)."""
        _, _, angle, offset = self._places(lines)
        reach = (np.abs(np.cos(angle)) * self.shape[1]
                 + np.abs(np.sin(angle)) * self.shape[0]) / 2
        return np.abs(offset) < reach

    def sample(self, lines: np.ndarray, truncated: bool
               ) -> Tuple[np.ndarray, np.ndarray]:
        """Values and weights (*,) of lines (*, 3); both 0 where there is no
        line, weights where it is cut off, too, unless ``truncated``."""
        length, sign, angle, offset = self._places(lines)
        known = np.isfinite(length) & (length > 0)
        size = self.derivative.shape[1]
        at = np.stack([angle * (_DIRECTIONS / np.pi),
                       offset + (size - 1) / 2])
        at[:, ~known] = 0
        value, cut = _between([self.derivative, self.cut], at)
        value = -sign * self.area * value / np.where(known, length, 1)**2
        return value * known, known & ((cut == 0) | truncated)


def _line_derivatives(images: Sequence[np.ndarray], ct2img: np.ndarray
                      ) -> List[_LineDerivatives]:
    """Of views: those of one size are integrated together."""
    views = [_LineDerivatives(image, matrix)
             for image, matrix in zip(images, ct2img)]
    for shape in {view.shape for view in views}:
        these = [view for view in views if view.shape == shape]
        parts = zip(*(_line_integrals(np.stack([getattr(view, part)
                                                for view in these], -1))
                      for part in ('weighted', 'edge')))
        for view, (sums, edges) in zip(these, parts):
            view.take(sums, edges)
    return views


def _line_integrals(images: np.ndarray) -> np.ndarray:
    """Sums of images (H, W, images) along lines, (images, directions,
    offsets): the line at row a, column t has its normal at a * pi /
    directions from the u axis, and is t - (size - 1) / 2 px from the image's
    middle."""
    height, width, count = images.shape
    size = int(np.ceil(np.hypot(height, width))) + 2 * _FRAME
    rows, columns = np.nonzero(images.any(-1))
    pixels = images[rows, columns].T.astype(float, order='C')
    v, u = rows - (height - 1) / 2, columns - (width - 1) / 2
    sums = np.empty((count, _DIRECTIONS, size), np.float32)
    # Each pixel goes to the two lines that pass it on either side; which
    # share to the farther one is told by one of a few steps between them.
    share = (np.arange(_STEPS) + .5) / _STEPS
    shares = np.stack([1 - share, share], -1)
    for row in range(_DIRECTIONS):
        angle = row * np.pi / _DIRECTIONS
        offset = np.cos(angle) * u + np.sin(angle) * v + (size - 1) / 2
        place = (offset * _STEPS).astype(np.intp)
        for number, values in enumerate(pixels):
            near, far = (np.bincount(place, values, size * _STEPS).reshape(
                size, _STEPS) @ shares).T
            near[1:] += far[:-1]
            sums[number, row] = near
    return sums


def _derivative_of_gaussian(sigma: float) -> np.ndarray:
    """Kernel (K,) for a correlation: the derivative of what a Gaussian of
    this deviation (px), out to four of them, blurs."""
    offsets = np.arange(-int(4 * sigma + .5), int(4 * sigma + .5) + 1)
    weights = np.exp(-offsets**2 / (2 * sigma**2))
    return weights / weights.sum() * offsets / sigma**2


def _between(tables: Sequence[np.ndarray], at: np.ndarray
             ) -> List[np.ndarray]:
    """Values (*,) of tables (H, W) of one size at rows and columns (2, *),
    linear between their cells and 0 beyond the outermost."""
    last = np.array(tables[0].shape) - 1
    last = last.reshape(2, *[1] * (at.ndim - 1))
    inside = ((at >= 0) & (at <= last)).all(0)
    low = np.floor(at * inside).astype(int).clip(0, last - 1)
    part = at * inside - low
    row, column = low
    return [inside * (
        (1 - part[0]) * ((1 - part[1]) * table[row, column]
                         + part[1] * table[row, column + 1])
        + part[0] * ((1 - part[1]) * table[row + 1, column]
                     + part[1] * table[row + 1, column + 1]))
        for table in tables]


def _wrapped(sums: np.ndarray, sign: int) -> np.ndarray:
    """One more direction, half a turn on, which is the first from the other
    side."""
    return np.concatenate([sums, sign * sums[:1, ::-1]])


# --------------------------------------------------------------- turned views
# Error of a view above which it is suspected, and what must be left of it
# once the view is turned back: measured, see docs/geometry.md.
_SUSPECT = .05
_LEFT = .5
# Of an object that is cut off, fewer views say too little, and left and right
# are taken for one another.
_CUT_VIEWS = 5
_UNSURE = 'mirrored left to right'
# What may have happened to an image: where its u and v come from, and which
# of them are counted from the other end.
_TURNS = {
    'turned by 180°': ((0, 1), (1, 1)),
    'mirrored left to right': ((0, 1), (1, 0)),
    'mirrored top to bottom': ((0, 1), (0, 1)),
    'turned by 90° clockwise': ((1, 0), (1, 0)),
    'turned by 90° anticlockwise': ((1, 0), (0, 1)),
    'mirrored about its diagonal': ((1, 0), (0, 0)),
    'mirrored about its other diagonal': ((1, 0), (1, 1)),
}


@dataclass
class TurnedView:
    """Views that fit the others if they are taken otherwise.

    Attributes:
        views: Their numbers: one, two that are swapped, or all.
        what: They look like.
        before, after: Error of their pairs (:meth:`Pairs.error`), as they
            are, and once they are turned back.
    """
    views: List[int]
    what: str
    before: float
    after: float


@dataclass
class _State:
    """Which image each view has, and its matrix for the image."""
    ct2img: np.ndarray
    images: List[int]

    def turned(self, views: Sequence[int], matrix: np.ndarray) -> '_State':
        ct2img = self.ct2img.copy()
        ct2img[views] = matrix @ ct2img[views]
        return _State(ct2img, self.images)

    def swapped(self, first: int, second: int) -> '_State':
        images = list(self.images)
        images[first], images[second] = images[second], images[first]
        return _State(self.ct2img, images)


def _turn(name: str, shape: Tuple[int, ...]) -> Optional[np.ndarray]:
    """Image (px) to the turned image, (4, 4); None if it gets another
    shape."""
    source, flipped = _TURNS[name]
    size = shape[::-1]
    if source == (1, 0) and size[0] != size[1]:
        return None
    matrix = np.diag([0., 0., 1., 1.])
    for row in range(2):
        matrix[row, source[row]] = -1 if flipped[row] else 1
        matrix[row, 2] = size[row] if flipped[row] else 0
    return matrix


def _others(state: _State, shapes: Sequence[Tuple[int, ...]]
            ) -> Iterator[Tuple[List[int], str, _State]]:
    """Views, what may have happened to them, and the state without it."""
    everyone = list(range(len(shapes)))
    groups = [[view] for view in everyone]
    groups += [everyone] if len(set(shapes)) == 1 else []
    for views in groups:
        for what in _TURNS:
            matrix = _turn(what, shapes[views[0]])
            if matrix is not None:
                yield views, what, state.turned(views, matrix)
    for first in everyone:
        for second in everyone[first + 1:]:
            if shapes[first] == shapes[second]:
                yield ([first, second], 'swapped',
                       state.swapped(first, second))


def find_turned_views(images: Sequence[np.ndarray],
                      ct2img: np.ndarray) -> List[TurnedView]:
    """Views that are turned, mirrored or swapped against their geometry.

    A view is named only if it disagrees with the others and halves its error
    when turned back, so that small pose errors, scatter or noise never name
    one. Where images cut an object off, at least five are needed, and none is
    called mirrored left to right. What changes no plane's integral cannot be
    seen: a symmetric object, one view alone, all views of a circle
    upside down, and, of rays that are nearly parallel, left and right of
    views that are not opposite one another.

    Args:
        images: V line integrals (H, W).
        ct2img: (V, 4, 4).

    Returns:
        list: The clearest first; empty where all fit.

    Raises:
        ValueError: See :class:`Consistency`.
    """
    if len(images) < 2:
        return []
    consistency = Consistency(images, ct2img)
    if consistency.truncated and len(images) < _CUT_VIEWS:
        return []
    shapes = [np.shape(image) for image in images]
    state = _State(consistency.ct2img, list(range(len(images))))
    found: List[TurnedView] = []

    def error(of: _State, views: Sequence[int]) -> float:
        return consistency.compare(of.ct2img, views, of.images).error(views)

    for _ in images:
        singles = [error(state, [view]) for view in range(len(images))]
        if not np.nanmax([*singles, 0.]) > _SUSPECT:
            break
        best = None
        for views, what, other in _others(state, shapes):
            if consistency.truncated and what == _UNSURE:
                continue
            before = (singles[views[0]] if len(views) == 1
                      else error(state, views))
            if not before > _SUSPECT:
                continue
            after = error(other, views)
            if after < _LEFT * before and (
                    best is None or after / before
                    < best[0].after / best[0].before):
                best = TurnedView(views, what, before, after), other
        if best is None:
            break
        found.append(best[0])
        state = best[1]
    return found


def expect_as_rig(images: Sequence[np.ndarray], ct2img: np.ndarray,
                  names: Sequence[str], source: str) -> None:
    """Refuse views that are not as their rig has them.

    Args:
        images, ct2img: See :func:`find_turned_views`.
        names: V names of the views.
        source: Names the rig in the error.

    Raises:
        DataError: A view is turned, mirrored or swapped.
    """
    found = find_turned_views(images, ct2img)
    if found:
        told = '; '.join(
            ('all views' if len(f.views) == len(names) > 2 else
             ' and '.join(names[view] for view in f.views))
            + f' that look {f.what} (epipolar error {f.before:.2g}, '
            f'{f.after:.2g} if undone)' for f in found)
        raise DataError(f'{source}: expected views as the rig has them, found '
                        f'{told}')
