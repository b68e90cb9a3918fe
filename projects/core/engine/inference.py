"""A trained model at work on single objects."""

from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from projects.core.boxes import gravity_boxes
from projects.core.consistency import expect_as_rig
from projects.core.engine.checkpoints import class_names, load_model
from projects.core.engine.command_line import UserError
from projects.core.engine.configs import load_config
from projects.core.engine.known_views import other_greys
from projects.core.inference import Prediction

__all__ = ['Finder', 'is_sliced']


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
        self._model: Any
        self._model, self.meta = load_model(cfg, checkpoint, device)
        self.classes = class_names(checkpoint, self.meta, self._model)
        self._pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    def predict(self, token: str, images: Dict[str, dict],
                score_thr: float = 0., rig: Optional[str] = None
                ) -> Prediction:
        """Boxes of one object.

        Args:
            token: Its name.
            images: Its views or slices by name, see
                :func:`~projects.core.inference.images_of`.
            score_thr: Boxes below are left out.
            rig: Whose views the images should be, for the error; None if
                nobody is to look whether they are turned against it.

        Raises:
            DataError: An image is not as the model needs it, or see
                :func:`~projects.core.consistency.expect_as_rig`.
        """
        packed = self._pipeline(dict(
            token=token, box_type_3d=LiDARInstance3DBoxes,
            box_mode_3d=Box3DMode.LIDAR, images=images))
        shown = packed['inputs']['img']
        shown = shown[:, shown.shape[1] // 2].numpy()
        if rig is not None:
            expect_as_rig(shown, np.asarray(packed['data_samples'].ct2img),
                          list(images), rig)
        told = None if self.sliced else other_greys(
            Path(self.checkpoint).name, self.meta, shown)
        with torch.no_grad():
            result = self._model.test_step(pseudo_collate([packed]))[0]
        found = result.pred_instances_3d
        found = found[found.scores_3d >= score_thr]
        return Prediction(
            gravity_boxes(found.bboxes_3d).cpu().numpy(),
            found.scores_3d.cpu().numpy(), found.labels_3d.cpu().numpy(),
            list(images), shown,
            np.asarray(result.metainfo['ct2img']), [told] if told else [])


def is_sliced(cfg: Config) -> bool:
    """Whether a config's model takes the slices of a CT.

    Raises:
        UserError: It takes neither these nor the views of an object.
    """
    steps = {step['type'] for step in cfg.test_pipeline}
    if 'PackExam' in steps:
        raise UserError(
            f'{cfg.filename}: expected a model that finds 3D boxes, found '
            'one that finds boxes in single images: convert them to a set '
            'and run tools/test.py, see docs/agrcnn.md')
    return 'LoadCTSlices' in steps
