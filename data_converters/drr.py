"""Digitally reconstructed radiographs: a CT volume seen by a rig.

Every renderer gives the line integral of attenuation along each pixel's ray,
for the same volume and the same rays:

- ``siddon``, ``trilinear``: DiffDRR's renderers, the reference;
- ``nanodrr``: the successor by DiffDRR's author;
- ``joseph``: Joseph's method (IEEE Trans. Med. Imaging 1(3), 1982): bilinear
  samples where the ray crosses the voxel planes of its main axis. The same
  interpolated volume as ``trilinear``, many times as fast on a CPU.
"""

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from projects.core import geometry
from projects.core.acquisition import BONE_IN_WATER
from projects.core.rig import Rig, View

from . import joseph

MU_WATER = .02  # 1/mm, at about 70 keV
# Soft tissue counts as up to this times its length of water (150 HU).
_SOFT = 1.15
# Bone changes a beam smoothly: its image has pixels so much larger, which
# costs a quarter.
_BONE_STEP = 2
# Less than this is air (HU < -900): the box round the body leaves it out.
_MU_AIR = .002
# So many are converted at a time.
_SLICES = 8

__all__ = [
    'MU_WATER', 'RENDERERS', 'Volume', 'bone_share', 'hu_to_mu', 'render',
    'render_with_bone'
]


