r"""Views as a detector gives them, against XCIST.

XCIST (`gecatsim`, BSD-3) is a simulator that others wrote: its own projector,
attenuation tables, scintillator and noise. Both look at one phantom: an
ellipsoid of water with a lung, a nodule of 10 mm in it, and a ball of bone;
120 kV, a focal spot of 1 mm, the same air kerma at the detector. Printed are
the mean difference of the line integrals and the ratio of the noise's
variances: with SpekPy's tube, which this project's spectrum was made from, and
with XCIST's own.

    python benchmarks/xcist.py --xcist-python ENV/bin/python

ENV is an environment of its own. XCIST's build script has to be mended:

    python -m venv ENV
    ENV/bin/pip install spekpy==2.5.4 matplotlib tqdm setuptools
    pip download --no-deps --no-binary gecatsim gecatsim==1.6.9
    tar xf gecatsim-1.6.9.tar.gz
    sed -i 's/\r$//' gecatsim-1.6.9/gecatsim/clib_build/BuildLinux64
    ENV/bin/pip install --no-deps ./gecatsim-1.6.9

What the two have not in common is off: scatter, light spread, lag and other
faults of a detector.
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

KVP, FILTERS = 120, ['Al', 2.5, 'Cu', .2]
CSI_MM = .45  # of solid caesium iodide: 0.6 mm that it fills to 75 %
SPOT = 1.  # mm
RADIUS, SDD, WIDTH = 300., 600., 800.  # mm, as the default rig
START, VIEWS = 20., 4  # degrees
VOXEL = 1.5  # mm
# Semi-axes and centres (mm), x, y, z.
BODY = (150., 100., 110.), (0., 0., 0.)
LUNG, LUNG_DENSITY = ((45., 60., 80.), (70., 0., 0.)), .3
NODULE = (5., 5., 5.), (70., -20., 20.)
BONE = (15., 15., 15.), (-70., 15., -25.)
# NIST: energy that air absorbs (keV, cm2/g).
AIR = ([10, 15, 20, 30, 40, 50, 60, 80, 100, 150],
       [4.742, 1.334, .5389, .1537, .06833, .04098, .03041, .02407, .02325,
        .02496])


# -------------------------------------------------------------------- phantom
def phantom() -> dict:
    """Share of each voxel (x, y, z) that is water and cortical bone."""
    counts = [round(2.1 * axis / VOXEL) for axis in BODY[0]]
    grid = np.stack(np.meshgrid(*[
        (np.arange(n) - (n - 1) / 2) * VOXEL for n in counts],
        indexing='ij'), -1)

    def inside(axes, centre):
        # Share of a voxel, from the distance to the border.
        scaled = np.linalg.norm((grid - centre) / np.array(axes), axis=-1)
        gradient = np.linalg.norm(
            (grid - centre) / np.array(axes)**2, axis=-1)
        distance = (scaled - 1) * scaled / np.maximum(gradient, 1e-9)
        return np.clip(.5 - distance / VOXEL, 0, 1).astype(np.float32)

    bone, lung = inside(*BONE), inside(*LUNG)
    water = inside(*BODY) * (1 - bone) * (1 - lung * (1 - LUNG_DENSITY) * (
        1 - inside(*NODULE)))
    return dict(water=water, bone=bone)


# ---------------------------------------------------------- in XCIST's process
def simulate(folder: Path) -> None:
    """What XCIST makes of ``phantom.npz``; runs in its environment."""
    import gecatsim
    from gecatsim.pyfiles.CommonTools import my_path
    asked = json.loads((folder / 'asked.json').read_text())
    write_phantom(np.load(folder / 'phantom.npz'), folder)
    work = gecatsim.CatSim('Phantom_Default', 'Scanner_Default',
                           'Protocol_Default', 'Physics_Default')
    size = asked['image_size']
    set_all(work.phantom, callback='Phantom_Voxelized',
            projectorCallback='C_Projector_Voxelized',
            projectorNumThreads=1, filename=str(folder / 'phantom.json'))
    set_all(work.scanner, detectorCallback='Detector_FlatPanel', sid=RADIUS,
            sdd=SDD, detectorColsPerMod=size, detectorRowsPerMod=size,
            detectorColCount=size, detectorRowCount=size,
            detectorColOffset=0., detectorRowOffset=0.,
            detectorColSize=WIDTH / size, detectorRowSize=WIDTH / size,
            detectorColFillFraction=1., detectorRowFillFraction=1.,
            detectorPrefilter=[], detectorMaterial='CsI',
            detectorDepth=CSI_MM, detectionGain=1., eNoise=0.,
            # A spot at right angles to the beam.
            targetAngle=90., focalspotShape='Uniform', focalspotWidth=SPOT,
            focalspotLength=SPOT)
    set_all(work.protocol, viewsPerRotation=VIEWS, viewCount=VIEWS,
            stopViewId=VIEWS - 1, rotationTime=1., startAngle=START,
            spectrumFilename=f'tungsten_tar10.0_{KVP}_filt.dat',
            flatFilter=FILTERS, bowtie='', dutyRatio=1., mA=1.)
    set_all(work.physics, FlatPanel_OSfactor=1, energyCount=asked['energies'],
            colSampleCount=2, rowSampleCount=2, srcXSampleCount=2,
            srcYSampleCount=2, viewSampleCount=1, enableElectronicNoise=0,
            disable_low_signal_correction=True)
    if asked['tube'] == 'SpekPy':
        work.protocol.spectrumFilename = spekpy_tube(folder)
        work.protocol.flatFilter = []
    work.protocol.mA = asked['kerma'] / kerma_of(
        my_path.find('spectrum', work.protocol.spectrumFilename, ''),
        work.protocol.flatFilter)
    found = {}
    for name, noise in (('mean', 0), ('noisy', 1)):
        np.random.seed(0)
        work.physics.enableQuantumNoise = noise
        work.resultsName = str(folder / name)
        work.run_all()
        prep = np.fromfile(folder / f'{name}.prep', np.float32)
        # Rows from below, columns from the right, as our cameras see them.
        found[name] = prep.reshape(VIEWS, size, size)[:, ::-1, ::-1]
    np.savez(folder / 'found.npz', **found)


def set_all(part, **values) -> None:
    """Set fields of a part of XCIST's configuration."""
    for name, value in values.items():
        setattr(part, name, value)


