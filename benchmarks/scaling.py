"""How conversion and training scale with processes, and what many scans cost.

    python benchmarks/scaling.py [--out-dir work_dirs/scaling]
    python benchmarks/scaling.py --only costs [--num-scans 9 --price 0.05]

``conversion`` converts phantom scans, as ``data_converters lidc`` does it on a
Dask cluster of this machine with workers of one thread. ``training`` trains
the small ``volume`` on them, as ``tools/train.py`` does it in several
processes (DDP, gloo) of one thread. Strong scaling: as many scans for any
number of processes. Weak scaling: as many for each process.

Beyond the machine's cores the clock on the wall shows overhead alone.
``path_s``, the CPU seconds of the busiest process, is what it would show if
each process had a core of its own; other work on the machine, ``others``
(cores), hardly changes it.

``costs`` follows the coefficients of one process to any number of scans:
those that the other two parts left in ``--out-dir``, else those of
``costs.json`` beside this file, which are those of docs/costs.md, or of
another file with the same fields (``--coefficients``).
"""

import argparse
import os
import runpy
import shutil
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import psutil
import torch
from conversion import scans_of
from measure import in_process, show
from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import spawn

from data_converters import phantom
from data_converters.__main__ import main as convert
from projects.core.engine.command_line import UserError, one_sentence
from projects.core.engine.configs import load_config, select_split
from projects.core.files import DataError, dump_json, load_json

ROOT = Path(__file__).resolve().parent.parent
NAME = 'mv2d-xray_small_volume_5000i_quick-v2'
COEFFICIENTS = Path(__file__).with_name('costs.json')
SLICES = 133  # of a scan of usual size
WARM_UP = 3  # steps
MISSING = 'not measured'
COLUMNS = ('scaling', 'processes', 'scans', 'wall_s', 'speed_up', 'efficiency',
           'path_s', 'path_speed_up', 'path_efficiency', 'cpu_s', 'work',
           'others')


# --------------------------------------------------------------------- scaling
def points_of(processes: Sequence[int], share: int) -> List[Tuple[int, int]]:
    """(processes, scans) that strong and weak scaling need, in the order of
    the scans.

    Args:
        processes: Numbers of processes.
        share: Scans for each process in weak scaling. Strong scaling has as
            many as the most processes get, so both share this point.
    """
    most = share * max(processes)
    return sorted({(n, most) for n in processes}
                  | {(n, n * share) for n in processes},
                  key=lambda point: point[::-1])


def scaling_of(points: List[Dict]) -> List[Dict]:
    """Rows of strong, then of weak scaling, each against one process.

    Args:
        points: For each of :func:`points_of` a dict with ``processes``,
            ``scans``, ``wall_s``, ``path_s`` and ``cpu_s``, that of all
            processes.

    Returns:
        list: Points with ``scaling``; ``speed_up``, how many times the scans
            of a second; ``efficiency``, the speed-up for each process; both
            with ``path_``, too; and ``work``, CPU seconds of a scan against
            those of one process.

    Raises:
        ValueError: A number is not above 0, or there is no point of one
            process to compare with.
    """
    for point in points:
        for name in ('processes', 'scans', 'wall_s', 'path_s', 'cpu_s'):
            if not point[name] > 0:
                raise ValueError(f'{name}: expected a number above 0, found '
                                 f'{point[name]}')
    most = max((p['scans'] for p in points), default=0)
    share = most / max((p['processes'] for p in points), default=1)
    rows = []
    for kind, scans_for in (('strong', lambda n: most),
                            ('weak', lambda n: share * n)):
        mine = sorted((p for p in points
                       if p['scans'] == scans_for(p['processes'])),
                      key=lambda p: p['processes'])
        if not mine or mine[0]['processes'] != 1:
            raise ValueError(f'{kind} scaling: expected a point of one '
                             'process, found none')
        for point in mine:
            # How many times one process takes as long for a scan.
            wall, path, cpu = (
                mine[0][clock] / mine[0]['scans'] * point['scans']
                / point[clock] for clock in ('wall_s', 'path_s', 'cpu_s'))
            rows.append(dict(
                point, scaling=kind, speed_up=wall,
                efficiency=wall / point['processes'], path_speed_up=path,
                path_efficiency=path / point['processes'], work=1 / cpu))
    return rows


