"""Found boxes for other programs.

===========  ==================  ===========================================
format       file                frame and order
===========  ==================  ===========================================
``csv``      ``boxes.csv``       named columns, mm: centre in the world (RAS+,
                                 isocentre) and, where it is known, in the
                                 patient's LPS; edges along the box's own
                                 axes, the world's turned by the yaw (rad)
                                 about z
``slicer``   ``<scan>.mrk.json`` 3D Slicer's ROI markups, mm: patient LPS, or
                                 world RAS where the patient's is unknown, as
                                 ``coordinateSystem`` says; the columns of
                                 ``orientation`` (row by row) are the axes
``coco``     ``coco.json``       COCO results: projected boxes, xywh (px,
                                 pixel i spans [i, i + 1)), with the image ids
                                 of the set's COCO file
``sr``       ``<scan>.dcm``      DICOM SR (TID 1500): patient LPS, mm, in the
                                 CT series' own frame of reference, see
                                 :func:`~.dicom_sr.write_sr`
===========  ==================  ===========================================
"""

from datetime import datetime
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Union

import numpy as np

from projects.core.export.coco import write_coco
from projects.core.export.found import Found
from projects.core.export.slicer import write_slicer
from projects.core.export.table import write_csv
from projects.core.infos import load_tested
from projects.core.results import load_found

__all__ = ['FORMATS', 'export']


def export(results: Union[str, Path, Sequence[Path]],
           out_dir: Union[str, Path],
           formats: Optional[List[str]] = None, score_thr: float = 0.,
           ann_file: Optional[str] = None,
           dicom_root: Union[str, Path, None] = None) -> List[Path]:
    """Write the boxes of a test or an inference for other programs.

    Args:
        results: ``--out`` of ``tools/test.py`` or ``tools/infer.py``; of the
            latter there may be several, of an object each.
        out_dir: Folder to write to.
        formats: Names in :data:`FORMATS`. Defaults to all that the results
            allow: ``coco`` needs infos, ``sr`` infos and ``dicom_root``.
        score_thr (float): Boxes below are left out.
        ann_file: Infos that were tested on. Defaults to what the results
            say.
        dicom_root: Folder under which the scans' CT series are.

    Returns:
        list[Path]: Files written.

    Raises:
        DataError: The results are not such a file, or do not fit the infos
            or the CT series.
    """
    files = [results] if isinstance(results, (str, Path)) else [*results]
    results = files[0]
    scans, source = load_found(results)
    for path in files[1:]:
        scans += load_found(path)[0]
    infos = None
    if source is not None:  # of an inference there are none
        ann_file = ann_file or source.get('ann_file')
        infos = load_tested(ann_file, scans, results) if ann_file else None
    source = source or {}
    samples = {s['token']: s for s in infos['data_list']} if infos else {}
    for scan in scans:
        scan['boxes'] = [b for b in scan['boxes'] if b['score'] >= score_thr]
        scan['sample'] = samples.get(scan['token'])
        matrix = (scan['sample'] or {}).get('ct2patient')
        scan['ct2patient'] = (None if matrix is None
                              else np.asarray(matrix, float))
    found = Found(
        scans, infos, Path(out_dir),
        datetime.fromtimestamp(int(Path(results).stat().st_mtime)),
        (Path(source.get('checkpoint', '')).name, source.get('sha256', '')),
        score_thr, None if dicom_root is None else Path(dicom_root))
    needs = dict(coco=infos, sr=dicom_root)
    written = []
    for name in formats or [f for f in FORMATS if needs.get(f, True)]:
        written += FORMATS[name](found)
    return written


def _write_sr(found: Found) -> List[Path]:
    from projects.core.export.dicom_sr import write_sr  # of highdicom
    return write_sr(found)


FORMATS: Dict[str, Callable] = dict(
    csv=write_csv, slicer=write_slicer, coco=write_coco, sr=_write_sr)
