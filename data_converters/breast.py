"""The embedded mammograms: synthetic breasts with known findings.

A model, not a measurement. A breast is half an ellipsoid, higher above than
below, with skin, a nipple, the pectoral muscle as a wedge behind its upper
outer part, and in it fat and gland whose border follows power-law noise. The
power spectrum of the image falls with about the third power of frequency, as
mammograms' does on the average (Burgess, Jacobson and Judy, Medical Physics
28(4), 2001). Attenuations are those of fat, gland and carcinoma at
20 keV (Johns and Yaffe, Physics in Medicine and Biology 32(6), 1987), one
energy, no scatter.

**Compression.** Between the plates a breast is as thick everywhere as their
distance, and round at its rim. A column of tissue along the direction of
compression stays a column; it moves away from the middle of the chest wall
until all that was nearer to it fits there. So each voxel keeps its volume,
and a place in the breast is known in CC and MLO: the second presses the same
breast at 45 degrees. A mass keeps its size and shape.

**Frame**, of left breasts; right ones are mirrored: x from the chest wall to
the nipple, y to the side, z up, millimetres, origin behind the nipple on the
chest wall. Of a compressed breast: x, p up in the image (y in CC, y and z in
MLO), c towards the tube.
"""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import cv2
import numpy as np
import pydicom
from scipy import fft
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from projects.core import geometry
from projects.core.files import atomic_write, dump_json
from projects.core.rig import Rig, View

from . import mammograms
from .convert import expect_own_folder
from .drr import RENDERERS, Volume

# Exponent of the noise's power spectrum, so that the images' is about 3: what
# lies one behind the other, and the border of the gland, smooth them.
SPECTRUM = 2.
# Of the tissues at 20 keV (1/mm); calcium hydroxyapatite with its pores.
MU_FAT, MU_GLAND, MU_CARCINOMA, MU_CALCIUM = .0456, .0802, .0844, 1.2
DETECTOR = 220., 165.  # height and width (mm)
TEST_FRACTION = .25
_SOURCE = 650.  # to the detector (mm)
_GAP = 10.  # between the breast and the detector (mm)
_QUANTA = 5e5  # behind the breast (1/mm²)
FOG, FILM = .04, 1.6  # of film: level of air, exponent of its curve
_SKIN = 1.5  # mm
_TILT = dict(CC=0., MLO=math.radians(45))
_RADII, _ANGLES, _COLUMN = 100, 91, 160  # of the tables of a compression
_LARGEST = 60.  # structures of the noise (mm): larger ones are no stronger
_SHARED = .8  # of the noise's amplitude, what both breasts have of it
_SIDES = dict(LEFT='L', RIGHT='R')
_COLUMNS = ('patient_id', 'breast_density', mammograms.SIDE, mammograms.VIEW,
            mammograms.NUMBER, mammograms.TYPE)
_KINDS = {'mass': 'Mass', 'calcification': 'Calc'}
_OWN = (r'(Mass|Calc)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?'
        r'|(mass|calc)_case_description_(train|test)_set\.csv|truth\.json')

__all__ = ['Breast', 'Compression', 'Lesion', 'make_patient',
           'power_law_noise', 'write_breasts']


@dataclass
class Lesion:
    """A finding in a breast.

    Attributes:
        kind: 'mass' or 'calcification'.
        centre: (3,) in the breast that is not compressed (mm).
        diameter: Of the sphere as large, or of the cluster (mm).
        shape: (3, 3), columns are the semi-axes (mm).
        waves: (K, 5) lobes of a mass: direction (3,), height, phase.
        margin: Width of its border (mm).
        mu: Attenuation of a mass (1/mm).
        grains: (N, 4) places in the cluster and diameters (mm).
    """
    kind: str
    centre: np.ndarray
    diameter: float
    shape: np.ndarray
    waves: np.ndarray
    margin: float = 1.
    mu: float = MU_CARCINOMA
    grains: Optional[np.ndarray] = None


