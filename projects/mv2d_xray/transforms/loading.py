"""From files to line integrals."""

from typing import Optional

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from projects.core.files import DataError
from projects.core.projections import decode_image
from projects.mv2d_xray.transforms.geometric import PER_VIEW

__all__ = ['LoadXRayViews']


@TRANSFORMS.register_module()
class LoadXRayViews(BaseTransform):
    """Read a sample's images, matrices and annotations.

    Adds ``img``, ``cam2img``, ``ct2cam``, ``ct2img`` (V, 4, 4), ``img_shape``
    (of the first view), ``num_views`` and ``view_names``. Annotations, of
    training and testing alike, move from ``ann_info`` into the sample itself,
    where all transforms look for them. A view that has its line integrals
    with it (``integrals``, (H, W) float32) is not read.

    Args:
        scale (float, optional): Line integral of one grey level. Defaults to
            the set's own (metainfo.intensity) and, for images without a set,
            to the converter's 16 / 65535.
        offset (float, optional): Line integral of grey level 0. Defaults to
            the set's own or 0.

    Raises:
        DataError: An image is missing, unreadable, of another size than the
            infos say, in colours, not finite, or has anything but 16 bits
            without a sign where ``scale`` is not given.
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
            view['integrals'][..., None] if 'integrals' in view else
            self._read(view) * np.float32(scale) + np.float32(offset)
            for view in views.values()
        ]
        for key, name in zip(PER_VIEW, ('cam2img', 'lidar2cam',
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
        results.update(results.pop('ann_info', {}))
        return results

    def _read(self, view: dict) -> np.ndarray:
        path = view['img_path']
        image = decode_image(path)
        if image is None:
            raise DataError(f'{path}: image: expected a readable PNG, found '
                            'none')
        if image.ndim == 3:  # grey levels stored as colours, opacity
            image, others = image[..., 0], image[..., 1:3]
            if (others != image[..., None]).any():
                raise DataError(f'{path}: image: expected grey levels, found '
                                'colours')
        if image.dtype != np.uint16 and self.scale is None:
            found = {'u': f'{8 * image.itemsize} bits', 'i': 'signed numbers',
                     'f': 'floating point numbers: give it, as --scale 1 '
                     'where they are line integrals'}[image.dtype.kind]
            raise DataError(f'{path}: image depth: expected 16 bits, or a '
                            f'scale for other grey levels, found {found}')
        broken = image.size - np.isfinite(image).sum()
        if broken:
            raise DataError(f'{path}: image: expected finite numbers, found '
                            f'{broken} of {image.size} pixels that are not')
        expected = (view['height'], view['width'])
        if image.shape != expected:
            raise DataError(
                f'{path}: image size: expected {expected[1]} x {expected[0]} '
                f'px as in the infos, found {image.shape[1]} x '
                f'{image.shape[0]}')
        return image.astype(np.float32)[..., None]
