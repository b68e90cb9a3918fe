"""Fine-tune a model on few measured objects, and see what more would bring.

    python tools/finetune.py CONFIG CHECKPOINT --measured SET --simulated SET

For each number of objects the same training: of all samples one half is
drawn from the measured objects, the other from the simulated set. No objects
means as many iterations on the simulated set alone, so that a longer training
is not taken for more data. Fewer objects are among more. All are tested on
the measured set's split ``test``. What is done is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from bisect import bisect
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from terminaltables import GithubFlavoredMarkdownTable

from projects.core.engine.checkpoints import load_checkpoint
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import config_of
from projects.core.evaluation.matching import FALSE_POSITIVES
from projects.core.evaluation.ranking import resampled, with_interval
from projects.core.files import (
    atomic_write,
    dump_json,
    load_json,
    sha256_of,
)
from projects.core.infos import infos_name, load_infos
from projects.core.results import load_results, notes_of

RELEASED = 'as released'
STEPS = (0, 1, 3, 10, 30)
_WARM_UP = .1  # of all iterations
# A result: the number of measured objects, and the seed.
Point = Tuple[int, int]


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """mmdet3d's own arguments, and ours."""
    parser = argument_parser(__doc__.splitlines()[0], split='test', amp=True)
    parser.add_argument('--measured', required=True, metavar='SET',
                        help='converted set of measured objects; train on '
                        'its split train, test on --split')
    parser.add_argument('--simulated', dest='data_root', metavar='SET',
                        help='--data-root by another name: what the '
                        'checkpoint was trained on (default: the config\'s)')
    parser.add_argument('--k', nargs='+', type=int, metavar='K',
                        help='measured objects to train on (default: '
                        f'{" ".join(map(str, STEPS))}, as far as there are)')
    parser.add_argument('--seed', nargs='+', type=int, default=[0],
                        metavar='N', help='of the objects\' order and the '
                        'training; with several each K is done once for each')
    parser.add_argument('--iters', type=int, default=200,
                        help='iterations for each K (default: %(default)s)')
    parser.add_argument('--lr-share', type=float, default=.25,
                        help='learning rate, as a share of the config\'s '
                        '(default: %(default)s)')
    parser.add_argument('--share', type=float, default=.5,
                        help='share of measured samples in a training '
                        '(default: %(default)s)')
    args = parser.parse_args(argv)
    for name, low, high in (('k', 0, np.inf), ('seed', 0, np.inf),
                            ('iters', 1, np.inf), ('share', 0, 1),
                            ('lr_share', 0, np.inf)):
        given = getattr(args, name)
        for value in () if given is None else np.atleast_1d(given):
            if not low <= value <= high or (
                    value == 0 and name.endswith('share')):
                parser.error(f'--{name.replace("_", "-")}: expected a number '
                             f'from {low} to {high}, found {value}')
    if args.launcher != 'none':
        parser.error('--launcher: expected none, as the trainings follow each '
                     f'other in processes of their own, found {args.launcher}')
    args.seed = sorted(set(args.seed))
    return args


def run(tool: str, *words: str) -> None:
    """One of the tools beside this; its failure is this one's."""
    path = Path(__file__).with_name(tool)
    if subprocess.run([sys.executable, str(path), *words]).returncode:
        raise UserError(f'{tool} {" ".join(words)}: expected it to succeed, '
                        'it failed; the same command goes on from there')


