"""Hooks of trainings and tests: progress, checks, checkpoints, pictures."""

import logging
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from tqdm import tqdm

from projects.core import geometry
from projects.core.boxes import gravity_boxes
from projects.core.drawing import draw_images, draw_views, shown_views
from projects.core.engine.checkpoints import (
    check_classes,
    class_counts,
    inner_model,
    patients_of,
    seen_patients,
)
from projects.core.engine.command_line import UserError
from projects.core.engine.known_views import know_views
from projects.core.projections import decode_image

__all__ = [
    'ClassCheckHook', 'DrawBoxesHook', 'KnownViewsHook', 'PatientsSeenHook',
    'PlainCheckpointHook', 'ProgressBarHook', 'RangeCheckHook', 'StageHook'
]


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar with an ETA over training, validation and test."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.bars: Dict[str, tqdm] = {}

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
class ClassCheckHook(Hook):
    """Refuses a model of more or fewer classes than the set's, and a
    checkpoint that was trained on others or in another order.

    mmdet's NumClassCheckHook does not look at tests, nor at names. A training
    may start from the weights of other classes (``load_from``), it cannot go
    on with them (``resume``).
    """

    def __init__(self) -> None:
        self.loaded: dict = {}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep what the checkpoint says of itself."""
        self.loaded = checkpoint.get('meta', {})

    def before_train(self, runner) -> None:
        """Look at the set to train on."""
        self._check(runner, runner.train_dataloader.dataset, runner._resume)

    def before_test(self, runner) -> None:
        """Look at the set to test on."""
        self._check(runner, runner.test_dataloader.dataset, True)

    def _check(self, runner, dataset, names: bool) -> None:
        classes = dataset.metainfo['classes']
        for name, count in class_counts(runner.model).items():
            if count != len(classes):
                raise UserError(
                    f'config key "model.{name}.num_classes": expected '
                    f'{len(classes)}, as the set has classes '
                    f'{", ".join(classes)}, found {count}')
        if names and self.loaded:
            check_classes(str(runner._load_from or runner.work_dir),
                          self.loaded, classes)


@HOOKS.register_module()
class RangeCheckHook(Hook):
    """Says how many findings a model cannot find, since they lie outside the
    part of space in which it looks.

    A model says where it looks as ``search_ranges``: by source of boxes,
    ``[x0, y0, z0, x1, y1, z1]`` (mm). In training such findings teach that
    source nothing, in a test they count as missed.
    """

    def before_train(self, runner) -> None:
        """Look at the set to train on."""
        self._tell(runner.model, runner.train_dataloader.dataset)

    def before_test(self, runner) -> None:
        """Look at the set to test on."""
        self._tell(runner.model, runner.test_dataloader.dataset)

    @staticmethod
    def _tell(model: torch.nn.Module, dataset) -> None:
        ranges = getattr(inner_model(model), 'search_ranges', {})
        if not ranges:
            return
        infos = map(dataset.get_data_info, range(len(dataset)))
        centres = [
            (info['token'],
             gravity_boxes(info['ann_info']['gt_bboxes_3d'])[:, :3].numpy())
            for info in infos
        ]
        total = sum(len(places) for _, places in centres)
        for source, limits in ranges.items():
            low, high = np.reshape(limits, (2, 3))
            outside = {
                token: int(beyond.sum()) for token, places in centres
                if (beyond := ((places < low) | (places > high)).any(1)).any()
            }
            if not outside:
                continue
            others = [name for name in ranges if name != source]
            print_log(
                f'{sum(outside.values())} of {total} findings, in '
                f'{len(outside)} of {len(dataset)} scans, the first in '
                f'{next(iter(outside))}, lie outside the box '
                f'{[float(v) for v in limits]} mm in which the model\'s '
                f'source "{source}" looks: '
                + (f'only {" and ".join(others)} can find them'
                   if others else 'it can never find them'),
                logger='current', level=logging.WARNING)


@HOOKS.register_module()
class PatientsSeenHook(Hook):
    """Writes into checkpoints on which patients or parts they were trained,
    those of the checkpoints that they started from included.

    ``patients_seen`` has their names, sorted; ``patients_seen_complete`` is
    false where a start did not tell its own.
    """

    def __init__(self) -> None:
        self.seen: Set[str] = set()
        self.complete = True

    def _add(self, names: Set[str], complete: bool) -> None:
        self.seen |= names
        self.complete &= complete

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add those of the start."""
        self._add(*seen_patients(checkpoint.get('meta', {})))

    def before_train(self, runner) -> None:
        """Add those of the set to train on."""
        self._add(*patients_of(runner.train_dataloader.dataset))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write them down."""
        checkpoint['meta'].update(patients_seen=sorted(self.seen),
                                  patients_seen_complete=self.complete)


@HOOKS.register_module()
class KnownViewsHook(Hook):
    """Writes into checkpoints what the views to train on are like, see
    :mod:`projects.core.engine.known_views`.

    Sets of CT slices are left alone: they say what they are themselves.
    """

    def __init__(self) -> None:
        self.known: Optional[dict] = None

    def before_train(self, runner) -> None:
        """Look at some views of the set to train on."""
        dataset = runner.train_dataloader.dataset
        if 'rig' in dataset.metainfo:
            self.known = know_views(dataset)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write it down."""
        if self.known is not None:
            checkpoint['meta']['known_views'] = self.known


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
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


