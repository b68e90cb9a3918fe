"""From 2D boxes of slices or slabs to 3D boxes of a scan.

Boxes of neighbouring slices that overlap are one finding. Neither document
says how its slices become findings of a patient; this is a choice, see
``docs/slices.md``.
"""

import argparse
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.structures import axis_aligned_bbox_overlaps_3d
from scipy.optimize import minimize
from scipy.special import expit, logit

from projects.core import geometry
from projects.core.boxes import corners_of
from projects.core.engine.command_line import one_sentence
from projects.core.files import DataError
from projects.core.results import load_results

__all__ = ['SliceMerger', 'fit_calibration']


@dataclass
class SliceMerger:
    """How boxes of slices are merged.

    The best box begins a chain; in each direction the next slice's best box
    that overlaps the last one joins it, until there is none for more than
    ``max_gap``. What joined one chain joins no other.

    - **Extent.** The members with at least ``share`` of the best score: in
      the slice all that they cover; across slices from the first to the last,
      less what the thickness of slabs adds. Slabs of thickness t at distances
      p that touch what is d high span d + 2 t - p - z on average, for slices
      z apart. It is at least half as high as it is wide.
    - **Score.** A finding as high as wide is seen in as many slices as its
      width takes: the mean over the best half of so many, those that are
      missing counted as 0. Then ``calibration``, fitted on the validation
      split by :func:`fit_calibration`, makes it a share of hits (Platt 1999).
      It changes no order, so no figure of a test but thresholds.

    Args:
        overlap_thr: Share of the smaller of two boxes in neighbouring slices
            that the other covers, at least. Not IoU: the last slice of a
            round finding shows a cap that is much smaller than the next.
        max_gap: Without a box, at most (mm); one slice always may be.
        share: See above.
        nms_thr: Of two 3D boxes with a larger IoU, or one with its centre in
            the better one, the better one stays.
        max_boxes: Of a scan, at most.
        calibration: Slope and offset of the score's log odds.
    """
    overlap_thr: float = .5
    max_gap: float = 2.5
    share: float = .5
    nms_thr: float = .1
    max_boxes: int = 100
    calibration: Sequence[float] = (1., 0.)

    def __call__(self, boxes: np.ndarray, scores: np.ndarray,
                 labels: np.ndarray, views: np.ndarray, ct2img: np.ndarray,
                 slice_mm: float
                 ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Merge the boxes of a scan.

        Args:
            boxes: (N, 4) xyxy (px).
            scores, labels, views: (N,), score, class and row of the slice.
            ct2img: (S, 4, 4) of the slices, all of one grid of pixels.
            slice_mm: Distance of the CT's slices, of which slabs have many.

        Returns:
            tuple: (M, 6) gravity centre and size (mm), scores and labels
            (M,), best first.
        """
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        if len(boxes) == 0:
            return np.zeros((0, 6)), np.zeros(0), np.zeros(0, int)
        heights, thickness = geometry.slice_places(ct2img)
        order = np.argsort(heights)
        rank = np.empty(len(order), int)
        rank[order] = np.arange(len(order))
        found: List[tuple] = []
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            for chain in self._chains(boxes[mine], scores[mine],
                                      rank[views[mine]], heights[order]):
                rows = mine[chain]
                box, score = self._merged(
                    boxes[rows], scores[rows], views[rows], ct2img, heights,
                    thickness, slice_mm)
                found.append((box, score, label))
        merged, values, kinds = (np.array(part) for part in zip(*found))
        best = np.argsort(-values, kind='stable')
        kept = best[self._suppress(merged[best], kinds[best])]
        kept = kept[:self.max_boxes]
        slope, offset = self.calibration
        values = expit(slope * _odds(values[kept]) + offset)
        return merged[kept], values, kinds[kept].astype(int)

    def _chains(self, boxes: np.ndarray, scores: np.ndarray,
                ranks: np.ndarray, heights: np.ndarray) -> List[List[int]]:
        """Rows that belong together, those of the best scores first."""
        of_slice = {int(r): np.flatnonzero(ranks == r)
                    for r in np.unique(ranks)}
        pitch = float(np.diff(heights).mean()) if len(heights) > 1 else 1.
        steps = max(round(self.max_gap / pitch), 1)
        free, chains = np.ones(len(boxes), bool), []
        for row in np.argsort(-scores, kind='stable'):
            if not free[row]:
                continue
            free[row] = False
            chain = [int(row)]
            for direction in (-1, 1):
                last, gap = int(row), 0
                at = int(ranks[row]) + direction
                while 0 <= at < len(heights) and gap <= steps:
                    near = of_slice.get(at, np.zeros(0, int))
                    near = near[free[near]]
                    near = near[_overlaps(boxes[last], boxes[near])
                                >= self.overlap_thr]
                    if len(near):
                        last, gap = int(near[scores[near].argmax()]), 0
                        free[last] = False
                        chain.append(last)
                    else:
                        gap += 1
                    at += direction
            chains.append(chain)
        return chains

    def _merged(self, boxes, scores, views, ct2img, heights, thickness,
                slice_mm) -> Tuple[np.ndarray, float]:
        """3D box (6,) (mm) and score of a chain."""
        strong = scores >= self.share * scores.max()
        places = np.concatenate([
            geometry.unproject(box.reshape(2, 2), np.ones(2), ct2img[view])
            for box, view in zip(boxes[strong], views[strong])])
        low, high = places.min(0), places.max(0)
        # Slices are axial: the axis along which they lie on each other.
        normal = np.abs(geometry.slice_normal(ct2img[views[0]]))
        axis = int(normal.argmax())
        wide = float(np.delete(high - low, axis).mean())
        pitch = (float(np.diff(np.sort(heights)).mean())
                 if len(heights) > 1 else thickness)
        span = high[axis] - low[axis] + thickness
        tall = span - (2 * thickness - pitch - slice_mm)
        tall = max(tall, slice_mm, wide / 2)
        size = high - low
        size[axis] = tall
        expected = max(round(wide / pitch / 2), 1)
        best = np.sort(scores)[::-1][:expected]
        return (np.concatenate([(low + high) / 2, size]),
                float(best.sum() / expected))

    def _suppress(self, boxes: np.ndarray, labels: np.ndarray) -> List[int]:
        """Rows of the boxes, best first, that no better one of their class
        overlaps."""
        corners = corners_of(torch.from_numpy(boxes))
        overlap = axis_aligned_bbox_overlaps_3d(corners, corners).numpy()
        off = np.abs(boxes[:, None, :3] - boxes[:, :3])
        inside = (off <= boxes[:, 3:] / 2).all(-1)  # of the better one, the
        clash = ((overlap > self.nms_thr) | inside) & (  # worse one's centre
            labels[:, None] == labels)
        kept: List[int] = []
        for row in range(len(boxes)):
            if not clash[row, kept].any():
                kept.append(row)
        return kept


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the smaller of two boxes that the other covers."""
    one, many = torch.from_numpy(box[None]), torch.from_numpy(others)
    return torch.maximum(bbox_overlaps(one, many, mode='iof')[0],
                         bbox_overlaps(many, one, mode='iof')[:, 0]).numpy()


def _odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(scores, 1e-6, 1 - 1e-6))


