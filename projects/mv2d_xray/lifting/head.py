"""Queries and RoIs of one sample to 3D boxes."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import ModuleList
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core import geometry
from projects.core.box_correlation import (
    relevant_rois,
    sweep_overlaps,
)
from projects.mv2d_xray.lifting.box_coder import decode_boxes, encode_boxes
from projects.mv2d_xray.lifting.fusion import (
    DENOISING,
    FREE,
    ROI,
    SOURCES,
    VOLUME,
    XRaySourceFusion,
)
from projects.mv2d_xray.lifting.position_encoding import sine_embedding

__all__ = ['XRayLiftingHead']


@MODELS.register_module()
class XRayLiftingHead(XRaySourceFusion):
    """Sparse cross-attention decoder over RoIs of all views.

    A query is a reference box in space with a first score; each decoder layer
    adds to both. Queries of a 2D box attend to that RoI and the relevant ones
    of other views; queries that already are points in space attend to the
    RoIs around their projection in every view, also where no 2D detector
    fired. The sources of queries neither see each other nor compete for a
    finding: false boxes of one would else decide the scores of the other.
    Losses as in Betancur et al. §4.3, on every layer. The last layer's boxes
    are fused as those of the sources are.

    Args:
        in_channels (int): Channels of the feature maps.
        embed_dims (int): C.
        scene_range (list[float]): ``[x0, y0, z0, x1, y1, z1]`` (mm).
        feat_stride (int): Pixels per cell of the feature maps.
        decoder, position_encoding (dict): Parts.
        num_classes, roi_queries, point_channels, prior, test_cfg: As for
            :class:`XRaySourceFusion`.
        relevance (dict): ``mode`` ('topk' or 'all'), ``num_depths`` and
            ``min_iou`` of the box correlation.
        free_queries (int): Number of learned queries that belong to no image,
            as DETR3D's and PETR's. Defaults to 0.
        free_size (float): Edges of the boxes that these start from (mm): a
            usual finding's. Defaults to 12.
        point_rois (dict): ``scale`` of the projected box and ``min_size``
            (px) of the RoIs of queries that are points; with ``reproject``
            every layer looks around the last one's boxes, with ``whole_view``
            at all of every view.
        denoising (dict, optional): ``groups``, ``centre_noise`` (mm) and
            ``size_noise`` (fraction) of noised ground truth given as queries
            (DN-DETR, arXiv 2203.01305). Defaults to None.
        reach (float): A point query farther from a finding (mm) does not
            answer for it, nor does a 2D box that its centre is not in. No
            less than the distance of neighbouring findings' centres.
            Defaults to 20.
        ignore_margin (float): Round the box of an ignored finding (mm), in
            which a query that answers for no other learns nothing: about as
            far as a box may be off. Defaults to 5.
        assigner, loss_cls, loss_box (dict): Training.
        code_weights (Sequence[float]): Weight of centre (3) and log size (3)
            in the box loss.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        scene_range: list,
        feat_stride: int,
        decoder: dict,
        position_encoding: dict,
        num_classes: int = 1,
        roi_queries: Optional[dict] = None,
        point_channels: Optional[int] = None,
        free_queries: int = 0,
        free_size: float = 12.,
        roi_size: int = 7,
        relevance: dict = dict(mode='topk', num_depths=32, min_iou=.1),
        point_rois: dict = dict(scale=2., min_size=8.),
        denoising: Optional[dict] = None,
        prior: float = .01,
        reach: float = 20.,
        ignore_margin: float = 5.,
        assigner: dict = dict(
            type='mmdet.HungarianAssigner',
            match_costs=[
                dict(type='mmdet.FocalLossCost', weight=2.),
                dict(type='XRayBoxL1Cost', weight=50.)
            ]),
        loss_cls: dict = dict(
            type='mmdet.FocalLoss', use_sigmoid=True, gamma=2., alpha=.25,
            loss_weight=2.),
        loss_box: dict = dict(type='mmdet.L1Loss', loss_weight=.25),
        code_weights: Sequence[float] = (20., 20., 20., 1., 1., 1.),
        test_cfg: dict = dict(score_thr=.01, iou_thr=.05, max_per_img=50),
        init_cfg=None) -> None:
        super().__init__(
            scene_range, num_classes, roi_queries, point_channels, prior,
            test_cfg, embed_dims, roi_size, init_cfg)
        self.embed_dims = embed_dims
        self.feat_stride = feat_stride
        self.roi_size = roi_size
        self.relevance = relevance
        self.point_rois = point_rois
        self.denoising = denoising
        self.reach = reach
        self.ignore_margin = ignore_margin
        self.free_size = free_size
        self.register_buffer('code_weights', torch.tensor(code_weights),
                             False)
        self.free_queries = None
        self._build_decoder(decoder, position_encoding, in_channels,
                            free_queries)
        self.assigner = TASK_UTILS.build(assigner)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_box = MODELS.build(loss_box)

    def _build_decoder(self, decoder: dict, position_encoding: dict,
                       in_channels: int, free_queries: int) -> None:
        dims = self.embed_dims
        self.input_proj = nn.Conv2d(in_channels, dims, 1)
        self.position_encoding = MODELS.build(
            dict(position_encoding, embed_dims=dims,
                 scene_range=self.scene_range))
        self.roi_extractor = MODELS.build(
            dict(
                type='mmdet.SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=self.roi_size,
                               sampling_ratio=1),
                out_channels=2 * dims, featmap_strides=[self.feat_stride]))
        self.point_content = (
            None if self.point_channels is None
            else nn.Linear(self.point_channels, dims))
        if free_queries:
            self.free_queries = nn.Parameter(torch.zeros(free_queries, dims))
            self.free_places = nn.Parameter(torch.zeros(free_queries, 3))
        self.denoising_content = (
            nn.Parameter(torch.zeros(dims)) if self.denoising else None)
        self.query_pos = nn.Sequential(
            nn.Linear(3 * dims, dims), nn.ReLU(inplace=True),
            nn.Linear(dims, dims))
        self.decoder = MODELS.build(dict(decoder, embed_dims=dims))
        num_layers = len(self.decoder.layers)
        self.cls_branches = ModuleList([
            nn.Sequential(
                nn.Linear(dims, dims), nn.LayerNorm(dims),
                nn.ReLU(inplace=True), nn.Linear(dims, self.num_classes))
            for _ in range(num_layers)
        ])
        self.reg_branches = ModuleList([
            nn.Sequential(
                nn.Linear(dims, dims), nn.ReLU(inplace=True),
                nn.Linear(dims, 6)) for _ in range(num_layers)
        ])

    def init_weights(self) -> None:
        """An untrained head leaves its reference boxes and scores alone."""
        super().init_weights()
        for branch in (*self.cls_branches, *self.reg_branches):
            nn.init.zeros_(branch[-1].weight)
            nn.init.zeros_(branch[-1].bias)
        if self.free_queries is not None:
            nn.init.normal_(self.free_queries)
            # Spread evenly over the scene box.
            unit = torch.rand_like(self.free_places).clamp(.01, .99)
            self.free_places.data = unit.logit()

    # --------------------------------------------------------------- queries
    def _free_queries(self) -> InstanceData:
        """Learned places in the scene box that belong to no image."""
        queries = InstanceData(
            centres=geometry.denormalise_points(
                self.free_places.sigmoid(), self.scene_range),
            content=self.free_queries)
        queries.sizes = torch.full_like(queries.centres, self.free_size)
        queries.logits = self._prior_logits(queries)
        return queries

    @property
    def sources(self) -> List[int]:
        """Those that give queries when testing."""
        free = [] if self.free_queries is None else [FREE]
        return super().sources + free

    def _denoising_queries(self, gt: InstanceData) -> InstanceData:
        """Noised copies of the ground truth, one group after the other."""
        groups = self.denoising['groups']
        boxes = gt.boxes[:, :6].repeat(groups, 1)
        noise = torch.rand_like(boxes) * 2 - 1
        centres = boxes[:, :3] + noise[:, :3] * self.denoising['centre_noise']
        queries = InstanceData(
            centres=geometry.clamp_points(centres, self.scene_range),
            sizes=boxes[:, 3:] *
            (1 + noise[:, 3:] * self.denoising['size_noise']),
            content=self.denoising_content.expand(len(boxes), -1))
        queries.logits = self._prior_logits(queries)
        return queries

    def _project_rois(self, boxes: Tensor, ct2img: Tensor,
                      img_shape: Tuple[int, int]
                      ) -> Tuple[Tensor, Tensor, Tensor]:
        """RoIs around the projections of boxes (Q, 6) (mm), (R, 5); those of
        each query, (Q, V), and whether they are in the image, (Q, V)."""
        count, num_views = len(boxes), len(ct2img)
        views = torch.arange(num_views, device=boxes.device)
        size = boxes.new_tensor([img_shape[1], img_shape[0]])
        if self.point_rois.get('whole_view'):
            whole = torch.cat([views[:, None].to(size), size.new_zeros(
                num_views, 2), size.expand(num_views, 2)], 1)
            index = views.expand(count, num_views)
            return whole, index, torch.ones_like(index, dtype=torch.bool)
        rects, depth = geometry.project_boxes(boxes.detach(), ct2img)
        centre = (rects[..., :2] + rects[..., 2:]) / 2
        half = (rects[..., 2:] - rects[..., :2]) / 2
        half = (half * self.point_rois['scale']).clamp(
            min=self.point_rois['min_size'] / 2)
        valid = ((centre >= 0) & (centre <= size)).all(-1) & (depth > 0)
        half = torch.minimum(half, size / 2)
        rects = torch.cat([centre - half, centre + half], -1)
        rects = rects * valid[..., None]
        rois = torch.cat([
            views[:, None, None].expand(-1, count, 1).to(rects), rects
        ], -1)
        index = torch.arange(count * num_views, device=rois.device)
        return (rois.transpose(0, 1).reshape(-1, 5),
                index.view(count, num_views), valid.T)

    # --------------------------------------------------------------- forward
    def forward(self,
                features: Tensor,
                cameras: Dict[str, Tensor],
                img_shape: Tuple[int, int],
                rois: Optional[Tensor] = None,
                points: Optional[InstanceData] = None,
                gt: Optional[InstanceData] = None) -> InstanceData:
        """Refine all queries of one sample.

        Args:
            features (Tensor): (V, C', h, w).
            cameras (dict): ``cam2img`` and ``ct2img``, (V, 4, 4).
            img_shape (tuple[int, int]): Height and width of the images (px).
            rois (Tensor, optional): (R, 7), view index, xyxy (px), score,
                label.
            points (InstanceData, optional): Point queries.
            gt (InstanceData, optional): ``boxes`` (N, 7), for denoising.

        Returns:
            InstanceData: Per query ``centres``, ``sizes`` (mm) and ``logits``
            (Q, classes) that it starts with, ``source``, an index into
            :data:`SOURCES`, ``all_logits`` (Q, layers, classes) and
            ``all_boxes`` (Q, layers, 6) (mm).
        """
        ct2img = cameras['ct2img']
        rois = self._rois(rois, features)
        features = self.input_proj(features)
        encoding = self.position_encoding(features, self.feat_stride, ct2img)
        maps = torch.cat([features, encoding], 1)
        tokens, token_pos = self._tokens(maps, rois[:, :5].contiguous())
        roi_feats = tokens.transpose(1, 2).unflatten(2, [self.roi_size] * 2)
        queries = self._queries(rois, roi_feats, cameras, points, gt)
        if len(queries) == 0:
            return self._unrefined(queries, len(self.decoder.layers))
        index, valid = self._relevant_rois(rois, ct2img)
        seen = []

        def see(outputs):
            """What the next layer's queries look at."""
            if seen and not self.point_rois.get('reproject'):
                return seen[0]
            boxes = torch.cat([queries.centres, queries.sizes], 1)
            if outputs:
                branch = self.reg_branches[len(outputs) - 1]
                boxes = decode_boxes(queries.centres, queries.sizes,
                                     branch(outputs[-1]), self.scene_range)
            unit = geometry.normalise_points(boxes[:, :3], self.scene_range)
            query_pos = self.query_pos(sine_embedding(unit, self.embed_dims))
            more, index_of, valid_of = self._project_rois(
                boxes[len(rois):], ct2img, img_shape)
            more = self._tokens(maps, more)
            width = max(index.shape[1], index_of.shape[1])

            def join(one, two):
                return torch.cat([F.pad(x, (0, width - x.shape[1]))
                                  for x in (one, two)])

            seen.append((query_pos, torch.cat([tokens, more[0]]),
                         torch.cat([token_pos, more[1]]),
                         join(index, index_of + len(rois)),
                         join(valid, valid_of)))
            return seen[-1]

        hidden = self.decoder(queries.content, see,
                              self._self_attn_mask(queries, gt))
        logits = [queries.logits + branch(h)
                  for branch, h in zip(self.cls_branches, hidden)]
        boxes = [
            decode_boxes(queries.centres, queries.sizes, branch(h),
                         self.scene_range)
            for branch, h in zip(self.reg_branches, hidden)
        ]
        queries.all_logits = torch.stack(logits, 1)
        queries.all_boxes = torch.stack(boxes, 1)
        return queries

    def _queries(self, rois: Tensor, roi_feats: Tensor,
                 cameras: Dict[str, Tensor], points: Optional[InstanceData],
                 gt: Optional[InstanceData]) -> InstanceData:
        """Those of all sources, with ``content`` for the decoder."""
        sources = self._source_queries(rois, roi_feats, cameras, points)
        for number, source in sources:
            if number == VOLUME:
                source.content = self.point_content(points.content)
        if gt is not None and self.denoising and len(gt):
            sources.append((DENOISING, self._denoising_queries(gt)))
        if self.free_queries is not None:
            sources.append((FREE, self._free_queries()))
        return self._joined(sources, rois, 'content')

    @torch.no_grad()
    def _relevant_rois(self, rois: Tensor, ct2img: Tensor
                       ) -> Tuple[Tensor, Tensor]:
        """Of each 2D box (R, K): rows of ``rois``, and which are real."""
        views = rois[:, 0].long()
        if not len(rois):
            return views.new_zeros(0, 0), views.new_zeros(0, 0).bool()
        overlaps = sweep_overlaps(
            rois[:, 1:5], views, ct2img,
            geometry.depth_bounds(ct2img, self.scene_range),
            self.relevance['num_depths'])
        return relevant_rois(overlaps, views, len(ct2img),
                             self.relevance['mode'],
                             self.relevance['min_iou'])

    def _tokens(self, maps: Tensor, rois: Tensor) -> Tuple[Tensor, Tensor]:
        """Features and position encoding of RoIs, each (R, T, C)."""
        if len(rois) == 0:
            empty = maps.new_zeros(0, self.roi_size**2, self.embed_dims)
            return empty, empty
        aligned = self.roi_extractor((maps, ), rois).flatten(2)
        return aligned.transpose(1, 2).split(self.embed_dims, 2)

    def _self_attn_mask(self, queries: InstanceData,
                        gt: Optional[InstanceData]) -> Optional[Tensor]:
        """True where a query must not look: into another source's queries or
        another denoising group."""
        group = queries.source.clone()
        noised = group == DENOISING
        if bool(noised.any()):
            group[noised] = len(SOURCES) + torch.div(
                torch.arange(int(noised.sum()), device=group.device), len(gt),
                rounding_mode='floor')
        apart = group[:, None] != group[None]
        return apart if bool(apart.any()) else None

    # ------------------------------------------------------------------ loss
    def loss_by_feat(self, queries: InstanceData, gt: InstanceData,
                     rois: Optional[Tensor] = None,
                     ct2img: Optional[Tensor] = None) -> dict:
        """Losses of one sample, on every layer.

        Args:
            queries (InstanceData): From :meth:`forward`.
            gt (InstanceData): ``boxes`` (N, 7) (mm), ``labels`` (N,) and
                metainfo ``ignored`` (M, 7).
            rois (Tensor, optional): (R, 7), what the queries of 2D boxes are
                from.
            ct2img (Tensor, optional): (V, 4, 4), the cameras of ``rois``.

        Returns:
            dict: ``loss_cls_3d`` and ``loss_box_3d`` of the last layer, and
            ``d<i>.`` of the others.
        """
        targets = InstanceData(
            codes=encode_boxes(gt.boxes, self.scene_range), labels=gt.labels)
        losses = {}
        num_layers = queries.all_logits.shape[1]
        noised = queries.source == DENOISING
        allowed = self._may_answer(queries, gt, rois, ct2img)
        for layer in range(num_layers):
            logits = queries.all_logits[:, layer]
            boxes = queries.all_boxes[:, layer]
            codes = encode_boxes(boxes, self.scene_range)
            assigned = queries.source.new_zeros(len(logits))
            for source in queries.source[~noised].unique():
                rows = queries.source == source
                found = self.assigner.assign(
                    InstanceData(codes=codes[rows].detach(),
                                 scores=logits[rows].detach(),
                                 allowed=allowed[rows]),
                    targets).gt_inds.clamp(min=0)
                if len(gt):
                    found = found * allowed[rows].gather(
                        1, (found - 1).clamp(min=0)[:, None])[:, 0]
                assigned[rows] = found
            if bool(noised.any()):
                assigned[noised] = 1 + torch.arange(
                    int(noised.sum()), device=assigned.device) % len(gt)
            positive = assigned > 0
            labels = torch.full_like(assigned, self.num_classes)
            labels[positive] = gt.labels[assigned[positive] - 1]
            weight = self._label_weights(boxes, positive, gt.ignored)
            count = max(int(positive.sum()), 1)
            # mmcv's CUDA kernel cannot take the maximum of no labels.
            loss_cls = self.loss_cls(
                logits, labels, weight,
                avg_factor=count) if len(labels) else logits.sum() * 0
            error = self.loss_box(
                codes[positive], targets.codes[assigned[positive] - 1],
                self.code_weights.expand(int(positive.sum()), -1),
                avg_factor=count)
            prefix = '' if layer == num_layers - 1 else f'd{layer}.'
            losses[f'{prefix}loss_cls_3d'] = loss_cls
            losses[f'{prefix}loss_box_3d'] = error
        return losses

    def _may_answer(self, queries: InstanceData, gt: InstanceData,
                    rois: Optional[Tensor],
                    ct2img: Optional[Tensor]) -> Tensor:
        """Which findings each query may be matched with, (Q, N).

        A one-to-one matching finds a query for every finding, also where all
        queries are false: those would only learn that false ones score high.
        """
        away = torch.cdist(queries.centres, gt.boxes[:, :3])
        allowed = (queries.source != VOLUME)[:, None] | (away <= self.reach)
        of_boxes = queries.source == ROI
        if bool(of_boxes.any()):
            uv, depth = geometry.project(gt.boxes[:, :3], ct2img)
            views = rois[:, 0].long()
            uv, low, high = uv[views], rois[:, None, 1:3], rois[:, None, 3:5]
            allowed[of_boxes] = (((uv >= low) & (uv <= high)).all(-1)
                                 & (depth[views] > 0))
        return allowed

    def _label_weights(self, boxes: Tensor, positive: Tensor,
                       ignored: Tensor) -> Tensor:
        """0 for unmatched queries that lie on a finding left out."""
        weight = torch.ones_like(positive, dtype=boxes.dtype)
        if len(ignored):
            distance = (boxes[:, None, :3] - ignored[None, :, :3]).abs()
            reach = ignored[None, :, 3:6] / 2 + self.ignore_margin
            on = (distance <= reach).all(-1).any(1)
            weight[on & ~positive] = 0
        return weight

    # --------------------------------------------------------------- predict
    def predict_by_feat(self, queries: InstanceData) -> InstanceData:
        """The last layer's boxes, one of all that are of one finding, best
        first."""
        return self._fuse(queries.all_boxes[:, -1],
                          queries.all_logits[:, -1].sigmoid(), queries.source)
