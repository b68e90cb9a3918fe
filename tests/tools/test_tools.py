"""The commands, as a user types them."""

import dataclasses
import hashlib
import importlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from projects.core.acquisition import load_preset
from projects.core.engine.checkpoints import (
    allow_checkpoint_types,
    check_checkpoint,
    class_names,
    load_checkpoint,
    warn_of_seen_patients,
)
from projects.core.engine.command_line import UserError, one_sentence
from projects.core.engine.configs import load_config
from projects.core.engine.hooks import (
    ClassCheckHook,
    PatientsSeenHook,
    RangeCheckHook,
)
from projects.core.engine.precision import (
    cpu_has_bfloat16,
    use_half_precision,
)
from projects.core.files import dump_json
from projects.core.inference import read_views
from projects.core.infos import build_coco, dump_infos, load_infos
from projects.core.projections import Reading
from projects.core.rig import Rig
from tests.helpers.commands import (
    BLADE,
    CONFIG,
    ROOT,
    SMALL,
    error_of,
    losses,
    process,
    tool,
    train,
)
from tests.helpers.models import FEATURES
from tests.helpers.spheres import make_sphere_set


def test_training_shows_its_progress(trained):
    curve = losses(trained / 'work')
    assert sorted(curve) == [1, 2, 3, 4]
    assert all(np.isfinite(v) for v in curve.values())


