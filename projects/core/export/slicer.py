"""Boxes as 3D Slicer markups."""

from pathlib import Path
from typing import List

import numpy as np

from projects.core.export.found import Found, file_name_of, place_box
from projects.core.files import dump_json

_MARKUPS = ('https://raw.githubusercontent.com/slicer/slicer/master/Modules/'
            'Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#')


def write_slicer(found: Found) -> List[Path]:
    """Write ``<scan>.mrk.json``: a ROI for each box."""
    paths = []
    for scan in found.scans:
        matrix = scan['ct2patient']
        markups = []
        for number, box in enumerate(scan['boxes'], 1):
            centre, axes = place_box(box['bbox_3d'],
                                     np.eye(4) if matrix is None else matrix)
            label = f'{box["class_name"]} {number} ({box["score"]:.2f})'
            markups.append(dict(
                type='ROI', name=label,
                coordinateSystem='RAS' if matrix is None else 'LPS',
                coordinateUnits='mm', roiType='Box', center=centre.tolist(),
                orientation=axes.ravel().tolist(),
                size=[float(v) for v in box['bbox_3d'][3:6]],
                controlPoints=[dict(
                    id='1', label=label, position=centre.tolist(),
                    positionStatus='defined')]))
        path = found.out_dir / f'{file_name_of(scan)}.mrk.json'
        dump_json({'@schema': _MARKUPS, 'markups': markups}, path)
        paths.append(path)
    return paths
