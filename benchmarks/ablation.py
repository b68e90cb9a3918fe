"""Train variants and baselines for as long, test, tabulate.

    python benchmarks/ablation.py [VARIANT ...] [--iters 1000 | --minutes 30]
    python benchmarks/ablation.py --family slices
    python benchmarks/ablation.py --family breast --split test

Each variant is a config with some options changed, trained by
``tools/train.py`` and tested by ``tools/test.py`` on the validation split. As
long means as many iterations, or as many minutes: then each variant first
trains for 30 iterations that tell how many fit in. A schedule of epochs has
its own length, and where it keeps the best checkpoint, that is tested. A
variant that was finished is not run again; the table holds all that are.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

from terminaltables import GithubFlavoredMarkdownTable

from projects.core.evaluation.matching import SHOWN_IOUS
from projects.core.evaluation.metric_images import RATES, recall_difference
from projects.core.evaluation.ranking import difference
from projects.core.files import load_json
from projects.core.results import load_results

ROOT = Path(__file__).resolve().parent.parent
OURS = 'configs/mv2d_xray/mv2d-xray_small_roi-volume-decoder_700i_quick-v2.py'
# From trained sources, which stay as they are.
DECODER = 'configs/mv2d_xray/mv2d-xray_small_decoder_2000i_quick-v2.py'
VOLUME = 'configs/mv2d_xray/mv2d-xray_small_volume_5000i_quick-v2.py'
_VIEWS = 'train_dataloader.dataset.pipeline.1'
_INSERT = 'train_dataloader.dataset.pipeline.2'
PACE = 30  # iterations that tell a variant's pace
# Config and what is changed in it.
VARIANTS = {
    # Where queries come from.
    'score grid': ('configs/mv2d_xray/score-grid_small_700i_quick-v2.py', []),
    'Faster R-CNN, triangulated': (
        'configs/mv2d_xray/triangulation_faster-rcnn_5400i_quick-v2.py', []),
    '2D boxes, triangulated': (
        'configs/mv2d_xray/triangulation_centernet_5400i_quick-v2.py', []),
    'volume': (VOLUME, []),
    'roi + volume, no decoder': (OURS, ['model.lifting_head.decoder=None']),
    # What the decoder makes of them.
    # The papers' queries, whose depth is learned, from true boxes, too.
    'roi, depth regressed': (
        OURS, ['model.volume_head=None', 'model.lifting_head.roi_queries.type='
               'XRayRoIQueryGenerator', 'model.train_rois.add_gt=True']),
    'roi': (OURS, ['model.volume_head=None']),
    'roi + volume': (OURS, []),
    'decoder last': (DECODER, []),
    # What the same minutes give without it.
    'sources longer instead': (
        DECODER, ['model.lifting_head.decoder=None',
                  'model.freeze_sources=False']),
    'decoder last, all relevant': (
        DECODER, ['model.lifting_head.relevance.mode=all']),
    'decoder last, reprojected': (
        DECODER, ['model.lifting_head.point_rois.reproject=True']),
    'decoder last, denoising': (
        DECODER, ['model.lifting_head.denoising.groups=3',
                  'model.lifting_head.denoising.centre_noise=8.',
                  'model.lifting_head.denoising.size_noise=.3']),
    # The volume: what it is trained with, what it sees, how it is made.
    'volume, nothing inserted': (
        VOLUME, [f'{_INSERT}.max_nodules=0']),
    'volume, all views always': (
        VOLUME, [f'{_VIEWS}.prob=0.']),
    'volume, no 2D heatmap': (
        VOLUME, ['model.volume_head.loss_heatmap_2d=None']),
    'volume, no fine band': (
        VOLUME, ['model.data_preprocessor.band_sigmas=[4.,12.]',
                 'model.data_preprocessor.mean=[3.1,0.,0.]',
                 'model.data_preprocessor.std=[1.6,.13,.34]',
                 'model.detector_2d.backbone.in_channels=3']),
    'volume, mean only': (
        VOLUME, ['model.volume_head.with_deviation=False']),
    'volume, grid of 8 mm': (
        VOLUME, ['model.volume_head.voxel_size=8.']),
    'volume, grid of 4 mm': (
        VOLUME, ['model.volume_head.voxel_size=4.']),
    'volume, stride 4': (
        VOLUME, ['model.feat_strides=[4]', 'model.detector_2d.neck=None',
                 'model.detector_2d.backbone.num_finer=0',
                 'model.volume_head.in_channels=32']),
    'volume, narrower view': (
        VOLUME, ['model.detector_2d.backbone.dilations=[1,2,4]']),
    'volume, less context': (
        VOLUME, ['model.volume_head.context_channels=48']),
    'volume, 48 channels': (
        VOLUME, ['model.detector_2d.backbone.channels=48',
                 'model.detector_2d.neck.in_channels=[48,48]']),
    # What a user could pick instead.
    'ImVoxelNet': ('configs/mv2d_xray/imvoxelnet_small_700i_quick-v2.py', []),
    'DETR3D': ('configs/mv2d_xray/detr3d_small_700i_quick-v2.py', []),
    'PETR': ('configs/mv2d_xray/petr_small_700i_quick-v2.py', []),
}

SLICES = 'configs/ct_slices/{}_{}_neighbours_30e_mid-v2-slices.py'
SMALL = ('configs/ct_slices/'
         'faster-rcnn_small_neighbours_6000i_quick-v2-slices.py')
_LARGE = 'train_dataloader.dataset.min_diameter=15.'  # mm
MASKS = 'configs/ag_rcnn/mask-rcnn_small_1500i_breast.py'
GRAPH = 'configs/ag_rcnn/ag-rcnn_small_500i_breast.py'


def _nodes(in_cc: int, in_mlo: int) -> List[str]:
    """So many nodes, wherever they are named."""
    count = f'[{in_cc},{in_mlo}]'
    return [f'model.graph.relation.num_nodes={count}', *(
        f'{split}_dataloader.dataset.pipeline.0.transforms.1.num_nodes={count}'
        for split in ('train', 'val', 'test'))]


def resized(name: str, size: int) -> List[str]:
    """A variant of the breasts with images of so many pixels an edge."""
    step = 2 if variant(name)[0] == GRAPH else 1  # landmarks come before
    return [f'{split}_dataloader.dataset.pipeline.0.transforms.{step}.size='
            f'{size}' for split in ('train', 'val', 'test')]


# By family; the first variant of each is what the others are compared with.
FAMILIES = {
    'views': VARIANTS,
    # Document 002 trains on the large nodules of one set, then on another's,
    # or on that alone. Here the large ones and all are of one set. Two
    # trainings have two warm-ups and cosines: what that does alone is told by
    # all twice.
    'slices': {
        'Faster R-CNN, small': (SMALL, []),
        'large findings alone': (SMALL, [_LARGE]),
        'large findings first, then all': (SMALL, []),
        'all, first half': (SMALL, []),
        'all, then all': (SMALL, []),
    },
    # Document 004: both begin with the same Mask R-CNN, the most important
    # first.
    'breast': {
        'Mask R-CNN, first half': (MASKS, []),
        'Mask R-CNN': (MASKS, []),
        'both graphs': (GRAPH, []),
        'BGN': (GRAPH, ['model.graph.inception=None']),
        'IGN': (GRAPH, ['model.graph.relation=None']),
        'oracle': (GRAPH, ['model.graph.oracle=True']),
        'original gate': (GRAPH, ['model.graph.gate=original']),
        'k = 1': (GRAPH, ['model.graph.k=1', 'model.graph.relation.k=1']),
        'k = 5': (GRAPH, ['model.graph.k=5', 'model.graph.relation.k=5']),
        '13 and 17 nodes': (GRAPH, _nodes(13, 17)),
        '100 and 105 nodes': (GRAPH, _nodes(100, 105)),
        'DETR': ('configs/ag_rcnn/detr_small_1500i_breast.py', []),
        'YOLOX': ('configs/ag_rcnn/yolox_small_1500i_breast.py', []),
    },
    # Its six models, which need a GPU.
    'slices-full': {
        f'{kind}, {backbone}': (SLICES.format(a, b), [])
        for a, kind in (('faster-rcnn', 'Faster R-CNN'),
                        ('retinanet', 'RetinaNet'))
        for b, backbone in (('r50', 'ResNet-50'),
                            ('mobilenet-v2', 'MobileNetV2'),
                            ('efficientnet-v2-s', 'EfficientNetV2-S'))},
}
# What a variant starts from; both together take as long as any other.
STARTS = {'large findings first, then all': 'large findings alone',
          'all, then all': 'all, first half', **{
    name: 'Mask R-CNN, first half'
    for name, (config, _) in FAMILIES['breast'].items()
    if config in (MASKS, GRAPH) and name != 'Mask R-CNN, first half'}}


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return name.replace(', ', '_').replace(' + ', '-').replace(' ', '-')


def run(*command: str) -> None:
    """One command of the project; its failure ends the benchmark."""
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f'ablation: {" ".join(command)} failed')


def variant(name: str) -> tuple:
    """Config and what is changed in it."""
    return next(family[name] for family in FAMILIES.values()
                if name in family)


def train(name: str, iters: int, folder: Path, options: List[str],
          size: Optional[int] = None) -> None:
    """Train a variant, or go on with it. Schedules of epochs validate, others
    are tested at their end all the same. Options are those of both tools."""
    config, changes = variant(name)
    changes = [*changes, *(resized(name, size) if size else [])]
    if not config.split('_')[-2].endswith('e'):  # epochs
        half = name in (*STARTS, *STARTS.values())
        changes = [*changes, f'train_cfg.max_iters={iters // (1 + half)}',
                   f'train_cfg.val_begin={iters + 1}']
    if name in STARTS:
        start = folder.parent / slug(STARTS[name]) / 'last_checkpoint'
        if not start.exists():
            sys.exit(f'ablation: {name}: expected "{STARTS[name]}" to be '
                     'trained before, found no checkpoint of it')
        changes = [*changes, f'load_from={start.read_text().strip()}']
    run('tools/train.py', config, '--work-dir', str(folder), '--resume',
        *options, '--cfg-options', *changes,
        # Often enough for the shortest.
        'default_hooks.logger.interval=5')


def test(name: str, folder: Path, options: List[str], split: str,
         size: Optional[int] = None) -> None:
    """Leave the split's results in a variant's folder."""
    config, changes = variant(name)
    changes = [*changes, *(resized(name, size) if size else [])]
    run('tools/test.py', config, str(checkpoint_of(folder)), '--work-dir',
        str(folder),
        *options, '--split', split,
        '--out', str(results_of(folder, split)),
        *(['--cfg-options', *changes] if changes else []))


def checkpoint_of(folder: Path) -> Path:
    """The best by the validations, where the schedule keeps it, or the
    last."""
    best = sorted(folder.glob('best_*.pth'), key=lambda p: p.stat().st_mtime)
    return best[-1] if best else Path(
        (folder / 'last_checkpoint').read_text().strip())


def iterations(name: str, minutes: float, folder: Path,
               options: List[str]) -> int:
    """How many of a variant's iterations fit into so many minutes."""
    if not (folder / 'last_checkpoint').exists():
        train(name, PACE, folder, options)
    return max(round(60 * minutes / seconds_per_iteration(folder)), PACE + 1)


