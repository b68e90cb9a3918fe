"""The user's own CT of a part: any volume that SimpleITK reads, with boxes.

Frames (mm): SimpleITK's and DICOM's patient frame is LPS; the world is that
of :mod:`projects.core.geometry`, RAS+ with its origin at the centre of
the voxel grid. For a part they are just names of axes: where a file says
nothing of directions (TIFF, most MetaImages), world x, y, z are -column,
-row and +slice.

Grey values become attenuation as ``mu_per_value * value + mu_offset`` (1/mm),
held as the Hounsfield units that :func:`data_converters.drr.hu_to_mu` turns
into just that; without these two they are Hounsfield units already.
"""

import hashlib
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    cast,
)

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from projects.core import geometry
from projects.core.files import DataError
from projects.core.geometry import LPS_TO_RAS
from projects.core.projections import check_new_name

from .drr import MU_WATER, Volume
from .scan import ConversionError, Finding, Scan
from .tables import Row, read_table

BOX_UNITS = ('mm', 'voxel')
BOX_FRAMES = ('world', 'patient', 'ras')
LABEL_VALUES = ('classes', 'findings')
_SUFFIXES = ('.nii', '.nii.gz', '.mha', '.mhd', '.nrrd', '.nhdr', '.tif',
             '.tiff')
_AIR = -1000.  # HU

__all__ = [
    'BOX_FRAMES', 'BOX_UNITS', 'LABEL_VALUES', 'Part', 'PartReader',
    'assign_truth', 'axes_of', 'boxed_finding', 'centre_of', 'check_classes',
    'digest', 'find_parts', 'plan', 'read_boxes', 'read_image',
    'source_digest', 'stem', 'upright'
]


@dataclass
class Part:
    """One volume of a set and what is known to be in it.

    Attributes:
        key: File name without suffixes; unique in the set.
        path: File or folder.
        boxes: Its rows of the box table.
        labels: Label image, in place of boxes.
    """
    key: str
    path: Path
    boxes: List[Row] = field(default_factory=list)
    labels: Optional[Path] = None


# --------------------------------------------------------------- what there is
def stem(path: Path) -> str:
    """Name of a file without the suffixes of a volume."""
    name = path.name
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[:-len(suffix)]
    return name


def _volumes_of(path: Path) -> List[Path]:
    """Volumes that a file or folder stands for: those in a folder, unless it
    holds the slices of one."""
    if not path.is_dir():
        return [path]
    inside = sorted(
        p for p in path.iterdir() if p.name.lower().endswith(_SUFFIXES)
        and p.suffix.lower() not in ('.tif', '.tiff'))
    return inside or [path]


def find_parts(volumes: Sequence[Path], boxes: Optional[List[Row]] = None,
               labels: Sequence[Path] = ()) -> List[Part]:
    """Volumes with their boxes or label images.

    Args:
        volumes: Files, folders with the slices of one volume, or folders of
            volumes; the stems of what is one volume name the parts.
        boxes: Rows of :func:`read_boxes`; with several volumes each says of
            which ``scan`` it is.
        labels: One label image for each volume, in the same order.

    Raises:
        ConversionError: Two volumes have one name, a box belongs to none, or
            there are more or fewer label images than volumes.
    """
    parts: Dict[str, Part] = {}
    for path in (p for given in volumes for p in _volumes_of(Path(given))):
        # A folder may be given as "scans/part/" or ".".
        key = stem(path if path.is_file() else path.resolve())
        try:
            check_new_name(path, key, {
                other: p.path for other, p in parts.items()}, 'volume')
        except DataError as error:
            raise ConversionError(str(error)) from None
        parts[key] = Part(key, path)
    assign_truth(parts, boxes, labels)
    return list(parts.values())


