"""Ratings of findings: which are told apart, from which pixels, how well."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement

from projects.core import geometry
from projects.core.files import DataError
from projects.core.infos import load_infos
from projects.ct_slices.malignancy import (
    CropFinding,
    MalignancyMetric,
    label_of,
)
from tests.helpers.commands import error_of, tool
from tests.helpers.slices import SPACING, make_slice_set

NAME = 'configs/ct_slices/malignancy_small_600i_quick-v2-slices.py'

# Those of any test, which nothing here reads.
FIGURES = {
    key: value for key, value in json.loads(
        (Path(__file__).parents[1] / 'core/results.json').read_text()).items()
    if key != 'scans'}
BACKBONE = dict(
    type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2),
    dilations=(1, 1), norm_eval=False, out_indices=(1, ))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_slice_set(tmp_path_factory.mktemp('rated') / 'set')


def dataset(root, **kwargs):
    return DATASETS.build(dict(dict(
        type='MalignancyDataset', data_root=str(root),
        ann_file='lidc_infos_train.pkl', pipeline=[]), **kwargs))


def test_which_ratings_are_classes():
    expected = {1: 0, 1.5: 0, 2: 0, 2.5: None, 3: None, 3.5: None, 4: 1,
                4.5: 1, 5: 1, None: None}
    assert {rating: label_of(rating) for rating in expected} == expected


def test_findings_are_those_that_were_rated(root):
    """Scan 1 is empty; the first finding of scan 2 has no reader, that of
    scan 3 is between the classes."""
    def rated(**kwargs):
        return [(item['token'][-1], item['rating'])
                for item in dataset(root, **kwargs)]

    between = [('0', 1.), ('0', 5.), ('2', 5.), ('3', 3.), ('3', 5.)]
    assert rated(test_mode=True) == between
    assert rated() == [item for item in between if item[1] != 3.]
    with pytest.raises(DataError, match='"median_malignancy": expected at '
                       'least one finding that was rated, found 0'):
        dataset(root, min_diameter=99.)


def test_slices_of_a_finding_are_those_that_show_it(root):
    """Which the converter says with 2D boxes."""
    infos = load_infos(root / 'lidc_infos_train.pkl')['data_list']
    for item in dataset(root, test_mode=True):
        scan = next(s for s in infos if s['token'] == item['token'])
        row = next(i for i, other in enumerate(scan['instances']) if list(
            other['bbox_3d']) == list(item['bbox_3d']))
        shown = {scan['images'][name]['img_path']
                 for name, boxes in scan['cam_instances'].items()
                 for box in boxes if box['instance_idx'] == row}
        mine = [s['img_path'] for s in item['slices']]
        assert {path.split('/images/')[-1] for path in mine} == {
            path.split('images/', 1)[-1] for path in shown}
        heights = [np.linalg.inv(s['lidar2cam'])[2, 3]
                   for s in item['slices']]
        assert len(set(np.sign(np.diff(heights)))) <= 1  # in order


@pytest.mark.parametrize('augment', [
    None, dict(shift=0., gain=0.), dict(shift=3., gain=.1)])
def test_squares_show_the_finding_in_their_middle(root, augment):
    """A ball's middle slice: as wide as the ball, and round."""
    edge, size = 28., 56
    crop = CropFinding(1, edge, size, augment)
    shift = (augment or dict(shift=0.))['shift']
    for item in dataset(root, test_mode=True):
        # The middle slice alone: the square is not drawn from the others.
        item['slices'] = item['slices'][len(item['slices']) // 2:][:1]
        packed = crop(item)
        assert packed['inputs'].shape == (1, 3, size, size)
        assert packed['data_samples'].rating == item['rating']
        bright = packed['inputs'][0, 1].numpy() > 130
        # The other ball may be near: take what is round the middle.
        ys, xs = np.nonzero(bright)
        near = np.hypot(xs - size / 2, ys - size / 2) * edge / size < (
            item['diameter'] / 2 + 1.5 * shift + 2)
        off = np.array([xs[near].mean(), ys[near].mean()]) + .5 - size / 2
        assert np.hypot(*off) * edge / size <= (
            shift * 2**.5 + .5 * SPACING[0] + .1)
        area = near.sum() * (edge / size)**2
        wide = 2 * np.sqrt(area / np.pi)
        assert wide == pytest.approx(item['diameter'], rel=.15)


def test_squares_turn_and_are_mirrored_about_the_finding(root):
    """A marker beside the centre goes round at its distance, on both sides
    of a second one."""
    item = dict(dataset(root, test_mode=True)[0])
    one = item['slices'][0]
    focal = one['cam2img'][0][0]
    middle, _ = geometry.project(
        np.array([item['bbox_3d'][:3]]), np.array(one['lidar2img']))
    image = np.zeros((one['height'], one['width'], 3), np.uint8)
    x, y = (middle[0] + [4 * focal, 0]).astype(int)
    image[y, x] = 255  # 4 mm to the right
    x, y = (middle[0] + [0, 3 * focal]).astype(int)
    image[y, x] = 120  # 3 mm below
    path = root.parent / 'marked.png'
    cv2.imwrite(str(path), image)
    item['slices'] = [dict(one, img_path=str(path))]
    crop = CropFinding(1, 24., 96, dict(shift=0., gain=0.))
    angles, hands = [], set()
    for _ in range(40):
        shown = crop(dict(item))['inputs'][0, 0].numpy().astype(float)
        places = []
        for low, high in ((121, 256), (20, 121)):
            chosen = (shown >= low) & (shown < high)
            if not chosen.any():
                break
            places.append(np.argwhere(chosen).mean(0)[::-1] + .5 - 48)
        if len(places) < 2:
            continue
        bright = places[0] / 4  # mm
        assert np.hypot(*bright) == pytest.approx(4, abs=1.2)
        angles.append(np.arctan2(*bright[::-1]))
        hands.add(np.sign(np.cross([*bright, 0], [*places[1], 0])[2]))
    assert np.ptp(angles) > 3 and hands == {-1, 1}


def test_what_a_test_found_in_place_of_the_truth(root, tmp_path):
    """A hit has its finding's rating, another box none, a weak one is left
    out."""
    true = list(dataset(root, test_mode=True))
    far = [20., 20., 20., 6., 6., 6., 0.]
    scans = []
    for number in range(4):
        token = f'LIDC-IDRI-{number:04d}'
        boxes = [list(map(float, item['bbox_3d'])) for item in true
                 if item['token'] == token]
        scans.append(dict(
            token=token, class_name='nodule', ignored=[],
            ignored_diameters=[], ground_truth=[
                dict(bbox_3d=box, diameter=8., found=True) for box in boxes],
            predictions=[
                *(dict(bbox_3d=box, score=.9, match=row, counts=True)
                  for row, box in enumerate(boxes)),
                dict(bbox_3d=far, score=.5, match=-1, counts=True),
                dict(bbox_3d=far, score=.1, match=-1, counts=True)]))
    path = tmp_path / 'results.json'

    def write(scans):
        path.write_text(json.dumps(dict(FIGURES, scans=scans)))

    write(scans)
    found = list(dataset(root, test_mode=True, found=str(path)))
    assert len(found) == len(true) + 4
    assert sorted(i['rating'] for i in found if i['rating'] is not None
                  ) == sorted(i['rating'] for i in true)
    assert {i['score'] for i in found if i['rating'] is None} == {.5}
    assert all(CropFinding(2, 24., 32)(i)['inputs'].shape == (2, 3, 32, 32)
               for i in found)
    write(scans[:3])
    with pytest.raises(DataError, match='expected the 4 scans of .* found 3'):
        dataset(root, test_mode=True, found=str(path))


def batch(labels, rng, count=2):
    """Squares that are brighter where malignant."""
    return (
        [torch.as_tensor(rng.uniform(40, 60, (count, 3, 32, 32)) + 60 * label,
                         dtype=torch.float32) for label in labels],
        [BaseDataElement(metainfo=dict(rating=5. if label else 1.))
         for label in labels])


def test_it_learns_and_takes_batches_of_any_size():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = MODELS.build(dict(
        type='MalignancyClassifier', backbone=BACKBONE, channels=16,
        mean=75., std=70.))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model(*batch([0, 1, 1, 0], rng), mode='loss')['loss']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < .5 * losses[0]
    model.eval()
    for labels in ([0], [1, 0]):
        with torch.no_grad():
            found = model(*batch(labels, rng, 3), mode='predict')
        assert [s.malignancy > .5 for s in found] == list(map(bool, labels))
        assert all(0 <= s.malignancy <= 1 for s in found)


def judged(rows, **kwargs):
    """Figures of (patient, rating, probability, diameter)."""
    metric = MalignancyMetric(**kwargs)
    metric.process({}, [dict(
        token=patient, patient=patient, rating=rating, malignancy=value,
        diameter=diameter, bbox_3d=[0.] * 7)
        for patient, rating, value, diameter in rows])
    return metric.compute_metrics(metric.results), metric.full_results


ROWS = [('a', 5., .9, 9.), ('a', 1., .6, 4.), ('b', 4., .5, 7.),
        ('c', 2., .5, 8.), ('c', 3., .8, 20.), ('d', 1., .1, 3.),
        ('d', None, .99, 30.)]


def test_figures_of_a_table_worked_by_hand():
    """Findings: of 2 x 3 pairs .9 beats all three, .5 beats one and ties
    another: 4.5 of 6. Patients: c has a 3 as its largest rating; .9 and .5
    both beat .1."""
    figures, full = judged(ROWS, bootstrap=50)
    assert figures['AUC'] == pytest.approx(4.5 / 6)
    assert figures['AUC_diameter'] == pytest.approx(5 / 6)
    assert figures['AUC_patients'] == figures['AUC_patients_diameter'] == 1
    assert (figures['num_malignant'], figures['num_benign'],
            figures['num_malignant_patients'],
            figures['num_benign_patients']) == (2, 3, 2, 1)
    assert figures['AUC_low'] <= figures['AUC'] <= figures['AUC_high']
    assert len(full['findings']) == len(ROWS)
    json.dumps(full, allow_nan=False)
    assert figures == judged(ROWS, bootstrap=50)[0]
    assert judged(ROWS[::-1], bootstrap=50)[0]['AUC'] == figures['AUC']


def test_an_interval_is_of_patients():
    """Ten findings of one patient are worth no more than one."""
    rng = np.random.default_rng(0)
    rows = [(str(n), 5. if n % 2 else 1., .3 * (n % 2) + rng.uniform(), 5.)
            for n in range(40)]
    wide, copied = judged(rows)[0], judged(rows * 10)[0]
    assert copied['AUC'] == wide['AUC']
    assert copied['AUC_high'] == pytest.approx(wide['AUC_high'], abs=1e-9)
    assert .15 < wide['AUC_high'] - wide['AUC_low'] < .45
    assert wide['AUC_diameter'] == .5


@pytest.mark.parametrize('rows', [[], ROWS[:1], ROWS[-1:]])
def test_one_class_has_no_area(rows):
    figures, full = judged(rows, bootstrap=5)
    assert np.isnan(figures['AUC']) and full['AUC'] is None
    json.dumps(full, allow_nan=False)


def test_tools_train_and_test_it(root, tmp_path):
    """Probabilities of all findings, and what they are of, in the file."""
    options = [
        'train_dataloader.batch_size=4', 'train_cfg.max_iters=2', *(
            f'{name}_dataloader.dataset.{key}=lidc_infos_train{end}'
            for name in ('val', 'test') for key, end in (
                ('ann_file', '.pkl'), ('coco_file', '_2d_anno.coco.json')))]
    done = tool('train.py', NAME, '--work-dir', tmp_path, '--data-root', root,
                options=options)
    assert done.returncode == 0, done.stderr
    checkpoint, out = tmp_path / 'iter_2.pth', tmp_path / 'results.json'
    done = tool('test.py', NAME, checkpoint, '--data-root', root, '--out',
                out, options=options)
    assert done.returncode == 0, done.stderr
    assert 'was trained on' in done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert told['source']['patients_seen_in_training'] == 3
    assert [item['rating'] for item in told['findings']] == [1, 5, 5, 3, 5]
    assert all(0 < item['malignancy'] < 1 for item in told['findings'])
    assert (told['num_malignant'], told['num_benign']) == (3, 1)
    assert 0 <= told['AUC_low'] <= told['AUC_high'] <= 1
    done = tool('test.py', NAME, checkpoint, '--data-root', root,
                '--show-dir', tmp_path / 'pictures', options=options)
    assert '--show-dir: expected an Indication3DMetric' in error_of(done)
    done = tool('test.py', NAME, checkpoint, '--data-root', root, '--tta',
                options=options)
    assert '--tta: expected tta_model and tta_pipeline' in error_of(done)
    # It finds no boxes: tools of those that do say so.
    for name, *args in (
            ('explain.py', checkpoint, '--out-dir', tmp_path / 'explained'),
            ('infer.py', checkpoint, '--out', tmp_path / 'boxes.json',
             '--scan', root / 'scans/LIDC-IDRI-0000.json'),
            ('browse_dataset.py', '--out-dir', tmp_path / 'drawn')):
        done = tool(name, NAME, *args)
        assert (f'{NAME}: model: expected one that finds boxes, found '
                'MalignancyClassifier') in error_of(done)
    # A test without any figures to write says so.
    done = tool('test.py', NAME, checkpoint, '--data-root', root, '--out',
                out, options=[*options, 'test_evaluator.type=DumpResults',
                              f'test_evaluator.out_file_path={tmp_path}/a.pkl'
                              ])
    assert ('expected an Indication3DMetric, an ImageFROCMetric or a '
            'MalignancyMetric') in error_of(done)
