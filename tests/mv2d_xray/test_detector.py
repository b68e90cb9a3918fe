"""The whole model on spheres: it trains and tests whatever it is given."""

from functools import partial

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from scipy.ndimage import gaussian_filter

from data_converters.__main__ import BENCHMARKS, main as convert
from projects.core import geometry
from projects.core.engine.bands import gaussian_blur
from projects.core.engine.configs import build_runner, load_config
from projects.mv2d_xray.lifting.fusion import (
    DENOISING,
    ROI,
    VOLUME,
    XRaySourceFusion,
)
from projects.mv2d_xray.transforms.geometric import keep_views
from tests.helpers.models import (
    CONFIGS,
    FEATURES,
    REPORT_ALL,
    VARIANTS,
    boxes_of,
    copy_weights,
    faster_rcnn,
    full_size,
    loss_of,
    quick,
    retina_model,
    scans_of,
    without_area,
)
from tests.helpers.spheres import make_sphere_set


@pytest.fixture(scope='module')
def samples(sphere_root):
    """Packed training samples: three, none, some ignored, some."""
    data = scans_of(sphere_root)
    return lambda *rows: [data[i] for i in rows]


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_trains_and_tests(samples, variant):
    model = quick(**VARIANTS[variant])
    for rows in ((0, ), (1, ), (2, ), (0, 1)):
        model.train()
        loss, _ = loss_of(model, samples(*rows))
        assert torch.isfinite(loss)
        loss.backward()
        for result in boxes_of(model, samples(*rows)):
            found = result.pred_instances_3d
            assert torch.isfinite(found.bboxes_3d.tensor).all()
            scores = found.scores_3d
            assert (scores[:-1] >= scores[1:]).all()
    # Everything that trains got a gradient somewhere.
    idle = [n for n, p in model.named_parameters()
            if p.requires_grad and p.grad is None]
    assert not idle


def test_loss_falls(samples):
    model = quick()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(20):
        loss, _ = loss_of(model, samples(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-3:]) < .67 * np.mean(history[:2])


@pytest.mark.parametrize('num_views', [1, 2, 5])
def test_any_number_of_views(tmp_path, num_views):
    make_sphere_set(tmp_path, 1, num_views)
    data = scans_of(tmp_path)
    model = quick()
    loss, _ = loss_of(model, [data[0]])
    assert torch.isfinite(loss)
    assert len(boxes_of(model, [data[0]])) == 1


