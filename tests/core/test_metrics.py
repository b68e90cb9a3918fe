"""Figures that can be worked out by hand."""

import json
import logging

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from projects.core import geometry
from projects.core.boxes import lidar_boxes
from projects.core.evaluation.matching import ScanResult, match
from projects.core.evaluation.metric_2d import (
    Indication2DMetric,
    figures_at_50,
)
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.evaluation.ranking import (
    Ranked,
    difference,
    evaluate,
    resampled,
    with_interval,
)
from projects.core.files import DataError
from projects.core.results import dump_results, table_of
from tests.helpers.models import scans_of


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

    metric = Indication3DMetric(bootstrap=50, **kwargs)
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


def test_small_objects_want_small_distances():
    shifted = [scan([box(1.5, 4.)], truth=[box(0, 4.)]) for _ in range(3)]
    flat, full = run(shifted, distances=[1, 2.], match_distance=1.)
    assert flat['AP_1mm'] == 0 and flat['AP_2mm'] == 1
    assert flat['mAP_3d'] == pytest.approx(.5) and 'AP_5mm' not in flat
    assert full['centre_error_mm'] is None and full['num_matches'] == 0
    assert full['scans'][0]['ground_truth'][0]['found'] is False
    assert 'AP 1 mm' in table_of(json.loads(json.dumps(full)))
    flat, _ = run(shifted, distances=[1, 2.], match_distance=2.)
    assert flat['centre_error_mm'] == pytest.approx(1.5)


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


def test_overlap_with_an_ignored_finding_is_forgiven():
    # 12 mm from the middle of a 30 mm finding: too far for 10 mm, but on it.
    truth, near = box(-60, 20.), box(12, 30.)
    found = [near, truth]
    flat, _ = run([scan(found, truth=[truth], ignored=[box(0, 30.)])])
    assert flat['AP_iou0.5'] == pytest.approx(1)
    assert run([scan(found, truth=[truth])])[0]['AP_iou0.5'] < 1
    # Beside a finding that counts, a good box is not taken for the other's.
    flat, _ = run([scan([box(0)], truth=[box(0)], ignored=[box(6)])])
    assert flat['AP_iou0.5'] == pytest.approx(1)


def random_scans(count, rng):
    """Findings, boxes near some of them, boxes elsewhere."""
    scans = []
    for _ in range(count):
        truth = rng.uniform(-60, 60, (rng.integers(0, 5), 3))
        near = truth.repeat(2, 0) + rng.normal(0, 6, (2 * len(truth), 3))
        found = np.concatenate([near, rng.uniform(-60, 60, (4, 3))])
        scores = np.sort(rng.random(len(found)))[::-1]
        scans.append(scan([box(x, 12., y, z) for x, y, z in found], scores,
                          [box(x, 12., y, z) for x, y, z in truth]))
    return scans


def test_ap_within_the_radius_by_hand():
    """Small and large findings, both missed by 6 mm."""
    scans = [scan([box(6, 20.), box(56, 8.)], [.9, .8],
                  truth=[box(0, 20.), box(50, 8.)])]
    flat, full = run(scans)
    assert flat['AP_10mm'] == 1 and flat['AP_5mm'] == 0
    assert flat['AP_3d_radius'] == pytest.approx(1 / 2)
    sizes = full['by_size']
    assert sizes['6_to_10mm']['AP_3d_radius'] == 0
    assert sizes['above_10mm']['AP_3d_radius'] == 1
    assert sizes['above_10mm']['centre_error_mm'] == pytest.approx(6)
    # Just at 4 mm it is within the 8 mm finding; twice is once too often.
    twice = scan([box(54, 8.), box(51, 8.), box(0, 20.)], [.9, .8, .7],
                 truth=[box(50, 8.), box(0, 20.)])
    flat = run([twice])[0]
    assert flat['AP_3d_radius'] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert flat['CPM'] == 1  # which forgets the second
    # What does not count is forgiven within its own radius alone.
    ignored = [box(-50, 30.)]
    for x, value in ((-36, 1), (-34, 1 / 2)):
        flat = run([scan([box(x), box(0)], [.9, .8], [box(0)], ignored)])[0]
        assert flat['AP_3d_radius'] == pytest.approx(value)


