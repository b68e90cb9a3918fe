"""Found boxes for other programs.

===========  ==================  ===========================================
format       file                frame and order
===========  ==================  ===========================================
``csv``      ``boxes.csv``       world (RAS+, isocentre) and, where it is
                                 known, the patient's LPS, mm; named columns
``slicer``   ``<scan>.mrk.json`` 3D Slicer's ROI markups: patient LPS, mm, or
                                 world RAS where the patient's is unknown
``coco``     ``coco.json``       COCO results: projected boxes, xywh (px), with
                                 the image ids of the set's COCO file
===========  ==================  ===========================================
"""

import csv
import re
from pathlib import Path
from typing import Callable, Dict, List, Optional, Union

import numpy as np

from . import geometry
from .infos import (InfosError, atomic_write, build_coco, dump_json,
                    load_json, load_tested)

_MARKUPS = ('https://raw.githubusercontent.com/slicer/slicer/master/Modules/'
            'Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#')

__all__ = ['FORMATS', 'export']


def export(results: Union[str, Path], out_dir: Union[str, Path],
           formats: Optional[List[str]] = None, score_thr: float = 0.,
           ann_file: Optional[str] = None) -> List[Path]:
    """Write the boxes of a test or an inference for other programs.

    Args:
        results: ``--out`` of ``tools/test.py`` or ``tools/infer.py``.
        out_dir: Folder to write to.
        formats: Names in :data:`FORMATS`. Defaults to all that the results
            allow: ``coco`` needs infos.
        score_thr (float): Boxes below are left out.
        ann_file: Infos that were tested on. Defaults to what the results
            say.

    Returns:
        list[Path]: Files written.

    Raises:
        InfosError: The results are not such a file, or do not fit the infos.
    """
    full = load_json(results)
    infos, scans = None, []
    if isinstance(full, dict) and isinstance(full.get('scans'), list):
        ann_file = ann_file or full.get('source', {}).get('ann_file')
        infos = (load_tested(ann_file, full['scans'], results) if ann_file
                 else None)
        by_token: Dict[str, dict] = {}
        for scan in full['scans']:
            boxes = [dict(p, class_name=scan['class_name'])
                     for p in scan['predictions']]
            by_token.setdefault(scan['token'], dict(
                token=scan['token'], boxes=[]))['boxes'] += boxes
        scans = list(by_token.values())
    elif isinstance(full, dict) and isinstance(full.get('boxes'), list):
        scans = [dict(token=Path(results).stem, boxes=full['boxes'])]
    else:
        raise InfosError(f'{results}: fields "scans" or "boxes": expected '
                         'results of tools/test.py or tools/infer.py, found '
                         'neither')
    samples = {s['token']: s for s in infos['data_list']} if infos else {}
    for scan in scans:
        scan['boxes'] = [b for b in scan['boxes'] if b['score'] >= score_thr]
        scan['ct2patient'] = samples.get(scan['token'], {}).get('ct2patient')
    written = []
    for name in formats or [f for f in FORMATS if infos or f != 'coco']:
        written += FORMATS[name](scans, infos, Path(out_dir))
    return written


def _in_patient(box: List[float], ct2patient: Optional[np.ndarray]
                ) -> Optional[np.ndarray]:
    """Centre of a world box in the patient's LPS frame (mm), (3,)."""
    if ct2patient is None:
        return None
    return (np.asarray(ct2patient) @ [*box[:3], 1.])[:3]


def _csv(scans: List[dict], infos: Optional[dict], out_dir: Path
         ) -> List[Path]:
    path = out_dir / 'boxes.csv'
    with atomic_write(path, 'w') as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ['scan', 'class', 'score',
             *(f'world_ras_{a}_mm' for a in 'xyz'),
             *(f'size_{a}_mm' for a in 'xyz'), 'yaw_rad',
             *(f'patient_lps_{a}_mm' for a in 'xyz')])
        for scan in scans:
            for box in scan['boxes']:
                values = box['bbox_3d']
                centre = _in_patient(values, scan['ct2patient'])
                writer.writerow(
                    [scan['token'], box['class_name'], f'{box["score"]:.6g}',
                     *(f'{v:.6g}' for v in values),
                     *(('', ) * 3 if centre is None
                       else (f'{v:.6g}' for v in centre))])
    return [path]


def _slicer(scans: List[dict], infos: Optional[dict], out_dir: Path
            ) -> List[Path]:
    paths = []
    for scan in scans:
        matrix = scan['ct2patient']
        frame = np.eye(4) if matrix is None else np.asarray(matrix, float)
        markups = []
        for number, box in enumerate(scan['boxes'], 1):
            values = box['bbox_3d']
            axes = frame[:3, :3] @ geometry.rotation_z(values[6])[:3, :3]
            centre = (frame @ [*values[:3], 1.])[:3].tolist()
            label = f'{box["class_name"]} {number} ({box["score"]:.2f})'
            markups.append(dict(
                type='ROI', name=label,
                coordinateSystem='RAS' if matrix is None else 'LPS',
                coordinateUnits='mm', roiType='Box', center=centre,
                orientation=axes.ravel().tolist(),
                size=[float(v) for v in values[3:6]],
                controlPoints=[dict(
                    id='1', label=label, position=centre,
                    positionStatus='defined')]))
        # A token of a stranger's file is no path.
        name = re.sub(r'[^\w+-]', '_', scan['token'])
        path = out_dir / f'{name}.mrk.json'
        dump_json({'@schema': _MARKUPS, 'markups': markups}, path)
        paths.append(path)
    return paths


def _coco(scans: List[dict], infos: Optional[dict], out_dir: Path
          ) -> List[Path]:
    if infos is None:
        raise InfosError('coco: expected infos, whose image ids its boxes '
                         'have, found none')
    coco = build_coco(infos)
    ids = {image['token']: image['id'] for image in coco['images']}
    labels = {c['name']: c['id'] for c in coco['categories']}
    views = {s['token']: s['images'] for s in infos['data_list']}
    found = []
    for scan in scans:
        boxes = np.array([b['bbox_3d'] for b in scan['boxes']],
                         float).reshape(-1, 7)
        for view in views[scan['token']].values():
            rects, depth = geometry.project_boxes(
                boxes, np.asarray(view['lidar2img'], float)[None])
            size = np.array([view['width'], view['height']])
            for box, rect, near in zip(scan['boxes'], rects[0], depth[0]):
                low, high = rect[:2].clip(0, size), rect[2:].clip(0, size)
                if near <= 0 or (high <= low).any():
                    continue
                found.append(dict(
                    image_id=ids[view['sample_data_token']],
                    category_id=labels[box['class_name']],
                    bbox=[*low.tolist(), *(high - low).tolist()],
                    score=box['score']))
    path = out_dir / 'coco.json'
    dump_json(found, path)
    return [path]


FORMATS: Dict[str, Callable] = dict(csv=_csv, slicer=_slicer, coco=_coco)
