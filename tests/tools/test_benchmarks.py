"""Benchmarks compare what they say, and leave what they print."""

import csv
import dataclasses
import json
import math
import os
from contextlib import nullcontext
from pathlib import Path

import ablation
import deployed
import edges
import explained
import growth
import judge
import nibabel
import numpy as np
import observer
import pytest
import rigs
import speed
import torch
from ablation import OURS, ROOT, VARIANTS, VOLUME, slug, table
from measure import in_process
from mmdet3d.registry import MODELS
from mmengine.dataset import pseudo_collate

from data_converters.chest import load_chest
from data_converters.drr import Volume
from projects.core.acquisition import load_preset
from projects.core.engine.command_line import UserError, argument_parser
from projects.core.engine.configs import config_of, load_config
from projects.core.files import dump_json, load_json
from projects.core.findings import BALL, Finding
from projects.core.rig import Rig
from tests.helpers.spheres import make_sphere_set


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_builds(name):
    config, options = VARIANTS[name]
    command = [str(ROOT / config)]
    command += ['--cfg-options', *options] if options else []
    args = argument_parser('').parse_args(command)
    cfg = config_of(args)
    assert cfg.train_dataloader.dataset.data_root == 'data/quick-v2/'
    assert cfg.train_dataloader.dataset.pipeline[2].type == (
        'XRayInsertNodules')
    assert cfg.train_dataloader.dataset.pipeline[1].type == 'XRayViewDropout'
    MODELS.build(cfg.model)


@pytest.mark.parametrize('name', [
    name for family in ('slices', 'slices-full')
    for name in ablation.FAMILIES[family]])
def test_variant_of_slices_builds(name):
    config, options = ablation.variant(name)
    command = [str(ROOT / config)]
    command += ['--cfg-options', *options] if options else []
    cfg = config_of(argument_parser('').parse_args(command))
    assert cfg.train_dataloader.dataset.type == 'CTSliceDataset'
    assert cfg.train_dataloader.dataset.min_diameter == (
        15. if name == 'large findings alone' else 5.)
    cfg.model.detector_2d.backbone.init_cfg = None
    MODELS.build(cfg.model)


@pytest.mark.parametrize('name', ablation.FAMILIES['breast'])
def test_variant_of_breasts_builds(name):
    config, options = ablation.variant(name)
    command = [str(ROOT / config)]
    command += ['--cfg-options', *options] if options else []
    cfg = config_of(argument_parser('').parse_args(command))
    assert cfg.train_dataloader.dataset.type == 'MammogramDataset'
    graph = MODELS.build(cfg.model).graph
    assert (graph is not None) == (config == ablation.GRAPH)
    if graph is None:
        return
    nodes = [step.num_nodes for part in ('train', 'val', 'test') for step in
             cfg[f'{part}_dataloader'].dataset.pipeline[0].transforms
             if step.type == 'FindNodes']
    assert len(nodes) == 3 and nodes[0] == nodes[1] == nodes[2]
    if graph.relation is not None:
        assert list(graph.relation.counts.shape) == nodes[0]
        assert graph.relation.k == graph.k
    told = (len(graph.inception), graph.relation is not None, graph.k,
            graph.gate, graph.oracle, nodes[0])
    expected = {
        'BGN': (0, True), 'IGN': (3, False), 'k = 1': (3, True, 1),
        'k = 5': (3, True, 5), 'original gate': (3, True, 3, (1., 0.)),
        'oracle': (3, True, 3, (2., .2), True)}.get(name, (3, True))
    usual = (3, True, 3, (2., .2), False)
    assert told[:5] == (*expected, *usual[len(expected):])


