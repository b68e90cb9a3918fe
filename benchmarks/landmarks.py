"""Find the landmarks of mammograms, and say how far off they are.

    python benchmarks/landmarks.py --data-root SET

SET is what ``data_converters mammograms`` makes; where it comes from
``data_converters breast``, the truth is known. With ``--out-dir O`` each image
is drawn with its landmarks and nodes, of any set.

Distances are mm at the detector: of the nipple; of the pectoral line the mean
from points on the true line, as far as the image shows it, to the line that
was found.
"""

import argparse
from pathlib import Path
from typing import List, Optional, Sequence

import cv2
import numpy as np
from terminaltables import AsciiTable
from tqdm import tqdm

from projects.ag_rcnn.landmarks import (
    SMOOTHED_SIDE,
    VIEWS,
    LandmarkError,
    draw_landmarks,
    find_landmarks,
    node_grid,
)
from projects.core.files import dump_json, load_json

NEAR = 10.  # mm


def line_error(found: np.ndarray, true: np.ndarray) -> float:
    """Mean distance of the true line (2, 2) from one that was found (px)."""
    points = np.linspace(*true, 50)
    along = found[1] - found[0]
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return float(np.abs((points - found[0]) @ normal).mean())


def measure(root: Path, image: dict, side: float, out_dir: Optional[Path]
            ) -> dict:
    """What was found in an image, and how far off it is (mm)."""
    pixels = cv2.imread(str(root / image['file_name']), cv2.IMREAD_UNCHANGED)
    told = dict(view=image['view'], name=Path(image['file_name']).stem)
    try:
        found = find_landmarks(pixels, image['laterality'], image['view'],
                               side, image.get('padding', (0, 0, 0, 0)))
        nodes = node_grid(found, (22, 26))
    except LandmarkError as error:
        return dict(told, reason=str(error))
    if out_dir is not None:
        picture = draw_landmarks(pixels, found, nodes)
        cv2.imwrite(str(out_dir / f'{told["name"]}.png'), picture)
    truth = image.get('truth')
    if truth is None:
        return told
    told['nipple'] = image['pixel_mm'] * float(np.linalg.norm(
        found.nipple - truth['nipple']))
    if truth['pectoral'] is not None:
        told['pectoral'] = image['pixel_mm'] * line_error(
            found.pectoral, np.array(truth['pectoral']))
    return told


def row(name: str, images: List[dict], what: str) -> list:
    """Of a table: how many there are, how many were found, how far off."""
    found = sum('reason' not in image for image in images)
    off = np.array([image[what] for image in images if what in image])
    if not len(off):
        return [name, len(images), found, '', '', '']
    median, most = np.percentile(off, [50, 90])
    return [name, len(images), found, f'{median:.1f}', f'{most:.1f}',
            f'{(off <= NEAR).mean():.1%}']


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure all images of a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True,
                        help='set of "mammograms"')
    parser.add_argument('--smoothed-side', type=float, default=SMOOTHED_SIDE,
                        help='side of the image that the smoothing of '
                        'document 004 is meant for (px); default '
                        '%(default)g')
    parser.add_argument('--out-dir', type=Path, help='for a picture of each '
                        'image and landmarks.json')
    args = parser.parse_args(argv)
    if args.out_dir:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    images = [image for path in sorted(
        args.data_root.glob('annotations/instances_*.json'))
        for image in load_json(path)['images']]
    if not images:
        raise SystemExit(f'{args.data_root}: expected annotations/'
                         'instances_train.json and the like with images, '
                         'found none')
    told = [measure(args.data_root, image, args.smoothed_side, args.out_dir)
            for image in tqdm(images, desc='landmarks')]
    rows = [['', 'images', 'found', 'median (mm)', '90 % (mm)',
             f'within {NEAR:g} mm']]
    for view in VIEWS:
        rows.append(row(f'nipple, {view}', [
            t for t in told if t['view'] == view], 'nipple'))
    rows.append(row('pectoral line, MLO', [
        t for t in told if t['view'] == 'MLO'], 'pectoral'))
    print(AsciiTable(rows).table)
    for image in told:
        if 'reason' in image:
            print(f'{image["name"]}: {image["reason"]}')
    if args.out_dir:
        dump_json(told, args.out_dir / 'landmarks.json')


if __name__ == '__main__':
    main()
