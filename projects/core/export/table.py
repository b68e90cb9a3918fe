"""Boxes as a table (CSV)."""

import csv
from pathlib import Path
from typing import List

from projects.core.export.found import Found, place_box
from projects.core.files import atomic_write


def write_csv(found: Found) -> List[Path]:
    """Write ``boxes.csv``: a row for each box."""
    path = found.out_dir / 'boxes.csv'
    with atomic_write(path, 'w') as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ['scan', 'class', 'score',
             *(f'world_ras_{a}_mm' for a in 'xyz'),
             *(f'size_{a}_mm' for a in 'xyz'), 'yaw_rad',
             *(f'patient_lps_{a}_mm' for a in 'xyz')])
        for scan in found.scans:
            for box in scan['boxes']:
                patient = [''] * 3
                if scan['ct2patient'] is not None:
                    centre, _ = place_box(box['bbox_3d'], scan['ct2patient'])
                    patient = [f'{v:.9g}' for v in centre]
                writer.writerow(
                    [scan['token'], box['class_name'], f'{box["score"]:.6g}',
                     *(f'{v:.9g}' for v in box['bbox_3d']), *patient])
    return [path]
