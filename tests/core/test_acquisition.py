"""The detector against physics: formulas and tables, not against itself."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from projects.core import acquisition
from projects.core.acquisition import (
    Acquisition,
    draw_acquisition,
    load_preset,
    load_spectrum,
    presets,
)

CHEST, CASTING = '120 kV, 2.5 mm Al, 0.2 mm Cu', '225 kV, 1 mm Cu'
OTHER = '300 kV, 2 mm Cu'
PIXEL = .78125  # mm at the isocentre, of 1024²


def rng():
    return np.random.default_rng(0)


def plain(**changes):
    """A beam and nothing else."""
    return Acquisition(**dict(dict(spectrum=CHEST, noise=False), **changes))


def test_ideal_views_stay_as_they_are():
    views = rng().random((3, 8, 9)).astype(np.float32)
    assert np.array_equal(load_preset('ideal').measure(views, 1., rng()),
                          views)
    poses = np.stack([np.eye(4)] * 3)
    assert np.allclose(load_preset('ideal').taken_from(poses, rng()), poses)


@pytest.mark.parametrize('shape', [(0, 8, 8), (1, 7, 9), (2, 64, 65)])
def test_any_number_and_size_of_views(shape):
    for name in presets():
        measured = load_preset(name).measure(np.ones(shape), 1., rng())
        assert measured.shape == shape and measured.dtype == np.float32
        assert np.isfinite(measured).all()


def test_same_seed_same_bytes():
    views = np.full((2, 32, 32), 2.)
    for name in presets():
        first, second = (load_preset(name).measure(views, 1., rng())
                         for _ in range(2))
        assert first.tobytes() == second.tobytes()


# ------------------------------------------------------------------- spectrum
@pytest.mark.parametrize('name', [CHEST, CASTING, OTHER])
def test_hardening_in_few_energies_is_that_of_the_whole_spectrum(name):
    """SpekPy's spectrum in steps of 0.5 keV, which ``spectra.json`` keeps."""
    path = Path(acquisition.__file__).with_name('spectra.json')
    told = json.loads(path.read_text())['beams'][name]['check']
    beam = load_spectrum(name)
    found = -np.log(beam.transmission(
        **{told['material']: np.array(told['length_mm'])}))
    assert np.abs(found - told['minus_log']).max() < .012
    assert beam.signal.sum() == pytest.approx(1, abs=1e-4)


def test_the_slope_of_water_falls_as_published():
    """Effective attenuation of 120 kV behind 10, 87, 200 and 300 mm of water
    (SpekPy with NIST's tables): 0.2127, 0.2085, 0.2040, 0.2011 per cm."""
    beam = load_spectrum(CHEST)
    for length, mu in ((10., .02127), (87., .02085), (200., .0204),
                       (300., .02011)):
        found = -np.log(beam.transmission(water=np.array(length))) / length
        assert float(found) == pytest.approx(mu, rel=.01)


# NIST's tables (keV; cm2/g): attenuation of aluminium and caesium iodide, and
# the energy that air absorbs.
NIST = np.array([40., 50., 60., 80., 100., 150.])
ALUMINIUM = np.array([.5685, .3681, .2778, .2018, .1704, .1378])
CSI = np.array([23.0, 12.86, 7.92, 3.677, 2.035, .731])
AIR = np.array([.06833, .04098, .03041, .02407, .02325, .02496])


def quanta_of(beam):
    """Share of each energy before the scintillator (0.6 mm that CsI fills to
    75 %) takes them for their energy."""
    absorbed = 1 - np.exp(-of_nist(CSI, beam.energies) * .06 * .75 * 4.51)
    quanta = beam.signal / absorbed / beam.energies
    return quanta / quanta.sum(), absorbed


def of_nist(table, energies):
    return np.exp(np.interp(np.log(energies), np.log(NIST), np.log(table)))


@pytest.mark.parametrize('length, energy', [
    (0., 63.), (87., 68.), (200., 73.), (300., 77.)])
def test_the_mean_energy_of_the_quanta_rises_behind_water(length, energy):
    """SpekPy with other tables of water."""
    beam = load_spectrum(CHEST)
    quanta, _ = quanta_of(beam)
    left = quanta * np.exp(-beam.mu['water'] * length)
    assert (left * beam.energies).sum() / left.sum() == pytest.approx(
        energy, abs=1.)
    # The signal weighs them with their energy and what is absorbed of it.
    assert beam.mean_energy(water=length) == pytest.approx(energy, abs=2.5)


