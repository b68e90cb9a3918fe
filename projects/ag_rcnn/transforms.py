"""Mammograms of an exam: loading, landmarks, augmentation, packing.

A transform takes one image; :class:`EachImage` takes all of an exam to it. An
image's record has ``img`` (H, W) float32 from 0 to 1, ``masks`` (M, H, W)
boolean, ``bboxes`` (M, 4) xyxy (px), ``labels``, ``ignored`` and
``abnormalities`` (M,) (below 0 where unknown), and perhaps ``nodes`` (N, 2)
(px), None where there are none.
"""

import copy
import logging
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet3d.registry import TRANSFORMS
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement, InstanceData
from pycocotools import mask as coco_mask

from projects.ag_rcnn import landmarks
from projects.core.files import DataError
from projects.core.projections import decode_image

__all__ = ['EachImage', 'FindNodes', 'GridNodes', 'LoadMammogram',
           'MammogramTones', 'PackExam', 'ResizeMammogram', 'WarpMammogram',
           'unaugmented']

_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
         'patient', 'laterality', 'view', 'partners', 'nodes', 'ct2img')


@TRANSFORMS.register_module()
class EachImage(BaseTransform):
    """Takes each image of a sample through the same transforms.

    Args:
        transforms (list[dict]): Of one image.
    """

    def __init__(self, transforms: Sequence[dict]) -> None:
        self.transforms = [TRANSFORMS.build(step) for step in transforms]

    def transform(self, results: dict) -> dict:
        """All images of one sample."""
        images = []
        for image in results['images']:
            image = dict(image)
            for step in self.transforms:
                image = step(image)
            images.append(image)
        return dict(results, images=images)

    def without(self, *kinds: type) -> 'EachImage':
        """The same, but for transforms of these kinds."""
        others = copy.copy(self)
        others.transforms = [step for step in self.transforms
                             if not isinstance(step, kinds)]
        return others


@TRANSFORMS.register_module()
class LoadMammogram(BaseTransform):
    """Read an image of 8 or 16 bit, and the masks of its findings; where one
    has no mask, its box is filled.

    Raises:
        DataError: The image cannot be read, is no grey image, or it or a mask
            is of another size than the set says.
    """

    def transform(self, results: dict) -> dict:
        """Load one image."""
        path, shape = results['img_path'], (results['height'],
                                            results['width'])
        image = decode_image(path)
        if image is None or image.shape != shape:
            found = ('none that can be read' if image is None
                     else f'one of {image.shape}')
            raise DataError(f'{path}: expected a grey image of {shape} as the '
                            f'set says, found {found}')
        top = np.float32(np.iinfo(image.dtype).max)
        results['img'] = image.astype(np.float32) / top
        results['ori_shape'] = results['img_shape'] = shape
        results['scale_factor'] = (1., 1.)
        instances = results['instances']
        results['masks'] = np.array(
            [self._mask(item, shape, path) for item in instances],
            dtype=bool).reshape(-1, *shape)
        results['bboxes'] = np.array(
            [item['bbox'] for item in instances], np.float32).reshape(-1, 4)
        results['labels'] = np.array(
            [item['label'] for item in instances], np.int64)
        results['ignored'] = np.array(
            [item['ignore'] for item in instances], bool)
        results['abnormalities'] = np.array(
            [-1 if item['abnormality'] is None else item['abnormality']
             for item in instances], np.int64)
        return results

    @staticmethod
    def _mask(item: dict, shape: Tuple[int, int], path: str) -> np.ndarray:
        outline = item.get('segmentation')
        if not outline:
            mask = np.zeros(shape, bool)
            x1, y1, x2, y2 = item['bbox']
            mask[int(max(y1, 0)):int(np.ceil(y2)),
                 int(max(x1, 0)):int(np.ceil(x2))] = True
            return mask
        if isinstance(outline, list):
            outline = coco_mask.merge(coco_mask.frPyObjects(outline, *shape))
        elif isinstance(outline.get('counts'), list):
            outline = coco_mask.frPyObjects(outline, *shape)
        if tuple(outline['size']) != shape:
            raise DataError(f'{path}: field "segmentation.size": expected '
                            f'{list(shape)}, the image\'s, found '
                            f'{list(outline["size"])}')
        return coco_mask.decode(outline).astype(bool)


