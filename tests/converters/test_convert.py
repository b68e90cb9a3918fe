"""A converted set: interrupted, shared out, out of space, and checked."""

import multiprocessing
import os
import random
import resource
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk

from data_converters import __main__ as commands, convert
from data_converters.__main__ import main
from data_converters.convert import (
    Options,
    convert_scans,
    finish_set,
    finish_shard,
    merge_set,
    open_set,
)
from data_converters.drr import Volume, render
from data_converters.scan import ConversionError, Finding, Scan
from data_converters.slices import Slicing
from projects.core.acquisition import Acquisition, load_spectrum
from projects.core.files import dump_json, load_json
from projects.core.infos import load_infos
from projects.core.rig import Rig

NAMES = [f'part-{i}' for i in range(6)]
OPTIONS = Options(Rig.circle(3, image_size=48).to_dict(),
                  fractions=dict(val=.3, test=.2))
RAW = replace(OPTIONS, acquisition='chest-low', raw=True)
SLICES = Options(None, fractions=OPTIONS.fractions, slices=asdict(
    Slicing(select='ends', pictures=True)))


@contextmanager
def load(number):
    """A small body with a ball in it; the one numbered 100 is broken, 101
    raises what nobody thought of."""
    if number == 100:
        raise ConversionError('file 100: rows: expected 4, found 3')
    if number == 101:
        raise KeyError('surprise')
    rng = np.random.default_rng(number)
    hu = rng.normal(-300, 20, (40, 40, 40)).astype(np.float32)
    ball = sum(a**2 for a in np.mgrid[-5:6, -5:6, -5:6]) <= 25
    start = rng.integers(5, 24, 3)
    hu[tuple(slice(s, s + 11) for s in start)][ball] = 400
    yield Scan(
        f'part-{number}', f'patient-{number}', '', '',
        Volume.centred(hu, np.diag([4., 4, 4])), np.eye(4),
        [Finding(ball, start, record=dict(nodule_id=0, diameter=40.))],
        ['slices: repaired'] if number == 4 else [])


def make(out_dir, numbers=range(6), jobs=1, limit=None, options=OPTIONS,
         **kwargs):
    """The whole way, as the command goes it."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    scans = [(f'part-{n}', n) for n in numbers]
    with open_set(out_dir, options):
        skipped = convert_scans(scans, load, options, out_dir, jobs,
                                total=len(scans), **kwargs)
        return finish_set(out_dir, options, skipped=skipped)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole') / 'set'
    assert make(folder) == dict(train=3, val=2, test=1)
    return folder


@pytest.fixture(scope='module')
def with_raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp('raw') / 'set'
    make(folder, options=RAW)
    return folder


@pytest.fixture(scope='module')
def slices(tmp_path_factory):
    folder = tmp_path_factory.mktemp('slices') / 'set'
    make(folder, options=SLICES)
    return folder


@pytest.fixture(scope='module')
def processes():
    """Processes that start at once, with all modules imported."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['data_converters.__main__'])
    return context


# ---------------------------------------------------------------- interrupted
@pytest.mark.parametrize('expected, options, kills', [
    ('whole', OPTIONS, 20), ('with_raw', RAW, 8), ('slices', SLICES, 8)])
def test_killed_at_any_moment_it_ends_as_if_it_never_was(
        request, processes, tmp_path, expected, options, kills):
    whole = request.getfixturevalue(expected)
    rng = random.Random(0)
    out_dir = tmp_path / 'set'
    for name in ('first', 'second'):  # the first imports what it needs
        begin = time.monotonic()
        run = processes.Process(target=make, args=(tmp_path / name, ),
                                kwargs=dict(options=options))
        run.start()
        run.join()
        assert run.exitcode == 0
        length = time.monotonic() - begin
    killed = stages = 0
    # On a busy machine all moments drawn may lie before the first scan's end.
    while killed < kills or stages < 2:
        assert killed < 10 * kills, 'No run came as far as its second scan.'
        run = processes.Process(target=make, args=(out_dir, ),
                                kwargs=dict(options=options))
        run.start()
        run.join(rng.uniform(0, length))
        if run.exitcode is None:
            killed += 1
        run.kill()
        run.join()
        # What is whole is right; an interrupted set is begun anew when done.
        for name, found in content(out_dir).items():
            if not Path(name).name.startswith('.'):
                assert found == content(whole)[name], name
        stages = max(stages, len(list(out_dir.glob('scans/*'))))
        if (out_dir / 'lidc_infos_train.pkl').exists():
            shutil.rmtree(out_dir)
    make(out_dir, options=options)
    assert content(out_dir) == content(whole)


