"""Measured views: a detector's images, with boxes or label images or none.

Frames (mm): the world is the rig's. What is known of an object may be given
in the frame of a CT of it, with the rigid motion from there to the world,
``ct2world``. The CT's frame is, as for :mod:`data_converters.part`, 'world'
(RAS+, origin at the centre of its voxel grid), 'patient' (LPS, as its file
says) or 'ras'. Without a motion the axes of that frame are the rig's.
"""

from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from projects.core import geometry
from projects.core.files import DataError, load_json
from projects.core.geometry import LPS_TO_RAS
from projects.core.projections import (
    Reading,
    find_objects,
    read_projections,
    sources_of,
)
from projects.core.rig import Rig

from .drr import Volume
from .part import (
    BOX_FRAMES,
    Part,
    PartReader,
    assign_truth,
    axes_of,
    boxed_finding,
    centre_of,
    check_classes,
    digest,
    read_boxes,
    read_image,
    upright,
)
from .scan import ConversionError, Finding, Scan
from .tables import Row

__all__ = ['Measured', 'MeasuredReader', 'plan_views', 'read_motion']


@dataclass
class Measured(Part):
    """One object of a set, and what is known to be in it.

    Attributes:
        images: Its folder or files.
    """
    images: List[Path] = field(default_factory=list)


@dataclass
class MeasuredReader:
    """How the objects of a set are read; picklable.

    Attributes:
        rig: As large as the files' images.
        written: The same rig as large as the set's images.
        reading: How images become line integrals.
        classes, label_values, spacing: See
            :class:`data_converters.part.PartReader`.
        frame: Of boxes and label images, one of ``BOX_FRAMES``.
        ct2world: (4, 4) from that frame to the world; None if they are one
            but for the names of axes.
        inputs: For the set's options.
    """
    rig: Rig
    written: Rig
    reading: Reading
    classes: List[str]
    label_values: str = 'classes'
    spacing: Optional[Sequence[float]] = None
    frame: str = 'world'
    ct2world: Optional[np.ndarray] = None
    inputs: dict = field(default_factory=dict)

    def read(self, item: Measured) -> Scan:
        """Read an object's views and findings.

        Raises:
            ConversionError: See :func:`projects.core.projections.
                read_projections`; or no view shows a box, or a label image is
                none.
        """
        try:
            found = read_projections(item.images, self.rig.views,
                                     self.reading)
        except DataError as error:
            raise ConversionError(str(error)) from None
        views = [
            _averaged(image, view.width, view.height)
            for image, view in zip(found.views, self.written.views)
        ]
        volume = Volume(np.zeros((0, 0, 0)), np.eye(4))
        to_world = self._motion(None)
        if item.labels is not None:
            findings, volume, to_world = self._labelled(item.labels)
        else:
            findings = [self._boxed(row, number)
                        for number, row in enumerate(item.boxes)]
        return Scan(
            item.key, item.key, '', '', volume,
            None if to_world is None else np.linalg.inv(to_world), findings,
            [], self.source_digest(item), measured=views,
            record=dict(measured=dict(note=found.note, **found.facts)))

    def _frame_to_world(self) -> np.ndarray:
        """Of boxes and label images, (4, 4)."""
        motion = np.eye(4)
        if self.ct2world is not None:
            return self.ct2world
        if self.frame == 'patient':
            motion[:3, :3] = LPS_TO_RAS
        return motion

    def _motion(self, centre: Optional[np.ndarray]) -> Optional[np.ndarray]:
        """The CT's LPS coordinates to the world, (4, 4); None where that is
        not known: of boxes only, without the CT's place.

        Args:
            centre: Of the CT's voxel grid (LPS), where it is known.
        """
        lps2frame = np.eye(4)
        if self.frame != 'patient':
            lps2frame[:3, :3] = LPS_TO_RAS
        if self.frame == 'world':
            if centre is None:
                return None
            lps2frame[:3, 3] = -LPS_TO_RAS @ centre
        elif centre is None and self.ct2world is None:
            return None
        return self._frame_to_world() @ lps2frame

    def _boxed(self, row: Row, number: int) -> Finding:
        """The finding of one row of the box table."""
        box = np.array([*row.numbers(('x', 'y', 'z', 'dx', 'dy', 'dz')), 0.])
        motion = self._frame_to_world()
        box = geometry.transform_boxes(box[None], motion)[0]
        box[:3] += motion[:3, 3]
        uv, depth = geometry.project(
            box[None, :3], np.stack([v.ct2img for v in self.rig.views]))
        size = np.array([[v.width, v.height] for v in self.rig.views])
        seen = (depth[:, 0] > 0) & ((uv[:, 0] > 0)
                                    & (uv[:, 0] < size)).all(1)
        if seen.sum() >= min(2, len(seen)):
            return boxed_finding(row, number, box, self.classes)
        raise ConversionError(
            f'{row.where}: columns "x", "y", "z": expected a box that '
            f'views of the rig show, found '
            f'{np.round(box[:3], 2).tolist()} mm in its frame (--box-frame '
            f'{self.frame})')

    def _labelled(self, path: Path
                  ) -> Tuple[List[Finding], Volume, np.ndarray]:
        """Findings of a label image, its voxels in the world, and its LPS
        coordinates to the world."""
        image = read_image(path, self.spacing)
        motion = self._motion(centre_of(image))
        assert motion is not None
        # As if its file had said where the rig sees it.
        turn = LPS_TO_RAS @ motion[:3, :3]
        origin = LPS_TO_RAS @ (
            motion[:3, :3] @ image.GetOrigin() + motion[:3, 3])
        direction = turn @ np.reshape(image.GetDirection(), (3, 3))
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(origin.tolist())
        grid = upright(image)
        placed = image if grid is None else grid
        voxel2ct = np.eye(4)
        voxel2ct[:3, :3] = axes_of(placed) @ np.diag(placed.GetSpacing())
        voxel2ct[:3, 3] = LPS_TO_RAS @ placed.GetOrigin()
        volume = Volume(np.zeros(placed.GetSize(), np.int8), voxel2ct)
        reader = PartReader(self.classes, label_values=self.label_values)
        return reader.findings_of(image, path, grid, volume), volume, motion

    def source_digest(self, item: Measured) -> str:
        """Of all that an object is read from, truth included."""
        files = sources_of(item.images, self.rig.views, self.reading)
        return digest(files + ([item.labels] if item.labels else []))

    @contextmanager
    def load(self, item: Measured) -> Iterator[Scan]:
        """:meth:`read` for :func:`data_converters.convert.convert_scans`."""
        yield self.read(item)


