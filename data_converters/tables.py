"""Tables that people write: CSV with a header, or a JSON list of objects."""

import csv
import io
import json
import math
from pathlib import Path
from typing import List, Optional, Sequence

from .scan import ConversionError

__all__ = ['Row', 'read_table']


class Row(dict):
    """One row: text by column; knows its place, for errors.

    Attributes:
        where: File and row.
    """

    def __init__(self, values: dict, where: str) -> None:
        super().__init__(values)
        self.where = where

    def fail(self, column: str, expected: str) -> ConversionError:
        """The error that a column has another value than expected."""
        return ConversionError(f'{self.where}: column "{column}": expected '
                               f'{expected}, found "{self.get(column, "")}"')

    def number(self, column: str, positive: bool = False) -> float:
        """A finite number.

        Raises:
            ConversionError: It is not one.
        """
        try:
            value = float(self[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (positive and value <= 0):
            raise self.fail(column, 'a positive number' if positive
                            else 'a finite number')
        return value

    def numbers(self, columns: Sequence[str]) -> List[float]:
        """Several of :meth:`number`."""
        return [self.number(column) for column in columns]

    def count(self, column: str) -> int:
        """A positive whole number.

        Raises:
            ConversionError: It is not one.
        """
        value = self.number(column)
        if value != int(value) or value <= 0:
            raise self.fail(column, 'a positive whole number')
        return int(value)


def read_table(path: Path, required: Sequence[str],
               optional: Sequence[str] = ()) -> List[Row]:
    """Rows of a CSV file, or of a JSON file with a list of objects.

    Args:
        path (Path): ``.json``, or anything else for CSV with a header.
        required (Sequence[str]): Columns that must be there.
        optional (Sequence[str]): Columns that may be there; no others may.

    Raises:
        ConversionError: The file cannot be read, or its columns are others.
    """
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise ConversionError(
            f'{path}: cannot be read: {error.strerror}') from None
    except UnicodeDecodeError:
        raise ConversionError(f'{path}: expected text in UTF-8, found other '
                              'bytes') from None
    as_json = Path(path).suffix.lower() == '.json'
    rows = _json_rows(path, text) if as_json else _csv_rows(path, text)
    for row in rows:
        _check_columns(row, row.where, required, optional)
    if not as_json and not rows:
        header = next(csv.reader(io.StringIO(text)), [])
        _check_columns([c.strip() for c in header], f'{path}: header',
                       required, optional)
    return rows


def _check_columns(found, where: str, required: Sequence[str],
                   optional: Sequence[str]) -> None:
    for column in required:
        if column not in found:
            raise ConversionError(
                f'{where}: column "{column}": expected it among '
                f'{", ".join(required)}, found {", ".join(found) or "none"}')
    for column in found:
        if column not in required and column not in optional:
            raise ConversionError(
                f'{where}: column "{column}": expected only '
                f'{", ".join([*required, *optional])}')


def _csv_rows(path: Path, text: str) -> List[Row]:
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ConversionError(f'{path}: is not CSV: {error}') from None
    header: Optional[List[str]] = None
    rows = []
    for number, cells in enumerate(lines, 1):
        cells = [c.strip() for c in cells]
        if not any(cells):
            continue
        where = f'{path}: row {number}'
        if header is None:
            header = cells
            if len(set(header)) != len(header):
                raise ConversionError(f'{where}: header: expected different '
                                      f'columns, found {", ".join(header)}')
        elif len(cells) != len(header):
            raise ConversionError(f'{where}: expected {len(header)} columns, '
                                  f'found {len(cells)}')
        else:
            rows.append(Row(dict(zip(header, cells)), where))
    return rows


def _json_rows(path: Path, text: str) -> List[Row]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConversionError(f'{path}: is not JSON: {error}') from None
    if not isinstance(content, list) or not all(
            isinstance(item, dict) for item in content):
        raise ConversionError(f'{path}: top level: expected a list of objects,'
                              f' found {type(content).__name__}')
    rows = []
    for index, item in enumerate(content):
        where = f'{path}: [{index}]'
        for key, value in item.items():
            if isinstance(value, bool) or not isinstance(
                    value, (str, int, float)):
                raise ConversionError(
                    f'{where}: column "{key}": expected a number or text, '
                    f'found {json.dumps(value)}')
        rows.append(Row({k: str(v).strip() for k, v in item.items()}, where))
    return rows