def test_training_is_shown_in_tensorboard(trained, tmp_path):
    done = train(tmp_path, trained / 'data', 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'eta: ' in done.stdout + done.stderr
    events, = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    shown = EventAccumulator(str(events.parent))
    shown.Reload()
    curves = set(shown.Tags()['scalars'])
    assert {'lr', 'loss', 'loss_heatmap', '2d.loss_center_heatmap', 'mAP_3d',
            '2d/AP'} <= curves
    assert [e.step for e in shown.Scalars('loss')] == [1, 2]
    scans = load_infos(trained / 'data' / 'lidc_infos_val.pkl')['data_list']
    assert set(shown.Tags()['images']) == {
        f'val_{s["token"]}' for s in scans}
    image, = shown.Images(f'val_{scans[0]["token"]}')
    assert image.step == 2 and image.width > 500
    assert len(list(events.parent.glob('vis_image/val_*.png'))) == len(scans)


def test_checkpoint_loads_as_data_only(trained):
    allow_checkpoint_types()
    checkpoint = torch.load(trained / 'work' / 'iter_4.pth',
                            weights_only=True)
    assert checkpoint['meta']['iter'] == 4
    known = checkpoint['meta']['known_views']
    assert set(known) == {'line_integrals', 'noise', 'changing_noise',
                          'exposure', 'samples'}
    low, high = known['line_integrals']['99']
    assert 0 < low <= high < 16


def test_test_writes_figures_and_pictures(trained, tmp_path):
    told = []
    for run in (tool, process):  # which do the same
        done = run(
            'test.py', CONFIG, trained / 'work' / 'iter_4.pth', '--work-dir',
            tmp_path, '--data-root', trained / 'data', '--out',
            tmp_path / 'results.json', '--show-dir', tmp_path / 'pictures',
            '--split', 'val', options=SMALL)
        assert done.returncode == 0, done.stderr[-2000:]
        assert '3D mAP' in done.stdout + done.stderr
        assert 'at the isocentre' not in done.stdout + done.stderr
        told.append(json.loads((tmp_path / 'results.json').read_text()))
        (tmp_path / 'results.json').unlink()
    results, expected = told
    assert results == expected
    infos = load_infos(trained / 'data' / 'lidc_infos_val.pkl')
    counting = [i for s in infos['data_list'] for i in s['instances']
                if not i['ignore']]
    assert results['num_scans'] == 3
    assert results['num_gt'] == len(counting)
    assert results['source']['sha256'] == hashlib.sha256(
        (trained / 'work' / 'iter_4.pth').read_bytes()).hexdigest()
    for key in ('mAP_3d', 'AP_5mm', 'AP_iou0.5', 'CPM', 'froc',
                'centre_error_mm', 'size_error_mm'):
        assert key in results
    assert {'AP', 'recall_at_10', 'recall_per_view'} <= set(results['2d'])
    pictures = list((tmp_path / 'pictures').glob('*.png'))
    assert len(pictures) == 3 and min(p.stat().st_size
                                      for p in pictures) > 10000


def test_infer_on_one_object_from_any_folder(trained, tmp_path):
    infos = load_infos(trained / 'data' / 'lidc_infos_val.pkl')
    token = infos['data_list'][0]['token']
    (tmp_path / 'rig.json').write_bytes(
        (trained / 'data' / 'rig.json').read_bytes())
    done = process(
        'infer.py', ROOT / CONFIG, trained / 'work' / 'iter_4.pth',
        '--images', trained / 'data' / 'images' / token, '--rig',
        'rig.json', '--out', 'boxes.json', '--show', 'views.png',
        '--score-thr', '0', '--device', 'cpu', cwd=tmp_path)
    # The grid of the config is finer than the trained one's; shapes agree.
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'at the isocentre' not in done.stdout + done.stderr
    result = json.loads((tmp_path / 'boxes.json').read_text())
    assert result['units'] == 'mm' and 'axis_order' in result
    assert all(len(b['bbox_3d']) == 7 and 0 <= b['score'] <= 1
               for b in result['boxes'])
    assert (tmp_path / 'views.png').stat().st_size > 10000


@pytest.mark.parametrize('name', ['test.py', 'infer.py'])
def test_views_coarser_than_the_training_had_are_told(
        trained, tmp_path, name):
    checkpoint = load_checkpoint(str(trained / 'work' / 'iter_4.pth'))
    meta = checkpoint['meta']['dataset_meta']
    rig = Rig.from_dict(meta['rig'])
    finer = rig.resized(128, 128)
    meta['rig'] = finer.to_dict()
    torch.save(checkpoint, tmp_path / 'finer.pth')
    images = next(trained.glob('data/images/*'))
    if name == 'test.py':
        done = tool(name, CONFIG, tmp_path / 'finer.pth', '--work-dir',
                    tmp_path, '--data-root', trained / 'data', options=SMALL)
    else:
        done = tool(name, CONFIG, tmp_path / 'finer.pth', '--images', images,
                    '--rig', trained / 'data' / 'rig.json', '--out',
                    tmp_path / 'boxes.json', '--device', 'cpu')
    assert done.returncode == 0, done.stderr[-2000:]
    pixels = [r.views[0].pixel_size for r in (finer, rig)]
    assert pixels[1] == pytest.approx(2 * pixels[0])
    assert ('expected views as it was trained on, with pixels of {:.2f} mm at '
            'the isocentre, found {:.2f} mm'.format(*pixels)
            ) in done.stdout + done.stderr


def test_diagnose_says_where_each_finding_is_lost(trained, tmp_path):
    infos = load_infos(trained / 'data' / 'lidc_infos_val.pkl')
    token = infos['data_list'][0]['token']
    done = process(
        'diagnose.py', CONFIG, trained / 'work' / 'iter_4.pth',
        '--data-root', trained / 'data', '--out-dir', tmp_path, '--scan',
        token, '--view', 'CAM_02', options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '| findings | median diameter (mm)' in done.stdout
    told = json.loads((tmp_path / 'diagnose.json').read_text())
    counting = [i for s in infos['data_list'] for i in s['instances']
                if not i['ignore']]
    assert len(told['findings']) == len(counting) > 0
    for finding in told['findings']:
        # A network of four iterations finds nothing; all stages look.
        assert all(part in done.stdout
                   for part in finding['verdict'].split('; '))
        assert finding['peaks_2d'] >= 0 and finding['peaks_3d'] >= 0
        assert 0 <= finding['detected'] <= finding['views'] == 4
    assert (tmp_path / 'diagnose.png').stat().st_size > 10000
    scan = json.loads((tmp_path / token / 'scan.json').read_text())
    assert scan['findings'] == [f for f in told['findings']
                                if f['token'] == token]
    assert {p.name for p in (tmp_path / token).iterdir()} == {
        'scan.json', 'views.png', 'features_CAM_02.png', 'volume.png',
        'queries.png', 'attention.png',
        *(f'finding_{f["number"]}.png' for f in scan['findings'])}


def test_diagnose_of_unknown_scans_and_views(trained, tmp_path):
    command = ('diagnose.py', CONFIG, trained / 'work' / 'iter_4.pth',
               '--data-root', trained / 'data', '--out-dir', tmp_path)
    infos = load_infos(trained / 'data' / 'lidc_infos_val.pkl')
    token = infos['data_list'][0]['token']
    done = tool(*command, '--scan', 'nobody', options=SMALL)
    assert 'expected one of the 3 scans' in error_of(done)
    assert f'as {token}, found nobody' in error_of(done)
    done = tool(*command, '--scan', token, '--view', 'CAM_04', options=SMALL)
    assert ('CAM_00, CAM_01, CAM_02, CAM_03, found CAM_04'
            in error_of(done))
    assert '--view: expected --scan' in error_of(
        tool(*command, '--view', 'CAM_00'))


def test_explain_says_that_nothing_was_found(trained, tmp_path):
    for stage in ('3d', '2d'):
        done = tool(
            'explain.py', CONFIG, trained / 'work' / 'iter_4.pth', '--stage',
            stage, '--data-root', trained / 'data', '--out-dir', tmp_path,
            options=SMALL)
        assert done.returncode == 0, done.stderr[-2000:]
        assert 'nothing to explain' in done.stdout
        told = json.loads((tmp_path / 'explain.json').read_text())
        assert told['findings'] == [] and told['stage'] == stage
        assert told['summary']['score-cam']['gain']['mean'] is None
        # Scans are drawn whatever is found in them.
        assert told['scans'] == told['scans_without_hit'] != []
        for token in told['scans']:
            assert token in done.stdout
        assert '0 boxes, score' not in done.stdout  # no table of none
        assert told['ann_file'].endswith('data/lidc_infos_val.pkl')
        checkpoint = Path(told['checkpoint'])
        assert told['sha256'] == hashlib.sha256(
            checkpoint.read_bytes()).hexdigest()
        assert told['config'] == CONFIG


def test_explain_judges_what_was_found(trained, tmp_path):
    """In a set where the findings are what the network finds."""
    shutil.copytree(trained / 'data', tmp_path / 'data')
    done = tool(
        'test.py', CONFIG, trained / 'work' / 'iter_4.pth', '--work-dir',
        tmp_path, '--data-root', tmp_path / 'data', '--out',
        tmp_path / 'results.json', '--split', 'val', options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / 'results.json').read_text())['scans']
    path = tmp_path / 'data' / 'lidc_infos_val.pkl'
    infos = load_infos(path)
    infos['data_list'][0]['instances'][0]['bbox_3d'] = found[0][
        'predictions'][0]['bbox_3d']
    dump_infos(infos, path)
    dump_json(build_coco(infos),
              tmp_path / 'data' / 'lidc_infos_val_2d_anno.coco.json')
    done = process(
        'explain.py', CONFIG, trained / 'work' / 'iter_4.pth', '--data-root',
        tmp_path / 'data', '--out-dir', tmp_path / 'out', '--method',
        'score-cam', 'random', '--false-positives', 1000, options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / 'out' / 'explain.json').read_text())
    assert len(told['findings']) >= 1
    for finding in told['findings']:
        assert set(finding['methods']) == {'score-cam', 'random'}
        picture = tmp_path / 'out' / finding['picture']
        assert picture.stat().st_size > 10000
    assert 'score-cam less random' in done.stdout
    random = told['summary']['random']
    assert random['gain']['low'] <= random['gain']['mean'] <= random[
        'gain']['high']


