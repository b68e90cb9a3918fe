"""Where nodules are lost: python tools/diagnose.py CONFIG CHECKPOINT"""

import argparse
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from terminaltables import AsciiTable
from tqdm import tqdm

from projects.mv2d_xray import geometry
from projects.mv2d_xray.infos import dump_json
from projects.mv2d_xray.metrics import (XRay3DMetric, match, scans_of,
                                        threshold_at)
from projects.mv2d_xray.runtime import (UserError, argument_parser,
                                        config_of, load_model, one_sentence,
                                        select_split)

HIT = 10.  # mm between centres
VISIBLE = 20  # stronger peaks in the same view, median over views


def parse_args() -> argparse.Namespace:
    """Arguments."""
    parser = argument_parser('Say at which stage each missed nodule is lost')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--split', default='val',
                        help='infos to look at (default: %(default)s)')
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for diagnose.json and diagnose.png')
    parser.add_argument(
        '--false-positives', type=float, default=1.,
        help='per scan, at the threshold that decides what is found '
        '(default: %(default)s)')
    return parser.parse_args()


def local_maxima(heatmap: torch.Tensor) -> torch.Tensor:
    """Values of the peaks of a map (2D or 3D), (N,)."""
    pool = F.max_pool2d if heatmap.dim() == 2 else F.max_pool3d
    return heatmap[heatmap == pool(heatmap[None, None], 3, 1, 1)[0, 0]]


def best_near(heatmap: torch.Tensor, axes: list, centre: torch.Tensor,
              reach: float) -> torch.Tensor:
    """Largest value of a map in cells within a distance of a point."""
    for dim, (axis, c) in enumerate(zip(axes, centre)):
        near = (axis - c).abs() <= reach
        near[(axis - c).abs().argmin()] = True
        heatmap = heatmap.index_select(dim, near.nonzero()[:, 0])
    return heatmap.max()


@torch.no_grad()
def look(model, sample: dict) -> Tuple[Dict, List[Dict]]:
    """Result of one scan, and what each stage says of its findings."""
    data = model.data_preprocessor(pseudo_collate([sample]), False)
    head, stride = model.volume_head, model.feat_strides[model.volume_level]
    seen = []
    hook = head.register_forward_hook(
        lambda _, inputs, outputs: seen.extend([*inputs[:2], outputs[0]]))
    result = model.predict(data['inputs'], data['data_samples'])[0]
    hook.remove()
    level, ct2img, volume = seen
    volume = volume.amax(0)
    peaks = local_maxima(volume)
    maps = (head.heatmap_2d(level).amax(1)
            if head.heatmap_2d is not None else level[:0, 0])
    maps = [(one, local_maxima(one)) for one in maps]
    axes_3d = head.grid_axes(level.device)
    axes_2d = [(torch.arange(n, device=level.device) + .5) * stride
               for n in level.shape[2:]]
    boxes = result.eval_ann_info['gt_bboxes_3d']
    centres = boxes.gravity_center
    uv, _ = geometry.project(centres.to(ct2img), ct2img)
    stages = []
    for row, centre in enumerate(centres.to(level.device)):
        reach = max(float(boxes.tensor[row, 3:6].max()) / 2, head.voxel_size)
        value = best_near(volume, axes_3d, centre, reach)
        stage = dict(peaks_3d=int((peaks > value).sum()))
        if maps:
            stage['peaks_2d'] = float(np.median([
                int((others > best_near(one, axes_2d, place.flip(0),
                                        stride)).sum())
                for (one, others), place in zip(maps, uv[:, row])
            ]))
        stages.append(stage)
    return result.to_dict(), stages


def verdict(finding: Dict, threshold: float) -> str:
    """The first stage that loses a finding."""
    if finding['score'] >= threshold:
        return 'found'
    if finding['score'] > 0:
        return 'found, with a score below the threshold'
    if finding.get('peaks_2d', 0) > VISIBLE:
        return 'lost in 2D: other places of single views look stronger'
    return 'lost in the volume: no peak near it'


