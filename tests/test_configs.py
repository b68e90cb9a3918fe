"""Every config builds, and its parts agree."""

import ast
import math
from inspect import signature
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import METRICS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModel

from projects.core.engine.checkpoints import (
    check_checkpoint,
    load_checkpoint,
    load_model,
)
from projects.core.engine.command_line import UserError
from projects.core.engine.configs import (
    build_runner,
    evaluators_3d_of,
    load_config,
    match_distance_of,
)
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.ct_slices import CTSliceDetector, MalignancyClassifier

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob('configs/mv2d_xray/*.py'))
RATINGS = sorted(ROOT.glob('configs/ct_slices/malignancy_*.py'))
SLICES = sorted({*ROOT.glob('configs/ct_slices/*.py')} - {*RATINGS})
BREASTS = sorted(ROOT.glob('configs/ag_rcnn/*.py'))
EVERY = CONFIGS + SLICES + RATINGS + BREASTS


def load(path):
    cfg = Config.fromfile(path)
    # No hub is asked for weights in a test.
    cfg.model.get('detector_2d', cfg.model).backbone.init_cfg = None
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config(path):
    cfg = load(path)
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'MV2DXRay'
    # Millimetres everywhere: a patient is wider than 50 and thinner than
    # 1000 of them.
    scene = cfg.train_dataloader.dataset.scene_range
    assert 50 < scene[3] - scene[0] < 1000
    if model.lifting_head is not None:
        assert model.lifting_head.scene_range == scene
    if model.with_decoder:
        assert model.lifting_head.position_encoding.scene_range == scene
    if model.volume_head is not None:
        inner = model.volume_head.volume_range
        assert all(a <= b for a, b in zip(scene[:3], inner[:3]))
        assert all(a >= b for a, b in zip(scene[3:], inner[3:]))
    if model.volume_head is not None and 'r50' not in path.stem:
        # The grid fits the 3D net: a shape for each voxel.
        head = model.volume_head.eval()
        channels = cfg.model.volume_head.in_channels
        with torch.no_grad():
            heatmap, code, _ = head(
                torch.zeros(1, channels, 4, 4), torch.eye(4)[None], (16, 16))
        assert heatmap.shape[1:] == code.shape[1:] == head.grid_points(
        ).shape[:3]
    # 2D heads are built where they are used.
    assert model.with_2d == (path.stem.startswith('triangulation') or (
        path.stem.startswith('mv2d-xray') and '_volume_' not in path.stem))
    assert Path(path).read_text().count('\n') <= 130


@pytest.mark.parametrize('path', SLICES, ids=lambda p: p.stem)
def test_config_of_slices(path):
    cfg = load(path)
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'CTSliceDetector'
    assert cfg.custom_imports.imports == ['projects.ct_slices']
    # A test sees slices as large as training does.
    steps = {step['type']: step for step in cfg.train_pipeline}
    scale = steps.get('mmdet.Resize', dict(scale_factor=1.))['scale_factor']
    assert cfg.test_pipeline[0].get('scale', 1.) == scale
    assert cfg.tta_pipeline[0] == cfg.test_pipeline[0]
    for name in ('train', 'val', 'test'):
        steps = cfg[f'{name}_dataloader'].dataset.pipeline
        assert Compose([TRANSFORMS.build(step) for step in steps])
    assert Path(path).read_text().count('\n') <= 40


@pytest.mark.parametrize('path', BREASTS, ids=lambda p: p.stem)
def test_config_of_breasts(path):
    """A test sees images as large as training does; only exams have
    partners."""
    cfg = load(path)
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'CrossViewDetector'
    assert cfg.custom_imports.imports == ['projects.ag_rcnn']
    assert (model.graph is not None) == path.stem.startswith('ag-rcnn')
    sizes = set()
    for name in ('train', 'val', 'test'):
        data = cfg[f'{name}_dataloader'].dataset
        assert Compose([TRANSFORMS.build(step) for step in data.pipeline])
        sizes |= {step.size for step in data.pipeline[0].transforms
                  if step.type == 'ResizeMammogram'}
        assert model.graph is None or data.get('exams', True)
    assert len(sizes) <= 1
    assert Path(path).read_text().count('\n') <= 40


