"""What a model finds under other conditions, in one table and one figure.

    python benchmarks/robustness.py CONFIG CHECKPOINT --out-dir robustness \
        [--split test] [--only "6 views" "1 mm" ...] \
        [--other-set "chest-low=data/quick-v2-low" ...] \
        [--beside "another model=its folder" ...]

Views are left out and poses falsified at test time, each scan with a seed of
its own. Other acquisitions, chests and rigs are sets of their own, rendered
with ``data_converters benchmark``, or of real lesions, with ``volume``.
"""

import argparse
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet3d.registry import DATASETS, METRICS
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from terminaltables import GithubFlavoredMarkdownTable
from tqdm import tqdm

from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import (
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import evaluators_3d_of
from projects.core.evaluation.matching import FALSE_POSITIVES, SHOWN_IOUS
from projects.core.files import dump_json, load_json

# Panel of the figure, and per condition its name and what is done to a scan.
CONDITIONS = {
    'views': {
        f'{n} views': dict(type='XRayViewDropout', prob=1., min_views=n,
                           max_views=n) for n in (8, 6, 4, 3)
    },
    'pose, shift': {
        f'{t:g} mm': dict(type='XRayPoseError', translation=t)
        for t in (.5, 1., 2.)
    },
    'pose, turn': {
        f'{r:g}°': dict(type='XRayPoseError', rotation=r)
        for r in (.25, .5, 1.)
    },
}
PLAIN = 'as it is'
# Of the models in the figure.
MARKS = (('#4477aa', 'o'), ('#cc6677', 's'), ('#228833', '^'),
         ('#aa8800', 'D'))


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argument_parser('3D mAP against what can go wrong',
                             split='test')
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for robustness.json and robustness.png')
    names = [name for steps in CONDITIONS.values() for name in steps]
    parser.add_argument(
        '--only', nargs='+', default=names, choices=names, metavar='NAME',
        help='conditions beside those of --other-set; default: '
        f'{", ".join(names)}')
    parser.add_argument(
        '--other-set', action='append', default=[], metavar='NAME=FOLDER',
        help='another set, tested as it is')
    parser.add_argument(
        '--beside', action='append', default=[], metavar='NAME=FOLDER',
        help='an earlier --out-dir, of another model, to draw beside')
    args = parser.parse_args(argv)
    for option in ('other_set', 'beside'):
        for item in getattr(args, option):
            if '=' not in item:
                parser.error(f'--{option.replace("_", "-")}: expected '
                             f'NAME=FOLDER, found "{item}"')
    return args


@torch.no_grad()
def figures(model, cfg, seed: int, bar: tqdm) -> Dict:
    """The 3D metric's figures on a config's test set."""
    data = DATASETS.build(cfg.test_dataloader.dataset)
    metric, = map(METRICS.build, evaluators_3d_of(cfg))
    metric.dataset_meta = data.metainfo
    for index in range(len(data)):
        np.random.seed(seed + index)
        result = model.test_step(pseudo_collate([data[index]]))
        metric.process({}, [item.to_dict() for item in result])
        bar.update(1 / len(data))
    metric.compute_metrics(metric.results)
    metric.full_results.pop('scans')
    return metric.full_results


def with_step(cfg, step: dict):
    """A config whose test pipeline has one more step, before packing."""
    cfg = deepcopy(cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [*pipeline[:-1], step,
                                            pipeline[-1]]
    return cfg


def draw(models: Dict[str, Dict[str, Dict[str, Dict]]], path: Path) -> None:
    """3D mAP with its interval: a panel for each kind of fault, in it the
    models by name."""
    titles = list(dict.fromkeys(t for panels in models.values()
                                for t in panels))
    figure = Figure(figsize=(3.2 * len(titles), 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axis, title in zip(axes, titles):
        of_models = [panels.get(title, {}) for panels in models.values()]
        names = list(dict.fromkeys(n for results in of_models
                                   for n in results))
        for number, (results, (color, marker)) in enumerate(
                zip(of_models, cycle(MARKS))):
            value = np.array([r['mAP_3d'] for r in results.values()])
            bounds = np.array([[r['mAP_3d_low'], r['mAP_3d_high']]
                               for r in results.values()]).reshape(-1, 2).T
            places = np.array([names.index(n) for n in results]) + .15 * (
                number - (len(models) - 1) / 2)
            axis.errorbar(places, value, np.abs(bounds - value), fmt=marker,
                          color=color, capsize=3)
            if len(models) == 1:
                for x, y in zip(places, value):
                    axis.annotate(f'{y:.2f}', (x, y), (6, 0),
                                  textcoords='offset points', va='center')
        axis.set_xticks(range(len(names)), names, rotation=30, ha='right')
        axis.set(title=title, ylim=(0, 1), xlim=(-.5, len(names) - .2))
        axis.grid(axis='y', alpha=.3)
    axes[0].set_ylabel('3D mAP')
    if len(models) > 1:
        figure.legend([line[0] for line in axes[0].containers], list(models),
                      loc='outside lower center', ncols=len(models))
    figure.savefig(path, dpi=100)


def table(panels: Dict[str, Dict[str, Dict]]) -> str:
    """Markdown of all conditions."""
    first = next(iter(next(iter(panels.values())).values()))
    bins = list(first['by_size'])
    header = ['condition', '3D mAP',
              *(f'AP IoU {iou:g}' for iou in SHOWN_IOUS), 'AP radius',
              *(name.replace('_', ' ') for name in bins), 'CPM',
              'found at 1 false positive', 'centre error (mm)']
    rows: List[List[str]] = []
    for title, results in panels.items():
        for name, r in results.items():
            if name == PLAIN and rows:
                continue
            error = r['centre_error_mm']
            found = r['froc']['sensitivity'][FALSE_POSITIVES.index(1)]
            rows.append([
                name if name == PLAIN else f'{title}: {name}',
                f'{r["mAP_3d"]:.3f} [{r["mAP_3d_low"]:.3f}, '
                f'{r["mAP_3d_high"]:.3f}]',
                *(f'{r[f"AP_iou{iou:g}"]:.3f}' for iou in SHOWN_IOUS),
                f'{r["AP_3d_radius"]:.3f}',
                *(f'{r["by_size"][name]["mAP_3d"]:.3f}' for name in bins),
                f'{r["CPM"]:.3f}',
                f'{round(found * r["num_gt"])} of {r["num_gt"]}',
                '-' if error is None else f'{error:.1f}'
            ])
    return GithubFlavoredMarkdownTable([header, *rows]).table


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Test under every condition, draw, tabulate."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    beside = {name: load_json(Path(folder) / 'robustness.json')
              for name, folder in (i.split('=', 1) for i in args.beside)}
    cfg, model, _ = load_for_split(args)
    MMLogger.get_current_instance().setLevel('WARNING')
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    tests = {(title, name): with_step(cfg, step)
             for title, steps in CONDITIONS.items()
             for name, step in steps.items() if name in args.only}
    for item in args.other_set:
        name, folder = item.split('=', 1)
        tests['sets', name] = other = deepcopy(cfg)
        other.test_dataloader.dataset.data_root = folder
    with tqdm(total=len(tests) + 1, desc='robustness', unit='condition',
              dynamic_ncols=True, bar_format='{l_bar}{bar}| {n:.1f}/{total} '
              '[{elapsed}<{remaining}]') as bar:
        plain = figures(model, cfg, seed, bar)
        panels = {title: {PLAIN: plain} for title, _ in tests}
        for (title, name), changed in tests.items():
            panels[title][name] = figures(model, changed, seed, bar)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    dump_json(panels, args.out_dir / 'robustness.json')
    draw({Path(args.config).stem: panels, **beside},
         args.out_dir / 'robustness.png')
    print(table(panels))
    print(f'{args.out_dir}/robustness.json, robustness.png')


if __name__ == '__main__':
    main()