def test_what_a_killed_run_left_is_removed(whole, tmp_path):
    out_dir = tmp_path / 'set'
    shutil.copytree(whole, out_dir)
    (out_dir / 'scans' / 'part-2.json').unlink()
    (out_dir / 'images' / 'part-2' / 'CAM_00.png').write_bytes(b'half')
    (out_dir / 'images' / 'part-2' / '.CAM_01.png.abcd_123.tmp').touch()
    (out_dir / 'images' / '.part-3.begun').touch()  # its record is there
    (out_dir / 'images' / '.part-8.begun').touch()
    (out_dir / 'images' / '.part-9.begun').touch()
    (out_dir / 'images' / 'part-9').mkdir()
    (out_dir / 'images' / 'part-9' / 'CAM_00.png').touch()
    (out_dir / 'scans' / '.part-2.json.abcd_123.tmp').touch()
    (out_dir / '.lidc_infos_val.pkl.abcd_123.tmp').touch()
    (out_dir / '.dicom-abcd_123' / 'LIDC-IDRI-0001').mkdir(parents=True)
    make(out_dir)
    assert content(out_dir) == content(whole)
    assert not (out_dir / 'images' / 'part-9').exists()
    assert not (out_dir / '.dicom-abcd_123').exists()


def test_raw_images_that_a_killed_run_left_are_removed(with_raw, tmp_path):
    out_dir = tmp_path / 'set'
    shutil.copytree(with_raw, out_dir)
    (out_dir / 'scans' / 'part-2.json').unlink()
    (out_dir / 'raw' / 'part-2' / 'CAM_00.tif').write_bytes(b'half')
    (out_dir / 'images' / '.part-3.begun').touch()  # its record is there
    (out_dir / 'raw' / 'part-3' / '.CAM_01.tif.abcd_123.tmp').touch()
    for key in ('part-2', 'part-9'):
        (out_dir / 'images' / f'.{key}.begun').touch()
        detector = out_dir / 'raw' / key / 'detector-0'
        detector.mkdir(parents=True, exist_ok=True)
        (detector / 'flat.tif').write_bytes(b'half')
        (detector / '.dead.png.abcd_123.tmp').touch()
    kept = out_dir / 'raw' / 'part-9-notes' / 'CAM_00.tif'
    kept.parent.mkdir()
    kept.write_bytes(b'mine')
    make(out_dir, options=RAW)
    assert kept.read_bytes() == b'mine'
    shutil.rmtree(kept.parent)
    assert content(out_dir) == content(with_raw)
    assert not (out_dir / 'raw' / 'part-9').exists()


def user_files(folder):
    """What a person may keep in a set's folder, some by the set's names."""
    for name in ('images/raw/scan.tif', 'images/real-1/CAM_00.png',
                 'images/real-1/.CAM_00.png.abcd_123.tmp',
                 'images/part-9/CAM_00.png', 'images/part-9/notes.txt',
                 'images/views.png', 'notes/.draft.abcd_123.tmp',
                 '.notes.tmp', '.dicom-1/scan.dcm', '.dicom-original/1.dcm',
                 'shards/plan.txt'):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return content(folder)


def test_a_users_files_in_a_set_stay(whole, tmp_path):
    out_dir = tmp_path / 'set'
    kept = user_files(out_dir)
    (out_dir / 'images' / 'empty').mkdir()
    shutil.copytree(whole, out_dir, dirs_exist_ok=True)
    make(out_dir)
    assert content(out_dir) == {**content(whole), **kept}
    # Even beside the images of a scan that a killed run had begun.
    (out_dir / 'images' / '.part-9.begun').touch()
    make(out_dir)
    del kept['images/part-9/CAM_00.png']
    assert content(out_dir) == {**content(whole), **kept}
    _make_shard(out_dir, 1, 1)
    merge_set(out_dir)
    assert content(out_dir) == {**content(whole), **kept}
    assert (out_dir / 'images' / 'empty').is_dir()


@pytest.mark.parametrize('shard', [None, (1, 2)])
@pytest.mark.parametrize('name', ['images/raw/scan.tif', '.a.tmp',
                                  'options.json'])
def test_a_users_folder_is_refused_untouched(tmp_path, name, shard):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"window": [1, 2]}')
    (tmp_path / 'rig.json').write_text('{}')
    before = content(tmp_path)
    with pytest.raises(ConversionError, match='choose another'):
        with open_set(tmp_path, OPTIONS, shard):
            pass
    with pytest.raises(ConversionError, match='expected'):
        merge_set(tmp_path)
    assert content(tmp_path) == before


