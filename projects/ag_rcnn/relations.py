"""Which nodes of two images can show the same thing: H_g of the graph.

A relation is a module that takes two images' samples to a matrix (N, M) of
their nodes; ``in_order`` says whether the first is the first of the two kinds
of images that it knows.
"""

import logging
from typing import Iterator, Sequence, Tuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet3d.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor
from tqdm import tqdm

from projects.ag_rcnn.graph import finding_nodes
from projects.ag_rcnn.transforms import unaugmented
from projects.core import geometry
from projects.core.engine.checkpoints import inner_model

__all__ = ['CoOccurrence', 'EpipolarRelation', 'FitRelationHook',
           'same_findings', 'view_pairs']


@MODELS.register_module()
class CoOccurrence(BaseModule):
    """How often findings lay at both nodes in the training set (document 004,
    H_g): ``e_ij / sqrt(D_i D_j)``, where D are the sums of rows and columns.

    :class:`FitRelationHook` counts before a training; checkpoints hold the
    counts. A finding is at the k nodes next to its centre, as a cell is. A
    pair are the findings in both views that the set's ``abnormality`` calls
    the same; where it has none, all of one class.

    Args:
        num_nodes (Sequence[int]): In CC and in MLO.
        k (int): Nodes of a finding.
    """

    def __init__(self, num_nodes: Sequence[int] = (22, 26), k: int = 3
                 ) -> None:
        super().__init__()
        self.k = k
        self.register_buffer('counts', torch.zeros(*num_nodes))

    @staticmethod
    def in_order(sample: DetDataSample, other: DetDataSample) -> bool:
        """Whether the first is a CC."""
        return sample.view == 'CC'

    def forward(self, sample: DetDataSample, other: DetDataSample) -> Tensor:
        """H_g of one image's nodes and those of the other view, (N, M)."""
        of_cc, of_mlo = self.counts.sum(1), self.counts.sum(0)
        weights = self.counts / (
            of_cc[:, None] * of_mlo).clamp(min=1e-9).sqrt()
        return weights if self.in_order(sample, other) else weights.T

    @property
    def fitted(self) -> bool:
        """Whether there are any counts."""
        return bool(self.counts.any())

    def fit(self, dataset) -> int:
        """Count in a set.

        Args:
            dataset: Of exams, with nodes.

        Returns:
            int: Pairs of findings.
        """
        self.counts.zero_()
        pairs = 0
        for row in tqdm(range(len(dataset)), desc='findings at nodes',
                        unit='exam', dynamic_ncols=True):
            record = dataset.get_data_info(row)
            if not any(image['instances'] for image in record['images']):
                continue
            for views in view_pairs(dataset[row]['data_samples'].images):
                same = same_findings(*views).float()
                pairs += int(same.sum())
                at, there = (finding_nodes(s, self.k) / self.k
                             for s in views)
                self.counts += (at.T @ same @ there).to(self.counts)
        return pairs


def view_pairs(images: Sequence[DetDataSample]
               ) -> Iterator[Tuple[DetDataSample, DetDataSample]]:
    """CC and MLO of each breast of an exam in which both have nodes."""
    by_id = {sample.img_id: sample for sample in images}
    for sample in images:
        other = by_id.get(sample.partners['other_view'])
        if sample.view == 'CC' and other is not None and (
                sample.nodes is not None and other.nodes is not None):
            yield sample, other


def same_findings(sample: DetDataSample, other: DetDataSample) -> Tensor:
    """Whether findings (N,) and (M,) of both views may be the same, (N, M)."""
    first, second = sample.gt_instances, other.gt_instances
    alike, numbers = (getattr(first, key)[:, None] == getattr(second, key)
                      for key in ('labels', 'abnormalities'))
    unknown = (first.abnormalities[:, None] < 0) | (second.abnormalities < 0)
    return alike & (numbers | unknown)


@MODELS.register_module()
class EpipolarRelation(BaseModule):
    """What cameras say: nodes of another view near the line on which what one
    node shows must lie, ``e_ij / sqrt(D_i D_j)`` of ones and zeros.

    Args:
        reach (float): From the line (px).
    """

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach

    @staticmethod
    def in_order(sample: DetDataSample, other: DetDataSample) -> bool:
        """Views are all alike."""
        return True

    def forward(self, sample: DetDataSample, other: DetDataSample) -> Tensor:
        """H_g of the nodes of two views with ``ct2img``, (N, M). A node is
        related whichever of the two lines it is near."""
        first, second = (np.asarray(s.nodes, float) for s in (sample, other))
        matrices = [np.asarray(s.ct2img, float) for s in (sample, other)]
        there = geometry.epipolar_distances(first, matrices[0], second,
                                            matrices[1])
        back = geometry.epipolar_distances(second, matrices[1], first,
                                           matrices[0])
        near = (np.minimum(there, back.T) <= self.reach).astype(float)
        both = near.sum(1)[:, None] * near.sum(0)
        boxes = sample.gt_instances.bboxes
        return boxes.new_tensor(near / np.sqrt(both.clip(1e-9)))


@HOOKS.register_module()
class FitRelationHook(Hook):
    """Lets relations that come from a training set see it, once, before the
    training, as it is: what augmentation does depends on the seed."""

    priority = 'HIGH'

    def before_train(self, runner) -> None:
        """Fit those that are not."""
        for module in inner_model(runner.model).modules():
            if hasattr(module, 'fit') and not module.fitted:
                dataset = runner.train_dataloader.dataset
                with unaugmented(dataset):
                    pairs = module.fit(dataset)
                print_log(
                    f'{pairs} pairs of findings in both views of a breast'
                    + ('' if pairs else ': expected some, without them the '
                       'other view tells nothing'), logger='current',
                    level=logging.INFO if pairs else logging.WARNING)
