"""Put detectors side by side by the maps of their boxes (document 002).

    python benchmarks/explained.py work_dirs/*/explain/explain.json

The figures of tools/explain.py on what all detectors hit: the same finding of
the same scan, and in it the same image where boxes are of images. Set, split,
seed and stage must be the same. Each figure has its 95 % interval of resampled
scans; so has its difference to the first detector's, on the same resamples.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from terminaltables import AsciiTable

from projects.core.engine.command_line import one_sentence
from projects.core.evaluation.ranking import bootstrap_weights, with_interval
from projects.core.files import DataError, load_json

FIGURES = ('gain', 'deletion', 'insertion')
SAME = ('stage', 'ann_file', 'split', 'seed')


def name_of(path: Path) -> str:
    """A detector is named by its folder."""
    return (path.parent if path.parent.name != 'explain'
            else path.parent.parent).name


def figures_of(path: Path, told: dict) -> Dict[tuple, dict]:
    """Means over the boxes of each hit: by scan, image and finding, then by
    map and figure.

    Raises:
        DataError: It is not what tools/explain.py writes.
    """
    boxes: Dict[tuple, list] = {}
    try:
        for box in told['findings']:
            key = box['token'], box['view'], box['finding']
            boxes.setdefault(key, []).append({
                name: [float(values[figure]) for figure in FIGURES]
                for name, values in box['methods'].items()})
        return {key: {name: np.mean([one[name] for one in each], 0)
                      for name in each[0]} for key, each in boxes.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: field {error}: expected the figures of '
                        'tools/explain.py, found none') from None


def resampled_means(values: np.ndarray, scans: List[str],
                    bootstrap: int = 1000, seed: int = 0) -> np.ndarray:
    """Means of figures as they are, and of resamples of scans.

    Args:
        values: (hits, figures).
        scans: That each is of.
        bootstrap: Resamples.
        seed: Of the resampling.

    Returns:
        np.ndarray: (1 + bootstrap, figures).
    """
    names, rows = np.unique(scans, return_inverse=True)
    weights = np.concatenate([
        np.ones((1, len(names))),
        bootstrap_weights(len(names), bootstrap, seed)])[:, rows]
    return weights @ values / weights.sum(1, keepdims=True)


def rows_of(names: List[str], found: List[Dict[tuple, dict]],
            boxes: List[int], common: List[tuple]) -> List[list]:
    """A row for each detector and map, and one for its difference to the
    first, on hits that all have."""
    scans = [key[0] for key in common]
    kinds = [kind for kind in found[0][common[0]]
             if all(kind in each[key] for each in found for key in common)]
    rows = []
    for kind in kinds:
        means = [resampled_means(np.stack([each[key][kind] for key in common]),
                                 scans) for each in found]
        for name, number, mean in zip(names, boxes, means):
            rows.append([name, kind, number, *_cells(mean)])
        for name, mean in zip(names[1:], means[1:]):
            rows.append([f'{name} less {names[0]}', kind, '',
                         *_cells(mean - means[0], '+')])
    return rows


def _cells(means: np.ndarray, sign: str = '') -> List[str]:
    return ['{:{s}.2f} [{:{s}.2f}, {:{s}.2f}]'.format(
        *with_interval(column), s=sign) for column in means.T]


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Read, check that they can be compared, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('explained', nargs='+', type=Path,
                        help='explain.json of each detector')
    args = parser.parse_args(argv)
    every = [(path, load_json(path)) for path in args.explained]
    for path, told in every:
        for key in SAME:
            first = every[0][1].get(key)
            if key not in told or told[key] != first:
                raise DataError(
                    f'{path}: field "{key}": expected '
                    + (f'{first!r} as in {every[0][0]}' if first is not None
                       else 'what tools/explain.py says')
                    + f', found {told.get(key, "none")!r}')
    found = {path: figures_of(path, told) for path, told in every}
    for path, told in every:
        if not found[path]:
            print(f'{path}: 0 boxes, of {told.get("hits", 0)} that hit in '
                  'all scans: left out')
    found = {path: each for path, each in found.items() if each}
    common = sorted(set.intersection(*map(set, found.values())), key=str
                    ) if found else []
    if not common:
        raise DataError(f'{args.explained[0]}: findings: expected one that '
                        'the detectors hit in the same image, found none')
    rows = rows_of([name_of(path) for path in found], list(found.values()),
                   [len(told['findings']) for path, told in every
                    if path in found], common)
    print(AsciiTable(
        [['detector', 'map', 'boxes', *FIGURES], *rows],
        f'{len(common)} hits that all have, of {len({k[0] for k in common})} '
        f'scans, boxes of the {every[0][1]["stage"]} stage').table)


if __name__ == '__main__':
    main()
