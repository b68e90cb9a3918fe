"""Findings of a set, shown in other scans of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.core import geometry
from projects.core.boxes import lidar_boxes
from projects.core.infos import SHAPE_CELLS

__all__ = ['XRayInsertNodules', 'silhouettes']


@dataclass
class _Finding:
    """Something to insert.

    Attributes:
        centre: (3,) (mm).
        to_box: (3, 3), world offsets from the centre (mm) to [-1, 1]³ of the
            finding's own box.
        shape: Boolean (n, n, n), what it fills of that box.
        contrast: What it adds to the attenuation (1/mm).
        label: Class.
    """
    centre: np.ndarray
    to_box: np.ndarray
    shape: np.ndarray
    contrast: float
    label: int

    @cached_property
    def box(self) -> np.ndarray:
        """Tight box of the filled cells, (7,) (mm)."""
        count = len(self.shape)
        cells = (np.argwhere(self.shape) + .5) / count * 2 - 1
        from_box = np.linalg.inv(self.to_box)
        centres = cells @ from_box.T
        # A cell counts as the ellipsoid in it: exact along the axes, and
        # a turned ball stays a ball.
        reach = np.linalg.norm(from_box, axis=1) / count
        low, high = centres.min(0) - reach, centres.max(0) + reach
        return np.concatenate([self.centre + (low + high) / 2, high - low,
                               [0.]])

    def path(self, source: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Length of rays in it, (N,) (mm), from source (3,) and unit
        directions (N, 3)."""
        start = (self.to_box @ (source - self.centre)).astype(np.float32)
        step = (direction @ self.to_box.T).astype(np.float32)
        # Where a ray is in the box, in even steps.
        step[np.abs(step) < 1e-9] = 1e-9
        ends = (np.float32([[[-1.]], [[1.]]]) - start) / step  # (2, N, 3)
        near, far = ends.min(0).max(1), ends.max(0).min(1)
        hit = np.flatnonzero(far > near)
        near, length = near[hit], (far - near)[hit]
        along = near[:, None] + length[:, None] * _PLACES
        cells = start + along[..., None] * step[hit, None]
        # grid_sample's last coordinate is the first axis.
        filled = F.grid_sample(
            torch.from_numpy(self.shape[None, None].astype(np.float32)),
            torch.from_numpy(cells[None, None]).flip(-1), mode='nearest',
            align_corners=False)[0, 0, 0].numpy()
        path = np.zeros(len(direction))
        path[hit] = filled.mean(1) * length
        return path


_PLACES = np.float32((np.arange(40) + .5) / 40)  # of a ray's samples
_AXIS = (np.arange(SHAPE_CELLS) + .5) / SHAPE_CELLS * 2 - 1
_BALL = sum(a**2 for a in np.meshgrid(_AXIS, _AXIS, _AXIS)) <= 1


