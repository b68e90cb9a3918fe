"""How well findings could be seen: an observer that knows what to look for.

    python benchmarks/observer.py --data-root data/mid-v2 \
        [--size 256 ...] [--acquisition ideal chest-radiography ...]

A linear observer who knows a finding's size and shape, and the power spectrum
of what is round it, prewhitens the views and matches them (Barrett & Myers,
Foundations of Image Science, §13.2): in each view
d'^2 = sum |S(f)|^2 / P(f), over all views their sum, as if what is in front
of and behind the finding were independent from view to view. S is what the
finding adds, through the detector's blur, P the measured spectrum of patches
without findings at places where findings occur, noise in them. It knows all
but the place: found is what exceeds the largest of as many chance values as
there are places in a scan.

Real surroundings are not Gaussian: a network that knows ribs and vessels may
see more, one that knows less sees less. It says what the views hold, for
each size, before any network is trained.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.registry import init_default_scope
from scipy.stats import norm
from terminaltables import GithubFlavoredMarkdownTable
from tqdm import tqdm

import projects.mv2d_xray  # noqa: F401  registers the dataset
from projects.core import geometry
from projects.core.acquisition import Acquisition, load_preset, presets
from projects.core.boxes import gravity_boxes
from projects.core.files import dump_json
from projects.core.findings import Finding
from projects.core.infos import infos_name

PATCH = 100.  # mm at the isocentre, edge of what the observer looks at
SPREAD = (.7, .7, 1.3)  # mm, point spread of the CT along x, y, z
PLACES = 4e6 / 5**3  # of 5 mm in the lungs' 4 litres
_PLACES_A_SCAN = 8  # whose surroundings are measured
BINS = ((5., 8.), (8., 12.), (12., 30.), (30., 1000.))


def shrunk(scan: dict, size: int) -> Tuple[np.ndarray, np.ndarray, float]:
    """Ideal views (V, size, size), their ct2img and their pixel's size at
    the isocentre (mm)."""
    zoom = scan['img'][0].shape[1] / size
    scale = np.diag([1 / zoom, 1 / zoom, 1., 1.])
    images = [cv2.resize(image[..., 0], (size, size),
                         interpolation=cv2.INTER_AREA)
              for image in scan['img']]
    pixels = geometry.pixel_sizes(scan['cam2img'], scan['ct2cam'])
    return np.stack(images), scale @ scan['ct2img'], zoom * float(pixels[0])


def cut_out(image: np.ndarray, uv: np.ndarray, edge: int
            ) -> Optional[np.ndarray]:
    """Square round a place (px); None at the border."""
    x, y = (np.round(uv) - edge // 2).astype(int)
    if min(x, y) < 0 or max(x, y) + edge > len(image):
        return None
    return image[y:y + edge, x:x + edge].astype(np.float64)


def less_its_plane(patch: np.ndarray) -> np.ndarray:
    """A square without its mean and its slopes."""
    axis = np.linspace(-1, 1, len(patch))
    slopes = (patch * axis).mean(), (patch * axis[:, None]).mean()
    plane = slopes[0] * axis + slopes[1] * axis[:, None]
    return patch - patch.mean() - plane / (axis**2).mean()


def signal_of(finding: Finding, image: np.ndarray, ct2img: np.ndarray,
              quiet: Acquisition, pixel: float) -> np.ndarray:
    """What a finding adds to a view (H, W), through the detector, without
    its noise: scatter takes of it, as the beam's hardening does."""
    path = np.zeros_like(image)
    shown = finding.project(ct2img, image.shape, SPREAD)
    if shown is not None:
        (x1, y1, x2, y2), lengths = shown
        path[y1:y2, x1:x2] = finding.contrast * lengths
    rng = np.random.default_rng(0)
    views = quiet.measure(np.stack([image, image - path]), pixel, rng)
    return views[0] - views[1]


def solid(item: dict) -> Finding:
    """A finding of the bank, where and as large as it is."""
    return Finding(item['centre'], np.diag(2 / item['size']), item['shape'],
                   item['contrast'], item['label'])


