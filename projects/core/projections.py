"""Projections as a detector wrote them: files to line integrals.

What is read: TIFF (8, 16, 32 bits, floating point, several pages), PNG,
DICOM (DX, CR, XA and alike, several frames), raw binary and HDF5 in Data
Exchange's layout [1]_; a file may hold one image or all of an object. What a
file is, its content says, not its name. Images are as large as the rig says,
which is verified before their pixels are read, so that no damaged or hostile
header takes memory.

A detector's counts become line integrals as -ln((image - dark) /
(flat - dark)), see :class:`Reading`.

.. [1] De Carlo et al., "Scientific data exchange: a schema for HDF5-based
   storage of raw and analyzed data", J. Synchrotron Rad. 21 (2014).
"""

import argparse
import logging
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)

import cv2
import numpy as np

from projects.core.files import DataError
from projects.core.rig import View

if TYPE_CHECKING:
    import h5py
    import pydicom

LEVEL = 16 / 65535  # line integral of one grey level of a set's images
DTYPES = tuple(f'{end}{kind}' for kind in (
    'uint8', 'uint16', 'uint32', 'int16', 'int32', 'float32', 'float64')
    for end in ('', '>'))
FLIPS = ('rows', 'columns')
_SUFFIXES = ('.tif', '.tiff', '.png', '.dcm', '.dicom', '.ima', '.h5',
             '.hdf5', '.hdf', '.nxs', '.raw', '.bin', '.img', '.dat')
_MODALITIES = ('DX', 'CR', 'XA', 'RF', 'MG', 'RG', 'IO', 'PX')
_DEFLATED = '1.2.840.10008.1.2.1.99'  # DICOM that may swell when it is read
_LARGEST = 1 << 30  # bytes that one read of a file may take
_PNG = b'\x89PNG\r\n\x1a\n'
_SPREAD = .02  # of the open beam that an object takes: less scatters nothing
_TOP = 16.  # no line integral is larger
_LEAST = .5  # counts: what is less is no signal
# What it says of damaged files is told in one sentence.
logging.getLogger('tifffile').setLevel(logging.CRITICAL)

__all__ = [
    'DTYPES', 'FLIPS', 'LEVEL', 'NotWhole', 'Projections', 'Reading',
    'add_reading_arguments', 'check_new_name', 'decode_image', 'fill_dead',
    'find_objects', 'images_of', 'kind_of', 'object_name',
    'read_projections', 'reading_of', 'sources_of'
]


class NotWhole(DataError):
    """An image is missing, or cannot be read: it may be on its way."""


@dataclass
class Reading:
    """How images become line integrals; picklable, checked when made.

    With ``flat`` (and perhaps ``dark``), or those of the file, gain and
    offset are corrected pixel by pixel; with ``open_field`` the open beam is
    that region's median in each view; else DICOM says what its values are;
    else they are line integrals already, of ``scale`` and ``offset``.

    Attributes:
        dark, flat: Images without a beam and without an object, files or
            folders; several are averaged. ``{object}`` in a name is the
            object's folder, or its file without suffix; ``{view}`` the
            view's name.
        dead: Image that is not 0 where a pixel is dead, likewise.
        open_field: x0, y0, x1, y1 (px of the files): where the beam meets no
            object.
        scale, offset: Line integral of one grey level, and of level 0.
        png_scale: Of PNGs of 16 bits where nothing else is known.
        shape: Of raw binary: rows and columns, or images, rows and columns.
        dtype: Of raw binary, one of :data:`DTYPES`; ``>`` is big-endian.
        skip_bytes: Header of raw binary.
        frames: Which images of an object, from 0; all if empty.
        flip: What is turned round: 'rows' (upside down), 'columns'.
        scatter: Share of the open beam that reaches pixels deep behind the
            object from elsewhere; it is subtracted.
        scatter_width: How far scatter spreads (px), a deviation.
        beam_stop: x0, y0, x1, y1 (px of the files): inside of the shadow of
            something that no beam goes through. Only scatter arrives there,
            which says its share; the place is filled from around.
        max_saturated: Largest share of an image's pixels that may be at the
            detector's last level.

    Raises:
        DataError: Options contradict each other, or are out of range.
    """
    dark: Sequence[str] = ()
    flat: Sequence[str] = ()
    dead: Optional[str] = None
    open_field: Optional[Sequence[int]] = None
    scale: Optional[float] = None
    offset: Optional[float] = None
    png_scale: Optional[float] = None
    shape: Optional[Sequence[int]] = None
    dtype: Optional[str] = None
    skip_bytes: int = 0
    frames: Sequence[int] = ()
    flip: Sequence[str] = ()
    scatter: float = 0.
    scatter_width: float = 20.
    beam_stop: Optional[Sequence[int]] = None
    max_saturated: float = .01

    def __post_init__(self) -> None:
        for name in ('dark', 'flat', 'frames', 'flip'):
            setattr(self, name, list(getattr(self, name) or ()))
        if self.flat and self.open_field:
            raise DataError('--open-field: expected without --flat, found '
                            'both')
        counts = bool(self.flat or self.open_field)
        for name in ('scale', 'offset'):
            value = getattr(self, name)
            if value is not None and counts:
                raise DataError(
                    f'--{name}: expected without --flat and --open-field, '
                    'which make line integrals of counts, found them')
            if value is not None and not np.isfinite(value):
                raise DataError(f'--{name}: expected a finite number, found '
                                f'{value:g}')
        if self.scale == 0:
            raise DataError('--scale: expected a number other than 0, found '
                            '0')
        for name in ('open_field', 'beam_stop'):
            if getattr(self, name) is not None:
                x0, y0, x1, y1 = getattr(self, name)
                if not (0 <= x0 < x1 and 0 <= y0 < y1):
                    raise DataError(
                        f'--{name.replace("_", "-")}: expected x0 < x1 and '
                        f'y0 < y1, none negative, found {x0} {y0} {x1} {y1}')
        if self.beam_stop and (self.scatter or not counts):
            raise DataError(
                '--beam-stop: expected with --flat or --open-field, and '
                'without --scatter, which it measures, found '
                + ('--scatter' if self.scatter else 'neither'))
        if (self.shape is None) != (self.dtype is None):
            raise DataError('--shape, --dtype: expected both or none, found '
                            'one')
        if self.shape is not None and (len(self.shape) not in (2, 3)
                                       or min(self.shape) < 1):
            raise DataError(
                '--shape: expected rows and columns, or images, rows and '
                f'columns, found {" ".join(map(str, self.shape))}')
        if self.skip_bytes < 0 or any(f < 0 for f in self.frames):
            raise DataError('--skip-bytes, --frames: expected no negative '
                            'numbers, found one')
        if not 0 <= self.scatter < 1 or not self.scatter_width > 0:
            raise DataError(
                '--scatter, --scatter-width: expected a share from 0 to 1 '
                f'and pixels, found {self.scatter:g} and '
                f'{self.scatter_width:g}')
        if not 0 <= self.max_saturated <= 1:
            raise DataError('--max-saturated: expected a share from 0 to 1, '
                            f'found {self.max_saturated:g}')


