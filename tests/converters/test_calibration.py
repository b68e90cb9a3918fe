"""Rigs from beads: right to what the noise allows, and honest about it."""

import json

import cv2
import numpy as np
import pytest

from data_converters.__main__ import main
from data_converters.calibration import fit_rig
from projects.core import geometry
from projects.core.rig import Rig, View
from tests.helpers.rigs import BEADS, HELIX, errors, refusal, turned, write

SIZE = 1024


def seen(path, rig, rng=None, noise=0., wrong=0., points=HELIX):
    """A table of beads; a share of them is taken for others."""
    rng = rng or np.random.default_rng(0)
    rows, outliers = [], set()
    for view in rig.views:
        uv, _ = geometry.project(points, view.ct2img)
        uv = uv + rng.normal(0, noise, uv.shape) if noise else uv
        for row in rng.permutation(len(points))[:round(wrong * len(points))]:
            angle = rng.uniform(0, 2 * np.pi)
            uv[row] += rng.uniform(5, 60) * np.array(
                [np.cos(angle), np.sin(angle)])
            outliers.add((view.name, f'b{row}'))
        rows += [[view.name, *u, *p, f'b{n}']
                 for n, (u, p) in enumerate(zip(uv, points))]
    return write(path, (*BEADS, 'bead'), rows), outliers


@pytest.mark.parametrize('intrinsics', ['keep', 'shared', 'each'])
def test_exact_beads_give_the_exact_rig(tmp_path, intrinsics):
    rng = np.random.default_rng(1)
    true = turned(Rig.circle(4), rng, 3., 2.)
    if intrinsics != 'keep':
        for row, view in enumerate(true.views):
            view.cam2img = view.cam2img.copy()
            shift = row if intrinsics == 'each' else 1
            view.cam2img[:2, :2] *= 1 + .01 * shift
            view.cam2img[:2, 2] += [7 * shift, -4]
    beads, _ = seen(tmp_path / 'beads.csv', true)
    fit = fit_rig(beads, Rig.circle(4), intrinsics)
    assert np.abs(errors(fit.rig, true)).max() < 1e-5
    for a, b in zip(fit.rig.views, true.views):
        np.testing.assert_allclose(a.cam2img, b.cam2img, atol=1e-4)
    assert fit.sigma < 1e-6 and fit.outliers() == []


@pytest.mark.parametrize('intrinsics', ['keep', 'shared'])
def test_noise_outliers_and_a_wrong_start(tmp_path, intrinsics):
    """0.2 px, one bead of ten taken for another, 5 mm and 3 degrees off.
    Errors are as large as the covariances say: the Cramér-Rao bound."""
    rng = np.random.default_rng(0)
    true = Rig.circle(12)
    beads, wrong = seen(tmp_path / 'beads.csv', true, rng, .2, .1)
    start = turned(true, rng)
    if intrinsics == 'shared':
        for view in start.views:
            view.cam2img = view.cam2img.copy()
            view.cam2img[:2, :2] *= 1.02
            view.cam2img[:2, 2] += [10, -6]
    fit = fit_rig(beads, start, intrinsics)
    named = {(item['view'], item['bead']) for item in fit.outliers()}
    assert wrong <= named and len(named - wrong) <= 2
    assert fit.sigma == pytest.approx(.2, rel=.08)
    off = errors(fit.rig, true)
    # (error / covariance) has six degrees of freedom in each view; those
    # that share their intrinsics are off together.
    chi2 = np.einsum('vi,vij,vj->v', off, np.linalg.inv(fit.covariance), off)
    low, high = (.6, 1.6) if intrinsics == 'keep' else (.2, 3.)
    assert low < chi2.mean() / 6 < high
    if intrinsics == 'keep':
        # The source to 0.1 mm, the direction to 0.05 degrees of the bound.
        spread, bound = (np.sqrt((values**2).mean(0))
                         for values in (off, fit.deviations))
        assert np.abs(spread - bound)[3:].max() < .1
        assert np.degrees(spread - bound)[:3].max() < .05
        assert bound[3:5].max() < .1 and np.degrees(bound[:3]).max() < .05


def test_without_a_rig_to_begin_with(tmp_path):
    """Direct linear transform, in spite of wrong beads."""
    rng = np.random.default_rng(2)
    true = turned(Rig.circle(5), rng, 20., 10.)
    beads, wrong = seen(tmp_path / 'beads.csv', true, rng, .1, .1)
    fit = fit_rig(beads, None, 'shared', (SIZE, SIZE))
    assert wrong <= {(i['view'], i['bead']) for i in fit.outliers()}
    off = errors(fit.rig, true)
    chi2 = np.einsum('vi,vij,vj->v', off, np.linalg.inv(fit.covariance), off)
    assert chi2.max() < 40
    assert np.abs(off[:, 3:]).max() < 2
    focal = fit.rig.views[0].cam2img[0, 0]
    assert focal == pytest.approx(true.views[0].cam2img[0, 0], rel=5e-3)
    each = fit_rig(beads, None, 'each', (SIZE, SIZE))
    assert len({v.cam2img[0, 0] for v in each.rig.views}) == 5


