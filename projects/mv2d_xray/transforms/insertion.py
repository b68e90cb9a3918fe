"""Findings of a set, shown in other scans of it."""

from typing import Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.core.boxes import lidar_boxes
from projects.core.files import DataError
from projects.core.findings import BALL, Finding

__all__ = ['XRayInsertNodules']


@TRANSFORMS.register_module()
class XRayInsertNodules(BaseTransform):
    """Show findings of the set in other scans, turned, scaled and mirrored.

    It costs little and gives a small training set as many findings as it
    needs. They are those of the sample's ``bank``, which the dataset gives.
    Each is put near where another one was, since that is where they occur.

    Args:
        max_nodules (int): Most per sample; the number is uniform from 0.
        sizes (tuple[float, float]): Range of the mean edge (mm); all orders
            of size are as likely, since sets have many small findings and few
            large ones.
        spread (float): Deviation of the place from another finding's (mm).
        contrasts (tuple[float, float]): Range of the change of contrast.
        attenuation (tuple[float, float], optional): Range of what is added
            (1/mm), below 0 for what takes away, as a pore, for findings of
            which the set does not say; soft tissue in lung is 0.017. A
            contrast of the other sign is that of a finding beside something
            else, as a nodule at a rib: it is drawn from the range, too. By
            default the set must know them all.

    Findings without a known shape are ellipsoids.

    Raises:
        DataError: A finding's contrast is neither known nor given.
    """

    def __init__(self,
                 max_nodules: int = 4,
                 sizes: Tuple[float, float] = (5., 30.),
                 spread: float = 15.,
                 contrasts: Tuple[float, float] = (.7, 1.2),
                 attenuation: Optional[Tuple[float, float]] = None
                 ) -> None:
        self.max_nodules = max_nodules
        self.sizes = sizes
        self.spread = spread
        self.contrasts = contrasts
        self.attenuation = attenuation

    def draw(self, bank: Sequence[dict]) -> Finding:
        """One of a bank's findings, changed, at another one's place."""
        item = bank[np.random.randint(len(bank))]
        other = bank[np.random.randint(len(bank))]
        centre = other['centre'] + np.random.normal(0, self.spread, 3)
        scale = np.exp(np.random.uniform(*np.log(self.sizes)))
        scale /= item['size'].mean()
        # Signs of R's diagonal make Q uniform over turns and reflections
        # (Mezzadri, arXiv math-ph/0609050).
        rotation, upper = np.linalg.qr(np.random.normal(size=(3, 3)))
        rotation *= np.sign(np.diag(upper))
        shape, contrast = item['shape'], item['contrast']
        if shape is None:
            shape = BALL
        if self.attenuation and (
                contrast is None or contrast * sum(self.attenuation) <= 0):
            contrast = np.random.uniform(*self.attenuation)
        elif contrast is None:
            raise DataError(
                'config key "XRayInsertNodules.attenuation": expected a range '
                '(1/mm), since the set does not say what its findings add, '
                'found none')
        else:
            contrast *= np.random.uniform(*self.contrasts)
        return Finding(
            centre, rotation.T / (item['size'] * scale / 2)[:, None], shape,
            contrast, item['label'])

    def transform(self, results: dict) -> dict:
        """Add to one sample."""
        results['img'] = [image.copy() for image in results['img']]
        bank = results['bank']
        most = self.max_nodules if bank else 0
        for _ in range(np.random.randint(most + 1)):
            finding = self.draw(bank)
            seen = {
                view: finding.project(ct2img, image.shape[:2])
                for view, (image, ct2img) in enumerate(
                    zip(results['img'], results['ct2img']))
            }
            seen = {v: shown for v, shown in seen.items() if shown}
            # What a single view shows has no place in space: painted, but not
            # annotated, it would be taught as background.
            if len(seen) < 2:
                continue
            for view, ((x1, y1, x2, y2), path) in seen.items():
                results['img'][view][y1:y2, x1:x2, 0] += (
                    finding.contrast * path)
            self._annotate(results, finding,
                           {v: rect for v, (rect, _) in seen.items()})
        return results

    @staticmethod
    def _annotate(results: dict, finding: Finding, rects: dict) -> None:
        boxes = results['gt_bboxes_3d']
        count = len(boxes)
        results['gt_bboxes_3d'] = LiDARInstance3DBoxes.cat(
            [boxes, lidar_boxes(finding.box)])
        new = dict(
            gt_labels_3d=[finding.label],
            gt_diameters=[finding.box[3:6].mean()],
            gt_bboxes=list(rects.values()),
            gt_bboxes_labels=[finding.label] * len(rects),
            gt_bboxes_view=list(rects),
            gt_bboxes_instance=[count] * len(rects))
        for key, value in new.items():
            old = results[key]
            results[key] = np.concatenate(
                [old, np.asarray(value, dtype=old.dtype)])
