"""Renderers against geometry, hand-computed integrals and one another."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from data_converters import drr
from data_converters.drr import (
    MU_WATER,
    RENDERERS,
    Volume,
    bone_share,
    hu_to_mu,
    render,
    render_with_bone,
)
from projects.core import geometry
from projects.core.rig import Rig, View

AIR = -1000.
# Columns, rows and slices of a supine series: LPS steps seen in RAS+.
DIRECTIONS = np.diag([-.7, -.7, 2.5])


def sphere(centre, radius=3., shape=(94, 96, 36), hu=1000.):
    """A ball in air, anti-aliased by 4 x 4 x 8 samples a voxel."""
    volume = Volume.centred(np.full(shape, AIR, np.float32), DIRECTIONS)
    matrix, origin = volume.voxel2ct[:3, :3], volume.voxel2ct[:3, 3]
    near = np.argwhere(np.ones(shape, bool))
    distance = np.linalg.norm(near @ matrix.T + origin - centre, axis=1)
    near = near[distance < radius + 3.]
    steps = [(np.arange(n) + .5) / n - .5 for n in (4, 4, 8)]
    offsets = np.stack(np.meshgrid(*steps, indexing='ij'), -1).reshape(-1, 3)
    points = (near[:, None] + offsets) @ matrix.T + origin
    fraction = (((points - centre)**2).sum(-1) <= radius**2).mean(1)
    volume.values[tuple(near.T)] += fraction * (hu - AIR)
    return volume


def mass_centre(volume):
    mu = hu_to_mu(volume.values)
    index = np.argwhere(mu > 0)
    weights = mu[mu > 0]
    centre = (index * weights[:, None]).sum(0) / weights.sum()
    return volume.voxel2ct[:3, :3] @ centre + volume.voxel2ct[:3, 3]


def image_centroid(image):
    v, u = np.meshgrid(*[np.arange(n) + .5 for n in image.shape],
                       indexing='ij')
    return np.array([(u * image).sum(), (v * image).sum()]) / image.sum()


def paper_rig(size, num_views=10):
    """The papers' focal length and pitch on a smaller detector."""
    rig = Rig.circle(num_views)
    for view in rig.views:
        view.cam2img[:2, 2] = size / 2
        view.width = view.height = size
    return rig


@pytest.mark.parametrize('renderer, mean, worst', [
    ('trilinear', .1, .15), ('siddon', .15, .35), ('nanodrr', .1, .15),
    ('joseph', .1, .15)])
def test_spheres_land_on_their_projections(renderer, mean, worst):
    """The project's first proof (px): rig, axes and principal point."""
    rig = paper_rig(112)
    errors = []
    for centre in ([0, 0, 0], [8.3, -10.1, 15.2], [-11.7, 5.9, -14.4]):
        volume = sphere(centre)
        expected = mass_centre(volume)
        for view, image in zip(rig.views, render(volume, rig, renderer)):
            uv, _ = geometry.project(expected[None], view.ct2img)
            errors.append(np.linalg.norm(image_centroid(image) - uv[0]))
    assert np.mean(errors) < mean
    assert np.max(errors) < worst


@pytest.mark.parametrize('renderer', RENDERERS)
def test_a_litre_of_water_has_its_integral(renderer):
    """100 mm of water at 0.02/mm is 2, along the axis of every view."""
    values = np.full((60, 60, 60), AIR, np.float32)
    values[5:55, 5:55, 5:55] = 0.
    volume = Volume.centred(values, np.diag([-2., -2., 2.]))
    rig = Rig.circle(4, image_size=65)
    for image in render(volume, rig, renderer):
        assert image.shape == (65, 65)
        assert image[32, 32] == pytest.approx(2., rel=.01)
        assert image[0].max() == 0


def chest_like():
    """Smooth soft tissue with cavities, uneven spacing, off centre."""
    rng = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter
    noise = gaussian_filter(rng.normal(size=(80, 70, 40)), (4, 4, 2))
    values = (noise / noise.std() * 300).astype(np.float32)
    index = np.indices(values.shape).reshape(3, -1).T
    inside = (((index / np.array(values.shape) - .5) / .45)**2).sum(1) < 1
    values.reshape(-1)[~inside] = AIR
    volume = Volume.centred(values, np.diag([-2.6, -2.4, 4.]))
    volume.voxel2ct[:3, 3] += [10, -5, 7]
    return volume


