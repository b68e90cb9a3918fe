"""From files to the network's input: loading, augmentation, packing.

Every geometric transform keeps images, 2D boxes, 3D boxes and matrices
consistent, so that ``ct2img`` still projects the boxes onto the images.
Randomness comes from NumPy's global generator, which mmengine seeds in every
worker. Images are lists of (H, W, 1) float32 line integrals.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Dict, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from . import geometry
from .boxes import gravity_boxes
from .infos import SHAPE_CELLS, InfosError

__all__ = [
    'LoadXRayViews', 'PackXRayInputs', 'ResizeXRay', 'XRayGridMask',
    'XRayInsertNodules', 'XRayPhotometric', 'XRayPhotonNoise',
    'XRayPoseError', 'XRayRandomFlip', 'XRayRandomRotate', 'XRayViewDropout',
    'silhouettes'
]

_PER_VIEW = ('cam2img', 'ct2cam', 'ct2img')
_BOXES_2D = ('gt_bboxes', 'ignored_bboxes')


def _annotations(results: dict) -> List[dict]:
    """Where boxes are: in a sample for training and, for testing, in what the
    metrics will read, which is as much in the sample's frame."""
    held = [results] if 'gt_bboxes' in results else []
    if 'eval_ann_info' in results:
        results['eval_ann_info'] = dict(results['eval_ann_info'])
        held.append(results['eval_ann_info'])
    return held


@TRANSFORMS.register_module()
class LoadXRayViews(BaseTransform):
    """Read a sample's images, matrices and annotations.

    Adds ``img``, ``cam2img``, ``ct2cam``, ``ct2img`` (V, 4, 4), ``img_shape``
    (of the first view), ``num_views``, ``view_names`` and everything in
    ``ann_info``.

    Args:
        scale (float, optional): Line integral of one grey level. Defaults to
            the set's own (metainfo.intensity) and, for images without a set,
            to the converter's 16 / 65535.
        offset (float, optional): Line integral of grey level 0. Defaults to
            the set's own or 0.

    Raises:
        InfosError: An image is missing, unreadable, of another size than the
            infos say, or has 8 bits where no scale is given for them.
    """

    def __init__(self, scale: Optional[float] = None,
                 offset: Optional[float] = None) -> None:
        self.scale = scale
        self.offset = offset

    def transform(self, results: dict) -> dict:
        """Load one sample."""
        views = results['images']
        window = dict(scale=16 / 65535, offset=0.)
        window.update(results.get('intensity') or {})
        scale = window['scale'] if self.scale is None else self.scale
        offset = window['offset'] if self.offset is None else self.offset
        results['img'] = [
            self._read(view) * np.float32(scale) + np.float32(offset)
            for view in views.values()
        ]
        for key, name in zip(_PER_VIEW, ('cam2img', 'lidar2cam',
                                         'lidar2img')):
            results[key] = np.stack([
                np.asarray(v[name], dtype=np.float64) for v in views.values()
            ])
        results['view_names'] = list(views)
        results['img_paths'] = [v['img_path'] for v in views.values()]
        results['num_views'] = len(views)
        results['img_shape'] = results['img'][0].shape[:2]
        # From the world to that of the images, as later transforms move it.
        results['world_augmentation'] = np.eye(3)
        results.update(results.get('ann_info') or {})
        return results

    def _read(self, view: dict) -> np.ndarray:
        path = view['img_path']
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        if image is None:
            raise InfosError(f'{path}: image: expected a readable PNG, found '
                             'none')
        if image.dtype == np.uint8 and self.scale is None:
            raise InfosError(f'{path}: image depth: expected 16 bits, or a '
                             'scale for other grey levels, found 8 bits')
        expected = (view['height'], view['width'])
        if image.shape != expected:
            raise InfosError(
                f'{path}: image size: expected {expected[1]} x {expected[0]} '
                f'px as in the infos, found {image.shape[1]} x '
                f'{image.shape[0]}')
        return image.astype(np.float32)[..., None]


@TRANSFORMS.register_module()
class ResizeXRay(BaseTransform):
    """Resize all views, with their boxes and intrinsics.

    Args:
        scale (tuple[int, int]): Width and height (px) of the result.
    """

    def __init__(self, scale: Tuple[int, int]) -> None:
        self.scale = tuple(scale)

    def transform(self, results: dict) -> dict:
        """Resize one sample."""
        width, height = self.scale
        factors = np.array([[width / i.shape[1], height / i.shape[0]]
                            for i in results['img']])
        results['img'] = [
            cv2.resize(
                i, self.scale, interpolation=cv2.INTER_AREA
                if min(f) <= 1 else cv2.INTER_LINEAR).reshape(
                    height, width, 1)
            for i, f in zip(results['img'], factors)
        ]
        results['cam2img'] = np.stack([
            geometry.scale_cam2img(k, *f)
            for k, f in zip(results['cam2img'], factors)
        ])
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        for annotations in _annotations(results):
            for key in _BOXES_2D:
                factor = factors[annotations[f'{key}_view']]
                annotations[key] = (annotations[key] *
                                    np.tile(factor, 2)).astype(np.float32)
        results['img_shape'] = (height, width)
        return results


