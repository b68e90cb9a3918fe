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

__all__ = ['Indication2DMetric', 'covered', 'views_of']


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
    ``recall_at_10_by_size``.

    Args:
        size_bins (dict): Name and range of diameters (mm) of each group that
            gets a recall of its own.
    """

    default_prefix = '2d'

    def __init__(self,
                 size_bins: Mapping[str, Sequence[float]] = SIZE_BINS,
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
            names = list(sample.get('view_names') or map(str, range(views)))
            if geometry.are_slices(sample['ct2img']):
                names = ['slices'] * views  # none is the same in two scans
            self.results.append(
                dict(
                    view_names=names,
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
