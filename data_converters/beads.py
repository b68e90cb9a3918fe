"""A phantom's beads found in images, each with its name.

Beads are spots of one size, brighter or darker than what is round them. The
Laplacian of a Gaussian of a ball's width answers to them and to no slope; a
paraboloid through its peak gives the centre to a part of a pixel. Which bead
a spot is follows from a rig that is not far off (some mm and degrees): a turn
of the image, a stretch and a shift that most spots agree with, then the view
itself, moved until it sees the beads at the spots.
"""

import csv
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from projects.core import geometry
from projects.core.files import atomic_write
from projects.core.projections import decode_image
from projects.core.rig import Rig, View

from .calibration import seen_by
from .rigs import Beads
from .scan import ConversionError
from .tables import read_table

__all__ = ['Found', 'find_beads', 'open_images', 'read_phantom',
           'table_of_found', 'write_beads']

# How far a view may be off the rig's: a turn of the image (degrees), its
# stretch, and a shift (share of its shorter edge).
_TURNS = np.arange(-6, 6.1, 1.)
_STRETCHES = np.arange(.94, 1.061, .02)
_SHIFT = .25
_BIN = 6  # px, of the votes for a shift
_TRIES = 8  # places with the most votes that are looked into
# Least beads of a view, and least share of those that it should show.
_LEAST, _SHARE = 6, .4
# A spot is that many standard deviations of the image's noise.
_CLEAR = 6.
# Beads that are seen so near to each other (diameters) are one spot.
_APART = 1.3
_WIDEST, _NARROWEST = 4., .75  # px, between a bead and its spot


@dataclass
class Found:
    """What one view shows.

    Attributes:
        view: Name.
        beads: Those that were found.
        expected: How many are in the image.
        merged: How many of them lie over another one and are left out.
        spots: How many spots are in the image.
    """
    view: str
    beads: Beads
    expected: int
    merged: int
    spots: int


