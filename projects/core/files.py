"""Files that are whole or not there, and JSON."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

__all__ = ['DataError', 'atomic_write', 'dump_json', 'load_json',
           'read_bytes', 'sha256_of']


class DataError(ValueError):
    """A file of a converted set is missing, damaged or contradicts itself."""


@contextmanager
def atomic_write(path: Union[str, Path], mode: str = 'wb') -> Iterator:
    """Open a temporary file beside ``path`` and move it there on success.

    Raises:
        OSError: With the path, as where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if 'b' in mode else 'utf-8'
    handle, temporary = tempfile.mkstemp(
        prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a data set is shared like any other.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:  # writing into a stream does not name it
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def dump_json(content, path: Union[str, Path]) -> None:
    """Write JSON atomically (no NaN, sorted as given)."""
    with atomic_write(path, 'w') as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.write('\n')


def load_json(path: Union[str, Path]):
    """Read JSON.

    Raises:
        DataError: The file is missing or not JSON.
    """
    content = read_bytes(path)
    try:
        return json.loads(content.decode('utf-8'))
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path}: is not JSON: {error}') from None


def read_bytes(path: Union[str, Path]) -> bytes:
    """Content of a file that must not be empty.

    Raises:
        DataError: The file is missing or empty, or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from None
    if not content:
        raise DataError(f'{path}: is empty')
    return content


def sha256_of(path: Union[str, Path]) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
