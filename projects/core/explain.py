"""Which pixels a detection rests on: CAMs of boxes, and how good they are.

CAMs explain one number, a class's score. A detector gives boxes with scores,
in 3D from all views at once, and cuts them by peaks and NMS that have no
gradient. So nothing here needs one: the number is how much of one detection,
the target, is still found on changed views (:func:`similarity`), and a map is
one of all views. A target is a 3D box and all views, or a 2D box and its view;
of a CT, the slices that the box touches, or its slice.

What is taken away from a view is blurred, not set to 0: grey values are line
integrals, of which 0 says that there is no patient, and the edges of what is
cut out would be the strongest contrast in the network's input bands.

grad-cam has these methods, but does not serve: it needs torchvision, takes
every image for a sample of its own with weights of its own, where ten views
are one sample, and multiplies with its masks.

Shapes: V views of K channels, H and W of an image, C channels of a feature map
(h, w).
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Callable, Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.structures.ops import axis_aligned_bbox_overlaps_3d
from mmengine.structures import InstanceData
from torch import Tensor

from projects.core.engine.command_line import UserError
from projects.core.evaluation.ranking import bootstrap_weights

__all__ = [
    'FRACTIONS', 'METHODS', 'Target', 'eigen_cam', 'faithfulness',
    'random_map', 'score_cam', 'segmentation_game', 'similarity', 'softened',
    'ss_cam', 'summarise', 'target_of'
]

# Of all pixels: a quarter, a quarter of that and so on. A nodule has less than
# a hundredth: even steps would pass over it with the first.
FRACTIONS = tuple(4.**-n for n in range(5, 0, -1))
_CHANNELS = 8  # of a feature map, whose masks are tried
_COPIES, _NOISE = 4, .1  # of SS-CAM


# -------------------------------------------------------------------- targets
def similarity(found: InstanceData, target: InstanceData) -> float:
    """How much of one detection is among others: the largest IoU x score of
    those of its class, 0 if there are none.

    D-RISE (arXiv 2006.03204) compares detections so, there with the whole
    distribution of classes, which mmdet's results no longer have. Of a
    detection with itself it is the score.

    Args:
        found (InstanceData): ``bboxes`` (N, 4) xyxy (px) or (N, 6)
            :func:`~projects.core.boxes.corners_of` (mm), ``scores`` and
            ``labels`` (N,).
        target (InstanceData): The same of length 1.
    """
    overlaps = (bbox_overlaps if target.bboxes.shape[1] == 4 else
                axis_aligned_bbox_overlaps_3d)(target.bboxes, found.bboxes)
    values = overlaps[0] * found.scores * (found.labels == target.labels)
    return float(values.max()) if len(values) else 0.


def softened(views: Tensor) -> Tensor:
    """Views (V, C, H, W) without what is small in them."""
    sigma = views.shape[-1] / 20
    flat = views.flatten(0, 1).numpy()
    return torch.from_numpy(np.stack([
        cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        for image in flat])).view_as(views)


@dataclass
class Target:
    """One detection, and how alike detections on changed views are to it.

    Attributes:
        rows: (V,) which of the sample's views these are.
        views: (V, K, H, W) what the detection was made from (line integrals,
            or grey values of a CT).
        background: (V, K, H, W) what is shown where a view is hidden.
        activations: (V, C, h, w) of the network's features.
        stride: Pixels per cell of them.
        region: (V, 4) rectangle round the detection in each view (px).
        similarity: Of any views (V, K, H, W) to the target, from 0 to 1.
    """
    rows: np.ndarray
    views: Tensor
    background: Tensor
    activations: Tensor
    stride: int
    region: Tensor
    similarity: Callable[[Tensor], float]

    def shown(self, mask: Tensor) -> Tensor:
        """The views, hidden where a mask (V, H, W) from 0 to 1 is 0."""
        return self.background + mask[:, None] * (
            self.views - self.background)

    def upsampled(self, maps: Tensor) -> Tensor:
        """Maps of the features' cells (V, h, w) to pixels (V, H, W)."""
        height, width = self.views.shape[2:]
        return F.interpolate(
            maps[:, None], scale_factor=self.stride, mode='bilinear',
            align_corners=False)[:, 0, :height, :width]

    def cells(self) -> Tensor:
        """Which cells (V, h, w) of the features the region touches."""
        low, high = (self.region.unflatten(1, (2, 2)) / self.stride).unbind(1)
        touched = []
        for axis, count in ((1, self.activations.shape[2]),
                            (0, self.activations.shape[3])):
            cell = torch.arange(count)
            touched.append((cell < high[:, axis, None]) &
                           (cell + 1 > low[:, axis, None]))
        return touched[0][:, :, None] & touched[1][:, None]