@dataclass
class Breast:
    """A breast that is not compressed.

    Attributes:
        depth: From the chest wall to the nipple (mm).
        widths: Towards the middle and the side (mm).
        heights: Down and up (mm).
        muscle: Rise of the wedge of muscle, where it begins (mm), along the
            diagonal between the side and up, and how much it bulges (1/mm).
        muscle_mu: Its attenuation (1/mm), on the average.
        density: Level of the noise above which there is gland.
        noise: (X, Y, Z) power-law noise of unit deviation.
        spacing: Of ``noise`` (mm).
        lesions: In it.
    """
    depth: float
    widths: Tuple[float, float]
    heights: Tuple[float, float]
    muscle: Tuple[float, float, float]
    muscle_mu: float
    density: float
    noise: np.ndarray
    spacing: float
    lesions: List[Lesion]

    def radius(self, x, y, z) -> np.ndarray:
        """Of the ellipsoid through a point, 1 on the skin."""
        wide, high = (np.array([1 / low, 1 / up], np.float32) for low, up
                      in (self.widths, self.heights))
        return np.sqrt((x / self.depth)**2
                       + (y * np.where(y < 0, wide[0], wide[1]))**2
                       + (z * np.where(z < 0, high[0], high[1]))**2)

    def in_muscle(self, x, y, z) -> np.ndarray:
        """How deep in the muscle a point is (mm), below 0 before it."""
        along = (y + z) / math.sqrt(2) - self.muscle[1]
        return self.wedge(along) - x

    def wedge(self, along):
        """Thickness of the muscle (mm) so far from where it begins (mm)."""
        rise, _, bulge = self.muscle
        return np.where(along > 0, rise + bulge * (80 - along), rise) * along

    def attenuation(self, x, y, z) -> np.ndarray:
        """Attenuation of tissue at points inside (1/mm), of their shape."""
        low = -np.array(self.noise.shape) / 2 * self.spacing
        noise = map_coordinates(self.noise, [
            x / self.spacing, (y - low[1]) / self.spacing,
            (z - low[2]) / self.spacing], order=1, mode='nearest')
        radius = self.radius(x, y, z)
        # Fat below the skin and before the muscle.
        fat = 3 * np.clip((radius - .72) / .2, 0, 1) + 3 * np.clip(
            1 - x / (.15 * self.depth), 0, 1)
        gland = 1 / (1 + np.exp(-(noise - self.density - fat) / .3))
        # Strands of tissue in the fat: no breast is even.
        mu = MU_FAT * (1 + .05 * noise)
        mu += (MU_GLAND - mu) * gland
        muscle = np.clip(.5 + self.in_muscle(x, y, z) / 3, 0, 1)
        mu += muscle * (self.muscle_mu * (1 + .05 * noise) - mu)
        mu[radius > 1 - _SKIN / self.depth] = MU_GLAND
        return mu.astype(np.float32)


