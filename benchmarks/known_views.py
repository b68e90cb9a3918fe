"""Write into a checkpoint what the views of its training are like.

    python benchmarks/known_views.py CONFIG CHECKPOINT --data-root SET --out O

A training does so by itself; this is for checkpoints of before. SET is what
it was trained on. Weights and all else stay as they are; with --forget, a
text is taken out of the metadata.
"""

import argparse
import json
from pathlib import Path
from typing import List, Optional

import torch
from mmdet3d.registry import DATASETS
from mmengine.registry import init_default_scope

from projects.core.engine.checkpoints import (
    check_classes,
    load_checkpoint,
    patients_of,
    seen_patients,
)
from projects.core.engine.command_line import UserError, one_sentence
from projects.core.engine.configs import load_config
from projects.core.engine.known_views import know_views
from projects.core.files import atomic_write


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Look at the set and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--data-root', required=True,
                        help='the set that it was trained on')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--forget', nargs=2, metavar=('TEXT', 'INSTEAD'),
                        help='in the config that the metadata holds')
    args = parser.parse_args(argv)
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    checkpoint = load_checkpoint(args.checkpoint)
    meta = checkpoint['meta']
    data = DATASETS.build(dict(cfg.train_dataloader.dataset,
                               data_root=args.data_root))
    check_classes(args.checkpoint, meta, data.metainfo['classes'])
    seen, here = seen_patients(meta)[0], patients_of(data)[0]
    if seen != here:
        raise UserError(f'{args.data_root}: expected the {len(seen)} patients '
                        f'or parts that it was trained on, found {len(here)}, '
                        f'of them {len(seen & here)}')
    meta['known_views'] = know_views(data)
    if args.forget:
        meta['cfg'] = meta['cfg'].replace(*args.forget)
    with atomic_write(args.out) as stream:
        torch.save(checkpoint, stream)
    print(json.dumps(meta['known_views'], ensure_ascii=False))


if __name__ == '__main__':
    main()
