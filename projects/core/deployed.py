"""A deployed model: an ONNX file and what must be known to use it.

Needs no torch. ``model.json`` beside ``model.onnx`` says

- ``classes``; ``rig`` of the training, as ``rig.json``, or null; ``pixel_mm``,
  its pixels at the isocentre (mm), or null;
- ``intensity``: ``scale`` and ``offset`` of grey levels (line integral);
- ``thresholds``: ``score``, below which a peak is none; ``iou``, from which
  boxes are of one finding; ``absent``, see
  :func:`~projects.core.fusion.fuse_arrays`;
- ``checkpoint``: ``file`` and ``sha256``; ``metrics`` of a test, or null;
- ``known_views`` of the training, see
  :mod:`projects.core.engine.known_views`, or null.
"""

from pathlib import Path
from typing import Dict, Optional, Tuple, Union

import numpy as np

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
        boxes, scores = self._session.run(None, dict(
            images=images[:, None].astype(np.float32),
            ct2img=ct2img.astype(np.float32)))
        row, label = scores.nonzero()
        thresholds = self.content['thresholds']
        fused, score, label = fuse_arrays(
            boxes[row], scores[row, label], label, np.zeros_like(row), [0],
            thresholds['iou'], thresholds['absent'])
        return np.pad(fused, ((0, 0), (0, 1))), score, label


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
