"""Rigs as other reconstruction software writes them.

- RTK's ``ThreeDCircularProjectionGeometry`` (``.xml``, version 3): RTK's
  documentation of that class has the parameters and their order. A cylindrical
  detector is refused.
- ASTRA's ``cone_vec`` (``.npy``, or ``.json`` with a list of rows): of each
  view the source, the detector's centre and its steps from a pixel to that in
  the next column and in the next row, 12 numbers.
- Those of :mod:`data_converters.scanners`, and what DICOM says
  (:mod:`data_converters.positioners`), which can only be read.

All have mm here, and a world of their own: it becomes the rig's world
unchanged. Where rows are counted upwards, as in all of RTK's projections, a
camera that sees them so would be a mirror. The rig is then that of the images
turned upside down (``numpy.flipud``), and the caller is told so.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from projects.core import geometry
from projects.core.files import (
    DataError,
    atomic_write,
    dump_json,
    load_json,
    read_bytes,
)
from projects.core.rig import Rig, View

from . import positioners, scanners
from .scan import ConversionError
from .scanners import Vectors, finite

__all__ = ['ENDINGS', 'Read', 'read_geometry', 'write_geometry']

# What can be read.
ENDINGS = ('.xml', '.npy', '.json', '.xtekct', '.nxs', '.nex', '.dcm')

# Of a projection; those that a file does not name are 0.
_RTK = ('GantryAngle', 'OutOfPlaneAngle', 'InPlaneAngle',
        'SourceToIsocenterDistance', 'SourceToDetectorDistance',
        'SourceOffsetX', 'SourceOffsetY', 'ProjectionOffsetX',
        'ProjectionOffsetY', 'RadiusCylindricalDetector')
_NEEDED = ('GantryAngle', 'SourceToIsocenterDistance',
           'SourceToDetectorDistance')
# RTK's axes of a detector, x right, y up, z to the source, as the camera's.
_UP = np.diag([1., -1., -1.])
_LARGEST = 100 << 20  # bytes


class Read(NamedTuple):
    """What a file says.

    Attributes:
        rig: The views.
        upside_down: Whether they are those of images upside down.
        notes: Sentences that the user should read.
    """
    rig: Rig
    upside_down: bool
    notes: List[str]


def read_geometry(path: Path, size: Optional[Tuple[int, int]] = None,
                  pixel: Optional[float] = None,
                  first_pixel: Optional[Tuple[float, float]] = None) -> Read:
    """A rig from another program's file, by its ending.

    Args:
        path: With one of :data:`ENDINGS`, or none (DICOM), or a folder of
            DICOM files.
        size: Columns and rows of the images (px), where the file does not say
            them.
        pixel: Edge of a detector's pixel (mm), of RTK's alone.
        first_pixel: Where the middle of RTK's first pixel is on the detector
            (mm), the origin of its projections; default: the detector's
            middle is at 0.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    try:
        vectors = _read(path, size, pixel, first_pixel)
        told = vectors.size or size
        if told is None:
            raise ConversionError(f'{path}: expected --image-size of the '
                                  'views, found none')
        if size and size != told:
            raise ConversionError(
                f'{path}: --image-size: expected {told[0]} {told[1]}, as the '
                f'file says, found {size[0]} {size[1]}')
        views, upside_down = _views(vectors.parts, told, path)
        return Read(Rig.from_dict(Rig(views).to_dict(), str(path)),
                    upside_down, vectors.notes)
    except ConversionError:
        raise
    except (DataError, ValueError) as error:
        text = str(error)
        raise ConversionError(text if text.startswith(str(path))
                              else f'{path}: {text}') from None


def _read(path: Path, size: Optional[Tuple[int, int]],
          pixel: Optional[float], first_pixel: Optional[Tuple[float, float]]
          ) -> Vectors:
    ending = path.suffix.lower()
    if ending == '.xml':
        return _from_rtk(path, size, pixel, first_pixel)
    if ending == '.npy':
        try:
            return Vectors(_parts(np.load(path, allow_pickle=False), path))
        except ConversionError:
            raise
        except Exception as error:  # a damaged one can raise anything
            raise ConversionError(
                f'{path}: is not a readable array: {type(error).__name__}: '
                f'{error}'.split('\n')[0]) from None
    if ending == '.json':
        content = load_json(path)
        return (scanners.read_tigre(content, path)
                if isinstance(content, dict)
                else Vectors(_parts(content, path)))
    if ending == '.xtekct':
        return scanners.read_nikon(path)
    if ending in ('.nxs', '.nex'):
        return scanners.read_cil(path)
    if ending == '.dcm' or not ending or path.is_dir():
        return positioners.read_dicom(path)
    raise ConversionError(f'{path}: expected an ending of '
                          f'{", ".join(ENDINGS)} or none, found '
                          f'"{path.suffix}"')


