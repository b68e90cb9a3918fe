"""Where findings are lost: python tools/diagnose.py CONFIG CHECKPOINT"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from terminaltables import AsciiTable
from tqdm import tqdm

from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import match_distance_of
from projects.core.files import dump_json
from projects.mv2d_xray.diagnosis.pictures import draw_findings
from projects.mv2d_xray.diagnosis.scan import report_scan
from projects.mv2d_xray.diagnosis.verdicts import VISIBLE, diagnose


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argument_parser('Say at which stage each missed finding is lost',
                             split='val')
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for diagnose.json and diagnose.png')
    parser.add_argument(
        '--false-positives', type=float, default=1.,
        help='per scan, at the threshold that decides what is found '
        '(default: %(default)s)')
    parser.add_argument(
        '--scan', nargs='+', default=[], metavar='TOKEN',
        help='scans to show stage by stage, each in a folder of its own: 2D '
        'boxes, feature maps, volume, queries and attention')
    parser.add_argument(
        '--view', nargs='+', metavar='NAME',
        help='views of these scans, as CAM_03 (default: all)')
    parser.add_argument(
        '--score-thr-2d', type=float, default=.3,
        help='2D detections below are not shown (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.view and not args.scan:
        parser.error('--view: expected --scan, too, found none')
    return args


def rows_of(data, tokens: List[str], views: List[str]) -> Dict[str, int]:
    """Where the scans are in a data set.

    Raises:
        UserError: One of them, or a view of it, is not there.
    """
    infos = [data.get_data_info(row) for row in range(len(data))]
    known = {info['token']: row for row, info in enumerate(infos)}
    for token in tokens:
        if token not in known:
            raise UserError(f'--scan: expected one of the {len(known)} scans '
                            f'of {data.ann_file}, as {next(iter(known))}, '
                            f'found {token}')
        there = list(infos[known[token]]['images'])
        for view in views or ():
            if view not in there:
                raise UserError(f'--view: expected views of {token}: '
                                f'{", ".join(there)}, found {view}')
    return {token: known[token] for token in tokens}


def table_of(told: dict) -> str:
    """How many findings each stage loses."""
    rows = []
    for name in sorted({f['verdict'] for f in told['findings']}):
        these = [f for f in told['findings'] if f['verdict'] == name]
        rows.append([
            name.replace('; ', ';\n'), str(len(these)),
            f'{np.median([f["diameter"] for f in these]):.1f}',
            ', '.join(sorted({f['token'] for f in these})[:3])
        ])
    return AsciiTable(
        [['verdict', 'findings', 'median diameter (mm)', 'as in'], *rows],
        f'threshold {told["threshold"]:.2f}').table


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Look at every scan of a split, tabulate, draw."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    cfg, model, data = load_for_split(args)
    rows = rows_of(data, args.scan, args.view)
    told = diagnose(
        model, tqdm(data, desc='diagnose', unit='scan', dynamic_ncols=True),
        data.metainfo['classes'], match_distance_of(cfg),
        args.false_positives)
    dump_json(told, args.out_dir / 'diagnose.json')
    draw_findings(told['findings'], told['limits'], VISIBLE,
                  args.out_dir / 'diagnose.png')
    print(table_of(told))
    print(f'{args.out_dir}/diagnose.json, diagnose.png')
    for token, row in rows.items():
        scan = report_scan(model, data[row], told, args.out_dir / token,
                           args.view, args.score_thr_2d)
        print(f'{args.out_dir / token}/scan.json and pictures')
        for finding in scan['findings']:
            print(f'  finding {finding["number"]}, '
                  f'{finding["diameter"]:.1f} mm: {finding["verdict"]}')


if __name__ == '__main__':
    main()
