"""Checkpoints: reading them as data, checking them against a model."""

import argparse
import logging
from pathlib import Path
from typing import Dict, Optional, Sequence, Set, Tuple, cast

import numpy as np
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from projects.core.engine.command_line import UserError
from projects.core.engine.configs import config_errors, config_of, select_split
from projects.core.inference import other_views

# What a slice looks like.
_OF_SLICES = ('channels', 'slab_mm', 'overlap', 'window', 'spacing',
              'mask_lungs', 'clahe')

__all__ = [
    'allow_checkpoint_types', 'check_checkpoint', 'check_classes',
    'class_counts', 'class_names', 'inner_model', 'load_checkpoint',
    'load_for_split', 'load_model', 'patients_of', 'seen_patients',
    'warn_of_other_slices', 'warn_of_other_views', 'warn_of_seen_patients'
]


def allow_checkpoint_types() -> None:
    """Let ``torch.load`` read NumPy numbers beside weights, nothing more.

    Checkpoints of other mmengine projects may hold them; ours are plain, see
    :class:`PlainCheckpointHook`.
    """
    torch.serialization.add_safe_globals([
        np.ndarray, np.dtype,
        *(vars(np.core.multiarray)[n] for n in ('_reconstruct', 'scalar')),
        *(type(np.dtype(name)) for name in (
            'bool', 'int32', 'int64', 'uint8', 'float32', 'float64', 'U1'))
    ])


def inner_model(model: torch.nn.Module) -> torch.nn.Module:
    """The detector in what test-time augmentation or several processes wrap
    round it."""
    while hasattr(model, 'module'):
        model = cast(torch.nn.Module, model.module)
    return model


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

    Tensors that begin with a name in the model's ``left_out``, if it has
    that, are known not to be needed: they are dropped.

    Raises:
        UserError: A parameter is missing, unknown or of another shape.
    """
    checkpoint = load_checkpoint(path)
    expected = model.state_dict()
    left_out = getattr(inner_model(model), 'left_out', ())
    found = checkpoint['state_dict'] = {
        name: tensor for name, tensor in checkpoint['state_dict'].items()
        if name in expected or not name.startswith(left_out)}
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


# ------------------------------------------------------------------- classes
def class_counts(model: torch.nn.Module) -> Dict[str, int]:
    """Number of classes of each part of a detector, by the part's name."""
    model, counts = inner_model(model), {}
    for name, part in model.named_modules():
        count = getattr(part, 'num_classes', None)
        if count is not None and not name.endswith('rpn_head'):
            counts[name] = count
    return counts


def _trained_classes(meta: dict) -> Tuple[str, ...]:
    """Names that a checkpoint's metadata has, by label; none in many."""
    return tuple(meta.get('dataset_meta', {}).get('classes') or ())


def check_classes(path: str, meta: dict, classes: Sequence[str]) -> None:
    """A checkpoint's classes must be the set's, in the set's order: a network
    knows a class as a number.

    One class by another name may mean the same, as a lesion and a nodule: it
    is logged. Checkpoints that say nothing of their classes pass.

    Args:
        path (str): Checkpoint, for the message.
        meta (dict): What it says of itself.
        classes (Sequence[str]): Of the set.

    Raises:
        UserError: They are others, or in another order.
    """
    trained, classes = _trained_classes(meta), tuple(classes)
    if not trained or trained == classes:
        return
    text = (f'{path}: field "dataset_meta.classes": expected the set\'s '
            f'classes, {", ".join(classes)}, in this order, found '
            f'{", ".join(trained)}')
    if len(trained) == len(classes) == 1:
        print_log(f'{text}: figures hold if these are the same',
                  logger='current', level=logging.WARNING)
    else:
        raise UserError(text)


def class_names(path: str, meta: dict,
                model: torch.nn.Module) -> Tuple[str, ...]:
    """What a checkpoint's labels mean; without metadata ``indication``, or
    ``indication_0``, ``indication_1``... of a model of several classes.

    Raises:
        UserError: It has more or fewer names than the model has classes.
    """
    names, count = _trained_classes(meta), max(
        class_counts(model).values(), default=1)
    if not names:
        return ('indication', ) if count == 1 else tuple(
            f'indication_{label}' for label in range(count))
    if len(names) != count:
        raise UserError(
            f'{path}: field "dataset_meta.classes": expected {count} names, '
            f'as the config\'s model has classes, found {", ".join(names)}')
    return names


