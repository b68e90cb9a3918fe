"""Where a finding is lost: what every stage of a model says of one scan.

Betancur et al. §5 looks at 2D boxes and feature maps to find out why its model
fails. Here is the same for any model, scan and view, and for the stages that
come after: volume, queries and attention.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from . import geometry, visualization
from .boxes import gravity_boxes
from .infos import dump_json
from .lifting_head import ROI, SOURCES, VOLUME
from .metrics import (MATCH_DISTANCE, XRay3DMetric, covered, match, scans_of,
                      threshold_at)

__all__ = ['Trace', 'diagnose', 'report_scan', 'trace', 'verdict']

VISIBLE = 20  # stronger peaks in the same view, median over views
SHOWN_IOU = .3  # a 2D box that overlaps less does not show the finding
IOUS, COUNTS = (.5, .3), (10, 50)  # of the proposals' recall
TOP = 10  # channels, proposals and peaks that are drawn
STRONGEST = 3  # queries that are described beside those near findings


@dataclass
class Attention:
    """What the queries of one decoder layer look at.

    Attributes:
        rois (Tensor): (R, 5), view index and xyxy (px): all 2D boxes, then
            the projections of the queries that are points.
        index (Tensor): (Q, K), rows of ``rois`` that each query may see.
        valid (Tensor): (Q, K), False where ``index`` is padding.
        weights (Tensor): (Q, 1 + K), the learned token first, see
            :meth:`~.decoder.SparseCrossAttention.weights`.
    """
    rois: Tensor
    index: Tensor
    valid: Tensor
    weights: Tensor


@dataclass
class Trace:
    """One prediction and what led to it; S steps: before the decoder and
    after each of its layers (1 without a decoder).

    Attributes:
        result (Det3DDataSample): As the model's ``predict`` gives it.
        images (Tensor): (V, H, W), line integrals.
        features (list[Tensor]): Per level of the neck, or of the backbone
            where there is none, (V, C, h, w).
        boxes (Tensor): (S, Q, 6) of each query, centre and size (mm).
        scores (Tensor): (S, Q), of its best class.
        sources (Tensor): (Q,), index into ``SOURCES``.
        attention (list[Attention]): Per decoder layer.
        heatmap (Tensor, optional): (X, Y, Z) scores of the volume.
        heatmaps_2d (Tensor, optional): (V, h, w) scores of single views.
    """
    result: object
    images: Tensor
    features: List[Tensor]
    boxes: Tensor
    scores: Tensor
    sources: Tensor
    attention: List[Attention]
    heatmap: Optional[Tensor] = None
    heatmaps_2d: Optional[Tensor] = None

    @property
    def truth(self) -> np.ndarray:
        """np.ndarray: (N, 7) findings that count (mm)."""
        return gravity_boxes(
            self.result.eval_ann_info['gt_bboxes_3d']).numpy()

    @property
    def distances(self) -> np.ndarray:
        """np.ndarray: (S, Q, N) from each query to each finding (mm)."""
        centres = self.boxes[..., None, :3].cpu().double().numpy()
        return np.linalg.norm(centres - self.truth[:, :3], axis=-1)


@torch.no_grad()
def trace(model, sample: dict) -> Trace:
    """Predict one sample and keep what the stages made of it.

    Args:
        model (MV2DXRay): In evaluation mode.
        sample (dict): Of a data set in ``test_mode``.
    """
    detector, head = model.detector_2d, model.lifting_head
    seen, pooled, attended = {}, [], []

    def keep(name):
        return lambda _, inputs, outputs: seen.update({name: (inputs,
                                                              outputs)})

    def attend(module, inputs, _):
        # What was pooled so far: RoIs of 2D boxes once, projections often.
        attended.append((module.weights(*inputs), *inputs[4:], len(pooled)))

    levels = detector.neck if detector.with_neck else detector.backbone
    chunks = []  # of views
    hooks = [levels.register_forward_hook(
        lambda _, __, outputs: chunks.append(outputs))]
    if model.volume_head is not None:
        hooks.append(model.volume_head.register_forward_hook(keep('volume')))
    if head is not None:
        hooks.append(head.register_forward_hook(keep('queries')))
    if model.with_decoder:
        hooks.append(head.roi_extractor.register_forward_hook(
            lambda _, inputs, __: pooled.append(inputs[1])))
        hooks += [layer.cross_attn.register_forward_hook(attend)
                  for layer in head.decoder.layers]
    try:
        result, = model.test_step(pseudo_collate([sample]))
    finally:
        for hook in hooks:
            hook.remove()

    heatmap = heatmaps_2d = None
    if 'volume' in seen:
        (level, *_), volume = seen['volume']
        heatmap = volume[0].amax(0).sigmoid()
        if model.volume_head.heatmap_2d is not None:
            heatmaps_2d = model.volume_head.heatmap_2d(level).amax(
                1).sigmoid()
    if head is not None:
        queries = seen['queries'][1]
        first = torch.cat([queries.centres, queries.sizes], 1)
        boxes = torch.cat([first[:, None], queries.all_boxes], 1)
        logits = torch.cat([queries.logits[:, None], queries.all_logits], 1)
        sources = queries.source
    else:
        queries = model.volume_head.queries(*volume)
        boxes = torch.cat([queries.centres, queries.sizes], 1)[:, None]
        logits = queries.logits[:, None]
        sources = torch.full_like(logits[:, 0, 0], VOLUME, dtype=torch.long)
    shared = int(bool((sources == ROI).any()))
    return Trace(
        result=result, images=sample['inputs']['img'][:, 0],
        features=[torch.cat(level) for level in zip(*chunks)],
        boxes=boxes.transpose(0, 1),
        scores=logits.sigmoid().amax(-1).T, sources=sources,
        attention=[
            Attention(
                rois=torch.cat([boxes.new_zeros(0, 5), *pooled[:shared],
                                *pooled[shared:count][-1:]]),
                index=index, valid=valid, weights=weights)
            for weights, index, valid, count in attended
        ],
        heatmap=heatmap, heatmaps_2d=heatmaps_2d)


# ------------------------------------------------------------------- verdicts
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
    metric, findings, wrong, count = XRay3DMetric(), [], [], 0
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
        stage['distances'] = (_rounded(away.min(1)) if away.size else [])
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
    return heatmap[_is_peak(heatmap)]


def _is_peak(heatmap: Tensor) -> Tensor:
    pool = F.max_pool2d if heatmap.dim() == 2 else F.max_pool3d
    return heatmap == pool(heatmap[None, None], 3, 1, 1)[0, 0]


def _best_near(heatmap: Tensor, axes: Sequence[Tensor],
               centre: Sequence[float], reach: float) -> Tensor:
    """Largest value of a map in cells within a distance of a point."""
    for dim, (axis, c) in enumerate(zip(axes, centre)):
        away = (axis - float(c)).abs()
        near = away <= reach
        near[away.argmin()] = True
        heatmap = heatmap.index_select(dim, near.nonzero()[:, 0])
    return heatmap.max()


# ------------------------------------------------------------------- one scan
def report_scan(model, sample: dict, told: Dict, out_dir: Path,
                views: Optional[Sequence[str]] = None,
                score_thr_2d: float = .3) -> Dict:
    """Describe and draw what every stage makes of one scan.

    Writes ``scan.json`` and pictures: ``views.png`` (2D boxes),
    ``features_<view>.png``, ``volume.png``, ``queries.png`` and
    ``attention.png``, as far as the model has these stages.

    Args:
        model (MV2DXRay): In evaluation mode.
        sample (dict): Of a data set in ``test_mode``.
        told (dict): From :func:`diagnose`, on a set with this scan.
        out_dir (Path): Folder of the files.
        views (Sequence[str], optional): Names of those to look at. Defaults
            to all.
        score_thr_2d (float): 2D detections below are left out.

    Returns:
        dict: What ``scan.json`` holds: ``findings`` of :func:`diagnose`;
        per view ``proposals`` (number and recall of the true 2D boxes),
        ``detections`` and strongest channels of the ``features``; ``peaks``
        of the volume; ``queries`` nearest to a finding and with the highest
        scores: ``centres`` (mm), ``scores`` and ``distances`` to the nearest
        finding at each step, and which RoIs they attend to in each layer.

    Raises:
        ValueError: The scan has no view of that name.
    """
    seen = trace(model, sample)
    meta = seen.result.metainfo
    names = _view_names(meta, len(seen.images))
    unknown = sorted(set(views or ()) - set(names))
    if unknown:
        raise ValueError(f'scan {meta["token"]}: view: expected one of '
                         f'{", ".join(names)}, found {unknown[0]}')
    rows = [names.index(v) for v in views] if views else range(len(names))
    findings = [f for f in told['findings'] if f['token'] == meta['token']]
    findings.sort(key=lambda f: f['number'])
    chosen = _chosen_queries(seen)
    content = dict(
        token=meta['token'], threshold=told['threshold'], findings=findings,
        views={
            names[v]: dict(
                _boxes_of_view(seen, v, score_thr_2d),
                features=[_channels(f[v], stride) for f, stride in zip(
                    seen.features, model.feat_strides)])
            for v in rows
        },
        peaks=_peaks(model, seen),
        queries=[_query(seen, q, names) for q in chosen])
    dump_json(content, Path(out_dir) / 'scan.json')
    _draw_scan(model, seen, content, rows, names, chosen, Path(out_dir))
    return content


def _view_names(meta: dict, count: int) -> List[str]:
    return list(meta.get('view_names') or map(str, range(count)))


def _rounded(values, digits: int = 2) -> list:
    return np.asarray(values, dtype=np.float64).round(digits).tolist()


def _best_of_views(found: InstanceData, views: int,
                   count: Optional[int]) -> InstanceData:
    """The highest scores of each view."""
    ranked = found[found.scores.argsort(descending=True, stable=True)]
    return InstanceData.cat(
        [ranked[ranked.view_ids == v][:count] for v in range(views)])


def _boxes_of_view(seen: Trace, view: int, score_thr: float) -> Dict:
    """Recall of the proposals of one view, and its detections; nothing where
    the model has no such stage."""
    truth, told = seen.result.eval_ann_info, {}
    here = np.asarray(truth['gt_bboxes_view']) == view
    if 'proposals' in seen.result:
        found = seen.result.proposals
        found = found[found.view_ids == view]
        recall = {}
        for iou in IOUS:
            for count in (*COUNTS, None):
                best = _best_of_views(found, view + 1, count)
                hits = covered(truth, best, iou)[here]
                recall[f'{count or "all"} at IoU {iou:g}'] = (
                    float(hits.mean()) if here.any() else None)
        told['proposals'] = dict(count=len(found), true_boxes=int(here.sum()),
                                 recall=recall)
    if 'pred_instances' in seen.result:
        found = seen.result.pred_instances
        found = found[(found.view_ids == view) & (found.scores >= score_thr)]
        told['detections'] = [
            dict(bbox=_rounded(box.cpu()), score=float(score), label=int(at))
            for box, score, at in zip(found.bboxes, found.scores,
                                      found.labels)
        ]
    return told


def _channels(level: Tensor, stride: int) -> Dict:
    """The channels (C, h, w) that reach the highest values, best first."""
    value, index = level.flatten(1).amax(1).sort(descending=True, stable=True)
    return dict(stride=stride, shape=list(level.shape),
                strongest=index[:TOP].tolist(),
                maxima=_rounded(value[:TOP].cpu(), 4))


def _peaks(model, seen: Trace) -> List[Dict]:
    """Peaks of the volume that become queries, best first."""
    mine = (seen.sources == VOLUME).cpu().numpy()
    scores = seen.scores[0].cpu().numpy()
    told = []
    for row in sorted(np.flatnonzero(mine), key=lambda r: -scores[r]):
        away = seen.distances[0, row]
        told.append(dict(
            centre=_rounded(seen.boxes[0, row, :3].cpu()),
            score=float(scores[row]),
            finding=int(away.argmin()) if len(away) else None,
            distance=float(away.min()) if len(away) else None))
    return told


def _chosen_queries(seen: Trace) -> List[int]:
    """Those that end nearest to each finding, then those that score highest;
    both as the last layer leaves them."""
    away = seen.distances[-1]
    if len(away) == 0:
        return []
    rows = [*away.argmin(0), *seen.scores[-1].argsort(
        descending=True, stable=True)[:STRONGEST].tolist()]
    return list(dict.fromkeys(map(int, rows)))


def _query(seen: Trace, row: int, names: Sequence[str]) -> Dict:
    """One query, step by step."""
    away = seen.distances[:, row]
    shared = int((seen.sources == ROI).sum())
    layers = []
    for layer in seen.attention:
        listed = []
        for at in layer.valid[row].nonzero()[:, 0].tolist():
            roi = int(layer.index[row, at])
            view, *box = layer.rois[roi].tolist()
            listed.append(dict(
                view=names[int(view)],
                # The projections of a point have no number of their own.
                roi=roi if roi < shared else None, bbox=_rounded(box),
                weight=float(layer.weights[row, 1 + at])))
        listed.sort(key=lambda item: -item['weight'])
        layers.append(dict(rois=listed, nothing=float(layer.weights[row, 0])))
    return dict(
        query=row, source=SOURCES[int(seen.sources[row])],
        finding=int(away[-1].argmin()) if away.size else None,
        distances=_rounded(away.min(1)) if away.size else None,
        centres=_rounded(seen.boxes[:, row, :3].cpu()),
        scores=_rounded(seen.scores[:, row].cpu(), 4), attention=layers)


# ------------------------------------------------------------------- pictures
def _draw_scan(model, seen: Trace, content: Dict, rows: Sequence[int],
               names: Sequence[str], chosen: Sequence[int],
               out_dir: Path) -> None:
    """All pictures of one scan."""
    truth, meta = seen.result.eval_ann_info, seen.result.metainfo
    token, threshold = meta['token'], content['threshold']
    labels = _summary(content['findings'])
    views = [_drawn_view(model, seen, content, v, names[v]) for v in rows]
    found = seen.result.pred_instances_3d
    found = found[found.scores_3d >= threshold]
    visualization.draw_boxes_2d(
        views, out_dir / 'views.png', '\n'.join([token, *labels]),
        prediction=gravity_boxes(found.bboxes_3d).cpu().numpy(),
        scores=found.scores_3d.cpu().numpy())
    for v, view in zip(rows, views):
        heat = seen.heatmaps_2d
        visualization.draw_features(
            view['image'], [f[v].cpu().numpy() for f in seen.features],
            model.feat_strides, view['truth'],
            out_dir / f'features_{names[v]}.png', f'{token}, {names[v]}',
            channels=[c['strongest']
                      for c in content['views'][names[v]]['features']],
            heatmap=None if heat is None else heat[v].cpu().numpy(),
            heatmap_level=model.volume_level)
    numbered = dict(truth=seen.truth,
                    diameters=np.asarray(truth['gt_diameters']))
    if seen.heatmap is not None:
        visualization.draw_volume(
            seen.heatmap.cpu().numpy(),
            [a.numpy() for a in model.volume_head.grid_axes('cpu')],
            content['peaks'], out_dir / 'volume.png',
            '\n'.join([f'{token}: heatmap of the volume, maximum along each '
                       'axis', *labels]), **numbered)
    if model.lifting_head is None:
        return
    visualization.draw_queries(
        seen.boxes[..., :3].cpu().numpy(), seen.scores.cpu().numpy(), chosen,
        out_dir / 'queries.png', '\n'.join([token, *labels]), **numbered)
    if chosen and seen.attention:
        visualization.draw_attention(
            views, content['queries'], out_dir / 'attention.png',
            f'{token}: RoIs that queries attend to in the last layer')


def _summary(findings: Sequence[Dict]) -> List[str]:
    """A line for each verdict, with the findings that have it."""
    lines = {}
    for finding in findings:
        lines.setdefault(finding['verdict'], []).append(
            f'{finding["number"]} ({finding["diameter"]:.0f} mm)')
    return [f'{", ".join(these)}: {text}' for text, these in lines.items()]


def _drawn_view(model, seen: Trace, content: Dict, view: int,
                name: str) -> Dict:
    """What pictures need of one view."""
    truth, told = seen.result.eval_ann_info, content['views'][name]
    here = np.asarray(truth['gt_bboxes_view']) == view
    ignored = np.asarray(truth['ignored_bboxes_view']) == view
    drawn = dict(
        name=name, image=seen.images[view].cpu().numpy(),
        ct2img=np.asarray(seen.result.metainfo['ct2img'],
                          dtype=np.float64)[view],
        truth=np.asarray(truth['gt_bboxes'])[here],
        numbers=np.asarray(truth['gt_bboxes_instance'])[here],
        ignored=np.asarray(truth['ignored_bboxes'])[ignored])
    if 'proposals' in told:
        found = seen.result.proposals
        best = _best_of_views(found[found.view_ids == view], view + 1, TOP)
        drawn['proposals'] = best.bboxes.cpu().numpy()
        drawn['recall'] = told['proposals']['recall']
    if 'detections' in told:
        drawn['detections'] = np.array(
            [d['bbox'] for d in told['detections']]).reshape(-1, 4)
        drawn['scores'] = [d['score'] for d in told['detections']]
    if seen.heatmaps_2d is not None:
        heat = seen.heatmaps_2d[view]
        cells = _is_peak(heat).nonzero()
        order = heat[tuple(cells.T)].argsort(descending=True, stable=True)
        stride = model.feat_strides[model.volume_level]
        drawn['peaks'] = (cells[order[:TOP]].flip(1).cpu().numpy() +
                          .5) * stride
    return drawn

