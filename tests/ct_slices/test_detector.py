"""The small detector of slices: training, scans, tools."""

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from highdicom import sr
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

import projects.ct_slices  # noqa: F401  registers everything
from data_converters.slices import Slicing
from projects.core.boxes import gravity_array
from projects.core.engine import checkpoints
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.export import export
from projects.core.files import load_json
from projects.core.results import dump_results
from tests.helpers.commands import error_of, losses, tool
from tests.helpers.series import chest, edit, write_series
from tests.helpers.slices import SHAPE, make_slice_set

ROOT = Path(__file__).parents[2]
NAME = ('configs/ct_slices/'
        'faster-rcnn_small_neighbours_6000i_quick-v2-slices.py')
# Crops of 32 px, and the only split that the tests' set has.
SMALL = [
    'train_dataloader.dataset.pipeline.2.size=32',
    'train_dataloader.batch_size=4', 'default_hooks.logger.interval=1',
    *(f'{name}_dataloader.dataset.ann_file=lidc_infos_train.pkl'
      for name in ('val', 'test')),
    *(f'{name}_dataloader.dataset.coco_file=lidc_infos_train_2d_anno.coco.json'
      for name in ('val', 'test'))]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_slice_set(tmp_path_factory.mktemp('slices') / 'set')


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
    """A training that takes seconds: balls on noise are easy. With fewer
    iterations a processor's rounding decides how sure it is of its boxes."""
    work_dir = tmp_path_factory.mktemp('work')
    done = tool('train.py', NAME, '--work-dir', work_dir, '--data-root', root,
                options=[*SMALL, 'train_cfg.max_iters=200',
                         'optim_wrapper.optimizer.lr=3e-3'])
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.fixture(scope='module')
def tested(trained, root):
    out = trained / 'results.json'
    done = tool('test.py', NAME, trained / 'iter_200.pth', '--data-root', root,
                '--out', out, '--show-dir', trained / 'pictures',
                options=SMALL)
    assert done.returncode == 0, done.stderr
    return load_json(out)


def model():
    torch.manual_seed(0)
    built = MODELS.build(Config.fromfile(ROOT / NAME).model)
    built.init_weights()
    return built.eval()


def scans(root, **kwargs):
    return DATASETS.build(dict(
        type='CTSliceDataset', data_root=str(root), test_mode=True,
        ann_file='lidc_infos_train.pkl', pipeline=[
            dict(type='LoadCTSlices', scale=2.), dict(type='PackCTScan')]))


# ------------------------------------------------------------------ the tools
def test_it_learns_to_find_balls(trained, tested):
    curve = losses(trained)
    values = [curve[step] for step in sorted(curve)]
    assert np.mean(values[-10:]) < .6 * np.mean(values[:10])
    assert tested['num_scans'] == 4 and tested['num_gt'] == 5
    assert tested['mAP_3d'] > .5 and tested['CPM'] > .5
    assert tested['2d']['recall'] > .2
    assert list(tested['2d']['recall_per_view']) == ['slices']
    assert tested['source']['patients_seen_in_training'] == 4
    pictures = sorted(p.stem for p in (trained / 'pictures').glob('*.png'))
    assert pictures == [f'LIDC-IDRI-{n:04d}' for n in range(4)]


def test_the_report_shows_slices(trained, tested):
    out = trained / 'report.html'
    done = tool('report.py', trained / 'results.json', '--out', out)
    assert done.returncode == 0, done.stderr
    page = out.read_text()
    assert '"kind": "CT slices"' in page and 'SLICE_0' in page
    assert out.stat().st_size < 8e6
    # At most ten slices of a scan; boxes only where a slice cuts them.
    assert page.count('"name": "SLICE_') <= 40
    assert 'null' in page


def test_exports(trained, tested, root):
    out = trained / 'exports'
    done = tool('export.py', trained / 'results.json', '--out-dir', out)
    assert done.returncode == 0, done.stderr
    assert (out / 'boxes.csv').exists()
    assert len(list(out.glob('*.mrk.json'))) == 4
    coco = load_json(root / 'lidc_infos_train_2d_anno.coco.json')
    images = {i['id']: i for i in coco['images']}
    rows = load_json(out / 'coco.json')
    assert rows and all(row['image_id'] in images for row in rows)
    # A box of the scan is in the slices that cut it, and in no others.
    best = max(rows, key=lambda row: row['score'])
    shown = [row for row in rows if row['score'] == best['score']]
    assert 1 <= len(shown) < SHAPE[2]


def infer(trained, out, *more):
    return tool('infer.py', NAME, trained / 'iter_200.pth', '--out', out,
                *more)


