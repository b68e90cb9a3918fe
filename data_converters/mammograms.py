"""CBIS-DDSM as TCIA delivers it, to images of one size and COCO with masks.

The delivery (Lee et al., Scientific Data 4:170177, 2017, and TCIA's pages): a
folder for each mammogram, as ``Mass-Training_P_00001_LEFT_CC``, with one
DICOM file somewhere below it; a folder for each finding on it, the same name
with ``_1``, with its mask, as large as the mammogram, and a crop of the
mammogram; and four tables, ``mass_case_description_train_set.csv`` and the
like, a row for each finding.

The tables' paths are those of another delivery: the names of the files
differ, and many call the crop the mask. Only the folder is believed; which of
its files is the mask is seen from the pixels: a mask has two grey values. One
of another size than the mammogram is resized where its shape allows it, and
one that is missing is made up for by the place of the crop in the mammogram.
"""

import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from projects.core.breast import (
    breast_mask,
    chest_side,
    cut_borders,
    to_eight_bits,
)
from projects.core.files import dump_json, load_json

from .convert import (
    SPLITS,
    Options,
    convert_scans,
    open_set,
    record_path,
    split_patients,
    write_errors,
    write_image,
)
from .dicom import files_below, plain, read_image
from .scan import ConversionError
from .tables import Row, read_table

CATEGORIES = ('mass', 'calcification')
# The tables: kind of finding, split; and the columns that all of them have.
TABLES = {(kind, part): f'{kind}_case_description_{part}_set.csv'
          for kind in ('mass', 'calc') for part in ('train', 'test')}
SIDE, VIEW, NUMBER, TYPE = ('left or right breast', 'image view',
                            'abnormality id', 'abnormality type')
IMAGE, CROP, MASK = ('image file path', 'cropped image file path',
                     'ROI mask file path')
_REQUIRED = ('patient_id', SIDE, VIEW, NUMBER, TYPE, IMAGE, MASK)
_OPTIONAL = (CROP, 'breast_density', 'breast density', 'mass shape',
             'mass margins', 'calc type', 'calc distribution', 'assessment',
             'pathology', 'subtlety')
_FOLDER = re.compile(r'(Mass|Calc)-(Training|Test)_(P_\w+?)_(LEFT|RIGHT)_'
                     r'(CC|MLO)(?:_(\d+))?')
_PARTS = dict(Training='train', Test='test')
_DEPTH = 3  # folders above the mammograms' that may be there
_SAME_SHAPE = .02  # relative: of the sides of a mask that is resized
_LIKE = .9  # correlation of a crop with its place in the mammogram
_SEARCHED = 1000  # px to a side, of the mammogram in which it is sought
_MARGIN = .02  # of the breast's box, round what is cut out

__all__ = ['CATEGORIES', 'TABLES', 'Fitting', 'Mammogram', 'convert', 'plan']


@dataclass
class Fitting:
    """How mammograms become images of one size.

    Attributes:
        image_size: Side of the images (px). The longer side of a mammogram
            gets as long; what the other lacks is black, beside the breast and
            never at its chest wall.
        crop: Whether the breast is cut out first.
        findings: Categories that count; mammograms of others are left out.
    """
    image_size: int = 1024
    crop: bool = False
    findings: Sequence[str] = CATEGORIES

    def __post_init__(self) -> None:
        self.findings = [str(name) for name in self.findings]


@dataclass
class Mammogram:
    """A mammogram to be converted.

    Attributes:
        name: As ``P_00001_LEFT_CC``.
        patient: As ``P_00001``.
        laterality: 'L' or 'R'.
        view: 'CC' or 'MLO'.
        part: 'train' or 'test', as the tables have it.
        folders: Of the image; more than one has it more than once.
        rows: Of its findings.
        root: Folder that ``folders`` and those of the findings are in.
        truth: Landmarks in a synthetic image, ``nipple`` (2,) and
            ``pectoral`` (2, 2) or None (px of the file).
        repairs: What was mended.
    """
    name: str
    patient: str
    laterality: str
    view: str
    part: str
    folders: List[str]
    rows: List[Row]
    root: Path
    truth: Optional[dict] = None
    repairs: List[str] = field(default_factory=list)


