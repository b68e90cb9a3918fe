"""FROC by image, worked out by hand."""

import numpy as np
import pytest
import torch

from projects.core.evaluation.metric_images import (
    RATES,
    ImageFROCMetric,
    match_images,
    recall_difference,
)
from projects.core.files import DataError


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def test_hits_and_what_does_not_count():
    truth = boxes([0, 0, 10, 10], [20, 20, 30, 30])
    found = boxes([0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 24, 24],
                  [21, 21, 31, 31], [50, 50, 60, 60], [70, 70, 80, 80])
    hits, counts = match_images(found, truth, boxes([70, 70, 80, 80]), .2)
    # The second is on a finding that is found; the third's IoU is 0.16, and
    # it is no hit; the last lies on what does not count.
    assert hits.tolist() == [0, -1, -1, 1, -1, -1]
    assert counts.tolist() == [True, False, True, True, True, False]
    hits, counts = match_images(found, truth, boxes(), None)
    # Its centre lies inside: then the fourth is the second on it.
    assert hits.tolist() == [0, -1, 1, -1, -1, -1]
    assert counts.tolist() == [True, False, True, False, True, True]
    for other in (boxes(), truth):
        assert match_images(boxes(), other, boxes(), .2)[0].shape == (0, )


def sample(found=(), scores=(), truth=(), ignored=(), patient='p', scale=1.,
           labels=None):
    def some(rows):
        rows = torch.as_tensor(boxes(*rows))
        return dict(bboxes=rows, labels=torch.zeros(len(rows)).long())

    found = some(found)
    if labels is not None:
        found['labels'] = torch.tensor(labels)
    return dict(
        img_id=1, patient=patient, scale_factor=(scale, scale),
        pred_instances=dict(found, scores=torch.tensor(
            scores, dtype=torch.float64)),
        gt_instances=some(truth), ignored_instances=some(ignored))


def metric_of(samples, classes=('mass', ), **kwargs):
    metric = ImageFROCMetric(bootstrap=200, **kwargs)
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, samples)
    return metric.compute_metrics(metric.results), metric.full_results


A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]


def test_a_case_worked_out_by_hand():
    """Two images; best first: hit, wrong, hit, wrong, wrong, hit."""
    figures, full = metric_of([
        sample([A, C, B], [.9, .8, .7], [A, B], patient='p'),
        sample([C, [70, 70, 80, 80], A], [.6, .5, .4], [A], patient='q')])
    # 1 wrong of 2 images: the second hit; the third after 3 wrong.
    assert figures['R@0.5'] == pytest.approx(2 / 3)
    assert figures['R@1'] == pytest.approx(2 / 3)
    assert figures['R@2'] == figures['R@4'] == 1.
    assert full['R@0.5_low'] <= 2 / 3 <= full['R@0.5_high']
    assert full['num_gt'] == 3 and full['num_images'] == 2
    froc = full['by_class']['mass']['froc']
    assert froc['false_positives_per_image'] == [0., .5, 1.5]
    assert froc['threshold'] == [.9, .7, .4]
    first, second = full['images']
    assert [p['match'] for p in first['predictions']] == [0, -1, 1]
    assert second['ground_truth'][0]['found']


def test_the_truth_is_found_in_the_pixels_of_the_file():
    figures, _ = metric_of([
        sample([A, B], [.9, .8], [[0, 0, 5, 5], [10, 10, 15, 15]],
               scale=.5)])
    assert set(figures) == {f'R@{r:g}{s}' for r in RATES
                            for s in ('', '_centre')}
    assert set(figures.values()) == {1.}


def test_nothing_found_and_nothing_to_find():
    for samples in ([sample()], [sample(truth=[A])],
                    [sample([A], [.5])]):
        figures, full = metric_of(samples)
        assert set(figures.values()) == {0.}


def test_classes_are_ranked_apart():
    samples = [sample([A, B], [.9, .8], [A, B], labels=[0, 1])]
    samples[0]['gt_instances']['labels'] = torch.tensor([0, 1])
    figures, full = metric_of(samples, ('mass', 'calcification'))
    assert figures['R@0.5'] == 1. and full['num_gt'] == 2
    samples[0]['pred_instances']['labels'] = torch.tensor([1, 0])
    assert metric_of(samples, ('mass', 'calcification'))[0]['R@4'] == 0.


def test_difference_of_two_tests_is_paired():
    first, second = (
        metric_of([dict(sample([box], [.9], [A], patient=str(n)),
                        img_path=str(n))
                   for n, box in enumerate([A] * hits + [C] * (8 - hits))])[1]
        for hits in (6, 4))
    gap, low, high = recall_difference(first, second, 1.)
    assert gap == pytest.approx(.25) and low <= gap <= high and low >= 0.
    assert recall_difference(first, first) == (0., 0., 0.)
    second['images'].pop()
    with pytest.raises(DataError, match='the same images, found 8 and 7'):
        recall_difference(first, second)
