"""Findings that a CT would show: soft as the scanner makes all borders.

A solid is a mask of voxels and what it is made of. What is painted is the
solid as the scanner sees it: blurred by the scan's point spread and slice
profile, so that small ones are paler (partial volume), uneven inside, with
the noise of the tissue around. Tissue that is denser stays: a vessel
crosses a finding, and a finding at the pleura grows out of it.

Arrays are (row, column, slice), as pylidc's.
"""

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

import numpy as np
from scipy import ndimage

from .chest import AIR

# Mean HU by LIDC's texture rating: 1 ground glass, 3 part solid, 5 solid, and
# what is added by its calcification rating; 6 is none. A finding's own are
# drawn about these.
_TEXTURE_HU = (-600., -500., -300., -60., 30.)  # of 1, 2, 3, 4, 5
_CALCIUM_HU = {1: 250., 2: 250., 3: 400., 4: 150., 5: 250.}
_VESSEL_HU = 40.
_FINE = .3  # mm: thin solids are drawn in voxels as small

__all__ = [
    'Material', 'Patch', 'draw_material', 'lobulated', 'paint', 'tube'
]


@dataclass
class Material:
    """What a solid is made of.

    Attributes:
        hu: Mean.
        unevenness: Deviation of smooth changes inside (HU).
        core: Share of the way to its centre from which on it has ``core_hu``;
            none where it is 0.
        core_hu: Mean HU of the core.
        vessel: Radius (mm) of a vessel that runs into it; none where 0.
        spicules: How many thin strands leave it.
    """
    hu: float
    unevenness: float = 0.
    core: float = 0.
    core_hu: float = 0.
    vessel: float = 0.
    spicules: int = 0


@dataclass
class Patch:
    """What changes in a part of a scan.

    Attributes:
        start: (3,) first voxel.
        share: (R, C, S) share of each voxel that is replaced.
        hu: (R, C, S) by what.
        stays: HU from which on tissue is not replaced; all is where None.
    """
    start: np.ndarray
    share: np.ndarray
    hu: np.ndarray
    stays: Optional[float] = None

    def slices(self) -> range:
        """Of the scan."""
        return range(self.start[2], self.start[2] + self.share.shape[2])

    def apply(self, image: np.ndarray, k: int) -> None:
        """Change a slice (rows, columns) of HU, in place."""
        low = np.maximum(self.start[:2], 0)
        high = np.minimum(self.start[:2] + self.share.shape[:2], image.shape)
        if (high <= low).any():
            return
        place = tuple(map(slice, low, high))
        own = tuple(map(slice, low - self.start[:2], high - self.start[:2]))
        layer = k - self.start[2]
        part = image[place]
        share = self.share[own][..., layer]
        if self.stays is not None:
            # Soft, or a border would be where the old noise crosses a value.
            width = .3 * (self.stays - AIR)
            share = share * np.clip((self.stays - part) / width, 0, 1)
        image[place] = part + share * (self.hu[own][..., layer] - part)


def draw_material(characteristics: dict, rng: np.random.Generator
                  ) -> Material:
    """Of a nodule with LIDC's ratings."""
    texture = characteristics.get('texture', 5.)
    calcium = _CALCIUM_HU.get(
        round(characteristics.get('calcification', 6.)), 0.)
    hu = float(np.interp(texture, range(1, 6), _TEXTURE_HU)) + rng.normal(
        0, 40)
    core = core_hu = 0.
    if 1.5 < texture < 4.5 and rng.random() < .7:
        # Part solid is a solid core in ground glass, not something between.
        hu = rng.normal(-550, 70)
        core = (5 - texture) / 5 + rng.uniform(-.1, .1)
        core_hu = rng.normal(0, 50)
    elif calcium and rng.random() < .5:
        core, core_hu, calcium = rng.uniform(.2, .6), hu + calcium * 1.5, 0.
    return Material(
        hu + calcium, rng.uniform(10, 45), core, core_hu,
        vessel=rng.uniform(.6, 1.4) * (rng.random() < .35),
        spicules=int(rng.poisson(
            max(characteristics.get('spiculation', 1.) - 1.5, 0) * 2)))


def lobulated(diameter: float, spacing: np.ndarray,
              rng: np.random.Generator) -> np.ndarray:
    """Mask of an irregular ball.

    Args:
        diameter (float): About its mean one (mm).
        spacing (np.ndarray): (3,) of the voxels (mm).
        rng (np.random.Generator): Of its shape.
    """
    axes = diameter / 2 * np.exp(rng.normal(0, .12, 3))
    half = np.ceil(1.6 * axes.max() / spacing).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(-h, h + 1) for h in half],
                                indexing='ij'), -1) * spacing
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    radius = np.linalg.norm(grid @ turn / axes, axis=-1)
    bumps = _smooth(radius.shape, diameter / 6, spacing, rng)
    pieces, _ = ndimage.label(radius < 1 + .15 * bumps)
    return pieces == pieces[tuple(half)]