def assign_truth(parts: Mapping[str, Part],
                 boxes: Optional[List[Row]] = None,
                 labels: Sequence[Path] = (),
                 whose: str = '--volume') -> None:
    """Give parts, by name, their boxes or label images.

    Raises:
        ConversionError: A box belongs to none, or there are more or fewer
            label images than parts.
    """
    for row in boxes or ():
        key = stem(Path(row['scan'])) if row.get('scan') else ''
        if not key and len(parts) == 1:
            key = next(iter(parts))
        if key not in parts:
            names = ', '.join(list(parts)[:5]) + (
                ', ...' if len(parts) > 5 else '')
            raise row.fail('scan', f'a volume\'s name ({names})')
        parts[key].boxes.append(row)
    if labels and len(labels) != len(parts):
        raise ConversionError(
            f'--labels: expected {len(parts)} label images, one for each '
            f'{whose}, found {len(labels)}')
    for part, path in zip(parts.values(), labels):
        part.labels = Path(path)


def read_boxes(path: Path, classes: Optional[Sequence[str]] = None
               ) -> Tuple[List[Row], List[str]]:
    """Rows of a box table (CSV or JSON) and the names of its classes.

    Columns ``x, y, z`` (centre), ``dx, dy, dz`` (edges) and perhaps
    ``class``, ``scan`` (name of the volume) and ``diameter`` (mm).

    Args:
        path: CSV with a header, or JSON: a list of objects.
        classes: Names in the order of the labels. Defaults to those of the
            table in alphabetical order, and "defect" where it has none.

    Raises:
        ConversionError: The file or a value is not as expected.
    """
    rows = read_table(path, ('x', 'y', 'z', 'dx', 'dy', 'dz'),
                      ('class', 'scan', 'diameter'))
    for row in rows:
        row.numbers('xyz')
        for column in ('dx', 'dy', 'dz'):
            row.number(column, positive=True)
        if row.get('diameter'):
            row.number('diameter', positive=True)
        if 'class' in row and not row['class']:
            raise row.fail('class', 'a name')
        row.setdefault('class', 'defect')
        if classes and row['class'] not in classes:
            raise row.fail('class', 'one of --classes ' + ', '.join(classes))
    found = sorted({row['class'] for row in rows}) or ['defect']
    return rows, list(classes or found)


def check_classes(classes: Optional[Sequence[str]]) -> None:
    """Refuse names of classes that are not different.

    Raises:
        ConversionError: Two are the same.
    """
    if classes and len(set(classes)) != len(classes):
        raise ConversionError('--classes: expected different names, found '
                              f'{", ".join(classes)}')


def plan(volumes: Sequence[Path], boxes: Optional[Path] = None,
         labels: Optional[Sequence[Path]] = None,
         classes: Optional[Sequence[str]] = None, box_unit: str = 'mm',
         box_frame: Optional[str] = None, label_values: str = 'classes',
         spacing: Optional[Sequence[float]] = None,
         mu_per_value: Optional[float] = None,
         mu_offset: Optional[float] = None
         ) -> Tuple['PartReader', List[Part]]:
    """What a call of the command line asks for, verified before any voxel is
    read.

    Args:
        volumes: See :func:`find_parts`.
        boxes: Box table, or
        labels: Label images.
        classes, box_unit, box_frame, label_values, spacing, mu_per_value,
            mu_offset: See :class:`PartReader`; ``box_frame`` has no default
            for boxes in mm.

    Returns:
        tuple: The reader, and the parts that it takes.

    Raises:
        ConversionError: Options contradict each other, or see
            :func:`read_boxes` and :func:`find_parts`.
    """
    if boxes and box_unit == 'mm' and box_frame is None:
        raise ConversionError(
            '--box-frame: expected the frame of boxes in mm, one of '
            f'{", ".join(BOX_FRAMES)}, found none')
    if box_frame and (labels or box_unit != 'mm'):
        raise ConversionError('--box-frame: expected for boxes in mm only, '
                              f'found {box_frame}')
    check_classes(classes)
    if spacing is not None and not (np.isfinite(spacing).all()
                                    and min(spacing) > 0):
        raise ConversionError('--spacing: expected three positive numbers '
                              f'(mm), found {list(spacing)}')
    if mu_offset is not None and mu_per_value is None:
        raise ConversionError('--mu-per-value: expected with --mu-offset, '
                              'found none')
    if mu_per_value is not None and not (
            np.isfinite([mu_per_value, mu_offset or 0]).all()
            and mu_per_value != 0):
        raise ConversionError('--mu-per-value, --mu-offset: expected finite '
                              'numbers, the first not 0, found '
                              f'{mu_per_value:g} and {mu_offset or 0:g}')
    rows = None
    if boxes:
        rows, classes = read_boxes(boxes, classes)
    parts = find_parts(volumes, rows, labels or ())
    for path in [p.path for p in parts] + [Path(p) for p in labels or ()]:
        if not path.exists():
            raise ConversionError(f'{path}: volume: expected a file or a '
                                  'folder, found none')
    reader = PartReader(
        list(classes or ['defect']), box_unit, box_frame or 'world',
        label_values, spacing, mu_per_value, mu_offset or 0.)
    inputs = dict(vars(reader), **(
        dict(boxes=digest([boxes])) if boxes else
        dict(labels=digest(labels or ()))))
    del inputs['inputs'], inputs['classes']
    reader.inputs = inputs
    return reader, parts


