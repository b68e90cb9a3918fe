"""What the command-line tools share: configs, checkpoints, progress, errors.
"""

import argparse
import atexit
import contextlib
import ctypes
import difflib
import functools
import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import build_functions, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from mmdet3d.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from tqdm import tqdm

from .geometry import Rig
from .infos import InfosError
from .metrics import MATCH_DISTANCE

__all__ = [
    'UserError', 'XRayBFloat16OptimWrapper', 'XRayCheckpointHook',
    'XRayClassCheckHook', 'XRayProgressHook', 'allow_checkpoint_types',
    'argument_parser', 'build_runner', 'check_checkpoint', 'config_errors',
    'config_of', 'evaluators_of', 'inner_model', 'keep_freed_memory',
    'load_checkpoint', 'load_config', 'load_for_split', 'load_model',
    'match_distance_of', 'one_sentence', 'select_split', 'torch_device',
    'use_half_precision', 'warn_of_other_views'
]

# Names that Runner.from_cfg reads from a config.
_RUNNER_KEYS = (
    'model', 'work_dir', 'train_dataloader', 'val_dataloader',
    'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr',
    'optim_wrapper', 'param_scheduler', 'val_evaluator', 'test_evaluator',
    'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from',
    'resume', 'launcher', 'env_cfg', 'log_processor', 'log_level',
    'visualizer', 'default_scope', 'randomness', 'experiment_name',
    'custom_imports')


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence."""


def allow_checkpoint_types() -> None:
    """Let ``torch.load`` read NumPy numbers beside weights, nothing more.

    Checkpoints of other mmengine projects may hold them; ours are plain, see
    :class:`XRayCheckpointHook`.
    """
    torch.serialization.add_safe_globals([
        np.ndarray, np.dtype,
        np.core.multiarray._reconstruct, np.core.multiarray.scalar,
        *(type(np.dtype(name)) for name in (
            'bool', 'int32', 'int64', 'uint8', 'float32', 'float64', 'U1'))
    ])


def keep_freed_memory() -> None:
    """Let the allocator keep large blocks for the next step of a training.

    By default glibc returns each to the system and gets it back page by
    page, an eighth of a CPU training step.
    """
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library


def one_sentence(main):
    """Decorate a tool's ``main``: wrong input ends in one sentence, not in a
    traceback, and exit status 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except (UserError, InfosError) as error:
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


# ------------------------------------------------------------------- configs
def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config and override parts of it.

    Args:
        path (str): Config file. Configs are programs: run only trusted ones.
        options (dict, optional): Dotted keys and values, from
            ``--cfg-options``.

    Raises:
        UserError: The file cannot be read, or a key is misspelt.
    """
    if not Path(path).is_file():
        raise UserError(f'{path}: config: expected a file, found none')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # whatever a config does wrong
        raise UserError(f'{path}: config cannot be read: '
                        f'{type(error).__name__}: {error}') from error
    for key in cfg:
        close = difflib.get_close_matches(key, _RUNNER_KEYS, 1, .85)
        if key not in _RUNNER_KEYS and close and close[0] not in cfg:
            raise UserError(f'{path}: config key "{key}": expected '
                            f'"{close[0]}", found "{key}"')
    for key in options or ():
        _check_option(cfg, key)
        _refuse_variable(cfg, key)
    cfg.merge_from_dict(options or {})
    if cfg.get('custom_imports'):  # an override may have added to them
        import_modules_from_strings(**cfg.custom_imports)
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    """An override must name something that the config has.

    Below a dict with ``type`` the class itself knows which keys it takes.
    """
    node, typed = cfg.to_dict(), False
    for part in key.split('.'):
        if isinstance(node, (list, tuple)):
            known = [str(i) for i in range(len(node))]
        elif isinstance(node, dict):
            known = list(node)
            typed = typed or 'type' in node
        else:
            known = []
        if part not in known:
            if typed:
                return
            close = difflib.get_close_matches(part, known, 1)
            hint = f'"{close[0]}"' if close else 'one of ' + ', '.join(known)
            raise UserError(f'--cfg-options {key}: expected {hint}, found '
                            f'"{part}"')
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[
            part]


def _refuse_variable(cfg: Config, key: str) -> None:
    """A config's helping variables are used up when it has been read: to
    change one would do nothing."""
    if key.split('.')[0] in _RUNNER_KEYS:
        return
    places = []

    def search(node, path):
        if isinstance(node, dict):
            for name, value in node.items():
                search(value, (*path, name))
        elif isinstance(node, (list, tuple)):
            for i, value in enumerate(node):
                search(value, (*path, str(i)))
        if path and path[-1] == key and path[0] in _RUNNER_KEYS:
            places.append('.'.join(path))

    search(cfg.to_dict(), ())
    hint = ', '.join(places) if places else 'a part of what is built'
    raise UserError(f'--cfg-options {key}: expected {hint}, found a variable '
                    'that only helps to write the config')


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


def torch_device(text: str) -> str:
    """An argument that must be a torch device that this machine has."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(
            'expected a torch device that this machine has, as cpu or '
            f'cuda:0, found "{text}"') from None
    return text


