"""Rigs from tables and circles, their file's schema, and calibration."""

import copy
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from data_converters.__main__ import main
from projects.core import geometry
from projects.core.rig import Rig, View
from tests.helpers.rigs import BEADS, refusal, write

SCHEMA = json.loads((Path(geometry.__file__).parent
                     / 'rig.schema.json').read_text())
SIZE = ('width', 'height')
CAMERA = ('name', *SIZE, 'fx', 'fy', 'cx', 'cy', 'skew',
          *(f'r{i}{j}' for i in '123' for j in '123'), 't1', 't2', 't3')
DETECTOR = ('name', *SIZE, *(
    f'{part}_{axis}' for part in ('source', 'detector', 'column', 'row')
    for axis in 'xyz'))


def camera_row(view):
    k = view.cam2img
    return [view.name, view.width, view.height, k[0, 0], k[1, 1], k[0, 2],
            k[1, 2], k[0, 1], *view.ct2cam[:3, :3].ravel(),
            *view.ct2cam[:3, 3]]


def detector_rows(angles, radius=300., sdd=600., pitch=1.6, size=(200, 120)):
    """A circle's source and detector, from the figures of a drawing."""
    rows = []
    for i, angle in enumerate(angles):
        out = np.array([np.cos(angle), np.sin(angle), 0.])
        rows.append([
            f'CAM_{i:02d}', *size, *radius * out, *(radius - sdd) * out,
            *pitch * np.array([-out[1], out[0], 0.]), 0, 0, -pitch])
    return rows


def same(a: Rig, b: Rig, atol=1e-9):
    assert [v.name for v in a.views] == [v.name for v in b.views]
    for one, other in zip(a.views, b.views):
        assert (one.width, one.height) == (other.width, other.height)
        np.testing.assert_allclose(one.ct2img, other.ct2img, atol=atol)
        np.testing.assert_allclose(one.cam2img, other.cam2img, atol=atol)


# --------------------------------------------------------------------- circle
def test_circle(tmp_path):
    out = tmp_path / 'made' / 'rig.json'
    main(['rig', '--circle', '6', '--radius', '300', '--sdd', '600',
          '--image-size', '200', '120', '--pixel-mm', '1.6', '--out',
          str(out)])
    rig = Rig.load(out)
    same(rig, Rig.circle(6, 300, 600, 200, 320., image_height=120))
    uv, depth = geometry.project(np.zeros((1, 3)), rig.views[2].ct2img)
    np.testing.assert_allclose([*uv[0], *depth], [100, 60, 300])
    # 10 mm up is 20 mm on the detector.
    uv, _ = geometry.project(np.array([[0, 0, 10.]]), rig.views[2].ct2img)
    np.testing.assert_allclose(uv[0], [100, 60 - 20 / 1.6])


def test_default_circle_is_the_papers(tmp_path):
    out = tmp_path / 'rig.json'
    main(['rig', '--circle', '10', '--out', str(out)])
    same(Rig.load(out), Rig.circle())
    main(['rig', '--circle', '3', '--arc', '90', '--start', '10', '--out',
          str(out)])
    same(Rig.load(out), Rig.circle(3, arc=90., start=10.))


@pytest.mark.parametrize('more, message', [
    (['--radius', '700'], '--radius'), (['--radius', '-1'], '--radius'),
    (['--radius', 'nan'], '--radius'), (['--pixel-mm', '0'], '--pixel-mm'),
    (['--image-size', '1', '2', '3'], '--image-size'),
    (['--arc', 'inf'], '--arc')])
def test_wrong_circles(tmp_path, more, message):
    text = refusal('--circle', 3, *more, '--out', tmp_path / 'r.json')
    assert message in text and 'found' in text
    assert not (tmp_path / 'r.json').exists()


