"""The metric of 3D boxes, in the units of the people who look."""

import logging
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from projects.core.boxes import gravity_array
from projects.core.evaluation.matching import (
    DISTANCES,
    FALSE_POSITIVES,
    MATCH_DISTANCE,
    SIZE_BINS,
    ScanResult,
)
from projects.core.evaluation.ranking import (
    evaluate,
    mean_over_classes,
    without_findings,
)
from projects.core.results import describe_scan, load_thresholds, table_of

__all__ = ['Indication3DMetric', 'diameters_of', 'scans_of']

_SHOWN = .1  # score from which tools/infer.py shows a box


@METRICS.register_module()
class Indication3DMetric(BaseMetric):
    """3D mAP, FROC and errors of 3D boxes (design: LUNA16 and nuScenes).

    - ``mAP_3d``: mean of AP at centre distances, by default of 5, 10, 15 and
      20 mm;
    - ``AP_iou*``: AP at 3D IoU, as mmdet3d's ``indoor_eval``, without the
      findings that do not count and the predictions that overlap one and are
      nearer to it than to any that counts;
    - ``AP_3d_radius``: AP with a centre within the finding's own radius, a
      distance that scales with the finding;
    - ``froc``, ``CPM``: sensitivity at 1/8 to 8 false positives per scan with
      LUNA16's hit criterion (centre within the finding's radius), and mean;
    - errors of the matches at ``match_distance``, and all of it by diameter;
    - ``classes_without_findings``: those that the scans have nothing of, if
      there are any, with the number of their false positives.

    Where a model says in a sample's ``dropped_peaks`` which scores had no
    place among its boxes, a warning counts those that would be shown.

    Of several classes the figures are means, also AP, FROC and CPM, whose
    false positives per scan are those of one class. A class without findings
    is in none of them: its false positives are only in
    ``classes_without_findings``, which table and report show.

    Args:
        min_diameter (float): Findings below (mm) do not count, except in
            ``size_bins``.
        size_bins (dict): Name and range of diameters (mm) of each group that
            gets figures of its own.
        distances (Sequence[float]): Of centres (mm), for ``mAP_3d``: small
            objects need smaller ones.
        match_distance (float): Largest distance of a match whose errors are
            told (mm).
        bootstrap (int): Resamples of scans for the 95 % intervals.
        seed (int): Of the resampling.
        calibration (str, optional): ``results.json`` of a test on other
            scans: what its ``froc.threshold`` gives on these is told, too.

    Raises:
        DataError: The ``calibration`` file has no thresholds.
    """

    default_prefix = ''

    def __init__(self,
                 min_diameter: float = 0.,
                 size_bins: Mapping[str, Sequence[float]] = SIZE_BINS,
                 distances: Sequence[float] = DISTANCES,
                 match_distance: float = MATCH_DISTANCE,
                 bootstrap: int = 1000,
                 seed: int = 0,
                 calibration: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.min_diameter = min_diameter
        self.size_bins = size_bins
        self.distances = tuple(distances)
        self.match_distance = match_distance
        self.bootstrap = bootstrap
        self.seed = seed
        self.thresholds = load_thresholds(calibration) if calibration else None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of a batch."""
        for sample in data_samples:
            found, truth = sample['pred_instances_3d'], sample['eval_ann_info']
            order = found['scores_3d'].argsort(descending=True, stable=True)
            boxes = gravity_array(found['bboxes_3d'])
            self.results.append(
                dict(
                    token=str(sample.get('token', len(self.results))),
                    dropped=list(sample.get('dropped_peaks', ())),
                    boxes=boxes[order.cpu().numpy()],
                    scores=found['scores_3d'][order].cpu().numpy(),
                    labels=found['labels_3d'][order].cpu().numpy(),
                    truth=gravity_array(truth['gt_bboxes_3d']),
                    truth_labels=np.asarray(truth['gt_labels_3d']),
                    diameters=diameters_of(truth, 'gt'),
                    ignored=gravity_array(truth['ignored_bboxes_3d']),
                    ignored_diameters=diameters_of(truth, 'ignored')))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """All figures; prints a table. ``full_results`` has them scan by
        scan, too."""
        classes = self.dataset_meta['classes']
        every = [scans_of(results, c) for c in range(len(classes))]
        per_class = [[s.restricted(self.min_diameter, np.inf) for s in scans]
                     for scans in every]
        full = mean_over_classes(
            [evaluate(s, self.bootstrap, self.seed, self.thresholds,
                      self.distances, self.match_distance)
             for s in per_class])
        unjudged = without_findings(dict(zip(classes, per_class)),
                                    self.match_distance)
        if unjudged:
            full['classes_without_findings'] = unjudged
        full['by_size'] = {}
        for name, limits in self.size_bins.items():
            chosen = [[s.restricted(*limits) for s in scans]
                      for scans in every]
            full['by_size'][name] = mean_over_classes([
                evaluate(s, 0, distances=self.distances,
                         match_distance=self.match_distance)
                for s in chosen])
        full['min_diameter_mm'] = self.min_diameter
        full['distances_mm'] = list(self.distances)
        full['match_distance_mm'] = self.match_distance
        full['scans'] = [
            describe_scan(scan, classes[c], self.match_distance)
            for c, scans in enumerate(per_class) for scan in scans
        ]
        self.full_results = full
        print_log('\n' + table_of(full), MMLogger.get_current_instance())
        _warn_of_dropped([r['dropped'] for r in results])
        flat = {k: v for k, v in full.items()
                if isinstance(v, (int, float))}
        for rate, value in zip(FALSE_POSITIVES, full['froc']['sensitivity']):
            flat[f'froc_{rate:g}'] = value
        return flat


def _warn_of_dropped(scores: List[List[float]]) -> None:
    """Log what the scans' peaks without a place would have shown."""
    shown = [[s for s in scan if s >= _SHOWN] for scan in scores]
    count = sum(map(len, shown))
    if count:
        print_log(
            f'max_queries leaves out {count} peaks with scores from '
            f'{_SHOWN:g} to {max(map(max, filter(None, shown))):.3f}, in '
            f'{sum(map(bool, shown))} of {len(scores)} scans: findings among '
            'them are missed', MMLogger.get_current_instance(),
            logging.WARNING)


def scans_of(results: List[dict], label: int) -> List[ScanResult]:
    """What :class:`Indication3DMetric` kept, for one class."""
    scans = []
    for r in results:
        mine, true = r['labels'] == label, r['truth_labels'] == label
        scans.append(
            ScanResult(r['boxes'][mine], r['scores'][mine], r['truth'][true],
                       r['diameters'][true], r['ignored'],
                       r['ignored_diameters'], r['token']))
    return scans


def diameters_of(truth: dict, kind: str) -> np.ndarray:
    """Stored diameters (mm); the box's mean edge where there is none."""
    edges = gravity_array(truth[f'{kind}_bboxes_3d'])[:, 3:6].mean(1)
    stored = truth.get(f'{kind}_diameters')
    if stored is None:
        return edges
    stored = np.asarray(stored, dtype=np.float64)
    return np.where(np.isfinite(stored), stored, edges)
