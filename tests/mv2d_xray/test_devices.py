"""A GPU gives what a CPU gives: every op that the model uses, both ways.

On a machine without one, the CPU is compared with stored or plain answers
only, so that these tests run there, too.
"""

import numpy as np
import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign, batched_nms, nms
from mmengine.dataset import pseudo_collate

from data_converters.drr import Volume, render
from projects.core.boxes import fuse_boxes
from projects.core.rig import Rig
from projects.mv2d_xray.queries.grid import _PoolViews
from tests.helpers.models import FEATURES, REPORT_ALL, quick, scans_of
from tests.helpers.spheres import make_sphere_set

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
pytestmark = pytest.mark.parametrize('device', DEVICES)


def test_roi_align_of_a_ramp(device):
    # Bilinear samples of a plane are exact: the mean is the middle's value.
    ramp = torch.arange(16.).repeat(1, 1, 16, 1).to(device).requires_grad_()
    rois = torch.tensor([[0, 2., 3., 6., 9.], [0, 4., 4., 12., 8.]])
    out = RoIAlign(1, 1., 4, aligned=True)(ramp, rois.to(device))
    assert out.flatten().tolist() == pytest.approx([3.5, 7.5], abs=1e-5)
    out.sum().backward()
    assert float(ramp.grad.sum()) == pytest.approx(2., abs=1e-5)


def test_nms_keeps_the_best_of_each_place(device):
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.]])
    scores = torch.tensor([.5, .9, .1])
    _, kept = nms(boxes.to(device), scores.to(device), .5)
    assert kept.tolist() == [1, 2]
    _, kept = batched_nms(boxes.to(device), scores.to(device),
                          torch.tensor([0, 1, 0], device=device),
                          dict(type='nms', iou_threshold=.5))
    assert kept.tolist() == [1, 0, 2]


def test_boxes_of_one_place_become_one(device):
    boxes = torch.tensor([[0, 0, 0, 8, 8, 8], [2, 0, 0, 8, 8, 8],
                          [20, 0, 0, 8, 8, 8.]]).to(device)
    scores = torch.tensor([.3, .9, .1], device=device)
    labels = torch.zeros(3, dtype=torch.long, device=device)
    boxes, scores, labels = fuse_boxes(boxes, scores, labels, labels, [0], .1)
    assert boxes[:, 0].tolist() == pytest.approx([1.5, 20])
    assert scores.tolist() == pytest.approx([1 - .1 * .7, .1])
    assert labels.tolist() == [0, 0]


@pytest.mark.parametrize('precision', [torch.float32, torch.float16])
def test_deformable_convolution_without_offsets(device, precision):
    # No offsets and half of every weight is a plain convolution, halved.
    torch.manual_seed(0)
    module = ModulatedDeformConv2dPack(4, 6, 3, padding=1).to(device)
    torch.nn.init.zeros_(module.conv_offset.weight)
    torch.nn.init.zeros_(module.conv_offset.bias)
    images = torch.randn(2, 4, 9, 9, device=device)
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        found = module(images)
    expected = torch.nn.functional.conv2d(
        images, module.weight / 2, module.bias, padding=1)
    torch.testing.assert_close(
        found.float(), expected, rtol=1e-2 if precision == torch.float16
        else 1e-4, atol=1e-2 if precision == torch.float16 else 1e-5)
    found.sum().backward()
    assert module.conv_offset.weight.grad.abs().sum() > 0


def test_pooled_views_are_mean_and_deviation(device):
    torch.manual_seed(0)
    sampled = torch.randn(5, 3, 11, device=device, requires_grad=True)
    seen = (torch.rand(5, 1, 11, device=device) > .3).float()
    seen[:, :, 0] = 0
    mean, deviation = _PoolViews.apply(sampled, seen, 1e-4)
    for voxel in range(1, 11):
        values = sampled[seen[:, 0, voxel] > 0, :, voxel]
        torch.testing.assert_close(mean[:, voxel], values.mean(0))
        torch.testing.assert_close(
            deviation[:, voxel],
            (values.var(0, unbiased=False) + 1e-4).sqrt(), atol=1e-4,
            rtol=1e-3)
    (mean.sum() + deviation.sum()).backward()
    assert torch.isfinite(sampled.grad).all()


@pytest.mark.parametrize('renderer', ['joseph', 'siddon'])
def test_a_rendered_cube(device, renderer):
    # The middle ray crosses 40 mm of what attenuates by 0.02/mm.
    hu = np.full((60, 60, 60), -1000., np.float32)
    hu[10:50, 10:50, 10:50] = 0
    images = render(Volume.centred(hu, np.eye(3)),
                    Rig.circle(4, image_size=33), renderer, device)
    assert [i[16, 16] for i in images] == pytest.approx([.8] * 4, rel=.01)


def test_the_model_gives_the_same_everywhere(tmp_path, device):
    make_sphere_set(tmp_path, 1, 4)
    data = scans_of(tmp_path)
    found = {}
    for place in ('cpu', device):
        # Without 2D boxes, whose samplers draw differently.
        model = quick(**{'lifting_head.roi_queries': None,
                         'lifting_head.test_cfg': REPORT_ALL,
                         'detector_2d': FEATURES}).to(place)
        model.train()
        batch = model.data_preprocessor(pseudo_collate([data[0]]), True)
        losses = model(**batch, mode='loss')
        total, _ = model.parse_losses(losses)
        total.backward()
        model.eval()
        with torch.no_grad():
            result, = model.test_step(pseudo_collate([data[0]]))
        found[place] = (
            {k: float(v.detach()) for k, v in losses.items()},
            model.volume_head.heatmap.weight.grad.cpu(),
            result.pred_instances_3d.scores_3d.cpu())
    assert len(found['cpu'][2])
    expected, here = found['cpu'], found[device]
    for name, value in expected[0].items():
        assert here[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert torch.cosine_similarity(
        here[1].flatten(), expected[1].flatten(), 0) > .999
    torch.testing.assert_close(here[2][:5], expected[2][:5], rtol=.01,
                               atol=1e-3)
