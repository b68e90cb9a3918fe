"""Objects that appear in a folder, each handled once."""

import csv
import fcntl
import logging
import signal
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from projects.core.engine.command_line import UserError
from projects.core.files import DataError, atomic_write, dump_json, load_json
from projects.core.projections import images_of

__all__ = ['watch']

_COLUMNS = ('object', 'time', 'boxes', 'highest_score', 'report', 'error',
            'warning')
_LOG = logging.getLogger(__name__)


def watch(folder: Path, out_dir: Path, ready: Callable[[Path], Optional[str]],
          find: Callable[[Path, Path], dict], every: float = 2.,
          patience: float = 60.) -> Iterator[dict]:
    """Handle the objects of a folder as they appear; never ends.

    A sub-folder is one object, and so is a file with images, by their names.
    It is handled when nothing in it changed from one look to the next and
    ``ready`` misses nothing; what stays unready for ``patience`` fails, until
    it changes.

    What was handled is in ``out_dir/journal.json``, written anew after each
    object: whatever is killed, an object is in it and done, or not in it and
    begun again. ``out_dir/objects.csv`` is the same as a table.

    Args:
        folder: To be watched.
        out_dir: Folder to write to; what is found in an object goes below
            ``objects/<name>``.
        ready: Says in a sentence what an object still lacks, else None.
        find: Takes an object and the folder of its results; returns
            ``boxes`` (their number), ``highest_score``, or None for it, and
            perhaps ``warning``.
        every: Seconds from one look to the next.
        patience: Seconds.

    Yields:
        dict: The row of each object handled: object, time, boxes,
        highest_score, report (below ``out_dir``), error and warning, ''
        where there is none.

    Raises:
        UserError: There is no such folder, the results would be in it, or
            another process writes to ``out_dir``.
        DataError: The journal is damaged.
        OSError: The results cannot be written.
        ValueError: It does not run in the main thread.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: --watch: expected a folder, found none')
    if out_dir.resolve().is_relative_to(folder.resolve()):
        raise UserError(f'{out_dir}: --out-dir: expected a folder outside of '
                        f'the watched {folder}, found one in it')
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f'{out_dir}: --out-dir: expected one process that '
                            'writes to it, found another') from None
        journal = _load(out_dir / 'journal.json')
        _write_table(journal, out_dir)  # may be of before the last object
        yield from _handle_all(folder, out_dir, journal, ready, find, every,
                               patience)


def _handle_all(folder: Path, out_dir: Path, journal: Dict[str, dict],
                ready: Callable[[Path], Optional[str]],
                find: Callable[[Path, Path], dict], every: float,
                patience: float) -> Iterator[dict]:
    # Of what is not handled: how it looked, and since when (s).
    seen: Dict[str, Tuple[list, float]] = {}
    told = set()  # of what was handled and then changed
    while True:
        for path in _objects(folder):
            look = _look(path)
            if path.name in journal and not (
                    journal[path.name].get('unready')
                    and look != journal[path.name]['files']):
                if (look and look != journal[path.name]['files']
                        and path.name not in told):
                    told.add(path.name)
                    _LOG.warning('%s: has changed after it was handled: it '
                                 'is not handled again; give it another name',
                                 path)
                continue
            before, since = seen.get(path.name, (None, 0.))
            if not look or look != before:
                seen[path.name] = look, time.monotonic()
                continue
            lacks = ready(path)
            if lacks and time.monotonic() - since < patience:
                continue
            row = _handle(path, out_dir, lacks, find)
            del seen[path.name]
            if not path.exists():  # taken away while it was read
                continue
            journal[path.name] = dict(row, files=look,
                                      unready=bool(lacks))
            with _interrupts_wait():
                dump_json(journal, out_dir / 'journal.json')
                _write_table(journal, out_dir)
                yield row
        time.sleep(every)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM come afterwards: what is written is told, too."""
    came: List[int] = []
    before = {kind: signal.signal(kind, lambda number, _: came.append(number))
              for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    for number in came:
        signal.raise_signal(number)


def _handle(path: Path, out_dir: Path, lacks: Optional[str],
            find: Callable[[Path, Path], dict]) -> dict:
    """An object's row."""
    row = dict(object=path.name, time=datetime.now().isoformat(
        timespec='seconds'), boxes=None, highest_score=None, report='',
        error=lacks or '', warning='')
    if lacks:
        return row
    place = Path('objects') / path.name
    try:
        row.update(find(path, out_dir / place),
                   report=str(place / 'report.html'))
    except (DataError, UserError) as error:
        row['error'] = str(error)
    except OSError:  # of the results' disk: the next would fail, too
        raise
    except Exception as error:  # of one object, whatever it is
        row['error'] = f'{path}: {type(error).__name__}: {error}'.splitlines(
            )[0]
    return row


def _objects(folder: Path) -> list:
    try:
        return sorted([*images_of(folder), *(
            p for p in folder.iterdir()
            if p.is_dir() and not p.name.startswith('.'))])
    except (DataError, OSError):  # one has just gone
        return []


def _look(path: Path) -> list:
    """Names, sizes and times of a file or of what is in a folder; empty where
    it is gone or changes."""
    try:
        return sorted(
            [str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns]
            for p in (path.rglob('*') if path.is_dir() else [path])
            if p.is_file())
    except OSError:
        return []


def _load(path: Path) -> Dict[str, dict]:
    if not path.exists():
        return {}
    journal = load_json(path)
    if not isinstance(journal, dict) or not all(
            isinstance(row, dict)
            and {'files', *_COLUMNS} - {'warning'} <= set(row)
            for row in journal.values()):
        raise DataError(f'{path}: expected the journal of a watch, found '
                        'another file')
    return journal


def _write_table(journal: Dict[str, dict], out_dir: Path) -> None:
    with atomic_write(out_dir / 'objects.csv', 'w') as stream:
        table = csv.DictWriter(stream, _COLUMNS, extrasaction='ignore',
                               lineterminator='\n')
        table.writeheader()
        table.writerows(journal.values())