def test_one_scan_without_truth(trained, tested, root, tmp_path):
    out, picture = tmp_path / 'boxes.json', tmp_path / 'slices.png'
    done = infer(trained, out, '--scan', root / 'scans/LIDC-IDRI-0000.json',
                 '--score-thr', '0', '--show', picture)
    assert done.returncode == 0, done.stderr
    found = load_json(out)['boxes']
    scan = next(s for s in tested['scans'] if s['token'] == 'LIDC-IDRI-0000')
    assert len(found) == len(scan['predictions']) > 0
    for one, other in zip(found, scan['predictions']):
        assert one['score'] == pytest.approx(other['score'], abs=1e-5)
        np.testing.assert_allclose(one['bbox_3d'], other['bbox_3d'],
                                   atol=2e-3)
    assert found[0]['class_name'] == 'nodule'
    assert picture.stat().st_size > 1000


def test_slices_of_another_kind_are_noticed(trained, tmp_path):
    root = make_slice_set(tmp_path / 'set', numbers=[0], spacing=2.,
                          window=(-500., 500.))
    done = infer(trained, tmp_path / 'boxes.json', '--scan',
                 root / 'scans/LIDC-IDRI-0000.json')
    assert done.returncode == 0
    text = done.stdout + done.stderr
    assert 'expected slices as it was trained on' in text
    assert 'spacing None (found 2.0)' in text and 'window' in text
    assert 'channels' not in text


def test_slabs_of_another_overlap_are_noticed(monkeypatch):
    told = []
    monkeypatch.setattr(checkpoints, 'print_log',
                        lambda text, **kwargs: told.append(text))
    made = asdict(Slicing(slab_mm=7.5, overlap=.5))
    meta = dict(dataset_meta=dict(slices=made))
    checkpoints.warn_of_other_slices('a.pth', meta, dict(made, select='all'))
    assert told == []
    checkpoints.warn_of_other_slices('a.pth', meta, dict(made, overlap=0.))
    assert 'with overlap 0.5 (found 0.0): its figures do not' in told[0]


@pytest.mark.parametrize('content, text', [
    ('[]', 'expected the record of a scan'),
    ('{}', 'field "token": expected a string'),
    ('{"token": "a", "images": {}}', 'expected CT slices, found none')])
def test_what_is_no_scan_is_refused(trained, tmp_path, content, text):
    (tmp_path / 'scans').mkdir()
    record = tmp_path / 'scans/a.json'
    record.write_text(content)
    done = infer(trained, tmp_path / 'boxes.json', '--scan', record)
    assert text in error_of(done)
    assert not (tmp_path / 'boxes.json').exists()


def test_views_are_not_taken_for_slices(trained, sphere_root, tmp_path):
    done = infer(trained, tmp_path / 'boxes.json', '--images', sphere_root,
                 '--rig', sphere_root / 'rig.json')
    assert 'expected --scan, as its model takes CT slices' in error_of(done)


def test_a_set_of_views_is_refused(sphere_root, trained):
    done = tool('test.py', NAME, trained / 'iter_200.pth', '--data-root',
                sphere_root, options=SMALL)
    assert 'field "thickness": expected that of a CT slice' in error_of(done)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_browse_dataset_draws_slices(root, tmp_path, split):
    """Slices as they are trained on, and those that cut a scan's findings."""
    options = [*SMALL, 'test_dataloader.dataset.ann_file=lidc_infos_train.pkl']
    if split == 'test':
        (root / 'lidc_infos_test.pkl').write_bytes(
            (root / 'lidc_infos_train.pkl').read_bytes())
        (root / 'lidc_infos_test_2d_anno.coco.json').write_bytes(
            (root / 'lidc_infos_train_2d_anno.coco.json').read_bytes())
    done = tool('browse_dataset.py', NAME, '--data-root', root, '--split',
                split, '--count', '2', '--out-dir', tmp_path, options=options)
    assert done.returncode == 0, done.stderr
    pictures = sorted(tmp_path.glob('*.png'))
    assert len(pictures) == 2
    if split == 'test':
        assert [p.stem for p in pictures] == ['LIDC-IDRI-0000',
                                              'LIDC-IDRI-0001']