def visibility(scans: Sequence[dict], bank: Sequence[dict],
               conditions: Acquisition, size: int, seed: int
               ) -> List[Dict[str, float]]:
    """Diameter (mm) and d' of each finding."""
    rng = np.random.default_rng(seed)
    quiet = replace(conditions, noise=False, electronic=0., gain=0., dead=0.,
                    scatter_error=0., lag=0.)
    signals, patches = [], []
    for scan in tqdm(scans, desc=f'{size} px'):
        images, ct2img, pixel = shrunk(scan, size)
        edge = int(PATCH / pixel) // 2 * 2
        for item in scan['own']:
            if item['shape'] is None or not item['contrast']:
                continue
            finding, centre = solid(item), item['centre'][None]
            uv, _ = geometry.project(centre, ct2img)
            power = np.zeros((edge, edge))
            for image, matrix, place in zip(images, ct2img, uv[:, 0]):
                signal = signal_of(finding, image, matrix, quiet, pixel)
                cut = cut_out(signal, place, edge)
                if cut is not None:
                    power += np.abs(np.fft.fft2(cut))**2
            signals.append((float(np.mean(item['size'])), power))
        views = conditions.measure(images, pixel, rng)
        window = np.outer(np.hanning(edge), np.hanning(edge))
        window /= np.sqrt((window**2).sum())
        for _ in range(_PLACES_A_SCAN):
            other = bank[rng.integers(len(bank))]['centre']
            place = other + rng.normal(0, 15, 3)
            if any(np.linalg.norm(place - item['centre'])
                   < 20 + item['size'].max() for item in scan['all']):
                continue
            uv, _ = geometry.project(place[None], ct2img)
            for image, point in zip(views, uv[:, 0]):
                cut = cut_out(image, point, edge)
                if cut is not None:
                    patches.append(np.abs(np.fft.fft2(
                        window * less_its_plane(cut)))**2)
    spectrum = np.mean(patches, 0)
    return [dict(diameter=diameter,
                 index=float(np.sqrt((power / spectrum).sum() / edge**2)))
            for diameter, power in signals]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True,
                        help='a set of ideal views')
    parser.add_argument('--split', default='test')
    parser.add_argument('--size', type=int, nargs='+', default=[256, 512])
    parser.add_argument('--acquisition', nargs='+', choices=list(presets()),
                        default=['ideal', 'chest-radiography',
                                 'chest-tomosynthesis', 'chest-low'])
    parser.add_argument('--num-scans', type=int, default=70)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='JSON')
    args = parser.parse_args(argv)
    init_default_scope('mmdet3d')
    dataset = DATASETS.build(dict(
        type='XRayDataset', data_root=str(args.data_root) + '/',
        ann_file=infos_name(args.split), min_diameter=5.,
        test_mode=True, pipeline=[dict(type='LoadXRayViews')]))
    scans = []
    for index in range(min(len(dataset), args.num_scans)):
        scan = dict(dataset[index])
        boxes = np.concatenate([
            gravity_boxes(scan[key]).numpy()[:, :6]
            for key in ('gt_bboxes_3d', 'ignored_bboxes_3d')])
        scan['own'] = dataset.findings(scan['instances'])
        scan['all'] = [dict(centre=b[:3], size=b[3:]) for b in boxes]
        scans.append(scan)
    rows, results = [], {}
    threshold = norm.isf(1 / PLACES)
    for name in args.acquisition:
        for size in args.size:
            found = visibility(scans, dataset.bank, load_preset(name), size,
                               args.seed)
            results[f'{name}, {size}'] = found
            row = [name, f'{size}²']
            for low, high in BINS:
                index = np.array([f['index'] for f in found
                                  if low <= f['diameter'] < high])
                share = norm.cdf(index - threshold).mean()
                row.append(f'{np.median(index):.1f}, {share:.0%} of '
                           f'{len(index)}' if len(index) else '-')
            rows.append(row)
    header = ['views', 'pixels', *(
        f'{low:g} to {high:g} mm' if high < 1000 else f'above {low:g} mm'
        for low, high in BINS)]
    print(GithubFlavoredMarkdownTable([header, *rows]).table)
    if args.out:
        dump_json(results, args.out)


if __name__ == '__main__':
    main()