def read_phantom(path: Path) -> Beads:
    """A phantom's beads, seen nowhere yet.

    Args:
        path: Table with ``x, y, z`` (mm) and perhaps ``bead``, its name.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    rows = read_table(path, ('x', 'y', 'z'), ('bead', ))
    names = [row.get('bead') or row.where.split(': ')[-1] for row in rows]
    if len(rows) < _LEAST or len(set(names)) < len(names):
        raise ConversionError(
            f'{path}: expected at least {_LEAST} beads with different names, '
            f'found {len(rows)} and {len(set(names))} names')
    return Beads(np.array([row.numbers(('x', 'y', 'z')) for row in rows]),
                 np.full((len(rows), 2), np.nan), names)


def open_images(paths: Sequence[Path], rig: Rig) -> Dict[str, np.ndarray]:
    """Grey images (H, W) float32 of each view.

    Args:
        paths: Files (PNG, TIFF), or a folder of them: named as the views, or
            else in the views' order, those of a folder by their names.
        rig: Whose views they are.

    Raises:
        ConversionError: There are others than those of the views.
    """
    paths = list(paths)
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(p for p in paths[0].iterdir() if p.suffix.lower() in (
            '.png', '.tif', '.tiff'))
    named = {path.stem: path for path in paths}
    if not all(view.name in named for view in rig.views):
        if len(paths) != len(rig):
            raise ConversionError(
                f'--beads-in-images: expected {len(rig)} images, one of each '
                f'view of the rig, found {len(paths)}')
        named = {v.name: path for v, path in zip(rig.views, paths)}
    images = {}
    for view in rig.views:
        path = named[view.name]
        if not path.is_file():
            raise ConversionError(f'{path}: expected an image, found no file')
        image = decode_image(path)
        if image is not None and image.ndim == 3:
            image = image[..., :3].mean(-1)
        if image is None or image.shape != (view.height, view.width):
            raise ConversionError(
                f'{path}: view {view.name}: expected an image of '
                f'{view.width} x {view.height} pixels, found ' + (
                    'none that can be read' if image is None else
                    f'{image.shape[1]} x {image.shape[0]}'))
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise ConversionError(f'{path}: expected finite grey values, '
                                  'found others')
        images[view.name] = image
    return images


def find_beads(images: Dict[str, np.ndarray], rig: Rig, phantom: Beads,
               diameter: float) -> Iterator[Found]:
    """The phantom's beads in the images, of one view after the other.

    Args:
        images: Of each view's name (H, W), grey values in which beads are all
            brighter or all darker than what is round them.
        rig: Not more than some mm and degrees off.
        phantom: The beads.
        diameter: Of a bead (mm).

    Raises:
        ConversionError: A view shows too few of them.
    """
    dark: Optional[bool] = None  # the first view tells
    for view in rig.views:
        tries = [_in_view(images[view.name] * (-1 if d else 1), view, phantom,
                          diameter)
                 for d in ((False, True) if dark is None else (dark, ))]
        best = max(tries, key=lambda f: len(f.beads.names))
        least = max(_LEAST, round(_SHARE * best.expected))
        if len(best.beads.names) < least:
            raise ConversionError(
                f'view {view.name}: expected at least {least} of the '
                f'{best.expected} beads that the rig has in the image, found '
                f'{len(best.beads.names)} among {best.spots} spots: is it the '
                'rig of this image, and --bead-mm right?')
        if dark is None:
            dark = best is tries[1]
        yield best


def _spots(image: np.ndarray, radius: float, most: int) -> np.ndarray:
    """Centres (N, 2) (px) of bright spots, the clearest first."""
    sigma = max(radius / np.sqrt(2), .8)
    answer = -ndimage.gaussian_laplace(image, sigma, mode='nearest')
    peak = ndimage.maximum_filter(answer, size=2 * int(np.ceil(radius)) + 1)
    noise = 1.4826 * np.median(np.abs(answer - np.median(answer)))
    rows, columns = np.nonzero((answer == peak) & (answer > _CLEAR * noise)
                               & (answer > 1e-6 * np.ptp(image)))
    inside = ((rows > 0) & (rows < image.shape[0] - 1) & (columns > 0)
              & (columns < image.shape[1] - 1))
    rows, columns = rows[inside], columns[inside]
    order = np.argsort(-answer[rows, columns], kind='stable')[:most]
    rows, columns = rows[order], columns[order]
    # A paraboloid through 3 x 3, by least squares.
    steps = np.array(list(product((-1, 0, 1), repeat=2)))
    v, u = steps.T
    design = np.column_stack([np.ones(9), u, v, u * u / 2, v * v / 2, u * v])
    near = answer[rows[:, None] + v, columns[:, None] + u]
    _, du, dv, uu, vv, uv = (np.linalg.pinv(design) @ near.T)
    square = np.maximum(uu * vv - uv * uv, 1e-30)
    off = np.stack([uv * dv - vv * du, uv * du - uu * dv], 1) / square[
        :, None]
    return np.stack([columns, rows], 1) + .5 + np.clip(off, -1, 1)


def _in_view(image: np.ndarray, view: View, phantom: Beads, diameter: float
             ) -> Found:
    across = diameter * view.cam2img[0, 0] / abs(view.ct2cam[2, 3])  # px
    spots = _spots(image, across / 2, 4 * len(phantom.names) + 50)
    uv, depth = geometry.project(phantom.points, view.ct2img)
    best = np.zeros((0, 2), int)
    for start in _starts(uv[depth > 0], spots, view):
        pairs = _followed(view, phantom, spots, start)
        if len(pairs) > len(best):
            best = pairs
    if len(best) < _LEAST:
        return Found(view.name, _matched(phantom, spots, best[:0]),
                     int((_inside(uv, view) & (depth > 0)).sum()), 0,
                     len(spots))
    moved = seen_by(view, _matched(phantom, spots, best))
    uv, depth = geometry.project(phantom.points, moved.ct2img)
    shown = _inside(uv, view) & (depth > 0)
    others = cdist(uv, uv[shown])
    merged = (others < _APART * across).sum(1) > 1  # one is itself
    kept = best[~merged[best[:, 0]]]
    return Found(view.name, _matched(phantom, spots, kept), int(shown.sum()),
                 int((merged & shown).sum()), len(spots))


def _inside(uv: np.ndarray, view: View) -> np.ndarray:
    return ((uv > 0) & (uv < [view.width, view.height])).all(1)


def _matched(phantom: Beads, spots: np.ndarray, pairs: np.ndarray) -> Beads:
    """Beads of the phantom at spots; ``pairs`` (N, 2) has rows of both."""
    return Beads(phantom.points[pairs[:, 0]], spots[pairs[:, 1]],
                 [phantom.names[row] for row in pairs[:, 0]])


def _starts(uv: np.ndarray, spots: np.ndarray, view: View
            ) -> List[np.ndarray]:
    """Affine motions (2, 3) of the image that bring many beads to spots."""
    limit = _SHIFT * min(view.width, view.height)
    middle = np.array([view.width, view.height]) / 2
    count = 2 * int(np.ceil(limit / _BIN)) + 1
    edges = (np.arange(count + 1) - count / 2) * _BIN
    voted: List[Tuple[float, np.ndarray]] = []
    for turn, stretch in product(np.radians(_TURNS), _STRETCHES):
        spin = stretch * np.array([[np.cos(turn), -np.sin(turn)],
                                   [np.sin(turn), np.cos(turn)]])
        placed = (uv - middle) @ spin.T + middle
        shifts = (spots[None] - placed[:, None]).reshape(-1, 2)
        votes, *_ = np.histogram2d(shifts[:, 0], shifts[:, 1],
                                   bins=np.stack([edges, edges]))
        votes = ndimage.uniform_filter(votes, 3, mode='constant')
        i, j = np.unravel_index(votes.argmax(), votes.shape)
        shift = (edges[[i, j]] + edges[[i + 1, j + 1]]) / 2
        near = (np.abs(shifts - shift) < 1.5 * _BIN).all(1)
        if near.any():
            shift = np.median(shifts[near], 0)
        voted.append((votes[i, j], np.column_stack(
            [spin, middle + shift - spin @ middle])))
    voted.sort(key=lambda item: -item[0])
    return [motion for _, motion in voted[:_TRIES]]


def _followed(view: View, phantom: Beads, spots: np.ndarray,
              start: np.ndarray) -> np.ndarray:
    """Pairs (N, 2) of beads and spots that one place of the view explains,
    beginning with a motion of the image."""
    if not len(spots):
        return np.zeros((0, 2), int)
    tree = KDTree(spots)
    uv, depth = geometry.project(phantom.points, view.ct2img)
    uv = uv @ start[:, :2].T + start[:, 2]
    gate = 3. * _BIN
    pairs = np.zeros((0, 2), int)
    for _ in range(12):
        near = np.array([i for i in np.flatnonzero(depth > 0)
                         if tree.query(uv[i])[0] < gate], int)
        if len(near) < _LEAST:
            return np.zeros((0, 2), int)
        cost = np.minimum(cdist(uv[near], spots), gate)
        rows, columns = linear_sum_assignment(cost)
        good = cost[rows, columns] < gate
        last, pairs = pairs, np.stack([near[rows], columns], 1)[good]
        if len(pairs) < _LEAST:
            return np.zeros((0, 2), int)
        try:
            moved = seen_by(view, _matched(phantom, spots, pairs))
        except ConversionError:  # the wrong ones
            return np.zeros((0, 2), int)
        uv, depth = geometry.project(phantom.points, moved.ct2img)
        off = np.linalg.norm(uv[pairs[:, 0]] - spots[pairs[:, 1]], axis=1)
        narrow = gate <= _WIDEST
        gate = float(np.clip(5 * np.median(off), _NARROWEST, min(
            gate, _WIDEST if narrow else max(gate / 1.5, _WIDEST))))
        if narrow and np.array_equal(last, pairs):
            break
    return pairs[off < gate]


def write_beads(found: Sequence[Found], path: Path) -> None:
    """The table that :func:`~data_converters.rigs.read_beads` reads (CSV)."""
    with atomic_write(path, 'w') as stream:
        table = csv.writer(stream, lineterminator='\n')
        table.writerow(('view', 'u', 'v', 'x', 'y', 'z', 'bead'))
        for item in found:
            for uv, point, name in zip(item.beads.uv, item.beads.points,
                                       item.beads.names):
                table.writerow([item.view, *(f'{v:.4f}' for v in uv),
                                *(f'{v:.9g}' for v in point), name])


def table_of_found(found: Sequence[Found]) -> str:
    """What the screen shows: of each view the beads that its rig has in the
    image, those over one another, those found, and spots that are none."""
    lines = [f'{"view":12} beads  over one another  found  other spots']
    return '\n'.join(lines + [
        f'{f.view:12} {f.expected:5d} {f.merged:17d} '
        f'{len(f.beads.names):6d} {f.spots - len(f.beads.names):12d}'
        for f in found])
