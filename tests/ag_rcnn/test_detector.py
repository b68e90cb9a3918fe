"""Mask R-CNN of mammograms: training, stages, tools."""

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner.checkpoint import load_state_dict
from torch import distributed

import projects.ag_rcnn  # noqa: F401  registers everything
from projects.ag_rcnn.detector import GREY
from projects.ag_rcnn.transforms import (
    LoadMammogram,
    MammogramTones,
    ResizeMammogram,
    WarpMammogram,
)
from projects.core.engine.command_line import UserError
from projects.core.engine.configs import build_runner, load_config
from projects.core.engine.hooks import StageHook
from projects.core.files import DataError, load_json
from tests.helpers.breasts import EDGE, make_breast_set
from tests.helpers.commands import error_of, losses, tool

ROOT = Path(__file__).parents[2]
NAME = 'configs/ag_rcnn/mask-rcnn_small_1500i_breast.py'
LARGE = 'configs/ag_rcnn/mask-rcnn_r50_55e_cbis-ddsm.py'
SIZE = 'dataset.pipeline.0.transforms.1.size=96'
SMALL = [f'{name}_dataloader.{SIZE}' for name in ('train', 'val', 'test')]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('breasts') / 'set'
    for seed, split in enumerate(('train', 'val', 'test')):
        make_breast_set(root, 4, split, seed=seed)
    return root


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
    """A training that takes seconds: bright discs are easy."""
    work_dir = tmp_path_factory.mktemp('work')
    done = tool('train.py', NAME, '--work-dir', work_dir, '--data-root', root,
                options=[*SMALL, 'train_cfg.max_iters=40',
                         'optim_wrapper.optimizer.lr=3e-3',
                         'default_hooks.logger.interval=1'])
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.fixture(scope='module')
def tested(trained, root):
    out = trained / 'results.json'
    done = tool('test.py', NAME, trained / 'iter_40.pth', '--data-root', root,
                '--out', out, '--show-dir', trained / 'pictures',
                options=SMALL)
    assert done.returncode == 0, done.stderr
    return load_json(out)


def model(config=NAME, **changes):
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / config).model
    cfg.detector_2d.backbone.init_cfg = None
    built = MODELS.build(dict(cfg, **changes))
    built.init_weights()
    return built


def breasts(root, split='train', exams=True, warp=False, **kwargs):
    steps = [dict(type='LoadMammogram'),
             dict(type='ResizeMammogram', size=EDGE)]
    if warp:
        steps += [dict(type='WarpMammogram'), dict(type='MammogramTones')]
    return DATASETS.build(dict(
        type='MammogramDataset', data_root=str(root), exams=exams,
        ann_file=f'annotations/instances_{split}.json', pipeline=[
            dict(type='EachImage', transforms=steps),
            dict(type='PackExam')], **kwargs))


# ------------------------------------------------------------------ the tools
def test_it_learns_to_find_discs(trained, tested):
    curve = losses(trained)
    values = [curve[step] for step in sorted(curve)]
    assert np.mean(values[-10:]) < .7 * np.mean(values[:10])
    assert tested['num_images'] == 16 and tested['num_gt'] == 6
    assert tested['R@4'] > .5
    assert tested['R@0.5_low'] <= tested['R@0.5'] <= tested['R@0.5_high']
    assert tested['source']['patients_seen_in_training'] == 0
    assert len(list((trained / 'pictures').glob('*.png'))) == 4


def test_another_split_is_tested(trained, root):
    out = trained / 'val.json'
    done = tool('test.py', NAME, trained / 'iter_40.pth', '--data-root', root,
                '--out', out, '--split', 'train', options=SMALL)
    assert done.returncode == 0, done.stderr
    told = load_json(out)
    assert told['source']['ann_file'].endswith('instances_train.json')
    assert told['source']['patients_seen_in_training'] == 4