# ------------------------------------------------------------------- objects
class Sets:
    """The measured and the simulated set, by what is said of them.

    Attributes:
        objects: Names of the measured objects to train on, sorted.
        tested: Names of those to test on, sorted.
        different: Keys of ``metainfo`` in which the sets may differ.

    Args:
        measured, simulated (str): Folders.
        split (str): Of the measured set, to test on.
        suffix (str): Of the infos' files.

    Raises:
        DataError: A split is missing or damaged.
        UserError: They have other classes, or an object to test on is trained
            on, too.
    """

    def __init__(self, measured: str, simulated: str, split: str,
                 suffix: str) -> None:
        paths = [Path(measured, infos_name('train', suffix)),
                 Path(measured, infos_name(split, suffix)),
                 Path(simulated, infos_name('train', suffix))]
        if not paths[1].is_file():
            raise UserError(
                f'{paths[1]}: expected objects to test on, which no training '
                'sees, found no such split; convert the set with '
                '--test-fraction')
        infos = [load_infos(path) for path in paths]
        names = [_names(*pair) for pair in zip(infos, paths)]
        for trained, path in ((names[0], paths[0]), (names[2], paths[2])):
            both = sorted(set(trained) & set(names[1]))
            if both:
                raise UserError(
                    f'{path}: field "lidc_id_ref": expected none of the '
                    f'objects to test on, found {len(both)} of '
                    f'{paths[1]}, as {both[0]}')
        metas = [info['metainfo'] for info in infos]
        classes = [list(meta['classes']) for meta in metas]
        if classes[0] != classes[2]:
            raise UserError(
                f'{paths[0]}: field "metainfo.classes": expected those of '
                f'the simulated set, {", ".join(classes[2])}, in this order, '
                f'found {", ".join(classes[0])}')
        self.objects = names[0]
        self.tested = names[1]
        self.different = sorted(
            (set(metas[0]) | set(metas[2])) - {'classes'})

    def chosen(self, point: Point) -> List[str]:
        """Measured objects of a point: the first ones of its seed's order, so
        that fewer are among more."""
        count, seed = point
        order = np.random.default_rng(seed).permutation(len(self.objects))
        return [self.objects[i] for i in order[:count]]


def _names(infos: dict, path: Path) -> List[str]:
    """Patients or parts of a split, sorted."""
    for sample in infos['data_list']:
        if not sample.get('lidc_id_ref'):
            raise UserError(f'{path}: scan {sample["token"]}: field '
                            '"lidc_id_ref": expected the object\'s name, '
                            'found none')
    return sorted({str(s['lidc_id_ref']) for s in infos['data_list']})


