"""Poses from the views themselves: errors that are known are won back, good
poses stay, and nothing is called better that is not."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.refinement import errors, falsified, main as benchmark
from data_converters import refinement
from data_converters.__main__ import main
from data_converters.check import check_set
from data_converters.convert import Options
from data_converters.refinement import read_set, refine_views, write_set
from data_converters.scan import ConversionError
from projects.core.files import DataError, dump_json
from projects.core.infos import load_infos
from projects.core.rig import Rig
from tests.helpers.rigs import refusal
from tests.helpers.spheres import chord_lengths, make_sphere_set

# No plane of symmetry: centre and radius (mm).
SPHERES = (((20, -10, 15), 30), ((-15, 25, -20), 15), ((5, -30, -30), 9),
           ((-30, -12, 28), 7))


def seen(count, noise=0., seed=0):
    """Views, and line integrals of spheres."""
    views = Rig.circle(count, image_size=128, detector_width=320.).views
    rng = np.random.default_rng(seed)
    images = [sum(.02 * chord_lengths(centre, radius, view)
                  for centre, radius in SPHERES) for view in views]
    return views, [image + noise * rng.standard_normal(image.shape)
                   for image in images]


def rms(values):
    return np.sqrt((np.asarray(values)**2).mean())


def test_errors_are_won_back():
    true, images = seen(6, noise=.003)
    wrong = falsified(true, 1., .5, np.random.default_rng(3))
    found = refine_views(images, wrong)
    assert found.helped and not found.truncated
    assert found.errors[1] < .2 * found.errors[0]
    # What no view can tell apart stays: the mean of the errors.
    np.testing.assert_allclose(found.motions.mean(0), 0, atol=1e-12)
    before, after = (rms(errors(views, true)[1])
                     for views in (wrong, found.views))
    assert before > .6 and after < .25 * before
    assert (found.pixels() > .1).any()
    assert len(json.dumps(found.to_dict())) > 100


def test_good_poses_stay():
    true, images = seen(6, noise=.003)
    found = refine_views(images, true)
    assert not found.helped
    for a, b in zip(found.views, true):
        np.testing.assert_array_equal(a.ct2img, b.ct2img)
    assert rms(found.motions / found.deviations) < 1.
    assert 'no object was refined' in refinement.table_of_refinements(
        dict(a=found))


def test_two_views_are_enough_to_try():
    true, images = seen(2)
    wrong = falsified(true, 2., 1., np.random.default_rng(0))
    found = refine_views(images, wrong, 2., 1.)
    assert found.motions.shape == (2, 6)
    assert found.errors[1] < found.errors[0]
    # One pair of views says little: most of it is no better known.
    expected = np.repeat([np.radians(1.), 2.], 3) / np.sqrt(3)
    assert (found.deviations < expected).all()
    assert np.median(found.deviations / expected) > .3


@pytest.mark.parametrize('count', [0, 1, 65])
def test_too_few_or_many_views(count):
    views, images = seen(1)
    with pytest.raises(ConversionError, match=f'2 to 64 .*found {count}$'):
        refine_views(images * count, views * count)


def test_views_that_say_nothing_keep_their_poses():
    views, images = seen(3)
    found = refine_views([0 * image for image in images], views)
    assert not found.helped and not found.motions.any()
    assert found.to_dict()['error_after'] is None
    with pytest.raises(ConversionError, match='finite'):
        refine_views([np.nan * image for image in images], views)


def test_what_does_not_help_is_not_used(monkeypatch):
    """A fit gone wrong: poses that agree less."""
    views, images = seen(4)

    def astray(self, planes):
        motions = .02 * np.random.default_rng(0).normal(size=(4, 6))
        return motions, np.eye(24)

    monkeypatch.setattr(refinement._Fit, 'solve', astray)
    found = refine_views(images, views)
    assert found.errors[1] > found.errors[0] and not found.helped
    for a, b in zip(found.views, views):
        np.testing.assert_array_equal(a.ct2cam, b.ct2cam)


# ----------------------------------------------------------------------- a set
def converted(root, num_views=5, num_scans=1):
    """A set of spheres with the records and options that a converter
    leaves."""
    infos = make_sphere_set(
        root, num_scans, num_views, 96, split='test', ignored=False,
        spheres=[[((40, -20, 30), 25), ((-30, 50, -40), 18),
                  ((10, -60, -60), 12)]] * num_scans)
    for sample in infos['data_list']:
        dump_json(json.loads(json.dumps(
            {k: v for k, v in sample.items() if k != 'sample_idx'},
            default=np.ndarray.tolist)),
            root / 'scans' / f'{sample["token"]}.json')
    dump_json(asdict(Options(infos['metainfo']['rig'])),
              root / 'options.json')
    return root


def contents(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def wrong(tmp_path_factory):
    """A set whose poses are wrong by 3 mm and 1.5 degrees, of which there is
    one pixel in 4 mm."""
    root = tmp_path_factory.mktemp('sets')
    infos_of, views_of = read_set(converted(root / 'true'))
    poses = {
        sample['token']: falsified(views_of(sample, infos).views, 3., 1.5,
                                   np.random.default_rng(1))
        for infos in infos_of.values() for sample in infos['data_list']}
    write_set(root / 'true', root / 'wrong', infos_of, poses, {})
    return root / 'wrong'


def test_a_set_is_refined_and_stays(wrong, tmp_path, capsys):
    before = contents(wrong)
    out = tmp_path / 'refined'
    main(['rig', '--refine', str(wrong), '--out', str(out), '--pose-mm', '3',
          '--pose-deg', '1.5', '--report', str(tmp_path / 'told.json'),
          '--picture', str(tmp_path / 'told.png')])
    assert '1 of 1 objects refined' in capsys.readouterr().out
    assert contents(wrong) == before
    assert list(check_set(wrong)) == [] and list(check_set(out)) == []
    infos = load_infos(out / 'lidc_infos_test.pkl')
    assert infos['metainfo']['refined']['objects'] == ['LIDC-IDRI-0000']
    sample, = infos['data_list']
    rig = Rig.load(out / 'rigs' / 'LIDC-IDRI-0000.json')
    for view in rig.views:
        np.testing.assert_allclose(
            sample['images'][view.name]['lidar2img'], view.ct2img)
    true = Rig.load(out / 'rig.json').views
    assert rms(errors(rig.views, true)[1]) < .6 * rms(errors(
        Rig.load(wrong / 'rigs' / 'LIDC-IDRI-0000.json').views, true)[1])
    told = json.loads((tmp_path / 'told.json').read_text())
    assert told['LIDC-IDRI-0000']['helped']
    assert (tmp_path / 'told.png').stat().st_size > 5000
    # Another rig than the object's own is noticed.
    rig.views[0].ct2cam[0, 3] += 1
    rig.save(out / 'rigs' / 'LIDC-IDRI-0000.json')
    assert any('lidar2img' in fault for fault in check_set(out))


def test_good_poses_of_a_set_stay(tmp_path, capsys):
    root = converted(tmp_path / 'true')
    main(['rig', '--refine', str(root), '--out', str(tmp_path / 'out')])
    assert 'no object was refined' in capsys.readouterr().out
    one, other = (load_infos(folder / 'lidc_infos_test.pkl')['data_list'][0]
                  for folder in (root, tmp_path / 'out'))
    for name, view in one['images'].items():
        np.testing.assert_array_equal(view['lidar2img'],
                                      other['images'][name]['lidar2img'])


def test_what_cannot_be_refined_is_told(wrong, tmp_path):
    out = tmp_path / 'out'
    call = ['--refine', wrong, '--out', out]
    assert '--out: expected a new folder' in refusal('--refine', wrong)
    assert 'a new or empty folder' in refusal('--refine', wrong, '--out',
                                              wrong.parent / 'true')
    assert 'outside of the set' in refusal('--refine', wrong, '--out',
                                           wrong / 'inside')
    assert '--pose-mm: expected a positive' in refusal(*call, '--pose-mm', 0)
    assert 'expected its folder' in refusal(*call, '--picture',
                                            tmp_path / 'none' / 'a.png')
    assert 'expected a converted set' in refusal(
        '--refine', tmp_path / 'none', '--out', out)
    alone = converted(tmp_path / 'alone', num_views=1)
    assert 'object LIDC-IDRI-0000: expected 2 to 64 views' in refusal(
        '--refine', alone, '--out', out)
    damaged = converted(tmp_path / 'damaged', num_views=2)
    image = damaged / 'images' / 'LIDC-IDRI-0000' / 'CAM_01.png'
    whole = image.read_bytes()
    for content in (whole[:40], b''):
        image.write_bytes(content)
        assert f'{image}: expected a grey image' in refusal(
            '--refine', damaged, '--out', out)
    image.write_bytes(whole)
    infos = damaged / 'lidc_infos_test.pkl'
    infos.write_bytes(infos.read_bytes()[:-50])
    assert 'lidc_infos_test.pkl' in refusal('--refine', damaged, '--out', out)
    assert not out.exists()


def test_a_set_that_cannot_be_finished_is_not_there(wrong, tmp_path,
                                                    monkeypatch):
    infos_of, views_of = read_set(wrong)

    def full(*_):
        raise OSError('disk full')

    monkeypatch.setattr(refinement, 'dump_infos', full)
    poses = {sample['token']: views_of(sample, infos).views
             for infos in infos_of.values() for sample in infos['data_list']}
    with pytest.raises(OSError, match='disk full'):
        write_set(wrong, tmp_path / 'out', infos_of, poses, {})
    assert list(tmp_path.iterdir()) == []


def test_slices_are_refused(tmp_path):
    root = converted(tmp_path / 'set', num_views=2)
    infos = load_infos(root / 'lidc_infos_test.pkl')
    infos['metainfo']['slices'] = {}
    refinement.dump_infos(infos, root / 'lidc_infos_test.pkl')
    with pytest.raises(ConversionError, match='found slices'):
        read_set(root)
    with pytest.raises(DataError, match='expected a converted set'):
        read_set(tmp_path)


def test_benchmark_writes_three_sets(tmp_path, capsys):
    root = converted(tmp_path / 'set', num_views=3, num_scans=2)
    benchmark([str(root), '--out-dir', str(tmp_path / 'out'), '--scans', '1',
               '--shift', '3', '--turn', '1.5'])
    assert 'of 1 objects refined' in capsys.readouterr().out
    for name in ('true', 'wrong', 'refined'):
        infos = load_infos(tmp_path / 'out' / name / 'lidc_infos_test.pkl')
        assert len(infos['data_list']) == 1
    told = json.loads((tmp_path / 'out' / 'refinement.json').read_text())
    assert len(told['LIDC-IDRI-0000']['before_px'][0]) == 3
    assert (tmp_path / 'out' / 'refinement.png').exists()
