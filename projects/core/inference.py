"""Boxes of unlabelled objects: what all commands that find them share.

Which model finds them, and with which library, is the caller's: this module
needs neither torch nor mm*.
"""

import argparse
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from projects.core.drawing import draw_views, shown_views
from projects.core.engine.command_line import UserError, check_outputs
from projects.core.export import export
from projects.core.files import DataError
from projects.core.projections import (
    LEVEL,
    NotWhole,
    Reading,
    add_reading_arguments,
    find_objects,
    read_projections,
    reading_of,
)
from projects.core.report import write_object_report
from projects.core.results import dump_boxes
from projects.core.rig import Rig

__all__ = [
    'Finder', 'Prediction', 'add_object_arguments', 'check_object_arguments',
    'find_boxes', 'images_of', 'other_views', 'read_views', 'watch_folder',
    'write_found', 'write_found_report'
]


@dataclass
class Prediction:
    """What a model found in one object.

    Attributes:
        boxes: (N, 7), gravity centre (mm), best first.
        scores, labels: (N,).
        names: V names of the images.
        shown: (V, H, W), the images as the model saw them.
        ct2img: (V, 4, 4), world (mm) to these images (px).
        told: What the views differ in from those of the training.
    """
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: List[str]
    shown: np.ndarray
    ct2img: np.ndarray
    told: List[str] = field(default_factory=list)


class Finder(Protocol):
    """A model that takes one object after the other.

    Attributes:
        checkpoint: The model's file, for messages.
        classes: Names of the labels.
        meta: What the model says of itself, as a checkpoint.
    """
    checkpoint: str
    classes: Sequence[str]
    meta: dict

    def predict(self, token: str, images: Dict[str, dict],
                score_thr: float = 0., rig: Optional[str] = None
                ) -> Prediction:
        """Boxes of one object; see
        :meth:`projects.core.engine.inference.Finder.predict`."""


# ---------------------------------------------------------------- one object
def images_of(rig: Rig, paths: Sequence[Union[str, Path]],
              integrals: Optional[Sequence[np.ndarray]] = None
              ) -> Dict[str, dict]:
    """Images by the names of a rig's views, as :meth:`Finder.predict` takes
    them; one path for each view, and perhaps its line integrals (H, W), which
    are not read again."""
    images = {
        view.name: dict(
            img_path=str(path), height=view.height, width=view.width,
            cam2img=view.cam2img, lidar2cam=view.ct2cam,
            lidar2img=view.ct2img)
        for view, path in zip(rig.views, paths)
    }
    for image, values in zip(images.values(), integrals or ()):
        image['integrals'] = values
    return images


def write_found_report(path: Union[str, Path], token: str, found: Prediction,
                       classes: Sequence[str], source: str = '',
                       threshold: float = .3, rig: Optional[Rig] = None
                       ) -> None:
    """Write the report page of one object, see
    :func:`~projects.core.report.write_object_report`."""
    write_object_report(
        path, token, found.shown, found.ct2img, found.names, found.boxes,
        found.scores.tolist(), [classes[label] for label in found.labels],
        source, threshold, None if rig is None else rig.seen_half)


def read_rig(args: argparse.Namespace) -> Rig:
    """The rig of the images.

    Raises:
        UserError: There is none.
    """
    if not args.rig:
        raise UserError('--rig: expected rig.json of --images or --watch, '
                        'found none')
    try:
        return Rig.load(args.rig)
    except ValueError as error:
        raise UserError(str(error)) from error


def read_views(places: List[Path], rig: Rig, reading: Reading
               ) -> Tuple[Dict[str, dict], str]:
    """An object's images by the names of the rig's views, and what was
    assumed.

    Raises:
        DataError: See :func:`~projects.core.projections.read_projections`.
    """
    found = read_projections(places, rig.views, reading)
    return images_of(rig, [places[0]] * len(rig), found.views), found.note


def _pixel_size(rig: dict, source: str) -> float:
    """Of the views of a ``rig.json``, in the middle (mm)."""
    try:
        views = Rig.from_dict(rig, source).views
    except ValueError as error:
        raise UserError(str(error)) from error
    return float(np.median([view.pixel_size for view in views]))