def test_the_report_shows_exams(trained, tested):
    """All images, each box in its own."""
    page = trained / 'results.html'
    done = tool('report.py', trained / 'results.json')
    assert done.returncode == 0 and '4 scans' in done.stdout, done.stderr
    content = page.read_text()
    data = json.loads(content.split('id="data">')[1].split('</script>')[0])
    assert [len(scan['views']) for scan in data['scans']] == [4] * 4
    assert all(scan['flat'] for scan in data['scans'])
    for scan in data['scans']:
        for kind, count in (('truth', len(scan['truth'])),
                            ('found', len(scan['found']))):
            shown = [[box is not None for box in view['rects'][kind]]
                     for view in scan['views']]
            assert np.sum(shown, 0).tolist() == [1] * count
        assert all(f['match'] < len(scan['truth']) for f in scan['found'])
    assert f'{tested["R@0.5"]:.3f}' in content
    (trained / 'bad.json').write_text(json.dumps(dict(tested, iou_thr=None)))
    done = tool('report.py', trained / 'bad.json')
    assert '"iou_thr": expected it as' in error_of(done)


def test_boxes_are_explained_in_all_images_of_their_exam(trained, root):
    out = trained / 'explained'
    done = tool('explain.py', NAME, trained / 'iter_40.pth', '--data-root',
                root, '--out-dir', out, '--stage', '2d', '--scans', '1',
                '--method', 'eigen-cam', 'random', '--false-positives', '9',
                options=SMALL)
    assert done.returncode == 0, done.stderr
    told = load_json(out / 'explain.json')
    assert told['findings']
    for finding in told['findings']:
        energy = finding['methods']['eigen-cam']['energy']
        assert len(energy) == 1  # of the image that shows it
        assert (out / finding['picture']).is_file()
    done = tool('explain.py', NAME, trained / 'iter_40.pth', '--data-root',
                root, '--out-dir', out, options=SMALL)
    assert 'expected 2d' in error_of(done)


def test_single_objects_are_for_models_of_3d_boxes(tmp_path):
    done = tool('infer.py', NAME, tmp_path / 'none.pth', '--scan',
                tmp_path / 'none.json', '--out-dir', tmp_path)
    assert 'found one that finds boxes in single images' in error_of(done)


# -------------------------------------------------------------------- weights
def test_colours_become_grey():
    """A grey image gives what a colour image of the same grey levels gives,
    but for the weights of the colours."""
    ours = model()
    state = {name: value.clone() for name, value in
             ours.state_dict().items()}
    key = 'detector_2d.backbone.conv1.weight'
    colours = torch.rand(32, 3, 7, 7)
    state[key] = colours
    for load in (lambda: ours.load_state_dict(state),
                 lambda: load_state_dict(ours, dict(state), strict=True)):
        torch.nn.init.zeros_(ours.detector_2d.backbone.conv1.weight)
        load()
        expected = sum(weight * colours[:, i] for i, weight
                       in enumerate(GREY))
        torch.testing.assert_close(
            ours.state_dict()[key][:, 0], expected)
    assert sum(GREY) == pytest.approx(1.)


def test_the_documents_numbers():
    cfg = load_config(str(ROOT / LARGE))
    detector = cfg.model.detector_2d
    built = model(LARGE)
    generator = built.detector_2d.rpn_head.prior_generator
    assert generator.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    for (low, high), anchors in zip(
            [(5, 15), (15, 40), (40, 100), (100, 250)],
            generator.base_anchors):
        edges = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
        assert low - .01 <= edges.min() and edges.max() <= high + .01
    head = built.detector_2d.roi_head
    assert head.bbox_head.fc_cls.out_features == 2
    assert head.bbox_head.fc_reg.out_features == 4
    assert [fc.out_features for fc in head.bbox_head.shared_fcs] == [
        1024, 1024]
    assert len(head.mask_head.convs) == 4
    masks = head.mask_head(torch.zeros(1, 256, 7, 7))
    assert masks.shape == (1, 1, 14, 14)
    assert detector.train_cfg.rcnn.mask_size == 14
    optim = cfg.optim_wrapper
    assert (optim.optimizer.momentum, optim.optimizer.weight_decay,
            optim.clip_grad.max_norm) == (.9, 1e-4, 1.)
    assert cfg.train_dataloader.batch_size == 2
    stages, = (h.stages for h in cfg.custom_hooks if h.type == 'StageHook')
    assert [s.lr for s in stages] == [.002, .0005, .0001]
    hook = StageHook(stages)
    total = cfg.train_cfg.max_epochs
    assert [hook.stage_at(i, total) for i in (0, 9, 10, 49, 50, 54)] == [
        0, 0, 1, 1, 2, 2]


