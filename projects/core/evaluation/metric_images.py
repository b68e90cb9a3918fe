"""Recall at so many false positives an image, of 2D boxes."""

from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from terminaltables import AsciiTable

from projects.core.evaluation.matching import ScanResult
from projects.core.evaluation.ranking import (
    Ranked,
    bootstrap_weights,
    in_batches,
    interval,
    with_interval,
)
from projects.core.files import DataError

__all__ = ['RATES', 'ImageFROCMetric', 'expect_images', 'match_images',
           'recall_difference', 'table_of_images']

RATES = (.5, 1., 2., 3., 4.)  # false positives an image
_TOLD = ('img_id', 'img_path', 'patient', 'laterality', 'view', 'ori_shape')


def match_images(boxes: np.ndarray, truth: np.ndarray, ignored: np.ndarray,
                 iou_thr: Optional[float]) -> Tuple[np.ndarray, np.ndarray]:
    """Match the boxes of one image to its findings, best first, each finding
    once, to the one that a box overlaps most of those still free.

    Another box on a finding, and one on a finding that does not count, count
    as nothing.

    Args:
        boxes: (N, 4) xyxy (px), best score first.
        truth: (M, 4).
        ignored: (K, 4) findings that do not count.
        iou_thr: Least IoU of a hit; None asks for the box's centre to be in
            the finding's box.

    Returns:
        tuple: index of the finding (N,), -1 where none; whether the box
        counts (N,).
    """
    found, counts = np.full(len(boxes), -1), np.ones(len(boxes), bool)
    overlaps, beside = (bbox_overlaps(
        torch.from_numpy(boxes), torch.from_numpy(them)).numpy()
        for them in (truth, ignored))
    near, aside = (
        _inside(boxes, them) if iou_thr is None else values >= iou_thr
        for them, values in ((truth, overlaps), (ignored, beside)))
    free = np.ones(len(truth), bool)
    for row in range(len(boxes)):
        candidates = np.flatnonzero(near[row] & free)
        if len(candidates):
            best = candidates[overlaps[row, candidates].argmax()]
            found[row], free[best] = best, False
        else:
            counts[row] = not (near[row].any() or aside[row].any())
    return found, counts