def test_ap_at_iou_by_hand():
    # Boxes of 10 mm moved by 2.5 along x: IoU 7.5 / 12.5 = 0.6; by 5: 1/3;
    # by 8: 2/18. Best first: two of 0.6 on one finding, 1/3, 2/18.
    found = [box(2.5), box(-2.5), box(55), box(108)]
    flat, full = run([scan(found, truth=[box(0), box(50), box(100)])])
    # Hit, miss, hit, hit: precision 1 at recall 1/3, then 3/4 at 1.
    assert flat['AP_iou0.1'] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
    assert flat['AP_iou0.25'] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert flat['AP_iou0.5'] == pytest.approx(1 / 3)
    assert full['by_size']['above_10mm']['AP_iou0.5'] == pytest.approx(1 / 3)


@pytest.mark.parametrize('seed', range(3))
def test_ap_at_iou_agrees_with_mmdet3d(seed):
    from mmdet3d.evaluation.functional.indoor_eval import indoor_eval
    from mmdet3d.structures import Box3DMode
    rng = np.random.default_rng(seed)
    scans = random_scans(12, rng)
    for s in scans:  # also not along the axes, as boxes may be
        s.boxes[:, 6] = rng.uniform(-.5, .5, len(s.boxes))
        s.boxes[:, 3:6] *= rng.uniform(1.5, 3, (len(s.boxes), 3))
        s.truth[:, 3:6] *= 2
    theirs = indoor_eval(
        [dict(gt_bboxes_3d=lidar_boxes(s.truth),
              gt_labels_3d=np.zeros(len(s.truth), int)) for s in scans],
        [dict(bboxes_3d=lidar_boxes(s.boxes),
              scores_3d=torch.tensor(s.scores),
              labels_3d=torch.zeros(len(s.boxes), dtype=torch.long))
         for s in scans], [.1, .25, .5], {0: 'class'}, 'silent',
        Box3DMode.LIDAR)
    ours = evaluate(scans, 0)
    for iou in (.1, .25, .5):
        assert ours[f'AP_iou{iou:g}'] == pytest.approx(
            theirs[f'mAP_{iou:.2f}'], abs=1e-6)
    assert 0 < ours['AP_iou0.5'] < ours['AP_iou0.1'] < 1


@pytest.mark.parametrize('distance', [5., 10., 20.])
def test_matching_agrees_with_the_nuscenes_devkit(distance):
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.algo import accumulate
    from nuscenes.eval.detection.data_classes import DetectionBox
    scans = random_scans(12, np.random.default_rng(3))
    true, found = EvalBoxes(), EvalBoxes()
    for i, s in enumerate(scans):
        def devkit(boxes, scores, token=str(i)):
            return [
                DetectionBox(sample_token=token, translation=tuple(b[:3]),
                             size=tuple(b[3:6]), rotation=(1, 0, 0, 0),
                             velocity=(0, 0), detection_name='car',
                             attribute_name='', detection_score=float(v))
                for b, v in zip(boxes, scores)
            ]

        true.add_boxes(str(i), devkit(s.truth, [-1.] * len(s.truth)))
        found.add_boxes(str(i), devkit(s.boxes, s.scores))
    theirs = accumulate(
        true, found, 'car', lambda a, b: np.linalg.norm(
            np.subtract(a.translation, b.translation)), distance)
    ours = Ranked.of(scans, distance, True)
    hits = np.cumsum(ours.hit)
    precision = hits / np.arange(1, len(hits) + 1)
    np.testing.assert_allclose(
        np.interp(np.linspace(0, 1, 101), hits / ours.findings.sum(),
                  precision, right=0), theirs.precision)
    # The area under the same points, each precision the best from there on.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    assert ours.ap(np.ones((1, 12)))[0] == pytest.approx(
        best[ours.hit].sum() / ours.findings.sum(), abs=1e-6)


