"""Exponent of the power spectrum of synthetic mammograms.

    python benchmarks/breast_spectrum.py --data-root SET

As Burgess, Jacobson and Judy (Medical Physics 28(4), 2001) do for real ones:
a square of the breast under a Hann window, the power averaged over rings of
frequency, and a line through its logarithm. Of CC alone, in which no muscle
lies; what the film's curve made of the line integrals is undone.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

import cv2
import numpy as np

from data_converters.breast import FILM, FOG
from projects.core.breast import breast_mask, to_eight_bits
from projects.core.files import load_json

SIDE = 60.  # of the square (mm)
BAND = .06, .6  # 1/mm
RINGS = 13


def exponent(image: np.ndarray, pixel: float) -> float:
    """Of a square image with pixels as large (mm): beta of f^-beta."""
    window = np.hanning(len(image))
    power = np.abs(np.fft.fft2((image - image.mean())
                               * window * window[:, None]))**2
    steps = np.fft.fftfreq(len(image), pixel)
    frequency = np.hypot(steps, steps[:, None])
    ring = np.digitize(frequency, np.geomspace(*BAND, RINGS + 1))
    rings = [ring == k for k in range(1, RINGS + 1) if (ring == k).any()]
    slope, _ = np.polyfit(np.log([frequency[r].mean() for r in rings]),
                          np.log([power[r].mean() for r in rings]), 1)
    return -float(slope)


def square(pixels: np.ndarray, laterality: str, pixel: float) -> np.ndarray:
    """Line integrals, up to a factor, of the middle of a breast before the
    chest wall."""
    if laterality == 'R':
        pixels = pixels[:, ::-1]
    rows = np.flatnonzero(breast_mask(to_eight_bits(pixels)).any(1))
    size, edge = round(SIDE / pixel), round(12 / pixel)
    top = int(rows.mean()) - size // 2
    levels = pixels[top:top + size, edge:edge + size] / 65535
    return ((levels - FOG).clip(0) / (1 - FOG))**(1 / FILM)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure all CC images of a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True,
                        help='set of "mammograms" of synthetic breasts')
    args = parser.parse_args(argv)
    found = []
    for path in sorted(args.data_root.glob('annotations/instances_*.json')):
        for image in load_json(path)['images']:
            if image['view'] == 'CC':
                pixels = cv2.imread(str(args.data_root / image['file_name']),
                                    cv2.IMREAD_UNCHANGED)
                found.append(exponent(square(
                    pixels, image['laterality'], image['pixel_mm']),
                    image['pixel_mm']))
    if not found:
        raise SystemExit(f'{args.data_root}: expected CC images in '
                         'annotations/instances_train.json and the like, '
                         'found none')
    print(f'{len(found)} images: exponent {np.mean(found):.2f}, deviation '
          f'{np.std(found):.2f}')


if __name__ == '__main__':
    main()
