"""The graph between images, and what it is told of their places."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

import projects.ag_rcnn  # noqa: F401  registers everything
from projects.ag_rcnn import landmarks
from projects.ag_rcnn.graph import CrossViewGraph, nearest_nodes
from projects.ag_rcnn.relations import (
    CoOccurrence,
    EpipolarRelation,
    FitRelationHook,
)
from projects.core import geometry
from projects.core.engine.configs import load_config
from projects.core.rig import Rig
from tests.helpers.breasts import EDGE, make_breast_set
from tests.helpers.commands import tool
from tests.helpers.spheres import make_sphere_set

ROOT = Path(__file__).parents[2]
SMALL = 'configs/ag_rcnn/ag-rcnn_small_500i_breast.py'
EPIPOLAR = 'configs/ag_rcnn/ag-rcnn_small_epipolar_2000i_quick-v2-views.py'
PLAIN = 'configs/ag_rcnn/mask-rcnn_small_1500i_breast.py'
LARGE = 'configs/ag_rcnn/ag-rcnn_r50_12e_cbis-ddsm.py'
NODES = np.array([[8., 8.], [24., 8.], [8., 24.], [24., 24.]])


def image(number, view='CC', partner=None, breast=None, nodes=NODES,
          boxes=(), numbers=None, **meta):
    sample = DetDataSample(metainfo=dict(
        img_id=number, view=view, nodes=nodes, batch_input_shape=(32, 32),
        partners=dict(other_view=partner, other_breast=breast), **meta))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(len(boxes)).long(),
        abnormalities=torch.tensor(numbers or [-1] * len(boxes)))
    return sample


def graph(fitted=True, **kwargs):
    torch.manual_seed(0)
    built = CrossViewGraph(**{**dict(channels=4, k=1, relation=dict(
        type='CoOccurrence', num_nodes=(4, 4), k=1)), **kwargs})
    built.init_weights()
    if fitted and isinstance(built.relation, CoOccurrence):
        built.relation.counts += torch.eye(4)
    return built


def learned(net):
    """With weights that do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def maps(count=2):
    torch.manual_seed(2)
    return [torch.randn(count, 4, 8, 8), torch.randn(count, 4, 4, 4)]


PAIR = [image(1, 'CC', 2), image(2, 'MLO', 1)]
BREASTS = [image(1, breast=2), image(2, breast=1)]


# -------------------------------------------------------------------- mapping
def test_the_nearest_nodes_of_a_place():
    places = torch.tensor([[7., 7.], [25., 9.], [16., 7.]])
    nodes = torch.tensor(NODES, dtype=torch.float32)
    assert nearest_nodes(places, nodes, 1)[:2].tolist() == [
        [1, 0, 0, 0], [0, 1, 0, 0]]
    assert nearest_nodes(places, nodes, 2)[2].tolist() == [1, 1, 0, 0]
    # No more than there are.
    assert nearest_nodes(places, nodes, 9).sum() == 12


def test_features_go_to_nodes_and_back_unchanged():
    """With as many nodes as cells, at their middles, and k = 1."""
    y, x = np.mgrid[:4, :4] * 8 + 4.
    nodes = np.stack([x, y], -1).reshape(-1, 2)
    cells = torch.tensor(nodes, dtype=torch.float32)
    near = nearest_nodes(cells, cells, 1)
    assert torch.equal(near, torch.eye(16))


# --------------------------------------------------------------- no lost start
@pytest.mark.parametrize('samples', [PAIR, BREASTS])
def test_it_begins_as_the_detector_without_it(samples):
    """Up to the gate's 1.2 where the other breast is there."""
    features = maps()
    factor = 1.2 if samples is BREASTS else 1.
    for out, level in zip(graph()(features, samples), features):
        torch.testing.assert_close(out, factor * level)
    halved = graph(gate='original')(features, BREASTS)[0]
    torch.testing.assert_close(halved, .5 * features[0])


@pytest.mark.parametrize('samples', [
    [image(1, partner=3, breast=3), image(2)],  # partners that are not there
    [image(1), image(2, nodes=None)],
    [image(1, partner=2, breast=2, nodes=None), image(2, 'MLO', 1, 1)],
])
def test_without_partners_or_landmarks_features_stay(samples):
    features = maps()
    for out, level in zip(learned(graph())(features, samples), features):
        assert torch.equal(out, level)


