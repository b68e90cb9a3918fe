"""Configs: reading, overriding, building what they say."""

import argparse
import atexit
import contextlib
import difflib
import gc
import importlib.util
import os
import traceback
from pathlib import Path
from typing import Dict, List, Optional
from urllib.error import URLError

import torch
from mmdet3d.registry import METRICS
from mmengine.config import Config
from mmengine.registry import build_functions
from mmengine.runner import Runner, checkpoint
from mmengine.utils import import_modules_from_strings

from projects.core.engine.command_line import UserError
from projects.core.engine.precision import use_half_precision
from projects.core.evaluation.matching import MATCH_DISTANCE
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.files import DataError
from projects.core.infos import coco_name, infos_name

__all__ = [
    'build_runner', 'config_errors', 'config_of', 'evaluators_3d_of',
    'load_config', 'match_distance_of', 'select_split'
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


def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config and override parts of it.

    A relative ``data_root``, ``load_from`` or ``checkpoint`` of weights to
    start from is looked for in the current folder, and where there is none,
    beside the ``configs`` folder that holds the config.

    Args:
        path (str): Config file, or the name of one that was installed with
            the package. Configs are programs: run only trusted ones.
        options (dict, optional): Dotted keys and values, from
            ``--cfg-options``.

    Raises:
        UserError: The file cannot be read, or a key is misspelt.
    """
    if not Path(path).is_file():
        path = _installed_config(path)
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
    _anchor_paths(cfg, Path(path).resolve())
    return cfg


def _installed_config(name: str) -> str:
    """The file of a config that is given by its name alone."""
    spec = importlib.util.find_spec('mv2d_xray_configs')
    folders = spec and spec.submodule_search_locations or ()
    for folder in folders:
        for path in Path(folder).glob('[!_]*/*.py'):
            if name in (path.stem, path.name):
                return str(path)
    raise UserError(f'{name}: config: expected a file, found none')


def _anchor_paths(cfg: Config, path: Path) -> None:
    """Let a checkout's configs work from any folder."""
    root = next((p.parent for p in path.parents if p.name == 'configs'), None)
    if root is None:
        return

    def visit(node):
        if isinstance(node, (list, tuple)):
            for value in node:
                visit(value)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key not in ('data_root', 'load_from', 'checkpoint') or (
                        not isinstance(value, str)):
                    visit(value)
                elif value and not Path(value).exists() and (
                        root / value).exists():
                    node[key] = str(root / value)

    visit(cfg._cfg_dict)


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
            if not close and part == key:  # of a place that is not named
                places = _places(cfg)
                close = [places[name][0] for name in
                         difflib.get_close_matches(part, places, 1)]
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
    places = _places(cfg).get(key)
    hint = ', '.join(places) if places else 'a part of what is built'
    raise UserError(f'--cfg-options {key}: expected {hint}, found a variable '
                    'that only helps to write the config')


def _places(cfg: Config) -> Dict[str, List[str]]:
    """Dotted keys of all that is built, by their last names."""
    places: Dict[str, List[str]] = {}

    def search(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                search(value, (*path, key))
        elif isinstance(node, (list, tuple)):
            for i, value in enumerate(node):
                search(value, (*path, str(i)))
        if path and path[0] in _RUNNER_KEYS:
            places.setdefault(path[-1], []).append('.'.join(path))

    search(cfg.to_dict(), ())
    return places


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
    name = Path(dataset.ann_file)
    if name.stem.startswith('instances_'):  # COCO's own name
        dataset.ann_file = str(name.with_name(f'instances_{split}.json'))
        return
    dataset.ann_file = infos_name(split, Path(dataset.ann_file).suffix)
    if dataset.get('coco_file'):
        dataset.coco_file = coco_name(split)


def evaluators_3d_of(cfg: Config) -> List[Config]:
    """Configs of the 3D metrics of a test, which may have one or a list of
    metrics: those that build an :class:`Indication3DMetric`."""
    found = cfg.test_evaluator

    def is_3d(kind) -> bool:
        kind = METRICS.get(kind) if isinstance(kind, str) else kind
        return isinstance(kind, type) and issubclass(kind, Indication3DMetric)

    return [e for e in (found if isinstance(found, list) else [found])
            if is_3d(e.type)]


@contextlib.contextmanager
def config_errors(cfg: Config):
    """Whatever a registry cannot build is the config's fault.

    The runner builds some parts only when they are needed: a training belongs
    inside, too.

    Raises:
        UserError: A class does not take what the config gives it, or weights
            to start from cannot be fetched.
    """

    def is_from(error: BaseException, module) -> bool:
        return any(frame.f_code.co_filename == module.__file__ for frame, _
                   in traceback.walk_tb(error.__traceback__))

    try:
        yield
    except (UserError, DataError):
        raise
    except (ModuleNotFoundError, URLError) as error:
        places = [key for key in _places(cfg).get('checkpoint', ())
                  if key.startswith('model.')]
        if not places or not is_from(error, checkpoint):
            raise
        weights = cfg
        for key in places[0].split('.'):
            weights = weights[key]
        raise UserError(
            f'{cfg.filename}: {places[0]}: expected weights that can be '
            f'fetched, found {weights}: {error}; name a file with '
            f'--cfg-options {places[0]}=...') from error
    except (TypeError, KeyError, ValueError) as error:
        if not is_from(error, build_functions):
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
    _fit_schedule(cfg)
    with config_errors(cfg):
        return Runner.from_cfg(cfg)


def _fit_schedule(cfg: Config) -> None:
    """Leave out what would begin after a short training's last iteration.

    mmengine ends schedulers that have no ``end`` with the training, and
    refuses those that end before they begin.
    """
    iters = (cfg.get('train_cfg') or {}).get('max_iters')
    if isinstance(iters, int) and isinstance(cfg.get('param_scheduler'), list):
        cfg.param_scheduler = [
            s for s in cfg.param_scheduler if 'end' in s
            or s.get('by_epoch', True) or s.get('begin', 0) < iters]


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
        broadcast_buffers=False, find_unused_parameters=cfg.get(
            'find_unused_parameters', False))


def match_distance_of(cfg: Config) -> float:
    """Up to which a box hits a finding, as the config's metric says (mm)."""
    return next((e.get('match_distance', MATCH_DISTANCE)
                 for e in evaluators_3d_of(cfg)), MATCH_DISTANCE)
