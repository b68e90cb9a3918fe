"""Which stage loses each finding of a set, and how that is decided."""

from typing import Dict, Iterable, List, Sequence

import numpy as np
import torch
from torch import Tensor

from projects.core import geometry
from projects.core.evaluation.matching import MATCH_DISTANCE, match
from projects.core.evaluation.metric_2d import covered
from projects.core.evaluation.metric_3d import Indication3DMetric, scans_of
from projects.core.evaluation.ranking import threshold_at
from projects.mv2d_xray.diagnosis.trace import Trace, is_peak, rounded, trace
from projects.mv2d_xray.lifting.fusion import SOURCES

__all__ = ['VISIBLE', 'diagnose', 'verdict']

VISIBLE = 20  # stronger peaks in the same view, median over views
SHOWN_IOU = .3  # a 2D box that overlaps less does not show the finding


def diagnose(model, samples: Iterable[dict], classes: Sequence[str],
             hit: float = MATCH_DISTANCE,
             false_positives: float = 1.) -> Dict:
    """Which stage loses each finding of a set.

    Args:
        model (MV2DXRay): In evaluation mode.
        samples (Iterable[dict]): Of a data set in ``test_mode``.
        classes (Sequence[str]): Their names.
        hit (float): Largest distance of centres of a match (mm).
        false_positives (float): Per scan, at the threshold that decides what
            is found.

    Returns:
        dict: ``threshold``, ``limits`` and ``findings``, each with its
        ``verdict`` and what the stages say: ``score`` of its match (0 if
        none), ``score_beside`` of boxes that overlap it, but are matched to
        nothing; ``peaks_3d`` and ``peaks_2d`` that are stronger than the best
        at its place, the latter the median of the views; ``views`` in which
        it has a 2D box, and in which it is ``proposed`` and ``detected``;
        ``distances`` of the nearest query (mm) before the decoder and after
        each layer and ``query_score``, the best of those that end near it.
    """
    limits = _limits(model, hit)
    metric, findings, wrong, count = Indication3DMetric(), [], [], 0
    for sample in samples:
        count += 1
        seen = trace(model, sample)
        stages = _stages(model, seen, hit)
        metric.process({}, [seen.result.to_dict()])
        labels = np.asarray(seen.result.eval_ann_info['gt_labels_3d'])
        for label, name in enumerate(classes):
            scan, = scans_of(metric.results[-1:], label)
            matched, counts = match(scan, hit, True)
            wrong += scan.scores[(matched < 0) & counts].tolist()
            for row, at in enumerate(np.flatnonzero(labels == label)):
                mine = scan.scores[matched == row]
                beside = scan.scores[
                    (matched < 0) & _overlap(scan.boxes, scan.truth[row])]
                findings.append(dict(
                    token=scan.token, number=int(at), class_name=name,
                    bbox_3d=scan.truth[row].tolist(),
                    diameter=float(scan.diameters[row]),
                    score=float(mine.max(initial=0.)),
                    score_beside=float(beside.max(initial=0.)),
                    **stages[at]))
    threshold = threshold_at(sorted(wrong, reverse=True), false_positives,
                             count)
    for finding in findings:
        finding['verdict'] = verdict(finding, threshold, limits)
    return dict(threshold=threshold, limits=limits, findings=findings)


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Which of boxes (N, 7) overlap one, (N,)."""
    apart = np.abs(boxes[:, :3] - box[:3])
    return (apart < (boxes[:, 3:6] + box[3:6]) / 2).all(-1)


def _limits(model, hit: float) -> Dict:
    """What a model's stages let pass, as far as verdicts need it."""
    head, volume = model.lifting_head, model.volume_head
    return dict(
        hit=hit, sources=[SOURCES[i] for i in head.sources] if head
        else ['volume'],
        score=head.test_cfg['score_thr'] if head else volume.score_thr,
        peaks=volume.max_queries if volume else 0)


