"""The report of a test: figures, curves, all scans, the worst first."""

import html
import json
import os
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import plotly.graph_objects as go

from projects.core.evaluation.matching import SHOWN_IOUS
from projects.core.evaluation.metric_images import RATES, expect_images
from projects.core.evaluation.ranking import curves_of
from projects.core.files import DataError, load_json
from projects.core.infos import load_tested
from projects.core.projections import decode_image
from projects.core.report.page import jpeg_of, scan_of, write_page
from projects.core.results import load_results, notes_of, results_of

__all__ = ['write_report']

MAX_PREDICTIONS = 30  # of a scan; what is below them is no more looked at


def write_report(results: Union[str, Path], out_file: Union[str, Path],
                 ann_file: Optional[str] = None,
                 work_dir: Optional[str] = None) -> int:
    """Write the report of a test.

    Args:
        results: ``--out`` of ``tools/test.py``.
        out_file: HTML to write.
        ann_file: Info file that was tested on. Defaults to what the results
            say.
        work_dir: Folder of the training, for its curves. Defaults to that of
            the checkpoint.

    Returns:
        int: Scans in the report.

    Raises:
        DataError: The results or infos are missing or do not fit together.
    """
    content = load_json(results)
    if isinstance(content, dict) and 'images' in content:
        return _write_images(content, results, out_file, work_dir)
    full = load_results(results)
    source = full['source']
    ann_file = ann_file or source.get('ann_file')
    if not ann_file:
        raise DataError(f'{results}: field "source.ann_file": expected the '
                        'tested infos, found none: give them')
    infos = load_tested(ann_file, full['scans'], results)
    samples = {s['token']: s for s in infos['data_list']}
    scans = []
    for scan in full['scans']:
        looked_at = [p for row, p in enumerate(scan['predictions'])
                     if row < MAX_PREDICTIONS or p['match'] >= 0]
        scans.append(scan_of(
            dict(scan, predictions=looked_at),
            *_views(samples[scan['token']], Path(ann_file).parent)))
    figures = dict(_curves(full), **_sizes(scans))
    _write(out_file, results, source, work_dir, scans, figures,
           _threshold(full), _table(full), 'scans')
    return len({scan['token'] for scan in full['scans']})


def _write(out_file, results, source: dict, work_dir: Optional[str],
           scans: List[dict], figures: Dict[str, go.Figure],
           threshold: float, table: str, kind: str) -> None:
    """The page of a test, with the curves of its training."""
    if work_dir is None and source.get('checkpoint'):
        work_dir = str(Path(source['checkpoint']).parent)
    figures = dict(figures, **_training(work_dir))
    data = dict(
        scans=scans, worst=_ranked(scans), figures={
            name: json.loads(figure.to_json())
            for name, figure in figures.items()
        },
        threshold=threshold, tested=True)
    count = len({scan['token'] for scan in scans})
    write_page(out_file, data, dict(
        TITLE=html.escape(f'{count} {kind}, '
                          f'{os.path.basename(str(results))}'),
        SOURCE=html.escape(', '.join(
            f'{k}: {"not known" if v is None else v}'
            for k, v in source.items())),
        TESTED='', TABLE=table, FIGURES=''.join(
            f'<figure><div class="plot" id="figure-{name}" role="img" '
            f'aria-label="{html.escape(figure.layout.title.text)}">'
            '</div></figure>' for name, figure in figures.items())))


# --------------------------------------------------------------------- images
def _write_images(full: dict, results, out_file, work_dir: Optional[str]
                  ) -> int:
    """The page of a test of boxes in single images: an exam is shown as a
    scan is, an image as a view, without a scene."""
    expect_images(full, results)
    exams: Dict[str, List[dict]] = {}
    for image in full['images']:
        exams.setdefault(image['patient'], []).append(image)
    scans = [_exam(token, images) for token, images in exams.items()]
    curves, thresholds = [], []
    for name, part in full['by_class'].items():
        froc = part['froc']
        rates = froc['false_positives_per_image']
        curves.append(go.Scatter(x=rates, y=froc['recall'], name=name,
                                 mode='lines', line=dict(shape='hv')))
        thresholds += [score for rate, score in zip(rates, froc['threshold'])
                       if rate <= 1]
    curves.append(go.Scatter(
        x=list(RATES), y=[full[f'R@{rate:g}'] for rate in RATES],
        name='R@FPI', mode='markers', marker=dict(symbol='diamond', size=9)))
    figure = _figure('FROC', 'false positives per image', 'recall', curves)
    figure.update_xaxes(range=[0, 5])
    figure.update_yaxes(range=[0, 1.02])
    _write(out_file, results, full.get('source', {}), work_dir, scans,
           dict(froc=figure), min(thresholds, default=.3),
           _images_table(full), 'exams')
    return len(scans)


