"""The files of a converted set: info pickles and COCO JSON.

This module owns their schema (README, "File formats"): it loads them without
trusting them, verifies them, derives the COCO file from the infos, and writes
both so that nothing half-written looks whole.

Frames and units are those of :mod:`projects.mv2d_xray.geometry`.
"""

import io
import json
import os
import pickle
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

import numpy as np

SCHEMA_VERSION = 1
CHARACTERISTICS = ('subtlety', 'internalStructure', 'calcification',
                   'sphericity', 'margin', 'lobulation', 'spiculation',
                   'texture', 'malignancy')

__all__ = [
    'CHARACTERISTICS', 'SCHEMA_VERSION', 'InfosError', 'atomic_write',
    'build_coco', 'check_coco', 'dump_infos', 'dump_json', 'load_infos',
    'load_json', 'validate_infos'
]

# What NumPy's own reduce functions name in a pickle of arrays and scalars.
_ALLOWED_GLOBALS = {
    (f'numpy.{core}.{module}', name)
    for core in ('core', '_core')
    for module, name in (('multiarray', '_reconstruct'),
                         ('multiarray', 'scalar'),
                         ('numeric', '_frombuffer'))
} | {('numpy', 'ndarray'), ('numpy', 'dtype')}


class InfosError(ValueError):
    """A file of a converted set is missing, damaged or contradicts itself."""