# --------------------------------------------------------------- what is there
def plan(dicom_root: Path, tables: Optional[Path] = None,
         findings: Sequence[str] = CATEGORIES
         ) -> Tuple[List[Mammogram], Dict[str, str]]:
    """Mammograms of a delivery.

    A mammogram that no row names is one without a finding. A patient who is
    in the training part and in the test part is in the test alone.

    Args:
        dicom_root: Folder that holds the mammograms' folders, perhaps some
            levels below.
        tables: Folder of the tables; default ``dicom_root``.
        findings: Categories that count.

    Returns:
        tuple: Mammograms by name; what the tables name that is not there, with
        the reason.

    Raises:
        ConversionError: No mammogram or table is there, or a row is wrong.
    """
    root = _root_of(Path(dicom_root))
    found = {path.name: match for path in sorted(root.iterdir())
             if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()}
    truth = (load_json(root / 'truth.json')['images']
             if (root / 'truth.json').exists() else {})
    images: Dict[str, Mammogram] = {}
    for folder, match in found.items():
        kind, part, patient, side, view, number = match.groups()
        if number or _category(kind) not in findings:
            continue
        name = f'{patient}_{side}_{view}'
        image = images.setdefault(name, Mammogram(
            name, patient, side[0], view, _PARTS[part], [], [], root,
            truth.get(name)))
        image.folders.append(folder)
    missing: Dict[str, str] = {}
    for row in _rows(Path(tables or dicom_root), root, findings):
        name = '_'.join(row[key] for key in ('patient_id', SIDE, VIEW))
        if name in images:
            images[name].rows.append(row)
        else:
            missing[name] = (
                f'{row.where}: column "{IMAGE}": expected the folder '
                f'{plain(_first(row[IMAGE]) or name)} in {root}, found none')
    _one_part_each(images, found)
    return sorted(images.values(), key=lambda image: image.name), missing


def _category(text: str) -> str:
    return CATEGORIES[0 if text.lower().startswith('mass') else 1]


def _root_of(folder: Path) -> Path:
    """The folder, at or below this one, that holds the mammograms'."""
    level = [folder]
    for _ in range(_DEPTH):
        below = []
        for place in level:
            try:
                inside = sorted(p for p in place.iterdir() if p.is_dir())
            except OSError as error:
                raise ConversionError(f'{place}: cannot be read: '
                                      f'{error.strerror}') from None
            if any(_FOLDER.fullmatch(p.name) for p in inside):
                return place
            below += inside
        level = below
    raise ConversionError(
        f'{folder}: --dicom-root: expected folders as '
        'Mass-Training_P_00001_LEFT_CC in it, found none')


def _rows(folder: Path, root: Path, findings: Sequence[str]) -> List[Row]:
    """Rows of all tables that are there, beside or among the images."""
    paths = [next((place / name for place in (folder, root)
                   if (place / name).exists()), None)
             for (kind, _), name in TABLES.items()
             if _category(kind) in findings]
    rows = []
    for path in filter(None, paths):
        for row in read_table(path, _REQUIRED, _OPTIONAL):
            for column, known in ((SIDE, ('LEFT', 'RIGHT')),
                                  (VIEW, ('CC', 'MLO')), (TYPE, CATEGORIES)):
                if row[column] not in known:
                    raise row.fail(column, ' or '.join(known))
            row.count(NUMBER)
            rows.append(row)
    if not any(paths):
        raise ConversionError(
            f'{folder}: expected tables as {TABLES["mass", "train"]}, found '
            'none (--tables names their folder)')
    return rows