def fit_calibration(scores: np.ndarray, hits: np.ndarray
                    ) -> Tuple[float, float]:
    """Slope and offset that make scores the share of hits (Platt 1999, with
    his targets, which keep few scans from certainty).

    Args:
        scores: (N,) of boxes that count.
        hits: (N,) whether each hits a finding.

    Raises:
        ValueError: There are no hits, or nothing but hits.
    """
    hits = np.asarray(hits, dtype=bool)
    if not 0 < hits.sum() < len(hits):
        raise ValueError(f'{len(hits)} boxes: expected hits and others, found '
                         f'{hits.sum()} hits')
    odds, count = _odds(np.asarray(scores, float)), hits.sum()
    target = np.where(hits, (count + 1) / (count + 2),
                      1 / (len(hits) - count + 2))

    def loss(values):
        z = values[0] * odds + values[1]
        share = expit(z)
        gap = share - target
        return (np.logaddexp(0, z) - target * z).mean(), np.array(
            [(gap * odds).mean(), gap.mean()])

    slope, offset = minimize(loss, [1., 0.], jac=True).x
    return float(slope), float(offset)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Print the calibration that fits a test on the validation split."""
    parser = argparse.ArgumentParser(
        description='Fit model.merge.calibration to a test on the validation '
        'split, made with calibration=(1., 0.)')
    parser.add_argument('results', help='--out of tools/test.py')
    args = parser.parse_args(argv)
    rows = [p for scan in load_results(args.results)['scans']
            for p in scan['predictions'] if p['counts'] or p['match'] >= 0]
    try:
        slope, offset = fit_calibration([p['score'] for p in rows],
                                        [p['match'] >= 0 for p in rows])
    except ValueError as error:
        raise DataError(f'{args.results}: field "scans": {error}') from None
    print(f'calibration=({slope:.3f}, {offset:.3f})')  # noqa: T201


if __name__ == '__main__':
    main()