def tube(start: np.ndarray, radius: float, length: float,
         rng: np.random.Generator, taper: float = 0.) -> List[tuple]:
    """Balls, as (centre (mm), radius (mm)), of a bent tube."""
    step = rng.normal(size=3)
    bend = rng.normal(size=3) * .04
    place, balls = np.array(start, float), []
    for travelled in np.arange(0, length, radius / 2 + .1):
        step /= np.linalg.norm(step)
        place = place + step * (radius / 2 + .1)
        step = step + bend
        balls.append((place, radius * (1 - taper * travelled / length)))
    return balls


def paint(mask: np.ndarray, start: np.ndarray, material: Material,
          spacing: np.ndarray, spread: np.ndarray,
          noise: Callable[[np.ndarray, Tuple[int, ...]], np.ndarray],
          rng: np.random.Generator) -> Patch:
    """A solid as a scan shows it.

    Args:
        mask (np.ndarray): Boolean (R, C, S).
        start (np.ndarray): (3,) its first voxel in the scan.
        material (Material): What it is made of.
        spacing (np.ndarray): (3,) of the scan's voxels (mm).
        spread (np.ndarray): (3,) deviation of its point spread (mm).
        noise (callable): Noise (HU) of a part of the scan, from its first
            voxel and shape.
        rng (np.random.Generator): Of all that is random.
    """
    strands = 12. if material.vessel or material.spicules else 0.
    edge = np.ceil((4 * spread + strands) / spacing).astype(int) + 1
    solid = np.pad(mask, [(e, e) for e in edge])
    share = _blurred(solid, spacing, spread)
    hu = np.full(share.shape, material.hu, np.float32)
    if material.core:
        depth = ndimage.distance_transform_edt(solid, sampling=spacing)
        depth += .15 * depth.max() * _smooth(
            depth.shape, depth.max() / 2, spacing, rng)
        core = _blurred((solid > .5) & (depth > material.core * depth.max()),
                        spacing, spread)
        hu += core * (material.core_hu - material.hu)
    if material.unevenness:
        size = mask.sum()**(1 / 3) * np.prod(spacing)**(1 / 3)
        hu += material.unevenness * _smooth(
            share.shape, max(size / 6, 1.), spacing, rng)
    if strands:
        share, hu = _with_strands(solid, share, hu, material, spacing, spread,
                                  rng)
    first = np.asarray(start) - edge
    return Patch(first, share, hu + noise(first, share.shape),
                 max(material.hu, material.core_hu if material.core else AIR,
                     _VESSEL_HU if strands else AIR))


def _with_strands(solid, share, hu, material, spacing, spread, rng):
    """A vessel and spicules that leave a solid, which its mask is without."""
    centre = np.argwhere(solid).mean(0) * spacing
    reach = solid.sum()**(1 / 3) * np.prod(spacing)**(1 / 3) * .55
    balls = []
    if material.vessel:
        balls += tube(centre, material.vessel, reach + 25, rng)
    for _ in range(material.spicules):
        balls += tube(centre, rng.uniform(.4, .8), reach + rng.uniform(3, 9),
                      rng, taper=.7)
    strands = balls_mask(balls, solid.shape, spacing)
    strands = _blurred(np.where(solid, 0, strands), spacing, spread)
    both = np.maximum(share + strands, 1e-6)
    hu = (share * hu + strands * _VESSEL_HU) / both
    return np.minimum(share + strands, 1), hu


def balls_mask(balls: List[tuple], shape: Tuple[int, ...],
               spacing: np.ndarray) -> np.ndarray:
    """Share of each voxel (R, C, S) in a union of balls (centre, radius),
    in mm from the first voxel's centre."""
    parts = np.ceil(spacing / _FINE).astype(int)
    fine, step = np.zeros(shape * parts, bool), spacing / parts
    first = (step - spacing) / 2
    for centre, radius in balls:
        low = np.ceil((centre - radius - first) / step).astype(int)
        high = np.floor((centre + radius - first) / step).astype(int) + 1
        low, high = low.clip(0, fine.shape), high.clip(0, fine.shape)
        if (high <= low).any():
            continue
        offsets = [(np.arange(a, b) * s + f - c)**2 for a, b, s, f, c
                   in zip(low, high, step, first, centre)]
        fine[tuple(map(slice, low, high))] |= (
            offsets[0][:, None, None] + offsets[1][:, None] + offsets[2]
            <= radius**2)
    blocks = fine.reshape([n for pair in zip(shape, parts) for n in pair])
    return blocks.mean((1, 3, 5), dtype=np.float32)


def _blurred(solid: np.ndarray, spacing: np.ndarray,
             spread: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(solid.astype(np.float32), spread / spacing,
                                   mode='constant')


def _smooth(shape: Tuple[int, ...], width: float, spacing: np.ndarray,
            rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of deviation 1 and correlation length ``width`` (mm)."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape).astype(np.float32), width / spacing,
        mode='wrap')
    return noise / max(float(noise.std()), 1e-6)