def test_the_half_value_layer_of_the_beam():
    """7.73 mm of aluminium halve its kerma (SpekPy): in eight energies it is
    somewhat more, since the softest has quanta of 20 to 48 keV."""
    beam = load_spectrum(CHEST)
    quanta, absorbed = quanta_of(beam)
    kerma = quanta * beam.energies * of_nist(AIR, beam.energies)
    lengths = np.linspace(0, 20, 401)
    left = np.exp(-lengths[:, None] * .2699 * of_nist(
        ALUMINIUM, beam.energies)) @ kerma / kerma.sum()
    assert lengths[np.abs(left - .5).argmin()] == pytest.approx(7.73, rel=.1)
    assert quanta @ absorbed == pytest.approx(beam.absorbed, rel=.01)
    # Quanta for each unit of kerma: energy that a gram of air absorbs.
    joules = (quanta * beam.energies) @ of_nist(AIR, beam.energies) * 1.602e-16
    per_gray = 1 / (joules * 1e3) / 100  # cm2/g of J to a kilogram; mm2
    assert per_gray * 1e-6 == pytest.approx(28976, rel=.03)


def test_water_halves_the_signal_at_its_half_value_layer():
    """ln 2 over 0.2127/cm, hardening included: 33 to 34 mm."""
    beam = load_spectrum(CHEST)
    lengths = np.linspace(0, 60, 601)
    left = beam.transmission(water=lengths)
    assert 32.6 < lengths[np.abs(left - .5).argmin()] < 34.


def test_nickel_at_225_kv():
    """0.35/mm behind 10 mm and 0.28/mm behind 20 mm (SpekPy and tables)."""
    beam = load_spectrum(CASTING)
    for length, mu in ((10., .35), (20., .28)):
        found = -np.log(beam.transmission(nickel=np.array(length))) / length
        assert float(found) == pytest.approx(mu, rel=.06)


def test_bone_hardens_more_than_the_water_it_counts_as():
    views = np.full((1, 4, 4), 6., np.float32)
    none, some = (plain().measure(views, 1., rng(), np.full((1, 4, 4), b))
                  for b in (0., 40.))
    # 40 mm of cortical bone stop more than 100 mm of water, and what is left
    # is harder.
    assert (some > none + .03).all()


# ---------------------------------------------------------------------- noise
@pytest.mark.parametrize('kerma', [.5, 5., 50.])
@pytest.mark.parametrize('depth', [1., 5.])
def test_noise_is_that_of_the_quanta_that_are_counted(kerma, depth):
    views = np.full((4, 128, 128), depth)
    found = plain(kerma=kerma, noise=True, swank=.84).measure(
        views, PIXEL, rng())
    beam = load_spectrum(CHEST)
    quanta = 28976 * kerma * (2 * PIXEL)**2 * beam.absorbed * float(
        beam.transmission(water=np.array(depth / .02)))
    assert quanta > 50
    # The logarithm's own first-order variance; behind an object a quantum
    # gives more to the signal than in the open beam, so there are fewer.
    size = beam.mean_energy(water=depth / .02) / beam.mean_energy()
    assert found.var() == pytest.approx(size / (.84 * quanta), rel=.05)


def test_noise_is_that_of_a_sum_of_energies():
    """Each energy's quanta counted by Poisson's law, behind 250 mm."""
    beam, depth = load_spectrum(CHEST), 5.
    each = beam.signal / beam.energies
    each *= 28976 * 5. * (2 * PIXEL)**2 * beam.absorbed / each.sum()
    swank = (each @ beam.energies)**2 / (
        each.sum() * (each @ beam.energies**2))
    left = each * np.exp(-beam.mu['water'] * depth / .02)
    signal = rng().poisson(left, (128 * 128, len(left))) @ beam.energies
    found = plain(kerma=5., noise=True, swank=swank).measure(
        np.full((4, 128, 128), depth), PIXEL, rng())
    assert found.std() == pytest.approx(signal.std() / signal.mean(),
                                        rel=.02)


