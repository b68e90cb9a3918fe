"""Several processes train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from torch import distributed
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import spawn

from projects.core.engine.configs import load_config
from tests.helpers.breasts import make_breast_set
from tests.helpers.commands import CONFIG, ROOT, SMALL, error_of, tool
from tests.helpers.models import FEATURES, quick, scans_of
from tests.helpers.spheres import make_sphere_set

WITHOUT_2D = {'lifting_head.roi_queries': None, 'detector_2d': FEATURES}
# What is changed of the model, and in the two scans that it is shown.
CASES = {
    'without': (WITHOUT_2D, {}),
    'with': ({}, dict(spheres=[[([10., 20., 0.], 12.)],
                               [([0., -30., 9.], 9.)]])),
}


def gradients(model, root, rows):
    """Of a loss on some samples, with the norms as they were trained."""
    data = scans_of(root)
    inner = getattr(model, 'module', model)
    model.eval()
    batch = inner.data_preprocessor(
        pseudo_collate([data[row] for row in rows]), True)
    loss, _ = inner.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    return {name: p.grad for name, p in inner.named_parameters()}


def rank_of_two(rank, root):
    """One of two processes with a sample each, of each case."""
    torch.set_num_threads(1)
    init_default_scope('mmdet3d')
    distributed.init_process_group(
        'gloo', init_method=f'file://{root}/store', rank=rank, world_size=2)
    for case, (changes, _) in CASES.items():
        model = MMDistributedDataParallel(
            quick(**changes), device_ids=None, broadcast_buffers=False)
        torch.save(gradients(model, root / case, [rank]),
                   root / case / f'{rank}.pth')
    set_random_seed(**load_config(str(ROOT / CONFIG)).randomness)
    (root / f'{rank}.txt').write_text(str(np.random.rand()))
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def both_ranks(tmp_path_factory):
    """What each of two processes left."""
    root = tmp_path_factory.mktemp('ranks')
    for case, (_, spheres) in CASES.items():
        make_sphere_set(root / case, 2, 4, 64, **spheres)
    spawn(rank_of_two, (root, ), nprocs=2)
    return root


def of_both_ranks(root, case):
    """Gradients of each of two processes, and of one with both samples."""
    ranks = [torch.load(root / case / f'{rank}.pth', weights_only=True)
             for rank in (0, 1)]
    return (*ranks, gradients(quick(**CASES[case][0]), root / case, [0, 1]))


def test_two_processes_have_the_gradients_of_a_batch_of_two(both_ranks):
    first, second, expected = of_both_ranks(both_ranks, 'without')
    # Of the same augmentation, twice the scans would be worth less.
    drawn = {(both_ranks / f'{rank}.txt').read_text() for rank in (0, 1)}
    assert len(drawn) == 2
    for name, gradient in expected.items():
        if name.startswith(('detector_2d.backbone', 'volume_head')):
            assert gradient.abs().sum() > 0, name
    for name, gradient in expected.items():
        torch.testing.assert_close(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=1e-3,
                                   atol=1e-6 + 1e-4 * gradient.abs().max())
    alone = gradients(quick(**WITHOUT_2D), both_ranks / 'without', [0])
    name = 'volume_head.heatmap.weight'
    assert (first[name] - alone[name]).abs().max() > .1 * (
        alone[name].abs().max())


def test_two_processes_with_2d_heads(both_ranks):
    # mmdet divides by the boxes of all images of a process, of which two
    # processes do not have equally many: nearly the same.
    first, second, expected = of_both_ranks(both_ranks, 'with')
    for part in ('backbone', 'bbox_head', 'volume_head', 'lifting_head'):
        one, two, both = (
            torch.cat([g.flatten() for name, g in ranks.items() if part in
                       name]) for ranks in (first, second, expected))
        torch.testing.assert_close(one, two)
        assert torch.cosine_similarity(one, both, 0) > .99, part
        assert float(one.norm() / both.norm()) == pytest.approx(1, abs=.05)


def run(*command, options=(*SMALL, 'train_cfg.max_iters=2')):
    return subprocess.run(
        [*map(str, command), '--cfg-options', *options], cwd=ROOT,
        capture_output=True, text=True, timeout=300, env=dict(
            os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT),
            PORT=str(get_free_port()), CUDA_VISIBLE_DEVICES='',
            PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}'))


def test_two_processes_train_on_cpus(tmp_path):
    for split, seed in (('train', 0), ('val', 1)):
        make_sphere_set(tmp_path / 'data', 4, 4, 64, seed=seed, split=split)
    done = run('tools/dist_train.sh', CONFIG, 2, '--work-dir',
               tmp_path / 'work', '--data-root', tmp_path / 'data')
    assert done.returncode == 0, done.stderr[-2000:]
    log, = tmp_path.glob('work/*/vis_data/scalars.json')  # of one process
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r['step'] for r in rows if 'loss' in r] == [1, 2]
    tested, = [r for r in rows if 'mAP_3d' in r]
    assert tested['num_scans'] == 4
    assert (tmp_path / 'work' / 'iter_2.pth').exists()
    done = run('python', '-m', 'torch.distributed.run', '--nproc_per_node',
               2, '--master_port', get_free_port(), 'tools/test.py', CONFIG,
               tmp_path / 'work' / 'iter_2.pth', '--launcher', 'pytorch',
               '--work-dir', tmp_path / 'test', '--data-root',
               tmp_path / 'data', '--out', tmp_path / 'results.json')
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['num_scans'] == 4
    assert {'source', '2d'} <= set(results)


def test_a_graph_that_nobody_needs_does_not_stop_several(tmp_path):
    """No landmark is found in these images, so no exam has the graph."""
    for split in ('train', 'val'):
        make_breast_set(tmp_path / 'data', 2, split)
    done = run('tools/dist_train.sh',
               'configs/ag_rcnn/ag-rcnn_small_500i_breast.py', 1,
               '--work-dir', tmp_path / 'work', '--data-root',
               tmp_path / 'data', options=[
                   *(f'{split}_dataloader.dataset.pipeline.0.transforms.'
                     '2.size=96' for split in ('train', 'val', 'test')),
                   'train_cfg.max_iters=3', 'train_cfg.val_begin=9',
                   'load_from=None'])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'work' / 'iter_3.pth').exists()


def test_slurm_gets_what_was_asked_for(tmp_path):
    # Instead of a cluster, a srun that prints its arguments.
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    done = subprocess.run(
        ['tools/slurm_train.sh', 'gpu', 'job', 'c.py', 'work', '--amp',
         '--cfg-options', 'a=b c'], cwd=ROOT, capture_output=True, text=True,
        env=dict(os.environ, GPUS='4', SRUN_ARGS='--time 1:00:00',
                 PATH=f'{tmp_path}:{os.environ["PATH"]}'))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n') == [
        '--partition', 'gpu', '--job-name', 'job', '--gres', 'gpu:4',
        '--ntasks', '4', '--ntasks-per-node', '4', '--cpus-per-task', '4',
        '--kill-on-bad-exit=1', '--time', '1:00:00', 'python', '-u',
        'tools/train.py', 'c.py', '--work-dir', 'work', '--launcher', 'slurm',
        '--amp', '--cfg-options', 'a=b c', '']
    done = subprocess.run(['tools/slurm_train.sh'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and 'PARTITION' in done.stderr


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_a_launcher_that_is_not_there(tmp_path, launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    done = tool('train.py', CONFIG, '--work-dir', tmp_path, '--launcher',
                launcher)
    assert done.returncode == 1
    assert 'torch.distributed.run' in error_of(done)
