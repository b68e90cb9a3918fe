"""Rigs of other programs: what those saw is where we look for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_converters.__main__ import main
from data_converters.geometries import read_geometry, write_geometry
from projects.core import geometry
from projects.core.rig import Rig, View
from tests.helpers.rigs import refusal

RTK = Path(__file__).parent / 'rtk'  # by benchmarks/rtk_geometry.py
SEEN = json.loads((RTK / 'seen.json').read_text())
SIZE = tuple(SEEN['size'])
TEXT = (RTK / 'geometry.xml').read_text()


def any_rig(skew=True):
    """Detectors that are tilted, off centre, perhaps not square."""
    rng = np.random.default_rng(0)
    views = []
    for number, view in enumerate(Rig.circle(4, image_size=256).views):
        inner = view.cam2img.copy()
        inner[:2, 2] += rng.normal(0, 20, 2)
        inner[0, 1] = 3. * skew
        inner[1, 1] *= 1.1
        views.append(View(f'CAM_{number:02d}', inner, geometry.moved_camera(
            view.ct2cam, rng.normal(0, .1, 3), rng.normal(0, 9, 3)), 256,
            200))
    return Rig(views)


def assert_same(one, two, atol=1e-9):
    assert len(one) == len(two)
    for a, b in zip(one.views, two.views):
        np.testing.assert_allclose(a.cam2img, b.cam2img, atol=atol * 1e3)
        np.testing.assert_allclose(a.ct2cam, b.ct2cam, atol=atol * 1e3)
        assert (a.width, a.height) == (b.width, b.height)


def test_balls_are_where_rtk_projected_them():
    """Of all angles and offsets, to a tenth of a pixel; RTK's rows go up."""
    rig, upside_down, _ = read_geometry(RTK / 'geometry.xml', SIZE,
                                     SEEN['pixel'], tuple(SEEN['origin']))
    assert upside_down and len(rig) == 3
    for item in SEEN['seen']:
        uv, depth = geometry.project(
            np.array([item['ball']]), rig.views[item['view']].ct2img)
        assert depth[0] > 0
        np.testing.assert_allclose(
            uv[0], [item['column'] + .5, SIZE[1] - (item['row'] + .5)],
            atol=.1)


def test_rtk_and_back(tmp_path):
    """Through the middle of the detector, which RTK calls otherwise."""
    rig, *_ = read_geometry(RTK / 'geometry.xml', SIZE, SEEN['pixel'],
                           tuple(SEEN['origin']))
    told = write_geometry(rig, tmp_path / 'rig.xml', 600.)
    assert 'spacing 2, 2 mm' in told and 'origin -159, -119 mm' in told
    assert_same(read_geometry(tmp_path / 'rig.xml', SIZE, 2.)[0], rig)
    # RTK's own matrix, but for its sign and the detector's place.
    ours = (tmp_path / 'rig.xml').read_text().split('<Matrix>')[2]
    theirs = TEXT.split('<Matrix>')[2]
    ours, theirs = (np.array(t.split('</Matrix>')[0].split(), float).reshape(
        3, 4) for t in (ours, theirs))
    ours[:2] += np.array([[SEEN['origin'][0] + 159],
                          [SEEN['origin'][1] + 119]]) * ours[2]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('ending', ['npy', 'json'])
def test_vectors_and_back(tmp_path, ending):
    rig = any_rig()
    told = write_geometry(rig, tmp_path / f'rig.{ending}', 700.)
    assert 'downwards' in told
    back, upside_down, _ = read_geometry(tmp_path / f'rig.{ending}',
                                         (256, 200))
    assert not upside_down
    assert_same(back, rig)


def test_vectors_say_where_a_detector_is():
    """A point of each pixel's corner, along its ray, at any distance."""
    for view in any_rig().views:
        for distance in (400., 900.):
            source, centre, column, row = view.to_detector(distance)
            pixels = np.array([[0., 0.], [256., 200.], [30., 170.]])
            points = (centre + (pixels[:, :1] - 128) * column
                      + (pixels[:, 1:] - 100) * row)
            uv, depth = geometry.project(points, view.ct2img)
            np.testing.assert_allclose(uv, pixels, atol=1e-8)
            np.testing.assert_allclose(depth, distance)
            again = View.from_detector('a', source, centre, column, row, 256,
                                       200)
            np.testing.assert_allclose(again.ct2img, view.ct2img, atol=1e-7)


def test_vectors_with_rows_upwards(tmp_path, capsys):
    """As ASTRA's circular scans have them: the images are turned."""
    angles = np.linspace(0, 2 * np.pi, 5, endpoint=False)
    vectors = np.array([
        [300 * np.cos(a), 300 * np.sin(a), 0, -300 * np.cos(a),
         -300 * np.sin(a), 0, -2 * np.sin(a), 2 * np.cos(a), 0, 0, 0, 2]
        for a in angles])
    np.save(tmp_path / 'v.npy', vectors)
    main(['rig', '--from', str(tmp_path / 'v.npy'), '--image-size', '100',
          '80', '--out', str(tmp_path / 'rig.json')])
    assert 'turn the images upside down' in capsys.readouterr().out
    view = Rig.load(tmp_path / 'rig.json').views[1]
    uv, _ = geometry.project(np.array([[0, 0, 0], [0, 0, 10.]]), view.ct2img)
    # Twice as large, pixels of 2 mm, up.
    np.testing.assert_allclose(uv, [[50, 40], [50, 30]], atol=1e-9)
    vectors[2, 9:] *= -1
    np.save(tmp_path / 'v.npy', vectors)
    assert 'the same way in all views' in refusal(
        '--from', tmp_path / 'v.npy', '--image-size', 100, '--out',
        tmp_path / 'r.json')


