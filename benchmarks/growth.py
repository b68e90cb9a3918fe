"""How time and memory grow, and where memory ends.

    python benchmarks/growth.py [--out-dir work_dirs/growth]

One factor at a time is changed: views, RoIs, grid cells, image side, batch.
Each point is a process of its own: an inference, then a training step of a
small model on noise. Seconds are those of one thread of the CPU, so that other
work on the machine counts little, or CUDA's on a GPU. Power laws are fitted in
log-log and drawn. Where 8, 16 and 24 GB end is told by a line, since memory is
a constant and a share for each view, cell, pixel or scan; ``--check`` measures
one of these predictions.
"""

import argparse
import copy
import math
import time
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from measure import in_process, median_seconds, peak_mb
from mmdet3d.registry import MODELS
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from speed import made_up_scan
from terminaltables import GithubFlavoredMarkdownTable

from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.engine.precision import keep_freed_memory
from projects.core.files import dump_json

CONFIGS = Path(__file__).resolve().parent.parent / 'configs/mv2d_xray'
VOLUME = CONFIGS / 'mv2d-xray_small_volume_5000i_quick-v2.py'
DECODER = CONFIGS / 'mv2d-xray_small_roi-volume-decoder_700i_quick-v2.py'
BASE = dict(views=10, rois=0, voxel_mm=5., side=256, batch=1)
# Views are few where images are large, so that 2048² fits.
FACTORS = dict(
    views=[dict(views=n) for n in (5, 10, 20, 40, 80)],
    rois=[dict(rois=n) for n in (5, 10, 20, 40, 80)],
    cells=[dict(voxel_mm=mm) for mm in (8., 6.35, 5., 4., 3.2)],
    side=[dict(side=n, views=2) for n in (256, 512, 1024, 2048)],
    batch=[dict(batch=n) for n in (1, 2, 4, 8)])
LABELS = dict(views='views', rois='RoIs a view', cells='grid cells',
              side='image side (px)', batch='scans a batch')
STEPS = ('inference', 'training')
GIGABYTES = (8, 16, 24)
FAR = 30  # times the largest value that was measured: no prediction


# ------------------------------------------------------------------- one point
def small_model(setting: Dict) -> tuple:
    """Config and untrained model of a point; RoIs ask for the decoder."""
    cfg = load_config(str(DECODER if setting['rois'] else VOLUME))
    init_default_scope('mmdet3d')
    cfg.model.volume_head.voxel_size = setting['voxel_mm']
    if setting['rois']:
        cfg.model.detector_2d.test_cfg.update(
            topk=setting['rois'], max_per_img=setting['rois'],
            local_maximum_kernel=1)
        cfg.model.train_rois.max_per_view = setting['rois']
    torch.manual_seed(0)
    return cfg, MODELS.build(cfg.model)


def point(factor: str, setting: Dict, repeats: int, device: str) -> Dict:
    """Seconds and memory of an inference and of a training step.

    Returns:
        dict: ``x`` is the factor's value; ``inference_s``, ``training_s``, and
            ``..._mb``, what each takes beside ``start_mb``, the process with
            its model.
    """
    cfg, model = small_model(setting)
    model = model.to(device)
    batch = pseudo_collate([
        made_up_scan(setting['views'], setting['side'], seed)
        for seed in range(setting['batch'])])
    start = peak_mb(device, anew=True)

    def seconds(work):
        return median_seconds(work, repeats, device, clock=time.process_time)

    model.eval()
    with torch.no_grad():
        told = dict(inference_s=seconds(partial(
            model.test_step, copy.deepcopy(batch))))
    told['inference_mb'] = peak_mb(device) - start
    keep_freed_memory()  # as tools/train.py does
    peak_mb(device, anew=True)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    told['training_s'] = seconds(partial(
        model.train_step, batch, wrapper))
    told['training_mb'] = peak_mb(device) - start
    low, high = np.reshape(model.volume_head.volume_range, (2, 3))
    cells = np.round((high - low) / setting['voxel_mm']).prod()
    return dict(setting, factor=factor, start_mb=start, x=int(
        cells if factor == 'cells' else setting[factor]), **told)


# ------------------------------------------------------------------------ fits
class Power(NamedTuple):
    """``y = coefficient * x ** exponent``; ``scatter`` is the root mean square
    of ln y about it."""
    exponent: float
    coefficient: float
    scatter: float

    def at(self, x: float) -> float:
        """y at x."""
        return self.coefficient * x**self.exponent


def fit_power(x: Sequence[float], y: Sequence[float]) -> Power:
    """Least squares in log-log.

    Args:
        x: Two or more values above 0, not all the same.
        y: Values above 0.

    Raises:
        ValueError: They cannot be fitted.
    """
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError('fit: expected two or more different x and as many '
                         f'y, all above 0, found x {list(x)} and y {list(y)}')
    logs = np.log(x), np.log(y)
    exponent, offset = np.polyfit(*logs, 1)
    rest = logs[1] - exponent * logs[0] - offset
    return Power(float(exponent), float(np.exp(offset)),
                 float(np.sqrt(np.mean(rest**2))))


def end_of(x: Sequence[float], y: Sequence[float], most: float) -> float:
    """x at which y comes to ``most``, by the least-squares line through the
    points; infinite if it does not grow. A power law through a constant and
    shares would come to it too late.

    Raises:
        ValueError: They are not two or more different x and as many y.
    """
    if len(x) != len(y) or len(set(x)) < 2:
        raise ValueError('line: expected two or more different x and as many '
                         f'y, found x {list(x)} and y {list(y)}')
    slope, offset = np.polyfit(x, y, 1)
    return max(float((most - offset) / slope), 0.) if slope > 0 else math.inf


