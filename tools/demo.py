"""make demo, make blade, make ct, make breast: embedded data, training of a
small config, test, pictures.

Each step is an ordinary command, shown before it runs; what is done is not
done again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, List, Optional

ROOT = Path(__file__).resolve().parent.parent


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
        'world', '--mu-per-value', '1e-4', '--rig', rig, '--sdd', '600',
        '--val-fraction', '.1', '--test-fraction', '.2', '--acquisition',
        'casting-225kV', '--out-dir', data, '--jobs', str(jobs))


def make_slices(data: str, jobs: int) -> None:
    """The embedded chest's CT slices."""
    run('1 of 3: the embedded data set (the CT slices of 120 phantom scans)',
        '-m', 'data_converters', 'benchmark', 'demo-v2', '--slices',
        '--out-dir', data, '--jobs', str(jobs))


def make_breasts(data: str, jobs: int) -> None:
    """Synthetic breasts, by way of the DICOM files that real ones come in."""
    dicom = f'{data}_dicom'
    if not (ROOT / dicom / 'truth.json').exists():
        run('1 of 3: synthetic breasts (120 patients, two views of each '
            'breast), as DICOM', '-m', 'data_converters', 'breast',
            '--out-dir', dicom, '--num-patients', '120', '--image-size',
            '256', '--seed', '0', '--jobs', str(jobs))
    run('1 of 3: their images and findings', '-m', 'data_converters',
        'mammograms', '--dicom-root', dicom, '--out-dir', data,
        '--image-size', '256', '--jobs', str(jobs))


@dataclass
class Demo:
    """What is found, in what; some detectors start from another, ``first``."""
    config: str
    make: Callable[[str, int], None]
    how: str  # training begins
    held_out: str
    options: List[str] = field(default_factory=list)
    first: str = ''


DEMOS = {
    'demo-v2': Demo(
        'configs/mv2d_xray/mv2d-xray_small_volume_400i_demo-v2.py',
        make_chests, 'from the released weights', 'phantoms', ['--amp']),
    'blade': Demo(
        'configs/mv2d_xray/mv2d-xray_small_volume_600i_blade.py',
        make_blades, 'from scratch', 'blades'),
    'ct': Demo(
        'configs/ct_slices/'
        'faster-rcnn_small_neighbours_1500i_demo-v2-slices.py',
        make_slices, 'from scratch', 'phantoms', ['--amp']),
    'breast': Demo(
        'configs/ag_rcnn/ag-rcnn_small_500i_breast.py', make_breasts,
        'from Mask R-CNN', 'patients', ['--amp'],
        'configs/ag_rcnn/mask-rcnn_small_1500i_breast.py'),
}


def train(how: str, config: str, work: Path, data: str,
          options: List[str]) -> None:
    """Leave a trained detector as ``final.pth`` in its folder."""
    last = ROOT / work / 'final.pth'
    if last.exists():
        print(f'\n== 2 of 3: training, {how}, is done, see {last}')
        return
    run(f'2 of 3: training, {how}', 'tools/train.py', config, '--work-dir',
        str(work), '--data-root', data, '--resume', *options)
    newest = (ROOT / work / 'last_checkpoint').read_text().strip()
    os.replace(newest, last)


def shown(results: Path) -> str:
    """A test's table."""
    from projects.core.evaluation.metric_images import table_of_images
    from projects.core.files import load_json
    from projects.core.results import load_results, table_of
    content = load_json(results)
    return (table_of_images(content) if 'images' in content
            else table_of(load_results(results)))


def main(argv: Optional[List[str]] = None) -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', choices=list(DEMOS),
                        default='demo-v2',
                        help='chests, turbine blades, the CT slices of '
                        'chests, or breasts (default: %(default)s)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='processes that make the data')
    parser.add_argument('--data-root', help='default: data/NAME')
    parser.add_argument('--work-dir', help='default: work_dirs/NAME')
    args = parser.parse_args(argv)
    demo = DEMOS[args.name]
    data = args.data_root or f'data/{args.name}'
    work = Path(args.work_dir or f'work_dirs/{args.name}')
    start = time.monotonic()
    demo.make(data, args.jobs)
    start_from: List[str] = []
    if demo.first:
        train('the first detector, from scratch', demo.first, work / 'first',
              data, demo.options)
        start_from = ['--cfg-options',
                      f'load_from={work / "first" / "final.pth"}']
    last = ROOT / work / 'final.pth'
    train(demo.how, demo.config, work, data, [*demo.options, *start_from])
    results, pictures = work / 'results.json', work / 'pictures'
    done = ROOT / results
    if not done.exists() or done.stat().st_mtime < last.stat().st_mtime:
        run(f'3 of 3: test on held-out {demo.held_out}',
            'tools/test.py', demo.config, str(last), '--work-dir', str(work),
            '--data-root', data, '--out', str(results),
            '--show-dir', str(pictures), *demo.options)
    else:
        print(f'\n== 3 of 3: the test is done, see {results}')
        print(shown(done))
    spent = int(time.monotonic() - start)
    print(f'\nThe demo took {spent // 60} min {spent % 60} s.\n'
          f'Figures:  {results}\nPictures: {pictures}/ (green: true, dashed '
          'red: found)', flush=True)


if __name__ == '__main__':
    main()