def test_froc_agrees_with_every_threshold_tried():
    scans = random_scans(8, np.random.default_rng(4))
    froc = evaluate(scans, 0)['froc']
    thresholds = np.concatenate([s.scores for s in scans])
    best = np.zeros(7)
    for threshold in thresholds:
        hits = misses = 0
        for s in scans:
            gaps = np.linalg.norm(
                s.boxes[s.scores >= threshold, None, :3] - s.truth[None, :,
                                                                   :3],
                axis=-1)
            inside = gaps <= s.diameters / 2
            misses += (~inside.any(1)).sum()
            # Boxes of several findings at once take one each; here, none
            # are so close.
            hits += inside.any(0).sum()
        for i, rate in enumerate(froc['false_positives_per_scan']):
            if misses / len(scans) <= rate:
                best[i] = max(best[i], hits)
    total = sum(len(s.truth) for s in scans)
    np.testing.assert_allclose(froc['sensitivity'], best / total)


def test_equal_scores_keep_their_order():
    same = [scan([box(90)] * 40 + [box(0)], [.5] * 41, truth=[box(0)])]
    assert run(same)[0]['AP_10mm'] == pytest.approx(1 / 41)


def test_two_classes_weigh_the_same():
    def boxes(*xs):
        return LiDARInstance3DBoxes(
            torch.tensor([box(x) for x in xs]).reshape(-1, 7),
            origin=(.5, .5, .5))

    metric = Indication3DMetric(bootstrap=0)
    metric.dataset_meta = dict(classes=('pore', 'inclusion'))
    metric.process({}, [
        dict(token='part', pred_instances_3d=dict(
            bboxes_3d=boxes(0, 50, 90), scores_3d=torch.tensor([.9, .8, .7]),
            labels_3d=torch.tensor([0, 0, 0])),
            eval_ann_info=dict(
                gt_bboxes_3d=boxes(0, 50, 90),
                gt_labels_3d=np.array([0, 0, 1]),
                ignored_bboxes_3d=boxes()))
    ])
    flat = metric.compute_metrics(metric.results)
    assert flat['mAP_3d'] == pytest.approx(.5) and flat['num_gt'] == 3


def test_predictions_of_a_class_without_findings_are_counted():
    """Fifty boxes of cracks where there are none, beside a perfect mean."""
    def boxes(xs):
        return LiDARInstance3DBoxes(
            torch.tensor([box(x) for x in xs]).reshape(-1, 7),
            origin=(.5, .5, .5))

    places = np.arange(50) * 20. - 500
    metric = Indication3DMetric(bootstrap=0)
    metric.dataset_meta = dict(classes=('pore', 'crack', 'seam'))
    for token in 'ab':
        metric.process({}, [
            dict(token=token, pred_instances_3d=dict(
                bboxes_3d=boxes([0., *places]),
                scores_3d=torch.linspace(.9, .4, 51),
                labels_3d=torch.tensor([0] + [1] * 50)),
                eval_ann_info=dict(
                    gt_bboxes_3d=boxes([0.]), gt_labels_3d=np.array([0]),
                    ignored_bboxes_3d=boxes([300.])))])
    flat = metric.compute_metrics(metric.results)
    assert flat['mAP_3d'] == 1 and flat['CPM'] == 1
    crack, seam = metric.full_results['classes_without_findings']
    # One in each scan is on a finding that does not count.
    assert crack == dict(class_name='crack', predictions=100,
                         false_positives=98,
                         highest_score=pytest.approx(.89))
    assert seam == dict(class_name='seam', predictions=0, false_positives=0,
                        highest_score=None)
    assert table_of(metric.full_results).splitlines()[-1] == (
        'class crack: no findings that count, 98 false positives at any '
        'score, the highest 0.890: in no figure here')
    json.dumps(metric.full_results, allow_nan=False)
    assert 'classes_without_findings' not in run(PERFECT)[1]


def test_peaks_without_a_place_are_warned_of(monkeypatch):
    told = []
    monkeypatch.setattr(
        'projects.core.evaluation.metric_3d.print_log',
        lambda text, logger, level=logging.INFO: told.append((level, text)))
    nothing = LiDARInstance3DBoxes(torch.zeros(0, 7))
    metric = Indication3DMetric(bootstrap=0)
    metric.dataset_meta = dict(classes=('pore', ))
    for dropped in ([.4321, .2, .05], [.09], [.3], None):
        metric.process({}, [dict(
            {} if dropped is None else dict(dropped_peaks=dropped),
            pred_instances_3d=dict(
                bboxes_3d=nothing, scores_3d=torch.zeros(0),
                labels_3d=torch.zeros(0, dtype=int)),
            eval_ann_info=dict(
                gt_bboxes_3d=nothing, gt_labels_3d=np.zeros(0, int),
                ignored_bboxes_3d=nothing))])
    metric.compute_metrics(metric.results)
    assert [text for level, text in told if level == logging.WARNING] == [
        'max_queries leaves out 3 peaks with scores from 0.1 to 0.432, in 2 '
        'of 4 scans: findings among them are missed']
    told.clear()
    for result in metric.results:
        result['dropped'] = []
    metric.compute_metrics(metric.results)
    assert [level for level, _ in told] == [logging.INFO]


