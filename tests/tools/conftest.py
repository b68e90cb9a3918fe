"""What the tools work on."""

import pytest

from tests.helpers.commands import train
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