def power_law_noise(shape: Tuple[int, ...], exponent: float,
                    rng: np.random.Generator, flat: float = 0.
                    ) -> np.ndarray:
    """Gaussian noise whose power spectrum falls with a power of frequency.

    Args:
        shape: Of the grid.
        exponent: Of the frequency.
        flat: Frequency (1/px) below which it falls no more.
        rng: Where it is drawn from.

    Returns:
        np.ndarray: float32 of mean 0 and deviation 1.
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    spectrum = fft.rfftn(white)
    squares = sum(
        (f.astype(np.float32)**2).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))])
        for axis, f in enumerate(
            [*map(fft.fftfreq, shape[:-1]), fft.rfftfreq(shape[-1])]))
    squares += np.float32(flat**2)
    squares.flat[0] = np.inf
    spectrum *= squares**(-exponent / 4)
    noise = fft.irfftn(spectrum, shape)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


# ----------------------------------------------------------------- compression
@dataclass
class Compression:
    """A breast between two plates, see the module.

    Attributes:
        tilt: Angle between the direction of compression and up (rad).
        thickness: Distance of the plates (mm).
        droop: By which the nipple hangs, a shear (rad).
    """
    breast: Breast
    tilt: float
    thickness: float
    droop: float

    def __post_init__(self) -> None:
        breast = self.breast
        self.angles = np.linspace(-np.pi / 2, np.pi / 2, _ANGLES)
        reach = 1.2 * max(breast.depth, *breast.widths, *breast.heights)
        c = np.linspace(-reach, reach, _COLUMN, dtype=np.float32)
        cos, sin = np.cos(self.angles), np.sin(self.angles)

        def radius(r):  # (angles, radii, column)
            x, p = ((r * part[:, None]).astype(np.float32)[..., None]
                    for part in (cos, sin))
            return breast.radius(*self._tissue(x, p, c))

        # The outline in the image: on a ray, all radii that meet tissue.
        r = np.linspace(0, reach, _RADII)[None].repeat(_ANGLES, 0)
        least = radius(r).min(2)
        outer = np.array([np.interp(1, row, radii)
                          for row, radii in zip(least, r)])
        share = np.linspace(0, 1, _RADII)
        r = share * outer[:, None]
        values = radius(r)
        # Ends of the column of tissue, between samples.
        inside = values < 1
        inside[np.arange(_ANGLES)[:, None], np.arange(_RADII),
               values.argmin(2)] = True
        first = inside.argmax(2)
        last = _COLUMN - 1 - inside[:, :, ::-1].argmax(2)
        self.low = self._end(values, c, first, -1)
        self.high = np.maximum(self._end(values, c, last, 1), self.low + .1)
        volume = _running(r, (self.high - self.low) * r)
        # Plates as far as `flat`, then a half circle (in the section).
        half = self.thickness / 2
        flat = np.linspace(0, 4 * reach, 4 * _RADII)
        total = half * flat**2 + np.pi / 2 * half**2 * flat + (
            2 / 3 * half**3)
        self.outer = np.interp(volume[:, -1], total, flat) + half
        self.radius_before = np.empty_like(r)
        self.share_after = np.empty_like(r)
        for k, edge in enumerate(self.outer):
            placed = share * edge
            filled = _running(placed, self._height(placed, edge) * placed)
            wanted = volume[k] / volume[k, -1] * filled[-1]
            self.share_after[k] = np.interp(wanted, filled, share)
            self.radius_before[k] = np.interp(
                filled / filled[-1], volume[k] / volume[k, -1], r[k])
        self.reach_before = outer

    def _tissue(self, x, p, c):
        """From the axes of the view to those of the breast."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return x, p * cos - c * sin, p * sin + c * cos

    @staticmethod
    def _end(values, c, index, step):
        """Where ``values`` cross 1 between ``index`` and its neighbour."""
        beside = (index + step).clip(0, len(c) - 1)
        here, there = (np.take_along_axis(values, i[..., None], 2)[..., 0]
                       for i in (index, beside))
        share = (1 - here) / np.maximum(there - here, 1e-9)
        return c[index] + share.clip(0, 1) * (c[beside] - c[index])

    def _height(self, radius, edge):
        """Of the compressed breast (mm)."""
        half = self.thickness / 2
        over = np.clip((radius - edge + half) / half, 0, 1)
        return self.thickness * np.sqrt(1 - over**2)

    def _table(self, table, share, angle):
        """A table's values at shares of the radius and at angles."""
        at = [(angle / np.pi + .5) * (_ANGLES - 1), share * (_RADII - 1)]
        return map_coordinates(table, at, order=1, mode='nearest')

    def to_tissue(self, x: np.ndarray, p: np.ndarray, c: np.ndarray):
        """From the compressed breast to the one that is not.

        Args:
            x, p: (X, P) of columns (mm).
            c: (C,) along them (mm).

        Returns:
            tuple: Share of each cell that is in the breast, (X, P, C), and
            x, y, z of those that have any, (N,) each (mm).
        """
        p = p + np.tan(self.droop) * x
        radius, angle = np.hypot(x, p), np.arctan2(p, x)
        edge = np.interp(angle, self.angles, self.outer)
        share = radius / edge
        height = self._height(radius, edge)
        height = height * ((share < 1) & (x >= 0))
        # Surfaces without steps along the rays.
        filled = np.clip(.5 + (height[..., None] / 2 - np.abs(c)) / (
            c[1] - c[0]), 0, 1) * (height > 0)[..., None]
        inside = filled > 0
        before = self._table(self.radius_before, share, angle)
        outer = np.interp(angle, self.angles, self.reach_before)
        low, high = (self._table(t, before / outer, angle)
                     for t in (self.low, self.high))
        scale = before / np.maximum(radius, 1e-6)
        # Single precision is exact to micrometres, and twice as fast.
        column = inside.sum(2).ravel()
        x, p, middle, stretch, tall = (
            a.astype(np.float32).ravel().repeat(column) for a in (
                scale * x, scale * p, (low + high) / 2, high - low, height))
        along = np.broadcast_to(c.astype(np.float32), inside.shape)[inside]
        return filled, self._tissue(
            x, p, middle + (along / tall).clip(-.5, .5) * stretch)

    def from_tissue(self, points: np.ndarray) -> np.ndarray:
        """Where points of the breast, (N, 3), are in the compressed one: x,
        p, c (mm), (N, 3)."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        x, y, z = np.asarray(points, float).T
        p, c = y * cos + z * sin, z * cos - y * sin
        radius, angle = np.hypot(x, p), np.arctan2(p, x)
        outer = np.interp(angle, self.angles, self.reach_before)
        share = (radius / outer).clip(0, 1)
        edge = np.interp(angle, self.angles, self.outer)
        after = self._table(self.share_after, share, angle) * edge
        low, high = (self._table(t, share, angle)
                     for t in (self.low, self.high))
        height = self._height(after, edge)
        scale = after / np.maximum(radius, 1e-6)
        x, p = x * scale, p * scale
        return np.stack([x, p - np.tan(self.droop) * x,
                         ((c - low) / (high - low) - .5) * height], 1)


def _running(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integral of y from the first x to each, along the last axis."""
    steps = (y[..., 1:] + y[..., :-1]) / 2 * np.diff(x)
    return np.concatenate([np.zeros_like(y[..., :1]), steps.cumsum(-1)], -1)


