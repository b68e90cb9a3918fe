"""The detector: 2D stage, query sources and lifting, one sample at a time."""

from inspect import signature
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, RoIAlign
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.structures import DetDataSample
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from projects.core.boxes import (
    build_box3d_instances,
    fuse_boxes,
    gravity_boxes,
)
from projects.core.engine.precision import as_is
from projects.mv2d_xray.backbone import XRayFeatureExtractor
from projects.mv2d_xray.lifting.fusion import SOURCES, XRaySourceFusion
from projects.mv2d_xray.lifting.head import XRayLiftingHead

__all__ = ['MV2DXRay']


def _in_float(tree):
    """The same with all tensors of floating point in float32."""
    return tree_map(
        lambda x: x.float()
        if isinstance(x, Tensor) and x.is_floating_point() else x, tree)


def _build_lifting(cfg: dict, feat_stride: int,
                   point_channels: Optional[int]) -> nn.Module:
    """What turns queries into boxes, see :class:`MV2DXRay`.

    Raises:
        ValueError: Without a decoder there is something that only it learns.
    """
    cfg, kind = dict(cfg, point_channels=point_channels), cfg['type']
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if kind is None or not issubclass(kind, XRayLiftingHead):
        return MODELS.build(cfg)
    if cfg.get('decoder') is not None:
        return MODELS.build(dict(cfg, feat_stride=feat_stride))
    if cfg.get('free_queries') or cfg.get('denoising'):
        raise ValueError('XRayLiftingHead: free_queries, denoising: expected '
                         'a decoder, found none')
    shared = {*signature(XRaySourceFusion).parameters} - {
        'embed_dims', 'roi_size'}  # of the content, which only it reads
    of_decoder = {*signature(kind).parameters} - shared
    return MODELS.build(dict(
        {key: value for key, value in cfg.items() if key not in of_decoder},
        type='XRaySourceFusion'))


