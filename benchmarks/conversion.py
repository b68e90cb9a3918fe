"""What a scan costs to convert, and how that grows.

    python benchmarks/conversion.py [--out-dir work_dirs/conversion]

Phantom scans are written as DICOM, read and rendered as ``data_converters
lidc`` does, each measurement in a process of its own: seconds to read and to
render and write, and the process's peak memory. One factor at a time is
changed: image size, number of views, number of slices; and, at 256², the
renderer, since the references take minutes for large images. At the end, scans
a minute with one process and with one per core.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Optional

from measure import in_process, peak_mb
from terminaltables import GithubFlavoredMarkdownTable

from data_converters import lidc, phantom
from data_converters.__main__ import main as convert
from data_converters.convert import Options, convert_scan
from data_converters.drr import RENDERERS
from projects.core.engine.devices import torch_device
from projects.core.files import dump_json
from projects.core.rig import Rig

BASE = dict(image_size=1024, num_views=10, slices=133, renderer='joseph')
FACTORS = dict(image_size=(256, 512), num_views=(5, 20), slices=(65, 260),
               renderer=tuple(RENDERERS))


def scans_of(slices: int) -> Iterator[str]:
    """Series UIDs of the scans with about so many slices that fit."""
    for uid in phantom.phantom_order(0):
        count = len(lidc.query_scan(uid).slice_zvals)
        if abs(count - slices) <= .08 * slices and (
                phantom.choose_field(uid, 0) is not None):
            yield uid


def scan_of(slices: int) -> str:
    """The first of them."""
    uid = next(scans_of(slices), None)
    if uid is None:
        raise ValueError(f'slices: expected a scan of about {slices}, found '
                         'none')
    return uid


def convert_once(uid: str, dicom: Path, num_views: int, image_size: int,
                 renderer: str, device: str) -> dict:
    """Convert one scan and tell what it took."""
    begin = time.perf_counter()
    scan = lidc.read_scan(uid, dicom)
    read = time.perf_counter()
    options = Options(Rig.circle(num_views, image_size=image_size).to_dict(),
                      renderer)
    with tempfile.TemporaryDirectory() as out_dir:
        convert_scan(scan, options, Path(out_dir), device)
    done = time.perf_counter()
    return dict(
        voxels=scan.hu.values.size, read_s=read - begin, render_s=done - read,
        peak_mb=peak_mb())


def main(argv: Optional[List[str]] = None) -> None:
    """Measure, print the tables, leave ``conversion.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out-dir', type=Path,
                        default=Path('work_dirs/conversion'))
    parser.add_argument('--device', type=torch_device, default='cpu')
    parser.add_argument('--only', nargs='*', choices=list(FACTORS),
                        default=list(FACTORS), help='factors to change')
    parser.add_argument('--scans', type=int, default=4,
                        help='scans for the throughput; default 4')
    args = parser.parse_args(argv)
    settings = [BASE] + [
        dict(BASE, **({'image_size': 256} if name == 'renderer' else {}),
             **{name: value})
        for name in args.only
        for value in FACTORS[name] if value != BASE[name]
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dicom = Path(folder) / 'dicom'
        scans = {}
        for setting in settings:
            slices = setting['slices']
            if slices not in scans:
                scans[slices] = scan_of(slices)
                phantom.write_scan(phantom.make_scan(scans[slices], 0), dicom)
            rows.append(dict(setting, **in_process(
                convert_once, scans[slices], dicom, setting['num_views'],
                setting['image_size'], setting['renderer'], args.device)))
            print(json.dumps(rows[-1]), flush=True)
        throughput = {}
        for jobs in sorted({1, os.cpu_count()}):
            begin = time.perf_counter()
            convert(['benchmark', 'full-v2', '--out-dir', f'{folder}/{jobs}',
                     '--num-scans', str(args.scans), '--jobs', str(jobs),
                     '--device', args.device])
            throughput[jobs] = 60 * args.scans / (time.perf_counter() - begin)
    dump_json(dict(settings=rows, scans_per_minute=throughput),
              args.out_dir / 'conversion.json')
    base = rows[0]
    print(GithubFlavoredMarkdownTable([
        ['image (px)', 'views', 'slices', 'renderer', 'read (s)',
         'render, write (s)', 'to the first row', 'peak memory (MB)'],
        *([r['image_size'], r['num_views'], r['slices'], r['renderer'],
           f'{r["read_s"]:.1f}', f'{r["render_s"]:.1f}',
           f'{r["render_s"] / base["render_s"]:.2f}', f'{r["peak_mb"]:.0f}']
          for r in rows)]).table)
    for jobs, rate in throughput.items():
        print(f'{jobs} process{"es" if jobs > 1 else ""}: {rate:.1f} scans a '
              'minute at 1024², written as DICOM first')


if __name__ == '__main__':
    main()