def test_explain_needs_2d_heads_for_the_2d_stage(trained, tmp_path):
    name = 'mv2d-xray_small_volume_5000i_quick-v2'
    done = tool(
        'explain.py', f'configs/mv2d_xray/{name}.py',
        f'checkpoints/{name}.pth', '--stage', '2d', '--data-root',
        trained / 'data', '--out-dir', tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith(
        'expected 2D heads that run, found none')


@pytest.mark.parametrize('split, run', [('train', process), ('val', tool)])
def test_browse_dataset_draws_what_the_network_sees(trained, tmp_path, split,
                                                    run):
    """A row per channel, the boxes of the pipeline's own sample in it."""
    import cv2
    done = run('browse_dataset.py', CONFIG, '--data-root', trained / 'data',
               '--split', split, '--count', '2', '--out-dir', tmp_path,
               options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    pictures = [cv2.imread(str(p)) for p in tmp_path.glob('*.png')]
    assert len(pictures) == 2
    drawn = np.zeros(2, int)
    for picture in pictures:
        # Three channels of four views.
        assert picture.shape[0] > 700 and picture.shape[1] > 900
        blue, green, red = picture[:-60].astype(int).transpose(2, 0, 1)
        drawn += [((green > red + 80) & (green > blue + 80)).sum(),
                  ((red > blue + 80) & (green > blue + 80)).sum()]
    assert (drawn > 200).all()


def test_robustness_tests_every_condition(trained, tmp_path):
    # A second set stands for the same scans seen by another rig, what an
    # earlier test left for another model.
    (tmp_path / 'robustness.json').write_text(json.dumps({'views': {
        'as it is': dict(mAP_3d=.5, mAP_3d_low=.4, mAP_3d_high=.6)}}))
    done = process(
        'benchmarks/robustness.py', CONFIG,
        trained / 'work' / 'iter_4.pth', '--data-root', trained / 'data',
        '--split', 'val', '--out-dir', tmp_path, '--other-set',
        f'other={trained / "data"}', '--beside', f'before={tmp_path}',
        options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    panels = json.loads((tmp_path / 'robustness.json').read_text())
    assert panels['sets']['other']['num_scans'] == 3
    assert panels['sets']['other'] == panels['sets']['as it is']
    for name in ('views: 3 views', 'pose, turn: 1°', 'AP radius',
                 'sets: other', f' of {panels["sets"]["other"]["num_gt"]} '):
        assert name in done.stdout
    assert (tmp_path / 'robustness.png').stat().st_size > 10000


def test_robustness_tests_the_conditions_that_are_named(trained, tmp_path):
    command = ('benchmarks/robustness.py', CONFIG,
               trained / 'work' / 'iter_4.pth', '--data-root',
               trained / 'data', '--split', 'val', '--out-dir', tmp_path,
               '--only')
    done = process(*command, '6 views', '1 mm', options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    panels = json.loads((tmp_path / 'robustness.json').read_text())
    assert {title: list(results) for title, results in panels.items()} == {
        'views': ['as it is', '6 views'], 'pose, shift': ['as it is', '1 mm']}
    done = process(*command, '7 views', options=SMALL)
    assert done.returncode and 'invalid choice' in done.stderr


def test_tta_and_its_absence(trained, tmp_path):
    done = tool(
        'test.py', CONFIG, trained / 'work' / 'iter_4.pth', '--work-dir',
        tmp_path, '--data-root', trained / 'data', '--tta', '--out',
        tmp_path / 'r.json', '--show-dir', tmp_path / 'pictures',
        options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob('pictures/*.png'))) == 3
    assert json.loads((tmp_path / 'r.json').read_text())['num_scans'] == 3
    done = tool('test.py',
                'configs/mv2d_xray/mv2d-xray_r50_roi_1xb1-24e_lidc.py',
                trained / 'work' / 'iter_4.pth', '--tta', '--data-root',
                trained / 'data', '--work-dir', tmp_path)
    assert '--tta: expected tta_model' in error_of(done)


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(trained, tmp_path):
    # A training that stopped after iteration 2 of 4, then went on.
    first = train(tmp_path, trained / 'data', 4, run=process, options=[
        'custom_hooks.0.type=StopAfterTwo',
        'custom_imports.imports=[projects.mv2d_xray,tests.helpers.stop_hook]'])
    assert first.returncode != 0
    assert sorted(losses(tmp_path)) == [1, 2]
    second = train(tmp_path, trained / 'data', 4, '--resume', run=process)
    assert second.returncode == 0, second.stderr[-2000:]
    whole, resumed = losses(trained / 'work'), losses(tmp_path)
    assert sorted(resumed) == [1, 2, 3, 4]
    for step in whole:
        assert resumed[step] == pytest.approx(whole[step], rel=1e-4)


def test_what_a_training_started_from_is_not_what_is_tested(trained,
                                                            tmp_path):
    checkpoint = torch.load(trained / 'work' / 'iter_4.pth',
                            weights_only=True)
    for tensor in checkpoint['state_dict'].values():
        tensor.zero_()
    torch.save(dict(state_dict=checkpoint['state_dict']),
               tmp_path / 'start.pth')
    found = []
    for name, start in (('a', []),
                        ('b', [f'load_from={tmp_path / "start.pth"}'])):
        done = tool(
            'test.py', CONFIG, trained / 'work' / 'iter_4.pth', '--work-dir',
            tmp_path, '--data-root', trained / 'data', '--out',
            tmp_path / f'{name}.json', options=[*SMALL, *start])
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads((tmp_path / f'{name}.json').read_text()))
    assert found[0]['scans'] == found[1]['scans']
    assert any(scan['predictions'] for scan in found[0]['scans'])


# --------------------------------------------------------------- wrong input
def test_training_starts_where_the_config_says(trained, tmp_path):
    # Also with --resume, as long as there is nothing to go on from.
    done = train(tmp_path, trained / 'data', 2, '--resume',
                 options=['load_from=nothing.pth'])
    assert ('load_from: nothing.pth: expected a file, found none; train it '
            'first') in error_of(done)
    start = trained / 'work' / 'iter_4.pth'
    done = train(tmp_path, trained / 'data', 1, '--resume',
                 options=[f'load_from={start}'])
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(losses(tmp_path)) == [1]
    assert losses(tmp_path)[1] < losses(trained / 'work')[1]


def test_empty_pickle(trained, tmp_path):
    make_sphere_set(tmp_path, 1, 4, 64, split='test')
    (tmp_path / 'lidc_infos_test.pkl').write_bytes(b'')
    done = process('test.py', CONFIG, trained / 'work' / 'iter_4.pth',
                   '--work-dir', tmp_path / 'w', '--data-root', tmp_path,
                   '--out', tmp_path / 'r.json')
    assert done.returncode == 1
    assert error_of(done).startswith('test.py: error: ')
    assert 'lidc_infos_test.pkl: is empty' in error_of(done)
    assert not (tmp_path / 'r.json').exists()


def test_missing_image_during_a_test(trained, tmp_path):
    make_sphere_set(tmp_path, 1, 4, 64, split='test')
    next((tmp_path / 'images').rglob('CAM_02.png')).unlink()
    done = tool('test.py', CONFIG, trained / 'work' / 'iter_4.pth',
                '--work-dir', tmp_path / 'w', '--data-root', tmp_path,
                '--out', tmp_path / 'r.json')
    assert 'CAM_02.png: image: expected a readable PNG' in error_of(done)
    assert not (tmp_path / 'r.json').exists()


OUTPUTS = [
    ('train', (), '--work-dir'), ('test', ('none.pth', ), '--work-dir'),
    ('test', ('none.pth', ), '--out'), ('test', ('none.pth', ), '--show-dir'),
    ('infer', ('none.pth', '--images', 'i', '--rig', 'r'), '--out'),
    ('infer', ('none.pth', '--images', 'i', '--rig', 'r', '--out', 'b.json'),
     '--show'),
    ('report', (), '--out'), ('export', (), '--out-dir'),
    ('diagnose', ('none.pth', ), '--out-dir'),
    ('explain', ('none.pth', ), '--out-dir'),
    ('browse_dataset', (), '--out-dir')]


@pytest.mark.parametrize('name, given, option', OUTPUTS)
def test_an_output_that_cannot_be_written_is_told_first(
        tmp_path, monkeypatch, name, given, option):
    """Before the config, which is not there either, is looked at."""
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('kept')
    main = importlib.import_module(f'tools.{name}').main
    places = {'file/below': 'expected a folder, found the file file',
              '/proc/below': 'expected a place to write to, found /proc: '}
    if option.endswith('dir'):
        places['file'] = 'expected a folder, found the file file'
    else:
        places['.'] = 'expected a file to write, found a folder'
        places['/dev/null'] = 'expected a file to write, found a device'
    for place, sentence in places.items():
        monkeypatch.setattr(sys, 'argv', [name, 'none.py', *given, option,
                                          place])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert f'error: {place}: {option}: {sentence}' in stopped.value.code
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('error, sentence', [
    (OSError(28, 'No space left on device', 'a.json'),
     'error: a.json: No space left on device'),
    (OSError('Caught OSError in DataLoader worker process 0.\nTraceback:\n'
             '  File "x.py"\nOSError: [Errno 5] Input/output error: "a.png"'),
     'error: [Errno 5] Input/output error: "a.png"')])
def test_a_disk_that_fails_is_told_in_one_sentence(error, sentence):

    @one_sentence
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code.endswith(sentence)


def test_misspelt_key_in_a_config(trained, tmp_path):
    text = (ROOT / CONFIG).read_text().replace(
        "'../_base_", f"'{ROOT}/configs/_base_")
    path = tmp_path / 'config.py'
    path.write_text(text.replace('context_channels', 'context_chanels'))
    done = process('train.py', path, '--work-dir', tmp_path / 'w',
                   '--data-root', trained / 'data')
    message = error_of(done)
    assert done.returncode == 1
    assert message.startswith('train.py: error: ')
    assert 'config.py' in message and 'context_chanels' in message


def test_misspelt_names_are_found(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text('train_dataloder = dict()\n')
    with pytest.raises(UserError, match='expected "train_dataloader"'):
        load_config(str(path))
    for key in ('max_itres', 'max_iters'):
        with pytest.raises(UserError, match='expected "train_cfg.max_iters"'):
            load_config(str(ROOT / CONFIG), {key: 3})
    # What has been used up when the config was read would do nothing.
    with pytest.raises(UserError, match='val_dataloader.dataset.data'):
        load_config(str(ROOT / CONFIG), {'data_root': 'elsewhere'})
    with pytest.raises(UserError, match='expected a file'):
        load_config(str(tmp_path / 'none.py'))


def test_key_that_is_only_used_when_training_starts(trained, tmp_path):
    done = train(tmp_path, trained / 'data', 2,
                 options=['optim_wrapper.optimizer.lrr=3'])
    assert "unexpected keyword argument 'lrr'" in error_of(done)
    done = tool('train.py', CONFIG, options=['train_cfg.max_iters'])
    assert 'expected KEY=VALUE, found "train_cfg.max_iters"' in error_of(done)


def test_checkpoint_of_another_model(trained, tmp_path):
    cfg = load_config(str(ROOT / CONFIG),
                      {'model.lifting_head.embed_dims': 32})
    model = MODELS.build(cfg.model)
    with pytest.raises(UserError, match='another model.*expected '
                       'shape'):
        check_checkpoint(str(trained / 'work' / 'iter_4.pth'), model)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))),
               tmp_path / 'x.pth')
    with pytest.raises(UserError, match='1 unknown'):
        check_checkpoint(str(tmp_path / 'x.pth'), model)


