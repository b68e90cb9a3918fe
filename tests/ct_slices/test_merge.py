"""Boxes of slices to boxes of scans: exact from the truth, robust else."""

from pathlib import Path

import numpy as np
import pytest
from mmdet3d.registry import DATASETS

import projects.ct_slices  # noqa: F401  registers everything
from projects.core import geometry
from projects.core.boxes import gravity_array
from projects.core.files import dump_json, load_json
from projects.ct_slices import merge
from projects.ct_slices.merge import SliceMerger, fit_calibration
from tests.helpers.slices import make_slice_set

ROOT = Path(__file__).parents[2]


def slices(count=20, pitch=2., thickness=None):
    """Matrices of slices of 1 mm pixels; x and y run to the left and back."""
    return np.stack([
        geometry.compose_ct2img(*geometry.slice_camera(
            np.array([50., 50., pitch * k]), np.array([-1., 0, 0]),
            np.array([0, -1., 0]), thickness or pitch))
        for k in range(count)])


def found(rows, **kwargs):
    """Merge rows of (slice, x, y, side, score)."""
    rows = np.array(rows, float).reshape(-1, 5)
    view, x, y, side, score = rows.T
    boxes = np.stack([x - side / 2, y - side / 2, x + side / 2,
                      y + side / 2], 1)
    label = kwargs.pop('labels', np.zeros(len(rows), int))
    cameras = kwargs.pop('ct2img', slices())
    step = kwargs.pop('slice_mm', 2.)
    return SliceMerger(**kwargs)(boxes, score, label, view.astype(int),
                                 cameras, step)


# ------------------------------------------------------------------ the truth
@pytest.mark.parametrize('slicing, error', [
    (dict(), .01), (dict(spacing=.7), .4),
    # Slabs of three slices tell less of where a finding ends.
    (dict(slab_mm=6., overlap=.67), 2.1), (dict(slab_mm=6.), 3.1)])
def test_true_boxes_become_the_scans_findings(tmp_path, slicing, error):
    root = make_slice_set(tmp_path / 'set', **slicing)
    data = DATASETS.build(dict(
        type='CTSliceDataset', data_root=str(root), test_mode=True,
        ann_file='lidc_infos_train.pkl', pipeline=[
            dict(type='LoadCTSlices'), dict(type='PackCTScan')]))
    count = 0
    for item in data:
        sample = item['data_samples']
        truth = sample.eval_ann_info
        boxes, scores, labels = SliceMerger()(
            truth['gt_bboxes'], np.ones(len(truth['gt_bboxes'])),
            truth['gt_bboxes_labels'], truth['gt_bboxes_view'],
            sample.ct2img, sample.slice_mm)
        true = gravity_array(truth['gt_bboxes_3d'])[:, :6]
        assert len(boxes) == len(true) == len(scores) == len(labels)
        for box in true:
            near = np.abs(boxes[:, :3] - box[:3]).sum(1).argmin()
            np.testing.assert_allclose(boxes[near], box, atol=error)
            np.testing.assert_allclose(boxes[near, [0, 1, 3, 4]],
                                       box[[0, 1, 3, 4]], atol=.01)
            count += 1
    assert count == 5


# -------------------------------------------------------------------- linking
def test_neighbours_that_overlap_are_one():
    boxes, scores, _ = found([(k, 20 + k, 30, 8, .9) for k in range(5, 9)])
    assert len(boxes) == 1
    # x = 50 - u: the pixels 21 to 32, mm to the left of the corner.
    np.testing.assert_allclose(boxes[0], [23.5, 20, 13, 11, 8, 8], atol=1e-9)
    assert scores[0] == pytest.approx(.9)


def test_others_are_others():
    rows = [(5, 20, 30, 8, .9), (6, 20, 30, 8, .8)]
    assert len(found([*rows, (6, 40, 30, 8, .7)])[0]) == 2  # beside
    assert len(found([*rows, (12, 20, 30, 8, .7)])[0]) == 2  # far above
    assert len(found([*rows, (8, 20, 30, 8, .7)])[0]) == 1  # one is missing
    assert len(found([*rows, (9, 20, 30, 8, .7)], max_gap=4.)[0]) == 1
    assert len(found([*rows, (9, 20, 30, 8, .7)])[0]) == 2
    assert len(found([*rows, (6, 20, 30, 2, .7)])[0]) == 1  # inside
    assert len(found([*rows, (7, 22, 30, 2, .7)])[0]) == 1  # a cap
    assert len(found([*rows, (7, 25, 30, 4, .7)])[0]) == 2  # hardly touches
    labels = np.array([0, 1])
    boxes, _, kinds = found(rows, labels=labels)
    assert kinds.tolist() == [0, 1] and len(boxes) == 2


