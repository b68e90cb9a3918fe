"""A blade as a detector gives it, against gVXR.

gVXR (BSD-3) is a simulator that others wrote: rays through triangles, its own
attenuation tables and scintillator. It sees the surface of an embedded blade
as nickel; this project renders the blade's voxels. 225 kV behind 1 mm of
copper, SpekPy's spectrum in both, a point as source. Printed is the mean
difference of the line integrals: with gVXR's scintillator, and where that
absorbs quanta as this project's does.

    python benchmarks/gvxr_blade.py --gvxr-python ENV/bin/python

ENV is an environment of its own:

    python -m venv ENV
    ENV/bin/pip install gvxr==2.1.0 spekpy==2.5.4

It draws with EGL and needs no screen; Debian's packages libxcb-res0,
libxcb-ewmh2, libxcb-composite0, libxcb-xinerama0, libxcb-keysyms1 and
libxcb-icccm4 have to be there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

import numpy as np

KVP, FILTERS = 225, [('Al', 2.5), ('Cu', 1.)]
CSI_MM, CSI = .45, 4.51  # solid caesium iodide, g/cm3: 0.6 mm filled to 75 %
# NIST: its attenuation (keV, cm2/g); what is softer does not pass the copper.
ATTENUATION = ([40, 50, 60, 80, 100, 150, 200, 300],
               [23., 12.86, 7.92, 3.677, 2.035, .731, .378, .181])
NICKEL = 8.9  # g/cm3
RADIUS, SDD, WIDTH = 300., 600., 260.  # mm
VIEWS, START = 4, 20.


# ----------------------------------------------------------- in gVXR's process
def simulate(folder: Path) -> None:
    """What gVXR makes of ``blade.stl``; runs in its environment."""
    import spekpy
    from gvxrPython3 import gvxr
    views = json.loads((folder / 'views.json').read_text())
    simple = (folder / 'simple').exists()
    gvxr.createWindow(-1, 0, 'EGL')
    tube = spekpy.Spek(kvp=KVP, th=12, z=100)
    tube.multi_filter(FILTERS)
    gvxr.resetBeamSpectrum()
    energies, quanta = tube.get_spectrum()
    if simple:
        quanta = quanta * -np.expm1(-CSI_MM / 10 * CSI * np.exp(
            np.interp(np.log(energies), *np.log(ATTENUATION))))
    else:
        gvxr.setScintillator('CsI', CSI_MM, 'mm')
    for energy, count in zip(energies, quanta):
        if count > 1e-6 * quanta.sum():
            gvxr.addEnergyBinToSpectrum(float(energy), 'keV', float(count))
    gvxr.loadMeshFile('blade', str(folder / 'blade.stl'), 'mm')
    gvxr.setElement('blade', 'Ni')
    gvxr.setDensity('blade', NICKEL, 'g/cm3')
    gvxr.addPolygonMeshAsOuterSurface('blade')
    gvxr.usePointSource()
    found = []
    for view in views:
        size = view['size']
        gvxr.setSourcePosition(*view['source'], 'mm')
        gvxr.setDetectorPosition(*view['centre'], 'mm')
        gvxr.setDetectorRightVector(*view['right'])
        gvxr.setDetectorUpVector(*view['up'])
        gvxr.setDetectorNumberOfPixels(size, size)
        gvxr.setDetectorPixelSize(WIDTH / size, WIDTH / size, 'mm')
        image = np.array(gvxr.computeXRayImage(), np.float64)
        found.append(-np.log(image / (
            gvxr.getTotalEnergyWithoutDetectorResponse() if simple
            else gvxr.getTotalEnergyWithDetectorResponse())))
    # Rows from below.
    np.save(folder / 'found.npy', np.stack(found)[:, ::-1])


# ----------------------------------------------------------------- comparison
def write_stl(mu: np.ndarray, spacing: float, level: float,
              path: Path) -> float:
    """Write a volume's surface, in mm about its centre; returns what it
    holds (mm3)."""
    from skimage.measure import marching_cubes
    points, faces, _, _ = marching_cubes(
        np.pad(mu, 1), level, gradient_direction='ascent')
    points = (points - 1 - (np.array(mu.shape) - 1) / 2) * spacing
    triangles = points[faces].astype('<f4')
    volume = np.einsum('ij,ij->i', triangles[:, 0], np.cross(
        triangles[:, 1], triangles[:, 2])).sum() / 6
    if volume < 0:  # its normals look inwards
        triangles = triangles[:, ::-1]
    record = np.zeros(len(triangles), [
        ('normal', '<f4', 3), ('points', '<f4', (3, 3)), ('rest', '<u2')])
    record['points'] = triangles
    normal = np.cross(triangles[:, 1] - triangles[:, 0],
                      triangles[:, 2] - triangles[:, 0])
    record['normal'] = normal / np.maximum(
        np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    path.write_bytes(bytes(80) + np.uint32(len(record)).tobytes()
                     + record.tobytes())
    return abs(float(volume))


def main(argv: Optional[List[str]] = None) -> None:
    """Render one blade with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--gvxr-python', type=Path,
                        help='Python of an environment with gvxr')
    parser.add_argument('--image-size', type=int, default=512)
    parser.add_argument('--simulate', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.simulate:
        simulate(args.simulate)
        return
    if not args.gvxr_python:
        sys.exit('gvxr_blade.py: error: --gvxr-python: expected the Python of '
                 'an environment with gvxr, found none: the head of this file '
                 'says how to make it')
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from data_converters import blade
    from data_converters.drr import MU_WATER, Volume, render
    from projects.core import geometry
    from projects.core.acquisition import Acquisition, load_preset
    from projects.core.rig import Rig
    mu, _ = blade.make_blade(0, 0)
    rig = Rig.circle(VIEWS, RADIUS, SDD, args.image_size, WIDTH, start=START)
    views = []
    for view in rig.views:
        right, down, forward = view.ct2cam[:3, :3]
        source = geometry.camera_centres(view.ct2img)
        views.append(dict(
            source=source.tolist(), centre=(source + SDD * forward).tolist(),
            right=right.tolist(), up=(-down).tolist(),
            size=args.image_size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = write_stl(mu, blade.SPACING, blade.MU_ALLOY / 2,
                           folder / 'blade.stl')
        (folder / 'views.json').write_text(json.dumps(views))
        theirs = {"gVXR's scintillator": simulated(folder,
                                                   args.gvxr_python)}
        (folder / 'simple').touch()
        theirs["this project's absorption"] = simulated(folder,
                                                        args.gvxr_python)
    spacing = np.eye(3) * blade.SPACING
    ideal = np.stack(render(Volume.centred(
        1000 * (mu / MU_WATER - 1), spacing), rig))
    preset = load_preset('casting-225kV')
    ours = Acquisition(
        spectrum=preset.spectrum, material=preset.material,
        reference_mu=preset.reference_mu, noise=False).measure(
            ideal, rig.views[0].pixel_size, np.random.default_rng(0))
    print(f'volume of the surface {volume:.0f} mm3, of the voxels '
          f'{mu.sum() / blade.MU_ALLOY * blade.SPACING**3:.0f} mm3')
    for name, expected in theirs.items():
        print(name)
        tell(expected, ours, ideal / preset.reference_mu)


def simulated(folder: Path, python: Path) -> np.ndarray:
    """Run :func:`simulate` in its environment."""
    environment = {key: value for key, value in os.environ.items()
                   if key != 'PYTHONPATH'}
    subprocess.run(
        [python.absolute(), Path(__file__).absolute(), '--simulate', folder],
        check=True, cwd=folder, stdout=sys.stderr,
        env=dict(environment, EGL_PLATFORM='surfaceless',
                 LIBGL_ALWAYS_SOFTWARE='1'))
    return np.load(folder / 'found.npy')


def tell(expected: np.ndarray, found: np.ndarray, length: np.ndarray) -> None:
    """Print differences by length of nickel (mm)."""
    for low, high in ((1, 5), (5, 10), (10, 20), (20, 60)):
        where = (length > low) & (length <= high)
        if where.sum() > 100:
            there, mean = (found - expected)[where], expected[where].mean()
            print(f'  {low} to {high} mm of nickel, line integrals of '
                  f'{mean:.2f}: mean {there.mean():+.3f} '
                  f'({100 * there.mean() / mean:+.2f} %), median '
                  f'{np.median(there):+.3f}, rms {there.std():.3f}')


if __name__ == '__main__':
    main()
