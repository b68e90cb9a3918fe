"""An mmdet detector of slices; of a scan, its boxes merged to 3D."""

from typing import Dict, List, Optional, Tuple

import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional as F

from projects.core.boxes import build_box3d_instances
from projects.core.engine.precision import as_is, features_2d
from projects.ct_slices.merge import SliceMerger

__all__ = ['CTSliceDetector']


@MODELS.register_module()
class CTSliceDetector(BaseModel):
    """Any 2D detector of mmdet on CT slices.

    It is trained on slices as mmdet trains it. In a test it sees all slices
    of a scan, and its boxes are merged to boxes of the scan. Under autocast
    (``--amp``) backbone and neck run in half precision, heads in float32,
    which mmcv's operators need on a CPU.

    Args:
        detector_2d (dict): The mmdet detector.
        data_preprocessor (dict): mmdet's, of slices.
        merge (dict): Arguments of :class:`SliceMerger`.
        slice_chunk (int): Slices that are looked at together in a test.
        tile (int, optional): Edge (px) of the squares that a test cuts slices
            into, a quarter of which is in the next one, too. A transformer
            tells boxes in shares of its image, so it must see images of the
            size that it was trained on. Defaults to whole slices.
    """

    def __init__(self,
                 detector_2d: dict,
                 data_preprocessor: dict,
                 merge: Optional[dict] = None,
                 slice_chunk: int = 8,
                 tile: Optional[int] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        # mmdet's parts look their own parts up in mmdet's scope.
        self.detector_2d = MODELS.build(dict(detector_2d, _scope_='mmdet'))
        # loss() and predict() of mmdet start from our features.
        self.detector_2d.extract_feat = as_is
        self.merge = SliceMerger(**(merge or {}))
        self.slice_chunk = slice_chunk
        self.tile = tile

    with_2d = True  # tools ask for it

    def forward(self, inputs: Tensor, data_samples: Optional[list] = None,
                mode: str = 'tensor'):
        """As mmdet's, of slices (N, 3, H, W)."""
        features = self.extract_feat(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.detector_2d(features, data_samples, mode)

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Backbone and neck, see :func:`~projects.core.engine.precision.
        features_2d`."""
        return features_2d(self.detector_2d, inputs)

    def test_step(self, data: dict) -> List[Det3DDataSample]:
        """Find boxes in scans.

        Args:
            data (dict): ``inputs['img']``, a list of (S, 3, H, W), and
                ``data_samples`` with ``ct2img`` and ``slice_mm``.

        Returns:
            list: The samples with ``pred_instances`` (``bboxes`` (px),
            ``scores``, ``labels``, ``view_ids``) and ``pred_instances_3d``.
        """
        return [self.predict_scan(images, sample) for images, sample
                in zip(data['inputs']['img'], data['data_samples'])]

    val_step = test_step

    @torch.no_grad()
    def predict_scan(self, images: Tensor, sample: Det3DDataSample
                     ) -> Det3DDataSample:
        """Boxes of the slices (S, 3, H, W) of a scan, and those of the scan,
        see :meth:`test_step`."""
        found = self.detect_2d(images)
        sample = sample.clone()
        sample.pred_instances = found
        meta = sample.metainfo
        boxes, scores, labels = self.merge(
            *(found[key].cpu().numpy() for key in ('bboxes', 'scores',
                                                   'labels', 'view_ids')),
            meta['ct2img'], meta['slice_mm'])
        sample.pred_instances_3d = build_box3d_instances(
            torch.as_tensor(boxes, dtype=torch.float32),
            torch.as_tensor(scores, dtype=torch.float32),
            torch.as_tensor(labels, dtype=torch.int64))
        return sample

    def detect_2d(self, images: Tensor) -> InstanceData:
        """Boxes of slices (S, 3, H, W), on the CPU."""
        parts: Dict[str, list] = dict(bboxes=[torch.zeros(0, 4)],
                                      scores=[torch.zeros(0)],
                                      labels=[torch.zeros(0).long()],
                                      view_ids=[torch.zeros(0).long()])
        for start in range(0, len(images), self.slice_chunk):
            chunk = images[start:start + self.slice_chunk]
            for i, found in enumerate(self._detect(chunk)):
                parts['bboxes'].append(found.bboxes.float())
                parts['scores'].append(found.scores.float())
                parts['labels'].append(found.labels)
                parts['view_ids'].append(
                    torch.full((len(found.labels), ), start + i))
        return InstanceData(**{key: torch.cat(value)
                               for key, value in parts.items()})

    def _detect(self, images: Tensor) -> List[InstanceData]:
        """Boxes of each of some slices, on the CPU."""
        if self.tile is None:
            return self._detect_whole(images)
        size, shared = self.tile, self.tile // 4
        height, width = images.shape[-2:]
        images = F.pad(images, (0, max(size - width, 0),
                                0, max(size - height, 0)))
        found: List[List[InstanceData]] = [[] for _ in images]
        for y in _starts(height, size, shared):
            for x in _starts(width, size, shared):
                squares = images[..., y:y + size, x:x + size]
                for kept, part in zip(found, self._detect_whole(squares)):
                    boxes = part.bboxes
                    # What an inner edge cuts, the next square has whole,
                    # unless it is larger than what both see.
                    cut = torch.stack([
                        (boxes[:, 0] < 1) & (x > 0),
                        (boxes[:, 1] < 1) & (y > 0),
                        (boxes[:, 2] > size - 1) & (x + size < width),
                        (boxes[:, 3] > size - 1) & (y + size < height)], 1)
                    small = (boxes[:, 2:] - boxes[:, :2] < shared).repeat(1, 2)
                    part.bboxes = boxes + boxes.new_tensor([x, y, x, y])
                    kept.append(part[~(cut & small).any(1)])
        return [_once(InstanceData.cat(parts)) for parts in found]

    def _detect_whole(self, images: Tensor) -> List[InstanceData]:
        shape = tuple(images.shape[-2:])
        batch = self.data_preprocessor(dict(
            inputs=list(images), data_samples=[
                DetDataSample(metainfo=dict(
                    img_id=i, img_shape=shape, ori_shape=shape,
                    scale_factor=(1., 1.))) for i in range(len(images))]))
        return [result.pred_instances.cpu()
                for result in self(**batch, mode='predict')]


def _starts(length: int, size: int, shared: int) -> List[int]:
    """First pixels of squares that cover an edge evenly."""
    count = max(-(-(length - shared) // (size - shared)), 1)
    return [round(i * (length - size) / max(count - 1, 1))
            for i in range(count)]


def _once(found: InstanceData) -> InstanceData:
    """Boxes that more than one square shows, once."""
    if not len(found):
        return found
    _, kept = batched_nms(found.bboxes.float(), found.scores.float(),
                          found.labels, dict(type='nms', iou_threshold=.5))
    return found[kept]
