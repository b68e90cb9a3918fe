"""Every config builds, and its parts agree."""

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import METRICS, MODELS
from mmengine.config import Config

from projects.core.engine.checkpoints import check_checkpoint
from projects.core.engine.configs import evaluators_3d_of, match_distance_of
from projects.core.evaluation.metric_3d import Indication3DMetric

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob('configs/[!_]*/*.py'))


def load(path):
    cfg = Config.fromfile(path)
    # No hub is asked for weights in a test.
    cfg.model.detector_2d.backbone.init_cfg = None
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
    assert Path(path).read_text().count('\n') <= 130


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
    config = ROOT / f'configs/mv2d_xray/{path.stem}.py'
    model = MODELS.build(load(config).model)
    checkpoint = check_checkpoint(str(path), model)
    assert set(checkpoint) == {'meta', 'state_dict'}
    classes = checkpoint['meta']['dataset_meta']['classes']
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
