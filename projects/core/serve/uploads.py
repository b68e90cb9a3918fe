"""What strangers may send: names, headers, and which image is of which view.

Nothing here decodes an image: the size of a PNG or TIFF is read from its
header and must be the rig's, before a decoder allocates what the header says;
:mod:`projects.core.projections` does so with all others.
"""

import re
import warnings
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from PIL import Image

from projects.core.files import DataError, load_json
from projects.core.projections import kind_of
from projects.core.rig import Rig

__all__ = [
    'IMAGES', 'check_image', 'check_name', 'corrections', 'load_rig',
    'order_images'
]

IMAGES = ('.png', '.tif', '.tiff', '.dcm', '.dicom', '.ima', '.h5', '.hdf5',
          '.nxs', '.raw', '.bin')
_NAME = re.compile(r'[\w+()][\w+() .-]{0,99}')
# Of baseline and extended TIFF: what libtiff allocates by.
_SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 277, 322, 323


def check_name(name: str) -> str:
    """A file's name that is no path, and of a kind that is taken.

    Raises:
        DataError: It is not.
    """
    if not _NAME.fullmatch(name) or '..' in name:
        raise DataError(f'{name[:60]!r}: name: expected at most 100 letters, '
                        'digits, "_", "+", "-", ".", brackets and spaces, '
                        'found another')
    if Path(name).suffix.lower() not in (*IMAGES, '.json'):
        raise DataError(f'{name}: expected {", ".join(IMAGES)} or the rig\'s '
                        f'.json, found {Path(name).suffix or "none of them"}')
    return name


def load_rig(path: Path, pixels: int, views: int) -> Rig:
    """A stranger's ``rig.json``.

    Args:
        path: File.
        pixels: Most of all views together.
        views: At most.

    Raises:
        DataError: It is none, or of more or larger views.
    """
    try:
        rig = Rig.from_dict(load_json(path), str(path))
    except ValueError as error:  # a DataError is one
        raise DataError(str(error)) from None
    except (TypeError, OverflowError, RecursionError) as error:
        raise DataError(f'{path}: expected a rig, found '
                        f'{type(error).__name__}') from None
    if len(rig) > views:
        raise DataError(f'{path}: field "views": expected at most {views}, '
                        f'found {len(rig)}')
    found = sum(view.width * view.height for view in rig.views)
    if found > pixels:
        raise DataError(f'{path}: width and height: expected at most '
                        f'{pixels} px in all views together, found {found}'
                        if found < 1e15 else f'{path}: width and height: '
                        f'expected at most {pixels} px in all views together')
    return rig


def order_images(paths: Sequence[Path], rig: Rig
                 ) -> Tuple[List[Path], List[str]]:
    """One image for each view of a rig, or a file with all: by the views'
    names, else all images in the order of theirs (2 before 10).

    Returns:
        tuple: Images in the rig's order, and lines for the person.

    Raises:
        DataError: There are too few, or too many that have other names.
    """
    if len(paths) == 1 < len(rig) and kind_of(paths[0]) != 'PNG':
        return list(paths), []
    named = {path.stem: path for path in paths}
    missing = [v.name for v in rig.views if v.name not in named]
    if not missing:
        used = [named[view.name] for view in rig.views]
        more = sorted({p.name for p in paths} - {p.name for p in used})
        return used, [f'{", ".join(more)}: of no view of the rig, not used'
                      ] if more else []
    if len(missing) < len(rig) and len(paths) < len(rig):
        raise DataError(f'images: expected one for each of the {len(rig)} '
                        f'views of the rig, found none for '
                        f'{", ".join(missing[:5])}'
                        + (' ...' if len(missing) > 5 else ''))
    if len(paths) != len(rig):
        raise DataError(f'images: expected {len(rig)}, one for each view of '
                        f'the rig, found {len(paths)}')
    ordered = sorted(paths, key=lambda path: [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r'([0-9]+)', path.stem)])
    return ordered, ['The images have other names than the views of the rig: '
                     'they are taken in the order of their names, '
                     f'{ordered[0].name} as {rig.views[0].name} and so on']


def corrections(paths: Sequence[Path]) -> Dict[str, List[Path]]:
    """Images without a beam and without an object, by ``dark`` and ``flat``:
    as their names begin."""
    return {kind: [p for p in paths if p.stem.lower().startswith(kind)]
            for kind in ('dark', 'flat')}


def check_image(path: Path, width: int, height: int) -> None:
    """An image must be of a kind that is read, and a PNG or TIFF of a view's
    size, by its header.

    Raises:
        DataError: It is not.
    """
    known = path.suffix.lower() in ('.png', '.tif', '.tiff')
    if kind_of(path) not in ('PNG', 'TIFF') and not known:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of sizes, which are told below
            with Image.open(path, formats=['PNG', 'TIFF']) as image:
                size = image.size
                tags = dict(getattr(image, 'tag_v2', {}))
    except Image.DecompressionBombError:
        size, tags = (0, 0), {}
    except Exception:  # a header can be damaged in any way
        raise DataError(f'{path}: image: expected a PNG or TIFF, found '
                        'neither, or a damaged one') from None
    if size != (width, height):
        raise DataError(f'{path}: image size: expected {width} x {height} px '
                        'as in the rig, found '
                        + (f'{size[0]} x {size[1]}' if any(size)
                           else 'far more'))
    # What holds a single image is no larger than the image and its padding.
    sides = [tags.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
    if tags.get(_SAMPLES, 1) not in (1, 2, 3, 4) or any(
            not isinstance(side, int) or side > 2 * max(width, height, 256)
            for side in sides):
        raise DataError(f'{path}: image: expected up to 4 samples a pixel in '
                        'tiles no larger than the image, found others')
