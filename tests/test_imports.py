"""Who imports whom: one core, projects on it, converters on the core alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What a network is built of.
NETWORKS = ('torch.nn', 'mmengine.model', 'mmcv.cnn', 'mmdet.models',
            'mmdet3d.models')


def imports_of(path, root=ROOT):
    """Full names of all that a file imports, wherever in it."""
    folder = path.relative_to(root).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[:len(folder) - node.level + 1] if node.level else ()
            base = '.'.join([*base, *filter(None, [node.module])])
            names.update(f'{base}.{item.name}' for item in node.names)
    return names


def below(name, package):
    return f'{name}.'.startswith(f'{package}.')


def faults(root=ROOT):
    """Imports that break one of the rules, as text."""
    found = []
    for path in sorted([*root.glob('projects/**/*.py'),
                        *root.glob('data_converters/**/*.py')]):
        place = path.relative_to(root).parts
        allowed = {'projects.core'}
        if place[0] == 'projects' and place[1] != 'core':
            allowed.add('.'.join(place[:2]))
        for name in sorted(imports_of(path, root)):
            wrong = below(name, 'projects') and not any(
                below(name, package) for package in allowed)
            # Core knows no network, converters need none.
            if place[0] == 'data_converters' or place[1] == 'core':
                wrong |= (any(below(name, part) for part in NETWORKS)
                          and not below(name, 'torch.nn.functional'))
            # What is converted does not depend on what converts.
            wrong |= place[0] == 'projects' and below(name, 'data_converters')
            if wrong:
                found.append(f'{"/".join(place)}: {name}')
    return found


def test_rules_hold():
    assert len(list((ROOT / 'projects').glob('*/__init__.py'))) >= 2
    assert faults() == []


@pytest.mark.parametrize('file, line', [
    ('projects/core/a.py', 'from projects.mv2d_xray import detector'),
    ('projects/core/report/a.py', 'from ...mv2d_xray import detector'),
    ('projects/core/a.py', 'def f():\n    import projects.mv2d_xray.tta'),
    ('projects/core/a.py', 'import torch.nn as nn'),
    ('projects/core/a.py', 'from torch import nn'),
    ('projects/core/a.py', 'from mmdet3d.models import Base3DDetector'),
    ('projects/core/a.py', 'from data_converters.scan import Scan'),
    ('projects/other/a.py', 'from projects.mv2d_xray.tta import XRayTTAModel'),
    ('projects/other/a.py', 'from projects import mv2d_xray'),
    ('data_converters/a.py', 'from projects.mv2d_xray import dataset'),
])
def test_a_broken_rule_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f'from projects.core import geometry\n{line}\n')
    assert len(faults(tmp_path)) == 1


def packed():
    """Modules that the runtime's wheel holds, as its build says."""
    for node in ast.parse((ROOT / 'runtime/setup.py').read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == 'MODULES':
            return {f'{package}.{name}' for package, names in
                    ast.literal_eval(node.value).items() for name in names}
    raise AssertionError('no MODULES')


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] not in NEEDED:
            raise ModuleNotFoundError(name, name=name)

NEEDED = {*sys.stdlib_module_names, 'numpy', 'cv2', 'onnxruntime', 'tifffile',
          'projects', 'tools', '__mp_main__'}
sys.meta_path.insert(0, Blocked())
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
import onnxruntime, tifffile
print('LOADED', *(n for n in sys.modules if n.startswith('projects.')))
"""


def test_the_runtime_needs_few_packages_and_has_all_its_modules(tmp_path):
    """In a new process, where nothing else can be imported."""
    modules = {name.replace('mv2d_xray_runtime', 'tools')
               for name in packed()}
    run = subprocess.run(
        [sys.executable, '-c', WITHOUT, *sorted(modules)], cwd=tmp_path,
        text=True, capture_output=True, check=False,
        env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin'})
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split('LOADED ')[1].split()
    assert {name for name in loaded
            if not (ROOT / name.replace('.', '/')).is_dir()} <= modules


@pytest.mark.parametrize('code', [
    'import data_converters.rigs',
    'from data_converters.__main__ import main; '
    'main(["rig", "--circle", "4", "--out", "rig.json"])',
])
def test_a_rig_needs_no_detector(tmp_path, code):
    """In a new process; nor anything that only draws."""
    names = ['projects.mv2d_xray', 'mmdet', 'mmdet3d', 'mmcv', 'mmengine',
             'matplotlib']
    code += (f'; import sys; print("LOADED", [name for name in {names} '
             'if name in sys.modules])')
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, text=True,
        capture_output=True, check=False,
        env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin'})
    assert run.returncode == 0, run.stderr
    assert 'LOADED []' in run.stdout
