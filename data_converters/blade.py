"""The embedded part: turbine blades with known defects, one for each seed.

A model, not a measurement: an aerofoil with camber, taper and twist (NACA's
four-digit thickness), a platform, a root with lobes, cooling channels from
the root to below the tip, and in the metal pores and inclusions, ellipsoids
of known boxes. All borders are seen through one point spread, those of
defects as those of the metal. The attenuation is about that of a nickel alloy
of 8.2 g/cm³ at an effective 300 keV (a tube of 450 kV behind a filter), one
energy, no scatter, no noise.

Millimetres in the part's own frame, which is the world of
:mod:`projects.core.geometry`: x along the chord, y across it, z along
the span, origin at the centre of the grid.
"""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import List, Tuple

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from projects.core.files import atomic_write

from .convert import expect_own_folder
from .scan import ConversionError

SHAPE = (160, 96, 224)  # voxels: 80 x 48 x 112 mm
SPACING = .5  # mm
POINT_SPREAD = .4  # mm, deviation: of the CT that a volume stands for
MU_ALLOY = .09  # 1/mm
MU_PER_VALUE = 1e-4  # 1/mm for one grey value of the files
CLASSES = ('pore', 'inclusion')
_FOOT, _TIP = -30., 50.  # z of the aerofoil's ends (mm)
_COLUMNS = ('scan', 'class', 'x', 'y', 'z', 'dx', 'dy', 'dz', 'diameter')

__all__ = ['CLASSES', 'MU_PER_VALUE', 'Defect', 'make_blade', 'write_blades']


@dataclass
class Defect:
    """An ellipsoid in the metal.

    Attributes:
        label: Name of the class.
        centre: (3,) (mm).
        axes: (3,) semi-axes (mm).
        rotation: (3, 3), columns are the directions of the axes.
        mu: Attenuation in it (1/mm).
    """
    label: str
    centre: np.ndarray
    axes: np.ndarray
    rotation: np.ndarray
    mu: float

    @property
    def size(self) -> np.ndarray:
        """Edges of its tight box, (3,) (mm)."""
        return 2 * np.sqrt((self.rotation**2) @ self.axes**2)

    @property
    def diameter(self) -> float:
        """Of the sphere with its volume (mm)."""
        return float(2 * self.axes.prod()**(1 / 3))


def _grid() -> List[np.ndarray]:
    """Voxel centres along x, y and z (mm), shaped to broadcast."""
    return [((np.arange(n, dtype=np.float32) - (n - 1) / 2) * SPACING).reshape(
        [-1 if i == axis else 1 for i in range(3)])
        for axis, n in enumerate(SHAPE)]


def _soft(depth: np.ndarray) -> np.ndarray:
    """Share of a voxel that is inside, from its depth below a surface (mm):
    surfaces without steps, as a scanner shows them."""
    return np.clip(.5 + depth / SPACING, 0, 1)


def _metal(rng: np.random.Generator) -> np.ndarray:
    """Share of metal in each voxel, ``SHAPE``; another blade each time."""
    x, y, z = _grid()
    span = np.clip((z - _FOOT) / (_TIP - _FOOT), 0, 1)
    chord = rng.uniform(46, 54) * (1 - rng.uniform(.15, .3) * span)
    angle = np.radians(rng.uniform(-8, 8) + rng.uniform(12, 28) * span)
    camber = rng.uniform(.05, .11)
    thickness = rng.uniform(.18, .24) * (1 - .25 * span) * chord
    # Along and across the chord, which turns with the height.
    along = x * np.cos(angle) + y * np.sin(angle)
    part = along / chord + .5
    inside = part.clip(0, 1)
    across = y * np.cos(angle) - x * np.sin(angle) - chord * camber * (
        4 * inside * (1 - inside) - .6)
    half = 5 * thickness * (
        .2969 * np.sqrt(inside) - .126 * inside - .3516 * inside**2 +
        .2843 * inside**3 - .1015 * inside**4)
    aerofoil = _soft(half - np.abs(across)) * _soft(
        (.5 - np.abs(part - .5)) * chord)
    aerofoil = aerofoil * _soft(z - _FOOT) * _soft(_TIP - z)

    lobes = 10.5 + rng.uniform(1., 2.) * np.cos(
        2 * np.pi * (z + 52) / rng.uniform(6., 8.))
    root = _soft(rng.uniform(26, 29) - np.abs(x)) * _soft(
        lobes - np.abs(y)) * _soft(z + 52) * _soft(_FOOT - 1 - z)
    platform = _soft(rng.uniform(30, 34) - np.abs(x)) * _soft(
        rng.uniform(15, 18) - np.abs(y)) * _soft(z + 34) * _soft(_FOOT - z)
    metal = np.maximum(np.maximum(aerofoil, root), platform)

    for place in np.linspace(.22, .64, 3):
        place = place + rng.uniform(-.03, .03)
        wide = rng.uniform(.035, .045) * chord
        high = rng.uniform(.4, .5) * np.interp(
            place, [.2, .35, .68], [.46, .5, .33]) * thickness
        radius = np.hypot((part - place) * chord / wide, across / high)
        channel = _soft((1 - radius) * np.minimum(wide, high)) * _soft(
            _TIP - rng.uniform(4, 8) - z)
        metal = metal * (1 - channel)
    return metal.astype(np.float32)