def test_other_files_with_a_sets_names_stay(whole, tmp_path):
    (tmp_path / 'note').write_text('mine')
    out_dir = tmp_path / 'set'
    out_dir.mkdir()
    (out_dir / '.lock').symlink_to(tmp_path / 'note')
    with pytest.raises(ConversionError, match='.lock: expected a lock'):
        make(out_dir)
    assert (tmp_path / 'note').read_text() == 'mine'
    # What a killed run has left in it is no reason to refuse.
    (tmp_path / 'note').write_text('process 7 on host')
    make(out_dir)
    shutil.copytree(whole, tmp_path / 'other')
    options = tmp_path / 'other' / 'options.json'
    dump_json(dict(load_json(options), window=[1, 2]), options)
    for run in (make, merge_set):
        with pytest.raises(ConversionError, match='options of a converted'):
            run(tmp_path / 'other')


def test_a_folder_with_just_the_rig_is_a_start(whole, tmp_path):
    """And so is what a run leaves that is killed before options.json."""
    shutil.copy(whole / 'rig.json', tmp_path)
    (tmp_path / '.lock').touch()
    (tmp_path / '.lock-1-of-2').touch()
    (tmp_path / '.options.json.abcd_123.tmp').touch()
    make(tmp_path)
    (tmp_path / '.lock-1-of-2').unlink()
    assert content(tmp_path) == content(whole)


def test_a_rig_beside_images_is_theirs(whole, tmp_path):
    """--rig OUT/rig.json --image-size 32 --out-dir OUT."""
    rig = tmp_path / 'rig.json'
    Rig.circle(3, image_size=64).save(rig)
    before = content(tmp_path)
    options = Options(Rig.load(rig).resized(32, 32).to_dict())
    with pytest.raises(ConversionError, match='rig.json: expected the rig'):
        with open_set(tmp_path, options):
            pass
    assert content(tmp_path) == before
    # Nor is that of a set exchanged and kept.
    shutil.copytree(whole, tmp_path / 'set')
    shutil.copy(rig, tmp_path / 'set')
    with pytest.raises(ConversionError, match='rig.json: expected the rig'):
        make(tmp_path / 'set')


def test_a_scan_that_cannot_be_rendered_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):  # when its images are written
        raise KeyError('surprise')
    monkeypatch.setattr(Scan, 'contrast', fail)
    with pytest.raises(ConversionError, match='found none and 1 skipped'):
        make(tmp_path, [1])
    assert not any((tmp_path / 'images').iterdir())


def test_two_runs_exclude_each_other(whole, processes, tmp_path):
    out_dir = tmp_path / 'set'
    shutil.copytree(whole, out_dir)
    with open_set(out_dir, OPTIONS):
        with pytest.raises(ConversionError,
                           match=f'found process {os.getpid()} on'):
            make(out_dir)
        with pytest.raises(ConversionError, match='expected no other run'):
            with open_set(out_dir, OPTIONS, (1, 2)):
                pass
        other = processes.Process(target=make, args=(out_dir, ))
        other.start()
        other.join()
        assert other.exitcode == 1
    make(out_dir)  # the lock went with its holder
    with open_set(out_dir, OPTIONS, (1, 2)), open_set(out_dir, OPTIONS,
                                                      (2, 2)):
        with pytest.raises(ConversionError, match='runs of its shards'):
            make(out_dir)
        with pytest.raises(ConversionError, match='expected no other run'):
            with open_set(out_dir, OPTIONS, (2, 2)):
                pass


def test_a_full_disk_is_reported_and_loses_nothing(whole, processes, tmp_path):
    """Files that cannot grow fail as on a full disk: in the middle."""
    out_dir = tmp_path / 'set'
    make(out_dir, range(3))
    before = content(out_dir / 'scans')
    errors = processes.Queue()
    run = processes.Process(target=_report_error, args=(errors, out_dir))
    run.start()
    assert 'File too large' in (message := errors.get(timeout=120))
    assert 'part-3' in message
    run.join()
    assert content(out_dir / 'scans') == before
    assert not list(out_dir.rglob('.*.tmp'))
    make(out_dir)
    assert content(out_dir) == content(whole)


def _report_error(queue, out_dir):
    try:
        make(out_dir, limit=1500)
    except OSError as error:
        queue.put(str(error))


def test_another_option_is_noticed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'set')
    other = Options(**{**load_json(whole / 'options.json'), 'seed': 3})
    with pytest.raises(ConversionError, match='field "seed": expected'):
        with open_set(tmp_path / 'set', other):
            pass


