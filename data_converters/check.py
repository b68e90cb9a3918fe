"""Whether a converted set is what it says: every fault in one sentence."""

import hashlib
import json
from pathlib import Path
from typing import Dict, Generator, Iterator, List, Optional, Union

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from projects.core import geometry
from projects.core.drawing import draw_scans, shown_views
from projects.core.files import DataError, load_json
from projects.core.infos import check_coco, coco_name, infos_name, load_infos
from projects.core.rig import Rig

from .convert import SPLITS, record_path
from .mammograms import coco_path
from .refinement import REFINED, rig_of

# A 2D box is that of a mask, which fills at least this much of its projected
# 3D box's width and height; a sphere seen from the side has .7.
_MIN_FILL = .3
_EXTENTS = (5., 2000.)  # of anything that is scanned (mm)

__all__ = ['check_set', 'draw_sheet']


def check_set(out_dir: Union[str, Path]) -> Iterator[str]:
    """Verify a set: options, records, images, infos and COCO files.

    Yields:
        str: One sentence per fault: place, field, expected, found.
    """
    out_dir = Path(out_dir)
    rig, raw, refined = None, False, False
    try:
        options = load_json(out_dir / 'options.json')
        if options.get('mammograms') is not None:
            yield from _check_mammograms(out_dir)
            return
        raw = bool(options.get('raw'))
        refined = REFINED in options.get('inputs', {})
        if options.get('slices') is None:
            rig = Rig.from_dict(options['rig'])
            if Rig.load(out_dir / 'rig.json').to_dict() != rig.to_dict():
                yield (f'{out_dir / "rig.json"}: expected the rig of '
                       'options.json, found another')
    except (DataError, ValueError, KeyError) as error:
        yield f'{out_dir}: options and rig: cannot be read: {error}'
    records = {}
    for path in sorted((out_dir / 'scans').glob('*.json')):
        try:
            records[path.stem] = load_json(path)
        except DataError as error:
            yield str(error)
    if not records:
        yield f'{out_dir / "scans"}: expected records of scans, found none'
    samples: Dict[str, dict] = {}
    yield from _check_splits(out_dir, records, samples)
    for left in sorted(out_dir.rglob('.*.tmp')):
        yield f'{left}: expected no half-written file, found one'
    for token, sample in samples.items():
        where = f'{out_dir}: scan {token}'
        own = rig
        if refined:
            try:
                own = Rig.load(rig_of(out_dir, token))
            except ValueError as error:
                yield f'{where}: {error}'
        yield from _check_images(out_dir, sample, own, where)
        if 'raw' in sample:
            yield from _check_raw(out_dir, sample, where)
        elif raw:
            yield f'{where}: field "raw": expected what options.json asks '\
                'for, found none'
        yield from _check_boxes(sample, where)


def _check_mammograms(out_dir: Path) -> Iterator[str]:
    """COCO files against records and images; partners, patients, masks."""
    split_of: Dict[str, str] = {}
    seen = set()
    for split in SPLITS:
        path = coco_path(out_dir, split)
        try:
            coco = load_json(path)
        except DataError as error:
            yield str(error)
            continue
        images = {image['id']: image for image in coco['images']}
        for image in images.values():
            name = Path(image['file_name']).stem
            where = f'{path}: {name}'
            seen.add(name)
            other = split_of.setdefault(image['patient'], split)
            if other != split:
                yield (f'{where}: patient {image["patient"]}: expected in '
                       f'one split, found in {other}, too')
            for kind, number in image['partners'].items():
                partner = images.get(number, {})
                if number is not None and partner.get('partners', {}).get(
                        kind) != image['id']:
                    yield (f'{where}: field "partners.{kind}": expected an '
                           f'image with this one as its own, found {number}')
            try:
                record = load_json(record_path(out_dir, name))
            except DataError as error:
                yield str(error)
                continue
            file = out_dir / image['file_name']
            pixels = yield from _read_image(file, record['sha256'])
            shape = (image['height'], image['width'])
            if pixels is not None and (pixels.shape != shape
                                       or pixels.dtype != np.uint16):
                yield (f'{file}: expected uint16 of {shape}, found '
                       f'{pixels.dtype} of {pixels.shape}')
        for item in coco['annotations']:
            where = f'{path}: annotation {item["id"]}'
            image = images.get(item['image_id'])
            if image is None:
                yield (f'{where}: field "image_id": expected an image of '
                       f'this file, found {item["image_id"]}')
                continue
            size = [image['height'], image['width']]
            code = item['segmentation']
            if code['size'] != size:
                yield (f'{where}: field "segmentation": expected a mask of '
                       f'{size}, found {code["size"]}')
            elif not np.allclose(coco_mask.toBbox(code), item['bbox']):
                yield (f'{where}: field "bbox": expected that of its mask, '
                       f'{coco_mask.toBbox(code).tolist()}, found '
                       f'{item["bbox"]}')
    for path in sorted((out_dir / 'scans').glob('*.json')):
        if path.stem not in seen:
            yield (f'{out_dir}: {path.stem}: expected in the COCO file of a '
                   'split, found in none')
    for left in sorted(out_dir.rglob('.*.tmp')):
        yield f'{left}: expected no half-written file, found one'