def tilt(view, degrees=(3., 4.)):
    """Turns a camera in its image's plane and out of it."""
    turn = Rotation.from_euler('zx', degrees, degrees=True).as_matrix()
    view.ct2cam[:3] = turn @ view.ct2cam[:3]


@pytest.mark.parametrize('renderer, bound', [
    ('siddon', .02), ('nanodrr', .005), ('joseph', .005)])
def test_renderers_agree(renderer, bound):
    """Mean difference to ``trilinear``, relative to the mean integral; with
    a non-square detector, two focal lengths, a shifted principal point and a
    tilted detector. Siddon's voxels are blocks, the others interpolate, so it
    differs most."""
    rig = Rig.circle(3, image_size=64)
    odd = rig.views[1]
    odd.width, odd.height = 80, 48
    odd.cam2img[0, 0] *= 1.3
    odd.cam2img[:2, 2] = [35., 27.5]
    tilt(rig.views[2])
    volume = chest_like()
    found = render(volume, rig, renderer)
    expected = render(volume, rig, 'trilinear')
    assert [i.shape for i in found] == [(64, 64), (48, 80), (64, 64)]
    for a, b in zip(found, expected):
        assert a.dtype == np.float32
        assert np.abs(a - b).mean() < bound * b.mean()


@pytest.mark.parametrize('degrees', [(0., 0.), (3., 4.), (90., 0.)])
def test_a_volume_ends_with_its_last_voxels(degrees):
    """Against exact lengths through a box that fills a volume from end to end
    along z: slices of 5 mm count whole, not from middle to middle. Detectors
    are upright, tilted and on their side."""
    hu = Volume.centred(np.full((44, 44, 9), AIR, np.float32),
                        np.diag([2., 2., 5.]))
    hu.values[2:42, 2:42] = 0.
    rig = Rig.circle(2, image_size=128)
    for view in rig.views:
        tilt(view, degrees)
    half = np.array([40., 40., 22.5])

    def lengths(view, half):
        source, along = geometry.rays(
            drr._pixels(view, slice(0, view.height)), view.ct2img)
        with np.errstate(divide='ignore'):
            ends = np.sort([(-half - source) / along, (half - source) / along],
                           axis=0)
        return (ends[1].min(1) - ends[0].max(1)).clip(0).reshape(128, 128)

    for view, image in zip(rig.views, render(hu, rig)):
        exact = MU_WATER * lengths(view, half)
        middles = MU_WATER * lengths(view, half - [0, 0, 2.5])
        assert image.sum() == pytest.approx(exact.sum(), rel=4e-3)
        assert middles.sum() < .9 * exact.sum()


@pytest.mark.parametrize('size', [256, 1024])
def test_slices_at_a_time_are_the_volume_at_once(size, monkeypatch):
    """Blocks that end within the volume, averaged or not, and one block."""
    volume = chest_like()
    volume.voxel2ct[:3, :3] /= 3
    rig = Rig.circle(1, image_size=size)
    found = drr.prepare(volume, rig)
    monkeypatch.setattr(drr, '_SLICES', 1000)
    once = drr.prepare(volume, rig)
    assert found.values.shape == once.values.shape
    assert found.values.flags.c_contiguous
    np.testing.assert_array_equal(found.values, once.values)
    np.testing.assert_array_equal(found.voxel2ct, once.voxel2ct)
    # The body fills an ellipsoid of nine tenths: voxels round it are left out.
    factors = np.maximum(
        (rig.views[0].pixel_size / volume.spacing).astype(int), 1)
    whole = Volume(hu_to_mu(volume.values), volume.voxel2ct).averaged(factors)
    assert all(a < b for a, b in zip(found.values.shape, whole.values.shape))
    assert found.values.sum() == pytest.approx(whole.values.sum(), rel=.05)


