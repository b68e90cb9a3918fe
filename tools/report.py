"""Show what a test found: python tools/report.py RESULTS"""

import argparse
from pathlib import Path
from typing import List, Optional

from projects.core.engine.command_line import check_outputs, one_sentence
from projects.core.report.tested import write_report


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Write one HTML file with the figures, curves, views and '
        'a 3D scene of a test; it needs no network')
    parser.add_argument('results', help='--out of tools/test.py')
    parser.add_argument('--out', help='HTML to write; default: beside the '
                        'results')
    parser.add_argument('--ann-file', help='tested infos, where the results '
                        'do not say or they have moved')
    parser.add_argument('--work-dir', help='folder of the training, for its '
                        'curves; default: that of the checkpoint')
    return parser.parse_args(argv)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Write the report."""
    args = parse_args(argv)
    if args.out is None:
        args.out = Path(args.results).with_suffix('.html')
    check_outputs(args, 'out')
    count = write_report(args.results, args.out, args.ann_file, args.work_dir)
    print(f'{args.out}: {count} scans, '
          f'{Path(args.out).stat().st_size / 2**20:.1f} MB')


if __name__ == '__main__':
    main()
