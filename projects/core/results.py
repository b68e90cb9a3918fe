"""What a test or an inference found: their JSON files and a test's table.

This module owns both schemas. ``results.json``, of a test, is what the 3D
metric's ``full_results`` hold, in their order, and then

- ``source``: ``config``, ``checkpoint``, its ``sha256``, the tested
  ``ann_file``, what that says its ``dataset`` is, and of how many of its
  patients or parts the checkpoint was trained on
  (``patients_seen_in_training``; null where that is not known);
- ``2d``: ``full_results`` of the 2D metric, where the model has a 2D stage.

``boxes.json``, of an inference, has ``boxes`` and says what their numbers
mean. Boxes are ``[x, y, z, dx, dy, dz, yaw]``, see
:mod:`projects.core.geometry`.
"""

from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np

from projects.core.evaluation.matching import (
    DISTANCES,
    FALSE_POSITIVES,
    IOUS,
    SHOWN_IOUS,
    ScanResult,
    match,
)
from projects.core.files import DataError, dump_json, load_json

__all__ = [
    'describe_scan', 'dump_boxes', 'dump_results', 'load_found',
    'load_results', 'load_thresholds', 'notes_of', 'results_of', 'table_of'
]

_NUMBER, _FIGURE = (int, float), (int, float, type(None))
# Figures of all findings and of those of a range of diameters.
_PART = dict(
    {f'AP_iou{iou:g}': _NUMBER for iou in IOUS}, mAP_3d=_NUMBER, CPM=_NUMBER,
    centre_error_mm=_FIGURE, size_error_mm=_FIGURE, num_gt=int, num_scans=int,
    froc=dict)
_KINDS = {_NUMBER: 'a number', _FIGURE: 'a number or null', int: 'a whole '
          'number', str: 'a text', bool: 'true or false', dict: 'an object',
          list: 'a list'}


# ------------------------------------------------------------------- writing
def dump_results(path: Union[str, Path], full: dict, source: dict,
                 full_2d: Optional[dict] = None) -> None:
    """Write ``results.json`` of a test, whole or not at all.

    Args:
        path: File to write.
        full (dict): The 3D metric's ``full_results``.
        source (dict): What was tested on what, see above.
        full_2d (dict, optional): The 2D metric's.
    """
    dump_json(dict(full, source=source, **{'2d': full_2d} if full_2d else {}),
              path)


def dump_boxes(path: Union[str, Path], boxes: Iterable[Sequence[float]],
               scores: Iterable[float], labels: Iterable[int],
               classes: Sequence[str]) -> None:
    """Write ``boxes.json`` of an inference.

    Args:
        path: File to write.
        boxes: (N, 7), gravity centre (mm).
        scores, labels: (N,).
        classes: Names.
    """
    dump_json(
        dict(
            frame='ct: RAS+ (x right, y anterior, z superior), origin at the '
            'isocentre of the rig', units='mm',
            axis_order='bbox_3d is [x, y, z, dx, dy, dz, yaw], gravity centre',
            boxes=[
                dict(bbox_3d=[round(float(v), 3) for v in box],
                     score=float(score), label=int(label),
                     class_name=classes[int(label)])
                for box, score, label in zip(boxes, scores, labels)
            ]), path)


def describe_scan(scan: ScanResult, name: str, distance: float) -> dict:
    """One scan for the JSON: boxes, and what matches within distance (mm)."""
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


# ------------------------------------------------------------------- reading
def load_results(path: Union[str, Path]) -> dict:
    """``results.json`` of a test, verified; what older ones do not say is
    filled in.

    Raises:
        DataError: The file is missing, no JSON, or a field is not as
            expected.
    """
    full = load_json(path)
    if not isinstance(full, dict) or not isinstance(full.get('scans'), list):
        raise DataError(f'{path}: field "scans": expected a list, as '
                        'tools/test.py --out writes it, found none')
    full.setdefault('source', {})
    full.setdefault('distances_mm', list(DISTANCES))
    _expect(full, path, source=dict, by_size=dict, distances_mm=list)
    if full['source'].get('patients_seen_in_training') is not None:
        _expect(full['source'], path, 'source.',
                patients_seen_in_training=int)
    if 'classes_without_findings' in full:
        _expect(full, path, classes_without_findings=list)
    for row, told in enumerate(full.get('classes_without_findings', ())):
        _expect(told, path, f'classes_without_findings[{row}].',
                class_name=str, predictions=int, false_positives=int,
                highest_score=_FIGURE)
    parts = {'': full, **{f'by_size.{name}.': part
                          for name, part in full['by_size'].items()}}
    for where, part in parts.items():
        _expect(part, path, where, **_PART, **{
            f'AP_{d:g}mm': _NUMBER for d in full['distances_mm']})
        _expect(part['froc'], path, f'{where}froc.',
                false_positives_per_scan=list, sensitivity=list)
    for row, scan in enumerate(full['scans']):
        where = f'scans[{row}].'
        _expect_scan(scan, path, where, match=int, counts=bool)
        _expect(scan, path, where, ground_truth=list, ignored=list,
                ignored_diameters=list)
        _expect_found(scan['ground_truth'], path, f'{where}ground_truth',
                      diameter=_NUMBER)
        for i, box in enumerate(scan['ignored']):
            _expect_box(box, path, f'{where}ignored[{i}]')
    return full


