"""Queries of all sources, and one box of all that are of one finding."""

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core.boxes import build_box3d_instances, fuse_boxes

__all__ = [
    'DENOISING', 'FREE', 'ROI', 'SOURCES', 'VOLUME', 'XRaySourceFusion'
]

# What a query comes from, as its ``source`` counts.
SOURCES = ('roi', 'volume', 'denoising', 'free')
ROI, VOLUME, DENOISING, FREE = range(len(SOURCES))


@MODELS.register_module()
class XRaySourceFusion(BaseModule):
    """What the sources give, fused, is the result: nothing is learned here.

    A query is a box in space with a first score.

    Args:
        scene_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        num_classes (int): Defaults to 1.
        roi_queries (dict, optional): Query generator of 2D boxes; None leaves
            this source out.
        point_channels (int, optional): Channels of the content of point
            queries; None where there are no such queries.
        prior (float): First score of queries that have none, and of a source
            that found nothing where another did.
        test_cfg (dict): ``score_thr``; ``iou_thr``, from which boxes
            are of one finding; ``max_per_img``, boxes of a scan, of all
            classes together.
        embed_dims (int, optional): Of the content that 2D boxes' queries get;
            None where nothing reads it.
        roi_size (int): Cells of a RoI that the content is made of.
    """

    def __init__(self,
                 scene_range: list,
                 num_classes: int = 1,
                 roi_queries: Optional[dict] = None,
                 point_channels: Optional[int] = None,
                 prior: float = .01,
                 test_cfg: dict = dict(
                     score_thr=.01, iou_thr=.05, max_per_img=50),
                 embed_dims: Optional[int] = None,
                 roi_size: int = 7,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.scene_range = scene_range
        self.num_classes = num_classes
        self.point_channels = point_channels
        self.prior = prior
        self.test_cfg = test_cfg
        self.roi_queries = MODELS.build(
            dict(roi_queries, embed_dims=embed_dims, scene_range=scene_range,
                 roi_size=roi_size)) if roi_queries else None

    @property
    def sources(self) -> List[int]:
        """Those that give queries when testing."""
        parts = {ROI: self.roi_queries, VOLUME: self.point_channels}
        return [i for i, part in parts.items() if part is not None]

    # --------------------------------------------------------------- forward
    def forward(self,
                features: Tensor,
                cameras: Dict[str, Tensor],
                img_shape: Tuple[int, int],
                rois: Optional[Tensor] = None,
                points: Optional[InstanceData] = None) -> InstanceData:
        """All queries of one sample: see :meth:`XRayLiftingHead.forward`,
        here with no layers."""
        rois = self._rois(rois, features)
        return self._unrefined(self._joined(
            self._source_queries(rois, None, cameras, points), rois))

    def _rois(self, rois: Optional[Tensor], features: Tensor) -> Tensor:
        """RoIs (R, 7), none where they are no source."""
        return (features.new_zeros(0, 7)
                if rois is None or self.roi_queries is None else rois)

    def _source_queries(self, rois: Tensor, roi_feats: Optional[Tensor],
                        cameras: Dict[str, Tensor],
                        points: Optional[InstanceData]
                        ) -> List[Tuple[int, InstanceData]]:
        """Queries of 2D boxes and of the volume, as far as there are any."""
        sources = []
        if len(rois):
            source = self.roi_queries(
                roi_feats, rois, cameras['cam2img'], cameras['ct2img'])
            source.logits = self._prior_logits(source)
            if 'scores' in source:
                # A score is that of the box's own class.
                own = F.one_hot(rois[:, 6].long(), self.num_classes)
                source.logits = (source.scores[:, None] * own).logit(1e-4)
            sources.append((ROI, source))
        if points is not None and self.point_channels is not None:
            sources.append((VOLUME, InstanceData(
                centres=points.centres, sizes=points.sizes,
                logits=points.logits)))
        return sources

    def _joined(self, sources: List[Tuple[int, InstanceData]], rois: Tensor,
                *more: str) -> InstanceData:
        """All of them in one list, with ``source``; ``more`` are fields that
        each has beside place and score."""
        fields = ('centres', 'sizes', 'logits', *more)
        if not sources:
            nothing = rois.new_zeros
            return InstanceData(
                centres=nothing(0, 3), sizes=nothing(0, 3),
                logits=nothing(0, self.num_classes),
                source=nothing(0, dtype=torch.long))
        return InstanceData.cat([
            InstanceData(
                **{field: source.get(field) for field in fields},
                source=torch.full((len(source), ), number,
                                  device=rois.device))
            for number, source in sources
        ])

    def _unrefined(self, queries: InstanceData,
                   layers: int = 0) -> InstanceData:
        """Queries that no layer has made anything of."""
        empty = queries.logits.new_zeros
        queries.all_logits = empty(len(queries), layers, self.num_classes)
        queries.all_boxes = empty(len(queries), layers, 6)
        return queries

    def _prior_logits(self, queries: InstanceData) -> Tensor:
        return queries.centres.new_full((len(queries), self.num_classes),
                                        bias_init_with_prob(self.prior))

    # --------------------------------------------------------------- predict
    def predict_by_feat(self, queries: InstanceData) -> InstanceData:
        """The queries' boxes, one of all that are of one finding, best
        first."""
        scores = queries.logits.sigmoid()
        # A source means its strongest class.
        scores = scores * (scores == scores.amax(1, keepdim=True))
        return self._fuse(torch.cat([queries.centres, queries.sizes], 1),
                          scores, queries.source)

    def _fuse(self, boxes: Tensor, scores: Tensor,
              source: Tensor) -> InstanceData:
        """Boxes (Q, 6) (mm) with scores (Q, classes), each of a source."""
        cfg = self.test_cfg
        row, label = (scores > cfg['score_thr']).nonzero(as_tuple=True)
        boxes, score, label = fuse_boxes(
            boxes[row], scores[row, label], label, source[row], self.sources,
            cfg['iou_thr'], self.prior)
        best = slice(cfg['max_per_img'])
        return build_box3d_instances(boxes[best], score[best], label[best])