# ----------------------------------------------------------------- shared out
@pytest.mark.slow
def test_processes_and_a_dask_cluster_give_the_same_bytes(whole, tmp_path):
    make(tmp_path / 'jobs', jobs=2)
    assert content(tmp_path / 'jobs') == content(whole)
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                      dashboard_address=None, host='127.0.0.1') as cluster:
        assert cluster.scheduler_address.startswith('tcp://127.0.0.1')
        make(tmp_path / 'dask', dask_scheduler=cluster.scheduler_address)
    assert content(tmp_path / 'dask') == content(whole)


def test_a_dask_cluster_that_is_not_there(tmp_path):
    with pytest.raises(ConversionError, match='--dask-scheduler: expected'):
        make(tmp_path / 'set', dask_scheduler='nonsense')


def test_shards_give_the_same_bytes(whole, tmp_path):
    out_dir = tmp_path / 'set'
    for i in (3, 1):
        _make_shard(out_dir, i, 3)
    with pytest.raises(ConversionError, match='run --shard 2/3 first'):
        merge_set(out_dir)
    assert not list(out_dir.glob('*.pkl'))
    _make_shard(out_dir, 2, 3)
    merge_set(out_dir)
    assert content(out_dir) == content(whole)
    with pytest.raises(ConversionError, match='found none'):
        merge_set(out_dir)  # they are merged
    with pytest.raises(ConversionError, match='expected a set'):
        merge_set(tmp_path / 'nowhere')


def _make_shard(out_dir, i, n):
    scans = [(f'part-{k}', k) for k in range(6)][i - 1::n]
    with open_set(out_dir, OPTIONS, (i, n)):
        finish_shard(out_dir, (i, n),
                     convert_scans(scans, load, OPTIONS, out_dir))


def test_shards_of_two_numbers_are_refused(tmp_path):
    _make_shard(tmp_path, 1, 2)
    _make_shard(tmp_path, 2, 3)
    with pytest.raises(ConversionError, match='expected all shards of one'):
        merge_set(tmp_path)


@pytest.mark.parametrize('text', ['0/2', '3/2', '2', 'a/b', '1/2/3'])
def test_shards_that_are_none(text, capsys):
    with pytest.raises(SystemExit):
        main(['lidc', '--dicom-root', 'x', '--out-dir', 'y', '--shard', text])
    assert f'as 3/10, found "{text}"' in capsys.readouterr().err


# --------------------------------------------------------------------- faults
def test_bad_scans_are_skipped_and_told(whole, tmp_path):
    make(tmp_path, [0, 100, 4, 101, 1])
    errors = load_json(tmp_path / 'errors.json')
    assert errors == dict(
        skipped={
            'part-100': 'file 100: rows: expected 4, found 3',
            'part-101': "cannot be read: KeyError: 'surprise'"},
        repaired={'part-4': ['slices: repaired']})
    tokens = {s['token'] for split in ('train', 'val', 'test') for s in
              load_infos(tmp_path / f'lidc_infos_{split}.pkl')['data_list']}
    assert tokens == {'part-0', 'part-1', 'part-4'}
    assert load_json(whole / 'errors.json')['skipped'] == {}


def test_strictness_makes_any_fault_a_failure(tmp_path):
    for number, counts in ((100, '1 skipped and 0 repaired'),
                           (4, '0 skipped and 1 repaired')):
        out_dir = tmp_path / str(number)
        with open_set(out_dir, OPTIONS):
            skipped = convert_scans(
                [(f'part-{n}', n) for n in (0, 1, number)], load, OPTIONS,
                out_dir)
            with pytest.raises(ConversionError, match=counts):
                finish_set(out_dir, OPTIONS, skipped=skipped, strict=True)
        assert (out_dir / 'errors.json').exists()
        assert not list(out_dir.glob('lidc_infos*'))


def test_nothing_convertible_says_why(tmp_path):
    with pytest.raises(ConversionError, match='part-100: file 100: rows'):
        make(tmp_path, [100, 101])


def test_who_changes_the_split_is_told(tmp_path, capsys, monkeypatch):
    make(tmp_path / 'set')
    make(tmp_path / 'set')
    assert 'split' not in capsys.readouterr().err
    patients = {f'patient-{i}': 'train' for i in range(6)}
    before = [s['lidc_id_ref'] for split in ('val', 'test')
              for s in load_infos(tmp_path / f'set/lidc_infos_{split}.pkl')[
                  'data_list']]
    monkeypatch.setattr(convert, 'split_patients', lambda *_: patients)
    finish_set(tmp_path / 'set', OPTIONS)
    told = capsys.readouterr().err
    assert (f'set: {len(before)} patients or parts are in another split than '
            f'before, as {min(before)}: train, before ') in told
    # Infos that cannot be read are written anew, as ever.
    (tmp_path / 'set/lidc_infos_test.pkl').write_bytes(b'half')
    finish_set(tmp_path / 'set', OPTIONS)
    assert load_infos(tmp_path / 'set/lidc_infos_test.pkl')


