"""What the command-line tools share: arguments and errors."""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Optional

from projects.core.files import DataError

__all__ = ['UserError', 'argument_parser', 'check_outputs', 'one_sentence']


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence."""


def one_sentence(main):
    """Decorate a tool's ``main``: wrong input, and files that cannot be read
    or written, end in one sentence, not in a traceback, and exit status 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except (UserError, DataError, OSError) as error:
            # From a worker of the data loader the message holds the worker's
            # traceback, whose last line is the error.
            text = str(error).strip()
            if text.startswith('Caught '):
                text = text.splitlines()[-1].split(': ', 1)[-1]
            elif isinstance(error, OSError) and error.filename:
                text = f'{error.filename}: {error.strerror}'
        except KeyboardInterrupt:
            text = 'interrupted'
        bars = sys.modules.get('tqdm')
        for bar in list(bars.tqdm._instances) if bars else ():
            bar.close()  # or it would be drawn again below the sentence
        sys.exit(f'{Path(sys.argv[0]).name}: error: {text}')

    return wrapped


def check_outputs(args: argparse.Namespace, *options: str) -> None:
    """Refuse what a tool cannot write to, before its work is done.

    Nothing is made: a tool may still end without a result.

    Args:
        args: What the tool was given.
        *options (str): Those of its options that name outputs. As everywhere
            in the tools, one that ends in ``dir`` is a folder, any other a
            file. What is None is not written.

    Raises:
        UserError: A file is where a folder must be, or a folder where a file
            must be, or the place cannot be written to.
    """
    for option in options:
        path = getattr(args, option)
        if path is None:
            continue
        name, path = f'--{option.replace("_", "-")}', Path(path)
        folder = path
        if not option.endswith('dir'):
            if path.exists() and not path.is_file():
                found = 'a folder' if path.is_dir() else 'a device'
                raise UserError(f'{path}: {name}: expected a file to write, '
                                f'found {found}')
            folder = path.parent
        # The last that is there; the others will be made in it.
        while not (folder.exists() or folder == folder.parent):
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f'{path}: {name}: expected a folder, found the '
                            f'file {folder}')
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f'{path}: {name}: expected a place to write to, '
                            f'found {folder}: {error.strerror}') from None


def _options() -> type:
    """mmengine's ``--cfg-options`` that say what is wrong with them."""
    from mmengine.config import DictAction  # not for all commands

    class Options(DictAction):

        def __call__(self, parser, namespace, values, option_string=None):
            for value in values:
                if '=' not in value:
                    parser.error(f'{option_string}: expected KEY=VALUE, found '
                                 f'"{value}"')
            super().__call__(parser, namespace, values, option_string)

    return Options


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
        '--cfg-options', nargs='+', action=_options(), metavar='KEY=VALUE',
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
