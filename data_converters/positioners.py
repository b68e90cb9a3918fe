"""Where DICOM says that source and detector were.

Sections are those of DICOM PS3.3 (2024).

- X-Ray angiography and fluoroscopy (C.8.7.5): angles of the detector about
  the patient, those of the first frame and increments; the isocentre is in
  the image's middle, and the image is as if one faced the patient, the head
  up. World: RAS+, origin at the isocentre.
- Enhanced XA and XRF: the same angles of each frame (X-Ray Positioner Macro),
  or those about the isocentre (C.8.19.6.13), and the isocentre's place on the
  detector. The isocentre's axes are turned to RAS+ of a patient who lies on
  the back with the head first.
- Breast Projection X-Ray (C.8.31.6), the views of tomosynthesis: source and
  detector in the isocentre's system, which is the world: x from the gantry's
  left to its right, y from its front to its rear, z up.
"""

import warnings
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from .dicom import plain
from .scan import ConversionError
from .scanners import MOST_VIEWS, Vectors

__all__ = ['read_dicom']

_BREAST = ('1.2.840.10008.5.1.4.1.1.13.1.4',
           '1.2.840.10008.5.1.4.1.1.13.1.5')
_RECONSTRUCTED = ('1.2.840.10008.5.1.4.1.1.13.1.1',
                  '1.2.840.10008.5.1.4.1.1.13.1.2',
                  '1.2.840.10008.5.1.4.1.1.13.1.3')
# The patient's left, front and head in RAS+.
_LEFT, _FRONT, _HEAD = np.array([[-1., 0, 0], [0, 1., 0], [0, 0, 1.]])


def read_dicom(path: Path) -> Vectors:
    """Views of a file with one or more frames, or of a folder's files in the
    order of their Instance Number.

    Raises:
        ConversionError: A file is damaged, or says too little.
    """
    if not path.is_dir():
        return _of_file(path)[1]
    found = []
    for each in sorted(p for p in path.iterdir() if p.is_file()):
        try:
            found.append(_of_file(each))
        except _NotDicom:
            continue
    if not found:
        raise ConversionError(f'{path}: expected DICOM files, found none')
    found.sort(key=lambda item: item[0])
    sizes = {vectors.size for _, vectors in found}
    if len(sizes) > 1:
        raise ConversionError(f'{path}: expected images of one size, found '
                              f'{len(sizes)} sizes')
    return Vectors(
        np.concatenate([v.parts for _, v in found]), sizes.pop(),
        list(dict.fromkeys(n for _, v in found for n in v.notes)))


class _NotDicom(ConversionError):
    """Another file."""


def _of_file(path: Path) -> Tuple[int, Vectors]:
    """Instance number, views."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                data = pydicom.dcmread(path, stop_before_pixels=True)
            except InvalidDicomError:
                raise _NotDicom(f'{path}: expected a DICOM file, found '
                                'another one') from None
            number = data.get('InstanceNumber')
            return int(number or 0), _views(data, path)
    except (ConversionError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged file raises anything
        raise ConversionError(
            f'{path}: is damaged: '
            f'{plain(f"{type(error).__name__} {error}", 80)}') from None


class _Frame:
    """Fields of a frame: its own, those of all frames, or the file's."""

    def __init__(self, data: pydicom.Dataset, row: int, path: Path) -> None:
        self.where = f'{path}: frame {row}'
        own = data.get('PerFrameFunctionalGroupsSequence') or []
        self.groups = [*([own[row]] if row < len(own) else []),
                       *(data.get('SharedFunctionalGroupsSequence') or [])]
        self.data = data

    def get(self, field: str, macro: str = '') -> Any:
        """None where it is missing or empty."""
        items = [item for group in self.groups
                 for item in (group.get(macro) or [])] if macro else []
        for item in [*items, self.data]:
            value = item.get(field)
            if value is not None and value != '':
                return value
        return None

    def numbers(self, field: str, count: int, macro: str = '',
                default: Optional[Sequence[float]] = None) -> np.ndarray:
        """(count,) finite numbers."""
        value = self.get(field, macro)
        if value is None and default is not None:
            return np.array(default, float)
        try:
            numbers = np.array(value, dtype=float).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            numbers = np.empty(0)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise ConversionError(
                f'{self.where}: {field}: expected {count} finite numbers, '
                f'found {"none" if value is None else plain(value, 40)}')
        return numbers

    def number(self, field: str, macro: str = '',
               default: Optional[float] = None) -> float:
        """A finite number."""
        return float(self.numbers(
            field, 1, macro, None if default is None else [default])[0])

    def distance(self, field: str, macro: str = '') -> float:
        """More than 0 (mm)."""
        value = self.number(field, macro)
        if value <= 0:
            raise ConversionError(f'{self.where}: {field}: expected more than '
                                  f'0 mm, found {value:g}')
        return value

    def pitch(self) -> np.ndarray:
        """(2,) between columns, between rows (mm), at the detector."""
        found = self.numbers('ImagerPixelSpacing', 2,
                             'FramePixelDataPropertiesSequence')
        if not (found > 0).all():
            raise ConversionError(f'{self.where}: ImagerPixelSpacing: '
                                  'expected more than 0 mm, found '
                                  f'{found.min():g}')
        return found[::-1]


