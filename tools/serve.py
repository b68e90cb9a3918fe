"""A page to drop views on: python tools/serve.py CONFIG CHECKPOINT"""

import argparse
import contextlib
import socket
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Sequence

from projects.core.engine.command_line import UserError, one_sentence
from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.engine.inference import Finder, is_sliced
from projects.core.inference import (
    images_of,
    other_views,
    write_found_report,
)
from projects.core.projections import Reading, read_projections
from projects.core.results import dump_boxes
from projects.core.rig import Rig

LOWEST = .05  # score of a box that can be asked for


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Serve a page on which a person drops the X-ray views of '
        'an object and sees the boxes found; for this machine alone, if not '
        'told otherwise')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--rig', nargs='+', default=[], help='rig.json of one or several '
        'geometries to choose from; others can be dropped with the views')
    parser.add_argument('--host', default='127.0.0.1',
                        help='address to listen at (default: %(default)s)')
    parser.add_argument('--port', type=int, default=8000,
                        help='0: any that is free (default: %(default)s)')
    parser.add_argument(
        '--name', nargs='+', default=[], help='more names by which browsers '
        'call this machine, where it serves others')
    parser.add_argument(
        '--score-thr', type=float, default=.3, help='where the threshold '
        'begins (default: %(default)s)')
    parser.add_argument(
        '--minutes', type=float, default=30., help='that files are kept, if '
        'a page neither asks nor is left (default: %(default)s)')
    parser.add_argument(
        '--scale', type=float, help='as of tools/infer.py')
    parser.add_argument(
        '--offset', type=float, help='as of tools/infer.py')
    parser.add_argument(
        '--device', type=torch_device,
        help='torch device; defaults to the GPU where there is one')
    return parser.parse_args(argv)


class ModelFinder:
    """Finds boxes with a config's model, see
    :data:`projects.core.serve.Finder`.

    Raises:
        UserError: As :func:`load_model`, or the model takes CT slices.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if is_sliced(load_config(args.config)):
            raise UserError(f'{args.config}: expected a model of X-ray '
                            'views, found one of CT slices')
        self._finder = Finder(args.config, args.checkpoint, args.device)
        self._levels = dict(scale=args.scale, offset=args.offset)
        self.name = f'{Path(args.config).stem}, {Path(args.checkpoint).name}'
        self._threshold = args.score_thr

    def __call__(self, paths: Sequence[Path], rig: Rig, out_dir: Path,
                 name: str, reading: Reading) -> List[str]:
        """Write boxes and report of one object."""
        finder = self._finder
        if not (reading.flat or reading.open_field) and (
                reading.scale is None and reading.offset is None):
            reading = replace(reading, **self._levels)
        views = read_projections(paths, rig.views, reading)
        found = finder.predict(
            name, images_of(rig, [paths[0]] * len(rig), views.views), LOWEST,
            'geometry')
        dump_boxes(out_dir / f'{name}.json', found.boxes, found.scores,
                   found.labels, finder.classes)
        write_found_report(
            out_dir / 'report.html', name, found, finder.classes, self.name,
            self._threshold, rig)
        told = other_views(Path(finder.checkpoint).name, finder.meta,
                           rig.to_dict())
        return [f'{views.note}.', *([told] if told else []), *found.told]


def load_rigs(paths: List[str]) -> dict:
    """Rigs by the names that a person sees.

    Raises:
        UserError: One is no rig, or two have the same name.
    """
    rigs = {}
    for path in paths:
        name = Path(path).stem
        if name in rigs:
            raise UserError(f'{path}: --rig: expected files of different '
                            f'names, found "{name}" twice')
        try:
            rigs[name] = Rig.load(path)
        except ValueError as error:
            raise UserError(str(error)) from error
    return rigs


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Load the model, then serve until Ctrl-C."""
    args = parse_args(argv)
    try:
        import uvicorn

        from projects.core.serve import Limits, create_app
    except ImportError as error:
        raise UserError(f'expected FastAPI and uvicorn, as pip install '
                        f'mv2d-xray[serve] brings them, found no '
                        f'{error.name}') from None
    rigs = load_rigs(args.rig)
    finder = ModelFinder(args)
    try:
        listener = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as error:
        raise UserError(f'{args.host}:{args.port}: expected an address that '
                        f'is free, found: {error}') from None
    hosts = dict.fromkeys(['localhost', '127.0.0.1', args.host, *args.name])
    app = create_app(finder, rigs, list(hosts), finder.name,
                     Limits(minutes=args.minutes))
    server = uvicorn.Server(uvicorn.Config(
        app, log_level='warning', access_log=False, http='h11', ws='none',
        loop='asyncio', server_header=False, limit_concurrency=100,
        timeout_keep_alive=5, timeout_graceful_shutdown=3))
    local = args.host in ('127.0.0.1', 'localhost')
    print(f'http://{args.host}:{listener.getsockname()[1]}/ '
          + ('for this machine alone' if local else
             'for all who reach this address: there is no password')
          + '; Ctrl-C ends', flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # it has ended in order
        server.run(sockets=[listener])
    print('ended')


if __name__ == '__main__':
    main()
