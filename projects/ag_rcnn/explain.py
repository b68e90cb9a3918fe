"""A detection in a mammogram as what :mod:`projects.core.explain` explains."""

from typing import Optional

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from projects.ag_rcnn.detector import CrossViewDetector
from projects.core.explain import Target, similarity, softened, target_of

__all__ = ['exam_target']


@target_of.register
def exam_target(model: CrossViewDetector, sample: dict,
                detection: InstanceData,
                view: Optional[int] = None) -> Target:
    """A 2D box in one image, and all images of its exam: see
    :func:`~projects.core.explain.target_of`. So a map also says what of the
    partners it rests on. The features are the finest behind the graph."""
    if view is None:
        raise ValueError('exam_target: view: expected the image of a 2D box, '
                         'found none')
    images = sample['inputs']
    region = torch.zeros(len(images), 4)
    region[view] = detection.bboxes[0]
    scale = detection.bboxes.new_tensor(np.tile(
        sample['data_samples'].images[view].scale_factor, 2))

    @torch.no_grad()
    def remains(changed: Tensor) -> float:
        found = model.test_step(pseudo_collate([dict(
            sample, inputs=changed)]))[view].pred_instances.cpu()
        return similarity(InstanceData(
            bboxes=found.bboxes * scale, scores=found.scores,
            labels=found.labels), detection)

    with torch.no_grad():
        batch = model.data_preprocessor(pseudo_collate([sample]), False)
        features = model.extract_feat(**batch)[0].cpu()
    return Target(
        np.arange(len(images)), images, softened(images), features,
        batch['inputs'].shape[-1] // features.shape[-1], region, remains)
