"""The volume source: evidence of all views where the object is."""

import numpy as np
import pytest
import torch

from projects.core import geometry
from projects.core.boxes import draw_gaussians
from projects.mv2d_xray.queries.grid import _PoolViews
from projects.mv2d_xray.queries.volume import _Conv3d
from tests.helpers.volume import ct2img, head


def test_grid_is_centred_on_the_range():
    points = head().grid_points()
    assert points.shape == (20, 20, 20, 3)
    assert points[0, 0, 0].tolist() == [-57, -57, -57]
    assert points.reshape(-1, 3).mean(0).abs().max() < 1e-4


def test_lifting_puts_evidence_where_the_object_is():
    matrices = ct2img(size=256)
    centre = torch.tensor([[21., -15., 9.]])
    uv, _ = geometry.project(centre, matrices)
    maps = torch.zeros(8, 4, 64, 64)  # stride 4
    yy, xx = torch.meshgrid(torch.arange(64) + .5, torch.arange(64) + .5,
                            indexing='ij')
    for view in range(8):
        u, v = uv[view, 0] / 4
        maps[view] = torch.exp(-((xx - u)**2 + (yy - v)**2) / 4)
    module = head()
    volume = module.lift(maps, matrices, (256, 256))
    assert volume.shape == (1, 9, 20, 20, 20)
    best = volume[0, 0].flatten().argmax()
    peak = module.grid_points().reshape(-1, 3)[best]
    assert (peak - centre[0]).norm() < 6
    assert (volume[0, -1] == 1).all()  # all views see this small range


def test_what_all_voxels_share_does_not_matter():
    """Or the grid's zero padding hides the differences between voxels."""
    module = head().train()
    matrices = ct2img(size=256)
    features = torch.randn(8, 4, 64, 64)
    heatmap, code, _ = module(features, matrices, (256, 256))
    shifted, shifted_code, _ = module(features + 5, matrices, (256, 256))
    for one, two in ((heatmap, shifted), (code, shifted_code)):
        assert (one - two).abs().mean() < .05 * one.std()


def test_coarser_context_sees_further():
    """How far from a voxel a change of the volume still counts (voxels)."""
    reach = []
    for channels in (16, [16, 16], [16, 16, 16]):
        module = head(context_channels=channels).eval()
        volume = torch.randn(1, 11, 61, 61, 61, requires_grad=True)
        module._net(volume)[0, :, 30, 30, 30].sum().backward()
        rows = volume.grad.abs().sum((0, 1, 3, 4)).nonzero()[:, 0]
        reach.append((rows - 30).abs().max().item())
    assert reach[1] > 1.5 * reach[0] and reach[2] > 1.5 * reach[1]


@pytest.mark.parametrize('batch, stride', [(1, 1), (2, 1), (1, 2)])
def test_a_border_given_beforehand_changes_no_convolution(batch, stride):
    torch.manual_seed(0)
    conv = _Conv3d(6, 4, 3, stride=stride, padding=(1, 1, 2))
    x = torch.randn(batch, 6, 5, 4, 3).contiguous(
        memory_format=torch.channels_last_3d).requires_grad_()
    found, expected = conv(x), torch.nn.Conv3d.forward(conv, x)
    torch.testing.assert_close(found, expected)
    inputs, shift = [x, *conv.parameters()], torch.randn_like(found)
    for ours, plain in zip(torch.autograd.grad(found, inputs, shift),
                           torch.autograd.grad(expected, inputs, shift)):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_pooling_is_the_masked_mean_and_deviation():
    torch.manual_seed(0)
    sampled = torch.randn(5, 3, 11, dtype=torch.double, requires_grad=True)
    seen = (torch.rand(5, 1, 11) > .4).double()
    seen[:, :, 0] = 0
    mean, deviation = _PoolViews.apply(sampled, seen, 1e-4)
    for voxel in range(11):
        chosen = sampled[seen[:, 0, voxel] > 0, :, voxel]
        if len(chosen) == 0:
            assert (mean[:, voxel] == 0).all()
            continue
        assert torch.allclose(mean[:, voxel], chosen.mean(0))
        variance = chosen.var(0, unbiased=False)
        assert torch.allclose(deviation[:, voxel], (variance + 1e-4).sqrt())
    assert torch.autograd.gradcheck(
        lambda s: _PoolViews.apply(s, seen, 1e-4), (sampled, ))


def test_gaussians_have_one_at_the_centre_cell():
    axes = [torch.arange(10.), torch.arange(8.)]
    heat = draw_gaussians(torch.tensor([[3.2, 5.4]]), torch.tensor([1.5]),
                          axes)
    assert heat[3, 5] == 1 and heat.max() == 1
    assert heat[3, 7] == pytest.approx(np.exp(-2 / 2.25))
    assert draw_gaussians(torch.zeros(0, 2), torch.zeros(0), axes).sum() == 0


def test_codes_invert():
    module = head()
    boxes = torch.tensor([[3., 4, 5, 10, 12, 14, 0], [0, 0, 0, 5, 6, 7, 0]])
    points = torch.tensor([[0., 6, 6], [0, 0, 0]])
    centres, sizes = module.decode(module.encode(boxes, points), points)
    torch.testing.assert_close(centres, boxes[:, :3])
    torch.testing.assert_close(sizes, boxes[:, 3:6])


def test_a_perfect_heatmap_gives_back_its_boxes():
    module = head()
    boxes = torch.tensor([[-30., 10, 22, 10, 12, 14, 0],
                          [40., -41, 2, 20, 20, 20, 0]])
    axes = module.grid_axes()
    target = draw_gaussians(boxes[:, :3], torch.tensor([4., 5.]), axes)
    heatmap = torch.logit(target.clamp(1e-4, 1 - 1e-4))[None]
    # Every voxel says where the nearest box is.
    points = module.grid_points().reshape(-1, 3)
    nearest = torch.cdist(points, boxes[:, :3]).argmin(1)
    code = module.encode(boxes[nearest], points).T.reshape(6, 20, 20, 20)
    queries = module.queries(heatmap, code, torch.zeros(8, 20, 20, 20))
    top = queries.logits[:, 0].argsort(descending=True)[:2]
    found = torch.cat([queries.centres, queries.sizes], 1)[top]
    found = found[found[:, 0].argsort()]
    torch.testing.assert_close(found, boxes[:, :6], atol=1e-4, rtol=0)
    losses = module.loss_by_feat(heatmap, code, boxes,
                                 torch.zeros(2, dtype=torch.long),
                                 torch.zeros(0, 7))
    assert losses['loss_volume_box'].item() == pytest.approx(0, abs=1e-5)
    worse = module.loss_by_feat(-heatmap, code, boxes,
                                torch.zeros(2, dtype=torch.long),
                                torch.zeros(0, 7))
    assert losses['loss_heatmap'] < .01 * worse['loss_heatmap']
    # A neighbour of a centre's voxel that is wrong by a voxel costs, one far
    # away does not.
    x, y, z = (int((a - c).abs().argmin()) for a, c in zip(axes, boxes[0]))
    for step, counts in ((1, True), (3, False)):
        moved = code.clone()
        moved[0, x + step, y, z] += 1
        loss = module.loss_by_feat(heatmap, moved, boxes,
                                   torch.zeros(2, dtype=torch.long),
                                   torch.zeros(0, 7))['loss_volume_box']
        assert (loss > 1e-3) == counts


def test_boxes_at_the_edge_of_the_volume():
    module = head()
    edge = torch.tensor([[59.9, -59.9, 59.9, 10, 12, 14, 0]])
    code = torch.zeros(6, 20, 20, 20, requires_grad=True)
    loss = module.loss_by_feat(torch.zeros(1, 20, 20, 20), code, edge,
                               torch.zeros(1, dtype=torch.long),
                               torch.zeros(0, 7))['loss_volume_box']
    loss.backward()
    taught = code.grad.abs().sum(0) > 0
    assert taught[18:, :2, 18:].all() and taught.sum() == 8


def test_no_truth_and_truth_outside():
    module = head()
    heatmap = torch.zeros(1, 20, 20, 20, requires_grad=True)
    code = torch.zeros(6, 20, 20, 20, requires_grad=True)
    far = torch.tensor([[500., 0, 0, 9, 9, 9, 0]])
    none = torch.zeros(0, dtype=torch.long)
    for boxes, labels in ((torch.zeros(0, 7), none), (far, none.new_zeros(1))):
        losses = module.loss_by_feat(heatmap, code, boxes, labels,
                                     torch.zeros(0, 7))
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
    assert heatmap.grad.abs().sum() > 0