class _RestrictedUnpickler(pickle.Unpickler):
    """Loads plain containers, str, numbers and NumPy arrays; nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(
                f'"{module}.{name}" is not allowed in an info file')
        return super().find_class(module, name)


@contextmanager
def atomic_write(path: Union[str, Path], mode: str = 'wb') -> Iterator:
    """Open a temporary file beside ``path`` and move it there on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if 'b' in mode else 'utf-8'
    handle, temporary = tempfile.mkstemp(
        prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a data set is shared like any other.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def dump_json(content, path: Union[str, Path]) -> None:
    """Write JSON atomically (no NaN, sorted as given)."""
    with atomic_write(path, 'w') as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.write('\n')


def load_json(path: Union[str, Path]):
    """Read JSON.

    Raises:
        InfosError: The file is missing or not JSON.
    """
    try:
        return json.loads(_read(path).decode('utf-8'))
    except ValueError as error:
        raise InfosError(f'{path}: is not JSON: {error}') from None


def _read(path: Union[str, Path]) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InfosError(f'{path}: cannot be read: {error.strerror}') from None
    if not content:
        raise InfosError(f'{path}: is empty')
    return content


def dump_infos(infos: dict, path: Union[str, Path]) -> None:
    """Verify and write an info pickle atomically."""
    validate_infos(infos, str(path))
    with atomic_write(path) as stream:
        pickle.dump(infos, stream, protocol=4)


def load_infos(path: Union[str, Path]) -> dict:
    """Load and verify an info pickle with a restricted unpickler.

    Raises:
        InfosError: The file is missing, empty, damaged, names anything but
            plain containers and NumPy arrays, or breaks the schema.
    """
    try:
        infos = _RestrictedUnpickler(io.BytesIO(_read(path))).load()
    except InfosError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InfosError(f'{path}: is not a readable info pickle: '
                         f'{type(error).__name__}: {error}') from None
    validate_infos(infos, str(path))
    return infos


def _expect(condition: bool, where: str, field: str, expected: str,
            found) -> None:
    if not condition:
        text = repr(found)
        text = text if len(text) <= 80 else text[:77] + '...'
        raise InfosError(
            f'{where}: field "{field}": expected {expected}, found {text}')


def _matrix(item: dict, key: str, where: str) -> np.ndarray:
    value = item.get(key)
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    _expect(matrix.shape == (4, 4) and bool(np.isfinite(matrix).all()), where,
            key, 'a finite 4x4 matrix', value)
    return matrix


def _numbers(item: dict, key: str, size: int, where: str) -> np.ndarray:
    value = item.get(key)
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    _expect(numbers.shape == (size, ) and bool(np.isfinite(numbers).all()),
            where, key, f'{size} finite numbers', value)
    return numbers


def validate_infos(infos: dict, source: str = 'infos') -> None:
    """Verify infos against the schema.

    Args:
        infos (dict): ``{"metainfo": ..., "data_list": [...]}``.
        source (str): Names the file in errors.

    Raises:
        InfosError: With the file, field, what was expected and found.
    """
    _expect(isinstance(infos, dict), source, 'top level',
            'a dict with "metainfo" and "data_list"', type(infos).__name__)
    meta, samples = infos.get('metainfo'), infos.get('data_list')
    _expect(isinstance(meta, dict), source, 'metainfo', 'a dict', meta)
    _expect(isinstance(samples, list), source, 'data_list', 'a list', samples)
    _expect(meta.get('schema_version') == SCHEMA_VERSION, source,
            'metainfo.schema_version', str(SCHEMA_VERSION),
            meta.get('schema_version'))
    _expect(meta.get('units') == 'mm', source, 'metainfo.units', '"mm"',
            meta.get('units'))
    classes = meta.get('classes')
    _expect(isinstance(classes, (list, tuple)) and len(classes) > 0, source,
            'metainfo.classes', 'a list of class names', classes)
    tokens = set()
    for index, sample in enumerate(samples):
        where = f'{source}: data_list[{index}]'
        _expect(isinstance(sample, dict), where, 'sample', 'a dict', sample)
        token = sample.get('token')
        _expect(isinstance(token, str) and token not in tokens, where, 'token',
                'a string that no other sample has', token)
        tokens.add(token)
        where = f'{where} ({token})'
        _expect(isinstance(sample.get('images'), dict), where, 'images',
                'a dict of views', sample.get('images'))
        for name, view in sample['images'].items():
            at = f'{where}: images.{name}'
            _expect(isinstance(view.get('img_path'), str), at, 'img_path',
                    'a string', view.get('img_path'))
            for key in ('height', 'width'):
                _expect(isinstance(view.get(key), int) and view[key] > 0, at,
                        key, 'a positive int', view.get(key))
            product = _matrix(view, 'cam2img', at) @ _matrix(
                view, 'lidar2cam', at)
            _expect(
                np.allclose(product, _matrix(view, 'lidar2img', at),
                            rtol=1e-5, atol=1e-2), at, 'lidar2img',
                'cam2img @ lidar2cam', view['lidar2img'])
        instances = sample.get('instances')
        _expect(isinstance(instances, list), where, 'instances', 'a list',
                instances)
        for i, instance in enumerate(instances):
            at = f'{where}: instances[{i}]'
            box = _numbers(instance, 'bbox_3d', 7, at)
            _expect(bool((box[3:6] > 0).all()), at, 'bbox_3d',
                    'positive sizes', instance['bbox_3d'])
            _expect(instance.get('bbox_label_3d') in range(len(classes)), at,
                    'bbox_label_3d', f'a label below {len(classes)}',
                    instance.get('bbox_label_3d'))
            for key in ('valid_flag', 'ignore'):
                _expect(isinstance(instance.get(key), bool), at, key, 'a bool',
                        instance.get(key))
        cams = sample.get('cam_instances')
        _expect(
            isinstance(cams, dict) and set(cams) <= set(sample['images']),
            where, 'cam_instances', 'a dict of views named in "images"', cams)
        for name, boxes in cams.items():
            for i, box in enumerate(boxes):
                at = f'{where}: cam_instances.{name}[{i}]'
                xyxy = _numbers(box, 'bbox', 4, at)
                _expect(bool((xyxy[2:] > xyxy[:2]).all()), at, 'bbox',
                        'x1 < x2 and y1 < y2', box['bbox'])
                _expect(box.get('instance_idx') in range(len(instances)), at,
                        'instance_idx', 'the index of an instance',
                        box.get('instance_idx'))


def build_coco(infos: dict) -> dict:
    """Derive the COCO file from infos: one image a view, ids from 1.

    Besides COCO's own fields, images carry ``cam_intrinsic``, ``ct2img`` and
    ``token``; annotations ``bbox_cam3d`` (camera frame, mm), ``center2d``
    (u, v, depth), ``ignore`` and the nine LIDC characteristics.
    """
    images, annotations = [], []
    for sample in infos['data_list']:
        for name, view in sample['images'].items():
            image_id = len(images) + 1
            images.append(
                dict(
                    id=image_id, file_name=view['img_path'],
                    width=view['width'], height=view['height'],
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
                        **{key: instance.get('characteristics', {}).get(key)
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
        InfosError: With the first image or annotation that differs.
    """
    expected = build_coco(infos)
    for key in ('images', 'annotations', 'categories'):
        found = coco.get(key) if isinstance(coco, dict) else None
        _expect(isinstance(found, list), source, key, 'a list', found)
        _expect(len(found) == len(expected[key]), source, key,
                f'{len(expected[key])} entries as in the info pickle',
                len(found))
    for key, fields in (('images', ('file_name', 'width', 'height', 'token')),
                        ('annotations', ('image_id', 'category_id', 'bbox'))):
        for i, (want, have) in enumerate(zip(expected[key], coco[key])):
            for name in fields:
                same = (np.allclose(want[name], have.get(name), atol=1e-3)
                        if name == 'bbox' and have.get(name) is not None else
                        want[name] == have.get(name))
                _expect(same, f'{source}: {key}[{i}]', name,
                        f'{want[name]!r} as in the info pickle',
                        have.get(name))
