"""The baselines do what their names say."""

import torch

from projects.core import geometry
from projects.mv2d_xray.baselines import XRayScoreGrid
from tests.helpers.volume import ct2img, head

RANGE = [-60., -60, -60, 60, 60, 60]


def grid(**kwargs):
    module = XRayScoreGrid(
        in_channels=1, volume_range=RANGE, voxel_size=6., **kwargs)
    module.init_weights()
    return module


def test_scores_of_all_views_meet_in_the_object():
    matrices = ct2img(size=256)
    centre = torch.tensor([[21., -15., 9.]])
    uv, _ = geometry.project(centre, matrices)
    yy, xx = torch.meshgrid(torch.arange(64) + .5, torch.arange(64) + .5,
                            indexing='ij')
    maps = torch.stack([
        torch.exp(-((xx - u / 4)**2 + (yy - v / 4)**2) / 4)[None]
        for u, v in uv[:, 0]
    ])
    # One view shows something brighter elsewhere; no other view agrees.
    maps[0, 0, 20, 50] = 5
    module = grid()
    torch.nn.init.ones_(module.heatmap_2d.weight)
    heatmap, code, hidden = module(maps, matrices, (256, 256))
    assert heatmap.shape == (1, 20, 20, 20)
    best = module.queries(heatmap, code, hidden)[:1]
    assert (best.centres - centre).norm() < 6
    assert best.sizes.tolist() == [[module.base_size] * 3]


def test_what_no_view_shows_scores_nothing():
    module = grid()
    torch.nn.init.constant_(module.heatmap_2d.bias, 3.)
    matrices = ct2img(size=16)[:1]
    matrices[:, :2] += 20 * matrices[:, 2:3]  # the object is out of sight
    heatmap, *_ = module(torch.zeros(1, 1, 4, 4), matrices, (16, 16))
    assert (heatmap == -10).all()


def test_only_the_2d_heatmap_learns():
    module = grid()
    assert {n for n, _ in module.named_parameters()} == {
        'heatmap_2d.weight', 'heatmap_2d.bias'}
    assert module.loss_by_feat(None, None, None, None, None) == {}


def test_imvoxelnets_neck_takes_the_place_of_the_3d_net():
    module = head(
        with_deviation=False, loss_heatmap_2d=None,
        neck=dict(type='mmdet3d.IndoorImVoxelNeck', n_blocks=[1, 1]))
    heatmap, code, hidden = module(
        torch.randn(8, 4, 64, 64), ct2img(size=256), (256, 256))
    assert heatmap.shape == (1, 20, 20, 20) and code.shape[0] == 6
    heatmap.sum().backward()
    assert all(p.grad is not None for n, p in module.named_parameters()
               if n.startswith('neck') and 'out_block_1' not in n)


def test_the_grid_has_a_heatmap_of_the_views_and_nothing_else():
    module = grid(num_classes=2)
    assert [(name, tuple(tensor.shape))
            for name, tensor in module.state_dict().items()] == [
        ('heatmap_2d.weight', (2, 1, 1, 1)), ('heatmap_2d.bias', (2, ))]
    # Those of a volume's 2D heatmap, under the same names.
    assert set(module.state_dict()) < set(head().state_dict())