def load_found(path: Union[str, Path]) -> Tuple[List[dict], Optional[dict]]:
    """The boxes of a test or an inference.

    Returns:
        tuple: ``token`` and ``boxes`` (each ``bbox_3d``, ``score`` and
        ``class_name``, at least) of each scan, and a test's ``source``, None
        of an inference.

    Raises:
        DataError: The file is neither, or a field is not as expected.
    """
    full = load_json(path)
    full = full if isinstance(full, dict) else {}
    if isinstance(full.get('scans'), list):
        full.setdefault('source', {})
        _expect(full, path, source=dict)
        scans: dict = {}
        for row, scan in enumerate(full['scans']):
            _expect_scan(scan, path, f'scans[{row}].')
            of_scan = scans.setdefault(
                scan['token'], dict(token=scan['token'], boxes=[]))
            of_scan['boxes'] += [dict(p, class_name=scan['class_name'])
                                 for p in scan['predictions']]
        return list(scans.values()), full['source']
    if isinstance(full.get('boxes'), list):
        _expect_found(full['boxes'], path, 'boxes', score=_NUMBER,
                      class_name=str)
        return [dict(token=Path(path).stem, boxes=full['boxes'])], None
    raise DataError(f'{path}: fields "scans" or "boxes": expected '
                    'results of tools/test.py or tools/infer.py, found '
                    'neither')


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


def _expect(item, path, where: str = '', **fields) -> None:
    """An object that has at least these fields of these kinds."""
    if not isinstance(item, dict):
        raise DataError(f'{path}: field "{where.rstrip(".")}": expected an '
                        f'object, found {item!r:.60}')
    for name, kind in fields.items():
        value = item.get(name)
        # In Python, but not in JSON, truth is a number.
        if not isinstance(value, kind) or (
                isinstance(value, bool) and kind is not bool):
            raise DataError(f'{path}: field "{where}{name}": expected '
                            f'{_KINDS[kind]}, found '
                            + (f'{value!r:.60}' if name in item else 'none'))


def _expect_box(box, path, where: str) -> None:
    """Seven numbers."""
    if not isinstance(box, list) or len(box) != 7 or not all(
            isinstance(v, _NUMBER) for v in box):
        raise DataError(f'{path}: field "{where}": expected 7 numbers, found '
                        f'{box!r:.60}')


def _expect_found(items, path, where: str, **fields) -> None:
    """A list of found or true boxes."""
    for i, item in enumerate(items):
        _expect(item, path, f'{where}[{i}].', bbox_3d=list, **fields)
        _expect_box(item['bbox_3d'], path, f'{where}[{i}].bbox_3d')


def _expect_scan(scan, path, where: str, **fields) -> None:
    """A scan of a test with boxes that have these fields."""
    _expect(scan, path, where, token=str, class_name=str, predictions=list)
    _expect_found(scan['predictions'], path, f'{where}predictions',
                  score=_NUMBER, **fields)


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


def notes_of(full: dict) -> List[str]:
    """Lines that belong to the figures: what was trained on, and each class
    that has predictions and no findings."""
    seen = full.get('source', {}).get('patients_seen_in_training')
    notes = [f'{seen} of the tested patients or parts were trained on: the '
             'figures are flattered'] if seen else []
    return notes + [
        'class {class_name}: no findings that count, {false_positives} false '
        'positives at any score, the highest {highest_score:.3f}: in no '
        'figure here'
        .format(**told)
        for told in full.get('classes_without_findings', ())
        if told['highest_score'] is not None
    ]


def table_of(full: dict) -> str:
    """What the screen shows after a test, from ``full_results`` or the JSON
    of them."""
    from terminaltables import AsciiTable

    def text(value):
        return '-' if value is None else f'{value:.3f}'

    distances = full['distances_mm']

    def interval(name):
        bounds = full.get(f'{name}_low'), full.get(f'{name}_high')
        return '' if None in bounds else ' [{:.3f}, {:.3f}]'.format(*bounds)

    def row(name, part, interval=''):
        keys = ['mAP_3d', *(f'AP_iou{iou:g}' for iou in SHOWN_IOUS),
                'AP_3d_radius', *(f'AP_{d:g}mm' for d in distances), 'CPM',
                'centre_error_mm', 'size_error_mm']
        cells = [text(part.get(k) if part['num_gt'] else None) for k in keys]
        cells[0] += interval
        return [name, str(part['num_gt']), *cells]

    header = ['findings', 'number', '3D mAP',
              *(f'AP IoU {iou:g}' for iou in SHOWN_IOUS), 'AP radius',
              f'AP {distances[0]:g} mm', *(f'{d:g} mm' for d in distances[1:]),
              'CPM', 'centre\nerror (mm)', 'size\nerror (mm)']
    rows = [row('all', full, interval('mAP_3d'))]
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
    others = {f'AP at 3D IoU {iou:g}': f'AP_iou{iou:g}' for iou in IOUS}
    others['AP within the radius'] = 'AP_3d_radius'
    told = ', '.join(f'{title}: {text(full.get(key))}{interval(key)}'
                     for title, key in others.items())
    return '\n'.join([*lines, froc, told, *notes_of(full)])
