"""Transforms that move images, boxes and matrices together.

``ct2img`` still projects the boxes onto the images after each of them.
"""

from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from projects.core import geometry
from projects.core.boxes import gravity_boxes, lidar_boxes

__all__ = [
    'PER_VIEW', 'ResizeXRay', 'XRayPoseError', 'XRayRandomFlip',
    'XRayRandomRotate', 'XRayViewDropout', 'keep_views'
]

PER_VIEW = ('cam2img', 'ct2cam', 'ct2img')
BOXES_2D = ('gt_bboxes', 'ignored_bboxes')
BOXES_3D = ('gt_bboxes_3d', 'ignored_bboxes_3d')


def held(results: dict, keys: Sequence[str]) -> List[str]:
    """Those of some annotations that a sample has: one of an object to look
    at has none."""
    return [key for key in keys if key in results]


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
        for key in held(results, BOXES_2D):
            factor = factors[results[f'{key}_view']]
            results[key] = (results[key] *
                            np.tile(factor, 2)).astype(np.float32)
        results['img_shape'] = (height, width)
        return results


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
        for key in held(results, BOXES_2D):
            width = widths[results[f'{key}_view']][:, None]
            boxes = results[key]
            results[key] = np.concatenate([
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
    for key in held(results, BOXES_3D):
        results[key] = lidar_boxes(geometry.transform_boxes(
            gravity_boxes(results[key]), matrix))


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
    for key in PER_VIEW:
        results[key] = results[key][views]
    for key in ('img', 'view_names', 'img_paths'):
        results[key] = [results[key][v] for v in views]
    results['num_views'] = len(views)
    place = {view: row for row, view in enumerate(views.tolist())}
    for key in held(results, BOXES_2D):
        stays = np.isin(results[f'{key}_view'], views)
        for name in held(results, (key, f'{key}_view', f'{key}_labels',
                                   f'{key}_instance')):
            results[name] = results[name][stays]
        results[f'{key}_view'] = np.array(
            [place[v] for v in results[f'{key}_view'].tolist()],
            dtype=np.int64)
    return results