# ----------------------------------------------------------------------- JSON
def test_infos_as_json_are_the_same(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'set')
    finish_set(tmp_path / 'set', OPTIONS, suffix='.json')
    for split in ('train', 'val', 'test'):
        one, two = (load_infos(tmp_path / 'set' / f'lidc_infos_{split}{s}')
                    for s in ('.pkl', '.json'))
        assert one['metainfo'] == two['metainfo']
        for a, b in zip(one['data_list'], two['data_list'], strict=True):
            assert a.keys() == b.keys()
            np.testing.assert_equal(a, b)
            view = b['images']['CAM_00']
            assert view['lidar2img'].dtype == np.float64


# ---------------------------------------------------------------------- check
def check(out_dir, capsys):
    """Status and lines of the command."""
    try:
        main(['check', str(out_dir), '--sheet-scans', '2'])
        status = 0
    except SystemExit as stop:
        status = 1
        assert isinstance(stop.code, str) and '\n' not in stop.code
    return status, capsys.readouterr().out.splitlines()


def test_a_good_set_has_no_faults(whole, capsys, tmp_path):
    shutil.copytree(whole, tmp_path / 'set')
    status, lines = check(tmp_path / 'set', capsys)
    assert status == 0 and lines[-1].endswith('no faults')
    sheet = cv2.imread(str(tmp_path / 'set' / 'check.png'))
    assert sheet.shape[0] > 400 and sheet.shape[1] > 600
    green = (sheet[..., 1] > sheet[..., 2] + 80)  # the true boxes
    assert green.sum() > 100


def edit(path, change):
    item = load_json(path)
    change(item)
    dump_json(item, path)


def first_box(record):
    return next(boxes[0] for boxes in record['cam_instances'].values())


def everywhere(folder, change):
    """In a record, and in the infos and COCO made anew from it."""
    edit(folder / 'scans' / 'part-0.json', change)
    finish_set(folder, OPTIONS)


FAULTS = {
    'image is missing': (
        lambda d: (d / 'images/part-1/CAM_01.png').unlink(),
        'CAM_01.png: cannot be read: No such file'),
    'image was changed': (
        lambda d: _write_image(d / 'images/part-1/CAM_01.png',
                               np.full((48, 48), 7, np.uint16)),
        'CAM_01.png: expected the recorded SHA-256'),
    'image of 8 bits': (
        lambda d: (_write_image(d / 'images/part-0/CAM_01.png',
                                np.zeros((48, 48), np.uint8)),
                   everywhere(d, lambda r: r['images']['CAM_01'].pop(
                       'sha256'))),
        'expected a 16-bit grey image (48, 48), found (48, 48) uint8'),
    '2D box elsewhere': (
        lambda d: everywhere(d, lambda r: first_box(r).update(
            bbox=[1., 1, 3, 3])),
        '2D box of instances[0]: expected to fill its projected 3D box'),
    '2D box is gone': (
        lambda d: everywhere(d, lambda r: r['cam_instances']
                             ['CAM_02'].clear()),
        'CAM_02: 2D box of instances[0]: expected one in the image'),
    '2D box without its depth': (
        lambda d: everywhere(d, lambda r: first_box(r).update(depth=.3)),
        'fields "center_2d" and "depth"'),
    'boxes in another unit': (
        lambda d: everywhere(d, lambda r: r['instances'][0].update(
            bbox_3d=[900., 0, 0, 44, 44, 44, 0])),
        'field "bbox_3d": expected inside of the volume'),
    'diameter in another unit': (
        lambda d: everywhere(d, lambda r: r['instances'][0].update(
            diameter=.04)), 'field "diameter": expected what fits'),
    'infos say something else than records': (
        lambda d: edit(d / 'scans/part-3.json', lambda r: r['instances'][0]
                       .update(diameter=41.)),
        'scan part-3: expected what its record in scans/ says'),
    'COCO says something else than infos': (
        lambda d: edit(d / 'lidc_infos_train_2d_anno.coco.json',
                       lambda c: c['annotations'][0].update(
                           bbox=[0., 0, 5, 5])), 'annotations[0]'),
    'a patient in two splits': (
        lambda d: edit_infos(d / 'lidc_infos_train.pkl', lambda i: i[
            'data_list'][0].update(lidc_id_ref=load_infos(
                d / 'lidc_infos_test.pkl')['data_list'][0]['lidc_id_ref'])),
        'expected in one split, found in'),
    'a scan in no split': (
        lambda d: dump_json(dict(load_json(d / 'scans/part-0.json'),
                                 token='part-7'), d / 'scans/part-7.json'),
        'scan part-7: expected in the infos of a split, found in none'),
    'a damaged pickle': (
        lambda d: (d / 'lidc_infos_val.pkl').write_bytes(b'\x80\x04junk'),
        'lidc_infos_val.pkl: is not a readable info pickle'),
    'another rig': (
        lambda d: Rig.circle(3, 310., image_size=48).save(d / 'rig.json'),
        'expected the rig of options.json, found another'),
    'matrices of another rig': (
        lambda d: everywhere(d, lambda r: r['images'].update(
            CAM_00=r['images']['CAM_01'])),
        'CAM_00: field "lidar2img": expected the rig'),
    'a half-written file': (
        lambda d: (d / 'images/.x.tmp').touch(), 'half-written'),
}