@TRANSFORMS.register_module()
class XRayPhotometric(BaseTransform):
    """The papers' seven augmentations, each with its own probability.

    Betancur et al. §3.1, in their order. Amounts are fractions of each image's
    own range (minimum to maximum), so they mean the same for any window. One
    draw holds for all views, as one exposure would; noise differs in every
    pixel.

    Args:
        prob (float): Of each. Defaults to 0.5.
        brightness (float): Largest shift. Defaults to 0.05.
        contrast (float): Largest change of the slope. Defaults to 0.2.
        gamma (float): Largest exponent; the smallest is its inverse. Defaults
            to 1.3.
        noise (float): Largest standard deviation. Defaults to 0.005.
        blur (float): Largest standard deviation (px). Defaults to 0.7.
        salt_and_pepper (float): Largest share of pixels. Defaults to 0.001.
        vignetting (float): Largest loss in the corners. Defaults to 0.2.

        0 (for gamma: 1) turns one off.
    """

    def __init__(self,
                 prob: float = .5,
                 brightness: float = .05,
                 contrast: float = .2,
                 gamma: float = 1.3,
                 noise: float = .005,
                 blur: float = .7,
                 salt_and_pepper: float = .001,
                 vignetting: float = .2) -> None:
        self.prob = prob
        self.amounts = dict(
            brightness=brightness, contrast=contrast, gamma=gamma,
            noise=noise, blur=blur, salt_and_pepper=salt_and_pepper,
            vignetting=vignetting)

    def draw(self) -> Dict[str, float]:
        """Random amounts of those that apply this time."""
        drawn = {}
        for name, most in self.amounts.items():
            applies, unit = np.random.rand() < self.prob, np.random.rand()
            if not applies:
                continue
            if name == 'gamma':
                drawn[name] = most**(2 * unit - 1)
            elif name in ('brightness', 'contrast'):
                drawn[name] = most * (2 * unit - 1)
            else:
                drawn[name] = most * unit
        return drawn

    @staticmethod
    def apply(image: np.ndarray, amounts: Dict[str, float]) -> np.ndarray:
        """Change one (H, W, 1) image by given amounts."""
        low, high = float(image.min()), float(image.max())
        span = max(high - low, 1e-6)
        unit = (image[..., 0] - low) / span
        unit = unit + amounts.get('brightness', 0.)
        unit = (unit - unit.mean()) * (
            1 + amounts.get('contrast', 0.)) + unit.mean()
        if 'gamma' in amounts:
            unit = np.clip(unit, 0, None)**amounts['gamma']
        if 'noise' in amounts:
            unit = unit + np.random.normal(0, amounts['noise'], unit.shape)
        if amounts.get('blur', 0.) > .1:
            unit = cv2.GaussianBlur(unit, (0, 0), amounts['blur'])
        if 'salt_and_pepper' in amounts:
            chance = np.random.rand(*unit.shape)
            half = amounts['salt_and_pepper'] / 2
            unit = np.where(chance < half, 0., unit)
            unit = np.where(chance > 1 - half, 1., unit)
        if 'vignetting' in amounts:
            height, width = unit.shape
            y, x = np.mgrid[:height, :width]
            radius = (((x + .5) / width - .5)**2 +
                      ((y + .5) / height - .5)**2) * 2
            unit = unit * (1 - amounts['vignetting'] * radius)
        return (unit * span + low).astype(np.float32)[..., None]

    def transform(self, results: dict) -> dict:
        """Change one sample."""
        amounts = self.draw()
        if amounts:
            results['img'] = [self.apply(i, amounts) for i in results['img']]
        return results


@TRANSFORMS.register_module()
class XRayPhotonNoise(BaseTransform):
    """Quantum noise: what a detector counts behind the object is Poisson.

    A line integral p leaves ``photons * exp(-p)`` of a pixel's photons; the
    result is the line integral of the drawn count (Beer-Lambert).

    Args:
        photons (float | tuple[float, float]): Per pixel without an object; of
            a range, drawn anew (log-uniform) for each sample.
    """

    def __init__(self, photons: Union[float, Tuple[float, float]]) -> None:
        self.photons = np.broadcast_to(photons, 2)

    def transform(self, results: dict) -> dict:
        """Add noise to one sample."""
        photons = np.exp(np.random.uniform(*np.log(self.photons)))
        results['img'] = [
            -np.log(np.random.poisson(photons * np.exp(-image)).clip(1) /
                    photons).astype(np.float32) for image in results['img']
        ]
        return results


