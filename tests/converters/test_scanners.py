"""Rigs of scanners and of reconstruction software: where those put things."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_converters.__main__ import main
from data_converters.geometries import read_geometry
from projects.core import geometry
from projects.core.rig import Rig
from tests.helpers.rigs import (
    POINTS,
    assert_told,
    damaged,
    projected,
    refusal,
    round_trip,
)

TIGRE = Path(__file__).parent / 'tigre'  # by benchmarks/tigre_geometry.py
FIELDS = json.loads((TIGRE / 'geometry.json').read_text())
XTEKCT = """[XTekCT]
Name=part
Units=mm
SrcToObject=100
SrcToDetector=400
DetectorPixelsX=200
DetectorPixelsY=100
DetectorPixelSizeX=0.5
DetectorPixelSizeY=0.4
DetectorOffsetX=0
Projections=4
InitialAngle=0
AngularStep=90
ObjectOffsetX=0
ObjectRoll=0
ObjectTilt=0
[Xrays]
XraykV=100
"""
CTDATA = """Projs\tFrames\tExposure
4\t1\t500
Projection\tAngle(deg)\tTime(s)
1\t0.0\t0.1
2\t90.5\t0.2
3\t180.0\t0.3
4\t269.75\t0.4
"""


# ---------------------------------------------------------------------- TIGRE
def test_balls_are_where_tigre_projected_them(tmp_path, capsys):
    """Of all angles and offsets, to a tenth of a pixel; rows go up."""
    main(['rig', '--from', str(TIGRE / 'geometry.json'), '--out',
          str(tmp_path / 'rig.json')])
    assert 'upside down' in capsys.readouterr().out
    rig = Rig.load(tmp_path / 'rig.json')
    seen = json.loads((TIGRE / 'seen.json').read_text())
    rows = seen['size'][0]
    assert len(rig) == 3 and len(seen['seen']) == 9
    for item in seen['seen']:
        np.testing.assert_allclose(
            projected(rig, item['view'], [item['ball']])[0],
            [item['column'] + .5, rows - (item['row'] + .5)], atol=.1)
    round_trip(rig, tmp_path)


def test_fields_of_tigre_for_all_views(tmp_path):
    """One value for all is the same as one for each; some have defaults."""
    plain = dict(DSD=600., DSO=[300.], nDetector=[100, 80],
                 dDetector=[2., 2.5], angles=[0., .3, 2.])
    full = dict(plain, DSD=[600.] * 3, DSO=[300.] * 3, COR=[0.] * 3,
                offDetector=[[0, 0]] * 3, rotDetector=[0, 0, 0],
                sDetector=[200., 200.], mode='cone', nVoxel=[9, 9, 9],
                angles=[[0., 0, 0], [.3, 0, 0], [2., 0, 0]])
    rigs = []
    for content in (plain, full):
        (tmp_path / 'g.json').write_text(json.dumps(content))
        rigs.append(read_geometry(tmp_path / 'g.json').rig)
    for a, b in zip(*(rig.views for rig in rigs)):
        np.testing.assert_allclose(a.ct2img, b.ct2img)
        assert (a.width, a.height) == (80, 100)
    # From +x, twice as large: y in columns of 2.5 mm, z in rows, up.
    np.testing.assert_allclose(projected(rigs[0], 0, [[0, 10, 10]]),
                               [[48, 40]], atol=1e-9)


@pytest.mark.parametrize('field, value, message', [
    ('DSD', None, 'field "DSD": expected it among'),
    ('DSD', 'far', 'finite numbers'),
    ('DSD', [600., 600.], 'expected 1 or 3 or 3x1 finite numbers'),
    ('DSO', -1, 'more than 0'),
    ('DSO', float('nan'), 'finite'),
    ('angles', [], 'field "angles"'),
    ('angles', 7, 'field "angles"'),
    ('angles', [[0, 1], [2], [3, 4]], 'field "angles"'),
    ('nDetector', [100.5, 80], 'whole numbers'),
    ('sDetector', [1., 1.], 'nDetector x dDetector'),
    ('mode', 'parallel', 'parallel beam'),
    ('offDetector', [[0, 0], [0, 0]], 'offDetector'),
    ('rotDetector', [0, np.pi, 0], 'both'),
])
def test_wrong_fields_of_tigre(tmp_path, field, value, message):
    content = dict(FIELDS, **{field: value})
    if message == 'both':
        content[field] = [[0, 0, 0], [0, 0, 0], value]
    (tmp_path / 'g.json').write_text(json.dumps(content))
    text = refusal('--from', tmp_path / 'g.json', '--out',
                   tmp_path / 'rig.json')
    assert message in text and 'g.json' in text
    assert not (tmp_path / 'rig.json').exists()


# ------------------------------------------------------------------------ CIL
def write_cil(path, source, detector, angles, axis=((0, 0, 0), (0, 0, 1)),
              directions=((1, 0, 0), (0, 0, 1)), panel='bottom-left',
              unit='degree', initial=0., **attributes):
    """As CIL's NEXUSDataWriter lays it out."""
    with h5py.File(path, 'w') as file:
        entry = file.create_group('entry1/tomo_entry')
        data = entry.create_dataset('data/data', (1, ), 'f4').attrs
        data.update(dict(
            data_type='AcquisitionData', geometry='cone', dimension='3D',
            num_channels=1, num_pixels_h=200, num_pixels_v=100,
            pixel_size_h=.5, pixel_size_v=.4, panel_origin=panel,
            **attributes))
        for key, value in (
                ('source/position', source), ('detector/position', detector),
                ('detector/direction_x', directions[0]),
                ('detector/direction_y', directions[1]),
                ('rotation_axis/position', axis[0]),
                ('rotation_axis/direction', axis[1])):
            entry[f'config/{key}'] = np.array(value, 'f4')
        entry['config/angles'] = np.array(angles, 'f4')
        entry['config/angles'].attrs.update(dict(
            angle_unit=unit, initial_angle=initial))
    return path


