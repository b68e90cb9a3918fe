"""Test-time augmentation: what mirrored slices of a scan agree on."""

from typing import List

from mmdet3d.registry import MODELS
from mmengine.model import BaseTTAModel

from projects.core.boxes import fuse_versions, gravity_boxes

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
            found = [sample.pred_instances_3d for sample in versions]
            versions[0].pred_instances_3d = fuse_versions(found, [
                gravity_boxes(each.bboxes_3d)[:, :6] for each in found])
            merged.append(versions[0])
        return merged