def test_breasts_share_their_first_half(monkeypatch, tmp_path, capsys):
    calls, full = [], dict(
        by_class=dict(mass=dict(num_gt=0)),
        images=[dict(img_path='a', patient='p', predictions=[],
                     ground_truth=[])],
        **{f'R@{rate}{suffix}': .5 for rate in ('0.5', 1, 2, 3, 4)
           for suffix in ('', '_low', '_high', '_centre')})

    def called(*command):
        calls.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'last_checkpoint').write_text(f'{folder.name}.pth')
        if 'test.py' in command[0]:
            dump_json(full, command[command.index('--out') + 1])
    monkeypatch.setattr(ablation, 'run', called)
    monkeypatch.setattr(ablation, 'seconds_per_iteration', lambda path: 1.)
    ablation.main(['Mask R-CNN, first half', 'Mask R-CNN', 'BGN', 'DETR',
                   '--family', 'breast', '--iters', '1000', '--image-size',
                   '64', '--out-dir', str(tmp_path)])
    for command in calls:
        options = [w for w in command if w.endswith('size=64')]
        cfg = config_of(argument_parser('').parse_args(
            [str(ROOT / command[1]), '--cfg-options', *options]))
        assert len(options) == 3 and all(
            step.size == 64 for part in ('train', 'val', 'test') for step in
            cfg[f'{part}_dataloader'].dataset.pipeline[0].transforms
            if step.type == 'ResizeMammogram')
    trained = [set(c) for c in calls if 'train.py' in c[0]]
    assert ['train_cfg.max_iters=500' in c for c in trained] == [
        True, True, True, False]
    assert ['load_from=Mask-R-CNN_first-half.pth' in c for c in trained] == [
        False, True, True, False]
    rows = capsys.readouterr().out.splitlines()[-4:]
    # Five rates with their intervals, and the other rule of a hit.
    assert rows[1].count('0.500') == 16 and '+0.000' in rows[2]


def test_what_was_trained_elsewhere_has_no_pace(tmp_path):
    assert math.isnan(ablation.seconds_per_iteration(tmp_path))


def test_a_family_is_trained_one_after_the_other(monkeypatch, tmp_path):
    """Two stages together take as long as one; epochs keep their length."""
    calls = []

    def called(*command):
        calls.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'last_checkpoint').write_text(f'{folder.name}.pth')
        if '30e' in command[1] and 'train.py' in command[0]:
            for epoch in (3, 30):
                (folder / f'epoch_{epoch}.pth').touch()
            (folder / 'best_CPM_epoch_3.pth').touch()
        if 'test.py' in command[0]:
            dump_json(load_json(ROOT / 'tests/core/results.json'),
                      command[command.index('--out') + 1])
    monkeypatch.setattr(ablation, 'run', called)
    monkeypatch.setattr(ablation, 'seconds_per_iteration', lambda path: 1.)
    ablation.main(['--family', 'slices', '--iters', '1000', '--out-dir',
                   str(tmp_path)])
    trained = [set(c) for c in calls if 'train.py' in c[0]]
    tested = [c[2] for c in calls if 'test.py' in c[0]]
    assert tested[0] == 'Faster-R-CNN_small.pth'  # the last
    assert len(trained) == 5
    assert 'train_cfg.max_iters=1000' in trained[0]
    assert {'train_cfg.max_iters=500', 'train_dataloader.dataset.min_diameter'
            '=15.'} <= trained[1]
    assert {'train_cfg.max_iters=500',
            'load_from=large-findings-alone.pth'} <= trained[2]
    # The same twice, as what both warm-ups and cosines do alone.
    both = {'train_cfg.max_iters=500', 'load_from=all_first-half.pth'}
    assert both & trained[3] == {'train_cfg.max_iters=500'}
    assert both <= trained[4]
    for half in trained[3:]:
        assert not any('min_diameter' in word for word in half)
    calls.clear()
    ablation.main(['--family', 'slices-full', '--out-dir', str(tmp_path)])
    trained = [c for c in calls if 'train.py' in c[0]]
    assert len({c[1] for c in trained}) == 6
    assert not any('max_iters' in word for c in trained for word in c)
    tested = [Path(c[2]) for c in calls if 'test.py' in c[0]]
    assert {p.name for p in tested} == {'best_CPM_epoch_3.pth'}
    assert len({p.parent for p in tested}) == 6
    with pytest.raises(SystemExit, match='expected "large findings alone"'):
        ablation.main(['large findings first, then all', '--family', 'slices',
                       '--out-dir', str(tmp_path / 'other')])