def _draw_defects(metal: np.ndarray,
                  rng: np.random.Generator) -> List[Defect]:
    """Four to nine defects, whole in the metal and apart from each other.

    Aerofoil and root have half of them each; all orders of size are as
    likely where there is room.
    """
    # Blocks of 2 x 2 x 2 voxels, of which all must be metal.
    x, y, z = SHAPE
    block, edge = metal.reshape(x // 2, 2, y // 2, 2, z // 2, 2), 2 * SPACING
    block = block.min((1, 3, 5)) > .99
    room = distance_transform_edt(block) * edge - .7 * edge
    places = [(np.arange(n) - (n - 1) / 2) * edge for n in block.shape]
    above = np.broadcast_to(places[2] > _FOOT, block.shape)
    defects = []
    for _ in range(rng.integers(4, 10)):
        where = above if rng.random() < .5 else ~above
        free = np.flatnonzero(where & (room > 1.1))
        index = np.unravel_index(free[rng.integers(len(free))], block.shape)
        centre = np.array([p[i] for p, i in zip(places, index)])
        centre += rng.uniform(-.25, .25, 3)
        shape = rng.uniform(.75, 1.3, 3)
        shape /= shape.prod()**(1 / 3)
        radius = np.exp(rng.uniform(*np.log([.8, 2.5])))
        radius = min(radius, room[index] / shape.max())
        label = CLASSES[rng.integers(2)]
        mu = 0. if label == 'pore' else MU_ALLOY + rng.uniform(.06, .12)
        defects.append(
            Defect(label, centre, radius * shape,
                   Rotation.random(random_state=rng).as_matrix(), mu))
        apart = np.sqrt(sum(
            (p.reshape([-1 if i == axis else 1 for i in range(3)])
             - centre[axis])**2 for axis, p in enumerate(places)))
        room = np.minimum(room, apart - radius * shape.max() - 1)
    return defects


def make_blade(seed: int,
               number: int) -> Tuple[np.ndarray, List[Defect]]:
    """One blade.

    Args:
        seed (int): Of the series.
        number (int): Of the blade in it; it does not depend on how many
            others are made.

    Returns:
        tuple: Attenuation (1/mm), ``SHAPE`` float32, and its defects.
    """
    rng = np.random.default_rng([seed, number])
    metal = _metal(rng)
    mu = MU_ALLOY * metal
    defects = _draw_defects(metal, rng)
    middle = (np.array(SHAPE) - 1) / 2
    for defect in defects:
        index = defect.centre / SPACING + middle
        reach = defect.size / 2 / SPACING + 2
        low = np.maximum(np.floor(index - reach), 0).astype(int)
        high = np.minimum(np.ceil(index + reach) + 1, SHAPE).astype(int)
        window = tuple(slice(a, b) for a, b in zip(low, high))
        offset = np.moveaxis(np.mgrid[window], 0, -1) - index
        radius = np.linalg.norm(
            offset * SPACING @ defect.rotation / defect.axes, axis=-1)
        share = _soft((1 - radius) * defect.diameter / 2)
        mu[window] += (defect.mu - mu[window]) * share
    return gaussian_filter(mu, POINT_SPREAD / SPACING), defects


def _expect_blades(out_dir: Path) -> None:
    """Refuse a folder in which other volumes, or their boxes, would be
    overwritten."""
    expect_own_folder(
        out_dir, r'\.?blade_\d{3,}\.nii\.gz|rig\.json|boxes\.csv'
        r'|\.boxes\.csv\..+\.tmp', 'one with blades')
    volumes = sorted(out_dir.glob('blade_*.nii.gz'))
    table = out_dir / 'boxes.csv'
    if table.exists() and not volumes:  # it is written last
        raise ConversionError(f'{table}: expected the boxes of blades, found '
                              'no blades beside it: choose another --out-dir')
    for path in volumes:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            size = reader.GetSize()
        except RuntimeError:
            size = ()
        if size != SHAPE:
            raise ConversionError(
                f'{path}: expected a blade of {SHAPE} voxels, found '
                f'{size or "none"}: choose another --out-dir')


def write_blades(out_dir: Path, num_parts: int, seed: int = 0,
                 first: int = 0):
    """Write blades as NIfTI (grey value = attenuation / ``MU_PER_VALUE``) and
    ``boxes.csv`` (mm, world), last. ``first`` is the first one's number.

    Yields:
        Path: Each volume when it is written.

    Raises:
        ConversionError: The folder holds something else than blades.
    """
    _expect_blades(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator='\n')
    rows.writerow(_COLUMNS)
    for number in range(first, first + num_parts):
        mu, defects = make_blade(seed, number)
        name = f'blade_{number:03d}'
        image = sitk.GetImageFromArray(
            np.rint(mu / MU_PER_VALUE).astype(np.int16).T)
        image.SetSpacing([SPACING] * 3)
        # SimpleITK's frame is LPS; the index axes are to be RAS.
        image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
        corner = (np.array(SHAPE) - 1) / 2 * SPACING * [1, 1, -1]
        image.SetOrigin(corner.tolist())
        path = out_dir / f'{name}.nii.gz'
        half = out_dir / f'.{path.name}'
        sitk.WriteImage(image, str(half))
        os.replace(half, path)
        for d in defects:
            numbers = [*d.centre, *d.size, d.diameter]
            rows.writerow([name, d.label, *(f'{v:.4f}' for v in numbers)])
        yield path
    with atomic_write(out_dir / 'boxes.csv', 'w') as stream:
        stream.write(table.getvalue())