@pytest.mark.parametrize('path', RATINGS, ids=lambda p: p.stem)
def test_config_of_ratings(path, monkeypatch):
    """Squares have the pixels that the backbone was trained on, and a test
    those of the training."""
    cfg = load(path)
    assert isinstance(MODELS.build(cfg.model), MalignancyClassifier)
    sizes = set()
    for name in ('train', 'val', 'test'):
        data = cfg[f'{name}_dataloader'].dataset
        step, = data.pipeline
        assert Compose([TRANSFORMS.build(step)])
        assert (step.get('augment') is None) == (name != 'train')
        assert data.get('test_mode', False) == (name != 'train')
        sizes.add((step['edge'], step['size']))
    (edge, size), = sizes
    assert size / edge == cfg.scale  # px of 1 mm
    # The weights are found from any folder.
    monkeypatch.chdir('/')
    anchored = load_config(str(path)).model.backbone.init_cfg.checkpoint
    assert Path(anchored).is_file()
    classifier = load_config(str(path)).model
    built = MODELS.build(classifier)
    built.init_weights()
    held = load_checkpoint(anchored)['state_dict']
    for name, value in built.backbone.state_dict().items():
        torch.testing.assert_close(value, held[f'detector_2d.backbone.{name}'])
    built.train()
    assert not any(p.requires_grad for p in built.backbone.parameters())


