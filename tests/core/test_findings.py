"""What views show of solids whose images are known."""

import numpy as np
import pytest

from projects.core import geometry
from projects.core.findings import BALL, Finding
from projects.core.rig import Rig

VIEW = Rig.circle(4, image_size=256).views[1]
# The same, raised and turned about its own axis.
TILTED = VIEW.ct2img @ geometry.rigid_motion(
    np.array([.5, .3, .2]), np.zeros(3))
SPREAD = np.array([.8, .8, 2.])


def grid(count, reach):
    """Places (3, n, n, n) (mm) of cells of a box of this half edge."""
    axis = ((np.arange(count) + .5) / count * 2 - 1) * reach
    return np.stack(np.meshgrid(axis, axis, axis, indexing='ij'))


def gaussian(deviation, centre, reach=4):
    """A ball of Gaussian density."""
    edge = reach * deviation
    density = np.exp(-np.square(grid(64, edge)).sum(0) / 2 / deviation**2)
    return Finding(centre, np.eye(3) / edge, density > .5, .02, 0, density)


def gaussian_path(deviation, centre, spread, ct2img, size):
    """Line integrals through that ball after a point spread, (H, W) (mm)."""
    variance = deviation**2 + np.square(spread)
    v, u = np.mgrid[:size, :size] + .5
    source, rays = geometry.rays(np.stack([u, v], -1).reshape(-1, 2), ct2img)
    offset = source[0] - centre
    square = (rays**2 / variance).sum(1)
    mixed = (rays * offset / variance).sum(1)
    power = (offset**2 / variance).sum() - mixed**2 / square
    peak = deviation**3 / np.sqrt(variance.prod())
    return (peak * np.sqrt(2 * np.pi / square) * np.exp(-power / 2)).reshape(
        size, size)


def painted(finding, ct2img, size, *spread):
    image = np.zeros((size, size))
    (x1, y1, x2, y2), path = finding.project(ct2img, image.shape, *spread)
    image[y1:y2, x1:x2] = path
    return image


@pytest.mark.parametrize('ct2img, tolerance', [(VIEW.ct2img, .01),
                                               (TILTED, .025)],
                         ids=['level', 'tilted'])
@pytest.mark.parametrize('deviation, spread', [
    (4., SPREAD), (4., np.zeros(3)), (6., np.array([1.5, 1.5, .5]))])
def test_a_blurred_image_is_that_of_the_blurred_solid(
        ct2img, tolerance, deviation, spread):
    """Tilted, it is not quite: correlation of u and v is left out."""
    centre = np.array([10., -30, 20])
    image = painted(gaussian(deviation, centre), ct2img, 256, spread)
    exact = gaussian_path(deviation, centre, spread, ct2img, 256)
    assert np.abs(image - exact).max() < tolerance * exact.max()
    assert image.sum() == pytest.approx(exact.sum(), rel=.01)


def test_blur_keeps_the_sum_and_the_box():
    centre, shape = np.array([10., -30, 20]), BALL
    hard = Finding(centre, np.eye(3) / 6, shape, .02, 0)
    soft = Finding(centre, np.eye(3) / 6, shape, .02, 0,
                   shape.astype(np.float32))
    sums = [painted(finding, VIEW.ct2img, 256, spread).sum()
            for finding in (hard, soft)
            for spread in (np.zeros(3), SPREAD / 10, SPREAD)]
    assert sums[1:3] == pytest.approx([sums[0]] * 2, rel=1e-6)
    assert sums[3:] == pytest.approx([sums[0]] * 3, rel=.02)
    np.testing.assert_array_equal(hard.box, soft.box)
    np.testing.assert_array_equal(soft.box[3:6], [12, 12, 12])


