"""Geometries as scanners and reconstruction software leave them.

- TIGRE 2 (``.json``): the fields of its Python ``Geometry`` by their names,
  rows before columns, and ``angles`` (rad).
- Nikon (``.xtekct``) with its ``_ctdata.txt``.
- CIL (``.nxs``): what its ``NEXUSDataWriter`` writes of acquisition data.

Each has a world of its own (mm), which stays: TIGRE's and CIL's have their
axis of rotation along z through the origin.

Each reader gives, of every view, the source, the detector's centre and its
steps from a pixel to that in the next column and in the next row.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from projects.core.files import read_bytes

from .scan import ConversionError

__all__ = ['MOST_VIEWS', 'Vectors', 'finite', 'read_cil', 'read_nikon',
           'read_tigre']

MOST_VIEWS = 100_000
_LARGEST = 100 << 20  # bytes of a text


@dataclass
class Vectors:
    """Views as a file has them.

    Attributes:
        parts: (V, 4, 3) source, detector's centre (the middle of its pixels),
            and steps to the next column and to the next row (mm).
        size: Columns and rows (px), where the file says them.
        notes: Sentences that the user should read.
    """
    parts: np.ndarray
    size: Optional[Tuple[int, int]] = None
    notes: List[str] = field(default_factory=list)


def _numbers(value: Any, shapes: Sequence[tuple], where: str) -> np.ndarray:
    """Finite numbers of one of some shapes."""
    try:
        numbers = np.asarray(value)
        good = (numbers.dtype.kind in 'iuf' and numbers.shape in shapes
                and bool(np.isfinite(numbers).all()))
    except ValueError:  # rows of different lengths
        good = False
    if not good:
        expected = ' or '.join(dict.fromkeys(
            'x'.join(map(str, s)) if s else '1' for s in shapes))
        raise ConversionError(f'{where}: expected {expected} finite numbers, '
                              f'found {value!r:.60}')
    return numbers.astype(np.float64)


def finite(text: str, where: str) -> float:
    """A finite number that is written out.

    Raises:
        ConversionError: It is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ConversionError(f'{where}: expected a finite number, found '
                              f'"{text[:40]}"')
    return value


def _size(numbers: np.ndarray, where: str) -> Tuple[int, int]:
    """Columns and rows."""
    if (numbers < 1).any() or (numbers % 1).any() or numbers.max() > 1e6:
        raise ConversionError(f'{where}: expected whole numbers of pixels, '
                              f'found {numbers.tolist()}')
    return int(numbers[0]), int(numbers[1])


def _positive(numbers: np.ndarray, where: str) -> np.ndarray:
    if not (numbers > 0).all():
        raise ConversionError(f'{where}: expected more than 0, found '
                              f'{numbers.min():g}')
    return numbers


