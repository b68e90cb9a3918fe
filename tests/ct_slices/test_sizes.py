"""The sizes of documents 002 and 003, and the transformers in small: they are
built, and take a step."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import checkpoint
from mmengine.structures import InstanceData

import projects.ct_slices  # noqa: F401  registers everything
from projects.core.engine.configs import build_runner, load_config
from projects.core.explain import METHODS, target_of
from projects.core.files import load_json
from projects.ct_slices.backbone import EfficientNetV2S
from tests.helpers.commands import error_of, tool
from tests.helpers.slices import make_slice_set

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/ct_slices').glob('*_30e_*.py'))
TRANSFORMERS = sorted((ROOT / 'configs/ct_slices').glob('*detr_*.py'))


def batch(boxes, size=64):
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            img_shape=(size, size), ori_shape=(size, size),
            scale_factor=(1., 1.)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8., 8, 20, 20]] * boxes).reshape(-1, 4),
            labels=torch.zeros(boxes, dtype=int))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8,
                           generator=generator)
    return dict(inputs=list(images), data_samples=samples)


def built(path):
    cfg = Config.fromfile(path)
    cfg.model.detector_2d.backbone.init_cfg = None  # no hub in a test
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return cfg, model


def test_there_are_six():
    kinds = {tuple(path.stem.split('_')[:2]) for path in CONFIGS}
    assert kinds == {(detector, backbone)
                     for detector in ('faster-rcnn', 'retinanet')
                     for backbone in ('r50', 'mobilenet-v2',
                                      'efficientnet-v2-s')}


def takes_steps(model):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    values = []
    for _ in range(2):
        data = model.data_preprocessor(batch(1), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert all(0 < value < 1e4 for value in values)
    touched = [name for name, p in model.named_parameters()
               if p.grad is not None and p.grad.abs().sum() > 0]
    assert any('backbone' in name for name in touched)
    model.eval()
    found = model.detect_2d(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    assert found.bboxes.shape[1] == 4 and len(found.scores) <= 60


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_papers_size_takes_a_step(path):
    cfg, model = built(path)
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    takes_steps(model)


@pytest.mark.parametrize('path', [
    pytest.param(path, marks=pytest.mark.slow if '_r50_' in path.stem else ())
    for path in TRANSFORMERS], ids=lambda p: p.stem)
def test_a_transformer_takes_a_step(path):
    cfg, model = built(path)
    if '15e' in path.stem:
        # Document 003's, as the data set, too, has to be told.
        wrapper = cfg.optim_wrapper
        assert cfg.train_dataloader.batch_size == 6
        assert wrapper.accumulative_counts == 6
        assert wrapper.clip_grad.max_norm == .1
        assert cfg.param_scheduler[0].milestones == [10]
        rates = {group['lr'] for group in build_optim_wrapper(
            model, wrapper).optimizer.param_groups}
        assert rates == {1e-4, 1e-5}
    head = model.detector_2d.bbox_head
    assert (head.loss_cls.gamma, head.loss_cls.alpha) == (2, .25)
    data = model.data_preprocessor(batch(0), True)
    loss, _ = model.parse_losses(model.train()(**data, mode='loss'))
    assert loss < 1  # without boxes nothing is far off at the start
    takes_steps(model)


def test_small_transformers_learn_one_slab():
    """Both find what they are shown again and again."""
    for path in TRANSFORMERS:
        if 'small' not in path.stem:
            continue
        model = built(path)[1].train()
        data = batch(1)
        for image in data['inputs']:
            image[:, 8:20, 8:20] = 255
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(80):
            ready = model.data_preprocessor(data, True)
            loss, _ = model.parse_losses(model(**ready, mode='loss'))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step()
        # Squares are as large as what was trained on, here, too.
        model.tile = data['inputs'][0].shape[-1]
        found = model.eval().detect_2d(torch.stack(data['inputs']))
        for view in range(2):
            mine = found.view_ids == view
            best = found.bboxes[mine][found.scores[mine].argmax()]
            assert bbox_overlaps(best[None], torch.tensor(
                [[8., 8, 20, 20]])).item() > .5, path.stem


@pytest.mark.parametrize('name', [
    'deformable-detr_small_slabs_6000i_quick-v2-slabs',
    'retinanet_mobilenet-v2_neighbours_30e_mid-v2-slices'])
def test_a_box_in_a_slice_is_explained(name):
    """Whatever the detector, the box is found again in its slice alone."""
    cfg, model = built(ROOT / f'configs/ct_slices/{name}.py')
    model.detector_2d.bbox_head.test_cfg.score_thr = 0.  # it has not learned
    model.eval().tile = 64
    images = torch.stack(batch(0)['inputs'])
    with torch.no_grad():
        found = model.detect_2d(images)
    view = int(found.view_ids[0])
    sample = dict(inputs=dict(img=images), data_samples=DetDataSample(
        metainfo=dict(ct2img=[np.eye(4)] * len(images))))
    detection = InstanceData(bboxes=found.bboxes[:1],
                             scores=found.scores[:1], labels=found.labels[:1])
    target = target_of(model, sample, detection, view)
    assert list(target.rows) == [view]
    assert target.similarity(target.views) == pytest.approx(
        float(detection.scores[0]), rel=1e-3)
    heat = METHODS['eigen-cam'](target, torch.Generator().manual_seed(0))
    assert heat.shape == (1, 64, 64) and torch.isfinite(heat).all()


def test_a_batch_without_boxes():
    for path in CONFIGS:
        if 'mobilenet' in path.stem:
            model = built(path)[1].train()
            data = model.data_preprocessor(batch(0), True)
            loss, _ = model.parse_losses(model(**data, mode='loss'))
            loss.backward()
            assert torch.isfinite(loss)


def test_efficientnet_v2_s_is_the_papers():
    """Its table 4 and its number of parameters, 21.5 M with the last
    convolution (256 to 1280) and the classifier of 1000."""
    model = EfficientNetV2S(out_indices=range(6))
    maps = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (24, 32, 48), (48, 16, 24), (64, 8, 12), (128, 4, 6), (160, 4, 6),
        (256, 2, 3)]
    own = sum(p.numel() for p in model.parameters())
    rest = 256 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert own + rest == 21_458_488
    assert len(EfficientNetV2S(out_indices=(1, 2)).stages) == 3
    kept = EfficientNetV2S(norm_eval=True).train()
    norms = [m for m in kept.modules()
             if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert kept.stages[0].training


def test_early_stopping_counts_validations(tmp_path):
    cfg = load_config(str(CONFIGS[0]), {
        'model.detector_2d.backbone.init_cfg': None})
    cfg.work_dir = str(tmp_path)
    hooks = [h for h in cfg.custom_hooks if h.type == 'EarlyStoppingHook']
    assert len(hooks) == 1 and len(cfg.custom_hooks) > 4
    # Ten epochs without a gain are over at the fourth validation of three.
    assert hooks[0].patience == -(-10 // cfg.train_cfg.val_interval)
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'] = None
    for name in ('train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper',
                 'param_scheduler', 'val_evaluator', 'test_evaluator'):
        cfg[name] = None
    runner = build_runner(cfg)
    assert any(type(h).__name__ == 'EarlyStoppingHook' for h in runner.hooks)


@pytest.mark.parametrize('series, after', [
    ([.3 + .001 * step for step in range(20)], None),  # slowly, but up
    ([.5, *[.49 + .001 * step for step in range(9)]], 5),  # below the first
    ([.2] * 10, 5)])
def test_early_stopping_takes_any_gain_for_one(series, after):
    """The first validation and four without a gain: ten epochs are over."""
    cfg = load_config(str(CONFIGS[0]), {})
    hook, = [HOOKS.build(h) for h in cfg.custom_hooks
             if h.type == 'EarlyStoppingHook']
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(stop_training=False),
        logger=logging.getLogger())
    for count, value in enumerate(series, 1):
        hook.after_val_epoch(runner, dict(CPM=value))
        assert runner.train_loop.stop_training == (count == after)
        if count == after:
            break
    assert (count == after) == (after is not None)


# --------------------------------------------------------- slabs, by the tools
SLABS = sorted((ROOT / 'configs/ct_slices').glob('*_small_slabs_*.py'))
TINY = [
    'train_dataloader.dataset.pipeline.2.size=32',
    'train_dataloader.batch_size=2', 'train_cfg.max_iters=2',
    *(f'{name}_dataloader.dataset.ann_file=lidc_infos_train.pkl'
      for name in ('val', 'test')),
    *(f'{name}_dataloader.dataset.coco_file=lidc_infos_train_2d_anno.coco.json'
      for name in ('val', 'test'))]


@pytest.fixture(scope='module')
def slabs(tmp_path_factory):
    """Of 6 mm; half of the images that were chosen show a finding."""
    return make_slice_set(tmp_path_factory.mktemp('slabs') / 'set',
                          slab_mm=6., overlap=.5, positive_share=[.5])


@pytest.mark.parametrize('path', SLABS, ids=lambda p: p.stem)
def test_a_small_detector_of_slabs_by_the_tools(path, slabs, tmp_path):
    done = tool('train.py', path, '--work-dir', tmp_path, '--data-root', slabs,
                '--amp', options=TINY)
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'results.json'
    threshold = 'test_evaluator.1.score_thr'
    done = tool('test.py', path, tmp_path / 'iter_2.pth', '--data-root', slabs,
                '--out', out, options=[*TINY, f'{threshold}=0.25'])
    assert done.returncode == 0, done.stderr
    told = load_json(out)['2d']['at_iou_50']
    chosen = load_json(slabs / 'lidc_infos_train_2d_anno.coco.json')['images']
    assert told['num_images'] == len(chosen) > 0
    assert told['positive_share'] == pytest.approx(.5, abs=.05)
    assert told['threshold'] == .25 and told['all']['num_gt'] > 0
    if 'faster-rcnn' in path.stem:  # each scan and its mirror image
        done = tool('test.py', path, tmp_path / 'iter_2.pth', '--data-root',
                    slabs, '--tta', '--out', out, options=TINY)
        assert done.returncode == 0, done.stderr
        told = load_json(out)
        assert told['num_scans'] == 4 and told['2d']['at_iou_50']
    done = tool('test.py', path, tmp_path / 'iter_2.pth', '--data-root', slabs,
                options=[*TINY, f'{threshold}=2.'])
    assert 'score_thr: expected a score from 0 to 1, found 2' in error_of(done)


@pytest.mark.parametrize('name, found', [
    ('faster-rcnn_r50', 'found torchvision://resnet50: '),
    ('faster-rcnn_mobilenet-v2', 'found open-mmlab://mmdet/mobilenet_v2: '
     '<urlopen error no net>')])
def test_weights_that_cannot_be_fetched(name, found, slabs, tmp_path,
                                        monkeypatch):
    """In one sentence, with the key that takes a file."""
    def fail(*args, **kwargs):
        raise URLError('no net')

    monkeypatch.setattr(checkpoint, 'load_from_http', fail)
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    path, = ROOT.glob(f'configs/ct_slices/{name}_neighbours_30e_*.py')
    done = tool('train.py', path, '--work-dir', tmp_path, '--data-root', slabs,
                options=[*TINY[3:]])
    told = error_of(done)
    assert (f'{path}: model.detector_2d.backbone.init_cfg.checkpoint: '
            f'expected weights that can be fetched, {found}') in told
    assert '--cfg-options model.detector_2d.backbone.init_cfg.ch' in told