def test_each_part_can_be_left_out():
    features = maps()
    both = [image(1, 'CC', 2, 2), image(2, 'MLO', 1, 1)]
    bipartite = learned(graph(inception=None))
    inception = learned(graph(relation=None))
    assert not hasattr(bipartite, 'attention')
    assert inception.fusion is None
    for net, alone in ((bipartite, PAIR), (inception, BREASTS)):
        for a, b in zip(net(features, both), net(features, alone)):
            assert torch.equal(a, b)
    nothing = learned(graph(relation=None, inception=None))
    assert torch.equal(nothing(features, both)[0], features[0])
    with pytest.raises(ValueError, match='residual, found none'):
        graph(gate='none')
    with pytest.raises(ValueError, match='1 or more, found 0'):
        graph(k=0)


# ----------------------------------------------------------- what is told whom
def changed_by(net, samples, cell):
    """Cells of the first image that change with a cell of the second."""
    features = [torch.randn(2, 4, 8, 8)]
    with torch.no_grad():
        before = net(features, samples)[0]
        other = [features[0].clone()]
        other[0][1, :, cell[0], cell[1]] += 50.
        after = net(other, samples)[0]
    return (before[0] != after[0]).any(0)


def test_the_other_view_tells_related_nodes_alone():
    """Node 1 of MLO is related to node 2 of CC and to no other."""
    net = learned(graph(fitted=False, inception=None))
    net.relation.counts[2, 1] = 5.
    change = changed_by(net, PAIR, (1, 6))  # of node 1, top right
    assert change[4:, :4].all() and change.sum() == 16  # node 2, below left
    assert not changed_by(net, PAIR, (6, 6)).any()
    # As seen from MLO.
    turned = [image(1, 'MLO', 2), image(2, 'CC', 1)]
    assert changed_by(net, turned, (6, 1))[:4, 4:].all()


def test_the_other_breast_tells_the_like_place():
    net = learned(graph(relation=None, inception=(1, )))
    change = changed_by(net, BREASTS, (1, 6))
    assert change[:4, 4:].all() and change.sum() == 16
    wider = learned(graph(relation=None, inception=(1, 3)))
    assert changed_by(wider, BREASTS, (1, 6)).sum() == 48


def test_images_of_other_exams_tell_nothing():
    """Batches of two exams give what each gives."""
    net = learned(graph())
    pair = [image(1, 'CC', 2, 3), image(2, 'MLO', 1)]
    other = [image(3, 'CC', None, 1), image(4, 'MLO', None)]
    other[0].set_metainfo(dict(partners=dict(other_view=4,
                                             other_breast=None)))
    pair[0].set_metainfo(dict(partners=dict(other_view=2,
                                            other_breast=None)))
    features = torch.randn(4, 4, 8, 8)
    together = net([features], pair + other)[0]
    torch.testing.assert_close(together[:2], net([features[:2]], pair)[0])
    torch.testing.assert_close(together[2:], net([features[2:]], other)[0])


def test_an_oracle_tells_true_findings_in_place_of_features():
    net = learned(graph(oracle=True))
    features = [torch.randn(2, 4, 8, 8)]
    blank = [features[0].clone()]
    blank[0][1] = 0.

    def first(features, boxes):
        samples = [image(1, 'CC', None, 2), image(2, 'CC', None, 1,
                                                  boxes=boxes)]
        with torch.no_grad():
            return net(features, samples)[0][0]

    here = [[4., 4., 12., 12.]]
    assert torch.equal(first(features, here), first(blank, here))
    assert not torch.equal(first(features, here), first(features, []))


# ------------------------------------------------------------------------ H_g
def test_counts_of_findings_at_nodes():
    """Two breasts; one finding in both views, one in CC alone. In the fourth
    nobody says which of two is the one in CC; in the fifth the set does."""
    relation = CoOccurrence((4, 4), k=1)
    at = [[4., 4., 12., 12.], [20., 20., 28., 28.]]

    class Exams(list):
        def get_data_info(self, row):
            return dict(images=[dict(instances=[1])])

        def __getitem__(self, row):
            return dict(data_samples=SimpleNamespace(
                images=super().__getitem__(row)))

    exams = Exams([
        [image(1, 'CC', 2, boxes=at[:1]), image(2, 'MLO', 1, boxes=at[1:])],
        [image(3, 'CC', 4, boxes=at[:1]), image(4, 'MLO', 3)],
        [image(5, 'CC', 6, boxes=at[:1], nodes=None),
         image(6, 'MLO', 5, boxes=at)],
        [image(7, 'CC', 8, boxes=at[:1]), image(8, 'MLO', 7, boxes=at)],
        [image(9, 'CC', 10, boxes=at, numbers=[1, 2]),
         image(10, 'MLO', 9, boxes=at, numbers=[2, 3])]])
    assert relation.fit(exams) == 4 and relation.fitted
    expected = torch.zeros(4, 4)
    expected[0, 3], expected[0, 0], expected[3, 0] = 2., 1., 1.
    assert torch.equal(relation.counts, expected)
    weights = relation(image(1, 'CC'), image(2, 'MLO'))
    assert weights[0, 3] == pytest.approx(2 / (3 * 2)**.5)
    assert weights[3, 0] == pytest.approx(1 / (1 * 2)**.5)
    assert torch.equal(relation(image(1, 'MLO'), image(2, 'CC')), weights.T)