def _check_splits(out_dir: Path, records: Dict[str, dict],
                  samples: Dict[str, dict]) -> Iterator[str]:
    """Infos against COCO, records and each other; fills ``samples``."""
    split_of: Dict[str, str] = {}
    paths = [(split, p) for split in SPLITS for suffix in ('.pkl', '.json')
             if (p := out_dir / infos_name(split, suffix)).exists()]
    if not paths:
        yield f'{out_dir}: expected infos of at least one split, found none'
    for split, path in paths:
        coco = out_dir / coco_name(split)
        try:
            infos = load_infos(path)
            check_coco(infos, load_json(coco), str(coco))
        except DataError as error:
            yield str(error)
            continue
        for sample in infos['data_list']:
            token, patient = sample['token'], sample['lidc_id_ref']
            if split_of.setdefault(patient, split) != split:
                yield (f'{path}: scan {token}: patient {patient}: expected '
                       f'in one split, found in {split_of[patient]}, too')
            samples[token] = sample
            if token not in records:
                yield (f'{path}: scan {token}: expected a record in scans/, '
                       'found none')
            elif not _same(sample, records[token]):
                yield (f'{path}: scan {token}: expected what its record in '
                       'scans/ says, found something else')
    for token in sorted(set(records) - set(samples)):
        yield (f'{out_dir}: scan {token}: expected in the infos of a split, '
               'found in none')


def _same(sample: dict, record: dict) -> bool:
    """Whether infos hold a record as it is."""
    plain = {key: value for key, value in sample.items()
             if key not in ('sample_idx', 'selected')}
    return json.loads(json.dumps(plain, default=np.ndarray.tolist)) == record


def _check_images(out_dir: Path, sample: dict, rig, where: str
                  ) -> Iterator[str]:
    """Files, hashes, sizes and matrices of a scan's views."""
    views = {view.name: view for view in rig.views} if rig else {}
    if rig and list(sample['images']) != list(views):
        yield (f'{where}: field "images": expected the views of the rig, '
               f'{", ".join(views)}, found {", ".join(sample["images"])}')
    for name, view in sample['images'].items():
        at = f'{where}: {name}'
        if name in views and not np.allclose(
                view['lidar2img'], views[name].ct2img, rtol=1e-6, atol=1e-6):
            yield (f'{at}: field "lidar2img": expected the rig\'s, found '
                   'another')
        path = out_dir / view['img_path']
        image = yield from _read_image(path, view.get('sha256'))
        if image is None:
            continue
        shape = (view['height'], view['width'])
        kind = np.uint8 if 'thickness' in view else np.uint16
        channels = (3, ) if 'thickness' in view and image.ndim == 3 else ()
        if image.shape != shape + channels or image.dtype != kind:
            found = f'{image.shape} {image.dtype}' if image.size else 'none'
            yield (f'{path}: expected '
                   + ('an 8-bit' if kind is np.uint8 else 'a 16-bit grey')
                   + f' image {shape}, found {found}')
        elif image.min() == image.max():
            yield (f'{path}: expected an image that shows something, found '
                   f'{image.min()} everywhere')


