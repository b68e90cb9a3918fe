"""Make the virtual environment that the lock file describes.

Needs only the standard library: it runs before anything is installed. What is
already done is not done again.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
MMCV = 'mmcv==2.1.0'
# mmcv's ops run, for the device that torch was installed for.
CHECK_OPS = """
import torch
from mmcv.ops import nms, roi_align
from mmengine.registry import MODELS
device = 'cuda' if torch.cuda.is_available() else 'cpu'
box = torch.tensor([[0., 0., 9., 9.]], device=device)
assert len(nms(box, torch.ones(1, device=device), .5)[1]) == 1
roi = torch.cat([torch.zeros(1, 1, device=device), box], 1)
roi_align(torch.ones(1, 1, 9, 9, device=device), roi, 7)
"""


class SetupError(RuntimeError):
    """Something that the environment needs is missing."""


def say(text: str) -> None:
    """One line on what is being done."""
    print(f'[setup] {text}', flush=True)


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    tool = shutil.which('nvidia-smi')
    return bool(tool) and subprocess.run(
        [tool, '-L'], capture_output=True).returncode == 0


def check_machine(gpu: bool) -> None:
    """Fail early, with a plain sentence, where a tool is missing."""
    if sys.version_info[:2] != (3, 11):
        raise SetupError(
            'Python: expected 3.11, for which the lock file was made, found '
            f'{sys.version.split()[0]}; install Python 3.11 or name it: '
            'make PYTHON=/path/to/python3.11')
    if not (os.environ.get('CXX') or shutil.which('g++')
            or shutil.which('c++')):
        raise SetupError('C++ compiler: expected g++ to build mmcv, found '
                         'none; install it (Debian: apt-get install g++)')
    header = Path(
        __import__('sysconfig').get_paths()['include']) / 'Python.h'
    if not header.exists():
        raise SetupError(f'Python headers: expected {header}, found none; '
                         'install them (Debian: apt-get install python3-dev)')
    if gpu and not shutil.which('nvcc'):
        raise SetupError(
            'CUDA compiler: a GPU is here, so mmcv is built for it; expected '
            'nvcc, found none; install the CUDA toolkit, or choose '
            'make DEVICE=cpu')


def run(command: list, log: Path, progress: bool = False, **env) -> int:
    """Run a command into a log file; show ninja's count as a bar."""
    start = time.monotonic()
    process = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors='replace',
        env={**os.environ, **env})
    with log.open('a', encoding='utf-8') as stream:
        for line in process.stdout:
            stream.write(line)
            stream.flush()
            count = re.search(r'\[(\d+)/(\d+)\]', line) if progress else None
            if count:
                done, total = map(int, count.groups())
                spent = time.monotonic() - start
                left = spent / done * (total - done)
                bar = '#' * (30 * done // total)
                print(f'\r[setup] [{bar:30}] {done}/{total} files, ETA '
                      f'{int(left) // 60}:{int(left) % 60:02d}  ',
                      end='\n' if done == total else '', flush=True)
    return process.wait()


def pip(python: Path, log: Path, *arguments, **kwargs) -> int:
    """Run the environment's pip."""
    return run([python, '-m', 'pip', 'install',
                '--disable-pip-version-check', *arguments], log, **kwargs)


def expect(code: int, what: str, log: Path) -> None:
    """Turn a failed step into one sentence."""
    if code:
        raise SetupError(f'{what} failed (exit status {code}); the end of '
                         f'{log} says why')


def install_torch(python: Path, log: Path, gpu: bool) -> None:
    """The CUDA build where there is a GPU, else the small CPU build."""
    name = 'torch-cuda.txt' if gpu else 'torch-cpu.txt'
    arguments = ['-r', REQUIREMENTS / name]
    say(f'installing torch ({"CUDA" if gpu else "CPU"} build)')
    code = pip(python, log, *arguments)
    if code and not gpu:  # the configured index may not carry CPU builds
        code = pip(python, log, '--extra-index-url', CPU_INDEX, *arguments)
    expect(code, 'Installing torch', log)


def install_mmcv(python: Path, log: Path, gpu: bool) -> None:
    """Build mmcv with its ops, or take the wheel that pip kept."""
    env = dict(MMCV_WITH_OPS='1', MAX_JOBS=str(os.cpu_count() or 1),
               FORCE_CUDA='1' if gpu else '0')
    arguments = ['--no-build-isolation', '--no-deps', '-v', MMCV]
    say('installing mmcv with its ops (built from source the first time: '
        'about 20 minutes of one core)')
    expect(pip(python, log, *arguments, progress=True, **env),
           'Building mmcv', log)


def main(argv: Optional[List[str]] = None) -> None:
    """Make or complete the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv',
                        help='folder of the environment')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'),
                        default='auto', help='build of torch and mmcv')
    args = parser.parse_args(argv)
    gpu = has_gpu() if args.device == 'auto' else args.device == 'cuda'
    digest = hashlib.sha256(repr(gpu).encode())
    for path in sorted(REQUIREMENTS.glob('*.txt')):
        digest.update(path.read_bytes())
    digest.update((ROOT / 'setup.py').read_bytes())
    stamp = args.venv / 'installed'
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        say(f'{args.venv} is up to date')
        return
    check_machine(gpu)
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    python = args.venv / 'bin' / 'python'
    if not python.exists():
        say(f'making {args.venv}')
        venv.create(args.venv, with_pip=True, clear=True)
    log = args.venv / 'setup.log'
    say(f'details go to {log}')
    expect(pip(python, log, '-r', REQUIREMENTS / 'build.txt'),
           'Installing the build tools', log)
    install_torch(python, log, gpu)
    say('installing the locked packages')
    expect(pip(python, log, '--no-deps', '-r', REQUIREMENTS / 'lock.txt'),
           'Installing the locked packages', log)
    install_mmcv(python, log, gpu)
    if run([python, '-c', CHECK_OPS], log):
        # pip's kept wheel does not know which torch it was built against.
        say('the kept mmcv wheel does not fit this torch: building it anew')
        expect(
            pip(python, log, '--no-build-isolation', '--no-deps', '-v',
                '--no-cache-dir', '--force-reinstall', MMCV, progress=True,
                MMCV_WITH_OPS='1', MAX_JOBS=str(os.cpu_count() or 1),
                FORCE_CUDA='1' if gpu else '0'), 'Building mmcv', log)
        expect(run([python, '-c', CHECK_OPS], log),
               'Running an op of mmcv', log)
    expect(pip(python, log, '--no-deps', '--no-build-isolation', '-e', ROOT),
           'Installing MV2D-Xray', log)
    stamp.write_text(digest.hexdigest())
    spent = int(time.monotonic() - start)
    say(f'{args.venv} is ready ({spent // 60} min {spent % 60} s)')


if __name__ == '__main__':
    try:
        main()
    except SetupError as error:
        sys.exit(f'[setup] {error}')
