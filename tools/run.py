"""Boxes by a deployed model: python tools/run.py MODEL --images ..."""

import argparse
import sys
from typing import List, Optional

from projects.core.deployed import DeployedFinder
from projects.core.engine.command_line import UserError, one_sentence
from projects.core.inference import (
    add_object_arguments,
    check_object_arguments,
    find_boxes,
    other_views,
    watch_folder,
)
from projects.core.rig import Rig


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Find 3D boxes in the X-ray views of objects with a model '
        'that tools/deploy.py wrote; without PyTorch')
    parser.add_argument('model', help='folder of model.onnx and model.json')
    add_object_arguments(
        parser, parser.add_mutually_exclusive_group(required=True))
    parser.add_argument('--threads', type=int, default=0,
                        help='of the computation; default: all cores')
    return parser.parse_args(argv)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Load, predict, write; object by object."""
    args = parse_args(argv)
    check_object_arguments(args)
    if args.threads < 0:
        raise UserError('--threads: expected 0, which takes all cores, or '
                        f'more, found {args.threads}')

    def load(rig: Rig) -> DeployedFinder:
        finder = DeployedFinder(args.model, args.threads)
        told = other_views(finder.checkpoint, finder.meta, rig.to_dict())
        if told:
            print(f'warning: {told}', file=sys.stderr)
        return finder

    (watch_folder if args.watch else find_boxes)(args, load)


if __name__ == '__main__':
    main()
