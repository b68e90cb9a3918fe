"""One CT series read from DICOM files, mended where that is safe.

Nothing in a file is believed until it agrees with the other slices and with
the positions that the caller expects. What can be mended without guessing is
mended and written down in a sentence; everything else is refused in one.

**Plausible Hounsfield units.** Rescaling is believed if the result looks like
a chest: of the pixels that are not padding, at least 5 % are air or lung
(below -500 HU), at least 5 % are soft tissue (-200 to 200 HU), there is more
soft tissue than anything denser, and at most 1 % lie above 4000 HU, where
there is only metal. A wrong intercept moves one of the two modes out of its
range, a wrong slope or an inversion both. Padding outside the field of view
(-1500 HU or less, as the usual -2000, or PixelPaddingValue) does not count,
and must leave 5 % of the pixels.

Lengths are mm, positions DICOM's LPS patient frame.
"""

import os
import stat
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import (
    Collection,
    Dict,
    Iterator,
    List,
    Optional,
    Tuple,
    Union,
    cast,
)

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from . import gdcm
from .scan import ConversionError

# Slice positions may differ from the expected ones by this (mm).
_POSITION = .01
# Of a direction's cosines: 0.25 mm at the edge of a large image.
_COSINE = 1e-3
# Steps that differ by more than this share of their mean are uneven.
_UNEVEN = .05
# What may be interpolated: slices in a row, and their extent (mm).
_MOST_SLICES, _MOST_EXTENT = 2, 5.
_MOST_PIXELS = 4096  # per side; CT has 512, seldom 1024 or 2048
_DEFERRED = 65536  # elements as long (bytes) are read when they are needed
_ENHANCED = ('1.2.840.10008.5.1.4.1.1.2.1', '1.2.840.10008.5.1.4.1.1.2.2')

__all__ = ['Image', 'Series', 'files_below', 'list_series', 'plain',
           'read_image', 'read_series']


@dataclass
class Series:
    """A CT volume on an even grid.

    Attributes:
        values: (columns, rows, slices) float32 HU.
        index2lps: (4, 4), voxel index to the patient frame (mm).
        heights: (slices,) z of the slices (mm), ascending.
        nearest: (slices,) which of the expected positions is nearest to each
            slice: 0, 1, 2, ... unless they were uneven.
        frame_uid: Frame of reference; '' where there is none.
        repairs: What was wrong and what was done, one sentence each.
    """
    values: np.ndarray
    index2lps: np.ndarray
    heights: np.ndarray
    nearest: np.ndarray
    frame_uid: str
    repairs: List[str]


@dataclass
class Image:
    """A plain X-ray image, bright where much is absorbed.

    Attributes:
        values: (H, W) uint16, the range of its bits stretched to 16.
        spacing: Edge of a pixel along rows and columns (mm), (2,); None where
            the file does not say it.
        inverted: Whether it was stored as MONOCHROME1, dark where this is
            bright.
    """
    values: np.ndarray
    spacing: Optional[np.ndarray]
    inverted: bool


class _Unreadable(Exception):
    """A file cannot be used; the message says why, without its name."""