def test_batch_of_two_is_two_batches_of_one(samples):
    model = quick()
    together = boxes_of(model, samples(0, 3))
    alone = [boxes_of(model, samples(i))[0] for i in (0, 3)]
    for one, two in zip(together, alone):
        torch.testing.assert_close(
            one.pred_instances_3d.bboxes_3d.tensor,
            two.pred_instances_3d.bboxes_3d.tensor, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(one.pred_instances_3d.scores_3d,
                                   two.pred_instances_3d.scores_3d)


def test_a_scan_is_normalised_by_itself(samples):
    """How strong noise and contrast are differs by two decades: a test must
    not take another scan's statistics for it, nor training's averages."""
    model = quick()
    data = model.data_preprocessor(pseudo_collate(samples(0)), False)
    imgs = data['inputs']['imgs']
    model.train()
    for _ in range(3):
        loss_of(model, samples(3))[0].backward()
    model.eval()
    with torch.no_grad():
        weak, strong = (model.extract_feat(x)[0] for x in (imgs, 8 * imgs))
    assert weak.abs().mean() > .1
    torch.testing.assert_close(weak, strong, atol=1e-2, rtol=1e-2)


def test_samples_of_different_views_in_one_batch(sphere_root, samples):
    data = scans_of(sphere_root, pipeline=[dict(type='LoadXRayViews')])
    pack = TRANSFORMS.build(dict(type='PackXRayInputs'))
    few = pack(keep_views(data[0], [0, 2, 3]))
    model = quick()
    loss, _ = loss_of(model, [few, samples(3)[0]])
    assert torch.isfinite(loss)
    alone = boxes_of(model, [few])[0].pred_instances_3d.scores_3d
    mixed = boxes_of(model, [few, samples(3)[0]])[0]
    torch.testing.assert_close(mixed.pred_instances_3d.scores_3d, alone)


def test_no_detection_in_any_view(samples):
    # Nothing is invented: a threshold that nothing passes leaves the roi
    # source without queries, and the model without boxes.
    none = {'detector_2d.test_cfg.rcnn.score_thr': 1.1}
    for model in (quick(volume_head=None),
                  quick(**faster_rcnn(), volume_head=None, **none)):
        if hasattr(model.detector_2d, 'bbox_head'):
            without_area(model)
        result = boxes_of(model, samples(0))[0]
        assert len(result.pred_instances) == 0
        assert len(result.pred_instances_3d) == 0
        model.train()
        loss, _ = loss_of(model, samples(0))
        assert torch.isfinite(loss)


def test_every_2d_box_becomes_a_roi(samples):
    model = quick()
    result = boxes_of(model, samples(0))[0]
    views = result.pred_instances.view_ids
    assert len(result.pred_instances) > 0
    seen = []
    forward = model.lifting_head.forward
    model.lifting_head.forward = lambda *a: (seen.append(a[3]), forward(*a))[1]
    again = boxes_of(model, samples(0))[0]
    rois = seen[0]
    assert len(rois) == len(again.pred_instances)
    torch.testing.assert_close(rois[:, 1:5], again.pred_instances.bboxes)
    torch.testing.assert_close(rois[:, 5], again.pred_instances.scores)
    assert torch.equal(rois[:, 0].long(), views)


def test_lifting_without_a_decoder_has_nothing_to_learn(samples, monkeypatch):
    refining = quick(volume_head=None)
    model = quick(volume_head=None, **{'lifting_head.decoder': None})
    copy_weights(refining, model)
    expected = step_of(refining, samples(0))
    with monkeypatch.context() as patch:
        patch.setattr(model.lifting_head, 'forward', None)
        losses, _ = step_of(model, samples(0))
    assert set(losses) == {'loss', 'loss_idle', '2d.loss_center_heatmap',
                           '2d.loss_wh', '2d.loss_offset'}
    for name, value in losses.items():
        if name != 'loss':
            assert value == pytest.approx(expected[0][name])
    assert not list(model.lifting_head.parameters())
    for wrong in ({'lifting_head.free_queries': 9},
                  {'lifting_head.roi_queries.type': 'XRayRoIQueryGenerator'}):
        with pytest.raises(ValueError, match='expected a decoder'):
            quick(**{'lifting_head.decoder': None, **wrong})


def test_fused_sources_by_name_or_without_a_decoder():
    by_name = {'lifting_head': dict(
        _delete_=True, type='XRaySourceFusion',
        scene_range=[-200., -200., -200., 200., 200., 200.],
        roi_queries=dict(type='XRayTriangulatedQueryGenerator'))}
    one, two = quick(**by_name), quick(**{'lifting_head.decoder': None})
    for model in (one, two):
        assert type(model.lifting_head) is XRaySourceFusion
        assert not model.with_decoder and model.with_roi_queries
        assert model.lifting_head.sources == [ROI, VOLUME]
    assert vars(one.lifting_head)['test_cfg'] == two.lifting_head.test_cfg
    with pytest.raises(TypeError, match='reech'):  # misspelt
        quick(**{'lifting_head.decoder': None, 'lifting_head.reech': 9.})


@pytest.mark.parametrize('variant', ['both', 'roi', 'volume'])
def test_an_untrained_decoder_changes_nothing(samples, variant):
    one, two = (quick(**VARIANTS[variant], **changes, **{
        'lifting_head.test_cfg': REPORT_ALL})
        for changes in ({}, {'lifting_head.decoder': None}))
    copy_weights(one, two)
    refined, plain = (boxes_of(model, samples(0))[0].pred_instances_3d
                      for model in (one, two))
    assert len(plain) > 3
    torch.testing.assert_close(plain.bboxes_3d.tensor,
                               refined.bboxes_3d.tensor, atol=.1, rtol=1e-3)
    torch.testing.assert_close(plain.scores_3d, refined.scores_3d)


def test_an_untrained_head_leaves_volume_peaks_alone(samples):
    peaks = quick(lifting_head=None, detector_2d=FEATURES)
    both = quick(**{'lifting_head.roi_queries': None, 'detector_2d': FEATURES,
                    'lifting_head.test_cfg': REPORT_ALL})
    copy_weights(both, peaks)
    one = boxes_of(peaks, samples(0))[0].pred_instances_3d
    two = boxes_of(both, samples(0))[0].pred_instances_3d
    torch.testing.assert_close(
        one.bboxes_3d.tensor, two.bboxes_3d.tensor, atol=.1, rtol=1e-3)
    torch.testing.assert_close(one.scores_3d, two.scores_3d)


@pytest.mark.parametrize('changes, queries, expected', [
    # Places x (mm), scores and sources; places and scores that are found.
    (dict(),
     [(0, .36, ROI), (0, .36, VOLUME), (50, .64, ROI), (90, .49, VOLUME)],
     {0: .36, 50: (.64 * .01)**.5, 90: (.49 * .01)**.5}),
    # There is only one source that could have them.
    ({'lifting_head.roi_queries': None},
     [(0, .36, VOLUME), (50, .64, VOLUME), (90, .49, VOLUME)],
     {50: .64, 90: .49, 0: .36}),
])
def test_a_score_says_how_many_sources_agree(changes, queries, expected):
    place, score, source = map(torch.tensor, zip(*queries))
    boxes = torch.full((len(queries), 2, 6), 12.)
    boxes[:, -1, :3] = place[:, None]
    found = quick(**changes).lifting_head.predict_by_feat(InstanceData(
        source=source, all_boxes=boxes,
        all_logits=score.logit()[:, None, None].expand(-1, 2, 1)))
    assert found.bboxes_3d.gravity_center[:, 0].tolist() == list(expected)
    assert found.scores_3d.tolist() == pytest.approx(list(expected.values()))


def test_frozen_sources_stay_as_they_are(samples):
    model = quick(freeze_sources=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    loss, named = loss_of(model, samples(0))
    assert not [name for name in named if name.startswith('2d.')]
    assert 'loss_heatmap' not in named and 'loss_cls_3d' in named
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    changed = {k.split('.')[0] for k, v in model.state_dict().items()
               if not torch.equal(v, before[k])}
    assert changed == {'lifting_head'}


def test_frozen_sources_need_a_decoder():
    with pytest.raises(ValueError, match='freeze_sources: expected a decoder'):
        quick(**{'freeze_sources': True, 'lifting_head.decoder': None})


def test_reprojected_queries_look_where_the_last_layer_put_them(samples):
    model = quick(**VARIANTS['reprojected'])
    head, looked, made = model.lifting_head, [], []
    torch.nn.init.constant_(head.reg_branches[0][-1].bias, .1)
    project, forward = head._project_rois, head.forward
    head._project_rois = lambda boxes, *a: (looked.append(boxes),
                                            project(boxes, *a))[1]
    head.forward = lambda *a: (made.append(forward(*a)), made[-1])[1]
    boxes_of(model, samples(0))
    assert len(looked) == len(head.decoder.layers) == 2
    points = made[0].source == VOLUME
    first, second = looked
    torch.testing.assert_close(
        first, torch.cat([made[0].centres, made[0].sizes], 1)[points])
    torch.testing.assert_close(second, made[0].all_boxes[points, 0])
    assert (first[:, :3] - second[:, :3]).norm(dim=1).min() > 1


def test_whole_views_are_seen_whole():
    head = quick(**VARIANTS['free queries, whole views']).lifting_head
    rois, index, valid = head._project_rois(
        torch.rand(5, 6), torch.rand(3, 4, 4), (40, 60))
    assert rois.tolist() == [[v, 0, 0, 60, 40] for v in range(3)]
    assert index.tolist() == [[0, 1, 2]] * 5 and valid.all()


def test_far_points_do_not_answer_for_a_finding():
    # A finding without a peak near it must not make a positive of another.
    head = quick().lifting_head
    centres = torch.tensor([[0., 0, 0], [90, 0, 0]])
    boxes = torch.cat([centres, torch.full((2, 3), 12.)], 1)

    def loss(source, *found):
        gt = InstanceData(
            boxes=torch.tensor([[x, 0., 0, 12, 12, 12, 0] for x in found]),
            labels=torch.zeros(len(found), dtype=torch.long))
        gt.set_metainfo(dict(ignored=torch.zeros(0, 7)))
        return head.loss_by_feat(
            InstanceData(
                centres=centres, source=torch.tensor([source] * 2),
                all_logits=torch.zeros(2, 2, 1),
                all_boxes=boxes[:, None].expand(-1, 2, -1)), gt)

    near = loss(VOLUME, 3.)
    assert loss(VOLUME, 3., -80.) == near
    assert loss(VOLUME, 3., 88.) != near


def test_sizes_are_the_configs():
    """None of a chest's is left in the code for a part of a tenth of it."""
    model = quick(**{'lifting_head.ignore_margin': 1.5,
                     'lifting_head.free_queries': 3,
                     'lifting_head.free_size': 1.2})
    head = model.lifting_head
    assert head._free_queries().sizes.unique().tolist() == [
        pytest.approx(1.2)]
    ignored = torch.tensor([[0., 0, 0, 4, 4, 4, 0]])
    boxes = torch.tensor([[x, 0., 0, 2, 2, 2] for x in (0., 3.4, 3.6, 6.)])
    free = torch.zeros(4, dtype=torch.bool)
    assert head._label_weights(boxes, free, ignored).tolist() == [0, 0, 1, 1]
    assert head._label_weights(boxes, ~free, ignored).tolist() == [1] * 4


def test_peaks_that_had_no_place_are_told(samples):
    model = quick()
    model.volume_head.score_thr = 0.
    told = {}
    for most in (3, 10**6):
        model.volume_head.max_queries = most
        sample, = boxes_of(model, samples(0))
        told[most] = sample.to_dict()['dropped_peaks']
    assert told[10**6] == [] and len(told[3]) > 0
    assert told[3] == sorted(told[3], reverse=True)


def test_a_2d_box_answers_for_what_lies_in_it():
    # A 2D box knows no depth: it may have to go far. One that shows nothing
    # must not become a positive because all others are taken.
    head = quick().lifting_head
    gt = InstanceData(
        boxes=torch.tensor([[0., 0, 0, 12, 12, 12, 0]]),
        labels=torch.zeros(1, dtype=torch.long))
    gt.set_metainfo(dict(ignored=torch.zeros(0, 7)))
    ct2img = torch.eye(4)[None].repeat(2, 1, 1)
    ct2img[:, 2, 3] = 100.  # in front of the source
    ct2img[1, 0, 3] = 1000.  # the second view shows it at u = 10
    rois = torch.tensor([[0., -1, -1, 1, 1, .9], [0, 2, 2, 4, 4, .9],
                         [1, -1, -1, 1, 1, .9], [1, 9, -1, 11, 1, .9]])
    queries = InstanceData(centres=torch.tensor([[90., 0, 0]] * 4),
                           source=torch.full((4, ), ROI))
    allowed = head._may_answer(queries, gt, rois, ct2img)
    assert allowed[:, 0].tolist() == [True, False, False, True]
    queries.all_logits = torch.zeros(4, 2, 1)
    queries.all_boxes = torch.full((4, 2, 6), 12.)
    false = torch.zeros(4, dtype=torch.bool)
    false[1:3] = True
    losses = head.loss_by_feat(queries[false], gt, rois[false], ct2img)
    assert losses['loss_box_3d'] == 0
    assert head.loss_by_feat(queries, gt, rois, ct2img)['loss_box_3d'] > 0


def lifting_of(model, batch):
    """The lifting head, with scores of its own, on the first sample's views:
    a function of RoIs, points and truth; and its points and truth."""
    for branch in model.lifting_head.cls_branches:
        torch.nn.init.normal_(branch[-1].weight)
    model.eval()
    data = model.data_preprocessor(pseudo_collate(batch), True)
    sample = data['data_samples'][0]
    maps = model.extract_feat(data['inputs']['imgs'])
    cameras = model._cameras(sample, maps[0].device)
    points = model.volume_head.queries(
        *model.volume_head(maps[0], cameras['ct2img'], (64, 64)))
    run = partial(model.lifting_head, maps[model.lift_level], cameras,
                  (64, 64))
    return run, points, model._ground_truth(sample, maps[0].device)


def test_sources_do_not_decide_for_each_other(samples):
    # False 2D boxes made the scores of what the volume found half as good.
    lift, points, _ = lifting_of(quick(), samples(0))
    rois = torch.tensor([[0., 10, 10, 20, 20, .9, 0],
                         [1, 30, 30, 40, 40, .8, 0]])

    def run(source, *args):
        out = lift(*args)
        return out[out.source == source].all_logits

    both = rois, points
    assert len(points) and len(run(ROI, *both)) == 2
    torch.testing.assert_close(run(VOLUME, *both), run(VOLUME, None, points))
    torch.testing.assert_close(run(ROI, *both), run(ROI, rois, None))


def test_a_2d_box_is_of_its_own_class_alone(samples):
    # Boxes of two classes around one place confirm nothing of each other.
    model = quick(**{'lifting_head.num_classes': 2,
                     'volume_head.num_classes': 2,
                     'detector_2d.bbox_head.num_classes': 2,
                     'lifting_head.decoder': None})
    sample = samples(0)[0]['data_samples']
    cameras = model._cameras(sample, 'cpu')
    gt = model._ground_truth(sample, 'cpu')
    rects = geometry.project_boxes(
        gt.boxes[:1, :6], cameras['ct2img'])[0][:, 0]
    label = torch.arange(len(rects)) % 2
    rois = torch.cat([torch.arange(len(rects))[:, None], rects,
                      torch.ones(len(rects), 1), label[:, None]], 1)
    queries = model.lifting_head(torch.zeros(len(rects), 32, 16, 16), cameras,
                                 (64, 64), rois)
    scores = queries.logits.sigmoid()
    share = [(label == c).float().mean().item() for c in (0, 1)]
    for query, own in zip(scores, label.tolist()):
        assert query[own].item() == pytest.approx(share[own], abs=1e-3)
        assert query[1 - own] < 1e-3
    found = model.lifting_head.predict_by_feat(queries)
    assert sorted(found.labels_3d.tolist()) == [0, 1]


def test_no_queries_leave_no_empty_labels_to_the_loss(samples):
    # Whose maximum the loss's CUDA kernel takes.
    model = quick()
    model.lifting_head.loss_cls.register_forward_pre_hook(
        lambda module, args: args[1].max() and None)
    lift, points, _ = lifting_of(model, samples(0))
    gt = InstanceData(boxes=torch.zeros(0, 7),
                      labels=torch.zeros(0, dtype=torch.long))
    gt.set_metainfo(dict(ignored=torch.zeros(0, 7)))
    losses = model.lifting_head.loss_by_feat(lift(None, None), gt)
    assert all(loss == 0 for loss in losses.values())
    losses = model.lifting_head.loss_by_feat(lift(None, points), gt)
    assert losses['loss_cls_3d'] > 0


def test_denoising_does_not_leak_into_other_queries(samples):
    # What the other queries say must not depend on the given truth.
    lift, points, gt = lifting_of(quick(**VARIANTS['denoising']), samples(0))

    def run(truth):
        out = lift(None, points, truth)
        return out[out.source != DENOISING].all_logits

    torch.testing.assert_close(run(gt), run(None))


def test_any_2d_detector_can_take_the_place(samples):
    model = retina_model()
    model.init_weights()
    loss, log = loss_of(model, samples(0))
    loss.backward()
    assert torch.isfinite(loss) and '2d.loss_cls' in log


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    'mv2d-xray_r50_roi_1xb1-24e_lidc.py',
    'mv2d-xray_r50_roi-volume_1xb1-24e_lidc.py',
    'mv2d-xray_r50-stock-fpn_roi-volume_1xb1-24e_lidc.py'])