def test_epipolar_nodes_are_those_that_can_show_the_same():
    """What two views see of points in space is at related nodes."""
    rig = Rig.circle(10, image_size=64)
    first, second = rig.views[0], rig.views[2]
    steps = np.arange(2., 64., 4.)
    nodes = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    samples = [image(n, nodes=nodes, ct2img=v.ct2img)
               for n, v in enumerate((first, second))]
    related = EpipolarRelation(reach=6.)(*samples)
    assert related.shape == (256, 256)
    torch.testing.assert_close(
        related, EpipolarRelation(reach=6.)(*samples[::-1]).T)
    points = np.random.default_rng(0).uniform(-60, 60, (200, 3))
    seen = [geometry.project(points, v.ct2img)[0] for v in (first, second)]
    rows, columns = (
        ((uv[:, None] - nodes)**2).sum(-1).argmin(1) for uv in seen)
    assert (related[rows, columns] > 0).all()
    # A point and its node are up to half a diagonal apart in each view; and
    # these are few.
    assert (related > 0).float().mean() < .25


def test_epipolar_distances_of_projected_points():
    rig = Rig.circle(10, image_size=64)
    a, b = rig.views[0].ct2img, rig.views[3].ct2img
    points = np.random.default_rng(0).uniform(-60, 60, (20, 3))
    uv, there = geometry.project(points, a)[0], geometry.project(points, b)[0]
    apart = geometry.epipolar_distances(uv, a, there, b)
    assert np.diag(apart).max() < 1e-6
    assert np.median(apart) > 2.
    # Moved by five pixels across its line.
    line = there[1:] - there[:-1]
    assert (apart >= 0).all() and line.shape == (19, 2)
    same = geometry.epipolar_distances(uv, a, uv, a)
    assert np.isinf(same).all()


# ---------------------------------------------------------------- the detector
@pytest.fixture
def found_landmarks(monkeypatch):
    """Nodes without a search, but for one image."""
    calls = []

    def find(pixels, laterality, view, padding):
        calls.append((laterality, view))
        if (laterality, view) == ('R', 'MLO'):
            raise landmarks.LandmarkError('no nipple')
        return pixels.shape

    def grid(found, nodes):
        count = nodes[0] if calls[-1][1] == 'CC' else nodes[1]
        return np.random.default_rng(0).uniform(0, found[0], (count, 2))

    monkeypatch.setattr(landmarks, 'find_landmarks', find)
    monkeypatch.setattr(landmarks, 'node_grid', grid)
    return calls


def exam_set(root):
    return DATASETS.build(dict(
        type='MammogramDataset', data_root=str(root),
        ann_file='annotations/instances_train.json', pipeline=[
            dict(type='EachImage', transforms=[
                dict(type='LoadMammogram'),
                dict(type='FindNodes', num_nodes=[22, 26]),
                dict(type='ResizeMammogram', size=EDGE),
                dict(type='WarpMammogram')]),
            dict(type='PackExam')]))


def build(name):
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / name).model
    cfg.detector_2d.backbone.init_cfg = None  # no hub is asked in a test
    net = MODELS.build(cfg)
    net.init_weights()
    return net


def test_what_is_counted_is_the_set_itself(tmp_path, found_landmarks):
    """Whatever the seed: nothing is warped, and no finding is lost."""
    data = exam_set(make_breast_set(tmp_path / 'set', 3))
    step = data.pipeline.transforms[0].transforms[-1]
    step.shift = 5.  # whatever is warped leaves the image
    relation = build(SMALL).graph.relation
    hook, runner = FitRelationHook(), SimpleNamespace(
        model=relation, train_dataloader=SimpleNamespace(dataset=data))
    counts = []
    for seed in range(2):
        np.random.seed(seed)
        relation.counts.zero_()
        hook.before_train(runner)
        counts.append(relation.counts.clone())
    assert counts[0].sum() > 0 and torch.equal(*counts)
    assert data.pipeline.transforms[0].transforms[-1] is step


