"""Views pooled as they are sampled, against sampling first."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.mv2d_xray.queries import grid, pooling
from projects.mv2d_xray.queries.volume import XRayVolumeHead


def plainly(features, place, seen, epsilon):
    sampled = F.grid_sample(features, place[:, None].to(features),
                            align_corners=False)[:, :, 0]
    mask = seen[:, None].to(features)
    mean, deviation = grid._pool_views(sampled, mask, epsilon)
    return torch.cat([mean, deviation, mask.mean(0)]).T


def made_up(views, channels, count=400):
    """Places inside, at borders, in corners and outside; some unseen."""
    torch.manual_seed(views)
    features = torch.randn(views, channels, 7, 11)
    place = torch.rand(views, count, 2) * 2.6 - 1.3
    place[:, :4] = torch.tensor([[-1., -1.], [1., 1.], [-1., 1.], [1., -1.]])
    seen = torch.rand(views, count) > .3
    seen[:, 5] = False
    return features.requires_grad_(), place, seen


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('views, channels', [(1, 1), (3, 8), (6, 13)])
def test_pooling_is_sampling_then_mean_and_deviation(views, channels,
                                                     threads):
    features, place, seen = made_up(views, channels)
    double = features.detach().double().requires_grad_()
    expected = plainly(double, place.double(), seen, 1e-4)
    grad = torch.randn(expected.shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = pooling.pool_views(features, place, seen, 1e-4)
        found.backward(grad)
    finally:
        torch.set_num_threads(before)
    expected.backward(grad.double())
    assert found.shape == (400, 2 * channels + 1)
    assert (found[5, :channels] == 0).all() and found[5, -1] == 0
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    close = (found - expected.float()).abs().mean()
    assert close < 1e-5
    # Where all agree the root is steep; a single view is such a case.
    torch.testing.assert_close(features.grad, double.grad.float(),
                               atol=2e-2 if views == 1 else 2e-3, rtol=1e-3)


def test_no_views_of_a_voxel_teach_nothing():
    features, place, seen = made_up(2, 3)
    found = pooling.pool_views(features, place, seen & False, 1e-4)
    found.sum().backward()
    assert (found[:, :3] == 0).all() and (found[:, 3:6] == .01).all()
    assert (features.grad == 0).all()


@pytest.mark.parametrize('with_deviation', [True, False])
def test_a_lifted_grid_is_the_same_either_way(with_deviation, monkeypatch):
    """The whole head, with its gradient; and where cameras have one."""
    torch.manual_seed(0)
    head = XRayVolumeHead(5, [-30, -30, -20, 30, 30, 20], 10., 4,
                          hidden_channels=6, num_convs=1,
                          with_deviation=with_deviation)
    ct2img = torch.eye(4).repeat(3, 1, 1)
    ct2img[:, :2, 2], ct2img[:, 2, 3] = .3, 80.
    ct2img[:, :2, 3] = torch.rand(3, 2) * 40 + 1200
    ct2img[:, :2, :2] += torch.rand(3, 2, 2) * 20
    features = torch.randn(3, 5, 16, 16, requires_grad=True)

    def lifted(cameras):
        found = head.lift(features, cameras, (32, 32))
        return found, torch.autograd.grad(found.square().sum(), features)[0]

    found = lifted(ct2img)
    assert found[0].shape == (1, 11 if with_deviation else 6, 6, 6, 4)
    monkeypatch.setattr(grid, '_compiled', lambda *_: False)
    for a, b in zip(found, lifted(ct2img)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    monkeypatch.undo()
    cameras = ct2img.clone().requires_grad_()
    head.lift(features, cameras, (32, 32)).sum().backward()
    assert cameras.grad.abs().sum() > 0


@pytest.mark.parametrize('conv, shape', [(nn.Conv2d, (2, 5, 4, 3)),
                                         (nn.Conv3d, (1, 5, 4, 3, 2))])
def test_pointwise_is_the_convolutions(conv, shape):
    torch.manual_seed(0)
    layers, x = [conv(5, 3, 1), conv(5, 1, 1)], torch.randn(shape)
    torch.testing.assert_close(
        grid.pointwise(layers, x), torch.cat([c(x) for c in layers], 1))
    torch.testing.assert_close(grid.pointwise(layers[:1], x), layers[0](x))