# ---------------------------------------------------------------------- TIGRE
def read_tigre(content: dict, path: Path) -> Vectors:
    """Views of TIGRE's fields.

    At angle 0 the source is on +x and the detector behind the origin; columns
    go along +y and rows up, along +z. Both are turned about z, y and z by
    ``angles`` (rad), the detector before about its own x, y and z by
    ``rotDetector``; ``COR`` shifts both across. ``offOrigin`` moves TIGRE's
    volume alone, not the axis of rotation, which is the rig's origin.

    Args:
        content: The fields, those of all views or of each.
        path: Of the file, for errors.

    Raises:
        ConversionError: A field is missing or not as expected.
    """
    def read(key: str, *shapes: tuple, default: Any = None) -> np.ndarray:
        value = content.get(key, default)
        if value is None:
            raise ConversionError(f'{path}: field "{key}": expected it among '
                                  'those of TIGRE\'s geometry, found none')
        return _numbers(value, shapes, f'{path}: field "{key}"')

    if content.get('mode') not in (None, 'cone'):
        raise ConversionError(f'{path}: field "mode": expected "cone": a '
                              'parallel beam has no source, found '
                              f'{content["mode"]!r:.40}')
    try:
        count = len(content.get('angles', ()))
    except TypeError:
        count = 0
    if not 1 <= count <= MOST_VIEWS:
        raise ConversionError(f'{path}: field "angles": expected one of each '
                              f'view (rad), 1 to {MOST_VIEWS}, found '
                              f'{count}')
    angles = read('angles', (count, ), (count, 1), (count, 3))
    turns = np.zeros((count, 3))
    turns[:, :angles.size // count] = angles.reshape(count, -1)

    def each(key: str, width: int, default: Any = None) -> np.ndarray:
        """Values of each view, (V, width)."""
        own = (count, ) if width == 1 else (count, width)
        alone = ((), ) if width == 1 else ()
        found = read(key, *alone, (width, ), own, (count, width),
                     default=default)
        return np.broadcast_to(found.reshape(-1, width), (count, width))

    source, whole = (_positive(each(key, 1)[:, 0], f'{path}: field "{key}"')
                     for key in ('DSO', 'DSD'))
    size = _size(read('nDetector', (2, ))[::-1], f'{path}: field "nDetector"')
    pitch = _positive(read('dDetector', (2, )), f'{path}: field "dDetector"')
    extent = pitch * size[::-1]
    told = read('sDetector', (2, ), default=extent)
    if not np.allclose(told, extent, rtol=1e-4):
        raise ConversionError(
            f'{path}: field "sDetector": expected nDetector x dDetector, '
            f'{extent[0]:g} and {extent[1]:g} mm, found {told[0]:g} and '
            f'{told[1]:g}')
    offset = each('offDetector', 2, [0., 0.])
    tilt = Rotation.from_euler('ZYX', each('rotDetector', 3, [0.] * 3)[
        :, ::-1]).as_matrix()
    cor = each('COR', 1, 0.)[:, 0]
    gantry = Rotation.from_euler('ZYZ', turns).as_matrix()
    parts = np.zeros((count, 4, 3))
    parts[:, 0, 0] = source
    parts[:, 1, 0] = source - whole
    parts[:, 1, 1:] = offset[:, ::-1]
    parts[:, 2] = tilt[:, :, 1] * pitch[1]
    parts[:, 3] = tilt[:, :, 2] * pitch[0]
    parts = np.einsum('vij,vpj->vpi', gantry, parts)
    across = np.stack([-np.sin(turns[:, 0]), np.cos(turns[:, 0]),
                       np.zeros(count)], 1)
    parts[:, :2] += (cor[:, None] * across)[:, None]
    return Vectors(parts, size)


# ------------------------------------------------------------------------ CIL
def _about_axis(source: np.ndarray, detector: np.ndarray, right: np.ndarray,
                up: np.ndarray, place: np.ndarray, axis: np.ndarray,
                angles: np.ndarray, where: str) -> np.ndarray:
    """(V, 4, 3) of what turns about an axis, in CIL's frame.

    That has the axis along z through the origin and, at angle 0, the beam's
    direction in the plane of y and z. The object turns by ``angles``
    (degrees) against the clock seen from +z, so that source and detector turn
    the other way.

    Args:
        source, detector: (3,) places, the detector's of its centre (mm).
        right, up: (3,) its steps (mm).
        place, axis: (3,) of the axis, a point (mm) and a direction.
        angles: (V,).
        where: For errors.
    """
    length = np.linalg.norm(axis)
    if not length > 1e-9:
        raise ConversionError(f'{where}: direction of the axis of rotation: '
                              'expected one, found 0 0 0')
    axis = axis / length
    normal = np.cross(axis, [0, 0, 1])
    sine = np.linalg.norm(normal)
    normal = normal / sine if sine > 1e-9 else np.array([1., 0, 0])
    align = Rotation.from_rotvec(normal * np.arctan2(sine, axis[2]))
    parts = align.apply(np.stack([source - place, detector - place, right,
                                  up]))
    beam = parts[1] - parts[0]
    upright = Rotation.from_rotvec([0, 0, np.arctan2(beam[0], beam[1])])
    parts = upright.apply(parts)
    turns = Rotation.from_euler('z', -angles[:, None],
                                degrees=True).as_matrix()
    return np.einsum('vij,pj->vpi', turns, parts)


def read_cil(path: Path) -> Vectors:
    """Views of acquisition data that CIL's ``NEXUSDataWriter`` wrote.

    The panel's origin says where the first pixel is: ``bottom-left`` where
    columns and rows go along the detector's directions. Distances are mm.

    Raises:
        ConversionError: The file is damaged or another one.
    """
    import h5py  # takes a while to load
    try:
        with h5py.File(path, 'r') as file:
            return _cil_vectors(file['entry1/tomo_entry'], path)
    except ConversionError:
        raise
    except Exception as error:  # a damaged one can raise anything
        raise ConversionError(
            f'{path}: expected acquisition data of CIL, NEXUSDataWriter\'s, '
            f'found none that can be read: {type(error).__name__}: '
            f'{error}'.split('\n')[0]) from None


def _dataset(data: Any, where: str, count: Optional[int] = None
             ) -> np.ndarray:
    """A row of numbers, of any length without ``count``; what is larger, or
    no number, is not read."""
    if data.ndim != 1 or data.dtype.kind not in 'iuf' or not (
            data.size == count if count else 1 <= data.size <= MOST_VIEWS):
        raise ConversionError(
            f'{where}: expected {count or f"1 to {MOST_VIEWS}"} numbers, '
            f'found shape {data.shape} of {data.dtype}'[:300])
    return _numbers(data[()], (data.shape, ), where)


def _cil_vectors(entry: Any, path: Path) -> Vectors:
    config, data = entry['config'], entry['data/data'].attrs

    def attribute(key: str, default: str) -> str:
        value = data.get(key, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def vector(key: str, old: str = '') -> np.ndarray:
        key = key if key in config or not old else old
        where = f'{path}: config/{key}'
        if key not in config:
            raise ConversionError(f'{where}: expected it of a cone beam in '
                                  '3D, found none')
        return _dataset(config[key], where, 3)

    kind = attribute('geometry', 'cone'), attribute('dimension', '3D')
    if kind != ('cone', '3D'):
        raise ConversionError(f'{path}: geometry: expected a cone beam in 3D, '
                              f'found {kind[0][:20]}, {kind[1][:20]}')
    right = vector('detector/direction_x', 'detector/direction_row')
    up = vector('detector/direction_y', 'detector/direction_col')
    lengths = np.linalg.norm([right, up], axis=1)
    if not (lengths > 1e-9).all() or abs(right @ up) > 1e-3 * lengths.prod():
        raise ConversionError(
            f'{path}: config/detector: expected two directions at right '
            f'angles, found {right.tolist()} and {up.tolist()}')
    numbers = [_numbers(data.get(f'{name}_{axis}'), ((), ),
                        f'{path}: {name}_{axis}') for name in (
                            'num_pixels', 'pixel_size') for axis in 'hv']
    size = _size(np.array(numbers[:2]), f'{path}: num_pixels_h, _v')
    pitch = _positive(np.array(numbers[2:]), f'{path}: pixel_size_h, _v')
    origin = attribute('panel_origin', 'bottom-left')
    if origin not in ('bottom-left', 'bottom-right', 'top-left', 'top-right'):
        raise ConversionError(f'{path}: panel_origin: expected a corner as '
                              f'"bottom-left", found "{origin[:40]}"')
    angles = config['angles']
    unit = angles.attrs.get('angle_unit', 'degree')
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    if unit not in ('degree', 'radian'):
        raise ConversionError(f'{path}: angle_unit: expected degree or '
                              f'radian, found "{unit[:40]}"')
    degrees = _dataset(angles, f'{path}: config/angles') + _numbers(
        angles.attrs.get('initial_angle', 0.), ((), ),
        f'{path}: initial_angle')
    return Vectors(_about_axis(
        vector('source/position'), vector('detector/position'),
        right / lengths[0] * pitch[0] * (-1 if 'right' in origin else 1),
        up / lengths[1] * pitch[1] * (-1 if 'top' in origin else 1),
        vector('rotation_axis/position'), vector('rotation_axis/direction'),
        np.degrees(degrees) if unit == 'radian' else degrees, str(path)),
        size)


# ---------------------------------------------------------------------- Nikon
_NIKON_NEEDED = ('SrcToObject', 'SrcToDetector', 'DetectorPixelsX',
                 'DetectorPixelsY', 'DetectorPixelSizeX',
                 'DetectorPixelSizeY', 'Projections')
_NIKON = (*_NIKON_NEEDED, 'InitialAngle', 'AngularStep', 'ObjectOffsetX',
          'ObjectRoll', 'ObjectTilt', 'CentreOfRotationTop',
          'CentreOfRotationBottom', 'DetectorOffsetX', 'DetectorOffsetY')


def read_nikon(path: Path) -> Vectors:
    """Views of a Nikon (X-Tek) scan, in the world of CIL's reader.

    Seen from the source, with the axis of rotation upright, columns go to the
    left and rows down. At angle 0 the beam goes along +y; the object turns by
    180 degrees less ``InitialAngle`` and less the angle of each view. Those
    are in ``_ctdata.txt`` or ``NAME_ctdata.txt`` beside the file, as measured,
    or else multiples of ``AngularStep``. Where the axis is off the beam, is
    said by ``ObjectOffsetX`` (mm at the axis), ``ObjectRoll`` and
    ``ObjectTilt`` (degrees), or, by older files, by ``CentreOfRotationTop``
    and ``Bottom`` (mm at the detector).

    Raises:
        ConversionError: A file or a value is not as expected.
    """
    values = _nikon_values(path)
    for key in _NIKON_NEEDED:
        if key not in values:
            raise ConversionError(f'{path}: field "{key}": expected a number, '
                                  'found none')
        _positive(np.array(values[key]), f'{path}: field "{key}"')
    size = _size(np.array([values['DetectorPixelsX'],
                           values['DetectorPixelsY']]),
                 f'{path}: fields "DetectorPixelsX", "Y"')
    count = values['Projections']
    if count % 1 or count > MOST_VIEWS:
        raise ConversionError(f'{path}: field "Projections": expected a whole '
                              f'number up to {MOST_VIEWS}, found {count:g}')
    notes: List[str] = []
    angles = _nikon_angles(path, values, int(count), notes)
    for key in ('DetectorOffsetX', 'DetectorOffsetY'):
        if values.get(key):
            notes.append(f'field "{key}", {values[key]:g}, is not used: what '
                         'it means is not documented')
    near, far = values['SrcToObject'], values['SrcToDetector']
    top, bottom = (values.get(f'CentreOfRotation{end}', 0.)
                   for end in ('Top', 'Bottom'))
    offset = values.get('ObjectOffsetX', (top + bottom) / 2 * near / far)
    roll = (np.radians(values['ObjectRoll']) if 'ObjectRoll' in values else
            -np.arctan2(top - bottom, size[1] * values['DetectorPixelSizeY']))
    tilt = -np.radians(values.get('ObjectTilt', 0.))
    axis = Rotation.from_euler('XY', [tilt, roll]).apply([0, 0, 1])
    return Vectors(_about_axis(
        np.zeros(3), np.array([0, far, 0]),
        np.array([-values['DetectorPixelSizeX'], 0, 0]),
        np.array([0, 0, -values['DetectorPixelSizeY']]),
        np.array([-offset, near, 0]), axis,
        180 - values.get('InitialAngle', 0.) - angles, str(path)),
        size, notes)


def _text(path: Path) -> str:
    content = read_bytes(path)
    if len(content) > _LARGEST:
        raise ConversionError(f'{path}: expected at most 100 MB, found '
                              f'{len(content)} bytes')
    return content.decode('utf-8', errors='replace')


def _nikon_values(path: Path) -> Dict[str, float]:
    values: Dict[str, float] = {}
    for line in _text(path).splitlines():
        key, found, text = (part.strip() for part in line.partition('='))
        if found and key == 'Units' and text.lower() != 'mm':
            raise ConversionError(f'{path}: field "Units": expected mm, found '
                                  f'"{text[:40]}"')
        if not found or key not in _NIKON or not text:
            continue
        values[key] = finite(text, f'{path}: field "{key}"')
    return values


def _nikon_angles(path: Path, values: Dict[str, float], count: int,
                  notes: List[str]) -> np.ndarray:
    """(V,) degrees after the initial angle."""
    steps = values.get('AngularStep')
    even = None if steps is None else steps * np.arange(count)
    for name in (f'{path.stem}_ctdata.txt', '_ctdata.txt'):
        table = path.parent / name
        if table.is_file():
            break
    else:
        if even is None:
            raise ConversionError(f'{path}: field "AngularStep": expected a '
                                  f'number, or {path.stem}_ctdata.txt beside '
                                  'the file, found neither')
        return even
    angles = []
    for number, line in enumerate(_text(table).splitlines()):
        cells = line.replace(',', ' ').split()
        # Three lines of header; a row has number, angle and time.
        if number < 3 or not cells:
            continue
        try:
            angles.append(float(cells[1]))
        except (IndexError, ValueError):
            angles.append(np.nan)
        if not np.isfinite(angles[-1]):
            raise ConversionError(
                f'{table}: row {number + 1}: expected number, angle '
                f'(degrees) and time, found "{line[:40]}"')
    if len(angles) != count:
        raise ConversionError(f'{table}: expected {count} angles, one of each '
                              f'of the projections of {path.name}, found '
                              f'{len(angles)}')
    note = f'angles are those of {table.name}'
    if even is not None:
        off = np.abs(np.array(angles) - even).max()
        note += f', at most {off:.4g} degrees off multiples of AngularStep'
    notes.append(note)
    return np.array(angles)
