"""What the network sees: python tools/browse_dataset.py CONFIG"""

import argparse
from pathlib import Path
from typing import List, Optional

import numpy as np
from mmdet3d.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from tqdm import trange

from projects.core.boxes import gravity_boxes
from projects.core.drawing import draw_scans
from projects.core.engine.command_line import (
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import config_errors, config_of, select_split


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argument_parser('Draw samples as they leave the pipeline')
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for one PNG per sample')
    parser.add_argument(
        '--split', default='train', help='infos to draw; train has the '
        'training pipeline, others the test\'s (default: %(default)s)')
    parser.add_argument('--count', type=int, default=8,
                        help='samples (default: %(default)s)')
    return parser.parse_args(argv)


def sheet(sample: dict, channels: np.ndarray) -> list:
    """Rows of :func:`draw_scans`: a channel in all views, with the boxes.

    Args:
        sample (dict): As the pipeline packs it.
        channels (np.ndarray): (V, C, H, W), as the backbone gets them.
    """
    data = sample['data_samples']
    meta = data.metainfo
    truth = data.eval_ann_info
    rects, views = truth['gt_bboxes'], truth['gt_bboxes_view']
    height, width = meta['img_shape'][:2]
    common = dict(
        names=meta['view_names'], ct2img=np.asarray(meta['ct2img']),
        ground_truth=gravity_boxes(truth['gt_bboxes_3d']).numpy(),
        ignored=gravity_boxes(truth['ignored_bboxes_3d']).numpy(),
        boxes_2d=[rects[views == v] for v in range(len(channels))])
    return [
        dict(common, title=f'channel {c}',
             images=channels[:, c, :height, :width])
        for c in range(channels.shape[1])
    ]


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Draw samples of a split."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    cfg = config_of(args)
    loader = (cfg.train_dataloader if args.split == 'train'
              else cfg.test_dataloader)
    select_split(loader.dataset, args.split)
    init_default_scope(cfg.default_scope)
    with config_errors(cfg):
        dataset = DATASETS.build(loader.dataset)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    set_random_seed(cfg.randomness.seed)
    for index in trange(min(args.count, len(dataset)), desc='draw'):
        sample = dataset[index]
        images = preprocessor(pseudo_collate([sample]), True)['inputs']
        token = sample['data_samples'].metainfo['token']
        draw_scans(sheet(sample, images['imgs'].numpy()),
                   args.out_dir / f'{token}.png')
    print(f'{args.out_dir}: {min(args.count, len(dataset))} samples')


if __name__ == '__main__':
    main()
