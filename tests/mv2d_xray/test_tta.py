"""Test-time augmentation: predictions come back into the scan's own world."""

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate

from projects.core.boxes import build_box3d_instances, gravity_boxes
from projects.mv2d_xray.tta import XRayTTAModel


class Oracle(torch.nn.Module):
    """Finds every true box of the sample as it is given."""

    def test_step(self, data):
        """One sample per version."""
        for sample in data['data_samples']:
            boxes = gravity_boxes(sample.eval_ann_info['gt_bboxes_3d'])
            sample.pred_instances_3d = build_box3d_instances(
                boxes[:, :6], torch.full((len(boxes), ), .5),
                torch.zeros(len(boxes), dtype=torch.long))
        return data['data_samples']


def test_versions_meet_in_the_world_of_the_first(sphere_root):
    np.random.seed(0)
    data = DATASETS.build(
        dict(type='XRayDataset', data_root=str(sphere_root), test_mode=True,
             ann_file='lidc_infos_train.pkl', pipeline=[
                 dict(type='LoadXRayViews'),
                 dict(type='TestTimeAug', transforms=[
                     [dict(type='XRayRandomFlip', prob=0.),
                      dict(type='XRayRandomFlip', prob=1.)],
                     [dict(type='XRayRandomRotate', max_angle=0.),
                      dict(type='XRayRandomRotate', max_angle=180.)],
                     [dict(type='PackXRayInputs')]])]))
    merged = XRayTTAModel(module=Oracle()).test_step(
        pseudo_collate([data[0], data[1]]))
    assert len(merged) == 2  # the second scan has no finding
    for sample in merged:
        truth = gravity_boxes(sample.eval_ann_info['gt_bboxes_3d'])
        found = gravity_boxes(sample.pred_instances_3d.bboxes_3d)
        order = found[:, 0].argsort(), truth[:, 0].argsort()
        torch.testing.assert_close(found[order[0]], truth[order[1]],
                                   atol=1e-3, rtol=1e-4)
        assert torch.allclose(sample.pred_instances_3d.scores_3d,
                              torch.tensor(.5))
