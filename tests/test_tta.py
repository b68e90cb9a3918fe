"""Test-time augmentation: predictions come back into the scan's own world."""

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate

from projects.mv2d_xray.boxes import gravity_boxes
from projects.mv2d_xray.lifting_head import build_box3d_instances
from projects.mv2d_xray.tta import XRayTTAModel, fuse_boxes


def fuse(rows, num_passes=2, distance=10.):
    """Rows of x, score, label, pass."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.zeros(len(table), 7)
    boxes[:, 0], boxes[:, 3:6] = table[:, 0], 8.
    boxes, scores, labels = fuse_boxes(
        boxes, table[:, 1], table[:, 2].long(), table[:, 3].long(),
        num_passes, distance)
    return [tuple(round(float(v), 4) for v in row)
            for row in zip(boxes[:, 0], scores, labels)]


def test_fusion_by_hand():
    assert fuse([]) == []
    # Both passes see it: the mean, weighted by score.
    assert fuse([(0, .6, 0, 0), (4, .2, 0, 1)]) == [(1., .4, 0)]
    # One pass alone counts half; so do another class and another place.
    assert fuse([(0, .6, 0, 0)]) == [(0, .3, 0)]
    assert fuse([(0, .6, 0, 0), (0, .2, 1, 1)]) == [(0, .3, 0), (0, .1, 1)]
    assert fuse([(0, .6, 0, 0), (11, .2, 0, 1)]) == [(0, .3, 0), (11, .1, 0)]
    # Two of one pass stay two; the nearer joins.
    assert fuse([(0, .8, 0, 0), (6, .4, 0, 1), (-2, .2, 0, 1)]) == [
        (-.4, .5, 0), (6, .2, 0)]
    # What two passes agree on can overtake what one is sure of.
    assert fuse([(0, .6, 0, 0), (50, .5, 0, 0), (50, .5, 0, 1)]) == [
        (50, .5, 0), (0, .3, 0)]


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
