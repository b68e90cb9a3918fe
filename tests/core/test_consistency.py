"""Epipolar consistency, on spheres whose line integrals are known, and on
what the converter's renderer makes of a volume."""

import numpy as np
import pytest

from data_converters.drr import Volume, render
from projects.core import consistency, geometry
from projects.core.consistency import (
    Consistency,
    expect_as_rig,
    find_turned_views,
)
from projects.core.files import DataError
from projects.core.rig import Rig, View
from tests.helpers.spheres import chord_lengths

# No plane of symmetry: centre and radius (mm).
SPHERES = (((20, -10, 15), 30), ((-15, 25, -20), 15), ((5, -30, -30), 9))


def views(count=4, width=400., spheres=SPHERES, size=72):
    """Images and matrices."""
    rig = Rig.circle(count, image_size=size, detector_width=width)
    images = [sum(.02 * chord_lengths(centre, radius, view)
                  for centre, radius in spheres) for view in rig.views]
    return images, np.stack([view.ct2img for view in rig.views])


def moved(ct2img, millimetres=0., degrees=0., seed=0):
    """Matrices as XRayPoseError makes them wrong."""
    rng = np.random.default_rng(seed)
    motions = rng.normal(size=(len(ct2img), 2, 3))
    motions /= np.linalg.norm(motions, axis=-1, keepdims=True)
    motions *= [[np.radians(degrees)], [millimetres]]
    return np.stack([matrix @ geometry.rigid_motion(*motion)
                     for matrix, motion in zip(ct2img, motions)])


def test_integrals_along_lines_share_each_pixel_between_two():
    images = np.random.default_rng(0).random((9, 14, 2))
    sums = consistency._line_integrals(images)
    size = sums.shape[-1]
    v, u = np.mgrid[:9, :14] - np.array([4, 6.5])[:, None, None]
    for row in (0, 31, 96, 140):
        angle = row * np.pi / sums.shape[1]
        offset = np.cos(angle) * u + np.sin(angle) * v + (size - 1) / 2
        line = offset.astype(int)
        for image, found in zip(np.moveaxis(images, -1, 0), sums[:, row]):
            exact = np.zeros(size)
            np.add.at(exact, line, image * (1 - offset + line))
            np.add.at(exact, line + 1, image * (offset - line))
            np.testing.assert_allclose(found.sum(), image.sum(), rtol=1e-6)
            # Shares are known to a 32nd, of at most 32 pixels a line here.
            np.testing.assert_allclose(found, exact, atol=.5)
            assert np.abs(found - exact).mean() < .03 * exact.max()


def test_views_of_spheres_agree():
    assert Consistency(*views(size=96)).compare().error() < 5e-4


def test_both_views_give_the_derivative_of_the_plane_integral():
    """Of a ball: its plane integral is pi (r² - s²), its derivative in s
    -2 pi s, s from its middle; up to one sign for all."""
    centre, radius = np.array([10., -5., 8.]), 40.
    images, ct2img = views(3, spheres=[(centre, radius)], size=192)
    consistency = Consistency(images, ct2img)
    pairs = consistency.compare()
    sources = geometry.camera_centres(ct2img)[pairs.views]
    normals = geometry.epipolar_planes(
        sources[:, 0], sources[:, 1], consistency.angles,
        consistency.towards)
    off = ((sources[:, :1] - centre) * normals).sum(-1)
    expected = -2 * np.pi * off * .02
    inside = np.abs(off) < .9 * radius
    found = pairs.values[:, 0][inside]
    sign = np.sign((found * expected[inside]).sum())
    assert np.abs(sign * found - expected[inside]).max() < .06 * np.abs(
        expected[inside]).max()


def test_a_plane_that_no_detector_meets_is_left_out():
    """As the one through both sources of a tomosynthesis, whose detector
    lies: not even NumPy says anything."""
    lying = [View.from_detector(
        f'CAM_0{number}', [x, 0., 600.], [0., 0., -100.], [4., 0., 0.],
        [0., -4., 0.], 72, 72) for number, x in enumerate([-90., 90.])]
    images = [sum(.02 * chord_lengths(centre, radius, view)
                  for centre, radius in SPHERES) for view in lying]
    ct2img = np.stack([view.ct2img for view in lying])
    with np.errstate(all='raise'):
        assert Consistency(images, ct2img, planes=180).compare().error() < .01