# Sizes (mm) and numbers of a chest's findings, which are not a part's.
SIZES = dict(
    volume_head=('volume_range', 'voxel_size', 'base_size', 'min_sigma',
                 'max_queries'),
    lifting_head=('scene_range', 'reach', 'ignore_margin', 'free_size'),
    XRayInsertNodules=('max_nodules', 'sizes', 'spread', 'attenuation',
                       'point_spread', 'slice_profile', 'distractors'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_sizes_stand_in_the_config(path):
    cfg = load(path)
    parts = {name: cfg.model.get(name) or {}
             for name in ('volume_head', 'lifting_head')}
    parts.update({step['type']: step
                  for step in cfg.train_dataloader.dataset.pipeline})
    for name, keys in SIZES.items():
        if parts.get(name):
            kind = (MODELS if 'head' in name else TRANSFORMS).get(
                parts[name]['type'])
            takes = set(signature(kind).parameters)
            assert set(keys) & takes <= set(parts[name]), name


def test_papers_numbers():
    cfg = load(next(p for p in CONFIGS if 'r50_roi_1xb1' in p.stem))
    detector = cfg.model.detector_2d
    assert detector.backbone.depth == 50
    assert detector.backbone.stage_with_dcn == (False, False, True, True)
    assert list(cfg.model.feat_strides) == [8, 16, 32, 64, 128]
    assert detector.rpn_head.anchor_generator.scales == [1, 2, 4]
    assert detector.test_cfg.rcnn.max_per_img == 100
    assert cfg.model.lifting_head.decoder.num_layers == 6
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert cfg.train_cfg.max_epochs == 24


def test_strides_that_disagree_are_refused():
    # RoI strides half of the FPN's pooled every box from the wrong place.
    cfg = load(next(p for p in CONFIGS if 'r50_roi_1xb1' in p.stem))
    extractor = cfg.model.detector_2d.roi_head.bbox_roi_extractor
    extractor.featmap_strides = [4, 8, 16, 32]
    with pytest.raises(ValueError, match='strides of the RoI extractor'):
        MODELS.build(cfg.model)
    cfg = load(next(p for p in CONFIGS if 'r50_roi_1xb1' in p.stem))
    cfg.model.detector_2d.rpn_head.anchor_generator.strides = [
        4, 8, 16, 32, 64]
    with pytest.raises(ValueError, match='strides of the anchor generator'):
        MODELS.build(cfg.model)


@pytest.mark.parametrize(
    'path', sorted(ROOT.glob('checkpoints/*.pth')), ids=lambda p: p.stem)
def test_released_checkpoint(path):
    """It is small, says what made it, and fits its config."""
    assert path.stat().st_size < 25e6
    config, = ROOT.glob(f'configs/*/{path.stem}.py')
    model = MODELS.build(load(config).model)
    checkpoint = check_checkpoint(str(path), model)
    assert set(checkpoint) == {'meta', 'state_dict'}
    classes = checkpoint['meta']['dataset_meta']['classes']
    if isinstance(model, CTSliceDetector):
        head = model.detector_2d.roi_head.bbox_head
    else:
        head = model.volume_head or model.lifting_head
    assert len(classes) == head.num_classes
    assert path.name in (ROOT / 'checkpoints/README.md').read_text()


def test_the_3d_metric_is_known_by_its_class():
    """A metric of one's own is one, too, whatever its name."""

    @METRICS.register_module()
    class FindingMetric(Indication3DMetric):
        pass

    kinds = ['Indication2DMetric', 'mmdet3d.FindingMetric',
             'Indication3DMetric', Indication3DMetric, 'mmdet.CocoMetric']
    cfg = Config(dict(test_evaluator=[
        dict(type=kind, match_distance=float(number))
        for number, kind in enumerate(kinds)]))
    assert [e.match_distance for e in evaluators_3d_of(cfg)] == [1., 2., 3.]
    assert match_distance_of(cfg) == 1.
    one = Config(dict(test_evaluator=dict(type='Indication2DMetric')))
    assert evaluators_3d_of(one) == [] and match_distance_of(one) == 10.


def test_2d_heads_that_were_idle_are_left_out(tmp_path):
    """Exactly these: all else that is not the model's is refused."""
    name = 'mv2d-xray_small_volume_600i_blade'
    held, heads = (
        load_checkpoint(str(ROOT / f'checkpoints/{n}.pth'))['state_dict']
        for n in (name, 'triangulation_centernet_5400i_quick-v2'))
    held = {**held, **{n: v for n, v in heads.items() if 'bbox_head' in n}}
    path = tmp_path / 'with heads.pth'
    torch.save(dict(state_dict=held), path)
    cfg = load(ROOT / f'configs/mv2d_xray/{name}.py')
    model, _ = load_model(cfg, str(path), 'cpu')
    assert not model.with_2d
    assert not hasattr(model.detector_2d, 'bbox_head')
    extra = set(held) - set(model.state_dict())
    assert len(extra) == 12 and all(
        n.startswith('detector_2d.bbox_head.') for n in extra)
    for tensor, value in model.state_dict().items():
        torch.testing.assert_close(value, held[tensor])

    def refused(changes, match, model=model, held=held):
        state = {k: v for k, v in {**held, **changes}.items()
                 if v is not None}
        torch.save(dict(state_dict=state), tmp_path / 'other.pth')
        with pytest.raises(UserError, match=match):
            check_checkpoint(str(tmp_path / 'other.pth'), model)

    one = torch.zeros(1)
    for unknown in ('detector_2d.head.weight', 'detector_2d.neck.weight',
                    'bbox_head.weight', 'lifting_head.bbox_head.weight'):
        refused({unknown: one}, r'found 0 missing and 1 unknown \(first '
                f'"{unknown}"')
    refused({'volume_head.box.bias': None},
            r'found 1 missing \(first "volume_head.box.bias"\) and 0 unknown')
    refused({'volume_head.box.bias': one}, 'box.bias": expected shape')
    # A model that has heads needs them, and no others.
    both = MODELS.build(load(next(
        p for p in CONFIGS if 'roi-volume_3400i_quick' in p.stem)).model)
    assert both.left_out == ()
    own = both.state_dict()
    assert extra < set(own)
    refused({n: None for n in extra}, '12 missing', both, own)
    refused({'detector_2d.rpn_head.weight': one}, 'and 1 unknown', both, own)


def test_a_2d_stage_is_not_switched_off():
    cfg = load(next(p for p in CONFIGS if '700i_demo-v2' in p.stem))
    for weight in (0., -1.):
        with pytest.raises(ValueError, match='loss_weight_2d: expected more'):
            MODELS.build(dict(cfg.model, loss_weight_2d=weight))
    features = load(next(
        p for p in CONFIGS if '600i_blade' in p.stem)).model.detector_2d
    with pytest.raises(ValueError, match='expected a detector_2d with heads'):
        MODELS.build(dict(cfg.model, detector_2d=features))


# ------------------------------------------------------- a number has a place
def bases_of(path):
    """The files that a config names in ``_base_``."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            return [(path.parent / base).resolve()
                    for base in ast.literal_eval(node.value)]
    return []


def levels(path):
    """How deep a config's inheritance is, itself included."""
    return 1 + max(map(levels, bases_of(path)), default=0)


def files_of(path):
    """A config and all that it inherits."""
    return {path, *(f for base in bases_of(path) for f in files_of(base))}


def test_inheritance_is_flat_and_a_part_is_no_chest():
    assert EVERY == sorted(ROOT.glob('configs/[!_]*/*.py'), key=EVERY.index)
    for path in EVERY:
        assert levels(path) <= 3, path
        data = {f.stem for f in files_of(path) if f.parent.stem == 'datasets'}
        assert path.stem.split('_')[-1] in data
        assert data == {'blade'} if 'blade' in data else 'blade' not in data
    blade, chest = (
        {f.relative_to(ROOT / 'configs/_base_') for f in files_of(path)
         if '_base_' in f.parts and f.parent.stem != 'datasets'}
        for path in CONFIGS if path.stem in (
            'mv2d-xray_small_volume_600i_blade',
            'mv2d-xray_small_volume_5000i_quick-v2'))
    assert blade == chest and len(blade) == 4


def constants(path, name):
    """What a file itself writes behind a name, a key or a variable."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == name or (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], 'id', '') == name):
            found += [n for n in ast.walk(node.value)
                      if isinstance(n, ast.Constant)]
    return found


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_number_stands_in_one_place(path):
    """The scene's range in the data set's file alone."""
    files = files_of(path)
    scenes = [f for f in files if constants(f, 'scene_range')]
    assert [f.parent.stem for f in scenes] == ['datasets']
    assert len(constants(scenes[0], 'scene_range')) == 6
    cfg = load(path)
    loaders = [cfg[f'{name}_dataloader'].dataset
               for name in ('train', 'val', 'test')]
    assert all(s.scene_range == cfg.scene_range for s in loaders)


@pytest.mark.parametrize('path', SLICES + BREASTS, ids=lambda p: p.stem)
def test_norms_are_learned_where_nothing_was_learned_before(path):
    """mmdet's ResNet keeps its norms as they are, unless told otherwise:
    right for ImageNet's, but from scratch these are no norms at all."""
    cfg = Config.fromfile(path)
    pretrained = cfg.model.detector_2d.backbone.get('init_cfg')
    backbone = MODELS.build(load(path).model).detector_2d.backbone
    backbone.train()
    norms = [m for m in backbone.modules()
             if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    if pretrained is None:
        assert all(norm.training for norm in norms)


@pytest.mark.parametrize('path', EVERY, ids=lambda p: p.stem)
def test_a_schedule_has_one_length_and_a_set_one_place(path):
    """A schedule's length stands once, and in no scheduler."""
    files, cfg = files_of(path), load(path)
    for name in ('train', 'val', 'test'):
        assert cfg[f'{name}_dataloader'].dataset.data_root == cfg.data_root
    assert not [f for f in files if constants(f, 'T_max')]
    number = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs
    schedule = path.stem.split('_')[-2]
    assert schedule.endswith((f'{number}i', f'{number}e'))
    typed = [n for f in files for n in ast.walk(ast.parse(f.read_text()))
             if isinstance(n, ast.Constant) and n.value == number
             and isinstance(n.value, int)]
    assert len(typed) == 1
    for scheduler in cfg.param_scheduler[1:]:
        assert 'end' not in scheduler


@MODELS.register_module()
class Point(BaseModel):
    """A model that costs nothing; it notes each iteration's rate."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rates = []

    def forward(self):
        """Not used."""

    def train_step(self, data, optim_wrapper):
        self.rates.append(optim_wrapper.get_lr()['lr'][0])
        optim_wrapper.update_params((self.weight - 1).sum()**2)
        return dict(loss=self.weight.detach())


def rates_of(path, tmp_path, **options):
    """Learning rate of each iteration of a config's schedule."""
    cfg = load_config(str(path), options)
    data = dict(batch_size=1, dataset=list(range(7)),
                sampler=cfg.train_dataloader.sampler)
    cfg = Config(dict(
        model=dict(type='Point'), work_dir=str(tmp_path),
        train_dataloader=data, log_level='ERROR', default_scope='mmdet3d',
        default_hooks=dict(checkpoint=None, logger=None),
        experiment_name=f'{path.stem}_{len(options)}',
        **{key: cfg[key] for key in (
            'train_cfg', 'optim_wrapper', 'param_scheduler',
            'log_processor')}))
    cfg.optim_wrapper.pop('paramwise_cfg', None)
    runner = build_runner(cfg)
    runner.train()
    return runner.model.rates


def cosine(share, high, low):
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize('path, iters', [
    ('mv2d-xray_small_roi-volume-decoder_700i_quick-v2', None),
    ('mv2d-xray_small_decoder_2000i_quick-v2', None),
    ('mv2d-xray_small_roi-volume_3400i_mid-v2', 170),
    ('mv2d-xray_small_volume_600i_blade', 31),
    # Nothing comes after the warm-up.
    ('mv2d-xray_small_volume_600i_blade', 30),
    ('mv2d-xray_small_volume_5000i_quick-v2', 2),
])
def test_a_schedule_is_as_long_as_its_one_number_says(path, iters, tmp_path):
    path = ROOT / f'configs/mv2d_xray/{path}.py'
    cfg = load(path)
    options = {'train_cfg.max_iters': iters} if iters else {}
    rates = rates_of(path, tmp_path, **options)
    total = iters or cfg.train_cfg.max_iters
    assert len(rates) == total
    high = cfg.optim_wrapper.optimizer.lr
    for step, rate in enumerate(rates):
        expected = high * (.1 + .9 * step / 29) if step < 30 else cosine(
            (step - 30) / (total - 30), high, 4e-5)
        assert rate == pytest.approx(expected, rel=1e-6), step


def test_the_papers_schedule_is_as_long_as_its_one_number_says(tmp_path):
    path = next(p for p in CONFIGS if 'r50_roi_1xb1' in p.stem)
    for epochs in (24, 100):
        length = {'train_cfg.max_epochs': epochs}
        rates = rates_of(path, tmp_path, **length)
        assert len(rates) == 7 * epochs
        assert rates == rates_of(path, tmp_path, **length, **{
            'param_scheduler.1.end': epochs,
            'param_scheduler.1.T_max': epochs})
        assert rates[0] == pytest.approx(2e-4 / 3)
    # A hundred epochs are longer than the warm-up.
    assert rates[500] == pytest.approx(cosine(5 / 7, 2e-4, 2e-7), rel=.01)
    assert rates[-1] == pytest.approx(2e-7, rel=.1)
