"""The command `rig`: its tables, its files, and what it refuses."""

import csv

import cv2
import numpy as np
import pytest

from data_converters.__main__ import main
from data_converters.geometries import read_geometry, write_geometry
from projects.core import geometry
from projects.core.rig import Rig, View

BEADS = ('view', 'u', 'v', 'x', 'y', 'z')
# A helix of beads on a cylinder, as phantoms have them.
ANGLES = np.linspace(0, 4 * np.pi, 40)
HELIX = np.column_stack([60 * np.cos(ANGLES), 60 * np.sin(ANGLES),
                         np.linspace(-70, 70, len(ANGLES))])
POINTS = np.array([[0., 0, 0], [20, -10, 30], [-35, 25, -15], [5, 40, -30]])


def refusal(*arguments):
    """The one sentence that a wrong call ends in."""
    with pytest.raises(SystemExit) as stop:
        main(['rig', *map(str, arguments)])
    assert isinstance(stop.value.code, str)
    assert '\n' not in stop.value.code
    return stop.value.code


def write(path, header, rows):
    """A table as CSV."""
    with open(path, 'w', newline='') as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def turned(rig, rng, mm=5., degrees=3.):
    """A rig whose sources are ``mm`` and whose cameras ``degrees`` off."""
    def unit():
        vector = rng.normal(size=3)
        return vector / np.linalg.norm(vector)

    return Rig([
        View(v.name, v.cam2img, geometry.moved_camera(
            v.ct2cam, np.radians(degrees) * unit(), mm * unit()), v.width,
            v.height) for v in rig.views])


def errors(found, true):
    """(V, 6): turns (rad) and shifts of the source (mm), along the axes of
    the true camera."""
    off = []
    for a, b in zip(found.views, true.views):
        motion = a.ct2cam @ geometry.invert_rigid(b.ct2cam)
        turn, _ = cv2.Rodrigues(motion[:3, :3])
        centre = geometry.camera_centres(a.ct2cam)
        off.append([*turn[:, 0], *(b.ct2cam[:3, :3] @ centre
                                   + b.ct2cam[:3, 3])])
    return np.array(off)


def projected(rig, view, points=POINTS):
    uv, depth = geometry.project(np.asarray(points, float),
                                 rig.views[view].ct2img)
    assert (depth > 0).all()
    return uv


def round_trip(rig, folder):
    """Through cone_vec."""
    write_geometry(rig, folder / 'back.npy')
    size = (rig.views[0].width, rig.views[0].height)
    back = read_geometry(folder / 'back.npy', size).rig
    for a, b in zip(rig.views, back.views):
        np.testing.assert_allclose(a.ct2img, b.ct2img, atol=1e-6, rtol=1e-9)


def damaged(path, whole, rng, count):
    """The file ``count`` times, cut or with bytes changed."""
    for _ in range(count):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 9)):
            content[place] = rng.integers(0, 256)
        cut = int(rng.integers(0, len(whole) + 1)) if rng.uniform(
            ) < .3 else len(whole)
        path.write_bytes(bytes(content[:cut]))
        yield path


def assert_told(path, out):
    """A rig, or one sentence."""
    try:
        main(['rig', '--from', str(path), '--out', str(out)])
    except SystemExit as stop:
        assert isinstance(stop.code, str) and '\n' not in stop.code
        assert len(stop.code) < 1000
