"""Whether a deployed model finds what the model that it was finds.

    python tools/deploy.py CONFIG CHECKPOINT --out model
    python benchmarks/deployed.py CONFIG CHECKPOINT --model model \
        [--split test] [--scans 50] [--data-root ...]

Scans have all their views, or some of them that are drawn with their number,
two or more. Times are of one scan with all that comes after its images are
read, in the threads of ``OMP_NUM_THREADS``.
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


def differences(found, other) -> Optional[tuple]:
    """The largest of boxes (mm) and of scores, or None where their number or
    a label is another one."""
    (boxes, scores, labels), (other_boxes, other_scores, other_labels) = (
        [part[np.argsort(-each[1], kind='stable')] for part in each]
        for each in (found, other))
    if not np.array_equal(labels, other_labels):
        return None
    return (np.abs(boxes - other_boxes).max(initial=0),
            np.abs(scores - other_scores).max(initial=0))


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
    worst, times, views, boxes, other = [], [], [], 0, 0
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
        difference = differences(
            (gravity_boxes(found.bboxes_3d).numpy(), found.scores_3d.numpy(),
             found.labels_3d.numpy()), again)
        views.append(len(images))
        boxes += len(found)
        other += difference is None
        worst.append(difference or (0, 0))
    apart = np.max(worst, axis=0)
    seconds = [statistics.median(column) for column in zip(*times)]
    print(f'{len(views)} scans of {min(views)} to {max(views)} views, {boxes} '
          f'boxes: at most {apart[0]:.1g} mm and {apart[1]:.1g} of score '
          f'apart; {other} scans with other boxes')
    print(f'a scan takes {seconds[0]:.2f} s in PyTorch, {seconds[1]:.2f} s '
          'deployed (medians)')


if __name__ == '__main__':
    main()
