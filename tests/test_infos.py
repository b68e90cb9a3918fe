"""Files of a converted set: trusted by nobody, whole or absent."""

import copy
import pickle

import numpy as np
import pytest

from projects.mv2d_xray.infos import (InfosError, atomic_write, build_coco,
                                      check_coco, dump_infos, load_infos,
                                      load_json, validate_infos)

from .spheres import make_sphere_set


@pytest.fixture(scope='module')
def infos(tmp_path_factory):
    return make_sphere_set(tmp_path_factory.mktemp('infos'))


def test_round_trip(tmp_path, infos):
    dump_infos(infos, tmp_path / 'a.pkl')
    again = load_infos(tmp_path / 'a.pkl')
    assert again['metainfo'] == infos['metainfo']
    view = again['data_list'][0]['images']['CAM_03']
    np.testing.assert_array_equal(
        view['lidar2img'],
        infos['data_list'][0]['images']['CAM_03']['lidar2img'])


class _Evil:

    def __reduce__(self):
        import os
        return os.system, ('echo broken > hostile.txt', )


def test_hostile_pickle_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(InfosError, match='not allowed'):
        load_infos(tmp_path / 'x.pkl')
    assert not (tmp_path / 'hostile.txt').exists()


@pytest.mark.parametrize('content, message', [
    (b'', 'is empty'), (b'\x80\x04garbage', 'not a readable info pickle'),
    (pickle.dumps([1]), 'top level'),
    (pickle.dumps(dict(metainfo={}, data_list=[])), 'schema_version')])
def test_damaged_pickles_are_named(tmp_path, content, message):
    (tmp_path / 'x.pkl').write_bytes(content)
    with pytest.raises(InfosError, match=message) as error:
        load_infos(tmp_path / 'x.pkl')
    assert 'x.pkl' in str(error.value)


def test_truncated_and_missing_pickle(tmp_path, infos):
    whole = pickle.dumps(infos)
    (tmp_path / 'x.pkl').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InfosError, match='not a readable info pickle'):
        load_infos(tmp_path / 'x.pkl')
    with pytest.raises(InfosError, match='cannot be read'):
        load_infos(tmp_path / 'none.pkl')


@pytest.mark.parametrize('change, message', [
    (lambda s: s.pop('images'), 'field "images"'),
    (lambda s: s.update(token=3), 'field "token"'),
    (lambda s: s['images']['CAM_00'].pop('img_path'), 'img_path'),
    (lambda s: s['images']['CAM_00'].update(cam2img=np.eye(3)),
     'finite 4x4 matrix'),
    # A transposed extrinsic no longer gives the stored product.
    (lambda s: s['images']['CAM_01'].update(
        lidar2cam=s['images']['CAM_01']['lidar2cam'].T), 'cam2img @'),
    (lambda s: s['instances'][0].update(bbox_3d=[0] * 6), '7 finite numbers'),
    (lambda s: s['instances'][0]['bbox_3d'].__setitem__(4, -1.),
     'positive sizes'),
    (lambda s: s['instances'][0].update(bbox_label_3d=7), 'bbox_label_3d'),
    (lambda s: s['cam_instances']['CAM_00'][0].update(instance_idx=99),
     'instance_idx'),
    (lambda s: s['cam_instances']['CAM_00'][0].update(bbox=[5, 5, 5, 9]),
     'x1 < x2'),
])
def test_faults_name_file_scan_and_field(infos, change, message):
    broken = copy.deepcopy(infos)
    change(broken['data_list'][0])
    with pytest.raises(InfosError, match=message) as error:
        validate_infos(broken, 'set.pkl')
    assert 'set.pkl: data_list[0]' in str(error.value)


def test_two_samples_of_one_name(infos):
    broken = copy.deepcopy(infos)
    broken['data_list'][1]['token'] = broken['data_list'][0]['token']
    with pytest.raises(InfosError, match='no other sample'):
        validate_infos(broken)


def test_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / 'x.bin'
    target.write_bytes(b'old')
    with pytest.raises(RuntimeError):
        with atomic_write(target) as stream:
            stream.write(b'half')
            raise RuntimeError
    assert target.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['x.bin']


def test_coco_of_the_infos(infos, tmp_path):
    coco = build_coco(infos)
    assert len(coco['images']) == 4 * 5
    boxes = sum(len(b) for s in infos['data_list']
                for b in s['cam_instances'].values())
    assert len(coco['annotations']) == boxes > 0  # the last one, too
    assert len({a['id'] for a in coco['annotations']}) == boxes
    # The link is by index, not by the order of lists.
    by_id = {i['id']: i for i in coco['images']}
    for annotation in coco['annotations']:
        image = by_id[annotation['image_id']]
        sample = next(s for s in infos['data_list']
                      if image['token'].startswith(s['token']))
        box = sample['instances'][annotation['instance_idx']]['bbox_3d']
        homogeneous = np.array(image['ct2img']) @ [*box[:3], 1]
        np.testing.assert_allclose(
            annotation['center2d'][:2], homogeneous[:2] / homogeneous[2])
        np.testing.assert_allclose(annotation['center2d'][2], homogeneous[2])


def test_coco_loads_in_pycocotools(infos, tmp_path):
    from pycocotools.coco import COCO

    from projects.mv2d_xray.infos import dump_json
    dump_json(build_coco(infos), tmp_path / 'c.json')
    coco = COCO(str(tmp_path / 'c.json'))
    assert len(coco.getImgIds()) == 20
    first = coco.loadAnns(coco.getAnnIds())[0]
    assert set(first) >= {'bbox', 'area', 'iscrowd', 'malignancy',
                          'bbox_cam3d'}


@pytest.mark.parametrize('change, message', [
    (lambda c: c['annotations'].pop(), 'entries as in the info pickle'),
    (lambda c: c['annotations'][2]['bbox'].__setitem__(0, -9.), 'bbox'),
    (lambda c: c['images'][1].update(file_name='x.png'), 'file_name'),
    (lambda c: c.pop('images'), 'field "images": expected a list')])
def test_coco_that_does_not_match(infos, change, message):
    coco = build_coco(infos)
    check_coco(infos, coco)
    change(coco)
    with pytest.raises(InfosError, match=message):
        check_coco(infos, coco, 'c.json')


def test_broken_json(tmp_path):
    (tmp_path / 'c.json').write_text('{"a":')
    with pytest.raises(InfosError, match='is not JSON'):
        load_json(tmp_path / 'c.json')