@MODELS.register_module()
class MV2DXRay(Base3DDetector):
    """Multi-view X-ray images to 3D boxes.

    MV2D (arXiv 2301.02364) as Betancur et al. adapt it to X-rays, with a
    second source of queries: ``roi`` makes one query per 2D box, ``volume``
    one per peak of a learned 3D heatmap. Either can be left out by config;
    without the lifting head the volume's peaks are the result.

    Any mmdet detector can be the 2D stage: its backbone and neck run once on
    all views, and its own ``loss`` and ``predict`` take the features. Where
    no part needs 2D boxes it is an :class:`XRayFeatureExtractor`. Under
    autocast (``--amp``) this stage and the volume's 3D net run in half
    precision; what is in mm is always computed in float32.

    Args:
        detector_2d (dict): An mmdet detector, or an
            :class:`XRayFeatureExtractor`.
        feat_strides (Sequence[int]): Pixels per cell of the neck's outputs.
        lifting_head (dict, optional): Turns queries into boxes; with
            ``decoder=None`` it is an :class:`XRaySourceFusion` of the same
            sources, to which what belongs to a decoder is of no use.
        lift_level (int): Neck output that the lifting head reads.
        volume_head (dict, optional): The ``volume`` source.
        volume_level (int): Neck output that the volume head reads.
        loss_weight_2d (float): Of the 2D stage's heads, more than 0.
        loss_weight_3d (float): Of the lifting head; Betancur et al. §4.3: 0.1.
        view_chunk (int, optional): Views that go through backbone and neck at
            a time. In training their activations are computed again for the
            gradients (Chen et al., arXiv 1604.06174), so that the memory is
            that of so few views. Not for backbones that train with batch
            statistics. Defaults to all views.
        train_rois (dict): RoIs of the ``roi`` source in training: at most
            ``max_per_view``; with ``add_gt`` up to half of them are true 2D
            boxes with edges moved by up to ``jitter`` of their size.
        freeze_sources (bool): Train the decoder alone; 2D stage and volume
            stay as they were loaded.
        data_preprocessor, init_cfg: As in mmdet3d.
    """

    # Convolutions are a fifth faster in this layout.
    memory_format = torch.channels_last

    def __init__(self,
                 detector_2d: dict,
                 feat_strides: Sequence[int],
                 lifting_head: Optional[dict] = None,
                 lift_level: int = 0,
                 volume_head: Optional[dict] = None,
                 volume_level: int = 0,
                 loss_weight_2d: float = 1.,
                 loss_weight_3d: float = .1,
                 view_chunk: Optional[int] = None,
                 train_rois: dict = dict(
                     max_per_view=100, add_gt=True, jitter=.2),
                 freeze_sources: bool = False,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if lifting_head is None and volume_head is None:
            raise ValueError(
                'MV2DXRay: expected a lifting_head or a volume_head, found '
                'neither')
        # mmdet's parts look their own parts up in mmdet's scope.
        self.detector_2d = MODELS.build(dict(detector_2d, _scope_='mmdet'))
        self.feat_strides = tuple(feat_strides)
        self._check_strides()
        # loss() and predict() of the 2D detector start from features, so
        # that all parts share one pass through backbone and neck.
        self.detector_2d.extract_feat = as_is
        self.lift_level, self.volume_level = lift_level, volume_level
        if loss_weight_2d <= 0:
            raise ValueError(
                'MV2DXRay: loss_weight_2d: expected more than 0, found '
                f'{loss_weight_2d}; a 2D stage without heads is an '
                'XRayFeatureExtractor')
        self.loss_weight_2d = loss_weight_2d
        self.loss_weight_3d = loss_weight_3d
        self.view_chunk = view_chunk
        self.train_rois = train_rois
        self.volume_head = MODELS.build(volume_head) if volume_head else None
        self.lifting_head = _build_lifting(
            lifting_head, self.feat_strides[lift_level],
            self.volume_head.hidden_channels if self.volume_head else None
        ) if lifting_head else None
        if self.with_roi_queries and not self.with_2d:
            raise ValueError(
                'MV2DXRay: roi_queries: expected a detector_2d with heads, '
                'found an XRayFeatureExtractor')
        self._guard_parts()
        self.freeze_sources = freeze_sources
        if freeze_sources:
            if not self.with_decoder:
                raise ValueError('MV2DXRay: freeze_sources: expected a '
                                 'decoder, which is left to train, found none')
            for part in self._sources():
                part.requires_grad_(False)

    def _sources(self) -> List[nn.Module]:
        parts = self.detector_2d, self.volume_head
        return [part for part in parts if part is not None]

    def train(self, mode: bool = True) -> 'MV2DXRay':
        """As any module's; what is frozen keeps its statistics, too."""
        super().train(mode)
        if self.freeze_sources:
            for part in self._sources():
                part.eval()
        return self

    def _guard_parts(self) -> None:
        """Give parts of other libraries what they silently rely on."""
        for module in self.modules():
            # Under autocast, a pixel's place and a box's edges still need
            # more digits than half precision has.
            if isinstance(module, (BaseDenseHead, BBoxHead)):
                module.register_forward_hook(
                    lambda module, args, out: _in_float(out))
            elif isinstance(module, BaseRoIExtractor):
                module.register_forward_pre_hook(
                    lambda module, args: _in_float(args))
            # These read any layout as if it were contiguous, without a word
            # (open-mmlab/mmcv#2203).
            elif isinstance(module, (DeformConv2d, ModulatedDeformConv2d,
                                     RoIAlign)):
                module.register_forward_pre_hook(
                    lambda module, args: tuple(a.contiguous() for a in args))

    @property
    def with_roi_queries(self) -> bool:
        """bool: Whether 2D boxes are a source of queries."""
        return (self.lifting_head is not None
                and self.lifting_head.roi_queries is not None)

    @property
    def with_decoder(self) -> bool:
        """bool: Whether queries are refined, which has to be learned."""
        return isinstance(self.lifting_head, XRayLiftingHead)

    @property
    def with_2d(self) -> bool:
        """bool: Whether the 2D stage has heads."""
        return not isinstance(self.detector_2d, XRayFeatureExtractor)

    @property
    def left_out(self) -> Tuple[str, ...]:
        """tuple[str]: What tensors begin with that a checkpoint may hold
        beside this model's: of 2D heads that once were idle."""
        if self.with_2d:
            return ()
        return tuple(f'detector_2d.{name}'
                     for name in self.detector_2d.left_out)

    @property
    def search_ranges(self) -> Dict[str, List[float]]:
        """dict: Where each source of boxes looks for findings, by name:
        ``[x0, y0, z0, x1, y1, z1]`` (mm)."""
        ranges = {}
        if self.volume_head is not None:
            ranges['volume'] = self.volume_head.volume_range
        head = self.lifting_head
        if head is not None:
            ranges.update({
                name: head.scene_range
                for name in (SOURCES[i] for i in head.sources)
                if name != 'volume'})
        return ranges

    def _check_strides(self) -> None:
        """Every part must agree on pixels per cell.

        In the published configuration the RoI extractor's strides were half
        the FPN's, so every box pooled its features from the wrong place.
        """
        det, strides = self.detector_2d, self.feat_strides
        found = {}
        head = getattr(det, 'rpn_head', None) or getattr(
            det, 'bbox_head', None)
        generator = getattr(head, 'prior_generator', None)
        if generator is not None:
            found['anchor generator'] = tuple(s[0] for s in generator.strides)
        roi_head = getattr(det, 'roi_head', None)
        if roi_head is not None:
            found['RoI extractor'] = tuple(
                roi_head.bbox_roi_extractor.featmap_strides)
        for part, value in found.items():
            if value != strides[:len(value)]:
                raise ValueError(
                    f'MV2DXRay: strides of the {part}: expected '
                    f'{strides[:len(value)]} as in feat_strides, found '
                    f'{value}')

    # ---------------------------------------------------------------- inputs
    def extract_feat(self, imgs: Tensor) -> Tuple[Tensor, ...]:
        """Backbone and neck of the 2D stage on (N, C, H, W)."""
        imgs = imgs.contiguous(memory_format=self.memory_format)
        if self.view_chunk:
            self._check_norms()
            chunks = [
                checkpoint(self._extract, chunk, use_reentrant=False)
                if torch.is_grad_enabled() else self._extract(chunk)
                for chunk in imgs.split(self.view_chunk)
            ]
            features = [torch.cat(level) for level in zip(*chunks)]
        else:
            features = self._extract(imgs)
        for feature, stride in zip(features, self.feat_strides):
            expected = -(-imgs.shape[-1] // stride)
            if feature.shape[-1] != expected:
                raise ValueError(
                    f'MV2DXRay: feat_strides: expected stride {stride} to '
                    f'give maps {expected} wide from images '
                    f'{imgs.shape[-1]} wide, found {feature.shape[-1]}')
        return tuple(features)

    def _features(self, imgs: Tensor, slices: Sequence[slice]
                  ) -> Tuple[Tensor, ...]:
        """Those of all views, of each scan by itself: norms without running
        statistics take those of a scan, not of the others in its batch."""
        return tuple(map(torch.cat, zip(
            *(self.extract_feat(imgs[rows]) for rows in slices))))

    def _extract(self, imgs: Tensor) -> Sequence[Tensor]:
        return type(self.detector_2d).extract_feat(self.detector_2d, imgs)

    def _check_norms(self) -> None:
        """Views of one chunk must not decide how another is normalised."""
        for name, module in self.detector_2d.named_modules():
            if (isinstance(module, _BatchNorm)
                    and (module.training or module.running_mean is None)
                    and name.startswith(('backbone', 'neck'))):
                raise ValueError(
                    f'MV2DXRay: view_chunk: expected {name} not to train '
                    'with batch statistics (norm_eval=True), found it does')

    @staticmethod
    def _cameras(sample, device) -> Dict[str, Tensor]:
        return {
            key: torch.as_tensor(
                sample.metainfo[key], dtype=torch.float32, device=device)
            for key in ('cam2img', 'ct2cam', 'ct2img')
        }

    @staticmethod
    def _img_shape(sample) -> Tuple[int, int]:
        """Height and width of a sample's views (px), without padding."""
        return tuple(sample.metainfo['img_shape'])[:2]

    @staticmethod
    def _views(data_samples) -> List[slice]:
        """Which rows of the flattened views belong to each sample."""
        slices, start = [], 0
        for sample in data_samples:
            count = len(sample.metainfo['ct2img'])
            slices.append(slice(start, start + count))
            start += count
        return slices

    @staticmethod
    def samples_2d(sample, imgs: Tensor, training: bool) -> list:
        """One mmdet sample per view, for :meth:`detect_2d`."""
        samples = []
        shape = MV2DXRay._img_shape(sample)
        # What mmdet's CenterNet takes off its boxes: no border was added.
        border = np.array([0., shape[0], 0., shape[1]], dtype=np.float32)
        for view in range(len(sample.metainfo['ct2img'])):
            item = DetDataSample(
                metainfo=dict(
                    img_id=view, img_shape=shape, ori_shape=shape,
                    pad_shape=tuple(imgs.shape[-2:]),
                    batch_input_shape=tuple(imgs.shape[-2:]),
                    border=border, scale_factor=(1., 1.)))
            if training:
                gt, ignored = sample.gt_instances, sample.ignored_instances
                here = gt.view_ids == view
                item.gt_instances = InstanceData(
                    bboxes=gt.bboxes[here], labels=gt.labels[here])
                item.ignored_instances = InstanceData(
                    bboxes=ignored.bboxes[ignored.view_ids == view])
            samples.append(item)
        return samples

    @staticmethod
    def _ground_truth(sample, device) -> InstanceData:
        def boxes_of(instances):
            return gravity_boxes(instances.bboxes_3d).to(device)

        gt = InstanceData(
            boxes=boxes_of(sample.gt_instances_3d),
            labels=sample.gt_instances_3d.labels_3d.to(device))
        gt.set_metainfo(
            dict(ignored=boxes_of(sample.ignored_instances_3d)))
        return gt

    # -------------------------------------------------------------- 2D stage
    def _loss_2d(self, features: Sequence[Tensor], samples: list) -> dict:
        """Losses of the 2D detector; proposals stay in the samples."""
        det = self.detector_2d
        if not getattr(det, 'with_rpn', False):
            return det.loss(features, samples)
        # mmdet's TwoStageDetector.loss, which does not give its proposals
        # away: running the RPN again would cost an eighth of a step.
        for sample in samples:
            sample.gt_labels = sample.gt_instances.labels
            sample.gt_instances.labels = torch.zeros_like(sample.gt_labels)
        losses, proposals = det.rpn_head.loss_and_predict(
            features, samples,
            proposal_cfg=det.train_cfg.get('rpn_proposal', det.test_cfg.rpn))
        losses = {
            name if 'rpn' in name else f'rpn_{name}': value
            for name, value in losses.items()
        }
        for sample, proposed in zip(samples, proposals):
            sample.gt_instances.labels = sample.gt_labels
            sample.proposals = proposed[:]
        losses.update(det.roi_head.loss(features, proposals, samples))
        return losses

    @torch.no_grad()
    def detect_2d(self, features: Sequence[Tensor],
                  samples: list) -> List[InstanceData]:
        """Boxes of each view, without gradient; proposals stay in the
        samples. CenterNet, which regresses edges freely and fills up its
        best cells with such that are no peaks, has boxes without an area and
        of score 0: they are left out."""
        det = self.detector_2d
        if getattr(det, 'with_rpn', False) and 'proposals' not in samples[0]:
            for sample, proposed in zip(
                    samples, det.rpn_head.predict(features, samples,
                                                  rescale=False)):
                sample.proposals = proposed
        results = self.detector_2d.predict(features, samples, rescale=False)
        found = [r.pred_instances for r in results]
        return [
            boxes[(boxes.bboxes[:, 2:] > boxes.bboxes[:, :2]).all(1)
                  & (boxes.scores > 0)]
            for boxes in found
        ]

    def _rois(self, detections: List[InstanceData], sample,
              training: bool) -> Tensor:
        """RoIs (R, 7) of one sample: view index, xyxy (px), score, label."""
        rois = []
        for view, found in enumerate(detections):
            boxes = torch.cat([found.bboxes, found.scores[:, None],
                               found.labels[:, None]], 1)
            if training:
                most = self.train_rois['max_per_view']
                boxes = boxes[:most]
                if self.train_rois['add_gt']:
                    gt = sample.gt_instances
                    here = gt.view_ids == view
                    here = here.nonzero()[:, 0][
                        torch.randperm(int(here.sum()))[:most // 2]]
                    true = gt.bboxes[here].to(boxes)
                    size = (true[:, 2:] - true[:, :2]).repeat(1, 2)
                    noise = torch.rand_like(true) * 2 - 1
                    true = true + self.train_rois['jitter'] * noise * size / 2
                    true = torch.cat([
                        true, torch.ones_like(true[:, :1]),
                        gt.labels[here, None].to(true)], 1)
                    boxes = torch.cat([boxes[:most - len(true)], true])
            rois.append(F.pad(boxes, (1, 0), value=view))
        return torch.cat(rois)

    # ------------------------------------------------------------------ loss
    def loss(self, batch_inputs: dict, batch_data_samples: list,
             **kwargs) -> dict:
        """Losses of a batch: L_2d + weight * L_3d + L_volume."""
        imgs = batch_inputs['imgs']
        slices = self._views(batch_data_samples)
        features = self._features(imgs, slices)
        losses, per_sample = {}, []
        samples_2d = [
            self.samples_2d(s, imgs, True) for s in batch_data_samples
        ]
        flat = [item for sample in samples_2d for item in sample]
        if self.with_2d and not self.freeze_sources:
            for name, value in self._loss_2d(features, flat).items():
                losses[f'2d.{name}'] = (
                    self._scale(value, self.loss_weight_2d)
                    if 'loss' in name else value)
        with_rois = self.with_roi_queries and self.with_decoder
        if with_rois:
            detections = self.detect_2d(features, flat)
        with torch.autocast(imgs.device.type, enabled=False):
            for sample, rows, views in zip(batch_data_samples, slices,
                                           samples_2d):
                per_sample.append(self._loss_3d(
                    features, rows, imgs.shape[-2:], sample, views,
                    detections[rows] if with_rois else None))
        for name in per_sample[0]:
            losses[name] = sum(p[name] for p in per_sample) / len(per_sample)
        # Parts that saw nothing to learn from still belong to the graph, as
        # distributed training expects.
        idle = sum(p.sum() for p in self.parameters() if p.requires_grad)
        losses['loss_idle'] = idle * 0
        return losses

    def _loss_volume(self, level: Tensor, heatmap: Tensor, code: Tensor,
                     gt: InstanceData, views: list) -> dict:
        """Losses of one sample's volume and of its 2D heatmaps."""
        boxes_2d = [
            torch.cat([
                v.gt_instances.bboxes, v.gt_instances.labels[:, None].float()
            ], 1) for v in views
        ]
        return dict(
            self.volume_head.loss_by_feat(
                heatmap, code, gt.boxes, gt.labels, gt.ignored),
            **self.volume_head.loss_2d(
                level.float(), self.feat_strides[self.volume_level], boxes_2d,
                [v.ignored_instances.bboxes for v in views]))

    def _loss_3d(self, features: Sequence[Tensor], rows: slice,
                 span: Tuple[int, int], sample, views: list,
                 detections: Optional[List[InstanceData]]) -> dict:
        """Losses in space of one sample, whose views are ``rows``; ``span``
        (px) is what the maps cover, with padding."""
        shape = self._img_shape(sample)
        gt = self._ground_truth(sample, features[0].device)
        cameras = self._cameras(sample, features[0].device)
        losses, points, rois = {}, None, None
        if self.volume_head is not None:
            level = features[self.volume_level][rows]
            heatmap, code, hidden = self.volume_head(
                level, cameras['ct2img'], shape, span)
            if not self.freeze_sources:
                losses = self._loss_volume(level, heatmap, code, gt, views)
            if self.with_decoder:
                points = self.volume_head.queries(heatmap, code, hidden)
        if self.with_decoder:
            if detections is not None:
                rois = self._rois(detections, sample, True)
            queries = self.lifting_head(
                features[self.lift_level][rows].float(), cameras, shape,
                rois, points, gt)
            lifted = self.lifting_head.loss_by_feat(
                queries, gt, rois, cameras['ct2img'])
            losses.update({
                k: v * self.loss_weight_3d
                for k, v in lifted.items()
            })
        return losses

    @staticmethod
    def _scale(value, weight: float):
        if isinstance(value, (list, tuple)):
            return [v * weight for v in value]
        return value * weight

    # --------------------------------------------------------------- predict
    def predict(self, batch_inputs: dict, batch_data_samples: list,
                **kwargs) -> list:
        """Fill ``pred_instances_3d`` (mm) and, where the 2D heads run,
        ``pred_instances`` and a two-stage detector's ``proposals`` with the
        boxes of all views and ``view_ids``. The metainfo's ``dropped_peaks``
        are scores of what the volume head had no place for."""
        imgs = batch_inputs['imgs']
        slices = self._views(batch_data_samples)
        features = self._features(imgs, slices)
        if self.with_2d:
            flat = [
                item for sample in batch_data_samples
                for item in self.samples_2d(sample, imgs, False)
            ]
            detections = self.detect_2d(features, flat)
        with torch.autocast(imgs.device.type, enabled=False):
            for sample, rows in zip(batch_data_samples, slices):
                rois = None
                if self.with_2d:
                    sample.pred_instances = self._of_all_views(
                        detections[rows])
                    if 'proposals' in flat[0]:
                        sample.proposals = self._of_all_views(
                            [item.proposals for item in flat[rows]])
                    rois = self._rois(detections[rows], sample, False)
                sample.pred_instances_3d = self._predict_3d(
                    features, rows, imgs.shape[-2:], sample, rois)
        return batch_data_samples

    def _predict_3d(self, features: Sequence[Tensor], rows: slice,
                    span: Tuple[int, int], sample,
                    rois: Optional[Tensor]) -> InstanceData:
        """Boxes in space of one sample, as :meth:`_loss_3d`."""
        shape = self._img_shape(sample)
        cameras, points = self._cameras(sample, features[0].device), None
        if self.volume_head is not None:
            volume = self.volume_head(
                features[self.volume_level][rows], cameras['ct2img'], shape,
                span)
            points = self.volume_head.queries(*volume)
            sample.set_metainfo(dict(
                dropped_peaks=self.volume_head.dropped(volume[0])))
        if self.lifting_head is None:
            return self._peaks_as_boxes(points)
        return self.lifting_head.predict_by_feat(self.lifting_head(
            features[self.lift_level][rows].float(), cameras, shape, rois,
            points))

    @staticmethod
    def _of_all_views(boxes: List[InstanceData]) -> InstanceData:
        """2D boxes of one sample in one list, with ``view_ids``."""
        return InstanceData.cat([
            InstanceData(
                bboxes=b.bboxes, scores=b.scores, labels=b.labels,
                view_ids=torch.full_like(b.labels, view))
            for view, b in enumerate(boxes)
        ])

    @staticmethod
    def _peaks_as_boxes(points: InstanceData) -> InstanceData:
        score, label = points.logits.sigmoid().max(1)
        return build_box3d_instances(*fuse_boxes(
            torch.cat([points.centres, points.sizes], 1), score, label,
            torch.zeros_like(label), [0]))

    def _forward(self, batch_inputs: dict, batch_data_samples=None, **kwargs):
        """Features of all views, for tools that count or trace them."""
        return self.extract_feat(batch_inputs['imgs'])