def plan_views(images: Sequence[Path], rig: Rig, written: Rig,
               reading: Reading, boxes: Optional[Path] = None,
               labels: Sequence[Path] = (),
               classes: Optional[Sequence[str]] = None,
               frame: Optional[str] = None, label_values: str = 'classes',
               spacing: Optional[Sequence[float]] = None,
               ct2world: Optional[Path] = None
               ) -> Tuple[MeasuredReader, List[Measured]]:
    """What a call of the command line asks for, verified before any image is
    read.

    Args:
        images: See :func:`projects.core.projections.find_objects`.
        boxes: Box table; ``scan`` names the object. Or
        labels: Label images, one for each object in the order of their
            names.
        rig, written, reading, classes, label_values, spacing, frame: See
            :class:`MeasuredReader`; ``frame`` has no default for boxes.
        ct2world: File of the motion.

    Returns:
        tuple: The reader, and the objects that it takes.

    Raises:
        ConversionError: Options contradict each other, or a table is wrong.
        DataError: See :func:`projects.core.projections.find_objects`.
    """
    if boxes and frame is None:
        raise ConversionError(
            '--box-frame: expected the frame of the boxes, one of '
            f'{", ".join(BOX_FRAMES)}, found none')
    if ct2world and not (boxes or labels):
        raise ConversionError('--ct2world: expected with --boxes or '
                              '--labels, found neither')
    check_classes(classes)
    rows = None
    if boxes:
        rows, classes = read_boxes(boxes, classes)
    items = {key: Measured(key, places[0], images=places)
             for key, places in find_objects(
                 images, len(rig), reading).items()}
    assign_truth(items, rows, labels, 'object of --images')
    reader = MeasuredReader(
        rig, written, reading, list(classes or ['defect']), label_values,
        spacing, frame or 'world',
        None if ct2world is None else read_motion(ct2world))
    for item in items.values():
        if item.labels is not None and not item.labels.exists():
            raise ConversionError(f'{item.labels}: --labels: expected a '
                                  'file, found none')
    reader.inputs = dict(
        reading=asdict(reading), frame=reader.frame,
        label_values=label_values, spacing=spacing,
        image_size=[[v.width, v.height] for v in rig.views],
        ct2world=None if reader.ct2world is None
        else reader.ct2world.tolist(),
        truth='boxes' if boxes else 'labels' if labels else None,
        **(dict(boxes=digest([boxes])) if boxes else {}))
    return reader, list(items.values())


def read_motion(path: Path) -> np.ndarray:
    """A rigid motion (4, 4) from a JSON file: four rows of four numbers.

    Raises:
        DataError: It is not JSON.
        ConversionError: It is no rigid motion.
    """
    try:
        matrix = np.asarray(load_json(path), dtype=np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not (
            np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3),
                        atol=1e-4) and np.linalg.det(matrix[:3, :3]) > 0
            and np.allclose(matrix[3], [0, 0, 0, 1])):
        raise ConversionError(
            f'{path}: --ct2world: expected a rigid motion, four rows of four '
            'numbers (rotation with determinant +1, last row 0 0 0 1; mm), '
            'found another matrix')
    return matrix


def _averaged(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Line integrals of pixels that cover several: of the mean beam."""
    if image.shape == (height, width):
        return image
    return -np.log(np.maximum(
        cv2.resize(np.exp(-image), (width, height),
                   interpolation=cv2.INTER_AREA), np.float32(1e-7)))
