"""Visits: each has the files of one object, a place in the queue, and what
was found; all of it is deleted when the visit ends.

One thread finds boxes, as there is one model. All else may be called from
any thread.
"""

import logging
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Set

from projects.core.engine.command_line import UserError
from projects.core.files import DataError
from projects.core.projections import LEVEL, Reading
from projects.core.rig import Rig
from projects.core.serve.uploads import (
    IMAGES,
    check_image,
    check_name,
    corrections,
    load_rig,
    order_images,
)

__all__ = ['Busy', 'Finder', 'Gone', 'Limits', 'TooMuch', 'Visit', 'Visits']

_LOG = logging.getLogger(__name__)

Finder = Callable[[Sequence[Path], Rig, Path, str, Reading], List[str]]
"""Finds the boxes of one object.

Takes an image for each view of the rig, or a file with all, the rig, a
folder, the object's name, and how images become line integrals; writes
``<name>.json`` (boxes) and ``report.html`` there; returns lines
for the person. What it refuses is a DataError or UserError.
"""


class Gone(Exception):
    """No such visit: it has ended, or never was."""


class Busy(Exception):
    """There are too many visits, or too much is held for them."""


class TooMuch(Exception):
    """More is sent than the limits allow."""


@dataclass(frozen=True)
class Limits:
    """What a visit may send and how long it is kept.

    Attributes:
        file_bytes: Of one file.
        total_bytes: Of the files of one visit.
        files: Of one visit.
        pixels: Of all views of a rig together.
        visits: At once.
        held_bytes: Of all visits together.
        minutes: That a visit is kept after it was last heard of.
        stalled: Seconds that a sender may be silent.
    """
    file_bytes: int = 64 * 2**20
    total_bytes: int = 512 * 2**20
    files: int = 128
    pixels: int = 2**27
    visits: int = 32
    held_bytes: int = 4 * 2**30
    minutes: float = 30.
    stalled: float = 30.


@dataclass
class Visit:
    """One object of one person.

    Attributes:
        token: The visit's secret.
        folder: Its files are in ``files``, what was found in ``found``.
        state: ``open``, ``waiting``, ``working``, ``done`` or ``failed``.
        told: Lines for the person; of a failed visit its one sentence.
        object_name, rig_name, reading: What the person said.
        files: Names, and which of them are whole.
        size: Bytes.
        touched: When it was last heard of (s).
    """
    token: str
    folder: Path
    touched: float
    state: str = 'open'
    told: List[str] = field(default_factory=list)
    object_name: str = 'object'
    rig_name: Optional[str] = None
    reading: Reading = field(default_factory=Reading)
    files: Dict[str, bool] = field(default_factory=dict)
    size: int = 0


