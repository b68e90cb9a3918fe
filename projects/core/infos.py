"""The files of a converted set: info pickles and COCO JSON.

This module owns their schema (docs/files.md): it loads them without trusting
them, verifies them, derives the COCO file from the infos, and writes both so
that nothing half-written looks whole.

Frames and units are those of :mod:`projects.core.geometry`.
"""

import base64
import binascii
import io
import math
import pickle
import sys
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, List, Union, cast

import numpy as np

from projects.core.files import (
    DataError,
    atomic_write,
    dump_json,
    load_json,
    read_bytes,
)

__all__ = [
    'CHARACTERISTICS', 'SCHEMA_VERSION', 'SHAPE_CELLS', 'as_arrays',
    'as_lists', 'build_coco', 'check_coco', 'coco_name', 'dump_infos',
    'infos_name', 'load_infos', 'load_tested', 'pack_shape', 'unpack_shape',
    'validate_infos'
]

SCHEMA_VERSION = 1
SHAPE_CELLS = 16  # per axis of a finding's box
CHARACTERISTICS = ('subtlety', 'internalStructure', 'calcification',
                   'sphericity', 'margin', 'lobulation', 'spiculation',
                   'texture', 'malignancy')
# What NumPy's own reduce functions name in a pickle of arrays and scalars.
_ALLOWED_GLOBALS = {
    (f'numpy.{core}.{module}', name)
    for core in ('core', '_core')
    for module, name in (('multiarray', '_reconstruct'),
                         ('multiarray', 'scalar'),
                         ('numeric', '_frombuffer'))
} | {('numpy', 'ndarray'), ('numpy', 'dtype')}


def infos_name(split: str, suffix: str = '.pkl') -> str:
    """Name of a split's info file in a set's folder; the suffix says whether
    it is a pickle or JSON."""
    return f'lidc_infos_{split}{suffix}'


def coco_name(split: str) -> str:
    """Name of a split's COCO file, beside the infos."""
    return infos_name(split, '_2d_anno.coco.json')


