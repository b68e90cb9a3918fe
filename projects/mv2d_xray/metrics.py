"""How well indications are found, in the units of the people who look.

A prediction hits a finding when their centres are near enough; matching is
greedy, best score first, each finding once. A prediction that hits only a
finding marked "ignore" counts as nothing. Without any ground truth every AP
and sensitivity is 0 and every error is None: never NaN.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.evaluation.functional.indoor_eval import (average_precision,
                                                       indoor_eval)
from mmdet3d.registry import METRICS
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from terminaltables import AsciiTable

from .boxes import gravity_boxes
from .infos import InfosError, dump_json, load_json

DISTANCES = (5., 10., 15., 20.)  # mm
MATCH_DISTANCE = 10.  # mm
IOUS = (.1, .25, .5)
FALSE_POSITIVES = (.125, .25, .5, 1., 2., 4., 8.)  # per scan, LUNA16
SIZE_BINS = {'below_6mm': (0., 6.), '6_to_10mm': (6., 10.),
             'above_10mm': (10., np.inf)}  # diameters (mm)

__all__ = [
    'ScanResult', 'XRay2DMetric', 'XRay3DMetric', 'bootstrap_weights',
    'covered', 'curves_of', 'difference', 'evaluate', 'match', 'results_of',
    'scans_of', 'table_of', 'threshold_at', 'views_of'
]


@dataclass
class ScanResult:
    """Predictions and findings of one scan, one class.

    Attributes:
        boxes: (N, 7) predictions (mm), best first.
        scores: (N,).
        truth: (M, 7) findings (mm).
        diameters: (M,) (mm).
        ignored: (K, 7) findings that do not count.
        ignored_diameters: (K,) (mm).
        token: Name of the scan.
    """
    boxes: np.ndarray
    scores: np.ndarray
    truth: np.ndarray
    diameters: np.ndarray
    ignored: np.ndarray
    ignored_diameters: np.ndarray
    token: str = ''

    def restricted(self, low: float, high: float) -> 'ScanResult':
        """Only findings with ``low <= diameter < high`` count."""
        inside = (self.diameters >= low) & (self.diameters < high)
        return ScanResult(
            self.boxes, self.scores, self.truth[inside],
            self.diameters[inside],
            np.concatenate([self.ignored, self.truth[~inside]]),
            np.concatenate([self.ignored_diameters,
                            self.diameters[~inside]]), self.token)


# ------------------------------------------------------------------- matching
def match(scan: ScanResult, distance: Optional[float],
          duplicates: bool) -> Tuple[np.ndarray, np.ndarray]:
    """Match predictions to findings.

    Args:
        scan (ScanResult): One scan.
        distance (float, optional): Largest distance of centres (mm); None
            for the finding's own radius, LUNA16's criterion.
        duplicates (bool): Whether a second hit on a finding is a false
            positive (nuScenes) or nothing (LUNA16).

    Returns:
        tuple: index of the finding (N,), -1 where none; and whether the
        prediction counts (N,).
    """
    found = np.full(len(scan.boxes), -1)
    gaps = _distances(scan.boxes, scan.truth)
    reach = np.full(len(scan.truth), distance) if distance else (
        scan.diameters / 2)
    ignored_reach = np.full(len(scan.ignored), distance) if distance else (
        scan.ignored_diameters / 2)
    counts = ~(_distances(scan.boxes, scan.ignored) <= ignored_reach).any(1)
    near = gaps <= reach
    free = np.ones(len(scan.truth), dtype=bool)
    for row in np.flatnonzero(near.any(1)):
        candidates = np.flatnonzero(near[row] & free)
        if len(candidates):
            best = candidates[gaps[row, candidates].argmin()]
            found[row], free[best], counts[row] = best, False, True
        elif not duplicates:
            counts[row] = False
    return found, counts


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None, :3] - b[None, :, :3], axis=-1)


def _on_ignored(scan: ScanResult) -> np.ndarray:
    """Predictions that overlap an ignored finding and are nearer to it than
    to any other, (N,)."""
    gaps = _distances(scan.boxes, scan.ignored)
    apart = np.abs(scan.boxes[:, None, :3] - scan.ignored[None, :, :3])
    reach = (scan.boxes[:, None, 3:6] + scan.ignored[None, :, 3:6]) / 2
    nearest = _distances(scan.boxes, scan.truth).min(1, initial=np.inf)
    return ((apart < reach).all(-1) & (gaps < nearest[:, None])).any(1)


@dataclass
class _Ranked:
    """All counting predictions of a set, best first."""
    scores: np.ndarray
    hit: np.ndarray
    scan: np.ndarray
    findings: np.ndarray  # per scan

    @classmethod
    def of(cls, scans: Sequence[ScanResult], distance: Optional[float],
           duplicates: bool) -> '_Ranked':
        scores, hits, rows = [], [], []
        for i, scan in enumerate(scans):
            found, counts = match(scan, distance, duplicates)
            scores.append(scan.scores[counts])
            hits.append(found[counts] >= 0)
            rows.append(np.full(counts.sum(), i))
        scores = np.concatenate(scores) if scans else np.zeros(0)
        order = np.argsort(-scores, kind='stable')
        hits = np.concatenate(hits or [np.zeros(0)]).astype(bool)
        rows = np.concatenate(rows or [np.zeros(0)]).astype(int)
        return cls(scores[order], hits[order], rows[order],
                   np.array([len(s.truth) for s in scans], dtype=float))

    def curves(self, weights: np.ndarray) -> Tuple[np.ndarray, ...]:
        """Hits and false positives so far at each hit, and findings in all.

        Only there do recall and interpolated precision change, and hits are
        few among thousands of predictions.

        Args:
            weights: (S, scans) how often each scan is taken.

        Returns:
            tuple: (S, hits), (S, hits), (S,).
        """
        each = weights[:, self.scan]
        return (np.cumsum(each[:, self.hit], 1),
                np.cumsum(each * ~self.hit, 1)[:, self.hit],
                weights @ self.findings)

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """Area under the precision-recall curve, precision interpolated to
        the best at any higher recall (mmdet's 'area'), (S,)."""
        hits, misses, total = self.curves(weights)
        if hits.shape[1] == 0:
            return np.zeros(len(weights))
        recall = hits / np.maximum(total, 1)[:, None]
        precision = hits / np.maximum(hits + misses, 1e-9)
        return np.asarray(average_precision(recall, precision)) * (total > 0)

    def sensitivity(self, weights: np.ndarray,
                    limits: Sequence[float] = FALSE_POSITIVES) -> np.ndarray:
        """Best sensitivity at no more than each of L false positives per
        scan, (S, L)."""
        hits, misses, total = self.curves(weights)
        scans = np.maximum(weights.sum(1), 1)[:, None]
        recall = hits / np.maximum(total, 1)[:, None]
        return np.stack([
            np.where(misses / scans <= limit + 1e-9, recall, 0).max(
                1, initial=0) for limit in limits
        ], 1)

    def thresholds(self) -> List[float]:
        """Scores above which there are no more than each of FALSE_POSITIVES
        per scan."""
        wrong = self.scores[~self.hit]
        return [threshold_at(wrong, limit, len(self.findings))
                for limit in FALSE_POSITIVES]

    def above(self, thresholds: Sequence[float]) -> dict:
        """False positives per scan and sensitivity at given thresholds."""
        kept = self.scores > np.asarray(thresholds)[:, None]
        return dict(
            threshold=list(thresholds),
            false_positives_per_scan=(
                (kept & ~self.hit).sum(1) /
                max(len(self.findings), 1)).tolist(),
            sensitivity=((kept & self.hit).sum(1) /
                         max(self.findings.sum(), 1)).tolist())


def threshold_at(wrong: Sequence[float], rate: float, scans: int) -> float:
    """Score above which no more than ``rate`` false positives per scan are,
    from the scores of all false positives, best first; 0 where all may
    stay."""
    rank = int(rate * scans + 1e-9)
    return float(wrong[rank]) if rank < len(wrong) else 0.


# ----------------------------------------------------------------- evaluation
def evaluate(scans: Sequence[ScanResult], bootstrap: int = 1000,
             seed: int = 0,
             thresholds: Optional[Sequence[float]] = None,
             distances: Sequence[float] = DISTANCES,
             match_distance: float = MATCH_DISTANCE) -> Dict:
    """All distance-based figures of one class.

    Args:
        scans (Sequence[ScanResult]): The set.
        bootstrap (int): Resamples of scans for the 95 % intervals.
        seed (int): Of the resampling.
        thresholds (Sequence[float], optional): Scores whose false positives
            and sensitivity are told, as ``calibration``.
        distances, match_distance: See :class:`XRay3DMetric`.

    Returns:
        dict: ``mAP_3d``, ``AP_<d>mm``, ``CPM``, ``froc``, errors (mm) and,
        where ``bootstrap`` > 0, ``<name>_low`` and ``<name>_high``.
    """
    weights = np.ones((1, len(scans)))
    ranked = {d: _Ranked.of(scans, d, True) for d in distances}
    luna = _Ranked.of(scans, None, False)
    result = {
        f'AP_{d:g}mm': float(r.ap(weights)[0]) for d, r in ranked.items()
    }
    result['mAP_3d'] = float(np.mean(list(result.values())))
    sensitivity = luna.sensitivity(weights)[0]
    result['CPM'] = float(sensitivity.mean())
    result['froc'] = dict(
        false_positives_per_scan=list(FALSE_POSITIVES),
        sensitivity=sensitivity.tolist(), threshold=luna.thresholds())
    if thresholds is not None:
        result['calibration'] = luna.above(thresholds)
    if bootstrap and scans:
        draws = bootstrap_weights(len(scans), bootstrap, seed)
        samples = dict(
            mAP_3d=_mean_ap(ranked.values(), draws),
            CPM=np.concatenate([luna.sensitivity(part).mean(1)
                                for part in _parts(draws)]))
        for name, values in samples.items():
            low, high = np.percentile(values, [2.5, 97.5])
            result[f'{name}_low'] = float(low)
            result[f'{name}_high'] = float(high)
    result.update(_errors(scans, match_distance))
    result['num_scans'] = len(scans)
    result['num_gt'] = int(sum(len(s.truth) for s in scans))
    return result


def _parts(draws: np.ndarray) -> List[np.ndarray]:
    """Resamples in parts, to stay small in memory."""
    return np.array_split(draws, -(-len(draws) // 50))


def _mean_ap(ranked: Iterable['_Ranked'], draws: np.ndarray) -> np.ndarray:
    """Mean over distances of the AP of each resample."""
    ranked = list(ranked)
    return np.concatenate([
        np.mean([r.ap(part) for r in ranked], 0) for part in _parts(draws)])


def difference(first: Dict, second: Dict, bootstrap: int = 1000,
               seed: int = 0) -> Tuple[float, float, float]:
    """3D mAP of one test less another's on the same scans.

    Both see the same resamples, so what makes a scan hard for both cancels
    out: the interval is narrower than those of the two figures.

    Args:
        first, second (dict): ``full_results``, or the JSON of them.
        bootstrap (int): Resamples of scans for the 95 % interval.
        seed (int): Of the resampling.

    Returns:
        tuple: The difference, lower and upper end of its interval.

    Raises:
        InfosError: They are not of the same scans.
    """
    names = sorted({scan['class_name'] for scan in first['scans']})
    values = []
    for full in (first, second):
        distances = full.get('distances_mm', DISTANCES)
        per_class = [results_of(full, name) for name in names]
        tokens = [[scan.token for scan in scans] for scans in per_class]
        if not values:
            expected = tokens
        if tokens != expected or not any(tokens):
            raise InfosError('results: expected two tests of the same scans, '
                             f'found {sum(map(len, expected))} and '
                             f'{sum(map(len, tokens))}, or others')
        draws = np.concatenate([
            np.ones((1, len(tokens[0]))),
            bootstrap_weights(len(tokens[0]), bootstrap, seed)])
        values.append(np.mean([
            _mean_ap([_Ranked.of(scans, d, True) for d in distances], draws)
            for scans in per_class if any(len(s.truth) for s in scans)
        ] or [np.zeros(len(draws))], 0))
    gap = values[0] - values[1]
    return (float(gap[0]), *map(float, np.percentile(gap[1:], [2.5, 97.5])))


def bootstrap_weights(count: int, bootstrap: int, seed: int) -> np.ndarray:
    """How often each of ``count`` (at least 1) is drawn in each resample,
    (bootstrap, count)."""
    return np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), bootstrap)


def _errors(scans: Sequence[ScanResult], distance: float) -> dict:
    """Errors of the matches at a distance (mm): medians, and means beside
    them."""
    centre, size = [], []
    for scan in scans:
        found, _ = match(scan, distance, True)
        rows = np.flatnonzero(found >= 0)
        boxes, truth = scan.boxes[rows], scan.truth[found[rows]]
        centre.extend(np.linalg.norm(boxes[:, :3] - truth[:, :3], axis=1))
        size.extend(np.abs(boxes[:, 3:6] - truth[:, 3:6]).mean(1))

    def value(function, values):
        return float(function(values)) if len(values) else None

    return dict(
        centre_error_mm=value(np.median, centre),
        centre_error_mean_mm=value(np.mean, centre),
        size_error_mm=value(np.median, size),
        size_error_mean_mm=value(np.mean, size), num_matches=len(centre))


def _mean_over_classes(parts: List[dict]) -> dict:
    """Classes weigh the same; classes without findings are left out.

    Bounds of intervals are averaged, too: too wide rather than too narrow.
    """
    parts = [p for p in parts if p['num_gt']] or parts[:1]
    if len(parts) == 1:
        return dict(parts[0])
    mean = {}
    for key, value in parts[0].items():
        if key in ('froc', 'calibration'):
            # Lists, one value for each rate; a threshold is of one class.
            mean[key] = {
                name: np.mean([p[key][name] for p in parts], 0).tolist()
                for name in value if name != 'threshold'
            }
        elif key in ('num_gt', 'num_matches'):
            mean[key] = sum(p[key] for p in parts)
        elif key == 'num_scans':
            mean[key] = value
        else:
            known = [p[key] for p in parts if p[key] is not None]
            mean[key] = float(np.mean(known)) if known else None
    return mean


@METRICS.register_module()
class XRay3DMetric(BaseMetric):
    """3D mAP, FROC and errors of 3D boxes (design: LUNA16 and nuScenes).

    - ``mAP_3d``: mean of AP at centre distances, by default of 5, 10, 15 and
      20 mm;
    - ``AP_iou*``: AP at 3D IoU, by mmdet3d's ``indoor_eval``, without the
      findings that do not count and the predictions that overlap one and are
      nearer to it than to any that counts;
    - ``froc``, ``CPM``: sensitivity at 1/8 to 8 false positives per scan with
      LUNA16's hit criterion (centre within the finding's radius), and mean;
    - errors of the matches at ``match_distance``, and all of it by diameter.

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
        calibration (str, optional): ``out_file`` of a test on other scans:
            what its ``froc.threshold`` gives on these is told, too.
        out_file (str, optional): JSON with everything, scan by scan, too.

    Raises:
        InfosError: The ``calibration`` file has no thresholds.
    """

    default_prefix = ''

    def __init__(self,
                 min_diameter: float = 0.,
                 size_bins: Dict[str, Sequence[float]] = SIZE_BINS,
                 distances: Sequence[float] = DISTANCES,
                 match_distance: float = MATCH_DISTANCE,
                 bootstrap: int = 1000,
                 seed: int = 0,
                 calibration: Optional[str] = None,
                 out_file: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.min_diameter = min_diameter
        self.size_bins = size_bins
        self.distances = tuple(distances)
        self.match_distance = match_distance
        self.bootstrap = bootstrap
        self.seed = seed
        self.thresholds = _thresholds(calibration) if calibration else None
        self.out_file = out_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of a batch."""
        for sample in data_samples:
            found, truth = sample['pred_instances_3d'], sample['eval_ann_info']
            order = found['scores_3d'].argsort(descending=True, stable=True)
            self.results.append(
                dict(
                    token=str(sample.get('token', len(self.results))),
                    boxes=_array(found['bboxes_3d'])[order.cpu().numpy()],
                    scores=found['scores_3d'][order].cpu().numpy(),
                    labels=found['labels_3d'][order].cpu().numpy(),
                    truth=_array(truth['gt_bboxes_3d']),
                    truth_labels=np.asarray(truth['gt_labels_3d']),
                    diameters=_diameters(truth, 'gt'),
                    ignored=_array(truth['ignored_bboxes_3d']),
                    ignored_diameters=_diameters(truth, 'ignored')))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """All figures; writes ``out_file`` and prints a table."""
        classes = self.dataset_meta['classes']
        every = [scans_of(results, c) for c in range(len(classes))]
        per_class = [[s.restricted(self.min_diameter, np.inf) for s in scans]
                     for scans in every]
        full = _mean_over_classes(
            [evaluate(s, self.bootstrap, self.seed, self.thresholds,
                      self.distances, self.match_distance)
             for s in per_class])
        full.update(self._iou(per_class))
        full['by_size'] = {}
        for name, limits in self.size_bins.items():
            chosen = [[s.restricted(*limits) for s in scans]
                      for scans in every]
            full['by_size'][name] = dict(
                _mean_over_classes([
                    evaluate(s, 0, distances=self.distances,
                             match_distance=self.match_distance)
                    for s in chosen]),
                **self._iou(chosen))
        full['min_diameter_mm'] = self.min_diameter
        full['distances_mm'] = list(self.distances)
        full['match_distance_mm'] = self.match_distance
        full['scans'] = [
            _describe(scan, classes[c], self.match_distance)
            for c, scans in enumerate(per_class) for scan in scans
        ]
        self.full_results = full
        if self.out_file:
            dump_json(full, self.out_file)
        print_log('\n' + table_of(full), MMLogger.get_current_instance())
        flat = {k: v for k, v in full.items()
                if isinstance(v, (int, float))}
        for rate, value in zip(FALSE_POSITIVES, full['froc']['sensitivity']):
            flat[f'froc_{rate:g}'] = value
        return flat

    def _iou(self, per_class: List[List[ScanResult]]) -> Dict[str, float]:
        """mmdet3d's AP at 3D IoU, mean over classes with findings."""
        values = {f'AP_iou{iou:g}': [] for iou in IOUS}
        for scans in per_class:
            if not any(len(s.truth) for s in scans):
                continue
            predicted, annotated = [], []
            for scan in scans:
                counts = ~_on_ignored(scan)
                predicted.append(
                    dict(
                        bboxes_3d=_boxes(scan.boxes[counts]),
                        scores_3d=torch.as_tensor(scan.scores[counts]),
                        labels_3d=torch.zeros(counts.sum(),
                                              dtype=torch.long)))
                annotated.append(
                    dict(gt_bboxes_3d=_boxes(scan.truth),
                         gt_labels_3d=np.zeros(len(scan.truth), dtype=int)))
            with contextlib.redirect_stdout(io.StringIO()):
                result = indoor_eval(annotated, predicted, list(IOUS),
                                     {0: 'class'}, 'silent',
                                     Box3DMode.LIDAR)
            for iou in IOUS:
                values[f'AP_iou{iou:g}'].append(
                    result[f'mAP_{iou:.2f}'])
        return {k: float(np.mean(v)) if v else 0. for k, v in values.items()}


def _thresholds(path: str) -> List[float]:
    """``froc.threshold`` of a results file."""
    found = load_json(path)
    found = found.get('froc') if isinstance(found, dict) else None
    found = found.get('threshold') if isinstance(found, dict) else None
    if not isinstance(found, list) or len(found) != len(FALSE_POSITIVES) or (
            not all(isinstance(v, (int, float)) for v in found)):
        raise InfosError(
            f'{path}: field "froc.threshold": expected '
            f'{len(FALSE_POSITIVES)} scores, as tools/test.py --out writes '
            f'them for one class, found {found!r:.60}')
    return found


def scans_of(results: List[dict], label: int) -> List[ScanResult]:
    """What :class:`XRay3DMetric` kept, for one class."""
    scans = []
    for r in results:
        mine, true = r['labels'] == label, r['truth_labels'] == label
        scans.append(
            ScanResult(r['boxes'][mine], r['scores'][mine], r['truth'][true],
                       r['diameters'][true], r['ignored'],
                       r['ignored_diameters'], r['token']))
    return scans


def _array(boxes) -> np.ndarray:
    """mmdet3d boxes to (N, 7) with the gravity centre (mm)."""
    return gravity_boxes(boxes).detach().cpu().numpy().astype(np.float64)


def _boxes(array: np.ndarray) -> LiDARInstance3DBoxes:
    return LiDARInstance3DBoxes(
        torch.as_tensor(array, dtype=torch.float32).reshape(-1, 7),
        origin=(.5, .5, .5))


def _diameters(truth: dict, kind: str) -> np.ndarray:
    """Stored diameters (mm); the box's mean edge where there is none."""
    edges = _array(truth[f'{kind}_bboxes_3d'])[:, 3:6].mean(1)
    stored = truth.get(f'{kind}_diameters')
    if stored is None:
        return edges
    stored = np.asarray(stored, dtype=np.float64)
    return np.where(np.isfinite(stored), stored, edges)


def _describe(scan: ScanResult, name: str, distance: float) -> dict:
    """One scan for the JSON: boxes, and what was matched at a distance (mm).
    """
    found, counts = match(scan, distance, True)
    return dict(
        token=scan.token, class_name=name,
        ground_truth=[
            dict(bbox_3d=box.tolist(), diameter=float(d),
                 found=bool((found == i).any()))
            for i, (box, d) in enumerate(zip(scan.truth, scan.diameters))
        ],
        ignored=[box.tolist() for box in scan.ignored],
        ignored_diameters=scan.ignored_diameters.tolist(),
        predictions=[
            dict(bbox_3d=box.tolist(), score=float(score),
                 match=int(m), counts=bool(c))
            for box, score, m, c in zip(scan.boxes, scan.scores, found,
                                        counts)
        ])


def results_of(full: dict, class_name: str) -> List[ScanResult]:
    """Scans of one class from ``full_results`` or the JSON of them."""

    def array(values, *shape):
        return np.array(values, dtype=np.float64).reshape(-1, *shape)

    return [
        ScanResult(
            array([p['bbox_3d'] for p in scan['predictions']], 7),
            array([p['score'] for p in scan['predictions']]),
            array([t['bbox_3d'] for t in scan['ground_truth']], 7),
            array([t['diameter'] for t in scan['ground_truth']]),
            array(scan['ignored'], 7), array(scan['ignored_diameters']),
            scan['token'])
        for scan in full['scans'] if scan['class_name'] == class_name
    ]


def curves_of(scans: Sequence[ScanResult],
              distances: Sequence[float] = DISTANCES) -> Dict:
    """What the figures of one class are areas and points of.

    Returns:
        dict: ``froc``: false positives per scan and sensitivity; and for each
        distance (mm) recall and precision; two lists each.
    """

    def parts(ranked):
        hits, misses, total = ranked.curves(np.ones((1, len(scans))))
        return hits[0], misses[0], max(total[0], 1)

    hits, misses, total = parts(_Ranked.of(scans, None, False))
    curves = dict(froc=((misses / max(len(scans), 1)).tolist(),
                        (hits / total).tolist()))
    for distance in distances:
        hits, misses, total = parts(_Ranked.of(scans, distance, True))
        curves[distance] = ((hits / total).tolist(),
                            (hits / (hits + misses)).tolist())
    return curves


def table_of(full: dict) -> str:
    """What the screen shows after a test, from ``full_results`` or the JSON
    of them."""

    def text(value):
        return '-' if value is None else f'{value:.3f}'

    distances = full.get('distances_mm', DISTANCES)

    def row(name, part, interval=''):
        keys = ['mAP_3d', *(f'AP_{d:g}mm' for d in distances), 'CPM',
                'centre_error_mm', 'size_error_mm']
        cells = [text(part[k] if part['num_gt'] else None) for k in keys]
        cells[0] += interval
        return [name, str(part['num_gt']), *cells]

    header = ['findings', 'number', '3D mAP',
              f'AP {distances[0]:g} mm', *(f'{d:g} mm' for d in distances[1:]),
              'CPM', 'centre error (mm)', 'size error (mm)']
    interval = (f' [{full["mAP_3d_low"]:.3f}, {full["mAP_3d_high"]:.3f}]'
                if 'mAP_3d_low' in full else '')
    rows = [row('all', full, interval)]
    rows += [row(name.replace('_', ' '), part)
             for name, part in full['by_size'].items()]
    lines = [AsciiTable([header, *rows],
                        f'{full["num_scans"]} scans').table]
    froc = [
        ['false positives per scan'] + [f'{f:g}' for f in FALSE_POSITIVES],
        ['sensitivity'] + [text(v) for v in full['froc']['sensitivity']]
    ]
    if 'threshold' in full['froc']:
        froc.append(['at scores above'] +
                    [text(v) for v in full['froc']['threshold']])
    for name, values in full.get('calibration', {}).items():
        froc.append([f'calibration: {name.replace("_", " ")}'] +
                    [text(v) for v in values])
    froc = AsciiTable(froc, 'FROC').table
    ious = ', '.join(f'{iou:g}: {text(full[f"AP_iou{iou:g}"])}'
                     for iou in IOUS)
    return '\n'.join([*lines, froc, f'AP at 3D IoU {ious}'])


@METRICS.register_module()
class XRay2DMetric(BaseMetric):
    """The 2D stage: COCO's AP and recall of each view's boxes.

    Evaluated by pycocotools on the ``pred_instances`` of all views; findings
    that do not count are crowd regions, which COCO forgives. Where samples
    have ``proposals`` (``bboxes``, ``view_ids``), their recall is told, too.
    Without any ground truth all figures are 0. ``full_results`` has, besides
    the figures, ``recall_per_view`` by name and ``recall_at_10_by_size``.

    Args:
        size_bins (dict): Name and range of diameters (mm) of each group that
            gets a recall of its own.
    """

    default_prefix = '2d'

    def __init__(self,
                 size_bins: Dict[str, Sequence[float]] = SIZE_BINS,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.size_bins = size_bins

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the 2D boxes of a batch."""
        for sample in data_samples:
            if 'pred_instances' not in sample:
                continue
            found, truth = sample['pred_instances'], sample['eval_ann_info']
            views = len(sample['ct2img'])
            self.results.append(
                dict(
                    view_names=list(
                        sample.get('view_names') or map(str, range(views))),
                    bboxes=found['bboxes'].cpu().numpy(),
                    scores=found['scores'].cpu().numpy(),
                    labels=found['labels'].cpu().numpy(),
                    views=found['view_ids'].cpu().numpy(), truth=truth,
                    covered=covered(truth, found),
                    proposed=covered(truth, sample['proposals'])
                    if 'proposals' in sample else None))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """``AP``, ``AP50``, ``AP_small``, ``recall`` (IoU 0.5, 100 boxes),
        ``recall_at_10`` (centre within half the finding's mean edge, at 10
        false positives a view) and perhaps ``rpn_recall`` (IoU 0.5); nothing
        without a 2D stage."""
        self.full_results = {}
        if not results:
            return {}
        images, truth, found = [], [], []
        classes = range(len(self.dataset_meta['classes']))
        for r in results:
            first = len(images) + 1
            images += [dict(id=first + v) for v in range(len(r['view_names']))]
            info = r['truth']
            for box, label, view in zip(info['gt_bboxes'],
                                        info['gt_bboxes_labels'],
                                        info['gt_bboxes_view']):
                truth.append(_coco_box(box, first + int(view), int(label),
                                       id=len(truth) + 1, iscrowd=0))
            for box, view in zip(info['ignored_bboxes'],
                                 info['ignored_bboxes_view']):
                for label in classes:
                    truth.append(_coco_box(box, first + int(view), label,
                                           id=len(truth) + 1, iscrowd=1))
            for box, score, label, view in zip(r['bboxes'], r['scores'],
                                               r['labels'], r['views']):
                found.append(_coco_box(box, first + int(view), int(label),
                                       score=float(score)))
        figures = _coco_figures(images, truth, found, classes)
        if all(r['proposed'] is not None for r in results):
            proposed = np.concatenate([r['proposed'] for r in results])
            figures['rpn_recall'] = float(proposed.sum() /
                                          max(len(proposed), 1))
        figures['recall_at_10'] = _recall_at_10(results)
        self.full_results = dict(
            figures, recall_per_view=_recall_per_view(results),
            recall_at_10_by_size={
                name: _recall_at_10(results, *limits)
                for name, limits in self.size_bins.items()
            })
        return figures


def covered(truth: dict, found, iou: float = .5) -> np.ndarray:
    """Which true 2D boxes a box of their view overlaps by an IoU, (N,).

    Args:
        truth (dict): A sample's ``eval_ann_info``.
        found (InstanceData): ``bboxes`` (M, 4) xyxy (px) and ``view_ids``.
        iou (float): At least. Defaults to 0.5.
    """
    boxes = torch.as_tensor(truth['gt_bboxes'], dtype=torch.float32)
    views = torch.as_tensor(truth['gt_bboxes_view'])
    overlaps = bbox_overlaps(boxes, found['bboxes'].cpu().float())
    overlaps = overlaps * (views[:, None] == found['view_ids'].cpu()[None])
    return (overlaps >= iou).any(1).numpy()


def views_of(results: List[dict], label: Optional[int] = None,
             low: float = 0., high: float = np.inf) -> List[ScanResult]:
    """What :class:`XRay2DMetric` kept, each view a scan and px for mm.

    Args:
        results (list[dict]): Its results.
        label (int, optional): Class. Defaults to all together.
        low, high (float): Only findings with diameters (mm) in this range
            count.
    """

    def centred(boxes):
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        flat = np.zeros((len(boxes), 7))
        flat[:, :2] = (boxes[:, :2] + boxes[:, 2:]) / 2
        flat[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
        return flat

    views = []
    for r in results:
        truth, left_out = centred(r['truth']['gt_bboxes']), centred(
            r['truth']['ignored_bboxes'])
        boxes, order = centred(r['bboxes']), np.argsort(-r['scores'])
        diameters = _diameters(r['truth'], 'gt')[
            np.asarray(r['truth']['gt_bboxes_instance'], dtype=int)]
        inside = (diameters >= low) & (diameters < high)
        true_views = np.asarray(r['truth']['gt_bboxes_view'])
        ignored_views = np.asarray(r['truth']['ignored_bboxes_view'])
        mine, true = np.ones(len(boxes), bool), np.ones(len(truth), bool)
        if label is not None:
            mine = r['labels'] == label
            true = np.asarray(r['truth']['gt_bboxes_labels']) == label
        for view, name in enumerate(r['view_names']):
            rows = order[(r['views'] == view)[order] & mine[order]]
            here = (true_views == view) & true
            counted = truth[here & inside]
            others = np.concatenate(
                [left_out[ignored_views == view], truth[here & ~inside]])
            views.append(
                ScanResult(boxes[rows], r['scores'][rows], counted,
                           counted[:, 3:5].mean(1), others,
                           others[:, 3:5].mean(1), name))
    return views


def _recall_at_10(results: List[dict], low: float = 0.,
                  high: float = np.inf) -> float:
    """2D recall at 10 false positives a view of findings with diameters (mm)
    in a range, with LUNA16's criterion."""
    views = views_of(results, None, low, high)
    ranked = _Ranked.of(views, None, False)
    return float(ranked.sensitivity(np.ones((1, len(views))), (10., ))[0, 0])


def _recall_per_view(results: List[dict]) -> Dict[str, Optional[float]]:
    """Share of the true boxes found, by the view's name."""
    hits = {}
    for r in results:
        for name in r['view_names']:
            hits.setdefault(name, [])
        for view, hit in zip(r['truth']['gt_bboxes_view'], r['covered']):
            hits[r['view_names'][int(view)]].append(hit)
    return {name: float(np.mean(values)) if values else None
            for name, values in hits.items()}


def _coco_figures(images: List[dict], truth: List[dict], found: List[dict],
                  classes: Sequence[int]) -> Dict[str, float]:
    """pycocotools' figures, 0 instead of its -1 and without its prints."""
    if not found or all(t['iscrowd'] for t in truth):
        return dict.fromkeys(('AP', 'AP50', 'AP_small', 'recall'), 0.)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            images=images, annotations=truth,
            categories=[dict(id=c + 1) for c in classes])
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found), 'bbox')
        run.evaluate()
        run.accumulate()
        run.summarize()
    recall = run.eval['recall'][0, :, 0, -1]
    values = dict(AP=run.stats[0], AP50=run.stats[1], AP_small=run.stats[3],
                  recall=recall[recall > -1].mean())
    return {k: max(float(v), 0.) for k, v in values.items()}


def _coco_box(box: np.ndarray, image_id: int, label: int, **fields) -> dict:
    x1, y1, x2, y2 = (float(v) for v in box)
    return dict(image_id=image_id, category_id=label + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1), **fields)
