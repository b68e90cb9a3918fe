"""Boxes as COCO results."""

from pathlib import Path
from typing import List

import numpy as np

from projects.core import geometry
from projects.core.export.found import Found
from projects.core.files import DataError, dump_json
from projects.core.infos import build_coco


def write_coco(found: Found) -> List[Path]:
    """Write ``coco.json``: projected boxes of all views."""
    if found.infos is None:
        raise DataError('coco: expected infos, whose image ids its boxes '
                        'have, found none')
    coco = build_coco(found.infos)
    ids = {image['token']: image['id'] for image in coco['images']}
    labels = {c['name']: c['id'] for c in coco['categories']}
    rows = []
    for scan in found.scans:
        boxes = np.array([b['bbox_3d'] for b in scan['boxes']],
                         float).reshape(-1, 7)
        for view in scan['sample']['images'].values():
            if view['sample_data_token'] not in ids:  # a slice not chosen
                continue
            rects, depth = geometry.project_boxes(
                boxes, np.asarray(view['lidar2img'], float)[None])
            size = np.array([view['width'], view['height']])
            for box, rect, near in zip(scan['boxes'], rects[0], depth[0]):
                low, high = rect[:2].clip(0, size), rect[2:].clip(0, size)
                if near <= 0 or (high <= low).any():
                    continue
                rows.append(dict(
                    image_id=ids[view['sample_data_token']],
                    category_id=labels[box['class_name']],
                    bbox=[*low.tolist(), *(high - low).tolist()],
                    score=box['score']))
    path = found.out_dir / 'coco.json'
    dump_json(rows, path)
    return [path]
