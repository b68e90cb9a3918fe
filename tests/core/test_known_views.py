"""What a training's views are like, and what differs from them."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from projects.core.engine.checkpoints import load_checkpoint
from projects.core.engine.hooks import KnownViewsHook
from projects.core.engine.known_views import (
    know_views,
    other_greys,
    two_noises,
)
from projects.mv2d_xray.transforms import XRayAcquisition
from tests.helpers.commands import ROOT


def views_of(quanta, thickness=4., seed=0, side=128):
    """Three line integrals of a ball and a block with an edge, counted."""
    v, u = np.mgrid[:side, :side] / side - .5
    ball = thickness * np.sqrt(np.clip(1 - (u**2 + v**2) / .16, 0, None))
    ideal = np.stack([ball, ball + (u > .1), ball * .5 + (v > 0)])
    rng = np.random.default_rng(seed)
    counts = rng.poisson(quanta * np.exp(-ideal))
    return (-np.log(counts.clip(1) / quanta)).astype(np.float32)


@pytest.mark.parametrize('quanta', [1e4, 1e5, 1e6])
@pytest.mark.parametrize('thickness', [2., 4.])
def test_noise_says_how_many_quanta_whatever_the_object(quanta, thickness):
    assert two_noises(views_of(quanta, thickness)) == pytest.approx(
        [quanta**-.5] * 2, rel=.08)


def test_a_gain_pattern_is_no_noise_that_changes():
    views = views_of(1e6, 2.) + np.random.default_rng(5).normal(
        0, .02, (128, 128)).astype(np.float32)
    noise, changing = two_noises(views)
    assert noise > 8e-3 and changing == pytest.approx(1e-3, rel=.15)


def test_noise_of_none():
    assert two_noises(np.zeros((2, 32, 32), np.float32)) == (0, 0)
    ramp = np.add.outer(np.arange(32.), np.arange(32.))[None]
    assert two_noises(ramp) == pytest.approx([0, 0], abs=1e-4)


class Scans:
    """A set with a pipeline that draws random numbers of three kinds."""
    metainfo = dict(rig=dict(), acquisition=dict(kerma=10.))
    pipeline = SimpleNamespace(transforms=[object()])

    def __len__(self):
        return 3

    def __getitem__(self, row):
        shift = np.random.uniform(0, .02) + random.uniform(0, .02) + float(
            torch.rand(1)) * .02
        views = views_of(1e5, 3 + row, int(np.random.randint(99))) + shift
        return dict(inputs=dict(img=torch.from_numpy(views)[:, None]))


@pytest.fixture(scope='module')
def known():
    return know_views(Scans())


def test_a_set_is_looked_at_the_same_way_each_time(known):
    states = random.getstate(), np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    again = know_views(Scans())
    assert again == known
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert (torch.get_rng_state() == torch_state).all()
    assert known['samples'] == 24 and known['exposure'] == [10., 10.]
    for name in ('noise', 'changing_noise'):
        assert known[name] == pytest.approx([1e5**-.5] * 2, rel=.08)
    low, high = known['line_integrals']['99']
    assert 3 < low < 4.5 and 5 < high < 7


def test_exposures_of_the_set_and_of_the_pipeline():
    step = XRayAcquisition(dict(kerma=[(.5, 8.), (8., 50.)]),
                           'chest-radiography')
    assert step.exposure == (.5, 50.)
    assert XRayAcquisition().exposure == ()
    scans = Scans()
    scans.pipeline = SimpleNamespace(transforms=[XRayAcquisition(), step])
    assert know_views(scans)['exposure'] == [.5, 50.]
    scans.metainfo = dict(rig=dict())
    scans.pipeline = SimpleNamespace(transforms=[])
    assert know_views(scans)['exposure'] is None


@pytest.mark.parametrize('views,sentence', [
    (views_of(1e5, 4., 7), None),
    (views_of(1e5, 5., 8) + .3, None),
    # A tenth of the exposure.
    (views_of(1e4, 4., 7), r'noise that changes from view to view of '
     r'0\.3\d% to 0\.3\d% of the open beam \(found (0\.9\d|1\.0\d)%\), as '
     r'of at least (8|9|10|11)[.\d]* times less exposure than 10 µGy'),
    (views_of(1e7, 4., 7), r'with noise of 0\.3\d% to 0\.3\d% of the open '
     r'beam \(found 0\.03%\)'),
    # Another scale, another offset.
    (views_of(1e5, 4., 7) * 3, '99 % of the line integrals below'),
    (views_of(1e5, 4., 7) + 3, r'1 % of the line integrals below 0\.\d\d '
     r'to 0\.\d\d \(found 2\.99\)'),
])
def test_what_differs_is_told_in_numbers(known, views, sentence):
    told = other_greys('a.pth', dict(known_views=known), views)
    if sentence is None:
        assert told is None
        return
    assert told.startswith('a.pth: expected views as it was trained on, with ')
    assert len(told.splitlines()) == 1
    assert re.search(sentence, told), told


def test_checkpoints_that_do_not_say():
    for meta in ({}, dict(known_views=None)):
        assert other_greys('a.pth', meta, views_of(1e3)) is None


def test_ct_slices_are_left_alone():
    hook, checkpoint = KnownViewsHook(), dict(meta={})
    hook.before_train(SimpleNamespace(train_dataloader=SimpleNamespace(
        dataset=SimpleNamespace(metainfo=dict(slices={})))))
    hook.before_save_checkpoint(None, checkpoint)
    assert checkpoint == dict(meta={})


@pytest.mark.parametrize('name', [
    'mv2d-xray_small_volume_5000i_quick-v2',
    'mv2d-xray_small_volume_600i_blade',
    'triangulation_centernet_5400i_quick-v2'])
def test_the_released_checkpoints_know(name):
    meta = load_checkpoint(str(ROOT / f'checkpoints/{name}.pth'))['meta']
    known = meta['known_views']
    assert known['exposure'] == ([1e4, 1e4] if 'blade' in name
                                 else [.5, 50.])
    low, high = known['changing_noise']
    assert 0 < low < high < .01
    assert '/work' not in str(meta) and '/home' not in str(meta)