@TRANSFORMS.register_module()
class XRayInsertNodules(BaseTransform):
    """Show findings of the set in other scans, turned, scaled and mirrored.

    Projection is linear: what a finding adds to a ray's line integral is its
    attenuation times the length of the ray in it. Costs little and gives a
    small training set as many findings as it needs. The dataset fills
    :attr:`bank` with its findings that count. Each is put near where another
    one was, since that is where they occur.

    Args:
        max_nodules (int): Most per sample; the number is uniform from 0.
        sizes (tuple[float, float]): Range of the mean edge (mm); all orders
            of size are as likely, since sets have many small findings and few
            large ones.
        spread (float): Deviation of the place from another finding's (mm).
        contrasts (tuple[float, float]): Range of the change of contrast.
        attenuation (tuple[float, float]): Range of what is added (1/mm) for
            findings of sets that do not say; soft tissue in lung is 0.017.
            Those without a known shape are ellipsoids.
    """

    def __init__(self,
                 max_nodules: int = 4,
                 sizes: Tuple[float, float] = (5., 30.),
                 spread: float = 15.,
                 contrasts: Tuple[float, float] = (.7, 1.2),
                 attenuation: Tuple[float, float] = (.006, .02)) -> None:
        self.max_nodules = max_nodules
        self.sizes = sizes
        self.spread = spread
        self.contrasts = contrasts
        self.attenuation = attenuation
        self.bank: List[dict] = []

    def _draw(self) -> _Finding:
        """One of the bank's findings, changed, at another one's place."""
        item = self.bank[np.random.randint(len(self.bank))]
        other = self.bank[np.random.randint(len(self.bank))]
        centre = other['centre'] + np.random.normal(0, self.spread, 3)
        scale = np.exp(np.random.uniform(*np.log(self.sizes)))
        scale /= item['size'].mean()
        # Signs of R's diagonal make Q uniform over turns and reflections
        # (Mezzadri, arXiv math-ph/0609050).
        rotation, upper = np.linalg.qr(np.random.normal(size=(3, 3)))
        rotation *= np.sign(np.diag(upper))
        shape, contrast = item['shape'], item['contrast']
        if shape is None:
            shape = _BALL
        contrast = (np.random.uniform(*self.attenuation) if contrast is None
                    else contrast * np.random.uniform(*self.contrasts))
        return _Finding(
            centre, rotation.T / (item['size'] * scale / 2)[:, None], shape,
            contrast, item['label'])

    @staticmethod
    def add(image: np.ndarray, ct2img: np.ndarray,
            finding: _Finding) -> Optional[np.ndarray]:
        """Add a finding to one (H, W, 1) image, in place.

        Returns:
            np.ndarray: Rectangle of what was added (px), or None where the
            image does not show it.
        """
        rect, depth = geometry.project_boxes(finding.box[None],
                                             ct2img[None])
        height, width = image.shape[:2]
        low = np.floor(rect[0, 0, :2]).clip(0, [width, height]).astype(int)
        high = np.ceil(rect[0, 0, 2:]).clip(0, [width, height]).astype(int)
        if depth[0, 0] <= 0 or (high <= low).any():
            return None
        v, u = np.mgrid[low[1]:high[1], low[0]:high[0]] + .5
        source, direction = geometry.rays(
            np.stack([u.ravel(), v.ravel()], -1), ct2img)
        path = finding.path(source[0], direction).reshape(u.shape)
        rows, columns = np.nonzero(path)
        if len(rows) == 0:
            return None
        image[low[1]:high[1], low[0]:high[0], 0] += finding.contrast * path
        return np.array([columns.min(), rows.min(), columns.max() + 1,
                         rows.max() + 1]) + np.tile(low, 2)

    def transform(self, results: dict) -> dict:
        """Add to one sample."""
        results['img'] = [image.copy() for image in results['img']]
        most = self.max_nodules if self.bank else 0
        for _ in range(np.random.randint(most + 1)):
            finding = self._draw()
            rects = {}
            for view, image in enumerate(results['img']):
                rect = self.add(image, results['ct2img'][view], finding)
                if rect is not None:
                    rects[view] = rect
            if len(rects) >= 2:
                self._annotate(results, finding, rects)
        return results

    @staticmethod
    def _annotate(results: dict, finding: _Finding, rects: dict) -> None:
        boxes = results['gt_bboxes_3d']
        count = len(boxes)
        results['gt_bboxes_3d'] = LiDARInstance3DBoxes.cat(
            [boxes, lidar_boxes(finding.box)])
        new = dict(
            gt_labels_3d=[finding.label], gt_bboxes=list(rects.values()),
            gt_bboxes_labels=[finding.label] * len(rects),
            gt_bboxes_view=list(rects),
            gt_bboxes_instance=[count] * len(rects))
        for key, value in new.items():
            old = results[key]
            results[key] = np.concatenate(
                [old, np.asarray(value, dtype=old.dtype)])


def silhouettes(finding: dict, ct2img: np.ndarray,
                img_shape: Tuple[int, int]) -> np.ndarray:
    """Where each view shows a finding.

    Args:
        finding (dict): As :meth:`XRayDataset.findings` gives it; an ellipsoid
            if its shape is not known.
        ct2img (np.ndarray): (V, 4, 4).
        img_shape (tuple[int, int]): Height and width (px).

    Returns:
        np.ndarray: Boolean (V, H, W).
    """
    shape = _BALL if finding['shape'] is None else finding['shape']
    solid = _Finding(finding['centre'], np.diag(2 / finding['size']), shape,
                     1., finding['label'])
    images = np.zeros((len(ct2img), *img_shape, 1))
    for image, matrix in zip(images, ct2img):
        XRayInsertNodules.add(image, matrix, solid)
    return images[..., 0] > 0
