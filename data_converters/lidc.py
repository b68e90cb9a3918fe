"""LIDC-IDRI through pylidc: scans, HU volumes and consensus nodules.

pylidc 0.2.3 is used as it is, without touching the package, the home folder
or NumPy: :func:`load_pylidc` gives it what has gone from newer libraries.
"""

import importlib
import sys
import types
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Set, Tuple, Union

import numpy as np
from scipy.spatial.distance import cdist

from projects.core.geometry import LPS_TO_RAS
from projects.core.infos import CHARACTERISTICS

from .dicom import list_series, plain, read_series
from .drr import Volume
from .scan import ConversionError, Finding, Scan

# Slice positions are irregular in the database (a gap of 38 mm in 0514);
# phantoms are not made of these.
UNEVEN_SCANS = ('LIDC-IDRI-0123', 'LIDC-IDRI-0267', 'LIDC-IDRI-0514',
                'LIDC-IDRI-0672')
# What counts in LUNA16: findings of so many readers and so large (mm), in
# scans whose slices are not thicker (mm).
LUNA16 = dict(min_readers=3, min_diameter=3., max_thickness=2.5)

__all__ = [
    'LUNA16', 'Nodule', 'UNEVEN_SCANS', 'consensus_nodules', 'find_scans',
    'load_pylidc', 'query_scan', 'read_scan', 'scan_key', 'thin_scans'
]


class _OldNumpy(types.ModuleType):
    """NumPy with the aliases that pylidc still uses."""

    int, float, bool = int, float, bool

    def __getattr__(self, name):
        return getattr(np, name)


def load_pylidc():
    """Import pylidc 0.2.3 on today's libraries.

    Returns:
        module: ``pylidc``.
    """
    if 'pylidc' in sys.modules:
        return sys.modules['pylidc']
    # It asks pkg_resources, which is gone from newer setuptools, for the
    # place of its own database.
    def resource_filename(package: str, name: str) -> str:
        spec = importlib.util.find_spec(package.split('.')[0])
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(package)
        return str(Path(spec.origin).parent / name)

    stub = types.ModuleType('pkg_resources')
    vars(stub)['resource_filename'] = resource_filename
    saved = sys.modules.get('pkg_resources')
    sys.modules['pkg_resources'] = stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            module = importlib.import_module('pylidc')
    finally:
        if saved is None:
            del sys.modules['pkg_resources']
        else:
            sys.modules['pkg_resources'] = saved
    for name in ('Annotation', 'Contour', 'Scan', 'utils'):
        part = sys.modules.get(f'pylidc.{name}')
        if part is not None and hasattr(part, 'np'):
            vars(part)['np'] = _OldNumpy('numpy')
    return module


def scan_key(scan) -> str:
    """Unique name of a scan: its patient, numbered where there are two."""
    pylidc = load_pylidc()
    siblings = [
        uid for uid, in pylidc.query(pylidc.Scan.series_instance_uid).filter(
            pylidc.Scan.patient_id == scan.patient_id).order_by(
                pylidc.Scan.id)
    ]
    number = siblings.index(scan.series_instance_uid)
    return scan.patient_id + (f'_{number}' if number else '')


def query_scan(series_uid: str):
    """pylidc's scan of a series.

    Raises:
        ConversionError: pylidc does not know it.
    """
    pylidc = load_pylidc()
    scan = pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.series_instance_uid == series_uid).first()
    if scan is None:
        raise ConversionError(f'{series_uid}: series: expected a scan that '
                              'pylidc knows, found none')
    return scan