def edit_infos(path, change):
    from projects.core.infos import dump_infos
    infos = load_infos(path)
    change(infos)
    dump_infos(infos, path)


def _write_image(path, image):
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


@pytest.mark.parametrize('fault', FAULTS)
def test_planted_faults_are_found(whole, tmp_path, capsys, fault):
    out_dir = tmp_path / 'set'
    shutil.copytree(whole, out_dir)
    plant, sentence = FAULTS[fault]
    plant(out_dir)
    status, lines = check(out_dir, capsys)
    assert status == 1
    assert any(sentence in line for line in lines), lines


# --------------------------------------------------------------- acquisitions
def levels(folder, name='part-1'):
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                     for path in sorted((folder / 'images' / name).iterdir())])


def test_a_detectors_views_are_the_same_whatever_is_beside_them(
        whole, tmp_path):
    """Each scan draws its own noise: alone, beside others or again."""
    options = replace(OPTIONS, acquisition='chest-low')
    make(tmp_path / 'all', options=options)
    make(tmp_path / 'one', numbers=[1], options=options)
    assert np.array_equal(levels(tmp_path / 'all'), levels(tmp_path / 'one'))
    assert not np.array_equal(levels(tmp_path / 'all'), levels(whole))
    assert not np.array_equal(
        levels(tmp_path / 'all')[0], levels(tmp_path / 'all')[1])
    other = replace(options, seed=1)
    make(tmp_path / 'other', numbers=[1], options=other)
    assert not np.array_equal(levels(tmp_path / 'one'),
                              levels(tmp_path / 'other'))


def test_what_is_recorded_is_what_the_rig_says(whole, tmp_path):
    """The object moved and the poses are not exact: boxes and matrices are
    those of the record, as of a real detector."""
    make(tmp_path, options=replace(OPTIONS, acquisition='chest-radiography'))
    ideal, measured = (load_infos(folder / 'lidc_infos_train.pkl')
                       for folder in (whole, tmp_path))
    for one, other in zip(ideal['data_list'], measured['data_list']):
        assert one['token'] == other['token']
        assert one['instances'] == other['instances']
        for name, view in one['images'].items():
            for key in ('cam2img', 'lidar2cam', 'lidar2img'):
                assert np.array_equal(view[key], other['images'][name][key])
    told = measured['metainfo']['acquisition']
    assert told['name'] == 'chest-radiography' and told['kerma'] == 22.
    assert 'acquisition' not in ideal['metainfo']


def test_another_acquisition_is_another_set(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'set')
    with pytest.raises(ConversionError, match='acquisition'):
        make(tmp_path / 'set',
             options=replace(OPTIONS, acquisition='chest-low'))


def slab(bone):
    """80 mm of soft tissue and behind it 12 mm of cortical bone, or as much
    in the line integrals of soft tissue."""
    hu = np.full((60, 80, 80), -1000, np.float32)
    hu[5:45] = 0
    hu[48:54 if bone else 48] = 1500
    hu[46:46 if bone else 60] = (12 * 2.5 / 28 - 1) * 1000
    return Scan('slab', 'slab', '', '', Volume.centred(
        hu, np.diag([2., 2, 2])), np.eye(4), [], [])


