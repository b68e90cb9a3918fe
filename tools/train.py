"""Train a detector: python tools/train.py CONFIG [--work-dir W] [--resume]"""

import argparse
import os
from pathlib import Path

from mmengine.config import DictAction

from projects.mv2d_xray.runtime import (UserError, allow_checkpoint_types,
                                        build_runner, keep_freed_memory,
                                        load_config, one_sentence)


def parse_args() -> argparse.Namespace:
    """mmdet3d's own arguments."""
    parser = argparse.ArgumentParser(description='Train a 3D detector')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; defaults to '
        'work_dirs/<name of the config>')
    parser.add_argument(
        '--data-root', help='folder of a converted set, instead of the '
        'config\'s')
    parser.add_argument(
        '--resume', nargs='?', const='auto',
        help='go on from a checkpoint, or from the latest of the work dir')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--seed', type=int, help='seed of weights, order and augmentation')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override parts of the config, as a.b=1')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@one_sentence
def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    allow_checkpoint_types()
    keep_freed_memory()
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(
        Path('work_dirs') / Path(args.config).stem)
    if args.data_root:
        for loader in ('train_dataloader', 'val_dataloader',
                       'test_dataloader'):
            if cfg.get(loader):
                cfg[loader].dataset.data_root = args.data_root
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        if cfg.load_from and not Path(cfg.load_from).is_file():
            raise UserError(f'{cfg.load_from}: checkpoint: expected a file, '
                            'found none')
    build_runner(cfg).train()


if __name__ == '__main__':
    main()
