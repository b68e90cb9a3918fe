"""One scan, stage by stage: numbers and pictures."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core.boxes import gravity_boxes
from projects.core.evaluation.metric_2d import covered
from projects.core.files import dump_json
from projects.mv2d_xray.diagnosis import pictures
from projects.mv2d_xray.diagnosis.trace import Trace, is_peak, rounded, trace
from projects.mv2d_xray.lifting.fusion import ROI, SOURCES, VOLUME

__all__ = ['report_scan']

IOUS, COUNTS = (.5, .3), (10, 50)  # of the proposals' recall
TOP = 10  # channels, proposals and peaks that are drawn
SHOWN_VIEWS = 3  # of a finding
STRONGEST = 3  # queries that are described beside those near findings


# ------------------------------------------------------------------- one scan
def report_scan(model, sample: dict, told: Dict, out_dir: Path,
                views: Optional[Sequence[str]] = None,
                score_thr_2d: float = .3) -> Dict:
    """Describe and draw what every stage makes of one scan.

    Writes ``scan.json`` and pictures: ``views.png`` (2D boxes),
    ``finding_<number>.png`` (all stages round it), ``features_<view>.png``,
    ``volume.png``, ``queries.png`` and ``attention.png``, as far as the model
    has these stages.

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
        peaks=_peaks(seen),
        queries=[_query(seen, q, names) for q in chosen])
    dump_json(content, Path(out_dir) / 'scan.json')
    _draw_scan(model, seen, content, rows, names, chosen, Path(out_dir))
    return content


def _view_names(meta: dict, count: int) -> List[str]:
    return list(meta.get('view_names') or map(str, range(count)))


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
            dict(bbox=rounded(box.cpu()), score=float(score), label=int(at))
            for box, score, at in zip(found.bboxes, found.scores,
                                      found.labels)
        ]
    return told


def _channels(level: Tensor, stride: int) -> Dict:
    """The channels (C, h, w) that reach the highest values, best first."""
    value, index = level.flatten(1).amax(1).sort(descending=True, stable=True)
    return dict(stride=stride, shape=list(level.shape),
                strongest=index[:TOP].tolist(),
                maxima=rounded(value[:TOP].cpu(), 4))


def _peaks(seen: Trace) -> List[Dict]:
    """Peaks of the volume that become queries, best first."""
    mine = (seen.sources == VOLUME).cpu().numpy()
    scores = seen.scores[0].cpu().numpy()
    told = []
    for row in sorted(np.flatnonzero(mine), key=lambda r: -scores[r]):
        away = seen.distances[0, row]
        told.append(dict(
            centre=rounded(seen.boxes[0, row, :3].cpu()),
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
                roi=roi if roi < shared else None, bbox=rounded(box),
                weight=float(layer.weights[row, 1 + at])))
        listed.sort(key=lambda item: -item['weight'])
        layers.append(dict(rois=listed, nothing=float(layer.weights[row, 0])))
    return dict(
        query=row, source=SOURCES[int(seen.sources[row])],
        finding=int(away[-1].argmin()) if away.size else None,
        distances=rounded(away.min(1)) if away.size else None,
        centres=rounded(seen.boxes[:, row, :3].cpu()),
        scores=rounded(seen.scores[:, row].cpu(), 4), attention=layers)


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
    pictures.draw_boxes_2d(
        views, out_dir / 'views.png', '\n'.join([token, *labels]),
        prediction=gravity_boxes(found.bboxes_3d).cpu().numpy(),
        scores=found.scores_3d.cpu().numpy())
    for v, view in zip(rows, views):
        heat = seen.heatmaps_2d
        pictures.draw_features(
            view['image'], [f[v].cpu().numpy() for f in seen.features],
            model.feat_strides, view['truth'],
            out_dir / f'features_{names[v]}.png', f'{token}, {names[v]}',
            channels=[c['strongest']
                      for c in content['views'][names[v]]['features']],
            heatmap=None if heat is None else heat[v].cpu().numpy(),
            heatmap_level=model.volume_level)
    _draw_findings(model, seen, content, rows, views, out_dir)
    numbered = dict(truth=seen.truth,
                    diameters=np.asarray(truth['gt_diameters']))
    if seen.heatmap is not None:
        pictures.draw_volume(
            seen.heatmap.cpu().numpy(),
            [a.numpy() for a in model.volume_head.grid_axes('cpu')],
            content['peaks'], out_dir / 'volume.png',
            '\n'.join([f'{token}: heatmap of the volume, maximum along each '
                       'axis', *labels]), **numbered)
    if model.lifting_head is None:
        return
    pictures.draw_queries(
        seen.boxes[..., :3].cpu().numpy(), seen.scores.cpu().numpy(), chosen,
        out_dir / 'queries.png', '\n'.join([token, *labels]), **numbered)
    if chosen and seen.attention:
        pictures.draw_attention(
            views, content['queries'], out_dir / 'attention.png',
            f'{token}: RoIs that queries attend to in the last layer')


def _draw_findings(model, seen: Trace, content: Dict, rows: Sequence[int],
                   views: Sequence[Dict], out_dir: Path) -> None:
    """A picture of each finding, from the first views that show it."""
    preprocessor = model.data_preprocessor
    device = preprocessor.band_mean.device
    bands = preprocessor.bands(seen.images[:, None].to(device).float())[:, 1:]
    volume = {} if seen.heatmap is None else dict(
        heatmap=seen.heatmap.cpu().numpy(),
        axes_mm=[a.numpy() for a in model.volume_head.grid_axes('cpu')])
    heat = seen.heatmaps_2d
    for finding in content['findings']:
        number = finding['number']
        shown = [
            dict(name=view['name'], image=view['image'],
                 bands=bands[v].cpu().numpy(),
                 rect=view['truth'][view['numbers'] == number][0],
                 heat=None if heat is None else heat[v].cpu().numpy())
            for v, view in zip(rows, views) if number in view['numbers']]
        if shown:
            pictures.draw_finding(
                shown[:SHOWN_VIEWS], preprocessor.band_sigmas,
                seen.truth[number], out_dir / f'finding_{number}.png',
                f'{content["token"]}, finding {number}, '
                f'{finding["diameter"]:.0f} mm: {finding["verdict"]}',
                **volume)


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
        cells = is_peak(heat).nonzero()
        order = heat[tuple(cells.T)].argsort(descending=True, stable=True)
        stride = model.feat_strides[model.volume_level]
        drawn['peaks'] = (cells[order[:TOP]].flip(1).cpu().numpy() +
                          .5) * stride
    return drawn