@dataclass
class Projections:
    """Line integrals of an object's views.

    Attributes:
        views: (H, W) float32 for each view of the rig.
        note: What was assumed and done, one line.
        facts: The same in numbers, for records.
    """
    views: List[np.ndarray]
    note: str
    facts: dict = field(default_factory=dict)


@dataclass
class _File:
    """A file's images, none of them read yet.

    Attributes:
        path: The file.
        kind: Of file, for the note.
        count: Images in it.
        shape: Rows and columns.
        read: An image (H, W) by its number.
        top: The detector's last level, where a header says it.
        relation: Of values and the beam: 'LIN', 'LOG', 'OD' or ''.
        sign: -1 where larger values are less beam.
        order: Place among the object's files, where a header says it.
        beside: Readers of 'dark' and 'flat' that the file holds, too.
    """
    path: Path
    kind: str
    count: int
    shape: Tuple[int, int]
    read: Callable[[int], np.ndarray]
    top: Optional[float] = None
    relation: str = ''
    sign: int = 1
    order: Optional[int] = None
    beside: Dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)


# -------------------------------------------------------------------- options
def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how images are read, see :class:`Reading`."""
    group = parser.add_argument_group(
        'how images become line integrals',
        'in names of --dark, --flat and --dead, {object} is an object\'s '
        'folder or its file without suffix, {view} a view\'s name')
    group.add_argument('--dark', nargs='+', metavar='IMAGE', default=[],
                       help='images without a beam, averaged')
    group.add_argument('--flat', nargs='+', metavar='IMAGE', default=[],
                       help='images without an object, averaged')
    group.add_argument('--dead', metavar='IMAGE', help='not 0 where a pixel '
                       'is dead; more are found by themselves')
    group.add_argument('--open-field', nargs=4, type=int,
                       metavar=('X0', 'Y0', 'X1', 'Y1'), help='in place of '
                       '--flat: region (px) where the beam meets no object')
    group.add_argument('--scale', type=float, help='of images that are line '
                       'integrals: that of one grey level (1 for floats)')
    group.add_argument('--offset', type=float,
                       help='line integral of grey level 0; default 0')
    group.add_argument('--shape', nargs='+', type=int, metavar='N',
                       help='of raw binary: rows columns, or images rows '
                       'columns')
    group.add_argument('--dtype', choices=DTYPES, metavar='TYPE',
                       help='of raw binary: ' + ', '.join(DTYPES[::2])
                       + '; ">" before it is big-endian')
    group.add_argument('--skip-bytes', type=int, default=0, metavar='N',
                       help='header of raw binary; default 0')
    group.add_argument('--frames', nargs='+', type=int, default=[],
                       metavar='N', help='which images of an object, from 0, '
                       'one for each view; default: all')
    group.add_argument('--flip', nargs='+', choices=FLIPS, default=[],
                       help='turn images round: rows upside down, columns '
                       'left to right')
    group.add_argument('--scatter', type=float, default=0., metavar='SHARE',
                       help='of the open beam, deep behind the object, to '
                       'subtract; default 0')
    group.add_argument('--scatter-width', type=float, default=20.,
                       metavar='PX', help='how far it spreads; default '
                       '%(default)g')
    group.add_argument('--beam-stop', nargs=4, type=int,
                       metavar=('X0', 'Y0', 'X1', 'Y1'), help='in place of '
                       '--scatter: region (px) in the shadow of a beam stop, '
                       'which says the share')
    group.add_argument('--max-saturated', type=float, default=.01,
                       metavar='SHARE', help='of pixels at the last level; '
                       'images with more are refused; default %(default)g')


def reading_of(args: argparse.Namespace,
               png_scale: Optional[float] = None) -> Reading:
    """What the arguments of :func:`add_reading_arguments` ask for."""
    names = set(vars(Reading())) - {'png_scale'}
    return Reading(png_scale=png_scale,
                   **{name: getattr(args, name) for name in names})


# -------------------------------------------------------------------- objects
def _natural(path: Path) -> list:
    """Order of names, numbers by value."""
    return [(0, int(t), '') if t.isdecimal() else (1, 0, t)
            for t in re.split(r'(\d+)', path.name) if t]


def images_of(folder: Path) -> List[Path]:
    """Files with images of a folder, by their names; DICOM files may have no
    suffix."""
    found = [
        p for p in folder.iterdir()
        if p.is_file() and not p.name.startswith('.')
        and (p.suffix.lower() in _SUFFIXES or kind_of(p) == 'DICOM')
    ]
    return sorted(found, key=_natural)


def find_objects(given: Sequence[Path], num_views: int,
                 reading: Reading) -> Dict[str, List[Path]]:
    """Objects by name, with the folder or files of each.

    A folder with images, a file and a text file (``.txt``) that lists images,
    one a line, are an object each; a folder without images stands for the
    folders in it. As many files as views, of one image each, are one object.

    Raises:
        DataError: Something is not there, or two have one name.
    """
    given = [Path(path) for path in given]
    for path in given:
        if not path.exists():
            raise DataError(f'{path}: --images: expected a folder or images, '
                            'found neither')
    if (1 < len(given) == num_views and all(p.is_file() for p in given)
            and not any(p.suffix == '.txt' for p in given)
            and _open(given[0], reading).count == 1):
        return {object_name(given[0]): given}
    objects: Dict[str, List[Path]] = {}
    for path in given:
        inside = [path]
        if path.is_dir() and not images_of(path):
            inside = sorted((p for p in path.iterdir() if p.is_dir()
                             and not p.name.startswith('.')
                             and images_of(p)), key=_natural)
            if not inside:
                raise DataError(
                    f'{path}: --images: expected images, or folders with '
                    'images, found none')
        for place in inside:
            name = object_name(place)
            check_new_name(place, name, {
                other: places[0] for other, places in objects.items()})
            objects[name] = [place]
    return objects


def check_new_name(place: Path, name: str, others: Dict[str, Path],
                   what: str = 'object') -> None:
    """An object's name must be fit for files, and no other's.

    Args:
        place: Where it lies.
        name: Of the object.
        others: Places of those that are known, by their names.
        what: It is called.

    Raises:
        DataError: It is not.
    """
    if not re.fullmatch(r'\w[\w. +-]*', name):
        raise DataError(
            f'{place}: name: expected letters, digits, "_", "-", "+", "." '
            f'and spaces, found "{_plain(name)}"')
    if name in others:
        raise DataError(
            f'{place}: name: expected one that no other {what} has, found '
            f'"{name}" of {others[name]}, too')


def object_name(path: Path) -> str:
    """Name of a folder, or of a file without its suffix."""
    return path.resolve().name if path.is_dir() else path.stem


def _listed(path: Path) -> List[Path]:
    """Files that a text file names, one a line, beside it."""
    try:
        lines = path.read_text('utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise DataError(f'{path}: expected names of images in UTF-8, found '
                        'other bytes') from None
    return [path.parent / line.strip() for line in lines if line.strip()]


def sources_of(given: Sequence[Path], views: Sequence[View],
               reading: Reading) -> List[Path]:
    """All files that an object is read from, for a digest of them."""
    files = []
    for path in given:
        files += (images_of(path) if path.is_dir() else [
            path, *_listed(path)] if path.suffix == '.txt' else [path])
    for name in ('dark', 'flat', 'dead'):
        for view in views:
            for place in _places(_asked(reading, name), given, view.name):
                files += images_of(place) if place.is_dir() else [place]
    return list(dict.fromkeys(files))


# -------------------------------------------------------------------- reading
def read_projections(given: Sequence[Path], views: Sequence[View],
                     reading: Reading) -> Projections:
    """Line integrals of an object's views.

    Args:
        given: Its folder, its file, or one file for each view. The files of
            a folder belong to the views that they are named as
            (``CAM_00.tif``); if none is, they follow each other as DICOM's
            instance numbers or, without these, as their names say.
        views: Of the rig, as large as the images.
        reading: What is known of them.

    Raises:
        DataError: An image is missing, damaged, of another size, not finite,
            empty or saturated, or nothing says what its values mean.
    """
    places, notes = _frames(given, views, reading)
    for view, (file, _) in zip(views, places):
        if file.shape != (view.height, view.width):
            raise DataError(
                f'{_plain(file.path)}: image size: expected {view.width} x '
                f'{view.height} px as in the rig, found {file.shape[1]} x '
                f'{file.shape[0]}')
    raw = []
    for file, number in places:
        image = _read(file, number)
        _check_image(image, file, number, reading)
        raw.append(image)
    kinds = ' and '.join(sorted({
        f'{file.kind} {image.dtype.name}'
        for (file, _), image in zip(places, raw)}))
    notes.insert(0, f'{len(raw)} views of {kinds}')
    facts: dict = dict(files=kinds)
    integrals = _integrals(raw, places, given, views, reading, notes, facts)
    for row, image in enumerate(integrals):
        for axis, name in enumerate(FLIPS):
            if name in reading.flip:
                image = np.flip(image, axis)
        integrals[row] = np.ascontiguousarray(image, np.float32)
    if reading.flip:
        notes.append(f'{" and ".join(reading.flip)} turned round')
    low = min(float(i.min()) for i in integrals)
    high = max(float(i.max()) for i in integrals)
    facts['line_integrals'] = [round(low, 4), round(high, 4)]
    notes.append(f'line integrals {low:.2f} to {high:.2f}')
    return Projections(integrals, '; '.join(notes), facts)


def _frames(given: Sequence[Path], views: Sequence[View], reading: Reading
            ) -> Tuple[List[Tuple[_File, int]], List[str]]:
    """File and number of each view's image, and what is to be told."""
    given, notes = list(given), []
    if len(given) == 1 and given[0].suffix == '.txt':
        given = _listed(given[0])
        files = [_open(path, reading) for path in given]
    elif len(given) == 1 and given[0].is_dir():
        folder, inside = given[0], images_of(given[0])
        by_name: Dict[str, List[Path]] = {}
        for path in inside:
            by_name.setdefault(path.stem, []).append(path)
        names = [view.name for view in views]
        if set(names) & set(by_name):
            for name in names:
                count = len(by_name.get(name, ()))
                if count != 1:
                    raise NotWhole(
                        f'{folder / name}: image: expected one for each of '
                        f'the {len(views)} views of the rig, found '
                        f'{count or "none"}')
            more = sorted(p.name for p in inside if p.stem not in names)
            if more:
                notes.append(f'{", ".join(map(_plain, more[:5]))}: of no '
                             'view of the rig, not used')
            files = [_open(by_name[name][0], reading) for name in names]
        else:
            files = [_open(path, reading) for path in inside]
            order = {f.order for f in files}
            if None not in order and len(order) == len(files):
                files.sort(key=lambda f: f.order or 0)
    else:
        files = [_open(path, reading) for path in given]
    total = sum(file.count for file in files)
    if reading.frames:
        if max(reading.frames) >= total:
            raise NotWhole(
                f'{_plain(given[0])}: --frames: expected numbers below the '
                f'{total} images, found {max(reading.frames)}')
        chosen: Iterable[int] = reading.frames
    else:
        chosen = range(min(total, len(views) + 1))
    starts = np.cumsum([0] + [file.count for file in files])
    places = []
    for number in chosen:
        row = int(np.searchsorted(starts, number, 'right')) - 1
        places.append((files[row], int(number - starts[row])))
    if len(places) != len(views):
        found = len(places) if reading.frames else total
        raise NotWhole(
            f'{_plain(given[0]) if given else "--images"}: images: expected '
            f'{len(views)}, one for each view of the rig, found {found}')
    return places, notes


