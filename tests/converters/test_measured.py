"""Measured views of simulated objects, against the sets that were converted
directly."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk

from data_converters.__main__ import main
from data_converters.check import check_set
from projects.core.infos import load_infos
from projects.core.projections import Reading, read_projections
from projects.core.rig import Rig

SIZE = 48


def run(*args):
    main([str(a) for a in args])


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """Two blocks with cavities, their boxes and a rig; converted with what
    the detector wrote."""
    root = tmp_path_factory.mktemp('parts')
    (root / 'ct').mkdir()
    rows = ['scan,x,y,z,dx,dy,dz,class']
    for number, name in enumerate(('a', 'b')):
        x, y, z = np.mgrid[-19.5:20, -19.5:20, -19.5:20]
        inside = (np.abs(x) < 12) & (np.abs(y) < 10) & (np.abs(z) < 14)
        centre = np.array([3., -2., 4. - 6 * number])
        hole = ((x - centre[0])**2 + (y - centre[1])**2
                + (z - centre[2])**2) < 9
        values = np.where(inside & ~hole, 900, 0).astype(np.int16)
        image = sitk.GetImageFromArray(values.T)
        image.SetDirection(np.diag([-1., -1., 1.]).ravel().tolist())
        image.SetOrigin([19.5, 19.5, -19.5])
        sitk.WriteImage(image, str(root / 'ct' / f'{name}.nii.gz'))
        labels = sitk.GetImageFromArray(hole.astype(np.uint8).T)
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(root / f'labels-{name}.nii.gz'))
        rows.append(','.join(map(str, [name, *centre, 6, 6, 6, 'pore'])))
    (root / 'boxes.csv').write_text('\n'.join(rows))
    Rig.circle(4, 200., 400., SIZE, 96.).save(root / 'rig.json')
    run('volume', '--volume', root / 'ct', '--boxes', root / 'boxes.csv',
        '--box-frame', 'world', '--mu-per-value', 1e-4, '--rig',
        root / 'rig.json', '--acquisition', 'casting-225kV', '--raw',
        '--val-fraction', 0, '--test-fraction', 1, '--out-dir',
        root / 'direct')
    return root


def views(parts, out, *more):
    run('views', '--images', parts / 'direct' / 'raw', '--rig',
        parts / 'rig.json', '--dark', '{object}/detector-0/dark.tif',
        '--flat', '{object}/detector-0/flat.tif', '--scatter', .02,
        '--scatter-width', 15, '--val-fraction', 0, '--test-fraction', 1,
        '--out-dir', out, *more)


def integrals(folder, name):
    return np.stack([
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED) * (16 / 65535)
        for path in sorted((folder / 'images' / name).glob('*.png'))])


def test_raw_images_give_the_set_that_was_simulated(parts, tmp_path, capsys):
    views(parts, tmp_path / 'set', '--boxes', parts / 'boxes.csv',
          '--box-frame', 'world')
    out = capsys.readouterr().out
    assert 'a: 4 views of TIFF' in out and 'dead pixels filled' in out
    assert list(check_set(tmp_path / 'set')) == []
    one, other = (
        load_infos(root / 'lidc_infos_test.pkl')
        for root in (parts / 'direct', tmp_path / 'set'))
    assert other['metainfo']['renderer'] == dict(name='measured')
    for a, b in zip(one['data_list'], other['data_list']):
        assert a['token'] == b['token']
        for left, right in zip(a['instances'], b['instances']):
            assert left['bbox_3d'] == right['bbox_3d']
        assert a['cam_instances'] == b['cam_instances']
        expected = integrals(parts / 'direct', a['token'])
        found = integrals(tmp_path / 'set', a['token'])
        assert expected.max() > 1.5
        # The simulated correction of scatter errs by a few percent of it.
        assert np.abs(found - expected).mean() < .03
        assert np.abs(found - expected).max() < .2
        assert 'measured' in b and 'volume' not in b


def test_nothing_is_done_twice_and_nothing_else(parts, tmp_path):
    views(parts, tmp_path / 'set')
    record = tmp_path / 'set' / 'scans' / 'a.json'
    before = record.stat().st_mtime_ns, record.read_bytes()
    (tmp_path / 'set' / 'scans' / 'b.json').unlink()
    views(parts, tmp_path / 'set', '--jobs', 2)
    assert before == (record.stat().st_mtime_ns, record.read_bytes())
    assert list(check_set(tmp_path / 'set')) == []
    assert load_infos(tmp_path / 'set' / 'lidc_infos_test.pkl')[
        'data_list'][1]['instances'] == []
    with pytest.raises(SystemExit, match='option'):
        views(parts, tmp_path / 'set', '--scatter', .01)


def test_a_replaced_image_is_noticed(parts, tmp_path):
    raw = tmp_path / 'raw'
    shutil.copytree(parts / 'direct' / 'raw', raw)
    given = ('views', '--images', raw, '--rig', parts / 'rig.json',
             '--dark', '{object}/detector-0/dark.tif', '--flat',
             '{object}/detector-0/flat.tif', '--out-dir', tmp_path / 'set')
    run(*given)
    shutil.copy(raw / 'a' / 'CAM_01.tif', raw / 'a' / 'CAM_00.tif')
    with pytest.raises(SystemExit, match='"source_digest".*"a"'):
        run(*given)


@pytest.mark.parametrize('frame', ['world', 'patient', 'ras'])
@pytest.mark.parametrize('moved', [False, True])
def test_truth_of_a_ct(parts, tmp_path, frame, moved):
    """Label images in any frame of their CT, which may lie elsewhere."""
    images = [sitk.ReadImage(str(parts / f'labels-{n}.nii.gz'))
              for n in 'ab']
    motion = np.eye(4)
    if moved:
        # The CT's frame is turned by 90 degrees about z, and shifted.
        turn = np.array([[0., -1, 0], [1, 0, 0], [0, 0, 1]])
        motion[:3, :3], motion[:3, 3] = turn.T, [2., -3., 1.]
    lps2frame = np.eye(4)
    if frame != 'patient':
        lps2frame[:2, :2] *= -1
    # Where the CT's file must say that its voxels are, for the rig to see
    # them where they are.
    ras2lps = np.diag([-1., -1., 1., 1.])
    place = np.linalg.inv(lps2frame) @ np.linalg.inv(
        motion if moved else ras2lps if frame == 'patient' else motion
    ) @ ras2lps
    if frame == 'world' and moved:  # its centre is its own
        motion[:3, 3] = 0
        place[:3, 3] = [50, 60, 70]
    for image, name in zip(images, 'ab'):
        image.SetOrigin((place[:3, :3] @ image.GetOrigin()
                         + place[:3, 3]).tolist())
        image.SetDirection((place[:3, :3] @ np.reshape(
            image.GetDirection(), (3, 3))).ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / f'{name}.mha'))
    (tmp_path / 'motion.json').write_text(json.dumps(motion.tolist()))
    views(parts, tmp_path / 'set', '--labels', tmp_path / 'a.mha',
          tmp_path / 'b.mha', '--box-frame', frame, '--classes', 'pore',
          *(['--ct2world', tmp_path / 'motion.json'] if moved else []))
    assert list(check_set(tmp_path / 'set')) == []
    expected = load_infos(parts / 'direct' / 'lidc_infos_test.pkl')
    found = load_infos(tmp_path / 'set' / 'lidc_infos_test.pkl')
    for a, b in zip(expected['data_list'], found['data_list']):
        assert len(b['instances']) == 1
        np.testing.assert_allclose(b['instances'][0]['bbox_3d'],
                                   a['instances'][0]['bbox_3d'], atol=1.01)
        assert 'shape' in b['instances'][0]


def test_boxes_of_a_ct_are_moved(parts, tmp_path):
    """Also a planted fault: without the motion they are elsewhere."""
    motion = np.eye(4)
    motion[:3, :3] = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    motion[:3, 3] = [1, 2, 3]
    (tmp_path / 'motion.json').write_text(json.dumps(motion.tolist()))
    (tmp_path / 'boxes.json').write_text(json.dumps([
        dict(scan='a', x=1, y=0, z=0, dx=2, dy=4, dz=6)]))
    views(parts, tmp_path / 'set', '--boxes', tmp_path / 'boxes.json',
          '--box-frame', 'ras', '--ct2world', tmp_path / 'motion.json')
    sample = load_infos(tmp_path / 'set' / 'lidc_infos_test.pkl')[
        'data_list'][0]
    np.testing.assert_allclose(sample['instances'][0]['bbox_3d'],
                               [1, 1, 3, 4, 2, 6, 0])
    # The centre of the CT's file is where the motion takes it from.
    to_lps = np.array(sample['ct2patient'])
    np.testing.assert_allclose(to_lps @ [1, 1, 3, 1], [-1, 0, 0, 1],
                               atol=1e-9)


@pytest.mark.parametrize('args, sentence', [
    (['--box-frame', 'world', '--boxes', 'far.csv'], 'a box that views'),
    (['--boxes', 'far.csv'], '--box-frame: expected'),
    (['--labels', 'none.mha', '--box-frame', 'world'], 'expected 2 label'),
    (['--ct2world', 'none.json'], '--boxes or --labels, found neither'),
    (['--image-size', '4000'], '--image-size: expected no more'),
])
def test_refusals(parts, tmp_path, args, sentence, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('far.csv').write_text('scan,x,y,z,dx,dy,dz\na,900,0,0,1,1,1\n'
                               'b,900,0,0,1,1,1\n')
    with pytest.raises(SystemExit, match=sentence):
        views(parts, tmp_path / 'set', *args)


def test_averaged_pixels(parts, tmp_path):
    """Of the mean beam; the rig is the smaller one."""
    views(parts, tmp_path / 'set', '--image-size', SIZE // 2)
    assert list(check_set(tmp_path / 'set')) == []
    rig = Rig.load(parts / 'rig.json')
    folder = parts / 'direct' / 'raw' / 'a'
    found = read_projections([folder], rig.views, Reading(
        dark=['{object}/detector-0/dark.tif'],
        flat=['{object}/detector-0/flat.tif'], scatter=.02,
        scatter_width=15.))
    whole = np.exp(-np.stack(found.views))
    small = -np.log(whole.reshape(4, SIZE // 2, 2, SIZE // 2, 2)
                    .mean((2, 4)))
    np.testing.assert_allclose(integrals(tmp_path / 'set', 'a'),
                               np.maximum(small, 0), atol=2e-4)
