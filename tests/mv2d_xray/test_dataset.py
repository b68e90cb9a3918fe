"""The data set hands over what is on disk, and says what is wrong with it."""

import copy
import pickle
from functools import partial

import cv2
import numpy as np
import psutil
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.dataset import DefaultSampler, pseudo_collate, worker_init_fn
from torch.utils.data import DataLoader

from projects.core import geometry
from projects.core.files import DataError
from projects.core.infos import dump_infos, load_infos
from projects.mv2d_xray.transforms import LoadXRayViews
from tests.helpers.models import PIPELINE, scans_of as build
from tests.helpers.spheres import SCALE, make_sphere_set


def test_sample(sphere_root):
    data = build(sphere_root,
                 coco_file='lidc_infos_train_2d_anno.coco.json')
    assert len(data) == 4 and data.metainfo['classes'] == ('nodule', )
    infos = load_infos(sphere_root / 'lidc_infos_train.pkl')['data_list']
    for item, info in zip((data[i] for i in range(4)), infos):
        image, sample = item['inputs']['img'], item['data_samples']
        assert image.shape == (5, 1, 64, 64) and image.dtype == torch.float32
        kept = [i for i, x in enumerate(info['instances'])
                if not x['ignore']]
        centres = sample.gt_instances_3d.bboxes_3d.gravity_center.numpy()
        np.testing.assert_allclose(
            centres, np.array([info['instances'][i]['bbox_3d'][:3]
                               for i in kept]).reshape(-1, 3), rtol=1e-5)
        # Every 2D box is there, in its view, linked to its 3D box.
        boxes = sample.gt_instances
        assert len(boxes) == 5 * len(kept)
        for box, view, row in zip(boxes.bboxes, boxes.view_ids,
                                  boxes.instance_ids):
            uv, _ = geometry.project(
                centres[row][None].astype(float),
                np.asarray(sample.metainfo['ct2img'])[view])
            middle = (box[:2] + box[2:]) / 2
            np.testing.assert_allclose(uv[0], middle, atol=1.)


def test_line_integrals_come_back(sphere_root):
    # Through the middle of the body: 240 mm of 0.01 / mm, and the spheres.
    image = build(sphere_root)[1]['inputs']['img']
    assert image[0, 0, 32, 32].item() == pytest.approx(2.4, abs=.01)


def rewrite(root, change):
    """Make a set and change its infos."""
    infos = make_sphere_set(root)
    change(infos)
    dump_infos(infos, root / 'lidc_infos_train.pkl')
    return infos


def test_the_set_says_what_a_grey_level_is(tmp_path):
    rewrite(tmp_path, lambda infos: infos['metainfo'].update(
        intensity=dict(scale=2 * SCALE, offset=.5)))
    image = build(tmp_path)[1]['inputs']['img']
    assert image[0, 0, 32, 32].item() == pytest.approx(4.8 + .5, abs=.02)
    # The pipeline has the last word.
    image = build(tmp_path, pipeline=[
        dict(type='LoadXRayViews', scale=SCALE, offset=0.),
        dict(type='PackXRayInputs')])[1]['inputs']['img']
    assert image[0, 0, 32, 32].item() == pytest.approx(2.4, abs=.01)