@singledispatch
def target_of(model, sample: dict, detection: InstanceData,
              view: Optional[int] = None) -> Target:
    """A detection of a model. Each family of detectors registers how it is
    made of theirs, by the class of the model.

    Args:
        model (torch.nn.Module): In evaluation mode.
        sample (dict): Packed, as the data set gives it.
        detection (InstanceData): Of length 1, as for :func:`similarity`; of
            the 2D stage if it has 4 columns.
        view (int, optional): Of the 2D box.

    Raises:
        UserError: Nobody has registered such a model.
    """
    known = ', '.join(kind.__name__ for kind in target_of.registry
                      if kind is not object)
    raise UserError(f'model: expected one of {known}, which can be explained, '
                    f'found {type(model).__name__}')


# -------------------------------------------------------------------- methods
def eigen_cam(target: Target, rng: torch.Generator) -> Tensor:
    """Eigen-CAM (arXiv 2008.00299): activations along a principal component.

    There it is the first right singular vector of all activations, A = U S
    V^T, and the map A V_1: one map for an image, whatever was detected. Here
    V_1 is that of the cells of the target's region alone, of what they differ
    from the mean of all, with the sign that is positive in the region; the
    map is of all cells. It asks the network nothing about the target beyond
    its place.

    Returns:
        Tensor: (V, H, W), not negative.
    """
    vectors = target.activations.permute(0, 2, 3, 1)
    vectors = vectors - vectors.mean((0, 1, 2))
    region = vectors[target.cells()]
    if len(region) == 0:
        return torch.zeros_like(target.views[:, 0])
    first = torch.linalg.svd(region, full_matrices=False)[2][0]
    first = first * torch.sign((region @ first).sum())
    return target.upsampled((vectors @ first).clamp(min=0))


def score_cam(target: Target, rng: torch.Generator, copies: int = 1,
              noise: float = 0., channels: int = _CHANNELS) -> Tensor:
    """Score-CAM (arXiv 1910.01279): channels weighed by what they keep.

    There a channel's map A_k, upsampled and normalised to H_k in [0, 1],
    masks the image, and the map is ReLU(sum_k a_k A_k) with a_k = f(X * H_k) -
    f(X_b), softmaxed over k. Here

    - f is the similarity to the target and X_b the blurred views;
    - a mask covers all views, normalised over all of them;
    - there is no softmax: similarities lie between 0 and 1, where it would
      give a channel that keeps everything not three times the weight of one
      that keeps nothing. So weights of masks that keep nothing are 0.

    Only the channels that stand out most in the region, from their median by
    their deviation, are tried.

    Args:
        target (Target): What to explain.
        rng (torch.Generator): For the noise.
        copies (int): Noisy masks of each channel, for :func:`ss_cam`.
        noise (float): Their deviation, on masks from 0 to 1.
        channels (int): Tried at most.

    Returns:
        Tensor: (V, H, W), not negative.
    """
    maps, cells = target.activations.transpose(0, 1), target.cells()
    heat = torch.zeros_like(target.views[:, 0])
    if not cells.any():
        return heat
    flat = maps.flatten(1)
    contrast = (maps[:, cells].amax(1) - flat.median(1)[0]) / flat.std(
        1).clamp(min=1e-6)
    hidden = target.similarity(target.background)
    for channel in contrast.topk(min(channels, len(maps)))[1]:
        low, high = maps[channel].aminmax()
        mask = (maps[channel] - low) / (high - low).clamp(min=1e-6)
        weight = 0.
        for _ in range(copies):
            noisy = mask + noise * torch.randn(mask.shape, generator=rng)
            weight += target.similarity(
                target.shown(target.upsampled(noisy.clamp(0, 1)))) - hidden
        heat += weight / copies * target.upsampled(mask)
    return heat.clamp(min=0)


