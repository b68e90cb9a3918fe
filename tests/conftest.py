"""Fixtures that more than one module uses."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

import projects.mv2d_xray  # noqa: F401  registers everything
from tests.helpers.spheres import make_sphere_set

# Objects are looked up as the tools look them up.
init_default_scope('mmdet3d')
# Several processes run tests side by side; tensors are small.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def sphere_root(tmp_path_factory):
    """A set of four scans of spheres, split 'train'."""
    root = tmp_path_factory.mktemp('spheres')
    make_sphere_set(root)
    return root
