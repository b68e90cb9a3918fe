"""What the network sees: python tools/browse_dataset.py CONFIG"""

import argparse
from pathlib import Path
from typing import List, Optional

import numpy as np
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from tqdm import trange

from projects.core.boxes import gravity_boxes
from projects.core.drawing import draw_scans, shown_views
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import config_errors, config_of, select_split
from projects.core.geometry import are_slices


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


def sheet(sample: dict, preprocessor: torch.nn.Module) -> list:
    """Rows of :func:`draw_scans`: a channel, as the backbone gets it, in all
    views, with the boxes; of CT slices one to train on, or those of a scan
    that cut its findings.

    Args:
        sample (dict): As the pipeline packs it.
        preprocessor (torch.nn.Module): The model's.
    """
    data = sample['data_samples']
    meta = data.metainfo
    if 'ct2img' not in meta:
        channels = preprocessor(pseudo_collate([sample]), True)['inputs']
        height, width = data.img_shape[:2]
        return [dict(title=f'channel {c}', names=[Path(data.img_path).stem],
                     images=channels[:, c, :height, :width].numpy(),
                     ct2img=np.eye(4)[None],
                     boxes_2d=[data.gt_instances.bboxes.numpy()])
                for c in range(channels.shape[1])]
    if are_slices(np.asarray(meta['ct2img'])):
        channels = sample['inputs']['img'].numpy()
    else:
        channels = preprocessor(pseudo_collate([sample]), True)['inputs'][
            'imgs'].numpy()
    truth = data.eval_ann_info
    rects, views = truth['gt_bboxes'], truth['gt_bboxes_view']
    height, width = meta['img_shape'][:2]
    boxes = gravity_boxes(truth['gt_bboxes_3d']).numpy()
    shown = shown_views(np.asarray(meta['ct2img']), boxes)
    common = dict(
        names=[meta['view_names'][v] for v in shown],
        ct2img=np.asarray(meta['ct2img'])[shown], ground_truth=boxes,
        ignored=gravity_boxes(truth['ignored_bboxes_3d']).numpy(),
        boxes_2d=[rects[views == v] for v in shown])
    return [
        dict(common, title=f'channel {c}',
             images=channels[shown, c, :height, :width])
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
    if 'data_preprocessor' not in cfg.model:
        raise UserError(f'{args.config}: model: expected one that finds '
                        f'boxes, found {cfg.model.type}')
    init_default_scope(cfg.default_scope)
    with config_errors(cfg):
        dataset = DATASETS.build(loader.dataset)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    set_random_seed(cfg.randomness.seed)
    for index in trange(min(args.count, len(dataset)), desc='draw'):
        sample = dataset[index]
        meta = sample['data_samples'].metainfo
        draw_scans(sheet(sample, preprocessor), args.out_dir /
                   f'{meta["token"] if "token" in meta else meta["img_id"]}'
                   '.png')
    print(f'{args.out_dir}: {min(args.count, len(dataset))} samples')


if __name__ == '__main__':
    main()
