"""What mmdet has no transform for: scans of slices, crops of findings."""

from typing import Sequence, Tuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample

from projects.core import geometry
from projects.core.files import DataError

__all__ = ['CropSlice', 'FlipCTScan', 'LoadCTSlices', 'PackCTScan',
           'TurnSlice', 'read_slice']

_META = ('cam2img', 'ct2cam', 'ct2img', 'img_shape', 'num_views',
         'view_names', 'img_paths', 'token', 'lidc_id_ref', 'sample_idx',
         'ct2patient', 'frame_of_reference_uid', 'slice_mm', 'selected')


def read_slice(item: dict, scale: float = 1.) -> np.ndarray:
    """The image (H, W, 3) uint8 of an infos' record, enlarged.

    Raises:
        DataError: It is missing, unreadable, or of another size than the
            record says.
    """
    image = cv2.imread(str(item['img_path']), cv2.IMREAD_COLOR)
    shape: Tuple[int, int] = (item['height'], item['width'])
    if image is None or image.shape[:2] != shape:
        found = 'none that can be read' if image is None else str(
            image.shape[:2])
        raise DataError(f'{item["img_path"]}: expected an image {shape} '
                        f'as the infos say, found {found}')
    if scale != 1:
        image = cv2.resize(image, None, fx=scale, fy=scale,
                           interpolation=cv2.INTER_LINEAR)
    return image


@TRANSFORMS.register_module()
class CropSlice(BaseTransform):
    """Cut a square out of a slice: round one of its findings, if it has one
    that counts, else anywhere.

    mmdet's ``RandomCrop`` looks at no box: three of four crops would miss a
    finding. Boxes are clipped; those of which less than ``least`` of an edge
    is left are removed. A slice that is smaller is padded with black at the
    right and below.

    Args:
        size (int): Of the square (px).
        least (float): Share of an edge.
    """

    def __init__(self, size: int, least: float = .3) -> None:
        self.size = size
        self.least = least

    def _first(self, length: int, low: float, high: float) -> int:
        """First pixel of a random crop that holds low to high, or their
        middle if they are farther apart."""
        if high - low > self.size:
            low = high = (low + high) / 2
        first = max(min(int(np.ceil(high)) - self.size, int(low)), 0)
        last = min(int(low), max(length - self.size, 0))
        first = min(first, last)
        return int(np.random.randint(first, last + 1))

    def transform(self, results: dict) -> dict:
        """Crop one slice."""
        image = results['img']
        boxes = results['gt_bboxes'].tensor.numpy()
        counting = np.flatnonzero(~results['gt_ignore_flags'])
        if len(counting):
            target = boxes[np.random.choice(counting)]
        else:
            x, y = (np.random.uniform(0, n) for n in image.shape[1::-1])
            target = np.array([x, y, x, y])
        x, y = (self._first(image.shape[1 - axis], target[axis],
                            target[axis + 2]) for axis in range(2))
        cut = image[y:y + self.size, x:x + self.size]
        lacking = [(0, self.size - n) for n in cut.shape[:2]]
        results['img'] = np.pad(cut, [*lacking, *[(0, 0)] * (cut.ndim - 2)])
        results['img_shape'] = (self.size, self.size)
        moved = boxes - [x, y, x, y]
        clipped = moved.clip(0, self.size)
        kept = ((clipped[:, 2:] - clipped[:, :2])
                > self.least * (moved[:, 2:] - moved[:, :2])).all(1)
        results['gt_bboxes'] = type(results['gt_bboxes'])(
            torch.from_numpy(clipped[kept].astype(np.float32)))
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            results[key] = results[key][kept]
        return results