def _read(file: _File, number: int) -> np.ndarray:
    """An image (H, W) of real numbers in its own type."""
    with _guarded(file.path, file.kind):
        image = np.asarray(file.read(number))
    if image.shape != file.shape or image.dtype.kind not in 'uif':
        raise DataError(
            f'{_plain(file.path)}: image: expected numbers of {file.shape}, '
            f'found {image.dtype} of {image.shape}')
    return image


def _check_image(image: np.ndarray, file: _File, number: int,
                 reading: Reading) -> None:
    """Refuse what shows nothing.

    Raises:
        DataError: It is not finite, empty or saturated.
    """
    where = f'{_plain(file.path)}: image' + (
        f' {number}' if file.count > 1 else '')
    broken = image.size - np.isfinite(image).sum()
    if broken:
        raise DataError(f'{where}: expected finite numbers, found {broken} '
                        f'of {image.size} pixels that are not')
    low, high = float(image.min()), float(image.max())
    if low == high:
        raise DataError(f'{where}: expected one that shows something, found '
                        f'{low:g} everywhere')
    # A detector of 12 or 14 bits in files of 16 ends below their last level.
    if image.dtype.kind == 'f' and file.top is None:
        return
    elif high == file.top or high in (2.**np.arange(8, 33) - 1):
        last = high
    else:
        return
    share = float((image == last).mean())
    if share > reading.max_saturated:
        raise DataError(
            f'{where}: expected at most {reading.max_saturated:.2%} of the '
            f'pixels at the detector\'s last level, {last:g}, found '
            f'{share:.2%}: it is saturated')