def _one_part_each(images: Dict[str, Mammogram], found: Dict[str, Any]
                   ) -> None:
    """Whoever is in the test in one of the tables is so in all."""
    tested = {match.group(3) for match in found.values()
              if match.group(2) == 'Test'}
    for image in images.values():
        if image.part == 'train' and image.patient in tested:
            image.part = 'test'
            image.repairs.append(
                f'patient {image.patient} is in CBIS-DDSM\'s training part '
                'and in its test: was put into the test')


def _first(path: str) -> str:
    """Folder of a mammogram or finding, of a path in a table."""
    return path.strip().replace('\\', '/').split('/')[0]


# --------------------------------------------------------------- one mammogram
@contextmanager
def load(image: Mammogram) -> Iterator['_Loaded']:
    """A mammogram and its masks, read; for
    :func:`data_converters.convert.convert_scans`.

    Raises:
        ConversionError: The image or a finding is missing or damaged.
    """
    yield _Loaded.of(image)


@dataclass
class _Loaded:
    """Pixels of a mammogram: values uint16, masks boolean of its size."""
    image: Mammogram
    values: np.ndarray
    spacing: Optional[np.ndarray]
    masks: List[np.ndarray]
    repairs: List[str]

    @property
    def key(self) -> str:
        return self.image.name

    @classmethod
    def of(cls, image: Mammogram) -> '_Loaded':
        paths = [path for folder in image.folders
                 for path in files_below(image.root / folder)]
        if not paths:
            raise ConversionError(
                f'{image.root / image.folders[0]}: expected a DICOM file of '
                'the mammogram, found none')
        repairs = list(image.repairs)
        picture = read_image(paths[0], 'MG')
        if picture.inverted:
            repairs.append(f'{paths[0].name} is MONOCHROME1: was inverted')
        masks = [_finding(image, row, picture.values, repairs)
                 for row in image.rows]
        return cls(image, picture.values, picture.spacing, masks, repairs)


def _finding(image: Mammogram, row: Row, values: np.ndarray,
             repairs: List[str]) -> np.ndarray:
    """Mask of a row's finding, as large as the mammogram; what had to be
    mended is added to ``repairs``."""
    number = row.count(NUMBER)
    names = [_first(row[MASK]), *(f'{folder}_{number}'
                                  for folder in image.folders)]
    folder = next((image.root / name for name in names
                   if _FOLDER.fullmatch(name)
                   and (image.root / name).is_dir()), None)
    paths = files_below(folder) if folder else []
    if not paths:
        raise ConversionError(
            f'{row.where}: column "{MASK}": expected a file in '
            f'{image.root / plain(names[0] or names[-1])}, found none')
    masks: List[Tuple[Path, np.ndarray]] = []
    crops: List[Tuple[Path, np.ndarray]] = []
    for path in paths:
        pixels = read_image(path, 'MG').values
        (masks if _is_mask(pixels) else crops).append((path, pixels))
    what = f'finding {number}'
    if not masks:
        return _from_crop(row, what, crops, values, repairs)
    # The largest: a crop of a saturated spot may have two values, too.
    path, pixels = max(masks, key=lambda item: item[1].size)
    _tell_swapped(image.root, row, path, what, repairs)
    mask = pixels > 0
    if mask.mean() > .5:  # as of a MONOCHROME1 file
        mask = ~mask
        repairs.append(f'mask of {what}: most of it is marked: was inverted')
    if mask.shape == values.shape:
        return mask
    scale = np.array(values.shape) / mask.shape
    if abs(scale[0] / scale[1] - 1) > _SAME_SHAPE:
        raise ConversionError(
            f'{plain(path)}: expected a mask of the mammogram\'s '
            f'{_size(values)} px, or of its shape, found {_size(mask)} px')
    repairs.append(f'mask of {what}: expected {_size(values)} px, found '
                   f'{_size(mask)} px: was resized')
    resized = cv2.resize(mask.astype(np.uint8), values.shape[::-1],
                         interpolation=cv2.INTER_NEAREST)
    return resized > 0


