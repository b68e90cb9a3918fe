"""The metric of the 2D stage: boxes of single views."""

import contextlib
import io
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects.core import geometry
from projects.core.evaluation.matching import SIZE_BINS, ScanResult
from projects.core.evaluation.metric_3d import diameters_of
from projects.core.evaluation.ranking import Ranked
from projects.core.files import DataError

__all__ = ['Indication2DMetric', 'covered', 'figures_at_50', 'views_of']


@METRICS.register_module()
class Indication2DMetric(BaseMetric):
    """The 2D stage: COCO's AP and recall of each view's boxes.

    Evaluated by pycocotools on the ``pred_instances`` of all views; findings
    that do not count are crowd regions, which COCO forgives. Where samples
    have ``proposals`` (``bboxes``, ``view_ids``), their recall is told, too.
    Without any ground truth all figures are 0. AP and ``recall`` are means
    over the classes with findings; ``recall_at_10`` is of all classes
    together, with the false positives of those without findings.
    ``full_results`` has, besides the figures, ``recall_per_view`` by name and
    ``recall_at_10_by_size``, and perhaps ``at_iou_50``, see
    :func:`figures_at_50`.

    Args:
        size_bins (dict): Name and range of diameters (mm) of each group that
            gets a recall of its own.
        bins_50 (dict, optional): As these, of the groups of ``at_iou_50``.
            Defaults to no such figures.
        score_thr (float, optional): Of their F1; one that was best on
            another split. Defaults to the best on this one.

    Raises:
        DataError: ``bins_50`` or ``score_thr`` cannot be.
    """

    default_prefix = '2d'

    def __init__(self,
                 size_bins: Mapping[str, Sequence[float]] = SIZE_BINS,
                 bins_50: Optional[Mapping[str, Sequence[float]]] = None,
                 score_thr: Optional[float] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        for name, limits in (bins_50 or {}).items():
            if name == 'all' or len(limits) != 2 or not (
                    0 <= limits[0] < limits[1]):
                raise DataError(
                    'Indication2DMetric: bins_50: expected names other than '
                    '"all", with a diameter (mm) and a larger one, found '
                    f'{name}: {list(limits)}')
        if score_thr is not None and not 0 <= score_thr <= 1:
            raise DataError('Indication2DMetric: score_thr: expected a score '
                            f'from 0 to 1, found {score_thr:g}')
        self.size_bins = size_bins
        self.bins_50 = bins_50
        self.score_thr = score_thr

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the 2D boxes of a batch."""
        for sample in data_samples:
            if 'pred_instances' not in sample:
                continue
            found, truth = sample['pred_instances'], sample['eval_ann_info']
            views = len(sample['ct2img'])
            names = list(sample.get('view_names') or map(str, range(views)))
            chosen = sample.get('selected')
            chosen = [chosen is None or name in chosen for name in names]
            if geometry.are_slices(sample['ct2img']):
                names = ['slices'] * views  # none is the same in two scans
            self.results.append(
                dict(
                    view_names=names, ct2img=np.asarray(sample['ct2img']),
                    chosen=chosen,
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
        images: List[dict] = []
        truth: List[dict] = []
        found: List[dict] = []
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
        if self.bins_50 is not None:
            self.full_results['at_iou_50'] = figures_at_50(
                results, self.bins_50, self.score_thr)
        return figures


def figures_at_50(results: List[dict], bins: Mapping[str, Sequence[float]],
                  score_thr: Optional[float] = None) -> dict:
    """Document 003's figures: AP, AR and F1 at IoU 0.5, of all classes
    together, by size.

    Sizes work as COCO's areas: findings of other sizes forgive, and boxes
    that hit nothing count by their own size. A finding's size is its
    diameter, that of a box the root of its area, in mm at the isocentre.
    Of a set with ``--positive-share`` only the chosen images are looked at.
    003's F1 is the harmonic mean of its AP and AR; here it is that of
    precision and recall at one threshold.

    Args:
        results (list[dict]): Those of :class:`Indication2DMetric`.
        bins (dict): Name and range of diameters (mm), without the lower end
            and with the upper one.
        score_thr (float, optional): Boxes with this score or more count for
            F1. Defaults to the threshold of the best F1 of all sizes.

    Returns:
        dict: ``threshold``, ``num_images``, ``positive_share`` (of the images
        with a finding that counts; None without images) and, for ``all`` and
        each bin, ``AP``, ``AR``, ``F1``, ``num_gt``; None where there is no
        finding.
    """
    images: List[dict] = []
    truth: List[dict] = []
    found: List[dict] = []
    chosen: List[int] = []
    for r in results:
        first, info = len(images) + 1, r['truth']
        chosen += [first + v for v in np.flatnonzero(r['chosen']).tolist()]
        images += [dict(id=first + v) for v in range(len(r['view_names']))]
        rows = np.asarray(info['gt_bboxes_instance'], dtype=int)
        for box, view, size in zip(info['gt_bboxes'], info['gt_bboxes_view'],
                                   diameters_of(info, 'gt')[rows]):
            truth.append(dict(_coco_box(box, first + int(view), 0, iscrowd=0,
                                        id=len(truth) + 1), area=size**2))
        for box, view in zip(info['ignored_bboxes'],
                             info['ignored_bboxes_view']):
            truth.append(_coco_box(box, first + int(view), 0, iscrowd=1,
                                   id=len(truth) + 1))
        pixels = [np.linalg.norm(geometry.image_derivative(
            np.zeros(3), matrix), axis=1).mean() for matrix in r['ct2img']]
        for box, score, view in zip(r['bboxes'], r['scores'], r['views']):
            item = _coco_box(box, first + int(view), 0, score=float(score),
                             id=len(found) + 1, iscrowd=0)
            found.append(dict(item, area=item['area'] / pixels[int(view)]**2))
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for boxes in (truth, found):
            coco = COCO()
            coco.dataset = dict(images=images, annotations=boxes,
                                categories=[dict(id=1)])
            coco.createIndex()
            sides.append(coco)
        run = COCOeval(*sides, 'bbox')
        names = ['all', *bins]
        run.params.imgIds = chosen
        run.params.iouThrs = np.array([.5])
        run.params.maxDets = [100]
        run.params.areaRngLbl = names
        run.params.areaRng = [[0., 1e10], *(
            [low**2 * (1 + 1e-9), high**2] for low, high in bins.values())]
        run.evaluate()
        run.accumulate()
    positive = {box['image_id'] for box in truth if not box['iscrowd']}
    told: dict = dict(
        threshold=score_thr, num_images=len(chosen),
        positive_share=len(positive.intersection(chosen)) / len(chosen)
        if chosen else None)
    for number, name in enumerate(names):
        start = number * len(chosen)
        parts = [part for part in run.evalImgs[start:start + len(chosen)]
                 if part is not None]
        count = sum(int((1 - part['gtIgnore']).sum()) for part in parts)
        if count == 0:
            told[name] = dict(AP=None, AR=None, F1=None, num_gt=0)
            continue
        scores, hits = (np.array([
            value for part in parts for value, left_out in zip(
                part[key] if key == 'dtScores' else part[key][0] > 0,
                part['dtIgnore'][0]) if not left_out])
            for key in ('dtScores', 'dtMatches'))
        if told['threshold'] is None:
            told['threshold'] = _best_threshold(scores, hits, count)
        kept = (np.zeros(0, bool) if told['threshold'] is None else
                scores >= told['threshold'])
        found_right = int(hits[kept].sum()) if len(scores) else 0
        told[name] = dict(
            AP=float(run.eval['precision'][0, :, 0, number, 0].mean()),
            AR=float(run.eval['recall'][0, 0, number, 0]),
            F1=2 * found_right / (count + int(kept.sum())), num_gt=count)
    return told


def _best_threshold(scores: np.ndarray, hits: np.ndarray,
                    count: int) -> Optional[float]:
    """The score from which on boxes have the best F1; None without boxes."""
    if len(scores) == 0:
        return None
    order = np.argsort(-scores, kind='stable')
    f1 = 2 * np.cumsum(hits[order]) / (count + 1 + np.arange(len(order)))
    # Boxes of one score are taken together.
    last = np.append(np.diff(scores[order]) < 0, True)
    return float(scores[order][np.where(last, f1, -1).argmax()])


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
    """What :class:`Indication2DMetric` kept, each view a scan and px for mm.

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
        diameters = diameters_of(r['truth'], 'gt')[
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
    ranked = Ranked.of(views, None, False)
    return float(ranked.sensitivity(np.ones((1, len(views))), (10., ))[0, 0])


def _recall_per_view(results: List[dict]) -> Dict[str, Optional[float]]:
    """Share of the true boxes found, by the view's name."""
    hits: Dict[str, list] = {}
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
