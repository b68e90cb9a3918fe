"""The small backbone: strides as promised, surroundings seen."""

import pytest
import torch
from mmdet3d.registry import MODELS

from projects.mv2d_xray import backbone


@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
def test_levels_have_the_promised_strides(size):
    net = MODELS.build(dict(type='XRayDilatedNet', channels=8, num_levels=4))
    maps = net(torch.zeros(2, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [
        (-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert all(m.shape[1] == 8 for m in maps)


def test_a_deeper_stem_has_coarser_levels():
    net = MODELS.build(dict(
        type='XRayDilatedNet', channels=8, num_levels=2,
        stem=((4, 2), (6, 1), (6, 2), (8, 2))))
    maps = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 12), (8, 4, 6)]
    with pytest.raises(ValueError, match='stem'):
        MODELS.build(dict(type='XRayDilatedNet', channels=8,
                          stem=((4, 2), (4, 2))))


def test_finer_maps_come_first():
    net = MODELS.build(dict(
        type='XRayDilatedNet', channels=8, num_levels=2, num_finer=1,
        stem=((4, 2), (8, 2))))
    maps = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (4, 32, 48), (8, 16, 24), (8, 8, 12)]
    with pytest.raises(ValueError, match='num_finer: expected less than 2'):
        MODELS.build(dict(type='XRayDilatedNet', num_finer=2))


def test_a_cell_sees_its_surroundings_and_no_more():
    net = MODELS.build(dict(type='XRayDilatedNet', channels=4,
                            dilations=(1, 2, 4))).eval()
    image = torch.randn(1, 3, 256, 256, requires_grad=True)
    net(image)[0][0, :, 32, 32].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
    # 3 + 2 + 4 * 2 * (1 + 1 + 2 + 1 + 4 + 1 + 1) px, as the layers add up.
    assert len(rows) <= 7 + 8 * 11
    assert len(rows) > 40


def test_one_level_trains_in_the_faster_layout(monkeypatch):
    """That of a CPU without AVX-512, where no neck follows; the same maps
    and gradients."""
    image = torch.randn(2, 3, 32, 48).contiguous(
        memory_format=torch.channels_last)
    found = []
    for slow, options in ((True, {}), (False, {}), (True, dict(num_finer=1)),
                          (True, dict(num_levels=2))):
        monkeypatch.setattr(backbone, '_AVX2', slow)
        torch.manual_seed(0)
        net = MODELS.build(dict(
            type='XRayDilatedNet', channels=8, **dict(
                dict(num_levels=1), **options)))
        level = net(image)[0]
        # Level 0 of the last but one is the stem's.
        assert level.is_contiguous() is (slow and not options)
        if not options:
            level.square().sum().backward()
            found.append([level, *(p.grad for p in net.parameters())])
        assert not net.eval()(image)[0].is_contiguous()
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_statistics_of_the_norm_train():
    net = MODELS.build(dict(type='XRayDilatedNet', channels=4))
    net.train()
    norm = next(m for m in net.modules()
                if isinstance(m, torch.nn.BatchNorm2d))
    net(torch.randn(2, 3, 32, 32) + 3)
    assert norm.running_mean.abs().sum() > 0
