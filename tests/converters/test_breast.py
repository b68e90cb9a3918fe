"""The synthetic breasts: their compression, texture, findings and files."""

import json
import math

import cv2
import numpy as np
import pydicom
import pytest
from landmarks import line_error
from pycocotools import mask as coco_mask

from data_converters import breast
from data_converters.__main__ import main
from data_converters.breast import Compression, make_patient, power_law_noise
from data_converters.check import check_set
from projects.ag_rcnn.landmarks import find_landmarks

SIZE = 96


@pytest.fixture(scope='module')
def left():
    return make_patient(0, 1, breast.DETECTOR[0] / SIZE)['LEFT']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('breasts') / 'tree'
    main(['breast', '--out-dir', str(root), '--num-patients', '4',
          '--image-size', str(SIZE), '--seed', '3'])
    return root


@pytest.fixture(scope='module')
def converted(tree):
    out = tree.parent / 'set'
    main(['mammograms', '--dicom-root', str(tree), '--out-dir', str(out),
          '--image-size', str(SIZE)])
    return {split: json.loads(
        (out / f'annotations/instances_{split}.json').read_text())
        for split in ('train', 'val', 'test')}, out


def inner_points(left, rng, count=400):
    points = rng.uniform([2, -left.widths[0], -left.heights[0]],
                         [left.depth, left.widths[1], left.heights[1]],
                         (count * 4, 3))
    return points[left.radius(*points.T) < .9][:count]


@pytest.mark.parametrize('tilt', [0., math.radians(45)])
def test_compression_keeps_volumes(left, tilt):
    """The determinant of its derivative, by differences, is 1."""
    pressed = Compression(left, tilt, 50., math.radians(6))
    points = inner_points(left, np.random.default_rng(0))
    step = 1.5
    moved = [pressed.from_tissue(points + sign * step * axis)
             for axis in np.eye(3) for sign in (1, -1)]
    jacobian = np.stack([(moved[2 * a] - moved[2 * a + 1]) / (2 * step)
                         for a in range(3)], -1)
    volumes = np.linalg.det(jacobian)
    assert np.median(volumes) == pytest.approx(1, abs=.02)
    assert np.quantile(np.abs(volumes - 1), .8) < .1
    # All is between the plates.
    after = pressed.from_tissue(points)
    assert (np.abs(after[:, 2]) < 25).all() and (after[:, 0] >= 0).all()


@pytest.mark.parametrize('tilt', [0., math.radians(45)])
def test_compression_and_back(left, tilt):
    pressed = Compression(left, tilt, 50., math.radians(6))
    x, p = np.meshgrid(np.arange(1., 80, 4), np.arange(-70., 70, 4),
                       indexing='ij')
    c = np.arange(-22.5, 23, 5)
    filled, tissue = pressed.to_tissue(x, p, c)
    places = np.stack(np.broadcast_arrays(
        x[..., None], p[..., None], c), -1)[filled > 0]
    whole = (filled[filled > 0] == 1) & (
        left.radius(*tissue) < .95)
    back = pressed.from_tissue(np.stack(tissue, 1))
    assert np.linalg.norm(back - places, axis=1)[whole].max() < .6
    assert whole.sum() > 500


def test_spectrum_of_the_noise():
    noise = power_law_noise((64, 96, 80), 3., np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 1) < 1e-3
    image = noise.sum(0)
    power = np.abs(np.fft.fft2(image))**2
    frequency = np.hypot(*np.meshgrid(
        np.fft.fftfreq(96), np.fft.fftfreq(80), indexing='ij'))
    used = (frequency > .04) & (frequency < .4)
    slope = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)[0]
    assert slope == pytest.approx(-3, abs=.2)


def test_the_other_breast_is_like_the_first():
    both = make_patient(5, 2, 2.)
    assert abs(both['LEFT'].depth / both['RIGHT'].depth - 1) < .2
    like = np.corrcoef(both['LEFT'].noise.ravel(),
                       both['RIGHT'].noise.ravel())[0, 1]
    assert .4 < like < .9


def test_files_are_as_cbis_ddsm_has_them(tree):
    names = {path.name for path in tree.iterdir()}
    assert 'mass_case_description_train_set.csv' in names
    for path in tree.glob('*_P_*'):
        files = sorted(path.glob('*/*/*.dcm'))
        finding = path.name.rsplit('_', 1)[1].isdigit()
        assert [f.name for f in files] == ['1-1.dcm', '1-2.dcm'][:1 + finding]
        for file in files:
            data = pydicom.dcmread(file)
            assert data.Modality == 'MG'
            assert data.PatientID == path.name
        assert data.BitsStored == (8 if finding else 16)
    assert len({n.split('_')[2] for n in names if '_P_' in n}) == 4
    assert {n.split('_')[0].split('-')[1] for n in names if '_P_' in n} == {
        'Training', 'Test'}


