"""What `pip install .` gives: commands that work from any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from projects.core import __version__
from projects.core.engine.command_line import UserError
from projects.core.engine.configs import load_config
from tests.helpers.spheres import make_sphere_set
from tools import setup_env

ROOT = Path(__file__).parents[2]
CONFIG = 'mv2d-xray_small_volume_5000i_quick-v2'
COMMANDS = {
    f'mv2d-xray-{name}'
    for name in ('convert', 'train', 'test', 'infer', 'report', 'export',
                 'diagnose', 'explain', 'browse', 'serve', 'deploy',
                 'finetune', 'run')
}
# Every command's --help in one process, as torch is long to import.
HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, '--help']
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as end:
        print(script, 'ended with', end.code)
import projects.core
print('from', projects.core.__file__)
"""


def call(command, cwd, **kwargs):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True,
        timeout=300, env=dict(env, OMP_NUM_THREADS='1', **kwargs))
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The bin folder of an environment that has the wheel; the packages that
    it needs are those of this environment."""
    root = tmp_path_factory.mktemp('packaging')
    source = root / 'source'  # a build leaves files beside what it builds
    source.mkdir()
    for name in ('LICENSE', 'README.md', 'configs', 'data_converters',
                 'projects', 'pyproject.toml', 'setup.py', 'tools'):
        (source / name).symlink_to(ROOT / name)
    call([sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-index',
          '--no-build-isolation', '-w', root, source], root)
    venv.create(root / 'venv', with_pip=False)
    packages = next((root / 'venv').glob('lib/python*/site-packages'))
    (packages / 'environment.pth').write_text(
        sysconfig.get_paths()['purelib'] + '\n')
    wheel, = root.glob('*.whl')
    python = root / 'venv' / 'bin' / 'python'
    call([python, '-m', 'pip', 'install', '--no-deps', '--no-index', '-q',
          '--ignore-installed', wheel], root)
    return python.parent


@pytest.mark.slow
def test_commands_of_the_wheel_work_in_another_folder(installed, tmp_path):
    scripts = sorted(installed.glob('mv2d-xray-*'))
    assert {s.name for s in scripts} == COMMANDS
    shown = call([installed / 'python', '-c', HELP, *scripts], tmp_path)
    assert shown.count('usage: ') == len(COMMANDS)
    assert shown.count('ended with 0') == len(COMMANDS)
    assert f'from {installed.parent}' in shown

    call([installed / 'mv2d-xray-convert', 'rig', '--circle', '4',
          '--image-size', '64', '--out', 'rig.json'], tmp_path)
    assert len(json.loads((tmp_path / 'rig.json').read_text())['views']) == 4
    make_sphere_set(tmp_path / 'set', 2, 4, 64, split='test')
    # The config is the wheel's own, found by its name.
    call([installed / 'mv2d-xray-test', CONFIG,
          ROOT / 'checkpoints' / f'{CONFIG}.pth', '--data-root', 'set',
          '--out', 'results.json', '--cfg-options',
          'model.volume_head.voxel_size=24.'], tmp_path)
    call([installed / 'mv2d-xray-report', 'results.json'], tmp_path)
    assert '<html' in (tmp_path / 'results.html').read_text()[:500]


@pytest.mark.slow
def test_what_a_wheel_holds(installed):
    packages = next(installed.parent.glob('lib/python*/site-packages'))
    listed = {p.name for p in packages.iterdir()}
    assert {'projects', 'data_converters', 'mv2d_xray_configs',
            'mv2d_xray_tools'} <= listed
    assert not listed & {'tools', 'configs', 'tests', 'benchmarks'}
    # All that the packages read beside their modules.
    for folder in ('projects', 'data_converters'):
        for path in (ROOT / folder).rglob('*.*'):
            if path.is_file() and path.suffix != '.py' and (
                    '__pycache__' not in path.parts):
                assert (packages / path.relative_to(ROOT)).is_file(), path
    assert (packages / f'mv2d_xray-{__version__}.dist-info').is_dir()


def checkout(root):
    """A checkout with a config, a set and weights."""
    (root / 'configs' / 'some').mkdir(parents=True)
    (root / 'data' / 'mine').mkdir(parents=True)
    (root / 'weights.pth').touch()
    path = root / 'configs' / 'some' / 'c.py'
    path.write_text(
        "load_from = 'weights.pth'\n"
        "train_dataloader = dict(dataset=dict(dataset=dict(\n"
        "    data_root='data/mine/')))\n"
        "test_dataloader = dict(dataset=dict(data_root='data/none'))\n")
    return path


def test_relative_paths_of_a_config(tmp_path, monkeypatch):
    path = checkout(tmp_path / 'repository')
    elsewhere = tmp_path / 'elsewhere'
    (elsewhere / 'data' / 'mine').mkdir(parents=True)
    # In the repository's folder they stay as they are.
    monkeypatch.chdir(tmp_path / 'repository')
    cfg = load_config('configs/some/c.py')
    assert cfg.load_from == 'weights.pth'
    # What the current folder lacks is the repository's.
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(path))
    assert cfg.load_from == str(tmp_path / 'repository' / 'weights.pth')
    inner = cfg.train_dataloader.dataset.dataset
    assert Path(inner.data_root) == tmp_path / 'repository/data/mine'
    assert cfg.test_dataloader.dataset.data_root == 'data/none'
    # What the current folder has comes first.
    monkeypatch.chdir(elsewhere)
    cfg = load_config(str(path))
    assert cfg.train_dataloader.dataset.dataset.data_root == 'data/mine/'


def test_config_that_is_neither_file_nor_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='none.py: config: expected a file'):
        load_config('none.py')


def test_mmcv_is_compiled_whole_in_few_units(tmp_path):
    folder = tmp_path / 'mmcv/ops/csrc/pytorch'
    (folder / 'cpu').mkdir(parents=True)
    clash = ['cpu/bezier_align', 'cpu/roi_align', 'cpu/roi_align_rotated']
    names = ['nms', 'psamask', 'roi_align', *clash, 'cpu/nms', 'cpu/psamask']
    for name in (*names, 'pybind'):
        (folder / f'{name}.cpp').write_text(f'// {name}')
    setup_env.unite(tmp_path)
    compiled = {path.stem: path.read_text() for path in folder.glob('*.cpp')}
    assert {*compiled} == {'pybind', 'unit0', 'unit1', 'unit2'}
    included = [line.split('"')[1] for name in ('unit0', 'unit1', 'unit2')
                for line in compiled[name].splitlines() if '.inc"' in line]
    assert sorted(included) == sorted(f'{name}.inc' for name in names)
    for name in included:
        assert (folder / name).read_text() == f'// {name[:-4]}'
    # Helpers of the same names are in no two files of a unit.
    assert all(sum(f'"{name}.inc"' in text for name in clash) <= 1
               for text in compiled.values())


def test_a_kept_wheel_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, 'run', lambda *_, **__: pytest.fail())
    version = torch.__version__
    kept = tmp_path / f'torch-{version}'
    kept.mkdir()
    wheel = kept / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.write_bytes(b'')
    assert setup_env.wheel_of_mmcv(Path(sys.executable), tmp_path / 'log',
                                   False, tmp_path) == wheel


def test_mmcv_is_compiled_with_optimisation(tmp_path, monkeypatch):
    kept, flags = tmp_path / f'torch-{torch.__version__}', []

    def called(command, log, progress=False, **env):
        if 'download' in command:
            source = tmp_path / 'mmcv-2.1.0'
            (source / 'mmcv/ops/csrc/pytorch').mkdir(parents=True)
            (source / 'mmcv/ops/csrc/pytorch/pybind.cpp').write_text('')
            shutil.make_archive(
                str(Path(command[command.index('-d') + 1]) / source.name),
                'gztar', tmp_path, source.name)
        else:
            flags.extend(env['CFLAGS'].split())
            kept.mkdir()
            (kept / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()
        return 0

    monkeypatch.setattr(setup_env, 'run', called)
    monkeypatch.delenv('CFLAGS', raising=False)
    wheel = setup_env.wheel_of_mmcv(Path(sys.executable), tmp_path / 'log',
                                    False, tmp_path)
    assert wheel.parent == kept and flags[-1] == '-g0'
    assert [flag for flag in flags if flag[:2] == '-O'][-1] in ('-O2', '-O3')
