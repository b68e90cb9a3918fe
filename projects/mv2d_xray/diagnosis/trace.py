"""One prediction, with what every stage made of it."""

from dataclasses import dataclass
from typing import List, Optional

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor

from projects.core.boxes import gravity_boxes
from projects.mv2d_xray.lifting.fusion import ROI, VOLUME

__all__ = ['Trace', 'is_peak', 'rounded', 'trace']


@dataclass
class Attention:
    """What the queries of one decoder layer look at.

    Attributes:
        rois (Tensor): (R, 5), view index and xyxy (px): all 2D boxes, then
            the projections of the queries that are points.
        index (Tensor): (Q, K), rows of ``rois`` that each query may see.
        valid (Tensor): (Q, K), False where ``index`` is padding.
        weights (Tensor): (Q, 1 + K), the learned token first, see
            :meth:`~projects.mv2d_xray.lifting.decoder.SparseCrossAttention.weights`.
    """
    rois: Tensor
    index: Tensor
    valid: Tensor
    weights: Tensor


@dataclass
class Trace:
    """One prediction and what led to it; S steps: before the decoder and
    after each of its layers (1 without a decoder).

    Attributes:
        result (Det3DDataSample): As the model's ``predict`` gives it.
        images (Tensor): (V, H, W), line integrals.
        features (list[Tensor]): Per level of the neck, or of the backbone
            where there is none, (V, C, h, w).
        boxes (Tensor): (S, Q, 6) of each query, centre and size (mm).
        scores (Tensor): (S, Q), of its best class.
        sources (Tensor): (Q,), index into ``SOURCES``.
        attention (list[Attention]): Per decoder layer.
        heatmap (Tensor, optional): (X, Y, Z) scores of the volume.
        heatmaps_2d (Tensor, optional): (V, h, w) scores of single views.
    """
    result: object
    images: Tensor
    features: List[Tensor]
    boxes: Tensor
    scores: Tensor
    sources: Tensor
    attention: List[Attention]
    heatmap: Optional[Tensor] = None
    heatmaps_2d: Optional[Tensor] = None

    @property
    def truth(self) -> np.ndarray:
        """np.ndarray: (N, 7) findings that count (mm)."""
        return gravity_boxes(
            self.result.eval_ann_info['gt_bboxes_3d']).numpy()

    @property
    def distances(self) -> np.ndarray:
        """np.ndarray: (S, Q, N) from each query to each finding (mm)."""
        centres = self.boxes[..., None, :3].cpu().double().numpy()
        return np.linalg.norm(centres - self.truth[:, :3], axis=-1)


@torch.no_grad()
def trace(model, sample: dict) -> Trace:
    """Predict one sample and keep what the stages made of it.

    Args:
        model (MV2DXRay): In evaluation mode.
        sample (dict): Of a data set in ``test_mode``.
    """
    detector, head = model.detector_2d, model.lifting_head
    seen, pooled, attended = {}, [], []

    def keep(name):
        return lambda _, inputs, outputs: seen.update({name: (inputs,
                                                              outputs)})

    def attend(module, inputs, _):
        # What was pooled so far: RoIs of 2D boxes once, projections often.
        attended.append((module.weights(*inputs), *inputs[4:], len(pooled)))

    levels = detector.neck if detector.with_neck else detector.backbone
    chunks = []  # of views
    hooks = [levels.register_forward_hook(
        lambda _, __, outputs: chunks.append(outputs))]
    if model.volume_head is not None:
        hooks.append(model.volume_head.register_forward_hook(keep('volume')))
    if head is not None:
        hooks.append(head.register_forward_hook(keep('queries')))
    if model.with_decoder:
        hooks.append(head.roi_extractor.register_forward_hook(
            lambda _, inputs, __: pooled.append(inputs[1])))
        hooks += [layer.cross_attn.register_forward_hook(attend)
                  for layer in head.decoder.layers]
    try:
        result, = model.test_step(pseudo_collate([sample]))
    finally:
        for hook in hooks:
            hook.remove()

    heatmap = heatmaps_2d = None
    if 'volume' in seen:
        (level, *_), volume = seen['volume']
        heatmap = volume[0].amax(0).sigmoid()
        if model.volume_head.heatmap_2d is not None:
            heatmaps_2d = model.volume_head.heatmap_2d(level).amax(
                1).sigmoid()
    if head is not None:
        queries = seen['queries'][1]
        first = torch.cat([queries.centres, queries.sizes], 1)
        boxes = torch.cat([first[:, None], queries.all_boxes], 1)
        logits = torch.cat([queries.logits[:, None], queries.all_logits], 1)
        sources = queries.source
    else:
        queries = model.volume_head.queries(*volume)
        boxes = torch.cat([queries.centres, queries.sizes], 1)[:, None]
        logits = queries.logits[:, None]
        sources = torch.full_like(logits[:, 0, 0], VOLUME, dtype=torch.long)
    shared = int(bool((sources == ROI).any()))
    return Trace(
        result=result, images=sample['inputs']['img'][:, 0],
        features=[torch.cat(level) for level in zip(*chunks)],
        boxes=boxes.transpose(0, 1),
        scores=logits.sigmoid().amax(-1).T, sources=sources,
        attention=[
            Attention(
                rois=torch.cat([boxes.new_zeros(0, 5), *pooled[:shared],
                                *pooled[shared:count][-1:]]),
                index=index, valid=valid, weights=weights)
            for weights, index, valid, count in attended
        ],
        heatmap=heatmap, heatmaps_2d=heatmaps_2d)


def is_peak(heatmap: Tensor) -> Tensor:
    """Where no neighbour in (H, W) or (X, Y, Z) is stronger."""
    pool = F.max_pool2d if heatmap.dim() == 2 else F.max_pool3d
    return heatmap == pool(heatmap[None, None], 3, 1, 1)[0, 0]


def rounded(values, digits: int = 2) -> list:
    """Python numbers, short enough for JSON."""
    return np.asarray(values, dtype=np.float64).round(digits).tolist()