def test_full_size_models_take_a_step(tmp_path, name):
    make_sphere_set(tmp_path, 1, 3, 128)
    data = scans_of(tmp_path)
    model = full_size(name)
    model.train()
    model.train_rois = dict(max_per_view=5, add_gt=True, jitter=.2)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4)
    before = model.lifting_head.decoder.layers[0].ffn.layers[0][
        0].weight.clone()
    for _ in range(2):
        loss, _ = loss_of(model, [data[0]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    after = model.lifting_head.decoder.layers[0].ffn.layers[0][0].weight
    assert not torch.equal(before, after)
    assert len(boxes_of(model, [data[0]])) == 1


def step_of(model, batch, precision=None):
    """Losses and gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast('cpu', precision, enabled=precision is not None):
        data = model.data_preprocessor(pseudo_collate(batch), True)
        losses = model(**data, mode='loss')
        total, log = model.parse_losses(losses)
    total.backward()
    log = {name: float(value) for name, value in log.items()}
    return log, {n: p.grad for n, p in model.named_parameters()
                 if p.grad is not None}


def bytes_kept(model, imgs):
    """What backbone and neck keep for the gradients, without weights."""
    kept = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        features = model.extract_feat(imgs)
    assert len(features) == 5
    return sum(kept.values())


@pytest.fixture(scope='module')
def full_size_model():
    """Resnet, without dropout: chunks would draw other elements."""
    model = full_size('mv2d-xray_r50_roi-volume_1xb1-24e_lidc.py')
    model.train_rois = dict(max_per_view=5, add_gt=True, jitter=.2)
    for module in model.modules():
        if 'Dropout' in type(module).__name__:
            module.p = 0.
        if hasattr(module, 'attn_drop'):
            module.attn_drop = 0.
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.
    return model.train()


@pytest.mark.parametrize('variant', ['both', 'roi', 'free queries at a point',
                                     'free queries, whole views'])
def test_memory_layout_changes_nothing(samples, variant):
    # RoIAlign and deformable convolutions read rubbish from another layout
    # than the contiguous one, and say nothing.
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = quick(**{
            **VARIANTS[variant], 'lifting_head.test_cfg': REPORT_ALL})
        model.memory_format = layout
        for p in model.parameters():  # of an untrained head, too
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=.05)
        result, = boxes_of(model, samples(0))
        found.append([result.pred_instances_3d.bboxes_3d.tensor,
                      result.pred_instances_3d.scores_3d])
        if model.with_2d:
            found[-1].append(result.pred_instances.bboxes)
    assert len(found[0][0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=.01)


@pytest.mark.slow
def test_memory_layout_changes_no_losses(full_size_model, samples,
                                         monkeypatch):
    batch = samples(0)
    expected, _ = step_of(full_size_model, batch)
    monkeypatch.setattr(full_size_model, 'memory_format',
                        torch.contiguous_format)
    losses, _ = step_of(full_size_model, batch)
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_chunks_of_views_change_memory_alone(full_size_model, samples,
                                             monkeypatch):
    batch = samples(0)
    monkeypatch.setattr(full_size_model, 'view_chunk', None)
    imgs = torch.randn(5, 3, 128, 128)
    whole = bytes_kept(full_size_model, imgs)
    expected, gradients = step_of(full_size_model, batch)
    monkeypatch.setattr(full_size_model, 'view_chunk', 1)
    assert bytes_kept(full_size_model, imgs) < .1 * whole
    losses, chunked = step_of(full_size_model, batch)
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, gradient in gradients.items():
        assert (chunked[name] - gradient).abs().max() <= 1e-5 + 1e-3 * (
            gradient.abs().max()), name


def test_chunks_of_views_need_fixed_norms(samples):
    running = {'detector_2d.backbone.norm_cfg': dict(
        _delete_=True, type='BN')}
    model = quick(view_chunk=2, **running)
    model.train()
    with pytest.raises(ValueError, match='backbone.stem.0.bn.*norm_eval'):
        loss_of(model, samples(0))
    assert len(boxes_of(model, samples(0))) == 1
    with pytest.raises(ValueError, match='backbone.stem.0.bn.*norm_eval'):
        boxes_of(quick(view_chunk=2), samples(0))


@pytest.mark.parametrize('precision', [torch.float16, torch.bfloat16])
def test_half_precision_stays_in_networks(samples, precision):
    model = quick(**VARIANTS['depth regressed, true boxes given'])
    batch = samples(0)
    model.train()
    expected, gradients = step_of(model, batch)
    head, types = model.volume_head, {}

    def note(name):
        return lambda module, args, out: types.update({
            name: {x.dtype for x in (*args, *out) if torch.is_tensor(x)}})

    head.norm.register_forward_hook(note('norm'))
    head.convs[1].conv.register_forward_hook(note('conv'))
    head.register_forward_hook(lambda module, args, out: types.update(
        head={x.dtype for x in out}))
    losses, half = step_of(model, batch, precision)
    # What comes from space and what goes there is exact, what is between not.
    assert types == dict(norm={torch.float32}, conv={precision},
                         head={torch.float32})
    rel = .02 if precision == torch.float16 else .1
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=rel, abs=2e-3), name
    for name in ('detector_2d.backbone.blocks.0.convs.0.conv.weight',
                 'volume_head.heatmap.weight',
                 'lifting_head.input_proj.weight'):
        assert torch.cosine_similarity(
            half[name].flatten(), gradients[name].flatten(), 0) > 1 - rel, name
    with torch.autocast('cpu', precision):
        result, = boxes_of(model, batch)
    assert result.pred_instances.bboxes.dtype == torch.float32
    assert result.pred_instances_3d.scores_3d.dtype == torch.float32


def test_strides_are_checked_against_the_maps(samples):
    model = quick()
    model.feat_strides = (2, 4, 8)
    with pytest.raises(ValueError, match='feat_strides'):
        loss_of(model, samples(0))


def test_needs_a_source_of_boxes():
    with pytest.raises(ValueError, match='found neither'):
        quick(lifting_head=None, volume_head=None)


def test_bands_of_a_flat_and_a_spotted_image():
    model = quick()
    pre = model.data_preprocessor
    flat = torch.full((1, 1, 32, 32), 3.1)
    out = pre.bands(flat)
    assert out.shape == (1, 3, 32, 32)
    assert out.abs().max() < 1e-4  # the mean is subtracted, no contrast
    flat[0, 0, 16, 16] += 1
    spot = pre.bands(flat)
    assert spot[0, 1, 16, 16] > 0 and spot[0, 2, 16, 16] > 0
    # A band is a small difference of large numbers: not in half precision.
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(pre.bands(flat), spot)
    with pytest.raises(ValueError, match='expected 3 values'):
        MODELS.build(dict(type='XRayDataPreprocessor', mean=[0.], std=[1.]))


@pytest.mark.parametrize('sigma, shape', [
    (1.5, (40, 64)), (12., (96, 80)), (17., (121, 160)), (24., (192, 256)),
    (33., (256, 320))])
def test_blur_is_scipys_gaussian(sigma, shape):
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).cumsum(0).cumsum(1) / 50
    expected = gaussian_filter(image, sigma, mode='nearest', truncate=3.)
    found = gaussian_blur(torch.tensor(image)[None, None], sigma)[0, 0]
    error, taken = found.numpy() - expected, np.std(image - expected)
    margin = int(3 * sigma)
    assert error.std() < .05 * taken
    assert error[margin:-margin, margin:-margin].std() < .01 * taken


@pytest.fixture(scope='module')
def four_patients(tmp_path_factory):
    """Four phantom patients, made and converted as the demo's are; half of
    its views show where a finding is."""
    root = tmp_path_factory.mktemp('four')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            BENCHMARKS, 'four',
            dict(BENCHMARKS['demo-v2'], num_scans=4,
                 fractions=dict(val=0., test=0.)))
        convert(['benchmark', 'four', '--out-dir', str(root), '--num-views',
                 '5'])
    return root


@pytest.mark.slow
def test_four_patients_are_learned(four_patients, tmp_path):
    """What a detector cannot learn by heart it will not find elsewhere."""
    iters = 100
    cfg = load_config(
        str(CONFIGS / 'mv2d-xray_small_roi-volume-decoder_700i_demo-v2.py'),
        {'train_cfg.max_iters': iters})
    cfg.work_dir = str(tmp_path)
    train, test = (cfg[f'{name}_dataloader'].dataset
                   for name in ('train', 'test'))
    train.pipeline = test.pipeline  # no augmentation
    for dataset in (train, test):
        dataset.data_root = str(four_patients)
        dataset.ann_file = 'lidc_infos_train.pkl'
        dataset.coco_file = 'lidc_infos_train_2d_anno.coco.json'
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner = build_runner(cfg)
    runner.train()
    figures = runner.test()
    assert figures['num_scans'] == 4 and figures['num_gt'] >= 4
    assert figures['mAP_3d'] >= .9