@TRANSFORMS.register_module()
class XRayGridMask(BaseTransform):
    """Hide a random grid of squares (GridMask, arXiv 2001.04086).

    Args:
        prob (float): Defaults to 0.5.
        ratio (float): Side of a hidden square as a share of the grid's step.
        steps (tuple[float, float]): Range of the grid's step as a share of
            the image's shorter side.
    """

    def __init__(self, prob: float = .5, ratio: float = .4,
                 steps: Tuple[float, float] = (.1, .3)) -> None:
        self.prob = prob
        self.ratio = ratio
        self.steps = steps

    def transform(self, results: dict) -> dict:
        """Mask every view with a grid of its own."""
        if np.random.rand() >= self.prob:
            return results
        masked = []
        for image in results['img']:
            height, width = image.shape[:2]
            step = max(
                int(np.random.uniform(*self.steps) * min(height, width)), 2)
            side = max(int(step * self.ratio), 1)
            shift = np.random.randint(0, step, 2)
            hide = (((np.arange(height) + shift[0]) % step < side)[:, None] &
                    ((np.arange(width) + shift[1]) % step < side)[None])
            masked.append(
                np.where(hide[..., None], image.mean(), image).astype(
                    np.float32))
        results['img'] = masked
        return results


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
        results['gt_bboxes_3d'] = LiDARInstance3DBoxes.cat([
            boxes, LiDARInstance3DBoxes(
                finding.box[None].astype(np.float32),
                origin=(.5, .5, .5))])
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


