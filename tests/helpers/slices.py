"""A converted set of CT slices with balls in it, made as the command makes
it."""

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_converters.convert import (
    Options,
    convert_scans,
    finish_set,
    open_set,
)
from data_converters.drr import Volume
from data_converters.scan import Finding, Scan
from data_converters.slices import Slicing

SPACING = (1., 1., 2.)  # mm
SHAPE = (64, 48, 20)


def ball_scan(number, count=None):
    """Noise with balls of 8 to 14 mm; scan 1 is empty, the first ball of scan
    2 has no reader. Readers rate first balls 1, 3 in scan 3, others 5."""
    rng = np.random.default_rng(number)
    hu = rng.normal(-850, 30, SHAPE).astype(np.float32)
    findings = []
    count = (0 if number == 1 else 2) if count is None else count
    for row in range(count):
        radius = rng.uniform(4, 7)
        half = np.ceil(radius / np.array(SPACING)).astype(int)
        grid = np.stack(np.meshgrid(*[np.arange(-h, h + 1) for h in half],
                                    indexing='ij'), -1) * SPACING
        mask = (grid**2).sum(-1) <= radius**2
        used = np.argwhere(mask)
        mask = mask[tuple(slice(a, b + 1) for a, b in zip(
            used.min(0), used.max(0)))]
        # One in each half, so that they do not touch.
        start = [int(rng.integers(2 + 32 * row, 32 * row + 30 - n))
                 if axis == 0 else int(rng.integers(1, SHAPE[axis] - n))
                 for axis, n in enumerate(mask.shape)]
        hu[tuple(slice(s, s + n) for s, n in zip(start, mask.shape))][
            mask] = 30
        unread = number == 2 and row == 0
        findings.append(Finding(mask, np.array(start), record=dict(
            nodule_id=row, diameter=2 * radius,
            num_readers=0 if unread else 4, median_malignancy=None
            if unread else 5. if row else 3. if number == 3 else 1.)))
    name = f'LIDC-IDRI-{number:04d}'
    directions = np.diag(SPACING) @ np.diag([-1., -1., 1.])
    return Scan(name, name, f'1.2.{number}', '1.2',
                Volume.centred(hu, directions), np.diag([-1., -1., 1., 1.]),
                findings)


@contextmanager
def _load(number):
    yield ball_scan(number)


def make_slice_set(root, numbers=range(4), **slicing):
    """Convert scans to the split 'train', one slice of 2 mm after the other
    by default.

    Returns:
        Path: The set.
    """
    options = Options(None, fractions=dict(val=0., test=0.), slices=asdict(
        Slicing(**{**dict(select='all'), **slicing})))
    root = Path(root)
    scans = [(f'LIDC-IDRI-{n:04d}', n) for n in numbers]
    with open_set(root, options):
        assert convert_scans(scans, _load, options, root) == {}
        finish_set(root, options)
    return root
