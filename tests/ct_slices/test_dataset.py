"""Slices to train on, scans to test on, and which come when."""

from itertools import islice

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmengine.dataset import Compose

import projects.ct_slices  # noqa: F401  registers everything
from projects.core import geometry
from projects.core.files import DataError
from projects.ct_slices.dataset import PositiveShareSampler
from projects.ct_slices.transforms import CropSlice, TurnSlice
from tests.helpers.slices import SHAPE, make_slice_set

SCAN = [dict(type='LoadCTSlices'), dict(type='PackCTScan')]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_slice_set(tmp_path_factory.mktemp('slices') / 'set')


def dataset(root, **kwargs):
    return DATASETS.build(dict(dict(
        type='CTSliceDataset', data_root=str(root),
        ann_file='lidc_infos_train.pkl', pipeline=[]), **kwargs))


def test_slices_to_train_on_are_those_of_the_infos(root):
    slices, scans = dataset(root), dataset(root, test_mode=True)
    assert len(slices) == 4 * SHAPE[2] and len(scans) == 4
    boxes = {item['img_id']: item['instances'] for item in slices}
    for scan in scans:
        truth = scan['ann_info']
        for row, image in enumerate(scan['images'].values()):
            here = truth['gt_bboxes'][truth['gt_bboxes_view'] == row]
            mine = boxes[image['sample_data_token']]
            np.testing.assert_allclose(
                [b['bbox'] for b in mine if not b['ignore_flag']],
                here if len(here) else [])
            ignored = (truth['ignored_bboxes_view'] == row).sum()
            assert sum(b['ignore_flag'] for b in mine) == ignored
    assert slices.positive.tolist() == [
        any(not b['ignore_flag'] for b in item['instances'])
        for item in slices]
    assert 0 < slices.positive.mean() < 1
    tokens = {item['token'] for item, p in zip(slices, slices.positive) if p}
    assert tokens == {f'LIDC-IDRI-{n:04d}' for n in (0, 2, 3)}


def test_small_findings_are_ignored(root):
    none = dataset(root, min_diameter=99.)
    assert not none.positive.any()
    assert {b['ignore_flag'] for item in none for b in item['instances']} == {
        1}


def test_only_chosen_slices_are_trained_on(tmp_path):
    root = make_slice_set(tmp_path / 'set', negatives=1.)
    chosen = dataset(root)
    assert chosen.positive.sum() * 2 == len(chosen)
    assert len(dataset(root, selected=False)) == 4 * SHAPE[2]
    assert sum(len(s['images']) for s in dataset(
        root, test_mode=True)) == 4 * SHAPE[2]


def test_views_are_no_slices(sphere_root, root):
    with pytest.raises(DataError, match='expected that of a CT slice'):
        dataset(sphere_root)
    with pytest.raises(DataError, match='expected X-ray views, found CT'):
        dataset(root, type='XRayDataset')


def test_a_set_without_slices_is_refused(tmp_path):
    root = make_slice_set(tmp_path / 'set', numbers=[1], negatives=1.)
    with pytest.raises(DataError, match='at least one slice to train on'):
        dataset(root)


# ------------------------------------------------------------------ the order
class Rows:
    """What a sampler sees of a data set."""

    def __init__(self, positive):
        self.positive = np.array(positive, dtype=bool)

    def __len__(self):
        return len(self.positive)


@pytest.mark.parametrize('share', [.127, .5, .9])
def test_a_share_of_the_slices_is_positive(share):
    data = Rows([True] * 7 + [False] * 93)
    drawn = list(islice(PositiveShareSampler(data, share, 0), 2000))
    found = data.positive[drawn]
    assert found.mean() == pytest.approx(share, abs=1e-3)
    # Evenly: no long run without one.
    for start in range(0, 1900, 100):
        assert abs(found[start:start + 100].sum() - 100 * share) <= 1
    # All come before any comes again.
    assert len(set(np.array(drawn)[found][:7])) == 7
    assert drawn == list(islice(PositiveShareSampler(data, share, 0), 2000))
    assert drawn != list(islice(PositiveShareSampler(data, share, 1), 2000))


@pytest.mark.parametrize('kind', [True, False])
def test_one_kind_alone_is_drawn(kind):
    drawn = list(islice(PositiveShareSampler(Rows([kind] * 5), .5, 0), 20))
    assert sorted(drawn) == sorted(list(range(5)) * 4)


def test_processes_share_the_slices():
    data = Rows([True] * 4 + [False] * 12)
    whole = list(islice(PositiveShareSampler(data, .25, 0), 40))
    parts = []
    for rank in range(2):
        sampler = PositiveShareSampler(data, .25, 0)
        sampler.rank, sampler.world = rank, 2
        parts.append(list(islice(sampler, 20)))
    assert [drawn for pair in zip(*parts) for drawn in pair] == whole


@pytest.mark.parametrize('share', [0., 1., -1.])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match='share: expected more than 0'):
        PositiveShareSampler(Rows([True]), share)


# ----------------------------------------------------------------- transforms
def loaded(root, **crop):
    steps = [dict(type='LoadImageFromFile'),
             dict(type='mmdet.LoadAnnotations', with_bbox=True)]
    if crop:
        steps.append(dict(type='CropSlice', **crop))
    return Compose([TRANSFORMS.build(step) for step in steps])