def test_small_findings_are_left_out_by_size():
    mixed = [scan([box(0, 5.), box(50, 9.)], truth=[box(0, 5.), box(50, 9.),
                                                    box(-50, 20.)])]
    flat, full = run(mixed, min_diameter=8.)
    assert full['num_gt'] == 2 and flat['AP_10mm'] == pytest.approx(.5)
    # The groups have figures also where the whole leaves findings out.
    assert full['by_size'] == run(mixed)[1]['by_size']
    sizes = full['by_size']
    assert [sizes[k]['num_gt'] for k in sizes] == [1, 1, 1]
    assert [sizes[k]['mAP_3d'] for k in sizes] == [1, 1, 0]
    assert [sizes[k]['AP_iou0.5'] for k in sizes] == pytest.approx([1, 1, 0])


def test_size_bins_are_chosen():
    mixed = [scan([box(0, 5.)], truth=[box(0, 5.), box(50, 9.)])]
    bins = dict(small=(3, 8), rest=(8, 99))
    sizes = run(mixed, size_bins=bins)[1]['by_size']
    assert [(k, sizes[k]['mAP_3d']) for k in sizes] == [('small', 1),
                                                        ('rest', 0)]


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


def test_thresholds_hold_on_the_scans_they_come_from(tmp_path):
    rng = np.random.default_rng(2)
    scans = [scan([box(rng.choice([0., 60.])) for _ in range(9)],
                  rng.random(9), truth=[box(0)]) for _ in range(8)]
    full = run(scans)[1]
    first = full['froc']
    dump_results(tmp_path / 'val.json', full, {})
    again = run(scans, calibration=str(tmp_path / 'val.json'))[1]
    for name in ('sensitivity', 'threshold'):
        assert again['calibration'][name] == pytest.approx(first[name]), name
    rates = np.array(again['calibration']['false_positives_per_scan'])
    limits = np.array(first['false_positives_per_scan'])
    assert (rates <= limits).all()
    assert (rates >= limits - 1 / 8)[:5].all()  # one less would be too few
    assert 'calibration' in table_of(again)


def test_calibration_by_hand(tmp_path):
    other = [scan([box(90), box(0)], [.5, .8], truth=[box(0)])]
    dump_results(tmp_path / 'val.json', run(other)[1], {})
    # The one false positive there is allowed from one a scan on.
    these = [scan([box(90), box(60), box(0)], [.6, .4, .3], truth=[box(0)])]
    told = run(these, calibration=str(tmp_path / 'val.json'))[1]['calibration']
    assert told['threshold'] == pytest.approx([.5] * 3 + [0] * 4)
    assert told['false_positives_per_scan'] == [1] * 3 + [2] * 4
    assert told['sensitivity'] == [0] * 3 + [1] * 4


def test_ties_count_against_in_any_order():
    """Equal scores say nothing of what comes first."""
    places = [0., 200., 300., 400.]  # the first hits
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        tied = scan([box(places[i]) for i in order], np.full(4, .5),
                    [box(0.)])
        ranked = Ranked.of([tied], 10., True)
        one = np.ones((1, 1))
        assert ranked.ap(one)[0] == pytest.approx(1 / 4)
        assert ranked.sensitivity(one, (2., 3.)).tolist() == [[0., 1.]]


def test_calibration_without_thresholds_is_refused(tmp_path):
    (tmp_path / 'val.json').write_text('{"froc": {"threshold": [1, "a"]}}')
    with pytest.raises(DataError, match='froc.threshold'):
        Indication3DMetric(calibration=str(tmp_path / 'val.json'))


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