def machine_cpu_s() -> float:
    """CPU seconds that all work has had since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - sum(getattr(times, name, 0.) for name in (
        'idle', 'iowait', 'guest', 'guest_nice'))  # guests are users, too


def measure_all(points: List[Tuple[int, int]],
                measure: Callable[[int, int], Dict]) -> List[Dict]:
    """Rows of :func:`scaling_of` of what is measured at each point."""
    found = []
    for processes, scans in points:
        found.append(dict(processes=processes, scans=scans,
                          **measure(processes, scans)))
        print({k: v for k, v in found[-1].items() if k != 'losses'},
              flush=True)
    return scaling_of(found)


# ------------------------------------------------------------------ conversion
def warm_up(words: List[str]) -> None:
    """A conversion whose set is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        convert([*words, '--out-dir', f'{folder}/set'])


def converted_by(workers: int, words: List[str], warm: List[str],
                 out_dir: Path) -> Dict:
    """What a conversion on a Dask cluster of this machine takes.

    Args:
        workers: Processes of one thread.
        words: Command of ``data_converters``, without ``--out-dir``.
        warm: Of a short conversion, which each process does before.
        out_dir: Folder of the set.

    Returns:
        dict: ``wall_s``; ``cpu_s`` of all processes, of which ``rest_s`` is
            the command's own, with Dask's scheduler in it; ``path_s``, this
            and the busiest worker's; ``others``.
    """
    from distributed import Client, LocalCluster
    with LocalCluster(n_workers=workers, threads_per_worker=1, processes=True,
                      dashboard_address=None, host='127.0.0.1') as cluster, (
                          Client(cluster, set_as_default=False)) as client:
        client.run(warm_up, warm)
        warm_up(warm)  # joblib uses this process if there is one worker

        def clocks() -> np.ndarray:
            return np.array([
                time.perf_counter(), machine_cpu_s(), time.process_time(),
                *client.run(time.process_time).values()])

        before = clocks()
        convert([*words, '--out-dir', str(out_dir), '--dask-scheduler',
                 cluster.scheduler_address])
        wall, machine, rest, *each = (clocks() - before).tolist()
    cpu = rest + sum(each)
    return dict(wall_s=wall, cpu_s=cpu, rest_s=rest, path_s=rest + max(each),
                others=(machine - cpu) / wall)


def conversion(args: argparse.Namespace) -> None:
    """Scans of a usual size; the set of all of them stays."""
    words = ['lidc', '--image-size', str(args.image_size),
             '--val-fraction', '0', '--dicom-root']
    kept = args.out_dir / 'set'
    uids = scans_of(SLICES)
    with tempfile.TemporaryDirectory(dir=args.out_dir) as folder:
        dicom, warm = Path(folder, 'dicom'), Path(folder, 'warm')
        phantom.write_scan(phantom.make_scan(next(uids), 0), warm)
        written = []

        def measure(workers: int, scans: int) -> Dict:
            for uid in islice(uids, scans - len(written)):
                phantom.write_scan(phantom.make_scan(uid, 0), dicom)
                written.append(uid)
            if len(written) < scans:
                raise UserError(f'--scans: expected at most {len(written)} '
                                'in all, which have about as many slices, '
                                f'found {scans}')
            done = in_process(converted_by, workers, [*words, str(dicom)],
                              [*words, str(warm)], Path(folder, 'set'))
            move_set(Path(folder, 'set'), kept)
            return done

        rows = measure_all(points_of(args.processes, args.scans), measure)
    show(rows, [*COLUMNS, 'rest_s'],
         args.out_dir / 'conversion.json', image_size=args.image_size,
         cores=os.cpu_count(), bytes_a_scan=bytes_of(kept) / rows[0]['scans'])


