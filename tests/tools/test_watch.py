"""A folder that is watched, by real processes."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import cv2
import h5py
import numpy as np
import pytest
import tifffile

from projects.core.engine import watching
from projects.core.engine.command_line import UserError
from projects.core.engine.watching import watch
from projects.core.files import DataError
from tests.helpers.commands import BLADE, ROOT, command_line, error_of, tool
from tests.helpers.files import write_dicom


@pytest.fixture
def start(tmp_path, blades):
    """Starts a watch of the folder ``in``; it writes to ``out``."""
    (tmp_path / 'in').mkdir()
    running = []

    def start(*more, patience=12):
        running.append(subprocess.Popen(
            [sys.executable, *command_line(
                'infer.py', *BLADE, '--watch', tmp_path / 'in', '--rig',
                blades / 'rig.json', '--out-dir', tmp_path / 'out', '--every',
                .2, '--patience', patience, '--trust-rig', '--device', 'cpu',
                *more)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1',
                                PATH='/usr/bin:/bin', HOME='/tmp')))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def rows(out):
    """The table, by object."""
    if not (out / 'objects.csv').exists():
        return {}
    with open(out / 'objects.csv', newline='') as stream:
        table = list(csv.DictReader(stream))
    found = {row['object']: row for row in table}
    assert len(found) == len(table)  # each once
    return found


def wait_for(out, *names):
    for _ in range(9000):  # a busy machine starts slowly
        found = rows(out)
        if set(names) <= set(found):
            return found
        time.sleep(.02)
    raise AssertionError(found)


@pytest.mark.slow
def test_objects_as_they_come_and_a_kill(start, blades, tmp_path):
    source, into = blades / 'set/images', tmp_path / 'in'
    out = tmp_path / 'out'
    shutil.copytree(source / 'blade_000', into / 'first')
    # One is still being copied; of another a view never comes; one is of
    # another size.
    half = into / 'half'
    shutil.copytree(source / 'blade_001', half)
    whole = (half / 'CAM_09.png').read_bytes()
    (half / 'CAM_09.png').write_bytes(whole[:len(whole) // 2])
    shutil.copytree(source / 'blade_001', into / 'lacks')
    (into / 'lacks' / 'CAM_03.png').unlink()
    shutil.copytree(source / 'blade_001', into / 'other')
    cv2.imwrite(str(into / 'other/CAM_00.png'), np.zeros((9, 9), np.uint16))
    process = start()
    found = wait_for(out, 'first', 'other')
    assert 'half' not in found and 'lacks' not in found
    assert 'image size: expected 256 x 256' in found['other']['error']
    (half / 'CAM_09.png').write_bytes(whole)
    found = wait_for(out, 'half', 'lacks')
    assert found['half']['error'] == '' and int(found['half']['boxes']) > 0
    assert 'CAM_03: image: expected one for each of the 10 views' in (
        found['lacks']['error'])
    # Several come at once; it is killed while it is at the second.
    for i in range(5):
        shutil.copytree(source / f'blade_00{i % 2}', into / f'more_{i}')
    wait_for(out, 'more_0')
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads((out / 'journal.json').read_text())
    assert 'more_4' not in before
    process = start()
    found = wait_for(out, *(f'more_{i}' for i in range(5)))
    assert all(found[name]['time'] == row['time']
               for name, row in before.items())
    # The same once more is not handled again.
    shutil.copytree(source / 'blade_001', into / 'first', dirs_exist_ok=True)
    (into / 'first/CAM_00.png').write_bytes(whole)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    told, complained = process.communicate(timeout=120)
    assert process.returncode == 0 and 'Traceback' not in complained
    assert told.splitlines()[-1].startswith('ended: ')
    assert 'first: has changed after it was handled' in complained
    assert rows(out) == found and len(found) == 9
    for name, row in found.items():
        place = out / 'objects' / name
        if row['error']:
            assert not place.exists()
            continue
        boxes = json.loads((place / 'boxes.json').read_text())['boxes']
        assert int(row['boxes']) == len(boxes) and row['report'] == (
            f'objects/{name}/report.html')
        assert '<html' in (out / row['report']).read_text()[:100]
        assert float(row['highest_score']) == pytest.approx(
            boxes[0]['score'], abs=1e-4)
    assert not list(out.rglob('*.tmp'))


@pytest.mark.slow
def test_files_of_each_kind_as_they_are_copied(start, blades, tmp_path):
    """Half of each file, longer than the patience; a kill; then all of it."""
    source, into = blades / 'set/images/blade_000', tmp_path / 'in'
    frames = np.stack([cv2.imread(str(p), -1)
                       for p in sorted(source.glob('*.png'))])
    beam = np.exp(-frames * np.float32(16 / 65535))
    raw = (50000 * beam + 100).astype(np.uint16)
    made = tmp_path / 'made'
    (made / 'folder').mkdir(parents=True)
    for number, image in enumerate(raw):
        tifffile.imwrite(made / f'folder/CAM_{number:02d}.tif', image)
    tifffile.imwrite(made / 'pages.tif', raw, photometric='minisblack')
    done, content = cv2.imencodemulti('.tif', list(raw))
    (made / 'lzw.tif').write_bytes(content.tobytes())
    write_dicom(made / 'frames.dcm', raw)
    with h5py.File(made / 'scan.h5', 'w') as stream:
        stream['exchange/data'] = raw
    raw.tofile(made / 'scan.raw')
    for name, counts in (('dark', 100), ('flat', 50100)):
        tifffile.imwrite(tmp_path / f'{name}.tif', np.full(
            raw.shape[1:], counts, np.uint16))
    given = ('--dark', tmp_path / 'dark.tif', '--flat', tmp_path / 'flat.tif',
             '--shape', *map(str, raw.shape), '--dtype', 'uint16')
    contents = {p.relative_to(made): p.read_bytes()
                for p in made.rglob('*') if p.is_file()}
    shutil.copytree(made / 'folder', into / 'folder')
    for name, content in contents.items():
        if name.parent.name != 'folder' or name.stem == 'CAM_09':
            (into / name).write_bytes(content[:len(content) // 2])
    process = start(*given, patience=1)
    names = {'folder', 'pages.tif', 'lzw.tif', 'frames.dcm', 'scan.h5',
             'scan.raw'}
    found = wait_for(tmp_path / 'out', *names)
    assert all(row['error'] and not row['boxes'] for row in found.values())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(*given, patience=1)
    for name, content in contents.items():
        (into / name).write_bytes(content)
    for _ in range(9000):
        found = rows(tmp_path / 'out')
        if all(row['boxes'] for row in found.values()):
            break
        time.sleep(.02)
    assert set(found) == names
    assert {row['error'] for row in found.values()} == {''}
    assert len({row['boxes'] for row in found.values()}) == 1
    assert all('as it was trained on, with ' in row['warning']
               for row in found.values())
    process.send_signal(signal.SIGINT)
    told, complained = process.communicate(timeout=120)
    assert process.returncode == 0 and 'Traceback' not in complained
    assert told.splitlines()[-1] == 'ended: 6 objects, 0 of them failed'


def test_options_that_do_not_fit(tmp_path):
    for options, sentence in (
            (['--watch', tmp_path], '--out-dir: expected with --watch'),
            (['--watch', tmp_path, '--out-dir', 'o', '--out', 'b.json'],
             '--out: expected none with --watch, found b.json'),
            (['--images', 'i'], '--out: expected with --images or --scan'),
            (['--watch', tmp_path, '--out-dir', tmp_path / 'o'],
             '--rig: expected rig.json')):
        done = tool('infer.py', *(ROOT / m for m in BLADE), *options)
        assert sentence in error_of(done)


class Stop(BaseException):
    """What nothing catches: a kill."""


def run(folder, out, find=lambda path, out: dict(boxes=0), count=1, **given):
    """The rows of the next objects."""
    given = dict(dict(ready=lambda path: None, every=.01), **given)
    watched = watch(folder, out, find=find, **given)
    return [next(watched) for _ in range(count)]


@pytest.fixture
def objects(tmp_path):
    for name in 'abc':
        (tmp_path / 'in' / name).mkdir(parents=True)
        (tmp_path / 'in' / name / 'x').write_text(name)
    (tmp_path / 'in' / '.hidden').mkdir()
    (tmp_path / 'in' / 'file').write_text('')
    (tmp_path / 'in' / 'notes.txt').write_text('')
    return tmp_path / 'in', tmp_path / 'out'


@pytest.mark.parametrize('at', ['dump_json', '_write_table', 'find'])
@pytest.mark.parametrize('which', [0, 1, 2])
def test_killed_anywhere(objects, monkeypatch, at, which):
    """Each object is handled once more at most, and told once."""
    handled, calls = [], []

    def find(path, out):
        handled.append(path.name)
        return dict(boxes=1, highest_score=.5)

    def killed(real):
        def call(*args):
            calls.append(args)
            if len(calls) == which + 1:
                raise Stop
            return real(*args)
        return call

    with monkeypatch.context() as patch:
        if at == 'find':
            first = killed(find)
        else:
            first = find
            patch.setattr(watching, at, killed(getattr(watching, at)))
        with pytest.raises(Stop):
            run(*objects, first, 3)
    done = set(json.loads((objects[1] / 'journal.json').read_text())
               ) if (objects[1] / 'journal.json').exists() else set()
    left = 3 - len(done)
    assert {r['object'] for r in run(*objects, find, left)} | done == {
        *'abc'}
    assert set(rows(objects[1])) == {*'abc'}
    assert all(handled.count(name) <= 2 for name in 'abc')
    assert all(handled.count(name) == 1 for name in done)


def test_what_is_written_is_told_before_an_interrupt(objects, monkeypatch):
    """Ctrl-C while an object's row is written."""
    told, write = [], watching._write_table

    def interrupted(journal, out_dir):
        write(journal, out_dir)
        if len(journal) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(watching, '_write_table', interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        for row in watch(*objects, lambda path: None,
                         lambda path, out: dict(boxes=0), .01):
            told.append(row['object'])
    assert told == ['a', 'b'] and set(rows(objects[1])) == {*told}
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_fails_does_not_stop_the_others(objects):
    errors = dict(a=DataError('a: no'), b=RuntimeError('odd\nmore'))

    def find(path, out):
        if path.name in errors:
            raise errors[path.name]
        return dict(boxes=0, highest_score=None)

    assert [r['error'] for r in run(*objects, find, 3)] == [
        'a: no', f'{objects[0] / "b"}: RuntimeError: odd', '']

    def full(path, out):
        raise OSError(28, 'No space left on device', str(out))

    (objects[0] / 'd').mkdir()
    (objects[0] / 'd' / 'x').write_text('')
    with pytest.raises(OSError, match='No space'):
        run(*objects, full)
    assert 'd' not in rows(objects[1])


def test_what_grows_and_what_goes_is_not_handled(objects):
    folder, out = objects
    looks = []

    def ready(path):
        looks.append(path.name)
        return None

    def find(path, out):
        if path.name == 'a':
            shutil.rmtree(path)  # before it was read
            raise DataError('gone')
        return dict(boxes=0)

    assert [r['object'] for r in run(folder, out, find, 2, ready=ready)] == [
        'b', 'c']
    assert looks == ['a', 'b', 'c']
    assert set(rows(out)) == {'b', 'c'}


def test_what_was_not_ready_is_taken_up_when_it_changes(objects):
    folder, out = objects
    for name in 'ab':
        shutil.rmtree(folder / name)

    def ready(path):
        return None if (path / 'all').exists() else 'no'

    watched = watch(folder, out, ready, lambda path, out: dict(boxes=1), .01,
                    0.)
    assert next(watched)['error'] == 'no'
    (folder / 'c' / 'all').write_text('')
    row = next(watched)
    assert (row['object'], row['error'], row['boxes']) == ('c', '', 1)
    assert rows(out)['c']['error'] == ''


def test_what_cannot_be_watched(objects):
    folder, out = objects
    with pytest.raises(UserError, match='expected a folder, found none'):
        run(folder / 'none', out)
    with pytest.raises(UserError, match='outside of the watched'):
        run(folder, folder / 'out')
    first = watch(folder, out, lambda path: None,
                  lambda path, out: dict(boxes=0), .01)
    next(first)
    with pytest.raises(UserError, match='found another'):
        run(folder, out)
    first.close()
    (out / 'journal.json').write_text('{"a": {}}')
    with pytest.raises(DataError, match='the journal of a watch'):
        run(folder, out)
