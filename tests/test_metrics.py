"""Figures that can be worked out by hand."""

import json

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from projects.mv2d_xray.metrics import (ScanResult, XRay2DMetric,
                                        XRay3DMetric, evaluate, match)


def box(x, size=10., y=0., z=0.):
    return [x, y, z, size, size, size, 0.]


def scan(found=(), scores=None, truth=(), ignored=(), diameter=None):
    def array(boxes):
        return np.array(boxes, dtype=float).reshape(-1, 7)

    scores = np.linspace(.9, .5, len(found)) if scores is None else scores
    truth, ignored = array(truth), array(ignored)
    return ScanResult(
        array(found), np.array(scores, dtype=float), truth,
        truth[:, 3] if diameter is None else np.full(len(truth), diameter),
        ignored, ignored[:, 3])


def run(scans, **kwargs):
    """Through the registered metric, from tensors."""
    def boxes(array):
        return LiDARInstance3DBoxes(
            torch.tensor(array, dtype=torch.float32).reshape(-1, 7),
            origin=(.5, .5, .5))

    metric = XRay3DMetric(bootstrap=50, **kwargs)
    metric.dataset_meta = dict(classes=('nodule', ))
    metric.process({}, [
        dict(token=f's{i}', pred_instances_3d=InstanceData(
            bboxes_3d=boxes(s.boxes), scores_3d=torch.tensor(s.scores),
            labels_3d=torch.zeros(len(s.boxes), dtype=torch.long)),
            eval_ann_info=dict(
                gt_bboxes_3d=boxes(s.truth),
                gt_labels_3d=np.zeros(len(s.truth), dtype=int),
                gt_diameters=s.diameters,
                ignored_bboxes_3d=boxes(s.ignored),
                ignored_diameters=s.ignored_diameters))
        for i, s in enumerate(scans)
    ])
    return metric.compute_metrics(metric.results), metric.full_results


PERFECT = [scan([box(0), box(50)], truth=[box(50), box(0)]), scan(),
           scan([box(-30, 5.)], truth=[box(-30, 5.)])]


def test_ground_truth_as_predictions_is_perfect():
    flat, full = run(PERFECT)
    for key in ('mAP_3d', 'AP_5mm', 'AP_10mm', 'AP_15mm', 'AP_20mm',
                'AP_iou0.1', 'AP_iou0.25', 'AP_iou0.5', 'CPM', 'froc_0.125',
                'froc_8', 'mAP_3d_low', 'CPM_high'):
        assert flat[key] == pytest.approx(1), key
    assert flat['centre_error_mm'] == pytest.approx(0, abs=1e-5)
    assert flat['size_error_mm'] == pytest.approx(0, abs=1e-5)
    assert full['num_gt'] == 3 and full['num_scans'] == 3


def test_a_shift_of_five_millimetres():
    # 20 mm boxes moved by 6 mm along x: no hit within 5 mm, hits from 10;
    # IoU = 14 / 26 = 0.54; within LUNA's radius of 10 mm.
    shifted = [scan([box(6, 20.)], truth=[box(0, 20.)]) for _ in range(3)]
    flat, _ = run(shifted)
    assert flat['AP_5mm'] == 0 and flat['AP_10mm'] == 1
    assert flat['mAP_3d'] == pytest.approx(.75)
    assert flat['AP_iou0.5'] == pytest.approx(1)
    assert flat['CPM'] == 1
    assert flat['centre_error_mm'] == pytest.approx(6)
    # Exactly 5 mm is still within 5 mm, and 10 mm boxes have IoU 1/3.
    flat, _ = run([scan([box(5)], truth=[box(0)])])
    assert flat['mAP_3d'] == 1 and flat['AP_iou0.5'] == 0
    assert flat['AP_iou0.25'] == pytest.approx(1)
    # 5 mm off a 9 mm nodule: within 5 mm, but not within its radius.
    flat, _ = run([scan([box(5, 9.)], truth=[box(0, 9.)])])
    assert flat['mAP_3d'] == 1 and flat['CPM'] == 0