def _size(pixels: np.ndarray) -> str:
    return f'{pixels.shape[1]} x {pixels.shape[0]}'


def _is_mask(pixels: np.ndarray) -> bool:
    """Whether there are two grey values, 0 and another one."""
    top = int(pixels.max())
    return top > 0 and bool(((pixels == 0) | (pixels == top)).all())


def _tell_swapped(root: Path, row: Row, mask: Path, what: str,
                  repairs: List[str]) -> None:
    """Note where a row names another file than the mask, and this is there:
    TCIA's own names, 1-1.dcm, are in no row."""
    named = root / row[MASK].strip()
    if named != mask and named.is_file():
        repairs.append(f'{what}: column "{MASK}" names {plain(named.name)}, '
                       f'the crop: {plain(mask.name)} was taken')


def _from_crop(row: Row, what: str, crops: list, values: np.ndarray,
               repairs: List[str]) -> np.ndarray:
    """An ellipse where a finding's crop is in its mammogram."""
    scale = min(_SEARCHED / max(values.shape), 1.)
    best, box = -1., (0, 0, 0, 0)
    for _, crop in crops:
        if crop.shape[0] >= values.shape[0] or (
                crop.shape[1] >= values.shape[1]):
            continue
        small, part = (
            cv2.resize(a.astype(np.float32), None, fx=scale, fy=scale,
                       interpolation=cv2.INTER_AREA)
            for a in (values, crop))
        if min(part.shape) < 4 or part.std() == 0:
            continue
        like = cv2.matchTemplate(small, part, cv2.TM_CCOEFF_NORMED)
        _, top, _, (x, y) = cv2.minMaxLoc(like)
        if top > best:
            best = top
            box = (round(x / scale), round(y / scale),
                   crop.shape[1], crop.shape[0])
    if best < _LIKE:
        raise ConversionError(
            f'{row.where}: column "{MASK}": expected a mask, or a crop that '
            f'is in the mammogram, found neither among {len(crops)} files')
    repairs.append(f'{what} has no mask: an ellipse was put where its crop '
                   'is in the mammogram')
    mask = np.zeros(values.shape, np.uint8)
    x, y, width, height = box
    cv2.ellipse(mask, (x + width // 2, y + height // 2),
                (width // 2, height // 2), 0, 0, 360, (1, ), -1)
    return mask > 0


# ---------------------------------------------------------------------- images
def write(loaded: _Loaded, options: Options, out_dir: Path,
          device: str = 'cpu') -> dict:
    """Write a mammogram's image and record; returns the record."""
    del device
    image = loaded.image
    fitting = Fitting(**(options.mammograms or {}))
    repairs = list(loaded.repairs)
    try:
        breast, factor = _coarse_breast(loaded.values)
    except ValueError as error:
        raise ConversionError(f'{image.name}: {error}') from None
    side = chest_side(breast)
    if side != dict(L='left', R='right')[image.laterality]:
        repairs.append(f'the chest wall of a {image.laterality} breast is '
                       f'at the {side} of the image, as it was delivered')
    repairs += [f'the breast is cut at the {border} border of the image'
                for border in cut_borders(breast, side, image.view)]
    fit = _Fit.of(loaded.values.shape, side, fitting,
                  _box_of(breast, factor) if fitting.crop else None)
    levels = fit.apply(loaded.values, cv2.INTER_AREA)
    written = write_image(out_dir, out_dir / 'images' / f'{image.name}.png',
                          levels)
    findings = []
    for row, mask in zip(image.rows, loaded.masks):
        segmentation = fit.mask(mask)
        if segmentation is None:
            raise ConversionError(
                f'{row.where}: expected a mask within the image, found an '
                'empty one')
        findings.append(dict(
            category_id=1 + CATEGORIES.index(row[TYPE]),
            abnormality=row.count(NUMBER),
            pathology=row.get('pathology', ''), **segmentation))
    record = dict(
        name=image.name, patient=image.patient, part=image.part,
        laterality=image.laterality, view=image.view,
        img_path=written['path'], sha256=written['sha256'],
        pixel_mm=None if loaded.spacing is None
        else float(loaded.spacing.mean() / fit.scale),
        fit=dict(scale=fit.scale, offset=list(fit.offset),
                 cut=list(fit.box), padding=fit.padding()),
        repairs=repairs, findings=findings)
    if image.truth is not None:
        record['truth'] = {
            name: fit.points(np.array(points, float)).tolist() if points
            else points
            for name, points in image.truth.items()}
    dump_json(record, record_path(out_dir, image.name))
    return record


def _coarse_breast(values: np.ndarray) -> Tuple[np.ndarray, float]:
    """Where the breast is, in a smaller image, and how much smaller; film's
    bright rim does not count."""
    scale = min(512 / max(values.shape), 1.)
    grey = to_eight_bits(cv2.resize(
        values, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    mask = breast_mask(grey)
    if not mask.any():
        raise ValueError('expected a breast, found nothing bright')
    return mask, scale


def _box_of(breast: np.ndarray, factor: float) -> Tuple[int, ...]:
    """Box round the breast, x1, y1, x2, y2 (px of the file)."""
    x, y, width, height = cv2.boundingRect(breast)
    margin = _MARGIN * max(width, height)
    return tuple(round(v / factor) for v in (
        x - margin, y - margin, x + width + margin, y + height + margin))


@dataclass
class _Fit:
    """From a mammogram's pixels to those of its image."""
    box: Tuple[int, int, int, int]  # that is shown, x1, y1, x2, y2
    scale: float
    offset: Tuple[int, int]  # of its corner in the image
    shown: Tuple[int, int]  # width and height in the image
    side: int

    @classmethod
    def of(cls, shape: Tuple[int, ...], chest: str, fitting: Fitting,
           box: Optional[Tuple[int, ...]]) -> '_Fit':
        height, width = shape
        x1, y1, x2, y2 = box or (0, 0, width, height)
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(
            y2, height)
        side = fitting.image_size
        scale = side / max(x2 - x1, y2 - y1)
        shown = (max(round((x2 - x1) * scale), 1),
                 max(round((y2 - y1) * scale), 1))
        left = side - shown[0] if chest == 'right' else 0
        return cls((x1, y1, x2, y2), scale, (left, 0), shown, side)

    def apply(self, pixels: np.ndarray, method: int) -> np.ndarray:
        x1, y1, x2, y2 = self.box
        if self.scale > 1 and method == cv2.INTER_AREA:
            method = cv2.INTER_LINEAR
        shown = cv2.resize(np.ascontiguousarray(pixels[y1:y2, x1:x2]),
                           self.shown, interpolation=method)
        image = np.zeros((self.side, self.side), shown.dtype)
        left, top = self.offset
        image[top:top + self.shown[1], left:left + self.shown[0]] = shown
        return image

    def mask(self, mask: np.ndarray) -> Optional[dict]:
        """A finding's fields of COCO; None where nothing of it is shown."""
        share = self.apply(mask.astype(np.float32), cv2.INTER_AREA)
        if not share.max() > 0:
            return None
        # Of a finding smaller than a pixel that pixel remains.
        fitted = share >= min(.5, float(share.max()))
        code = coco_mask.encode(np.asfortranarray(fitted.astype(np.uint8)))
        return dict(
            bbox=coco_mask.toBbox(code).tolist(),
            area=float(coco_mask.area(code)),
            segmentation=dict(size=[int(n) for n in code['size']],
                              counts=code['counts'].decode('ascii')))

    def points(self, points: np.ndarray) -> np.ndarray:
        return (points - self.box[:2]) * self.scale + self.offset

    def padding(self) -> List[int]:
        """Black at the left, top, right and bottom (px)."""
        left, top = self.offset
        return [left, top, self.side - left - self.shown[0],
                self.side - top - self.shown[1]]


# --------------------------------------------------------------------- the set
def convert(images: List[Mammogram], missing: Dict[str, str],
            options: Options, out_dir: Path, jobs: int = 1,
            strict: bool = False) -> Dict[str, int]:
    """Convert mammograms that are not there yet; write the COCO files of
    every split, and ``errors.json``.

    Args:
        images, missing: Of :func:`plan`.
        options: With ``mammograms``, the share of 'val' among the patients of
            the training part, and the seed of their choice.
        out_dir: Root of the set.
        jobs: Processes.
        strict: Whether anything skipped or repaired is an error.

    Returns:
        dict: Number of images in each split.

    Raises:
        ConversionError: Nothing can be converted, the folder holds something
            else, or strictness forbids to finish.
    """
    with open_set(out_dir, options):
        skipped = dict(missing)
        skipped.update(convert_scans(
            [(image.name, image) for image in images], load, options, out_dir,
            jobs, total=len(images), convert=write))
        return _finish(out_dir, options, skipped, strict)


def _finish(out_dir: Path, options: Options, skipped: Dict[str, str],
            strict: bool) -> Dict[str, int]:
    records = [load_json(path)
               for path in sorted((out_dir / 'scans').glob('*.json'))]
    names = {record['name'] for record in records}
    write_errors(
        out_dir, skipped,
        {r['name']: r['repairs'] for r in records if r['repairs']},
        bool(records), strict, 'mammogram',
        alone={name: f'expected {other} of the same breast, found none'
               for name in sorted(names)
               if (other := partner_names(name)['other_view']) not in names})
    splits = split_patients([r['patient'] for r in records
                             if r['part'] == 'train'], options)
    counts = {}
    for split in SPLITS:
        chosen = [r for r in records if split == (
            'test' if r['part'] == 'test' else splits[r['patient']])]
        dump_json(build_coco(chosen, options), coco_path(out_dir, split))
        counts[split] = len(chosen)
    return counts


def coco_path(out_dir: Path, split: str) -> Path:
    """Where a split's COCO file is."""
    return out_dir / 'annotations' / f'instances_{split}.json'


def partner_names(name: str) -> Dict[str, str]:
    """Names of the other view of the breast, and of the same view of the
    other breast."""
    patient, side, view = name.rsplit('_', 2)
    other = dict(LEFT='RIGHT', RIGHT='LEFT')[side]
    return dict(
        other_view=f'{patient}_{side}_{"MLO" if view == "CC" else "CC"}',
        other_breast=f'{patient}_{other}_{view}')


def build_coco(records: List[dict], options: Options) -> dict:
    """COCO of a split; partners are ids of images in the same file."""
    ids = {record['name']: number
           for number, record in enumerate(records, 1)}
    size = Fitting(**(options.mammograms or {})).image_size
    images: List[dict] = []
    annotations: List[dict] = []
    for record in records:
        number = ids[record['name']]
        image = dict(
            id=number, file_name=record['img_path'], width=size, height=size,
            patient=record['patient'], laterality=record['laterality'],
            view=record['view'], pixel_mm=record['pixel_mm'],
            partners={kind: ids.get(name) for kind, name
                      in partner_names(record['name']).items()},
            padding=record['fit']['padding'])
        if 'truth' in record:
            image['truth'] = record['truth']
        images.append(image)
        for finding in record['findings']:
            annotations.append(dict(
                id=len(annotations) + 1, image_id=number, iscrowd=0,
                **finding))
    return dict(
        info=dict(description=options.dataset, **asdict(
            Fitting(**(options.mammograms or {})))),
        images=images, annotations=annotations,
        categories=[dict(id=number, name=name) for number, name
                    in enumerate(CATEGORIES, 1)])