def digest(paths: Iterable[Union[str, Path]]) -> str:
    """Of the content of files and folders: tells a changed table from an old
    one."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            if not file.is_file():
                continue
            with open(file, 'rb') as stream:
                while chunk := stream.read(1 << 20):
                    total.update(chunk)
    return total.hexdigest()[:16]


def source_digest(part: Part) -> str:
    """Of the files that a part's volume is read from: tells a replaced volume
    from the one that was converted."""
    path = part.path
    if path.is_dir():
        return digest(_tiffs(path) or [
            name for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(
                str(path)) for name in
            sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series)])
    beside: List[Path] = []
    if path.suffix.lower() in ('.mhd', '.nhdr'):  # the voxels lie beside it
        for line in path.read_text('utf-8', errors='replace').splitlines():
            name = path.parent / re.split('[=:]', line)[-1].strip()
            beside += [name] if os.path.isfile(name) else []
    return digest([path, *beside])


# -------------------------------------------------------------------- volumes
def _sentence(error: Exception) -> str:
    """What SimpleITK says, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line.split('ERROR: ')[-1] for line in lines if line
             and not line.startswith(('sitk::ERROR: The file', 'Exception'))]
    text = lines[-1] if lines else type(error).__name__
    return re.sub(r'^[\w:]+\(0x[0-9a-f]+\): ', '', text).rstrip('.')


def _dicom_files(folder: Path) -> List[str]:
    """Files of the one series in a folder, in order.

    Raises:
        ConversionError: There are several, or slices are missing.
    """
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ConversionError(
            f'{folder}: expected one DICOM series, or slices as TIFF, found '
            f'{len(series)} DICOM series')
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(
        str(folder), series[0])
    origins = []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        if len(names) == 1 or reader.GetSize()[2:] not in ((), (1, )):
            return list(names)  # all slices in one file
        normal = np.reshape(reader.GetDirection(), (3, 3))[:, 2]
        origins.append(reader.GetOrigin())
    moves = np.diff(origins, axis=0)
    steps = np.abs(moves @ normal)
    if np.ptp(steps) > .05 * steps.mean() or steps.min() == 0:
        raise ConversionError(
            f'{folder}: slice spacing: expected even, found {steps.min():g} '
            f'to {steps.max():g} mm: are slices missing?')
    aside = np.linalg.norm(np.cross(moves, normal), axis=1).max()
    if aside > .01 * steps.mean():
        raise ConversionError(
            f'{folder}: ImagePositionPatient: expected slices straight above '
            f'each other, found steps of {aside:g} mm aside (tilted gantry)')
    return list(names)


def _tiffs(folder: Path) -> List[str]:
    """TIFF files of a folder in the order of their names, numbers by value."""
    files = [str(p) for p in folder.iterdir()
             if p.suffix.lower() in ('.tif', '.tiff')]
    return sorted(files, key=lambda name: [
        int(t) if t.isdecimal() else t for t in re.split(r'(\d+)', name)])