def test_precision_recall_by_hand():
    # Best first: hit, miss, hit; two of three findings.
    # Precision at recall 1/3 is 1, at 2/3 it is 2/3: AP = 1/3 + 2/9.
    one = scan([box(0), box(90), box(40)], truth=[box(0), box(40), box(-70)])
    flat, _ = run([one])
    assert flat['AP_10mm'] == pytest.approx(1 / 3 + 2 / 9)


def test_order_is_by_score_over_all_scans():
    a = scan([box(90)], [.9], truth=[box(0)])
    b = scan([box(0)], [.8], truth=[box(0)])
    # Miss first, then hit: precision 1/2 at recall 1/2.
    assert run([a, b])[0]['AP_10mm'] == pytest.approx(.25)
    assert run([b, a])[0]['AP_10mm'] == pytest.approx(.25)


def test_duplicates():
    double = scan([box(1), box(0)], [.9, .8], truth=[box(0), box(60)])
    found, counts = match(double, 10., True)
    assert found.tolist() == [0, -1] and counts.tolist() == [True, True]
    # nuScenes counts the second as false, LUNA16 forgets it.
    _, counts = match(double, None, False)
    assert counts.tolist() == [True, False]


def test_nearest_free_finding_is_taken():
    close = scan([box(4), box(5)], truth=[box(0), box(6)])
    found, _ = match(close, 10., True)
    assert found.tolist() == [1, 0]


def test_ignored_findings_are_neither():
    with_ignored = scan([box(80), box(0)], [.9, .8], truth=[box(0)],
                        ignored=[box(80)])
    flat, full = run([with_ignored])
    assert flat['mAP_3d'] == 1 and flat['CPM'] == 1
    assert flat['AP_iou0.25'] == pytest.approx(1)
    assert full['num_gt'] == 1
    # Without it the same box is a false positive.
    assert run([scan([box(80), box(0)], [.9, .8], truth=[box(0)])])[0][
        'AP_10mm'] == pytest.approx(.5)


def test_small_findings_are_left_out_by_size():
    mixed = [scan([box(0, 5.), box(50, 9.)], truth=[box(0, 5.), box(50, 9.),
                                                    box(-50, 20.)])]
    flat, full = run(mixed, min_diameter=8.)
    assert full['num_gt'] == 2 and flat['AP_10mm'] == pytest.approx(.5)
    sizes = run(mixed)[1]['by_size']
    assert [sizes[k]['num_gt'] for k in sizes] == [1, 1, 1]
    assert [sizes[k]['mAP_3d'] for k in sizes] == [1, 1, 0]


def test_froc_by_hand():
    # Two scans, two findings; ranking: miss, hit, miss, hit. At most 1/2
    # false positive per scan is one miss: sensitivity 1/2; at 1: both.
    a = scan([box(90), box(0)], [.9, .8], truth=[box(0)])
    b = scan([box(90), box(0)], [.7, .6], truth=[box(0)])
    flat, _ = run([a, b])
    expected = dict(zip(('0.125', '0.25', '0.5', '1', '2', '4', '8'),
                        (0, 0, .5, 1, 1, 1, 1)))
    for rate, value in expected.items():
        assert flat[f'froc_{rate}'] == pytest.approx(value), rate
    assert flat['CPM'] == pytest.approx(4.5 / 7)


@pytest.mark.parametrize('scans', [
    [scan()], [scan([box(0)])], [scan(), scan([box(0), box(1)])],
    [scan(truth=[box(0)])], [scan(ignored=[box(3)])]])
def test_nothing_found_or_nothing_there_is_zero_and_never_nan(scans):
    flat, full = run(scans)
    for key in ('mAP_3d', 'AP_5mm', 'AP_iou0.1', 'AP_iou0.5', 'CPM'):
        assert flat[key] == 0
    assert full['centre_error_mm'] is None
    assert not any(np.isnan(v) for v in flat.values())
    json.dumps(full, allow_nan=False)