def fits_of(points: List[Dict]) -> List[Dict]:
    """A row for each factor, step and quantity: the exponent of all points and
    of the last three; of memory also where it ends, by these."""
    rows = []
    for factor in FACTORS:
        mine = [p for p in points
                if p['factor'] == factor and 'failed' not in p]
        if len(mine) < 2:
            continue
        x = [p['x'] for p in mine]
        for step in STEPS:
            for unit in ('s', 'mb'):
                y = [p[f'{step}_{unit}'] for p in mine]
                whole, end = fit_power(x, y), fit_power(x[-3:], y[-3:])
                row = dict(factor=factor, step=step,
                           what='time' if unit == 's' else 'memory',
                           exponent=whole.exponent, scatter=whole.scatter,
                           coefficient=whole.coefficient, at_the_end=end)
                if unit == 'mb':
                    row['largest'] = x[-1]
                    power = 2 if factor == 'side' else 1  # to what is stored
                    row['ends'] = {gb: end_of(
                        [value**power for value in x[-3:]], y[-3:],
                        gb * 1024 - mine[-1]['start_mb'])**(1 / power)
                        for gb in GIGABYTES}
                rows.append(row)
    return rows


def draw(points: List[Dict], fits: List[Dict], path: Path) -> None:
    """Time above, memory below, a column for each factor."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    factors = [f for f in FACTORS if any(r['factor'] == f for r in fits)]
    figure, axes = plt.subplots(2, len(factors), squeeze=False, sharex='col',
                                sharey='row', layout='constrained',
                                figsize=(2.6 * len(factors) + .6, 5.6))
    for row in fits:
        down, unit = (0, 's') if row['what'] == 'time' else (1, 'mb')
        axis = axes[down, factors.index(row['factor'])]
        mine = [p for p in points
                if p['factor'] == row['factor'] and 'failed' not in p]
        x = np.array([p['x'] for p in mine])
        drawn, = axis.plot(x, [p[f'{row["step"]}_{unit}'] for p in mine],
                           'o^'[row['step'] == 'training'])
        axis.plot(x, Power(row['exponent'], row['coefficient'], 0).at(x), '-',
                  color=drawn.get_color(), linewidth=1,
                  label=f'{row["step"]}: {row["exponent"]:.2f}')
    for (down, _), axis in np.ndenumerate(axes):
        axis.set(xscale='log', yscale='log')
        axis.grid(alpha=.3)
        axis.legend(fontsize=8, title='exponent', title_fontsize=8)
        if down:
            for gb in GIGABYTES:
                axis.axhline(gb * 1024, color='.6', linewidth=.8,
                             linestyle=':')
    for axis, factor in zip(axes[1], factors):
        axis.set_xlabel(LABELS[factor])
        ticks = sorted({p['x'] for p in points if p['factor'] == factor})
        axis.set_xticks(ticks, [f'{t / 1000:.0f}k' if t > 9999 else str(t)
                                for t in ticks], rotation=45, fontsize=8)
        axis.minorticks_off()
    axes[0, 0].set_ylabel('time (s)')
    axes[1, 0].set_ylabel('memory beside the model (MB)\ndotted: 8, 16, 24 GB')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def check(fits: List[Dict], device: str, gb: float = 8.) -> Dict:
    """A training step of as many views as are predicted to fill a memory."""
    row = next(r for r in fits if (r['factor'], r['step'], r['what']) == (
        'views', 'training', 'memory'))
    views = max(int(row['ends'][gb]), 1)
    found = in_process(point, 'views', dict(BASE, views=views), 1, device)
    return dict(views=views, predicted_mb=gb * 1024, **(
        found if 'failed' in found else
        dict(found_mb=found['start_mb'] + found['training_mb'])))


# ------------------------------------------------------------------------ main
def table(fits: List[Dict]) -> str:
    """Markdown of the fits."""
    rows = [['factor', 'step', 'time, at the end', 'memory, at the end',
             *(f'{gb} GB end at' for gb in GIGABYTES)]]
    for time_of, memory in zip(fits[::2], fits[1::2]):
        rows.append([
            LABELS[memory['factor']], memory['step'],
            *(f'{row["exponent"]:.2f}, {row["at_the_end"].exponent:.2f}'
              for row in (time_of, memory)),
            *(f'{end:.3g}' if end < FAR * memory['largest'] else 'far away'
              for end in memory['ends'].values())])
    return GithubFlavoredMarkdownTable(rows).table


def main(argv: Optional[List[str]] = None) -> None:
    """Measure, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out-dir', type=Path,
                        default=Path('work_dirs/growth'))
    parser.add_argument('--only', nargs='+', choices=FACTORS,
                        default=list(FACTORS), help='factors')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--most', type=int, default=5,
                        help='points of a factor, the smallest first')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--check', action='store_true',
                        help='measure how far 8 GB reach in views')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = str(torch_device(args.device))
    points = []
    for factor in args.only:
        for change in FACTORS[factor][:args.most]:
            found = in_process(point, factor, dict(BASE, **change),
                               args.repeats, device)
            points.append(dict(dict(change, factor=factor), **found))
            print(points[-1], flush=True)
            dump_json(dict(points=points), args.out_dir / 'growth.json')
    fits = fits_of(points)
    draw(points, fits, args.out_dir / 'growth.png')
    result = dict(points=points, fits=[
        dict(row, at_the_end=row['at_the_end']._asdict()) for row in fits])
    if args.check:
        result['check'] = check(fits, device)
        print(result['check'])
    dump_json(result, args.out_dir / 'growth.json')
    print(table(fits))


if __name__ == '__main__':
    main()