def test_table_and_its_intervals():
    full = json.loads(json.dumps(run([
        scan([box(6, 20.)], [.9], truth=[box(0, 20.)]),
        scan([box(6, 8.)], [.8], truth=[box(0, 8.)])])[1]))
    lines = table_of(full).splitlines()
    cells = [c.strip() for c in next(
        line for line in lines if line.startswith('| all')).split('|')][1:-1]
    low, high = full['mAP_3d_low'], full['mAP_3d_high']
    assert cells[:6] == ['all', '2', f'0.750 [{low:.3f}, {high:.3f}]',
                         '0.500', '0.500', '0.500']
    assert lines[-1].startswith(
        'AP at 3D IoU 0.1: 1.000 [1.000, 1.000], AP at 3D IoU 0.25: 0.500 [')
    assert lines[-1].endswith(', AP within the radius: 0.500 [0.000, 1.000]')
    # Results of before have neither.
    for name in ('AP_3d_radius', 'AP_iou0.1_low'):
        full.pop(name)
    told = table_of(full).splitlines()[-1]
    assert told.startswith('AP at 3D IoU 0.1: 1.000, AP at 3D IoU 0.25: 0.5')
    assert 'AP within the radius: -' in told


def test_table_tells_nothing_there_from_nothing_found():
    table = table_of(json.loads(json.dumps(
        run([scan(truth=[box(0, 20.)])])[1])))
    rows = {line.split('|')[1].strip(): line.split('|')[3:5]
            for line in table.splitlines() if line.startswith('| ')}
    assert [c.strip() for c in rows['above 10mm']] == ['0.000', '0.000']
    assert [c.strip() for c in rows['below 6mm']] == ['-', '-']


def test_intervals_hold_the_figure_and_repeat():
    rng = np.random.default_rng(0)
    scans = [scan([box(rng.choice([0., 60.]))], [rng.random()],
                  truth=[box(0)]) for _ in range(30)]
    one, two = evaluate(scans, 300, 5), evaluate(scans, 300, 5)
    assert one == two
    assert one['mAP_3d_low'] < one['mAP_3d'] < one['mAP_3d_high']
    assert one['mAP_3d_high'] - one['mAP_3d_low'] > .1
    # All that is found here is hit in every sense: the same resamples.
    for name in ('AP_iou0.1', 'AP_iou0.25', 'AP_iou0.5', 'AP_3d_radius'):
        for end in ('', '_low', '_high'):
            assert one[name + end] == one[f'mAP_3d{end}'], name
    again = evaluate(scans, 300, 6)
    assert again['mAP_3d'] == one['mAP_3d']


def test_bootstrap_agrees_with_doing_it_again():
    # Taking scan 0 twice and scan 1 not at all is the set of two scans 0.
    rng = np.random.default_rng(1)
    scans = [scan([box(rng.choice([0., 60.])), box(80)], rng.random(2),
                  truth=[box(0), box(-40)]) for _ in range(2)]
    weighted = Ranked.of(scans, 10., True).ap(np.array([[2., 0.]]))
    doubled = Ranked.of([scans[0], scans[0]], 10., True).ap(np.ones((1, 2)))
    assert weighted[0] == pytest.approx(doubled[0])


def test_json_for_machines(tmp_path):
    _, full = run(PERFECT)
    dump_results(tmp_path / 'r.json', full, {})
    stored = json.loads((tmp_path / 'r.json').read_text())
    assert stored.pop('source') == {}
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


def run_2d(found, truth, ignored=((), ()), classes=('nodule', ),
           diameters=None, **fields):
    count = len(truth[0])
    metric = Indication2DMetric()
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, [
        dict(fields, ct2img=np.zeros((2, 4, 4)), pred_instances=found,
             eval_ann_info=dict(
                 gt_bboxes=np.array(truth[0], float).reshape(-1, 4),
                 gt_bboxes_labels=np.zeros(len(truth[0]), int),
                 gt_bboxes_view=np.array(truth[1], int),
                 gt_bboxes_instance=np.arange(count),
                 gt_bboxes_3d=LiDARInstance3DBoxes(torch.ones(count, 7)),
                 gt_diameters=np.array(diameters or [8.] * count),
                 ignored_bboxes=np.array(ignored[0], float).reshape(-1, 4),
                 ignored_bboxes_view=np.array(ignored[1], int)))])
    figures = metric.compute_metrics(metric.results)
    assert figures.items() <= metric.full_results.items()
    json.dumps(metric.full_results, allow_nan=False)
    return metric.full_results