def test_cil_by_hand(tmp_path):
    """Source at -y, detector at +y, four times as large, rows up; the object
    turns against the clock, so that what was on +x is then on +y."""
    read = read_geometry(write_cil(tmp_path / 'a.nxs', (0, -100, 0),
                                   (0, 300, 0), [0, 90]))
    assert read.upside_down
    rig = read.rig
    near = 400 / 110 / .5  # px a mm, ten mm behind the axis
    far = 400 / 90 / .5
    np.testing.assert_allclose(projected(rig, 0, [[10, 0, 0]]),
                               [[100 + 80, 50]], atol=1e-4)
    np.testing.assert_allclose(projected(rig, 0, [[0, 0, 2]]),
                               [[100, 50 - 20]], atol=1e-4)
    # On +x it goes behind; on +y it goes to the left; on -y to the right.
    np.testing.assert_allclose(
        projected(rig, 1, [[10, 0, 2], [0, 10, 0], [-10, 0, 2]]),
        [[100, 50 - 2 * near * .5 / .4], [100 - 80, 50],
         [100, 50 - 2 * far * .5 / .4]], atol=1e-3)
    round_trip(rig, tmp_path)


@pytest.mark.parametrize('panel, turned', [
    ('bottom-left', lambda uv: uv),
    ('top-left', lambda uv: uv),  # as they are, rows down
    ('bottom-right', lambda uv: [200, 0] + uv * [-1, 1]),
    ('top-right', lambda uv: [200, 0] + uv * [-1, 1])])
def test_corners_of_cil(tmp_path, panel, turned):
    """An image whose rows go up is turned upside down, whatever else."""
    args = (0, -100, 0), (3, 300, 2), [0, 70]
    usual = read_geometry(write_cil(tmp_path / 'a.nxs', *args)).rig
    read = read_geometry(write_cil(tmp_path / 'b.nxs', *args, panel=panel))
    assert read.upside_down == (panel in ('bottom-left', 'top-right'))
    for view in range(2):
        expected = turned(projected(usual, view))
        if panel in ('bottom-right', 'top-right'):
            # Not mirrored: turned by half a circle, or else upside down.
            expected = [0, 100] + expected * [1, -1]
        np.testing.assert_allclose(projected(read.rig, view), expected,
                                   atol=1e-3)


def test_cil_in_another_frame(tmp_path):
    """CIL sees the same, wherever its file has origin and axes."""
    usual = read_geometry(write_cil(
        tmp_path / 'a.nxs', (0, -100, 0), (0, 300, 0), [10, 200.5],
        axis=((4, 0, 0), (0, .1, 1)))).rig
    turn = geometry.rigid_motion(np.array([.3, -.5, .8]), np.array(
        [20., 30, -40]))

    def moved(vector, point=True):
        return turn[:3, :3] @ np.array(vector) + turn[:3, 3] * point

    other = read_geometry(write_cil(
        tmp_path / 'b.nxs', moved((0, -100, 0)), moved((0, 300, 0)),
        np.radians([0, 190.5]), unit='radian', initial=np.radians(10.),
        axis=(moved((4, 0, 0)), moved((0, .1, 1), False)),
        directions=(moved((1, 0, 0), False), moved((0, 0, 1), False)))).rig
    for view in range(2):
        np.testing.assert_allclose(projected(other, view),
                                   projected(usual, view), atol=2e-3)