def test_the_order_of_slices_and_boxes_does_not_matter():
    rng = np.random.default_rng(0)
    rows = np.array([(k, rng.integers(10, 90), rng.integers(10, 90),
                      rng.uniform(4, 12), rng.uniform(.1, .9))
                     for k in range(20) for _ in range(6)])
    expected = found(rows)
    again = found(rows[rng.permutation(len(rows))])
    for a, b in zip(expected, again):
        np.testing.assert_allclose(a, b)
    backwards = rows.copy()
    backwards[:, 0] = 19 - rows[:, 0]
    for a, b in zip(expected, found(backwards, ct2img=slices()[::-1])):
        np.testing.assert_allclose(a, b)


def test_weak_ends_do_not_stretch_a_box():
    rows = [(k, 20, 30, 8, .9 if 6 <= k <= 9 else .1) for k in range(3, 13)]
    boxes, _, _ = found(rows)
    assert boxes[0, 5] == 8. and boxes[0, 2] == 15.
    assert found(rows, share=.1)[0][0, 5] == 20.


def test_one_box_alone_is_as_high_as_it_is_half_wide():
    boxes, _, _ = found([(5, 20, 30, 12, .9)])
    np.testing.assert_allclose(boxes[0], [30, 20, 10, 12, 12, 6])
    boxes, _, _ = found([(5, 20, 30, 3, .9)])
    assert boxes[0, 5] == 2.  # a slice


def test_what_is_seen_in_too_few_slices_counts_less():
    long = found([(k, 20, 30, 12, .8) for k in range(4, 10)])[1][0]
    short = found([(5, 20, 30, 12, .8)])[1][0]
    small = found([(5, 20, 30, 3, .8)])[1][0]
    assert long == pytest.approx(.8) and small == pytest.approx(.8)
    assert short == pytest.approx(.8 / 3)


@pytest.mark.parametrize('count', [0, 1])
def test_few_boxes_and_one_slice(count):
    boxes, scores, labels = found([(0, 20, 30, 8, .5)] * count,
                                  ct2img=slices(1))
    assert boxes.shape == (count, 6)
    assert len(scores) == len(labels) == count


def test_no_more_than_the_best_are_kept():
    rows = [(5, 20 * k, 30, 8, .1 * k) for k in range(1, 5)]
    boxes, scores, _ = found(rows, max_boxes=2)
    assert len(boxes) == 2 and (np.diff(scores) < 0).all()


# ---------------------------------------------------------------- calibration
def test_calibrated_scores_are_shares_of_hits():
    rng = np.random.default_rng(0)
    truth = rng.uniform(.02, .98, 4000)
    hits = rng.uniform(size=4000) < truth
    odds = np.log(truth / (1 - truth))
    shown = 1 / (1 + np.exp(-(odds - 1) / .5))  # too sure, too high
    slope, offset = fit_calibration(shown, hits)
    assert slope == pytest.approx(.5, abs=.05)
    assert offset == pytest.approx(1., abs=.1)
    rows = [(5, 20, 30, 3, .7), (9, 60, 30, 3, .3)]
    plain, fitted = (found(rows, calibration=c)[1]
                     for c in ((1., 0.), (slope, offset)))
    np.testing.assert_allclose(
        np.log(fitted / (1 - fitted)),
        slope * np.log(plain / (1 - plain)) + offset, atol=1e-6)


@pytest.mark.parametrize('hits', [[], [True, True], [False]])
def test_nothing_to_fit(hits):
    with pytest.raises(ValueError, match='expected hits and others'):
        fit_calibration(np.full(len(hits), .5), np.array(hits))


def test_calibration_by_command(tmp_path, capsys):
    full = load_json(ROOT / 'tests/core/results.json')
    for scan in full['scans']:
        scan['predictions'] += [
            dict(bbox_3d=[0.] * 3 + [9.] * 3 + [0.], score=score, match=-1,
                 counts=True) for score in (.1, .2, .85)]
    path = tmp_path / 'results.json'
    dump_json(full, path)
    rows = [p for scan in full['scans'] for p in scan['predictions']
            if p['counts'] or p['match'] >= 0]
    expected = fit_calibration([p['score'] for p in rows],
                               [p['match'] >= 0 for p in rows])
    merge.main([str(path)])
    assert capsys.readouterr().out.strip() == (
        'calibration=({:.3f}, {:.3f})'.format(*expected))
    for scan in full['scans']:
        scan['predictions'] = []
    dump_json(full, path)
    with pytest.raises(SystemExit) as stop:
        merge.main([str(path)])
    assert 'expected hits and others' in str(stop.value.code)