def test_intervals_hold_the_figure_and_repeat():
    rng = np.random.default_rng(0)
    scans = [scan([box(rng.choice([0., 60.]))], [rng.random()],
                  truth=[box(0)]) for _ in range(30)]
    one, two = evaluate(scans, 300, 5), evaluate(scans, 300, 5)
    assert one == two
    assert one['mAP_3d_low'] < one['mAP_3d'] < one['mAP_3d_high']
    assert one['mAP_3d_high'] - one['mAP_3d_low'] > .1
    again = evaluate(scans, 300, 6)
    assert again['mAP_3d'] == one['mAP_3d']


def test_bootstrap_agrees_with_doing_it_again():
    # Taking scan 0 twice and scan 1 not at all is the set of two scans 0.
    from projects.mv2d_xray.metrics import _Ranked
    rng = np.random.default_rng(1)
    scans = [scan([box(rng.choice([0., 60.])), box(80)], rng.random(2),
                  truth=[box(0), box(-40)]) for _ in range(2)]
    weighted = _Ranked.of(scans, 10., True).ap(np.array([[2., 0.]]))
    doubled = _Ranked.of([scans[0], scans[0]], 10., True).ap(np.ones((1, 2)))
    assert weighted[0] == pytest.approx(doubled[0])


def test_json_for_machines(tmp_path):
    _, full = run(PERFECT, out_file=str(tmp_path / 'r.json'))
    stored = json.loads((tmp_path / 'r.json').read_text())
    assert stored == json.loads(json.dumps(full))
    for key in ('mAP_3d', 'AP_5mm', 'AP_10mm', 'AP_15mm', 'AP_20mm',
                'AP_iou0.1', 'AP_iou0.25', 'AP_iou0.5', 'CPM', 'froc',
                'centre_error_mm', 'size_error_mm', 'num_scans', 'num_gt'):
        assert key in stored
    first = stored['scans'][0]
    assert first['token'] == 's0' and len(first['predictions']) == 2
    assert all(p['match'] >= 0 for p in first['predictions'])


def boxes_2d(bboxes, views, scores=None):
    fields = dict(bboxes=torch.tensor(bboxes).reshape(-1, 4).float(),
                  labels=torch.zeros(len(bboxes), dtype=torch.long),
                  view_ids=torch.tensor(views, dtype=torch.long))
    if scores is not None:
        fields['scores'] = torch.tensor(scores)
    return InstanceData(**fields)


def run_2d(found, truth, ignored=((), ())):
    metric = XRay2DMetric()
    metric.dataset_meta = dict(classes=('nodule', ))
    metric.process({}, [
        dict(ct2img=np.zeros((2, 4, 4)), pred_instances=found,
             eval_ann_info=dict(
                 gt_bboxes=np.array(truth[0], float).reshape(-1, 4),
                 gt_bboxes_labels=np.zeros(len(truth[0]), int),
                 gt_bboxes_view=np.array(truth[1], int),
                 ignored_bboxes=np.array(ignored[0], float).reshape(-1, 4),
                 ignored_bboxes_view=np.array(ignored[1], int)))])
    return metric.compute_metrics(metric.results)


def test_2d_figures():
    truth = ([[10, 10, 20, 20], [30, 30, 44, 44]], [0, 1])
    found = boxes_2d(truth[0], truth[1], [.9, .8])
    assert run_2d(found, truth) == pytest.approx(
        dict(AP=1, AP50=1, AP_small=1, recall=1))
    # The right place in the wrong view is a miss.
    swapped = boxes_2d(truth[0], [1, 0], [.9, .8])
    assert run_2d(swapped, truth)['AP50'] == 0
    # An ignored box forgives the prediction on it.
    extra = boxes_2d([[60, 60, 70, 70], *truth[0]], [0, 0, 1], [.99, .9, .8])
    assert run_2d(extra, truth)['AP50'] < .9
    assert run_2d(extra, truth, ([[60, 60, 70, 70]], [0]))[
        'AP50'] == pytest.approx(1)


def test_2d_without_boxes_is_zero():
    empty = boxes_2d([], [], [])
    assert run_2d(empty, ([], []))['AP'] == 0
    assert run_2d(empty, ([[1, 1, 9, 9]], [0]))['recall'] == 0