class _Evil:

    def __reduce__(self):
        return os.system, ('echo broken > hostile.txt', )


def test_hostile_or_damaged_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, extra=_Evil()), 'evil.pth')
    Path('raw.pth').write_bytes(pickle.dumps(_Evil()))
    Path('half.pth').write_bytes(Path('evil.pth').read_bytes()[:100])
    Path('other.pth').write_bytes(b'')
    for name in ('evil.pth', 'raw.pth', 'half.pth', 'other.pth'):
        with pytest.raises(UserError, match=f'{name}: checkpoint'):
            load_checkpoint(name)
    assert not Path('hostile.txt').exists()
    with pytest.raises(UserError, match='expected a file'):
        load_checkpoint('none.pth')


def test_wrong_number_of_images(trained, tmp_path):
    Rig.circle(10, image_size=64).save(tmp_path / 'rig.json')
    (tmp_path / 'object').mkdir()
    for name in ('a.png', 'b.png'):
        cv2.imwrite(str(tmp_path / 'object' / name),
                    np.eye(64, dtype=np.uint16))
    done = tool(
        'infer.py', CONFIG, trained / 'work' / 'iter_4.pth', '--images',
        tmp_path / 'object', '--rig', tmp_path / 'rig.json', '--out',
        tmp_path / 'boxes.json')
    assert 'expected 10, one for each view of the rig, found 2' in error_of(
        done)
    assert not (tmp_path / 'boxes.json').exists()
    done = tool(
        'infer.py', CONFIG, trained / 'work' / 'iter_4.pth', '--images',
        tmp_path / 'views', '--rig', tmp_path / 'rig.json', '--out',
        tmp_path / 'boxes.json')
    assert 'views: --images: expected a folder or images' in error_of(done)
    done = tool('infer.py', CONFIG, 'none.pth', '--images', 'views', '--rig',
                'rig.json', '--out', 'boxes.json', '--device', 'banana')
    assert 'expected a torch device that this machine has' in error_of(done)