@pytest.mark.parametrize('change, message', [
    (dict(geometry='parallel'), 'cone beam in 3D'),
    (dict(panel='middle'), 'corner'),
    (dict(unit='turns'), 'degree or radian'),
    (dict(angles=[]), '1 to 100000 numbers'),
    (dict(angles=[np.nan]), 'finite'),
    (dict(directions=((1, 0, 0), (1, 0, 1))), 'right angles'),
    (dict(axis=((0, 0, 0), (0, 0, 0))), 'axis of rotation'),
    (dict(num_pixels_v=0), 'whole numbers'),
    (dict(source=(0, 0)), 'source/position'),
])
def test_wrong_files_of_cil(tmp_path, change, message):
    kwargs = dict(source=(0, -100, 0), detector=(0, 300, 0), angles=[0, 90])
    attributes = {k: change.pop(k) for k in ('geometry', 'num_pixels_v')
                  if k in change}
    path = write_cil(tmp_path / 'a.nxs', **dict(kwargs, **change))
    with h5py.File(path, 'a') as file:
        file['entry1/tomo_entry/data/data'].attrs.update(attributes)
    text = refusal('--from', path, '--out', tmp_path / 'rig.json')
    assert message in text
    assert not (tmp_path / 'rig.json').exists()


def test_what_would_fill_the_memory_is_not_read(tmp_path):
    """Texts of a gigabyte each that take no place in the file."""
    path = write_cil(tmp_path / 'a.nxs', (0, -100, 0), (0, 300, 0), [0, 90])
    with h5py.File(path, 'a') as file:
        config = file['entry1/tomo_entry/config']
        del config['angles']
        config.create_dataset('angles', (9999, ), 'S1000000000')
    assert path.stat().st_size < 1e6
    assert '1 to 100000 numbers' in refusal('--from', path, '--out',
                                            tmp_path / 'rig.json')


# ---------------------------------------------------------------------- Nikon
def nikon(folder, ctdata='', **fields):
    lines = [line for line in XTEKCT.splitlines()
             if line.split('=')[0] not in fields]
    lines[1:1] = [f'{k}={v}' for k, v in fields.items() if v is not None]
    (folder / 'part.xtekct').write_text('\r\n'.join(lines))
    if ctdata:
        (folder / 'part_ctdata.txt').write_text(ctdata)
    return folder / 'part.xtekct'


def test_nikon_by_hand(tmp_path):
    """Columns to the left as seen from the source, rows down: a mirror, so
    the image is turned upside down. At the first angle the object has made
    half a turn, then it goes with the clock."""
    read = read_geometry(nikon(tmp_path))
    assert read.upside_down and not read.notes
    rig = read.rig
    assert (rig.views[0].width, rig.views[0].height) == (200, 100)
    scale = 400 / 100 / .5
    # x = 10 is now at x = -10, to the left, where columns end; z is up, so
    # it is below in an image that is upside down.
    np.testing.assert_allclose(
        projected(rig, 0, [[10, 0, 0], [0, 0, 2]]),
        [[100 + 10 * scale, 50], [100, 50 + 2 * 400 / 100 / .4]], atol=1e-9)
    # A quarter less: what was on +y is on +x then, to the right.
    np.testing.assert_allclose(projected(rig, 1, [[0, 10, 0], [0, -10, 0]]),
                               [[100 + 10 * scale, 50], [100 - 10 * scale,
                                                         50]], atol=1e-9)
    round_trip(rig, tmp_path)


def test_nikon_as_tigre_reads_it(tmp_path):
    """TIGRE's reader takes the same scan otherwise, and sees the same: source
    on +x, columns to the right, rows up, the object turning the other way.
    Its world is CIL's, turned."""
    ours = read_geometry(nikon(tmp_path)).rig
    (tmp_path / 'g.json').write_text(json.dumps(dict(
        DSD=400., DSO=100., nDetector=[100, 200], dDetector=[.4, .5],
        angles=(-np.radians(90) * np.arange(4)).tolist())))
    theirs = read_geometry(tmp_path / 'g.json').rig
    other = POINTS @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.]]).T
    for view in range(4):
        np.testing.assert_allclose(projected(theirs, view, other),
                                   projected(ours, view), atol=1e-6)


def test_nikon_angles_as_measured(tmp_path, capsys):
    plain = read_geometry(nikon(tmp_path)).rig
    main(['rig', '--from', str(nikon(tmp_path, CTDATA)), '--out',
          str(tmp_path / 'rig.json')])
    assert ('part_ctdata.txt, at most 0.5 degrees off multiples of '
            'AngularStep') in capsys.readouterr().out
    rig = Rig.load(tmp_path / 'rig.json')
    np.testing.assert_allclose(projected(rig, 2), projected(plain, 2))
    angles = geometry.rotation_angles(
        *(np.stack([v.ct2cam for v in r.views]) for r in (rig, plain)))
    np.testing.assert_allclose(np.degrees(angles), [0, .5, 0, .25],
                               atol=1e-6)
    alone = read_geometry(nikon(tmp_path, CTDATA, AngularStep=None)).rig
    np.testing.assert_allclose(projected(alone, 1), projected(rig, 1))


