"""make demo: embedded data, training of the small config, 3D test, pictures.

Each step is an ordinary command, shown before it runs; what is done is not
done again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'configs/mv2d-xray_quick_roi-volume_phantom.py'


def run(title: str, *command: str) -> None:
    """Run one step; its failure is the demo's."""
    print(f'\n== {title}\n   {shlex.join(["python", *command])}', flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        sys.exit(f'demo: "{title}" failed with exit status {code}')
    spent = int(time.monotonic() - start)
    print(f'   {spent // 60} min {spent % 60} s', flush=True)


def main() -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='processes that make the data')
    parser.add_argument('--data-root', default='data/demo')
    parser.add_argument('--work-dir', default='work_dirs/demo')
    args = parser.parse_args()
    data, work = args.data_root, Path(args.work_dir)
    start = time.monotonic()
    run('1 of 3: the embedded data set (120 phantom scans, 10 X-ray views '
        'each)', '-m', 'data_converters', 'benchmark', 'demo', '--out-dir',
        data, '--jobs', str(args.jobs))
    last = ROOT / work / 'final.pth'
    if not last.exists():
        run('2 of 3: training from scratch', 'tools/train.py',
            CONFIG, '--work-dir', str(work), '--data-root', data, '--resume',
            '--cfg-options', 'train_cfg.val_interval=1000000')
        newest = (ROOT / work / 'last_checkpoint').read_text().strip()
        os.replace(newest, last)
    else:
        print(f'\n== 2 of 3: training is done, see {last}')
    results, pictures = work / 'results.json', work / 'pictures'
    done = ROOT / results
    if not done.exists() or done.stat().st_mtime < last.stat().st_mtime:
        run('3 of 3: test on patients that the network never saw',
            'tools/test.py', CONFIG, str(work / 'final.pth'), '--work-dir',
            str(work), '--data-root', data, '--out', str(results),
            '--show-dir', str(pictures))
    else:
        print(f'\n== 3 of 3: the test is done, see {results}')
        from projects.mv2d_xray.metrics import table_of
        print(table_of(json.loads(done.read_text())))
    spent = int(time.monotonic() - start)
    print(f'\nThe demo took {spent // 60} min {spent % 60} s.\n'
          f'Figures:  {results}\nPictures: {pictures}/ (green: true, dashed '
          'red: found)', flush=True)


if __name__ == '__main__':
    main()