def read_image(path: Path, spacing: Optional[Sequence[float]] = None
               ) -> sitk.Image:
    """Any volume that SimpleITK reads.

    Args:
        path: NIfTI, MetaImage, NRRD, multi-page TIFF, or a folder with a
            DICOM series or with slices as TIFF (in the order of their names,
            numbers by value).
        spacing: Steps along columns, rows and slices (mm), in place of the
            file's; TIFF has none.

    Raises:
        ConversionError: It cannot be read, is not a volume of single
            numbers, or is a TIFF without ``spacing``.
    """
    path = Path(path)
    if path.is_dir():
        files = _tiffs(path)
        tiff = bool(files)
        files = files or _dicom_files(path)
    elif not path.is_file():
        raise ConversionError(f'{path}: volume: expected a file or a folder, '
                              'found none')
    elif not path.name.lower().endswith(_SUFFIXES):
        raise ConversionError(
            f'{path}: file type: expected {", ".join(_SUFFIXES)} or a folder '
            f'of slices, found "{path.suffix}"')
    else:
        files = [str(path)]
        tiff = path.suffix.lower() in ('.tif', '.tiff')
    if tiff and spacing is None:
        raise ConversionError(f'{path}: --spacing: expected the steps along '
                              'columns, rows and slices (mm), since TIFF has '
                              'none, found none')
    try:
        image = sitk.ReadImage(files[0] if len(files) == 1 else files)
    except RuntimeError as error:
        raise ConversionError(
            f'{path}: cannot be read: {_sentence(error)}') from None
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3 or 1 in image.GetSize():
        size = ' x '.join(map(str, image.GetSize()))
        raise ConversionError(f'{path}: expected a volume of three '
                              f'dimensions, found {size} voxels')
    channels = image.GetNumberOfComponentsPerPixel()
    if channels != 1:
        raise ConversionError(f'{path}: expected one number a voxel, found '
                              f'{channels}')
    if spacing is not None:
        image.SetSpacing([float(s) for s in spacing])
    return image


def _array(image: sitk.Image) -> np.ndarray:
    """Voxels in index order (i, j, k)."""
    return sitk.GetArrayViewFromImage(image).T


def axes_of(image: sitk.Image) -> np.ndarray:
    """Directions of the index axes in the world, (3, 3) columns."""
    return LPS_TO_RAS @ np.reshape(image.GetDirection(), (3, 3))


def centre_of(image: sitk.Image) -> np.ndarray:
    """Centre of the voxel grid (LPS, mm)."""
    middle = (np.array(image.GetSize()) - 1) / 2
    return np.array(image.TransformContinuousIndexToPhysicalPoint(
        middle.tolist()))


def upright(image: sitk.Image) -> Optional[sitk.Image]:
    """The grid along the patient's axes that holds an oblique volume, of its
    spacing and about its centre; None where it is along them already."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    order = np.abs(axes).argmax(1)
    if (np.abs(axes).max(1) > 1 - 1e-6).all() and len(set(order)) == 3:
        return None
    if len(set(order)) != 3:
        order = np.arange(3)
    spacing = np.array(image.GetSpacing())
    reach = np.abs(axes) @ (spacing * image.GetSize()) / 2
    spacing = spacing[order]
    size = np.ceil(2 * reach / spacing - 1e-6).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetOrigin((centre_of(image) - spacing * (size - 1) / 2).tolist())
    return grid


def _tilt(image: sitk.Image) -> float:
    """Angle (degrees) of the index axis that is farthest from any of the
    patient's."""
    nearest = np.abs(image.GetDirection()).reshape(3, 3).max(1).min()
    return float(np.degrees(np.arccos(min(nearest, 1.))))


# ---------------------------------------------------------------------- parts
def boxed_finding(row: Row, number: int, box: np.ndarray,
                  classes: Sequence[str]) -> Finding:
    """The finding of a row of the box table, whose box (7,) is in the world
    (mm)."""
    # Without one, that of the sphere as large as the ellipsoid inscribed.
    diameter = (row.number('diameter') if row.get('diameter')
                else float(box[3:6].prod()**(1 / 3)))
    return Finding(box=box, label=list(classes).index(row['class']),
                   record=dict(nodule_id=number, diameter=diameter))