def write_phantom(shares, folder: Path) -> None:
    """Volume fractions as XCIST reads them; its rows run to -y."""
    materials = dict(water='water',
                     bone='ICRU_skeleton_cortical_bone_adult')
    told: dict = dict(n_materials=len(materials),
                      mat_name=list(materials.values()),
                      volumefractionmap_filename=[],
                      volumefractionmap_datatype=['float'] * len(materials))
    for name in materials:
        volume = shares[name].transpose(2, 1, 0)[:, ::-1]
        volume.astype(np.float32).tofile(folder / f'{name}.raw')
        told['volumefractionmap_filename'].append(f'{name}.raw')
    for axis, n, count in zip('xyz', ('cols', 'rows', 'slices'),
                              shares['water'].shape):
        told[n] = [count] * len(materials)
        told[f'{axis}_size'] = [VOXEL] * len(materials)
        told[f'{axis}_offset'] = [(count + 1) / 2] * len(materials)
    (folder / 'phantom.json').write_text(json.dumps(told))


def spekpy_tube(folder: Path) -> str:
    """Write SpekPy's spectrum behind the filters as XCIST reads it."""
    import spekpy
    tube = spekpy.Spek(kvp=KVP, th=12, z=100)
    tube.multi_filter(list(zip(FILTERS[::2], FILTERS[1::2])))
    energies, quanta = tube.get_spectrum()
    path = folder / 'spekpy.dat'
    path.write_text(f'{len(energies)}\n' + ''.join(
        f'{e:.6f},{q:.6f}\n' for e, q in zip(energies, quanta)))
    return str(path)


def kerma_of(spectrum: str, filters: list) -> float:
    """Air kerma (uGy) at the detector for each mA and view of a tube, behind
    filters."""
    from gecatsim.pyfiles.GetMu import GetMu
    from gecatsim.pyfiles.Spectrum import spectrum_read
    energies, quanta, _ = spectrum_read(spectrum)  # /s/mA/cm2 at 1 m
    quanta, energies = quanta[energies > 10], energies[energies > 10]
    for material, depth in zip(filters[::2], filters[1::2]):
        quanta = quanta * np.exp(
            -np.array(GetMu(material, energies)) * depth / 10)
    absorbed = np.exp(np.interp(np.log(energies), *np.log(AIR)))
    # keV to J, g to kg, Gy to uGy.
    kerma = (quanta * energies * absorbed).sum() * 1.602e-16 * 1e3 * 1e6
    print(f'mean energy {(quanta * energies).sum() / quanta.sum():.1f} keV')
    return float(kerma) * (1000 / SDD)**2 / VIEWS