@dataclass
class _Slice:
    """One file's header; numbers are finite, None is missing."""
    path: str
    data: Optional[pydicom.Dataset]  # None once the pixels are read
    size: Tuple[int, int]  # rows, columns
    spacing: np.ndarray  # between rows, between columns
    orientation: np.ndarray
    position: np.ndarray
    slope: Optional[float]
    intercept: Optional[float]
    padding: float  # NaN where there is none
    top: float  # of MONOCHROME1: what 0 is inverted to; else NaN
    frame_uid: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def plain(text, length: int = 160) -> str:
    """Text of a stranger, as a name of a file, fit for one line."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    if len(text) > length:
        text = f'{text[:length // 2]}...{text[-length // 2:]}'
    return text


def _refusal(where, field: str, expected: str, found) -> ConversionError:
    return ConversionError(f'{plain(where)}: {field}: expected {expected}, '
                           f'found {plain(found)}')


# --------------------------------------------------------------------- files
def _walk(folder: Union[str, Path]) -> Iterator[str]:
    """Files below a folder; hidden ones are left out, links to folders are
    not followed (they may lead in circles, or anywhere).

    Raises:
        ConversionError: A folder cannot be read.
    """
    pending = [str(folder)]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(place) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                if entry.name.startswith('.'):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry.path
        except OSError as error:
            raise _refusal(place, 'folder', 'one that can be read',
                           error.strerror) from None


def _open(path: str) -> Optional[pydicom.Dataset]:
    """A DICOM file without what is large in it; None for any other file.

    Raises:
        ConversionError: Reading the file is not permitted.
        _Unreadable: It is damaged, or named *.dcm and is not DICOM.
    """
    claims = path.lower().endswith('.dcm')
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe never ends
            raise InvalidDicomError
        return pydicom.dcmread(path, defer_size=_DEFERRED)
    except PermissionError as error:
        raise _refusal(path, 'file', 'one that can be read',
                       error.strerror) from None
    except (InvalidDicomError, FileNotFoundError):  # or a broken link
        if claims:
            raise _Unreadable('is not DICOM') from None
        return None
    except Exception as error:  # a damaged file raises anything
        raise _Unreadable(f'is damaged: {_reason(error)}') from None


def _reason(error: Exception) -> str:
    return plain(f'{type(error).__name__} {error}', 80)


def _get(data: pydicom.Dataset, field: str):
    """A header's value; None where it is missing or empty."""
    try:
        value = data.get(field)
    except Exception as error:  # of its conversion
        raise _Unreadable(f'{field} is damaged: {_reason(error)}') from None
    return None if value is None or value == '' else value


def _numbers(data: pydicom.Dataset, field: str, count: int) -> np.ndarray:
    value = _get(data, field)
    if value is None:
        raise _Unreadable(f'{field} is missing')
    try:
        numbers = np.array(value, dtype=float).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _Unreadable(f'{field} is {plain(value, 40)}')
    return numbers


def _text(data: pydicom.Dataset, field: str) -> str:
    value = _get(data, field)
    return '' if value is None else str(value).strip()


def list_series(folder: Union[str, Path]) -> Iterator[str]:
    """SeriesInstanceUID of each DICOM file below a folder, '' where it has
    none.

    Raises:
        ConversionError: A file or folder cannot be read.
    """
    for path in _walk(folder):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                data = _open(path)
                if data is None:
                    continue
                found = _text(data, 'SeriesInstanceUID')
            except _Unreadable:
                continue
        yield found


def files_below(folder: Union[str, Path]) -> List[Path]:
    """Files named ``*.dcm`` below a folder, in order of their paths.

    Raises:
        ConversionError: A folder cannot be read.
    """
    return sorted(Path(path) for path in _walk(folder)
                  if path.lower().endswith('.dcm'))


