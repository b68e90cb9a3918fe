"""make demo, make blade: embedded data, training of a small config, 3D test,
pictures.

Each step is an ordinary command, shown before it runs; what is done is not
done again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
CHEST = 'configs/mv2d_xray/mv2d-xray_small_volume_400i_demo-v2.py'
PART = 'configs/mv2d_xray/mv2d-xray_small_volume_600i_blade.py'


def run(title: str, *command: str) -> None:
    """Run one step; its failure is the demo's."""
    print(f'\n== {title}\n   {shlex.join(["python", *command])}', flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        sys.exit(f'demo: "{title}" failed with exit status {code}')
    spent = int(time.monotonic() - start)
    print(f'   {spent // 60} min {spent % 60} s', flush=True)


def make_chests(data: str, jobs: int) -> None:
    """The embedded chest."""
    run('1 of 3: the embedded data set (120 phantom scans, 10 X-ray views '
        'each)', '-m', 'data_converters', 'benchmark', 'demo-v2', '--out-dir',
        data, '--jobs', str(jobs))


def make_blades(data: str, jobs: int) -> None:
    """The embedded part, by the commands that a real one needs."""
    volumes = f'{data}_ct'
    rig = f'{volumes}/rig.json'
    if not (ROOT / volumes / 'boxes.csv').exists():
        run('1 of 3: turbine blades (60 volumes and their defects)', '-m',
            'data_converters', 'blade', '--out-dir', volumes, '--num-parts',
            '60', '--seed', '0')
    if not (ROOT / rig).exists():
        run('1 of 3: the geometry of ten views', '-m', 'data_converters',
            'rig', '--circle', '10', '--radius', '300', '--sdd', '600',
            '--image-size', '256', '--pixel-mm', '1', '--out', rig)
    run('1 of 3: their X-ray views', '-m', 'data_converters', 'volume',
        '--volume', volumes, '--boxes', f'{volumes}/boxes.csv', '--box-frame',
        'world', '--mu-per-value', '1e-4', '--rig', rig, '--val-fraction',
        '.1', '--test-fraction', '.2', '--acquisition', 'casting-225kV',
        '--out-dir', data, '--jobs', str(jobs))


def main(argv: Optional[List[str]] = None) -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--part', action='store_true',
                        help='turbine blades instead of chests')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='processes that make the data')
    parser.add_argument('--data-root',
                        help='default: data/demo-v2, data/blade')
    parser.add_argument('--work-dir',
                        help='default: work_dirs/demo-v2, work_dirs/blade')
    args = parser.parse_args(argv)
    name = 'blade' if args.part else 'demo-v2'
    config = PART if args.part else CHEST
    data = args.data_root or f'data/{name}'
    work = Path(args.work_dir or f'work_dirs/{name}')
    start = time.monotonic()
    (make_blades if args.part else make_chests)(data, args.jobs)
    last = ROOT / work / 'final.pth'
    if not last.exists():
        how = 'from scratch' if args.part else 'from the released weights'
        run(f'2 of 3: training, {how}', 'tools/train.py', config,
            '--work-dir', str(work), '--data-root', data, '--resume')
        newest = (ROOT / work / 'last_checkpoint').read_text().strip()
        os.replace(newest, last)
    else:
        print(f'\n== 2 of 3: training is done, see {last}')
    results, pictures = work / 'results.json', work / 'pictures'
    done = ROOT / results
    if not done.exists() or done.stat().st_mtime < last.stat().st_mtime:
        what = 'blades' if args.part else 'phantoms'
        run(f'3 of 3: test on held-out {what}',
            'tools/test.py', config, str(work / 'final.pth'), '--work-dir',
            str(work), '--data-root', data, '--out', str(results),
            '--show-dir', str(pictures))
    else:
        print(f'\n== 3 of 3: the test is done, see {results}')
        from projects.core.results import load_results, table_of
        print(table_of(load_results(done)))
    spent = int(time.monotonic() - start)
    print(f'\nThe demo took {spent // 60} min {spent % 60} s.\n'
          f'Figures:  {results}\nPictures: {pictures}/ (green: true, dashed '
          'red: found)', flush=True)


if __name__ == '__main__':
    main()