def _exam(token: str, images: List[dict]) -> dict:
    """What the page shows of one exam: a box is in one of its views."""
    views: List[dict] = []
    truth: List[dict] = []
    found: List[dict] = []
    rects: Dict[str, list] = dict(truth=[], ignored=[], found=[])
    for number, image in enumerate(images):
        first = len(truth)
        truth += [dict(diameter=None) for _ in image['ground_truth']]
        kept = [p for row, p in enumerate(image['predictions'])
                if row < MAX_PREDICTIONS or p['match'] >= 0]
        found += [dict(
            score=round(p['score'], 4), counts=p['counts'], error=None,
            match=p['match'] + first if p['match'] >= 0 else -1,
            class_name=p['class_name']) for p in kept]
        for kind, boxes in (
                ('truth', [t['bbox'] for t in image['ground_truth']]),
                ('ignored', image['ignored']),
                ('found', [p['bbox'] for p in kept])):
            rects[kind] += [(number, np.round(box, 1).tolist())
                            for box in boxes]
        pixels = _read(Path(image['img_path']))
        views.append(dict(
            name=f'{image["laterality"]} {image["view"]}', source=None,
            width=pixels.shape[1], height=pixels.shape[0],
            image=jpeg_of(pixels)))
    for number, view in enumerate(views):
        view['rects'] = {
            kind: [box if at == number else None for at, box in boxes]
            for kind, boxes in rects.items()}
    return dict(
        token=token, class_name='', views=views, kind='images', half=None,
        corners={kind: [None] * len(boxes) for kind, boxes in rects.items()},
        flat=True, truth=truth, found=found)


def _images_table(full: dict) -> str:
    """Rows of the metrics table."""
    def cell(key: str) -> str:
        text = f'{full[key]:.3f}'
        if f'{key}_low' in full:
            text += (f'<br><small>{full[f"{key}_low"]:.3f} to '
                     f'{full[f"{key}_high"]:.3f}</small>')
        return f'<td>{text}</td>'

    head = ''.join(f'<th scope="col">R@{rate:g}</th>' for rate in RATES)
    rules = {f'IoU of {full["iou_thr"]:g}': '', 'centre inside': '_centre'}
    return f'<tr><td>a hit is</td>{head}</tr>' + ''.join(
        f'<tr><th scope="row">{name}</th>'
        + ''.join(cell(f'R@{rate:g}{suffix}') for rate in RATES) + '</tr>'
        for name, suffix in rules.items())


# ---------------------------------------------------------------------- scans
def _views(sample: dict, root: Path
           ) -> Tuple[List[dict], Optional[np.ndarray]]:
    """Views of a set's sample, and half of its volume's edges (mm)."""
    views = [
        dict(name=name, width=view['width'], height=view['height'],
             ct2img=view['lidar2img'],
             image=partial(_read, root / view['img_path']))
        for name, view in sample['images'].items()
    ]
    volume = sample.get('volume')
    return views, (np.array(volume['shape']) * volume['spacing'] / 2
                   if volume else np.full(3, 200.))


def _read(path: Path) -> np.ndarray:
    """An image of a set, (H, W) or (H, W, C)."""
    image = decode_image(path)
    if image is None:
        raise DataError(f'{path}: image cannot be read')
    return image


def _ranked(scans: List[dict]) -> List[int]:
    """Scans, worst first: by the score that separates its findings from its
    false positives, which is negative where they do not separate."""

    def margin(scan: dict) -> float:
        hits = [f['score'] for f in scan['found'] if f['match'] >= 0]
        wrong = [f['score'] for f in scan['found']
                 if f['match'] < 0 and f['counts']]
        least = (min(hits) if len(hits) == len(scan['truth']) and hits
                 else 0. if scan['truth'] else 1.)
        return least - max(wrong, default=0.)

    return sorted(range(len(scans)), key=lambda i: margin(scans[i]))


def _threshold(full: dict) -> float:
    """Score of one false positive per scan, where the slider begins."""
    froc = full['froc']
    rates = froc['false_positives_per_scan']
    if 1. in rates and 'threshold' in froc:
        return round(froc['threshold'][rates.index(1.)], 3)
    return .3


