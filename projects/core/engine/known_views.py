"""What a model's training views are like, and whether others are like them.

A network goes by grey levels and their noise: views of another scale, offset
or exposure give boxes that mean little, without an error. So a training
writes down, in its checkpoint, what its views were like
(``meta.known_views``):

- ``line_integrals``: of 1, 50 and 99 % of an object's pixels, below which
  they lie, the least and the most of all objects.
- ``noise``: of the open beam (rms), the same. Quanta make a line integral p
  noisy as exp(p / 2) times that, so that it hardly depends on the object.
- ``changing_noise``: what of it is another in each view, so that a gain
  pattern is not in it: it says the exposure.
- ``exposure``: air kerma at the detector (µGy), least and most; None where
  views are ideal or were measured.
- ``samples``: how many objects were looked at.

Shapes: V views, H and W of an image. To look at a training's views needs
torch, to compare others with them does not.
"""

import random
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np

__all__ = ['PERCENT', 'know_views', 'other_greys', 'two_noises']

SAMPLES = 24
PERCENT = (1, 50, 99)  # of pixels
# Of the training's largest line integral: what the levels may be off.
_LEVEL = .1
_NOISE = 1.5  # times the noisiest, or less than the least over it
# Second differences in both directions, which know no slope; and what they
# make of noise of 1 (Immerkær, "Fast Noise Variance Estimation", Computer
# Vision and Image Understanding 64(2), 1996).
_SECOND = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32)
_GAIN = 6.
_BEHIND = .25  # of an image's largest line integral
_MEDIAN = .6745  # of the size of noise of 1


def two_noises(images: np.ndarray) -> Tuple[float, float]:
    """Noise of the open beam (rms, of its line integral), and that of it
    which changes from view to view.

    It is what is left of line integrals between neighbours once the object
    is gone: the median of views of the median of pixels, which edges do not
    change. Only pixels behind the object count: an open beam's noise can be
    below the step of grey levels.

    Args:
        images: (V, H, W) line integrals.
    """
    images = np.asarray(images, np.float32)
    left = np.stack([
        cv2.filter2D(image, -1, _SECOND) / _GAIN for image in images])
    changing = left
    if len(left) > 1:
        changing = (left - left.mean(0)) / np.float32(
            (1 - 1 / len(left))**.5)
    found = []
    for row, image in enumerate(images):
        level = cv2.blur(image, (5, 5)).clip(0)
        behind = level >= _BEHIND * np.percentile(level, 99)
        found.append([
            np.median(np.abs(part[row][behind])
                      * np.exp(-level[behind] / 2)) / _MEDIAN
            for part in (left, changing)])
    noise, other = np.median(found, 0)
    return float(noise), float(other)


def _look(images: np.ndarray) -> List[float]:
    """Levels and noises of an object's views (V, H, W)."""
    return [*np.percentile(images, PERCENT), *two_noises(images)]


def _images_of(packed: dict) -> np.ndarray:
    """Views (V, H, W) as they leave a pipeline."""
    images = packed['inputs']['img']
    return images[:, images.shape[1] // 2].numpy()


def know_views(dataset) -> dict:
    """``known_views`` of a set to train on, as its pipeline shows them.

    Samples are spread over the set, and come again in a small one. Random
    numbers are the same each time; the generators are put back.

    Args:
        dataset: Of X-ray views.
    """
    rows = np.arange(SAMPLES) * len(dataset) // SAMPLES
    looks = []
    with _seeded():
        for row in rows:
            looks.append(_look(_images_of(dataset[int(row)])))
    low, high = np.min(looks, 0), np.max(looks, 0)
    ranges = [[float(f'{a:.4g}'), float(f'{b:.4g}')]
              for a, b in zip(low, high)]
    return dict(
        line_integrals={str(p): pair for p, pair in zip(PERCENT, ranges)},
        noise=ranges[-2], changing_noise=ranges[-1],
        exposure=_exposure(dataset), samples=len(rows))


def _exposure(dataset) -> Optional[List[float]]:
    """Air kerma (µGy) of a set's acquisition and of its pipeline's."""
    told: List[float] = []
    for part in getattr(dataset, 'datasets', [dataset]):
        made = (part.metainfo or {}).get('acquisition') or {}
        told += [made['kerma']] if made.get('kerma') else []
        # Views of a detector are left alone by the pipeline's.
        for step in (() if getattr(part, 'acquired', False)
                     else part.pipeline.transforms):
            told += getattr(step, 'exposure', None) or ()
    return [min(told), max(told)] if told else None


@contextmanager
def _seeded() -> Iterator[None]:
    """All generators start at 0, and go on afterwards where they were."""
    import torch
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.random.default_generator.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def other_greys(path: str, meta: dict, images: np.ndarray) -> Optional[str]:
    """A warning where views are not like those of the training, else None.

    Args:
        path: Checkpoint, for the message.
        meta: What it says of itself; None follows where it does not say what
            its views were like.
        images: (V, H, W) line integrals.
    """
    known = meta.get('known_views')
    if not isinstance(known, dict):
        return None
    levels = known['line_integrals']
    *found, noise, changing = _look(np.asarray(images))
    margin, others = _LEVEL * levels[str(PERCENT[-1])][1], []
    for percent, level in zip(PERCENT, found):
        low, high = levels[str(percent)]
        if not low - margin <= level <= high + margin:
            others.append(
                f'{percent} % of the line integrals below {low:.2f} to '
                f'{high:.2f} (found {level:.2f})')
    for name, what, value in (
            ('noise', 'noise', noise),
            ('changing_noise', 'noise that changes from view to view',
             changing)):
        low, high = known[name]
        if not low / _NOISE <= value <= high * _NOISE:
            others.append(f'{what} of {low:.2%} to {high:.2%} of the open '
                          f'beam (found {value:.2%})')
    less = changing / known['changing_noise'][1]
    if less > _NOISE:
        others[-1] += _less_exposure(less**2, known['exposure'])
    if not others:
        return None
    return (f'{path}: expected views as it was trained on, with '
            f'{" and ".join(others)}: its figures do not hold for these')


def _less_exposure(times: float, known: Optional[List[float]]) -> str:
    """Quantum noise goes with the root of the exposure."""
    return f', as of at least {times:.2g} times less exposure' + (
        f' than {known[0]:g} µGy' if known else '')