class _RestrictedUnpickler(pickle.Unpickler):
    """Loads plain containers, str, numbers and NumPy arrays; nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(
                f'"{module}.{name}" is not allowed in an info file')
        return super().find_class(module, name)


def dump_infos(infos: dict, path: Union[str, Path]) -> None:
    """Verify and write an info file atomically: JSON where its name ends so,
    else a pickle."""
    validate_infos(infos, str(path))
    if Path(path).suffix == '.json':
        dump_json(as_lists(infos), path)
        return
    with atomic_write(path) as stream:
        pickle.dump(_canonical(infos), stream, protocol=4)


def load_infos(path: Union[str, Path]) -> dict:
    """Load and verify an info file: JSON where its name ends so, else a
    pickle, with a restricted unpickler.

    Raises:
        DataError: The file is missing, empty, damaged, names anything but
            plain containers and NumPy arrays, or breaks the schema.
    """
    if Path(path).suffix == '.json':
        infos = load_json(path)
        validate_infos(infos, str(path))
        infos['metainfo']['classes'] = tuple(infos['metainfo']['classes'])
        infos['data_list'] = [as_arrays(s) for s in infos['data_list']]
        return infos
    try:
        infos = _RestrictedUnpickler(io.BytesIO(read_bytes(path))).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f'{path}: is not a readable info pickle: '
                        f'{type(error).__name__}: {error}') from None
    validate_infos(infos, str(path))
    return infos


def load_tested(ann_file: Union[str, Path], scans: Iterable[dict],
                results: Union[str, Path]) -> dict:
    """Load the infos that a test was made on.

    Raises:
        DataError: As :func:`load_infos`, or they lack a ``token`` of the
            scans of the results.
    """
    infos = load_infos(ann_file)
    known = {sample['token'] for sample in infos['data_list']}
    for scan in scans:
        if scan['token'] not in known:
            raise DataError(f'{ann_file}: expected scan {scan["token"]} of '
                            f'{results}, found none')
    return infos


def as_arrays(sample: dict) -> dict:
    """A sample with its matrices as float64 arrays, which every reader of
    pickles expects."""
    sample = dict(sample)
    if sample.get('ct2patient') is not None:
        sample['ct2patient'] = np.array(sample['ct2patient'], dtype=float)
    sample['images'] = {
        name: {
            key: np.array(value, dtype=float)
            if key in ('cam2img', 'lidar2cam', 'lidar2img') else value
            for key, value in view.items()
        }
        for name, view in sample['images'].items()
    }
    return sample


def as_lists(item: Any) -> Any:
    """Arrays and NumPy's numbers as JSON has them."""
    if isinstance(item, dict):
        return {key: as_lists(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [as_lists(value) for value in item]
    return item.tolist() if isinstance(item, (np.ndarray, np.generic)
                                       ) else item


def _canonical(item):
    """A copy whose pickle depends on its content alone: a pickle tells equal
    strings and shared containers by their identity."""
    if isinstance(item, dict):
        return {_canonical(key): _canonical(value)
                for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(_canonical(value) for value in item)
    return sys.intern(item) if type(item) is str else item


def _expect(condition: Any, where: str, field: str, expected: str,
            found) -> None:
    if not condition:
        text = repr(found)
        text = text if len(text) <= 80 else text[:77] + '...'
        raise DataError(
            f'{where}: field "{field}": expected {expected}, found {text}')


def _dict(item, where: str, field: str) -> dict:
    _expect(isinstance(item, dict), where, field, 'a dict', item)
    return item


def _expect_inside(name, where: str, field: str) -> None:
    """Files are named by it: it must not lead out of a folder."""
    _expect(isinstance(name, str) and not PurePosixPath(name).is_absolute()
            and '..' not in PurePosixPath(name).parts
            and '\0' not in name, where, field,  # no file has it
            'a name that does not lead out of the folder', name)


def _list(item: dict, key: str, where: str) -> list:
    value = item.get(key)
    _expect(isinstance(value, list), where, key, 'a list', value)
    return cast(list, value)


def _text(item: dict, key: str, where: str) -> str:
    value = item.get(key)
    _expect(isinstance(value, str), where, key, 'a string', value)
    return cast(str, value)


def _integer(item: dict, key: str, where: str, start: int = 0,
             stop: float = math.inf, what: str = 'an int') -> int:
    value = item.get(key)
    _expect(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        and start <= value < stop, where, key, what, value)
    return int(cast(int, value))


def _numbers(item: dict, key: str, shape: tuple, where: str,
             what: str) -> np.ndarray:
    value = item.get(key)
    try:
        numbers = np.asarray(value, dtype=np.float64)
        good = numbers.shape == shape and bool(np.isfinite(numbers).all())
    except (TypeError, ValueError, OverflowError):
        good = False
    _expect(good, where, key, what, value)
    return numbers


def _matrix(item: dict, key: str, where: str) -> np.ndarray:
    return _numbers(item, key, (4, 4), where, 'a finite 4x4 matrix')


def _vector(item: dict, key: str, size: int, where: str) -> np.ndarray:
    return _numbers(item, key, (size, ), where, f'{size} finite numbers')


def _number(item: dict, key: str, where: str, low: float = -math.inf,
            what: str = 'a finite number') -> float:
    value = _numbers(item, key, (), where, what)
    _expect(value > low, where, key, what, item[key])
    return float(value)


def validate_infos(infos: dict, source: str = 'infos') -> None:
    """Verify infos against the schema.

    Args:
        infos (dict): ``{"metainfo": ..., "data_list": [...]}``.
        source (str): Names the file in errors.

    Raises:
        DataError: With the file, field, what was expected and found.
    """
    _expect(isinstance(infos, dict), source, 'top level',
            'a dict with "metainfo" and "data_list"', type(infos).__name__)
    meta = _dict(infos.get('metainfo'), source, 'metainfo')
    samples = _list(infos, 'data_list', source)
    classes = _validate_meta(meta, source)
    tokens = set()
    for index, sample in enumerate(samples):
        where = f'{source}: data_list[{index}]'
        token = _dict(sample, where, 'sample').get('token')
        _expect(isinstance(token, str) and token not in tokens, where, 'token',
                'a string that no other sample has', token)
        _expect_inside(token, where, 'token')
        tokens.add(token)
        _validate_sample(sample, classes, f'{where} ({token})')


def _validate_meta(meta: dict, source: str) -> int:
    """Number of classes."""
    _integer(meta, 'schema_version', source, SCHEMA_VERSION,
             SCHEMA_VERSION + 1, str(SCHEMA_VERSION))
    _expect(_text(meta, 'units', source) == 'mm', source, 'metainfo.units',
            '"mm"', meta['units'])
    classes: Any = meta.get('classes')
    _expect(
        isinstance(classes, (list, tuple)) and len(classes) > 0
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes), source, 'metainfo.classes',
        'a list of different class names', classes)
    if meta.get('intensity') is not None:
        where = f'{source}: metainfo.intensity'
        window = _dict(meta['intensity'], source, 'metainfo.intensity')
        _number(window, 'scale', where, 0., 'a positive number')
        _number(window, 'offset', where)
    return len(classes)


def _validate_raw(detectors: list, images: dict, where: str) -> None:
    """Files of each detector, and of each of its views."""
    for i, part in enumerate(detectors):
        at = f'{where}: raw[{i}]'
        views = _dict(_dict(part, where, f'raw[{i}]').get('views'), at,
                      'views')
        _expect(set(views) <= set(images), at, 'views',
                'views named in "images"', list(views))
        files = {name: part.get(name) for name in ('flat', 'dark', 'dead')}
        for name, told in {**files, **views}.items():
            told = _dict(told, at, name)
            _expect_inside(_text(told, 'path', f'{at}: {name}'), at, name)
            _text(told, 'sha256', f'{at}: {name}')


def _validate_sample(sample: dict, classes: int, where: str) -> None:
    if sample.get('ct2patient') is not None:
        _matrix(sample, 'ct2patient', where)
    for key in ('series_uid', 'frame_of_reference_uid'):
        if sample.get(key) is not None:
            _text(sample, key, where)
    images = _dict(sample.get('images'), where, 'images')
    for name, view in images.items():
        at = f'{where}: images.{name}'
        _expect_inside(name, where, 'images')
        _dict(view, where, f'images.{name}')
        _expect_inside(_text(view, 'img_path', at), at, 'img_path')
        _text(view, 'sample_data_token', at)
        for key in ('height', 'width'):
            _integer(view, key, at, 1, what='a positive int')
        product = _matrix(view, 'cam2img', at) @ _matrix(
            view, 'lidar2cam', at)
        _expect(
            np.allclose(product, _matrix(view, 'lidar2img', at), rtol=1e-5,
                        atol=1e-2), at, 'lidar2img', 'cam2img @ lidar2cam',
            view['lidar2img'])
        if 'thickness' in view:
            _number(view, 'thickness', at, 0., 'a positive number')
    if 'selected' in sample:
        names = _list(sample, 'selected', where)
        _expect(all(isinstance(name, str) and name in images
                    for name in names), where, 'selected',
                'names of its images', names)
    if 'raw' in sample:
        _validate_raw(_list(sample, 'raw', where), images, where)
    instances = _list(sample, 'instances', where)
    for i, instance in enumerate(instances):
        at = f'{where}: instances[{i}]'
        _dict(instance, where, f'instances[{i}]')
        box = _vector(instance, 'bbox_3d', 7, at)
        _expect(bool((box[3:6] > 0).all()), at, 'bbox_3d', 'positive sizes',
                instance['bbox_3d'])
        _integer(instance, 'bbox_label_3d', at, 0, classes,
                 f'a label below {classes}')
        for key in ('valid_flag', 'ignore'):
            _expect(isinstance(instance.get(key), bool), at, key, 'a bool',
                    instance.get(key))
        if instance.get('diameter') is not None:
            _number(instance, 'diameter', at, 0., 'a positive number')
        for key in ('contrast', 'median_malignancy'):
            if instance.get(key) is not None:
                _number(instance, key, at)
        if instance.get('shape') is not None:
            unpack_shape(instance['shape'], at)
        named = _dict(instance.get('characteristics', {}), at,
                      'characteristics')
        for key in set(CHARACTERISTICS) & set(named):
            if named[key] is not None:
                _number(named, key, f'{at}: characteristics')
    cams: Any = sample.get('cam_instances')
    _expect(
        isinstance(cams, dict) and set(cams) <= set(images), where,
        'cam_instances', 'a dict of views named in "images"', cams)
    for name, boxes in cams.items():
        _expect(isinstance(boxes, list), where, f'cam_instances.{name}',
                'a list', boxes)
        for i, box in enumerate(boxes):
            at = f'{where}: cam_instances.{name}[{i}]'
            _dict(box, where, f'cam_instances.{name}[{i}]')
            xyxy = _vector(box, 'bbox', 4, at)
            _expect(bool((xyxy[2:] > xyxy[:2]).all()), at, 'bbox',
                    'x1 < x2 and y1 < y2', box['bbox'])
            row = _integer(box, 'instance_idx', at, 0, len(instances),
                           'the index of an instance')
            label = instances[row]['bbox_label_3d']
            _integer(box, 'bbox_label', at, label, label + 1,
                     f'its instance\'s label, {label}')
            _vector(box, 'bbox_cam3d', 7, at)
            _vector(box, 'center_2d', 2, at)
            _number(box, 'depth', at)


def pack_shape(mask: np.ndarray) -> str:
    """What a finding fills of its box, small enough to stand in its record.

    Args:
        mask (np.ndarray): Boolean (X, Y, Z) that spans the box.

    Returns:
        str: Base64 of the bits of the mask at the centres of a grid of
        ``SHAPE_CELLS``³ cells.
    """
    cells = [((np.arange(SHAPE_CELLS) + .5) / SHAPE_CELLS * n).astype(int)
             for n in mask.shape]
    bits = np.packbits(mask[np.ix_(*cells)])
    return base64.b64encode(bits.tobytes()).decode()


def unpack_shape(text: str, where: str) -> np.ndarray:
    """Inverse of :func:`pack_shape`: boolean (16, 16, 16).

    Raises:
        DataError: It is not such a text.
    """
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (TypeError, ValueError, binascii.Error):
        bits = np.zeros(0, np.uint8)
    _expect(len(bits) == SHAPE_CELLS**3 // 8, where, 'shape',
            f'base64 of {SHAPE_CELLS**3} bits', text)
    return np.unpackbits(bits).astype(bool).reshape([SHAPE_CELLS] * 3)


def build_coco(infos: dict) -> dict:
    """Derive the COCO file from infos: one image a view, ids from 1; of
    slices only those that are ``selected``, where a sample says so.

    Besides COCO's own fields, images carry ``cam_intrinsic``, ``ct2img`` and
    ``token``; annotations ``bbox_cam3d`` (camera frame, mm), ``center2d``
    (u, v, depth), ``ignore`` and the nine LIDC characteristics.
    """
    images: List[dict] = []
    annotations: List[dict] = []
    for sample in infos['data_list']:
        looked_at = sample.get('selected', sample['images'])
        for name, view in sample['images'].items():
            if name not in looked_at:
                continue
            image_id = len(images) + 1
            images.append(
                dict(
                    id=image_id, file_name=view['img_path'],
                    width=int(view['width']), height=int(view['height']),
                    token=view['sample_data_token'],
                    cam_intrinsic=np.asarray(view['cam2img'])[:3, :3].tolist(),
                    ct2img=np.asarray(view['lidar2img']).tolist()))
            for box in sample['cam_instances'].get(name, []):
                instance = sample['instances'][box['instance_idx']]
                x1, y1, x2, y2 = (float(v) for v in box['bbox'])
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=image_id,
                        category_id=int(box['bbox_label']) + 1,
                        bbox=[x1, y1, x2 - x1, y2 - y1],
                        area=(x2 - x1) * (y2 - y1), iscrowd=0,
                        ignore=int(instance['ignore']),
                        bbox_cam3d=[float(v) for v in box['bbox_cam3d']],
                        center2d=[*(float(v) for v in box['center_2d']),
                                  float(box['depth'])],
                        instance_idx=int(box['instance_idx']),
                        **{key: as_lists(instance.get(
                            'characteristics', {}).get(key))
                           for key in CHARACTERISTICS}))
    return dict(
        info=dict(description=str(infos['metainfo'].get('dataset')),
                  schema_version=SCHEMA_VERSION),
        images=images, annotations=annotations,
        categories=[dict(id=i + 1, name=name)
                    for i, name in enumerate(infos['metainfo']['classes'])])


def check_coco(infos: dict, coco: dict, source: str = 'coco') -> None:
    """Verify that a COCO file is the one these infos give.

    Raises:
        DataError: With the first image or annotation that differs.
    """
    expected = build_coco(infos)
    for key in ('images', 'annotations', 'categories'):
        rows = _list(coco if isinstance(coco, dict) else {}, key, source)
        _expect(len(rows) == len(expected[key]), source, key,
                f'{len(expected[key])} entries as in the info pickle',
                len(rows))
    for key, fields in (('images', ('file_name', 'width', 'height', 'token')),
                        ('annotations', ('image_id', 'category_id', 'bbox'))):
        for i, (want, have) in enumerate(zip(expected[key], coco[key])):
            where = f'{source}: {key}[{i}]'
            _dict(have, source, f'{key}[{i}]')
            for name in fields:
                if name == 'bbox':
                    found = _vector(have, name, 4, where)
                    same = np.allclose(want[name], found, atol=1e-3)
                else:
                    same = want[name] == have.get(name)
                _expect(same, where, name,
                        f'{want[name]!r} as in the info pickle',
                        have.get(name))
