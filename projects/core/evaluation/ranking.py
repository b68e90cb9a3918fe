"""Figures of ranked predictions: AP, FROC, errors and their intervals.

Without any ground truth every AP and sensitivity is 0 and every error is
None: never NaN.
"""

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from mmdet3d.evaluation.functional.indoor_eval import average_precision

from projects.core.evaluation.matching import (
    DISTANCES,
    FALSE_POSITIVES,
    IOUS,
    MATCH_DISTANCE,
    ScanResult,
    match,
    match_overlaps,
)
from projects.core.files import DataError
from projects.core.results import results_of

__all__ = [
    'Ranked', 'bootstrap_weights', 'curves_of', 'difference', 'evaluate',
    'in_batches', 'interval', 'mean_over_classes', 'resampled',
    'threshold_at', 'with_interval', 'without_findings'
]


@dataclass
class Ranked:
    """All counting predictions of a set, best first."""
    scores: np.ndarray
    hit: np.ndarray
    scan: np.ndarray
    findings: np.ndarray  # per scan

    @classmethod
    def of(cls, scans: Sequence[ScanResult], distance: Optional[float],
           duplicates: bool) -> 'Ranked':
        """Match each scan's predictions, see :func:`match`."""
        return cls.of_matches(
            scans, [match(s, distance, duplicates) for s in scans])

    @classmethod
    def by_overlap(cls, scans: Sequence[ScanResult], ious: Sequence[float]
                   ) -> Dict[float, 'Ranked']:
        """The same for each 3D IoU, see :func:`match_overlaps`."""
        matches = [match_overlaps(scan, ious) for scan in scans]
        return {iou: cls.of_matches(
                    scans, [(found[i], counts) for found, counts in matches])
                for i, iou in enumerate(ious)}

    @classmethod
    def of_matches(cls, scans: Sequence[ScanResult],
                   matches: Sequence[Tuple[np.ndarray, np.ndarray]]
                   ) -> 'Ranked':
        """From the index of the finding, and what counts, of each scan."""
        scores_of, hits_of, rows_of = [], [], []
        for i, (scan, (found, counts)) in enumerate(zip(scans, matches)):
            scores_of.append(scan.scores[counts])
            hits_of.append(found[counts] >= 0)
            rows_of.append(np.full(counts.sum(), i))
        scores = np.concatenate(scores_of or [np.zeros(0)])
        hits = np.concatenate(hits_of or [np.zeros(0)]).astype(bool)
        rows = np.concatenate(rows_of or [np.zeros(0)]).astype(int)
        # Of equal scores false positives come first: ties count against.
        order = np.lexsort((hits, -scores))
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


def threshold_at(wrong: Sequence[float] | np.ndarray, rate: float,
                 scans: int) -> float:
    """Score above which no more than ``rate`` false positives per scan are,
    from the scores of all false positives, best first; 0 where all may
    stay."""
    rank = int(rate * scans + 1e-9)
    return float(wrong[rank]) if rank < len(wrong) else 0.