# ----------------------------------------------------------------- correction
def _asked(reading: Reading, name: str) -> Sequence[str]:
    """Patterns of an option, as a list."""
    value = getattr(reading, name)
    return [value] if isinstance(value, str) else value or []


def _places(patterns: Sequence[str], given: Sequence[Path],
            view: str) -> Tuple[Path, ...]:
    """Files or folders that are meant for a view of an object."""
    place = given[0] if given[0].is_dir() else (
        given[0].with_suffix('') if len(given) == 1 else given[0].parent)
    return tuple(
        Path(str(pattern).replace('{object}', str(place))
             .replace('{view}', view)) for pattern in patterns)


def _mean_of(places: Sequence[Path], shape: Tuple[int, int],
             reading: Reading, option: str) -> Tuple[np.ndarray, int]:
    """Mean of all images of some files and folders (H, W), and their number.

    Raises:
        DataError: There is none, or one is of another size, or not finite.
    """
    total, count = np.zeros(shape), 0
    for path in places:
        if not path.exists():
            raise DataError(f'{_plain(path)}: --{option}: expected an image '
                            'or a folder of images, found none')
        for name in images_of(path) if path.is_dir() else [path]:
            file = _open(name, reading)
            if file.shape != shape:
                raise DataError(
                    f'{_plain(name)}: --{option}: image size: expected '
                    f'{shape[1]} x {shape[0]} px as of the views, found '
                    f'{file.shape[1]} x {file.shape[0]}')
            for number in range(file.count):
                total += _read(file, number)
                count += 1
    if not count:
        raise DataError(f'{_plain(places[0])}: --{option}: expected images, '
                        'found none')
    if not np.isfinite(total).all():
        raise DataError(f'{_plain(places[0])}: --{option}: expected finite '
                        'numbers, found others')
    return (total / count).astype(np.float32), count


def _integrals(raw: List[np.ndarray], places: List[Tuple[_File, int]],
               given: Sequence[Path], views: Sequence[View],
               reading: Reading, notes: List[str], facts: dict
               ) -> List[np.ndarray]:
    """Line integrals of raw images; says in ``notes`` and ``facts`` how."""
    detectors: Dict[tuple, List[int]] = {}
    for row, (view, image) in enumerate(zip(views, raw)):
        key = (image.shape, *(_places(_asked(reading, name), given, view.name)
                              for name in ('dark', 'flat', 'dead')))
        detectors.setdefault(key, []).append(row)
    out: List[np.ndarray] = [np.zeros(0)] * len(raw)
    told: Dict[str, float] = dict(dead=0, starved=0)
    ways: Dict[str, None] = {}
    for (shape, *others), rows in detectors.items():
        files = {places[row][0].path: places[row][0] for row in rows}
        beside = next(iter(files.values())).beside
        images = dict(zip(('dark', 'flat', 'dead'), (
            _mean_of(named, shape, reading, option) if named
            else (beside[option](), 0) if option in beside else None
            for option, named in zip(('dark', 'flat', 'dead'), others))))
        if reading.scale is not None or reading.open_field:
            images['flat'] = None
        if reading.scale is not None:
            images['dark'] = None
        stack = np.stack([raw[row] for row in rows]).astype(np.float32)
        kinds = {(places[row][0].relation, places[row][0].sign)
                 for row in rows}
        if len(kinds) > 1:
            raise DataError(
                f'{_plain(given[0])}: PixelIntensityRelationship: expected '
                'one for all views, found several')
        done, way = _corrected(
            stack, images, raw[rows[0]].dtype, places[rows[0]][0], reading,
            told)
        ways[way] = None
        for row, image in zip(rows, done):
            out[row] = image
    notes += ways
    facts['how'] = '; '.join(ways)
    facts['dead_pixels'] = int(told['dead'])
    facts['starved_share'] = round(told['starved'] / len(raw), 6)
    notes.append(f'{facts["dead_pixels"]} dead pixels filled')
    if told['starved']:
        notes.append(f'{facts["starved_share"]:.3%} of the pixels without '
                     'signal')
    return out


