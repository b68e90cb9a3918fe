"""Whether a deployed model finds what the model that it was finds.

    python tools/deploy.py CONFIG CHECKPOINT --out model
    python benchmarks/deployed.py CONFIG CHECKPOINT --model model \
        [--split test] [--scans 50] [--data-root ...]

Scans have all their views, or some of them that are drawn with their number,
two or more. Boxes are the same within 0.01 mm and 0.0001 of score. Times are
of one scan with all that comes after its images are read, in the threads of
``OMP_NUM_THREADS``.
"""

import statistics
import time
from typing import List, Optional

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from robustness import with_step
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from projects.core.boxes import gravity_boxes
from projects.core.deployed import DeployedModel
from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import argument_parser, one_sentence

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


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Run both on the same scans, compare."""
    parser = argument_parser(__doc__.splitlines()[0], split='test')
    parser.add_argument('--model', required=True,
                        help='folder that tools/deploy.py wrote')
    parser.add_argument('--scans', type=int, default=50,
                        help='how many, at most (default: %(default)s)')
    args = parser.parse_args(argv)
    deployed = DeployedModel(args.model, torch.get_num_threads())
    cfg, model, _ = load_for_split(args)
    cfg = with_step(cfg, dict(type='XRayViewDropout', prob=.6, min_views=2,
                              max_views=9))
    data = DATASETS.build(cfg.test_dataloader.dataset)
    pairs, times, views, other = [], [], [], 0
    for index in tqdm(range(min(args.scans, len(data))), unit='scan'):
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


if __name__ == '__main__':
    main()