# ------------------------------------------------------------------- a patient
def make_patient(seed: int, number: int, pixel: float) -> Dict[str, Breast]:
    """The two breasts of a patient, by 'LEFT' and 'RIGHT'.

    The second is the first, mirrored and changed a little; its noise has most
    of the first one's and some of its own. Findings are its own.

    Args:
        seed: Of the set.
        number: Of the patient.
        pixel: Of the images (mm), which says how fine the noise must be.
    """
    rng = np.random.default_rng([seed, number])
    depth = rng.uniform(54, 74)
    width = rng.uniform(50, 64)
    common = dict(depth=depth, density=rng.normal(.3, .5),
                  below=rng.uniform(.9, 1.05) * width,
                  above=rng.uniform(1.25, 1.5) * width, width=width,
                  rise=rng.uniform(.4, .65), start=rng.uniform(-18, 4),
                  bulge=rng.uniform(0, .003), mu=rng.uniform(.84, 1.))
    spacing = max(pixel, .8)
    shape = tuple(fft.next_fast_len(math.ceil(mm / spacing), True)
                  for mm in (75, 150, 200))
    flat = spacing / _LARGEST
    shared = power_law_noise(shape, SPECTRUM, rng, flat)
    ill = rng.permutation(['LEFT', 'RIGHT'])
    counts = {ill[0]: rng.choice([0, 1, 2], p=[.1, .55, .35]),
              ill[1]: rng.choice([0, 1], p=[.65, .35])}
    breasts = {}
    for side in _SIDES:
        def near(name, by=.03):
            return common[name] * (1 + rng.normal(0, by))
        noise = _SHARED * shared + math.sqrt(1 - _SHARED**2) * (
            power_law_noise(shape, SPECTRUM, rng, flat))
        width = near('width')
        breast = Breast(
            near('depth'), (width, width * 1.05),
            (near('below'), near('above')),
            (near('rise'), common['start'] + rng.normal(0, 2),
             common['bulge']), common['mu'] * MU_GLAND,
            common['density'] + rng.normal(0, .1), noise, spacing, [])
        for _ in range(counts[side]):
            breast.lesions.append(_lesion(breast, rng))
        breasts[side] = breast
    return breasts


def _lesion(breast: Breast, rng: np.random.Generator) -> Lesion:
    """Somewhere in the breast, off skin, muscle, chest wall and the other
    lesions."""
    kind = str(rng.choice(mammograms.CATEGORIES, p=[.65, .35]))
    size = float(np.exp(rng.uniform(np.log(6), np.log(25)))
                 if kind == 'mass' else rng.uniform(6, 15))
    for _ in range(1000):
        place = rng.uniform(
            [.25 * breast.depth, -breast.widths[0], -breast.heights[0]],
            [breast.depth, breast.widths[1], .7 * breast.heights[1]])
        if (breast.radius(*place) < .9 - size / 2 / breast.depth
                and breast.in_muscle(*place) < -size / 2 - 2
                and all(np.linalg.norm(place - o.centre)
                        > (size + o.diameter) / 2 + 15
                        for o in breast.lesions)):
            break
    axes = rng.uniform(.75, 1.25, 3)
    axes *= size / 2 / axes.prod()**(1 / 3)
    shape = Rotation.random(random_state=rng).as_matrix() * axes
    waves = np.concatenate([rng.normal(size=(6, 3)) * 2.5,
                            rng.uniform(0, .09, (6, 1)),
                            rng.uniform(0, 2 * np.pi, (6, 1))], 1)
    grains = None
    if kind == 'calcification':
        count = rng.integers(6, 21)
        where = rng.normal(size=(count, 3))
        where *= (rng.uniform(size=count)**(1 / 3) / np.linalg.norm(
            where, axis=1))[:, None]
        grains = np.concatenate([where @ shape.T,
                                 rng.uniform(.3, 1., (count, 1))], 1)
    return Lesion(kind, place, size, shape, waves, rng.uniform(.5, 2.),
                  MU_CARCINOMA * rng.uniform(.97, 1.15), grains)


