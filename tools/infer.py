"""Boxes for unlabelled objects: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

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
from projects.core.export import export
from projects.core.files import DataError, load_json
from projects.core.infos import SCHEMA_VERSION, validate_infos
from projects.core.projections import (
    LEVEL,
    Reading,
    add_reading_arguments,
    find_objects,
    read_projections,
    reading_of,
)
from projects.core.results import dump_boxes
from projects.core.rig import Rig


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Find 3D boxes in the X-ray views of objects, or in the '
        'slices of a CT')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument('checkpoint', help='checkpoint file')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--scan', type=Path, help='for models of CT slices: record of a scan '
        'of a converted set of slices (scans/<scan>.json)')
    what.add_argument(
        '--images', nargs='+', type=Path,
        help='an object each: a folder with one image per view, a file with '
        'all, or a .txt that lists the images; or a folder of such folders; '
        'or one image for each view, in the order of the rig')
    what.add_argument(
        '--watch', type=Path, help='folder whose sub-folders are objects, '
        'each with images named as the views: those that are there and all '
        'that appear, until Ctrl-C')
    parser.add_argument('--rig', help='rig.json of --images or --watch')
    parser.add_argument('--out', help='boxes of one object as JSON')
    parser.add_argument(
        '--out-dir', type=Path, help='folder: of each object boxes as JSON '
        'and 3D Slicer markups and a report page, of all a CSV; of --watch a '
        'table of the objects, a report page and boxes of each')
    parser.add_argument(
        '--every', type=float, default=2., help='of --watch: seconds from '
        'one look to the next (default: %(default)s)')
    parser.add_argument(
        '--patience', type=float, default=60., help='of --watch: seconds '
        'after which an object that is not complete has failed (default: '
        '%(default)s)')
    parser.add_argument(
        '--trust-rig', action='store_true', help='do not look whether views '
        'are turned, mirrored or swapped against the rig')
    parser.add_argument('--show', help='picture of all views of one object '
                        'with the boxes')
    parser.add_argument('--score-thr', type=float, default=.1,
                        help='boxes below are left out (default: %(default)s)')
    parser.add_argument(
        '--device', type=torch_device,
        help='torch device; defaults to the GPU where there is one')
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def read_rig(args: argparse.Namespace) -> Rig:
    """The rig of the images.

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


def read_views(places: List[Path], rig: Rig, reading: Reading
               ) -> Tuple[Dict[str, dict], str]:
    """An object's images by the names of the rig's views, and what was
    assumed.

    Raises:
        DataError: See :func:`~projects.core.projections.read_projections`.
    """
    found = read_projections(places, rig.views, reading)
    return images_of(rig, [places[0]] * len(rig), found.views), found.note


def read_scan(path: Path) -> Tuple[Dict[str, dict], Optional[dict]]:
    """Images by name of a scan of a set of slices, and how the set's slices
    were made.

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
    return images, load_json(root / 'options.json').get('slices')


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


def write_object(folder: Path, token: str, found: Prediction, finder: Finder,
              rig: Optional[Rig]) -> None:
    """Write an object's boxes as JSON, and its report page."""
    write_boxes(str(folder / f'{token}.json'), found, finder.classes)
    write_found_report(folder / f'{token}.html', token, found,
                       finder.classes, Path(finder.checkpoint).name, rig=rig)


def tell(token: str, found: Prediction) -> None:
    """Warn of what an object's views differ in."""
    for told in found.told:
        print(f'{token}: warning: {told}', file=sys.stderr, flush=True)


def check_rest(args: argparse.Namespace) -> None:
    """Options that belong together.

    Raises:
        UserError: One is missing or too many.
    """
    if args.watch:
        if args.out_dir is None:
            raise UserError('--out-dir: expected with --watch, found none')
        for name in ('out', 'show'):
            if getattr(args, name) is not None:
                raise UserError(f'--{name}: expected none with --watch, found '
                                f'{getattr(args, name)}')
    elif not (args.out or args.out_dir):
        raise UserError('--out: expected with --images or --scan, or '
                        '--out-dir, found none')
    check_outputs(args, 'out', 'out_dir', 'show')


def rig_to_check(args: argparse.Namespace) -> Optional[str]:
    """The rig that views are compared with; None if it is trusted."""
    return None if args.trust_rig else args.rig


def watch_folder(args: argparse.Namespace) -> None:
    """Find the boxes of all objects that appear; ends by Ctrl-C or SIGTERM.

    Raises:
        UserError: See :func:`~projects.core.engine.watching.watch`.
    """
    rig, reading = read_rig(args), reading_of(args, LEVEL)
    finder = Finder(args.config, args.checkpoint, args.device)
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
        images, note = read_views([path], rig, reading)
        print(f'{path.name}: {note}', flush=True)
        found = finder.predict(path.name, images, args.score_thr,
                               rig_to_check(args))
        tell(path.name, found)
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
    """Build, load, predict, write; object by object."""
    args = parse_args(argv)
    check_rest(args)
    cfg = load_config(args.config)
    if is_sliced(cfg) != bool(args.scan):
        raise UserError(f'{args.config}: expected '
                        + ('--scan, as its model takes CT slices, found '
                           f'--{"watch" if args.watch else "images"}'
                           if is_sliced(cfg) else
                           '--images, as its model takes X-ray views, found '
                           '--scan'))
    if args.watch:
        watch_folder(args)
        return
    rig, slices, reading = None, None, reading_of(args, LEVEL)
    if args.scan:
        objects = {args.scan.stem: [args.scan]}
    else:
        rig = read_rig(args)
        objects = find_objects(args.images, len(rig), reading)
    if len(objects) > 1 and (args.out or args.show):
        raise UserError(f'--out, --show: expected one object, found '
                        f'{len(objects)}: --out-dir takes them all')
    first = read_views(next(iter(objects.values())), rig, reading) if (
        rig) else None
    finder = Finder(args.config, args.checkpoint, args.device)
    warn_of_other_views(args.checkpoint, finder.meta,
                        None if rig is None else rig.to_dict())
    refused, written = {}, []
    for token, places in objects.items():
        if rig is None:
            images, slices = read_scan(places[0])
            warn_of_other_slices(args.checkpoint, finder.meta, slices)
            found = finder.predict(token, images, args.score_thr)
        else:
            try:
                images, note = first or read_views(places, rig, reading)
                first = None
                print(f'{token}: {note}')
                found = finder.predict(token, images, args.score_thr,
                                       rig_to_check(args))
            except DataError as error:
                # The others are found all the same.
                refused[token] = str(error)
                print(f'{token}: refused: {error}', file=sys.stderr)
                continue
        tell(token, found)
        if args.out:
            write_boxes(args.out, found, finder.classes)
        if args.show:
            draw_prediction(args.show, found)
        if args.out_dir:
            write_object(Path(args.out_dir), token, found, finder, rig)
            written.append(Path(args.out_dir) / f'{token}.json')
        print(f'{args.out or Path(args.out_dir) / token}: '
              f'{len(found.boxes)} boxes')
    if written:
        export(written, args.out_dir, ['csv', 'slicer'])
    if refused:
        name, reason = next(iter(refused.items()))
        raise UserError(f'{len(refused)} of {len(objects)} objects were '
                        f'refused, first {name}: {reason}')


if __name__ == '__main__':
    main()
