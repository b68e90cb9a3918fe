"""Boxes for one unlabelled object: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
import signal
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from projects.core.drawing import draw_views, shown_views
from projects.core.engine.checkpoints import (
    warn_of_other_slices,
    warn_of_other_views,
)
from projects.core.engine.command_line import (
    UserError,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.engine.inference import (
    Finder,
    Prediction,
    images_of,
    is_sliced,
    write_found_report,
)
from projects.core.engine.watching import incomplete, watch
from projects.core.files import DataError, load_json
from projects.core.infos import SCHEMA_VERSION, validate_infos
from projects.core.results import dump_boxes
from projects.core.rig import Rig


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Find 3D boxes in the X-ray views of one object, or in '
        'the slices of a CT')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument('checkpoint', help='checkpoint file')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--scan', type=Path, help='for models of CT slices: record of a scan '
        'of a converted set of slices (scans/<scan>.json)')
    what.add_argument(
        '--images', nargs='+', type=Path,
        help='one image per view in the order of the rig, or a folder whose '
        'images are named as the views (CAM_00.png)')
    what.add_argument(
        '--watch', type=Path, help='folder whose sub-folders are objects, '
        'each with images named as the views: those that are there and all '
        'that appear, until Ctrl-C')
    parser.add_argument('--rig', help='rig.json of --images or --watch')
    parser.add_argument('--out', help='boxes as JSON')
    parser.add_argument(
        '--out-dir', type=Path, help='of --watch: folder for a table of the '
        'objects, a report page and boxes of each')
    parser.add_argument(
        '--every', type=float, default=2., help='of --watch: seconds from '
        'one look to the next (default: %(default)s)')
    parser.add_argument(
        '--patience', type=float, default=60., help='of --watch: seconds '
        'after which an object that is not complete has failed (default: '
        '%(default)s)')
    parser.add_argument('--show', help='picture of all views with the boxes')
    parser.add_argument('--score-thr', type=float, default=.1,
                        help='boxes below are left out (default: %(default)s)')
    parser.add_argument(
        '--scale', type=float, help='line integral of one grey level; '
        'defaults to the test pipeline\'s for 16 bits, needed for any other '
        'numbers (1 where they are line integrals)')
    parser.add_argument(
        '--offset', type=float, help='line integral of grey level 0')
    parser.add_argument(
        '--device', type=torch_device,
        help='torch device; defaults to the GPU where there is one')
    return parser.parse_args(argv)


def find_images(given: List[Path], rig: Rig) -> List[Path]:
    """One image per view.

    Raises:
        UserError: Their number is not that of the rig's views.
    """
    if len(given) == 1 and given[0].is_dir():
        paths = [given[0] / f'{view.name}.png' for view in rig.views]
        missing = [p for p in paths if not p.is_file()]
        if missing:
            raise UserError(f'{missing[0]}: image: expected one for each of '
                            f'the {len(rig)} views of the rig, found none')
        more = sorted(p.name for p in set(given[0].glob('*.png')) - set(paths))
        if more:
            print(f'{given[0]}: {", ".join(more)}: of no view of the rig, '
                  'not used', file=sys.stderr)
        return paths
    if len(given) == 1 and not given[0].exists():
        raise UserError(f'{given[0]}: --images: expected a folder or images, '
                        'found neither')
    if len(given) != len(rig):
        raise UserError(f'--images: expected {len(rig)}, one for each view '
                        f'of the rig, found {len(given)}')
    return given


def load_rig(args: argparse.Namespace) -> Rig:
    """The rig that the arguments name.

    Raises:
        UserError: There is none.
    """
    if not args.rig:
        raise UserError('--rig: expected rig.json of --images or --watch, '
                        'found none')
    try:
        return Rig.load(args.rig)
    except ValueError as error:
        raise UserError(str(error)) from error


def read_views(args: argparse.Namespace) -> tuple:
    """Images by name of the views that the arguments name, the rig's content
    and None, see :func:`read_scan`.

    Raises:
        UserError: See :func:`load_rig` and :func:`find_images`.
    """
    rig = load_rig(args)
    return images_of(rig, find_images(args.images, rig)), rig.to_dict(), None


def read_scan(path: Path) -> tuple:
    """Images by name of a scan of a set of slices, None in place of a rig,
    and how the set's slices were made.

    Raises:
        DataError: It is no such record.
    """
    record, root = load_json(path), path.resolve().parent.parent
    if not isinstance(record, dict):
        raise DataError(f'{path}: expected the record of a scan, as '
                        'scans/<scan>.json of a converted set, found another '
                        'file')
    # What is known to be in it is of no use here.
    record = dict(record, instances=[], cam_instances={})
    validate_infos(dict(metainfo=dict(
        schema_version=SCHEMA_VERSION, units='mm', classes=['indication']),
        data_list=[record]), str(path))
    images = {name: dict(image, img_path=str(root / image['img_path']))
              for name, image in record['images'].items()}
    if not images or any('thickness' not in i for i in images.values()):
        raise DataError(f'{path}: field "images": expected CT slices, found '
                        + ('X-ray views' if images else 'none'))
    return images, None, load_json(root / 'options.json').get('slices')


def write_boxes(path: str, found: Prediction,
                classes: Sequence[str]) -> None:
    """Write ``boxes.json``."""
    dump_boxes(path, found.boxes, found.scores, found.labels, classes)


def draw_prediction(path: str, found: Prediction) -> None:
    """Draw all views with the boxes."""
    rows = shown_views(found.ct2img, found.boxes)
    draw_views(found.shown[rows], found.ct2img[rows], path,
               names=[found.names[row] for row in rows],
               scores=found.scores, prediction=found.boxes)


def check_rest(args: argparse.Namespace) -> None:
    """Options that belong together.

    Raises:
        UserError: One is missing or too many.
    """
    needed, other = (('out_dir', 'out') if args.watch else ('out', 'out_dir'))
    what = '--watch' if args.watch else '--images or --scan'
    if getattr(args, needed) is None:
        raise UserError(f'--{needed.replace("_", "-")}: expected with {what}, '
                        'found none')
    if getattr(args, other) is not None or (args.watch and args.show):
        name = other if getattr(args, other) is not None else 'show'
        raise UserError(f'--{name.replace("_", "-")}: expected none with '
                        f'{what}, found {getattr(args, name)}')
    check_outputs(args, 'out', 'out_dir', 'show')


def watch_folder(args: argparse.Namespace) -> None:
    """Find the boxes of all objects that appear; ends by Ctrl-C or SIGTERM.

    Raises:
        UserError: See :func:`~projects.core.engine.watching.watch`.
    """
    rig = load_rig(args)
    finder = Finder(args.config, args.checkpoint, args.device, args.scale,
                    args.offset)
    warn_of_other_views(args.checkpoint, finder.meta, rig.to_dict())

    def ready(path: Path) -> Optional[str]:
        for view in rig.views:
            image = path / f'{view.name}.png'
            if incomplete(image):
                return (f'{image}: image: expected one for each of the '
                        f'{len(rig)} views of the rig, found '
                        + ('a part of one' if image.exists() else 'none'))
        return None

    def find(path: Path, out_dir: Path) -> dict:
        found = finder.predict(
            path.name, images_of(rig, find_images([path], rig)),
            args.score_thr)
        write_boxes(str(out_dir / 'boxes.json'), found, finder.classes)
        write_found_report(
            out_dir / 'report.html', path.name, found, finder.classes,
            Path(args.checkpoint).name, args.score_thr, rig)
        return dict(boxes=len(found.boxes), highest_score=round(
            float(found.scores.max()), 4) if len(found.boxes) else None)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handled = failed = 0
    try:
        print(f'{args.watch}: watched; Ctrl-C ends', flush=True)
        for row in watch(args.watch, args.out_dir, ready, find, args.every,
                         args.patience):
            handled += 1
            failed += bool(row['error'])
            print(f'{row["object"]}: '
                  + (row['error'] or f'{row["boxes"]} boxes'), flush=True)
    except KeyboardInterrupt:
        print(f'ended: {handled} objects, {failed} of them failed')


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build, load, predict, write."""
    args = parse_args(argv)
    check_rest(args)
    sliced = is_sliced(load_config(args.config))
    if sliced != bool(args.scan):
        raise UserError(f'{args.config}: expected '
                        + ('--scan, as its model takes CT slices, found '
                           f'--{"watch" if args.watch else "images"}'
                           if sliced else
                           '--images, as its model takes X-ray views, found '
                           '--scan'))
    if args.watch:
        watch_folder(args)
        return
    images, rig, slices = (read_scan(args.scan) if args.scan
                           else read_views(args))
    finder = Finder(args.config, args.checkpoint, args.device, args.scale,
                    args.offset)
    warn_of_other_views(args.checkpoint, finder.meta, rig)
    warn_of_other_slices(args.checkpoint, finder.meta, slices)
    found = finder.predict(Path(args.out).stem, images, args.score_thr)
    write_boxes(args.out, found, finder.classes)
    if args.show:
        draw_prediction(args.show, found)
    print(f'{args.out}: {len(found.boxes)} boxes')


if __name__ == '__main__':
    main()