def config_of(args: argparse.Namespace) -> Config:
    """The config that :func:`argument_parser`'s arguments mean.

    Raises:
        UserError: See :func:`load_config`.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(
        Path('work_dirs') / Path(args.config).stem)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if args.data_root and cfg.get(loader):
            cfg[loader].dataset.data_root = args.data_root
    if getattr(args, 'amp', False):
        use_half_precision(cfg)
    return cfg


def select_split(dataset: Config, split: str) -> None:
    """Point a data set's config to another split of the same set."""
    dataset.ann_file = f'lidc_infos_{split}{Path(dataset.ann_file).suffix}'
    if dataset.get('coco_file'):
        dataset.coco_file = f'lidc_infos_{split}_2d_anno.coco.json'


def evaluators_of(cfg: Config) -> List[Config]:
    """Configs of the metrics of a test; a config may give one or a list."""
    found = cfg.test_evaluator
    return found if isinstance(found, list) else [found]


@contextlib.contextmanager
def config_errors(cfg: Config):
    """Whatever a registry cannot build is the config's fault.

    The runner builds some parts only when they are needed: a training belongs
    inside, too.

    Raises:
        UserError: A class does not take what the config gives it.
    """
    try:
        yield
    except (UserError, InfosError):
        raise
    except (TypeError, KeyError, ValueError) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if not any(f.f_code.co_filename == build_functions.__file__
                   for f, _ in frames):
            raise
        text = str(error.args[0] if error.args else error).split('\n')[0]
        raise UserError(
            f'{cfg.filename}: config cannot be built: {text}') from error


def build_runner(cfg: Config) -> Runner:
    """mmengine's runner, with :func:`config_errors`; several processes work
    on CPUs, too.

    Raises:
        UserError: As :func:`config_errors`, or the processes' launcher is
            not what ``cfg.launcher`` says.
    """
    if cfg.get('launcher', 'none') != 'none' and not (
            torch.cuda.is_available()):
        _distribute_on_cpu(cfg)
    with config_errors(cfg):
        return Runner.from_cfg(cfg)


def inner_model(model: torch.nn.Module) -> torch.nn.Module:
    """The detector in what test-time augmentation or several processes wrap
    round it."""
    while hasattr(model, 'module'):
        model = model.module
    return model


def _distribute_on_cpu(cfg: Config) -> None:
    """Do what mmengine does for GPUs alone."""
    if cfg.launcher != 'pytorch' or 'RANK' not in os.environ:
        raise UserError(
            f'--launcher {cfg.launcher}: without a GPU: expected pytorch, and '
            'a start by python -m torch.distributed.run, found '
            + ('no RANK' if cfg.launcher == 'pytorch' else cfg.launcher))
    torch.distributed.init_process_group('gloo')
    atexit.register(torch.distributed.destroy_process_group)
    # Before that (the last is called first): a group that a model's cycles
    # still hold would go down with the interpreter, under its own threads,
    # which may abort (pytorch/pytorch#179291).
    atexit.register(gc.collect)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None,
        broadcast_buffers=False)


# --------------------------------------------------------------- checkpoints
def load_checkpoint(path: str) -> dict:
    """Read a checkpoint without trusting it (``weights_only``).

    Raises:
        UserError: It is missing, damaged, or holds more than data.
    """
    allow_checkpoint_types()
    if not Path(path).is_file():
        raise UserError(f'{path}: checkpoint: expected a file, found none')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f'{path}: checkpoint: expected weights and plain '
                        'data, found a damaged file or one that holds more'
                        ) from error
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise UserError(f'{path}: checkpoint: expected a dict with '
                        '"state_dict", found none')
    return checkpoint


