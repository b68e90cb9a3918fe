"""From a released model to a curve over measured objects."""

import json

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATA_SAMPLERS, DATASETS
from mmengine.config import Config

from projects.core.engine.checkpoints import seen_patients
from projects.core.engine.command_line import UserError
from projects.core.infos import dump_infos, infos_name, load_infos
from tests.helpers.commands import CONFIG, SMALL, error_of, losses, tool
from tests.helpers.spheres import make_sphere_set
from tools import finetune

# Of five measured objects the one without findings is the first of this
# seed's order.
SEED = 11
EMPTY = 'LIDC-IDRI-0301'


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Five objects to train on, the second without findings, three to test
    on."""
    root = tmp_path_factory.mktemp('measured')
    make_sphere_set(root, 5, 4, 64, seed=3)
    make_sphere_set(root, 3, 4, 64, seed=4, split='test')
    return root


@pytest.fixture
def calls(monkeypatch):
    """Trainings and tests in this process, and which there were."""
    called = []

    def here(name, *words, options=()):
        called.append((name, words))
        done = tool(name, *words, options=options)
        if done.returncode:
            raise UserError(done.stderr[-2000:])

    monkeypatch.setattr(finetune, 'run', here)
    return called


def fine_tune(trained, measured, work, *words, options=()):
    return tool(
        'finetune.py', CONFIG, trained / 'work' / 'iter_4.pth', '--measured',
        measured, '--simulated', trained / 'data', '--work-dir', work,
        '--iters', 4, '--seed', SEED, *words, options=[*SMALL, *options])


def of_points(done):
    """Rows of the table that a run printed."""
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line[:1] == '|']


def test_a_stopped_curve_goes_on(trained, measured, tmp_path, calls,
                                 monkeypatch):
    """Stopped in a training, and after one, it is the curve of a run that
    was not."""
    whole = of_points(fine_tune(trained, measured, tmp_path / 'a', '--k', 0,
                                1))
    assert len(whole) == 5 and len(calls) == 5
    run = finetune.run

    def stops(name, *words):
        if name == 'train.py' and '001_objects' in words[0]:
            # After two of four iterations, and their checkpoint.
            run(name, *words, options=[
                'custom_hooks.0.type=StopAfterTwo', 'custom_imports.imports='
                '[projects.mv2d_xray,tests.helpers.stop_hook]'])
        run(name, *words)

    monkeypatch.setattr(finetune, 'run', stops)
    assert 'killed' in fine_tune(trained, measured, tmp_path / 'b', '--k', 0,
                                 1).stderr
    point = tmp_path / 'b' / f'001_objects_seed_{SEED}'
    assert sorted(losses(point)) == [1, 2]
    calls.clear()
    monkeypatch.setattr(finetune, 'run', run)
    assert of_points(fine_tune(trained, measured, tmp_path / 'b', '--k', 0,
                               1)) == whole
    # Neither the released model nor the training with none again.
    assert len(calls) == 2
    assert sorted(losses(point)) == [1, 2, 3, 4]
    calls.clear()
    assert of_points(fine_tune(trained, measured, tmp_path / 'b', '--k', 0,
                               1)) == whole
    assert not calls

    told, first = (json.loads((tmp_path / name / 'finetune.json').read_text())
                   for name in 'ba')
    assert told['curve'] == first['curve']
    assert (tmp_path / 'a' / 'finetune.png').stat().st_size > 5000
    chosen = told['chosen'][str(SEED)]
    # An object without findings is trained on like any other.
    assert chosen == [EMPTY]
    tested = set(told['settings']['tested'])
    for count in (0, 1):
        folder = tmp_path / 'b' / f'{count:03d}_objects_seed_{SEED}'
        meta = torch.load(
            (folder / 'last_checkpoint').read_text().strip(),
            weights_only=True)['meta']
        seen, complete = seen_patients(meta)
        assert complete and not seen & tested
        assert {n for n in seen if n[:12] == 'LIDC-IDRI-03'} == set(
            chosen[:count])
        results = json.loads((folder / 'results.json').read_text())
        assert results['source']['patients_seen_in_training'] == 0
        assert {s['token'] for s in results['scans']} == tested
    # As many as there are, another is one more point of the same curve; made
    # in another way it is none.
    assert len(of_points(fine_tune(trained, measured, tmp_path / 'b'))) == 6
    assert len(calls) == 2
    assert 'settings.json: field "share": expected 0.4' in error_of(
        fine_tune(trained, measured, tmp_path / 'b', '--share', .4))


def test_fewer_objects_are_among_more(measured, trained):
    sets = finetune.Sets(str(measured), str(trained / 'data'), 'test', '.pkl')
    assert len(sets.objects) == 5 and len(sets.tested) == 3
    orders = set()
    for seed in range(8):
        order = sets.chosen((5, seed))
        assert sorted(order) == sets.objects
        assert not set(order) & set(sets.tested)
        for count in range(6):
            assert sets.chosen((count, seed)) == order[:count]
        orders.add(tuple(order))
    assert len(orders) > 4


@pytest.mark.parametrize('count, share, expected', [
    (0, .5, [0.]), (1, .5, [.5, .5]), (4, .8, [.8, .2]), (2, 1., [1.])])
def test_the_share_does_not_depend_on_how_many(trained, measured, count,
                                               share, expected):
    args = finetune.parse_args([
        CONFIG, 'x.pth', '--measured', str(measured), '--simulated',
        str(trained / 'data'), '--share', str(share), '--cfg-options',
        *SMALL])
    sets = finetune.Sets(str(measured), str(trained / 'data'), 'test', '.pkl')
    cfg = finetune.config_for(finetune.config_of(args), args, sets, (count, 0))
    loader = Config.fromstring(cfg.pretty_text, '.py').train_dataloader
    data = DATASETS.build(loader.dataset)
    sampler = DATA_SAMPLERS.build(dict(loader.sampler, dataset=data, seed=0))
    drawn = []
    for epoch in range(400):
        sampler.set_epoch(epoch)
        drawn += [data.get_data_info(i)['lidc_id_ref'] for i in sampler]
    of_measured = np.mean([name in sets.objects for name in drawn])
    assert of_measured == pytest.approx(expected[0], abs=.04)
    assert len(set(drawn) & set(sets.objects)) == count
    # The rest is of all simulated scans.
    assert len(set(drawn)) == count + (0 if share == 1 else 3)


@pytest.mark.parametrize('words, expected', [
    (['--k', 0, 6], '--k: expected at most 5, as many objects as'),
    (['--k', -1], '--k: expected a number from 0'),
    (['--share', 0], '--share: expected a number from 0 to 1, found 0'),
    (['--iters', 0], '--iters: expected a number from 1'),
    (['--split', 'val'], 'lidc_infos_val.pkl: expected objects to test on'),
    (['--split', 'train'], 'expected none of the objects to test on, found 5'),
    (['--launcher', 'pytorch'], '--launcher: expected none'),
])
def test_what_cannot_be_is_told(trained, measured, tmp_path, calls, words,
                                expected):
    done = fine_tune(trained, measured, tmp_path / 'w', *words)
    assert expected in error_of(done)
    assert not calls and not (tmp_path / 'w').exists()


def test_sets_that_do_not_fit(trained, tmp_path, calls):
    """A tested object that was simulated for training would flatter."""
    make_sphere_set(tmp_path / 'm', 2, 4, 64, seed=3)
    make_sphere_set(tmp_path / 'm', 2, 4, 64, seed=0, split='test')
    assert 'expected none of the objects to test on, found 2' in error_of(
        fine_tune(trained, tmp_path / 'm', tmp_path / 'w', '--k', 1))
    path = tmp_path / 'm' / infos_name('test')
    make_sphere_set(tmp_path / 'm', 2, 4, 64, seed=4, split='test')
    infos = load_infos(path)
    del infos['data_list'][1]['lidc_id_ref']
    dump_infos(infos, path)
    assert 'field "lidc_id_ref": expected the object\'s name' in error_of(
        fine_tune(trained, tmp_path / 'm', tmp_path / 'w', '--k', 1))
    make_sphere_set(tmp_path / 'm', 2, 4, 64, seed=4, split='test')
    path = tmp_path / 'm' / infos_name('train')
    infos = load_infos(path)
    infos['metainfo']['classes'] = ('pore', )
    dump_infos(infos, path)
    assert 'expected those of the simulated set, nodule, in' in error_of(
        fine_tune(trained, tmp_path / 'm', tmp_path / 'w', '--k', 1))
    assert not calls and not (tmp_path / 'w').exists()


def full(found):
    """A test of twelve objects with a finding each."""
    at = [0., 0., 0., 4., 4., 4., 0.]
    figures = {'AP_iou0.25': 0., 'centre_error_mm': None,
               'froc': dict(sensitivity=[0.] * 7), 'distances_mm': [5.]}
    return dict(figures, scans=[
        dict(token=str(i), class_name='pore', ignored=[],
             ignored_diameters=[],
             ground_truth=[dict(bbox_3d=at, diameter=4., found=i in found)],
             predictions=[dict(bbox_3d=at, score=.5, match=0, counts=True)]
             if i in found else []) for i in range(12)])


def test_the_curve_is_paired_and_of_all_seeds(monkeypatch, tmp_path):
    tests = {None: full(range(3)), (0, 0): full(range(4)),
             (0, 1): full(range(6)), (2, 0): full(range(9)),
             (2, 1): full(range(9)), (8, 0): full(range(10)),
             (8, 1): full(range(8))}
    monkeypatch.setattr(finetune, 'folder_of', lambda args, p: tmp_path / (
        'none' if p is None else '{}_{}'.format(*p)))
    monkeypatch.setattr(finetune, 'load_results', lambda path: next(
        t for p, t in tests.items()
        if finetune.folder_of(None, p) == path.parent))
    curve = finetune.curve_of(None, list(tests))
    assert [p['objects'] for p in curve] == [None, 0, 2, 8]
    assert [p['mAP_3d'][0] for p in curve] == pytest.approx(
        [3 / 12, 5 / 12, 9 / 12, 9 / 12])
    assert curve[1]['mAP_3d_by_seed'] == pytest.approx(
        {'0': 4 / 12, '1': 6 / 12})
    assert curve[0]['more_than_none'] is curve[1]['more_than_none'] is None
    gain, low, high = curve[2]['more_than_none']
    assert gain == pytest.approx(4 / 12) and 0 < low < gain < high
    assert curve[2]['more_than_before'] == curve[2]['more_than_none']
    gap, low, high = curve[3]['more_than_before']
    assert gap == pytest.approx(0) and low < 0 < high
    assert 'no gain that 12 tested objects' in finetune.verdict(curve, 12)
    assert 'it still rises' in finetune.verdict(curve[:3], 12)
    assert finetune.verdict(curve[:2], 12) == ''
    cells = [c.strip() for c in
             finetune.table(curve).splitlines()[3].strip('|').split('|')]
    assert cells[0] == '0' and cells[2] == '0.333 to 0.500'
    finetune.draw(curve, tmp_path / 'curve.png')
    finetune.draw(curve[:1], tmp_path / 'one.png')
