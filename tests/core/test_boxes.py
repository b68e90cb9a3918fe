"""Boxes of several hints become one box of each finding."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.core.boxes import (
    fuse_boxes,
    gravity_array,
    gravity_boxes,
    lidar_boxes,
)


def fuse(rows, sources=(0, 1), iou_thr=.1, absent=.01):
    """Rows of x (mm), score, label, source; the boxes are 8 mm wide."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    boxes = torch.zeros(len(table), 6, dtype=torch.float64)
    boxes[:, 0], boxes[:, 3:] = table[:, 0], 8.
    boxes, scores, labels = fuse_boxes(
        boxes, table[:, 1], table[:, 2].long(), table[:, 3].long(), sources,
        iou_thr, absent)
    assert boxes[:, 1:3].eq(0).all() and boxes[:, 3:].allclose(
        torch.tensor(8., dtype=torch.float64))
    return [tuple(round(float(v), 4) for v in row)
            for row in zip(boxes[:, 0], scores, labels)]


@pytest.mark.parametrize('rows, expected', [
    ([], []),
    # Both sources: the mean, weighted by score; the geometric mean of scores.
    ([(0, .8, 0, 0), (4, .2, 0, 1)], [(.8, .4, 0)]),
    # Of one source alone, of another class, in another place.
    ([(0, .64, 0, 0)], [(0, .08, 0)]),
    ([(0, .64, 0, 0), (0, .16, 1, 1)], [(0, .08, 0), (0, .04, 1)]),
    ([(0, .64, 0, 0), (9, .16, 0, 1)], [(0, .08, 0), (9, .04, 0)]),
    # Hints of one source add up: 1 - .5 * .5, 1 - .36.
    ([(0, .5, 0, 0), (2, .5, 0, 0), (1, .75, 0, 1)], [(1, .75, 0)]),
    # What two agree on overtakes what one is sure of.
    ([(0, .81, 0, 0), (50, .25, 0, 0), (50, .16, 0, 1)],
     [(50, .2, 0), (0, .09, 0)]),
    # Less than absent is still found.
    ([(0, .0004, 0, 0), (0, .01, 0, 1)], [(0, .002, 0)]),
])
def test_fusion_by_hand(rows, expected):
    assert fuse(rows) == expected


def test_one_source_keeps_its_scores():
    assert fuse([(0, .3, 0, 1), (30, .004, 0, 1)], sources=[1]) == [
        (0, .3, 0), (30, .004, 0)]


def test_the_best_box_takes_what_overlaps_it():
    """A chain: 0 overlaps 6 and 6 overlaps 12 by 1/7, but 0 not 12."""
    ends = [(0, .4, 0, 0), (12, .3, 0, 0)]
    assert len(fuse([*ends, (6, .5, 0, 0)], [0])) == 1
    assert [x for x, _, _ in fuse([*ends, (6, .35, 0, 0)], [0])] == [
        pytest.approx(2.1 / .75), 12]
    assert len(fuse([*ends, (6, .5, 0, 0)], [0], iou_thr=.2)) == 3


def test_order_of_boxes_does_not_matter():
    torch.manual_seed(0)
    boxes = torch.cat([torch.rand(60, 3) * 40, torch.rand(60, 3) * 9 + 3], 1)
    scores, sources = torch.rand(60), torch.arange(60) % 3
    labels = torch.arange(60) % 2
    fused = fuse_boxes(boxes, scores, labels, sources, range(3), .05)
    assert 5 < len(fused[0]) < 60
    assert (fused[1].diff() <= 0).all()
    order = torch.randperm(60)
    again = fuse_boxes(boxes[order], scores[order], labels[order],
                       sources[order], range(3), .05)
    for one, two in zip(fused, again):
        torch.testing.assert_close(one, two)


def test_mmdet3d_boxes_there_and_back():
    boxes = np.array([[1., 2, 3, 4, 5, 6, 0], [-7, 8, 9, 1, 2, 30, 0]])
    lidar = lidar_boxes(boxes)
    np.testing.assert_allclose(lidar.tensor[:, 2], boxes[:, 2] - boxes[:, 5]
                               / 2)  # the bottom
    np.testing.assert_array_equal(gravity_array(lidar), boxes)
    assert gravity_array(lidar).dtype == np.float64
    assert torch.equal(gravity_boxes(lidar_boxes(torch.tensor(boxes))),
                       torch.tensor(boxes).float())
    assert len(lidar_boxes(np.zeros((0, 7)))) == 0


@pytest.mark.parametrize('pattern, owner', [
    # Of what is bottom-centred and what is not nothing else has to know.
    (r'origin\s*=\s*\(', 'projects/core/boxes.py'),
    ('lidc_infos_|_2d_anno', 'projects/core/infos.py'),
    (r'diag\(\[-1\.?, -1\.?, 1\.?\]\)', 'projects/core/geometry.py'),
])
def test_a_convention_is_written_in_one_file(pattern, owner):
    root = Path(__file__).parents[2]
    found = [
        path.relative_to(root).as_posix()
        for folder in ('projects', 'tools', 'data_converters', 'benchmarks')
        for path in (root / folder).rglob('*.py')
        if re.search(pattern, path.read_text())]
    assert found == [owner]
