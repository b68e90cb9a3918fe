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
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
MMCV = 'mmcv==2.1.0'
# Where wheels that were built here are kept for the next environment.
WHEELS = Path(os.environ.get('XDG_CACHE_HOME')
              or Path.home() / '.cache') / 'mv2d-xray/wheels'
# These files of mmcv have helpers of the same names: not in one unit.
HELPERS_CLASH = dict(bezier_align=0, roi_align=1, roi_align_rotated=2,
                     rotated_feature_align=2)
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
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
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


def unite(source: Path) -> None:
    """Join mmcv's 76 small C++ files in three.

    Nearly all of the time that a file takes goes into torch's headers. What
    the files say, and with it every op, stays; pybind.cpp, the largest, stays
    a file of its own.

    Args:
        source (Path): Folder of mmcv's unpacked sources.
    """
    folder = source / 'mmcv/ops/csrc/pytorch'
    units = [[], [], []]
    files = {*folder.glob('*.cpp'), *folder.glob('cpu/*.cpp')}
    files.remove(folder / 'pybind.cpp')
    # psamask is last, as it defines min and max as macros.
    for number, file in enumerate(
            sorted(files, key=lambda f: (f.stem == 'psamask', f))):
        unit = units[HELPERS_CLASH.get(file.stem, number % len(units))]
        unit.append(file.rename(file.with_suffix('.inc')))
    for number, unit in enumerate(units):
        (folder / f'unit{number}.cpp').write_text(''.join(
            ['#include <torch/script.h>\n',
             *(f'#include "{f.relative_to(folder)}"\n' for f in unit)]))


def wheel_of_mmcv(python: Path, log: Path, gpu: bool, wheels: Path,
                  anew: bool = False) -> Path:
    """mmcv with its ops, for this torch: the folder's wheel, built if it is
    not there.

    Args:
        python (Path): Of an environment with torch.
        log (Path): Details are added to it.
        gpu (bool): With CUDA's ops.
        wheels (Path): Folder of wheels.
        anew (bool): Whatever is there.
    """
    version = subprocess.run(
        [python, '-c', 'import torch; print(torch.__version__)'],
        capture_output=True, text=True)
    expect(version.returncode, 'Asking torch for its version', log)
    kept = wheels / f'torch-{version.stdout.strip()}'
    if gpu:
        kept = kept.with_name(kept.name + '-ops-for-cuda')
    name = f'{MMCV.replace("==", "-")}-cp311-*.whl'
    found = list(kept.glob(name))
    if found and not anew:
        return found[0]
    jobs = len(os.sched_getaffinity(0))
    say(f'building mmcv with its ops, by {jobs} processes (about three '
        'minutes of one core; minutes more for CUDA)')
    # CFLAGS replaces Python's own flags, and with them -O3: repeat them, then
    # leave out what debuggers need.
    flags = os.environ.get('CFLAGS', sysconfig.get_config_var('CFLAGS') or '')
    with tempfile.TemporaryDirectory() as folder:
        expect(run([python, '-m', 'pip', 'download', '--no-deps',
                    '--no-build-isolation', '--no-binary', 'mmcv', '-d',
                    folder, MMCV], log), 'Fetching mmcv\'s sources', log)
        archive, = Path(folder).glob('mmcv-*.tar.gz')
        shutil.unpack_archive(archive, folder)
        source = Path(folder, archive.name[:-len('.tar.gz')])
        if not gpu:  # CUDA's build was never tried with joined files
            unite(source)
        expect(run([python, '-m', 'pip', 'wheel', '--no-deps',
                    '--no-build-isolation', '-v', '-w', kept, source], log,
                   progress=True, MMCV_WITH_OPS='1', MAX_JOBS=str(jobs),
                   FORCE_CUDA='1' if gpu else '0',
                   CFLAGS=f'{flags} -g0'),
               'Building mmcv', log)
    return next(kept.glob(name))


def install_mmcv(python: Path, log: Path, gpu: bool, wheels: Path) -> None:
    """Install its wheel; build it anew if its ops do not run here."""
    for anew in (False, True):
        wheel = wheel_of_mmcv(python, log, gpu, wheels, anew)
        say(f'installing {wheel}')
        expect(pip(python, log, '--no-deps', '--force-reinstall', wheel),
               'Installing mmcv', log)
        failed = run([python, '-c', CHECK_OPS], log)
        if not failed:
            return
        say(f'{wheel} does not fit this machine')
    expect(failed, 'Running an op of mmcv', log)


def install(environment: Path, gpu: bool, wheels: Path) -> None:
    """Everything, into a new environment or one that is not up to date."""
    check_machine(gpu)
    start = time.monotonic()
    python = environment / 'bin' / 'python'
    if not python.exists():
        say(f'making {environment}')
        venv.create(environment, with_pip=True, clear=True)
    log = environment / 'setup.log'
    say(f'details go to {log}')
    expect(pip(python, log, '-r', REQUIREMENTS / 'build.txt'),
           'Installing the build tools', log)
    install_torch(python, log, gpu)
    say('installing the locked packages')
    expect(pip(python, log, '--no-deps', '-r', REQUIREMENTS / 'lock.txt'),
           'Installing the locked packages', log)
    install_mmcv(python, log, gpu, wheels)
    expect(pip(python, log, '--no-deps', '--no-build-isolation', '-e', ROOT),
           'Installing MV2D-Xray', log)
    spent = int(time.monotonic() - start)
    say(f'{environment} is ready ({spent // 60} min {spent % 60} s)')


def main(argv: Optional[List[str]] = None) -> None:
    """Make or complete the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv',
                        help='folder of the environment')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'),
                        default='auto', help='build of torch and mmcv')
    parser.add_argument('--wheels', type=Path, default=WHEELS,
                        help='folder that keeps mmcv\'s wheel; one that is '
                        'there is taken (default: %(default)s)')
    parser.add_argument('--wheel', action='store_true',
                        help='leave the wheel there even where the '
                        'environment does not need it')
    args = parser.parse_args(argv)
    gpu = has_gpu() if args.device == 'auto' else args.device == 'cuda'
    digest = hashlib.sha256(repr(gpu).encode())
    for path in sorted(REQUIREMENTS.glob('*.txt')):
        digest.update(path.read_bytes())
    digest.update((ROOT / 'setup.py').read_bytes())
    stamp = args.venv / 'installed'
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        say(f'{args.venv} is up to date')
    else:
        stamp.unlink(missing_ok=True)
        install(args.venv, gpu, args.wheels)
        stamp.write_text(digest.hexdigest())
    if args.wheel:
        say(str(wheel_of_mmcv(args.venv / 'bin/python',
                              args.venv / 'setup.log', gpu, args.wheels)))


if __name__ == '__main__':
    try:
        main()
    except SetupError as error:
        sys.exit(f'[setup] {error}')