def test_images_of_no_view_of_the_rig_are_told(tmp_path):
    rig = Rig.circle(2, image_size=64)
    for name in ('CAM_00', 'CAM_01', 'CAM_02'):
        cv2.imwrite(str(tmp_path / f'{name}.png'),
                    np.eye(64, dtype=np.uint16))
    images, note = read_views([tmp_path], rig, Reading(png_scale=1.))
    assert list(images) == ['CAM_00', 'CAM_01']
    assert 'CAM_02.png: of no view of the rig, not used' in note


def test_infer_on_several_objects(trained, tmp_path):
    """Pages, CSV and markups of each; what is broken does not stop the
    others."""
    infos = load_infos(trained / 'data' / 'lidc_infos_val.pkl')
    token = infos['data_list'][0]['token']
    images = trained / 'data' / 'images' / token
    for name in ('a', 'b', 'c'):
        shutil.copytree(images, tmp_path / 'objects' / name)
    given = ('infer.py', CONFIG, trained / 'work' / 'iter_4.pth', '--images',
             tmp_path / 'objects', '--rig', trained / 'data' / 'rig.json',
             '--score-thr', '0', '--device', 'cpu')
    done = tool(*given, '--out', tmp_path / 'boxes.json')
    assert 'expected one object, found 3: --out-dir' in error_of(done)
    (tmp_path / 'objects' / 'b' / 'CAM_00.png').write_bytes(b'no image')
    done = tool(*given, '--out-dir', tmp_path / 'out')
    assert 'of 3 objects were refused, first b' in error_of(done)
    for name in ('a', 'c'):
        assert (tmp_path / 'out' / f'{name}.html').stat().st_size > 10000
        assert json.loads((tmp_path / 'out' / f'{name}.json').read_text())
        assert list((tmp_path / 'out').glob(f'*{name}*.mrk.json'))
    assert not (tmp_path / 'out' / 'b.json').exists()
    table = (tmp_path / 'out' / 'boxes.csv').read_text().splitlines()
    assert {row.split(',')[0] for row in table[1:]} == {'a', 'c'}