def _corrected(stack: np.ndarray, images: dict, dtype: np.dtype,
               file: _File, reading: Reading, told: Dict[str, float]
               ) -> Tuple[np.ndarray, str]:
    """Line integrals (V, H, W) of a detector's views, and how they came
    about."""
    where = _plain(file.path)
    known = images['dead']
    dead = np.zeros(stack.shape[1:], bool) if known is None else (
        known[0] != 0)
    dark, flat = images['dark'], images['flat']
    offset = 0. if dark is None else dark[0]
    how = 'no dark image, 0 assumed' if dark is None else (
        'dark of the file' if not dark[1]
        else f'dark of {_images(dark[1])}')
    if flat is not None or reading.open_field:
        signal = stack - offset
        if flat is not None:
            beam = (flat[0] - offset)[None]
            way = f'-ln((image - dark) / (flat - dark)), {how}, ' + (
                'flat of the file' if not flat[1]
                else f'flat of {_images(flat[1])}')
        else:
            beam = _open_field(signal, reading.open_field or (), where)
            way = (f'-ln((image - dark) / open field), {how}, open field '
                   f'{beam.min():g} to {beam.max():g}')
    elif reading.scale is not None or reading.offset is not None:
        scale = 1. if reading.scale is None else reading.scale
        plus = reading.offset or 0.
        dead |= _stuck(stack)
        told['dead'] += dead.sum()
        return fill_dead(stack * np.float32(scale) + np.float32(plus),
                         dead), (
            f'line integrals of {scale:g} a grey level and {plus:g} at 0')
    elif file.relation == 'OD':
        told['dead'] += dead.sum()
        return fill_dead(stack * np.float32(np.log(10) / 1000), dead), (
            'optical densities, by RescaleType OD')
    elif file.relation == 'LIN':
        signal = stack - offset
        beam = np.percentile(signal, 99.9, (1, 2), keepdims=True)
        way = (f'-ln(image / open beam), {how}; proportional to the beam by '
               'PixelIntensityRelationship'
               + (', larger values are less' if file.sign < 0 else '')
               + f', its brightest 0.1 %, {beam.min():g} to {beam.max():g}, '
               'assumed to be open')
    elif reading.png_scale is not None and file.kind == 'PNG' and (
            dtype == np.uint16):
        return stack * np.float32(reading.png_scale), (
            f'line integrals of {reading.png_scale:.6g} a grey level')
    else:
        raise DataError(
            f'{where}: grey values: expected --flat, --open-field, or '
            '--scale where they are line integrals (1 for floats), found '
            f'{dtype} of unknown meaning' + (
                ', PixelIntensityRelationship LOG without a scale'
                if file.relation == 'LOG' else ''))
    if flat is not None:
        dead |= _dead_in(beam[0])
        if dark is not None:
            dead |= _hot_in(dark[0], beam[0])
    else:
        dead |= _stuck(signal)
    if dead.mean() > .2:
        raise DataError(
            f'{where}: --flat, --dark: expected a beam on most pixels, found '
            f'{dead.mean():.0%} of them dead: are they exchanged, or of '
            'another exposure?')
    if dead.any():
        signal = fill_dead(signal, dead)
        if flat is not None:
            beam = fill_dead(beam, dead)
    beam = np.asarray(beam, np.float32)
    if not (beam > 0).all():
        raise DataError(f'{where}: --flat, --open-field: expected more than '
                        f'the dark image, found {float(beam.min()):g}')
    least = np.float32(_LEAST) if dtype.kind in 'ui' else (
        beam * np.float32(np.exp(-_TOP)))
    starved = float((signal < least).mean())
    if starved > .5:
        raise DataError(
            f'{where}: image: expected more than its dark image, found '
            f'{starved:.0%} of the pixels without signal')
    share = reading.scatter
    if reading.beam_stop:
        signal, share = _behind_stop(signal, beam, reading, where)
        way += ', its share by the beam stop'
    if share or reading.beam_stop:
        signal = _without_scatter(signal, beam, share, reading.scatter_width)
        way += f', scatter of {share:.3g} of the beam taken off'
    integrals = -np.log(np.maximum(signal, least) / beam)
    middle = float(np.median(integrals))
    high = float(np.percentile(integrals, 99.9))
    if middle < -.1:
        raise DataError(
            f'{where}: image: expected darker than the open beam, found a '
            f'median line integral of {middle:.2f}: are --flat and --dark '
            'of this exposure?')
    if high < .01:
        raise DataError(
            f'{where}: image: expected an object, found line integrals up to '
            f'{high:.3f}: it is empty')
    told['dead'] += dead.sum()
    told['starved'] += starved * len(stack)
    return integrals, way


def _images(count: int) -> str:
    return f'{count} image{"s" * (count > 1)}'


def _inside(region: Sequence[int], shape: Tuple[int, ...], option: str,
            where: str) -> Tuple[slice, slice]:
    """Rows and columns of a region (px) of images (H, W)."""
    x0, y0, x1, y1 = region
    height, width = shape
    if x1 > width or y1 > height:
        raise DataError(f'{where}: --{option}: expected within {width} x '
                        f'{height} px, found {x0} {y0} {x1} {y1}')
    return slice(y0, y1), slice(x0, x1)