def results_of(folder: Path, split: str) -> Path:
    """Where a variant's results lie."""
    return folder / f'results_{split}.json'


def seconds_per_iteration(folder: Path) -> float:
    """Median of the training's own log; nan of one that was trained
    elsewhere, as by ``make breast``."""
    times = [
        json.loads(line)['time']
        for log in folder.glob('*/vis_data/scalars.json')
        for line in log.read_text().splitlines() if '"lr"' in line
    ]
    return statistics.median(times) if times else math.nan


def table(out_dir: Path, split: str, against: str,
          family: str = 'views') -> str:
    """Markdown of all variants of a family with results on a split, and what
    they have more than one of them."""
    if family == 'breast':
        return table_of_images(out_dir, split, against)
    results = {
        name: load_results(results_of(out_dir / slug(name), split))
        for name in FAMILIES[family]
        if results_of(out_dir / slug(name), split).exists()
    }
    rows, sizes = [], []
    for name, r in results.items():
        path = out_dir / slug(name)
        sizes = list(r['by_size'])
        more = '-'
        if against in results and name != against:
            more = '{:+.3f} [{:+.3f}, {:+.3f}]'.format(
                *difference(r, results[against]))
        rows.append([
            name, f'{r["mAP_3d"]:.3f} [{r["mAP_3d_low"]:.3f}, '
            f'{r["mAP_3d_high"]:.3f}]', more,
            *(f'{r[f"AP_iou{iou:g}"]:.3f}' for iou in SHOWN_IOUS),
            f'{r["AP_5mm"]:.3f}',
            *(f'{r["by_size"][s]["mAP_3d"]:.3f}' for s in sizes),
            f'{r["CPM"]:.3f}',
            '-' if r['centre_error_mm'] is None else
            f'{r["centre_error_mm"]:.1f}',
            f'{seconds_per_iteration(path):.2f}'
        ])
    header = ['variant', '3D mAP', f'more than {against}',
              *(f'AP IoU {iou:g}' for iou in SHOWN_IOUS), 'AP 5 mm',
              *(s.replace('_', ' ') for s in sizes), 'CPM',
              'centre error (mm)', 's / iteration']
    return GithubFlavoredMarkdownTable([header, *rows]).table