@pytest.mark.parametrize('radius', [2., 7., 30.])
def test_the_rectangle_is_that_of_the_pixels_that_see_it(radius):
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for centre in rng.uniform(-60, 60, (8, 3)):
        finding = Finding(centre, turn / radius, BALL, .02, 0)
        rect, _ = finding.project(VIEW.ct2img, (256, 256))
        assert np.abs(rect - finding.rectangle(
            VIEW.ct2img, (256, 256))).max() <= 1
    behind = Finding(geometry.camera_centres(VIEW.ct2img) * 1.2,
                     np.eye(3) / radius, BALL, .02, 0)
    beside = Finding(np.array([0., 0, 900]), np.eye(3) / radius, BALL, .02, 0)
    for finding in (behind, beside):
        assert finding.rectangle(VIEW.ct2img, (256, 256)) is None
        assert finding.project(VIEW.ct2img, (256, 256), SPREAD) is None


def test_what_is_beside_the_image_is_blurred_into_it():
    """An image is the part of a larger one, of other sides."""
    whole = np.zeros((256, 256))
    found = gaussian(2., np.array([10., -30, 20]))
    (x1, y1, x2, y2), path = found.project(VIEW.ct2img, whole.shape, SPREAD)
    whole[y1:y2, x1:x2] = path
    x, y = np.unravel_index(whole.argmax(), whole.shape)[::-1]
    for left, top, width, height in ((x + 2, y - 9, 20, 30),
                                     (x - 60, y - 60, 58, 61),
                                     (x - 1, y - 1, 3, 2)):
        moved = np.eye(4)
        moved[:2, 2] = -left, -top
        part = np.zeros((height, width))
        (x1, y1, x2, y2), path = found.project(
            moved @ VIEW.ct2img, part.shape, SPREAD)
        part[y1:y2, x1:x2] = path
        np.testing.assert_allclose(
            part, whole[top:top + height, left:left + width], atol=1e-5)


def test_a_density_falls_to_nothing_a_cell_outside():
    shape = np.ones((4, 4, 4), bool)
    block = Finding(np.zeros(3), np.eye(3) / 8, shape, .02, 0,
                    shape.astype(float))
    places = np.array([0., 6, 7, 8, 9, 10.5])  # cells are 4 mm wide
    paths = [block.path(np.array([-50., y, 0]), np.eye(3)[:1])[0]
             for y in places]
    np.testing.assert_allclose(
        paths, [16, 16, 12, 8, 4, 0], atol=1e-4)


def test_what_is_narrower_than_a_pixel_is_seen_wherever_it_is():
    """Pixels of 1.56 mm at the isocentre, a rod of 1 mm."""
    sums = [
        painted(Finding(np.array([shift, 0, 0.]), np.diag([2., 2, 2 / 6]),
                        BALL, .05, 0, BALL.astype(np.float32)),
                VIEW.ct2img, 256).sum() for shift in np.linspace(0, 1.5, 7)]
    volume = BALL.mean() * 1 * 1 * 6.  # what is trilinear keeps it
    np.testing.assert_allclose(np.array(sums) * 1.5625**2, volume, rtol=.06)


def test_how_an_image_moves_with_its_point():
    point, step = np.array([20., 15, -30]), 1e-4
    uv, _ = geometry.project(
        np.vstack([point + step * np.eye(3), point - step * np.eye(3)]),
        TILTED)
    np.testing.assert_allclose(
        geometry.image_derivative(point, TILTED),
        (uv[:3] - uv[3:]).T / 2 / step, atol=1e-6)
    # Pixels of 1.5625 mm, magnified twice; it looks along y and z is up.
    np.testing.assert_allclose(
        geometry.image_derivative(np.zeros(3), VIEW.ct2img),
        np.array([[-1, 0, 0], [0, 0, -1]]) / 1.5625, atol=1e-9)


def test_rays_that_miss():
    soft = Finding(np.zeros(3), np.eye(3) / 5, BALL, .02, 0,
                   BALL.astype(np.float32))
    away = soft.path(np.array([-50., 0, 0]), np.eye(3)[1:])
    np.testing.assert_array_equal(away, [0, 0])