def test_table_holds_what_was_finished(tmp_path):
    assert len({slug(name) for name in VARIANTS}) == len(VARIANTS)
    folder = tmp_path / slug('volume, mean only')
    (folder / 'a' / 'vis_data').mkdir(parents=True)
    (folder / 'a' / 'vis_data' / 'scalars.json').write_text(
        '\n'.join(json.dumps(dict(lr=.1, time=t)) for t in (9., .5, .7)))
    full = load_json(ROOT / 'tests/core/results.json')
    part = dict(full['by_size']['below_6mm'], mAP_3d=.25)
    full.update(
        mAP_3d=.5, mAP_3d_low=.4, mAP_3d_high=.6, AP_5mm=.3, CPM=.2,
        **{'AP_iou0.25': .35, 'AP_iou0.5': .15}, centre_error_mm=None,
        by_size=dict(small=part, rest=part))
    dump_json(full, folder / 'results_val.json')
    rows = table(tmp_path, 'val', 'volume').splitlines()
    assert len(rows) == 3
    cells = [c.strip() for c in rows[2].strip('|').split('|')]
    assert cells == ['volume, mean only', '0.500 [0.400, 0.600]', '-', '0.350',
                     '0.150', '0.300', '0.250', '0.250', '0.200', '-', '0.70']


def test_variant_is_trained_and_tested_once(tmp_path, monkeypatch, capsys):
    for split, seed in (('train', 0), ('val', 1)):
        make_sphere_set(tmp_path / 'data', 3, 4, 64, seed=seed, split=split)
    monkeypatch.setattr(ablation, 'PACE', 5)
    monkeypatch.setitem(VARIANTS, 'volume', (VOLUME, [
        'model.volume_head.voxel_size=24.', 'param_scheduler.0.end=5',
        'param_scheduler.1.begin=5']))
    monkeypatch.setattr('sys.argv', [
        'ablation.py', 'volume', '--minutes', '1e-4', '--data-root',
        str(tmp_path / 'data'), '--out-dir', str(tmp_path / 'out')])
    ablation.main()
    rows = capsys.readouterr().out.splitlines()[-3:]
    # What tells the pace is no part of the training.
    for folder, iters in (('out/pace/volume', 5), ('out/volume', 6)):
        left = {p.name for p in (tmp_path / folder).glob('iter_*.pth')}
        assert f'iter_{iters}.pth' in left
        assert all(name.startswith(f'iter_{iters}') for name in left)
    results = json.loads(
        (tmp_path / 'out/volume/results_val.json').read_text())
    assert results['num_scans'] == 3
    assert rows[-1].startswith(f'| volume  | {results["mAP_3d"]:.3f} ')

    def called(*command, **kwargs):
        raise AssertionError(f'{command} ran again')

    monkeypatch.setattr(ablation, 'run', called)
    ablation.main()
    assert capsys.readouterr().out.splitlines() == rows


def rows_of(path, *command):
    speed.main([*map(str, command), '--threads', '1', '--repeats', '1',
                '--out', str(path)])
    return json.loads(path.read_text())['rows']


def test_rendering_takes_no_second_volume(tmp_path, monkeypatch):
    """Upright or tilted: two views of 1 MB beside a volume of 36 MB."""
    hu = Volume.centred(np.zeros((512, 256, 72), np.float32),
                        np.diag([-.7, -.7, 2.5]))
    monkeypatch.setattr(speed, 'phantom_volume', lambda: hu)
    # In this process, which has imported everything.
    monkeypatch.setattr(speed, 'in_process',
                        lambda work, *args, threads: work(*args))
    rows = rows_of(tmp_path / 'a.json', 'render', '--only', 'joseph',
                   '--image-size', 512, '--views', 2)
    assert [r['renderer'] for r in rows] == ['joseph', 'joseph, tilted']
    for row in rows:
        assert row['cpu_seconds'] > 0 and row['peak_mb'] > 100
        assert row['beside_mb'] < 12


def test_detectors_of_slices_side_by_side(tmp_path, capsys):
    rows = rows_of(tmp_path / 'a.json', 'slices', ROOT / ablation.SMALL,
                   '--image-size', 64, '--batch', 2, '--epoch', 7200)
    assert [row['config'].endswith('--amp') for row in rows] == [False, True]
    for row in rows:
        assert row['seconds'] > 0 and row['peak_mb'] > 100
        assert row['epoch_hours'] == pytest.approx(row['seconds'])
        assert 1 < row['million_parameters'] < 5
    assert '| config' in capsys.readouterr().out


