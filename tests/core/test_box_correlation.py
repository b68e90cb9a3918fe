"""Box correlation on spheres whose images are known."""

import numpy as np
import pytest
import torch

from projects.core import geometry
from projects.core.box_correlation import (
    agreeing_rois,
    cubes_at_depth,
    relevant_rois,
    sweep_overlaps,
    triangulate_rois,
)
from projects.core.rig import Rig
from projects.mv2d_xray.queries.roi import XRayTriangulatedQueryGenerator

SCENE = [-200.] * 3 + [200.] * 3


def cameras(num_views=6):
    rig = Rig.circle(num_views, image_size=256)
    return {
        key: torch.tensor(np.stack([getattr(v, key) for v in rig.views]),
                          dtype=torch.float32)
        for key in ('cam2img', 'ct2img')
    }


def rois_of(boxes, cams):
    rects, _ = geometry.project_boxes(torch.tensor(boxes), cams['ct2img'])
    views = torch.arange(len(rects)).repeat_interleave(len(boxes))
    return rects.reshape(-1, 4), views


def overlaps_of(rois, views, cams, num_depths=48):
    bounds = geometry.depth_bounds(cams['ct2img'], SCENE)
    return sweep_overlaps(rois, views, cams['ct2img'], bounds, num_depths)


def test_same_object_in_other_views_is_relevant():
    cams = cameras()
    rois, views = rois_of([[30., 20, 60, 16, 16, 16],
                           [-40., 10, -50, 16, 16, 16]], cams)
    overlaps = overlaps_of(rois, views, cams)
    objects = torch.arange(len(rois)) % 2
    same = (objects[:, None] == objects) & (views[:, None] != views)
    other = objects[:, None] != objects
    assert overlaps[same].min() > .3
    assert overlaps[other].max() < .05  # 110 mm apart in height
    index, valid = relevant_rois(overlaps, views, 6, 'topk', .1)
    assert valid.sum(1).tolist() == [6] * 12  # itself and one of each other
    assert (objects[index][valid] == objects[:, None].expand_as(index)[valid]
            ).all()
    assert (index[:, 0] == torch.arange(12)).all()


def test_cubes_project_back_onto_their_rois():
    cams = cameras()
    rois, views = rois_of([[0., 0, 0, 20, 20, 20]], cams)
    cubes = cubes_at_depth(rois, torch.full((6, 1), 300.),
                           cams['ct2img'][views])
    uv, depth = geometry.project(cubes[2, :, :3], cams['ct2img'][2])
    np.testing.assert_allclose(uv[0], (rois[2, :2] + rois[2, 2:]) / 2,
                               atol=1e-2)
    assert depth.item() == pytest.approx(300, abs=.1)


def test_all_takes_more_than_the_best():
    cams = cameras(2)
    rois, views = rois_of([[30., 20, 60, 16, 16, 16],
                           [30., 20, 66, 16, 16, 16]], cams)
    overlaps = overlaps_of(rois, views, cams)
    _, best = relevant_rois(overlaps, views, 2, 'topk', .1)
    _, every = relevant_rois(overlaps, views, 2, 'all', .1)
    assert best.sum(1).tolist() == [2] * 4
    assert every.sum(1).tolist() == [3] * 4


@pytest.mark.parametrize('mode', ['topk', 'all'])
def test_no_rois_and_one_view(mode):
    cams = cameras(3)
    none = torch.zeros(0, 4)
    index, valid = relevant_rois(
        overlaps_of(none, torch.zeros(0, dtype=torch.long), cams),
        torch.zeros(0, dtype=torch.long), 3, mode, .1)
    assert len(index) == len(valid) == 0
    cams = cameras(1)
    rois, views = rois_of([[0., 0, 0, 20, 20, 20]], cams)
    index, valid = relevant_rois(
        overlaps_of(rois, views, cams), views, 1, mode, .1)
    assert valid.sum().item() == 1 and index[0, 0] == 0


def test_boxes_agree_at_one_depth():
    cams = cameras()
    found = [[30., 20, 60, 16, 16, 16], [-40., 10, -50, 16, 16, 16]]
    rois, views = rois_of(found, cams)
    bounds = geometry.depth_bounds(cams['ct2img'], SCENE)
    one_class = torch.zeros(len(rois))
    index, score = agreeing_rois(rois, views, one_class, cams['ct2img'],
                                 bounds, 64)
    objects = torch.arange(len(rois)) % 2
    own = torch.arange(6) == views[:, None]
    assert (score[own] == 0).all() and score[~own].min() > .3
    assert (objects[index] == objects[:, None])[~own].all()


def triangulated(rois, cams, scene=SCENE):
    maker = XRayTriangulatedQueryGenerator(8, scene)
    maker.init_weights()
    return maker(torch.zeros(len(rois), 8, 7, 7), rois, cams['cam2img'],
                 cams['ct2img'])


def test_triangulated_queries_are_where_the_objects_are():
    cams = cameras()
    found = [[30., 20, 60, 16, 16, 16], [-40., 10, -50, 12, 12, 12]]
    boxes, views = rois_of(found, cams)
    score = torch.full((12, ), .6)
    score[0] = .3  # one of the first object's six
    label = torch.zeros(12)
    queries = triangulated(
        torch.cat([views[:, None], boxes, score[:, None], label[:, None]], 1),
        cams)
    truth = torch.tensor(found).repeat(6, 1)
    assert (queries.centres - truth[:, :3]).norm(dim=1).max() < 1
    # A cube's silhouette is wider than its edge, by up to a half.
    ratio = queries.sizes[:, 0] / truth[:, 3]
    assert ratio.min() > 1 and ratio.max() < 1.6
    torch.testing.assert_close(queries.scores[:2], torch.tensor([.55, .6]))


def test_a_box_that_no_view_confirms_is_put_amid_the_scene():
    cams = cameras()
    rois = torch.tensor([[2., 100, 110, 112, 121, .6, 0]])
    query = triangulated(rois, cams)
    uv, depth = geometry.project(query.centres, cams['ct2img'][2])
    np.testing.assert_allclose(uv[0], [106, 115.5], atol=.1)
    assert depth.item() == pytest.approx(300, abs=1)
    assert query.scores.item() == pytest.approx(.1)
    assert len(triangulated(rois[:0], cams)) == 0


@pytest.mark.parametrize('seed', range(3))
def test_arrays_give_what_tensors_give(seed):
    """A deployed model triangulates without PyTorch."""
    rng = np.random.default_rng(seed)
    cams = cameras(5)
    found = np.concatenate([rng.uniform(-60, 60, (6, 3)),
                            rng.uniform(8, 30, (6, 1)).repeat(3, 1)], 1)
    boxes, views = rois_of(found.astype(np.float32), cams)
    boxes = boxes + torch.as_tensor(rng.normal(0, 1, boxes.shape)).float()
    scores = torch.as_tensor(rng.random(len(boxes))).float()
    told = boxes, views, scores, views * 0, cams['ct2img']
    for tensor, array in zip(
            triangulate_rois(*told, SCENE, 64, .2),
            triangulate_rois(*(x.numpy() for x in told), SCENE, 64, .2)):
        np.testing.assert_allclose(array, tensor, rtol=1e-5, atol=1e-3)
    nothing = [x.numpy()[:0] for x in told[:4]]
    assert [len(x) for x in triangulate_rois(
        *nothing, told[4].numpy(), SCENE, 64, .2)] == [0, 0, 0]


def test_unknown_mode():
    with pytest.raises(ValueError, match='expected "topk" or "all"'):
        relevant_rois(torch.zeros(1, 1), torch.zeros(1), 1, 'best', .1)
