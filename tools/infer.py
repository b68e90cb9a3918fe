"""Boxes for one unlabelled object: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import numpy as np
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.dataset import Compose, pseudo_collate

from projects.core.boxes import gravity_boxes
from projects.core.drawing import draw_views
from projects.core.engine.checkpoints import (
    class_names,
    load_model,
    warn_of_other_views,
)
from projects.core.engine.command_line import (
    UserError,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.results import dump_boxes
from projects.core.rig import Rig


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Find 3D boxes in the X-ray views of one object')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--images', nargs='+', required=True, type=Path,
        help='one image per view in the order of the rig, or a folder whose '
        'images are named as the views (CAM_00.png)')
    parser.add_argument('--rig', required=True, help='rig.json')
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


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build, load, predict, write."""
    args = parse_args(argv)
    check_outputs(args, 'out', 'show')
    cfg = load_config(args.config)
    try:
        rig = Rig.load(args.rig)
    except ValueError as error:
        raise UserError(str(error)) from error
    paths = find_images(args.images, rig)
    model, meta = load_model(cfg, args.checkpoint, args.device)
    classes = class_names(args.checkpoint, meta, model)
    warn_of_other_views(args.checkpoint, meta, rig.to_dict())
    steps = [dict(step) for step in cfg.test_pipeline]
    for step in steps:
        if step['type'] == 'LoadXRayViews':
            for name in ('scale', 'offset'):
                if getattr(args, name) is not None:
                    step[name] = getattr(args, name)
    sample = dict(
        token=Path(args.out).stem, box_type_3d=LiDARInstance3DBoxes,
        box_mode_3d=Box3DMode.LIDAR, images={
            view.name: dict(
                img_path=str(path), height=view.height, width=view.width,
                cam2img=view.cam2img, lidar2cam=view.ct2cam,
                lidar2img=view.ct2img)
            for view, path in zip(rig.views, paths)
        })
    packed = Compose([TRANSFORMS.build(step) for step in steps])(sample)
    with torch.no_grad():
        result = model.test_step(pseudo_collate([packed]))[0]
    found = result.pred_instances_3d
    found = found[found.scores_3d >= args.score_thr]
    boxes = gravity_boxes(found.bboxes_3d).cpu().numpy()
    dump_boxes(args.out, boxes, found.scores_3d, found.labels_3d, classes)
    if args.show:
        draw_views(packed['inputs']['img'][:, 0].numpy(),
                   np.asarray(result.metainfo['ct2img']), args.show,
                   names=[v.name for v in rig.views],
                   scores=found.scores_3d.cpu().numpy(), prediction=boxes)
    print(f'{args.out}: {len(boxes)} boxes')


if __name__ == '__main__':
    main()