def test_correlation_is_compared_with_a_loop(tmp_path, capsys):
    # That both agree is asserted within.
    rows = rows_of(tmp_path / 'a.json', 'correlate', '--rois', 1,
                   '--loop-rois', 2, '--image-size', 64)
    assert [r['what'] for r in rows[:2]] == ['loop over pairs', 'correlation']
    assert [(r['views'], r['rois']) for r in rows[2:]] == [
        (10, 10), (10, 10), (20, 20), (20, 20), (40, 40), (40, 40)]
    assert '| decoder ' in capsys.readouterr().out


def test_a_power_law_is_found():
    x = [1, 2, 4, 8]
    law = growth.fit_power(x, [3 * value**1.5 for value in x])
    assert law.exponent == pytest.approx(1.5)
    assert law.coefficient == pytest.approx(3)
    assert law.scatter == pytest.approx(0, abs=1e-9)
    assert law.at(16) == pytest.approx(192)
    for wrong in ([1, 1, 1, 1], [0, 1, 2, 3], [1, 2]):
        with pytest.raises(ValueError, match='two or more different x'):
            growth.fit_power(wrong, [1, 2, 3, 4])


def test_memory_ends_where_a_constant_and_shares_lead():
    # 200 MB and 30 a view: a power law of the last three says 304.
    views = [20, 40, 80]
    megabytes = [200 + 30 * n for n in views]
    assert growth.end_of(views, megabytes, 8000) == pytest.approx(260)
    assert growth.end_of(views, [5, 5, 5], 8000) == math.inf
    for wrong in ([20, 20, 20], [20, 40]):
        with pytest.raises(ValueError, match='two or more different x'):
            growth.end_of(wrong, megabytes, 8000)
    points = [dict(factor='side', x=side, start_mb=500, **{
        f'{step}_{unit}': 200 + side**2 / 1000
        for step in growth.STEPS for unit in ('s', 'mb')})
        for side in (256, 512, 1024)]
    row = next(r for r in growth.fits_of(points) if r['what'] == 'memory')
    assert row['ends'][8] == pytest.approx(
        (1000 * (8 * 1024 - 700))**.5)


def test_growth_with_the_views(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, 'BASE', dict(growth.BASE, side=128,
                                             voxel_mm=24.))
    monkeypatch.setattr(growth, 'FACTORS', dict(
        views=[dict(views=2), dict(views=20)]))
    growth.main(['--out-dir', str(tmp_path), '--repeats', '1'])
    told = load_json(tmp_path / 'growth.json')
    few, many = told['points']
    assert (few['x'], many['x']) == (2, 20)
    for step in growth.STEPS:
        assert 0 < few[f'{step}_s'] < many[f'{step}_s']
        assert few[f'{step}_mb'] > 0
    assert len(told['fits']) == 4  # time and memory of both steps
    assert (tmp_path / 'growth.png').stat().st_size > 1000
    assert '| views ' in capsys.readouterr().out


def test_step_is_compared_with_a_plain_one(tmp_path):
    rows = rows_of(
        tmp_path / 'a.json', 'train', ROOT / OURS, '--image-size', 64,
        '--views', 2, '--warm-up', 0)
    assert [r['model'] for r in rows] == ['plain', 'ours', 'ours, --amp']
    for row in rows:
        assert row['times_faster'] == pytest.approx(
            rows[0]['seconds'] / row['seconds'])
    assert all(r['peak_mb'] > 100 for r in rows)


