"""Whether a deployed model finds what the model that it was finds.

    python tools/deploy.py CONFIG CHECKPOINT --out model
    python benchmarks/deployed.py CONFIG CHECKPOINT --model model \
        [--split test] [--scans 50] [--data-root ...] [--runtime PYTHON]

Scans have all their views, or some of them that are drawn with their number,
two or more. Boxes are the same within 0.01 mm and 0.0001 of score. Times are
of one scan with all that comes after its images are read, in the threads of
``OMP_NUM_THREADS``. With ``--runtime``, the Python of an environment that has
the runtime's wheel, the whole command is timed, too: from its start to all
files of one scan, and of each further one.
"""

import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from robustness import with_step
from scipy.optimize import linear_sum_assignment
from terminaltables import GithubFlavoredMarkdownTable
from tqdm import tqdm

from projects.core.boxes import gravity_boxes
from projects.core.deployed import DeployedModel
from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    one_sentence,
)

SAME = .01, 1e-4  # mm, of score


def apart(found: tuple, other: tuple) -> np.ndarray:
    """How far boxes are from another's (mm), and their scores, one by one,
    (N, 2); infinite where there is none of the label."""
    boxes, scores, labels = found
    others, other_scores, other_labels = other
    distance = np.abs(boxes[:, None] - others).max(-1)
    score = np.abs(scores[:, None] - other_scores)
    alike = labels[:, None] == other_labels
    # Scores may be the same: the order of boxes says nothing.
    row, column = linear_sum_assignment(np.where(
        alike, distance / SAME[0] + score / SAME[1], 1e9))
    result = np.full((len(boxes), 2), np.inf)
    result[row] = np.where(alike[row, column, None], np.stack(
        [distance[row, column], score[row, column]], 1), np.inf)
    return result


def differences(found: tuple, other: tuple) -> Optional[tuple]:
    """The largest of boxes (mm) and of scores, or None where their number or
    a label is another one."""
    if len(found[0]) != len(other[0]):
        return None
    pairs = apart(found, other)
    return tuple(pairs.max(0, initial=0)) if np.isfinite(pairs).all() else None


def command_times(python: Path, model: str, folders: List[Path], rig: Path,
                  threads: int, repeats: int = 5) -> Dict[str, Dict]:
    """Of the runtime's command: seconds on the clock and of the CPU.

    Args:
        python: Of the runtime's environment.
        model: Folder that tools/deploy.py wrote.
        folders: Of the images of two scans or more.
        rig: Their ``rig.json``.
        threads: Of the computation.
        repeats: Of which the medians are taken, with and without the check of
            the rig in turn.

    Returns:
        dict: By options ``first`` and ``further``, each (clock, CPU): from
        the start to all files of one scan, and what each further one adds.

    Raises:
        UserError: The command failed.
    """
    # Of this process, nothing that the runtime could find.
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith('PYTHON')}

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once(scans: List[Path], *options: str) -> np.ndarray:
        with tempfile.TemporaryDirectory() as out:
            begin, used = time.perf_counter(), cpu()
            done = subprocess.run(  # noqa: S603  a person's own Python
                [str(python.absolute()), '-m', 'mv2d_xray_runtime.run',
                 str(Path(model).absolute()), '--images',
                 *(str(scan.absolute()) for scan in scans), '--rig',
                 str(rig.absolute()), '--out-dir', 'found', '--threads',
                 str(threads), *options],
                cwd=out, env=environment, capture_output=True, text=True)
            clock, used = time.perf_counter() - begin, cpu() - used
        if done.returncode:
            raise UserError(f'--runtime: expected boxes of {len(scans)} scans'
                            f', found {done.stderr.strip()[-300:]}')
        return np.array([clock, used])

    found: Dict[str, List] = {'': [], '--trust-rig': []}
    for number in range(1 + repeats):
        for option, rows in found.items():
            one, all_ = (once(scans, *option.split())
                         for scans in (folders[:1], folders))
            if number:  # the first brings files into memory
                rows.append((one, (all_ - one) / (len(folders) - 1)))
    return {option: dict(zip(('first', 'further'), np.median(rows, axis=0)))
            for option, rows in found.items()}


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Run both on the same scans, compare."""
    parser = argument_parser(__doc__.splitlines()[0], split='test')
    parser.add_argument('--model', required=True,
                        help='folder that tools/deploy.py wrote')
    parser.add_argument('--scans', type=int, default=50,
                        help='how many, at most (default: %(default)s)')
    parser.add_argument('--runtime', type=Path, metavar='PYTHON',
                        help='of an environment with the runtime: its '
                        'command is timed on the first six of the scans')
    args = parser.parse_args(argv)
    deployed = DeployedModel(args.model, torch.get_num_threads())
    cfg, model, _ = load_for_split(args)
    cfg = with_step(cfg, dict(type='XRayViewDropout', prob=.6, min_views=2,
                              max_views=9))
    data = DATASETS.build(cfg.test_dataloader.dataset)
    pairs, times, views, other = [], [], [], 0
    count = min(args.scans, len(data))
    for index in tqdm(range(count), unit='scan'):
        np.random.seed(index)
        sample = data[index]
        images = sample['inputs']['img']
        start = time.perf_counter()
        with torch.no_grad():
            result = model.test_step(pseudo_collate([sample]))[0]
        middle = time.perf_counter()
        again = deployed.predict(
            images[:, images.shape[1] // 2].numpy(),
            np.asarray(result.metainfo['ct2img']))
        times.append((middle - start, time.perf_counter() - middle))
        found = result.pred_instances_3d
        boxes = (gravity_boxes(found.bboxes_3d).numpy(),
                 found.scores_3d.numpy(), found.labels_3d.numpy())
        views.append(len(images))
        pairs.append(apart(boxes, again))
        other += differences(boxes, again) is None
    same = [(pair <= SAME).all(1) for pair in pairs]
    farthest = np.concatenate([pair[kept] for pair, kept in zip(pairs, same)]
                              ).max(0, initial=0)
    seconds = [statistics.median(column) for column in zip(*times)]
    print(f'{len(views)} scans of {min(views)} to {max(views)} views, '
          f'{sum(map(len, same))} boxes: {sum(map(sum, same))} are the same, '
          f'at most {farthest[0]:.1g} mm and {farthest[1]:.1g} of score '
          f'apart; the others are in {sum(not all(kept) for kept in same)} '
          f'scans; {other} scans have another number of boxes or labels')
    print(f'a scan takes {seconds[0]:.2f} s in PyTorch, {seconds[1]:.2f} s '
          'deployed (medians)')
    if args.runtime:
        folders = [Path(next(iter(data.get_data_info(index)['images'].values(
            )))['img_path']).parent for index in range(min(count, 6))]
        timed = command_times(
            args.runtime, args.model, folders, Path(
                cfg.test_dataloader.dataset.data_root, 'rig.json'),
            torch.get_num_threads())
        print(GithubFlavoredMarkdownTable([
            ['mv2d-xray-run', 'to all files of one scan: s, CPU s',
             'each further scan: s, CPU s'],
            *([option or 'as it is', *(f'{clock:.2f}, {cpu:.2f}' for clock, cpu
                                       in row.values())]
              for option, row in timed.items())]).table)


if __name__ == '__main__':
    main()
