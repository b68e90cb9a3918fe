"""Findings of a set, shown in other scans of it."""

from typing import List, Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.core.boxes import lidar_boxes
from projects.core.files import DataError
from projects.core.findings import Finding
from projects.mv2d_xray.transforms import solids

__all__ = ['XRayInsertNodules']

NOTHING = -1  # label of what is not a finding
COARSE = 2.  # times its size at which a shape's voxels are seen


@TRANSFORMS.register_module()
class XRayInsertNodules(BaseTransform):
    """Show findings of the set in other scans, turned, scaled and mirrored.

    It costs little and gives a small training set as many findings as it
    needs. They are those of the sample's ``bank``, which the dataset gives.
    Each is put near where another one was, since that is where they occur.

    All is seen through the point spread of a CT, one for each sample, since
    a network learns edges that are sharper than the rest of the image in
    place of findings. Boxes are those of what was spread.

    Args:
        max_nodules (int): Most per sample; the number is uniform from 0.
        sizes (tuple[float, float]): Range of the mean edge of the box (mm),
            log-uniform but for fewer large ones, which hide others: of 5 to
            60 mm, one in 13 is above 30.
        spread (float): Deviation of the place from another finding's (mm).
        contrasts (tuple[float, float]): Range of the change of contrast. It
            reaches further up than down, since a set's small findings have
            less than what they are made of: their voxels are partly filled.
        attenuation (tuple[float, float], optional): Range of what is added
            (1/mm), below 0 for what takes away, as a pore, for findings of
            which the set does not say; soft tissue in lung is 0.017. A
            contrast of the other sign is that of a finding beside something
            else, as a nodule at a rib: it is drawn from the range, too. None
            is larger than the range's end. By default the set must know them
            all.
        point_spread (tuple[float, float]): Range of the deviation of the
            point spread across z (mm); 0 for none. Borders of the body in
            chest CTs with slices of 2 and 3 mm have 0.67 to 0.86.
        slice_profile (tuple[float, float]): The same along z, where slices
            are thick; 1.3 to 2.1 there.
        texture (float): Up to which relative deviation a finding's contrast
            varies in it.
        lumps (float): Share of findings that are round or lobulated solids
            in place of the set's shapes.
        subsolid (float): Share of findings that are a solid core in a shell
            of 0.15 to 0.5 of its contrast.
        distractors (int): Most per sample of what looks alike and is not
            annotated: pieces of vessels of 2 to 6 mm, calcifications of 1 to
            2.5 mm and metal clips, for chests. The number is uniform from 0.

    Findings without a known shape, or shown at more than twice their own size,
    are round or lobulated, too.

    Raises:
        DataError: A finding's contrast is neither known nor given.
    """

    def __init__(self,
                 max_nodules: int = 4,
                 sizes: Tuple[float, float] = (5., 30.),
                 spread: float = 15.,
                 contrasts: Tuple[float, float] = (.7, 1.4),
                 attenuation: Optional[Tuple[float, float]] = None,
                 point_spread: Tuple[float, float] = (.45, .95),
                 slice_profile: Tuple[float, float] = (.5, 2.2),
                 texture: float = .25,
                 lumps: float = .4,
                 subsolid: float = .2,
                 distractors: int = 0) -> None:
        self.max_nodules = max_nodules
        self.sizes = sizes
        self.spread = spread
        self.contrasts = contrasts
        self.attenuation = attenuation
        self.point_spread = point_spread
        self.slice_profile = slice_profile
        self.texture = texture
        self.lumps = lumps
        self.subsolid = subsolid
        self.distractors = distractors

    def draw(self, bank: Sequence[dict]) -> Finding:
        """One of a bank's findings, changed, at another one's place."""
        item = bank[np.random.randint(len(bank))]
        centre = self._place(bank)
        low, high = np.log(self.sizes)
        mean_edge = np.exp(low + (high - low) * np.random.beta(1, 2))
        # A shape of few voxels is not blown up.
        blown_up = mean_edge > COARSE * item['size'].mean()
        if (item['shape'] is None or blown_up
                or np.random.random() < self.lumps):
            depth = solids.lump(np.random.uniform(0, .25))
            edges = np.exp(np.random.normal(0, .15, 3))
        else:
            depth = solids.smoothed(item['shape'])
            edges = item['size']
        if np.random.random() < self.subsolid:
            density = solids.add_core(depth, np.random.uniform(.15, .5),
                                      np.random.uniform(.3, .6))
        else:
            density = solids.edge(depth)
        density = solids.add_texture(density,
                                     np.random.uniform(0, self.texture))
        to_box = _turned(edges)
        # The solid need not fill its grid, and is turned.
        unit = Finding(centre, to_box, depth > 0, 1., item['label'])
        return Finding(
            centre, to_box * unit.box[3:6].mean() / mean_edge, unit.shape,
            self._contrast(item['contrast']), item['label'], density)

    def _place(self, bank: Sequence[dict]) -> np.ndarray:
        other = bank[np.random.randint(len(bank))]
        return other['centre'] + np.random.normal(0, self.spread, 3)

    def _contrast(self, known: Optional[float]) -> float:
        if self.attenuation and (
                known is None or known * sum(self.attenuation) <= 0):
            return np.random.uniform(*self.attenuation)
        if known is None:
            raise DataError(
                'config key "XRayInsertNodules.attenuation": expected a range '
                '(1/mm), since the set does not say what its findings add, '
                'found none')
        contrast = known * np.random.uniform(*self.contrasts)
        if self.attenuation:
            most = np.abs(self.attenuation).max()
            contrast = float(np.clip(contrast, -most, most))
        return contrast

    def draw_distractors(self, bank: Sequence[dict]) -> List[Finding]:
        """One thing that is not a finding, or two vessels that cross, near a
        finding's place."""
        centre = self._place(bank)
        kind = np.random.random()
        if kind < .7:
            count = 1 + int(np.random.random() < .3)
            contrast = np.random.uniform(.015, .018)
            return [_vessel(centre, contrast) for _ in range(count)]
        if kind < .95:
            edges = np.full(3, np.random.uniform(1., 2.5))
            contrast = np.random.uniform(.01, .03)
        else:
            edges = np.array([np.random.uniform(4., 8.), 1., 1.])
            contrast = np.random.uniform(.03, .1)
        density = solids.edge(solids.lump(0.))
        return [Finding(centre, _turned(edges), density > .5, contrast,
                        NOTHING, density)]

    def transform(self, results: dict) -> dict:
        """Add to one sample."""
        results['img'] = [image.copy() for image in results['img']]
        bank = results['bank']
        if not bank:
            return results
        across = np.random.uniform(*self.point_spread)
        spread = (across, across, np.random.uniform(*self.slice_profile))
        for _ in range(np.random.randint(self.max_nodules + 1)):
            finding = self.draw(bank)
            rects = {
                view: finding.rectangle(ct2img, image.shape[:2])
                for view, (image, ct2img) in enumerate(
                    zip(results['img'], results['ct2img']))
            }
            rects = {v: rect for v, rect in rects.items() if rect is not None}
            # What a single view shows has no place in space: painted, but not
            # annotated, it would be taught as background.
            if len(rects) < 2:
                continue
            self._paint(results, finding, spread)
            self._annotate(results, finding, rects)
        for _ in range(np.random.randint(self.distractors + 1)):
            for thing in self.draw_distractors(bank):
                self._paint(results, thing, spread)
        return results

    @staticmethod
    def _paint(results: dict, finding: Finding,
               spread: Sequence[float]) -> None:
        for image, ct2img in zip(results['img'], results['ct2img']):
            shown = finding.project(ct2img, image.shape[:2], spread)
            if shown is not None:
                (x1, y1, x2, y2), path = shown
                image[y1:y2, x1:x2, 0] += finding.contrast * path

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


def _turned(edges: np.ndarray) -> np.ndarray:
    """World offsets (mm) to [-1, 1]³ of a box of these edges (mm), turned and
    perhaps mirrored."""
    # Signs of R's diagonal make Q uniform over turns and reflections
    # (Mezzadri, arXiv math-ph/0609050).
    rotation, upper = np.linalg.qr(np.random.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(upper))
    return rotation.T / (np.asarray(edges) / 2)[:, None]


def _vessel(centre: np.ndarray, contrast: float) -> Finding:
    length = np.random.uniform(15., 50.)
    thickness = np.random.uniform(2., 6.)
    bend = np.random.uniform(0., .15) * length  # mm, either way
    edges = np.array([length, thickness + 2 * bend, thickness])
    density = solids.tube(2 * bend / edges[1], thickness / edges[1:])
    return Finding(centre, _turned(edges), density > .5, contrast, NOTHING,
                   density)