def _open_field(signal: np.ndarray, region: Sequence[int], where: str
                ) -> np.ndarray:
    """Median of a region of each image, (V, 1, 1)."""
    rows, columns = _inside(region, signal.shape[1:], 'open-field', where)
    return np.median(signal[:, rows, columns], axis=(1, 2), keepdims=True)


def _behind_stop(signal: np.ndarray, beam: np.ndarray, reading: Reading,
                 where: str) -> Tuple[np.ndarray, float]:
    """Signal with a beam stop's shadow filled from around, and the share of
    scatter that was measured in it.

    Raises:
        DataError: The beam goes through it, or the object around makes too
            little scatter to be measured.
    """
    from scipy import ndimage
    rows, columns = _inside(reading.beam_stop or (), signal.shape[1:],
                            'beam-stop', where)
    behind = np.median((signal / beam)[:, rows, columns], axis=(1, 2))
    around = np.zeros(signal.shape[1:], np.uint8)
    # The shadow's edges are between the stop's and what is beside it.
    edge = max(rows.stop - rows.start, columns.stop - columns.start) // 2 + 2
    around[max(rows.start - edge, 0):rows.stop + edge,
           max(columns.start - edge, 0):columns.stop + edge] = 1
    through = signal / beam
    for row, image in enumerate(through):
        ring = image[(ndimage.binary_dilation(around, iterations=2)
                      & (around == 0))]
        through[row][around == 1] = np.median(ring) if ring.size else 1.
    spread = np.stack([_spread(image, reading.scatter_width)
                       for image in through])[:, rows, columns].mean((1, 2))
    known = spread > _SPREAD
    if not known.any():
        raise DataError(
            f'{where}: --beam-stop: expected an object near it that makes '
            f'scatter, found none within --scatter-width '
            f'{reading.scatter_width:g} px')
    share = float(np.median(behind[known] / spread[known]))
    if -.01 < share < 0:  # noise
        share = 0.
    if not 0 <= share < .5:
        raise DataError(
            f'{where}: --beam-stop: expected less than half of the open beam '
            f'as scatter, found a share of {share:.2g}: is the region in the '
            'shadow, and --dark given?')
    return through * beam, share


def _around(image: np.ndarray) -> np.ndarray:
    """Median of each pixel's neighbourhood."""
    return cv2.medianBlur(np.ascontiguousarray(image, np.float32), 5)


def _dead_in(beam: np.ndarray) -> np.ndarray:
    """Pixels that answer the open beam with less than half or more than twice
    of what their neighbours do."""
    near = _around(beam)
    return ~((beam > .5 * near) & (beam < 2 * near))


def _hot_in(dark: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Pixels that are far from their neighbours without a beam."""
    return np.abs(dark - _around(dark)) > .2 * np.abs(_around(beam))


def _stuck(stack: np.ndarray) -> np.ndarray:
    """Pixels that are less than half, or more than twice, of their neighbours
    in all of three views or more."""
    if len(stack) < 3:
        return np.zeros(stack.shape[1:], bool)
    low = high = np.ones(stack.shape[1:], bool)
    spread = float(np.percentile(stack, 99) - np.percentile(stack, 1))
    for image in stack:
        near = _around(image)
        low = low & (image < .5 * near - .05 * spread)
        high = high & (image > 2 * near + .05 * spread)
    return low | high


def fill_dead(images: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Dead pixels get the median of their live neighbours."""
    filled, left = images.copy(), np.argwhere(dead)
    live = np.where(dead, np.nan, images)
    for reach in range(1, max(dead.shape) + 1):
        if not len(left):
            break
        offsets = np.arange(-reach, reach + 1)
        padded = np.pad(live, ((0, 0), (reach, reach), (reach, reach)),
                        constant_values=np.nan)
        near = padded[:, (left[:, :1] + reach + offsets)[:, :, None],
                      (left[:, 1:] + reach + offsets)[:, None]]
        near = near.reshape(len(images), len(left), -1)
        known = ~np.isnan(near[0]).all(1)
        row, column = left[known].T
        filled[:, row, column] = np.nanmedian(near[:, known], axis=2)
        left = left[~known]
    return filled


def _spread(through: np.ndarray, width: float) -> np.ndarray:
    """How much of the open beam the object takes around each pixel (H, W),
    as far as scatter spreads."""
    from scipy import ndimage
    zoom = max(int(width / 4), 1)
    small = cv2.resize(
        1 - np.clip(through, 0, 1), None, fx=1 / zoom, fy=1 / zoom,
        interpolation=cv2.INTER_AREA)
    small = ndimage.gaussian_filter(
        small, width / zoom, mode='constant', truncate=3)
    return cv2.resize(small, through.shape[::-1],
                      interpolation=cv2.INTER_LINEAR)


def _without_scatter(signal: np.ndarray, beam: np.ndarray, share: float,
                     width: float) -> np.ndarray:
    """Signal less the scatter that the object makes: a share of the open
    beam where the object around takes all of it; never less than a
    twentieth of the signal is left."""
    through = signal / beam
    out = np.empty_like(signal)
    for row, image in enumerate(through):
        out[row] = np.maximum(
            signal[row] - np.float32(share) * _spread(image, width)
            * beam[row % len(beam)], signal[row] / 20)
    return out


# ---------------------------------------------------------------------- files
def _plain(text: object, length: int = 200) -> str:
    """Text of a stranger, fit for one line."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= length else (
        f'{text[:length // 2]}...{text[-length // 2:]}')


@contextmanager
def _guarded(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library says of a damaged file is one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except (DataError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        raise DataError(
            f'{_plain(path)}: image: expected the package {error.name}, which '
            f'reads {kind}, found none: install it') from None
    except Exception as error:  # a damaged file raises anything
        raise NotWhole(
            f'{_plain(path)}: image: expected a whole {kind} file, found one '
            f'that cannot be read: {type(error).__name__} '
            f'{_plain(error, 80)}') from None


def kind_of(path: Path) -> str:
    """What a file's first bytes say that it is; '' if nothing.

    Raises:
        NotWhole: It cannot be read.
    """
    try:
        with path.open('rb') as stream:
            start = stream.read(132)
    except OSError as error:
        raise NotWhole(f'{_plain(path)}: cannot be read: {error.strerror}'
                       ) from None
    if start[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
        return 'TIFF'
    if start[:8] == _PNG:
        return 'PNG'
    if start[128:132] == b'DICM':
        return 'DICOM'
    return 'HDF5' if start[:8] == b'\x89HDF\r\n\x1a\n' else ''


def _open(path: Path, reading: Reading) -> _File:
    """A file's header.

    Raises:
        DataError: It is not there, or is none that is known.
    """
    if not path.is_file():
        raise NotWhole(f'{_plain(path)}: image: expected a file, found none')
    kind = kind_of(path)
    if not kind and reading.shape is None:
        raise NotWhole(
            f'{_plain(path)}: image: expected TIFF, PNG, DICOM or HDF5, or '
            '--shape and --dtype for raw binary, found another file')
    kind = kind or 'raw'
    with _guarded(path, kind):
        return _OPENERS[kind](path, reading)


def _open_png(path: Path, reading: Reading) -> _File:
    header = path.read_bytes()[:33]
    if len(header) < 33 or header[12:16] != b'IHDR':
        raise ValueError('there is no header')
    shape = (int.from_bytes(header[20:24], 'big'),
             int.from_bytes(header[16:20], 'big'))
    return _File(path, 'PNG', 1, shape, lambda number: _decoded(path))


def _decoded(path: Path) -> np.ndarray:
    """A PNG's grey values."""
    image = decode_image(path)
    if image is None:
        raise ValueError('it cannot be decoded, or ends before its parts do')
    return _grey(image, path)


def decode_image(path: Path) -> Optional[np.ndarray]:
    """An image as OpenCV reads it; None if it is none, or a PNG with a part
    that says that it is longer than the file: OpenCV would take as much
    memory."""
    try:
        content, place = Path(path).read_bytes(), 8
    except OSError:
        return None
    while content[:8] == _PNG and content[place + 4:place + 8] != b'IEND':
        place += 12 + int.from_bytes(content[place:place + 4], 'big')
        if place >= len(content):
            return None
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8),
                            cv2.IMREAD_UNCHANGED)
    except cv2.error:  # it is empty, or far too large
        return None