@TRANSFORMS.register_module()
class FindNodes(BaseTransform):
    """Add the nodes of the graph, placed by the landmarks of the breast.

    They are found once for an image, in its pixels as they were loaded. Where
    a landmark is not found, an image has none: it is looked at without the
    graph. That is logged once for an image.

    Args:
        num_nodes (int | Sequence[int]): How many; in CC and in MLO.
    """

    def __init__(self, num_nodes: Union[int, Sequence[int]]) -> None:
        self.num_nodes = num_nodes
        self._known: Dict[str, Optional[np.ndarray]] = {}

    def transform(self, results: dict) -> dict:
        """Add ``nodes`` to one image."""
        path = str(results['img_path'])
        if path not in self._known:
            self._known[path] = self._find(results)
        nodes = self._known[path]
        results['nodes'] = None if nodes is None else nodes.copy()
        return results

    def _find(self, results: dict) -> Optional[np.ndarray]:
        try:
            found = landmarks.find_landmarks(
                results['img'], results['laterality'], results['view'],
                padding=results['padding'])
            nodes = landmarks.node_grid(found, self.num_nodes)
        except landmarks.LandmarkError as error:
            print_log(f'{results["img_path"]}: {error}: the detector looks '
                      'at this image without the graph', logger='current',
                      level=logging.WARNING)
            return None
        return np.asarray(nodes, np.float32)


@TRANSFORMS.register_module()
class GridNodes(BaseTransform):
    """Add nodes in the middles of an even grid of cells: where cameras say
    what belongs together, no landmark is needed.

    Args:
        count (int): Cells along each edge.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def transform(self, results: dict) -> dict:
        """Add ``nodes`` to one image."""
        height, width = results['img'].shape
        steps = (np.arange(self.count, dtype=np.float32) + .5) / self.count
        results['nodes'] = np.stack(np.meshgrid(
            steps * width, steps * height), -1).reshape(-1, 2)
        return results


@TRANSFORMS.register_module()
class ResizeMammogram(BaseTransform):
    """Make an image a square, with black at the right and below where it is
    none: document 004's images have 1024².

    Args:
        size (int): Edge (px).
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def transform(self, results: dict) -> dict:
        """Resize one image and all that belongs to it."""
        height, width = results['img'].shape
        scale = self.size / max(height, width)
        shape = (max(round(height * scale), 1), max(round(width * scale), 1))

        def resized(image):
            image = cv2.resize(image, shape[::-1],
                               interpolation=cv2.INTER_AREA if scale < 1
                               else cv2.INTER_LINEAR)
            return np.pad(image, [(0, self.size - n) for n in shape])

        results['img'] = resized(results['img'])
        masks = [resized(mask.astype(np.float32)) >= .5
                 for mask in results['masks']]
        results['masks'] = np.array(masks, bool).reshape(
            -1, self.size, self.size)
        results['bboxes'] = results['bboxes'] * np.float32(scale)
        if results.get('nodes') is not None:
            results['nodes'] = results['nodes'] * np.float32(scale)
        results['img_shape'] = (self.size, self.size)
        results['scale_factor'] = (scale, scale)
        return results