@pytest.mark.parametrize('stage', ['2d', '3d'])
def test_what_boxes_rest_on(trained, tested, root, tmp_path, stage):
    """On balls in noise: more than chance is inside the balls' sections, and
    what maps call relevant is."""
    done = tool('explain.py', NAME, trained / 'iter_200.pth', '--data-root',
                root, '--stage', stage, '--scans', '1', '--split', 'train',
                '--out-dir', tmp_path, options=SMALL)
    assert done.returncode == 0, done.stderr
    told = load_json(tmp_path / 'explain.json')
    assert told['stage'] == stage and told['findings']
    slices = []  # that show the ball, of those that were explained
    for found in told['findings']:
        assert (tmp_path / found['picture']).stat().st_size > 1000
        assert (found['view'] is None) == (stage == '3d')
        slices.append(len(found['methods']['random']['area']))
    assert 1 < max(slices) < SHAPE[2] if stage == '3d' else set(slices) == {1}
    mean = told['summary']
    assert mean['eigen-cam']['gain']['mean'] > 5
    chance = mean.pop('random')
    assert chance['gain']['mean'] < 1.5
    for figures in mean.values():
        assert figures['gain']['mean'] > 1.1 * chance['gain']['mean']
        assert figures['insertion']['mean'] > chance['insertion']['mean'] + .1
        assert figures['deletion']['mean'] < chance['deletion']['mean'] - .1


# ------------------------------------------------------------------ the model
def test_boxes_are_of_the_places_that_they_are_in():
    """RoIAlign reads the features' places, whatever layout is faster."""
    built = model()
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    data = built.data_preprocessor(dict(inputs=list(images)))
    rois = torch.tensor([[0., 4, 8, 40, 40], [1, 50, 10, 80, 60]])
    features = built.extract_feat(data['inputs'])
    extract = built.detector_2d.roi_head.bbox_roi_extractor
    found = extract(features, rois)
    plain = [feature.clone(memory_format=torch.contiguous_format)
             for feature in features]
    torch.testing.assert_close(found, extract(plain, rois))


def test_batches_and_chunks_change_nothing(root):
    built, data = model(), scans(root)
    pair = [data[0], data[2]]
    both = built.test_step(pseudo_collate(pair))
    built.slice_chunk = 3
    for item, result in zip(pair, both):
        alone, = built.test_step(pseudo_collate([item]))
        for key in ('bboxes', 'scores', 'view_ids'):
            torch.testing.assert_close(alone.pred_instances[key],
                                       result.pred_instances[key],
                                       rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            gravity_array(alone.pred_instances_3d.bboxes_3d),
            gravity_array(result.pred_instances_3d.bboxes_3d), atol=1e-3)
        assert alone.token == item['data_samples'].token


def merged_truth(built, item, monkeypatch):
    """A test's result, with the truth as what is found in slices."""
    truth = item['data_samples'].eval_ann_info
    monkeypatch.setattr(built, 'detect_2d', lambda images: InstanceData(
        bboxes=torch.from_numpy(truth['gt_bboxes']),
        scores=torch.ones(len(truth['gt_bboxes'])),
        labels=torch.from_numpy(truth['gt_bboxes_labels']),
        view_ids=torch.from_numpy(truth['gt_bboxes_view'])))
    return built.test_step(pseudo_collate([item]))[0], truth


def test_boxes_of_a_scan_lie_where_its_slices_say(root, monkeypatch):
    built, data = model(), scans(root)
    for item in data:
        result, truth = merged_truth(built, item, monkeypatch)
        found = gravity_array(result.pred_instances_3d.bboxes_3d)
        true = gravity_array(truth['gt_bboxes_3d'])
        order = [np.abs(found[:, :3] - box[:3]).sum(1).argmin()
                 for box in true]
        assert len(found) == len(true)
        np.testing.assert_allclose(found[order], true, atol=.01)


def test_boxes_of_slices_become_dicom_sr(root, monkeypatch, tmp_path):
    """In the frame of the CT series, to which each refers."""
    built, data = model(), scans(root)
    metric, true = Indication3DMetric(), {}
    metric.dataset_meta = data.metainfo
    for item in data:
        result, truth = merged_truth(built, item, monkeypatch)
        metric.process({}, [result.cpu().to_dict()])
        true[result.token] = gravity_array(truth['gt_bboxes_3d'])
    metric.evaluate(len(data))
    dump_results(tmp_path / 'results.json', metric.full_results, dict(
        config=NAME, checkpoint='none.pth', sha256='ab' * 32,
        ann_file=data.source))
    for number in range(4):
        for path in write_series(
                tmp_path / f'ct/LIDC-IDRI-{number:04d}', chest(SHAPE[2]),
                np.arange(SHAPE[2]) * 2. - 19, f'1.2.{number}'):
            edit(path, FrameOfReferenceUID='1.2', SliceThickness='2')
    written = export(tmp_path / 'results.json', tmp_path / 'out', ['sr'],
                     dicom_root=tmp_path / 'ct')
    assert sorted(path.stem for path in written) == sorted(true)
    for path in written:
        document = sr.srread(path)
        series = {uid for _, uid in document.get_evidence_series()}
        assert series == {f'1.2.{int(path.stem[-4:])}'}
        groups = document.content.get_volumetric_roi_measurement_groups(
            graphic_type=sr.GraphicTypeValues3D.ELLIPSOID)
        places = [group.roi.graphic_data.mean(0) for group in groups]
        assert len(places) == len(true[path.stem])
        for box in true[path.stem]:  # x and y the other way round
            assert min(np.abs(place - box[:3] * [-1, -1, 1]).max()
                       for place in places) < .01