@pytest.mark.parametrize('rows', [[0], [1, 2], [3]])
def test_a_step_of_exams(tmp_path, found_landmarks, rows):
    """Without masses, two exams, and one with a single view."""
    root = make_breast_set(tmp_path / 'set', 4, left_out=[
        (3, 'R', 'CC'), (3, 'R', 'MLO'), (3, 'L', 'CC')])
    data, net = exam_set(root), build(SMALL).train()
    assert net.graph.relation.fit(data) == 2
    learned(net.graph)
    batch = net.data_preprocessor(
        pseudo_collate([data[row] for row in rows]), True)
    loss, _ = net.parse_losses(net(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert (net.graph.message.weight.grad is not None) == (rows != [3])
    assert bool(net.graph.attention.weight.grad is not None) == (rows != [3])
    if len(rows) > 1:
        assert net.graph.message.weight.grad.abs().sum() > 0
    # Each image's landmarks are looked for once; there is nothing to count in
    # the first exam.
    assert len(found_landmarks) == (13 if rows == [0] else 9)


def test_the_large_one_takes_a_step(tmp_path, found_landmarks):
    """In small images."""
    root = make_breast_set(tmp_path / 'set', 2)
    data, net = exam_set(root), build(LARGE).train()
    assert net.graph.relation.fit(data) == 1
    learned(net.graph)
    batch = net.data_preprocessor(pseudo_collate([data[1]]), True)
    loss, _ = net.parse_losses(net(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert net.graph.message.weight.grad.abs().sum() > 0


def test_the_graph_alone_is_new_in_it():
    """So a checkpoint of Mask R-CNN is a start."""
    plain, net = build(PLAIN).state_dict(), build(SMALL).state_dict()
    new = set(net) - set(plain)
    assert not set(plain) - set(net)
    assert all(name.startswith('graph.') for name in new)


def test_x_ray_views_of_a_rig(tmp_path):
    make_sphere_set(tmp_path, num_scans=3, num_views=4, image_size=64)
    cfg = load_config(str(ROOT / EPIPOLAR))
    data = DATASETS.build(dict(
        cfg.train_dataloader.dataset, data_root=str(tmp_path),
        min_diameter=0., step=1))
    net = build(EPIPOLAR).train()
    learned(net.graph)
    losses = []
    for row in (0, 1):  # the second is empty
        sample = data[row]
        assert [s.partners['other_view'] for s in
                sample['data_samples'].images][-1] == f'{row}/' + (
                    sample['data_samples'].images[0].view)
        batch = net.data_preprocessor(pseudo_collate([sample]), True)
        loss, _ = net.parse_losses(net(**batch, mode='loss'))
        loss.backward()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert net.graph.message.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = net.eval().test_step(pseudo_collate([data[0]]))
    assert len(found) == 4 and 'masks' not in found[0].pred_instances


def test_bands_show_what_is_small():
    """A disc that the anatomy's slope hides in the image itself."""
    prepare = MODELS.build(dict(
        type='ExamPreprocessor', mean=[.2], std=[.1], bands=[(2., 30.)]))
    y, x = np.mgrid[:64, :64]
    image = x / 100 + .01 * (np.hypot(x - 40, y - 20) < 2)
    sample = dict(
        inputs=torch.tensor(image[None, None], dtype=torch.float32),
        data_samples=SimpleNamespace(images=[DetDataSample(
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))]))
    inputs = prepare(dict(inputs=[sample['inputs']],
                          data_samples=[sample['data_samples']]))['inputs']
    assert inputs.shape == (1, 2, 64, 64)
    torch.testing.assert_close(inputs[0, 0], torch.tensor(
        (image - .2) / .1, dtype=torch.float32))
    inner = inputs[0, 1, 8:-8, 8:-8]
    assert divmod(int(inner.argmax()), 48) == pytest.approx((12, 32), abs=1)
    assert inner.max() > 10 * inner.abs().median()


def test_a_training_on_x_ray_views(tmp_path):
    """With all hooks of the config."""
    for split in ('train', 'val'):
        make_sphere_set(tmp_path / 'set', 2, 4, 64, split=split)
    done = tool('train.py', EPIPOLAR, '--data-root', tmp_path / 'set',
                '--work-dir', tmp_path, options=[
                    'train_cfg.max_iters=1', 'train_cfg.val_begin=9'])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'iter_1.pth').is_file()
