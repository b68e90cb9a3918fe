"""Which predictions hit which findings.

A prediction hits a finding when their centres are near enough; matching is
greedy, best score first, each finding once. A prediction that hits only a
finding marked "ignore" counts as nothing. :func:`match_overlaps` asks how much
of their boxes they share instead.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np

__all__ = [
    'DISTANCES', 'FALSE_POSITIVES', 'IOUS', 'MATCH_DISTANCE', 'SHOWN_IOUS',
    'SIZE_BINS', 'ScanResult', 'match', 'match_overlaps', 'on_ignored'
]

DISTANCES = (5., 10., 15., 20.)  # mm
MATCH_DISTANCE = 10.  # mm
IOUS = (.1, .25, .5)
SHOWN_IOUS = IOUS[1:]  # in tables, beside 3D mAP
FALSE_POSITIVES = (.125, .25, .5, 1., 2., 4., 8.)  # per scan, LUNA16
SIZE_BINS = {'below_6mm': (0., 6.), '6_to_10mm': (6., 10.),
             'above_10mm': (10., np.inf)}  # diameters (mm)


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
    gaps = centre_distances(scan.boxes, scan.truth)
    reach = np.full(len(scan.truth), distance) if distance else (
        scan.diameters / 2)
    ignored_reach = np.full(len(scan.ignored), distance) if distance else (
        scan.ignored_diameters / 2)
    beside = centre_distances(scan.boxes, scan.ignored)
    counts = ~(beside <= ignored_reach).any(1)
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


def match_overlaps(scan: ScanResult, ious: Sequence[float]
                   ) -> Tuple[List[np.ndarray], np.ndarray]:
    """Match predictions to the findings that they overlap most, as mmdet3d's
    ``indoor_eval`` does: a second hit on a finding is a false positive.

    Args:
        scan (ScanResult): One scan.
        ious (Sequence[float]): 3D IoUs, of which a hit has more.

    Returns:
        tuple: index of the finding, -1 where none, (N,) for each IoU; and
        whether the prediction counts (N,): see :func:`on_ignored`.
    """
    counts = ~on_ignored(scan)
    found = [np.full(len(scan.boxes), -1) for _ in ious]
    if not counts.any() or not len(scan.truth):
        return found, counts
    from projects.core.boxes import lidar_boxes  # of mmdet3d
    boxes, truth = lidar_boxes(scan.boxes), lidar_boxes(scan.truth)
    overlaps = boxes.overlaps(boxes, truth).numpy()
    nearest = overlaps.argmax(1)
    for hits, iou in zip(found, ious):
        free = np.ones(len(scan.truth), dtype=bool)
        for row in np.flatnonzero(counts & (overlaps.max(1) > iou)):
            if free[nearest[row]]:
                hits[row], free[nearest[row]] = nearest[row], False
    return found, counts


def centre_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between the centres of (N, 7) and (M, 7) boxes (mm), (N, M)."""
    return np.linalg.norm(a[:, None, :3] - b[None, :, :3], axis=-1)


def on_ignored(scan: ScanResult) -> np.ndarray:
    """Predictions that overlap an ignored finding and are nearer to it than
    to any other, (N,)."""
    gaps = centre_distances(scan.boxes, scan.ignored)
    apart = np.abs(scan.boxes[:, None, :3] - scan.ignored[None, :, :3])
    reach = (scan.boxes[:, None, 3:6] + scan.ignored[None, :, 3:6]) / 2
    nearest = centre_distances(scan.boxes, scan.truth).min(1, initial=np.inf)
    return ((apart < reach).all(-1) & (gaps < nearest[:, None])).any(1)