def evaluate(scans: Sequence[ScanResult], bootstrap: int = 1000,
             seed: int = 0,
             thresholds: Optional[Sequence[float]] = None,
             distances: Sequence[float] = DISTANCES,
             match_distance: float = MATCH_DISTANCE) -> Dict:
    """All figures of one class.

    Args:
        scans (Sequence[ScanResult]): The set.
        bootstrap (int): Resamples of scans for the 95 % intervals.
        seed (int): Of the resampling.
        thresholds (Sequence[float], optional): Scores whose false positives
            and sensitivity are told, as ``calibration``.
        distances, match_distance: See :class:`Indication3DMetric`.

    Returns:
        dict: ``mAP_3d``, ``AP_<d>mm``, ``CPM``, ``froc``, errors (mm),
        ``AP_iou<iou>``, ``AP_3d_radius`` and, where ``bootstrap`` > 0,
        ``<name>_low`` and ``<name>_high`` of the means, of AP at a 3D IoU and
        within the radius.
    """
    weights = np.ones((1, len(scans)))
    ranked = {d: Ranked.of(scans, d, True) for d in distances}
    luna = Ranked.of(scans, None, False)
    result: Dict[str, Any] = {
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
    draws = (bootstrap_weights(len(scans), bootstrap, seed)
             if bootstrap and scans else None)
    if draws is not None:
        result.update(interval('mAP_3d', _mean_ap(ranked.values(), draws)))
        result.update(interval('CPM', np.concatenate([
            luna.sensitivity(part).mean(1) for part in in_batches(draws)])))
    result.update(_errors(scans, match_distance))
    result['num_scans'] = len(scans)
    result['num_gt'] = int(sum(len(s.truth) for s in scans))
    others = {f'AP_iou{iou:g}': r
              for iou, r in Ranked.by_overlap(scans, IOUS).items()}
    others['AP_3d_radius'] = Ranked.of(scans, None, True)
    for name, each in others.items():
        result[name] = float(each.ap(weights)[0])
        if draws is not None:
            result.update(interval(name, _mean_ap([each], draws)))
    return result


def interval(name: str, values: np.ndarray) -> Dict[str, float]:
    """95 % of a figure's resamples."""
    low, high = np.percentile(values, [2.5, 97.5])
    return {f'{name}_low': float(low), f'{name}_high': float(high)}


def in_batches(draws: np.ndarray) -> List[np.ndarray]:
    """Resamples in parts, to stay small in memory."""
    return np.array_split(draws, -(-len(draws) // 50))


def _mean_ap(ranked: Iterable['Ranked'], draws: np.ndarray) -> np.ndarray:
    """Mean over distances of the AP of each resample."""
    ranked = list(ranked)
    return np.concatenate([
        np.mean([r.ap(part) for r in ranked], 0)
        for part in in_batches(draws)])


def difference(first: Dict, second: Dict, bootstrap: int = 1000,
               seed: int = 0) -> Tuple[float, float, float]:
    """3D mAP of one test less another's on the same scans.

    Both see the same resamples, so what makes a scan hard for both cancels
    out: the interval is narrower than those of the two figures.

    Args:
        first, second (dict): ``full_results``, or what
            :func:`~projects.core.results.load_results` gives.
        bootstrap (int): Resamples of scans for the 95 % interval.
        seed (int): Of the resampling.

    Returns:
        tuple: The difference, lower and upper end of its interval.

    Raises:
        DataError: They are not of the same scans.
    """
    return with_interval(np.subtract(
        *resampled([first, second], bootstrap, seed)))


def with_interval(values: np.ndarray) -> Tuple[float, float, float]:
    """A figure of :func:`resampled` and the ends of its 95 % interval."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def resampled(tests: Sequence[Dict], bootstrap: int = 1000,
              seed: int = 0) -> np.ndarray:
    """3D mAP of tests on the same scans, and of resamples of these, the same
    for all tests.

    Args:
        tests (Sequence[dict]): ``full_results``, or what
            :func:`~projects.core.results.load_results` gives.
        bootstrap (int): Resamples of scans.
        seed (int): Of the resampling.

    Returns:
        np.ndarray: (tests, 1 + bootstrap), the first as they are.

    Raises:
        DataError: They are not of the same scans.
    """
    names = sorted({scan['class_name'] for scan in tests[0]['scans']})
    values: List[np.ndarray] = []
    for full in tests:
        distances = full['distances_mm']
        per_class = [results_of(full, name) for name in names]
        tokens = [[scan.token for scan in scans] for scans in per_class]
        if not values:
            expected = tokens
        if tokens != expected or not any(tokens):
            raise DataError('results: expected two tests of the same scans, '
                            f'found {sum(map(len, expected))} and '
                            f'{sum(map(len, tokens))}, or others')
        draws = np.concatenate([
            np.ones((1, len(tokens[0]))),
            bootstrap_weights(len(tokens[0]), bootstrap, seed)])
        values.append(np.mean([
            _mean_ap([Ranked.of(scans, d, True) for d in distances], draws)
            for scans in per_class if any(len(s.truth) for s in scans)
        ] or [np.zeros(len(draws))], 0))
    return np.stack(values)


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


def without_findings(scans: Dict[str, Sequence[ScanResult]],
                     distance: float) -> List[dict]:
    """What is predicted of the classes that no scan has a finding of, all of
    it wrong: no AP and no FROC would show it.

    Args:
        scans (dict): The set, by class.
        distance (float): From an ignored finding, up to which a prediction
            counts as nothing (mm).

    Returns:
        list[dict]: ``class_name``, number of ``predictions`` at any score, of
        ``false_positives`` among them, and their ``highest_score``.
    """
    told = []
    for name, these in scans.items():
        if any(len(scan.truth) for scan in these):
            continue
        wrong = Ranked.of(these, distance, True).scores
        told.append(dict(
            class_name=name,
            predictions=sum(len(scan.boxes) for scan in these),
            false_positives=len(wrong),
            highest_score=float(wrong[0]) if len(wrong) else None))
    return told


def mean_over_classes(parts: List[dict]) -> dict:
    """Classes weigh the same; classes without findings are left out, as they
    have no recall: :func:`without_findings` counts what is predicted of them.

    Bounds of intervals are averaged, too: too wide rather than too narrow.
    """
    parts = [p for p in parts if p['num_gt']] or parts[:1]
    if len(parts) == 1:
        return dict(parts[0])
    mean: Dict[str, Any] = {}
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

    hits, misses, total = parts(Ranked.of(scans, None, False))
    curves: Dict[Any, tuple] = dict(
        froc=((misses / max(len(scans), 1)).tolist(),
              (hits / total).tolist()))
    for distance in distances:
        hits, misses, total = parts(Ranked.of(scans, distance, True))
        curves[distance] = ((hits / total).tolist(),
                            (hits / (hits + misses)).tolist())
    return curves