def _grey(image: np.ndarray, path: Path) -> np.ndarray:
    """Grey levels that may be stored as colours, with opacity."""
    if image.ndim == 3:
        image, others = image[..., 0], image[..., 1:3]
        if (others != image[..., None]).any():
            raise DataError(f'{_plain(path)}: image: expected grey levels, '
                            'found colours')
    return image


def _open_tiff(path: Path, reading: Reading) -> _File:
    import tifffile
    with tifffile.TiffFile(path) as tiff:
        pages = len(tiff.pages)
        shapes = set()
        for page in tiff.pages:
            page = page.aspage()
            shapes.add((int(page.imagelength), int(page.imagewidth)))
            if page.samplesperpixel != 1:
                raise DataError(f'{_plain(path)}: image: expected grey '
                                f'levels, found {page.samplesperpixel} '
                                'numbers a pixel')
    if len(shapes) != 1:
        raise DataError(f'{_plain(path)}: image: expected pages of one size, '
                        f'found {len(shapes)}')
    return _File(path, 'TIFF', pages, shapes.pop(),
                 lambda number: _tiff_page(path, number))


def _tiff_page(path: Path, number: int) -> np.ndarray:
    """A page; compressed ones by OpenCV, which swells no further than the
    image's size."""
    import tifffile
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[number].aspage()
        size = path.stat().st_size
        if any(start + count > size for start, count in zip(
                page.dataoffsets, page.databytecounts)):
            raise ValueError('it ends before its image does')
        if page.compression == 1:
            if page.size * 8 > _LARGEST or page.is_tiled and (
                    page.tilewidth * page.tilelength > 4 * page.size + 2**20):
                raise ValueError('it is too large')
            return page.asarray(maxworkers=1)
        if page.photometric == 0:
            raise ValueError('compressed with white as 0')
    done, images = cv2.imreadmulti(str(path), number, 1,
                                   flags=cv2.IMREAD_UNCHANGED)
    if not done or len(images) != 1:
        raise ValueError('its compression is not known')
    return images[0]


def _open_raw(path: Path, reading: Reading) -> _File:
    *count, height, width = reading.shape or ()
    number = count[0] if count else 1
    name = reading.dtype or 'uint8'
    dtype = np.dtype(name.lstrip('>')).newbyteorder(
        '>' if name.startswith('>') else '<')
    expected = number * height * width * dtype.itemsize + reading.skip_bytes
    found = path.stat().st_size
    if found != expected:
        raise NotWhole(
            f'{_plain(path)}: size: expected {expected} bytes, as --shape, '
            f'--dtype and --skip-bytes say, found {found}')

    def read(index: int) -> np.ndarray:
        size = height * width
        return np.fromfile(
            path, dtype, size,
            offset=reading.skip_bytes + index * size * dtype.itemsize
        ).reshape(height, width).astype(dtype.newbyteorder('='))

    return _File(path, 'raw binary', number, (height, width), read)


def _open_hdf5(path: Path, reading: Reading) -> _File:
    import h5py
    with h5py.File(path, 'r', locking=False) as stream:
        data = _dataset(stream, 'data', path)
        count, shape = data.shape[0], (data.shape[1], data.shape[2])
        beside: Dict[str, Callable[[], np.ndarray]] = {}
        for option, name in (('dark', 'data_dark'), ('flat', 'data_white')):
            if name in stream['exchange']:
                other = _dataset(stream, name, path)
                if other.shape[1:] != shape or not len(other):
                    raise DataError(
                        f'{_plain(path)}: /exchange/{name}: expected images '
                        f'of {shape}, found {other.shape}')
                beside[option] = partial(_mean_in, path, name)
    return _File(path, 'HDF5', count, shape,
                 lambda number: _slice_of(path, 'data', number),
                 beside=beside)