def test_bone_hardens_the_beam_as_bone(monkeypatch):
    """Against the beam's own transmission; soft tissue changes nothing."""
    conditions = Acquisition(spectrum='120 kV, 2.5 mm Al, 0.2 mm Cu',
                             noise=False, kerma=1e6)
    monkeypatch.setattr(convert, 'load_preset', lambda name: conditions)
    rig = Rig.circle(1, image_size=64)
    soft, hard = (convert._integrals_of(slab(bone), rig, RAW, 'cpu')[0][0]
                  for bone in (False, True))
    ideal = render(slab(True).hu, rig)[0]
    assert np.allclose(render(slab(False).hu, rig)[0][32, 32],
                       ideal[32, 32], rtol=1e-5)
    beam = load_spectrum(conditions.spectrum)
    told = -np.log([beam.transmission(water=np.array(80.),
                                      cortical_bone=np.array(12.)),
                    beam.transmission(water=np.array(110.))])
    assert abs(hard[32, 32] - told[0]) < 2e-3
    assert abs(soft[32, 32] - told[1]) < 2e-3
    assert hard[32, 32] > soft[32, 32] + .02
    # As if nobody had asked for bone, to the last bit.
    monkeypatch.setattr(convert, 'render_with_bone', lambda *args: (
        render(*args), None))
    again = convert._integrals_of(slab(False), rig, RAW, 'cpu')[0][0]
    assert again.tobytes() == soft.tobytes()


def counts(folder, name, number=0):
    """Of a scan's detector: raw (V, H, W), flat, dark, dead."""
    told = load_json(folder / 'scans' / f'{name}.json')['raw'][number]

    def read(file):
        return cv2.imread(str(folder / file['path']), cv2.IMREAD_UNCHANGED)

    return (np.stack([read(file) for file in told['views'].values()]),
            *(read(told[part]) for part in ('flat', 'dark', 'dead')))


@pytest.mark.parametrize('kerma, kind', [(2.2, np.float32),
                                         (.002, np.uint16)])
def test_raw_images_are_the_views_before_their_logarithm(
        tmp_path, monkeypatch, kerma, kind):
    """Nothing else is corrected: no scatter, no dead pixels."""
    conditions = replace(convert.load_preset('chest-low'), kerma=kerma,
                         scatter=0., dead=0., electronic=.1)
    monkeypatch.setattr(convert, 'load_preset', lambda name: conditions)
    make(tmp_path, numbers=[1], options=RAW)
    raw, flat, dark, dead = counts(tmp_path, 'part-1')
    assert raw.dtype == flat.dtype == dark.dtype == kind
    assert np.array_equal(raw, raw.round()) and not dead.any()
    signal, flat = raw.astype(float) - dark, flat.astype(float) - dark
    images = levels(tmp_path) * convert.INTEGRAL_MAX / 65535
    # Half a count of each, and half a level of the image.
    step = .5 / signal + .5 / flat + .51 * convert.INTEGRAL_MAX / 65535
    assert signal.min() > 20
    # Images have no levels below that of the open beam.
    found = np.maximum(-np.log(signal / flat), 0)
    assert (np.abs(found - images) < 1.1 * step).all()


def test_raw_images_leave_the_views_as_they_are(with_raw, tmp_path):
    make(tmp_path, options=replace(RAW, raw=False))
    assert np.array_equal(levels(tmp_path), levels(with_raw))
    assert not (tmp_path / 'raw').exists()
    infos = load_infos(with_raw / 'lidc_infos_train.pkl')
    assert infos['metainfo']['raw']['quanta_per_count'] == 1
    assert 'raw' in infos['data_list'][0]


def test_each_detector_has_its_raw_images(tmp_path, capsys):
    """Views of two sizes are of two detectors; dead pixels count nothing."""
    rig = Rig.circle(3, image_size=48)
    rig.views[1] = Rig.circle(3, image_size=32).views[1]
    make(tmp_path, options=replace(RAW, rig=rig.to_dict(),
                                   acquisition='casting-225kV'))
    shapes, dead_pixels = [], 0
    for name in NAMES:
        for number in range(2):
            raw, flat, dark, dead = counts(tmp_path, name, number)
            shapes.append(raw.shape)
            for image in (*raw, flat):
                assert np.array_equal(image == dark, dead == 255)
            dead_pixels += int((dead == 255).sum())
    assert set(shapes) == {(2, 48, 48), (1, 32, 32)} and dead_pixels
    assert check(tmp_path, capsys)[0] == 0


