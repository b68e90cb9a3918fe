"""Rigs: the views of an acquisition, as data.

Frames and units are those of :mod:`projects.core.geometry`.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np

from projects.core.geometry import (
    camera_centres,
    circular_ct2cam,
    compose_ct2img,
    pixel_sizes,
    scale_cam2img,
)

__all__ = ['Rig', 'View']

_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_. -]*')


def _matrix(item: dict, key: str, shapes: Sequence[tuple],
            where: str) -> np.ndarray:
    """A field of numbers of one of some shapes."""
    expected = ' or '.join('x'.join(map(str, s)) for s in shapes)
    try:
        matrix = np.asarray(item[key])
    except ValueError:
        raise ValueError(f'{where}: field "{key}": expected {expected}, found '
                         'rows of different lengths') from None
    if matrix.shape not in shapes or matrix.dtype.kind not in 'iuf':
        raise ValueError(
            f'{where}: field "{key}": expected {expected} numbers, found '
            f'shape {matrix.shape} of {matrix.dtype}')
    return matrix.astype(np.float64)


@dataclass
class View:
    """One X-ray view.

    Attributes:
        name: Key of the view, ``CAM_00`` and so on.
        cam2img: (4, 4), K padded (px).
        ct2cam: (4, 4), rigid (mm).
        width, height: Detector size (px).
    """
    name: str
    cam2img: np.ndarray
    ct2cam: np.ndarray
    width: int
    height: int

    @property
    def ct2img(self) -> np.ndarray:
        """World to image, (4, 4)."""
        return compose_ct2img(self.cam2img, self.ct2cam)

    @property
    def pixel_size(self) -> float:
        """Shorter edge of a pixel at the isocentre's depth (mm)."""
        return float(pixel_sizes(self.cam2img, self.ct2cam))

    @classmethod
    def from_detector(cls, name: str, source: np.ndarray, centre: np.ndarray,
                      column: np.ndarray, row: np.ndarray, width: int,
                      height: int) -> 'View':
        """A view as scanners state it: a point source and a flat detector.

        The camera looks along the detector's normal, whatever the direction
        of the beam: a tilt of the detector is a principal point that is off
        its centre, and columns that are not square to the rows are a skew.

        Args:
            name: Key of the view.
            source: (3,) (mm).
            centre: (3,) of the detector, the point (width / 2, height / 2).
            column: (3,) step from a pixel to that in the next column (mm).
            row: (3,) step from a pixel to that in the next row (mm).
            width, height: Of the detector (px).

        Raises:
            ValueError: The steps span no plane, the source lies in it, or
                the detector is seen from behind.
        """
        source, centre, column, row = (
            np.asarray(a, dtype=np.float64)
            for a in (source, centre, column, row))
        normal = np.cross(column, row)
        length = np.linalg.norm(column) * np.linalg.norm(row)
        if not np.linalg.norm(normal) > 1e-3 * length:
            raise ValueError(
                'column and row: expected two directions that span the '
                f'detector, found {column.tolist()} and {row.tolist()}')
        x = column / np.linalg.norm(column)
        z = normal / np.linalg.norm(normal)
        rotation = np.stack([x, np.cross(z, x), z])
        # The detector in the camera's frame: its first corner, its steps.
        corner = rotation @ (
            centre - column * width / 2 - row * height / 2 - source)
        distance, pitch = corner[2], np.linalg.norm(column)
        if not distance > 1e-6:
            raise ValueError(
                'source: expected it before the detector, that is column x '
                'row pointing away from it (columns to the right, rows '
                f'down), found it {abs(distance):g} mm behind')
        across, down = rotation[:2] @ row
        cam2img = np.eye(4)
        cam2img[0, :3] = [
            distance / pitch, -distance * across / (down * pitch),
            (corner[1] * across / down - corner[0]) / pitch]
        cam2img[1, 1:3] = [distance / down, -corner[1] / down]
        ct2cam = np.eye(4)
        ct2cam[:3, :3] = rotation
        ct2cam[:3, 3] = -rotation @ source
        return cls(name, cam2img, ct2cam, width, height)

    def to_detector(self, distance: float
                    ) -> Tuple[np.ndarray, np.ndarray, np.ndarray,
                               np.ndarray]:
        """Inverse of :meth:`from_detector`: source, the detector's centre,
        and its steps from a pixel to that in the next column and in the next
        row, (3,) each (mm), of the detector that is ``distance`` (mm) from
        the source. All distances give the same image."""
        inner, rotation = self.cam2img, self.ct2cam[:3, :3]
        pitch, down = distance / inner[0, 0], distance / inner[1, 1]
        across = -inner[0, 1] * down * pitch / distance
        corner = np.array([-inner[1, 2] * across - inner[0, 2] * pitch,
                           -inner[1, 2] * down, distance])
        source = camera_centres(self.ct2cam)
        column = rotation[0] * pitch
        row = rotation[0] * across + rotation[1] * down
        centre = (source + corner @ rotation + column * self.width / 2
                  + row * self.height / 2)
        return source, centre, column, row

    def to_dict(self) -> dict:
        """Plain containers and numbers, for JSON."""
        return dict(
            name=self.name, width=self.width, height=self.height,
            cam2img=np.asarray(self.cam2img)[:3, :3].tolist(),
            ct2cam=np.asarray(self.ct2cam).tolist())