class Visits:
    """All visits.

    Args:
        root: Folder for files; what is in it is deleted with the visits.
        finder: See :data:`Finder`.
        rigs: That a person may pick, by name.
        limits: See there.
    """

    def __init__(self, root: Path, finder: Finder, rigs: Dict[str, Rig],
                 limits: Limits) -> None:
        self.root, self.limits, self.rigs = root, limits, rigs
        self._finder = finder
        self._visits: Dict[str, Visit] = {}
        self._queue: List[Visit] = []
        self._left: Set[str] = set()  # while the model works on them
        self._held = 0
        self._changed = threading.Condition(threading.RLock())
        self._ended = False
        self._worker = threading.Thread(target=self._work, daemon=True)

    # ------------------------------------------------------------ their life
    def start(self) -> None:
        """Begin to work."""
        self._worker.start()

    def end(self) -> None:
        """Delete all; what is being worked on is waited for, but not long."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            for token in list(self._visits):
                self.leave(token)
        self._worker.join(10)

    def open(self) -> Visit:
        """A new visit.

        Raises:
            Busy: There are as many as there may be.
        """
        with self._changed:
            if len(self._visits) >= self.limits.visits:
                raise Busy
            token = secrets.token_urlsafe(24)
            visit = Visit(token, self.root / secrets.token_hex(8),
                          time.monotonic())
            (visit.folder / 'files').mkdir(parents=True)
            self._visits[token] = visit
            return visit

    def get(self, token: str) -> Visit:
        """A visit that is heard of.

        Raises:
            Gone: There is none.
        """
        with self._changed:
            if token not in self._visits:
                raise Gone
            visit = self._visits[token]
            visit.touched = time.monotonic()
            return visit

    def leave(self, token: str) -> None:
        """End a visit, if there is one, and delete its files."""
        with self._changed:
            visit = self._visits.pop(token, None)
            if visit is None:
                return
            self._held -= visit.size
            if visit in self._queue:
                self._queue.remove(visit)
            if visit.state == 'working':
                self._left.add(token)  # its files are in use
            else:
                shutil.rmtree(visit.folder, ignore_errors=True)

    def sweep(self) -> None:
        """End the visits that were not heard of for too long."""
        oldest = time.monotonic() - 60 * self.limits.minutes
        with self._changed:
            for token, visit in list(self._visits.items()):
                if visit.touched < oldest and visit.state != 'working':
                    self.leave(token)

    # ----------------------------------------------------------- their files
    def begin_file(self, token: str, name: str) -> Path:
        """Place for a file that is about to come.

        Raises:
            DataError: By its name it is none that is taken, or came already.
            TooMuch: There are as many as there may be.
            Gone: There is no such visit.
        """
        check_name(name)
        with self._changed:
            visit = self.get(token)
            if visit.state != 'open':
                raise DataError(f'{name}: expected before the boxes are '
                                'looked for, found after it')
            if name in visit.files:
                raise DataError(f'{name}: expected once, found twice')
            if len(visit.files) >= self.limits.files:
                raise TooMuch(f'files: expected at most {self.limits.files}, '
                              'found more')
            visit.files[name] = False
            return visit.folder / 'files' / name

    def take(self, token: str, name: str, count: int) -> None:
        """Count the bytes of a file that have come, before they are kept.

        Raises:
            TooMuch: Of the file or the visit.
            Busy: All visits together have as much as they may.
            Gone: The visit has ended in between.
        """
        limits = self.limits
        with self._changed:
            visit = self.get(token)
            if visit.size + count > limits.total_bytes:
                raise TooMuch(f'{name}: expected at most '
                              f'{limits.total_bytes / 2**20:g} MB in all '
                              'files, found more')
            if self._held + count > limits.held_bytes:
                raise Busy
            visit.size += count
            self._held += count

    def end_file(self, token: str, name: str, size: int, whole: bool) -> None:
        """A file has come, or only a part of it, which is deleted.

        Raises:
            Gone: The visit has ended in between.
        """
        with self._changed:
            visit = self.get(token)
            visit.files[name] = whole
            if not whole:
                del visit.files[name]
                visit.size -= size
                self._held -= size

    # --------------------------------------------------------------- to find
    def run(self, token: str, object_name: str, rig_name: Optional[str],
            reading: Optional[dict] = None) -> None:
        """Put a visit into the queue; ``reading`` has fields of a
        :class:`~projects.core.projections.Reading`.

        Raises:
            DataError: It is there already, its files have not all come,
                there is no such rig, or ``reading`` is none.
            Gone: There is no such visit.
        """
        with self._changed:
            visit = self.get(token)
            if visit.state != 'open':
                raise DataError('expected to be asked once, found twice')
            if not all(visit.files.values()):
                raise DataError('files: expected whole ones, found some that '
                                'are still being sent')
            if rig_name is not None and rig_name not in self.rigs:
                raise DataError(f'rig: expected one of those given, found '
                                f'{rig_name[:60]!r}')
            others = corrections([
                visit.folder / 'files' / name for name in sorted(visit.files)
                if not name.lower().endswith('.json')])
            visit.reading = Reading(
                dark=list(map(str, others['dark'])),
                flat=list(map(str, others['flat'])), png_scale=LEVEL,
                **(reading or {}))
            visit.object_name, visit.rig_name = object_name, rig_name
            visit.state = 'waiting'
            self._queue.append(visit)
            self._changed.notify_all()

    def position(self, visit: Visit) -> int:
        """How many are before a visit that waits, the one that is worked on
        included."""
        with self._changed:
            working = any(v.state == 'working'
                          for v in self._visits.values()) or self._left
            return (self._queue.index(visit) if visit in self._queue else 0
                    ) + bool(working)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._ended):
                    self._changed.wait()
                if self._ended:
                    return
                visit = self._queue.pop(0)
                visit.state = 'working'
            state, told = 'done', []
            try:
                told = self._find(visit)
            except (DataError, UserError) as error:
                state, told = 'failed', [self._without_paths(visit, error)]
            except Exception:  # the next visit must not suffer
                _LOG.exception('a visit failed')
                state, told = 'failed', ['The boxes could not be looked for: '
                                         'the log of the server says why']
            with self._changed:
                visit.told, visit.state = told, state
                if visit.token in self._left:
                    self._left.discard(visit.token)
                    shutil.rmtree(visit.folder, ignore_errors=True)

    def _find(self, visit: Visit) -> List[str]:
        folder = visit.folder / 'files'
        paths = [folder / name for name in sorted(visit.files)]
        images = [p for p in paths if p.suffix.lower() in IMAGES]
        rigs = [p for p in paths if p not in images]
        others = [p for some in corrections(images).values() for p in some]
        images = [p for p in images if p not in others]
        if visit.rig_name is not None:
            rig = self.rigs[visit.rig_name]
        elif len(rigs) == 1:
            rig = load_rig(rigs[0], self.limits.pixels, self.limits.files)
        else:
            raise DataError('rig: expected rig.json beside the images, found '
                            + ('none' if not rigs else ', '.join(
                                p.name for p in rigs)))
        ordered, told = order_images(images, rig)
        for path, view in zip(ordered, rig.views):
            check_image(path, view.width, view.height)
        for path in others:
            check_image(path, rig.views[0].width, rig.views[0].height)
        found = visit.folder / 'found'
        found.mkdir()
        return told + self._finder(ordered, rig, found, visit.object_name,
                                   visit.reading)

    def _without_paths(self, visit: Visit, error: Exception) -> str:
        """A sentence that names files as the person does."""
        text = str(error).replace(f'{visit.folder}/files/', '')
        text = text.replace(f'{self.root}/', '')
        return text if str(self.root)[:60] not in text else (
            'images: expected ones that can be read, found others')