@dataclass
class PartReader:
    """How the volumes of a set are read; picklable.

    Attributes:
        classes: Names of the labels.
        box_unit: Of the box table: 'mm', or 'voxel' (indices along the
            file's own axes, integers are voxel centres; edges in voxels).
        box_frame: Of boxes in mm: 'world', 'patient' (LPS, as DICOM, ITK and
            SimpleITK) or 'ras' (as NIfTI's own tools).
        label_values: Label images: 'classes', each connected component (by
            face, edge or corner) of value n is a finding of the n-th class;
            or 'findings', each value is a finding of the first class.
        spacing: See :func:`read_image`.
        mu_per_value, mu_offset: See the module; None for Hounsfield units.
        inputs: All of this and a digest of the boxes or label images, for
            the set's options: with another one it is another set.
    """
    classes: List[str]
    box_unit: str = 'mm'
    box_frame: str = 'world'
    label_values: str = 'classes'
    spacing: Optional[Sequence[float]] = None
    mu_per_value: Optional[float] = None
    mu_offset: float = 0.
    inputs: dict = field(default_factory=dict)

    def read(self, part: Part) -> Scan:
        """Read a volume and its findings.

        Raises:
            ConversionError: See :func:`read_image`; or there is NaN in it, a
                box is not in it, or the label image does not fit.
        """
        image = read_image(part.path, self.spacing)
        repairs = []
        hu = sitk.Cast(image, sitk.sitkFloat32)
        if not np.isfinite(_array(hu)).all():
            raise ConversionError(f'{part.path}: voxels: expected finite '
                                  'numbers, found NaN or infinity')
        if self.mu_per_value is not None:
            hu *= 1000 / MU_WATER * self.mu_per_value
            hu += 1000 / MU_WATER * self.mu_offset - 1000
        grid = upright(image)
        if grid is not None:
            hu = sitk.Resample(hu, grid, sitk.Transform(), sitk.sitkLinear,
                               _AIR)
            repairs.append(
                f'the volume is oblique by {_tilt(image):.1f} degrees and has '
                'been resampled along the patient\'s axes')
        values = np.array(_array(hu), order='F')
        if values.min() > -900:
            repairs.append(
                f'no voxel is air, the least is {values.min():g} HU: if the '
                'grey values are not Hounsfield units, --mu-per-value and '
                '--mu-offset say what they are')
        volume = Volume.centred(values, axes_of(hu) @ np.diag(hu.GetSpacing()))
        ct2patient = np.eye(4)
        ct2patient[:3, :3] = LPS_TO_RAS
        ct2patient[:3, 3] = centre_of(hu)
        if part.labels is not None:
            findings = self._labelled(part, image, grid, volume)
        else:
            findings = [self._boxed(row, number, part, image, ct2patient)
                        for number, row in enumerate(part.boxes)]
        return Scan(part.key, part.key, '', '', volume, ct2patient, findings,
                    repairs, source_digest(part))

    def _boxed(self, row: Row, number: int, part: Part, image: sitk.Image,
               ct2patient: np.ndarray) -> Finding:
        """The finding of one row of the box table."""
        box = np.array([*row.numbers(('x', 'y', 'z', 'dx', 'dy', 'dz')), 0.])
        spacing, count = np.array(image.GetSpacing()), image.GetSize()
        axes = axes_of(image)
        if self.box_unit == 'voxel':
            box[:3] = (box[:3] - (np.array(count) - 1) / 2) * spacing
            box[3:6] *= spacing
            box = geometry.transform_boxes(box[None], axes)[0]
        elif self.box_frame != 'world':
            if self.box_frame == 'ras':
                box[:3] = LPS_TO_RAS @ box[:3]
            box[:3] = LPS_TO_RAS @ (box[:3] - ct2patient[:3, 3])
        reach = spacing * count / 2
        outside = np.abs(axes.T @ box[:3]) > reach
        too_large = box[3:6] > 2 * np.abs(axes) @ reach + 1e-3
        if outside.any() or too_large.any():
            if self.box_unit == 'mm':  # the table's axes are the world's
                outside = outside @ (np.abs(axes.T) > .7)
            names = ['x', 'y', 'z', 'dx', 'dy', 'dz']
            name = names[np.append(outside, too_large).argmax()]
            where = [f'{v:g}' for v in np.abs(axes) @ reach]
            raise ConversionError(
                f'{row.where}: column "{name}": expected a box within the '
                f'volume {part.key}, in the world +-{where[0]}, '
                f'+-{where[1]}, +-{where[2]} mm, found centre '
                f'{np.round(box[:3], 2).tolist()} and edges '
                f'{np.round(box[3:6], 2).tolist()} mm (--box-unit '
                f'{self.box_unit}'
                + (f', --box-frame {self.box_frame})'
                   if self.box_unit == 'mm' else ')'))
        return boxed_finding(row, number, box, self.classes)

    def _labelled(self, part: Part, image: sitk.Image,
                  grid: Optional[sitk.Image], volume: Volume
                  ) -> List[Finding]:
        """The findings of a label image."""
        labels = read_image(cast(Path, part.labels), self.spacing)
        for name in ('Size', 'Spacing', 'Origin', 'Direction'):
            expected = np.array(getattr(image, f'Get{name}')())
            found = np.array(getattr(labels, f'Get{name}')())
            if not np.allclose(expected, found, rtol=1e-4, atol=1e-3):
                raise ConversionError(
                    f'{part.labels}: {name.lower()}: expected '
                    f'{np.round(expected, 4).tolist()} as in {part.path}, '
                    f'found {np.round(found, 4).tolist()}')
        labels.CopyInformation(image)
        return self.findings_of(labels, cast(Path, part.labels), grid, volume)

    def findings_of(self, labels: sitk.Image, path: Path,
                    grid: Optional[sitk.Image], volume: Volume
                    ) -> List[Finding]:
        """The findings of a label image.

        Args:
            labels: The image.
            path: Its file, for errors.
            grid: That it is resampled to, where it is oblique.
            volume: The voxels of the image or the grid in the world.

        Raises:
            ConversionError: Its values are no labels, or a finding is lost
                when it is resampled.
        """
        values = np.array(_array(labels))
        most = len(self.classes) if self.label_values == 'classes' else 65535
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()
                and values.min() >= 0 and values.max() <= most):
            raise ConversionError(
                f'{path}: values: expected whole numbers from 0 to '
                f'{most}'
                + (' (one for each of --classes '
                   f'{" ".join(self.classes)})'
                   if self.label_values == 'classes' else '')
                + f', found {values.min():g} to {values.max():g}')
        kept = set(np.unique(values))
        if grid is not None:
            labels = sitk.Resample(labels, grid, sitk.Transform(),
                                   sitk.sitkNearestNeighbor, 0)
            values = np.array(_array(labels))
            if kept - {0} - set(np.unique(values)):
                raise ConversionError(
                    f'{path}: values: expected findings that are '
                    'larger than a voxel, found one that is lost when the '
                    'oblique volume is resampled')
        values = values.astype(np.int32)
        if self.label_values == 'findings':
            return self._components(values, 0, volume, 0)
        findings: List[Finding] = []
        for label in range(len(self.classes)):
            components, _ = ndimage.label(values == label + 1,
                                          np.ones((3, 3, 3)))
            findings += self._components(components, label, volume,
                                         len(findings))
        return findings

    @staticmethod
    def _components(values: np.ndarray, label: int, volume: Volume,
                    first: int) -> List[Finding]:
        """One finding for each value of an image but 0."""
        findings: List[Finding] = []
        for value, place in enumerate(ndimage.find_objects(values), 1):
            if place is None:
                continue
            mask = values[place] == value
            size = float(mask.sum() * volume.spacing.prod())
            findings.append(
                Finding(mask, np.array([s.start for s in place]), label=label,
                        record=dict(nodule_id=first + len(findings),
                                    diameter=(6 * size / np.pi)**(1 / 3),
                                    volume_mm3=size)))
        return findings

    @contextmanager
    def load(self, part: Part):
        """:meth:`read` for :func:`data_converters.convert.convert_scans`."""
        yield self.read(part)
