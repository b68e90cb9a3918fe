"""How malignant readers would call a finding, from what slices show of it
(document 002's classification head)."""

from typing import Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from projects.core import geometry
from projects.core.dataset import ConvertedDataset
from projects.core.evaluation.ranking import bootstrap_weights, interval
from projects.core.files import DataError
from projects.core.results import load_results
from projects.ct_slices.dataset import CTSliceDataset
from projects.ct_slices.transforms import read_slice

__all__ = ['CropFinding', 'MalignancyClassifier', 'MalignancyDataset',
           'MalignancyMetric', 'label_of']

# Of a finding, that figures are made of.
_TOLD = ('token', 'patient', 'bbox_3d', 'diameter', 'rating', 'score')


def label_of(rating: Optional[float]) -> Optional[int]:
    """1 for a median rating from 4 on, 0 for one up to 2, None between."""
    if rating is None or 2 < rating < 4:
        return None
    return int(rating >= 4)


@DATASETS.register_module()
class MalignancyDataset(CTSliceDataset):
    """Findings of a set of CT slices, see ``docs/slices.md``.

    A sample is a finding: ``bbox_3d``, ``diameter`` (mm), ``rating`` (the
    readers' median), ``token``, ``patient``, and ``slices``, the records of
    those that its box touches, from one end to the other. There are those
    that count and were rated; in training without the ratings between the
    two classes.

    Args:
        found (str, optional): ``results.json`` of a test of the same scans:
            samples are what it found, in place of the true boxes, with
            ``score``; of one that hits no rated finding ``rating`` is None.
        score_thr (float): Boxes below are left out of these.
        **kwargs: As for :class:`CTSliceDataset`.

    Raises:
        DataError: As there, or there is no such finding, or ``found`` is of
            other scans.
    """

    def __init__(self, *args, found: Optional[str] = None,
                 score_thr: float = .3, **kwargs) -> None:
        self.found = found
        self.score_thr = score_thr
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Findings of all scans, one by one."""
        scans = ConvertedDataset.load_data_list(self)
        boxes = self._found_boxes(scans) if self.found else {
            scan['token']: self._true_boxes(scan) for scan in scans}
        items = [
            dict(box, token=scan['token'], lidc_id_ref=scan['lidc_id_ref'],
                 patient=scan['lidc_id_ref'],
                 slices=_slices_through(scan, box['bbox_3d']))
            for scan in scans for box in boxes[scan['token']]]
        items = [item for item in items if item['slices'] and (
            self.test_mode or label_of(item['rating']) is not None)]
        if not items:
            raise DataError(
                f'{self.source}: field "median_malignancy": expected at least '
                'one finding that was rated, found 0: slices of LIDC-IDRI, or '
                'of its phantoms, have them')
        return items

    def _true_boxes(self, scan: dict) -> List[dict]:
        kept, diameters, _ = self._counting(scan['instances'])
        return [
            dict(bbox_3d=list(item['bbox_3d']), diameter=float(diameters[row]),
                 rating=float(item['median_malignancy']))
            for row in kept for item in [scan['instances'][row]]
            if item.get('median_malignancy') is not None]

    def _found_boxes(self, scans: List[dict]) -> Dict[str, List[dict]]:
        tested = {scan['token']: scan for scan
                  in load_results(str(self.found))['scans']}
        if set(tested) != {scan['token'] for scan in scans}:
            raise DataError(
                f'{self.found}: field "scans": expected the {len(scans)} '
                f'scans of {self.source}, found {len(tested)}, or others')
        boxes = {}
        for scan in scans:
            true = self._true_boxes(scan)
            result = tested[scan['token']]
            boxes[scan['token']] = [
                dict(bbox_3d=box['bbox_3d'], score=box['score'],
                     diameter=float(np.mean(box['bbox_3d'][3:6])),
                     rating=_rating_at(result['ground_truth'], box['match'],
                                       true))
                for box in result['predictions']
                if box['score'] >= self.score_thr]
        return boxes

    def prepare_data(self, idx: int) -> dict:
        """A finding needs nothing of what mmdet3d adds to a sample."""
        return BaseDataset.prepare_data(self, idx)


def _rating_at(truth: List[dict], match: int, true: List[dict]
               ) -> Optional[float]:
    """Rating of the finding of a test's results that a box hits."""
    if match < 0:
        return None
    return next((item['rating'] for item in true if np.allclose(
        item['bbox_3d'], truth[match]['bbox_3d'], atol=1e-2)), None)