def turned_rig(kind):
    """Three views: about z as all rigs of the converters, about x, tilted
    and shifted, and one whose rays cross the volume mostly along z."""
    rig = Rig.circle(3, image_size=48)
    turns = dict(about_z=np.eye(3),
                 about_x=np.array([[0., 0, 1], [1, 0, 0], [0, 1, 0]]),
                 tilted=Rotation.from_euler('xyz', [9, -5, 20],
                                            degrees=True).as_matrix(),
                 along_z=Rotation.from_euler('x', 80,
                                             degrees=True).as_matrix(),
                 on_its_side=np.eye(3))
    for view in rig.views:
        if kind == 'on_its_side':  # rows along z in place of columns
            view.ct2cam[:3] = np.array(
                [[0., -1, 0], [1, 0, 0], [0, 0, 1]]) @ view.ct2cam[:3]
        view.ct2cam[:3, :3] = view.ct2cam[:3, :3] @ turns[kind]
        view.ct2cam[:3, 3] += [3., -2., 5.]
    return rig


@pytest.mark.parametrize('kind', [
    'about_z', 'about_x', 'tilted', 'along_z', 'on_its_side'])
@pytest.mark.parametrize('threads', [1, 2])
def test_compiled_joseph_is_that_of_torch(kind, threads):
    """The same samples along the same rays, which either way of writing
    gives, to the rounding of float32; for whole columns or rows at a time,
    too."""
    volume, rig = chest_like(), turned_rig(kind)
    mu = drr.prepare(volume, rig)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = drr._joseph_cpu(mu, rig)
    finally:
        torch.set_num_threads(before)
    expected = drr._joseph_torch(mu, rig, 'cpu')
    assert np.max(expected) > 1
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize('axis', range(3))
def test_a_single_layer_of_voxels(axis):
    """Half of a neighbour's weight ends where there is none on either side."""
    shape = [12, 10, 8]
    shape[axis] = 1
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    mu = Volume.centred(values, np.diag([-9., -8., 11.]))
    for kind in ('about_z', 'tilted', 'along_z', 'on_its_side'):
        rig = turned_rig(kind)
        found = drr._joseph_cpu(mu, rig)
        assert np.max(found) > 1
        # Shares of a voxel below 1/1000 may be left out, of 11 mm.
        np.testing.assert_allclose(found, drr._joseph_torch(mu, rig, 'cpu'),
                                   atol=1e-2)


@pytest.mark.parametrize('renderer', RENDERERS)
def test_strips_do_not_show(renderer, monkeypatch):
    """An image in strips of one row is the image in one piece."""
    volume, rig = chest_like(), Rig.circle(1, image_size=24)
    whole = render(volume, rig, renderer)[0]
    strips = drr._strips
    monkeypatch.setattr(drr, '_strips', lambda view, n: strips(view, 1))
    difference = np.abs(render(volume, rig, renderer)[0] - whole)
    # DiffDRR's trilinear spaces its samples by the rays rendered together.
    bound = 1e-3 if renderer == 'trilinear' else 1e-5
    assert difference.mean() < bound * whole.mean()


@pytest.mark.parametrize('renderer', RENDERERS)
def test_nothing_behind_the_source_is_seen(renderer):
    volume = sphere([0, 0, 0])
    view = Rig.circle(1, image_size=32).views[0]
    turned = View('CAM_00', view.cam2img, np.diag([-1., 1, -1, 1])
                  @ view.ct2cam, 32, 32)
    assert np.abs(render(volume, Rig([turned]), renderer)[0]).max() == 0


@pytest.mark.parametrize('renderer', RENDERERS)
def test_source_inside_the_volume_sees_what_is_ahead(renderer):
    """The far half of a water cube, from its centre: 50 mm, integral 1."""
    volume = Volume.centred(np.zeros((50, 50, 50), np.float32),
                            np.diag([-2., -2., 2.]))
    rig = Rig.circle(3, radius=0., image_size=33)
    image = render(volume, rig, renderer)[0]
    assert image[16, 16] == pytest.approx(1., rel=.03)


@pytest.mark.parametrize('renderer', RENDERERS)
def test_air_is_black(renderer):
    volume = Volume.centred(np.full((8, 9, 10), AIR, np.float32), DIRECTIONS)
    image, = render(volume, Rig.circle(1, image_size=16), renderer)
    assert np.abs(image).max() == 0


def test_no_views_no_images():
    assert render(sphere([0, 0, 0]), Rig()) == []