def test_the_large_one_takes_a_step(root):
    """Of an exam, in small images."""
    net = model(LARGE).train()
    batch = net.data_preprocessor(
        pseudo_collate([breasts(root, warp=True)[1]]), True)
    loss, _ = net.parse_losses(net(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    for part in ('backbone.conv1', 'neck', 'rpn_head', 'roi_head.bbox_head',
                 'roi_head.mask_head'):
        assert any(weight.grad is not None and weight.grad.any() for key,
                   weight in net.detector_2d.named_parameters()
                   if key.startswith(part)), part


# --------------------------------------------------------------------- stages
class Watch(Hook):
    """What moved in each iteration, and at which rate."""

    def __init__(self):
        self.moved, self.rates = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {name: value.clone() for name, value
                       in runner.model.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.moved.append({
            name for name, value in runner.model.state_dict().items()
            if not torch.equal(value, self.before[name])})
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def runner_of(root, tmp_path, stages, iters, name):
    cfg = load_config(str(ROOT / NAME), {
        option.split('=')[0]: 96 for option in SMALL})
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(root)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), name
    cfg.log_level, cfg.param_scheduler = 'ERROR', []
    cfg.optim_wrapper.optimizer = dict(
        type='SGD', lr=.1, momentum=.9, weight_decay=1e-4)
    cfg.train_cfg.update(max_iters=iters, val_begin=99)
    cfg.custom_hooks = [dict(type='StageHook', stages=stages)]
    return build_runner(cfg)


def test_a_stage_moves_its_part_alone(root, tmp_path):
    early = ['backbone.conv1', 'backbone.bn1', 'backbone.layer1']
    heads = ['neck', 'rpn_head', 'roi_head']
    runner = runner_of(root, tmp_path, [
        dict(length=2, lr=2e-3, parts=heads),
        dict(length=2, lr=5e-4, parts=early), dict(length=1, lr=1e-4)],
        5, 'stages')
    watch = Watch()
    runner.register_hook(watch, 'LOWEST')
    runner.train()
    assert watch.rates == [2e-3, 2e-3, 5e-4, 5e-4, 1e-4]
    names = set(runner.model.state_dict())

    def of(parts):
        return {n for n in names if any(f'.{p}.' in n for p in parts)}

    for moved in watch.moved[:2]:
        assert moved and moved <= of(heads)
        assert any('rpn_head' in n for n in moved)
    for moved in watch.moved[2:4]:
        assert moved and moved <= of(early)
        assert {n for n in of(early) if 'running' in n} <= moved
    assert watch.moved[4] & of(heads) and watch.moved[4] & of(
        ['backbone.layer2'])


def test_stages_do_not_stop_several_processes(tmp_path):
    """Parts that a stage leaves out have no gradient to be waited for."""
    for name in ('mask-rcnn_r50_55e', 'ag-rcnn_r50_12e'):
        assert Config.fromfile(ROOT / f'configs/ag_rcnn/{name}_cbis-ddsm.py'
                               ).find_unused_parameters
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        net = MMDistributedDataParallel(
            torch.nn.Sequential(OrderedDict(
                first=torch.nn.Linear(2, 2), last=torch.nn.Linear(2, 1))),
            device_ids=None, find_unused_parameters=True)
        hook = StageHook([dict(length=1, lr=.1, parts=['last']),
                          dict(length=1, lr=.1)])
        runner = SimpleNamespace(model=net, max_iters=4, optim_wrapper=(
            torch.optim.SGD(net.parameters(), lr=.1)))
        hook.before_train(runner)
        for runner.iter in range(4):
            hook.before_train_iter(runner, runner.iter)
            net(torch.ones(3, 2)).sum().backward()
            first = net.module.first.weight.grad
            assert (first is None) == (runner.iter < 2)
    finally:
        distributed.destroy_process_group()


def test_a_stage_of_nothing_is_refused(root, tmp_path):
    runner = runner_of(root, tmp_path, [
        dict(length=1, lr=1., parts=['no_head'])], 1, 'nothing')
    with pytest.raises(UserError, match='that can be trained, found "no_he'):
        runner.train()
    with pytest.raises(UserError, match='more than 0, found 0'):
        StageHook([dict(length=0, lr=1.)])


# ------------------------------------------------------------------- the data
def test_exams_and_single_images(tmp_path):
    root = make_breast_set(tmp_path / 'set', 3, left_out=[(2, 'L', 'MLO')])
    exams = breasts(root)
    assert [len(exams.get_data_info(i)['images']) for i in range(3)] == [
        4, 4, 3]
    assert len(breasts(root, exams=False)) == 11
    lonely = [image for image in exams.get_data_info(2)['images']
              if image['view'] == 'CC' and image['laterality'] == 'L']
    assert lonely[0]['partners']['other_view'] is None
    assert lonely[0]['partners']['other_breast'] is not None
    first, again = exams[1], exams[1]
    assert torch.equal(first['inputs'], again['inputs'])
    assert first['inputs'].shape == (4, 1, EDGE, EDGE)
    assert 0 <= first['inputs'].min() and first['inputs'].max() <= 1


def test_a_warp_moves_image_masks_boxes_and_nodes_alike(root):
    """The middle of a disc stays the middle of the disc."""
    np.random.seed(0)
    image = breasts(root).get_data_info(1)['images'][0]
    for _ in range(10):
        record = LoadMammogram()(dict(image))
        box = record['bboxes'][0]
        record['nodes'] = np.array([(box[:2] + box[2:]) / 2], np.float32)
        out = WarpMammogram()(record)
        if not len(out['bboxes']):
            continue
        box, mask = out['bboxes'][0], out['masks'][0]
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1,
                                rows.max() + 1]
        np.testing.assert_allclose(
            out['nodes'][0], [columns.mean() + .5, rows.mean() + .5],
            atol=1.5)
        assert out['img'][mask].mean() > out['img'].mean() + .3


@pytest.mark.parametrize('name', ['gamma', 'blur', 'noise', 'contrast',
                                  'brightness'])
def test_tones(root, name):
    """Each of 004's does what it is called, alone, within black and white."""
    before = LoadMammogram()(dict(breasts(root).get_data_info(1)['images'][0]))
    image = before['img']
    sizes = dict.fromkeys(('gamma', 'blur', 'noise', 'contrast',
                           'brightness'), 0.)
    tones = MammogramTones(1., **dict(sizes, **{
        name: dict(blur=3.).get(name, .3)}))
    np.random.seed(1)
    after = max((tones(dict(before))['img'] for _ in range(5)),
                key=lambda other: np.abs(other - image).sum())
    assert after.dtype == np.float32 and after.shape == image.shape
    assert after.min() >= 0 and after.max() <= 1
    inside = (image > .1) & (image < .6)
    changes = after - image
    assert np.abs(changes[inside]).mean() > 1e-3
    if name in ('gamma', 'contrast', 'brightness'):
        # No pixel overtakes another, but by the least blur there is.
        order = np.argsort(image[inside])
        assert np.corrcoef(image[inside][order], after[inside][order])[
            0, 1] > .95
    if name == 'brightness':
        assert changes[inside].std() < .05 * abs(changes[inside].mean()) + .02
    edges = [np.abs(np.diff(a, axis=1)).mean() for a in (image, after)]
    if name == 'blur':
        assert edges[1] < .7 * edges[0]
    if name == 'noise':
        assert edges[1] > 1.2 * edges[0]
    off = MammogramTones(0.)(dict(before))['img']
    assert np.array_equal(off, image.clip(0, 1))


def test_images_are_scaled_and_padded_to_squares(tmp_path):
    root = make_breast_set(tmp_path / 'set', 2)
    image = breasts(root).get_data_info(1)['images'][0]
    record = LoadMammogram()(image)
    record = dict(record, img=record['img'][:, :48],
                  masks=record['masks'][:, :, :48], nodes=np.ones((1, 2)))
    out = ResizeMammogram(192)(dict(record))
    assert out['img'].shape == (192, 192) and not out['img'][:, 96:].any()
    assert out['masks'].shape == (1, 192, 192)
    np.testing.assert_allclose(out['bboxes'], 2 * record['bboxes'])
    np.testing.assert_allclose(out['nodes'], 2.)


def spoiled(root, change):
    path = root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('change, match', [
    (lambda c: c['images'].clear(), 'at least one, found 0'),
    (lambda c: c['images'][0].update(view='LM'), 'CC or MLO, found "LM"'),
    (lambda c: c['images'][0].pop('patient'), 'patient": expected a str'),
    (lambda c: c['images'][1].update(id=1), 'one of its own, found 1'),
    (lambda c: c['images'][0]['partners'].update(other_view=77),
     'id of an image of this file, or null, found 77'),
    (lambda c: c['annotations'][0].update(image_id=77), 'id of an image'),
    (lambda c: c['annotations'][0].update(bbox=[1, 2, 0, 4]), 'above 0'),
    (lambda c: c['categories'].pop(0), 'expected mass, found "calc'),
    (lambda c: c.pop('images'), '"images": expected a list'),
])
def test_a_damaged_set_is_refused(tmp_path, change, match):
    root = make_breast_set(tmp_path / 'set', 2)
    spoiled(root, change)
    with pytest.raises(DataError, match=match):
        breasts(root)


def test_a_mask_or_image_of_another_size_is_refused(tmp_path):
    root = make_breast_set(tmp_path / 'set', 2)
    spoiled(root, lambda c: c['annotations'][0]['segmentation'].update(
        size=[EDGE, EDGE + 1]))
    with pytest.raises(DataError, match='the image\'s, found'):
        breasts(root)[1]
    spoiled(root, lambda c: c['images'][0].update(height=EDGE + 1))
    with pytest.raises(DataError, match='as the set says, found one of'):
        breasts(root)[0]


# ------------------------------------------------------------- zero, one, many
@pytest.mark.parametrize('rows', [[0], [1], [0, 1], [2, 3]])
def test_losses_of_exams_with_and_without_masses(root, rows):
    data = breasts(root, warp=True)
    net = model().train()
    batch = net.data_preprocessor(
        pseudo_collate([data[row] for row in rows]), True)
    found = net(**batch, mode='loss')
    total, _ = net.parse_losses(found)
    total.backward()
    assert torch.isfinite(total)
    assert any('mask' in name for name in found) and total > 0


def test_a_category_that_is_not_looked_for_is_ignored(tmp_path):
    root = make_breast_set(tmp_path / 'set', 2)
    spoiled(root, lambda c: c['annotations'][0].update(category_id=2))
    images = breasts(root)[1]['data_samples'].images
    assert sorted(len(s.gt_instances) for s in images) == [0, 0, 0, 1]
    assert sorted(len(s.ignored_instances) for s in images) == [0, 0, 0, 1]
    both = breasts(root, metainfo=dict(classes=('mass', 'calcification')))
    images = both[1]['data_samples'].images
    assert [s.gt_instances.labels.tolist() for s in images] == [
        [1], [0], [], []]


def test_a_checkpoint_of_other_classes_is_refused(trained, root):
    done = tool('test.py', NAME, trained / 'iter_40.pth', '--data-root', root,
                options=[*SMALL, 'test_dataloader.dataset.metainfo.classes='
                         '["mass","calcification"]'])
    assert 'expected' in error_of(done) and 'classes' in error_of(done)