@dataclass
class Volume:
    """A scalar volume in the world frame.

    Attributes:
        values: (X, Y, Z) float32; HU or attenuation (1/mm).
        voxel2ct: (4, 4), voxel index to world (mm); integer indices are
            voxel centres.
    """
    values: np.ndarray
    voxel2ct: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Edge lengths of a voxel (mm), (3,)."""
        return np.linalg.norm(self.voxel2ct[:3, :3], axis=0)

    @classmethod
    def centred(cls, values: np.ndarray, directions: np.ndarray) -> 'Volume':
        """Volume whose grid's centre is the world's origin.

        Args:
            values: (X, Y, Z).
            directions: (3, 3), columns are the steps of one voxel (mm).
        """
        voxel2ct = np.eye(4)
        voxel2ct[:3, :3] = directions
        voxel2ct[:3, 3] = -directions @ ((np.array(values.shape) - 1) / 2)
        return cls(values, voxel2ct)

    def cropped(self, low, high) -> 'Volume':
        """Voxels ``low <= index < high`` at their place in the world."""
        shifted = self.voxel2ct.copy()
        shifted[:3, 3] += self.voxel2ct[:3, :3] @ np.asarray(low, float)
        index = tuple(slice(a, b) for a, b in zip(low, high))
        return Volume(self.values[index], shifted)

    def averaged(self, factors) -> 'Volume':
        """Blocks of ``factors`` voxels replaced by their mean; a last
        incomplete block is filled with zeros."""
        if max(factors) == 1:
            return self
        padding = -np.array(self.values.shape) % factors
        # Reversed axes: a DICOM volume has its columns side by side.
        tensor = torch.from_numpy(np.ascontiguousarray(self.values.T))
        tensor = F.pad(tensor, [v for n in padding for v in (0, int(n))])
        values = F.avg_pool3d(tensor[None], tuple(map(int, factors))[::-1])[0]
        return Volume(values.numpy().T, self.voxel2ct @ _scale(factors))


def _scale(factors) -> np.ndarray:
    """Index of a block of ``factors`` voxels to that of its middle, (4, 4)."""
    scale = np.diag([*factors, 1.]).astype(float)
    scale[:3, 3] = (np.array(factors) - 1) / 2
    return scale


def hu_to_mu(hu: np.ndarray) -> np.ndarray:
    """Hounsfield units to linear attenuation (1/mm), never negative."""
    mu = hu.astype(np.float32)
    mu *= MU_WATER / 1000
    mu += MU_WATER
    return np.maximum(mu, 0, out=mu)


def prepare(hu: Volume, rig: Rig) -> Volume:
    """Attenuation, averaged to the detector's resolution, cropped to the body.

    The detector cannot show detail finer than its pixel's size at the
    isocentre; averaging to at most that is the anti-aliasing that a point
    sample per pixel lacks, and makes small images cheap.
    """
    return _fitted(hu, hu_to_mu, rig, _MU_AIR)


def _fitted(hu: Volume, convert: Callable[[np.ndarray], np.ndarray], rig: Rig,
            least: float) -> Volume:
    """What ``convert`` makes of a volume, averaged to the detector's
    resolution, and of it the box round voxels above ``least`` with one more on
    each side. A few slices at a time: beside the result there is no second
    volume."""
    finest = min(view.pixel_size for view in rig.views)
    factors = np.maximum((finest / hu.spacing).astype(int), 1)
    values = np.empty(-(-np.array(hu.values.shape) // factors), np.float32)
    used = [np.zeros(n, bool) for n in values.shape]
    step = max(_SLICES // factors[2], 1)
    for start in range(0, values.shape[2], step):
        low, high = np.array([start, start + step]) * factors[2]
        block = Volume(convert(hu.values[:, :, low:high]),
                       hu.voxel2ct).averaged(factors).values
        here = slice(start, start + step)
        values[:, :, here] = block
        wanted = block > least
        seen = wanted.any(2)
        used[0] |= seen.any(1)
        used[1] |= seen.any(0)
        used[2][here] = wanted.any((0, 1))
    low, high = [0] * 3, [1] * 3
    if used[0].any():
        ends = [np.flatnonzero(u)[[0, -1]] for u in used]
        low = [max(first - 1, 0) for first, _ in ends]
        high = [min(last + 2, n) for (_, last), n in zip(ends, values.shape)]
    box = Volume(values, hu.voxel2ct @ _scale(factors)).cropped(low, high)
    # Moved to the front of the same memory, where nothing is needed any more.
    packed = values.reshape(-1)[:box.values.size].reshape(box.values.shape)
    for index, plane in enumerate(box.values):
        packed[index] = plane
    return Volume(packed, box.voxel2ct)


def bone_share(hu: np.ndarray) -> np.ndarray:
    """Share of a voxel that is cortical bone, by its Hounsfield units.

    The rest is soft tissue that counts as 1.15 of its length of water, so
    that both together are the voxel's attenuation; at 1500 HU there is no
    rest, and above bone is denser.
    """
    share = np.zeros(hu.shape, np.float32)
    hard = hu > 1000 * (_SOFT - 1)
    water = 1 + hu[hard].astype(np.float32) / 1000
    share[hard] = np.minimum((water - _SOFT) / (BONE_IN_WATER - _SOFT),
                             water / BONE_IN_WATER)
    return share


# ------------------------------------------------------------------ renderers
def _far_depth(mu: Volume, view: View) -> float:
    """A depth behind every voxel (mm)."""
    corners = np.array(
        np.meshgrid(*[(-1, n) for n in mu.values.shape])).reshape(3, -1)
    world = mu.voxel2ct[:3, :3] @ corners + mu.voxel2ct[:3, 3:]
    depth = view.ct2cam[2, :3] @ world + view.ct2cam[2, 3]
    return float(max(depth.max(), 1.)) + 1.


def _ahead(mu: Volume, view: View) -> np.ndarray:
    """Values without those behind the source; Siddon's lines have no end."""
    row = view.ct2cam[2] @ mu.voxel2ct
    depth = row[3] + sum(
        step * np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (step, n) in enumerate(zip(row, mu.values.shape)))
    return mu.values * (depth > 0) if depth.min() <= 0 else mu.values


def _pixels(view: View, rows: slice) -> np.ndarray:
    """Pixel centres (N, 2) of some rows (px)."""
    v, u = np.meshgrid(
        np.arange(rows.start, rows.stop) + .5,
        np.arange(view.width) + .5, indexing='ij')
    return np.stack([u, v], -1).reshape(-1, 2)


