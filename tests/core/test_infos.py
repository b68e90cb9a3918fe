"""Files of a converted set: trusted by nobody, whole or absent."""

import copy
import json
import os
import pickle

import numpy as np
import pytest

from projects.core.files import DataError, atomic_write, load_json
from projects.core.infos import (
    build_coco,
    check_coco,
    dump_infos,
    load_infos,
    pack_shape,
    unpack_shape,
    validate_infos,
)
from tests.helpers.spheres import make_sphere_set


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

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('call, name', [
    ((os.system, 'echo broken > hostile.txt'), 'system'),
    ((eval, 'open("hostile.txt", "w").close()'), 'builtins.eval'),
    ((np.save, 'hostile.txt', np.zeros(3)), 'numpy.save'),
    ((np.ndarray.tofile, np.zeros(3), 'hostile.txt'), 'builtins.getattr'),
])
@pytest.mark.parametrize('protocol', [4, 5])
def test_hostile_pickle_does_nothing(tmp_path, monkeypatch, call, name,
                                     protocol, infos):
    # Deep in an otherwise sound file.
    hostile = copy.deepcopy(infos)
    hostile['data_list'][1]['token'] = _Evil(*call)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(hostile, protocol))
    with pytest.raises(DataError, match=f'{name}" is not allowed'):
        load_infos(tmp_path / 'x.pkl')
    assert [p.name for p in tmp_path.iterdir()] == ['x.pkl']


@pytest.mark.parametrize('content, message', [
    (b'', 'is empty'), (b'\x80\x04garbage', 'not a readable info pickle'),
    (pickle.dumps([1]), 'top level'),
    (pickle.dumps(dict(metainfo={}, data_list=[])), 'schema_version')])
def test_damaged_pickles_are_named(tmp_path, content, message):
    (tmp_path / 'x.pkl').write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_infos(tmp_path / 'x.pkl')
    assert 'x.pkl' in str(error.value)


def test_truncated_and_missing_pickle(tmp_path, infos):
    whole = pickle.dumps(infos)
    (tmp_path / 'x.pkl').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match='not a readable info pickle'):
        load_infos(tmp_path / 'x.pkl')
    with pytest.raises(DataError, match='cannot be read'):
        load_infos(tmp_path / 'none.pkl')


def raw_of(path, view='CAM_00'):
    """What a sample says of its detector's files."""
    file = dict(path=path, sha256='')
    return dict(views={view: file}, flat=file, dark=file, dead=file)


@pytest.mark.parametrize('change, message', [
    (lambda s: s.pop('images'), 'field "images"'),
    (lambda s: s.update(token=3), 'field "token"'),
    *((lambda s, name=name: s.update(token=name),
       'token": expected a name that does not lead out')
      for name in ('../../evil', '/evil', 'a/../../evil', '..', 'a\0b')),
    (lambda s: s.update(raw=[raw_of('../evil')]),
     'flat": expected a name that does not lead out.*found .../evil'),
    (lambda s: s.update(raw=[raw_of('flat.tif', 'CAM_77')]),
     'views": expected views named in "images"'),
    (lambda s: s.update(raw=[{}]), 'field "views": expected a dict'),
    (lambda s: s['images'].update({'../evil': s['images']['CAM_00']}),
     'images": expected a name that does not lead out.*found .../evil'),
    *((lambda s, path=path: s['images']['CAM_00'].update(img_path=path),
       'img_path": expected a name that does not lead out')
      for path in ('/etc/x.png', '../x.png', 'images/../../x.png')),
    (lambda s: s.update(ct2patient=np.eye(3)), 'ct2patient": expected a fin'),
    (lambda s: s.update(series_uid=3), 'series_uid": expected a string'),
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
    (lambda s: s['cam_instances']['CAM_00'][0].update(bbox_label=1),
     'its instance.s label, 0'),
    (lambda s: s['cam_instances']['CAM_00'].append(None), 'a dict'),
    (lambda s: s['cam_instances'].update(CAM_00=3), 'a list'),
    (lambda s: s['cam_instances'].update(CAM_77=[]), 'views named in'),
    (lambda s: s['images'].update(CAM_00=None), 'images.CAM_00'),
    (lambda s: s['instances'].append('nodule'), 'a dict'),
    (lambda s: s['instances'][0].update(diameter=np.nan), 'positive number'),
    (lambda s: s['instances'][0].update(valid_flag=1), 'a bool'),
    (lambda s: s['instances'][0].update(characteristics=dict(margin='x')),
     'margin'),
])
def test_faults_name_file_scan_and_field(infos, change, message):
    broken = copy.deepcopy(infos)
    change(broken['data_list'][0])
    with pytest.raises(DataError, match=message) as error:
        validate_infos(broken, 'set.pkl')
    assert 'set.pkl: data_list[0]' in str(error.value)