@HOOKS.register_module()
class StageHook(Hook):
    """Trains one part of a model after the other, each at its own rate.

    What is not of a stage is as it was at its end: no gradient, no weight
    decay, no momentum, and norms keep their statistics. What the model itself
    freezes stays frozen. A schedule of the rate (``param_scheduler``) belongs
    to a training without stages.

    Args:
        stages (list[dict]): Each with ``length``, relative to those of the
            others: all together are the training; ``lr``; and ``parts``,
            dotted names within those of parameters. Without parts all is
            trained.

    Raises:
        UserError: A stage is of no length, or a part is none of the model's.
    """

    def __init__(self, stages: Sequence[dict]) -> None:
        self.stages = [dict(stage) for stage in stages]
        for stage in self.stages:
            if stage['length'] <= 0:
                raise UserError('StageHook: stages: length: expected more '
                                f'than 0, found {stage["length"]}')
        self.stage: Optional[int] = None
        self.trainable: Dict[str, torch.nn.Parameter] = {}
        self.still: List[torch.nn.Module] = []

    def before_train(self, runner) -> None:
        """See what there is."""
        model = inner_model(runner.model)
        self.stage = None
        self.trainable = {name: p for name, p in model.named_parameters()
                          if p.requires_grad}
        for stage in self.stages:
            for part in stage.get('parts', ()):
                if not any(_within(part, name) for name in self.trainable):
                    raise UserError(
                        f'StageHook: stages: parts: expected parts of '
                        f'{type(model).__name__} that can be trained, found '
                        f'"{part}"')

    def stage_at(self, iteration: int, total: int) -> int:
        """Number of the stage of an iteration, of so many."""
        ends = np.cumsum([stage['length'] for stage in self.stages])
        ends = np.round(ends / ends[-1] * total).astype(int)
        return min(int(np.searchsorted(ends, iteration, side='right')),
                   len(ends) - 1)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Begin a stage where its time has come."""
        stage = self.stage_at(runner.iter, runner.max_iters)
        if stage != self.stage:
            self.stage = stage
            self._begin(runner, self.stages[stage])
        for norm in self.still:  # each epoch sets them to training
            norm.eval()

    def _begin(self, runner, stage: dict) -> None:
        parts = stage.get('parts')
        for name, parameter in self.trainable.items():
            parameter.requires_grad = parts is None or any(
                _within(part, name) for part in parts)
            if not parameter.requires_grad:
                parameter.grad = None
        self.still = [
            module for name, module in
            inner_model(runner.model).named_modules() if parts is not None
            and isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            and not any(_within(part, name) for part in parts)]
        for group in runner.optim_wrapper.param_groups:
            group['lr'] = stage['lr']
        print_log(f'stage {(self.stage or 0) + 1} of {len(self.stages)}: '
                  f'{", ".join(parts or ["all"])}, learning rate '
                  f'{stage["lr"]:g}', logger='current')


def _within(part: str, name: str) -> bool:
    """Whether a dotted name has these parts in it."""
    return f'.{part}.' in f'.{name}.'


@HOOKS.register_module()
class DrawBoxesHook(Hook):
    """Draws what is found: one picture per tested scan as a file, and the
    first validation scans for the visualizer's backends. Of images without
    cameras a picture has all of a patient that come together.

    Args:
        out_dir (str, optional): Folder of a test's PNGs. Without it a test is
            not drawn.
        score_thr (float): Predictions below are not drawn.
        max_scans (int, optional): Scans of a validation that are drawn.
            Defaults to 4.
    """

    def __init__(self, out_dir: Optional[str] = None, score_thr: float = .3,
                 max_scans: int = 4) -> None:
        self.out_dir = Path(out_dir) if out_dir else None
        self.score_thr = score_thr
        self.max_scans = max_scans

    def _draw(self, images, sample, out_file: Optional[Path] = None
              ) -> Figure:
        meta, truth = sample.metainfo, sample.eval_ann_info
        found = sample.pred_instances_3d
        found = found[found.scores_3d >= self.score_thr]
        boxes = dict(
            ground_truth=gravity_boxes(truth['gt_bboxes_3d']).numpy(),
            prediction=gravity_boxes(found.bboxes_3d).cpu().numpy(),
            ignored=gravity_boxes(truth['ignored_bboxes_3d']).numpy())
        ct2img = np.asarray(meta['ct2img'])
        rows = shown_views(ct2img, np.concatenate(list(boxes.values())))
        return draw_views(
            images[rows, images.shape[1] // 2].cpu().numpy(), ct2img[rows],
            out_file, title=meta['token'],
            names=[meta['view_names'][row] for row in rows]
            if geometry.are_slices(ct2img) else None,
            scores=found.scores_3d.cpu().numpy(), **boxes)

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        """Write the pictures of one batch."""
        if self.out_dir is None:
            return
        if not hasattr(outputs[0], 'pred_instances_3d'):
            for patient, images in _by_patient(outputs).items():
                draw_images([_image_of(image, self.score_thr)
                             for image in images],
                            self.out_dir / f'{patient}.png')
            return
        inputs = data_batch['inputs']
        if isinstance(inputs, list):  # of augmentation: boxes are the first's
            inputs = inputs[0]
        for images, sample in zip(inputs['img'], outputs):
            self._draw(images, sample,
                       self.out_dir / f'{sample.metainfo["token"]}.png')

    def after_val_iter(self, runner, batch_idx, data_batch=None,
                       outputs=None) -> None:
        """Show the first scans."""
        if not hasattr(outputs[0], 'pred_instances_3d'):
            if batch_idx < self.max_scans and runner.rank == 0:
                for patient, images in _by_patient(outputs).items():
                    self._show(runner, patient, draw_images(
                        [_image_of(image, self.score_thr)
                         for image in images]))
            return
        batch = zip(data_batch['inputs']['img'], outputs)
        for index, (images, sample) in enumerate(
                batch, batch_idx * len(outputs)):
            if index < self.max_scans and runner.rank == 0:
                self._show(runner, sample.metainfo['token'],
                           self._draw(images, sample))

    @staticmethod
    def _show(runner, name: str, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        runner.visualizer.add_image(
            f'val_{name}', np.asarray(canvas.buffer_rgba())[..., :3],
            step=runner.iter)


def _by_patient(samples: list) -> Dict[str, list]:
    """Images of a batch by their patients."""
    groups: Dict[str, list] = {}
    for sample in samples:
        groups.setdefault(sample.patient, []).append(sample)
    return groups


def _image_of(sample, score_thr: float) -> dict:
    """What :func:`draw_images` draws of an image, as its file has it."""
    found = sample.pred_instances
    found = found[found.scores >= score_thr]
    scale = np.tile(sample.scale_factor, 2)
    return dict(
        title=f'{sample.patient}, {sample.laterality} {sample.view}',
        image=decode_image(sample.img_path),
        ground_truth=sample.gt_instances.bboxes.cpu().numpy() / scale,
        ignored=sample.ignored_instances.bboxes.cpu().numpy() / scale,
        prediction=found.bboxes.cpu().numpy(),
        scores=found.scores.cpu().numpy())
