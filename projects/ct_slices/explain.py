"""A detection of a slice detector as what :mod:`projects.core.explain`
explains."""

from typing import Optional

import numpy as np
import torch
from mmengine.structures import InstanceData

from projects.core import geometry
from projects.core.boxes import corners_of, gravity_boxes
from projects.core.explain import Target, similarity, softened, target_of
from projects.ct_slices.detector import CTSliceDetector

__all__ = ['slice_target']


@target_of.register
def slice_target(model: CTSliceDetector, sample: dict,
                 detection: InstanceData,
                 view: Optional[int] = None) -> Target:
    """A 3D box and the slices that it touches, or a 2D box and its slice: see
    :func:`~projects.core.explain.target_of`. The features are the neck's
    finest."""
    meta = sample['data_samples'].metainfo
    ct2img = np.asarray(meta['ct2img'])
    if view is None:
        low, high = detection.bboxes[:, :3], detection.bboxes[:, 3:]
        box = torch.cat([(low + high) / 2, high - low], 1).numpy()
        region, depth = geometry.project_boxes(box, ct2img)
        rows = np.flatnonzero(depth[:, 0] > 0)
        region = torch.as_tensor(region[rows, 0])
    else:
        rows, region = np.array([view]), detection.bboxes
    views = sample['inputs']['img'][rows].float()

    @torch.no_grad()
    def remains(changed):
        if view is not None:
            found = model.detect_2d(changed)
        else:
            part = sample['data_samples'].new(metainfo=dict(
                meta, ct2img=ct2img[rows]))
            found = model.predict_scan(changed, part).pred_instances_3d
            found = InstanceData(
                bboxes=corners_of(gravity_boxes(found.bboxes_3d)),
                scores=found.scores_3d, labels=found.labels_3d)
        return similarity(found, detection)

    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=list(views)))['inputs']
        features = model.extract_feat(inputs)[0].cpu()
    return Target(rows, views, softened(views), features,
                  inputs.shape[-1] // features.shape[-1], region.float(),
                  remains)