def check_checkpoint(path: str, model: torch.nn.Module) -> dict:
    """Read a checkpoint that must be of this very model.

    Raises:
        UserError: A parameter is missing, unknown or of another shape.
    """
    checkpoint = load_checkpoint(path)
    found, expected = checkpoint['state_dict'], model.state_dict()
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if missing or unknown:
        raise UserError(
            f'{path}: checkpoint of another model: expected the '
            f'{len(expected)} tensors of the config\'s model, found '
            f'{len(missing)} missing'
            + (f' (first "{missing[0]}")' if missing else '')
            + f' and {len(unknown)} unknown'
            + (f' (first "{unknown[0]}")' if unknown else ''))
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise UserError(
                f'{path}: checkpoint of another model: field "{name}": '
                f'expected shape {tuple(tensor.shape)}, found '
                f'{tuple(found[name].shape)}')
    return checkpoint


def _pixel_size(rig: dict, source: str) -> float:
    """Of the views of a ``rig.json``, in the middle (mm)."""
    try:
        views = Rig.from_dict(rig, source).views
    except ValueError as error:
        raise UserError(str(error)) from error
    return float(np.median([view.pixel_size for view in views]))


def warn_of_other_views(path: str, meta: dict, rig: Optional[dict]) -> None:
    """Log a warning where a model meets views that it cannot know.

    A network goes by what a finding looks like in pixels: one for 512 px on a
    detector finds little on 256 px, without an error. A quarter more or less
    at the isocentre is taken for the same.

    Args:
        path (str): Checkpoint, for the message.
        meta (dict): What it says of itself; that of a training holds the rig.
        rig (dict, optional): Content of ``rig.json`` of the views to come.

    Raises:
        UserError: One of the two is no rig.
    """
    trained = meta.get('dataset_meta', {}).get('rig')
    if not trained or not rig:
        return
    expected = _pixel_size(trained, f'{path}: field "dataset_meta.rig"')
    found = _pixel_size(rig, 'rig of the views')
    if not .8 * expected <= found <= 1.25 * expected:
        print_log(
            f'{path}: expected views as it was trained on, with pixels of '
            f'{expected:.2f} mm at the isocentre, found {found:.2f} mm: its '
            'figures do not hold for these', logger='current',
            level=logging.WARNING)


def load_model(cfg: Config, path: str,
               device: Optional[str] = None
               ) -> Tuple[torch.nn.Module, dict]:
    """The config's model with a checkpoint's weights, ready to predict.

    Args:
        cfg (Config): Whose ``model`` is built.
        path (str): Checkpoint.
        device (str, optional): Defaults to the GPU where there is one.

    Returns:
        tuple: The model, and what the checkpoint says of itself.

    Raises:
        UserError: As :func:`check_checkpoint`, or the config cannot be built.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    with config_errors(cfg):
        model = MODELS.build(cfg.model)
    checkpoint = check_checkpoint(path, model)
    model.load_state_dict(checkpoint['state_dict'])
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return model.to(device).eval(), checkpoint.get('meta', {})


def load_for_split(args: argparse.Namespace
                   ) -> Tuple[Config, torch.nn.Module]:
    """What a tool looks at: the config, whose test set is the split, and the
    model that its arguments say.

    Args:
        args: Those of :func:`argument_parser` with a split.

    Raises:
        UserError: As :func:`load_config` and :func:`load_model`.
    """
    cfg = config_of(args)
    select_split(cfg.test_dataloader.dataset, args.split)
    return cfg, load_model(cfg, args.checkpoint)[0]


@OPTIM_WRAPPERS.register_module()
class XRayBFloat16OptimWrapper(OptimWrapper):
    """Autocast on a CPU, which mmengine's AmpOptimWrapper does not do.

    bfloat16 has float32's range, so that no loss has to be scaled.
    """

    @contextlib.contextmanager
    def optim_context(self, model):
        """As in the base class, under autocast."""
        with super().optim_context(model):
            with torch.autocast('cpu', torch.bfloat16):
                yield


def use_half_precision(cfg: Config) -> None:
    """Train and test under autocast, as ``--amp`` asks: in float16 on a CUDA
    device, else in bfloat16."""
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'XRayBFloat16OptimWrapper'
    for loop in (cfg.get('val_cfg'), cfg.get('test_cfg')):
        if loop:
            loop.fp16 = True


def match_distance_of(cfg: Config) -> float:
    """Up to which a box hits a finding, as the config's metric says (mm)."""
    return next((e.get('match_distance', MATCH_DISTANCE)
                 for e in evaluators_of(cfg) if e.type == 'XRay3DMetric'),
                MATCH_DISTANCE)