def _strips(view: View, pixels: int):
    rows = max(pixels // view.width, 1)
    for start in range(0, view.height, rows):
        yield slice(start, min(start + rows, view.height))


def _joseph(mu: Volume, rig: Rig, device: str) -> List[np.ndarray]:
    if torch.device(device).type == 'cpu':
        return _joseph_cpu(mu, rig)
    return _joseph_torch(mu, rig, device)


def _joseph_torch(mu: Volume, rig: Rig, device: str) -> List[np.ndarray]:
    values = torch.from_numpy(np.ascontiguousarray(mu.values)).to(device)
    ct2voxel = np.linalg.inv(mu.voxel2ct)
    images = []
    for view in rig.views:
        image = torch.zeros(view.height * view.width, device=device)
        source, direction = geometry.rays(
            _pixels(view, slice(0, view.height)), view.ct2img)
        # In voxel indices; directions keep their length of 1 mm.
        source = ct2voxel[:3, :3] @ source[0] + ct2voxel[:3, 3]
        direction = direction @ ct2voxel[:3, :3].T
        main = np.abs(direction).argmax(1)
        for axis in range(3):
            here = np.flatnonzero(main == axis)
            if len(here):
                image[torch.from_numpy(here).to(device)] = _joseph_axis(
                    values, source, direction[here], axis)
        images.append(image.reshape(view.height, view.width).cpu().numpy())
    return images


def _joseph_cpu(mu: Volume, rig: Rig) -> List[np.ndarray]:
    values = np.ascontiguousarray(mu.values)
    ct2voxel = np.linalg.inv(mu.voxel2ct)
    images = []
    for view in rig.views:
        pixels = np.array([[.5, .5], [1.5, .5], [.5, 1.5]])
        ends = geometry.unproject(pixels, np.ones(3), view.ct2img)
        source = geometry.camera_centres(view.ct2img)
        corner, right, below = (ends - source) @ ct2voxel[:3, :3].T
        images.append(joseph.project(
            values, ct2voxel[:3, :3] @ source + ct2voxel[:3, 3], corner,
            right - corner, below - corner, mu.voxel2ct[:3, :3], view.width,
            view.height))
    return images


def _joseph_axis(values: torch.Tensor, source: np.ndarray,
                 direction: np.ndarray, axis: int) -> torch.Tensor:
    """Integrals of rays whose main axis is ``axis``, (N,)."""
    # grid_sample's last coordinate runs fastest: planes (P, rows, columns).
    rows, columns = [a for a in range(3) if a != axis]
    planes = values.permute(axis, rows, columns)[:, None].contiguous()
    lead = direction[:, axis]
    lead = np.where(np.abs(lead) < 1e-9, 1e-9, lead)
    slope = direction[:, [columns, rows]] / lead[:, None]
    base = source[[columns, rows]] - source[axis] * slope
    # Index to grid_sample's [-1, 1] with align_corners=False.
    size = np.array([planes.shape[3], planes.shape[2]])
    slope, base = 2 * slope / size, (2 * base + 1) / size - 1
    slope = torch.from_numpy(slope).float().to(values.device)
    base = torch.from_numpy(base).float().to(values.device)
    total = torch.zeros(len(lead), device=values.device)
    forward = torch.from_numpy(np.sign(lead)).float().to(values.device)
    # Whether a ray has planes behind its source, which it must not see.
    behind = any(((end - source[axis]) * lead < 0).any()
                 for end in (0, len(planes) - 1))
    block = max(1_000_000 // len(lead), 1)  # keeps the samples in cache
    for start in range(0, len(planes), block):
        index = torch.arange(start, min(start + block, len(planes)),
                             device=values.device, dtype=torch.float32)
        grid = base + index[:, None, None] * slope
        sampled = F.grid_sample(planes[start:start + block], grid[:, :, None],
                                align_corners=False)[:, 0, :, 0]
        if behind:
            ahead = (index[:, None] - float(source[axis])) * forward > 0
            sampled = sampled * ahead
        total += sampled.sum(0)
    return total / torch.from_numpy(np.abs(lead)).float().to(values.device)


def _nanodrr(mu: Volume, rig: Rig, device: str) -> List[np.ndarray]:
    from nanodrr.data import Subject
    from nanodrr.drr import render as nanodrr_render
    size = np.array(mu.values.shape)
    voxel_to_grid = np.diag([*(2 / size), 1.])
    voxel_to_grid[:3, 3] = 1 / size - 1
    data = torch.from_numpy(
        np.ascontiguousarray(mu.values.transpose(2, 1, 0)))[None, None]

    def tensor(array):
        return torch.as_tensor(array, dtype=torch.float32, device=device)

    subject = Subject(
        data.to(device), torch.zeros_like(data).to(device),
        tensor(mu.voxel2ct), tensor(np.linalg.inv(mu.voxel2ct)),
        tensor(voxel_to_grid), torch.zeros(3, device=device), max_label=0,
        convert_to_mu=False)
    extent = np.linalg.norm(mu.spacing * size)
    samples = int(np.ceil(extent / mu.spacing.min()))
    images = []
    for view in rig.views:
        depth = _far_depth(mu, view)
        pose = tensor(geometry.invert_rigid(view.ct2cam))[None]
        strips = []
        for rows in _strips(view, 8192):
            pixels = _pixels(view, rows)
            target = geometry.unproject(
                pixels, np.full(len(pixels), depth), view.cam2img)
            strips.append(
                nanodrr_render(
                    subject, tensor(np.eye(3))[None], pose,
                    tensor([depth]), rows.stop - rows.start, view.width,
                    n_samples=samples, src=torch.zeros(1, 1, 3).to(device),
                    tgt=tensor(target)[None])[0, 0])
        images.append(torch.cat(strips).cpu().numpy())
    return images


def _diffdrr(renderer: str, **options) -> Callable:

    def run(mu: Volume, rig: Rig, device: str) -> List[np.ndarray]:
        from diffdrr.drr import DRR
        from torchio import ScalarImage, Subject
        data = torch.from_numpy(np.ascontiguousarray(mu.values))[None]
        image = ScalarImage(tensor=data, affine=mu.voxel2ct)
        # Rays come from our own geometry, so DiffDRR's detector (and with it
        # its axes, and the HU scale of its reader) is left out.
        subject = Subject(volume=image, density=image, mask=None,
                          reorient=torch.eye(4), fiducials=None)
        drr = DRR(subject, sdd=1., height=2, delx=1., renderer=renderer
                  ).to(device)
        images = []
        for view in rig.views:
            depth = _far_depth(mu, view)
            density = torch.from_numpy(
                np.ascontiguousarray(_ahead(mu, view))).to(drr.density)
            source = torch.as_tensor(
                geometry.camera_centres(view.ct2img), dtype=torch.float32,
                device=device)[None, None]
            strips = []
            for rows in _strips(view, 4096):
                pixels = _pixels(view, rows)
                ends = geometry.unproject(
                    pixels, np.full(len(pixels), depth), view.ct2img)
                target = torch.as_tensor(ends, dtype=torch.float32,
                                         device=device)[None]
                strips.append(
                    drr.render(density, source, target, **options)
                    .reshape(-1, view.width))
            images.append(torch.cat(strips).cpu().numpy())
        return images

    return run


RENDERERS: Dict[str, Callable] = dict(
    siddon=_diffdrr('siddon'), trilinear=_diffdrr('trilinear', n_points=500),
    nanodrr=_nanodrr, joseph=_joseph)


@torch.no_grad()
def render(hu: Volume, rig: Rig, renderer: str = 'joseph',
           device: str = 'cpu') -> list:
    """Line integrals of attenuation through a CT volume.

    Args:
        hu (Volume): Hounsfield units.
        rig (Rig): The views; detectors may differ in size.
        renderer (str): One of :data:`RENDERERS`.
        device (str): Torch device.

    Returns:
        list[np.ndarray]: One (H, W) float32 image per view, dimensionless.

    Raises:
        ValueError: The renderer is unknown.
    """
    if renderer not in RENDERERS:
        raise ValueError(f'renderer: expected one of {list(RENDERERS)}, '
                         f'found "{renderer}"')
    if not rig.views:
        return []
    return _render(prepare(hu, rig), rig, renderer, device)


@torch.no_grad()
def render_with_bone(hu: Volume, rig: Rig, renderer: str = 'joseph',
                     device: str = 'cpu') -> Tuple[list, Optional[list]]:
    """As :func:`render`, and the cortical bone on each ray (mm), which counts
    in the line integrals as ``BONE_IN_WATER`` times its length of water; None
    where there is none."""
    images = render(hu, rig, renderer, device)
    if not rig.views:
        return images, None
    bone = _fitted(hu, bone_share, rig, 0.)
    if not bone.values.any():
        return images, None
    coarse = [Rig([view]).resized(-(-view.width // _BONE_STEP),
                                  -(-view.height // _BONE_STEP)).views[0]
              for view in rig.views]
    lengths = [
        cv2.resize(image, (view.width, view.height),
                   interpolation=cv2.INTER_LINEAR)
        for view, image in zip(
            rig.views, _render(bone, Rig(coarse), renderer, device))]
    # Where coarse pixels blur its border there is no more than all.
    return images, [np.minimum(length, image / (BONE_IN_WATER * MU_WATER))
                    for length, image in zip(lengths, images)]


def _render(volume: Volume, rig: Rig, renderer: str, device: str) -> list:
    if not volume.values.any():
        return [np.zeros((v.height, v.width), np.float32) for v in rig.views]
    return [RENDERERS[renderer](volume, Rig([view]), device)[0]
            for view in rig.views]
