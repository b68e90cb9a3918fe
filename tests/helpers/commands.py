"""The commands as a user types them, in this process or in one of their own.

Here a command costs no imports, and finds nothing that another one left in
the process. What only a new process shows (that a tool imports all it needs,
exit status, deaths, several processes) is for :func:`process`.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import pyplot
from mmengine.config import config
from mmengine.utils import ManagerMixin
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
# A released model and its config.
BLADE = ('configs/mv2d_xray/mv2d-xray_small_volume_600i_blade.py',
         'checkpoints/mv2d-xray_small_volume_600i_blade.pth')
CONFIG = 'configs/mv2d_xray/mv2d-xray_small_roi-volume-decoder_700i_demo-v2.py'
SMALL = [
    'model.volume_head.voxel_size=24.', 'model.data_preprocessor.'
    'band_sigmas=[1.,3.]', 'train_dataloader.dataset.min_diameter=0.',
    'test_dataloader.dataset.min_diameter=0.', 'default_hooks.logger.'
    'interval=1',
    # The sets of the tests have no other held-out split.
    'test_dataloader.dataset.ann_file=lidc_infos_val.pkl',
    'test_dataloader.dataset.coco_file=lidc_infos_val_2d_anno.coco.json'
]



def _formatted(text, _format=config.FormatCode, _known={}, **style):
    """A run formats its config seven times, the same text."""
    key = text, repr(style)
    if key not in _known:
        _known[key] = _format(text, **style)
    return _known[key]


config.FormatCode = _formatted


def command_line(name, *args, options=()):
    """Of a tool's file, in tools/ or named from the root."""
    path = ROOT / name if '/' in name else ROOT / 'tools' / name
    options = ['--cfg-options', *options] if options else []
    return [str(path), *map(str, args), *options]


def process(name, *args, cwd=ROOT, options=()):
    """Run a tool in a process of its own."""
    return subprocess.run(
        [sys.executable, *command_line(name, *args, options=options)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)))


def tool(name, *args, cwd=ROOT, options=()):
    """Run a tool's ``main`` in this process.

    Returns:
        subprocess.CompletedProcess: As from :func:`process`.
    """
    argv = command_line(name, *args, options=options)
    module = Path(argv[0]).relative_to(ROOT).with_suffix('').parts
    main = importlib.import_module('.'.join(module)).main
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), (
            contextlib.chdir(cwd)), own_state(argv):
        try:
            main(argv[1:])
        except SystemExit as stop:
            code = stop.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except Exception:  # what ends a process
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(argv, code, out.getvalue(),
                                       err.getvalue())


@contextlib.contextmanager
def own_state(argv):
    """What a run leaves in its process: as in a new one, and afterwards as
    before."""
    environment, arguments = dict(os.environ), sys.argv
    kept = {cls: dict(cls._instance_dict) for cls in _managers()}
    numbers = random.getstate(), np.random.get_state()
    safe = torch.serialization.get_safe_globals()
    threads = cv2.getNumThreads()
    for cls in kept:
        cls._instance_dict.clear()
    torch.serialization.clear_safe_globals()
    os.environ.pop('LOCAL_RANK', None)
    sys.argv = argv
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.default_generator.initial_seed())
            yield
    finally:
        gc.collect()  # workers of data loaders end with them
        for bar in list(tqdm._instances):
            bar.close()
        pyplot.close('all')
        for cls in _managers():  # logs, visualizers, scopes
            for instance in cls._instance_dict.values():
                for part in (instance, *getattr(instance, 'handlers', ())):
                    getattr(part, 'close', lambda: None)()
            cls._instance_dict.clear()
            cls._instance_dict.update(kept.get(cls, {}))
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(safe)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        cv2.setNumThreads(threads)
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL('libc.so.6')
            libc.mallopt(-4, 65536)  # see keep_freed_memory
            libc.mallopt(-1, 128 * 1024)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)


def _managers(base=ManagerMixin):
    """All classes whose instances mmengine finds again by their names."""
    return [base, *(cls for child in base.__subclasses__()
                    for cls in _managers(child))]


def train(work_dir, data, iters, *args, run=tool, options=()):
    """A training of the smallest model."""
    return run(
        'train.py', CONFIG, '--work-dir', work_dir, '--data-root', data,
        *args, options=[*SMALL, f'train_cfg.max_iters={iters}',
                        'default_hooks.checkpoint.interval=2', *options])


def losses(work_dir):
    """Loss by iteration from mmengine's own log of scalars."""
    curve = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                curve[row['step']] = row['loss']
    return curve


def error_of(done):
    """The one sentence; a traceback is not one."""
    assert done.returncode != 0
    assert 'Traceback' not in done.stderr
    return done.stderr.strip().splitlines()[-1]