def _read_image(path: Path, sha256: Optional[str]
                ) -> Generator[str, None, Optional[np.ndarray]]:
    """Yields what is wrong with a file; returns its image, which is empty if
    it holds none, or None where no more is to be said."""
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f'{path}: cannot be read: {error.strerror}'
        return None
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        yield f'{path}: expected the recorded SHA-256, found another'
        return None
    image = cv2.imdecode(np.frombuffer(content, np.uint8),
                         cv2.IMREAD_UNCHANGED)
    return np.zeros(0) if image is None else image


def _check_raw(out_dir: Path, sample: dict, where: str) -> Iterator[str]:
    """What the detectors wrote: each view once, whole files of its size."""
    names = [name for part in sample['raw'] for name in part['views']]
    if sorted(names) != sorted(sample['images']):
        yield (f'{where}: field "raw": expected each view once, found '
               f'{", ".join(names) or "none"}')
    for part in sample['raw']:
        files = [(name, part[name]) for name in ('flat', 'dark', 'dead')]
        views = [sample['images'][name] for name in part['views']
                 if name in sample['images']]
        shape = (views[0]['height'], views[0]['width']) if views else None
        for name, told in files + list(part['views'].items()):
            path = out_dir / told['path']
            image = yield from _read_image(path, told['sha256'])
            depths = ('uint8', ) if name == 'dead' else ('uint16', 'float32')
            if image is not None and (image.shape != shape
                                      or image.dtype.name not in depths):
                yield (f'{path}: expected {" or ".join(depths)} of {shape}, '
                       f'found {image.shape} {image.dtype}')


def _check_boxes(sample: dict, where: str) -> Iterator[str]:
    """Ranges and units; every 2D box against its projected 3D box."""
    volume = sample.get('volume')
    extent = None
    if volume:
        extent = np.array(volume['shape']) * volume['spacing']
        if not (_EXTENTS[0] < extent.max() < _EXTENTS[1]):
            yield (f'{where}: field "volume": expected an extent of '
                   f'{_EXTENTS[0]:g} to {_EXTENTS[1]:g} mm, found '
                   f'{extent.max():g}')
    boxes = np.array([i['bbox_3d'] for i in sample['instances']], float)
    for number, (box, instance) in enumerate(zip(boxes,
                                                 sample['instances'])):
        at = f'{where}: instances[{number}]'
        # The volume's axes may be permuted against the world's.
        if extent is not None and (np.abs(box[:3]) + box[3:6] / 2
                                   > extent.max() / 2 + 1).any():
            yield (f'{at}: field "bbox_3d": expected inside of the volume, '
                   f'{extent.max():g} mm long, found {box.tolist()}')
        diameter = instance.get('diameter')
        if diameter and not (box[3:6].min() / 4 <= diameter
                             <= np.linalg.norm(box[3:6])):
            yield (f'{at}: field "diameter": expected what fits its box of '
                   f'{box[3:6].tolist()} mm, found {diameter:g}')
    for name, view in sample['images'].items():
        found = {box['instance_idx']: box
                 for box in sample['cam_instances'].get(name, [])}
        if len(boxes) == 0:
            continue
        rects, depth = geometry.project_boxes(boxes, view['lidar2img'][None])
        centres, centre_depth = geometry.project(boxes[:, :3],
                                                 view['lidar2img'])
        size = [view['width'], view['height']]
        cut = 'thickness' in view  # which does not show the whole finding
        for row, rect in enumerate(rects[0]):
            at = f'{where}: {name}: 2D box of instances[{row}]'
            clipped = rect.reshape(2, 2).clip(0, size).ravel()
            if cut and depth[0, row] <= 0 and row in found:
                yield (f'{at}: expected none in a slice that does not cut '
                       'its 3D box, found one')
            if row not in found:
                if cut:
                    continue
                inside = ((centres[row] > 1).all() and depth[0, row] > 0
                          and (centres[row] < np.array(size) - 1).all())
                if inside and (clipped[2:] - clipped[:2] > 2).all():
                    yield f'{at}: expected one in the image, found none'
                continue
            box = np.array(found[row]['bbox'], float)
            inner = (box[:2] >= clipped[:2] - .5).all() and (
                box[2:] <= clipped[2:] + .5).all()
            fill = (box[2:] - box[:2]) / np.maximum(
                clipped[2:] - clipped[:2], 1e-6)
            if not inner or (not cut and fill.min() < _MIN_FILL):
                yield (f'{at}: expected to fill its projected 3D box '
                       f'{clipped.round(1).tolist()}, found '
                       f'{box.round(1).tolist()}')
            elif (np.abs(np.array(found[row]['center_2d']) - centres[row]
                         ).max() > .01
                  or abs(found[row]['depth'] - centre_depth[row]) > .01):
                yield (f'{at}: fields "center_2d" and "depth": expected the '
                       '3D box\'s centre, found another place')