def draw(findings: List[Dict], path: Path) -> None:
    """What is missed: by size, by place, by what single views show."""
    figure = Figure(figsize=(13, 4), layout='constrained')
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    hit = np.array([f['verdict'] == 'found' for f in findings], dtype=bool)
    diameter = np.array([f['diameter'] for f in findings])
    centre = np.array([f['bbox_3d'][:3] for f in findings]).reshape(-1, 3)
    bins = [3, 5, 8, 12, 20, 40]
    which = np.digitize(diameter, bins)
    places = [b for b in range(len(bins) + 1) if (which == b).any()]
    names = [f'< {bins[0]}'] + [f'{a} to {b}' for a, b in zip(
        bins, bins[1:])] + [f'> {bins[-1]}']
    left.bar([names[b] for b in places],
             [hit[which == b].mean() for b in places], color='#4477aa')
    for x, b in enumerate(places):
        left.annotate(str((which == b).sum()), (x, .02), ha='center',
                      color='w')
    left.set(xlabel='diameter (mm)', ylabel='found', ylim=(0, 1),
             title='By size (number in the bar)')
    for mask, marker, colour, label in ((hit, 'o', '#228833', 'found'),
                                        (~hit, 'x', '#ee6677', 'missed')):
        middle.scatter(centre[mask, 0], centre[mask, 2], 4 * diameter[mask],
                       marker=marker, color=colour, label=label)
        right.scatter(diameter[mask],
                      [1 + f.get('peaks_2d', 0) for f, m in zip(
                          findings, mask) if m], marker=marker, color=colour)
    middle.set(xlabel='x, to the right (mm)', ylabel='z, to the head (mm)',
               title='By place', aspect='equal')
    middle.legend()
    right.axhline(1 + VISIBLE, color='grey', linestyle=':')
    right.set(xscale='log', yscale='log', xlabel='diameter (mm)',
              ylabel='1 + stronger 2D peaks (median of views)',
              title='By what single views show')
    right.set_xticks(bins, [str(b) for b in bins])
    right.set_xticks([], minor=True)
    figure.savefig(path, dpi=100)


@one_sentence
def main() -> None:
    """Look at every scan of a split, tabulate, draw."""
    args = parse_args()
    cfg = config_of(args)
    dataset = cfg.test_dataloader.dataset
    select_split(dataset, args.split)
    model, _ = load_model(cfg, args.checkpoint)
    if getattr(model, 'volume_head', None) is None:
        raise UserError(f'{args.config}: model: expected a volume_head, '
                        'found none')
    data = DATASETS.build(dataset)
    metric, findings, wrong = XRay3DMetric(), [], []
    for sample in tqdm(data, desc='diagnose', unit='scan',
                       dynamic_ncols=True):
        result, stages = look(model, sample)
        metric.process({}, [result])
        labels = np.asarray(result['eval_ann_info']['gt_labels_3d'])
        for label, name in enumerate(data.metainfo['classes']):
            scan, = scans_of(metric.results[-1:], label)
            matched, counts = match(scan, HIT, True)
            wrong += scan.scores[(matched < 0) & counts].tolist()
            for row, at in enumerate(np.flatnonzero(labels == label)):
                mine = scan.scores[matched == row]
                findings.append(dict(
                    token=scan.token, class_name=name,
                    bbox_3d=scan.truth[row].tolist(),
                    diameter=float(scan.diameters[row]),
                    score=float(mine.max()) if len(mine) else 0.,
                    **stages[at]))
    threshold = threshold_at(sorted(wrong, reverse=True),
                             args.false_positives, len(data))
    for finding in findings:
        finding['verdict'] = verdict(finding, threshold)
    rows = []
    for name in sorted({f['verdict'] for f in findings}):
        these = [f for f in findings if f['verdict'] == name]
        rows.append([
            name, str(len(these)),
            f'{np.median([f["diameter"] for f in these]):.1f}',
            ', '.join(sorted({f['token'] for f in these})[:3])
        ])
    args.out_dir.mkdir(parents=True, exist_ok=True)
    dump_json(dict(threshold=threshold, findings=findings),
              args.out_dir / 'diagnose.json')
    draw(findings, args.out_dir / 'diagnose.png')
    print(AsciiTable([['verdict', 'nodules', 'median diameter (mm)', 'as in'],
                      *rows],
                     f'threshold {threshold:.2f}').table)
    print(f'{args.out_dir}/diagnose.json, diagnose.png')


if __name__ == '__main__':
    main()