def write_geometry(rig: Rig, path: Path, sdd: float = 600.) -> str:
    """Write a rig for another program, by the file's ending.

    Args:
        rig: Its pixels have no size of their own.
        path: ``.xml``, ``.npy`` or ``.json``.
        sdd: Source to detector of the first view (mm), which gives them one.

    Returns:
        str: What the program must be told of the images.

    Raises:
        ConversionError: The program cannot say such a rig.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == '.xml':
        return _write_rtk(rig, path, sdd)
    vectors = np.array([
        np.concatenate(view.to_detector(
            sdd * view.cam2img[0, 0] / rig.views[0].cam2img[0, 0]))
        for view in rig.views])
    if path.suffix.lower() == '.json':
        dump_json(vectors.tolist(), path)
    elif path.suffix.lower() == '.npy':
        with atomic_write(path) as stream:
            np.save(stream, vectors)
    else:
        raise ConversionError(f'{path}: expected an ending of .xml, .npy or '
                              f'.json, found "{path.suffix}"')
    return 'rows are counted downwards, as in the images'


# ---------------------------------------------------------------------- ASTRA
def _parts(content: Any, path: Path) -> np.ndarray:
    """(V, 4, 3) of rows of 12 numbers."""
    try:
        vectors = np.asarray(content, dtype=np.float64)
        good = (vectors.ndim == 2 and vectors.shape[1] == 12
                and len(vectors) > 0 and bool(np.isfinite(vectors).all()))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ConversionError(
            f'{path}: expected a row of 12 finite numbers for each view, '
            'found ' + (f'an array {np.shape(content)}' if isinstance(
                content, np.ndarray) else 'others'))
    return vectors.reshape(-1, 4, 3)


def _views(parts: np.ndarray, size: Tuple[int, int], path: Path
           ) -> Tuple[List[View], bool]:
    """Views of :attr:`~data_converters.scanners.Vectors.parts`, and whether
    they are those of images upside down."""
    # Columns x rows points away from the source where rows go down.
    away = np.einsum('vi,vi->v', np.cross(parts[:, 2], parts[:, 3]),
                     parts[:, 1] - parts[:, 0])
    if (away > 0).any() and (away < 0).any():
        raise ConversionError(f'{path}: expected rows that are counted the '
                              'same way in all views, found both')
    upside_down = bool((away < 0).any())
    views = []
    for row, (source, centre, column, down) in enumerate(parts):
        try:
            views.append(View.from_detector(
                f'CAM_{row:02d}', source, centre, column,
                -down if upside_down else down, *size))
        except ValueError as error:
            raise ConversionError(f'{path}: [{row}]: {error}') from None
    return views, upside_down


# ------------------------------------------------------------------------ RTK
def _rtk_rows(path: Path) -> List[Dict[str, float]]:
    """Parameters of each projection."""
    text = read_bytes(path)
    # NUL: two bytes a letter, which would hide them.
    if len(text) > _LARGEST or b'<!ENTITY' in text or b'\0' in text:
        raise ConversionError(f'{path}: expected a geometry of RTK, found '
                              'a file with entities or of more than 100 MB')
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  no entities
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ConversionError(f'{path}: is not XML: {error}') from None
    if root.tag != 'RTKThreeDCircularGeometry':
        raise ConversionError(f'{path}: expected RTKThreeDCircularGeometry, '
                              f'found {root.tag[:40]}')
    # What is the same in all of them stands beside them.
    shared = _numbers(root, str(path), {})
    rows = []
    for number, item in enumerate(root.iter('Projection')):
        where = f'{path}: projection {number}'
        row = _numbers(item, where, shared)
        for key in _NEEDED:
            if key not in row:
                raise ConversionError(f'{where}: field "{key}": expected a '
                                      'number, found none')
        if row.get('RadiusCylindricalDetector'):
            raise ConversionError(
                f'{where}: field "RadiusCylindricalDetector": expected a flat '
                'detector, 0, found '
                f'{row["RadiusCylindricalDetector"]:g}')
        if not 0 < row['SourceToDetectorDistance']:
            raise ConversionError(
                f'{where}: field "SourceToDetectorDistance": expected a '
                'positive number: a parallel beam has no source, found '
                f'{row["SourceToDetectorDistance"]:g}')
        rows.append({key: row.get(key, 0.) for key in _RTK})
    if not rows:
        raise ConversionError(f'{path}: field "Projection": expected at least '
                              'one, found none')
    return rows


def _numbers(item: ElementTree.Element, where: str,
             known: Dict[str, float]) -> Dict[str, float]:
    values = dict(known)
    for key in _RTK:
        text = item.findtext(key)
        if text is not None:
            values[key] = finite(text, f'{where}: field "{key}"')
    return values


def _from_rtk(path: Path, size: Optional[Tuple[int, int]],
              pixel: Optional[float],
              first_pixel: Optional[Tuple[float, float]]) -> Vectors:
    if size is None or pixel is None:
        raise ConversionError(
            f'{path}: --pixel-mm and --image-size: expected the edge of a '
            'pixel of the projections, and their size, found none')
    return Vectors(np.stack([
        _rtk_parts(row, size, pixel, first_pixel) for row in _rtk_rows(path)]))


def _rtk_parts(row: Dict[str, float], size: Tuple[int, int], pixel: float,
               first_pixel: Optional[Tuple[float, float]]) -> np.ndarray:
    """(4, 3) of a view."""
    turn = Rotation.from_euler('yxz', [
        -row['GantryAngle'], -row['OutOfPlaneAngle'],
        -row['InPlaneAngle']], degrees=True).as_matrix()
    source = np.array([row['SourceOffsetX'], row['SourceOffsetY'],
                       row['SourceToIsocenterDistance']])
    centre = np.array([row['ProjectionOffsetX'], row['ProjectionOffsetY'],
                       source[2] - row['SourceToDetectorDistance']])
    if first_pixel is not None:  # else the middle is at 0
        centre[:2] += first_pixel + (np.array(size) - 1) / 2 * pixel
    return np.stack([turn.T @ source, turn.T @ centre, turn[0] * pixel,
                     turn[1] * pixel])


def _write_rtk(rig: Rig, path: Path, sdd: float) -> str:
    first = rig.views[0]
    ratio = first.cam2img[1, 1] / first.cam2img[0, 0]
    pitch = sdd / first.cam2img[0, 0]
    size = np.array([first.width, first.height])
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE RTKGEOMETRY>',
             '<RTKThreeDCircularGeometry version="3">']
    steps = pitch * np.array([1, 1 / ratio])
    for view in rig.views:
        inner = view.cam2img
        if (abs(inner[0, 1]) > 1e-6 * inner[0, 0]
                or abs(inner[1, 1] / inner[0, 0] - ratio) > 1e-6
                or (view.width, view.height) != tuple(size)):
            raise ConversionError(
                f'{path}: view {view.name}: expected detectors of one size '
                'without skew, whose pixels have one shape: RTK has no '
                'others, found one')
        turn = _UP @ view.ct2cam[:3, :3]
        source = turn @ geometry.camera_centres(view.ct2cam)
        if source[2] <= 0:
            raise ConversionError(f'{path}: view {view.name}: expected a '
                                  'source that looks to the origin, as RTK '
                                  'needs it, found one that looks away')
        angles = -Rotation.from_matrix(turn).as_euler('yxz', degrees=True)
        # Off the detector's middle, up.
        foot = (inner[:2, 2] - size / 2) * steps * [1, -1]
        values = dict(zip(_RTK, [
            *angles, source[2], inner[0, 0] * pitch, *source[:2],
            *source[:2] - foot]))
        matrix = _rtk_matrix(values, turn, source)
        lines += ['  <Projection>', *(
            f'    <{key}>{value:.15g}</{key}>'
            for key, value in values.items()), '    <Matrix>', *(
                '      ' + ' '.join(f'{v:.15g}' for v in row)
                for row in matrix), '    </Matrix>', '  </Projection>']
    text = '\n'.join([*lines, '</RTKThreeDCircularGeometry>', ''])
    with atomic_write(path) as stream:
        stream.write(text.encode())
    corner = -(size - 1) / 2 * steps
    return (f'projections: spacing {steps[0]:.10g}, {steps[1]:.10g} mm, '
            f'origin {corner[0]:.10g}, {corner[1]:.10g} mm, images upside '
            'down')


def _rtk_matrix(values: Dict[str, float], turn: np.ndarray,
                source: np.ndarray) -> np.ndarray:
    """World to detector (mm), (3, 4), as RTK checks it."""
    shift = np.eye(4)[:3]
    shift[:, 3] = -source
    sdd = values['SourceToDetectorDistance']
    onto = np.array([[-sdd, 0, 0], [0, -sdd, 0], [0, 0, 1.]])
    onto[0, 2] = source[0] - values['ProjectionOffsetX']
    onto[1, 2] = source[1] - values['ProjectionOffsetY']
    world = np.eye(4)
    world[:3, :3] = turn
    return onto @ shift @ world