def test_an_axis_beside_the_beam(tmp_path):
    """Half a turn later the axis is seen at the same place, at every height:
    2 mm to the right of the beam's middle when the offset is -2."""
    for fields, middle in (
            (dict(ObjectOffsetX=-2), 100 - 2 * 4 / .5),
            (dict(ObjectOffsetX=None, ObjectRoll=None, CentreOfRotationTop=-8,
                  CentreOfRotationBottom=-8), 100 - 2 * 4 / .5)):
        rig = read_geometry(nikon(tmp_path, **fields)).rig
        for view in range(4):
            uv = projected(rig, view, [[0, 0, -3], [0, 0, 0], [0, 0, 3]])
            np.testing.assert_allclose(uv[:, 0], middle, atol=1e-6)


@pytest.mark.parametrize('fields', [
    dict(ObjectRoll=2), dict(ObjectTilt=3), dict(
        ObjectOffsetX=None, ObjectRoll=None, CentreOfRotationTop=1,
        CentreOfRotationBottom=-1)])
def test_a_tilted_axis(tmp_path, fields):
    """It stays where it is when the object turns."""
    rig = read_geometry(nikon(tmp_path, **fields)).rig
    axis = [[0, 0, -5], [0, 0, 0], [0, 0, 5]]
    first = projected(rig, 0, axis)
    for view in range(1, 4):
        np.testing.assert_allclose(projected(rig, view, axis), first,
                                   atol=1e-6)
    upright = projected(read_geometry(nikon(tmp_path)).rig, 0, axis)
    off = first - upright
    assert np.abs(off[[0, 2]]).max() > .1
    if 'CentreOfRotationTop' in fields:
        # 1 mm to one side at the detector's top, 20 mm over its middle, the
        # same to the other at its bottom: columns to the left, rows upside
        # down.
        slope = (first[2] - first[0]) * [.5, .4]
        assert abs(slope[0] / slope[1]) == pytest.approx(2 / 40, rel=1e-6)


@pytest.mark.parametrize('fields, ctdata, message', [
    (dict(SrcToObject=None), '', 'field "SrcToObject": expected a number'),
    (dict(SrcToObject='near'), '', 'found "near"'),
    (dict(SrcToDetector=0), '', 'more than 0'),
    (dict(Projections=2.5), '', 'whole number'),
    (dict(Projections=1e9), '', 'whole number'),
    (dict(AngularStep=None), '', 'found neither'),
    (dict(Units='inch'), '', 'expected mm'),
    (dict(Projections=5), CTDATA, 'expected 5 angles'),
    (dict(), CTDATA.replace('90.5', 'x'), 'row 5'),
])
def test_wrong_files_of_nikon(tmp_path, fields, ctdata, message):
    text = refusal('--from', nikon(tmp_path, ctdata, **fields), '--out',
                   tmp_path / 'rig.json')
    assert message in text and str(tmp_path) in text
    assert not (tmp_path / 'rig.json').exists()


def test_what_is_not_used_is_told(tmp_path, capsys):
    main(['rig', '--from', str(nikon(tmp_path, DetectorOffsetX=1.5)),
          '--image-size', '200', '100', '--out', str(tmp_path / 'rig.json')])
    assert '"DetectorOffsetX", 1.5, is not used' in capsys.readouterr().out
    assert 'expected 200 100, as the file says, found 100 100' in refusal(
        '--from', tmp_path / 'part.xtekct', '--image-size', 100, '--out',
        tmp_path / 'rig.json')


# -------------------------------------------------------------------- damaged
def test_damaged_files_end_in_a_sentence(tmp_path):
    """Five hundred of each kind."""
    rng = np.random.default_rng(0)
    nikon(tmp_path, CTDATA)
    write_cil(tmp_path / 'a.nxs', (0, -100, 0), (0, 300, 0), [0, 90])
    (tmp_path / 'g.json').write_text(json.dumps(FIELDS))
    for name in ('g.json', 'a.nxs', 'part.xtekct', 'part_ctdata.txt'):
        whole = (tmp_path / name).read_bytes()
        for path in damaged(tmp_path / name, whole, rng, 500):
            assert_told(path if name != 'part_ctdata.txt'
                        else tmp_path / 'part.xtekct', tmp_path / 'rig.json')
        (tmp_path / name).write_bytes(whole)