def _dataset(stream: 'h5py.File', name: str, path: Path) -> 'h5py.Dataset':
    """Of Data Exchange's group; one that lies in this very file.

    Raises:
        DataError: There is none of images, or it leads elsewhere.
    """
    import h5py
    for place in ('exchange', f'exchange/{name}'):
        link = stream.get(place, getlink=True) if place in stream else None
        if not isinstance(link, h5py.HardLink):
            raise DataError(f'{_plain(path)}: /{place}: expected images in '
                            'Data Exchange\'s layout, found none')
    data = stream[f'exchange/{name}']
    if not (isinstance(data, h5py.Dataset) and data.ndim == 3
            and data.dtype.kind in 'uif' and not data.external
            and not data.is_virtual):
        raise DataError(f'{_plain(path)}: /exchange/{name}: expected numbers '
                        'of three dimensions in this file, found others')
    if data.chunks and np.prod(data.chunks, dtype=float) * (
            data.dtype.itemsize) > _LARGEST:
        raise DataError(f'{_plain(path)}: /exchange/{name}: expected chunks '
                        f'below 1 GiB, found {data.chunks}')
    return data


def _slice_of(path: Path, name: str, number: int) -> np.ndarray:
    import h5py
    with h5py.File(path, 'r', locking=False) as stream:
        return _dataset(stream, name, path)[number]


def _mean_in(path: Path, name: str) -> np.ndarray:
    """Mean of a data set's images."""
    import h5py
    with _guarded(path, 'HDF5'), h5py.File(
            path, 'r', locking=False) as stream:
        data = _dataset(stream, name, path)
        total = np.zeros(data.shape[1:])
        for number in range(len(data)):
            total += data[number]
        if not np.isfinite(total).all():
            raise DataError(f'{_plain(path)}: /exchange/{name}: expected '
                            'finite numbers, found others')
        return (total / len(data)).astype(np.float32)


def _header_of(path: Path) -> 'pydicom.Dataset':
    import pydicom
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get('TransferSyntaxUID') == _DEFLATED:
        raise ValueError('it is deflated')
    return pydicom.dcmread(path, defer_size='1 KB')


def _open_dicom(path: Path, reading: Reading) -> _File:
    data = _header_of(path)
    modality = str(data.get('Modality', ''))
    if modality not in _MODALITIES:
        raise DataError(
            f'{_plain(path)}: Modality: expected a projection, as '
            f'{", ".join(_MODALITIES)}, found "{_plain(modality, 20)}"')
    if data.get('SamplesPerPixel', 1) != 1:
        raise DataError(f'{_plain(path)}: SamplesPerPixel: expected 1, found '
                        f'{_plain(data.SamplesPerPixel, 20)}')
    shape = (int(data.Rows), int(data.Columns))
    count = int(data.get('NumberOfFrames') or 1)
    if count < 1 or min(shape) < 1:
        raise ValueError('there are no pixels in it')
    lut = bool(data.get('ModalityLUTSequence'))
    relation, sign = _relation(data, lut)
    top = None
    if not lut:
        bits = int(data.BitsStored)
        top = (2.**(bits - int(data.get('PixelRepresentation', 0))) - 1) * (
            float(data.get('RescaleSlope', 1))) + float(
                data.get('RescaleIntercept', 0))
    order = data.get('InstanceNumber')
    turned = relation == 'LIN' and sign < 0 and reading.scale is None

    def read(number: int) -> np.ndarray:
        image = _dicom_frame(path, number)
        if not turned:
            return image
        last = (np.iinfo(np.uint16).max if top is None else top)
        return (last - image.astype(np.float64)).astype(np.int32)

    return _File(path, 'DICOM', count, shape, read, top, relation,
                 sign, None if order is None else int(order))


def _relation(data: 'pydicom.Dataset', lut: bool) -> Tuple[str, int]:
    """What values are of the beam (DICOM PS3.3, C.8.11.3.1.2), and their
    sign.

    MONOCHROME1 and the VOI LUT are about what is shown, not about the beam.
    A modality LUT of XA takes logarithmic values back to linear ones.
    """
    relation = str(data.get('PixelIntensityRelationship') or '').upper()
    given = data.get('PixelIntensityRelationshipSign')
    sign = -1 if given is not None and int(given) < 0 else 1
    kind = str(data.get('RescaleType') or '').upper()
    if relation == 'LOG' and data.get('Modality') == 'XA' and lut:
        return 'LIN', 1
    if kind == 'OD':
        return 'OD', sign
    if relation not in ('LIN', 'LOG'):
        return '', sign
    return relation, sign


def _dicom_frame(path: Path, number: int) -> np.ndarray:
    """A frame after its modality LUT or rescaling."""
    from pydicom.pixels import apply_modality_lut, iter_pixels
    data = _header_of(path)
    size = int(data.Rows) * int(data.Columns) * 8
    if size > _LARGEST:
        raise ValueError('it is too large')
    image = next(iter(iter_pixels(data, indices=[number])))
    out = np.asarray(apply_modality_lut(image, data))
    return out if (out != np.rint(out)).any() or out.dtype.kind != 'f' else (
        out.astype(np.int64).astype(
            image.dtype if out.min() >= np.iinfo(image.dtype).min
            and out.max() <= np.iinfo(image.dtype).max else np.int32))


_OPENERS: Dict[str, Callable[[Path, Reading], _File]] = dict(
    PNG=_open_png, TIFF=_open_tiff, DICOM=_open_dicom, HDF5=_open_hdf5,
    raw=_open_raw)