def _slices_through(scan: dict, box: Sequence[float]) -> List[dict]:
    """Records of a scan's slices whose middle lies in a box, in order along
    the scan; where there is none, of the nearest slice."""
    slices = list(scan['images'].values())
    if not slices:
        return []
    ct2img = np.array([s['lidar2img'] for s in slices], float)
    corners = geometry.box_corners(np.array([box], float))
    off = geometry.slice_offsets(corners, ct2img)  # (S, 8)
    places, _ = geometry.slice_places(ct2img)
    inside = np.flatnonzero((off.min(1) <= 0) & (off.max(1) >= 0))
    if not len(inside):
        inside = np.abs(off).min(1).argmin()[None]
    return [slices[row] for row in inside[np.argsort(places[inside])]]


@TRANSFORMS.register_module()
class CropFinding(BaseTransform):
    """Squares out of slices, round a finding's centre; what they show keeps
    its size.

    Without ``augment`` the slices are evenly spaced over the finding, else
    random ones of it, and all are turned by one angle, mirrored or not,
    shifted and made brighter together. Size is a sign of malignancy, so none
    is enlarged.

    Args:
        count (int): Squares; a finding of fewer slices shows some twice.
        edge (float): Of a square (mm).
        size (int): Of a square (px).
        augment (dict, optional): Largest ``shift`` (mm) and largest relative
            change of brightness (``gain``).
    """

    def __init__(self, count: int, edge: float, size: int,
                 augment: Optional[Dict[str, float]] = None) -> None:
        self.count = count
        self.edge = edge
        self.size = size
        self.augment = augment

    def transform(self, results: dict) -> dict:
        """Crop one finding: ``inputs`` (K, 3, H, W) uint8."""
        centre = np.array(results['bbox_3d'][:3], float)
        share = (np.arange(self.count) + .5) / self.count
        turn, shift, gain = np.eye(2), np.zeros(2), 1.
        if self.augment is not None:
            share = np.sort(np.random.uniform(size=self.count))
            angle = np.random.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(angle), -np.sin(angle)],
                             [np.sin(angle), np.cos(angle)]])
            turn[0] *= np.random.choice([-1, 1])
            shift = np.random.uniform(-1, 1, 2) * self.augment['shift']
            gain += np.random.uniform(-1, 1) * self.augment['gain']
        rows = (share * len(results['slices'])).astype(int)
        squares = np.stack([
            self._crop(results['slices'][row], centre, turn, shift)
            for row in rows])
        squares = (squares * gain).clip(0, 255).astype(np.uint8)
        sample = BaseDataElement(metainfo={
            key: results[key] for key in _TOLD if key in results})
        return dict(inputs=torch.from_numpy(squares).permute(0, 3, 1, 2),
                    data_samples=sample)

    def _crop(self, item: dict, centre: np.ndarray, turn: np.ndarray,
              shift: np.ndarray) -> np.ndarray:
        """A square whose middle is ``centre`` (3,) and ``shift`` (2,) (mm),
        and whose axes are ``turn`` (2, 2) in the slice."""
        focal = np.diag(np.array(item['cam2img'])[:2, :2])  # px of 1 mm
        middle, _ = geometry.project(
            centre[None], np.array(item['lidar2img'], float))
        step = focal[:, None] * turn * self.edge / self.size
        # OpenCV's pixel i has its middle at i.
        start = middle[0] + focal * shift - .5 - step @ np.full(
            2, (self.size - 1) / 2)
        return cv2.warpAffine(
            read_slice(item), np.column_stack([step, start]),
            (self.size, self.size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


@MODELS.register_module()
class MalignancyClassifier(BaseModel):
    """The probability that readers would call a finding malignant.

    A backbone of mmdet looks at each square; the means and the largest values
    of its last features go into one linear layer, and the mean over the
    squares is the finding's logit.

    Args:
        backbone (dict): mmdet's.
        channels (int): Of its last features.
        mean, std (float): Of the grey levels.
        dropout (float): Of the pooled features.
    """

    def __init__(self, backbone: dict, channels: int, mean: float,
                 std: float, dropout: float = 0.,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(dict(type='BaseDataPreprocessor'), init_cfg)
        # mmdet's parts look their own parts up in mmdet's scope.
        self.backbone = MODELS.build(dict(backbone, _scope_='mmdet'))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, 1)
        self.mean, self.std = mean, std

    def forward(self, inputs: Sequence[Tensor],
                data_samples: Optional[list] = None, mode: str = 'tensor'):
        """Findings' squares (K, 3, H, W): logits (N,), a dict of the loss, or
        the samples with ``malignancy``, in 0 to 1."""
        squares = torch.stack(tuple(inputs))
        features = self.backbone(
            (squares.flatten(0, 1).float() - self.mean) / self.std)[-1]
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        logits = self.linear(self.dropout(pooled.float()))
        logits = logits.view(squares.shape[:2]).mean(1)
        if mode == 'tensor' or data_samples is None:
            return logits
        if mode == 'loss':
            labels = logits.new_tensor(
                [label_of(s.rating) for s in data_samples])
            return dict(loss=F.binary_cross_entropy_with_logits(
                logits, labels))
        for sample, value in zip(data_samples, logits.sigmoid().tolist()):
            sample.set_field(value, 'malignancy')
        return data_samples


@METRICS.register_module()
class MalignancyMetric(BaseMetric):
    """Area under the ROC curve of findings rated 4 and more against those
    rated 2 and less.

    A patient has the largest rating and the largest probability of its
    findings, so is left out where the largest rating is between. Intervals
    are of 95 %, from resampled patients. The same figures of the diameter
    alone stand beside (``*_diameter``): what a ruler knows. A figure is None
    where there are not both classes.

    Args:
        bootstrap (int): Resamples.
        seed (int): Of the resampling.
    """

    default_prefix = ''

    def __init__(self, bootstrap: int = 1000, seed: int = 0,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.bootstrap = bootstrap
        self.seed = seed

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the probabilities of a batch."""
        self.results += [
            {key: sample[key] for key in (*_TOLD, 'malignancy')
             if key in sample} for sample in data_samples]

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """All figures; ``full_results`` has the findings, too."""
        rated = [r for r in results if r['rating'] is not None]
        patients: Dict[str, List[dict]] = {}
        for result in rated:
            patients.setdefault(result['patient'], []).append(result)
        whole = [{key: max(r[key] for r in findings) for key in (
            'rating', 'malignancy', 'diameter')} | dict(patient=name)
            for name, findings in patients.items()]
        draws = bootstrap_weights(
            max(len(patients), 1), self.bootstrap, self.seed)
        place = {name: row for row, name in enumerate(patients)}
        figures: Dict[str, Optional[float]] = {}
        for name, items in (('AUC', rated), ('AUC_patients', whole)):
            items = [r for r in items if label_of(r['rating']) is not None]
            labels = np.array([label_of(r['rating']) for r in items], int)
            weights = draws[:, [place[r['patient']] for r in items]]
            for key, figure in (('malignancy', name),
                                ('diameter', f'{name}_diameter')):
                figures[figure], *resampled = [
                    _auc(labels, [r[key] for r in items], weight)
                    for weight in (np.ones(len(items)), *weights)]
                known = [v for v in resampled if v is not None]
                figures.update(interval(figure, np.array(known)) if known
                               else {f'{figure}_low': None,
                                     f'{figure}_high': None})
            figures.update({f'num_malignant{name[3:]}': int(labels.sum()),
                            f'num_benign{name[3:]}': int((1 - labels).sum())})
        self.full_results = dict(figures, findings=results)
        return {key: np.nan if value is None else float(value)
                for key, value in figures.items()}


def _auc(labels: np.ndarray, values: Sequence[float], weights: np.ndarray
         ) -> Optional[float]:
    """None where a class has no weight."""
    if len(set(labels[weights > 0])) < 2:
        return None
    return float(roc_auc_score(labels, values, sample_weight=weights))