def test_2d_figures():
    truth = ([[10, 10, 20, 20], [30, 30, 44, 44]], [0, 1])
    found = boxes_2d(truth[0], truth[1], [.9, .8])
    full = run_2d(found, truth)
    for key in ('AP', 'AP50', 'AP_small', 'recall'):
        assert full[key] == pytest.approx(1), key
    assert full['recall_per_view'] == {'0': 1, '1': 1}
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


def test_2d_recall_of_each_view_and_of_the_proposals():
    truth = ([[10, 10, 20, 20], [30, 30, 44, 44], [50, 50, 60, 60]],
             [0, 1, 1])
    found = boxes_2d([truth[0][0], truth[0][1]], [0, 1], [.9, .8])
    # One proposal per box, but the second in the wrong view and the third
    # with IoU 0.4.
    proposals = boxes_2d([truth[0][0], truth[0][1], [50, 50, 60, 54]],
                         [0, 0, 1])
    full = run_2d(found, truth, view_names=['front', 'side'],
                  proposals=proposals)
    assert full['recall_per_view'] == {'front': 1, 'side': .5}
    assert full['rpn_recall'] == pytest.approx(1 / 3)
    assert full['recall'] == pytest.approx(2 / 3)
    assert 'rpn_recall' not in run_2d(found, truth)


def test_2d_recall_at_ten_false_positives_a_view():
    truth = ([[10, 10, 20, 20], [30, 30, 44, 44]], [0, 1])
    wrong = [[60 + i, 60, 70 + i, 70] for i in range(21)]
    # Centres 4 px off hit a box of 10 px, 6 px off do not.
    hits = [[14, 10, 24, 20], [30, 36, 44, 50]]
    scores = [*np.linspace(.9, .8, 21), .6, .5]
    full = run_2d(boxes_2d([*wrong[:20], *hits], [0] * 21 + [1],
                           scores[:20] + scores[21:]), truth,
                  diameters=[5, 8])
    assert full['recall_at_10'] == 1
    assert full['recall_at_10_by_size'] == {
        'below_6mm': 1, '6_to_10mm': 1, 'above_10mm': 0}
    full = run_2d(boxes_2d([*wrong, *hits], [0] * 22 + [1], scores), truth)
    assert full['recall_at_10'] == 0
    moved = [[16.1, 10, 26.1, 20], hits[1]]
    full = run_2d(boxes_2d(moved, [0, 1], [.6, .5]), truth, diameters=[5, 8])
    assert full['recall_at_10'] == .5
    assert full['recall_at_10_by_size']['below_6mm'] == 0
    # A hit on what does not count is no false positive.
    full = run_2d(boxes_2d([*wrong, *hits], [0] * 22 + [1], scores), truth,
                  ([wrong[0]], [0]))
    assert full['recall_at_10'] == 1


def test_2d_ignored_box_is_forgiven_in_every_class():
    found = boxes_2d([[60, 60, 70, 70], [10, 10, 20, 20]], [0, 0], [.99, .9])
    found.labels[0] = 1
    other = boxes_2d([[60, 60, 70, 70], [10, 10, 20, 20]], [0, 0], [.99, .9])
    for these in (found, other):
        full = run_2d(these, ([[10, 10, 20, 20]], [0]),
                      ([[60, 60, 70, 70]], [0]), ('pore', 'inclusion'))
        assert full['AP50'] == pytest.approx(1)


BINS = {'up_to_7mm': (0., 7.), '7_to_15mm': (7., 15.),
        'above_15mm': (15., 1e3)}


def slice_of(boxes, scores, truth, diameters, ignored=(), chosen=True):
    """What is kept of one slice with pixels of 0.5 mm."""
    ct2img = geometry.compose_ct2img(*geometry.slice_camera(
        np.zeros(3), np.array([.5, 0, 0]), np.array([0, .5, 0]), 1.))
    return dict(
        view_names=['slices'], ct2img=ct2img[None], chosen=[chosen],
        views=np.zeros(len(boxes), int),
        bboxes=np.array(boxes, float).reshape(-1, 4),
        scores=np.array(scores, float), truth=dict(
            gt_bboxes=np.array(truth, float).reshape(-1, 4),
            gt_bboxes_view=np.zeros(len(truth), int),
            gt_bboxes_instance=np.arange(len(truth)),
            gt_bboxes_3d=LiDARInstance3DBoxes(torch.ones(len(truth), 7)),
            gt_diameters=np.array(diameters, float),
            ignored_bboxes=np.array(ignored, float).reshape(-1, 4),
            ignored_bboxes_view=np.zeros(len(ignored), int)))