def test_a_tilted_detector_is_found(tmp_path):
    """Its normal is off the beam by three degrees: where rays meet it is
    right, whatever names the parameters have."""
    source, tilt = np.array([300., 0, 0]), np.radians(3)
    rng = np.random.default_rng(3)
    column = np.array([0, np.cos(tilt), np.sin(tilt)]) * .78125
    row = np.array([np.sin(tilt), np.sin(tilt)**2, -np.cos(tilt)]) * .78125
    row -= column * (row @ column) / (column @ column)
    row *= .78125 / np.linalg.norm(row)
    view = View.from_detector('CAM_00', source, np.array([-300., 4, 2]),
                              column, row, SIZE, SIZE)
    beads, _ = seen(tmp_path / 'beads.csv', Rig([view]), rng, .05)
    nominal = Rig.circle(1)
    fit = fit_rig(beads, nominal, 'each')
    off = rng.uniform(-50, 50, (20, 3))
    found, _ = geometry.project(off, fit.rig.views[0].ct2img)
    expected, _ = geometry.project(off, view.ct2img)
    assert np.abs(found - expected).max() < .1
    assert fit.sigma == pytest.approx(.05, rel=.25)
    kept = fit_rig(beads, nominal)
    assert kept.sigma > 10 * fit.sigma or len(kept.outliers()) > 3


def test_command(tmp_path, capsys):
    """Rig, report and picture; then the beads agree with the rig."""
    rng = np.random.default_rng(4)
    true = Rig.circle(3)
    beads, wrong = seen(tmp_path / 'beads.csv', true, rng, .2, .05)
    turned(true, rng).save(tmp_path / 'nominal.json')
    out = tmp_path / 'new' / 'rig.json'
    main(['rig', '--fit', str(beads), '--rig', str(tmp_path / 'nominal.json'),
          '--out', str(out), '--report', str(tmp_path / 'fit.json'),
          '--picture', str(tmp_path / 'fit.png')])
    shown = capsys.readouterr().out
    for view, bead in wrong:
        assert f'left out: view {view}, bead {bead}:' in shown
    told = json.loads((tmp_path / 'fit.json').read_text())
    assert [v['moved_mm'] for v in told['views']] == pytest.approx(
        [5.] * 3, abs=.3)
    assert [v['turned_deg'] for v in told['views']] == pytest.approx(
        [3.] * 3, abs=.1)
    assert np.shape(told['views'][0]['covariance']) == (6, 6)
    picture = cv2.imread(str(tmp_path / 'fit.png'))
    assert picture is not None and picture.std() > 5
    right = [row for row in beads.read_text().splitlines()[1:]
             if (row.split(',')[0], row.split(',')[-1]) not in wrong]
    write(beads, (*BEADS, 'bead'), [row.split(',') for row in right])
    main(['rig', '--check', str(beads), '--rig', str(out),
          '--max-residual', '1'])
    # The same from no rig, which has the true size alone.
    main(['rig', '--fit', str(beads), '--image-size', str(SIZE), '--out',
          str(out)])
    assert 'moved' not in capsys.readouterr().out
    assert Rig.load(out).views[0].width == SIZE


def test_beads_of_a_mirrored_image_are_refused(tmp_path):
    true = Rig.circle(1)
    uv, _ = geometry.project(HELIX, true.views[0].ct2img)
    rows = [['CAM_00', SIZE - u, v, *p] for (u, v), p in zip(uv, HELIX)]
    beads = write(tmp_path / 'b.csv', BEADS, rows)
    text = refusal('--fit', beads, '--image-size', SIZE, '--out',
                   tmp_path / 'rig.json')
    assert 'CAM_00' in text and 'mirrored' in text
    assert not (tmp_path / 'rig.json').exists()


@pytest.mark.parametrize('points, message', [
    (HELIX[:3], 'view CAM_00: expected at least 4 beads, found 3'),
    (np.column_stack([np.zeros(8), np.zeros(8), np.arange(8.) * 9]),
     'plane or on a line'),
    (HELIX + [400, 0, 0], 'behind'),
])
def test_beads_that_do_not_do(tmp_path, points, message):
    rig = Rig.circle(2)
    rig.save(tmp_path / 'nominal.json')
    beads, _ = seen(tmp_path / 'b.csv', rig, points=np.asarray(points, float))
    text = refusal('--fit', beads, '--rig', tmp_path / 'nominal.json',
                   '--out', tmp_path / 'rig.json')
    assert message in text
    assert not (tmp_path / 'rig.json').exists()


def test_wrong_calls(tmp_path):
    rig = Rig.circle(2)
    rig.save(tmp_path / 'nominal.json')
    beads, _ = seen(tmp_path / 'b.csv', rig)
    out = ('--out', tmp_path / 'rig.json')
    assert '--image-size' in refusal('--fit', beads, *out)
    assert 'keep' in refusal('--fit', beads, '--image-size', 64,
                             '--intrinsics', 'keep', *out)
    assert '--out' in refusal('--fit', beads)
    assert 'its folder' in refusal(
        '--fit', beads, '--rig', tmp_path / 'nominal.json', *out, '--report',
        tmp_path / 'none' / 'fit.json')
    flat = np.column_stack([HELIX[:, :2], np.zeros(len(HELIX))])
    beads, _ = seen(tmp_path / 'flat.csv', rig, points=flat)
    assert 'plane' in refusal('--fit', beads, '--image-size', 64, *out)
    text = beads.read_text().replace('CAM_01', 'CAM_07')
    beads.write_text(text)
    assert 'one of CAM_00, CAM_01' in refusal(
        '--fit', beads, '--rig', tmp_path / 'nominal.json', *out)
    one, _ = seen(tmp_path / 'one.csv', Rig(rig.views[:1]))
    assert 'view CAM_01: expected at least 4 beads, found 0' in refusal(
        '--fit', one, '--rig', tmp_path / 'nominal.json', *out)
