"""The steps of make ct and make breast, which trains one detector from the
other."""

from pathlib import Path

import pytest

from tools import demo


def test_the_second_detector_starts_from_the_first(monkeypatch, tmp_path,
                                                   capsys):
    calls = []

    def called(title, *command):
        calls.append(command)
        if command[0] == 'tools/train.py':
            folder = tmp_path / command[command.index('--work-dir') + 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'iter.pth').write_text('weights')
            (folder / 'last_checkpoint').write_text(str(folder / 'iter.pth'))

    monkeypatch.setattr(demo, 'ROOT', tmp_path)
    monkeypatch.setattr(demo, 'run', called)
    demo.main(['breast', '--jobs', '1'])
    assert [c[1] if c[0] == '-m' else c[0] for c in calls] == [
        'data_converters', 'data_converters', 'tools/train.py',
        'tools/train.py', 'tools/test.py']
    assert [c[2] for c in calls[:2]] == ['breast', 'mammograms']
    first, second, last = calls[2:]
    assert 'mask-rcnn' in first[1] and 'ag-rcnn_small' in second[1]
    assert second[-1] == 'load_from=work_dirs/breast/first/final.pth'
    assert (tmp_path / 'work_dirs/breast/first/final.pth').is_file()
    assert 'work_dirs/breast/results.json' in last
    # What was trained is not trained again.
    calls.clear()
    demo.main(['breast', '--jobs', '1'])
    assert all(c[0] != 'tools/train.py' for c in calls)
    assert 'is done' in capsys.readouterr().out


def test_slices_are_made_learned_and_tested(monkeypatch, tmp_path, capsys):
    calls = []

    def called(title, *command):
        calls.append(command)
        if command[0] == 'tools/train.py':
            folder = tmp_path / command[command.index('--work-dir') + 1]
            folder.mkdir(parents=True)
            (folder / 'iter_1500.pth').write_text('weights')
            (folder / 'last_checkpoint').write_text(
                str(folder / 'iter_1500.pth'))

    monkeypatch.setattr(demo, 'ROOT', tmp_path)
    monkeypatch.setattr(demo, 'run', called)
    demo.main(['ct', '--jobs', '1'])
    made, trained, tested = calls
    assert made[:4] == ('-m', 'data_converters', 'benchmark', 'demo-v2')
    assert '--slices' in made
    folders = {made[made.index('--out-dir') + 1], *(
        c[c.index('--data-root') + 1] for c in (trained, tested))}
    assert folders == {'data/ct'}
    assert [c[0] for c in calls[1:]] == ['tools/train.py', 'tools/test.py']
    assert trained[1] == tested[1]
    assert (Path(__file__).parents[2] / trained[1]).is_file()
    assert '--amp' in trained and '--amp' in tested
    last = tmp_path / 'work_dirs/ct/final.pth'
    assert last.read_text() == 'weights' and tested[2] == str(last)
    assert 'work_dirs/ct/results.json' in capsys.readouterr().out


def test_a_failed_step_ends_it(tmp_path):
    with pytest.raises(SystemExit, match='"nothing" failed with exit'):
        demo.run('nothing', '-c', 'import sys; sys.exit(3)')
