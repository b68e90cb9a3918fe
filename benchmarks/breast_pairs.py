"""How much one view of a breast can tell about the other.

    python benchmarks/breast_pairs.py --data-root SET [--results R.json]

For findings in both views (``abnormality``): whether they lie at like nodes,
and how often H_g, counted on the training set, relates the nodes of those of
the test at all. Of a test's results also how many findings are seen in one
view and missed in the other: what is to be gained by telling it.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
from mmdet3d.registry import DATASETS, MODELS
from mmengine.registry import init_default_scope

from projects.ag_rcnn.graph import finding_nodes
from projects.ag_rcnn.relations import (
    CoOccurrence,
    same_findings,
    view_pairs,
)
from projects.core.engine.configs import load_config
from projects.core.files import dump_json, load_json

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs/ag_rcnn/ag-rcnn_small_500i_breast.py'
RATE = .5  # false positives an image


def exams_of(cfg, root: Path, split: str):
    """A split with nodes, as it is tested."""
    return DATASETS.build(dict(
        cfg.test_dataloader.dataset, data_root=str(root),
        ann_file=f'annotations/instances_{split}.json'))


def pairs_of(exams) -> List[tuple]:
    """Samples of CC and MLO and rows of the same finding in them."""
    pairs = [(cc, row, mlo, other) for exam in exams
             for cc, mlo in view_pairs(exam['data_samples'].images)
             for row, other in same_findings(cc, mlo).nonzero().tolist()]
    if not pairs:
        raise SystemExit(f'{exams.source}: expected findings in CC and MLO of '
                         'a breast with landmarks, found none')
    return pairs


def line_of(nodes: np.ndarray, common: int) -> np.ndarray:
    """Line of each node: 0 is the nipple, 3 the pectoral line, 4 what MLO has
    more."""
    return np.where(nodes < common, -(-nodes // ((common - 1) // 3)), 4)


def agreement(pairs: List[tuple], common: int) -> Dict[str, float]:
    """Share of pairs whose nearest nodes are on one line, and like nodes; and
    of all combinations of views of different pairs."""
    first, second = (np.array([
        int(finding_nodes(pair[at], 1)[pair[at + 1]].argmax())
        for pair in pairs]) for at in (0, 2))
    lines = [line_of(nodes, common) for nodes in (first, second)]
    return dict(
        pairs=len(pairs), same_line=float((lines[0] == lines[1]).mean()),
        same_line_by_chance=float((lines[0][:, None] == lines[1]).mean()),
        same_node=float((first == second).mean()),
        same_node_by_chance=float((first[:, None] == second).mean()))


def support(pairs: List[tuple], relation: CoOccurrence) -> Dict[str, float]:
    """Of which share of a test's pairs H_g relates a node of one view to one
    of the other, and which share of all nodes it relates."""
    related = []
    for cc, row, mlo, other in pairs:
        near = [finding_nodes(sample, relation.k)[at].bool()
                for sample, at in ((cc, row), (mlo, other))]
        related.append(bool(
            relation(cc, mlo)[near[0]][:, near[1]].any()))
    return dict(related=float(np.mean(related)),
                all_related=float((relation.counts > 0).float().mean()))


def seen(results: dict) -> Dict[str, float]:
    """Share of findings seen at :data:`RATE`, in an image and in at least one
    view of the breast; findings are told apart by their order."""
    froc = results['by_class']['mass']['froc']
    threshold = min((score for score, rate in zip(
        froc['threshold'], froc['false_positives_per_image'])
        if rate <= RATE), default=np.inf)
    hits: Dict[Tuple, List[bool]] = defaultdict(list)
    for image in results['images']:
        found = {p['match'] for p in image['predictions']
                 if p['score'] >= threshold}
        for row in range(len(image['ground_truth'])):
            hits[image['patient'], image['laterality'], row].append(
                row in found)
    both = [views for views in hits.values() if len(views) == 2]
    return dict(
        in_an_image=float(np.mean(sum(hits.values(), []))),
        in_both_views=float(np.mean([all(views) for views in both])),
        in_one_view_alone=float(np.mean([
            any(views) and not all(views) for views in both])),
        findings=len(both))


def main(argv: Optional[List[str]] = None) -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--results', type=Path,
                        help='of a test, as of Mask R-CNN')
    parser.add_argument('--out', type=Path)
    args = parser.parse_args(argv)
    cfg = load_config(str(CONFIG))
    init_default_scope('mmdet3d')
    train, test = (exams_of(cfg, args.data_root, split)
                   for split in ('train', 'test'))
    relation = MODELS.build(cfg.model.graph.relation)
    relation.fit(train)
    pairs = pairs_of(test)
    told = dict(
        train=agreement(pairs_of(train), len(relation.counts)),
        test=agreement(pairs, len(relation.counts)),
        h_g=support(pairs, relation))
    if args.results:
        told['seen'] = seen(load_json(args.results))
    for name, figures in told.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    if args.out:
        dump_json(told, args.out)


if __name__ == '__main__':
    main()
