"""Scaling and costs: the arithmetic by hand, and both parts once."""

import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import scaling

from projects.core.files import dump_json, load_json
from tests.helpers.commands import ROOT
from tests.helpers.spheres import make_sphere_set

MEASURED = dict(conversion_s=3.6, training_s=.9, inference_s=.36,
                bytes_a_scan=2e6, conversion_speed_up=1.8,
                training_speed_up=1.5)


def point(processes, scans, wall, path, cpu):
    return dict(processes=processes, scans=scans, wall_s=wall, path_s=path,
                cpu_s=cpu)


def test_strong_and_weak_scaling_share_a_point():
    assert scaling.points_of([1, 2, 4], 4) == [
        (1, 4), (2, 8), (1, 16), (2, 16), (4, 16)]
    assert scaling.points_of([1], 3) == [(1, 3)]


def test_speed_up_and_efficiency_by_hand():
    rows = scaling.scaling_of([
        point(1, 1, 10., 9., 9.), point(1, 2, 20., 18., 18.),
        point(2, 2, 12.5, 10., 19.8)])
    assert [(r['scaling'], r['processes'], r['scans']) for r in rows] == [
        ('strong', 1, 2), ('strong', 2, 2), ('weak', 1, 1), ('weak', 2, 2)]
    for row, (wall, path, work) in zip(rows, [
            (1, 1, 1), (1.6, 1.8, 1.1), (1, 1, 1), (1.6, 1.8, 1.1)]):
        assert row['speed_up'] == pytest.approx(wall)
        assert row['efficiency'] == pytest.approx(wall / row['processes'])
        assert row['path_speed_up'] == pytest.approx(path)
        assert row['path_efficiency'] == pytest.approx(
            path / row['processes'])
        assert row['work'] == pytest.approx(work)


def test_nothing_is_compared_with_nothing():
    with pytest.raises(ValueError, match='of one process, found none'):
        scaling.scaling_of([])
    with pytest.raises(ValueError, match='strong scaling: .* found none'):
        scaling.scaling_of([point(1, 1, 1., 1., 1.), point(2, 2, 1., 1., 1.)])
    with pytest.raises(ValueError, match='wall_s: .* above 0, found 0'):
        scaling.scaling_of([point(1, 1, 0, 1., 1.)])


def test_costs_by_hand():
    rows = scaling.costs_of(MEASURED, 1000, 24, .5)
    assert [(r['work'], r['gpu']) for r in rows] == [
        (work, 'not measured')
        for work in ('conversion', 'training', 'inference', 'all')]
    # 1000 scans of 3.6 s are an hour; 24000 steps of 0.9 s are six.
    for row, (hours, on_two, price) in zip(rows, [
            (1, 1 / 1.8, .5), (6, 4, 3), (.1, .1 / 1.8, .05),
            (7.1, 4 + 1.1 / 1.8, 3.55)]):
        assert row['core_hours'] == pytest.approx(hours)
        assert row['hours_on_two'] == pytest.approx(on_two)
        assert row['price'] == pytest.approx(price)
    assert rows[0]['gigabytes'] == rows[3]['gigabytes'] == pytest.approx(2)
    assert {r['price'] for r in scaling.costs_of(MEASURED, 1000, 24)} == {
        None}
    more = scaling.costs_of(MEASURED, 100_000, 24, .5)
    assert more[3]['price'] == pytest.approx(355)


@pytest.mark.parametrize('wrong', [
    dict(scans=0), dict(epochs=-1), dict(price=0.), dict(price=np.nan)])
def test_costs_of_nothing(wrong):
    name, = wrong
    with pytest.raises(ValueError, match=f'{name}: expected a number above'):
        scaling.costs_of(MEASURED, **dict(dict(
            scans=1, epochs=1, price=1.), **wrong))


@pytest.mark.parametrize('words, message', [
    ('--processes 2 4', '--processes: expected 1 among them'),
    ('--processes 1 0', '--processes: expected above 0, found 0'),
    ('--scans 0', '--scans: expected above 0'),
    ('--price -1', '--price: expected above 0, found -1'),
    ('--only training', 'set: expected the set that'),
    ('--only costs --coefficients none.json', 'none.json: cannot be read')])
def test_wrong_words(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message) as error:
        scaling.main(['--out-dir', str(tmp_path), *words.split()])
    assert '\n' not in str(error.value)


def test_costs_of_the_page_need_no_measurements(tmp_path):
    scaling.main(['--only', 'costs', '--out-dir', str(tmp_path)])
    rows = load_json(tmp_path / 'costs.json')['rows']
    page = (ROOT / 'docs/costs.md').read_text()
    table = re.findall(r'^\|.*\| (conversion|training, 24 epochs|inference|all'
                       r') \| ([\d.]+) \| ([\d.]+) \| ([\d.]*) *\| not', page,
                       re.M)
    assert len(table) == len(rows) == 8
    for row, (work, hours, on_two, gigabytes) in zip(rows, table):
        assert work.startswith(row['work'])
        for name, told in (('core_hours', hours), ('hours_on_two', on_two),
                           ('gigabytes', gigabytes)):
            decimals = len(told.partition('.')[2])
            assert not told or f'{row[name]:.{decimals}f}' == told, (
                work, name)


