"""Fixtures that more than one module uses."""

import os
import shutil

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


@pytest.fixture(scope='session')
def browser():
    """Chromium, that draws without a graphics card."""
    path = shutil.which('chromium') or shutil.which('chromium-browser') or (
        shutil.which('google-chrome'))
    if path is None and not os.environ.get('CI'):
        pytest.skip('expected Chromium to look at the page, found none')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=path, args=[
                '--no-sandbox', '--disable-gpu', '--use-angle=swiftshader',
                '--enable-unsafe-swiftshader', '--no-first-run',
                '--disable-background-networking'])
        yield browser
        browser.close()