# --------------------------------------------------------------------- tables
def test_camera_table_inverts_a_rig(tmp_path):
    rig = Rig.circle(5, 250, 700, 200, 320., image_height=120)
    rig.views[1].cam2img[0, 1] = 3.5  # skew
    rig.views[2].cam2img[:2, 2] += [17, -9]  # principal point
    table = write(tmp_path / 'views.csv', CAMERA,
                  [camera_row(v) for v in rig.views])
    main(['rig', '--table', str(table), '--out', str(tmp_path / 'r.json')])
    same(Rig.load(tmp_path / 'r.json'), rig)
    # The same as JSON, with whole numbers for pixel centres.
    content = [dict(zip(CAMERA, camera_row(v))) for v in rig.views]
    for item in content:
        item['cx'] -= .5
        item['cy'] -= .5
    (tmp_path / 'views.json').write_text(json.dumps(content))
    main(['rig', '--table', str(tmp_path / 'views.json'), '--pixel-origin',
          'centre', '--out', str(tmp_path / 'r.json')])
    same(Rig.load(tmp_path / 'r.json'), rig)


def test_few_digits_are_enough(tmp_path):
    rig = Rig.circle(5, 300, 600, 200)
    rows = [[f'{v:.3f}' if isinstance(v, float) else v
             for v in camera_row(view)] for view in rig.views]
    table = write(tmp_path / 'views.csv', CAMERA, rows)
    main(['rig', '--table', str(table), '--out', str(tmp_path / 'r.json')])
    for view, exact in zip(Rig.load(tmp_path / 'r.json').views, rig.views):
        rotation = view.ct2cam[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3),
                                   atol=1e-12)
        np.testing.assert_allclose(view.ct2cam, exact.ct2cam, atol=1e-3)


def test_source_and_detector_are_a_circle(tmp_path):
    angles = 2 * np.pi * np.arange(6) / 6
    table = write(tmp_path / 'views.csv', DETECTOR, detector_rows(angles))
    main(['rig', '--table', str(table), '--out', str(tmp_path / 'r.json')])
    same(Rig.load(tmp_path / 'r.json'),
         Rig.circle(6, 300, 600, 200, 320., image_height=120), atol=1e-9)


