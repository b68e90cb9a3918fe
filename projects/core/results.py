"""What a test found: ``results.json`` and its table."""

from typing import List

import numpy as np
from terminaltables import AsciiTable

from projects.core.evaluation.matching import (
    DISTANCES,
    FALSE_POSITIVES,
    IOUS,
    ScanResult,
    match,
)
from projects.core.files import DataError, load_json

__all__ = ['results_of', 'table_of']


def load_thresholds(path: str) -> List[float]:
    """``froc.threshold`` of a results file."""
    found = load_json(path)
    found = found.get('froc') if isinstance(found, dict) else None
    found = found.get('threshold') if isinstance(found, dict) else None
    if not isinstance(found, list) or len(found) != len(FALSE_POSITIVES) or (
            not all(isinstance(v, (int, float)) for v in found)):
        raise DataError(
            f'{path}: field "froc.threshold": expected '
            f'{len(FALSE_POSITIVES)} scores, as tools/test.py --out writes '
            f'them for one class, found {found!r:.60}')
    return found


def describe_scan(scan: ScanResult, name: str, distance: float) -> dict:
    """One scan for the JSON: boxes, and what was matched at a distance (mm).
    """
    found, counts = match(scan, distance, True)
    return dict(
        token=scan.token, class_name=name,
        ground_truth=[
            dict(bbox_3d=box.tolist(), diameter=float(d),
                 found=bool((found == i).any()))
            for i, (box, d) in enumerate(zip(scan.truth, scan.diameters))
        ],
        ignored=[box.tolist() for box in scan.ignored],
        ignored_diameters=scan.ignored_diameters.tolist(),
        predictions=[
            dict(bbox_3d=box.tolist(), score=float(score),
                 match=int(m), counts=bool(c))
            for box, score, m, c in zip(scan.boxes, scan.scores, found,
                                        counts)
        ])


def results_of(full: dict, class_name: str) -> List[ScanResult]:
    """Scans of one class from ``full_results`` or the JSON of them."""

    def array(values, *shape):
        return np.array(values, dtype=np.float64).reshape(-1, *shape)

    return [
        ScanResult(
            array([p['bbox_3d'] for p in scan['predictions']], 7),
            array([p['score'] for p in scan['predictions']]),
            array([t['bbox_3d'] for t in scan['ground_truth']], 7),
            array([t['diameter'] for t in scan['ground_truth']]),
            array(scan['ignored'], 7), array(scan['ignored_diameters']),
            scan['token'])
        for scan in full['scans'] if scan['class_name'] == class_name
    ]


def table_of(full: dict) -> str:
    """What the screen shows after a test, from ``full_results`` or the JSON
    of them."""

    def text(value):
        return '-' if value is None else f'{value:.3f}'

    distances = full.get('distances_mm', DISTANCES)

    def row(name, part, interval=''):
        keys = ['mAP_3d', *(f'AP_{d:g}mm' for d in distances), 'CPM',
                'centre_error_mm', 'size_error_mm']
        cells = [text(part[k] if part['num_gt'] else None) for k in keys]
        cells[0] += interval
        return [name, str(part['num_gt']), *cells]

    header = ['findings', 'number', '3D mAP',
              f'AP {distances[0]:g} mm', *(f'{d:g} mm' for d in distances[1:]),
              'CPM', 'centre error (mm)', 'size error (mm)']
    interval = (f' [{full["mAP_3d_low"]:.3f}, {full["mAP_3d_high"]:.3f}]'
                if 'mAP_3d_low' in full else '')
    rows = [row('all', full, interval)]
    rows += [row(name.replace('_', ' '), part)
             for name, part in full['by_size'].items()]
    lines = [AsciiTable([header, *rows],
                        f'{full["num_scans"]} scans').table]
    froc = [
        ['false positives per scan'] + [f'{f:g}' for f in FALSE_POSITIVES],
        ['sensitivity'] + [text(v) for v in full['froc']['sensitivity']]
    ]
    if 'threshold' in full['froc']:
        froc.append(['at scores above'] +
                    [text(v) for v in full['froc']['threshold']])
    for name, values in full.get('calibration', {}).items():
        froc.append([f'calibration: {name.replace("_", " ")}'] +
                    [text(v) for v in values])
    froc = AsciiTable(froc, 'FROC').table
    ious = ', '.join(f'{iou:g}: {text(full[f"AP_iou{iou:g}"])}'
                     for iou in IOUS)
    return '\n'.join([*lines, froc, f'AP at 3D IoU {ious}'])