def find_scans(dicom_root: Union[str, Path]
               ) -> Tuple[List[str], Dict[str, str]]:
    """What can be converted of the folders below a root.

    Returns:
        tuple: Series UIDs of the scans whose patient has a folder with
        their series, and why there are others, {name: reason}: the names are
        those of folders, or :func:`scan_key` for a patient's second scan.

    Raises:
        ConversionError: The folder is missing, or there is nothing in it
            that can be converted.
    """
    root = Path(dicom_root)
    if not root.is_dir():
        raise ConversionError(f'{root}: --dicom-root: expected a folder with '
                              'LIDC-IDRI-* patients, found none')
    pylidc = load_pylidc()
    known: Dict[str, list] = {}
    for scan in pylidc.query(pylidc.Scan).order_by(pylidc.Scan.id):
        known.setdefault(scan.patient_id, []).append(scan)
    found, skipped = [], {}
    present = _folders(root)
    for name in present:
        if name not in known:
            skipped[plain(name)] = 'expected a patient that pylidc knows'
            continue
        scans = known[name]
        try:
            uids = _present_series(root / name, scans)
        except ConversionError as error:
            skipped[name] = str(error)
            continue
        if not uids:
            skipped[name] = 'expected DICOM files of its scan, found none'
            continue
        for scan in scans:
            uid = scan.series_instance_uid
            if uid in uids:
                found.append(uid)
            else:
                skipped[scan_key(scan)] = f'expected series {uid}, found none'
    if not found:
        first = ''.join(f' ({name}: {reason})'
                        for name, reason in list(skipped.items())[:1])
        raise ConversionError(
            f'{plain(root)}: --dicom-root: expected patients that pylidc '
            f'knows, as LIDC-IDRI-0001, with their series, found '
            f'{len(present)} folders and none of them{first}')
    return found, skipped


def thin_scans(series_uids: List[str], max_thickness: float
               ) -> Tuple[List[str], Dict[str, str]]:
    """Those scans whose slices are not thicker (mm, as pylidc says), and why
    the others are none of them, {name: reason}."""
    found, skipped = [], {}
    for uid in series_uids:
        scan = query_scan(uid)
        if scan.slice_thickness <= max_thickness:
            found.append(uid)
        else:
            skipped[scan_key(scan)] = (
                f'slice thickness: expected at most {max_thickness:g} mm, '
                f'found {scan.slice_thickness:g}')
    return found, skipped


