"""Acquisition geometries as people have them, to ``rig.json``.

Two kinds of table, one row for each view, in the world of
:mod:`projects.core.geometry` (mm, origin at the isocentre):

- cameras: ``width, height`` (px), ``fx, fy, cx, cy`` and perhaps ``skew``
  (px), ``r11`` ... ``r33`` (rotation of world to camera, row by row) and
  ``t1, t2, t3`` (mm), so that camera = R world + t;
- source and detector, as scanners say it: ``width, height`` (px),
  ``source_x, source_y, source_z`` (mm), ``detector_*`` (its centre, mm),
  ``column_*`` and ``row_*`` (steps from a pixel to that in the next column
  and in the next row, mm).

Either may have ``name``; without it views are CAM_00, CAM_01, ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np

from projects.core import geometry
from projects.core.rig import Rig, View

from .scan import ConversionError
from .tables import Row, read_table

_SIZE = ('width', 'height')
_ROTATION = tuple(f'r{i}{j}' for i in '123' for j in '123')
_SHIFT = ('t1', 't2', 't3')
_CAMERA = (*_SIZE, 'fx', 'fy', 'cx', 'cy', *_ROTATION, *_SHIFT)
_VECTORS = tuple(
    tuple(f'{part}_{axis}' for axis in 'xyz')
    for part in ('source', 'detector', 'column', 'row'))
_DETECTOR = (*_SIZE, *(name for names in _VECTORS for name in names))
_BEADS = ('view', 'u', 'v', 'x', 'y', 'z')

__all__ = ['Beads', 'Residuals', 'check_rig', 'read_beads', 'read_rig_table',
           'table_of_residuals']


def read_rig_table(path: Path, pixel_origin: float = 0.) -> Rig:
    """A rig from a table of cameras or of sources and detectors.

    Args:
        path: CSV with a header, or JSON: a list of objects.
        pixel_origin: What the table calls the corner of the first pixel: 0,
            or -0.5 where whole numbers are pixel centres. Only cameras' cx
            and cy depend on it.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    rows = read_table(path, (), ('name', 'skew', *_CAMERA, *_DETECTOR))
    if not rows:
        raise ConversionError(f'{path}: expected one row for each view, found '
                              'none')
    scanner = 'source_x' in rows[0]
    rows = read_table(path, _DETECTOR if scanner else _CAMERA,
                      ('name', ) if scanner else ('name', 'skew'))
    views = [
        (_detector_view if scanner else _camera_view)(
            row, row.get('name') or f'CAM_{i:02d}', pixel_origin)
        for i, row in enumerate(rows)
    ]
    return Rig.from_dict(Rig(views).to_dict(), str(path))


def _detector_view(row: Row, name: str, pixel_origin: float) -> View:
    source, centre, column, down = (
        np.array(row.numbers(names)) for names in _VECTORS)
    size = [row.count(key) for key in _SIZE]
    try:
        return View.from_detector(name, source, centre, column, down, *size)
    except ValueError as error:
        raise ConversionError(f'{row.where}: {error}') from None


def _camera_view(row: Row, name: str, pixel_origin: float) -> View:
    cam2img, ct2cam = np.eye(4), np.eye(4)
    cam2img[0, 0], cam2img[1, 1] = (
        row.number(key, positive=True) for key in ('fx', 'fy'))
    cam2img[:2, 2] = np.array(row.numbers(('cx', 'cy'))) - pixel_origin
    if row.get('skew'):
        cam2img[0, 1] = row.number('skew')
    rotation = np.reshape(row.numbers(_ROTATION), (3, 3))
    # Tables have few digits.
    ct2cam[:3, :3] = geometry.nearest_rotation(rotation)
    off = np.abs(ct2cam[:3, :3] - rotation).max()
    if off > 2e-3 or np.linalg.det(rotation) < 0:
        raise ConversionError(
            f'{row.where}: columns "r11" to "r33": expected a rotation of the '
            'world to the camera (determinant +1), found '
            + (f'entries that are {off:.2g} off one' if off > 2e-3 else
               'a reflection'))
    ct2cam[:3, 3] = row.numbers(_SHIFT)
    return View(name, cam2img, ct2cam, *(row.count(key) for key in _SIZE))