# --------------------------------------------------------------------- views
def warn_of_other_views(path: str, meta: dict, rig: Optional[dict]) -> None:
    """Log a warning where a model meets views that it cannot know, see
    :func:`~projects.core.inference.other_views`."""
    told = other_views(path, meta, rig)
    if told:
        print_log(told, logger='current', level=logging.WARNING)


def warn_of_other_slices(path: str, meta: dict,
                         slices: Optional[dict]) -> None:
    """Log a warning where a model meets CT slices that it cannot know, made
    with other channels, slabs or overlap of them, grey window, pixels or
    contrast.

    Args:
        path (str): Checkpoint, for the message.
        meta (dict): What it says of itself.
        slices (dict, optional): How the slices to come were made, as a set's
            ``options.json`` says.
    """
    trained = meta.get('dataset_meta', {}).get('slices')
    if not trained or not slices:
        return
    others = [f'{key} {trained.get(key)} (found {slices.get(key)})'
              for key in _OF_SLICES if trained.get(key) != slices.get(key)]
    if others:
        print_log(
            f'{path}: expected slices as it was trained on, with '
            f'{", ".join(others)}: its figures do not hold for these',
            logger='current', level=logging.WARNING)


# ------------------------------------------------------------------ patients
def patients_of(dataset: BaseDataset) -> Tuple[Set[str], bool]:
    """Names of a set's patients or parts, and whether all samples say
    theirs."""
    names = [dataset.get_data_info(row).get('lidc_id_ref')
             for row in range(len(dataset))]
    return {str(name) for name in names if name}, all(names)


def seen_patients(meta: dict) -> Tuple[Set[str], bool]:
    """Names of those that a checkpoint was trained on, and whether these are
    all: older checkpoints, and what has started from one, do not know."""
    names = meta.get('patients_seen')
    if not isinstance(names, list):
        return set(), False
    return set(map(str, names)), meta.get('patients_seen_complete') is True


def warn_of_seen_patients(path: str, meta: dict,
                          dataset: BaseDataset) -> Optional[int]:
    """Log a warning where a model is tested on what it was trained on.

    Args:
        path (str): Checkpoint, for the message.
        meta (dict): What it says of itself.
        dataset (BaseDataset): To test on.

    Returns:
        int, optional: Patients or parts of the set that it was trained on, by
        their names; None where none is known and there may be some.
    """
    (seen, complete), (tested, named) = seen_patients(meta), patients_of(
        dataset)
    both = sorted(seen & tested)
    if both:
        print_log(
            f'{path}: was trained on {len(both)} of the {len(tested)} '
            f'patients or parts that it is tested on ({", ".join(both[:3])}'
            + (' ...' if len(both) > 3 else '')
            + '): the figures are flattered', logger='current',
            level=logging.WARNING)
    return len(both) if both or (complete and named) else None


# -------------------------------------------------------------------- models
def load_model(cfg: Config, path: str,
               device: Optional[str] = None
               ) -> Tuple[torch.nn.Module, dict]:
    """The config's detector with a checkpoint's weights, ready to predict.

    Args:
        cfg (Config): Whose ``model`` is built.
        path (str): Checkpoint.
        device (str, optional): Defaults to the GPU where there is one.

    Returns:
        tuple: The model, and what the checkpoint says of itself.

    Raises:
        UserError: As :func:`check_checkpoint`, or the config cannot be built,
            or is of no detector.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    with config_errors(cfg):
        model = MODELS.build(cfg.model)
    if not hasattr(model, 'with_2d'):
        raise UserError(f'{cfg.filename}: model: expected one that finds '
                        f'boxes, found {type(model).__name__}')
    checkpoint = check_checkpoint(path, model)
    model.load_state_dict(checkpoint['state_dict'])
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return model.to(device).eval(), checkpoint.get('meta', {})


def load_for_split(args: argparse.Namespace
                   ) -> Tuple[Config, torch.nn.Module, BaseDataset]:
    """What a tool looks at: the config, whose test set is the split, the
    model that its arguments say, and that set.

    Args:
        args: Those of :func:`argument_parser` with a split.

    Raises:
        UserError: As :func:`load_config`, :func:`load_model` and
            :func:`check_classes`.
    """
    cfg = config_of(args)
    select_split(cfg.test_dataloader.dataset, args.split)
    model, meta = load_model(cfg, args.checkpoint)
    data = DATASETS.build(cfg.test_dataloader.dataset)
    check_classes(args.checkpoint, meta, data.metainfo['classes'])
    return cfg, model, data
