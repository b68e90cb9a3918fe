"""An mmdet detector of images that come with their partners."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet3d.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor, nn

from projects.core.engine.bands import contrast_bands
from projects.core.engine.precision import as_is, features_2d

__all__ = ['CrossViewDetector', 'ExamPreprocessor', 'GREY']

GREY = (.299, .587, .114)  # of red, green and blue


@MODELS.register_module()
class ExamPreprocessor(DetDataPreprocessor):
    """mmdet's, of the images of all samples of a batch.

    Args:
        bands (Sequence[Sequence[float]]): Further channels, each of what a
            normalised image has more than its blur: its standard deviation
            (px), and what the difference is multiplied with.
        **kwargs: As for mmdet's.
    """

    def __init__(self, *args, bands: Sequence[Sequence[float]] = (),
                 **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sigmas = [sigma for sigma, _ in bands]
        self.register_buffer('gains', torch.tensor(
            [1., *(gain for _, gain in bands)])[:, None, None], False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Images (V, 1, H, W) of each sample to one batch (B, 1 + bands, H,
        W)."""
        batch = super().forward(dict(
            inputs=[image for images in data['inputs'] for image in images],
            data_samples=[image for sample in data['data_samples']
                          for image in sample.images]), training)
        if self.sigmas:
            batch['inputs'] = self.gains * contrast_bands(
                batch['inputs'], self.sigmas)
        return batch


@MODELS.register_module()
class CrossViewDetector(BaseModel):
    """Any 2D detector of mmdet on images that come together, with or without
    a graph between them (document 004: Mask R-CNN and AG-RCNN).

    Where the backbone takes one channel, weights of a first convolution for
    colours become their grey mean, .299 R + .587 G + .114 B. Where it takes
    three, each is the image: there are backbones of mmdet that take no other
    number; unless the preprocessor makes channels. Under autocast backbone
    and neck run in half precision, the rest in float32.

    Args:
        detector_2d (dict): The mmdet detector.
        data_preprocessor (dict): :class:`ExamPreprocessor`.
        graph (dict, optional): :class:`~projects.ag_rcnn.graph.
            CrossViewGraph`, between the neck and the heads.
    """

    with_2d = True  # tools ask for it

    def __init__(self, detector_2d: dict, data_preprocessor: dict,
                 graph: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        # mmdet's parts look their own parts up in mmdet's scope.
        self.detector_2d = MODELS.build(dict(detector_2d, _scope_='mmdet'))
        # loss() and predict() of mmdet start from our features.
        self.detector_2d.extract_feat = as_is
        self.graph = graph and MODELS.build(graph)
        backbone = self.detector_2d.backbone
        first = next(m for m in backbone.modules()
                     if isinstance(m, nn.Conv2d))
        self.colours = 1 if first.in_channels == 1 else 3
        if self.colours == 1:
            first._register_load_state_dict_pre_hook(_to_grey)

    def forward(self, inputs: Tensor,
                data_samples: Optional[List[DetDataSample]] = None,
                mode: str = 'tensor') -> Union[dict, list, tuple]:
        """As mmdet's, of images (B, C, H, W)."""
        features = self.extract_feat(inputs, data_samples)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.detector_2d(features, data_samples, mode)

    def extract_feat(self, inputs: Tensor,
                     data_samples: Optional[List[DetDataSample]] = None
                     ) -> Tuple[Tensor, ...]:
        """Backbone, neck and graph, see :func:`~projects.core.engine.
        precision.features_2d`."""
        features = features_2d(
            self.detector_2d, inputs if inputs.shape[1] > 1
            else inputs.expand(-1, self.colours, -1, -1))
        if self.graph is None or data_samples is None:
            return features
        with torch.autocast(inputs.device.type, enabled=False):
            return tuple(level.contiguous() for level
                         in self.graph(features, data_samples))


def _to_grey(state_dict: dict, prefix: str, *_) -> None:
    """A first convolution's weights for one channel from those for three."""
    weight = state_dict.get(f'{prefix}weight')
    if weight is not None and weight.shape[1] == 3:
        mean = weight.new_tensor(GREY)[:, None, None]
        state_dict[f'{prefix}weight'] = (weight * mean).sum(1, keepdim=True)
