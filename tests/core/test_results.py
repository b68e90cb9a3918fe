"""``results.json`` and ``boxes.json``: the same keys as ever, verified."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.evaluation.ranking import difference
from projects.core.files import DataError, dump_json, load_json
from projects.core.results import (
    dump_boxes,
    dump_results,
    load_found,
    load_results,
    load_thresholds,
    notes_of,
    table_of,
)

# Of a test before this module wrote the file, with a source and 2D figures
# made up.
BEFORE = Path(__file__).with_name('results.json')


def tensors(rows):
    return LiDARInstance3DBoxes(
        torch.tensor([[x, 0., 0., size, size, size, 0.] for x, size in rows]
                     ).reshape(-1, 7), origin=(.5, .5, .5))


def full_results():
    """Of the scans that the file of before is of."""
    metric = Indication3DMetric(bootstrap=50)
    metric.dataset_meta = dict(classes=('nodule', ))
    scans = [([(0, 10.), (50, 10.), (90, 10.)], [.9, .8, .7],
              [(50, 10.), (2, 5.)], [(91, 10.)]),
             ([(-30, 5.)], [.9], [(-30, 5.)], [])]
    metric.process({}, [
        dict(token=f's{i}', pred_instances_3d=dict(
            bboxes_3d=tensors(found),
            scores_3d=torch.tensor(scores, dtype=torch.float64),
            labels_3d=torch.zeros(len(found), dtype=int)),
            eval_ann_info=dict(
                gt_bboxes_3d=tensors(truth),
                gt_labels_3d=np.zeros(len(truth), dtype=int),
                ignored_bboxes_3d=tensors(ignored)))
        for i, (found, scores, truth, ignored) in enumerate(scans)])
    metric.compute_metrics(metric.results)
    return metric.full_results


def same(one, two, where=''):
    """The same keys in the same order, the same values."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert list(one) == list(two), where
        for key in one:
            same(one[key], two[key], f'{where}.{key}')
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for row, pair in enumerate(zip(one, two)):
            same(*pair, f'{where}[{row}]')
    else:
        assert one == (pytest.approx(two) if isinstance(one, float)
                       else two), where


# Figures that tests did not tell before.
NEW_FIGURES = ('AP_3d_radius', )
NEW_BOUNDS = tuple(
    f'{name}_{end}' for name in ('AP_iou0.1', 'AP_iou0.25', 'AP_iou0.5',
                                 'AP_3d_radius') for end in ('low', 'high'))


def without_new(full):
    """What was written before, of which nothing may change."""
    for name in (*NEW_FIGURES, *NEW_BOUNDS):
        assert isinstance(full.pop(name), float), name
    for part in full['by_size'].values():
        for name in NEW_FIGURES:
            assert isinstance(part.pop(name), float), name
    return full


def test_what_is_written_is_what_was_written_before(tmp_path):
    before = load_json(BEFORE)
    dump_results(tmp_path / 'r.json', full_results(), before['source'],
                 before['2d'])
    same(without_new(load_json(tmp_path / 'r.json')), before)
    # Without a 2D stage there are no such figures.
    dump_results(tmp_path / 'r.json', full_results(), {})
    assert list(without_new(load_json(tmp_path / 'r.json'))) == list(
        before)[:-1]


def test_files_of_before_load(tmp_path):
    full = load_results(BEFORE)
    assert full == load_json(BEFORE)
    assert load_thresholds(BEFORE) == full['froc']['threshold']
    # The first tests told neither their distances nor what was tested.
    for key in ('source', '2d', 'distances_mm', 'match_distance_mm'):
        full.pop(key)
    dump_json(full, tmp_path / 'old.json')
    old = load_results(tmp_path / 'old.json')
    assert table_of(old) == table_of(load_results(BEFORE))
    assert difference(old, load_results(BEFORE), 10) == (0, 0, 0)
    assert load_found(tmp_path / 'old.json')[1] == {}


@pytest.mark.parametrize('change, text', [
    (lambda r: r.clear(), 'field "scans": expected a list'),
    (lambda r: r.pop('froc'), 'field "froc": expected an object, found none'),
    (lambda r: r.update(mAP_3d='1'),
     'field "mAP_3d": expected a number, found \'1\''),
    (lambda r: r.update(num_gt=True), 'field "num_gt": expected a whole'),
    (lambda r: r['by_size']['below_6mm'].pop('CPM'),
     'field "by_size.below_6mm.CPM": expected a number, found none'),
    (lambda r: r['froc'].update(sensitivity=3),
     'field "froc.sensitivity": expected a list, found 3'),
    (lambda r: r.pop('AP_5mm'), 'field "AP_5mm": expected a number'),
    (lambda r: r['scans'].append(3), r'field "scans\[2\]": expected an objec'),
    (lambda r: r['scans'][0].pop('ground_truth'),
     r'field "scans\[0\].ground_truth": expected a list, found none'),
    (lambda r: r['scans'][1]['predictions'][0].pop('match'),
     r'field "scans\[1\].predictions\[0\].match": expected a whole number'),
    (lambda r: r['scans'][0]['predictions'][2]['bbox_3d'].pop(),
     r'field "scans\[0\].predictions\[2\].bbox_3d": expected 7 numbers'),
    (lambda r: r['scans'][0]['ignored'][0].append('x'),
     r'field "scans\[0\].ignored\[0\]": expected 7 numbers'),
])
def test_a_damaged_file_is_named_with_its_field(tmp_path, change, text):
    full = copy.deepcopy(load_json(BEFORE))
    change(full)
    dump_json(full, tmp_path / 'r.json')
    with pytest.raises(DataError, match=f'r.json: {text}'):
        load_results(tmp_path / 'r.json')


def test_what_was_trained_on_is_told_beside_the_figures(tmp_path):
    full = load_json(BEFORE)
    for count, line in ((None, None), (0, None), (
            2, '2 of the tested patients or parts were trained on: the '
            'figures are flattered')):
        full['source']['patients_seen_in_training'] = count
        dump_json(full, tmp_path / 'r.json')
        assert notes_of(load_results(tmp_path / 'r.json')) == [line] * bool(
            line)
    assert line in table_of(full)
    full['source']['patients_seen_in_training'] = 'two'
    dump_json(full, tmp_path / 'r.json')
    with pytest.raises(DataError, match='"source.patients_seen_in_training"'
                       ': expected a whole number, found \'two\''):
        load_results(tmp_path / 'r.json')


def test_boxes_of_an_inference_come_back(tmp_path):
    box = [1.23456, 2, 3, 4, 5, 6, 0]
    dump_boxes(tmp_path / 'one.json', np.array([box]), torch.tensor([.5]),
               torch.tensor([1]), ('nodule', 'pore'))
    content = load_json(tmp_path / 'one.json')
    assert list(content) == ['frame', 'units', 'axis_order', 'boxes']
    expected = dict(bbox_3d=[1.235, 2, 3, 4, 5, 6, 0], score=.5, label=1,
                    class_name='pore')
    assert list(content['boxes'][0]) == list(expected)
    assert load_found(tmp_path / 'one.json') == (
        [dict(token='one', boxes=[expected])], None)
    content['boxes'][0].pop('score')
    dump_json(content, tmp_path / 'one.json')
    with pytest.raises(DataError, match=r'"boxes\[0\].score": expected a num'):
        load_found(tmp_path / 'one.json')
