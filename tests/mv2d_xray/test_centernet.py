"""The 2D stage of the small models, where findings do not count."""

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData

from projects.mv2d_xray.centernet import XRayCenterNetHead
from tests.helpers.models import CONFIGS


def loss_of(heatmap, boxes, ignored):
    config = Config.fromfile(
        CONFIGS.parent / '_base_/models/mv2d-xray_small.py')
    head = MODELS.build(dict(config.model.detector_2d.bbox_head,
                             in_channels=4, feat_channels=4))
    assert isinstance(head, XRayCenterNetHead)
    count = len(heatmap)
    zeros = torch.zeros(count, 2, 16, 16)
    return head.loss_by_feat(
        [heatmap], [zeros], [zeros],
        [InstanceData(bboxes=b, labels=torch.zeros(len(b), dtype=torch.long))
         for b in boxes], [dict(batch_input_shape=(64, 64))] * count,
        None if ignored is None else [
            InstanceData(bboxes=b) for b in ignored])['loss_center_heatmap']


def test_nothing_is_learned_where_a_finding_does_not_count():
    heatmap = torch.full((2, 1, 16, 16), .3, requires_grad=True)
    none = torch.zeros(0, 4)
    counts = torch.tensor([[8., 8, 24, 24]])
    # Three pixels of a cell of four; the centre of the other one lies in it.
    small = torch.tensor([[41., 50, 43, 53], [14., 14, 18, 18]])
    loss_of(heatmap, [counts, none], [small, none]).backward()
    gradient = heatmap.grad[:, 0]
    left_out = (gradient == 0).nonzero().tolist()
    assert [0, 12, 10] in left_out and [0, 13, 10] in left_out
    assert len(left_out) == 2 + 3  # the centre's cell is learned
    assert gradient[0, 4, 4] < 0
    assert (gradient[1] > 0).all()


def test_as_mmdets_without_any():
    heatmap = torch.rand(2, 1, 16, 16)
    boxes = [torch.tensor([[8., 8, 24, 24]]), torch.zeros(0, 4)]
    nothing = [torch.zeros(0, 4)] * 2
    assert loss_of(heatmap, boxes, nothing) == loss_of(heatmap, boxes, None)
