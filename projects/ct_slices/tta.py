"""Test-time augmentation: what mirrored slices of a scan agree on."""

from typing import List

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseTTAModel

from projects.core.boxes import (
    build_box3d_instances,
    fuse_boxes,
    gravity_boxes,
)

__all__ = ['CTSliceTTAModel']


@MODELS.register_module()
class CTSliceTTAModel(BaseTTAModel):
    """Boxes of a scan that its versions, mirrored by
    :class:`~projects.ct_slices.transforms.FlipCTScan`, agree on; those of
    slices are the first version's."""

    def merge_preds(self, data_samples_list: List[list]) -> list:
        """One sample per scan."""
        merged = []
        for versions in data_samples_list:
            parts = []
            for number, sample in enumerate(versions):
                found = sample.pred_instances_3d
                parts.append((gravity_boxes(found.bboxes_3d)[:, :6],
                              found.scores_3d, found.labels_3d,
                              torch.full_like(found.labels_3d, number)))
            versions[0].pred_instances_3d = build_box3d_instances(*fuse_boxes(
                *map(torch.cat, zip(*parts)), range(len(versions))))
            merged.append(versions[0])
        return merged