def other_views(path: str, meta: dict, rig: Optional[dict]) -> Optional[str]:
    """A warning where a model meets views that it cannot know, else None.

    A network goes by what a finding looks like in pixels: one for 512 px on a
    detector finds little on 256 px, without an error. A quarter more or less
    at the isocentre is taken for the same.

    Args:
        path (str): Checkpoint, for the message.
        meta (dict): What it says of itself; that of a training holds the rig.
        rig (dict, optional): Content of ``rig.json`` of the views to come.

    Raises:
        UserError: One of the two is no rig.
    """
    trained = meta.get('dataset_meta', {}).get('rig')
    if not trained or not rig:
        return None
    expected = _pixel_size(trained, f'{path}: field "dataset_meta.rig"')
    found = _pixel_size(rig, 'rig of the views')
    if .8 * expected <= found <= 1.25 * expected:
        return None
    return (f'{path}: expected views as it was trained on, with pixels of '
            f'{expected:.2f} mm at the isocentre, found {found:.2f} mm: its '
            'figures do not hold for these')


def draw_prediction(path: str, found: Prediction) -> None:
    """Draw all views with the boxes."""
    rows = shown_views(found.ct2img, found.boxes)
    draw_views(found.shown[rows], found.ct2img[rows], path,
               names=[found.names[row] for row in rows],
               scores=found.scores, prediction=found.boxes)


def _write_boxes(path: Union[str, Path], found: Prediction,
                 classes: Sequence[str]) -> None:
    """Write ``boxes.json``."""
    dump_boxes(path, found.boxes, found.scores, found.labels, classes)


# -------------------------------------------------------------------- commands
def add_object_arguments(parser: argparse.ArgumentParser, what: Any) -> None:
    """Options of a command that finds boxes in views.

    Args:
        parser: Of the command.
        what: Its group of what to look at, of which one must be given.
    """
    what.add_argument(
        '--images', nargs='+', type=Path,
        help='an object each: a folder with one image per view, a file with '
        'all, or a .txt that lists the images; or a folder of such folders; '
        'or one image for each view, in the order of the rig')
    what.add_argument(
        '--watch', type=Path, help='folder whose sub-folders and files are '
        'objects, as of --images: those that are there and all that appear, '
        'until Ctrl-C')
    parser.add_argument('--rig', help='rig.json of --images or --watch')
    parser.add_argument('--out', help='boxes of one object as JSON')
    parser.add_argument(
        '--out-dir', type=Path, help='folder: of each object boxes as JSON '
        'and 3D Slicer markups and a report page, of all a CSV; of --watch a '
        'table of the objects, a report page and boxes of each')
    parser.add_argument(
        '--every', type=float, default=2., help='of --watch: seconds from '
        'one look to the next (default: %(default)s)')
    parser.add_argument(
        '--patience', type=float, default=60., help='of --watch: seconds '
        'after which an object that is not complete, or cannot be read, has '
        'failed until it changes (default: %(default)s)')
    parser.add_argument(
        '--trust-rig', action='store_true', help='do not look whether views '
        'are turned, mirrored or swapped against the rig')
    parser.add_argument('--score-thr', type=float, default=.1,
                        help='boxes below are left out (default: %(default)s)')
    add_reading_arguments(parser)


def check_object_arguments(args: argparse.Namespace) -> None:
    """Options that belong together.

    Raises:
        UserError: One is missing or too many.
    """
    files = [name for name in ('out', 'show') if hasattr(args, name)]
    if args.watch:
        if args.out_dir is None:
            raise UserError('--out-dir: expected with --watch, found none')
        for name in files:
            if getattr(args, name) is not None:
                raise UserError(f'--{name}: expected none with --watch, found '
                                f'{getattr(args, name)}')
    elif not (args.out or args.out_dir):
        # Not every command takes scans, or draws.
        given = '--images or --scan' if hasattr(args, 'scan') else '--images'
        raise UserError(f'--out: expected with {given}, or --out-dir, found '
                        'none')
    check_outputs(args, 'out_dir', *files)


def _tell(token: str, found: Prediction) -> None:
    """Warn of what an object's views differ in."""
    for told in found.told:
        print(f'{token}: warning: {told}', file=sys.stderr, flush=True)


def _rig_to_check(args: argparse.Namespace) -> Optional[str]:
    """The rig that views are compared with; None if it is trusted."""
    return None if args.trust_rig else args.rig