# ----------------------------------------------------------------- calibration
@dataclass
class Residuals:
    """How far beads are seen from where a view's matrices project them.

    Attributes:
        view: Name.
        offsets: (N, 2), seen less projected (px).
    """
    view: str
    offsets: np.ndarray

    @property
    def rms(self) -> float:
        """Root of the mean square distance (px)."""
        return float(np.sqrt((self.offsets**2).sum(1).mean()))

    @property
    def max(self) -> float:
        """Largest distance (px)."""
        return float(np.linalg.norm(self.offsets, axis=1).max())


@dataclass
class Beads:
    """What one view sees of a calibration phantom.

    Attributes:
        points: (N, 3), where its beads are (mm).
        uv: (N, 2), where they are seen (px).
        names: Of the beads, or their rows in the table.
    """
    points: np.ndarray
    uv: np.ndarray
    names: List[str]

    def of(self, rows: np.ndarray) -> 'Beads':
        """Some of them."""
        return Beads(self.points[rows], self.uv[rows],
                     [n for n, kept in zip(self.names, rows) if kept])

    def residuals(self, view: View) -> Residuals:
        """How far they are from where a view projects them."""
        return Residuals(view.name, geometry.reprojection_errors(
            self.points, self.uv, view.ct2img))


def read_beads(path: Path, rig: Optional[Rig] = None,
               pixel_origin: float = 0.) -> Dict[str, Beads]:
    """Beads by view, in the order of a rig or, without one, of the table.

    Args:
        path: Table with a row for each bead in each view: ``view`` (name),
            ``u, v`` (px, where it is seen), ``x, y, z`` (mm, where it is) and
            perhaps ``bead`` (its name).
        rig: All of whose views are there, those without beads, too, and no
            others.
        pixel_origin: See :func:`read_rig_table`; of ``u`` and ``v``.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    rows = read_table(path, _BEADS, ('bead', ))
    if not rows:
        raise ConversionError(f'{path}: expected one row for each bead in '
                              'each view, found none')
    known = [view.name for view in rig.views] if rig else []
    seen: Dict[str, list] = {name: [] for name in known}
    for row in rows:
        if known and row['view'] not in seen:
            raise row.fail('view', f'one of {", ".join(known)}')
        seen.setdefault(row['view'], []).append(
            (row.get('bead') or row.where.split(': ')[-1],
             row.numbers(_BEADS[1:])))
    beads = {}
    for view, found in seen.items():
        table = np.reshape([numbers for _, numbers in found], (-1, 5))
        beads[view] = Beads(table[:, 2:], table[:, :2] - pixel_origin,
                            [name for name, _ in found])
    return beads


def check_rig(path: Path, rig: Rig,
              pixel_origin: float = 0.) -> List[Residuals]:
    """Compare a rig with a calibration phantom.

    Args:
        path, pixel_origin: See :func:`read_beads`.
        rig: Whose matrices are tested.

    Returns:
        list: One of each view of the rig, those without beads, too.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    seen = read_beads(path, rig, pixel_origin)
    return [seen[view.name].residuals(view) for view in rig.views]


def table_of_residuals(residuals: List[Residuals],
                       limit: Optional[float] = None) -> str:
    """What the screen shows: rms, largest and mean residual of each view
    (px); views above the limit, or without beads, are marked."""
    lines = [f'{"view":12} beads    rms    max   mean u, v (px)']
    for r in residuals:
        if len(r.offsets) == 0:
            lines.append(f'{r.view:12}     0      -      -'
                         + ('   NOT MEASURED' if limit is not None else ''))
            continue
        u, v = r.offsets.mean(0)
        mark = limit is not None and r.max > limit
        lines.append(f'{r.view:12} {len(r.offsets):5d} {r.rms:6.3f} '
                     f'{r.max:6.3f}   {u:+.3f}, {v:+.3f}'
                     + (f'   ABOVE {limit:g}' if mark else ''))
    return '\n'.join(lines)