@TRANSFORMS.register_module()
class XRayRandomFlip(BaseTransform):
    """Mirror the world in x and every image with it.

    Args:
        prob (float): Defaults to 0.5.
    """

    def __init__(self, prob: float = .5) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Mirror one sample, or leave it."""
        if np.random.rand() >= self.prob:
            return results
        widths = np.array([i.shape[1] for i in results['img']])
        results['img'] = [np.ascontiguousarray(i[:, ::-1])
                          for i in results['img']]
        mirrored = [
            geometry.mirror_view(k, t, w) for k, t, w in zip(
                results['cam2img'], results['ct2cam'], widths)
        ]
        results['cam2img'] = np.stack([m[0] for m in mirrored])
        results['ct2cam'] = np.stack([m[1] for m in mirrored])
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        for annotations in _annotations(results):
            for key in _BOXES_2D:
                width = widths[annotations[f'{key}_view']][:, None]
                boxes = annotations[key]
                annotations[key] = np.concatenate([
                    width - boxes[:, 2:3], boxes[:, 1:2],
                    width - boxes[:, 0:1], boxes[:, 3:4]
                ], 1).astype(np.float32)
        _move_boxes(results, np.diag([-1., 1., 1.]))
        return results


@TRANSFORMS.register_module()
class XRayRandomRotate(BaseTransform):
    """Rotate the world about z; the images stay as they are.

    Args:
        max_angle (float): Largest angle (degrees). Defaults to 180.
        step (float, optional): Only multiples of it, as the rig's 36. Then
            the rotation is the same as taking the views in another order.
    """

    def __init__(self, max_angle: float = 180.,
                 step: Optional[float] = None) -> None:
        self.max_angle = max_angle
        self.step = step

    def transform(self, results: dict) -> dict:
        """Rotate one sample."""
        angle = np.random.uniform(-self.max_angle, self.max_angle)
        if self.step:
            angle = round(angle / self.step) * self.step
        rotation = geometry.rotation_z(np.radians(angle))
        results['ct2cam'] = results['ct2cam'] @ geometry.invert_rigid(rotation)
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        _move_boxes(results, rotation)
        return results


def _move_boxes(results: dict, matrix: np.ndarray) -> None:
    results['world_augmentation'] = (
        matrix[:3, :3] @ results['world_augmentation'])
    for annotations in _annotations(results):
        for key in ('gt_bboxes_3d', 'ignored_bboxes_3d'):
            annotations[key] = LiDARInstance3DBoxes(
                geometry.transform_boxes(
                    gravity_boxes(annotations[key]), matrix),
                origin=(.5, .5, .5))


@TRANSFORMS.register_module()
class XRayViewDropout(BaseTransform):
    """Leave random views out, as if they had not been taken.

    Args:
        prob (float): Of leaving any out. Defaults to 0.5.
        min_views (int): Views that stay at least. Defaults to 5.
        max_views (int, optional): Views that stay at most where any are left
            out. Defaults to all.
    """

    def __init__(self, prob: float = .5, min_views: int = 5,
                 max_views: Optional[int] = None) -> None:
        self.prob = prob
        self.min_views = min_views
        self.max_views = max_views

    def transform(self, results: dict) -> dict:
        """Drop views of one sample."""
        count = results['num_views']
        if np.random.rand() >= self.prob or count <= self.min_views:
            return results
        most = min(self.max_views or count, count)
        keep = np.random.randint(self.min_views, most + 1)
        return keep_views(
            results, np.sort(np.random.permutation(count)[:keep]))


@TRANSFORMS.register_module()
class XRayPoseError(BaseTransform):
    """Matrices that are wrong, as a rig's are whose geometry was measured.

    The object seems moved, in every view by another random motion of the
    same size: shifted by ``translation`` (mm) and turned about the isocentre
    by ``rotation`` (degrees), each in a random direction.

    Args:
        translation (float): Defaults to 0.
        rotation (float): Defaults to 0.
    """

    def __init__(self, translation: float = 0., rotation: float = 0.) -> None:
        self.translation = translation
        self.rotation = rotation

    def transform(self, results: dict) -> dict:
        """Falsify the matrices of one sample."""
        sizes = np.array([[np.radians(self.rotation)], [self.translation]])
        poses = []
        for ct2cam in results['ct2cam']:
            motion = np.random.normal(size=(2, 3))
            motion *= sizes / np.linalg.norm(motion, axis=1, keepdims=True)
            poses.append(ct2cam @ geometry.rigid_motion(*motion))
        results['ct2cam'] = np.stack(poses)
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        return results


def keep_views(results: dict, views: Sequence[int]) -> dict:
    """Reduce a loaded sample to some of its views, in the given order."""
    views = np.asarray(views, dtype=int)
    for key in _PER_VIEW:
        results[key] = results[key][views]
    for key in ('img', 'view_names', 'img_paths'):
        results[key] = [results[key][v] for v in views]
    results['num_views'] = len(views)
    place = {view: row for row, view in enumerate(views.tolist())}
    for annotations in _annotations(results):
        for key in _BOXES_2D:
            stays = np.isin(annotations[f'{key}_view'], views)
            for name in (key, f'{key}_view', f'{key}_labels',
                         f'{key}_instance'):
                if name in annotations:
                    annotations[name] = annotations[name][stays]
            annotations[f'{key}_view'] = np.array(
                [place[v] for v in annotations[f'{key}_view'].tolist()],
                dtype=np.int64)
    return results


@TRANSFORMS.register_module()
class PackXRayInputs(Pack3DDetInputs):
    """Pack a sample as mmdet3d does, with 2D boxes flattened over views.

    ``inputs['img']`` is (V, 1, H, W). The data sample has, besides mmdet3d's
    fields, ``gt_instances`` (``bboxes``, ``labels``, ``view_ids``,
    ``instance_ids``), ``ignored_instances`` (``bboxes``, ``view_ids``) and
    ``ignored_instances_3d`` (``bboxes_3d``).
    """

    def __init__(self) -> None:
        super().__init__(
            keys=('img', 'gt_bboxes_3d', 'gt_labels_3d'),
            meta_keys=('cam2img', 'ct2cam', 'ct2img', 'img_shape',
                       'num_views', 'view_names', 'img_paths', 'token',
                       'lidc_id_ref', 'sample_idx', 'ct2patient',
                       'frame_of_reference_uid', 'box_type_3d',
                       'box_mode_3d', 'world_augmentation'))

    def pack_single_results(self, results: dict) -> dict:
        """Pack one sample."""
        shapes = {i.shape[:2] for i in results['img']}
        if len(shapes) > 1:
            raise InfosError(
                f'scan {results.get("token")}: views of one size are '
                f'expected after loading, found {sorted(shapes)}; add '
                'ResizeXRay to the pipeline')
        packed = super().pack_single_results(results)
        sample = packed['data_samples']
        if 'gt_bboxes' in results:
            sample.gt_instances = InstanceData(
                bboxes=torch.as_tensor(results['gt_bboxes']),
                labels=torch.as_tensor(results['gt_bboxes_labels']),
                view_ids=torch.as_tensor(results['gt_bboxes_view']),
                instance_ids=torch.as_tensor(results['gt_bboxes_instance']))
            sample.ignored_instances = InstanceData(
                bboxes=torch.as_tensor(results['ignored_bboxes']),
                view_ids=torch.as_tensor(results['ignored_bboxes_view']))
            sample.ignored_instances_3d = InstanceData(
                bboxes_3d=results['ignored_bboxes_3d'])
        return packed
