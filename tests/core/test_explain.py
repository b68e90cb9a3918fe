"""Maps of what detections rest on, with detectors whose reason is known."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from projects.core import geometry
from projects.core.boxes import corners_of
from projects.core.engine.bands import gaussian_blur
from projects.core.engine.command_line import UserError
from projects.core.explain import (
    FRACTIONS,
    METHODS,
    Target,
    faithfulness,
    random_map,
    score_cam,
    segmentation_game,
    similarity,
    summarise,
    target_of,
)
from projects.core.findings import silhouettes
from projects.core.rig import Rig
from tests.helpers.spheres import chord_lengths


def found(*boxes, scores, labels=None):
    return InstanceData(
        bboxes=torch.tensor(boxes).float(), scores=torch.tensor(scores),
        labels=torch.tensor(labels or [0] * len(scores)))


def generator():
    return torch.Generator().manual_seed(0)


# ----------------------------------------------------------------- similarity
@pytest.mark.parametrize('box', [[10., 20, 30, 60],
                                 [-10., -20, 5, 10, 0, 25]])
def test_a_detection_is_like_itself_by_its_score(box):
    itself = found(box, scores=[.7])
    assert similarity(itself, itself) == pytest.approx(.7)


def test_similarity_is_of_the_best_of_the_class():
    target = found([0., 0, 0, 10, 10, 10], scores=[.9])
    others = found([0., 0, 0, 10, 10, 10], [0, 0, 5, 10, 10, 15],
                   [50, 50, 50, 60, 60, 60], scores=[.2, .9, 1.])
    # Half of each other shared: IoU 1/3.
    assert similarity(others, target) == pytest.approx(.3)
    assert similarity(others[2:], target) == 0
    others.labels[:] = 1
    assert similarity(others, target) == 0


@pytest.mark.parametrize('columns', [4, 6])
def test_no_detections_are_unlike_any(columns):
    none = InstanceData(
        bboxes=torch.zeros(0, columns), scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long))
    target = found(list(range(columns)), scores=[.5])
    assert similarity(none, target) == 0


def test_corners():
    box = torch.tensor([[1., 2, 3, 4, 6, 8, 0]])
    assert corners_of(box).tolist() == [[-1, -1, -1, 3, 5, 7]]


# ---------------------------------------------------------------- silhouettes
@pytest.mark.parametrize('shape', [None, 'ball'])
def test_silhouette_of_a_sphere(shape):
    centre, radius = np.array([20., -15, 10]), 14.
    if shape == 'ball':
        axis = (np.arange(16) + .5) / 8 - 1
        shape = sum(a**2 for a in np.meshgrid(axis, axis, axis)) <= 1
    rig = Rig.circle(5, image_size=256)
    masks = silhouettes(
        dict(centre=centre, size=np.full(3, 2 * radius), shape=shape,
             label=0), np.stack([v.ct2img for v in rig.views]), (256, 256))
    for mask, view in zip(masks, rig.views):
        truth = chord_lengths(centre, radius, view) > 0
        assert (mask & truth).sum() > .9 * (mask | truth).sum() > 50


@pytest.mark.parametrize('thickness', [1., 5.])
def test_section_of_a_sphere(thickness):
    """A slice shows what is in its thickness, not the whole shadow."""
    centre, radius, heights = np.array([3., -2, 1]), 7., [1., 6., -5.5, 20.]
    slices = np.stack([geometry.compose_ct2img(*geometry.slice_camera(
        np.array([-20., -16, z]), np.array([.5, 0, 0]), np.array([0, .5, 0]),
        thickness)) for z in heights])
    axis = (np.arange(70) + .5) / 35 - 1  # cells of 0.2 mm
    ball = sum(a**2 for a in np.meshgrid(axis, axis, axis)) <= 1
    masks = silhouettes(dict(centre=centre, size=np.full(3, 2 * radius),
                             shape=ball, label=0), slices, (64, 80))
    v, u = np.mgrid[:64, :80] + .5
    off = np.hypot(u / 2 - 20 - centre[0], v / 2 - 16 - centre[1])
    for mask, z in zip(masks, heights):
        nearest = max(abs(z - centre[2]) - thickness / 2, 0.)
        truth = off < max(radius**2 - nearest**2, 0.)**.5
        assert (mask & truth).sum() >= .85 * (mask | truth).sum()
    assert masks[0].sum() > masks[1].sum() > 0 == masks[3].sum()


def test_silhouette_of_what_no_view_shows():
    rig = Rig.circle(2, image_size=32)
    masks = silhouettes(
        dict(centre=np.array([0., 0, 500]), size=np.full(3, 9.), shape=None,
             label=0), np.stack([v.ct2img for v in rig.views]), (32, 32))
    assert masks.shape == (2, 32, 32) and not masks.any()


# -------------------------------------------------------------------- methods
PATCH = (..., slice(24, 32), slice(40, 48))  # of every view


def toy(num_views=3, threshold=.5, channels=1):
    """A detector of what one patch of 64² views shows, and nothing else.

    It finds nothing where less than ``threshold`` of the patch's detail is
    left. One of its channels is active there, one more strongly elsewhere,
    others at a few places, as after a ReLU.
    """
    rng = generator()
    views = torch.randn(num_views, channels, 64, 64, generator=rng)
    background = gaussian_blur(views.flatten(0, 1)[:, None], 3.).view_as(
        views)
    detail = (views - background)[PATCH]

    def remains(changed):
        shown = (changed - background)[PATCH]
        left = float((shown * detail).sum() / (detail**2).sum())
        return .8 * max(left - threshold, 0) / (1 - threshold)

    activations = torch.rand(num_views, 6, 16, 16, generator=rng)**6 * .5
    activations[:, 2, 6:8, 10:12] += 1.
    activations[:, 4, 12:, :4] += 5.
    region = torch.tensor([[40., 24, 48, 32]]).repeat(num_views, 1)
    return Target(np.arange(num_views), views, background, activations, 4,
                  region, remains)


@pytest.mark.parametrize('num_views, channels', [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize('name', ['eigen-cam', 'score-cam', 'ss-cam'])
def test_maps_show_what_the_detector_looks_at(name, num_views, channels):
    target = toy(num_views, channels=channels)
    heat = METHODS[name](target, generator())
    assert heat.shape == (num_views, 64, 64) and (heat >= 0).all()
    masks = np.zeros(heat.shape, bool)
    masks[PATCH] = True
    chance = random_map(target, generator())
    game = segmentation_game(heat, masks)
    assert len(game['energy']) == num_views
    assert game['gain'] > 5 > segmentation_game(chance, masks)['gain']
    judged, other = (faithfulness(target, h, generator())
                     for h in (heat, chance))
    assert judged['deletion'] < other['deletion'] - .1
    assert judged['insertion'] > other['insertion'] + .1


def test_the_other_object_is_not_what_is_explained():
    """The strongest channel of all shows another object."""
    target = toy()
    for name in ('eigen-cam', 'score-cam', 'ss-cam'):
        heat = METHODS[name](target, generator())
        assert heat[:, 48:, :16].mean() < .3 * heat[PATCH].mean()


def test_channels_that_keep_nothing_weigh_nothing():
    target = toy()
    target.similarity = lambda views: 0.
    assert score_cam(target, generator()).abs().max() == 0


@pytest.mark.parametrize('name', list(METHODS))
def test_a_region_outside_of_all_views(name):
    target = toy()
    target.region = torch.tensor([[-50., -50, -40, -40]]).repeat(3, 1)
    heat = METHODS[name](target, generator())
    assert torch.isfinite(heat).all()


def test_same_seed_same_map():
    for name, method in METHODS.items():
        first, second = (method(toy(), generator()) for _ in range(2))
        assert torch.equal(first, second), name


# -------------------------------------------------------------------- judging
def test_a_map_that_knows_nothing_has_gain_one():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :2, :4] = True  # an eighth; the other view does not show it
    game = segmentation_game(torch.ones(2, 8, 8), masks)
    assert game['energy'] == pytest.approx([.125]) == game['area']
    assert game['gain'] == pytest.approx(1)
    best = segmentation_game(torch.as_tensor(masks).float(), masks)
    assert best['energy_share'] == 1 and best['gain'] == pytest.approx(8)


def test_judging_nothing():
    nothing = torch.zeros(2, 8, 8)
    masks = np.ones((2, 8, 8), bool)
    assert segmentation_game(nothing, masks)['energy_share'] == 0
    assert segmentation_game(nothing + 1, ~masks)['gain'] == 0


def test_curves_of_the_true_patch():
    """The patch is 64 of 4096 pixels: 1/64, exactly one of the fractions."""
    target, heat = toy(threshold=0.), torch.zeros(3, 64, 64)
    heat[PATCH] = 1.
    judged = faithfulness(target, heat, generator())
    at = FRACTIONS.index(1 / 64)
    assert judged['deletion_curve'][at:] == pytest.approx(
        [0] * (len(FRACTIONS) - at), abs=1e-6)
    assert judged['insertion_curve'][at:] == pytest.approx(
        [1] * (len(FRACTIONS) - at))
    # What is hidden from one is all that is shown to the other.
    assert np.add(judged['deletion_curve'],
                  judged['insertion_curve']) == pytest.approx(1)


def test_interval_of_a_mean():
    assert summarise([]) == dict(mean=None, low=None, high=None)
    assert summarise([.5]) == dict(mean=.5, low=.5, high=.5)
    values = np.random.normal(3, 1, 400)
    told = summarise(values)
    assert told['mean'] == pytest.approx(values.mean())
    # 1.96 standard errors on either side.
    assert told['high'] - told['low'] == pytest.approx(.196, rel=.15)
    assert told == summarise(values)


def test_each_family_says_how_a_target_is_made_of_it():
    class Detector(torch.nn.Module):
        pass

    class Finer(Detector):
        pass

    with pytest.raises(UserError, match='MV2DXRay.*found Detector'):
        target_of(Detector(), {}, found(scores=[]))
    target = toy()
    target_of.register(Detector, lambda model, sample, detection: target)
    assert target_of(Finer(), {}, found(scores=[])) is target