def at_50(boxes, scores, truth, diameters, score_thr=None, ignored=()):
    return figures_at_50([slice_of(boxes, scores, truth, diameters, ignored)],
                         BINS, score_thr)


def test_figures_at_iou_half_by_size():
    """By hand: findings of 5, 10 and 20 mm; the first two are found."""
    truth = [[0, 0, 10, 10], [50, 50, 70, 70], [100, 100, 140, 140]]
    boxes = [truth[0], [200, 200, 208, 208], truth[1]]  # the second is 4 mm
    told = at_50(boxes, [.9, .8, .7], truth, [5, 10, 20])
    # Precision 1, 1/2, 2/3 at recalls of 1/3, 1/3, 2/3: 34 points of 1 and 33
    # of 2/3 among 101.
    assert told['all']['AP'] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert told['all']['AR'] == pytest.approx(2 / 3)
    assert told['threshold'] == .7  # F1 of 2/4, 2/5 and 4/6
    assert told['all']['F1'] == pytest.approx(4 / 6)
    # What is wrong counts where it belongs by its own size.
    assert told['up_to_7mm'] == dict(
        AP=pytest.approx(1), AR=1, F1=pytest.approx(2 / 3), num_gt=1)
    assert told['7_to_15mm'] == dict(
        AP=pytest.approx(1), AR=1, F1=1, num_gt=1)
    assert told['above_15mm'] == dict(AP=0, AR=0, F1=0, num_gt=1)
    # At the threshold of another split.
    assert at_50(boxes, [.9, .8, .7], truth, [5, 10, 20], .75)['all'][
        'F1'] == pytest.approx(2 / 5)
    # What does not count forgives.
    told = at_50(boxes, [.9, .8, .7], truth[:2], [5, 10],
                 ignored=[boxes[1]])
    assert told['all'] == dict(AP=pytest.approx(1), AR=1, F1=1, num_gt=2)


def test_figures_at_iou_half_of_nothing():
    told = at_50([], [], [[0, 0, 10, 10]], [5])
    assert told['threshold'] is None
    assert told['all'] == dict(AP=0, AR=0, F1=0, num_gt=1)
    told = at_50([[0, 0, 10, 10]], [.5], [], [])
    assert told['all'] == dict(AP=None, AR=None, F1=None, num_gt=0)
    # Boxes of one score cannot be parted by a threshold.
    told = at_50([[0, 0, 10, 10], [50, 50, 60, 60]], [.5, .5],
                 [[0, 0, 10, 10]], [5])
    assert told['all']['F1'] == pytest.approx(2 / 3)


def test_a_bin_holds_its_upper_end():
    """Document 003's are up to 7 mm, 7 to 15 mm and above."""
    truth = [[0, 0, 14, 14], [50, 50, 80, 80], [100, 100, 131, 131]]
    told = at_50(truth, [.9, .8, .7], truth, [7, 15, 15.5])
    assert [told[name]['num_gt'] for name in ('all', *BINS)] == [3, 1, 1, 1]


def test_figures_at_iou_half_are_of_the_chosen_images():
    """By hand: a hit, a false positive that scores higher, and an image with
    a finding that was missed and one that was not chosen."""
    box = [0, 0, 10, 10]
    hit, missed = ([box], [.5], [box], [5]), ([], [], [box], [5])
    wrong = [box], [.9], [], []
    told = figures_at_50([slice_of(*hit), slice_of(*wrong)], BINS)
    assert told['positive_share'] == .5 and told['num_images'] == 2
    assert told['all']['AP'] == pytest.approx(1 / 2)
    # The more images without a finding, the lower the precision.
    told = figures_at_50([slice_of(*hit), *[slice_of(*wrong)] * 3], BINS)
    assert told['positive_share'] == .25
    assert told['all']['AP'] == pytest.approx(1 / 4)
    # What was not chosen is as if it were not there.
    some = [slice_of(*missed, chosen=False), slice_of(*hit),
            slice_of(*wrong, chosen=False), slice_of([], [], [], [])]
    told = figures_at_50(some, BINS)
    assert told == figures_at_50([some[1], some[3]], BINS)
    assert told['all'] == dict(AP=pytest.approx(1), AR=1, F1=1, num_gt=1)
    for result in some:
        result['chosen'] = [False]
    told = figures_at_50(some, BINS)
    assert told['positive_share'] is None and told['all']['AP'] is None


