"""A detection of an MV2D-Xray model as what :mod:`projects.core.explain`
explains."""

from typing import Optional

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from projects.core import geometry
from projects.core.boxes import corners_of, gravity_boxes
from projects.core.engine.bands import gaussian_blur
from projects.core.explain import Target, similarity, target_of
from projects.mv2d_xray.detector import MV2DXRay

__all__ = ['xray_target']


@target_of.register
def xray_target(model: MV2DXRay, sample: dict, detection: InstanceData,
                view: Optional[int] = None) -> Target:
    """A 3D box and all views, or a 2D box and its view: see
    :func:`~projects.core.explain.target_of`."""
    views, item = sample['inputs']['img'].float(), sample['data_samples']
    scan, rows = views, slice(None) if view is None else slice(view, view + 1)
    ct2img = torch.as_tensor(item.metainfo['ct2img'])
    if view is None:
        low, high = detection.bboxes[:, :3], detection.bboxes[:, 3:]
        region, depth = geometry.project_boxes(
            torch.cat([(low + high) / 2, high - low], 1).to(ct2img),
            ct2img)
        region = region[:, 0] * (depth > 0)
    else:
        region, views = detection.bboxes, scan[rows]
    level = 0
    if view is None:
        level = (model.lift_level if model.volume_head is None else
                 model.volume_level)

    def packed(changed):
        # A view among the others: norms may be of the whole scan.
        changed = torch.cat([scan[:rows.start], changed, scan[rows.stop:]]
                            ) if view is not None else changed
        return model.data_preprocessor(pseudo_collate([
            dict(inputs=dict(img=changed), data_samples=item)
        ]), False)

    @torch.no_grad()
    def remains(changed):
        data = packed(changed)
        inputs, samples = data['inputs'], data['data_samples']
        if view is None:
            found = model.predict(inputs, samples)[0].pred_instances_3d
            found = InstanceData(
                bboxes=corners_of(gravity_boxes(found.bboxes_3d)),
                scores=found.scores_3d, labels=found.labels_3d)
        else:  # without what is done in 3D, most of the time
            imgs = inputs['imgs']
            found, = model.detect_2d(
                [level[rows] for level in model.extract_feat(imgs)],
                model.samples_2d(samples[0], imgs, False)[rows])
        return similarity(found.cpu(), detection)

    with torch.no_grad():
        features = model.extract_feat(packed(views)['inputs']['imgs'])
    return Target(
        np.arange(len(scan))[rows], views,
        gaussian_blur(views, views.shape[-1] / 20),
        features[level][rows].cpu(), model.feat_strides[level],
        region.float(), remains)