def test_a_step_is_told_by_its_parts(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(speed, 'compiled', compiled.append)  # takes minutes
    path = tmp_path / 'a.json'
    rows = rows_of(path, 'parts', ROOT / VOLUME, '--image-size', 64,
                   '--views', 2, 3)
    assert len(compiled) == 1
    whole, half, fast, *parts = rows
    assert [r['what'] for r in rows[:3]] == [
        'a step', 'half of the cells', 'torch.compile']
    assert whole['times_faster'] == 1 < half['times_faster']
    assert whole['losses'] == pytest.approx(fast['losses'], rel=1e-5)
    assert whole['losses'][0] != pytest.approx(half['losses'][0], rel=1e-3)
    assert {'bands', 'convolutions', 'norms', 'all else'} <= {
        r['what'] for r in parts}
    assert all(0 < r['share'] < 1 for r in parts)
    assert json.loads(path.read_text())['views'] == [2, 3]


def test_plain_steps_have_the_same_losses():
    # What is faster is not something else. Without 2D boxes, since rounding
    # changes which are proposed.
    found = []
    for plain in (True, False):
        _, model = speed.model_of(str(ROOT / OURS), plain)
        model.lifting_head.roi_queries = None
        model.init_weights()
        torch.manual_seed(1)
        with speed.without_savings(model) if plain else nullcontext():
            batch = model.data_preprocessor(
                pseudo_collate([speed.made_up_scan(3, 64)]), True)
            total, losses = model.parse_losses(model(**batch, mode='loss'))
            total.backward()
        found.append((losses, {n: p.grad for n, p in
                               model.named_parameters()}))
    assert len(found[0][0]) > 5
    for name in [n for n in found[0][0] if 'loss' in n]:
        assert float(found[1][0][name].detach()) == pytest.approx(
            float(found[0][0][name].detach()), rel=1e-3, abs=1e-6), name
    for name in ('detector_2d.backbone.stem.0.conv.weight',
                 'volume_head.reduce.weight'):
        assert torch.cosine_similarity(
            found[0][1][name].flatten(), found[1][1][name].flatten(),
            0) > .999, name


def test_loading_is_compared_with_reading(tmp_path):
    make_sphere_set(tmp_path / 'data', 3, 3, 64)
    rows = rows_of(tmp_path / 'a.json', 'load', ROOT / OURS, '--data-root',
                   tmp_path / 'data', '--workers', 1)
    steps = load_config(ROOT / OURS).train_dataloader.dataset.pipeline
    assert [row['what'].rsplit(': ')[-1] for row in rows[1:-2]] == [
        step['type'] for step in steps]
    assert rows[0]['to_the_first'] == 1 and all(
        row['seconds'] > 0 for row in rows)


def test_a_process_that_dies_is_told():
    with pytest.raises(RuntimeError, match='_exit: .*found exit status 3'):
        in_process(os._exit, 3)


@pytest.mark.parametrize('table', [
    'scan,x,y,z,diameter\nchest,64,80,44,24\n',
    # As benchmarks/chest_lesions.csv has them.
    'scan,x,y,z,dx,dy,dz\nchest,64,80,44,20,22,30\n'])
def test_balls_with_hard_and_soft_edges(tmp_path, table):
    """In lung, opposite the lesion, of one size: the edge alone differs."""
    values = np.full((60, 40, 24), -1000, np.int16)
    values[5:55, 5:35] = 0
    for lung in (slice(8, 26), slice(34, 52)):
        values[lung, 8:32, 2:22] = -850
    affine = np.diag([4., 4., 4., 1.])
    nibabel.save(nibabel.Nifti1Image(values, affine),
                 tmp_path / 'chest.nii.gz')
    (tmp_path / 'lesions.csv').write_text(table)
    edges.main(['--chests', str(tmp_path), '--lesions',
                str(tmp_path / 'lesions.csv'), '--out-dir',
                str(tmp_path / 'out')])
    with (tmp_path / 'out/boxes.csv').open() as stream:
        rows = {row['scan']: row for row in csv.DictReader(stream)}
    assert set(rows) == {f'chest_{size}_{edge}' for size in ('same', '15mm')
                         for edge in ('hard', 'soft')}
    for name, row in rows.items():
        painted = np.asarray(nibabel.load(
            tmp_path / 'out/ct' / f'{name}.nii.gz').dataobj)
        places = np.stack(np.indices(values.shape), -1) * 4.
        away = np.linalg.norm(
            places - [float(row[k]) for k in 'xyz'], axis=-1)
        radius = float(row['diameter']) / 2
        assert radius == (12 if 'same' in name else 7.5)
        assert float(row['x']) > 120  # the other lung
        assert (np.abs(painted - 30) <= 2)[away <= radius - 4].all()
        assert (np.abs(painted - values) <= 2)[away > radius + 4].all()
        between = (painted != values) & (painted != 30)
        assert between.any() == name.endswith('soft')


def test_the_judge_sees_what_is_there_and_nothing_else():
    """On slices of noise: 0.5 or so where both kinds are alike, 1 where one
    has an edge."""
    rng = np.random.default_rng(0)
    images = rng.normal(-800, 50, (240, 40, 40))
    made = np.arange(240) % 2 == 1
    groups = np.repeat(np.arange(120) / 120, 2)
    assert .3 < judge.auc(images, made, groups, 0) < .7
    images[made, 15:25, 15:25] += 400
    assert judge.auc(images, made, groups, 0) > .98


def test_the_judge_gets_real_and_painted_structures_in_turn():
    chest = load_chest()
    images, made, which = judge.slices_of(chest, 6, False,
                                          np.random.default_rng(0))
    assert len(images) >= 8 and images.shape[1:] == (40, 40)
    for number in np.unique(which):
        kinds = made[which == number]
        assert len(set(kinds)) == len(kinds)
    # Both are in the lungs and are seen.
    middle = images[:, 16:24, 16:24].max((1, 2))
    assert (np.median(images, (1, 2)) < -600).mean() > .8
    assert (middle > -700).all()
    means = [middle[made].mean(), middle[~made].mean()]
    assert abs(means[0] - means[1]) < 250


def test_observer_knows_what_a_finding_adds():
    """Of ideal views its line integrals; of others less, since scatter is
    added alike and blur spreads, but all of it in sum where nothing is
    scattered."""
    view = Rig.circle(2, image_size=256).views[0]
    ball = Finding(np.zeros(3), np.eye(3) / 10, BALL, .02, 0)
    (x1, y1, x2, y2), path = ball.project(view.ct2img, (256, 256),
                                          observer.SPREAD)
    image = np.full((256, 256), 3., np.float32)
    image[y1:y2, x1:x2] += .02 * path
    signals = []
    for name in ('ideal', 'chest-low'):
        quiet = dataclasses.replace(
            load_preset(name), noise=False, electronic=0., gain=0., dead=0.,
            scatter_error=0., lag=0.)
        signals.append(observer.signal_of(ball, image, view.ct2img, quiet,
                                          1.5625))
    ideal, low = signals
    np.testing.assert_allclose(ideal[y1:y2, x1:x2], .02 * path, atol=1e-5)
    assert ideal.max() == pytest.approx(.4, rel=.1)  # 20 mm of 0.02 / mm
    assert .2 * ideal.max() < low.max() < .9 * ideal.max()


def test_observer_takes_planes_for_nothing():
    v, u = np.mgrid[:40, :40]
    np.testing.assert_allclose(
        observer.less_its_plane(2. + .1 * u - .3 * v), 0, atol=1e-9)
    image = np.arange(1600.).reshape(40, 40)
    cut = observer.cut_out(image, np.array([20., 10.]), 8)
    np.testing.assert_array_equal(cut, image[6:14, 16:24])
    assert observer.cut_out(image, np.array([2., 10.]), 8) is None


def hits(gains, kind='eigen-cam', views=(3, )):
    """Boxes of scans with these gains, one finding each."""
    return [dict(token=token, view=view, finding=0, methods={kind: dict(
        gain=gain, deletion=gain / 10, insertion=.5)})
        for token, gain in gains.items() for view in views]


def test_detectors_side_by_side_by_their_maps(tmp_path, capsys):
    def told(gains, **changes):
        return dict(dict(stage='2d', split='test', seed=0, ann_file='a.pkl',
                         hits=9, findings=hits(gains)), **changes)

    def compared(**files):
        paths = []
        for name, content in files.items():
            paths.append(tmp_path / name / 'explain.json')
            paths[-1].parent.mkdir(exist_ok=True)
            dump_json(content, paths[-1])
        explained.main([str(path) for path in paths])
        return capsys.readouterr().out

    # Scan c is one's alone; another box of a finding counts with the first.
    one = told(dict(a=2., b=4., c=99.))
    two = told(dict(b=5., a=2.))
    two['findings'] += hits(dict(a=4.)) + hits(dict(a=50.), views=[7])
    none = told({})
    out = compared(one=one, two=two, none=none)
    assert 'none/explain.json: 0 boxes, of 9 that hit' in out
    assert '2 hits that all have, of 2 scans' in out
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in
             out.splitlines() if line.count('|') > 2]
    assert cells[1:] == [
        ['one', 'eigen-cam', '3', '3.00 [2.00, 4.00]', '0.30 [0.20, 0.40]',
         '0.50 [0.50, 0.50]'],
        ['two', 'eigen-cam', '4', '4.00 [3.00, 5.00]', '0.40 [0.30, 0.50]',
         '0.50 [0.50, 0.50]'],
        # In each scan it is one more.
        ['two less one', 'eigen-cam', '', '+1.00 [+1.00, +1.00]',
         '+0.10 [+0.10, +0.10]', '+0.00 [+0.00, +0.00]']]
    for wrong, message in (
            (dict(two, seed=1), 'field "seed": expected 0 as in'),
            (dict(two, split='val'), 'field "split": expected \'test\' as'),
            (dict(two, ann_file='b.pkl'), 'field "ann_file": expected '
             "'a.pkl' as in"),
            (dict(two, findings=[{}]), 'the figures of tools/'),
            (told(dict(z=1.)), 'expected one that the detectors hit')):
        with pytest.raises(SystemExit, match=message):
            compared(one=one, two=wrong)
    del one['ann_file']
    with pytest.raises(SystemExit, match='expected what tools/explain.py'):
        compared(one=one, two=one)