def read_image(path: Union[str, Path], modality: str) -> Image:
    """One image of one file, as mammograms and their masks are.

    Args:
        path: Of the file.
        modality: That it must have.

    Raises:
        ConversionError: It is not DICOM, damaged, of another modality, or has
            several frames, colours or values below 0.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # pydicom tells every oddity
        try:
            return _read_image(str(path), modality)
        except _Unreadable as error:
            raise ConversionError(f'{plain(path)}: {error}') from None


def _read_image(path: str, modality: str) -> Image:
    data = _open(path)
    if data is None:
        raise _Unreadable('is not DICOM')
    for field, known in dict(
            Modality=('', modality), NumberOfFrames=('', '0', '1'),
            PhotometricInterpretation=('MONOCHROME1', 'MONOCHROME2'),
            PixelRepresentation=('', '0')).items():
        if _text(data, field) not in known:
            raise _refusal(path, field, ' or '.join(filter(None, known)),
                           _text(data, field) or 'none')
    rows, columns, bits = (int(_numbers(data, field, 1)[0])
                           for field in ('Rows', 'Columns', 'BitsStored'))
    if not 1 <= bits <= 16:
        raise _refusal(path, 'BitsStored', '1 to 16', bits)
    spacing = None
    for field in ('PixelSpacing', 'ImagerPixelSpacing'):
        if spacing is None and _get(data, field) is not None:
            down, across = _numbers(data, field, 2)
            if not (down > 0 and across > 0):
                raise _refusal(path, field, 'positive numbers',
                               [down, across])
            spacing = np.array([across, down])
    inverted = _text(data, 'PhotometricInterpretation') == 'MONOCHROME1'
    values = _stored(path, data, (rows, columns))
    top = 2**bits - 1
    values = values.astype(np.float32).clip(0, top)
    if inverted:
        values = top - values
    values *= 65535 / top
    return Image(np.rint(values).astype(np.uint16), spacing, inverted)


def _rescale(data: pydicom.Dataset, path: str, field: str
             ) -> Optional[float]:
    try:
        value = None if _get(data, field) is None else float(
            _numbers(data, field, 1)[0])
    except _Unreadable as error:
        raise ConversionError(
            f'{plain(path)}: {field}: expected a number, found that it '
            f'{error}') from None
    if value == 0 and field == 'RescaleSlope':
        raise _refusal(path, field, 'a number other than 0', value)
    return value


def _header(path: str, data: pydicom.Dataset) -> _Slice:
    """What a file says of its slice.

    Raises:
        ConversionError: It is of a kind that is not read at all.
        _Unreadable: It does not say where it lies.
    """
    frames = _text(data, 'NumberOfFrames')
    if (_text(data, 'SOPClassUID') in _ENHANCED
            or frames not in ('', '0', '1')):
        raise _refusal(path, 'SOPClassUID', 'CT with one slice in a file',
                       f'a multi-frame (enhanced) CT of {frames or 1} frames')
    modality = _text(data, 'Modality')
    if modality not in ('', 'CT'):
        raise _refusal(path, 'Modality', 'CT', modality)
    rows, columns = (int(_numbers(data, field, 1)[0])
                     for field in ('Rows', 'Columns'))
    if not (0 < rows <= _MOST_PIXELS and 0 < columns <= _MOST_PIXELS):
        raise _Unreadable(f'has {rows} Rows and {columns} Columns')
    spacing = _numbers(data, 'PixelSpacing', 2)
    if not (spacing > 0).all():
        raise _Unreadable(f'PixelSpacing is {spacing.tolist()}')
    try:
        padding = float(_numbers(data, 'PixelPaddingValue', 1)[0])
    except _Unreadable:
        padding = np.nan
    top = np.nan
    if _text(data, 'PhotometricInterpretation') == 'MONOCHROME1':
        bits, = _numbers(data, 'BitsStored', 1)
        signed, = _numbers(data, 'PixelRepresentation', 1)
        top = -1. if signed else 2.**bits.clip(1, 32) - 1
    return _Slice(
        path, data, (rows, columns), spacing,
        _numbers(data, 'ImageOrientationPatient', 6),
        _numbers(data, 'ImagePositionPatient', 3),
        _rescale(data, path, 'RescaleSlope'),
        _rescale(data, path, 'RescaleIntercept'), padding, top,
        _text(data, 'FrameOfReferenceUID'))


# -------------------------------------------------------------------- pixels
def _pixels(item: _Slice) -> np.ndarray:
    """Stored values of a slice, (rows, columns).

    Raises:
        _Unreadable: They cannot be decoded.
    """
    data, item.data = item.data, None  # with its pixels it is large
    return _stored(item.path, data, item.size)


def _stored(path: str, data: Optional[pydicom.Dataset],
            size: Tuple[int, int]) -> np.ndarray:
    """Stored values of a file, whose header was read, (rows, columns)."""
    try:
        if data is None or data.file_meta.TransferSyntaxUID.is_deflated:
            data = pydicom.dcmread(path)
        pixels = _decode(data)
    except Exception as error:  # decoders raise anything
        raise _Unreadable(f'PixelData cannot be read: {_reason(error)}'
                          ) from None
    if pixels.shape != size:
        raise _Unreadable(f'PixelData has the shape {pixels.shape}')
    if pixels.dtype.kind not in 'iu':
        raise _Unreadable(f'PixelData has values of type {pixels.dtype}')
    return pixels


def _decode(data: pydicom.Dataset) -> np.ndarray:
    from pydicom.pixels import get_decoder
    try:
        known = get_decoder(data.file_meta.TransferSyntaxUID).is_available
    except NotImplementedError:
        known = False
    if known:
        return data.pixel_array
    return gdcm.decode(data)


def _interpolate(values: np.ndarray, heights: np.ndarray,
                 present: np.ndarray) -> None:
    """Fill slices that are not present from their neighbours, linearly."""
    there = np.flatnonzero(present)
    for k in np.flatnonzero(~present):
        after = there[np.searchsorted(there, k)]
        before = there[np.searchsorted(there, k) - 1]
        share = ((heights[k] - heights[before]) /
                 (heights[after] - heights[before]))
        values[k] = values[before] * np.float32(1 - share)
        values[k] += values[after] * np.float32(share)


def _resample(values: np.ndarray, heights: np.ndarray,
              grid: np.ndarray) -> None:
    """Replace slices at ``heights`` by those at ``grid``, linearly, in place
    (``values`` has room for either)."""
    low = np.searchsorted(heights, grid, side='right') - 1
    low = low.clip(0, len(heights) - 2)
    share = (grid - heights[low]) / (heights[low + 1] - heights[low])
    share = share.clip(0, 1).astype(np.float32)[:, None]
    # A few rows at a time: two whole volumes would not fit where one does.
    for row in range(values.shape[1]):
        old = values[:len(heights), row].copy()
        values[:len(grid), row] = (
            old[low] * (1 - share) + old[low + 1] * share)


# ------------------------------------------------------------ Hounsfield units
def _plausible(hu: np.ndarray, padding: np.ndarray) -> bool:
    """Whether values look like a chest, see the module.

    Args:
        hu: HU of some pixels.
        padding: Whether they have the padding's value; same shape.
    """
    kept = hu[(hu > -1500) & ~(padding & (hu < 4000))]
    if len(kept) < max(.05 * hu.size, 1):
        return False
    air = (kept < -500).mean()
    soft = ((kept >= -200) & (kept < 200)).mean()
    return bool(air >= .05 and soft >= .05 and soft > (kept >= 200).mean()
                and (kept > 4000).mean() <= .01)


def _all_plausible(stored: np.ndarray, padding: np.ndarray,
                   slope: np.ndarray, intercept: np.ndarray) -> bool:
    """Whether slices (N, P) look like a chest, for each slope and intercept
    (N,) that is among them: one that is wrong must not hide behind others."""
    pairs, group = np.unique(np.stack([slope, intercept], 1), axis=0,
                             return_inverse=True)
    group = group.reshape(-1)
    return all(
        _plausible(stored[group == i] * a + b, padding[group == i])
        for i, (a, b) in enumerate(pairs))


def _to_hu(values: np.ndarray, used: List[Optional[_Slice]], where
           ) -> List[str]:
    """Rescale stored values to HU, in place.

    Args:
        values: (N, rows, columns) stored values of N slices.
        used: Their headers, None where a slice is missing.
        where: Names the series in errors.

    Returns:
        list[str]: What was mended.

    Raises:
        ConversionError: No rescaling is plausible, or more than one.
    """
    index = [k for k, item in enumerate(used) if item is not None]
    slices = [item for item in used if item is not None]
    count = len(slices)
    slopes, lost_slope = _given(
        'RescaleSlope', [s.slope for s in slices], (1., ), where)
    intercepts, lost_intercept = _given(
        'RescaleIntercept', [s.intercept for s in slices], (0., -1024.),
        where)
    top = slices[0].top
    if any(np.isfinite(s.top) != np.isfinite(top) for s in slices):
        raise _refusal(where, 'PhotometricInterpretation',
                       'the same in all slices', 'MONOCHROME1 in some')
    step = max(min(values.shape[1:]) // 64, 1)
    sample = values[:, ::step, ::step][index].reshape(count, -1)
    padding = sample == np.array([[s.padding] for s in slices])
    choices = list(product(slopes, intercepts))
    turned = False
    good = [c for c in choices if _all_plausible(sample, padding, *c)]
    if not good and np.isfinite(top):
        turned = True
        good = [c for c in choices
                if _all_plausible(top - sample, padding, *c)]
    if len(good) != 1:
        raise _refusal(
            where, 'RescaleSlope, RescaleIntercept',
            'values that give the Hounsfield units of a chest',
            ' or '.join(f'{a[0]:g}, {b[0]:g}' for a, b in choices)
            + (', which both do' if good else ''))
    (slope, intercept), = good
    for k, a, b in zip(index, slope, intercept):
        image = values[k]
        if turned:
            np.subtract(np.float32(top), image, out=image)
        if a != 1:
            image *= a
        image += b
    repairs = []
    for field, lost, value in (('RescaleSlope', lost_slope, slope),
                               ('RescaleIntercept', lost_intercept,
                                intercept)):
        if any(lost):
            source = ('which gives plausible Hounsfield units'
                      if all(lost) else 'as in the others')
            repairs.append(
                f'{field} is missing in {sum(lost)} of {count} slices: '
                f'{value[lost.index(True)]:g} was used, {source}')
    if turned:
        repairs.append('the stored values are inverted (MONOCHROME1): they '
                       'were turned round')
    return repairs


def _given(field: str, values: List[Optional[float]], guesses: Tuple, where
           ) -> Tuple[List[np.ndarray], List[bool]]:
    """What a field may be in every slice, and where it is missing."""
    lost = [v is None for v in values]
    known = sorted({v for v in values if v is not None})
    if any(lost) and len(known) > 1:
        raise _refusal(
            where, field, f'one value for the {sum(lost)} of {len(lost)} '
            'slices that have none', f'{known[0]:g} to {known[-1]:g}')
    return [
        np.array([fill if v is None else v for v in values])
        for fill in (known[:1] if known else guesses)
    ], lost


# -------------------------------------------------------------------- series
def read_series(folder: Union[str, Path], series_uid: str,
                heights: np.ndarray, names: Collection[str] = (),
                needed: Collection[int] = ()) -> Series:
    """Read a CT series.

    Args:
        folder (str | Path): Where its files are, at any depth, among others.
        series_uid (str): SeriesInstanceUID.
        heights (np.ndarray): (N,) z of the slices that there must be (mm),
            ascending.
        names (Collection[str]): Names of the files that belong to it, which
            decide between two slices at one position.
        needed (Collection[int]): Which of the N slices must not be
            interpolated.

    Returns:
        Series: On an even grid: uneven positions are resampled to their
        median step.

    Raises:
        ConversionError: The series is missing, or has a fault that cannot
            be mended without guessing; one sentence.
    """
    heights = np.asarray(heights, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return _read(folder, series_uid, heights, names, needed)


def _read(where, series_uid, heights, names, needed) -> Series:
    grid = _even_grid(heights, where)
    slices, damaged = _find(where, series_uid)
    repairs: List[str] = []
    if not slices:
        raise _too_few(where, heights, np.zeros(len(heights), bool), damaged)
    _check_alike(slices, where)
    places = _places(slices, heights, where)
    shape = max(len(heights), len(grid)), *slices[0].size
    try:
        values = np.empty(shape, np.float32)
    except MemoryError:
        raise _refusal(where, 'Rows, Columns', 'a volume that fits into the '
                       'memory', f'{shape}') from None
    used = []
    for k, image in enumerate(values[:len(heights)]):
        there = [s for s, place in zip(slices, places) if place == k]
        used.append(_load(there, image, names, damaged, repairs, where))
    present = np.array([item is not None for item in used])
    if damaged:
        repairs.append(_list_damaged(damaged))
    _check_gaps(heights, present, needed, damaged, where)
    repairs += _to_hu(values, used, where)
    if not present.all():
        _interpolate(values, heights, present)
        repairs.append(
            f'{(~present).sum()} of {len(heights)} slices missing, at z = '
            f'{_list_heights(heights[~present])}: interpolated')
    # Both ends are there, or _check_gaps had refused.
    first, last = cast(_Slice, used[0]), cast(_Slice, used[-1])
    step = (last.position - first.position) / (len(heights) - 1)
    nearest = np.arange(len(heights))
    if grid is not heights:
        _resample(values, heights, grid)
        values = values[:len(grid)]
        nearest = np.abs(heights - grid[:, None]).argmin(1)
        step *= (grid[1] - grid[0]) / ((heights[-1] - heights[0]) /
                                       (len(heights) - 1))
        repairs.append(
            f'the slices are {np.diff(heights).min():g} to '
            f'{np.diff(heights).max():g} mm apart: resampled to '
            f'{grid[1] - grid[0]:g} mm')
    frames = {item.frame_uid for item in used if item is not None}
    if len(frames) > 1:
        repairs.append('FrameOfReferenceUID differs between the slices: '
                       'none was taken over')
    index2lps = np.eye(4)
    index2lps[:3, :3] = np.stack([
        first.orientation[:3] * first.spacing[1],
        first.orientation[3:] * first.spacing[0], step
    ], 1)
    index2lps[:3, 3] = first.position
    return Series(
        values.transpose(2, 1, 0), index2lps, grid, nearest,
        frames.pop() if len(frames) == 1 else '',
        [f'{plain(text[:1].upper() + text[1:], 500)}.' for text in repairs])


def _even_grid(heights: np.ndarray, where) -> np.ndarray:
    """``heights`` itself if they are even, or others that are."""
    steps = np.diff(heights)
    if len(steps) == 0 or not (steps > 2 * _POSITION).all():
        raise _refusal(where, 'slice positions', 'at least two, ascending',
                       heights[:3].tolist())
    if np.ptp(steps) <= _UNEVEN * steps.mean():
        return heights
    if steps.max() > _MOST_EXTENT + _POSITION:
        raise _refusal(
            where, 'slice spacing', 'even, or gaps of at most '
            f'{_MOST_EXTENT:g} mm', f'a gap of {steps.max():g} mm at z = '
            f'{heights[steps.argmax()]:g} mm')
    step = np.median(steps)
    count = int((heights[-1] - heights[0]) / step + 1e-6) + 1
    return heights[0] + step * np.arange(count)


def _find(folder, series_uid: str) -> Tuple[List[_Slice], Dict[str, str]]:
    """Slices of a series, in the order of their paths, and what is wrong with
    files that cannot be used (which may be of another series)."""
    slices, damaged = [], {}
    for path in _walk(folder):
        try:
            data = _open(path)
            if data is None:
                continue
            found = _text(data, 'SeriesInstanceUID')
            if found == '' and path.lower().endswith('.dcm'):
                raise _Unreadable('SeriesInstanceUID is missing')
            if found == series_uid:
                slices.append(_header(path, data))
        except _Unreadable as error:
            damaged[path] = str(error)
    return slices, damaged


def _check_alike(slices: List[_Slice], where) -> None:
    """Refuse slices of different grids, or oblique ones."""
    first = slices[0]
    for field, name, tolerance in (
            ('Rows, Columns', 'size', 0),
            ('PixelSpacing', 'spacing', 1e-4),
            ('ImageOrientationPatient', 'orientation', _COSINE)):
        found = np.array([getattr(s, name) for s in slices], dtype=float)
        other = np.abs(found - found[0]).max(1) > tolerance
        if other.any():
            k = other.argmax()
            raise _refusal(
                where, field, f'the same in all slices, {found[0].tolist()} '
                f'as in {plain(first.name, 60)}',
                f'{found[k].tolist()} in {plain(slices[k].name, 60)}')
    axes = np.rint(first.orientation).reshape(2, 3)
    if (np.abs(first.orientation - axes.ravel()).max() > _COSINE
            or (np.abs(axes).sum(1) != 1).any() or axes[0] @ axes[1]):
        raise _refusal(where, 'ImageOrientationPatient', 'axes of the '
                       'patient (no oblique or tilted slices)',
                       first.orientation.tolist())
    if axes[:, 2].any():
        raise _refusal(where, 'ImageOrientationPatient', 'axial slices, '
                       'which have one z each', first.orientation.tolist())
    corners = np.array([s.position[:2] for s in slices])
    reach = np.ptp(corners, axis=0)
    if (reach > first.spacing.min() / 2).any():
        raise _refusal(
            where, 'ImagePositionPatient x, y', 'the same in all slices (no '
            'tilted gantry)', f'{reach[0]:g} and {reach[1]:g} mm of '
            'difference')


def _places(slices: List[_Slice], heights: np.ndarray, where) -> np.ndarray:
    """Which of the expected positions each slice has."""
    found = np.array([s.position[2] for s in slices])
    places = np.abs(heights - found[:, None]).argmin(1)
    off = np.abs(heights[places] - found) > _POSITION
    if off.any():
        raise _refusal(
            where, 'ImagePositionPatient z', f'the {len(heights)} positions '
            f'of the database, {heights[0]:g} to {heights[-1]:g} mm',
            f'{off.sum()} of {len(slices)} slices elsewhere, as at '
            f'{found[off.argmax()]:g} mm')
    return places


def _load(there: List[_Slice], image: np.ndarray, names: Collection[str],
          damaged: Dict[str, str], repairs: List[str], where
          ) -> Optional[_Slice]:
    """Read the slice at one position, (rows, columns), from the files that
    claim it; None where none can be read."""
    read = []
    for item in there:
        try:
            read.append((item, _pixels(item)))
        except _Unreadable as error:
            damaged[item.path] = str(error)
    if not read:
        return None
    chosen = read[0]
    if len(read) > 1:
        z = chosen[0].position[2]
        files = ', '.join(plain(item.name, 60) for item, _ in read[:3])
        if all(_same(other, chosen) for other in read):
            repairs.append(f'the slice at z = {z:g} mm is there '
                           f'{len(read)} times ({files}): one was used')
        else:
            listed = [r for r in read if r[0].name in names]
            if not listed or not all(_same(r, listed[0]) for r in listed):
                raise _refusal(where, f'slices at z = {z:g} mm', 'one',
                               f'{len(read)} that differ ({files})')
            chosen = listed[0]
            repairs.append(
                f'{len(read)} slices at z = {z:g} mm differ ({files}): '
                f'{plain(chosen[0].name, 60)}, which the database names, was '
                'used')
    image[:] = chosen[1]
    return chosen[0]


def _same(one: tuple, other: tuple) -> bool:
    """Whether two slices have the same stored values and rescaling."""
    return (one[0].slope == other[0].slope
            and one[0].intercept == other[0].intercept
            and np.array_equal(one[1], other[1]))


def _check_gaps(heights: np.ndarray, present: np.ndarray,
                needed: Collection[int], damaged: Dict[str, str], where
                ) -> None:
    """Refuse more missing slices than may be interpolated."""
    missing = np.flatnonzero(~present)
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    for run in runs if len(missing) else ():
        inside = run[0] > 0 and run[-1] < len(heights) - 1
        if not inside or len(run) > _MOST_SLICES or set(run) & set(needed):
            raise _too_few(where, heights, present, damaged)
        # What is missing, less the step that there would be anyway.
        gap = heights[run[-1] + 1] - heights[run[0] - 1]
        if gap * len(run) / (len(run) + 1) > _MOST_EXTENT + _POSITION:
            raise _too_few(where, heights, present, damaged)


def _too_few(where, heights: np.ndarray, present: np.ndarray,
             damaged: Dict[str, str]) -> ConversionError:
    found = f'{present.sum()}'
    if present.any():
        found += (f', none at z = {_list_heights(heights[~present])} (gaps '
                  f'are filled up to {_MOST_SLICES} slices and '
                  f'{_MOST_EXTENT:g} mm, inside and away from nodules)')
    if damaged:
        found += f'; {_list_damaged(damaged)}'
    return ConversionError(
        f'{plain(where)}: slices: expected {len(heights)} as in the '
        f'database, found {found}')


def _list_heights(heights: np.ndarray) -> str:
    places = [f'{z:g}' for z in heights[:5]] + ['...'] * (len(heights) > 5)
    return f'{", ".join(places)} mm'


def _list_damaged(damaged: Dict[str, str]) -> str:
    files = ', '.join(f'{plain(os.path.basename(path), 60)} ({reason})'
                      for path, reason in list(damaged.items())[:3])
    more = f' and {len(damaged) - 3} more' if len(damaged) > 3 else ''
    return (f'{len(damaged)} file{"s" * (len(damaged) > 1)} could not be '
            f'read: {files}{more}')
