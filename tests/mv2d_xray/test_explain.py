"""Detections of the real model, as what is explained."""

import pytest
import torch
from mmengine.structures import InstanceData

from projects.core.boxes import corners_of
from projects.core.explain import METHODS, score_cam, target_of
from tests.helpers.models import FEATURES, boxes_of, quick, scans_of
from tests.helpers.spheres import make_sphere_set


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp('one')
    make_sphere_set(root, 1, 3, 72)  # padded to 80
    return scans_of(root, test_mode=True)[0]


def test_a_target_in_space(sample):
    model = quick(lifting_head=None, detector_2d=FEATURES)
    result = boxes_of(model, [sample])[0].pred_instances_3d
    boxes = torch.cat([result.bboxes_3d.gravity_center,
                       result.bboxes_3d.tensor[:, 3:6]], 1)
    detection = InstanceData(
        bboxes=corners_of(boxes), scores=result.scores_3d,
        labels=result.labels_3d)[:1]
    target = target_of(model, sample, detection)
    assert target.similarity(target.views) == pytest.approx(
        float(detection.scores[0]), rel=1e-4)
    assert target.views.shape == target.background.shape == (3, 1, 72, 72)
    assert list(target.rows) == [0, 1, 2]
    assert target.region.shape == (3, 4) and target.cells().any()
    for method in METHODS.values():
        assert method(target, generator()).shape == (3, 72, 72)
    model.volume_head.score_thr = 2.  # finds nothing any more
    assert target.similarity(target.views) == 0


def test_a_target_in_one_view(sample):
    model = quick()
    result = boxes_of(model, [sample])[0].pred_instances
    view = int(result.view_ids[0])
    detection = InstanceData(bboxes=result.bboxes, scores=result.scores,
                             labels=result.labels)[:1]
    target = target_of(model, sample, detection, view)
    assert target.views.shape == (1, 1, 72, 72)
    assert list(target.rows) == [view]
    assert torch.equal(target.views[0], sample['inputs']['img'][view])
    # Alone as among the others.
    assert target.similarity(target.views) == pytest.approx(
        float(detection.scores[0]), rel=1e-3)
    heat = score_cam(target, generator(), channels=2)
    assert heat.shape == (1, 72, 72)
