"""MV2D-Xray's boxes in space, seen in each view, as a detector of single views
is measured.

    python benchmarks/boxes_in_views.py RESULTS.json --data-root SET
        --out in_views.json [--against OTHER.json ...]

RESULTS.json is of tools/test.py with a model of 3D boxes, on the test split
of SET; OTHER.json of tools/test.py with
configs/ag_rcnn/ag-rcnn_small_epipolar_2000i_quick-v2-views.py on the same.
A box in space stands in each view that shows it, with its score.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.registry import init_default_scope

from projects.core import geometry
from projects.core.engine.command_line import one_sentence
from projects.core.engine.configs import load_config
from projects.core.evaluation.metric_images import (
    ImageFROCMetric,
    expect_images,
    recall_difference,
)
from projects.core.files import DataError, dump_json, load_json
from projects.core.results import load_results

CONFIG = Path(__file__).resolve().parent.parent / (
    'configs/ag_rcnn/ag-rcnn_small_epipolar_2000i_quick-v2-views.py')


def exams_of(data_root: str) -> Tuple[List[dict], List[str]]:
    """A set's test split as scans of
    :class:`~projects.ag_rcnn.dataset.ViewPairDataset`, and its classes."""
    cfg = load_config(str(CONFIG))
    init_default_scope('mmdet3d')
    data = DATASETS.build(dict(cfg.test_dataloader.dataset,
                               data_root=data_root))
    return ([data.get_data_info(row) for row in range(len(data))],
            data.metainfo['classes'])


def in_views(exam: dict, boxes: np.ndarray, scores: np.ndarray) -> List[dict]:
    """What a scan's boxes are in each of its views, beside the view's truth.

    Args:
        exam: A scan of :class:`~projects.ag_rcnn.dataset.ViewPairDataset`.
        boxes: (N, 7) (mm).
        scores: (N,), the best first.

    Returns:
        list: of each view, as :class:`~projects.core.evaluation.
        metric_images.ImageFROCMetric` keeps images. A view has no boxes that
        it does not show; others end at its border.
    """
    views = []
    for image in exam['images']:
        rect, depth = geometry.project_boxes(
            boxes, np.asarray(image['ct2img'])[None])
        size = image['width'], image['height']
        rect = rect[0].clip(0, np.tile(size, 2))
        seen = (depth[0] > 0) & (rect[:, 2:] > rect[:, :2]).all(1)
        truth, ignored = (
            np.array([i['bbox'] for i in image['instances']
                      if i['ignore'] == aside], float).reshape(-1, 4)
            for aside in (False, True))
        views.append(dict(
            {key: image[key] for key in
             ('img_id', 'img_path', 'patient', 'laterality', 'view')},
            ori_shape=size[::-1], boxes=rect[seen], scores=scores[seen],
            labels=np.zeros(seen.sum(), int), truth=truth,
            truth_labels=np.zeros(len(truth), int), ignored=ignored))
    return views


def figures_of(scans: Dict[str, dict], exams: List[dict],
               classes: List[str]) -> dict:
    """The figures by image of all scans.

    Raises:
        DataError: The results are not of these scans.
    """
    tokens = {exam['token'] for exam in exams}
    if tokens != set(scans):
        raise DataError('results: expected the scans of the test split, '
                        f'{len(tokens)}, found {len(scans)} of which '
                        f'{len(tokens & set(scans))} are of it')
    metric = ImageFROCMetric()
    metric.dataset_meta = dict(classes=classes)
    kept = []
    for exam in exams:
        found = sorted(scans[exam['token']]['predictions'],
                       key=lambda box: -box['score'])
        kept.append(in_views(
            exam, np.array([box['bbox_3d'] for box in found],
                           float).reshape(-1, 7),
            np.array([box['score'] for box in found], float)))
    metric.compute_metrics(kept)
    return metric.full_results


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Project, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--against', type=Path, nargs='+', default=[])
    args = parser.parse_args(argv)
    scans = {scan['token']: scan
             for scan in load_results(args.results)['scans']}
    others = [load_json(path) for path in args.against]
    for path, other in zip(args.against, others):
        expect_images(other, path)
    mine = figures_of(scans, *exams_of(args.data_root))
    dump_json(mine, args.out)
    for path, other in zip(args.against, others):
        print('R@0.5, more than {}: {:+.3f} [{:+.3f}, {:+.3f}]'.format(
            path, *recall_difference(mine, other)))


if __name__ == '__main__':
    main()
