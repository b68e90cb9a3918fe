"""Landmarks of drawn breasts, whose truth is known."""

import numpy as np
import pytest

from projects.ag_rcnn.landmarks import (
    LandmarkError,
    draw_landmarks,
    find_landmarks,
    node_grid,
)
from tests.helpers.mammograms import (
    DRAWN_LINE as LINE,
    DRAWN_NIPPLE as NIPPLE,
    DRAWN_SIZE,
    drawn_breast,
)

WIDTH, HEIGHT = DRAWN_SIZE


def distance_to_line(points, line=LINE):
    a, b = np.array(line, float)
    along = (b - a) / np.linalg.norm(b - a)
    return np.abs((points - a) @ [-along[1], along[0]])


@pytest.mark.parametrize('view', ['CC', 'MLO'])
def test_known_landmarks_are_found(view):
    found = find_landmarks(drawn_breast(view), 'L', view)
    assert np.linalg.norm(found.nipple - NIPPLE) < (4 if view == 'CC' else 8)
    if view == 'MLO':
        assert distance_to_line(found.pectoral).max() < 5
    else:
        assert (found.pectoral[:, 0] == found.contour[:, 0].min()).all()
    assert found.contour.min() >= 0
    assert (found.contour <= [WIDTH, HEIGHT]).all()


@pytest.mark.parametrize('view', ['CC', 'MLO'])
def test_a_right_breast_is_a_mirrored_left_one(view):
    image = drawn_breast(view)
    left = find_landmarks(image, 'L', view)
    right = find_landmarks(image[:, ::-1], 'R', view)
    for name in ('contour', 'nipple', 'pectoral'):
        assert np.allclose(getattr(right, name) * [-1, 1] + [WIDTH, 0],
                           getattr(left, name))
    assert np.allclose(node_grid(right, 22) * [-1, 1] + [WIDTH, 0],
                       node_grid(left, 22))


def test_much_smoothing_loses_the_nipple():
    """As 004's number does, taken for images of this size."""
    found = find_landmarks(drawn_breast('MLO'), 'L', 'MLO', smoothed_side=512)
    assert np.linalg.norm(found.nipple - NIPPLE) > 12


@pytest.mark.parametrize('nodes', [(13, 17), (22, 26), (100, 105), 50])
def test_nodes_lie_in_the_breast_and_in_like_places(nodes):
    both = {view: find_landmarks(drawn_breast(view), 'L', view)
            for view in ('CC', 'MLO')}
    grids = {view: node_grid(found, nodes) for view, found in both.items()}
    counts = (nodes, nodes) if isinstance(nodes, int) else nodes
    assert [len(grids[view]) for view in ('CC', 'MLO')] == list(counts)
    for view, grid in grids.items():
        assert np.allclose(grid[0], both[view].nipple)
        assert (grid >= 0).all() and (grid <= [WIDTH, HEIGHT]).all()
    # A third of the way from the nipple to the line, and from above down.
    common = counts[0]
    line = slice(1, 1 + (common - 1) // 3)
    for view, grid in grids.items():
        pectoral = both[view].pectoral
        nipple = distance_to_line(grid[:1], pectoral)
        assert np.allclose(distance_to_line(grid[line], pectoral),
                           2 / 3 * nipple)
        assert (np.diff(grid[line, 1]) > 0).all()
        assert np.allclose(distance_to_line(
            grid[1 + 2 * ((common - 1) // 3) + 1:common], pectoral), 0,
            atol=.2) or view == 'CC' or common == 50
    inside = grids['MLO'][common:]
    assert (inside[:, 0] < 150 - .5 * inside[:, 1]).all()


@pytest.mark.parametrize('image, view, part', [
    (np.zeros((64, 64)), 'CC', 'contour: .*one grey value'),
    (np.pad(np.ones((4, 4)), (0, 60)), 'CC', 'contour: .*at least 2%'),
    (drawn_breast('CC')[:, ::-1], 'CC', 'contour: .*other side'),
    (np.where(drawn_breast('CC') > 12000, 30000, 0), 'MLO', 'pectoral line'),
])
def test_what_cannot_be_found_is_told(image, view, part):
    with pytest.raises(LandmarkError, match=part):
        find_landmarks(image, 'L', view)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('view, border', [
    ('CC', 'front'), ('MLO', 'front'), ('CC', 'top'), ('CC', 'bottom'),
    ('MLO', 'bottom')])
@pytest.mark.parametrize('pixels', [3, 20])
def test_a_breast_cut_before_its_nipple_has_none(view, border, pixels,
                                                 padded):
    """As far before it; what a converted set adds beyond is no skin."""
    image, (x, y) = drawn_breast(view), np.rint(NIPPLE).astype(int)
    film = dict(front=np.s_[:, :x - pixels], top=np.s_[y + pixels:],
                bottom=np.s_[:y - pixels])[border]
    padding = [0, 0, 0, 0]
    if padded:
        kept = np.zeros_like(image)
        kept[film] = image[film]
        right, below = np.subtract(image.shape[::-1],
                                   image[film].shape[::-1])
        padding = dict(front=[0, 0, right, 0], top=[0, below, 0, 0],
                       bottom=[0, 0, 0, below])[border]
        image, film = kept, np.s_[:]
    with pytest.raises(LandmarkError, match=f'cut at the {border}'):
        find_landmarks(image[film], 'L', view, padding=padding)
    with pytest.raises(LandmarkError, match=f'cut at the {border}'):
        find_landmarks(
            image[film][:, ::-1], 'R', view,
            padding=[padding[2], padding[1], padding[0], padding[3]])


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match='laterality: expected one of L, R'):
        find_landmarks(drawn_breast('CC'), 'LEFT', 'CC')
    with pytest.raises(ValueError, match='view: expected one of CC, MLO'):
        find_landmarks(drawn_breast('CC'), 'L', 'ML')
    with pytest.raises(ValueError, match='image: expected'):
        find_landmarks(np.zeros((4, 4, 3)), 'L', 'CC')
    found = find_landmarks(drawn_breast('CC'), 'L', 'CC')
    for nodes in ((5, 9), (22, 20)):
        with pytest.raises(ValueError, match='num_nodes: expected'):
            node_grid(found, nodes)


def test_the_picture_shows_them():
    image = drawn_breast('MLO')
    found = find_landmarks(image, 'L', 'MLO')
    picture = draw_landmarks(image, found, node_grid(found, (22, 26)))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    x, y = found.nipple.astype(int)
    assert tuple(picture[y, x]) == (60, 60, 240)