def table_of_images(out_dir: Path, split: str, against: str) -> str:
    """As :func:`table`, of boxes in single images: document 004's tables."""
    results = {
        name: load_json(results_of(out_dir / slug(name), split))
        for name in FAMILIES['breast']
        if results_of(out_dir / slug(name), split).exists()
    }
    rows = []
    for name, r in results.items():
        more = '-'
        if against in results and name != against:
            more = '{:+.3f} [{:+.3f}, {:+.3f}]'.format(
                *recall_difference(r, results[against]))
        cells = ['{:.3f} [{:.3f}, {:.3f}]'.format(*(
            r[f'R@{rate:g}{end}'] for end in ('', '_low', '_high')))
            for rate in RATES]
        rows.append([name, *cells, more, f'{r["R@0.5_centre"]:.3f}',
                     f'{seconds_per_iteration(out_dir / slug(name)):.2f}'])
    header = ['variant', *(f'R@{rate:g}' for rate in RATES),
              f'R@0.5 more than {against}', 'R@0.5, centre inside',
              's / iteration']
    return GithubFlavoredMarkdownTable([header, *rows]).table


def main(argv: Optional[List[str]] = None) -> None:
    """Run what was asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('variants', nargs='*', metavar='VARIANT',
                        help='default: all of the family; '
                        + '; '.join(VARIANTS))
    parser.add_argument('--family', default='views', choices=FAMILIES,
                        help='X-ray views, breasts, or CT slices, small or '
                        'as large as the document\'s (default: %(default)s)')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--iters', type=int, default=1000)
    length.add_argument('--minutes', type=float)
    parser.add_argument('--split', default='val',
                        choices=('val', 'test', 'train'),
                        help='what is tested on: test is for final tables, '
                        'train for another set, made with another seed '
                        '(--data-root), whose largest part it is')
    parser.add_argument('--against', metavar='VARIANT',
                        help='what the others are compared with, scan by '
                        'scan (default: volume or Mask R-CNN; of slices the '
                        'first)')
    parser.add_argument('--data-root', default='')
    parser.add_argument('--amp', action='store_true',
                        help='half precision, as of tools/train.py')
    parser.add_argument('--image-size', type=int, help='pixels an edge of '
                        'breasts, in place of the configs\'')
    parser.add_argument('--out-dir', default='work_dirs/ablation', type=Path)
    args = parser.parse_args(argv)
    known = FAMILIES[args.family]
    names = args.variants or list(known)
    against = args.against or dict(views='volume', breast='Mask R-CNN').get(
        args.family, next(iter(known)))
    for name in (*names, against):
        if name not in known:
            parser.error(f'variant: expected one of {", ".join(known)}; '
                         f'found {name}')
    if args.image_size and args.family != 'breast':
        parser.error('--image-size: expected --family breast, found '
                     f'{args.family}')
    out_dir = ROOT / args.out_dir
    options = ['--amp'] * args.amp + (
        ['--data-root', args.data_root] if args.data_root else [])
    iters = dict.fromkeys(names, args.iters)
    if args.minutes:
        # All before the first training, on a machine that is as busy.
        for name in names:
            iters[name] = iterations(
                name, args.minutes, out_dir / 'pace' / slug(name),
                options)
    for name in names:
        folder = out_dir / slug(name)
        if not results_of(folder, args.split).exists():
            print(f'== {name}', flush=True)
            # What was tested once has been trained, for as long as was asked
            # for then.
            if not any(folder.glob('results_*.json')):
                train(name, iters[name], folder, options, args.image_size)
            test(name, folder, options, args.split, args.image_size)
    print(table(out_dir, args.split, against, args.family))


if __name__ == '__main__':
    main()
