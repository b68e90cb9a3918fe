"""LIDC-IDRI through pylidc: scans, HU volumes and consensus nodules.

pylidc 0.2.3 is used as it is, without touching the package, the home folder
or NumPy: :func:`load_pylidc` gives it what has gone from newer libraries.
"""

import importlib
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Union

import numpy as np
from scipy.spatial.distance import cdist

from projects.mv2d_xray.infos import CHARACTERISTICS

from .drr import Volume
from .scan import ConversionError, Finding, Scan

# Slice positions are irregular in the database (a gap of 38 mm in 0514).
UNEVEN_SCANS = ('LIDC-IDRI-0123', 'LIDC-IDRI-0267', 'LIDC-IDRI-0514',
                'LIDC-IDRI-0672')
_LPS_TO_RAS = np.diag([-1., -1., 1.])

__all__ = [
    'Nodule', 'UNEVEN_SCANS', 'consensus_nodules', 'find_scans',
    'load_pylidc', 'query_scan', 'read_scan', 'scan_key'
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
    stub = types.ModuleType('pkg_resources')
    stub.resource_filename = lambda package, name: str(
        Path(importlib.util.find_spec(package.split('.')[0]).origin).parent /
        name)
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
            part.np = _OldNumpy('numpy')
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


def find_scans(dicom_root: Union[str, Path]) -> List[str]:
    """Series UIDs of the scans whose patient has a folder below the root.

    Scans of uneven slice positions, :data:`UNEVEN_SCANS`, are left out.

    Raises:
        ConversionError: The folder is missing, or has no patient that pylidc
            knows.
    """
    root = Path(dicom_root)
    if not root.is_dir():
        raise ConversionError(f'{root}: --dicom-root: expected a folder with '
                              'LIDC-IDRI-* patients, found none')
    pylidc = load_pylidc()
    present = {p.name for p in root.iterdir() if p.is_dir()}
    scans = [
        scan.series_instance_uid
        for scan in pylidc.query(pylidc.Scan).order_by(
            pylidc.Scan.patient_id, pylidc.Scan.id)
        if scan.patient_id in present - set(UNEVEN_SCANS)
        and _has_series(root, scan)
    ]
    if not scans:
        raise ConversionError(
            f'{root}: --dicom-root: expected patients that pylidc knows, as '
            f'LIDC-IDRI-0001, with their series, found {len(present)} '
            'folders and none of them')
    return scans


def _has_series(root: Path, scan) -> bool:
    """Only a patient with two scans needs a look into the files."""
    siblings = load_pylidc().query(type(scan)).filter(
        type(scan).patient_id == scan.patient_id).count()
    if siblings == 1:
        return True
    import pydicom
    for folder in {p.parent for p in (root / scan.patient_id).rglob('*.dcm')}:
        first = next(folder.glob('*.dcm'))
        header = pydicom.dcmread(first, stop_before_pixels=True)
        if header.get('SeriesInstanceUID') == scan.series_instance_uid:
            return True
    return False


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
    """
    mask: np.ndarray
    start: np.ndarray
    volume: float
    num_readers: int
    characteristics: Dict[str, float]

    @property
    def diameter(self) -> float:
        """Of the sphere with the mask's volume (mm)."""
        return float((6 * self.volume / np.pi)**(1 / 3))

    def finding(self, number: int) -> Finding:
        """The scan's nodule of this number, in a volume's index order."""
        return Finding(
            self.mask.transpose(1, 0, 2), self.start[[1, 0, 2]],
            record=dict(
                nodule_id=number, diameter=self.diameter,
                volume_mm3=self.volume, num_readers=self.num_readers,
                characteristics=self.characteristics))


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
        used = np.argwhere(mask)
        if len(used) == 0:  # outlines that never agree
            continue
        low, high = used.min(0), used.max(0) + 1
        start = np.array([s.start for s in box]) + low
        mask = mask[tuple(slice(a, b) for a, b in zip(low, high))]
        ratings = {
            name: float(np.mean([getattr(a, name) for a in cluster]))
            for name in CHARACTERISTICS
        }
        nodules.append(
            Nodule(mask, start, float(mask.sum() * voxel), len(cluster),
                   ratings))
    return nodules


def read_scan(series_uid: str, dicom_root: Union[str, Path]) -> Scan:
    """Read one scan's DICOM series and its nodules.

    Geometry comes from the DICOM headers (pylidc ignores the orientation);
    slice positions must be those of pylidc's database.

    Raises:
        ConversionError: The series is missing, or contradicts the database
            or itself.
    """
    scan = query_scan(series_uid)
    module = sys.modules['pylidc.Scan']
    module._get_dicom_file_path_from_config_file = lambda: str(dicom_root)
    where = f'{Path(dicom_root) / scan.patient_id}'
    try:
        slices = scan.load_all_dicom_images(verbose=False)
    except Exception as error:  # pylidc and pydicom raise many kinds
        raise ConversionError(
            f'{where}: DICOM series: cannot be read: {error}') from error
    heights = np.array([float(s.ImagePositionPatient[2]) for s in slices])
    expected = np.sort(np.asarray(scan.slice_zvals, dtype=float))
    if len(heights) != len(expected):
        raise ConversionError(f'{where}: slices: expected {len(expected)} as '
                              f'in pylidc, found {len(heights)}')
    if np.abs(heights - expected).max() > .01:
        raise ConversionError(
            f'{where}: ImagePositionPatient z: expected {expected[0]:g} to '
            f'{expected[-1]:g} mm as in pylidc, found {heights[0]:g} to '
            f'{heights[-1]:g} mm')
    steps = np.diff(expected)
    if len(steps) and np.ptp(steps) > .05 * steps.mean():
        raise ConversionError(
            f'{where}: slice spacing: expected even, found {steps.min():g} '
            f'to {steps.max():g} mm')
    first, last = slices[0], slices[-1]
    try:
        orientation = np.array(first.ImageOrientationPatient, dtype=float)
        spacing = np.array(first.PixelSpacing, dtype=float)
        hu = np.empty((len(slices), first.Rows, first.Columns), np.float32)
        for image, s in zip(hu, slices):
            image[:] = s.pixel_array
            image *= float(s.RescaleSlope)
            image += float(s.RescaleIntercept)
    except Exception as error:  # missing fields, damaged pixels
        raise ConversionError(
            f'{where}: DICOM series: cannot be read: {error}') from error
    if not np.allclose(np.cross(orientation[:3], orientation[3:]),
                       [0, 0, 1], atol=1e-3):
        raise ConversionError(
            f'{where}: ImageOrientationPatient: expected axial slices seen '
            f'from the feet, found {orientation.tolist()}')
    start = np.array(first.ImagePositionPatient, dtype=float)
    end = np.array(last.ImagePositionPatient, dtype=float)
    lps = np.stack([
        orientation[:3] * spacing[1], orientation[3:] * spacing[0],
        (end - start) / max(len(slices) - 1, 1)
    ], 1)
    volume = Volume.centred(hu.transpose(2, 1, 0), _LPS_TO_RAS @ lps)
    centre = start + lps @ ((np.array(volume.values.shape) - 1) / 2)
    ct2patient = np.eye(4)
    ct2patient[:3, :3] = _LPS_TO_RAS
    ct2patient[:3, 3] = centre
    return Scan(
        scan_key(scan), scan.patient_id, series_uid,
        str(first.get('FrameOfReferenceUID', '')), volume, ct2patient,
        [n.finding(i) for i, n in enumerate(consensus_nodules(scan))])