@pytest.mark.parametrize('change, message', [
    (dict(units='m'), 'units": expected "mm", found .m.'),
    (dict(schema_version=2), 'expected 1, found 2'),
    (dict(classes=['a', 'a']), 'different class names'),
    (dict(classes='nodule'), 'different class names'),
    (dict(intensity=3), 'metainfo.intensity": expected a dict'),
    (dict(intensity=dict(scale=0., offset=0.)), 'a positive number, found 0'),
    (dict(intensity=dict(scale=1.)), 'offset'),
])
def test_faults_of_the_metainfo(infos, change, message):
    broken = dict(infos, metainfo=dict(infos['metainfo'], **change))
    with pytest.raises(DataError, match=message):
        validate_infos(broken, 'set.pkl')


JUNK = (None, 'x', -1, 3.5, float('nan'), [], {}, [1, 2], {1: 2}, [None],
        True, 10**20, np.zeros(3), np.array([None]), np.int64(0))


def _keys(item, above=()):
    """Path of the first entry of every container."""
    if isinstance(item, dict):
        for key, value in item.items():
            yield above + (key, )
            yield from _keys(value, above + (key, ))
    elif isinstance(item, list) and item:
        yield above + (0, )
        yield from _keys(item[0], above + (0, ))


def test_no_junk_anywhere_ends_in_a_traceback(infos):
    """Whatever is in a field: it is sound, or one clear sentence."""
    small = dict(metainfo=infos['metainfo'], data_list=[
        dict(infos['data_list'][0],
             images=dict(CAM_00=infos['data_list'][0]['images']['CAM_00']),
             cam_instances=dict(
                 CAM_00=infos['data_list'][0]['cam_instances']['CAM_00']))])
    tried = 0
    for path in list(_keys(small)):
        for junk in JUNK:
            broken = copy.deepcopy(small)
            place = broken
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            tried += 1
            try:
                validate_infos(broken, 'set.pkl')
                json.dumps(build_coco(broken), allow_nan=False)
            except DataError as error:
                assert 'set.pkl' in str(error)
    assert tried > 500


def test_two_samples_of_one_name(infos):
    broken = copy.deepcopy(infos)
    broken['data_list'][1]['token'] = broken['data_list'][0]['token']
    with pytest.raises(DataError, match='no other sample'):
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

    from projects.core.files import dump_json
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
    (lambda c: c['annotations'][0].pop('bbox'), '4 finite numbers'),
    (lambda c: c['annotations'][0].update(bbox=[1, 2]), '4 finite numbers'),
    (lambda c: c['images'].__setitem__(0, None), 'a dict'),
    (lambda c: c.update(categories=[]), 'categories'),
    (lambda c: c.pop('images'), 'field "images": expected a list')])
def test_coco_that_does_not_match(infos, change, message):
    coco = build_coco(infos)
    check_coco(infos, coco)
    change(coco)
    with pytest.raises(DataError, match=message):
        check_coco(infos, coco, 'c.json')


def test_broken_json(tmp_path):
    (tmp_path / 'c.json').write_text('{"a":')
    with pytest.raises(DataError, match='is not JSON'):
        load_json(tmp_path / 'c.json')


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        make_sphere_set(tmp_path / name, 2, 2, 16, seed=seed)

    def content(name):
        return {p.relative_to(tmp_path / name).as_posix(): p.read_bytes()
                for p in (tmp_path / name).rglob('*') if p.is_file()}

    assert content('a') == content('b')
    assert content('a')['lidc_infos_train.pkl'] != content('c')[
        'lidc_infos_train.pkl']


def test_shapes_fit_into_a_record():
    mask = np.zeros((32, 48, 5), bool)
    mask[16:, :24, 2:] = True
    text = pack_shape(mask)
    assert len(text) < 700
    shape = unpack_shape(text, 'here')
    assert shape.shape == (16, 16, 16)
    assert shape[8:, :8, 8:].all() and not shape[:8].any()
    assert not shape[:, 8:].any() and not shape[..., :6].any()
    for bad in ('AAAA', '?', None, 3):
        with pytest.raises(DataError, match='here.*shape.*4096 bits'):
            unpack_shape(bad, 'here')