def test_classes_are_those_of_the_file(tmp_path):
    def two_classes(infos):
        infos['metainfo']['classes'] = ('pore', 'inclusion')
        for sample in infos['data_list']:
            for i, instance in enumerate(sample['instances']):
                instance['bbox_label_3d'] = i % 2
            for boxes in sample['cam_instances'].values():
                for box in boxes:
                    box['bbox_label'] = box['instance_idx'] % 2

    infos = rewrite(tmp_path, two_classes)
    # Scan 2 has ignored findings and scan 1 none; take one with both classes.
    scan = max((0, 3), key=lambda i: len(infos['data_list'][i]['instances']))
    count = len(infos['data_list'][scan]['instances'])
    assert count > 1
    data = build(tmp_path)
    assert data.metainfo['classes'] == ('pore', 'inclusion')
    sample = data[scan]['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [
        i % 2 for i in range(count)]
    assert torch.equal(
        sample.gt_instances.labels,
        sample.gt_instances_3d.labels_3d[sample.gt_instances.instance_ids])
    # Of some classes only: the others are neither objects nor background.
    one = build(tmp_path, metainfo=dict(classes=('inclusion', )))
    sample = one[scan]['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [0] * (count // 2)
    assert len(sample.ignored_instances_3d) == count - count // 2
    assert len(sample.gt_instances) == 5 * (count // 2)
    with pytest.raises(DataError, match=r"expected \['crack'\]"):
        build(tmp_path, metainfo=dict(classes=('crack', )))


def test_empty_scan_and_ignored_finding(sphere_root):
    data = build(sphere_root)
    empty = data[1]['data_samples']
    assert empty.gt_instances.bboxes.shape == (0, 4)
    assert len(empty.gt_instances_3d) == 0
    third = data[2]['data_samples']
    assert len(third.ignored_instances_3d) == 1
    assert len(third.ignored_instances) == 5


def test_some_patients_alone(sphere_root):
    """What is shown in other scans is theirs, too."""
    every = build(sphere_root)
    names = [every.get_data_info(i)['lidc_id_ref'] for i in range(4)]
    some = build(sphere_root, patients=[names[3], names[1]])
    assert [some.get_data_info(i)['lidc_id_ref'] for i in range(2)] == [
        names[1], names[3]] and len(some) == 2
    last = every[3]['data_samples'].gt_instances_3d
    assert len(some.bank) == len(last) < len(every.bank)
    # The second has no findings.
    assert not len(build(sphere_root, patients=names[1:2]).bank)
    with pytest.raises(DataError, match='expected somebody, which the'):
        build(sphere_root, patients=[names[0], 'somebody'])
    with pytest.raises(DataError, match='expected at least one of the'):
        build(sphere_root, patients=[])


def test_small_findings_are_ignored(sphere_root):
    some = build(sphere_root, min_diameter=20.)
    total = sum(
        len(some[i]['data_samples'].gt_instances_3d) for i in range(4))
    infos = load_infos(sphere_root / 'lidc_infos_train.pkl')['data_list']
    large = sum(x['diameter'] >= 20 and not x['ignore'] for s in infos
                for x in s['instances'])
    assert total == large


@pytest.mark.parametrize('serialize', [True, False])
def test_reading_twice_gives_the_same(sphere_root, serialize):
    # Intrinsics were once changed in place at each read.
    data = build(sphere_root, serialize_data=serialize, pipeline=[
        dict(type='LoadXRayViews'), dict(type='ResizeXRay', scale=(32, 32)),
        dict(type='XRayRandomFlip', prob=1.), dict(type='PackXRayInputs')])
    first, again = data[0], data[0]
    assert torch.equal(first['inputs']['img'], again['inputs']['img'])
    for key in ('cam2img', 'ct2cam', 'ct2img'):
        np.testing.assert_array_equal(
            first['data_samples'].metainfo[key],
            again['data_samples'].metainfo[key])
    one, two = (copy.deepcopy(x['data_samples'].gt_instances_3d.bboxes_3d)
                for x in (first, again))
    assert torch.equal(one.tensor, two.tensor)
    assert torch.equal(first['data_samples'].gt_instances.bboxes,
                       again['data_samples'].gt_instances.bboxes)


def test_a_seed_fixes_every_worker(sphere_root):
    def epoch(seed):
        data = build(sphere_root, pipeline=[
            dict(type='LoadXRayViews'), dict(type='XRayRandomFlip'),
            dict(type='XRayRandomRotate'),
            dict(type='XRayViewDropout', min_views=2),
            dict(type='XRayPhotometric'), dict(type='PackXRayInputs')])
        loader = DataLoader(
            data, 2, num_workers=2, collate_fn=pseudo_collate,
            sampler=DefaultSampler(data, seed=seed),
            worker_init_fn=partial(worker_init_fn, num_workers=2, rank=0,
                                   seed=seed))
        return [(s.metainfo['token'], image) for batch in loader
                for s, image in zip(batch['data_samples'],
                                    batch['inputs']['img'])]

    one, two, other = epoch(3), epoch(3), epoch(4)
    assert len(one) == 4
    for a, b in zip(one, two):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    assert any(a[1].shape != b[1].shape or not torch.equal(a[1], b[1])
               for a, b in zip(one, other))


def test_batch_of_scans_with_different_numbers_of_views(sphere_root,
                                                        tmp_path):
    make_sphere_set(tmp_path, 1, num_views=3)
    batch = pseudo_collate([build(sphere_root)[0], build(tmp_path)[0],
                            build(sphere_root)[1]])
    data = MODELS.build(
        dict(type='XRayDataPreprocessor', mean=[0.] * 3, std=[1.] * 3))(batch)
    assert data['inputs']['imgs'].shape == (5 + 3 + 5, 3, 64, 64)
    assert [len(s.metainfo['ct2img']) for s in data['data_samples']] == [
        5, 3, 5]


def test_truth_for_the_metric(sphere_root):
    info = build(sphere_root, test_mode=True)[2]['data_samples'].eval_ann_info
    assert len(info['ignored_bboxes_3d']) == 1
    assert len(info['gt_diameters']) == len(info['gt_labels_3d'])


def test_one_view(tmp_path):
    make_sphere_set(tmp_path, num_views=1)
    item = build(tmp_path, num_views=1)[0]
    assert item['inputs']['img'].shape == (1, 1, 64, 64)
    assert np.asarray(item['data_samples'].metainfo['ct2img']).shape == (
        1, 4, 4)


def test_no_view(tmp_path):
    def no_view(infos):
        infos['data_list'][0].update(images={}, cam_instances={})

    rewrite(tmp_path, no_view)
    with pytest.raises(DataError, match='LIDC-IDRI-0000.*at least one view'):
        build(tmp_path)


def test_no_scan(tmp_path):
    rewrite(tmp_path, lambda infos: infos['data_list'].clear())
    with pytest.raises(DataError, match='at least one sample, found 0'):
        build(tmp_path)


def test_diameter_of_a_box_without_one(tmp_path):
    def without(infos):
        for instance in infos['data_list'][0]['instances']:
            del instance['diameter']

    infos = rewrite(tmp_path, without)
    info = build(tmp_path, test_mode=True)[0]['data_samples'].eval_ann_info
    np.testing.assert_allclose(
        info['gt_diameters'], [np.mean(x['bbox_3d'][3:6])
                               for x in infos['data_list'][0]['instances']])


def test_wrong_number_of_views(sphere_root):
    with pytest.raises(DataError, match='expected 10 views, found 5'):
        build(sphere_root, num_views=10)


def test_box_outside_the_scene_names_the_scan(sphere_root):
    # Ranges in metres, kept for data in millimetres.
    metres = [-51.2, -51.2, -5, 51.2, 51.2, 3]
    with pytest.raises(DataError, match='LIDC-IDRI-.*scene box'):
        build(sphere_root, scene_range=metres)


@pytest.mark.parametrize('flags', [
    dict(valid_flag=False), dict(ignore=True)])
def test_finding_that_does_not_count_may_lie_outside(tmp_path, flags):
    rewrite(tmp_path, lambda infos: infos['data_list'][0]['instances'][0]
            .update(flags, bbox_3d=[500., 0, 0, 9, 9, 9, 0]))
    data = build(tmp_path, scene_range=[-200.] * 3 + [200.] * 3)
    assert len(data[0]['data_samples'].ignored_instances_3d) == 1


def test_finding_outside_the_scene_is_told_and_not_trained_on(
        tmp_path, monkeypatch):
    """A scan of 680 mm has findings that no scene box of 400 mm holds."""
    scene = [-200.] * 3 + [200.] * 3

    def beyond(infos):
        infos['data_list'][0]['instances'][0]['bbox_3d'][2] = 248.
        infos['data_list'][3]['instances'][-1]['bbox_3d'][2] = -202.

    infos = rewrite(tmp_path, beyond)
    total = sum(not x['ignore'] for s in infos['data_list']
                for x in s['instances'])
    told = []
    monkeypatch.setattr('projects.core.dataset.print_log',
                        lambda text, **_: told.append(text))
    for test_mode, what in ((False, 'ignored'), (True, 'counted, and missed')):
        data = build(tmp_path, scene_range=scene, test_mode=test_mode)
        token = infos['data_list'][0]['token']
        said, = told
        told.clear()
        assert '2 findings of 2 scans outside the scene box [-200.0' in said
        assert f'248.0] mm in scan {token}: {what}' in said
        truth = [data.get_data_info(i)['ann_info'] for i in range(4)]
        assert sum(len(t['gt_labels_3d']) for t in truth) == (
            total if test_mode else total - 2)
        assert len(truth[0]['ignored_bboxes_3d']) == (not test_mode)
        assert len(data.bank) == total - 2 * (not test_mode)
        if not test_mode:  # in the views, too
            assert len(truth[0]['ignored_bboxes']) == 5


def test_missing_image_and_wrong_size(tmp_path):
    infos = make_sphere_set(tmp_path)
    path = tmp_path / infos['data_list'][0]['images']['CAM_02']['img_path']
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint16))
    with pytest.raises(DataError, match='expected 64 x 64 .*found 64 x 32'):
        build(tmp_path)[0]
    path.unlink()
    with pytest.raises(DataError, match='CAM_02.png: image'):
        build(tmp_path)[0]