def test_infer_refuses_a_view_that_is_turned(blades, tmp_path):
    """The others of the objects are found, and a user may insist."""
    for name in ('good', 'turned'):
        shutil.copytree(next((blades / 'set' / 'images').iterdir()),
                        tmp_path / 'objects' / name)
    path = tmp_path / 'objects' / 'turned' / 'CAM_03.png'
    cv2.imwrite(str(path), cv2.imread(str(path), -1)[::-1])
    name = 'mv2d-xray_small_volume_600i_blade'
    given = ('infer.py', f'configs/mv2d_xray/{name}.py',
             ROOT / f'checkpoints/{name}.pth', '--images',
             tmp_path / 'objects', '--rig', blades / 'rig.json', '--device',
             'cpu', '--out-dir', tmp_path / 'out')
    error = error_of(tool(*given))
    assert ('1 of 2 objects were refused, first turned' in error
            and 'CAM_03 that look mirrored top to bottom' in error)
    assert (tmp_path / 'out' / 'good.json').exists()
    assert not (tmp_path / 'out' / 'turned.json').exists()
    assert tool(*given, '--trust-rig').returncode == 0
    assert (tmp_path / 'out' / 'turned.json').exists()


@pytest.mark.parametrize('exposure,grey,sentence', [
    (1., 1., ''), (.1, 1., 'times less exposure than 10000 µGy'),
    (1., .25, 'with 99 % of the line integrals below')])
def test_infer_tells_other_views_than_those_of_the_training(
        blades, deployed, tmp_path, exposure, grey, sentence):
    """The released model knows views of its own kind; deployed, too."""
    preset = load_preset('casting-225kV')
    folder = blades / 'set' / 'images' / 'blade_000'
    names = sorted(p.name for p in folder.iterdir())
    views = dataclasses.replace(
        preset, kerma=exposure * preset.kerma).measure(np.stack([
            cv2.imread(str(folder / name), -1) * np.float32(16 / 65535)
            for name in names]), .5, np.random.default_rng(0))
    (tmp_path / 'part').mkdir()
    for name, view in zip(names, views * np.float32(grey)):
        cv2.imwrite(str(tmp_path / 'part' / Path(name).with_suffix('.tif')),
                    view)
    given = ('--images', tmp_path / 'part', '--rig', blades / 'rig.json',
             '--scale', 1, '--out', tmp_path / 'b.json')
    told = []
    for command in (
            ('infer.py', *(ROOT / m for m in BLADE), '--device', 'cpu'),
            ('run.py', deployed(Path(BLADE[1]).stem))):
        done = tool(*command, *given)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append([line for line in done.stderr.splitlines()
                     if line.startswith('part: warning: ')])
    assert told[0] == told[1] and len(told[0]) == bool(sentence)
    assert sentence in ''.join(told[0])


def test_a_model_of_more_classes_than_the_set(trained, tmp_path):
    done = train(tmp_path, trained / 'data', 2,
                 options=['model.lifting_head.num_classes=2'])
    assert ('"model.lifting_head.num_classes": expected 1, as the set has '
            'classes nodule, found 2') in error_of(done)
    cfg = load_config(str(
        ROOT / 'configs/mv2d_xray/mv2d-xray_small_volume_5000i_quick-v2.py'))
    init_default_scope('mmdet3d')
    model = MODELS.build(cfg.model)
    check = ClassCheckHook().before_test
    data = SimpleNamespace(metainfo=dict(classes=('nodule', )))
    runner = SimpleNamespace(
        model=model, test_dataloader=SimpleNamespace(dataset=data))
    check(runner)
    data.metainfo['classes'] = ('pore', 'inclusion')
    with pytest.raises(UserError, match='expected 2, as the set has '
                       'classes pore, inclusion, found 1'):
        check(runner)


def test_a_checkpoint_of_other_classes_than_the_set(trained, tmp_path):
    source = trained / 'work' / 'iter_4.pth'
    checkpoint = load_checkpoint(str(source))

    def test(name, *classes):
        checkpoint['meta']['dataset_meta']['classes'] = classes
        torch.save(checkpoint, tmp_path / f'{name}.pth')
        return tool(
            'test.py', CONFIG, tmp_path / f'{name}.pth', '--work-dir',
            tmp_path, '--data-root', trained / 'data', options=SMALL)

    assert ("more.pth: field \"dataset_meta.classes\": expected the set's "
            'classes, nodule, in this order, found crack, pore'
            ) in error_of(test('more', 'crack', 'pore'))
    # One by another name may be the same: figures, and a warning.
    done = test('other', 'lesion')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'found lesion: figures hold if' in done.stdout + done.stderr