def test_a_crop_holds_a_finding_where_it_is(root):
    data = dataset(root)
    size, seen = 24, set()
    for row in np.flatnonzero(data.positive):
        whole = loaded(root)(data.get_data_info(row))
        cut = loaded(root, size=size)(data.get_data_info(row))
        assert cut['img'].shape == (size, size, 3) and len(cut['gt_bboxes'])
        assert cut['img_shape'] == (size, size)
        boxes = whole['gt_bboxes'].tensor.numpy()
        small = cut['gt_bboxes'].tensor.numpy()
        for box, ignored in zip(small, cut['gt_ignore_flags']):
            if ignored or box.min() <= 0 or box.max() >= size:
                continue
            # It shows the same pixels as the box that it was.
            x1, y1, x2, y2 = np.rint(box).astype(int)
            patch = cut['img'][y1:y2, x1:x2]
            sizes = boxes[:, 2:] - boxes[:, :2]
            same = [b for b, s in zip(boxes, sizes)
                    if np.allclose(s, box[2:] - box[:2], atol=1e-3)]
            assert any(np.array_equal(
                patch, whole['img'][int(round(b[1])):int(round(b[1])) + y2
                                    - y1, int(round(b[0])):int(round(b[0]))
                                    + x2 - x1]) for b in same)
            seen.add(row)
    assert len(seen) > 10


def test_a_crop_may_be_larger_than_its_slice():
    crop = CropSlice(10)
    image = np.ones((6, 4, 3), np.uint8)
    from mmdet.structures.bbox import HorizontalBoxes
    found = crop(dict(
        img=image, gt_bboxes=HorizontalBoxes(torch.zeros(0, 4)),
        gt_bboxes_labels=np.zeros(0, int), gt_ignore_flags=np.zeros(0, bool)))
    assert found['img'].shape == (10, 10, 3)
    assert found['img'].sum() == image.sum()
    found = crop(dict(
        img=np.ones((40, 40, 3), np.uint8), gt_bboxes=HorizontalBoxes(
            torch.tensor([[5., 5., 35., 35.]])),
        gt_bboxes_labels=np.zeros(1, int), gt_ignore_flags=np.zeros(1, bool)))
    # A finding that is larger fills the crop, about its middle.
    assert found['gt_bboxes'].tensor.tolist() == [[0, 0, 10, 10]]


def test_a_turned_slice_has_its_boxes_where_they_belong():
    from mmdet.structures.bbox import HorizontalBoxes
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:9, 6:18] = 200
    seen = set()
    for _ in range(40):
        found = TurnSlice()(dict(img=image, gt_bboxes=HorizontalBoxes(
            torch.tensor([[6., 4., 18., 9.]]))))
        x1, y1, x2, y2 = found['gt_bboxes'].tensor[0].int().tolist()
        assert (found['img'][y1:y2, x1:x2] == 200).all()
        assert (x2 - x1) * (y2 - y1) * 3 == (found['img'] > 0).sum()
        assert found['img_shape'] == found['img'].shape[:2]
        seen.add((x1, y1, x2, y2))
    assert len(seen) == 4
    empty = TurnSlice()(dict(img=image, gt_bboxes=HorizontalBoxes(
        torch.zeros(0, 4))))
    assert len(empty['gt_bboxes']) == 0


@pytest.mark.parametrize('scale', [1., 2.])
def test_a_scan_is_all_its_slices(root, scale):
    data = dataset(root, test_mode=True, pipeline=[
        dict(type='LoadCTSlices', scale=scale), dict(type='PackCTScan')])
    packed, meta = data[0], data.get_data_info(0)
    sample = packed['data_samples']
    images = packed['inputs']['img']
    assert images.shape == (SHAPE[2], 3, SHAPE[1] * scale, SHAPE[0] * scale)
    assert images.dtype == torch.uint8
    assert sample.token == 'LIDC-IDRI-0000' and sample.slice_mm == 2.
    truth = sample.eval_ann_info
    boxes = geometry.project_boxes(
        np.array([i['bbox_3d'] for i in meta['instances']]), sample.ct2img)
    for box, view, row in zip(truth['gt_bboxes'], truth['gt_bboxes_view'],
                              truth['gt_bboxes_instance']):
        rect, depth = boxes[0][view, row], boxes[1][view, row]
        assert depth > 0
        assert (box[:2] >= rect[:2] - 1e-3).all()
        assert (box[2:] <= rect[2:] + 1e-3).all()
        # In the middle channel it is bright, all round it is dark.
        x, y = ((box[:2] + box[2:]) / 2).astype(int)
        assert images[view, 1, y, x] > 150


def test_a_missing_image_is_told(root, tmp_path):
    import shutil
    shutil.copytree(root, tmp_path / 'set')
    (tmp_path / 'set/images/LIDC-IDRI-0000/SLICE_003.png').unlink()
    data = dataset(tmp_path / 'set', test_mode=True, pipeline=SCAN)
    with pytest.raises(DataError, match='SLICE_003.png: expected an image'):
        data[0]