def test_command(tmp_path, capsys):
    main(['rig', '--from', str(RTK / 'geometry.xml'), '--image-size',
          *map(str, SIZE), '--pixel-mm', '2', '--first-pixel-mm',
          *map(str, SEEN['origin']), '--out', str(tmp_path / 'rig.json')])
    assert 'upside down' in capsys.readouterr().out
    main(['rig', '--to', str(tmp_path / 'new' / 'back.xml'), '--rig',
          str(tmp_path / 'rig.json'), '--sdd', '600'])
    assert 'origin -159, -119 mm' in capsys.readouterr().out
    assert_same(read_geometry(tmp_path / 'new' / 'back.xml', SIZE, 2.)[0],
                Rig.load(tmp_path / 'rig.json'))
    assert '--image-size' in refusal('--from', RTK / 'geometry.xml', '--out',
                                     tmp_path / 'r.json')
    assert '--pixel-mm' in refusal('--from', RTK / 'geometry.xml', '--out',
                                   tmp_path / 'r.json', '--image-size', 64)
    assert '--rig' in refusal('--to', tmp_path / 'a.npy')
    any_rig().save(tmp_path / 'skewed.json')
    assert 'skew' in refusal('--to', tmp_path / 'a.xml', '--rig',
                             tmp_path / 'skewed.json')
    assert not (tmp_path / 'a.xml').exists()
    assert 'ending' in refusal('--to', tmp_path / 'a.txt', '--rig',
                               tmp_path / 'skewed.json')


@pytest.mark.parametrize('old, new, message', [
    ('<SourceToIsocenterDistance>', '<Other>', 'is not XML'),
    ('RTKThreeDCircularGeometry', 'Geometry', 'found Geometry'),
    ('>36<', '>north<', 'projection 1: field "GantryAngle": expected a '
     'finite number, found "north"'),
    ('>36<', '>nan<', 'finite'),
    ('Projection>', 'View>', 'at least one'),
    ('GantryAngle', 'Gantry', 'field "GantryAngle": expected a number'),
    ('<Projection>', '<Projection><RadiusCylindricalDetector>9'
     '</RadiusCylindricalDetector>', 'flat detector'),
    ('<Projection>', '<Projection><SourceToDetectorDistance>0'
     '</SourceToDetectorDistance>', 'parallel beam'),
    ('<!DOCTYPE RTKGEOMETRY>', '<!DOCTYPE a [<!ENTITY b "c">]>', 'entities'),
])
def test_wrong_files_of_rtk(tmp_path, old, new, message):
    assert old in TEXT
    path = tmp_path / 'g.xml'
    path.write_text(TEXT.replace(old, new))
    assert message in refusal(
        '--from', path, '--image-size', *SIZE, '--pixel-mm', 2, '--out',
        tmp_path / 'rig.json')
    assert not (tmp_path / 'rig.json').exists()


@pytest.mark.parametrize('content, message', [
    (np.zeros((2, 11)), '12 finite numbers'),
    (np.full((2, 12), np.nan), '12 finite numbers'),
    (np.zeros((0, 12)), '12 finite numbers'),
    (np.zeros((1, 12)), 'span the detector'),
    (np.array([None] * 3), 'not a readable array'),
])
def test_wrong_vectors(tmp_path, content, message):
    path = tmp_path / 'v.npy'
    np.save(path, content, allow_pickle=True)
    assert message in refusal('--from', path, '--image-size', 64, '--out',
                              tmp_path / 'rig.json')


def test_damaged_files_end_in_a_sentence(tmp_path):
    """Five hundred of them, cut or with bytes changed."""
    np.save(tmp_path / 'v.npy', np.ones((3, 12)))
    rng = np.random.default_rng(0)
    for name, whole in (('g.xml', TEXT.encode()),
                        ('w.npy', (tmp_path / 'v.npy').read_bytes())):
        for _ in range(250):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), rng.integers(1, 9)):
                damaged[place] = rng.integers(0, 256)
            cut = int(rng.integers(0, len(whole) + 1)) if rng.uniform(
                ) < .3 else len(whole)
            (tmp_path / name).write_bytes(bytes(damaged[:cut]))
            try:
                main(['rig', '--from', str(tmp_path / name), '--image-size',
                      '64', '--pixel-mm', '2', '--out',
                      str(tmp_path / 'rig.json')])
            except SystemExit as stop:
                assert isinstance(stop.code, str) and '\n' not in stop.code