def ss_cam(target: Target, rng: torch.Generator) -> Tensor:
    """SS-CAM (arXiv 2006.14255): Score-CAM's weights, averaged over masks
    with Gaussian noise, a_k = 1/N sum_n f(X * (H_k + e_n)) - f(X_b), as its
    first variant. There are few copies, for each costs as much as Score-CAM,
    and the noise is a tenth of a mask's range."""
    return score_cam(target, rng, _COPIES, _NOISE)


def random_map(target: Target, rng: torch.Generator) -> Tensor:
    """What any map must be better than: uniform noise, of the cells of the
    features as the others are."""
    views, _, height, width = target.activations.shape
    return target.upsampled(torch.rand(views, height, width, generator=rng))


METHODS: Dict[str, Callable[[Target, torch.Generator], Tensor]] = {
    'eigen-cam': eigen_cam, 'score-cam': score_cam, 'ss-cam': ss_cam,
    'random': random_map
}


# -------------------------------------------------------------------- judging
def segmentation_game(heat: Tensor, masks: np.ndarray) -> dict:
    """The share of a map that lies inside the object: Score-CAM's
    energy-based pointing game (arXiv 1910.01279) with masks for boxes.

    Args:
        heat (Tensor): (V, H, W), not negative.
        masks (np.ndarray): (V, H, W), the object in each view.

    Returns:
        dict: ``energy`` and ``area``: the mask's shares of each view's heat
        and pixels, of the views that show it; ``energy_share``: their mean;
        ``gain``: of the energy over the area, 1 for a map that knows nothing.
    """
    inside = torch.as_tensor(masks).flatten(1)
    seen = inside.any(1)
    heat, inside = heat[seen].flatten(1), inside[seen]
    energy = (heat * inside).sum(1) / heat.sum(1).clamp(min=1e-12)
    area = inside.float().mean(1)
    share = float(energy.mean()) if len(energy) else 0.
    return dict(
        energy=energy.tolist(), area=area.tolist(), energy_share=share,
        gain=share / float(area.mean()) if len(area) else 0.)


def faithfulness(target: Target, heat: Tensor, rng: torch.Generator,
                 fractions: Sequence[float] = FRACTIONS) -> dict:
    """Deletion and insertion (RISE, arXiv 1806.07421): what becomes of a
    detection as the pixels that a map calls relevant are hidden, or alone are
    shown.

    Args:
        target (Target): What the map explains.
        heat (Tensor): (V, H, W).
        rng (torch.Generator): For the order of pixels that are level.
        fractions (Sequence[float]): Of the pixels of all views.

    Returns:
        dict: ``deletion_curve`` and ``insertion_curve``: similarity at each
        fraction, over that on the whole views; ``deletion`` and
        ``insertion``: their means, the areas under the curves over the
        logarithm of the fraction. Deletion is better low.
    """
    order = torch.randperm(heat.numel(), generator=rng)
    order = order[heat.flatten()[order].argsort(
        descending=True, stable=True)]
    whole = max(target.similarity(target.views), 1e-12)
    curves: Dict[str, List[float]] = dict(
        deletion_curve=[], insertion_curve=[])
    for fraction in fractions:
        mask = torch.zeros(heat.numel())
        mask[order[:round(fraction * heat.numel())]] = 1.
        mask = mask.view_as(heat)
        for name, part in (('deletion_curve', 1 - mask),
                           ('insertion_curve', mask)):
            curves[name].append(
                target.similarity(target.shown(part)) / whole)
    return dict(curves, deletion=float(np.mean(curves['deletion_curve'])),
                insertion=float(np.mean(curves['insertion_curve'])))


def summarise(values: Sequence[float], bootstrap: int = 1000,
              seed: int = 0) -> dict:
    """``mean`` of one figure of several findings, with ``low`` and ``high``
    of the 95 % interval of a bootstrap over them; None without any."""
    if len(values) == 0:
        return dict(mean=None, low=None, high=None)
    means = bootstrap_weights(len(values), bootstrap, seed) @ np.asarray(
        values, dtype=np.float64) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return dict(mean=float(np.mean(values)), low=float(low), high=float(high))