def _views(data: pydicom.Dataset, path: Path) -> Vectors:
    kind = str(data.get('SOPClassUID') or '')
    if kind in _RECONSTRUCTED:
        raise ConversionError(f'{path}: expected projections, found slices '
                              'that were reconstructed from them')
    first = _Frame(data, 0, path)
    size = np.array([first.number('Columns'), first.number('Rows')])
    frames = first.number('NumberOfFrames', default=1)
    if (size < 1).any() or (size % 1).any() or frames % 1 or not (
            1 <= frames <= MOST_VIEWS):
        raise ConversionError(f'{path}: Columns, Rows, NumberOfFrames: '
                              'expected whole numbers, found '
                              f'{size[0]:g}, {size[1]:g} and {frames:g}')
    notes: List[str] = []
    count = int(frames)
    if kind in _BREAST:
        parts = [_breast(_Frame(data, row, path), size)
                 for row in range(count)]
    else:
        if str(data.get('PositionerType') or '') == 'MAMMOGRAPHIC':
            raise ConversionError(
                f'{path}: expected Breast Projection X-Ray images: others of '
                'mammography do not say where source and detector are')
        parts = [_c_arm(_Frame(data, row, path), row, count, size, notes)
                 for row in range(count)]
    return Vectors(np.stack(parts), (int(size[0]), int(size[1])),
                   list(dict.fromkeys(notes)))


# ----------------------------------------------------------------------- C-arm
def _c_arm(frame: _Frame, row: int, count: int, size: np.ndarray,
           notes: List[str]) -> np.ndarray:
    """(4, 3) of a view."""
    geometry = 'XRayGeometrySequence'
    whole = frame.distance('DistanceSourceToDetector', geometry)
    near = frame.distance(
        'DistanceSourceToIsocenter' if frame.get(
            'DistanceSourceToIsocenter', geometry) is not None
        else 'DistanceSourceToPatient', geometry)
    if not near < whole:
        raise ConversionError(
            f'{frame.where}: DistanceSourceToDetector: expected more than to '
            f'the isocentre, {near:g} mm, found {whole:g}')
    system = 'IsocenterReferenceSystemSequence'
    about = 'PositionerPositionSequence'
    if (frame.get('PositionerPrimaryAngle', about) is None and frame.get(
            'PositionerIsocenterPrimaryAngle', system) is not None):
        turn = frame.number('PositionerIsocenterDetectorRotationAngle',
                            system, 0.)
        if turn:
            raise ConversionError(
                f'{frame.where}: PositionerIsocenterDetectorRotationAngle: '
                f'expected 0: a detector that is turned is not read, found '
                f'{turn:g}')
        angles = [frame.number(f'PositionerIsocenter{kind}Angle', system)
                  for kind in ('Primary', 'Secondary')]
    else:
        angles = [frame.number(f'Positioner{kind}Angle', about)
                  + _increment(frame, kind, row, count)
                  for kind in ('Primary', 'Secondary')]
    away, right, down = _axes(*np.radians(angles))
    right, down = _as_stored(frame, right, down, notes)
    pitch = frame.pitch()
    middle = size / 2 - _isocentre(frame, size, pitch, notes)
    return np.stack([
        -near * away, (whole - near) * away + middle[0] * pitch[0] * right
        + middle[1] * pitch[1] * down, pitch[0] * right, pitch[1] * down])