@TRANSFORMS.register_module()
class TurnSlice(BaseTransform):
    """Turn a slice by none, one, two or three quarters, each as often.

    mmdet's ``Rotate`` takes any angle, and boxes round the corners of the
    boxes before: at 15 degrees they are a fifth too wide.
    """

    def transform(self, results: dict) -> dict:
        """Turn one slice."""
        boxes = results['gt_bboxes'].tensor
        for _ in range(np.random.randint(4)):
            width = results['img'].shape[1]
            results['img'] = np.rot90(results['img'])
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([y1, width - x2, y2, width - x1], 1)
        results['img'] = np.ascontiguousarray(results['img'])
        results['img_shape'] = results['img'].shape[:2]
        results['gt_bboxes'] = type(results['gt_bboxes'])(boxes)
        return results


@TRANSFORMS.register_module()
class LoadCTSlices(BaseTransform):
    """Read all slices of a scan, with their matrices and annotations.

    Args:
        scale (float): Images, matrices and 2D boxes are enlarged by this, as
            by mmdet's ``Resize`` in training.

    Raises:
        DataError: An image is missing, unreadable, or of another size than
            the infos say.
    """

    def __init__(self, scale: float = 1.) -> None:
        self.scale = scale

    def transform(self, results: dict) -> dict:
        """Load one scan."""
        slices = list(results['images'].values())
        results['img'] = np.stack([
            read_slice(s, self.scale) for s in slices]) if slices else (
                np.zeros((0, 1, 1, 3), np.uint8))
        for key, name in (('cam2img', 'cam2img'), ('ct2cam', 'lidar2cam')):
            results[key] = np.array([s[name] for s in slices], float).reshape(
                -1, 4, 4)
        results['cam2img'] = geometry.scale_cam2img(
            results['cam2img'], self.scale, self.scale)
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        results['img_shape'] = results['img'].shape[1:3]
        results['num_views'] = len(slices)
        results['view_names'] = list(results['images'])
        results['img_paths'] = [s['img_path'] for s in slices]
        results['slice_mm'] = min(
            (s['thickness'] / (s['slices'][1] - s['slices'][0] + 1)
             for s in slices), default=1.)
        if 'ann_info' in results:
            truth = dict(results['ann_info'])
            for key in ('gt_bboxes', 'ignored_bboxes'):
                truth[key] = truth[key] * np.float32(self.scale)
            results['eval_ann_info'] = truth
        return results


@TRANSFORMS.register_module()
class FlipCTScan(BaseTransform):
    """Mirror the slices of a scan: what is found in them lies in the scan
    where it did, since the matrices know.

    Args:
        directions (Sequence[str]): ``horizontal``, ``vertical``, both or
            none.
    """

    def __init__(self, directions: Sequence[str] = ()) -> None:
        self.directions = tuple(directions)

    def transform(self, results: dict) -> dict:
        """Mirror one scan, loaded by :class:`LoadCTSlices`."""
        for axis, name in enumerate(('horizontal', 'vertical')):
            if name not in self.directions:
                continue
            length = results['img'].shape[2 - axis]
            results['img'] = np.flip(results['img'], 2 - axis).copy()
            mirror = np.eye(4)
            mirror[axis, [axis, 2]] = -1, length  # of depth 1
            results['cam2img'] = mirror @ results['cam2img']
            truth = results.get('eval_ann_info', {})
            for key in {'gt_bboxes', 'ignored_bboxes'} & set(truth):
                truth[key] = truth[key].copy()
                ends = [axis + 2, axis]
                truth[key][:, [axis, axis + 2]] = length - truth[key][:, ends]
        results['ct2img'] = geometry.compose_ct2img(results['cam2img'],
                                                    results['ct2cam'])
        return results


@TRANSFORMS.register_module()
class PackCTScan(BaseTransform):
    """A scan as the detector takes it: ``inputs['img']`` (S, 3, H, W) uint8
    and a sample with ``eval_ann_info``, where metrics and tools look."""

    def __init__(self, meta_keys: Sequence[str] = _META) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one scan."""
        sample = Det3DDataSample(metainfo={
            key: results[key] for key in self.meta_keys if key in results})
        if 'eval_ann_info' in results:
            sample.eval_ann_info = results['eval_ann_info']
        images = torch.from_numpy(results['img']).permute(0, 3, 1, 2)
        return dict(inputs=dict(img=images), data_samples=sample)
