"""Mirrored slices: boxes lie where they did, and are fused."""

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

import projects.ct_slices  # noqa: F401  registers everything
from projects.core import geometry
from projects.core.boxes import gravity_array
from projects.ct_slices.merge import SliceMerger
from projects.ct_slices.tta import CTSliceTTAModel
from tests.helpers.slices import make_slice_set

LEFT, DOWN = dict(directions=['horizontal']), dict(directions=['vertical'])


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_slice_set(tmp_path_factory.mktemp('mirrored') / 'set')


def scans(root, *steps):
    return DATASETS.build(dict(
        type='CTSliceDataset', data_root=str(root), test_mode=True,
        ann_file='lidc_infos_train.pkl', pipeline=[
            dict(type='LoadCTSlices', scale=2.), *steps]))


@pytest.mark.parametrize('flip', [{}, LEFT, DOWN, dict(
    directions=['horizontal', 'vertical'])])
def test_images_boxes_and_matrices_stay_together(root, flip):
    pack = dict(type='PackCTScan')
    plain = scans(root, pack)
    for item, old in zip(scans(root, dict(type='FlipCTScan', **flip), pack),
                         plain):
        axes = [{'horizontal': 3, 'vertical': 2}[name]
                for name in flip.get('directions', ())]
        assert torch.equal(item['inputs']['img'],
                           old['inputs']['img'].flip(axes))
        sample, before = item['data_samples'], old['data_samples']
        truth = sample.eval_ann_info
        boxes = gravity_array(truth['gt_bboxes_3d'])
        np.testing.assert_array_equal(
            boxes, gravity_array(before.eval_ann_info['gt_bboxes_3d']))
        for box, view in zip(truth['gt_bboxes'], truth['gt_bboxes_view']):
            places = geometry.unproject(
                box.reshape(2, 2), np.ones(2), sample.ct2img[view])
            # The true box of a slice is in that of the scan.
            off = np.abs(places[:, None] - boxes[:, :3]).max(0)
            assert (off <= boxes[:, 3:6] / 2 + .01).all(1).any()
        np.testing.assert_allclose(geometry.slice_places(sample.ct2img)[0],
                                   geometry.slice_places(before.ct2img)[0])


class Oracle(torch.nn.Module):
    """Finds the true boxes of slices; in a mirrored scan without the first
    finding."""

    def test_step(self, data):
        """One sample per version."""
        from projects.core.boxes import build_box3d_instances
        for sample in data['data_samples']:
            truth = sample.eval_ann_info
            keep = np.ones(len(truth['gt_bboxes']), bool)
            if sample.ct2img[0, 0, 0] > 0:  # x runs to the left
                keep = truth['gt_bboxes_instance'] > 0
            sample.pred_instances = InstanceData(views=sample.ct2img)
            sample.pred_instances_3d = build_box3d_instances(*map(
                torch.as_tensor, SliceMerger()(
                    truth['gt_bboxes'][keep], np.full(keep.sum(), .5),
                    np.zeros(keep.sum(), int), truth['gt_bboxes_view'][keep],
                    sample.ct2img, sample.slice_mm)))
        return data['data_samples']


def test_versions_meet_in_the_scan(root):
    """Where both find a finding and where one does."""
    data = scans(root, dict(type='TestTimeAug', transforms=[
        [dict(type='FlipCTScan'), dict(type='FlipCTScan', **LEFT)],
        [dict(type='PackCTScan')]]))
    merged = CTSliceTTAModel(module=Oracle()).test_step(
        pseudo_collate([data[0], data[1]]))
    assert len(merged) == 2  # the second scan has no finding
    for sample in merged:
        true = gravity_array(sample.eval_ann_info['gt_bboxes_3d'])
        found = sample.pred_instances_3d
        boxes = gravity_array(found.bboxes_3d)
        assert len(boxes) == len(true)
        np.testing.assert_allclose(boxes, true[::-1], atol=.01)
        np.testing.assert_array_equal(sample.pred_instances.views,
                                      sample.ct2img)
    assert merged[0].pred_instances_3d.scores_3d.tolist() == pytest.approx(
        [.5, (.5 * .01)**.5])