def test_eight_bits_are_not_enough(tmp_path):
    infos = make_sphere_set(tmp_path)
    path = tmp_path / infos['data_list'][0]['images']['CAM_02']['img_path']
    cv2.imwrite(str(path), np.full((64, 64, 3), 7, np.uint8))
    with pytest.raises(DataError, match='CAM_02.*16 bits.*found 8 bits'):
        build(tmp_path)[0]
    # The user's own images may be of any kind, with a scale.
    image = build(tmp_path, pipeline=[
        dict(type='LoadXRayViews', scale=.1),
        dict(type='PackXRayInputs')])[0]['inputs']['img'][2]
    assert torch.allclose(image, torch.tensor(.7))


def images_of(root, image, suffix='.tif'):
    """A set whose first scan's third view is this image; its path."""
    infos = make_sphere_set(root, 1)
    view = infos['data_list'][0]['images']['CAM_02']
    view['img_path'] = view['img_path'].replace('.png', suffix)
    assert cv2.imwrite(str(root / view['img_path']), image)
    dump_infos(infos, root / 'lidc_infos_train.pkl')
    return [dict(type='LoadXRayViews', scale=1.), PIPELINE[1]]


@pytest.mark.parametrize('image, found', [
    (np.full((64, 64), 2.5, np.float32), 'floating point.*--scale 1'),
    (np.full((64, 64), 2.5), 'floating point.*--scale 1'),
    (np.full((64, 64), -7, np.int16), 'signed numbers'),
    (np.full((64, 64), 7, np.int32), 'signed numbers')])
