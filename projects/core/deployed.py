"""A deployed model: an ONNX file and what must be known to use it.

Needs no torch. ``model.json`` beside ``model.onnx`` says

- ``classes``; ``rig`` of the training, as ``rig.json``, or null; ``pixel_mm``,
  its pixels at the isocentre (mm), or null;
- ``intensity``: ``scale`` and ``offset`` of grey levels (line integral);
- ``thresholds``: ``score``, up to which a box is none; ``iou``, from which
  boxes are of one finding; ``absent``, see
  :func:`~projects.core.fusion.fuse_arrays`; where 2D boxes are triangulated
  ``boxes``, how many a scan has at most;
- ``triangulation`` of 2D boxes: ``scene_range`` (mm), ``num_depths`` and
  ``min_iou``, see :func:`~projects.core.box_correlation.triangulate_rois`, or
  null;
- ``checkpoint``: ``file`` and ``sha256``; ``metrics`` of a test, or null;
- ``known_views`` of the training, see
  :mod:`projects.core.engine.known_views`, or null.
"""

from pathlib import Path
from typing import Dict, Optional, Tuple, Union

import numpy as np

from projects.core.box_correlation import triangulate_rois
from projects.core.consistency import expect_as_rig
from projects.core.engine.known_views import other_greys
from projects.core.files import DataError, load_json
from projects.core.fusion import fuse_arrays
from projects.core.inference import Prediction

__all__ = ['CONTENT_FILE', 'GRAPH_FILE', 'DeployedFinder', 'DeployedModel']

GRAPH_FILE, CONTENT_FILE = 'model.onnx', 'model.json'


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
    """

    def __init__(self, folder: Union[str, Path], threads: int = 0) -> None:
        import onnxruntime  # an extra that only a deployed model needs
        self.folder = Path(folder)
        path = self.folder / CONTENT_FILE
        self.content = load_json(path)
        for key in ('classes', 'intensity', 'thresholds', 'checkpoint'):
            if not isinstance(self.content, dict) or key not in self.content:
                raise DataError(f'{path}: field "{key}": expected what '
                                'tools/deploy.py writes, found none')
        graph = self.folder / GRAPH_FILE
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime's have no common base
            raise DataError(f'{graph}: expected an ONNX model, found none or '
                            'a damaged file') from error
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
        content = self._model.content
        self.checkpoint = content['checkpoint'].get('file', str(folder))
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
                f'{token}: views: expected two or more of one size, found '
                + (f'{len(integrals)}' if len(integrals) < 2 else
                   f'sizes {sorted(shapes)}'))
        shown = np.stack(integrals)
        ct2img = np.stack([image['lidar2img'] for image in images.values()])
        if rig is not None:
            expect_as_rig(shown, ct2img, list(images), rig)
        told = other_greys(self.checkpoint, self.meta, shown)
        boxes, scores, labels = self._model.predict(shown, ct2img)
        kept = scores >= score_thr
        return Prediction(boxes[kept], scores[kept], labels[kept],
                          list(images), shown, ct2img, [told] if told else [])