def find_boxes(args: argparse.Namespace,
               load: Callable[[Rig], Finder]) -> None:
    """Find and write the boxes of all objects of ``--images``.

    Args:
        args: See :func:`add_object_arguments`.
        load: Gives the model, for views of a rig; called when the first
            object has been read.

    Raises:
        UserError: An option or an object is not as it should be.
        DataError: There are no such objects.
    """
    rig, reading = read_rig(args), reading_of(args, LEVEL)
    objects = find_objects(args.images, len(rig), reading)
    show = getattr(args, 'show', None)
    if len(objects) > 1 and (args.out or show):
        names = '--out, --show' if hasattr(args, 'show') else '--out'
        raise UserError(f'{names}: expected one object, found {len(objects)}: '
                        '--out-dir takes them all')
    read = [read_views(next(iter(objects.values())), rig, reading)]
    finder = load(rig)
    refused, written = {}, []
    for token, places in objects.items():
        try:
            images, note = read.pop() if read else read_views(
                places, rig, reading)
            print(f'{token}: {note}')
            found = finder.predict(token, images, args.score_thr,
                                   _rig_to_check(args))
        except DataError as error:
            # The others are found all the same.
            refused[token] = str(error)
            print(f'{token}: refused: {error}', file=sys.stderr)
            continue
        _tell(token, found)
        written += write_found(args, token, found, finder, rig)
    if written:
        export(written, args.out_dir, ['csv', 'slicer'])
    if refused:
        name, reason = next(iter(refused.items()))
        raise UserError(f'{len(refused)} of {len(objects)} objects were '
                        f'refused, first {name}: {reason}')


def write_found(args: argparse.Namespace, token: str, found: Prediction,
                finder: Finder, rig: Optional[Rig] = None) -> List[Path]:
    """Write what was found in one object, as the options ask.

    Returns:
        list[Path]: Its boxes in ``--out-dir``, if that is asked for.
    """
    written = []
    if args.out:
        _write_boxes(args.out, found, finder.classes)
    if getattr(args, 'show', None):
        draw_prediction(args.show, found)
    if args.out_dir:
        written.append(Path(args.out_dir) / f'{token}.json')
        _write_boxes(written[0], found, finder.classes)
        write_found_report(
            Path(args.out_dir) / f'{token}.html', token, found,
            finder.classes, Path(finder.checkpoint).name, rig=rig)
    print(f'{args.out or Path(args.out_dir) / token}: '
          f'{len(found.boxes)} boxes')
    return written


def watch_folder(args: argparse.Namespace,
                 load: Callable[[Rig], Finder]) -> None:
    """Find the boxes of all objects that appear; ends by Ctrl-C or SIGTERM.

    Args:
        args: See :func:`add_object_arguments`.
        load: Gives the model, for views of a rig.

    Raises:
        UserError: See :func:`~projects.core.engine.watching.watch`.
    """
    # Not on every system.
    from projects.core.engine.watching import watch
    rig, reading = read_rig(args), reading_of(args, LEVEL)
    finder = load(rig)

    whole: dict = {}

    def ready(path: Path) -> Optional[str]:
        # A file that is being copied cannot be read.
        try:
            whole[path] = read_views([path], rig, reading)
        except (NotWhole, OSError) as error:
            return str(error)
        except DataError as error:  # it will not get better
            whole[path] = error
        return None

    def find(path: Path, out_dir: Path) -> dict:
        read = whole.pop(path)
        if isinstance(read, DataError):
            raise read
        images, note = read
        print(f'{path.name}: {note}', flush=True)
        found = finder.predict(path.name, images, args.score_thr,
                               _rig_to_check(args))
        _tell(path.name, found)
        _write_boxes(out_dir / 'boxes.json', found, finder.classes)
        write_found_report(
            out_dir / 'report.html', path.name, found, finder.classes,
            Path(finder.checkpoint).name, args.score_thr, rig)
        return dict(boxes=len(found.boxes), highest_score=round(
            float(found.scores.max()), 4) if len(found.boxes) else None,
            warning=' '.join(found.told))

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handled = failed = 0
    try:
        print(f'{args.watch}: watched; Ctrl-C ends', flush=True)
        for row in watch(args.watch, args.out_dir, ready, find, args.every,
                         args.patience):
            handled += 1
            failed += bool(row['error'])
            print(f'{row["object"]}: '
                  + (row['error'] or f'{row["boxes"]} boxes'), flush=True)
    except KeyboardInterrupt:
        print(f'ended: {handled} objects, {failed} of them failed')