@TRANSFORMS.register_module()
class WarpMammogram(BaseTransform):
    """Document 004's geometric and elastic augmentations as one warp.

    Tissue deforms smoothly: noise of a pixel each, blurred and scaled, moves
    what an affine map has placed (Simard et al. 2003). The document gives no
    sizes; these are choices. Boxes are drawn anew round the warped masks;
    findings that leave the image are removed.

    Args:
        flip (float): Probability of a mirror image, left to right.
        angle (float): Largest rotation (degrees).
        scale (float): Largest share by which it grows or shrinks.
        shift (float): Largest, as a share of the edge.
        elastic (float): Largest displacement, as a share of the edge.
        smooth (float): Of the elastic displacement, a share of the edge.
    """

    def __init__(self, flip: float = .5, angle: float = 10.,
                 scale: float = .1, shift: float = .05, elastic: float = .01,
                 smooth: float = .05) -> None:
        self.flip, self.angle, self.scale = flip, angle, scale
        self.shift, self.elastic, self.smooth = shift, elastic, smooth

    def _affine(self, height: int, width: int) -> np.ndarray:
        """Random map (2, 3) from places before to places after (px)."""
        angle = np.random.uniform(-self.angle, self.angle)
        scale = 1 + np.random.uniform(-self.scale, self.scale)
        matrix = cv2.getRotationMatrix2D(
            ((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += np.random.uniform(-self.shift, self.shift, 2) * [
            width, height]
        if np.random.random() < self.flip:
            matrix = np.array([[-1, 0, width - 1], [0, 1, 0]]) @ np.vstack(
                [matrix, [0, 0, 1]])
        return matrix

    def _displacement(self, height: int, width: int) -> np.ndarray:
        """Smooth random displacement (2, H, W) (px)."""
        field = np.stack([cv2.GaussianBlur(
            np.random.uniform(-1, 1, (height, width)).astype(np.float32),
            (0, 0), max(self.smooth * width, 1.),
            borderType=cv2.BORDER_REFLECT) for _ in range(2)])
        largest = max(float(np.abs(field).max()), 1e-9)
        return field * (np.random.uniform(0, self.elastic) * width / largest)

    def transform(self, results: dict) -> dict:
        """Warp one image and all that belongs to it."""
        height, width = results['img'].shape
        matrix = self._affine(height, width)
        moved = self._displacement(height, width)
        back = cv2.invertAffineTransform(matrix).astype(np.float32)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        places = np.stack([columns, rows]) + moved
        x, y = np.einsum('ij,jhw->ihw', back[:, :2], places) + back[
            :, 2, None, None]

        def warped(image):
            return cv2.remap(image, x, y, cv2.INTER_LINEAR)

        results['img'] = warped(results['img'])
        masks = np.array([warped(mask.astype(np.float32)) >= .5
                          for mask in results['masks']], bool).reshape(
                              -1, height, width)
        kept = masks.any((1, 2))
        results['masks'] = masks[kept]
        results['bboxes'] = np.array(
            [_box_of(mask) for mask in masks[kept]], np.float32).reshape(-1, 4)
        for key in ('labels', 'ignored', 'abnormalities'):
            results[key] = results[key][kept]
        if results.get('nodes') is not None:
            # Pixel i of the maps has its middle at i, of the nodes at i + .5.
            nodes = (results['nodes'] - .5) @ matrix[:, :2].T + matrix[:, 2]
            at = nodes.round().astype(int).clip(0, [width - 1, height - 1])
            nodes = nodes - moved[:, at[:, 1], at[:, 0]].T + .5
            results['nodes'] = nodes.astype(np.float32)
        return results


def _box_of(mask: np.ndarray) -> List[int]:
    """Box xyxy (px) round what is in a mask (H, W)."""
    x, y = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return [x[0], y[0], x[-1] + 1, y[-1] + 1]


@TRANSFORMS.register_module()
class MammogramTones(BaseTransform):
    """Document 004's augmentations of grey levels, each with the same
    probability: gamma (exposure), blur (focus), noise (sensor), brightness
    and contrast (illumination). The document gives no sizes; these are
    choices.

    Args:
        prob (float): Of each.
        gamma (float): Exponents from 1 / (1 + this) to 1 + this.
        blur (float): Largest deviation (px).
        noise (float): Largest deviation, where white is 1.
        contrast, brightness (float): Largest change of either.
    """

    def __init__(self, prob: float = .3, gamma: float = .25, blur: float = 1.,
                 noise: float = .02, contrast: float = .15,
                 brightness: float = .05) -> None:
        self.prob, self.gamma, self.blur = prob, gamma, blur
        self.noise, self.contrast = noise, contrast
        self.brightness = brightness

    def transform(self, results: dict) -> dict:
        """Change the grey levels of one image."""
        image, uniform = results['img'], np.random.uniform
        gamma, blur, noise, tones = np.random.random(4) < self.prob
        if gamma:
            image = np.clip(image, 0, 1)**(
                (1 + self.gamma)**uniform(-1, 1))
        if blur:
            image = cv2.GaussianBlur(image, (0, 0),
                                     max(uniform(0, self.blur), .1))
        if tones:
            image = image * (1 + uniform(-self.contrast, self.contrast)
                             ) + uniform(-self.brightness, self.brightness)
        if noise:
            image = image + np.random.normal(
                0, uniform(0, self.noise), image.shape)
        results['img'] = np.clip(image, 0, 1).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class PackExam(BaseTransform):
    """A sample as the detector takes it: ``inputs`` (V, 1, H, W) float32 and
    an element with ``images``, a list of V mmdet samples."""

    def __init__(self, meta_keys: Sequence[str] = _META) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one sample."""
        samples = [self._pack(image) for image in results['images']]
        pixels = np.stack([image['img'] for image in results['images']])
        return dict(
            inputs=torch.from_numpy(np.ascontiguousarray(pixels))[:, None],
            data_samples=BaseDataElement(
                metainfo=dict(token=results['token']), images=samples))

    def _pack(self, image: dict) -> DetDataSample:
        sample = DetDataSample(metainfo={
            key: image[key] for key in self.meta_keys if key in image})
        for name, rows in (('gt_instances', ~image['ignored']),
                           ('ignored_instances', image['ignored'])):
            instances = InstanceData(
                bboxes=torch.from_numpy(
                    image['bboxes'][rows].astype(np.float32)),
                labels=torch.from_numpy(image['labels'][rows]),
                abnormalities=torch.from_numpy(image['abnormalities'][rows]))
            if 'masks' in image:
                instances.masks = BitmapMasks(
                    image['masks'][rows].astype(np.uint8),
                    *image['img_shape'])
            setattr(sample, name, instances)
        return sample


@contextmanager
def unaugmented(dataset) -> Iterator[None]:
    """A set whose samples are not warped, nor their tones changed, as long as
    the context lasts."""
    pipeline, dataset.pipeline = dataset.pipeline, copy.copy(dataset.pipeline)
    try:
        dataset.pipeline.transforms = [
            step.without(WarpMammogram, MammogramTones)
            if isinstance(step, EachImage) else step
            for step in pipeline.transforms]
        yield
    finally:
        dataset.pipeline = pipeline
