"""Train a detector: python tools/train.py CONFIG [--work-dir W] [--resume]"""

import argparse
from pathlib import Path
from typing import List, Optional

from mmengine.runner import find_latest_checkpoint

from projects.core.engine.checkpoints import allow_checkpoint_types
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import build_runner, config_errors, config_of
from projects.core.engine.precision import keep_freed_memory


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """mmdet3d's own arguments."""
    parser = argument_parser('Train a 3D detector', amp=True)
    parser.add_argument(
        '--resume', nargs='?', const='auto',
        help='go on from a checkpoint, or from the latest of the work dir')
    parser.add_argument(
        '--seed', type=int, help='seed of weights, order and augmentation')
    return parser.parse_args(argv)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build the runner and train."""
    args = parse_args(argv)
    check_outputs(args, 'work_dir')
    allow_checkpoint_types()
    keep_freed_memory()
    cfg = config_of(args)
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)
    if args.resume == 'auto':
        # Where there is nothing yet to go on from, as without --resume.
        args.resume = find_latest_checkpoint(cfg.work_dir)
    if args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    start = cfg.get('load_from')
    if start and '://' not in start and not Path(start).is_file():
        raise UserError(
            f'{args.config}: load_from: {start}: expected a file, found '
            'none; train it first, or name another with --cfg-options '
            'load_from=...')
    with config_errors(cfg):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