@pytest.mark.parametrize('options, text', [
    (dict(score_thr=1.5), 'score_thr: expected a score from 0 to 1, found'),
    (dict(score_thr=float('nan')), 'found nan'),
    (dict(bins_50=dict(small=(7., 0.))), 'found small: \\[7.0, 0.0\\]'),
    (dict(bins_50=dict(all=(0., 7.))), 'names other than "all"')])
def test_impossible_figures_at_iou_half_are_refused(options, text):
    with pytest.raises(DataError, match=text):
        Indication2DMetric(**options)


def test_no_2d_stage_no_figures():
    metric = Indication2DMetric()
    metric.dataset_meta = dict(classes=('nodule', ))
    metric.process({}, [dict(eval_ann_info={})])
    assert metric.compute_metrics(metric.results) == {}


def test_through_the_evaluator(sphere_root):
    """As mmengine's loops do it: packed samples, batches of two."""
    from mmengine.evaluator import Evaluator
    data = scans_of(sphere_root, test_mode=True)
    evaluator = Evaluator([dict(type='Indication3DMetric', bootstrap=20),
                           dict(type='Indication2DMetric')])
    evaluator.dataset_meta = data.metainfo
    samples = [data[i]['data_samples'] for i in range(4)]
    for sample in samples:
        truth = sample.eval_ann_info
        every = truth['gt_bboxes_3d'].cat(
            [truth['gt_bboxes_3d'], truth['ignored_bboxes_3d']])
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=every, scores_3d=torch.ones(len(every)),
            labels_3d=torch.zeros(len(every), dtype=torch.long))
        flat = np.concatenate([truth['gt_bboxes'], truth['ignored_bboxes']])
        views = np.concatenate([truth['gt_bboxes_view'],
                                truth['ignored_bboxes_view']])
        sample.pred_instances = boxes_2d(flat, views, np.ones(len(flat)))
    for pair in (samples[:2], samples[2:]):
        evaluator.process(pair)
    figures = evaluator.evaluate(4)
    for key in ('mAP_3d', 'AP_iou0.5', 'CPM', '2d/AP', '2d/recall'):
        assert figures[key] == pytest.approx(1), key
    full = evaluator.metrics[1].full_results
    assert list(full['recall_per_view']) == [f'CAM_{i:02d}' for i in range(5)]


def test_difference_of_two_tests_is_paired():
    def full(found):
        """Twelve scans with a finding each; in every third it is hard."""
        scans = [scan(found=[box(0)] if i in found else [box(90)],
                      truth=[box(0)]) for i in range(12)]
        metric = run(scans)[1]
        return metric

    easy = set(range(12)) - {0, 3, 6, 9}
    worse, better = full(easy - {1}), full(easy | {0})
    gap, low, high = difference(better, worse)
    assert gap == pytest.approx(better['mAP_3d'] - worse['mAP_3d'])
    assert 0 <= low <= gap <= high
    assert high - low < (better['mAP_3d_high'] - better['mAP_3d_low']
                         + worse['mAP_3d_high'] - worse['mAP_3d_low'])
    draws = resampled([worse, better], 500)
    assert draws.shape == (2, 501)
    assert draws[:, 0] == pytest.approx([worse['mAP_3d'], better['mAP_3d']])
    found, low, high = with_interval(draws[1])
    assert low < found < high
    assert difference(worse, worse) == (0, 0, 0)
    assert difference(full(set(range(12))), full(())) == (1, 1, 1)
    shorter = dict(worse, scans=worse['scans'][1:])
    with pytest.raises(DataError, match='the same scans'):
        difference(better, shorter)
    assert difference(run([scan()])[1], run([scan()])[1]) == (0, 0, 0)
