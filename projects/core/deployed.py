"""A deployed model: an ONNX file and what must be known to use it.

Needs no torch. ``model.json`` beside ``model.onnx`` says

- ``schema_version``, 1; ``classes``; ``rig`` of the training, as
  ``rig.json``, or null; ``pixel_mm``, its pixels at the isocentre (mm), or
  null;
- ``intensity``: ``scale`` and ``offset`` of the training set's grey levels
  (line integral), for information: a graph takes line integrals, and how
  images become these, :class:`~projects.core.projections.Reading` says;
- ``thresholds``: ``score``, up to which a box is none; ``iou``, from which
  boxes are of one finding; ``absent``, see
  :func:`~projects.core.fusion.fuse_arrays`; where 2D boxes are triangulated
  ``boxes``, how many a scan has at most;
- ``triangulation`` of 2D boxes: ``scene_range`` (mm), ``num_depths`` and
  ``min_iou``, see :func:`~projects.core.box_correlation.triangulate_rois`, or
  null;
- ``checkpoint``: ``file`` and ``sha256``; ``metrics`` of a test, with its
  ``ann_file`` and ``distances_mm``, or null;
- ``known_views`` of the training, see
  :mod:`projects.core.engine.known_views`, or null.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import numpy as np

from projects.core.box_correlation import triangulate_rois
from projects.core.consistency import expect_as_rig
from projects.core.engine.command_line import UserError
from projects.core.engine.known_views import PERCENT, other_greys
from projects.core.files import DataError, load_json
from projects.core.fusion import fuse_arrays
from projects.core.inference import Prediction
from projects.core.rig import Rig

__all__ = ['CONTENT_FILE', 'GRAPH_FILE', 'SCHEMA_VERSION', 'DeployedFinder',
           'DeployedModel']

GRAPH_FILE, CONTENT_FILE = 'model.onnx', 'model.json'
SCHEMA_VERSION = 1


# ------------------------------------------------------------------- checking
def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and math.isfinite(value))


def _are_numbers(count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and (
        len(value) == count and all(map(_is_number, value)))


_COUNT = ('a whole number from 1 on',
          lambda value: _is_number(value) and value >= 1 and not value % 1)
_NUMBER, _NAME = ('a number', _is_number), (
    'a text', lambda value: isinstance(value, str) and value != '')
_RANGE = 'two numbers', _are_numbers(2)
# Of each field what it should be, and whether it is.
_FIELDS: Dict[str, Tuple[str, Callable[[Any], bool]]] = {
    'schema_version': (str(SCHEMA_VERSION), lambda value: (
        _is_number(value) and value == SCHEMA_VERSION)),
    'classes': ('a list of names', lambda value: (
        isinstance(value, list) and len(value) > 0
        and all(map(_NAME[1], value)))),
    'thresholds.score': _NUMBER, 'thresholds.iou': _NUMBER,
    'thresholds.absent': ('a number between 0 and 1', lambda value: (
        _is_number(value) and 0 < value < 1)),
    'checkpoint.file': _NAME, 'checkpoint.sha256': _NAME,
}
# The same of what may be null, or not there.
_OPTIONAL: Dict[str, Dict[str, Tuple[str, Callable[[Any], bool]]]] = {
    'thresholds.boxes': {'': _COUNT},
    'pixel_mm': {'': _NUMBER},
    'intensity': {'.scale': _NUMBER, '.offset': _NUMBER},
    'metrics': {'': ('an object', lambda value: isinstance(value, dict))},
    'triangulation': {
        '.scene_range': ('six numbers', _are_numbers(6)),
        '.num_depths': _COUNT, '.min_iou': _NUMBER},
    'known_views': {
        **{f'.line_integrals.{percent}': _RANGE for percent in PERCENT},
        '.noise': _RANGE, '.changing_noise': _RANGE,
        '.exposure': ('two numbers or null', lambda value: (
            value is None or _RANGE[1](value)))},
}
# Names and shapes of the graph, None where any size will do.
_INPUTS: Dict[str, list] = {
    'images': [None, 1, None, None], 'ct2img': [None, 4, 4]}
_OUTPUTS: Dict[str, list] = {
    'boxes': [None, 6], 'scores': [None, None], 'rois': [None, None, 6]}


def _expect_content(content: Any, path: Path) -> None:
    """All that is read of ``model.json``.

    Raises:
        DataError: A field is not as it should be.
    """
    def expect(name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        at, value = [], content
        for part in name.split('.') if name else ():
            if not isinstance(value, dict):
                break
            at.append(part)
            value = value.get(part)
        else:
            if holds(value):
                return
        if '.'.join(at) != name:
            expected = 'an object'
        raise DataError(
            f'{path}: ' + (f'field "{".".join(at)}": ' if at else '')
            + f'expected {expected}, as tools/deploy.py writes it, found '
            + ('none' if value is None else f'{value!r:.60}'))

    expect('', 'an object', lambda value: isinstance(value, dict))
    for name, told in _FIELDS.items():
        expect(name, *told)
    for name, parts in _OPTIONAL.items():
        above, _, last = name.rpartition('.')
        if (content[above] if above else content).get(last) is not None:
            for part, told in parts.items():
                expect(name + part, *told)
    if content.get('rig') is not None:
        try:
            Rig.from_dict(content['rig'], f'{path}: field "rig"')
        except ValueError as error:
            raise DataError(str(error)) from None


def _expect_graph(session: Any, content: dict, path: Path) -> None:
    """What goes into the graph and comes out of it.

    Raises:
        DataError: It is another one, or ``model.json`` is of another one.
    """
    def told(name: str, shape: Sequence) -> str:
        return f'{name} ({", ".join(str(size or "any") for size in shape)})'

    def fits(node: Any, shapes: Dict[str, list]) -> bool:
        shape = shapes.get(node.name)
        return shape is not None and node.type == 'tensor(float)' and (
            len(node.shape) == len(shape)) and all(
                want is None or want == size or not isinstance(size, int)
                for size, want in zip(node.shape, shape))

    inputs, outputs = session.get_inputs(), session.get_outputs()
    shapes = {node.name: node.shape for node in outputs}
    for what, nodes, expected, whole in (
            ('inputs', inputs, _INPUTS, len(inputs) == len(_INPUTS)),
            ('outputs', outputs, _OUTPUTS,
             ('boxes' in shapes) == ('scores' in shapes))):
        if not whole or not all(fits(node, expected) for node in nodes):
            raise DataError(
                f'{path}: field "{what}": expected '
                + ', '.join(told(*each) for each in expected.items())
                + ', of 32 bits, found '
                + ', '.join(f'{told(node.name, node.shape)} of {node.type}'
                            for node in nodes))
    classes = shapes.get('scores', [0, 'classes'])[1]
    if isinstance(classes, int) and classes != len(content['classes']):
        raise DataError(
            f'{path.parent / CONTENT_FILE}: field "classes": expected '
            f'{classes}, as {path.name} scores them, found '
            f'{len(content["classes"])}')
    if 'rois' in shapes and content.get('triangulation') is None:
        raise DataError(
            f'{path.parent / CONTENT_FILE}: field "triangulation": expected '
            f'an object, as {path.name} gives 2D boxes, found none')


class DeployedModel:
    """What ``tools/deploy.py`` wrote, ready to predict.

    Attributes:
        content: That of ``model.json``.
        folder: Of both files.

    Args:
        folder: See above.
        threads (int): Of the computation; 0 takes all cores.

    Raises:
        DataError: A file is missing or not what it should be.
        UserError: There is no onnxruntime.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 0) -> None:
        try:  # only a deployed model needs it
            import onnxruntime
        except ImportError:
            raise UserError(
                'expected onnxruntime, as pip install mv2d-xray[deploy] '
                'brings it, found none') from None
        self.folder = Path(folder)
        path = self.folder / CONTENT_FILE
        self.content = load_json(path)
        _expect_content(self.content, path)
        graph = self.folder / GRAPH_FILE
        if not graph.is_file():
            raise DataError(f'{graph}: expected an ONNX model, found none')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # It plans memory for views of one size by an inference of its own.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime's have no common base
            raise DataError(
                f'{graph}: expected an ONNX model that onnxruntime '
                f'{onnxruntime.__version__} reads, found '
                f'{(str(error).splitlines() or [""])[0]}') from error
        _expect_graph(self._session, self.content, graph)
        self._outputs = [each.name for each in self._session.get_outputs()]

    def predict(self, images: np.ndarray, ct2img: np.ndarray
                ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes of one object.

        Args:
            images: (V, H, W) line integrals.
            ct2img: (V, 4, 4), see :mod:`projects.core.geometry`.

        Returns:
            tuple: boxes (M, 7) (mm), scores and labels (M,), best first.

        Raises:
            ValueError: There is not one camera for each image, or one view
                alone: what it then knows of how views differ is the rounding
                of the machine.
        """
        if images.ndim != 3 or ct2img.shape != (len(images), 4, 4):
            raise ValueError(
                'expected images (V, H, W) and ct2img (V, 4, 4), found '
                f'{images.shape} and {ct2img.shape}')
        if len(images) < 2:
            raise ValueError(
                f'images: expected two views or more, found {len(images)}')
        ct2img = ct2img.astype(np.float32)
        found = dict(zip(self._outputs, self._session.run(None, dict(
            images=images[:, None].astype(np.float32), ct2img=ct2img))))
        thresholds, sources = self.content['thresholds'], []
        if 'rois' in found:
            sources.append(self._triangulated(found['rois'], ct2img))
        if 'boxes' in found:
            scores = found['scores']
            row, label = scores.nonzero()
            sources.append((found['boxes'][row], scores[row, label], label))
        source = np.repeat(np.arange(len(sources)),
                           [len(boxes) for boxes, *_ in sources])
        boxes, scores, label = map(np.concatenate, zip(*sources))
        kept = scores > thresholds['score']
        fused, score, label = fuse_arrays(
            boxes[kept], scores[kept], label[kept], source[kept],
            range(len(sources)), thresholds['iou'], thresholds['absent'])
        most = slice(thresholds.get('boxes'))
        return np.pad(fused[most], ((0, 0), (0, 1))), score[most], label[most]

    def _triangulated(self, rois: np.ndarray, ct2img: np.ndarray
                      ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cubes (N, 6) (mm), scores and labels of 2D boxes (V, K, 6)."""
        views = np.repeat(np.arange(len(rois)), rois.shape[1])
        flat = rois.reshape(-1, 6)
        real = (flat[:, 2:4] > flat[:, :2]).all(1) & (flat[:, 4] > 0)
        flat, views = flat[real], views[real]
        centres, edges, scores = triangulate_rois(
            flat[:, :4], views, flat[:, 4], flat[:, 5], ct2img,
            **self.content['triangulation'])
        # As in training no score is quite sure.
        return (np.c_[centres, edges, edges, edges],
                scores.clip(1e-4, 1 - 1e-4), flat[:, 5].astype(int))


class DeployedFinder:
    """A deployed model as :mod:`projects.core.inference` asks for one.

    Attributes:
        checkpoint: The model's folder.
        classes, meta: See :class:`~projects.core.inference.Finder`.

    Args:
        folder, threads: See :class:`DeployedModel`.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 0) -> None:
        self._model = DeployedModel(folder, threads)
        self._threads = threads
        content = self._model.content
        self.checkpoint = content['checkpoint']['file']
        self.classes = list(content['classes'])
        self.meta = dict(dataset_meta=dict(rig=content.get('rig')),
                         known_views=content.get('known_views'))

    def predict(self, token: str, images: Dict[str, dict],
                score_thr: float = 0., rig: Optional[str] = None
                ) -> Prediction:
        """Boxes of one object.

        Args:
            token: Its name.
            images: Its views by name, with their line integrals, see
                :func:`~projects.core.inference.images_of`.
            score_thr: Boxes below are left out.
            rig: Whose views the images should be, for the error; None if
                nobody is to look whether they are turned against it.

        Raises:
            DataError: There is one view alone, views differ in size, or see
                :func:`~projects.core.consistency.expect_as_rig`.
        """
        integrals = [image['integrals'] for image in images.values()]
        shapes = {values.shape for values in integrals}
        if len(integrals) < 2 or len(shapes) > 1:
            raise DataError(
                'views: expected two or more of one size, found '
                + (f'{len(integrals)}' if len(integrals) < 2 else
                   f'sizes {sorted(shapes)}'))
        shown = np.stack(integrals)
        ct2img = np.stack([image['lidar2img'] for image in images.values()])

        def look() -> Optional[str]:
            if rig is not None:
                expect_as_rig(shown, ct2img, list(images), rig)
            return other_greys(self.checkpoint, self.meta, shown)

        if self._threads == 1:
            told = look()
            boxes, scores, labels = self._model.predict(shown, ct2img)
        else:  # the network leaves cores idle now and then
            with ThreadPoolExecutor(1) as pool:
                looked = pool.submit(look)
                boxes, scores, labels = self._model.predict(shown, ct2img)
                told = looked.result()
        kept = scores >= score_thr
        return Prediction(boxes[kept], scores[kept], labels[kept],
                          list(images), shown, ct2img, [told] if told else [])