def test_rigs_are_of_any_scale(tmp_path):
    sizes = []
    for options in ([], ['--pixel-mm', '1']):
        rigs.main(['--out', str(tmp_path), *options])
        sizes.append([Rig.load(tmp_path / f'{name}.json').views[0].pixel_size
                      for name in ('arc', 'half', 'sphere', 'two')])
    assert sizes[0] == pytest.approx(np.multiply(sizes[1], rigs.PITCH))
    assert sizes[1][3] == pytest.approx(.5)


def test_the_whole_command_is_timed(tmp_path, monkeypatch):
    python, told = tmp_path / 'python', tmp_path / 'told'
    python.write_text(f'#!/bin/sh\necho "$# $PYTHONPATH $*" >> {told}\n'
                      'sleep $((($# - 10) / 3))\n')
    python.chmod(0o755)
    monkeypatch.setenv('PYTHONPATH', 'this checkout')
    folders = [tmp_path / name for name in 'abc']
    found = deployed.command_times(python, 'model', folders, Path('r.json'),
                                   1, repeats=1)
    # 11 words for one scan, 13 for three, which then take a second.
    for option in ('', '--trust-rig'):
        first, further = found[option]['first'], found[option]['further']
        assert (first > 0).all() and .3 < further[0] < 2
    rows = told.read_text().splitlines()
    assert len(rows) == 8 and not any('this checkout' in row for row in rows)
    assert rows[0].split() == [
        '11', '-m', 'mv2d_xray_runtime.run', str(Path('model').absolute()),
        '--images', str(folders[0]), '--rig', str(Path('r.json').absolute()),
        '--out-dir', 'found', '--threads', '1']
    assert sum(row.endswith(' --trust-rig') for row in rows) == 4
    python.write_text('#!/bin/sh\necho no such thing >&2; exit 1\n')
    with pytest.raises(UserError, match='--runtime: expected .* no such'):
        deployed.command_times(python, 'model', folders, Path('r.json'), 1)


def test_deployed_boxes_are_compared_one_by_one():
    boxes, scores = np.zeros((3, 7)), np.float32([.2, .9, .5])
    labels = np.array([0, 1, 0])
    moved = boxes.copy()
    moved[1, 2] = .25
    order = [1, 2, 0]  # by score
    apart = deployed.differences(
        (boxes, scores, labels),
        (moved[order], scores[order] - np.float32(.125), labels[order]))
    assert apart == (.25, .125)
    assert deployed.differences((boxes, scores, labels), (
        boxes, scores, labels[::-1] + 1)) is None
    assert deployed.differences((boxes, scores, labels), (
        boxes[:2], scores[:2], labels[:2])) is None
    none = np.zeros((0, 7)), np.zeros(0), np.zeros(0, int)
    assert deployed.differences(none, none) == (0, 0)