def test_rendered_views_agree_and_wrong_poses_do_not():
    values = np.full((40, 40, 40), -1000.)
    values[8:30, 12:25, 6:33] = 0.
    values[10:16, 20:34, 20:28] = 300.
    rig = Rig.circle(6, image_size=96, detector_width=400.)
    images = render(Volume.centred(values, np.eye(3) * 2.5), rig)
    ct2img = np.stack([view.ct2img for view in rig.views])
    consistency = Consistency(images, ct2img)
    right = consistency.compare().error()
    assert right < 2e-3
    errors = [np.mean([consistency.compare(
        moved(ct2img, millimetres, seed=seed)).error() for seed in range(3)])
        for millimetres in (1., 3., 9.)]
    assert right < errors[0] < errors[1] < errors[2]
    assert consistency.compare(
        moved(ct2img, degrees=3.)).error() > 2 * right


def test_no_one_and_two_views():
    images, ct2img = views(3)
    for count in (0, 1):
        pairs = Consistency(images[:count], ct2img[:count]).compare()
        assert pairs.values.shape[0] == 0
        assert np.isnan(pairs.error())
        assert find_turned_views(images[:count], ct2img[:count]) == []
    assert Consistency(images[:2], ct2img[:2]).compare().error() < 5e-3


def test_empty_images_and_one_source_have_nothing_to_compare():
    images, ct2img = views(3)
    dark = [np.zeros_like(image) for image in images]
    assert np.isnan(Consistency(dark, ct2img).compare().error())
    assert find_turned_views(dark, ct2img) == []
    same = Consistency([images[0]] * 2, np.stack([ct2img[0]] * 2))
    assert not same.compare().weights.any()
    assert np.isnan(same.compare().error())


def test_what_is_cut_off_has_no_weight():
    images, ct2img = views(4, width=180.)
    strict = Consistency(images, ct2img, truncated=False).compare()
    assert 0 < strict.weights.mean() < .9
    loose = Consistency(images, ct2img, truncated=True).compare()
    assert (loose.weights == 1).all()
    assert strict.error() < loose.error()


def test_size_of_pixels_and_of_images_does_not_matter():
    images, ct2img = views(3, size=96)
    fine, of_fine = views(3, size=144)
    mixed = Consistency([fine[0], *images[1:]],
                        np.stack([of_fine[0], *ct2img[1:]]))
    # Smoothed by their own pixels.
    assert mixed.compare().error() < .01


@pytest.mark.parametrize('what, turn', [
    ('turned by 180°', lambda image: image[::-1, ::-1]),
    ('mirrored left to right', np.fliplr),
    ('mirrored top to bottom', np.flipud),
    ('turned by 90° clockwise', lambda image: np.rot90(image, -1)),
    ('turned by 90° anticlockwise', np.rot90),
    ('mirrored about its diagonal', np.transpose),
    ('mirrored about its other diagonal',
     lambda image: np.rot90(image, 2).T),
])
def test_a_turned_view_is_named(what, turn):
    images, ct2img = views(4)
    images[2] = turn(images[2])
    found, = find_turned_views(images, ct2img)
    assert (found.views, found.what) == ([2], what)
    assert found.after < .1 * found.before


def test_swapped_views_are_named():
    images, ct2img = views(4)
    images[0], images[1] = images[1], images[0]
    found, = find_turned_views(images, ct2img)
    assert (found.views, found.what) == ([0, 1], 'swapped')
    with pytest.raises(DataError, match='rig.json: .*A and B.*swapped'):
        expect_as_rig(images, ct2img, 'ABCD', 'rig.json')


def test_wrong_poses_and_a_symmetric_object_name_none():
    images, ct2img = views(4)
    assert find_turned_views(images, ct2img) == []
    assert find_turned_views(images, moved(ct2img, 2., 1.)) == []
    images, ct2img = views(4, spheres=[((0, 0, 0), 40)])
    images[2] = np.fliplr(images[2])
    assert find_turned_views(images, ct2img) == []


def test_bad_views_are_refused():
    images, ct2img = views(2)
    with pytest.raises(ValueError, match='expected 2'):
        Consistency(images[:1], ct2img)
    with pytest.raises(ValueError, match='finite'):
        Consistency([images[0], images[1] * np.nan], ct2img)
