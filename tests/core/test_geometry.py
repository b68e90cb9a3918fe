"""The camera maths against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from projects.core import geometry
from projects.core.rig import Rig

PAPER = Rig.circle()  # 10 views, 300 mm, 600 mm, 1024 px of 0.78125 mm


def matrices(rig=PAPER, kind='numpy'):
    stack = np.stack([v.ct2img for v in rig.views])
    return stack if kind == 'numpy' else torch.from_numpy(stack)


def test_papers_rig():
    assert len(PAPER) == 10
    view = PAPER.views[0]
    assert view.cam2img[0, 0] == pytest.approx(768)  # 600 / 0.78125
    np.testing.assert_allclose(
        view.ct2cam, [[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 300],
                      [0, 0, 0, 1]], atol=1e-12)
    # The corrected third row: (-cos, -sin, 0, r).
    np.testing.assert_allclose(
        PAPER.views[1].ct2cam[2],
        [-math.cos(math.pi / 5), -math.sin(math.pi / 5), 0, 300])


def test_isocentre_is_the_image_centre_at_the_source_distance():
    uv, depth = geometry.project(np.zeros((1, 3)), matrices())
    np.testing.assert_allclose(uv, np.full((10, 1, 2), 512.), atol=1e-9)
    np.testing.assert_allclose(depth, 300.)


def test_sources_lie_on_the_circle():
    angles = np.arange(10) * math.pi / 5
    np.testing.assert_allclose(
        geometry.camera_centres(matrices()),
        300 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1),
        atol=1e-9)


def test_magnification_by_hand():
    # From +x, 100 mm nearer to the source: depth 200, magnified by 768/200.
    uv, depth = geometry.project(
        np.array([[100., 10., 5.]]), matrices()[:1])
    assert depth[0, 0] == pytest.approx(200)
    np.testing.assert_allclose(
        uv[0, 0], [512 + 768 * 10 / 200, 512 - 768 * 5 / 200])


@pytest.mark.parametrize('kind', ['numpy', 'torch'])
def test_unproject_inverts_project(kind):
    rng = np.random.default_rng(0)
    points = rng.uniform(-150, 150, (20, 3))
    ct2img = matrices(kind=kind)
    if kind == 'torch':
        points = torch.from_numpy(points)
    uv, depth = geometry.project(points, ct2img)
    back = geometry.unproject(uv, depth, ct2img)
    np.testing.assert_allclose(
        np.asarray(back), np.broadcast_to(points, back.shape), atol=1e-8)


def test_invert_rigid_is_the_inverse_and_not_the_transpose():
    pose = PAPER.views[3].ct2cam
    np.testing.assert_allclose(
        geometry.invert_rigid(pose) @ pose, np.eye(4), atol=1e-12)
    assert not np.allclose(geometry.invert_rigid(pose), pose.T)


def test_inputs_stay_as_they_were():
    view = PAPER.views[2]
    kept = view.cam2img.copy(), view.ct2cam.copy()
    geometry.scale_cam2img(view.cam2img, .5, .25)
    geometry.mirror_view(view.cam2img, view.ct2cam, 1024)
    geometry.roi_intrinsics(view.cam2img[None], np.array([[1., 2, 3, 4]]), 7)
    geometry.invert_rigid(view.ct2cam)
    np.testing.assert_array_equal(kept[0], view.cam2img)
    np.testing.assert_array_equal(kept[1], view.ct2cam)


def test_resizing_scales_pixels():
    small = PAPER.resized(256, 128)
    points = np.array([[30., -40, 50], [0, 5, -90]])
    big, _ = geometry.project(points, matrices())
    little, _ = geometry.project(points, matrices(small))
    np.testing.assert_allclose(little, big * [.25, .125], atol=1e-9)


def test_mirrored_view_sees_the_mirrored_world():
    rng = np.random.default_rng(1)
    points = rng.uniform(-100, 100, (9, 3))
    for view in PAPER.views[:4]:
        cam2img, ct2cam = geometry.mirror_view(view.cam2img, view.ct2cam,
                                               view.width)
        uv, depth = geometry.project(points, view.ct2img)
        mirrored, same = geometry.project(points * [-1, 1, 1],
                                          cam2img @ ct2cam)
        np.testing.assert_allclose(mirrored[:, 0], view.width - uv[:, 0])
        np.testing.assert_allclose(mirrored[:, 1], uv[:, 1])
        np.testing.assert_allclose(same, depth)
        assert np.linalg.det(ct2cam[:3, :3]) == pytest.approx(1)


def test_roi_intrinsics_map_the_crop():
    rois = np.array([[100., 50, 150, 90], [0, 0, 1024, 1024]])
    cam2img = np.repeat(PAPER.views[0].cam2img[None], 2, 0)
    cropped = geometry.roi_intrinsics(cam2img, rois, 7)
    corner = np.array([3., 4, 50])
    for roi, old, new in zip(rois, cam2img, cropped):
        u, v = (old[:3, :3] @ corner)[:2] / corner[2]
        got = (new[:3, :3] @ corner)[:2] / corner[2]
        np.testing.assert_allclose(
            got, [(u - roi[0]) * 7 / (roi[2] - roi[0]),
                  (v - roi[1]) * 7 / (roi[3] - roi[1])])


def test_triangulation_inverts_projection():
    points = np.array([[10., 20, 30], [-60, 70, -80], [0, 0, 0]])
    uv, _ = geometry.project(points, matrices())
    np.testing.assert_allclose(
        geometry.triangulate(uv, matrices()), points, atol=1e-7)
    weights = np.zeros((10, 3))
    weights[[2, 5]] = 1.  # two views are enough
    wrong = uv + 0
    wrong[0] += 50  # and a view without weight does not matter
    np.testing.assert_allclose(
        geometry.triangulate(wrong, matrices(), weights), points, atol=1e-7)
    weights[5] = 0
    assert np.isnan(geometry.triangulate(uv, matrices(), weights)).all()


def test_half_a_pixel_is_a_tenth_of_a_millimetre():
    # The precision that ten views allow (0.5 px: 0.12 mm in the plane).
    rng = np.random.default_rng(0)
    points = rng.uniform(-100, 100, (500, 3))
    uv, _ = geometry.project(points, matrices())
    error = geometry.triangulate(
        uv + rng.normal(0, .5, uv.shape), matrices()) - points
    rms = np.sqrt((error[:, :2]**2).mean())
    assert .08 < rms < .17


def test_box_projection_contains_its_corners():
    boxes = np.array([[10., -20, 30, 8, 6, 4, 0], [0, 0, 0, 20, 20, 20, 0]])
    rects, depth = geometry.project_boxes(boxes, matrices())
    assert rects.shape == (10, 2, 4) and depth.shape == (10, 2)
    corners = geometry.box_corners(boxes)
    uv, _ = geometry.project(corners[0], matrices())
    np.testing.assert_allclose(rects[:, 0, :2], uv.min(1))
    np.testing.assert_allclose(rects[:, 0, 2:], uv.max(1))
    # Behind the source there is no image.
    _, behind = geometry.project_boxes(
        np.array([[310., 0, 0, 5, 5, 5, 0]]), matrices()[:1])
    assert behind[0, 0] <= 0


def test_no_boxes_no_points():
    rects, depth = geometry.project_boxes(np.zeros((0, 7)), matrices())
    assert rects.shape == (10, 0, 4) and depth.shape == (10, 0)
    uv, depth = geometry.project(np.zeros((0, 3)), matrices())
    assert uv.shape == (10, 0, 2)


@pytest.mark.parametrize('views', [0, 1])
@pytest.mark.parametrize('kind', ['numpy', 'torch'])
def test_no_view_one_view(views, kind):
    ct2img = matrices(kind=kind)[:views]
    points = np.array([[10., 20, 30], [-60, 70, -80]])
    boxes = np.concatenate([points, np.full((2, 4), 9.)], 1)
    if kind == 'torch':
        points, boxes = torch.from_numpy(points), torch.from_numpy(boxes)
    uv, depth = geometry.project(points, ct2img)
    assert uv.shape == (views, 2, 2) and depth.shape == (views, 2)
    assert geometry.unproject(uv, depth, ct2img).shape == (views, 2, 3)
    # Fewer than two rays fix no point.
    assert np.isnan(np.asarray(geometry.triangulate(uv, ct2img))).all()
    rects, depth = geometry.project_boxes(boxes, ct2img)
    assert rects.shape == (views, 2, 4) and depth.shape == (views, 2)
    bounds = geometry.depth_bounds(ct2img, [-200.] * 3 + [200.] * 3)
    assert bounds.shape == (views, 2)
    if kind == 'torch':
        assert geometry.frustum_points(2, 3, 8, ct2img, bounds,
                                       4).shape == (views, 2, 3, 4, 3)


def test_numpy_and_torch_agree():
    rng = np.random.default_rng(5)
    scene = [-200.] * 3 + [200.] * 3
    cam2img, ct2cam = (np.stack([getattr(v, key) for v in PAPER.views])
                       for key in ('cam2img', 'ct2cam'))
    ct2img = matrices()
    points = rng.uniform(-90, 90, (10, 3))
    boxes = np.concatenate([points, rng.uniform(5, 20, (10, 4))], 1)
    uv, depth = geometry.project(points, ct2img)
    rois = np.concatenate([uv[0], uv[0] + 30], 1)
    turn = geometry.rotation_z(.7)
    for function, *arguments in (
        (geometry.invert_rigid, ct2cam), (geometry.rays, uv, ct2img),
        (geometry.compose_ct2img, cam2img, ct2cam),
        (geometry.mirror_view, cam2img, ct2cam, 1024),
        (geometry.scale_cam2img, cam2img, .5, .25),
        (geometry.roi_intrinsics, cam2img, rois, 7),
        (geometry.project, points, ct2img),
        (geometry.unproject, uv, depth, ct2img),
        (geometry.camera_centres, ct2img),
        (geometry.triangulate, uv, ct2img, rng.random((10, 10))),
        (geometry.box_corners, boxes),
        (geometry.project_boxes, boxes, ct2img),
        (geometry.normalise_points, points, scene),
        (geometry.depth_bounds, ct2cam, scene),
    ):
        ours = function(*arguments)
        theirs = function(*[torch.from_numpy(a) if isinstance(a, np.ndarray)
                            else a for a in arguments])
        if not isinstance(ours, tuple):
            ours, theirs = (ours, ), (theirs, )
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-9,
                                       err_msg=function.__name__)
    np.testing.assert_allclose(
        geometry.transform_boxes(boxes, turn),
        geometry.transform_boxes(torch.from_numpy(boxes), turn).numpy())


def test_single_precision_is_enough():
    # As the network computes: a thousandth of a millimetre.
    ct2img = matrices(kind='torch').float()
    points = torch.rand(50, 3) * 300 - 150
    uv, depth = geometry.project(points, ct2img)
    assert (geometry.unproject(uv, depth, ct2img) - points).abs().max() < 1e-3
    assert (geometry.triangulate(uv, ct2img) - points).abs().max() < 1e-2


def test_boxes_turn_with_the_world():
    boxes = np.array([[10., 20, 30, 4, 6, 8, 0]])
    turned = geometry.transform_boxes(boxes, geometry.rotation_z(math.pi / 2))
    np.testing.assert_allclose(
        turned, [[-20, 10, 30, 6, 4, 8, 0]], atol=1e-12)
    half = geometry.transform_boxes(boxes, geometry.rotation_z(math.pi / 4))
    edge = math.sqrt((16 + 36) / 2)
    np.testing.assert_allclose(half[0, 3:6], [edge, edge, 8])


def test_scene_box_round_trip_in_millimetres():
    scene = [-200., -100, -50, 200, 100, 250]
    points = np.array([[-200., 100, 100], [0, 0, 0]])
    unit = geometry.normalise_points(points, scene)
    np.testing.assert_allclose(unit[0], [0, 1, .5])
    np.testing.assert_allclose(
        geometry.denormalise_points(unit, scene), points)


def test_depths_of_the_scene_box():
    # Ranges in metres (0.5 to 70) would miss every patient: seen from +x,
    # the box from -200 to 200 mm is 100 to 500 mm away.
    scene = [-200., -200, -200, 200, 200, 200]
    bounds = geometry.depth_bounds(
        np.stack([v.ct2cam for v in PAPER.views]), scene)
    np.testing.assert_allclose(bounds[0], [100, 500])
    assert (bounds[:, 0] > 0).all() and (bounds[:, 1] < 600).all()
    same = geometry.depth_bounds(matrices(), scene)
    np.testing.assert_allclose(bounds, same)


def test_frustum_points_project_back_to_their_cells():
    rig = PAPER.resized(64, 32)
    ct2img = matrices(rig, 'torch')
    bounds = geometry.depth_bounds(ct2img, [-200.] * 3 + [200.] * 3)
    points = geometry.frustum_points(4, 8, 8, ct2img, bounds, 5)
    assert points.shape == (10, 4, 8, 5, 3)
    uv, depth = geometry.project(points[3].reshape(-1, 3), ct2img[3])
    uv = uv.reshape(4, 8, 5, 2)
    assert torch.allclose(uv[1, 6, :, 0], torch.tensor(52.).double())
    assert torch.allclose(uv[1, 6, :, 1], torch.tensor(12.).double())
    depth = depth.reshape(4, 8, 5)
    assert torch.allclose(depth[0, 0, [0, -1]], bounds[3])


def test_gradients():
    ct2img = matrices(kind='torch')[:2]
    points = torch.tensor([[10., 20, 30], [-5, 6, 7]], dtype=torch.double,
                          requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: geometry.project(p, ct2img), (points, ))
    uv, depth = (t.detach().requires_grad_()
                 for t in geometry.project(points, ct2img))
    assert torch.autograd.gradcheck(
        lambda a, b: geometry.unproject(a, b, ct2img), (uv, depth))
    assert torch.autograd.gradcheck(
        lambda a: geometry.triangulate(a, ct2img), (uv, ))
    boxes = torch.cat([points.detach(), torch.full((2, 4), 9.).double()], 1)
    assert torch.autograd.gradcheck(
        lambda b: geometry.project_boxes(b, ct2img)[0],
        (boxes.requires_grad_(), ))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r'points: expected last dimension 3'):
        geometry.project(np.zeros((4, 2)), matrices())
    with pytest.raises(ValueError, match=r'ct2img: expected shape .*4, 4'):
        geometry.project(np.zeros((4, 3)), np.eye(3))


def test_rig_file_round_trip(tmp_path):
    rig = Rig.circle(20, radius=500, source_to_detector=900, image_size=64,
                     arc=190, start=5)
    rig.save(tmp_path / 'rig.json')
    again = Rig.load(tmp_path / 'rig.json')
    assert len(again) == 20
    for a, b in zip(rig.views, again.views):
        np.testing.assert_allclose(a.ct2img, b.ct2img)
        assert (a.name, a.width, a.height) == (b.name, b.width, b.height)


@pytest.mark.parametrize('change, message', [
    (lambda r: r.pop('views'), 'field "views": expected a non-empty list'),
    (lambda r: r['views'][1].pop('ct2cam'), r'views\[1\]: field "ct2cam"'),
    (lambda r: r['views'][0].update(cam2img=[1]), 'expected 3x3'),
    (lambda r: r['views'][0].update(
        ct2cam=(2 * np.eye(4)).tolist()), 'rigid motion'),
    (lambda r: r['views'][0].update(
        ct2cam=np.diag([-1., 1, 1, 1]).tolist()), 'rigid motion'),
    (lambda r: r['views'][0].update(width=-3), 'must be positive'),
    (lambda r: r['views'][1].update(name='CAM_00'), 'names must differ'),
    (lambda r: r['views'][0]['cam2img'][0].__setitem__(0, float('nan')),
     'must be finite'),
])
def test_faulty_rigs_are_named(tmp_path, change, message):
    content = Rig.circle(3, image_size=32).to_dict()
    change(content)
    (tmp_path / 'rig.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        Rig.load(tmp_path / 'rig.json')
    assert 'rig.json' in str(error.value)


def test_missing_or_broken_rig_file(tmp_path):
    with pytest.raises(ValueError, match='cannot be read'):
        Rig.load(tmp_path / 'none.json')
    for text in ('{', '[' * 100_000):  # or deeper than is read
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ValueError, match='is not JSON'):
            Rig.load(tmp_path / 'bad.json')


def test_slices_are_cameras():
    """What the tools rely on: a parallel camera, its offsets, its inverse."""
    cam2img, ct2cam = geometry.slice_camera(
        np.array([10., 20, -5]), np.array([-.7, 0, 0]), np.array([0, -.8, 0]),
        3.)
    ct2img = geometry.compose_ct2img(cam2img, ct2cam)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    uv, depth = geometry.project(points, ct2img)
    np.testing.assert_allclose(depth, 1)
    np.testing.assert_allclose(uv, (points[:, :2] - [10, 20]) / [-.7, -.8])
    flat = geometry.unproject(uv, depth, ct2img)
    np.testing.assert_allclose(flat[:, :2], points[:, :2])
    np.testing.assert_allclose(flat[:, 2], -5)
    np.testing.assert_allclose(
        geometry.slice_offsets(points, ct2img), (points[:, 2] + 5) / 1.5)
    places, thickness = geometry.slice_places(ct2img[None])
    assert places == pytest.approx([-5.]) and thickness == pytest.approx(3.)
    np.testing.assert_allclose(geometry.slice_normal(ct2img), [0, 0, 1])
    assert geometry.are_slices(ct2img[None])
    assert not geometry.are_slices(np.zeros((0, 4, 4)))
    boxes = np.array([[0., 0, z, 4, 4, 2, 0]
                      for z in (-7.4, -7.6, -5, -2.6, -2.4)])
    shown = geometry.project_boxes(boxes, ct2img[None])[1][0] > 0
    assert shown.tolist() == [True, False, True, True, False]