def test_unknown_renderer():
    with pytest.raises(ValueError, match='expected one of .*"raytracer"'):
        render(sphere([0, 0, 0]), Rig.circle(1, image_size=8), 'raytracer')


def test_rendering_leaves_its_input_alone():
    volume = chest_like()
    values, matrix = volume.values.copy(), volume.voxel2ct.copy()
    render(volume, Rig.circle(2, image_size=16))
    np.testing.assert_array_equal(volume.values, values)
    np.testing.assert_array_equal(volume.voxel2ct, matrix)


def test_attenuation():
    """0.02/mm for water, linear, nothing below zero."""
    hu = np.array([-3024, -1000, -500, 0, 1000], np.int16)
    np.testing.assert_allclose(hu_to_mu(hu), [0, 0, .01, .02, .04])


def test_averaging_keeps_values_and_place():
    """The inverse of repeating voxels, with a last incomplete block."""
    rng = np.random.default_rng(0)
    coarse = Volume.centred(
        rng.random((4, 5, 3)).astype(np.float32), np.diag([-3., -2., 5.]))
    values = coarse.values
    for axis, factor in enumerate((3, 2, 5)):
        values = values.repeat(factor, axis)
    fine = Volume.centred(values, np.diag([-1., -1., 1.]))
    found = fine.averaged([3, 2, 5])
    np.testing.assert_allclose(found.values, coarse.values, rtol=1e-6)
    np.testing.assert_allclose(found.voxel2ct, coarse.voxel2ct, atol=1e-9)
    np.testing.assert_allclose(found.spacing, [3, 2, 5])
    padded = fine.averaged([5, 2, 5])
    assert padded.values.shape == (3, 5, 3)
    np.testing.assert_allclose(padded.values.sum() * 50, values.sum(),
                               rtol=1e-5)


def test_small_images_see_an_averaged_volume():
    """In-plane blocks fit the pixel at the isocentre, 800 / 256 / 2 mm."""
    volume = Volume.centred(np.zeros((64, 64, 8), np.float32), DIRECTIONS)
    prepared = drr.prepare(volume, Rig.circle(1, image_size=256))
    np.testing.assert_allclose(prepared.spacing, [1.4, 1.4, 2.5])
    prepared = drr.prepare(volume, Rig.circle(1, image_size=1024))
    np.testing.assert_allclose(prepared.spacing, [.7, .7, 2.5])


# ----------------------------------------------------------------------- bone
def test_bone_and_the_rest_are_the_voxel():
    hu = np.array([-1000, -300, 60, 150, 151, 400, 1500, 2500], np.float32)
    share, water = bone_share(hu), 1 + hu / 1000
    rest = water - 2.5 * share
    assert not share[:4].any() and (share[4:] > 0).all()
    # What is not bone is soft tissue, and never less than nothing.
    assert rest[4:6] == pytest.approx(1.15 * (1 - share[4:6]), abs=1e-5)
    assert rest[6:] == pytest.approx(0, abs=1e-5)
    assert share[6] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('size', [(64, 64), (65, 51)])
def test_bone_on_a_ray_is_its_length(size):
    """40 mm of water and 20 mm of cortical bone, across the beam."""
    hu = Volume.centred(np.full((61, 80, 80), AIR, np.float32),
                        np.diag([2., 2, 2]))
    hu.values[5:25], hu.values[40:50] = 0, 1500
    rig = Rig.circle(1).resized(*size)
    images, bones = render_with_bone(hu, rig)
    assert np.array_equal(images[0], render(hu, rig)[0])
    assert bones[0].shape == images[0].shape == size[::-1]
    v, u = (n // 2 for n in bones[0].shape)
    assert images[0][v, u] / MU_WATER == pytest.approx(40 + 50, rel=.01)
    assert bones[0][v, u] == pytest.approx(20, rel=.01)
    # Nowhere more than the line integral holds.
    assert (images[0] / MU_WATER > 2.5 * bones[0] - 1e-3).all()


def test_soft_tissue_has_no_bone():
    hu = Volume.centred(np.full((20, 20, 20), 150., np.float32), np.eye(3))
    assert render_with_bone(hu, Rig.circle(2, image_size=16))[1] is None
    empty = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    assert render_with_bone(empty, Rig([])) == ([], None)
