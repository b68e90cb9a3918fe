"""A scan ready to be rendered or sliced, whatever it was read from, and its
images."""

from dataclasses import dataclass, field
from typing import List, Optional, cast

import numpy as np
from scipy.ndimage import binary_dilation

from projects.core import geometry

from .drr import Volume, hu_to_mu

__all__ = ['ConversionError', 'Finding', 'Scan', 'Shot']


class ConversionError(ValueError):
    """A scan cannot be converted; the message says why in one sentence."""


@dataclass
class Finding:
    """What the networks shall find: the voxels of a mask, or just a box.

    Attributes:
        mask: Boolean voxels of the tight box, in the volume's index order
            (x, y, z); None where only ``box`` is known.
        start: (3,) first index of the mask's box; means nothing without one.
        box: (7,) in the world (mm), in place of a mask.
        label: Class.
        record: What else an instance of the infos says: ``diameter`` (mm) and
            ``num_readers`` decide whether it counts.
    """
    mask: Optional[np.ndarray] = None
    start: np.ndarray = field(default_factory=lambda: np.zeros(3, int))
    box: Optional[np.ndarray] = None
    label: int = 0
    record: dict = field(default_factory=dict)


@dataclass
class Shot:
    """One image of a scan as a set holds it: an X-ray view or a CT slice.

    Attributes:
        name: Key among the scan's images, and stem of its file.
        token: What tells it from all other images of the set.
        levels: (H, W), or (H, W, 3) in OpenCV's order of channels; unsigned.
        cam2img, ct2cam: (4, 4), see :mod:`projects.core.geometry`.
        rects: Of each finding of the scan the tight box in the image (4,)
            xyxy (px), or None where the image does not show it.
        record: What else the infos say of the image.
    """
    name: str
    token: str
    levels: np.ndarray
    cam2img: np.ndarray
    ct2cam: np.ndarray
    rects: List[Optional[np.ndarray]]
    record: dict = field(default_factory=dict)

    @property
    def ct2img(self) -> np.ndarray:
        """World to image, (4, 4)."""
        return geometry.compose_ct2img(self.cam2img, self.ct2cam)


@dataclass
class Scan:
    """A scan ready to be rendered or sliced, or an object whose views were
    measured.

    Attributes:
        key: Unique name.
        patient_id: Scans of one patient (or part) go into one split.
        series_uid, frame_uid: DICOM UIDs; '' where there are none.
        hu: (columns, rows, slices) Hounsfield units, in the world frame. Of
            a measured object it is its label image, or empty.
        ct2patient: (4, 4), world to DICOM's LPS patient frame (mm); None
            where that is not known.
        findings: What is to be found.
        repairs: What was wrong with the files and has been mended, one
            sentence each.
        source: Digest of the files that it was read from; None where its
            name tells it from others, as a DICOM series' does.
        anatomy: Name of the chest that a phantom was made from.
        measured: Line integrals (H, W) of its views, in place of rendered
            ones.
        record: What else the infos say of it.
    """
    key: str
    patient_id: str
    series_uid: str
    frame_uid: str
    hu: Volume
    ct2patient: Optional[np.ndarray]
    findings: List[Finding]
    repairs: List[str] = field(default_factory=list)
    source: Optional[str] = None
    anatomy: Optional[str] = None
    measured: Optional[List[np.ndarray]] = None
    record: dict = field(default_factory=dict)

    def voxels(self, finding: Finding) -> np.ndarray:
        """Centres of a finding's voxels in the world, (N, 3) (mm)."""
        index = np.argwhere(cast(np.ndarray, finding.mask)) + finding.start
        return index @ self.hu.voxel2ct[:3, :3].T + self.hu.voxel2ct[:3, 3]

    def box(self, finding: Finding) -> np.ndarray:
        """Tight box of a finding's voxels, whole voxels counted, (7,) (mm)."""
        if finding.mask is None:
            return cast(np.ndarray, finding.box)
        centres = self.voxels(finding)
        reach = np.abs(self.hu.voxel2ct[:3, :3]).sum(1) / 2
        low, high = centres.min(0) - reach, centres.max(0) + reach
        return np.array([*(low + high) / 2, *(high - low), 0.])

    def mask(self, finding: Finding) -> Optional[np.ndarray]:
        """A finding's mask along the world's axes, (X, Y, Z), or None."""
        if finding.mask is None:
            return None
        steps = self.hu.voxel2ct[:3, :3]
        order = np.abs(steps).argmax(1)
        mask = finding.mask.transpose(order)
        ahead = steps[range(3), order] > 0
        return mask[tuple(slice(None, None, 1 if a else -1) for a in ahead)]

    def contrast(self, finding: Finding) -> Optional[float]:
        """By how much a finding attenuates more than what is next to it
        (1/mm), negative for a pore: its mean less the median of a shell of
        three voxels; None where that is 0, or no mask is known, or no CT."""
        if finding.mask is None or self.measured is not None:
            return None
        low = np.maximum(finding.start - 3, 0)
        mask = np.pad(finding.mask, 3)
        skip = low - (finding.start - 3)
        high = np.minimum(finding.start + finding.mask.shape + 3,
                          self.hu.values.shape)
        mask = mask[tuple(slice(a, a + n)
                          for a, n in zip(skip, high - low))]
        mu = hu_to_mu(self.hu.values[tuple(
            slice(a, b) for a, b in zip(low, high))])
        shell = binary_dilation(mask, iterations=3) & ~mask
        value = float(mu[mask].mean() - np.median(mu[shell]))
        return value or None

    def corners(self, finding: Finding) -> np.ndarray:
        """Points whose hull is the finding's: corners of its surface voxels,
        or of its box, (N, 3) (mm)."""
        if finding.mask is None:
            return geometry.box_corners(self.box(finding)[None])[0]
        # A rectangle round a set needs only the set's hull: per column of
        # voxels the first and the last.
        mask = finding.mask
        ends = (mask & ~np.roll(mask, 1, 2)) | (mask & ~np.roll(mask, -1, 2))
        ends[..., [0, -1]] |= mask[..., [0, -1]]
        index = np.argwhere(ends) + finding.start
        offsets = np.array(np.meshgrid(*[(-.5, .5)] * 3)).reshape(3, -1).T
        corners = (index[:, None] + offsets).reshape(-1, 3)
        corners = np.unique(corners, axis=0)
        return corners @ self.hu.voxel2ct[:3, :3].T + self.hu.voxel2ct[:3, 3]