def move_set(made: Path, kept: Path) -> None:
    """Let a set take the place of the one before."""
    if kept.exists():
        shutil.rmtree(kept)
    made.rename(kept)


def bytes_of(folder: Path) -> int:
    """What all its files hold."""
    return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


# -------------------------------------------------------------------- training
@HOOKS.register_module(force=True)  # as a script, too
class StepClock(Hook):
    """Leaves the clocks after each step, ``steps_<rank>.json`` in the work
    folder: ``wall``, ``machine``, ``cpu`` (s), and a training's ``loss``."""

    priority = 'LOWEST'

    def __init__(self):
        self.steps = []

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None,
                    mode='train') -> None:
        loss = float(outputs['loss']) if mode == 'train' else None
        self.steps.append(dict(
            wall=time.perf_counter(), machine=machine_cpu_s(),
            cpu=time.process_time(), loss=loss))

    def _leave(self, runner) -> None:
        dump_json(self.steps, Path(
            runner.work_dir, f'steps_{runner.rank}.json'))

    after_train = after_test = _leave


def write_config(path: Path, data_root: Path, steps: int,
                 batch: Optional[int] = None) -> None:
    """A config of the small ``volume`` that has a :class:`StepClock`.

    Args:
        path: File to write.
        data_root: Converted set, all of it for training.
        steps: Iterations.
        batch: Scans of a process and step, always the same ones in the same
            order, with all views and no augmentation, so that processes that
            share a batch can be compared with one that has it all. Without,
            all is as the config has it.
    """
    cfg = load_config(str(ROOT / f'configs/mv2d_xray/{NAME}.py'))
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='StepClock')]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_cfg.max_iters = steps
    train, test = cfg.train_dataloader, cfg.test_dataloader
    train.dataset.data_root = test.dataset.data_root = str(data_root)
    select_split(test.dataset, 'train')
    if batch:
        train.batch_size = batch
        train.sampler.shuffle = False
        train.dataset.pipeline = test.dataset.pipeline
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)


def steps_of(folder: Path, warm_up: int = WARM_UP) -> Dict:
    """Means over the steps that a :class:`StepClock` saw.

    Args:
        folder: Work folder of a training or test.
        warm_up: First steps that are left out.

    Returns:
        dict: ``wall_s``; ``cpu_s`` of all processes; ``path_s``, in each
            step the busiest one's; ``others``; ``losses``, means over the
            processes, of all steps.

    Raises:
        ValueError: No steps are left.
    """
    ranks = [load_json(path) for path in sorted(folder.glob('steps_*.json'))]
    count = min((len(steps) for steps in ranks), default=0)
    if count <= warm_up:
        raise ValueError(f'{folder}: expected more than {warm_up} steps, '
                         f'found {count}')

    def seconds(steps: List[Dict], clock: str) -> np.ndarray:
        # Between the ends of two steps is all of a step, loading, too.
        return np.diff([step[clock] for step in steps[warm_up - 1:]])

    wall, machine = (float(seconds(ranks[0], clock).mean())
                     for clock in ('wall', 'machine'))
    each = np.array([seconds(steps, 'cpu') for steps in ranks])
    cpu = float(each.sum(0).mean())
    return dict(
        wall_s=wall, cpu_s=cpu, path_s=float(each.max(0).mean()),
        others=(machine - cpu) / wall,
        losses=[float(np.mean([s['loss'] for s in step]))
                for step in zip(*ranks) if step[0]['loss'] is not None])


