"""Boxes for one unlabelled object: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
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
)
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
    parser.add_argument('--rig', help='rig.json of --images')
    parser.add_argument('--out', required=True, help='boxes as JSON')
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


def read_views(args: argparse.Namespace) -> tuple:
    """Images by name of the views that the arguments name, the rig's content
    and None, see :func:`read_scan`.

    Raises:
        UserError: There is no rig, or see :func:`find_images`.
    """
    if not args.rig:
        raise UserError('--rig: expected rig.json of --images, found none')
    try:
        rig = Rig.load(args.rig)
    except ValueError as error:
        raise UserError(str(error)) from error
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


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build, load, predict, write."""
    args = parse_args(argv)
    check_outputs(args, 'out', 'show')
    sliced = is_sliced(load_config(args.config))
    if sliced != bool(args.scan):
        raise UserError(f'{args.config}: expected '
                        + ('--scan, as its model takes CT slices, found '
                           '--images' if sliced else
                           '--images, as its model takes X-ray views, found '
                           '--scan'))
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