def test_nothing_is_learned_on_ignored_findings():
    module = head()
    ignored = torch.tensor([[0., 0, 0, 12, 12, 12, 0]])
    heatmap = torch.zeros(1, 20, 20, 20, requires_grad=True)
    losses = module.loss_by_feat(
        heatmap, torch.zeros(6, 20, 20, 20), torch.zeros(0, 7),
        torch.zeros(0, dtype=torch.long), ignored)
    losses['loss_heatmap'].backward()
    points = module.grid_points()
    on = (points.abs() <= 6).all(-1)
    assert (heatmap.grad[0][on] == 0).all()
    assert (heatmap.grad[0][~on] != 0).float().mean() > .9


def test_peaks_are_local_maxima_above_the_threshold():
    module = head(max_queries=5, score_thr=.5)
    heatmap = torch.full((1, 20, 20, 20), -9.)
    heatmap[0, 4, 4, 4], heatmap[0, 4, 4, 5] = 3., 2.  # one peak of two
    heatmap[0, 12, 3, 9] = 1.
    index, labels = module.peaks(heatmap)
    assert len(index) == 2 and labels.tolist() == [0, 0]
    assert index[0].item() == (4 * 20 + 4) * 20 + 4


def test_peaks_without_a_place_are_known():
    module = head(max_queries=2, score_thr=.5, num_classes=2)
    heatmap = torch.full((2, 20, 20, 20), -9.)
    for place, value in enumerate((3., 1., 2., .5, -1.)):
        heatmap[place % 2, 4 * place, 4, 4] = value
    assert module.peaks(heatmap)[1].tolist() == [0, 0]
    assert module.dropped(heatmap) == pytest.approx(
        torch.tensor([1., .5]).sigmoid().tolist())
    module.max_queries = 4
    assert module.dropped(heatmap) == []


def test_a_voxel_that_peaks_in_two_classes_is_one_query():
    """Two would count as two hints of the stronger class."""
    module = head(num_classes=2)
    heatmap = torch.full((2, 20, 20, 20), -9.)
    heatmap[:, 4, 4, 4] = torch.tensor([.4, -2.])
    heatmap[:, 12, 3, 9] = torch.tensor([-5., .8])
    index, label = module.peaks(heatmap)
    assert label.tolist() == [1, 0, 1] and index[1] == index[2]
    queries = module.queries(heatmap, torch.zeros(6, 20, 20, 20),
                             torch.zeros(8, 20, 20, 20))
    assert queries.logits.tolist() == [[-5., pytest.approx(.8)],
                                       [pytest.approx(.4), -2.]]


def test_padding_shows_nothing():
    """What a larger scan beside it adds to a scan's maps is no view of it."""
    module, matrices = head(), ct2img()
    matrices[:, 0] -= 28 * matrices[:, 2]  # partly out of view, to the left
    features = torch.rand(8, 4, 16, 16)
    alone = module.lift(features, matrices, (64, 64))
    padded = torch.nn.functional.pad(features, (0, 16, 0, 16), value=9.)
    beside = module.lift(padded, matrices, (64, 64), (128, 128))
    assert .3 < alone[0, -1].mean() < .9
    torch.testing.assert_close(alone[0, -1], beside[0, -1])
    torch.testing.assert_close(alone, beside)


def test_2d_heatmap_loss_prefers_the_truth():
    module = head()
    boxes = [torch.tensor([[8., 8, 24, 24, 0]]), torch.zeros(0, 5)]
    ignored = [torch.tensor([[40., 40, 56, 56]]), torch.zeros(0, 4)]
    blank = torch.zeros(2, 4, 16, 16)
    low = module.loss_2d(blank, 4, boxes, ignored)['loss_heatmap_2d']
    # What fires on an ignored finding costs nothing; elsewhere it does.
    torch.nn.init.ones_(module.heatmap_2d.weight)
    on, off = blank.clone(), blank.clone()
    on[0, :, 10:14, 10:14] = 5
    off[0, :, 2:4, 10:14] = 5
    assert module.loss_2d(on, 4, boxes, ignored)[
        'loss_heatmap_2d'] <= low + 1e-6
    assert module.loss_2d(off, 4, boxes, ignored)[
        'loss_heatmap_2d'] > 2 * low
    assert head(loss_heatmap_2d=None).loss_2d(
        blank[:1], 4, [torch.zeros(0, 5)], [torch.zeros(0, 4)]) == {}
