"""One HTML file that shows what was found; needs no network.

Everything is in the file: figures, curves, every view, or the slices that
matter, as a small JPEG, boxes projected by :mod:`~projects.core.geometry`, and
Plotly, which draws it.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import cv2
import numpy as np

from projects.core import geometry
from projects.core.drawing import middle_channel, shown_views
from projects.core.files import atomic_write

__all__ = ['scan_of', 'write_object_report', 'write_page']

MAX_SIDE, QUALITY = 320, 75  # of a view's JPEG (px)
_TEMPLATE = Path(__file__).with_name('report.html')
_PLOTLYJS = _TEMPLATE.with_name('plotly.min.js')


def write_object_report(out_file: Union[str, Path], token: str,
                        images: np.ndarray, ct2img: np.ndarray,
                        names: Sequence[str], boxes: np.ndarray,
                        scores: Sequence[float], classes: Sequence[str],
                        source: str = '', threshold: float = .3,
                        half: Optional[float] = None) -> None:
    """Write the report of one object without truth: its views, the boxes
    found and the 3D scene.

    Args:
        out_file: HTML to write.
        token: Name of the object.
        images: (V, H, W), any grey values, of views or slices.
        ct2img: (V, 4, 4), world (mm) to these images (px).
        names: V names of the images.
        boxes: (N, 7) in the world (mm), best first.
        scores: N scores.
        classes: N names of the boxes' classes.
        source: A line that says what found them.
        threshold: Where the slider begins.
        half: Of the edge of the cube round the origin that the views see
            (mm), to be outlined.
    """
    several = len(set(classes)) > 1
    scan = dict(
        token=token, class_name='', ground_truth=[], ignored=[],
        predictions=[
            dict(bbox_3d=list(box), score=float(score), match=-1, counts=True,
                 class_name=name if several else '')
            for box, score, name in zip(boxes, scores, classes)
        ])
    views = [
        dict(name=name, width=image.shape[1], height=image.shape[0],
             ct2img=matrix, image=lambda image=image: image)
        for name, image, matrix in zip(names, images, ct2img)
    ]
    write_page(out_file, dict(
        scans=[scan_of(scan, views, None if half is None
                     else np.full(3, half))], worst=[0], figures={},
        threshold=threshold, tested=False),
        dict(TITLE=html.escape(token), SOURCE=html.escape(source),
             TESTED='hidden', TABLE='', FIGURES=''))


def write_page(out_file: Union[str, Path], data: dict,
               texts: Dict[str, str]) -> None:
    """The template with data and HTML in its places, whole or not at all."""
    texts = dict(
        texts, PLOTLY=_plotlyjs(),
        # No text of a file may end the script that holds it.
        DATA=json.dumps(data).replace('<', '\\u003c'))
    page = re.sub(r'\{\{([A-Z]+)\}\}', lambda place: texts[place[1]],
                  _TEMPLATE.read_text(encoding='utf-8'))
    with atomic_write(out_file, 'w') as stream:
        stream.write(page)


def _plotlyjs() -> str:
    """Plotly for the browser: the file beside the template, which the
    runtime's wheel has, or that of the Python package."""
    if _PLOTLYJS.is_file():
        return _PLOTLYJS.read_text(encoding='utf-8')
    from plotly.offline import get_plotlyjs
    return get_plotlyjs()


# ---------------------------------------------------------------------- scans
def scan_of(scan: dict, images: List[dict],
            half: Optional[np.ndarray] = None) -> dict:
    """What the page shows of one scan; lengths in mm and px, rounded.

    Args:
        scan: As in the results of a test.
        images: Each with ``name``, ``width`` and ``height`` (px), ``ct2img``,
            and a function ``image`` that gives its grey values.
        half: Of the volume's edges (mm), to be outlined.
    """
    predictions = scan['predictions']
    kinds = dict(truth=[i['bbox_3d'] for i in scan['ground_truth']],
                 ignored=scan['ignored'],
                 found=[p['bbox_3d'] for p in predictions])
    boxes = {k: np.array(v, float).reshape(-1, 7) for k, v in kinds.items()}
    ct2img = np.array([view['ct2img'] for view in images],
                      float).reshape(-1, 4, 4)
    slices = geometry.are_slices(ct2img)
    # Of a CT those slices that matter, findings before what was found.
    views = []
    for row in shown_views(ct2img, np.concatenate(
            [boxes[k] for k in ('truth', 'found', 'ignored')])):
        view, matrix = images[row], ct2img[row:row + 1]
        rects = {}
        for kind, these in boxes.items():
            found, depth = geometry.project_boxes(these, matrix)
            rects[kind] = [rect.round(1).tolist() if near > 0 else None
                           for rect, near in zip(found[0], depth[0])]
        views.append(dict(
            name=view['name'], width=view['width'], height=view['height'],
            source=None if slices else geometry.camera_centres(
                matrix)[0].round(1).tolist(),
            image=jpeg_of(view['image']()), rects=rects))
    return dict(
        token=scan['token'], class_name=scan['class_name'], views=views,
        kind='CT slices' if slices else 'X-ray views',
        half=None if half is None else half.round(1).tolist(),
        corners={k: geometry.box_corners(b).round(1).tolist()
                 for k, b in boxes.items()},
        truth=[dict(diameter=round(i['diameter'], 1))
               for i in scan['ground_truth']],
        found=[dict(score=round(p['score'], 4), match=p['match'],
                    counts=p['counts'], class_name=p.get('class_name', ''),
                    error=round(float(np.linalg.norm(
                        boxes['found'][row, :3]
                        - boxes['truth'][p['match'], :3])), 2)
                    if p['match'] >= 0 else None)
               for row, p in enumerate(predictions)])


def jpeg_of(image: np.ndarray) -> str:
    """A view as a data URI, its grey values stretched."""
    scale = min(MAX_SIDE / max(image.shape[:2]), 1.)
    image = cv2.resize(middle_channel(image).astype(np.float32), None,
                       fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    low, high = np.percentile(image, [1, 99.8])
    image = ((image - low) / max(high - low, 1e-6) * 255).clip(0, 255)
    _, code = cv2.imencode('.jpg', image.astype(np.uint8),
                           [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return ('data:image/jpeg;base64,'
            + base64.b64encode(code.tobytes()).decode())
