"""What the tools work on."""

import pytest

from data_converters.__main__ import main as convert
from tests.helpers.commands import ROOT, tool, train
from tests.helpers.spheres import make_sphere_set


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """A set, and a training of four iterations on it."""
    root = tmp_path_factory.mktemp('tools')
    for split, seed in (('train', 0), ('val', 1)):
        make_sphere_set(root / 'data', 3, 4, 64, seed=seed, split=split)
    done = train(root / 'work', root / 'data', 4)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


@pytest.fixture(scope='session')
def deployed(tmp_path_factory):
    """Where a released model, by its name, or one with another checkpoint is
    deployed."""
    folders = {}

    def folder_of(name, checkpoint=None):
        if name not in folders:
            out = tmp_path_factory.mktemp('deployed') / name
            done = tool(
                'deploy.py', ROOT / f'configs/mv2d_xray/{name}.py',
                checkpoint or ROOT / f'checkpoints/{name}.pth', '--out', out)
            assert done.returncode == 0, done.stderr[-2000:]
            folders[name] = out
        return folders[name]

    return folder_of


@pytest.fixture(scope='session')
def blades(tmp_path_factory):
    """Views of two blades and their rig, as the demo makes them."""
    root = tmp_path_factory.mktemp('blades')
    for words in (
            'blade --out-dir {0}/ct --num-parts 2 --seed 7',
            'rig --circle 10 --radius 300 --sdd 600 --image-size 256 '
            '--pixel-mm 1 --out {0}/rig.json',
            'volume --volume {0}/ct --boxes {0}/ct/boxes.csv --box-frame '
            'world --mu-per-value 1e-4 --rig {0}/rig.json --val-fraction 0 '
            '--test-fraction 1 --out-dir {0}/set --jobs 1'):
        convert(words.format(root).split())
    return root
