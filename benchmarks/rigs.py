"""Rigs that are no even circle, to try models and tools with.

    python benchmarks/rigs.py --out rigs

writes, for chests of the benchmark sets, or with ``--pixel-mm 1`` for the
demo's turbine blades:

- ``arc.json``: tomosynthesis, seven sources on an arc of 44° in front of a
  detector that stands still, and so is tilted against six of them;
- ``half.json``: four views in half a circle, 288 px wide, 240 high;
- ``sphere.json``: eight views from above and below, each at a distance of its
  own, whose detectors are tilted and turned about their middle;
- ``two.json``: from the front and from the left.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from scipy.spatial.transform import Rotation

from projects.core.rig import Rig, View

PITCH = 800 / 256  # mm, that of the benchmark's detectors
SIDE = 256  # px


def facing(name: str, source: np.ndarray, distance: float, turn: np.ndarray,
           pitch: float) -> View:
    """A view of the isocentre whose detector, of pixels of ``pitch`` (mm),
    ``distance`` (mm) behind it and upright, is turned by a rotation vector
    (rad) in its own axes."""
    ray = -source / np.linalg.norm(source)
    column = np.cross(ray, [0, 0, 1])
    axes = np.stack([column, np.cross(ray, column), ray], 1)
    axes[:, :2] /= np.linalg.norm(axes[:, :2], axis=0)
    axes = axes @ Rotation.from_rotvec(turn).as_matrix()
    return View.from_detector(name, source, ray * distance,
                              axes[:, 0] * pitch, axes[:, 1] * pitch, SIDE,
                              SIDE)


def rigs(pitch: float = PITCH) -> Dict[str, Rig]:
    """By name, with detectors of pixels of ``pitch`` (mm)."""
    draw = np.random.default_rng(0)
    arc: List[View] = []
    for number, angle in enumerate(np.radians(np.linspace(-22, 22, 7))):
        source = 300 * np.array([0, np.cos(angle), np.sin(angle)])
        arc.append(View.from_detector(
            f'CAM_{number:02d}', source, [0, -300, 0], [-pitch, 0, 0],
            [0, 0, -pitch], SIDE, SIDE))
    sphere = []
    for number in range(8):
        angle, height = number * np.pi / 4, np.radians(20) * (-1)**number
        towards = np.array([np.cos(angle) * np.cos(height),
                            np.sin(angle) * np.cos(height), np.sin(height)])
        sphere.append(facing(
            f'CAM_{number:02d}', towards * draw.uniform(290, 330),
            draw.uniform(290, 310), draw.uniform(-.15, .15, 3), pitch))
    two = [facing(f'CAM_{number:02d}', 300 * np.array(towards), 300.,
                  np.zeros(3), pitch)
           for number, towards in enumerate([(0, 1, 0), (-1, 0, 0)])]
    return dict(
        arc=Rig(arc), sphere=Rig(sphere), two=Rig(two),
        half=Rig.circle(4, radius=310., image_size=288, image_height=240,
                        detector_width=SIDE * pitch, arc=180., start=10.))


def main(argv: Optional[List[str]] = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder')
    parser.add_argument('--pixel-mm', type=float, default=PITCH,
                        help='of the detectors (default: %(default)s)')
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rig in rigs(args.pixel_mm).items():
        rig.save(args.out / f'{name}.json')


if __name__ == '__main__':
    main()