def draw_sheet(out_dir: Union[str, Path], path: Path, count: int) -> int:
    """Draw all views of some scans, or slices through their findings, spread
    over the set, with their boxes.

    Returns:
        int: Scans drawn; those that cannot be read are left out.
    """
    out_dir = Path(out_dir)
    names = sorted((out_dir / 'scans').glob('*.json'))
    if coco_path(out_dir, 'train').exists():
        return _draw_mammograms(names, out_dir, path, count)
    chosen = [names[i] for i in sorted({
        round(x) for x in np.linspace(0, len(names) - 1, count)
    })] if names else []
    scans: List[dict] = []
    for record in chosen:
        try:
            sample = load_json(record)
            boxes, ignored = (
                np.array([i['bbox_3d'] for i in sample['instances']
                          if i['ignore'] is flag], float).reshape(-1, 7)
                for flag in (False, True))
            images = sample['images']
            shown = [list(images)[row] for row in shown_views(
                np.array([v['lidar2img'] for v in images.values()]),
                np.concatenate([boxes, ignored]))] if images else []
            views = [images[name] for name in shown]
            images = [cv2.imread(str(out_dir / v['img_path']),
                                 cv2.IMREAD_UNCHANGED) for v in views]
            if not images or any(image is None for image in images):
                continue
            scans.append(dict(
                title=sample['token'], images=images,
                ct2img=np.array([v['lidar2img'] for v in views]),
                names=shown, ground_truth=boxes,
                ignored=ignored,
                boxes_2d=[np.array([b['bbox'] for b in
                                    sample['cam_instances'][name]])
                          for name in shown]))
        except (DataError, KeyError, TypeError, ValueError):
            continue
    if scans:
        draw_scans(scans, path)
    return len(scans)


def _draw_mammograms(names: List[Path], out_dir: Path, path: Path,
                     count: int) -> int:
    """Draw all mammograms of some patients with the boxes of findings."""
    patients: Dict[str, List[dict]] = {}
    for record in map(load_json, names):
        patients.setdefault(record['patient'], []).append(record)
    chosen = sorted(patients)
    chosen = [chosen[i] for i in sorted({
        round(x) for x in np.linspace(0, len(chosen) - 1, count)})]
    rows = []
    for patient in chosen:
        boxes = [np.array([f['bbox'] for f in record['findings']],
                          float).reshape(-1, 4)
                 for record in patients[patient]]
        for box in boxes:
            box[:, 2:] += box[:, :2]
        rows.append(dict(
            title=patient, boxes_2d=boxes,
            names=[record['name'][len(patient) + 1:]
                   for record in patients[patient]],
            images=[cv2.imread(str(out_dir / record['img_path']),
                               cv2.IMREAD_UNCHANGED)
                    for record in patients[patient]],
            ct2img=np.eye(4)[None].repeat(len(boxes), 0)))
    draw_scans(rows, path)
    return len(rows)