def test_a_test_on_what_was_trained_on_is_told(trained, tmp_path):
    """Also where that was the start's training, and in a file of weights and
    metadata alone."""
    work = trained / 'work' / 'iter_4.pth'
    meta = load_checkpoint(str(work))['meta']
    names = [f'LIDC-IDRI-00{n:02d}' for n in range(3)]
    assert meta['patients_seen'] == names
    assert meta['patients_seen_complete'] is True

    def test(checkpoint, split):
        done = tool(
            'test.py', CONFIG, checkpoint, '--work-dir', tmp_path,
            '--data-root', trained / 'data', '--out', tmp_path / 'r.json',
            '--split', split, options=SMALL)
        assert done.returncode == 0, done.stderr[-2000:]
        full = json.loads((tmp_path / 'r.json').read_text())
        return (done.stdout + done.stderr,
                full['source']['patients_seen_in_training'])

    sentence = (': was trained on 3 of the 3 patients or parts that it is '
                'tested on (LIDC-IDRI-0000, LIDC-IDRI-0001, LIDC-IDRI-0002): '
                'the figures are flattered')
    told, count = test(work, 'train')
    assert f'{work}{sentence}' in told and count == 3
    told, count = test(work, 'val')
    assert 'flattered' not in told and count == 0
    # It starts from the first and is trained on others.
    make_sphere_set(tmp_path / 'data', 1, 4, 64, seed=2)
    make_sphere_set(tmp_path / 'data', 1, 4, 64, seed=1, split='val')
    done = train(tmp_path / 'work', tmp_path / 'data', 2, options=[
        f'load_from={work}', "default_hooks.checkpoint.published_keys=['meta',"
        "'state_dict']"])
    assert done.returncode == 0, done.stderr[-2000:]
    published, = (tmp_path / 'work').glob('iter_2-*.pth')
    checkpoint = load_checkpoint(str(published))
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert checkpoint['meta']['patients_seen'] == [*names, 'LIDC-IDRI-0200']
    assert sentence in test(published, 'train')[0]
    # One of before does not know.
    for key in ('patients_seen', 'patients_seen_complete'):
        checkpoint['meta'].pop(key)
    torch.save(checkpoint, tmp_path / 'old.pth')
    told, count = test(tmp_path / 'old.pth', 'train')
    assert 'flattered' not in told and count is None


def test_what_started_from_the_unknown_does_not_know_all():
    class Scans(list):
        def get_data_info(self, row):
            return self[row]

    data = Scans([dict(lidc_id_ref='b'), dict(lidc_id_ref='a')])
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=data))

    def trained_from(*metas):
        hook, checkpoint = PatientsSeenHook(), dict(meta={})
        for meta in metas:
            hook.after_load_checkpoint(runner, dict(meta=meta))
        hook.before_train(runner)
        hook.before_save_checkpoint(runner, checkpoint)
        return checkpoint['meta']

    first = trained_from()
    assert first == dict(patients_seen=['a', 'b'],
                         patients_seen_complete=True)
    assert trained_from(first) == first
    later = trained_from({})
    assert later == dict(first, patients_seen_complete=False)
    assert trained_from(later) == later
    others = Scans([dict(lidc_id_ref='c')])
    for meta, tested, count in (
            (first, data, 2), (first, others, 0), (later, data, 2),
            (later, others, None), ({}, data, None),
            (dict(patients_seen=3), data, None), (first, Scans([{}]), None)):
        assert warn_of_seen_patients('a.pth', meta, tested) == count


@pytest.mark.parametrize('found', [
    ('crack', 'pore'), ('pore', 'inclusion'), ('inclusion', ),
    ('inclusion', 'pore', 'crack')])
def test_class_names_and_their_order_are_compared(found):
    data = SimpleNamespace(metainfo=dict(classes=('inclusion', 'pore')))
    loader = SimpleNamespace(dataset=data)
    runner = SimpleNamespace(
        model=torch.nn.Identity(), test_dataloader=loader,
        train_dataloader=loader, _load_from='a.pth', _resume=True)
    hook = ClassCheckHook()
    hook.after_load_checkpoint(runner, dict(state_dict={}))
    hook.before_test(runner)  # says nothing of its classes
    for classes in (['inclusion', 'pore'], found):
        hook.after_load_checkpoint(
            runner, dict(meta=dict(dataset_meta=dict(classes=classes))))
        for check in (hook.before_test, hook.before_train):
            if classes is not found:
                check(runner)
                continue
            with pytest.raises(UserError, match='a.pth: .*expected the set.s '
                               'classes, inclusion, pore, in this order, '
                               'found ' + ', '.join(found)):
                check(runner)
    # A start may be of other classes.
    runner._resume = False
    hook.before_train(runner)


def test_names_of_boxes_without_a_set():
    model = torch.nn.Module()
    model.volume_head = torch.nn.Module()
    model.volume_head.num_classes = 2
    names = dict(dataset_meta=dict(classes=('pore', 'inclusion')))
    assert class_names('a.pth', names, model) == ('pore', 'inclusion')
    assert class_names('a.pth', {}, model) == ('indication_0', 'indication_1')
    model.volume_head.num_classes = 1
    assert class_names('a.pth', {}, model) == ('indication', )
    with pytest.raises(UserError, match='expected 1 names, as the config.s '
                       'model has classes, found pore, inclusion'):
        class_names('a.pth', names, model)