@pytest.mark.parametrize('count', [0, 1])
def test_a_scan_of_no_slice_and_of_one(root, count):
    item = scans(root)[0]
    sample = item['data_samples']
    sample.set_metainfo(dict(ct2img=sample.ct2img[:count]))
    result, = model().test_step(dict(
        inputs=dict(img=[item['inputs']['img'][:count]]),
        data_samples=[sample]))
    assert (result.pred_instances.view_ids < max(count, 1)).all()
    assert len(result.pred_instances_3d.scores_3d) <= 10 * count


@pytest.mark.parametrize('boxes', [0, 2])
def test_a_step_with_and_without_boxes(boxes):
    from mmdet.structures import DetDataSample
    built = model().train()
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1., 1.)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8., 8, 20, 20], [30, 30, 39, 38]])[:boxes],
            labels=torch.zeros(boxes, dtype=int))
        sample.ignored_instances = InstanceData(
            bboxes=torch.tensor([[40., 4, 50, 14]]))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)] * 2
    data = built.data_preprocessor(
        dict(inputs=images, data_samples=samples), True)
    parsed, _ = built.parse_losses(built(**data, mode='loss'))
    parsed.backward()
    assert torch.isfinite(parsed)
    moved = [name for name, p in built.named_parameters()
             if p.grad is not None and p.grad.abs().sum() > 0]
    assert any('backbone' in name for name in moved)
    assert any('rpn_head' in name for name in moved)


def test_half_precision_finds_the_same(root):
    built, item = model(), scans(root)[0]
    plain, = built.test_step(pseudo_collate([item]))
    with torch.autocast('cpu', torch.bfloat16):
        half, = built.test_step(pseudo_collate([item]))
    assert half.pred_instances.scores.dtype == torch.float32
    assert len(half.pred_instances) == len(plain.pred_instances) > 0
    best = plain.pred_instances.scores.argmax()
    near = half.pred_instances.view_ids == plain.pred_instances.view_ids[best]
    away = (half.pred_instances.bboxes[near]
            - plain.pred_instances.bboxes[best]).abs().amax(1)
    assert away.min() < 4


def bright(images):
    """Boxes round what is white, as a detector of squares gives them."""
    found = []
    for image in images:
        count, _, stats, _ = cv2.connectedComponentsWithStats(
            (image[0].numpy() > 128).astype(np.uint8))
        x, y, w, h = stats[1:, :4].T.astype(np.float32)
        found.append(InstanceData(
            bboxes=torch.as_tensor(np.stack([x, y, x + w, y + h], 1)),
            scores=torch.full((count - 1, ), .9),
            labels=torch.zeros(count - 1, dtype=torch.int64)))
    return found


@pytest.mark.parametrize('height, width', [(300, 230), (64, 64), (40, 90),
                                           (65, 50)])
def test_squares_of_a_slice_show_each_finding_once(height, width):
    """Whole, wherever edges of squares lie; what is too large for all of
    them is not lost."""
    detector = model()
    detector.tile = 64
    seen = []

    def whole(images):
        seen.append(tuple(images.shape[-2:]))
        return bright(images)

    detector._detect_whole = whole
    rng = np.random.default_rng(0)
    images = torch.zeros(3, 3, height, width, dtype=torch.uint8)
    expected = []
    for view in range(2):  # the third one is empty
        for x in range(0, width - 12, 16):
            for y in range(0, height - 12, 16):
                w, h = rng.integers(3, 13, 2)
                images[view, :, y:y + h, x:x + w] = 255
                expected.append((view, x, y, x + w, y + h))
    found = detector.detect_2d(images)
    assert set(seen) == {(64, 64)}
    assert sorted((int(v), *map(int, box)) for v, box in zip(
        found.view_ids, found.bboxes.tolist())) == sorted(expected)
    assert found.bboxes.dtype == torch.float32
    large = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    large[..., 5:height - 5, 5:width - 5] = 255
    assert len(detector.detect_2d(large).bboxes) > 0


def test_squares_are_those_of_the_training():
    """Of what tells boxes in shares of its image."""
    for path in sorted(ROOT.glob('configs/ct_slices/*detr_small*.py')):
        cfg = Config.fromfile(path)
        assert cfg.model.tile == cfg.crop * cfg.scale == 256
        assert MODELS.build(cfg.model).tile == 256
