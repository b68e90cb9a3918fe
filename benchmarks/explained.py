"""Put detectors side by side by the maps of their boxes (document 002).

    python benchmarks/explained.py work_dirs/*/explain/explain.json

The figures of tools/explain.py, each with its 95 % interval. Maps of one kind
can be compared between detectors where set, split, seed and stage are the
same; boxes are each detector's own.
"""

import argparse
from pathlib import Path
from typing import List, Optional

from terminaltables import AsciiTable

from projects.core.engine.command_line import one_sentence
from projects.core.files import DataError, load_json

FIGURES = ('gain', 'deletion', 'insertion')
SAME = ('stage', 'split', 'seed')


def rows_of(path: Path, told: dict) -> List[list]:
    """A row for each kind of map; the detector is named by its folder."""
    try:
        return [[path.parent.name if path.parent.name != 'explain' else
                 path.parent.parent.name, name, len(told['findings']), *(
                     '-' if values[key]['mean'] is None else
                     '{mean:.2f} [{low:.2f}, {high:.2f}]'.format(**values[key])
                     for key in FIGURES)]
                for name, values in told['summary'].items()]
    except (KeyError, TypeError) as error:
        raise DataError(f'{path}: field {error}: expected the figures of '
                        'tools/explain.py, found none') from None


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Read, check that they can be compared, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('explained', nargs='+', type=Path,
                        help='explain.json of each detector')
    args = parser.parse_args(argv)
    every = [(path, load_json(path)) for path in args.explained]
    rows = [row for path, told in every for row in rows_of(path, told)]
    first = every[0][1]
    for path, told in every:
        for key in SAME:
            if told.get(key) != first.get(key):
                raise DataError(f'{path}: field "{key}": expected '
                                f'{first.get(key)!r} as in {every[0][0]}, '
                                f'found {told.get(key)!r}')
    rows.sort(key=lambda row: row[1])  # the detectors, map by map
    print(AsciiTable([['detector', 'map', 'boxes', *FIGURES], *rows],
                     f'boxes of the {first["stage"]} stage').table)


if __name__ == '__main__':
    main()