def _axes(primary: float, secondary: float
          ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the source to the detector, and the image's right and down as one
    sees it who faces the patient: unit vectors (3,)."""
    level = np.cos(primary) * _FRONT + np.sin(primary) * _LEFT
    away = np.cos(secondary) * level + np.sin(secondary) * _HEAD
    right = np.cos(primary) * _LEFT - np.sin(primary) * _FRONT
    down = np.sin(secondary) * level - np.cos(secondary) * _HEAD
    return away, right, down


def _increment(frame: _Frame, kind: str, row: int, count: int) -> float:
    """Of an angle, since the first frame (degrees): C.8.7.5.1.3."""
    field = f'Positioner{kind}AngleIncrement'
    value = frame.get(field)
    if value is None:
        return 0.
    if np.size(value) == 1 and count > 1:
        return frame.number(field) * row
    return float(frame.numbers(field, count)[row])


def _as_stored(frame: _Frame, right: np.ndarray, down: np.ndarray,
               notes: List[str]) -> Tuple[np.ndarray, np.ndarray]:
    """Directions of columns and rows: those that agree best with Patient
    Orientation where the file has it, of the eight that there are."""
    told = frame.get('PatientOrientation')
    sides = dict(L=_LEFT, R=-_LEFT, A=_FRONT, P=-_FRONT, H=_HEAD, F=-_HEAD)
    names = [str(name)[:1] for name in told] if isinstance(
        told, (list, pydicom.multival.MultiValue)) else []
    if len(names) != 2 or not all(name in sides for name in names):
        notes.append('columns are taken to go to the patient\'s left and rows '
                     'to the feet, as one sees them who faces the patient')
        return right, down
    wanted = [sides[name] for name in names]
    choices = [pair for a, b in ((right, down), (down, right))
               for pair in ((a, b), (-a, b), (a, -b), (-a, -b))]
    return max(choices, key=lambda pair: pair[0] @ wanted[0]
               + pair[1] @ wanted[1])


def _isocentre(frame: _Frame, size: np.ndarray, pitch: np.ndarray,
               notes: List[str]) -> np.ndarray:
    """(2,) where it is in the image (px)."""
    if frame.get('PositionOfIsocenterProjection') is None:
        return size / 2
    view = 'FieldOfViewSequence'
    if frame.get('FieldOfViewOrigin', view) is None or frame.get(
            'DetectorElementSpacing') is None or frame.number(
                'FieldOfViewRotation', view, 0.) or frame.get(
                    'FieldOfViewHorizontalFlip', view) == 'YES':
        notes.append('PositionOfIsocenterProjection is not used: its place in '
                     'the image is not told, or the image was turned; the '
                     'isocentre is taken to be in the middle')
        return size / 2
    # Row and column offsets, from the middle and the corner of elements.
    place = (frame.numbers('PositionOfIsocenterProjection', 2) + .5
             - frame.numbers('FieldOfViewOrigin', 2, view))
    return (place * frame.numbers('DetectorElementSpacing', 2))[::-1] / pitch


# ---------------------------------------------------------------------- breast
def _breast(frame: _Frame, size: np.ndarray) -> np.ndarray:
    """(4, 3) of a view of tomosynthesis."""
    system, view = 'IsocenterReferenceSystemSequence', 'FieldOfViewSequence'
    for field, macro in (('FieldOfViewRotation', view),
                         ('DetectorIsocenterSecondaryAngle', system)):
        if frame.number(field, macro, 0.):
            raise ConversionError(f'{frame.where}: {field}: expected 0, found '
                                  f'{frame.number(field, macro):g}')
    if frame.get('FieldOfViewHorizontalFlip', view) == 'YES':
        raise ConversionError(f'{frame.where}: FieldOfViewHorizontalFlip: '
                              'expected NO, found YES')
    if frame.numbers('FieldOfViewOrigin', 2, view, [0, 0]).any():
        raise ConversionError(f'{frame.where}: FieldOfViewOrigin: expected 0 '
                              '0, the whole detector, found another')
    angles = np.radians([
        frame.number(f'XRaySourceIsocenter{kind}Angle', system)
        for kind in ('Primary', 'Secondary')])
    if (np.abs(angles) >= np.pi / 2).any():
        raise ConversionError(f'{frame.where}: XRaySourceIsocenter angles: '
                              'expected a source above the isocentre, found '
                              'it beside or below')
    # Each is between two planes, so that both have their tangent.
    beam = np.array([*np.tan(angles), 1.])
    source = beam / np.linalg.norm(beam) * frame.distance(
        'DistanceSourceToIsocenter', 'XRayGeometrySequence')
    turn = np.radians(frame.number('DetectorIsocenterPrimaryAngle', system))
    cosine, sine = np.cos(turn), np.sin(turn)
    detector = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    place = np.array([frame.number(f'Detector{axis}PositionToIsocenter',
                                   system) for axis in 'XYZ'])
    first = frame.numbers('DetectorActiveAreaTLHCPosition', 3, system)
    along = frame.numbers('DetectorActiveAreaOrientation', 6,
                          system).reshape(2, 3)
    if not np.allclose(along @ along.T, np.eye(2), atol=1e-3):
        raise ConversionError(f'{frame.where}: DetectorActiveAreaOrientation: '
                              'expected cosines of two directions at right '
                              f'angles, found {plain(along.tolist(), 60)}')
    steps = along * frame.pitch()[:, None]
    centre = first + (size - 1) / 2 @ steps
    return np.stack([source, place + detector @ centre,
                     *(detector @ step for step in steps)])
