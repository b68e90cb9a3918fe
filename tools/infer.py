"""Boxes for one unlabelled object: python tools/infer.py CONFIG CHECKPOINT"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from projects.core.boxes import gravity_boxes
from projects.core.drawing import draw_views, shown_views
from projects.core.engine.checkpoints import (
    class_names,
    load_model,
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
    return {
        view.name: dict(
            img_path=str(path), height=view.height, width=view.width,
            cam2img=view.cam2img, lidar2cam=view.ct2cam,
            lidar2img=view.ct2img)
        for view, path in zip(rig.views, find_images(args.images, rig))
    }, rig.to_dict(), None


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


@dataclass
class Prediction:
    """What a model found in one object.

    Attributes:
        boxes: (N, 7), gravity centre (mm), best first.
        scores, labels: (N,).
        names: V names of the images.
        shown: (V, H, W), the images as the model saw them.
        ct2img: (V, 4, 4), world (mm) to these images (px).
    """
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: List[str]
    shown: np.ndarray
    ct2img: np.ndarray


class Finder:
    """A trained model that takes one object after the other.

    Attributes:
        meta: What the checkpoint says of itself.
        classes: Names of the labels.
        sliced: Whether it takes the slices of a CT in place of views.

    Args:
        config: Config file (a trusted program).
        checkpoint: Its checkpoint.
        device: Torch device; defaults to the GPU where there is one.
        scale, offset: Of the grey levels, in place of the test pipeline's.
    """

    def __init__(self, config: str, checkpoint: str,
                 device: Optional[str] = None,
                 scale: Optional[float] = None,
                 offset: Optional[float] = None) -> None:
        cfg = load_config(config)
        steps = [dict(step) for step in cfg.test_pipeline]
        self.sliced = is_sliced(cfg)
        for step in steps:
            if step['type'] == 'LoadXRayViews':
                step.update({
                    name: value for name, value in dict(
                        scale=scale, offset=offset).items()
                    if value is not None})
        self.checkpoint = checkpoint
        self._model, self.meta = load_model(cfg, checkpoint, device)
        self.classes = class_names(checkpoint, self.meta, self._model)
        self._pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    def predict(self, token: str, images: Dict[str, dict],
                score_thr: float = 0.) -> Prediction:
        """Boxes of one object.

        Args:
            token: Its name.
            images: Its views or slices by name, see :func:`read_views` and
                :func:`read_scan`.
            score_thr: Boxes below are left out.

        Raises:
            DataError: An image is not as the model needs it.
        """
        packed = self._pipeline(dict(
            token=token, box_type_3d=LiDARInstance3DBoxes,
            box_mode_3d=Box3DMode.LIDAR, images=images))
        with torch.no_grad():
            result = self._model.test_step(pseudo_collate([packed]))[0]
        found = result.pred_instances_3d
        found = found[found.scores_3d >= score_thr]
        shown = packed['inputs']['img']
        return Prediction(
            gravity_boxes(found.bboxes_3d).cpu().numpy(),
            found.scores_3d.cpu().numpy(), found.labels_3d.cpu().numpy(),
            list(images), shown[:, shown.shape[1] // 2].numpy(),
            np.asarray(result.metainfo['ct2img']))


def is_sliced(cfg: Config) -> bool:
    """Whether a config's model takes the slices of a CT."""
    return any(step['type'] == 'LoadCTSlices' for step in cfg.test_pipeline)


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