def verdict(finding: Dict, threshold: float, limits: Dict) -> str:
    """The first stage that loses a finding, in plain words.

    Args:
        finding (dict): As :func:`diagnose` describes it.
        threshold (float): Score from which on something is found.
        limits (dict): ``hit`` (mm), ``sources`` of queries, least ``score``
            that is reported and number of ``peaks`` that become queries.
    """
    if finding['score'] >= threshold and finding['score'] > 0:
        return 'found'
    if finding['score'] > 0:
        return 'found, with a score below the threshold'
    if finding['score_beside'] > 0:
        low = (', and its score is below the threshold'
               if finding['score_beside'] < threshold else '')
        return ('a box overlaps it, but its centre is more than '
                f'{limits["hit"]:g} mm off{low}')
    near = [d <= limits['hit'] for d in finding['distances']]
    if near and near[-1]:
        if finding['query_score'] <= limits['score']:
            return ('a query is near it, but scores below the '
                    f'{limits["score"]:g} that is reported')
        return ('a box is near it, but went to another finding or was fused '
                'with a stronger one')
    if any(near):
        layer = len(near) - near[::-1].index(True)
        return f'its query moved away in decoder layer {layer}'
    why = dict(roi=_lost_in_2d, volume=_lost_in_volume,
               free=lambda *_: 'learned queries: none comes near it')
    return '; '.join(why[s](finding, limits) for s in limits['sources'])


def _lost_in_2d(finding: Dict, limits: Dict) -> str:
    """Why no query of a 2D box is near a finding."""
    views = finding['views']
    if views == 0:
        return '2D boxes: no view shows it'
    stages = [('detected', 'not detected in')]
    if 'proposed' in finding:
        stages = [('proposed', 'not proposed in'),
                  ('detected', 'proposed, but scored too low in')]
    for key, text in stages:
        if finding[key] == 0:
            return f'2D boxes: {text} ' + (
                'all views' if 'scored' in text else 'any view')
        if 2 * finding[key] < views:
            return f'2D boxes: {text} most views'
    return '2D boxes: seen in most views, but no query is put near it'


def _lost_in_volume(finding: Dict, limits: Dict) -> str:
    """Why no query of the volume is near a finding."""
    if finding.get('peaks_2d', 0) > VISIBLE:
        return 'volume: other places of single views look stronger'
    if finding['peaks_3d'] >= limits['peaks']:
        return (f'volume: {limits["peaks"]} or more places in space look '
                'stronger')
    return 'volume: no peak near it'


def _stages(model, seen: Trace, hit: float) -> List[Dict]:
    """What each stage says of each finding of a scan."""
    truth, boxes = seen.result.eval_ann_info, seen.truth
    stages = [dict() for _ in boxes]
    of_finding = np.asarray(truth['gt_bboxes_instance'])
    for key, name in (('pred_instances', 'detected'),
                      ('proposals', 'proposed')):
        if key in seen.result:
            shown = covered(truth, seen.result.get(key), SHOWN_IOU)
            for row, stage in enumerate(stages):
                stage['views'] = int((of_finding == row).sum())
                stage[name] = int(shown[of_finding == row].sum())
    distances = seen.distances
    last = seen.scores[-1].cpu().numpy()
    for row, stage in enumerate(stages):
        away = distances[..., row]
        stage['distances'] = (rounded(away.min(1)) if away.size else [])
        stage['query_score'] = float(
            last[away[-1] <= hit].max(initial=0.))
    if seen.heatmap is None:
        return stages
    head, device = model.volume_head, seen.heatmap.device
    peaks, axes = _local_maxima(seen.heatmap), head.grid_axes(device)
    stride = model.feat_strides[model.volume_level]
    maps = [] if seen.heatmaps_2d is None else [
        (one, _local_maxima(one)) for one in seen.heatmaps_2d]
    ct2img = np.asarray(seen.result.metainfo['ct2img'], dtype=np.float64)
    uv, _ = geometry.project(boxes[:, :3].astype(np.float64), ct2img)
    for row, stage in enumerate(stages):
        reach = max(float(boxes[row, 3:6].max()) / 2, head.voxel_size)
        value = _best_near(seen.heatmap, axes, boxes[row, :3], reach)
        stage['peaks_3d'] = int((peaks > value).sum())
        if maps:
            cells = [(torch.arange(n, device=device) + .5) * stride
                     for n in maps[0][0].shape]
            stage['peaks_2d'] = float(np.median([
                int((others > _best_near(one, cells, place[::-1],
                                         stride)).sum())
                for (one, others), place in zip(maps, uv[:, row])
            ]))
    return stages


def _local_maxima(heatmap: Tensor) -> Tensor:
    """Values of the peaks of a map (2D or 3D), (N,)."""
    return heatmap[is_peak(heatmap)]


def _best_near(heatmap: Tensor, axes: Sequence[Tensor],
               centre: Sequence[float], reach: float) -> Tensor:
    """Largest value of a map in cells within a distance of a point."""
    for dim, (axis, c) in enumerate(zip(axes, centre)):
        away = (axis - float(c)).abs()
        near = away <= reach
        near[away.argmin()] = True
        heatmap = heatmap.index_select(dim, near.nonzero()[:, 0])
    return heatmap.max()
