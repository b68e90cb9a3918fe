"""One box of all that are of one object; NumPy alone."""

from typing import Sequence, Tuple

import numpy as np

__all__ = ['ABSENT', 'IOU_THR', 'fuse_arrays']

# What is used where nobody says otherwise, see :func:`fuse_arrays`.
IOU_THR, ABSENT = .05, .01


def _overlaps(boxes: np.ndarray) -> np.ndarray:
    """3D IoU (N, N) of boxes (N, 6), centre and size."""
    half = boxes[:, 3:] / 2
    low, high = boxes[:, :3] - half, boxes[:, :3] + half
    shared = (np.minimum(high[:, None], high)
              - np.maximum(low[:, None], low)).clip(0).prod(-1)
    volume = (high - low).prod(-1)
    return shared / (volume[:, None] + volume - shared).clip(1e-6)


def fuse_arrays(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
                sources: np.ndarray, all_sources: Sequence[int],
                iou_thr: float = IOU_THR, absent: float = ABSENT
                ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make one box of all that are of one object.

    Weighted box clustering (Retina U-Net, arXiv 1811.08661, §3): the best box
    takes all of its class that overlap it; their mean, weighted by score, is
    the result. Its score is that of all sources having found it: within a
    source boxes are independent hints, ``1 - prod(1 - score)``; over the
    sources the geometric mean is taken, in which one that found nothing there
    counts ``absent``.

    Args:
        boxes: (N, 6) centre and size (mm).
        scores, labels, sources: (N,).
        all_sources: That could have found something.
        iou_thr: 3D IoU with the best box, at least.
        absent: In (0, 1).

    Returns:
        tuple: boxes (M, 6), scores and labels (M,), best first.
    """
    order = np.argsort(-scores, kind='stable')
    boxes, scores, labels, sources = (
        x[order] for x in (boxes, scores, labels, sources))
    near = (_overlaps(boxes) >= iou_thr) & (labels[:, None] == labels)
    left, groups = np.ones(len(boxes), bool), []
    for best in range(len(boxes)):  # in the order of scores, as NMS does
        if left[best]:
            group = near[best] & left
            group[best] = True
            left &= ~group
            groups.append(group)
    if not groups:
        return boxes, scores, labels
    member = np.stack(groups)  # (M, N)
    weight = member * scores.clip(1e-6)
    fused = weight @ boxes / weight.sum(1, keepdims=True)
    missed = np.log1p(-scores.clip(None, 1 - 1e-6))
    of_source = (sources[:, None] == np.asarray(all_sources)).astype(
        scores.dtype)  # (N, S)
    member_of = member.astype(scores.dtype)
    found = -np.expm1(member_of @ (missed[:, None] * of_source))
    there = member_of @ of_source > 0
    score = np.exp(np.log(np.where(
        there, found, scores.dtype.type(absent))).mean(1))
    best_first = np.argsort(-score, kind='stable')
    kinds = labels[member.argmax(1)]
    return fused[best_first], score[best_first], kinds[best_first]