# ----------------------------------------------------------------------- ours
def ours(shares: dict, image_size: int, kerma: float) -> dict:
    """The same from this project's renderer and conditions."""
    from data_converters.drr import Volume, render_with_bone
    from projects.core.acquisition import (
        BONE_IN_WATER,
        Acquisition,
        load_preset,
        load_spectrum,
    )
    from projects.core.rig import Rig
    name = load_preset('chest-radiography').spectrum
    beam = load_spectrum(name)
    # XCIST's quanta differ in their energy; light that is lost on its way
    # adds no noise there.
    swank = beam.signal.sum()**2 / (
        (beam.signal / beam.energies).sum()
        * (beam.signal * beam.energies).sum())
    rig = Rig.circle(VIEWS, RADIUS, SDD, image_size, WIDTH,
                     start=90 + START)
    hu = 1000 * (shares['water'] + BONE_IN_WATER * shares['bone'] - 1)
    images, bones = map(np.stack, render_with_bone(
        Volume.centred(hu, np.eye(3) * VOXEL), rig))
    pixel = rig.views[0].pixel_size
    found = dict(ideal=images, bone=bones)
    for kind, noise in (('mean', False), ('noisy', True)):
        conditions = Acquisition(
            spectrum=name, kerma=kerma, focal_spot=SPOT, noise=noise,
            swank=float(swank))
        found[kind] = conditions.measure(
            images, pixel, np.random.default_rng(0), bones)
    without = Acquisition(spectrum=name, focal_spot=SPOT, noise=False)
    found['water'] = without.measure(images, pixel, np.random.default_rng(0))
    return found


# ----------------------------------------------------------------- comparison
def tell(xcist: dict, mine: dict) -> None:
    """Print the differences."""
    expected, found = xcist['mean'], mine['mean']
    body, bony = found > .3, mine['bone'] > 5
    difference = found - expected
    print(f'line integrals, of up to {expected.max():.2f}: ours less '
          "XCIST's")
    for name, where in (
            ('all behind the body', body),
            ('water and lung', body & (mine['bone'] == 0)),
            ('bone of more than 5 mm', bony)):
        there = difference[where]
        print(f'  {name}: mean {there.mean():+.4f}, rms {there.std():.4f} '
              f'({100 * there.mean() / expected[where].mean():+.2f} %)')
    there = (mine['water'] - expected)[bony]
    print(f'  the same, bone taken for water: mean {there.mean():+.4f}')
    print("noise behind the body, variance of ours over XCIST's, in the "
          'middle of the detector (200 mm)')
    size = found.shape[1]
    place = (np.arange(size) + .5) / size * WIDTH - WIDTH / 2
    middle = np.hypot(*np.meshgrid(place, place)) < 100
    edges = np.quantile(found[:, middle][body[:, middle]], [0, .33, .67, 1])
    for low, high in zip(edges[:-1], edges[1:]):
        where = (found >= low) & (found <= high) & middle & body
        a, b = ((part['noisy'] - part['mean'])[where].var()
                for part in (mine, xcist))
        error = np.sqrt(4 / where.sum())
        print(f'  line integrals of {low:.1f} to {high:.1f}: {a:.3e} and '
              f'{b:.3e}, {a / b:.3f} +- {error:.3f}')


def main(argv: Optional[List[str]] = None) -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--xcist-python', type=Path,
                        help='Python of an environment with gecatsim')
    parser.add_argument('--image-size', type=int, default=256)
    parser.add_argument('--kerma', type=float, default=22.,
                        help='at the detector (uGy); default 22')
    parser.add_argument('--energies', type=int, default=20,
                        help='in which XCIST computes; default 20')
    parser.add_argument('--simulate', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.simulate:
        simulate(args.simulate)
        return
    if not args.xcist_python:
        sys.exit('xcist.py: error: --xcist-python: expected the Python of an '
                 'environment with gecatsim, found none: the head of this '
                 'file says how to make it')
    sys.path.insert(0, str(Path(__file__).parents[1]))
    shares = phantom()
    mine = ours(shares, args.image_size, args.kerma)
    for tube in ('SpekPy', 'XCIST'):
        print(f'tube of {tube}')
        tell(theirs(shares, dict(
            image_size=args.image_size, kerma=args.kerma,
            energies=args.energies, tube=tube), args.xcist_python), mine)


def theirs(shares: dict, asked: dict, python: Path) -> dict:
    """What XCIST makes of the phantom, in a process of its environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / 'phantom.npz', **shares)
        (folder / 'asked.json').write_text(json.dumps(asked))
        environment = {key: value for key, value in os.environ.items()
                       if key != 'PYTHONPATH'}
        subprocess.run(
            [python.absolute(), Path(__file__).absolute(),
             '--simulate', folder], check=True, cwd=folder, env=environment,
            stdout=sys.stderr)
        with np.load(folder / 'found.npz') as stored:
            return {key: stored[key] for key in stored}


if __name__ == '__main__':
    main()