# -------------------------------------------------------------------- figures
def _table(full: dict) -> str:
    """Rows of the metrics table."""
    distances = [k for k in full if k.startswith('AP_') and k.endswith('mm')]
    # 3D mAP forgives up to 20 mm: what does not stands beside it.
    strict = {f'AP_iou{iou:g}': f'AP at 3D IoU {iou:g}' for iou in SHOWN_IOUS}
    strict['AP_3d_radius'] = 'AP within the radius'
    columns = ['num_gt', 'mAP_3d', *strict, *distances, 'CPM',
               'centre_error_mm', 'size_error_mm']
    heads = ['findings', '3D mAP', *strict.values(),
             *(f'AP {k[3:-2]} mm' for k in distances), 'CPM',
             'centre error (mm)', 'size error (mm)']
    rows = [('all', full), *full['by_size'].items()]

    def cell(part: dict, key: str) -> str:
        value = part.get(key)
        if value is None or (key != 'num_gt' and not part.get('num_gt')):
            return '<td>-</td>'
        text = f'{value}' if key == 'num_gt' else f'{value:.3f}'
        if f'{key}_low' in part:
            text += (f'<br><small>{part[f"{key}_low"]:.3f} to '
                     f'{part[f"{key}_high"]:.3f}</small>')
        return f'<td>{text}</td>'

    body = ''.join(
        f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>'
        + ''.join(cell(part, key) for key in columns) + '</tr>'
        for name, part in rows)
    head = ''.join(f'<th scope="col">{text}</th>' for text in heads)
    body += ''.join(f'<tr><td colspan="{len(heads) + 1}">{html.escape(line)}'
                    '</td></tr>' for line in notes_of(full))
    return f'<tr><td></td>{head}</tr>{body}'


def _figure(title: str, x: str, y: str, traces: Sequence[go.Scatter]
            ) -> go.Figure:
    return go.Figure(list(traces), go.Layout(
        title=title, template='plotly_white', height=340,
        margin=dict(l=55, r=15, t=45, b=45), xaxis=dict(title=x),
        yaxis=dict(title=y), legend=dict(font=dict(size=10))))


def _curves(full: dict) -> Dict[str, go.Figure]:
    """FROC and precision against recall; the mean over classes has none."""
    classes = sorted({s['class_name'] for s in full['scans']})
    froc, precision = [], []
    dashes = ('solid', 'dash', 'dot', 'dashdot')
    for name in classes:
        suffix = f' {name}' if len(classes) > 1 else ''
        curves = curves_of(results_of(full, name),
                           full['distances_mm'])
        rate, found = curves.pop('froc')
        froc.append(go.Scatter(x=rate, y=found, mode='lines',
                               line=dict(shape='hv'), name=f'FROC{suffix}'))
        for (distance, (recall, values)), dash in zip(
                curves.items(), dashes):
            precision.append(go.Scatter(
                x=recall, y=values, mode='lines', line=dict(dash=dash),
                name=f'{distance:g} mm{suffix}'))
    told = full['froc']
    froc.append(go.Scatter(
        x=told['false_positives_per_scan'], y=told['sensitivity'],
        mode='markers', marker=dict(symbol='diamond', size=9),
        name='rates of the CPM'))
    figure = _figure('FROC', 'false positives per scan', 'sensitivity', froc)
    figure.update_xaxes(type='log', range=[-1.2, 1.1])
    figure.update_yaxes(range=[0, 1.02])
    second = _figure('Precision and recall', 'recall', 'precision', precision)
    second.update_layout(xaxis_range=[0, 1.02], yaxis_range=[0, 1.02])
    return dict(froc=figure, precision=second)


def _sizes(scans: List[dict]) -> Dict[str, go.Figure]:
    """Errors of the centre by diameter; missed findings above them."""
    found: List[tuple] = []  # diameter (mm), error (mm), scan
    missed: List[tuple] = []
    for scan in scans:
        hits = {f['match']: f for f in scan['found'] if f['match'] >= 0}
        for row, finding in enumerate(scan['truth']):
            (found if row in hits else missed).append(
                (finding['diameter'], hits[row]['error'] if row in hits
                 else 0., scan['token']))
    top = max([error for _, error, _ in found], default=1.) * 1.1
    figure = _figure('Errors by size', 'diameter (mm)', 'centre error (mm)', [
        go.Scatter(x=[d for d, *_ in found], y=[e for _, e, _ in found],
                   text=[t for *_, t in found], mode='markers',
                   name='found', marker=dict(color='#1a7f37')),
        go.Scatter(x=[d for d, *_ in missed], y=[top] * len(missed),
                   text=[t for *_, t in missed], mode='markers',
                   name='missed at any score',
                   marker=dict(color='#c62828', symbol='x'))
    ])
    return dict(sizes=figure)


def _training(work_dir: Optional[str]) -> Dict[str, go.Figure]:
    """Losses and learning rate of a training's log, where there is one."""
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json')
                  ) if work_dir else []
    rows = {}
    for path in logs:
        for line in path.read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            if 'loss' in row:
                rows[row['step']] = row
    if not rows:
        return {}
    steps = sorted(rows)
    names = sorted({k for row in rows.values() for k in row
                    if 'loss' in k or k == 'lr'})
    figure = _figure('Training', 'iteration', 'loss, learning rate', [
        go.Scatter(x=steps, y=[rows[s].get(name) for s in steps], name=name,
                   mode='lines', visible=True if name in ('loss', 'lr')
                   else 'legendonly') for name in names])
    figure.update_yaxes(type='log')
    return dict(training=figure)
