"""Slices to train on, scans to test on."""

import math
from typing import Iterator, List, Optional

import numpy as np
from mmdet3d.registry import DATA_SAMPLERS, DATASETS
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from projects.core.dataset import ConvertedDataset
from projects.core.files import DataError

__all__ = ['CTSliceDataset', 'PositiveShareSampler']


@DATASETS.register_module()
class CTSliceDataset(ConvertedDataset):
    """CT slices of a converted set, see ``docs/slices.md``.

    In training a sample is a slice, with ``img_path`` and ``instances`` as
    mmdet's own transforms take them; of a set with ``--negatives`` or
    ``--positive-share`` one of those that were chosen. In a test a sample is
    a scan with all its slices, so that its boxes can be merged to 3D.

    Args:
        selected (bool): Whether only the chosen slices are trained on.
        **kwargs: As for :class:`~projects.core.dataset.ConvertedDataset`.

    Attributes:
        positive: Boolean, which slices to train on show a finding that
            counts; of a test nothing.

    Raises:
        DataError: As there, or the set is one of X-ray views, or there is no
            slice to train on.
    """

    def __init__(self, *args, selected: bool = True, **kwargs) -> None:
        self.selected = selected
        self.positive = np.zeros(0, bool)
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Scans, or their slices one by one."""
        scans = super().load_data_list()
        if self.test_mode:
            return scans
        slices = [item for scan in scans for item in self._slices_of(scan)]
        if not slices:
            raise DataError(f'{self.source}: field "images": expected at '
                            'least one slice to train on, found 0')
        self.positive = np.array([
            any(not box['ignore_flag'] for box in item['instances'])
            for item in slices])
        return slices

    def _slices_of(self, scan: dict) -> Iterator[dict]:
        boxes = self.boxes_2d(scan)
        for view, (name, image) in enumerate(scan['images'].items()):
            if self.selected and name not in scan.get('selected',
                                                      scan['images']):
                continue
            yield dict(
                img_path=image['img_path'], img_id=image['sample_data_token'],
                height=image['height'], width=image['width'],
                token=scan['token'], lidc_id_ref=scan['lidc_id_ref'],
                instances=[
                    dict(bbox=list(map(float, box)), bbox_label=int(label),
                         ignore_flag=int(ignored))
                    for box, label, at, ignored in boxes if at == view])

    @staticmethod
    def boxes_2d(scan: dict) -> List[tuple]:
        """Box (4,) xyxy (px), label, row of its slice and whether it is to be
        ignored, of all 2D boxes of a scan."""
        truth = scan['ann_info']
        return [
            *((box, label, view, False) for box, label, view in zip(
                truth['gt_bboxes'], truth['gt_bboxes_labels'],
                truth['gt_bboxes_view'])),
            *((box, 0, view, True) for box, view in zip(
                truth['ignored_bboxes'], truth['ignored_bboxes_view']))]

    def prepare_data(self, idx: int) -> dict:
        """A slice needs nothing of what mmdet3d adds to a sample."""
        if self.test_mode:
            return super().prepare_data(idx)
        return BaseDataset.prepare_data(self, idx)

    def _check_sample(self, sample: dict) -> None:
        for name, image in sample['images'].items():
            if 'thickness' not in image:
                raise DataError(
                    f'{self.source}: scan {sample["token"]}: image {name}: '
                    'field "thickness": expected that of a CT slice, found '
                    'none: is it an X-ray view?')


@DATA_SAMPLERS.register_module()
class PositiveShareSampler(Sampler):
    """Endless slices of which a share shows a finding.

    Positive and negative slices each come in a random order, all of them
    before any comes again. A set has one positive in ten slices or fewer;
    document 003 trains with 12.7 %.

    Args:
        dataset: With ``positive``.
        share (float): Of slices with a finding, in (0, 1). Where the set has
            only one kind, all are of it.
        seed (int, optional): Defaults to one that all processes share.
    """

    def __init__(self, dataset, share: float = .5,
                 seed: Optional[int] = None) -> None:
        if not 0 < share < 1:
            raise ValueError('PositiveShareSampler: share: expected more than '
                             f'0 and less than 1, found {share:g}')
        self.positive = np.asarray(dataset.positive)
        self.share = share
        self.seed = sync_random_seed() if seed is None else seed
        self.rank, self.world = get_dist_info()
        self.size = len(dataset)

    def _endless(self, rows: np.ndarray, seed: int) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, seed])
        while True:
            yield from map(int, rng.permutation(rows))

    def __iter__(self) -> Iterator[int]:
        rows = [np.flatnonzero(self.positive == kind)
                for kind in (True, False)]
        positive, negative = (self._endless(r, n) for n, r in enumerate(rows))
        share = self.share if len(rows[0]) and len(rows[1]) else float(
            len(rows[0]) > 0)
        # Evenly, so that every batch has its part.
        for number in self._numbers():
            due = math.floor((number + 1) * share) > math.floor(number * share)
            drawn = next(positive if due else negative)
            if number % self.world == self.rank:
                yield drawn

    @staticmethod
    def _numbers() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """There are no epochs."""