# ------------------------------------------------------------------ progress
@HOOKS.register_module()
class XRayProgressHook(Hook):
    """A progress bar with an ETA over training, validation and test."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.bars = {}

    def _start(self, runner, mode: str, total: int, done: int = 0) -> None:
        if runner.rank == 0:
            self.bars[mode] = tqdm(
                total=total, initial=done, desc=mode, unit='it',
                file=sys.stderr, dynamic_ncols=True, mininterval=1,
                smoothing=.05)

    def _step(self, mode: str) -> None:
        if mode in self.bars:
            self.bars[mode].update()

    def _stop(self, mode: str) -> None:
        if mode in self.bars:
            self.bars.pop(mode).close()

    def before_train(self, runner) -> None:
        """Start the bar of the whole training."""
        self._start(runner, 'train', runner.max_iters, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        """One iteration done."""
        self._step('train')

    def after_train(self, runner) -> None:
        """Close the bar."""
        self._stop('train')

    def before_val_epoch(self, runner) -> None:
        """Start the bar of one validation."""
        self._start(runner, 'val', len(runner.val_dataloader))

    def after_val_iter(self, runner, batch_idx, data_batch=None,
                       outputs=None) -> None:
        """One sample done."""
        self._step('val')

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Close the bar."""
        self._stop('val')

    def before_test_epoch(self, runner) -> None:
        """Start the bar of the test."""
        self._start(runner, 'test', len(runner.test_dataloader))

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        """One sample done."""
        self._step('test')

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Close the bar."""
        self._stop('test')


@HOOKS.register_module()
class XRayClassCheckHook(Hook):
    """Refuses a model of more or fewer classes than the set's.

    mmdet's NumClassCheckHook does not look at tests. The 2D stage may have
    any number where its heads do not run.
    """

    def before_train(self, runner) -> None:
        """Look at the set to train on."""
        self._check(runner.model, runner.train_dataloader.dataset)

    def before_test(self, runner) -> None:
        """Look at the set to test on."""
        self._check(runner.model, runner.test_dataloader.dataset)

    @staticmethod
    def _check(model: torch.nn.Module, dataset) -> None:
        model = inner_model(model)
        classes = dataset.metainfo['classes']
        for name, part in model.named_modules():
            count = getattr(part, 'num_classes', None)
            idle = name.startswith('detector_2d') and not model.with_2d
            if count is None or idle or name.endswith('rpn_head'):
                continue
            if count != len(classes):
                raise UserError(
                    f'config key "model.{name}.num_classes": expected '
                    f'{len(classes)}, as the set has classes '
                    f'{", ".join(classes)}, found {count}')


@HOOKS.register_module()
class XRayCheckpointHook(Hook):
    """Makes checkpoints plain data that resume exactly.

    mmengine stores its running means as objects that torch's safe loading
    refuses; here they become numbers on saving and objects again on loading.
    mmengine feeds a resumed training by iterations the data it would have
    seen, with the same augmentation; one by epochs goes on with the same
    order of scans and other augmentation. Torch's generators, from which
    samplers and dropout in the model draw, are stored and put back, too.
    """

    def __init__(self) -> None:
        self.random_state = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace objects by numbers, add the generators' states."""
        scalars = checkpoint['message_hub'].pop('log_scalars')
        checkpoint['message_hub'] = _plain(checkpoint['message_hub'])
        checkpoint['message_hub']['log_scalars'] = {
            name: (buffer.data[0].tolist(), buffer.data[1].tolist(),
                   buffer.max_length)
            for name, buffer in scalars.items()
        }
        checkpoint['meta'] = _plain(checkpoint['meta'])
        checkpoint['random_state'] = [
            torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Rebuild the objects; keep the states until the data caught up."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            if isinstance(value, tuple):
                scalars[name] = HistoryBuffer(*value)
        self.random_state = checkpoint.get(
            'random_state') if runner._resume else None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Put the generators back before the first iteration."""
        state, self.random_state = self.random_state, None
        if state is not None:
            torch.set_rng_state(state[0].cpu())
            if len(state) - 1 == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([s.cpu() for s in state[1:]])


def _plain(value):
    """Containers of Python numbers, strings and tensors only."""
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value
