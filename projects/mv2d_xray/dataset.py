"""X-ray views of converted sets as an mmdet3d data set."""

from typing import List, Optional

from mmdet3d.registry import DATASETS

from projects.core.dataset import ConvertedDataset
from projects.core.files import DataError

__all__ = ['XRayDataset']


class Bank(tuple):
    """All findings of a set that count, as :meth:`XRayDataset.findings` gives
    them. No sample changes them, so that its copies share them."""

    def __deepcopy__(self, memo: dict) -> 'Bank':
        return self


@DATASETS.register_module()
class XRayDataset(ConvertedDataset):
    """X-ray views of one object per sample, with 3D and 2D boxes.

    Args:
        num_views (int, optional): Views that every sample must have.
        **kwargs: As for :class:`~projects.core.dataset.ConvertedDataset`.

    Raises:
        DataError: As there, or a sample has no views, or others than the
            arguments say.
    """

    def __init__(self, *args, num_views: Optional[int] = None,
                 **kwargs) -> None:
        self.num_views = num_views
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """As the base's, and the set's :class:`Bank`."""
        samples = super().load_data_list()
        told = self._metainfo
        # Not ideal line integrals: a detector's, simulated or real.
        self.acquired = bool(told.get('acquisition')) or (
            (told.get('renderer') or {}).get('name') == 'measured')
        for sample in samples:
            sample['acquired'] = self.acquired
        self.bank = Bank(finding for sample in samples
                         for finding in self.findings(sample['instances']))
        return samples

    def get_data_info(self, idx: int) -> dict:
        """As mmengine's, with the set's :class:`Bank` as ``bank``: a
        transform may show its findings in this scan."""
        return dict(super().get_data_info(idx), bank=self.bank)

    def _check_sample(self, sample: dict) -> None:
        where = f'{self.source}: scan {sample["token"]}'
        views = len(sample['images'])
        if self.num_views is not None and views != self.num_views:
            raise DataError(f'{where}: field "images": expected '
                            f'{self.num_views} views, found {views}')
        if views == 0:
            raise DataError(f'{where}: field "images": expected at least '
                            'one view, found 0')
        if any('thickness' in view for view in sample['images'].values()):
            raise DataError(f'{where}: field "images": expected X-ray views, '
                            'found CT slices')