def _folders(root: Path) -> List[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    try:
        return sorted(p.name for p in root.iterdir()
                      if p.is_dir() and not p.name.startswith('.'))
    except OSError as error:
        raise ConversionError(
            f'{plain(root)}: --dicom-root: expected a folder that can be '
            f'read, found {error.strerror}') from None


def _present_series(folder: Path, scans: list) -> Set[str]:
    """Series UIDs that a patient's folder may have of their scans; only two
    scans need a look at more than one file."""
    missing = {scan.series_instance_uid for scan in scans}
    present = set()
    for uid in list_series(folder):
        if len(scans) == 1:
            return missing
        present |= missing & {uid}
        missing.discard(uid)
        if not missing:
            break
    return present


@dataclass
class Nodule:
    """Consensus of the readers on one nodule.

    Attributes:
        mask: Boolean voxels of the tight box, in pylidc's index order (row,
            column, slice).
        start: (3,) first index of the box.
        volume: Of the mask (mm³).
        num_readers: Readers who outlined it.
        characteristics: Mean rating of each of the nine.
        median_malignancy: Median rating of this one; None without readers.
    """
    mask: np.ndarray
    start: np.ndarray
    volume: float
    num_readers: int
    characteristics: Dict[str, float]
    median_malignancy: Optional[float] = None

    @property
    def diameter(self) -> float:
        """Of the sphere with the mask's volume (mm)."""
        return float((6 * self.volume / np.pi)**(1 / 3))

    def within(self, shape: Tuple[int, int, int]) -> Optional['Nodule']:
        """What of it lies in a volume of this shape; None if nothing does."""
        low = np.maximum(-self.start, 0)
        high = np.maximum(np.asarray(shape) - self.start, 0)
        part = self.mask[tuple(map(slice, low, high))]
        return replace(self, mask=part, start=self.start + low).tight()

    def resliced(self, nearest: np.ndarray) -> Optional['Nodule']:
        """Its voxels where slice k shows what slice ``nearest[k]`` did;
        None if there are none."""
        source = nearest - self.start[2]
        kept = np.flatnonzero((source >= 0) & (source < self.mask.shape[2]))
        if len(kept) == 0:
            return None
        return replace(self, mask=self.mask[..., source[kept]],
                       start=np.array([*self.start[:2], kept[0]])).tight()

    def tight(self) -> Optional['Nodule']:
        """With a box that has no empty side; None if it has no voxels."""
        used = np.argwhere(self.mask)
        if len(used) == 0:
            return None
        low, high = used.min(0), used.max(0) + 1
        return replace(self, mask=self.mask[tuple(map(slice, low, high))],
                       start=self.start + low)

    def finding(self, number: int) -> Finding:
        """The scan's nodule of this number, in a volume's index order."""
        return Finding(
            self.mask.transpose(1, 0, 2), self.start[[1, 0, 2]],
            record=dict(
                nodule_id=number, diameter=self.diameter,
                volume_mm3=self.volume, num_readers=self.num_readers,
                characteristics=self.characteristics,
                median_malignancy=self.median_malignancy))


def _outline_distance() -> Callable:
    """pylidc's default metric, which makes every outline only once."""
    outlines = {}

    def distance(first, second) -> float:
        for reading in (first, second):
            if reading.id not in outlines:
                outlines[reading.id] = reading.contours_matrix
        return cdist(outlines[first.id], outlines[second.id]).min()

    return distance


def consensus_nodules(scan) -> List[Nodule]:
    """Nodules of a pylidc scan: voxels that at least half of its readers
    outlined, in a box that is tight round them."""
    load_pylidc()
    from pylidc.utils import consensus
    nodules = []
    voxel = scan.pixel_spacing**2 * scan.slice_spacing
    for cluster in scan.cluster_annotations(_outline_distance(),
                                            verbose=False):
        mask, box = consensus(cluster, clevel=.5, ret_masks=False)
        if not mask.any():  # outlines that never agree
            continue
        ratings = {
            name: float(np.mean([getattr(a, name) for a in cluster]))
            for name in CHARACTERISTICS
        }
        nodule = Nodule(mask, np.array([s.start for s in box]),
                        float(mask.sum() * voxel), len(cluster), ratings,
                        float(np.median([a.malignancy for a in cluster]))
                        ).tight()
        if nodule is not None:
            nodules.append(nodule)
    return nodules


def read_scan(series_uid: str, dicom_root: Union[str, Path]) -> Scan:
    """Read one scan's DICOM series and its nodules.

    Geometry comes from the DICOM headers (pylidc ignores the orientation);
    slice positions must be those of pylidc's database. What was mended is in
    the scan's ``repairs``, see :mod:`data_converters.dicom`.

    Raises:
        ConversionError: The series is missing, damaged beyond repair, or
            contradicts the database or itself.
    """
    scan = query_scan(series_uid)
    folder = Path(dicom_root) / scan.patient_id
    nodules = consensus_nodules(scan)
    series = read_series(
        folder, series_uid, np.sort(np.asarray(scan.slice_zvals, float)),
        str(scan.sorted_dicom_file_names).split(','),
        {n.start[2] + k for n in nodules
         for k in np.flatnonzero(n.mask.any((0, 1)))})
    spacing = np.linalg.norm(series.index2lps[:3, :2], axis=0)
    if np.abs(spacing / scan.pixel_spacing - 1).max() > .01:
        raise ConversionError(
            f'{plain(folder)}: PixelSpacing: expected '
            f'{scan.pixel_spacing:g} mm as in pylidc, found {spacing[1]:g}, '
            f'{spacing[0]:g} mm')
    lps, start = series.index2lps[:3, :3], series.index2lps[:3, 3]
    volume = Volume.centred(series.values, LPS_TO_RAS @ lps)
    ct2patient = np.eye(4)
    ct2patient[:3, :3] = LPS_TO_RAS
    ct2patient[:3, 3] = start + lps @ (
        (np.array(volume.values.shape) - 1) / 2)
    findings, repairs = [], series.repairs
    columns, rows, _ = volume.values.shape
    for number, nodule in enumerate(nodules):
        inside = nodule.within((rows, columns, len(scan.slice_zvals)))
        if inside is not None and inside.mask.sum() < nodule.mask.sum():
            repairs.append(f'Nodule {number} lies partly outside the volume: '
                           'it was clipped.')
        inside = inside and inside.resliced(series.nearest)
        if inside is None:
            repairs.append(f'Nodule {number} lies outside the volume: it was '
                           'dropped.')
        else:
            findings.append(inside.finding(number))
    return Scan(
        scan_key(scan), scan.patient_id, series_uid, series.frame_uid,
        volume, ct2patient, findings, repairs)