def test_numbers_that_are_no_grey_levels_need_a_scale(tmp_path, image, found):
    # Line integrals, multiplied by what a 16-bit grey level is worth: all 0.
    scaled = images_of(tmp_path, image)
    with pytest.raises(DataError, match=f'CAM_02.*16 bits.*found {found}'):
        build(tmp_path)[0]
    read = build(tmp_path, pipeline=scaled)[0]['inputs']['img'][2]
    assert torch.all(read == float(image[0, 0]))


def test_pixels_that_are_not_finite(tmp_path):
    image = np.ones((64, 64), np.float32)
    image[3, 4:6] = np.nan, np.inf
    scaled = images_of(tmp_path, image)
    with pytest.raises(DataError, match='CAM_02.tif: image: expected finite '
                       'numbers, found 2 of 4096 pixels'):
        build(tmp_path, pipeline=scaled)[0]


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_colours_are_no_grey_levels(tmp_path, suffix):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    opaque = np.full_like(grey, 65535)
    images_of(tmp_path, np.stack([grey] * 3 + [opaque], -1), suffix)
    read = build(tmp_path)[0]['inputs']['img'][2, 0].numpy()
    np.testing.assert_allclose(read, grey * SCALE, rtol=1e-6)
    images_of(tmp_path, np.stack([grey, grey, grey + 1], -1), suffix)
    with pytest.raises(DataError, match=f'CAM_02{suffix}: image: expected '
                       'grey levels, found colours'):
        build(tmp_path)[0]


def test_coco_of_another_set(sphere_root, tmp_path):
    make_sphere_set(tmp_path, seed=7)
    with pytest.raises(DataError, match='as in the info pickle'):
        build(sphere_root,
              coco_file=str(tmp_path / 'lidc_infos_train_2d_anno.coco.json'))


def test_the_bank_is_in_every_sample_and_is_not_copied(sphere_root):
    """Nor handed to a transform: copies and other processes have it, too."""
    data = build(sphere_root, lazy_init=False)
    assert len(data.bank) == 5 and data.get_data_info(1)['bank'] is data.bank
    assert copy.deepcopy(data.get_data_info(0))['bank'] is data.bank
    assert data.get_subset(2).bank is data.bank
    assert data.data_bytes.nbytes < 1e6  # not once more for each sample
    step = dict(type='XRayInsertNodules', max_nodules=20,
                attenuation=(.006, .02))
    data = build(sphere_root, pipeline=[PIPELINE[0], step, PIPELINE[1]])

    def most(samples):
        return max(len(sample.gt_instances_3d) for sample in samples)

    loader = DataLoader(
        data, num_workers=1, collate_fn=pseudo_collate,
        persistent_workers=True)
    for _ in range(2):  # epochs
        assert most(batch['data_samples'][0] for batch in loader) > 4
    # As a process that is spawned gets the set.
    other = pickle.loads(pickle.dumps(data))
    assert most(other[i]['data_samples'] for i in range(4)) > 4


def test_a_png_with_a_part_that_is_said_to_be_huge(tmp_path):
    """Nothing takes the memory that it says."""
    done, content = cv2.imencode('.png', np.ones((8, 8), np.uint16))
    content = bytearray(content.tobytes())
    content[33:37] = b'\x7f\xff\xff\xf0'
    (tmp_path / 'a.png').write_bytes(content)
    eye = np.eye(4)
    view = dict(img_path=str(tmp_path / 'a.png'), height=8, width=8,
                cam2img=eye, lidar2cam=eye, lidar2img=eye)
    before = psutil.Process().memory_info().rss
    with pytest.raises(DataError, match='a.png: image: expected a readable'):
        LoadXRayViews()(dict(images=dict(a=view)))
    assert psutil.Process().memory_info().rss - before < 100 << 20