def test_whose_coefficients_costs_are_of(tmp_path, capsys):
    words = ['--only', 'costs', '--out-dir', str(tmp_path), '--num-scans',
             '1000', '--price', '2']
    mine = tmp_path / 'mine.json'
    dump_json(dict(MEASURED, training_s=3.6), mine)
    scaling.main([*words, '--coefficients', str(mine)])
    told = load_json(tmp_path / 'costs.json')['rows']
    assert told[1]['price'] == pytest.approx(48)
    dump_json(dict(MEASURED, training_s='x'), mine)
    with pytest.raises(SystemExit, match=r'mine.json: field "training_s": '):
        scaling.main([*words, '--coefficients', str(mine)])
    # What was measured here comes first, and both parts of it.
    rows = [dict(scaling='strong', processes=n, scans=2, cpu_s=7.2,
                 path_speed_up=1.8) for n in (1, 2)]
    dump_json(dict(rows=rows, bytes_a_scan=1e6), tmp_path / 'conversion.json')
    with pytest.raises(SystemExit, match='training.json: cannot be read'):
        scaling.main(words)
    dump_json(dict(rows=rows, step_s=1., inference_s=1.),
              tmp_path / 'training.json')
    scaling.main(words)
    told = load_json(tmp_path / 'costs.json')['rows']
    assert told[0]['core_hours'] == pytest.approx(1)


def test_two_processes_are_needed_for_two_cores():
    one = dict(rows=[dict(scaling='strong', processes=1, scans=1, cpu_s=1.)])
    with pytest.raises(ValueError, match='--processes: expected 2'):
        scaling.coefficients_of(one, one)


def test_clocks_of_the_steps(tmp_path):
    """Of two processes the first is the busier one in one of two steps."""
    for rank, cpu in enumerate([[5, 6, 8, 9], [5, 6, 7, 9]]):
        dump_json([dict(wall=3. * i, machine=4. * i, cpu=c, loss=float(rank))
                   for i, c in enumerate(cpu)],
                  tmp_path / f'steps_{rank}.json')
    assert scaling.steps_of(tmp_path, 2) == dict(
        wall_s=3., cpu_s=3., path_s=2., others=pytest.approx(1 / 3),
        losses=[.5] * 4)
    with pytest.raises(ValueError, match='more than 4 steps, found 4'):
        scaling.steps_of(tmp_path, 4)


@pytest.mark.slow
def test_a_conversion_by_two_workers(tmp_path):
    for folder, names in (('volumes', 'abc'), ('warm', 'a')):
        (tmp_path / folder).mkdir()
        for name in names:
            values = np.full((40, 40, 40), -300, np.int16)
            values[10:20, 10:20, 10:20] = 300
            nibabel.save(nibabel.Nifti1Image(values, np.diag([4, 4, 4, 1])),
                         tmp_path / folder / f'{name}.nii')
    (tmp_path / 'boxes.csv').write_text(
        'scan,x,y,z,dx,dy,dz\n' + ''.join(
            f'{name},-20,-20,-20,40,40,40\n' for name in 'abc'))
    (tmp_path / 'warm.csv').write_text(
        'scan,x,y,z,dx,dy,dz\na,-20,-20,-20,40,40,40\n')
    words, warm = (
        ['volume', '--volume', str(tmp_path / folder), '--boxes',
         str(tmp_path / boxes), '--box-frame', 'world', '--image-size', '32',
         '--num-views', '3', '--val-fraction', '0']
        for folder, boxes in (('volumes', 'boxes.csv'),
                              ('warm', 'warm.csv')))
    told = scaling.converted_by(2, words, warm, tmp_path / 'set')
    assert len(list((tmp_path / 'set').glob('scans/*.json'))) == 3
    assert 0 < told['rest_s'] < told['path_s'] < told['cpu_s']
    assert told['path_s'] <= told['cpu_s'] <= 3 * told['wall_s']
    assert scaling.bytes_of(tmp_path / 'set') > 3 * 3 * 500


@pytest.mark.slow
def test_two_processes_train_on_the_same_scans_as_one(tmp_path):
    make_sphere_set(tmp_path / 'set', 4, 3, 64)
    one, two = (scaling.trained_by(n, 2, tmp_path / 'set', 5, tmp_path)
                for n in (1, 2))
    assert len(one['losses']) == len(two['losses']) == 5
    np.testing.assert_allclose(two['losses'][:2], one['losses'][:2],
                               rtol=1e-4)
    for told in (one, two):
        assert 0 < told['path_s'] <= told['cpu_s']
    assert two['path_s'] < two['cpu_s']


def test_the_suite_for_a_gpu_gathers_its_parts_in_nine_minutes(tmp_path):
    """With a Python that does nothing, in place of a GPU."""
    suite = ROOT / 'benchmarks/gpu_suite.sh'
    limits = re.findall(r'^(?:part|speed) (\w+) (\d+) ', suite.read_text(),
                        re.M)
    assert len(limits) == 10 and sum(int(s) for _, s in limits) <= 9 * 60
    (tmp_path / 'python').write_text(
        f'#!/bin/sh\n[ "$1" = - ] && exec {sys.executable} "$@"\n'
        'case "$*" in *growth.py*) for out; do :; done\n'
        'echo \'{"points": []}\' > "$out/growth.json";; esac\n')
    (tmp_path / 'python').chmod(0o755)
    done = subprocess.run(
        [str(suite), str(tmp_path / 'all.json')], capture_output=True,
        text=True, env=dict(PATH='/usr/bin:/bin', PYTHON=str(
            tmp_path / 'python')))
    assert done.returncode == 0, done.stdout + done.stderr
    told = load_json(tmp_path / 'all.json')
    assert set(told) == {name for name, _ in limits}
    assert told['growth']['status'] == 0 and told['growth']['points'] == []
