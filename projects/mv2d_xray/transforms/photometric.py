"""Transforms that change grey values alone."""

import dataclasses
from typing import Dict, Optional, Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmengine.logging import print_log

from projects.core import geometry
from projects.core.acquisition import draw_acquisition, load_preset

__all__ = ['XRayAcquisition', 'XRayGridMask', 'XRayPhotometric']


@TRANSFORMS.register_module()
class XRayPhotometric(BaseTransform):
    """The papers' seven augmentations, each with its own probability.

    Betancur et al. §3.1, in their order. Amounts are fractions of each image's
    own range (minimum to maximum), so they mean the same for any window. One
    draw holds for all views, as one exposure would; noise differs in every
    pixel. 0 (for gamma: 1) turns one off.

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
class XRayAcquisition(BaseTransform):
    """Views as a detector gives them, under conditions drawn from ranges.

    The physics are those of the converter's ``--acquisition``
    (:mod:`projects.core.acquisition`). Motion and errors of the poses are for
    views that are rendered: here they would need the volume, see
    :class:`XRayPoseError`. Nor is bone told from water here: it hardens the
    beam as the water that it counts as. Matrices do not say how far the
    detector is: where a rig does not magnify as the preset says, name
    ``magnification`` in the ranges. Views that a detector gave already,
    measured or made with ``--acquisition``, are left alone.

    Args:
        ranges (dict): Fields of an ``Acquisition``; a pair is a range, a list
            of pairs a choice of ranges, anything else a value.
        preset (str): What fields without a range are. Defaults to 'ideal',
            which leaves the views alone.
        prob (float): Of a sample to be changed. Defaults to 1.

    Raises:
        ValueError: There is no such field or preset.
    """

    def __init__(self, ranges: Optional[dict] = None,
                 preset: str = 'ideal', prob: float = 1.) -> None:
        self.prob = prob
        self.ranges = dict(dataclasses.asdict(load_preset(preset)),
                           **(ranges or {}))
        draw_acquisition(self.ranges, np.random.default_rng(0))
        self._told = False

    @property
    def exposure(self) -> Tuple[float, ...]:
        """Least and most air kerma at the detector (µGy); none of views that
        are left alone."""
        if not self.ranges['spectrum']:
            return ()
        kerma = np.ravel(self.ranges['kerma'])
        return float(kerma.min()), float(kerma.max())

    def transform(self, results: dict) -> dict:
        """Change one sample."""
        if results.get('acquired'):
            if not self._told:
                print_log('XRayAcquisition leaves the views of this set '
                          'alone: a detector gave them already, with its '
                          'noise and scatter', logger='current')
            self._told = True
            return results
        if np.random.rand() >= self.prob:
            return results
        rng = np.random.default_rng(np.random.randint(2**31, size=4))
        conditions = draw_acquisition(self.ranges, rng)
        sizes = geometry.pixel_sizes(results['cam2img'], results['ct2cam'])
        results['img'] = [
            image[..., None] for image in conditions.measure_views(
                [image[..., 0] for image in results['img']], sizes, rng)]
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
