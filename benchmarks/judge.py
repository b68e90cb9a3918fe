"""Can a finding be told by how it was made?

Real structures of a chest CT (pieces of vessels, of 4 to 14 mm) are set
elsewhere in the same lungs: copied with their own border and texture, or
painted anew from their mask, as the phantom paints findings, with the same
mean HU inside. A small network learns to tell which from 2D slices. Its AUC
on structures that it has not seen is the answer: 0.5 is no difference, 1 is
that painting can always be told.

    python benchmarks/judge.py [--chest CT ...] [--hard] [--picture FILE]

``--hard`` paints without a point spread and texture, as a first version did.
``--picture`` draws some structures copied, painted and painted hard.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_converters.chest import AIR, Chest, load_chest  # noqa: E402
from data_converters.painting import Material, Patch, paint  # noqa: E402

HALF = 20  # px: a slice shows that much to each side
SIZES = (4., 14.)  # mm


def structures(chest: Chest, count: int, rng: np.random.Generator) -> list:
    """Masks of dense pieces in the lungs, (y, x, z) and first voxel."""
    values = chest.values.transpose(1, 2, 0) + AIR
    lungs = chest.lungs.transpose(1, 2, 0)
    spacing = chest.spacing[[1, 0, 2]]
    smooth = ndimage.gaussian_filter(values, 1 / spacing)
    peaks = np.argwhere((smooth == ndimage.maximum_filter(
        smooth, np.ceil(6 / spacing).astype(int))) & lungs & (smooth > -550))
    found = []
    for peak in rng.permutation(peaks):
        half = np.ceil(8 / spacing).astype(int)
        low, high = peak - half, peak + half + 1
        if (low < 0).any() or (high > values.shape).any():
            continue
        place = tuple(map(slice, low, high))
        part = smooth[place]
        grid = (np.indices(part.shape).T - half) * spacing
        ball = np.linalg.norm(grid, axis=-1).T < rng.uniform(3, 7.5)
        middle = (np.median(values[lungs]) + part.max()) / 2
        pieces, _ = ndimage.label((values[place] > middle) & ball)
        mask = pieces == pieces[tuple(half)]
        size = (6 * mask.sum() * spacing.prod() / np.pi)**(1 / 3)
        if SIZES[0] <= size <= SIZES[1] and mask[tuple(half)]:
            found.append((mask, low))
        if len(found) == count:
            break
    return found


def slices_of(chest: Chest, count: int, hard: bool,
              rng: np.random.Generator) -> tuple:
    """Slices (N, 2 HALF, 2 HALF) of HU, whether painted, and which
    structure."""
    values = chest.values.transpose(1, 2, 0) + AIR
    lungs = chest.lungs.transpose(1, 2, 0)
    spacing = chest.spacing[[1, 0, 2]]
    inner = np.argwhere(ndimage.binary_erosion(
        lungs, iterations=2)[HALF:-HALF, HALF:-HALF]) + (HALF, HALF, 0)
    # Voxels are not resampled here: no blur of interpolation.
    spread = np.sqrt(np.maximum(
        chest.point_spread[[1, 0, 2]]**2 - spacing**2 / 6, .01))
    images, made, which = [], [], []
    for number, (mask, start) in enumerate(structures(chest, count, rng)):
        place = tuple(slice(a, a + n) for a, n in zip(start, mask.shape))
        tissue = values[place]
        for painted in (False, True):
            for _ in range(100):
                at = inner[rng.integers(len(inner))] - np.array(
                    mask.shape) // 2
                box = tuple(slice(a, a + n) for a, n in zip(at, mask.shape))
                under = values[box]
                if under.shape == mask.shape and np.median(
                        under[mask]) < -750 and lungs[box][mask].all():
                    break
            else:
                continue
            patch = (_painted(mask, at, tissue, under, chest, spacing, spread,
                              hard, rng) if painted
                     else _copied(mask, at, tissue, spacing))
            k = at[2] + mask.shape[2] // 2
            image = values[..., k].copy()
            patch.apply(image, k)
            row, column = at[:2] + np.array(mask.shape[:2]) // 2
            image = image[row - HALF:row + HALF, column - HALF:column + HALF]
            if image.shape == (2 * HALF, 2 * HALF):
                images.append(image)
                made.append(painted)
                which.append(number)
    return np.array(images), np.array(made), np.array(which)


def _copied(mask, at, tissue, spacing) -> Patch:
    rim = ndimage.distance_transform_edt(~mask, sampling=spacing) < 2
    share = ndimage.gaussian_filter(rim.astype(np.float32), .7 / spacing)
    return Patch(at, share, tissue)


def _painted(mask, at, tissue, under, chest, spacing, spread, hard, rng
             ) -> Patch:
    def noise(start, shape):
        grid = np.stack(np.meshgrid(*[
            np.arange(a, a + n) for a, n in zip(start, shape)],
            indexing='ij'), -1)
        return chest.noise_at(chest.points(grid[..., [1, 0, 2]]))

    around = np.median(under[mask])
    if hard:
        return Patch(at, mask.astype(np.float32),
                     np.full(mask.shape, tissue[mask].mean()))
    patch = paint(mask, at, Material(0., rng.uniform(10, 45)), spacing,
                  spread, noise, rng)
    edge = (np.array(patch.share.shape) - mask.shape) // 2
    inside = tuple(slice(e, e + n) for e, n in zip(edge, mask.shape))
    share = patch.share[inside][mask].mean()
    patch.hu += around + (tissue[mask].mean() - around) / share
    patch.stays = None
    return patch


def auc(images, made, groups, seed: int) -> float:
    """Of a small network on the structures of the last 40 %."""
    torch.manual_seed(seed)
    held = groups >= np.quantile(groups, .6)
    inputs = torch.from_numpy((images[:, None] + 700) / 300).float()
    target = torch.from_numpy(made).float()
    layers, channels = [], 1
    for width in (16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width),
                   nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
                   nn.MaxPool2d(2, ceil_mode=True)]
        channels = width
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(.3),
                          nn.LazyLinear(1))
    train = torch.from_numpy(np.flatnonzero(~held))
    model(inputs[:2])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=.05)
    rounds = 40
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds)
    for _ in range(rounds):
        model.train()
        for rows in train[torch.randperm(len(train))].split(32):
            batch = inputs[rows]
            for axis in (2, 3):
                if torch.rand(1) < .5:
                    batch = batch.flip(axis)
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(batch)[:, 0], target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        scores = model(inputs[torch.from_numpy(held)])[:, 0].numpy()
    return roc_auc_score(made[held], scores)


def draw(chest: Chest, path: Path, seed: int, count: int = 12) -> None:
    """The same structures copied, painted and painted hard, in rows."""
    rows = {}
    for name, hard, painted in (('copied', False, False),
                                ('painted', False, True),
                                ('painted hard', True, True)):
        images, made, which = slices_of(chest, 2 * count, hard,
                                        np.random.default_rng(seed))
        rows[name] = dict(zip(which[made == painted], images[made == painted]))
    shared = sorted(set.intersection(*map(set, rows.values())))[:count]
    figure = Figure(figsize=(1.1 * len(shared), 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(shared), squeeze=False)
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name)
        for axis, number in zip(line, shared):
            axis.imshow(images[number], cmap='gray', vmin=-1000, vmax=150)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main(argv=None) -> dict:
    """Print and return the AUC."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--chest', type=Path, nargs='+', default=[None],
                        help='default: the embedded one')
    parser.add_argument('--hard', action='store_true')
    parser.add_argument('--count', type=int, default=600,
                        help='structures of each chest; default %(default)s')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--picture', type=Path, metavar='FILE',
                        help='draw some structures of the first chest')
    args = parser.parse_args(argv)
    if args.picture:
        draw(load_chest(args.chest[0]), args.picture, args.seed)
    parts = []
    for path in args.chest:
        rng = np.random.default_rng(args.seed)
        images, made, which = slices_of(load_chest(path), args.count,
                                        args.hard, rng)
        # Shuffled, so that what is held out is of every chest.
        order = rng.permutation(which.max() + 1) / (which.max() + 1)
        parts.append((images, made, order[which]))
    images, made, groups = map(np.concatenate, zip(*parts))
    found = float(auc(images, made, groups, args.seed))
    print(f'{len(images)} slices, AUC {found:.3f}')
    return dict(slices=len(images), auc=found)


if __name__ == '__main__':
    main()