def test_few_quanta_are_poisson():
    mean = np.full((1, 200, 200), 3.)
    counted = plain(noise=True, swank=1.)._counted(mean, rng())
    assert counted.min() == 0
    assert np.array_equal(counted, counted.round())
    assert counted.mean() == pytest.approx(3, rel=.02)
    assert counted.var() == pytest.approx(3, rel=.03)


def test_electronic_noise_grows_with_the_side_of_a_pixel():
    """A pixel of n² native ones has n times the noise of one."""
    views = np.zeros((2, 128, 128))
    sides = []
    for size in (.139, .278):
        raw = plain(electronic=5.).expose(views, size / 2, rng())
        sides.append((raw.raw - raw.flat).std())
    assert sides[0] == pytest.approx(5, rel=.02)
    assert sides[1] == pytest.approx(10, rel=.02)


def test_nothing_is_counted_and_a_line_integral_is_left():
    found = plain(noise=True, kerma=.01).measure(
        np.full((1, 16, 16), 20.), 1., rng())
    assert np.isfinite(found).all()


# ----------------------------------------------------------------------- blur
def mtf_of(conditions, pixel):
    """MTF across an edge, from the derivative of what is counted."""
    views = np.zeros((1, 32, 512))
    views[..., 256:] = .2
    raw = conditions.expose(views, pixel / 2, rng()).raw[0, 16]
    line = np.diff(raw)
    # The derivative's own low pass is taken off.
    found = np.abs(np.fft.rfft(line)) / np.abs(line.sum())
    return np.fft.rfftfreq(len(line), pixel), found


def test_light_spread_has_the_mtf_that_was_asked_for():
    frequency, found = mtf_of(plain(light_spread=.6), .1)
    for f in (.5, 1., 2.):
        row = np.abs(frequency - f).argmin()
        expected = 1 / (1 + .6 * frequency[row]**2)
        assert found[row] == pytest.approx(expected, abs=.02)


def test_the_focal_spot_blurs_as_its_shadow_at_the_detector():
    """A square of 1.2 mm, magnified by 2 - 1, has sinc's first drop."""
    frequency, found = mtf_of(plain(focal_spot=1.2), .1)
    for f in (.1, .2, .3):
        row = np.abs(frequency - f).argmin()
        assert found[row] == pytest.approx(
            np.sinc(1.2 * frequency[row]), abs=.03)


# -------------------------------------------------------------------- scatter
def shadow():
    """A body in the middle of the view, air round it."""
    views = np.zeros((1, 128, 128), np.float32)
    views[:, 48:80, 48:80] = 3.
    return views


def test_scatter_is_what_the_beam_has_lost():
    """No more arrives than k of what was taken away, whatever the width; and
    all of that where it stays on the detector."""
    for width, share in ((20., 1.), (400., None)):
        conditions = plain(scatter=.1, scatter_width=width)
        exposure = conditions.expose(shadow(), 2., rng())
        primary = load_spectrum(CHEST).transmission(water=shadow() / .02)
        lost = (1 - primary).sum() * exposure.flat[0, 0]
        arrived = exposure.scatter.sum()
        assert arrived <= .1 * lost * 1.001
        if share:
            assert arrived == pytest.approx(.1 * lost, rel=.01)
        assert (exposure.scatter >= 0).all()


def test_scatter_takes_contrast_and_correction_gives_it_back():
    def contrast(**changes):
        found = plain(scatter=.1, scatter_width=50., **changes).measure(
            shadow(), 2., rng())
        return found[0, 64, 64] - found[0, 4, 4]

    whole = float(-np.log(load_spectrum(CHEST).transmission(
        water=np.array(3. / .02))))
    assert contrast() < .8 * whole
    assert contrast(scatter_corrected=1.) == pytest.approx(whole, rel=1e-3)
    left = contrast(scatter_corrected=1., scatter_error=.05)
    assert .7 * whole < left < 1.3 * whole and left != pytest.approx(whole)


def test_the_error_of_a_correction_has_its_deviation():
    noise = acquisition._smooth_noise((200, 64, 64), 12., rng())
    assert noise.std() == pytest.approx(1, rel=.05)
    near = (noise[:, :, :-1] * noise[:, :, 1:]).mean()
    far = (noise[:, :, :-48] * noise[:, :, 48:]).mean()
    assert near > .9 and abs(far) < .1


