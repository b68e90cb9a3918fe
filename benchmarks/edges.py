"""Paint balls with hard and soft edges into the lung opposite a lesion.

    python benchmarks/edges.py --chests CTS --lesions lesions.csv --out-dir O

Says whether a model finds findings or edges: each chest gets a ball of the
lesion's size and one of 15 mm, each with a hard edge (a voxel is inside or
not) and with a soft one. O/ct and O/boxes.csv (RAS mm) are for
``data_converters volume``.
"""

import argparse
import csv
from pathlib import Path
from typing import Mapping, Optional, Sequence

import nibabel
import numpy as np
from scipy import ndimage

HU = 30.  # soft tissue
EDGE = .6  # mm, scale of the logistic edge: 10 to 90 % over 2.6 mm
REACH = 60.  # mm round the mirrored place, where lung is looked for


def mirrored(centre: np.ndarray, values: np.ndarray,
             affine: np.ndarray) -> np.ndarray:
    """A place (3,) (RAS mm) on the other side of the body."""
    row = int(round((np.linalg.inv(affine) @ [*centre, 1])[2]))
    body = ndimage.binary_opening(values[:, :, row] > -300, iterations=2)
    columns = np.flatnonzero(body.any(1))
    middle = (affine @ [(columns[0] + columns[-1]) / 2, 0, row, 1])[0]
    return np.array([2 * middle - centre[0], *centre[1:]])


def place_in_lung(goal: np.ndarray, radius: float, values: np.ndarray,
                  affine: np.ndarray) -> tuple:
    """Voxel near a place whose neighbourhood is lung, and where all voxels
    are (X, Y, Z, 3) (RAS mm)."""
    index = np.stack(np.indices(values.shape), -1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    size = 2 * np.ceil(radius / np.abs(np.diag(affine)[:3])).astype(int) + 1
    lung = (values < -600) & (values > -990)
    share = ndimage.uniform_filter(lung.astype(np.float32), tuple(size))
    away = np.linalg.norm(places - goal, axis=-1)
    cost = np.where(away <= REACH, away / 40 - 4 * share, np.inf)
    return np.unravel_index(cost.argmin(), values.shape), places


def diameter_of(lesion: Mapping[str, str]) -> float:
    """Of a row of the table (mm)."""
    if lesion.get('diameter'):
        return float(lesion['diameter'])
    return float(np.mean([float(lesion[k]) for k in ('dx', 'dy', 'dz')]))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Paint all chests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--chests', type=Path, required=True,
                        help='folder of <scan>.nii.gz (HU)')
    parser.add_argument('--lesions', type=Path, required=True,
                        help='CSV: scan, x, y, z (RAS mm), and diameter or '
                        'dx, dy, dz, whose mean it is (mm)')
    parser.add_argument('--out-dir', type=Path, required=True)
    args = parser.parse_args(argv)
    (args.out_dir / 'ct').mkdir(parents=True, exist_ok=True)
    rows = []
    with args.lesions.open(encoding='utf-8') as stream:
        lesions = list(csv.DictReader(stream))
    for lesion in lesions:
        image = nibabel.load(args.chests / f'{lesion["scan"]}.nii.gz')
        values = np.asarray(image.dataobj).astype(np.float32)
        goal = mirrored(np.array([float(lesion[k]) for k in 'xyz']), values,
                        image.affine)
        for size, diameter in (('same', diameter_of(lesion)),
                               ('15mm', 15.)):
            voxel, places = place_in_lung(goal, diameter / 2, values,
                                          image.affine)
            depth = np.linalg.norm(places - places[voxel],
                                   axis=-1) - diameter / 2
            for edge, inside in (
                    ('hard', (depth <= 0).astype(np.float32)),
                    ('soft', 1 / (1 + np.exp((depth / EDGE).clip(-50, 50))))):
                name = f'{lesion["scan"]}_{size}_{edge}'
                painted = values * (1 - inside) + HU * inside
                nibabel.save(
                    nibabel.Nifti1Image(painted.astype(np.int16),
                                        image.affine),
                    args.out_dir / 'ct' / f'{name}.nii.gz')
                rows.append([name, *places[voxel].round(2), *[diameter] * 3,
                             'nodule', diameter])
                print(name, flush=True)
    with (args.out_dir / 'boxes.csv').open('w', encoding='utf-8') as stream:
        table = csv.writer(stream)
        table.writerow('scan,x,y,z,dx,dy,dz,class,diameter'.split(','))
        table.writerows(rows)


if __name__ == '__main__':
    main()