def _inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether the centres of boxes (N, 4) are in others (M, 4), (N, M)."""
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    return ((centre >= others[:, :2]) & (centre <= others[:, 2:])).all(-1)


@METRICS.register_module()
class ImageFROCMetric(BaseMetric):
    """FROC by image: recall of findings at so many false positives an image
    (document 004's R@FPI), of each class, and their mean.

    The document does not say what a hit is. Here it is an IoU of at least
    ``iou_thr``, a fifth; beside each figure stands the same with another
    rule, the box's centre in the finding's box (``_centre``). Intervals are
    of 95 %, from resampled patients. Without findings all figures are 0.

    Args:
        iou_thr (float): Of a hit.
        bootstrap (int): Resamples.
        seed (int): Of the resampling.

    Attributes:
        full_results: The figures; ``froc`` (false positives an image, recall,
            ``threshold``) and what is found in each of ``images``.
    """

    default_prefix = ''

    def __init__(self, iou_thr: float = .2, bootstrap: int = 1000,
                 seed: int = 0, collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thr, self.bootstrap, self.seed = iou_thr, bootstrap, seed

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of some images, in the pixels of their files; those
        of a sample together, as mmengine counts samples."""
        batch = data_batch.get('data_samples') or [None] * len(data_samples)
        rest = iter(data_samples)
        for exam in batch:
            count = len(getattr(exam, 'images', [None]))
            self.results.append([
                self._kept(sample) for sample in islice(rest, count)])

    @staticmethod
    def _kept(sample: dict) -> dict:
        found = sample['pred_instances']
        scale = np.tile(sample['scale_factor'], 2)
        truth, ignored = (sample.get(name) or dict(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
            for name in ('gt_instances', 'ignored_instances'))
        order = found['scores'].argsort(descending=True, stable=True)
        return dict(
            {key: sample[key] for key in _TOLD if key in sample},
            boxes=_array(found['bboxes'][order]),
            scores=found['scores'][order].cpu().numpy().astype(float),
            labels=found['labels'][order].cpu().numpy(),
            truth=_array(truth['bboxes']) / scale,
            truth_labels=truth['labels'].cpu().numpy(),
            ignored=_array(ignored['bboxes']) / scale)

    def compute_metrics(self, results: List[list]) -> Dict[str, float]:
        """``R@<rate>``, ``R@<rate>_centre`` and their intervals."""
        images = [image for exam in results for image in exam]
        classes = self.dataset_meta['classes']
        parts = {name: self._of_class(images, label)
                 for label, name in enumerate(classes)}
        counted = [p for p in parts.values() if p['num_gt']] or list(
            parts.values())[:1]
        figures = {key: float(np.mean([p[key] for p in counted]))
                   for key in counted[0] if key.startswith('R@')}
        self.full_results = dict(
            figures, iou_thr=self.iou_thr, num_images=len(images),
            num_gt=sum(p['num_gt'] for p in parts.values()),
            by_class=parts, images=self._images(images, classes))
        print_log('\n' + table_of_images(self.full_results), logger='current')
        return {key: value for key, value in figures.items()
                if not key.endswith(('_low', '_high'))}

    def _of_class(self, results: List[dict], label: int) -> Dict[str, Any]:
        scans, order = [], []
        patients: Dict[Any, int] = {}
        for number, result in enumerate(results):
            rows = result['labels'] == label
            mine = result['truth_labels'] == label
            scans.append((result['boxes'][rows], result['scores'][rows],
                          result['truth'][mine], result['ignored']))
            order.append(patients.setdefault(
                result.get('patient', number), len(patients)))
        draws = (bootstrap_weights(len(patients), self.bootstrap, self.seed)
                 [:, order] if self.bootstrap and results else None)
        figures: Dict[str, Any] = {}
        for suffix, iou_thr in (('', self.iou_thr), ('_centre', None)):
            ranked = Ranked.of_matches(
                [_as_scan(*scan) for scan in scans],
                [match_images(boxes, truth, ignored, iou_thr)
                 for boxes, _, truth, ignored in scans])
            values = ranked.sensitivity(np.ones((1, len(scans))), RATES)[0]
            names = [f'R@{rate:g}{suffix}' for rate in RATES]
            figures.update(zip(names, map(float, values)))
            if draws is not None:
                drawn = np.concatenate([
                    ranked.sensitivity(part, RATES)
                    for part in in_batches(draws)])
                for name, column in zip(names, drawn.T):
                    figures.update(interval(name, column))
            if not suffix:
                hits, misses, total = ranked.curves(np.ones((1, len(scans))))
                figures['froc'] = dict(
                    false_positives_per_image=(
                        misses[0] / max(len(scans), 1)).tolist(),
                    recall=(hits[0] / max(total[0], 1)).tolist(),
                    threshold=ranked.scores[ranked.hit].tolist())
        figures['num_gt'] = int(sum(len(truth) for *_, truth, _ in scans))
        return figures

    def _images(self, results: List[dict], classes: Sequence[str]
                ) -> List[dict]:
        told = []
        for result in results:
            found = np.full(len(result['boxes']), -1)
            counts = np.ones(len(found), bool)
            for label in range(len(classes)):
                rows = np.flatnonzero(result['labels'] == label)
                mine = np.flatnonzero(result['truth_labels'] == label)
                hits, counts[rows] = match_images(
                    result['boxes'][rows], result['truth'][mine],
                    result['ignored'], self.iou_thr)
                found[rows] = [mine[hit] if hit >= 0 else -1 for hit in hits]
            told.append(dict(
                {key: result[key] for key in _TOLD if key in result},
                ground_truth=[
                    dict(bbox=box.tolist(), class_name=classes[int(label)],
                         found=bool((found == row).any()))
                    for row, (box, label) in enumerate(zip(
                        result['truth'], result['truth_labels']))],
                ignored=result['ignored'].tolist(),
                predictions=[
                    dict(bbox=box.round(2).tolist(), score=float(score),
                         class_name=classes[int(label)], match=int(hit),
                         counts=bool(count))
                    for box, score, label, hit, count in zip(
                        result['boxes'], result['scores'], result['labels'],
                        found, counts)]))
        return told


def recall_difference(first: dict, second: dict, rate: float = .5,
                      bootstrap: int = 1000, seed: int = 0
                      ) -> Tuple[float, float, float]:
    """Recall at so many false positives an image of one test less another's
    on the same images, on the same resamples of patients; of classes with
    findings the mean.

    Args:
        first, second (dict): ``full_results``, or the JSON of them.
        rate (float): False positives an image.
        bootstrap, seed (int): Resamples for the 95 % interval.

    Returns:
        tuple: The difference, lower and upper end of its interval.

    Raises:
        DataError: They are not of the same images.
    """
    names = [[image['img_path'] for image in full['images']]
             for full in (first, second)]
    if names[0] != names[1] or not names[0]:
        raise DataError('results: expected two tests of the same images, '
                        f'found {len(names[0])} and {len(names[1])}, or '
                        'others')
    patients: Dict[str, int] = {}
    order = [patients.setdefault(image['patient'], len(patients))
             for image in first['images']]
    draws = bootstrap_weights(len(patients), bootstrap, seed)[:, order]
    draws = np.concatenate([np.ones((1, len(order))), draws])
    classes = [name for name, part in first['by_class'].items()
               if part['num_gt']]
    gap = np.mean([
        _ranked(first['images'], name).sensitivity(draws, [rate])[:, 0]
        - _ranked(second['images'], name).sensitivity(draws, [rate])[:, 0]
        for name in classes] or [np.zeros(len(draws))], 0)
    return with_interval(gap)


def expect_images(full: dict, path: Union[str, Path]) -> None:
    """Look at the JSON of ``full_results``.

    Raises:
        DataError: A field is missing or of another kind.
    """
    def expect(item, where: str, **fields) -> None:
        for key, kind in fields.items():
            value = item.get(key) if isinstance(item, dict) else None
            if not isinstance(value, kind):
                raise DataError(f'{path}: field "{where}{key}": expected it '
                                'as tools/test.py --out writes it, found '
                                f'{value!r:.40}')

    number = (int, float)
    expect(full, '', images=list, by_class=dict, iou_thr=number,
           **{f'R@{rate:g}{suffix}': number for rate in RATES
              for suffix in ('', '_centre')})
    for name, part in full['by_class'].items():
        expect(part, f'by_class.{name}.', froc=dict, num_gt=int)
        expect(part['froc'], f'by_class.{name}.froc.', recall=list,
               false_positives_per_image=list, threshold=list)
    for row, image in enumerate(full['images']):
        where = f'images[{row}].'
        expect(image, where, img_path=str, patient=str, laterality=str,
               view=str, ignored=list, ground_truth=list, predictions=list)
        for kind, fields in (('ground_truth', {}), ('predictions', dict(
                score=number, match=int, counts=bool))):
            for i, item in enumerate(image[kind]):
                expect(item, f'{where}{kind}[{i}].', bbox=list,
                       class_name=str, **fields)


def table_of_images(full: dict) -> str:
    """What the screen shows after a test, from ``full_results`` or the JSON
    of them."""
    rules = {f'IoU {full["iou_thr"]:g}': '', 'centre inside': '_centre'}
    rows = []
    for name, suffix in rules.items():
        cells = [name]
        for rate in RATES:
            key = f'R@{rate:g}{suffix}'
            text = f'{full[key]:.3f}'
            if f'{key}_low' in full:
                text += ' [{:.3f}, {:.3f}]'.format(full[f'{key}_low'],
                                                   full[f'{key}_high'])
            cells.append(text)
        rows.append(cells)
    return AsciiTable(
        [['a hit is', *(f'R@{rate:g}' for rate in RATES)], *rows],
        f'{full["num_images"]} images, {full["num_gt"]} findings, recall at '
        'so many false positives an image').table


def _ranked(images: Sequence[dict], class_name: str) -> Ranked:
    """Of what a test tells of its images."""
    scans, matches = [], []
    for image in images:
        found, truth = ([item for item in image[key]
                         if item['class_name'] == class_name]
                        for key in ('predictions', 'ground_truth'))
        scans.append(_as_scan(
            np.zeros((len(found), 4)), np.array([p['score'] for p in found]),
            np.zeros((len(truth), 4)), np.zeros((0, 4))))
        matches.append((np.array([p['match'] for p in found], int),
                        np.array([p['counts'] for p in found], bool)))
    return Ranked.of_matches(scans, matches)


def _array(boxes) -> np.ndarray:
    return boxes.cpu().numpy().astype(float).reshape(-1, 4)


def _as_scan(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray,
             ignored: np.ndarray) -> ScanResult:
    """An image as a scan, for its ranking: places play no part."""
    return ScanResult(np.zeros((len(boxes), 7)), scores,
                      np.zeros((len(truth), 7)), np.zeros(len(truth)),
                      np.zeros((len(ignored), 7)), np.zeros(len(ignored)))
