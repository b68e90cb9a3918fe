"""Boxes for other programs: python tools/export.py RESULTS --out-dir DIR"""

import argparse
from typing import List, Optional

from projects.core.engine.command_line import check_outputs, one_sentence
from projects.core.export import FORMATS, export


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Write found boxes as CSV, 3D Slicer markups, COCO '
        'results and DICOM SR')
    parser.add_argument('results', help='--out of tools/test.py or '
                        'tools/infer.py')
    parser.add_argument('--out-dir', required=True, help='folder to write to')
    parser.add_argument('--formats', nargs='+', choices=list(FORMATS),
                        help='default: all that the results allow')
    parser.add_argument('--score-thr', type=float, default=.1,
                        help='boxes below are left out (default: %(default)s)')
    parser.add_argument('--ann-file', help='tested infos, where the results '
                        'do not say or they have moved')
    parser.add_argument('--dicom-root', help='folder under which the CT '
                        'series are, for DICOM SR')
    return parser.parse_args(argv)


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Write the files."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    for path in export(args.results, args.out_dir, args.formats,
                       args.score_thr, args.ann_file,
                       args.dicom_root):
        print(path)


if __name__ == '__main__':
    main()