@dataclass
class Rig:
    """An acquisition geometry: any number of views of one object."""
    views: List[View] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.views)

    @classmethod
    def circle(cls, num_views: int = 10, radius: float = 300.,
               source_to_detector: float = 600., image_size: int = 1024,
               detector_width: float = 800., arc: float = 360.,
               start: float = 0., image_height: Optional[int] = None
               ) -> 'Rig':
        """Views evenly spaced on a circle about z (the papers' rig).

        Args:
            num_views (int): Number of views.
            radius (float): Source to isocentre (mm).
            source_to_detector (float): Source to detector (mm).
            image_size (int): Pixels per side.
            detector_width (float): Side of the detector (mm); the papers'
                1024 px of 0.78125 mm. With ``image_height`` its width.
            arc (float): Degrees covered; the last of a full circle's views
                is one step before the first.
            start (float): Angle of the first view (degrees).
            image_height (int, optional): Rows, where not as many as columns;
                pixels stay square.
        """
        height = image_height or image_size
        focal = source_to_detector * image_size / detector_width
        cam2img = np.eye(4)
        cam2img[0, 0] = cam2img[1, 1] = focal
        cam2img[:2, 2] = image_size / 2, height / 2
        full = abs(arc) >= 360
        step = arc / (num_views if full else max(num_views - 1, 1))
        return cls([
            View(f'CAM_{i:02d}', cam2img.copy(),
                 circular_ct2cam(math.radians(start + i * step), radius),
                 image_size, height) for i in range(num_views)
        ])

    @property
    def seen_half(self) -> float:
        """Half of the edge of the cube round the isocentre that all views
        see, about: what their detectors hold at its depth (mm)."""
        return min(v.pixel_size * min(v.width, v.height)
                   for v in self.views) / 2

    @property
    def source_to_isocentre(self) -> float:
        """Along the detector's normal (mm); the median of the views."""
        return float(np.median([abs(v.ct2cam[2, 3]) for v in self.views]))

    def resized(self, width: int, height: int) -> 'Rig':
        """The same rig with detectors of ``width`` x ``height`` px."""
        return Rig([
            View(v.name,
                 scale_cam2img(v.cam2img, width / v.width, height / v.height),
                 v.ct2cam.copy(), width, height) for v in self.views
        ])

    def to_dict(self) -> dict:
        """The content of ``rig.json``."""
        return dict(
            schema_version=1, units='mm', frame='ct (RAS+, volume centre)',
            views=[v.to_dict() for v in self.views])

    @classmethod
    def from_dict(cls, content: dict, source: str = 'rig') -> 'Rig':
        """Build and verify a rig; ``source`` names it in errors.

        ``rig.schema.json`` beside this module says the same to other
        programs, but for what it cannot say: that poses are rigid and names
        differ.

        Raises:
            ValueError: A field is missing, misshapen or not a camera.
        """
        views = content.get('views') if isinstance(content, dict) else None
        if not isinstance(views, list) or not views:
            raise ValueError(
                f'{source}: field "views": expected a non-empty list of '
                f'views, found {type(views).__name__}')
        for key, value in (('schema_version', 1), ('units', 'mm')):
            if content.get(key, value) != value:
                raise ValueError(f'{source}: field "{key}": expected '
                                 f'{value!r}, found {content[key]!r}')
        rig = cls()
        for i, item in enumerate(views):
            where = f'{source}: views[{i}]'
            for key in ('name', 'width', 'height', 'cam2img', 'ct2cam'):
                if not isinstance(item, dict) or key not in item:
                    raise ValueError(f'{where}: field "{key}" is missing')
            name = item['name']
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                # Images are written under it.
                raise ValueError(
                    f'{where}: field "name": expected letters, digits, "_", '
                    f'"-", "." and spaces, found {name!r:.80}')
            k = _matrix(item, 'cam2img', ((3, 3), (4, 4)), where)
            pose = _matrix(item, 'ct2cam', ((4, 4), ), where)
            if not (np.isfinite(k).all() and np.isfinite(pose).all()):
                raise ValueError(f'{where}: matrices must be finite')
            if not np.allclose(k[2], np.eye(len(k))[2]):
                raise ValueError(f'{where}: field "cam2img": expected a third '
                                 f'row of 0 0 1, found {k[2].tolist()}')
            for key in ('width', 'height'):
                if isinstance(item[key], bool) or not isinstance(
                        item[key], (int, float)) or item[key] % 1:
                    raise ValueError(f'{where}: field "{key}": expected a '
                                     f'whole number, found {item[key]!r:.80}')
            width, height = int(item['width']), int(item['height'])
            rotation = pose[:3, :3]
            if (not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
                    or np.linalg.det(rotation) < 0
                    or not np.allclose(pose[3], [0, 0, 0, 1])):
                raise ValueError(
                    f'{where}: field "ct2cam": expected a rigid motion '
                    '(rotation with determinant +1, last row 0 0 0 1)')
            if min(k[0, 0], k[1, 1]) <= 0 or min(width, height) <= 0:
                raise ValueError(f'{where}: focal lengths, width and height '
                                 'must be positive')
            cam2img = np.eye(4)
            cam2img[:3, :3] = k[:3, :3]
            rig.views.append(
                View(name, cam2img, pose, width, height))
        names = [v.name for v in rig.views]
        if len(set(names)) != len(names):
            raise ValueError(
                f'{source}: view names must differ, found {names}')
        return rig

    @classmethod
    def load(cls, path: Union[str, Path]) -> 'Rig':
        """Read ``rig.json``.

        Raises:
            ValueError: The file is missing, is not JSON or not a rig.
        """
        try:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
        except OSError as error:
            raise ValueError(f'{path}: cannot be read: {error.strerror}'
                             ) from None
        except (ValueError, RecursionError) as error:  # or too deep
            raise ValueError(f'{path}: is not JSON: {error}') from None
        return cls.from_dict(content, str(path))

    def save(self, path: Union[str, Path]) -> None:
        """Write ``rig.json``."""
        Path(path).write_text(
            json.dumps(self.to_dict(), indent=1) + '\n', encoding='utf-8')
