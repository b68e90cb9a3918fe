"""Boxes for unlabelled objects: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from projects.core.engine.checkpoints import (
    warn_of_other_slices,
    warn_of_other_views,
)
from projects.core.engine.command_line import UserError, one_sentence
from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.engine.inference import Finder, is_sliced
from projects.core.export import export
from projects.core.files import DataError, load_json
from projects.core.inference import (
    add_object_arguments,
    check_object_arguments,
    find_boxes,
    watch_folder,
    write_found,
)
from projects.core.infos import SCHEMA_VERSION, validate_infos
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
    add_object_arguments(parser, what)
    parser.add_argument('--show', help='picture of all views of one object '
                        'with the boxes')
    parser.add_argument(
        '--device', type=torch_device,
        help='torch device; defaults to the GPU where there is one')
    return parser.parse_args(argv)


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


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build, load, predict, write; object by object."""
    args = parse_args(argv)
    check_object_arguments(args)
    cfg = load_config(args.config)
    if is_sliced(cfg) != bool(args.scan):
        raise UserError(f'{args.config}: expected '
                        + ('--scan, as its model takes CT slices, found '
                           f'--{"watch" if args.watch else "images"}'
                           if is_sliced(cfg) else
                           '--images, as its model takes X-ray views, found '
                           '--scan'))

    def load(rig: Optional[Rig] = None) -> Finder:
        finder = Finder(args.config, args.checkpoint, args.device)
        if rig is not None:
            warn_of_other_views(args.checkpoint, finder.meta, rig.to_dict())
        return finder

    if args.watch:
        watch_folder(args, load)
    elif args.images:
        find_boxes(args, load)
    else:
        images, slices = read_scan(args.scan)
        finder = load()
        warn_of_other_slices(args.checkpoint, finder.meta, slices)
        found = finder.predict(args.scan.stem, images, args.score_thr)
        written = write_found(args, args.scan.stem, found, finder)
        if written:
            export(written, args.out_dir, ['csv', 'slicer'])


if __name__ == '__main__':
    main()