@pytest.mark.parametrize('fault, sentence', [
    (lambda d: (d / 'raw/part-1/CAM_01.tif').unlink(),
     'CAM_01.tif: cannot be read'),
    (lambda d: (d / 'raw/part-1/detector-0/dead.png').write_bytes(b'x'),
     'dead.png: expected the recorded SHA-256'),
    (lambda d: edit(d / 'scans/part-0.json', lambda r: r.pop('raw')),
     'field "raw": expected what options.json asks for'),
    (lambda d: edit(d / 'scans/part-0.json', lambda r: r['raw'][0]['views']
                    .pop('CAM_01')),
     'field "raw": expected each view once, found CAM_00, CAM_02'),
    (lambda d: edit(d / 'scans/part-0.json', lambda r: r['raw'][0].update(
        flat=r['raw'][0]['dead'])), 'expected uint16 or float32 of (48, 48)'),
])
def test_faults_of_raw_images_are_found(with_raw, tmp_path, capsys, fault,
                                        sentence):
    shutil.copytree(with_raw, tmp_path / 'set')
    fault(tmp_path / 'set')
    finish_set(tmp_path / 'set', RAW)
    status, lines = check(tmp_path / 'set', capsys)
    assert status == 1
    assert any(sentence in line for line in lines), lines


@pytest.fixture
def part(tmp_path):
    """Arguments that convert a small volume with a detector."""
    values = np.full((20, 20, 20), -1000, np.int16)
    values[5:15, 5:15, 5:15] = 0
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([4., 4., 4.])
    sitk.WriteImage(image, str(tmp_path / 'part.nii.gz'))
    (tmp_path / 'boxes.csv').write_text('x,y,z,dx,dy,dz\n0,0,0,9,9,9\n')
    return ['volume', '--volume', str(tmp_path / 'part.nii.gz'), '--boxes',
            str(tmp_path / 'boxes.csv'), '--box-frame', 'world', '--raw',
            '--image-size', '16', '--acquisition', 'chest-radiography']


def test_one_detector_counts_the_same_wherever_the_object_is(
        part, tmp_path, capsys):
    """Its pixels are as large, whatever the magnification: on a circle, and
    of a rig of which --sdd says it."""
    out = {}
    for name, more in dict(
            near=['--radius', '300'], far=['--radius', '400'],
            rig=['--rig', 'far'], told=['--rig', 'far', '--sdd', '600'],
            longer=['--radius', '300', '--sdd', '750']).items():
        more = [str(tmp_path / 'far/rig.json') if word == 'far' else word
                for word in more]
        main([*part, '--out-dir', str(tmp_path / name), *more])
        out[name] = counts(tmp_path / name, 'part')[1].max()
        told = load_json(tmp_path / name / 'options.json')['conditions']
        assert told['magnification'] == dict(
            near=2., far=1.5, told=1.5, rig=2., longer=2.5)[name]
        said = 'taken for 800 mm; --sdd says otherwise' in \
            capsys.readouterr().err
        assert said == (name == 'rig')
    assert out['near'] == out['far'] == out['told'] == out['longer']
    assert out['rig'] > 1.7 * out['far']
    with pytest.raises(SystemExit, match='--sdd: expected more than 400 mm'):
        main([*part, '--out-dir', str(tmp_path / 'none'), '--rig',
              str(tmp_path / 'far/rig.json'), '--sdd', '350'])


def test_a_preset_that_was_changed_is_another_set(
        part, tmp_path, capsys, monkeypatch):
    """A resumed set has the values of its preset, not its name alone; sets
    of before, which had the name, go on."""
    call = [*part, '--out-dir', str(tmp_path / 'set')]
    main(call)
    options = load_json(tmp_path / 'set/options.json')
    assert options.pop('conditions') == asdict(
        convert.load_preset('chest-radiography'))
    dump_json(options, tmp_path / 'set/options.json')
    before = content(tmp_path / 'set')
    main(call)
    assert content(tmp_path / 'set') == before
    with pytest.raises(SystemExit, match='field "conditions.magnification": '
                       'expected the value of this call, 1.5, found 2.0'):
        main([*call, '--radius', '400', '--rig',
              str(tmp_path / 'set/rig.json'), '--sdd', '450'])
    other = replace(convert.load_preset('chest-radiography'), kerma=11.)
    for module in (convert, commands):
        monkeypatch.setattr(module, 'load_preset', lambda name: other)
    dump_json(dict(options, conditions=dict(asdict(other), kerma=22.)),
              tmp_path / 'set/options.json')
    with pytest.raises(SystemExit, match='field "conditions.kerma": expected '
                       'the value of this call, 11.0, found 22.0'):
        main(call)


def test_raw_images_need_a_detector(tmp_path, capsys):
    with pytest.raises(SystemExit, match='--raw: expected an --acquisition '
                       'with a detector, found "ideal"'):
        main(['lidc', '--dicom-root', str(tmp_path), '--out-dir',
              str(tmp_path / 'set'), '--raw'])
