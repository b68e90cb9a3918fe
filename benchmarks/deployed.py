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
from tqdm import tqdm

from projects.core.boxes import gravity_boxes
from projects.core.deployed import DeployedModel
from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import argument_parser, one_sentence

SAME = .01, 1e-4  # mm, of score


def apart(found: tuple, other: tuple) -> np.ndarray:
    """Of each box found the distance (mm) and the difference in score to the
    like one of another's, (N, 2); infinite where there is none."""
    boxes, scores, labels = found
    others, other_scores, other_labels = other
    if not len(others):
        return np.full((len(boxes), 2), np.inf)
    distance = np.abs(boxes[:, None] - others).max(-1)
    distance[labels[:, None] != other_labels] = np.inf
    score = np.abs(scores[:, None] - other_scores)
    # Scores may be alike: the order of boxes says nothing.
    like = (distance / SAME[0] + score / SAME[1]).argmin(1)
    rows = np.arange(len(boxes))
    return np.stack([distance[rows, like], score[rows, like]], 1)


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
    pairs, times, views, lengths = [], [], [], []
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
        lengths.append(len(boxes[0]) - len(again[0]))
    same = [(pair <= SAME).all(1) for pair in pairs]
    farthest = np.concatenate([pair[kept] for pair, kept in zip(pairs, same)]
                              ).max(0, initial=0)
    seconds = [statistics.median(column) for column in zip(*times)]
    print(f'{len(views)} scans of {min(views)} to {max(views)} views, '
          f'{sum(map(len, same))} boxes: {sum(map(sum, same))} are the same, '
          f'at most {farthest[0]:.1g} mm and {farthest[1]:.1g} of score '
          'apart; '
          f'the others are in {sum(not all(kept) for kept in same)} scans; '
          f'{sum(map(bool, lengths))} scans have another number of boxes')
    print(f'a scan takes {seconds[0]:.2f} s in PyTorch, {seconds[1]:.2f} s '
          'deployed (medians)')


if __name__ == '__main__':
    main()