# ------------------------------------------------------------------- detector
def test_dead_pixels_are_found_and_filled():
    ramp = np.linspace(0, 3, 64 * 64).reshape(1, 64, 64)
    found = plain(dead=.02).measure(ramp, 1., rng())
    clean = plain().measure(ramp, 1., rng())
    assert 0 < (found != clean).sum() < .05 * found.size
    assert np.abs(found - clean).max() < .1


def test_gain_is_one_pattern_in_all_views():
    found = plain(gain=.01).measure(np.zeros((3, 64, 64)), 1., rng())
    assert found.std() == pytest.approx(.01, rel=.05)
    assert np.allclose(found[0], found[1], atol=1e-6)


def test_lag_leaves_a_share_of_the_view_before():
    views = np.zeros((2, 8, 8))
    views[0] = 2.
    raw = plain(lag=.02).expose(views, 1., rng())
    left = float(load_spectrum(CHEST).transmission(water=np.array(100.)))
    expected = raw.flat[0, 0] * (.98 + .02 * left)
    assert raw.raw[1, 4, 4] == pytest.approx(expected, rel=1e-4)


def test_lag_has_no_ghost_of_the_open_beam_in_the_first_view():
    alike = np.full((3, 8, 8), 5.)
    clean = plain().measure(alike, 1., rng())
    assert plain(lag=.02).measure(alike, 1., rng()) == pytest.approx(
        clean, abs=1e-4)
    views = np.stack([np.full((8, 8), p) for p in (5., 4.5, 5., 4.5)])
    bias = np.abs(plain(lag=.02).measure(views, 1., rng()) -
                  plain().measure(views, 1., rng())).mean((1, 2))
    assert bias[0] <= bias[1:].min()


# ---------------------------------------------------------------------- poses
def test_motion_and_pose_error_have_their_size():
    poses = np.stack([np.eye(4)] * 4000)
    moved = Acquisition(motion=3.).taken_from(poses, rng())[:, :3, 3]
    assert np.abs(moved).max(0) == pytest.approx([.5, .75, 1.5], rel=.02)
    wrong = Acquisition(pose_shift=.25).taken_from(poses, rng())[:, :3, 3]
    assert wrong.std(0) == pytest.approx(.25, rel=.05)
    turned = Acquisition(pose_angle=.5).taken_from(poses, rng())
    angle = np.degrees(np.arccos((np.trace(
        turned[:, :3, :3], axis1=1, axis2=2) - 1) / 2))
    assert np.sqrt((angle**2).mean() / 3) == pytest.approx(.5, rel=.05)


# ----------------------------------------------------------------------- data
def test_every_value_of_a_preset_has_a_source():
    told = presets()
    whole = told['chest-radiography']
    fields = {f.name for f in dataclasses.fields(Acquisition)}
    for name, preset in told.items():
        assert set(preset['values']) <= fields, name
        assert preset['about']
    covered = {'scatter_width': 'scatter', 'scatter_corrected': 'scatter',
               'scatter_error_width': 'scatter_error'}
    for value in whole['values']:
        assert covered.get(value, value) in whole['sources']


def test_names_that_are_none_are_told():
    with pytest.raises(ValueError, match='expected one of ideal, chest-'):
        load_preset('chest')
    with pytest.raises(ValueError, match='spectrum: expected one of 120 kV'):
        load_spectrum('80 kV')
    with pytest.raises(ValueError, match='found kvp'):
        draw_acquisition(dict(kvp=120), rng())


def test_ranges_are_drawn_and_values_kept():
    generator, seen = rng(), []
    for _ in range(400):
        seen.append(draw_acquisition(
            dict(spectrum=CHEST, kerma=(1., 100.), gain=[0., .01]),
            generator))
    kerma = np.array([s.kerma for s in seen])
    assert kerma.min() >= 1 and kerma.max() <= 100
    # As many below 10 as above: the decades are alike.
    assert .4 < (kerma < 10).mean() < .6
    assert {s.spectrum for s in seen} == {CHEST}
    assert .004 < np.mean([s.gain for s in seen]) < .006