# ------------------------------------------------------------------ trainings
def config_for(cfg: Config, args: argparse.Namespace, sets: Sets,
               point: Point) -> Config:
    """The config of one training, for tools/train.py and tools/test.py."""
    cfg = deepcopy(cfg)
    objects = sets.chosen(point)
    loader = cfg.train_dataloader
    parts, ratio = [loader.dataset], [1.]
    if objects:  # the first says what the checkpoint tells of its set
        parts.insert(0, dict(loader.dataset, data_root=args.measured,
                             patients=objects))
        ratio = [args.share, 1 - args.share]
    if not ratio[-1]:
        parts, ratio = parts[:1], [1.]
    loader.dataset = dict(type='ConcatDataset', datasets=parts,
                          ignore_keys=sets.different)
    loader.sampler = dict(type='mmdet.MultiDataSampler', dataset_ratio=ratio)
    cfg.test_dataloader.dataset.data_root = args.measured
    # Nothing is chosen by a validation: few have objects for it.
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=args.iters)
    cfg.optim_wrapper.optimizer.lr *= args.lr_share
    warm = max(int(_WARM_UP * args.iters), 1)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0,
             end=warm),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warm,
             eta_min_ratio=.01)]
    cfg.default_hooks = dict(
        cfg.default_hooks, checkpoint=dict(
            type='CheckpointHook', by_epoch=False,
            interval=max(args.iters // 4, 1), max_keep_ckpts=1,
            published_keys=['meta', 'state_dict']))
    cfg.log_processor = dict(type='LogProcessor', window_size=20,
                             by_epoch=False)
    cfg.load_from, cfg.resume = args.checkpoint, False
    return cfg


def folder_of(args: argparse.Namespace, point: Optional[Point]) -> Path:
    """Where a point's files are; None is the released model."""
    return Path(args.work_dir, 'released' if point is None else
                '{:03d}_objects_seed_{}'.format(*point))


def make(cfg: Config, args: argparse.Namespace, sets: Sets,
         point: Optional[Point]) -> None:
    """Train and test one point."""
    folder = folder_of(args, point)
    config, checkpoint = folder / 'config.py', args.checkpoint
    text = config_for(cfg, args, sets, point or (0, 0)).pretty_text
    with atomic_write(config, 'w') as stream:
        stream.write(text)
    words = [str(config), '--work-dir', str(folder), *['--amp'] * args.amp]
    if point is not None:
        run('train.py', *words, '--resume', '--seed', str(point[1]))
        checkpoint = (folder / 'last_checkpoint').read_text().strip()
    run('test.py', words[0], checkpoint, *words[1:], '--split', args.split,
        '--out', str(folder / 'results.json'))


def make_all(cfg: Config, args: argparse.Namespace, sets: Sets,
             points: List[Optional[Point]]) -> None:
    """All points that are not there, one seed's curve after the other."""
    left = [p for p in points
            if not (folder_of(args, p) / 'results.json').exists()]
    start, first = time.monotonic(), 0
    for row, point in enumerate(left):
        what = RELEASED if point is None else (
            'measured objects: {}, seed {}'.format(*point))
        told = ''
        if row > first:
            pace = (time.monotonic() - start) / (row - first)
            told = f', about {pace * (len(left) - row) / 60:.0f} min to go'
        print(f'\n== {row + 1} of {len(left)}: {what}{told}', flush=True)
        make(cfg, args, sets, point)
        if point is None:  # a test alone says nothing of a training's time
            start, first = time.monotonic(), 1


# -------------------------------------------------------------------- results
def curve_of(args: argparse.Namespace,
             points: List[Optional[Point]]) -> List[Dict[str, Any]]:
    """Figures by number of objects, the means of all seeds; the first are of
    the model as it was released.

    ``mAP_3d`` and what it is ``more_than_none`` and ``more_than_before``, the
    next fewer, are each the figure and its 95 % interval, from the same
    resamples of the objects that were tested.
    """
    tests = [load_results(folder_of(args, p) / 'results.json')
             for p in points]
    draws = resampled(tests)
    counts = list(dict.fromkeys(None if p is None else p[0] for p in points))
    curve, means, at = [], {}, FALSE_POSITIVES.index(1)
    for before, count in zip([None, None, *counts[1:]], counts):
        rows = [i for i, p in enumerate(points)
                if (None if p is None else p[0]) == count]
        means[count] = draws[rows].mean(0)

        def more(than, count=count):
            if None in (count, than) or count == than or than not in means:
                return None
            return with_interval(means[count] - means[than])

        of_these = [tests[i] for i in rows]
        centres = [t['centre_error_mm'] for t in of_these
                   if t['centre_error_mm'] is not None]
        curve.append(dict(
            objects=count, mAP_3d=with_interval(means[count]),
            mAP_3d_by_seed={} if count is None else {
                str(points[i][1]): float(draws[i, 0]) for i in rows},
            more_than_none=more(0), more_than_before=more(before),
            AP_iou025=float(np.mean([t['AP_iou0.25'] for t in of_these])),
            sensitivity_at_1=float(np.mean([
                t['froc']['sensitivity'][at] for t in of_these])),
            centre_error_mm=float(np.mean(centres)) if centres else None))
    return curve


def table(curve: List[Dict[str, Any]]) -> str:
    """Markdown of all figures."""

    def text(value, pattern='{:.3f} [{:.3f}, {:.3f}]'):
        return '-' if value is None else pattern.format(
            *np.atleast_1d(value))

    gap = '{:+.3f} [{:+.3f}, {:+.3f}]'
    rows = []
    for part in curve:
        seeds = list(part['mAP_3d_by_seed'].values())
        count = part['objects']
        rows.append([
            RELEASED if count is None else str(count),
            text(part['mAP_3d']),
            text([min(seeds), max(seeds)] if len(seeds) > 1 else None,
                 '{:.3f} to {:.3f}'),
            text(part['more_than_none'], gap),
            text(part['more_than_before'], gap),
            *(text(part[key], '{:.3f}') for key in (
                'AP_iou025', 'sensitivity_at_1')),
            text(part['centre_error_mm'], '{:.2f}')])
    header = ['measured objects', '3D mAP', 'by seed', 'more than with none',
              'more than the row above', 'AP IoU 0.25',
              'found at 1 false positive', 'centre error (mm)']
    return GithubFlavoredMarkdownTable([header, *rows]).table


def verdict(curve: List[Dict[str, Any]], tested: int) -> str:
    """What the last step says of the next."""
    last = curve[-1]
    told = last['more_than_before']
    if told is None:
        return ''
    fewer, most = curve[-2]['objects'], last['objects']
    step = f'{most} objects instead of {fewer}: 3D mAP ' + (
        '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*told))
    if told[1] > 0:
        return f'{step}: it still rises, more objects may bring more.'
    return (f'{step}: no gain that {tested} tested objects can tell from '
            'none.')


def draw(curve: List[Dict[str, Any]], path: Path) -> None:
    """3D mAP against the number of objects, with intervals."""
    figure = Figure(figsize=(6.4, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [RELEASED if part['objects'] is None else str(part['objects'])
             for part in curve]
    values = np.array([part['mAP_3d'] for part in curve])
    places = np.arange(len(curve))
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axis.errorbar(places[:1], values[:1, 0], errors[:, :1], fmt='s',
                  color='#cc6677', capsize=3)
    axis.errorbar(places[1:], values[1:, 0], errors[:, 1:], fmt='o-',
                  color='#4477aa', capsize=3)
    axis.axhline(values[0, 0], color='#cc6677', linestyle=':', linewidth=1)
    for x, part in zip(places, curve):
        seeds = list(part['mAP_3d_by_seed'].values())
        if len(seeds) > 1:
            axis.plot([x + .12] * len(seeds), seeds, '_', color='.4')
        axis.annotate(f'{part["mAP_3d"][0]:.2f}', (x, part['mAP_3d'][0]),
                      (-6, 6), textcoords='offset points', ha='right')
    axis.set_xticks(places, names)
    axis.set(xlabel='measured objects in the training (0: simulated alone)',
             ylabel='3D mAP', ylim=(0, 1), xlim=(-.6, len(curve) - .5))
    axis.grid(axis='y', alpha=.3)
    with atomic_write(path) as stream:
        figure.savefig(stream, dpi=100, format='png')


def check_settings(path: Path, settings: Dict[str, Any]) -> None:
    """Points of one curve differ in nothing but objects and seed.

    Raises:
        UserError: The folder has points that were made in another way.
    """
    settings = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        dump_json(settings, path)
    found = load_json(path)
    for name, value in settings.items():
        old = found.get(name) if isinstance(found, dict) else None
        if old != value:
            raise UserError(
                f'{path}: field "{name}": expected {value!s:.60}, as now '
                f'asked for, found {old!s:.60}: choose another --work-dir')


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Make all points, tabulate, draw."""
    args = parse_args(argv)
    check_outputs(args, 'work_dir')
    cfg = config_of(args)
    args.work_dir = args.work_dir or f'{cfg.work_dir}_finetune'
    dataset = cfg.train_dataloader.dataset
    if not dataset.get('ann_file'):
        raise UserError(f'{args.config}: train_dataloader.dataset: expected '
                        f'one set, found {dataset.type}')
    load_checkpoint(args.checkpoint)  # fails before anything is made
    sets = Sets(args.measured, dataset.data_root, args.split,
                Path(dataset.ann_file).suffix)
    args.k = sorted(set(args.k or STEPS[:bisect(STEPS, len(sets.objects))]))
    if args.k[-1] > len(sets.objects):
        raise UserError(
            f'--k: expected at most {len(sets.objects)}, as many objects as '
            f'{args.measured} has to train on, found {args.k[-1]}')
    folder = Path(args.work_dir)
    check_settings(folder / 'settings.json', dict(
        config=args.config, cfg_options=args.cfg_options or {},
        checkpoint_sha256=sha256_of(args.checkpoint),
        measured=os.path.abspath(args.measured),
        simulated=os.path.abspath(dataset.data_root), split=args.split,
        iters=args.iters, lr_share=args.lr_share, share=args.share,
        amp=args.amp, objects=sets.objects, tested=sets.tested))
    points: List[Optional[Point]] = [
        None, *((k, seed) for seed in args.seed for k in args.k)]
    make_all(cfg, args, sets, points)
    # One seed after the other was made; the curve goes by objects.
    points = [None, *((k, seed) for k in args.k for seed in args.seed)]
    curve = curve_of(args, points)
    dump_json(dict(
        settings=load_json(folder / 'settings.json'), chosen={
            str(seed): sets.chosen((args.k[-1], seed))
            for seed in args.seed}, curve=curve),
        folder / 'finetune.json')
    draw(curve, folder / 'finetune.png')
    print()
    released = load_results(folder_of(args, None) / 'results.json')
    for line in (table(curve), verdict(curve, len(sets.tested)),
                 *notes_of(released)):
        if line:
            print(line)
    print(f'{folder}/finetune.json, finetune.png')


if __name__ == '__main__':
    main()
