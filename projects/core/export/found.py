"""What is exported, whatever the format."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from projects.core import geometry


@dataclass
class Found:
    """What is written.

    Attributes:
        scans: ``token``, ``boxes`` (each ``bbox_3d``, ``score`` and
            ``class_name``), and of the infos, or None: ``sample`` and
            ``ct2patient`` (4x4).
        infos: What was tested on, or None.
        out_dir: Folder to write to.
        date: When the boxes were found.
        checkpoint: What found them: its file's name and SHA-256, '' where
            the results do not say.
        score_thr: Boxes below have been left out.
        dicom_root: Folder of the CT series, or None.
    """
    scans: List[dict]
    infos: Optional[dict]
    out_dir: Path
    date: datetime
    checkpoint: Tuple[str, str]
    score_thr: float
    dicom_root: Optional[Path]


def place_box(box: List[float], frame: np.ndarray
              ) -> Tuple[np.ndarray, np.ndarray]:
    """A world box in another frame (4x4, from the world).

    Returns:
        tuple: Centre (3,) in mm, and the box's axes as columns (3, 3).
    """
    axes = frame[:3, :3] @ geometry.rotation_z(box[6])[:3, :3]
    return (frame @ [*box[:3], 1.])[:3], axes


def file_name_of(scan: dict) -> str:
    """A token of a stranger's file is no path."""
    return re.sub(r'[^\w+-]', '_', scan['token'])
