"""Findings as a scan shows them: soft, pale where small, uneven, blended."""

import numpy as np
import pytest
from scipy import ndimage, special

from data_converters.painting import (
    Material,
    Patch,
    balls_mask,
    draw_material,
    lobulated,
    paint,
    tube,
)

SPACING = np.array([.7, .7, 1.25])
SPREAD = np.array([.7, .7, 1.5])


def silent(start, shape):
    return np.zeros(shape)


def ball(diameter, spacing=SPACING):
    half = np.ceil(diameter / 2 / spacing).astype(int)
    return balls_mask([(half * spacing, diameter / 2)], tuple(2 * half + 1),
                      spacing)


def painted(solid, material, noise=silent, seed=0):
    patch = paint(solid, np.full(3, 40), material, SPACING, SPREAD, noise,
                  np.random.default_rng(seed))
    volume = np.full((120, 120, 100), -850., np.float32)
    for k in patch.slices():
        patch.apply(volume[..., k], k)
    return patch, volume


def test_border_is_that_of_the_point_spread():
    """A wide slab's edge is an error function: nothing is steeper."""
    patch, volume = painted(np.ones((24, 24, 12), bool), Material(50.))
    along = volume[:, 52, 46]
    edge = (np.arange(120) - 39.5) * SPACING[0]
    expected = -850 + 900 * .5 * (1 + special.erf(edge / SPREAD[0] / 2**.5))
    # Of a blur in whole voxels.
    np.testing.assert_allclose(along[30:50], expected[30:50], atol=9)
    assert np.abs(np.diff(along)).max() < 1.05 * 900 * special.erf(
        SPACING[0] / 8**.5 / SPREAD[0])


@pytest.mark.parametrize('diameter, peak', [(3., .5), (6., .8), (16., 1.)])
def test_small_ones_are_pale(diameter, peak):
    """Partial volume: the peak is a Gaussian's integral over the ball."""
    _, volume = painted(ball(diameter), Material(50.))
    grid = np.stack(np.meshgrid(*[np.linspace(-8, 8, 97)] * 3,
                                indexing='ij'), -1)
    inside = np.linalg.norm(grid, axis=-1) <= diameter / 2
    weight = np.exp(-.5 * ((grid / SPREAD)**2).sum(-1))
    share = (weight * inside).sum() / weight.sum()
    found = (volume.max() + 850) / 900
    assert found == pytest.approx(share, abs=.04)
    assert share == pytest.approx(peak, abs=.15)


def test_what_is_added_is_kept():
    """Blur moves attenuation, it does not make any."""
    solid = ball(6.)
    _, volume = painted(solid, Material(-100.))
    assert (volume + 850).sum() == pytest.approx(750 * solid.sum(), rel=.01)


def test_denser_tissue_stays_and_the_border_to_it_is_soft():
    patch = paint(np.ones((20, 20, 10), bool), np.full(3, 10), Material(30.),
                  SPACING, SPREAD, silent, np.random.default_rng(0))
    before = np.full((40, 40), -850.)
    before[:, 18:22] = 60.  # a vessel across it
    after = before.copy()
    patch.apply(after, 15)
    np.testing.assert_array_equal(after[:, 18:22], 60)
    assert after[20, 15] == pytest.approx(30, abs=5)
    # Ground glass does not hide a vessel either.
    glass = paint(np.ones((20, 20, 10), bool), np.full(3, 10),
                  Material(-600.), SPACING, SPREAD, silent,
                  np.random.default_rng(0))
    after = before.copy()
    glass.apply(after, 15)
    np.testing.assert_array_equal(after[:, 18:22], 60)
    assert after[20, 15] == pytest.approx(-600, abs=5)


def test_inside_is_as_noisy_as_the_tissue_and_uneven():
    generator = np.random.default_rng(1)

    def noise(start, shape):
        return generator.normal(0, 20, shape)

    core = tuple(slice(48, 60) for _ in range(2)) + (slice(46, 54), )
    solid = np.ones((28, 28, 20), bool)
    _, even = painted(solid, Material(0.), noise)
    assert even[core].std() == pytest.approx(20, rel=.1)
    _, uneven = painted(solid, Material(0., unevenness=40.), noise)
    smooth = ndimage.gaussian_filter(uneven, 1.5)
    assert smooth[core].std() > 8 > ndimage.gaussian_filter(
        even, 1.5)[core].std()


def test_part_solid_ones_have_a_core():
    _, volume = painted(ball(16.), Material(-550., core=.5, core_hu=20.))
    middle = tuple(40 + (np.array(ball(16.).shape) // 2))
    assert volume[middle] > -100
    rim = volume[middle[0] + int(6 / .7), middle[1], middle[2]]
    assert -650 < rim < -450
    assert volume.max() < 60


def test_strands_leave_it_and_are_not_in_the_mask():
    solid = ball(8.)
    plain, _ = painted(solid, Material(0.))
    patch, _ = painted(solid, Material(0., vessel=1.2, spicules=4))
    far = ndimage.distance_transform_edt(
        plain.share < .05, sampling=SPACING).max()
    edge = (np.array(patch.share.shape) - solid.shape) // 2
    inner = np.pad(solid > .5, [(e, e) for e in edge])
    distance = ndimage.distance_transform_edt(~inner, sampling=SPACING)
    assert distance[patch.share > .3].max() > 4 and far > 0
    assert patch.share.max() <= 1


def test_materials_follow_the_ratings():
    def mean(**ratings):
        return np.mean([draw_material(ratings, np.random.default_rng(i)).hu
                        for i in range(200)])

    assert mean(texture=1.) == pytest.approx(-600, abs=15)
    assert mean(texture=5.) == pytest.approx(30, abs=15)
    assert mean(texture=5., calcification=3.) > 180
    half = [draw_material(dict(texture=3.), np.random.default_rng(i))
            for i in range(200)]
    cores = [m for m in half if m.core]
    assert .6 < len(cores) / 200 < .8
    assert all(m.core_hu > m.hu + 200 for m in cores)
    assert len({m.hu for m in half}) == 200  # each has its own


def test_masses_have_their_size_and_one_piece():
    for seed in range(5):
        mask = lobulated(40., SPACING, np.random.default_rng(seed))
        size = (6 * mask.sum() * SPACING.prod() / np.pi)**(1 / 3)
        assert 28 < size < 56
        assert ndimage.label(mask)[1] == 1
        for axis in range(3):  # the array holds all of it
            ends = np.take(mask, [0, -1], axis)
            assert not ends.any()


def test_thin_tubes_have_their_volume():
    """Thinner than a voxel: shares, not all or nothing."""
    radius, length = .5, 30.
    balls = tube(np.array([30., 35., 30.]), radius, length,
                 np.random.default_rng(3))
    mask = balls_mask(balls, (100, 100, 60), SPACING)
    volume = mask.sum() * SPACING.prod()
    assert volume == pytest.approx(np.pi * radius**2 * length, rel=.25)
    assert ((mask > 0) & (mask < 1)).any()


def test_patch_at_the_scans_border_is_cut():
    patch = Patch(np.array([-3, 36, 0]), np.ones((6, 6, 1)),
                  np.zeros((6, 6, 1)))
    image = np.full((40, 40), -850.)
    patch.apply(image, 0)
    assert (image[:3, 36:] == 0).all() and (image == 0).sum() == 12
    Patch(np.array([50, 50, 0]), np.ones((2, 2, 1)), np.zeros((2, 2, 1))
          ).apply(image, 0)
    assert (image == 0).sum() == 12
