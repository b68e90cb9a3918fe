"""The command `rig`: its tables, and what it refuses."""

import csv

import pytest

from data_converters.__main__ import main

BEADS = ('view', 'u', 'v', 'x', 'y', 'z')


def refusal(*arguments):
    """The one sentence that a wrong call ends in."""
    with pytest.raises(SystemExit) as stop:
        main(['rig', *map(str, arguments)])
    assert isinstance(stop.value.code, str)
    assert '\n' not in stop.value.code
    return stop.value.code


def write(path, header, rows):
    """A table as CSV."""
    with open(path, 'w', newline='') as stream:
        csv.writer(stream).writerows([header, *rows])
    return path