def test_the_set_converts_without_repairs(converted):
    sets, out = converted
    images = [i for coco in sets.values() for i in coco['images']]
    assert len(images) == 16
    assert all(None not in i['partners'].values() for i in images)
    assert all(i['pixel_mm'] == pytest.approx(breast.DETECTOR[0] / SIZE)
               for i in images)
    assert json.loads((out / 'errors.json').read_text()) == dict(
        skipped={}, repaired={}, alone={})
    assert list(check_set(out)) == []


def test_findings_are_where_the_truth_in_3d_says(tree, converted):
    """Of each finding of a breast there is one in either view."""
    sets, _ = converted
    lesions = json.loads((tree / 'truth.json').read_text())['lesions']
    assert lesions
    shown = {(image['patient'], image['laterality'], image['view'],
              found['abnormality']): (image, found)
             for coco in sets.values() for image in coco['images']
             for found in coco['annotations']
             if found['image_id'] == image['id']}
    for lesion in lesions:
        for view in ('CC', 'MLO'):
            image, found = shown[lesion['patient'], lesion['laterality'],
                                 view, lesion['abnormality']]
            mask = coco_mask.decode(found['segmentation'])
            assert mask.sum() == found['area']
            across = max(found['bbox'][2:]) * image['pixel_mm']
            assert .4 < across / lesion['diameter'] < 2.2
            u, v = image['truth']['lesions'][lesion['abnormality'] - 1]
            middle = np.argwhere(mask).mean(0)[::-1] + .5
            assert np.linalg.norm(middle - [u, v]) * image[
                'pixel_mm'] < 2 + .15 * lesion['diameter']
    assert len(shown) == 2 * len(lesions)


def test_landmarks_are_where_the_truth_says(converted):
    sets, out = converted
    air = breast.FOG * 65535
    for coco in sets.values():
        for image in coco['images']:
            pixels = cv2.imread(str(out / image['file_name']),
                                cv2.IMREAD_UNCHANGED)
            x, y = image['truth']['nipple']
            inwards = -1 if image['laterality'] == 'L' else 1
            # The nipple's tip is faint: beyond it is air.
            line = pixels[int(y)].astype(int)
            assert abs(line[int(x) - inwards * 3] - air) < 1500
            assert line[int(x) + inwards * 6] > air + 2000
            assert (image['truth']['pectoral'] is None) == (
                image['view'] == 'CC')
            if image['view'] == 'MLO':
                (top, _), (_, wall) = image['truth']['pectoral']
                if image['laterality'] == 'R':
                    top = SIZE - top
                assert 0 < top < SIZE / 2 and 0 < wall < SIZE


def test_landmarks_are_found_where_the_truth_is(tmp_path):
    """As docs/breast.md says of many: in pixels of 0.9 mm."""
    main(['breast', '--out-dir', str(tmp_path / 'tree'), '--num-patients',
          '2', '--image-size', '256', '--seed', '3'])
    main(['mammograms', '--dicom-root', str(tmp_path / 'tree'), '--out-dir',
          str(tmp_path / 'set'), '--image-size', '256'])
    images, nipples, lines = [], [], []
    for path in (tmp_path / 'set/annotations').glob('*.json'):
        images += json.loads(path.read_text())['images']
    assert len(images) == 8
    for image in images:
        found = find_landmarks(cv2.imread(
            str(tmp_path / 'set' / image['file_name']), cv2.IMREAD_UNCHANGED),
            image['laterality'], image['view'], padding=image['padding'])
        truth = image['truth']
        nipples.append(image['pixel_mm'] * np.linalg.norm(
            found.nipple - truth['nipple']))
        if truth['pectoral']:
            lines.append(image['pixel_mm'] * line_error(
                found.pectoral, np.array(truth['pectoral'])))
    assert max(nipples) < 10 and np.median(nipples) < 6
    assert len(lines) == 4 and max(lines) < 5


def test_the_set_says_that_it_is_synthetic(converted):
    for coco in converted[0].values():
        assert coco['info']['description'] == 'synthetic breasts'


def test_the_same_seed_makes_the_same_files(tree, tmp_path):
    main(['breast', '--out-dir', str(tmp_path), '--num-patients', '1',
          '--image-size', str(SIZE), '--seed', '3'])
    for path in tmp_path.rglob('*.dcm'):
        other = tree / path.relative_to(tmp_path)
        assert path.read_bytes() == other.read_bytes()


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(SystemExit, match='found other files'):
        main(['breast', '--out-dir', str(tmp_path), '--num-patients', '1'])
