"""A known box, written for another program and read back as it would."""

import csv

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects.mv2d_xray.export import export
from projects.mv2d_xray.infos import (InfosError, build_coco, dump_infos,
                                      dump_json, load_infos, load_json)

from .spheres import make_sphere_set

BOX = [30., -20., 10., 24., 20., 16., 0.]
PATIENT = np.array([[-1., 0, 0, 11], [0, -1, 0, -22], [0, 0, 1, 133],
                    [0, 0, 0, 1]])


@pytest.fixture
def tested(tmp_path):
    """Results that are the truth of two scans with two spheres each, and a
    weak box."""
    two = [((30., 10, 0), 14.), ((-40., 0, 20), 9.)]
    infos = make_sphere_set(tmp_path, 2, 4, 64, spheres=[two, two])
    infos['data_list'][0]['token'] = '../up'  # a stranger's
    for sample in infos['data_list']:
        sample['ct2patient'] = PATIENT
    path = tmp_path / 'lidc_infos_train.pkl'
    dump_infos(infos, path)
    dump_json(build_coco(infos), tmp_path / 'coco_truth.json')
    dump_json(dict(
        source=dict(ann_file=str(path)),
        scans=[dict(token=s['token'], class_name='nodule', predictions=[
            *(dict(bbox_3d=[float(v) for v in i['bbox_3d']], score=.9)
              for i in s['instances']),
            dict(bbox_3d=BOX, score=.05)])
            for s in infos['data_list']]), tmp_path / 'results.json')
    return tmp_path


def test_csv_says_both_frames(tested):
    path, = export(tested / 'results.json', tested / 'out', ['csv'])
    with open(path, newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 and rows[0]['scan'] == '../up'
    weak = rows[2]
    world = [float(weak[f'world_ras_{a}_mm']) for a in 'xyz']
    size = [float(weak[f'size_{a}_mm']) for a in 'xyz']
    assert world + size == BOX[:6] and weak['class'] == 'nodule'
    assert float(weak['score']) == .05
    # LPS: x and y turned round, then moved.
    assert [float(weak[f'patient_lps_{a}_mm']) for a in 'xyz'] == [
        -30 + 11, 20 - 22, 10 + 133]


def corners(markup):
    """As 3D Slicer makes a ROI's corners: columns of the orientation are the
    box's axes."""
    axes = np.reshape(markup['orientation'], (3, 3))
    signs = np.array(np.meshgrid(*[(-.5, .5)] * 3)).reshape(3, -1)
    return (np.array(markup['center'])[:, None]
            + axes @ (np.array(markup['size'])[:, None] * signs)).T


def test_slicer_shows_the_box_in_the_patient(tested):
    paths = export(tested / 'results.json', tested / 'out', ['slicer'])
    assert paths[0].name == '___up.mrk.json'
    assert all(p.parent == tested / 'out' for p in paths)
    content = load_json(paths[0])
    assert '/markups-schema-v1' in content['@schema']
    assert len(content['markups']) == 3
    for markup in content['markups']:
        assert markup['type'] == 'ROI' and markup['roiType'] == 'Box'
        assert markup['coordinateSystem'] == 'LPS'
        assert markup['coordinateUnits'] == 'mm'
        assert len(markup['orientation']) == 9 and len(markup['size']) == 3
        assert markup['controlPoints'][0]['position'] == markup['center']
    found = corners(content['markups'][2])
    world = (found - PATIENT[:3, 3]) @ PATIENT[:3, :3]  # its own inverse
    np.testing.assert_allclose(world.min(0), [18, -30, 2])
    np.testing.assert_allclose(world.max(0), [42, -10, 18])


def test_a_turned_box_stays_turned(tested):
    turned = [*BOX[:6], .3]
    dump_json(dict(boxes=[dict(bbox_3d=turned, score=.5,
                               class_name='pore')]), tested / 'part.json')
    paths = export(tested / 'part.json', tested / 'out')
    assert [p.name for p in paths] == ['boxes.csv', 'part.mrk.json']
    markup, = load_json(paths[1])['markups']
    assert markup['coordinateSystem'] == 'RAS'  # nothing says where it lies
    c, s = np.cos(.3), np.sin(.3)
    np.testing.assert_allclose(
        np.reshape(markup['orientation'], (3, 3)) @ [1, 0, 0], [c, s, 0])


def test_coco_results_score_as_what_they_are(tested):
    path, = export(tested / 'results.json', tested / 'out', ['coco'], .1)
    truth = COCO(str(tested / 'coco_truth.json'))
    found = truth.loadRes(str(path))
    assert len(found.getAnnIds()) == len(truth.getAnnIds())
    run = COCOeval(truth, found, 'bbox')
    run.params.iouThrs = np.array([.5])
    run.evaluate()
    run.accumulate()
    # The box of a projected 3D box round a sphere is larger than its own.
    assert run.eval['precision'][0, :, 0, 0, -1].mean() > .99


def test_a_threshold_leaves_boxes_out(tested):
    path, = export(tested / 'results.json', tested / 'out', ['csv'], .1)
    assert len(path.read_text().splitlines()) == 1 + 4
    path, = export(tested / 'results.json', tested / 'out', ['csv'], 1.)
    assert len(path.read_text().splitlines()) == 1


def test_results_that_are_none(tested):
    dump_json(dict(x=1), tested / 'x.json')
    with pytest.raises(InfosError, match='fields "scans" or "boxes"'):
        export(tested / 'x.json', tested / 'out')
    dump_json(dict(boxes=[]), tested / 'y.json')
    with pytest.raises(InfosError, match='coco: expected infos'):
        export(tested / 'y.json', tested / 'out', ['coco'])
    other = load_infos(tested / 'lidc_infos_train.pkl')
    other['data_list'] = other['data_list'][1:]
    dump_infos(other, tested / 'other.pkl')
    with pytest.raises(InfosError, match='expected scan ../up'):
        export(tested / 'results.json', tested / 'out',
               ann_file=str(tested / 'other.pkl'))