@pytest.mark.parametrize('skew', [0., .3])
def test_tilted_detectors_project_as_their_rays_do(skew):
    """A point lies on the line from the source to its pixel, wherever the
    detector is and however it is turned."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        turn = geometry.rigid_motion(rng.normal(0, .4, 3), [0, 0, 0])[:3, :3]
        column, row = turn @ [.4, 0, 0], turn @ [skew * .5, .5, 0]
        source = rng.normal(0, 30, 3) + [0, 0, -400]
        centre = rng.normal(0, 60, 3) + [0, 0, 300]
        view = View.from_detector('A', source, centre, column, row, 300, 180)
        rotation = view.ct2cam[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3),
                                   atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(
            geometry.camera_centres(view.ct2img), source, atol=1e-6)
        uv = rng.uniform(0, [300, 180], (15, 2))
        on_detector = (centre + (uv[:, :1] - 150) * column
                       + (uv[:, 1:] - 90) * row)
        points = source + rng.uniform(.3, 1.2, (15, 1)) * (
            on_detector - source)
        found, depth = geometry.project(points, view.ct2img)
        np.testing.assert_allclose(found, uv, atol=1e-6)
        assert (depth > 0).all()
        again = geometry.unproject(found, depth, view.ct2img)
        np.testing.assert_allclose(again, points, atol=1e-6)
        # It survives its file, skew and all.
        read = Rig.from_dict(json.loads(json.dumps(
            Rig([view]).to_dict()))).views[0]
        np.testing.assert_allclose(read.ct2img, view.ct2img)


def edit(header, rows, row, column, value):
    rows = copy.deepcopy(rows)
    rows[row][header.index(column)] = value
    return rows


CAMERAS = [camera_row(v) for v in Rig.circle(2, image_size=64).views]
DETECTORS = detector_rows([0., 1.])


@pytest.mark.parametrize('header, rows, message', [
    (CAMERA, [], 'one row for each view'),
    (CAMERA, edit(CAMERA, CAMERAS, 1, 'fx', 'x'), 'row 3: column "fx"'),
    (CAMERA, edit(CAMERA, CAMERAS, 0, 'fy', -4), 'row 2: column "fy"'),
    (CAMERA, edit(CAMERA, CAMERAS, 0, 'width', 64.5), 'column "width"'),
    (CAMERA, edit(CAMERA, CAMERAS, 0, 't1', 'nan'), 'column "t1"'),
    (CAMERA, edit(CAMERA, CAMERAS, 0, 'r11', .3), '"r11" to "r33"'),
    (CAMERA, edit(CAMERA, CAMERAS, 0, 'r23', 1.), 'a reflection'),
    (CAMERA, edit(CAMERA, CAMERAS, 1, 'name', 'CAM_00'), 'must differ'),
    (CAMERA, edit(CAMERA, CAMERAS, 1, 'name', '../x'), 'field "name"'),
    (CAMERA[:-1], [row[:-1] for row in CAMERAS], 'column "t3"'),
    ((*CAMERA, 'fz'), [[*row, 1] for row in CAMERAS], 'column "fz"'),
    (CAMERA, [CAMERAS[0][:-2]], 'row 2: expected 20 columns, found 18'),
    (DETECTOR[:-1], [row[:-1] for row in DETECTORS], 'column "row_z"'),
    (DETECTOR, edit(DETECTOR, DETECTORS, 0, 'row_z', 1.6), 'source'),
    (DETECTOR, edit(DETECTOR, DETECTORS, 0, 'row_z', 0), 'column and row'),
    (DETECTOR, edit(DETECTOR, DETECTORS, 0, 'source_x', 'inf'), 'source_x'),
])
def test_wrong_tables(tmp_path, header, rows, message):
    table = write(tmp_path / 'views.csv', header, rows)
    text = refusal('--table', table, '--out', tmp_path / 'rig.json')
    assert message in text and 'views.csv' in text
    assert not (tmp_path / 'rig.json').exists()


def test_wrong_calls(tmp_path):
    assert '--out' in refusal('--circle', 3)
    assert '--rig' in refusal('--check', tmp_path / 'beads.csv')
    missing = refusal('--table', tmp_path / 'none.csv', '--out',
                      tmp_path / 'rig.json')
    assert 'none.csv' in missing and 'cannot be read' in missing
    (tmp_path / 'views.json').write_text('{"a": 1}')
    assert 'a list' in refusal('--table', tmp_path / 'views.json', '--out',
                               tmp_path / 'rig.json')


# ---------------------------------------------------------------- calibration
def bead_rows(rig, offsets=()):
    points = np.array([[0, 0, 0], [20, -10, 30], [-25, 15, -20.]])
    rows = []
    for view in rig.views:
        uv, _ = geometry.project(points, view.ct2img)
        uv = uv + np.asarray(dict(offsets).get(view.name, (0, 0)))
        rows += [[view.name, *u, *p] for u, p in zip(uv, points)]
    return rows


def test_beads_tell_a_wrong_view(tmp_path, capsys):
    rig = Rig.circle(4, image_size=256)
    rig.save(tmp_path / 'rig.json')
    beads = write(tmp_path / 'beads.csv', BEADS, bead_rows(rig))
    call = ['rig', '--check', str(beads), '--rig', str(tmp_path / 'rig.json')]
    main([*call, '--max-residual', '0.001'])
    assert 'ABOVE' not in capsys.readouterr().out
    # One view is three pixels off: 3, -4 is 5 px.
    write(beads, BEADS, bead_rows(rig, {'CAM_02': (3, -4)}))
    main(call)  # without a limit it only tells
    lines = capsys.readouterr().out.splitlines()
    row, = (line.split() for line in lines if line.startswith('CAM_02'))
    assert row[1:4] == ['3', '5.000', '5.000']
    assert row[4:] == ['+3.000,', '-4.000']
    text = refusal(*call[1:], '--max-residual', '4.9')
    assert 'views CAM_02:' in text
    main([*call, '--max-residual', '5.1'])
    # All of a view's beads missing is no proof of it.
    write(beads, BEADS, [r for r in bead_rows(rig) if r[0] != 'CAM_01'])
    assert 'views CAM_01:' in refusal(*call[1:], '--max-residual', '1')
    # Whole numbers for pixel centres are half a pixel less.
    write(beads, BEADS, [[r[0], r[1] - .5, r[2] - .5, *r[3:]]
                         for r in bead_rows(rig)])
    refusal(*call[1:], '--max-residual', '.1')
    main([*call, '--max-residual', '.1', '--pixel-origin', 'centre'])


def test_wrong_beads(tmp_path):
    rig = Rig.circle(2, image_size=64)
    rig.save(tmp_path / 'rig.json')
    rows = bead_rows(rig)
    for name, value, message in (('view', 'CAM_09', 'one of CAM_00, CAM_01'),
                                 ('u', '', 'column "u"'),
                                 ('z', 'up', 'column "z"')):
        beads = write(tmp_path / 'b.csv', BEADS,
                      edit(BEADS, rows, 1, name, value))
        text = refusal('--check', beads, '--rig', tmp_path / 'rig.json')
        assert message in text and 'row 3' in text
    beads = write(tmp_path / 'b.csv', BEADS, [])
    assert 'found none' in refusal('--check', beads, '--rig',
                                   tmp_path / 'rig.json')
    # A bead behind the source is seen by no detector.
    behind = edit(BEADS, rows, 0, 'x', 400.)
    write(beads, BEADS, behind)
    assert 'CAM_00' in refusal('--check', beads, '--rig',
                               tmp_path / 'rig.json', '--max-residual', 1e6)


# --------------------------------------------------------------------- schema
def good(change):
    content = Rig.circle(2, image_size=32).to_dict()
    change(content)
    return content


@pytest.mark.parametrize('change', [
    lambda r: None, lambda r: r.pop('units'), lambda r: r.update(note='x'),
    lambda r: r['views'][0].update(width=32.0, name='side view-1.b'),
    lambda r: r['views'][0].update(
        cam2img=[[9, .5, 3, 0], [0, 9, 3, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
])
def test_schema_and_loader_take_the_same_files(change):
    content = good(change)
    jsonschema.validate(content, SCHEMA)
    assert len(Rig.from_dict(content)) == 2


@pytest.mark.parametrize('change', [
    lambda r: r.pop('views'), lambda r: r.update(views=[]),
    lambda r: r.update(views={}), lambda r: r.update(units='cm'),
    lambda r: r.update(schema_version=2),
    lambda r: r['views'].__setitem__(0, 3),
    *[lambda r, k=k: r['views'][1].pop(k)
      for k in ('name', 'width', 'height', 'cam2img', 'ct2cam')],
    *[lambda r, v=v: r['views'][0].update(name=v)
      for v in ('', 7, '../a', 'a/b', '.hidden', None)],
    *[lambda r, v=v: r['views'][0].update(height=v)
      for v in (0, -3, 3.5, '32', True, None, [3])],
    *[lambda r, v=v: r['views'][0].update(cam2img=v)
      for v in ([1], None, [[1, 2], [3, 4]], [[1, 0, 0], [0, 1], [0, 0, 1]],
                [['1', 0, 0], [0, 1, 0], [0, 0, 1]],
                [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
                [[1, 0, 0], [0, 0, 0], [0, 0, 1]],
                [[1, 0, 0], [0, 1, 0], [0, 0, 2]])],
    *[lambda r, v=v: r['views'][0].update(ct2cam=v)
      for v in (np.eye(3).tolist(), 'x', np.ones((4, 4)).tolist())],
])
def test_schema_and_loader_refuse_the_same_files(change):
    content = good(change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
    with pytest.raises(ValueError, match='rig.json') as error:
        Rig.from_dict(content, 'rig.json')
    assert '\n' not in str(error.value)