def test_infer_without_names_of_several_classes(trained, tmp_path):
    (tmp_path / 'config.py').write_text(
        f'_base_ = ["{ROOT / CONFIG}"]\n'
        f'model = dict(lifting_head=None, detector_2d={FEATURES},\n'
        '             volume_head=dict(num_classes=2, voxel_size=24.))\n')
    model = MODELS.build(load_config(str(tmp_path / 'config.py')).model)
    torch.nn.init.normal_(model.volume_head.heatmap.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'two.pth')
    done = tool('infer.py', tmp_path / 'config.py', tmp_path / 'two.pth',
                '--images', next(trained.glob('data/images/*')), '--rig',
                trained / 'data' / 'rig.json', '--out',
                tmp_path / 'boxes.json', '--device', 'cpu')
    assert done.returncode == 0, done.stderr[-2000:]
    boxes = json.loads((tmp_path / 'boxes.json').read_text())['boxes']
    assert {b['class_name'] for b in boxes} == {'indication_0',
                                                'indication_1'}


@pytest.mark.parametrize('parts, rest', [
    (dict(lifting_head=None, detector_2d=FEATURES), 'it can never find them'),
    ({}, 'only roi can find them')])
def test_findings_where_the_model_does_not_look_are_told(
        tmp_path, monkeypatch, parts, rest):
    spheres = [[((0, 0, 0), 9.)], [((0, 0, 160), 9.), ((0, 0, -190), 9.)]]
    infos = make_sphere_set(tmp_path, 2, 4, 64, spheres=spheres,
                            split='test', ignored=False)
    cfg = load_config(str(ROOT / CONFIG))
    cfg.merge_from_dict(dict(model=parts))
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    data = DATASETS.build(cfg.test_dataloader.dataset)
    told = []
    monkeypatch.setattr('projects.core.engine.hooks.print_log',
                        lambda text, **_: told.append(text))
    loader = SimpleNamespace(dataset=data)
    runner = SimpleNamespace(model=MODELS.build(cfg.model),
                             test_dataloader=loader, train_dataloader=loader)
    RangeCheckHook().before_test(runner)
    said, = told
    assert ('2 of 3 findings, in 1 of 2 scans, the first in '
            + infos['data_list'][1]['token']) in said
    assert '114.0, 144.0] mm' in said and said.endswith(rest)
    # What the metric gets has them all.
    truth = [data[i]['data_samples'].eval_ann_info for i in range(2)]
    assert [len(t['gt_labels_3d']) for t in truth] == [1, 2]
    runner.model.volume_head.volume_range = [-200.] * 3 + [200.] * 3
    RangeCheckHook().before_train(runner)
    assert told == [said]


def test_a_split_that_the_set_has_not(trained, tmp_path):
    done = tool('test.py', CONFIG, trained / 'work' / 'iter_4.pth',
                '--work-dir', tmp_path, '--data-root', trained / 'data',
                '--split', 'vall')
    assert ('lidc_infos_vall.pkl: expected infos of this split, found '
            'lidc_infos_train.pkl, lidc_infos_val.pkl in the set'
            ) in error_of(done)


@pytest.mark.parametrize('name', ['train.py', 'test.py', 'infer.py'])
def test_help_is_complete(name):
    done = tool(name, '--help')
    assert done.returncode == 0
    assert 'config' in done.stdout and '--cfg-options' in (
        done.stdout + '--cfg-options' * (name == 'infer.py'))


@pytest.mark.slow
def test_half_precision_on_a_cpu(trained, tmp_path):
    done = train(tmp_path, trained / 'data', 4, '--amp')
    assert done.returncode == 0
    exact, rounded = losses(trained / 'work'), losses(tmp_path)
    assert (exact[1] != rounded[1]) == cpu_has_bfloat16()
    assert ('all is in float32' in done.stderr + done.stdout
            ) != cpu_has_bfloat16()
    assert rounded[1] == pytest.approx(exact[1], rel=.05)
    done = tool('test.py', CONFIG, tmp_path / 'iter_4.pth', '--amp',
                '--data-root', trained / 'data', '--work-dir', tmp_path,
                '--out', tmp_path / 'r.json', options=SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / 'r.json').read_text())['num_scans'] == 3


def test_half_precision_is_that_of_the_device(monkeypatch):
    asked = 'projects.core.engine.precision.cpu_has_bfloat16'
    cfg = load_config(str(ROOT / CONFIG))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    use_half_precision(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.test_cfg.fp16
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = load_config(str(ROOT / CONFIG))
    before = cfg.pretty_text
    with monkeypatch.context() as patched:
        patched.setattr(asked, lambda: False)
        use_half_precision(cfg)
    assert cfg.pretty_text == before
    monkeypatch.setattr(asked, lambda: True)
    use_half_precision(cfg)
    assert cfg.val_cfg.fp16 and cfg.test_cfg.fp16
    # Nothing of CUDA's loss scale, which the CPU's wrapper does not know.
    model = torch.nn.Linear(2, 1)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert model(torch.ones(1, 2)).dtype == torch.float32
