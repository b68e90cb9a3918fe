"""What the command-line tools share: arguments and errors."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Optional

from mmengine.config import DictAction
from tqdm import tqdm

from projects.core.files import DataError

__all__ = ['UserError', 'argument_parser', 'one_sentence']


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence."""


def one_sentence(main):
    """Decorate a tool's ``main``: wrong input ends in one sentence, not in a
    traceback, and exit status 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except (UserError, DataError) as error:
            # From a worker of the data loader the message holds the worker's
            # traceback, whose last line is the error.
            text = str(error).strip()
            if text.startswith('Caught '):
                text = text.splitlines()[-1].split(': ', 1)[-1]
        except KeyboardInterrupt:
            text = 'interrupted'
        for bar in list(tqdm._instances):
            bar.close()  # or it would be drawn again below the sentence
        sys.exit(f'{Path(sys.argv[0]).name}: error: {text}')

    return wrapped


class _Options(DictAction):
    """mmengine's ``--cfg-options`` that say what is wrong with them."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string}: expected KEY=VALUE, found '
                             f'"{value}"')
        super().__call__(parser, namespace, values, option_string)


def argument_parser(description: str, split: Optional[str] = None,
                    amp: bool = False) -> argparse.ArgumentParser:
    """Arguments that training and testing share, named as mmdet3d's own.

    Args:
        description (str): What the tool does.
        split (str, optional): For tools that look at what a checkpoint makes
            of a split: its default. Their arguments go to
            :func:`load_for_split`.
        amp (bool): Whether the tool can compute in half precision.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file (a trusted program)')
    if split:
        parser.add_argument('checkpoint', help='checkpoint file')
        parser.add_argument('--split', default=split,
                            help='infos to look at (default: %(default)s)')
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; defaults to '
        'work_dirs/<name of the config>')
    parser.add_argument(
        '--data-root', help='any converted set, instead of the config\'s')
    parser.add_argument(
        '--cfg-options', nargs='+', action=_Options, metavar='KEY=VALUE',
        help='override parts of the config, as a.b=1')
    if amp:
        parser.add_argument(
            '--amp', action='store_true',
            help='half precision where it does no harm: float16 on CUDA, '
            'else bfloat16, which is faster on CPUs that compute in it')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser
