"""What the stages say is what they did, for every kind of model."""

import json

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from projects.core import geometry
from projects.core.boxes import fuse_boxes
from projects.mv2d_xray.diagnosis.pictures import draw_findings
from projects.mv2d_xray.diagnosis.scan import report_scan
from projects.mv2d_xray.diagnosis.trace import trace
from projects.mv2d_xray.diagnosis.verdicts import diagnose, verdict
from projects.mv2d_xray.lifting.fusion import ROI, VOLUME
from tests.helpers.models import (
    CONFIGS,
    REPORT_ALL,
    VARIANTS,
    quick,
    retina_model,
    scans_of,
    without_area,
)
from tests.helpers.spheres import make_sphere_set


@pytest.fixture(scope='module')
def scans(sphere_root):
    """Packed test samples: three, none, some ignored, some."""
    return scans_of(sphere_root, test_mode=True)


def papers_model():
    """The papers' config, every part of it narrower."""
    cfg = Config.fromfile(CONFIGS / 'mv2d-xray_r50_roi_1xb1-24e_lidc.py')
    cfg.merge_from_dict({f'model.{k}': v for k, v in {
        'data_preprocessor.band_sigmas': [1., 3.],
        'detector_2d.backbone.base_channels': 8,
        'detector_2d.backbone.init_cfg': None,
        'detector_2d.backbone.with_cp': False,
        'detector_2d.neck.in_channels': [32, 64, 128, 256],
        'detector_2d.neck.out_channels': 32,
        'detector_2d.rpn_head.in_channels': 32,
        'detector_2d.rpn_head.feat_channels': 32,
        'detector_2d.roi_head.bbox_roi_extractor.out_channels': 32,
        'detector_2d.roi_head.bbox_head.in_channels': 32,
        'detector_2d.roi_head.bbox_head.fc_out_channels': 32,
        'detector_2d.test_cfg.rpn.max_per_img': 60,
        'detector_2d.test_cfg.rcnn.max_per_img': 6,
        'lifting_head.in_channels': 32, 'lifting_head.embed_dims': 32,
        'lifting_head.decoder.num_heads': 4,
        'lifting_head.decoder.feedforward_channels': 32,
        'lifting_head.relevance.num_depths': 8,
        'lifting_head.position_encoding.num_depths': 8}.items()})
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


MODELS_OF = dict(
    {name: lambda c=changes: quick(**c)
     for name, changes in VARIANTS.items() if name != 'denoising'},
    papers=papers_model, retina=retina_model)


def all_of(model, scans, out_dir, row=0, **kwargs):
    """A diagnosis of the scans and the report of one of them."""
    model.eval()
    told = diagnose(model, [scans[i] for i in (0, 1)], ['nodule'])
    told = json.loads(json.dumps(told, allow_nan=False))
    report = report_scan(model, scans[row], told, out_dir, **kwargs)
    assert json.loads((out_dir / 'scan.json').read_text()) == report
    return told, report


@pytest.mark.parametrize('name', MODELS_OF)
def test_every_model_is_described(scans, tmp_path, name):
    model = MODELS_OF[name]()
    told, report = all_of(model, scans, tmp_path, views=['CAM_03'])
    truths = [len(s['data_samples'].eval_ann_info['gt_labels_3d'])
              for s in (scans[0], scans[1])]
    assert len(told['findings']) == sum(truths) > 0
    assert len(report['findings']) == truths[0]
    assert all(f['verdict'] for f in told['findings'])
    draw_findings(told['findings'], told['limits'], 20, tmp_path / 'all.png')
    assert list(report['views']) == ['CAM_03']
    for view in report['views'].values():
        assert [f['stride'] for f in view['features']] == list(
            model.feat_strides)
        assert ('proposals' in view) == (
            model.with_2d and hasattr(model.detector_2d, 'rpn_head'))
        assert ('detections' in view) == model.with_2d
    pictures = {p.name for p in tmp_path.glob('*.png')}
    expected = {'all.png', 'views.png', 'features_CAM_03.png'}
    shown = np.asarray(scans[0]['data_samples'].eval_ann_info[
        'gt_bboxes_view']) == 3
    numbers = np.asarray(scans[0]['data_samples'].eval_ann_info[
        'gt_bboxes_instance'])[shown]
    assert len(numbers)
    expected |= {f'finding_{n}.png' for n in numbers}
    if model.volume_head is not None:
        expected.add('volume.png')
        assert report['peaks']
    if model.lifting_head is not None:
        layers = (len(model.lifting_head.decoder.layers)
                  if model.with_decoder else 0)
        expected |= {'queries.png', 'attention.png'} if layers else {
            'queries.png'}
        for query in report['queries']:
            assert len(query['centres']) == len(query['scores']) == (
                len(query['distances'])) == layers + 1
            assert len(query['attention']) == layers
            for layer in query['attention']:
                # Nothing is attended to but the RoIs that it lists.
                total = sum(r['weight'] for r in layer['rois'])
                assert total + layer['nothing'] == pytest.approx(1, abs=1e-4)
                assert layer['rois']
    assert pictures == expected


@pytest.mark.parametrize('name', ['both', 'papers', 'peaks', 'reprojected'])
def test_looking_changes_nothing(scans, name):
    model = MODELS_OF[name]().eval()

    def hooks():
        return [len(m._forward_hooks) for m in model.modules()]

    before = hooks()
    seen = trace(model, scans[0]).result.pred_instances_3d
    with torch.no_grad():
        blind = model.test_step(pseudo_collate([scans[0]]))[0]
    assert torch.equal(seen.bboxes_3d.tensor,
                       blind.pred_instances_3d.bboxes_3d.tensor)
    assert torch.equal(seen.scores_3d, blind.pred_instances_3d.scores_3d)
    assert hooks() == before


def test_the_rois_of_a_query_are_those_of_its_box(scans):
    """2D boxes by number, projections round the query's place."""
    model = quick(**VARIANTS['reprojected']).eval()
    torch.nn.init.constant_(
        model.lifting_head.reg_branches[0][-1].bias, .1)
    seen = trace(model, scans[0])
    boxes = seen.result.pred_instances
    shared = int((seen.sources == ROI).sum())
    assert shared == len(boxes) > 0 and (seen.sources == VOLUME).any()
    ct2img = torch.as_tensor(seen.result.metainfo['ct2img']).float()
    for step, layer in enumerate(seen.attention):
        torch.testing.assert_close(layer.rois[:shared, 1:], boxes.bboxes)
        own = layer.index[:shared, 0]
        assert own.tolist() == list(range(shared))
        for query in range(shared, len(seen.sources)):
            seen_by = layer.valid[query]
            rois = layer.rois[layer.index[query][seen_by]]
            place, _ = geometry.project(seen.boxes[step, query, None, :3],
                                        ct2img[rois[:, 0].long()])
            middle = (rois[:, 1:3] + rois[:, 3:]) / 2
            # The rectangle round a projected box is not centred on its
            # centre's projection, but almost.
            assert (place[:, 0] - middle).norm(dim=1).max() < 2


def test_steps_end_with_the_prediction(scans):
    for name in ('both', 'papers', 'peaks'):
        model = MODELS_OF[name]().eval()
        if model.lifting_head is not None:
            model.lifting_head.test_cfg = REPORT_ALL
        seen = trace(model, scans[0])
        found = seen.result.pred_instances_3d
        sources = (model.lifting_head.sources if model.lifting_head
                   else seen.sources.unique().tolist())
        boxes, scores, _ = fuse_boxes(
            seen.boxes[-1], seen.scores[-1], torch.zeros_like(seen.sources),
            seen.sources, sources, REPORT_ALL['iou_thr'])
        count = len(found)
        assert count > 3
        torch.testing.assert_close(found.scores_3d, scores[:count])
        torch.testing.assert_close(
            found.bboxes_3d.gravity_center, boxes[:count, :3], atol=1e-2,
            rtol=1e-4)


@pytest.mark.parametrize('name', ['both', 'papers', 'peaks'])
def test_scan_without_findings_and_without_boxes(scans, tmp_path, name):
    model = MODELS_OF[name]()
    if model.volume_head is not None:
        model.volume_head.score_thr = 1.
    if name == 'papers':
        model.detector_2d.rpn_head.test_cfg.max_per_img = 0
        model.detector_2d.roi_head.test_cfg.score_thr = 1.1
    elif model.with_2d:
        without_area(model)
    for row in (0, 1):
        told, report = all_of(model, scans, tmp_path / str(row), row,
                              views=['CAM_01'])
        assert report['queries'] == [] and report['peaks'] == []
        for finding in told['findings']:
            assert finding['distances'] == [] and finding['score'] == 0
            assert finding['verdict'] != 'found'
        recall = report['views']['CAM_01'].get('proposals')
        if recall:
            expected = 0 if row == 0 else None
            assert set(recall['recall'].values()) == {expected}
        assert (tmp_path / str(row) / 'views.png').exists()


def test_one_view(tmp_path):
    make_sphere_set(tmp_path / 'set', 2, 1)
    scans = scans_of(tmp_path / 'set', test_mode=True)
    told, report = all_of(quick(), scans, tmp_path)
    assert list(report['views']) == ['CAM_00']
    assert {f['views'] for f in told['findings']} == {1}


def test_unknown_view(scans, tmp_path):
    with pytest.raises(ValueError, match='expected one of CAM_00.*CAM_77'):
        all_of(quick(), scans, tmp_path, views=['CAM_77'])


def test_recall_of_proposals_counts_the_first(scans, tmp_path, monkeypatch):
    """The true boxes come 11th and later; those of one view never."""
    model = quick(**VARIANTS['faster rcnn']).eval()
    truth = scans[0]['data_samples'].eval_ann_info
    propose = model.detector_2d.rpn_head.predict

    def planted(features, samples, **kwargs):
        found = propose(features, samples, **kwargs)
        for view in range(len(found)):
            true = truth['gt_bboxes'][truth['gt_bboxes_view'] == view]
            true = torch.as_tensor(true) if view != 1 else torch.zeros(0, 4)
            boxes = torch.cat([torch.tensor([[0., 0, 1, 1]] * 10), true])
            found[view] = InstanceData(
                bboxes=boxes, scores=torch.linspace(1, .5, len(boxes)),
                labels=torch.zeros(len(boxes), dtype=torch.long))
        return found

    monkeypatch.setattr(model.detector_2d.rpn_head, 'predict', planted)
    _, report = all_of(model, scans, tmp_path, views=['CAM_03', 'CAM_01'])
    assert list(report['views']) == ['CAM_03', 'CAM_01']
    for name, view in report['views'].items():
        recall = view['proposals']['recall']
        later = 0. if name == 'CAM_01' else 1.
        assert recall == {
            '10 at IoU 0.5': 0., '50 at IoU 0.5': later,
            'all at IoU 0.5': later, '10 at IoU 0.3': 0.,
            '50 at IoU 0.3': later, 'all at IoU 0.3': later}
    assert {f['proposed'] for f in report['findings']} == {4}


def test_a_layer_that_moves_queries_away_is_named(scans):
    model = quick(**VARIANTS['free queries at a point']).eval()
    head = model.lifting_head
    boxes = scans[0]['data_samples'].eval_ann_info['gt_bboxes_3d']
    unit = geometry.normalise_points(boxes.gravity_center, head.scene_range)
    head.free_places.data[:] = torch.logit(unit[:1])
    told = diagnose(model, [scans[0]], ['nodule'])
    first = told['findings'][0]
    assert first['distances'] == pytest.approx([0] * 3, abs=.1)
    # The head's scores are those of the prior, .01, and no more.
    assert first['verdict'] == ('a query is near it, but scores below the '
                                '0.01 that is reported')
    torch.nn.init.constant_(head.reg_branches[1][-1].bias, 1.)
    first = diagnose(model, [scans[0]], ['nodule'])['findings'][0]
    assert first['distances'][1] < 1 and first['distances'][2] > 50
    assert first['verdict'] == 'its query moved away in decoder layer 2'


LIMITS = dict(hit=10., sources=['roi', 'volume'], score=.01, peaks=16)
LOST = dict(score=0., score_beside=0., distances=[40., 30., 30.],
            query_score=0., views=10, proposed=8, detected=7, peaks_2d=3.,
            peaks_3d=2)


@pytest.mark.parametrize('changes, expected', [
    (dict(score=.5), 'found'),
    (dict(score=.2), 'found, with a score below the threshold'),
    (dict(score_beside=.5, distances=[40., 8., 9.], query_score=.02),
     'a box overlaps it, but its centre is more than 10 mm off'),
    (dict(score_beside=.3, distances=[40., 8., 9.], query_score=.02),
     'a box overlaps it, but its centre is more than 10 mm off, and its '
     'score is below the threshold'),
    (dict(distances=[40., 8., 30.]),
     'its query moved away in decoder layer 2'),
    (dict(distances=[5., 8., 11.]),
     'its query moved away in decoder layer 2'),
    (dict(distances=[40., 8., 7.], query_score=.005),
     'a query is near it, but scores below the 0.01 that is reported'),
    (dict(distances=[40., 8., 7.], query_score=.3),
     'a box is near it, but went to another finding or was fused with a '
     'stronger one'),
    (dict(), '2D boxes: seen in most views, but no query is put near it; '
     'volume: no peak near it'),
    (dict(proposed=0, detected=0, peaks_3d=16),
     '2D boxes: not proposed in any view; volume: 16 or more places in space '
     'look stronger'),
    (dict(proposed=4, detected=0, peaks_2d=21.),
     '2D boxes: not proposed in most views; volume: other places of single '
     'views look stronger'),
    (dict(detected=0), '2D boxes: proposed, but scored too low in all views; '
     'volume: no peak near it'),
    (dict(detected=4), '2D boxes: proposed, but scored too low in most '
     'views; volume: no peak near it'),
    (dict(views=0, proposed=0, detected=0, distances=[]),
     '2D boxes: no view shows it; volume: no peak near it'),
])
def test_verdicts(changes, expected):
    assert verdict(dict(LOST, **changes), .4, LIMITS) == expected


def test_verdict_without_an_rpn_and_of_learned_queries():
    finding = dict(LOST, detected=1)
    finding.pop('proposed')
    assert verdict(finding, .4, dict(LIMITS, sources=['roi'])) == (
        '2D boxes: not detected in most views')
    assert verdict(finding, .4, dict(LIMITS, sources=['free'])) == (
        'learned queries: none comes near it')


def test_nothing_scored_is_not_found_at_threshold_0():
    assert verdict(LOST, 0., LIMITS) != 'found'


def test_the_picture_of_no_findings(tmp_path):
    draw_findings([], LIMITS, 20, tmp_path / 'none.png')
    assert (tmp_path / 'none.png').stat().st_size > 5000
