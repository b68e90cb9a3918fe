"""mmdet's CenterNet, for findings that do not count."""

from typing import List, Optional

import torch
from mmdet.models.dense_heads import CenterNetHead
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core.boxes import cells_in_boxes

__all__ = ['XRayCenterNetHead']


@MODELS.register_module()
class XRayCenterNetHead(CenterNetHead):
    """CenterNet's head (arXiv 1904.07850) that learns nothing where findings
    do not count.

    mmdet's takes the boxes to be ignored and does not look at them: there it
    learns background.
    """

    def loss_by_feat(self,
                     center_heatmap_preds: List[Tensor],
                     wh_preds: List[Tensor],
                     offset_preds: List[Tensor],
                     batch_gt_instances: List[InstanceData],
                     batch_img_metas: List[dict],
                     batch_gt_instances_ignore: Optional[List[InstanceData]]
                     = None) -> dict:
        """As mmdet's, with ``batch_gt_instances_ignore`` (``bboxes``, px)."""
        if batch_gt_instances_ignore is not None:
            image_shape = batch_img_metas[0]['batch_input_shape']
            learned = torch.stack([
                self._learned(center_heatmap_preds[0], image_shape,
                              gt.bboxes, ignored.bboxes)
                for gt, ignored in zip(batch_gt_instances,
                                       batch_gt_instances_ignore)])
            # What predicts 0 has neither loss nor gradient but at a centre.
            center_heatmap_preds = [center_heatmap_preds[0] * learned[:, None]]
        return super().loss_by_feat(
            center_heatmap_preds, wh_preds, offset_preds, batch_gt_instances,
            batch_img_metas, batch_gt_instances_ignore)

    @staticmethod
    def _learned(heatmap: Tensor, image_shape: tuple, boxes: Tensor,
                 ignored: Tensor) -> Tensor:
        """Cells (h, w) of one image outside of what is ignored (M, 4), and
        those of the centres of boxes (N, 4) (px)."""
        shape = heatmap.shape[-2:]
        grids = [torch.arange(cells, device=heatmap.device) for cells in shape]
        # Rows and columns; a cell that a box touches is in it.
        scale = heatmap.new_tensor(
            [cells / size for cells, size in zip(shape, image_shape)])
        low, high = [corner.flip(1) * scale
                     for corner in (ignored[:, :2], ignored[:, 2:])]
        learned = ~cells_in_boxes(low - 1, high, grids)
        centres = (boxes[:, :2] + boxes[:, 2:]).flip(1) * scale / 2
        rows, columns = centres.long().unbind(1)
        learned[rows, columns] = True
        return learned.to(heatmap)