# -------------------------------------------------------------------- an image
@dataclass
class _Exposure:
    """A view of a breast.

    Attributes:
        levels: (H, W) uint16, of a left breast.
        masks: (H, W) boolean, of each lesion.
        nipple: (2,) (px).
        pectoral: (2, 2) (px), None in CC.
        lesions: (M, 2) where their centres are shown (px).
    """
    levels: np.ndarray
    masks: List[np.ndarray]
    nipple: np.ndarray
    pectoral: Optional[np.ndarray]
    lesions: np.ndarray


def expose(breast: Breast, view: str, image_size: int,
           rng: np.random.Generator) -> _Exposure:
    """An image as the detector has it, of a left breast.

    Args:
        breast: With its lesions.
        view: 'CC' or 'MLO'.
        image_size: Rows (px); the columns are three quarters of them.
        rng: Of thickness, position and noise.
    """
    droop = rng.normal(0, 4) if view == 'CC' else rng.uniform(2, 14)
    pressed = Compression(breast, _TILT[view], rng.uniform(42, 60),
                          math.radians(droop))
    pitch = DETECTOR[0] / image_size
    columns = round(DETECTOR[1] / pitch)
    # What the edge of the detector does not reach; in MLO the armpit, too.
    edge = rng.uniform(4, 9) if view == 'CC' else rng.uniform(1, 4)
    top = pressed.outer[-1]
    top = DETECTOR[0] / 2 if view == 'CC' else rng.uniform(.7, .85) * top
    detector = -pressed.thickness / 2 - _GAP
    camera = View.from_detector(
        view, np.array([edge, 0, detector + _SOURCE]),
        np.array([edge + DETECTOR[1] / 2, top - DETECTOR[0] / 2, detector]),
        pitch * np.array([1, 0, 0]), pitch * np.array([0, -1, 0]), columns,
        image_size)
    tissue = _voxels(pressed, pitch)
    placed = pressed.from_tissue(np.array(
        [lesion.centre for lesion in breast.lesions]).reshape(-1, 3))
    turn = Rotation.from_euler('x', -pressed.tilt).as_matrix()
    masks = []
    for lesion, centre in zip(breast.lesions, placed):
        masks.append((_paint_mass if lesion.kind == 'mass' else _paint_grains)(
            tissue, lesion, centre, turn, camera))
    tip = np.array([pressed.outer[_ANGLES // 2], 0, 0.])
    tip[1] -= np.tan(pressed.droop) * tip[0]
    apex = _paint_nipple(tissue, tip)
    integrals = _render(tissue, camera)
    return _Exposure(
        _film(integrals, pitch, rng), masks,
        geometry.project(apex[None], camera.ct2img)[0][0],
        None if view == 'CC' else _pectoral(pressed, camera),
        geometry.project(placed, camera.ct2img)[0])


def _render(volume: Volume, camera: View) -> np.ndarray:
    return RENDERERS['joseph'](volume, Rig([camera]), 'cpu')[0]


def _voxels(pressed: Compression, pitch: float) -> Volume:
    """Attenuation of the compressed breast (1/mm)."""
    fine = max(pitch, .4)
    step = np.array([fine, fine, max(fine, 1.25)])
    reach = float(pressed.outer.max())
    across = reach * (1 + abs(math.tan(pressed.droop)))
    count = np.ceil(np.array([reach + 12, 2 * across + 12,
                              pressed.thickness + 4]) / step).astype(int)
    origin = np.array([0, -across - 6, -(count[2] - 1) / 2 * step[2]])
    x, p, c = (o + s * np.arange(n) for o, s, n in zip(origin, step, count))
    columns, rows = np.meshgrid(x, p, indexing='ij')
    filled, tissue = pressed.to_tissue(columns, rows, c)
    mu = filled.astype(np.float32)
    mu[mu > 0] *= pressed.breast.attenuation(*tissue)
    voxel2ct = np.diag([*step, 1.])
    voxel2ct[:3, 3] = origin
    return Volume(mu, voxel2ct)


def _block(volume: Volume, centre: np.ndarray, reach: float
           ) -> Tuple[Volume, List[np.ndarray]]:
    """Voxels round a place, which are those of the volume, and their offsets
    to it, shaped to broadcast (mm)."""
    step, origin = volume.spacing, volume.voxel2ct[:3, 3]
    low = np.floor((centre - reach - origin) / step).astype(int)
    high = np.ceil((centre + reach - origin) / step).astype(int) + 1
    low, high = (end.clip(0, volume.values.shape) for end in (low, high))
    block = volume.cropped(low, high)
    return block, [(o + s * np.arange(n)).reshape(
        [-1 if a == axis else 1 for a in range(3)]) for axis, (o, s, n)
        in enumerate(zip(block.voxel2ct[:3, 3] - centre, step,
                         block.values.shape))]


def _paint_mass(volume: Volume, lesion: Lesion, centre: np.ndarray,
                turn: np.ndarray, camera: View) -> np.ndarray:
    """Put a mass into the tissue; returns where the image shows it."""
    block, offsets = _block(volume, centre, .9 * lesion.diameter)
    away = np.stack(np.broadcast_arrays(*offsets), -1) @ turn
    scaled = away @ np.linalg.inv(lesion.shape).T
    radius = np.linalg.norm(scaled, axis=-1)
    unit = scaled / np.maximum(radius, 1e-6)[..., None]
    lobes = 1 + sum(height * np.cos(unit @ np.array(direction) + phase)
                    for *direction, height, phase in lesion.waves)
    depth = (lobes - radius) * lesion.diameter / 2
    share = np.clip(.5 + depth / (2 * lesion.margin), 0, 1)
    share = (share * (block.values > 0)).astype(np.float32)
    block.values[:] += share * (lesion.mu - block.values)
    path = _render(Volume((share > .5).astype(np.float32), block.voxel2ct),
                   camera)
    return path > .15 * lesion.diameter


def _paint_grains(volume: Volume, lesion: Lesion, centre: np.ndarray,
                  turn: np.ndarray, camera: View) -> np.ndarray:
    """Put a cluster of grains into the tissue; returns where it is seen: the
    hull of its grains and a millimetre more."""
    assert lesion.grains is not None
    places = centre + lesion.grains[:, :3] @ turn.T
    step, origin = volume.spacing, volume.voxel2ct[:3, 3]
    for place, size in zip(places, lesion.grains[:, 3]):
        at = (place - origin) / step
        low = np.floor(at).astype(int)
        mass = math.pi / 6 * size**3 * MU_CALCIUM / step.prod()
        for corner in np.ndindex(2, 2, 2):
            index = tuple(low + corner)
            weight = np.abs(1 - np.array(corner) - (at - low)).prod()
            if all(0 <= i < n for i, n in zip(index, volume.values.shape)):
                volume.values[index] += mass * weight
    uv, _ = geometry.project(places, camera.ct2img)
    hull = cv2.convexHull(np.floor(uv).astype(np.int32))
    mask = np.zeros((camera.height, camera.width), np.uint8)
    cv2.fillConvexPoly(mask, hull, (1, ))
    reach = max(round(1 / camera.pixel_size), 1)
    return cv2.dilate(mask, cv2.getStructuringElement(
        cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))) > 0


def _paint_nipple(volume: Volume, tip: np.ndarray) -> np.ndarray:
    """Put the nipple before the breast; returns its outermost point."""
    semi = np.array([7., 5.5, 10.])
    block, offsets = _block(volume, tip, 11.)
    radius = sum((o / s)**2 for o, s in zip(offsets, semi))
    share = np.clip(.5 + 3 * (1 - np.sqrt(radius)), 0, 1)
    block.values[:] = np.maximum(block.values, (share * MU_GLAND).astype(
        np.float32))
    return tip + [semi[0], 0, 0]


def _pectoral(pressed: Compression, camera: View) -> np.ndarray:
    """The line that fits the border of the muscle in the image: where it
    meets the top and the chest wall, (2, 2) (px)."""
    along = np.linspace(0, 100, 200)
    across = (along + pressed.breast.muscle[1]) / math.sqrt(2)
    both = np.stack([pressed.breast.wedge(along), across, across], 1)
    both = both[pressed.breast.radius(*both.T) < .97]
    uv, _ = geometry.project(pressed.from_tissue(both), camera.ct2img)
    seen = uv[(uv >= 0).all(1) & (uv < [camera.width, camera.height]).all(1)]
    if len(seen) < 2:
        seen = uv
    slope, offset = np.polyfit(seen[:, 1], seen[:, 0], 1)
    return np.array([[offset, 0.], [0., -offset / slope]])


def _film(integrals: np.ndarray, pitch: float, rng: np.random.Generator
          ) -> np.ndarray:
    """Levels of 16 bits, with quantum noise and fog."""
    tissue = integrals[integrals > .5]
    if not len(tissue):
        raise ValueError('expected a breast in the image, found air')
    quanta = _QUANTA * pitch**2 * np.exp(np.median(tissue) - integrals)
    noisy = integrals + rng.normal(size=integrals.shape) / np.sqrt(quanta)
    white = 1.08 * float(np.percentile(tissue, 99.8))
    levels = FOG + (.97 - FOG) * (noisy / white).clip(0)**FILM
    return np.rint(levels.clip(0, 1) * 65535).astype(np.uint16)


def _labelled(levels: np.ndarray, text: str, left: bool) -> np.ndarray:
    """With a label beside the breast, as films have."""
    height, width = levels.shape
    label = np.zeros(levels.shape, np.uint8)
    cv2.putText(label, text, (round((.03 if left else .72) * width),
                              round(.06 * height)),
                cv2.FONT_HERSHEY_SIMPLEX, height / 800, (255, ),
                max(height // 400, 1), cv2.LINE_AA)
    return np.maximum(levels, label.astype(np.uint16) * 220)


# ----------------------------------------------------------------------- files
def write_breasts(out_dir: Path, num_patients: int, seed: int,
                  image_size: int = 512, jobs: int = 1) -> Iterator[int]:
    """Write patients in CBIS-DDSM's layout, and ``truth.json``.

    A patient is in the test if the share of tests so far is below
    ``TEST_FRACTION``. The tables come last: a folder without them is not
    finished.

    Args:
        out_dir: Where to.
        num_patients: How many, from P_00001 on.
        seed: Of the set.
        image_size: Rows of an image (px).
        jobs: Processes.

    Yields:
        int: A number for each patient that is written.

    Raises:
        ConversionError: The folder holds something else.
    """
    from joblib import Parallel, delayed
    out_dir = Path(out_dir)
    expect_own_folder(out_dir, _OWN, 'synthetic breasts')
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in (*mammograms.TABLES.values(), 'truth.json'):
        (out_dir / name).unlink(missing_ok=True)
    written: Dict[int, dict] = {}
    with Parallel(n_jobs=jobs, return_as='generator_unordered',
                  pre_dispatch='2*n_jobs') as pool:
        for number, told in pool(
                delayed(_write_patient)(out_dir, number, seed, image_size)
                for number in range(1, num_patients + 1)):
            written[number] = told
            yield number
    patients = [written[number] for number in sorted(written)]
    dump_json(dict(
        frame='mm in the breast that is not compressed: x to the nipple, y '
        'to the side, z up; px in the images',
        seed=seed,
        images={name: image for told in patients
                for name, image in told['images'].items()},
        lesions=[lesion for told in patients for lesion in told['lesions']],
    ), out_dir / 'truth.json')
    for (kind, part), name in mammograms.TABLES.items():
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator='\n')
        table.writerow([*_COLUMNS, f'{kind} shape' if kind == 'mass'
                        else 'calc type', 'assessment', 'pathology',
                        'subtlety', mammograms.IMAGE, mammograms.CROP,
                        mammograms.MASK])
        table.writerows(row for told in patients
                        for row in told['rows'].get(f'{kind} {part}', []))
        with atomic_write(out_dir / name, 'w') as file:
            file.write(stream.getvalue())


def _write_patient(out_dir: Path, number: int, seed: int, image_size: int
                   ) -> Tuple[int, dict]:
    """Write a patient; returns the number and what the tables and
    ``truth.json`` say."""
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    patient = f'P_{number:05d}'
    tested = int(number * TEST_FRACTION) > int((number - 1) * TEST_FRACTION)
    part = 'Test' if tested else 'Training'
    pitch = DETECTOR[0] / image_size
    told: dict = dict(images={}, lesions=[], rows={})
    for side, breast in make_patient(seed, number, pitch).items():
        for index, lesion in enumerate(breast.lesions, 1):
            told['lesions'].append(dict(
                patient=patient, laterality=_SIDES[side], abnormality=index,
                type=lesion.kind, centre=lesion.centre.tolist(),
                diameter=lesion.diameter))
        for view in _TILT:
            shot = expose(breast, view, image_size, np.random.default_rng(
                [seed, number, len(side), len(view)]))
            if side == 'RIGHT':
                shot = _mirrored(shot)
            shot.levels = _labelled(shot.levels, f'{_SIDES[side]}{view}',
                                    side == 'RIGHT')
            told['images'][f'{patient}_{side}_{view}'] = dict(
                nipple=shot.nipple.tolist(),
                pectoral=None if shot.pectoral is None
                else shot.pectoral.tolist(),
                lesions=shot.lesions.tolist())
            for row in _write_image(out_dir, shot, breast, pitch,
                                    (part, patient, side, view)):
                kind = 'mass' if row[5] == 'mass' else 'calc'
                table = f'{kind} {"test" if tested else "train"}'
                told['rows'].setdefault(table, []).append(row)
    return number, told


def _mirrored(shot: _Exposure) -> _Exposure:
    width = np.array([shot.levels.shape[1], 0])
    return _Exposure(
        shot.levels[:, ::-1], [mask[:, ::-1] for mask in shot.masks],
        width + shot.nipple * [-1, 1], None if shot.pectoral is None
        else width + shot.pectoral * [-1, 1],
        width + shot.lesions * [-1, 1])


def _write_image(out_dir: Path, shot: _Exposure, breast: Breast,
                 pitch: float, names: Tuple[str, str, str, str]
                 ) -> List[list]:
    """Write a mammogram, and each finding's mask and crop; returns the rows
    of the tables. As in CBIS-DDSM, a mammogram with masses and calcifications
    is there twice."""
    part, patient, side, view = names
    kinds = sorted({lesion.kind for lesion in breast.lesions}) or ['mass']
    folders = {kind: f'{_KINDS[kind]}-{part}_{patient}_{side}_{view}'
               for kind in kinds}
    paths = {kind: _write_dicom(out_dir, folder, [shot.levels], names, pitch)
             for kind, folder in folders.items()}
    rows = []
    for number, (lesion, mask) in enumerate(zip(breast.lesions, shot.masks),
                                            1):
        if not mask.any():
            continue  # beyond the detector's edge
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        margin = max(width, height) // 2
        crop = shot.levels[max(y - margin, 0):y + height + margin,
                           max(x - margin, 0):x + width + margin]
        found = _write_dicom(
            out_dir, f'{folders[lesion.kind]}_{number}',
            [crop, mask.astype(np.uint8) * 255], names, pitch)
        density = 1 + int(np.digitize(-breast.density, [-.9, -.35, .2]))
        rows.append([
            patient, density, side, view, number, lesion.kind, 'SYNTHETIC',
            0, 'UNPROVEN', 0, f'{paths[lesion.kind]}/000000.dcm',
            f'{found}/000000.dcm', f'{found}/000001.dcm'])
    return rows


def _write_dicom(out_dir: Path, folder: str, images: List[np.ndarray],
                 names: Tuple[str, str, str, str], pitch: float) -> str:
    """Write images, as a series of a study; returns its folder."""
    study, series = (pydicom.uid.generate_uid(entropy_srcs=[folder, what])
                     for what in ('study', 'series'))
    place = f'{folder}/{study}/{series}'
    for number, pixels in enumerate(images, 1):
        bits = 8 * pixels.dtype.itemsize
        data = pydicom.Dataset()
        data.SOPClassUID = (
            pydicom.uid.DigitalMammographyXRayImageStorageForPresentation)
        data.SOPInstanceUID = pydicom.uid.generate_uid(
            entropy_srcs=[folder, str(number)])
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.PatientID = data.PatientName = folder
        data.Modality, data.BodyPartExamined = 'MG', 'BREAST'
        data.SeriesDescription = (
            'full mammogram images' if len(images) == 1 else
            'ROI mask images' if bits == 8 else 'cropped images')
        data.ImageLaterality = _SIDES[names[2]]
        data.ViewPosition = data.PatientOrientation = names[3]
        data.PatientOrientation = ''
        data.ImageComments = 'synthetic: no patient'
        data.Rows, data.Columns = pixels.shape
        data.ImagerPixelSpacing = [pitch, pitch]
        data.SamplesPerPixel, data.PixelRepresentation = 1, 0
        data.PhotometricInterpretation = 'MONOCHROME2'
        data.BitsAllocated = data.BitsStored = bits
        data.HighBit = bits - 1
        data.InstanceNumber = number
        data.PixelData = pixels.tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = out_dir / place / f'1-{number}.dcm'
        with atomic_write(path) as stream:
            pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return place