def call_tool(rank: int, name: str, words: List[str], processes: int,
              port: int) -> None:
    """A tool of this project in one of some processes of one thread."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        words = [*words, '--launcher', 'pytorch']
    runpy.run_path(str(ROOT / f'tools/{name}.py'))['main'](words)


def run(name: str, *words, processes: int = 1) -> None:
    """A tool of this project on CPUs, as torch.distributed.run starts it, but
    in this session: Linux may give each session a share of the cores."""
    spawn(call_tool, (name, [str(word) for word in words], processes,
                      get_free_port()), processes)


def trained_by(processes: int, scans: int, data_root: Path, steps: int,
               out_dir: Path) -> Dict:
    """What a training step of some scans takes, shared by processes; see
    :func:`steps_of`."""
    work = out_dir / f'train_{processes}_{scans}'
    write_config(work / 'scaling.py', data_root, steps, scans // processes)
    run('train', work / 'scaling.py', '--work-dir', work,
        processes=processes)
    return steps_of(work)


def training(args: argparse.Namespace) -> None:
    """Scaling, and the coefficients of the costs: a step as the config has
    it, and a test of the released weights."""
    data = args.out_dir / 'set'
    if not data.is_dir():
        raise UserError(f'{data}: expected the set that --only conversion '
                        'leaves, found none')
    steps = args.steps + WARM_UP
    rows = measure_all(
        points_of(args.processes, 1),
        partial(trained_by, data_root=data, steps=steps,
                out_dir=args.out_dir))
    alone = rows[0]['losses']
    for row in rows:
        if row['scaling'] == 'strong':  # all have the same scans
            off = np.abs(np.divide(row['losses'], alone) - 1)
            row.update(first_loss_off=float(off[0]),
                       losses_off=float(off.max()))
    work = args.out_dir / 'as_configured'
    config = work / 'scaling.py'
    write_config(config, data, 2 * args.steps + WARM_UP)
    words = config, '--work-dir', work, '--amp'
    run('train', *words)
    step = steps_of(work)['cpu_s']
    run('test', *words, ROOT / f'checkpoints/{NAME}.pth')
    show(rows, [*COLUMNS, 'first_loss_off', 'losses_off'],
         args.out_dir / 'training.json', steps=args.steps,
         cores=os.cpu_count(), step_s=step,
         inference_s=steps_of(work, 1)['cpu_s'])


# ----------------------------------------------------------------------- costs
def coefficients_of(converted: Dict, trained: Dict) -> Dict:
    """What :func:`costs_of` takes, of the other two parts' JSON.

    Raises:
        UserError: Two processes were not measured.
    """
    def strong(result: Dict, processes: int) -> Optional[Dict]:
        return next((row for row in result['rows']
                     if (row['scaling'], row['processes']) == (
                         'strong', processes)), None)

    one = strong(converted, 1)
    two = [strong(result, 2) for result in (converted, trained)]
    if None in two:
        raise UserError('--processes: expected 2 among those that were '
                        'measured, for the hours on two cores, found none')
    return dict(
        conversion_s=one['cpu_s'] / one['scans'],
        training_s=trained['step_s'], inference_s=trained['inference_s'],
        bytes_a_scan=converted['bytes_a_scan'],
        conversion_speed_up=two[0]['path_speed_up'],
        training_speed_up=two[1]['path_speed_up'])


def costs_of(measured: Dict, scans: int, epochs: int,
             price: Optional[float] = None) -> List[Dict]:
    """Time and cost of a number of scans, in proportion to what one costs.

    Args:
        measured (dict): CPU seconds of one thread: ``conversion_s`` and
            ``inference_s`` of a scan, ``training_s`` of a step of one scan;
            ``conversion_speed_up`` and ``training_speed_up`` of two
            processes with a core each; ``bytes_a_scan`` of the converted
            set.
        scans (int): Number of scans, all of which are trained on.
        epochs (int): Steps for each scan.
        price (float, optional): Of a core hour.

    Returns:
        list: Rows with ``work``, ``core_hours``, ``hours_on_two`` cores
            that do nothing else, ``price``, ``gpu``, which nobody has
            measured, and ``gigabytes`` of the set. The last row is the sum.

    Raises:
        ValueError: A number is not above 0.
    """
    for name, number in dict(measured, scans=scans, epochs=epochs,
                             price=price).items():
        if number is not None and not number > 0:
            raise ValueError(f'{name}: expected a number above 0, found '
                             f'{number}')
    rows = []
    for work, times, shared in (('conversion', 1, 'conversion'),
                                ('training', epochs, 'training'),
                                # Scans that are independent, as well.
                                ('inference', 1, 'conversion')):
        hours = scans * times * measured[f'{work}_s'] / 3600
        rows.append(dict(
            scans=scans, work=work, core_hours=hours,
            hours_on_two=hours / measured[f'{shared}_speed_up'],
            price=price and hours * price, gpu=MISSING,
            gigabytes=(scans * measured['bytes_a_scan'] / 1e9
                       if work == 'conversion' else None)))
    hours, on_two = (sum(row[name] for row in rows)
                     for name in ('core_hours', 'hours_on_two'))
    return [*rows, dict(scans=scans, work='all', core_hours=hours,
                        hours_on_two=on_two, price=price and hours * price,
                        gpu=MISSING, gigabytes=rows[0]['gigabytes'])]


def load_coefficients(path: Path) -> Dict:
    """What :func:`costs_of` takes, of a file.

    Raises:
        DataError: A field is missing, or not a number above 0.
    """
    found, names = load_json(path), list(load_json(COEFFICIENTS))
    for name in names:
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, bool) or not (
                isinstance(value, (int, float)) and value > 0):
            raise DataError(f'{path}: field "{name}": expected a number '
                            f'above 0, found {value!r:.60}')
    return {name: found[name] for name in names}


def costs(args: argparse.Namespace) -> None:
    """A table of what was measured before, or of what others measured."""
    parts = [args.out_dir / f'{part}.json'
             for part in ('conversion', 'training')]
    if args.coefficients or not any(path.exists() for path in parts):
        source = args.coefficients or COEFFICIENTS
        measured = load_coefficients(source)
    else:
        source = args.out_dir
        measured = coefficients_of(*map(load_json, parts))
    print(f'{source}: {measured}')
    rows = [row for scans in args.num_scans
            for row in costs_of(measured, scans, args.epochs, args.price)]
    show(rows, ['scans', 'work', 'core_hours', 'hours_on_two', 'price',
                'gigabytes', 'gpu'], args.out_dir / 'costs.json',
         price=args.price, epochs=args.epochs, measured=measured)


# ------------------------------------------------------------------------ main
PARTS = dict(conversion=conversion, training=training, costs=costs)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Measure, print the tables, leave a JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out-dir', type=Path,
                        default=Path('work_dirs/scaling'))
    parser.add_argument('--only', nargs='+', choices=PARTS,
                        default=list(PARTS), help='parts')
    parser.add_argument('--processes', type=int, nargs='+',
                        default=[1, 2, 4], help='default 1 2 4')
    parser.add_argument('--scans', type=int, default=12, help='conversion, '
                        'weak scaling: of each worker; default 12')
    parser.add_argument('--image-size', type=int, default=256,
                        help='conversion: pixels per side; default 256')
    parser.add_argument('--steps', type=int, default=15, help='training: '
                        f'after {WARM_UP} for warm-up; default 15')
    parser.add_argument('--num-scans', type=int, nargs='+',
                        default=[1018, 100_000], help='costs: of how many '
                        'scans; default those of LIDC-IDRI and 100000')
    parser.add_argument('--epochs', type=int, default=24, help='costs: '
                        'default 24, as the configs for LIDC-IDRI have it')
    parser.add_argument('--coefficients', type=Path, help='costs: JSON with '
                        f'the fields of {COEFFICIENTS.name} beside this file, '
                        'which is the default where --out-dir has nothing '
                        'measured')
    parser.add_argument('--price', type=float, help='costs: of a core hour')
    args = parser.parse_args(argv)
    for name in ('processes', 'scans', 'image_size', 'steps', 'num_scans',
                 'epochs', 'price'):
        value = getattr(args, name)
        if value is not None and not np.min(value) > 0:
            raise UserError(f'--{name.replace("_", "-")}: expected above 0, '
                            f'found {np.min(value)}')
    if 1 not in args.processes:
        raise UserError('--processes: expected 1 among them, which all are '
                        f'compared with, found {args.processes}')
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for part, measure in PARTS.items():
        if part in args.only:
            measure(args)


if __name__ == '__main__':
    main()
