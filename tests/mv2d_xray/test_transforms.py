"""What each transform does to an image whose answer is known."""

import copy

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, TRANSFORMS
from scipy.ndimage import label

from projects.core import geometry
from projects.core.engine import known_views
from projects.core.files import DataError
from projects.core.findings import Finding
from projects.core.infos import dump_infos, load_infos
from projects.core.rig import View
from projects.mv2d_xray.transforms import photometric, solids
from projects.mv2d_xray.transforms.insertion import XRayInsertNodules
from projects.mv2d_xray.transforms.packing import ANNOTATIONS, PackXRayInputs
from projects.mv2d_xray.transforms.photometric import XRayPhotometric
from tests.helpers.models import scans_of
from tests.helpers.spheres import chord_lengths, make_sphere_set


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    """One loaded sample of three spheres, and what made it."""
    root = tmp_path_factory.mktemp('one')
    spheres = [[((60., 10, 40), 14.), ((-30., 50, -20), 10.),
                ((0., -65, 5), 12.)]]
    make_sphere_set(root, 1, 6, 96, spheres=spheres, ignored=False)
    data = scans_of(root, pipeline=[dict(type='LoadXRayViews')])

    def fresh():
        np.random.seed(0)
        return data[0]

    return fresh


def consistent(results, tolerance=1.):
    """2D boxes, 3D boxes, matrices and bright spots agree."""
    boxes = results['gt_bboxes_3d']
    centres = boxes.gravity_center.numpy().astype(np.float64)
    assert len(results['img']) == results['num_views'] == len(
        results['ct2img'])
    np.testing.assert_allclose(
        results['ct2img'],
        geometry.compose_ct2img(results['cam2img'], results['ct2cam']))
    for box, view, row in zip(results['gt_bboxes'],
                              results['gt_bboxes_view'],
                              results['gt_bboxes_instance']):
        uv, _ = geometry.project(centres[row][None], results['ct2img'][view])
        np.testing.assert_allclose(
            uv[0], (box[:2] + box[2:]) / 2, atol=tolerance)
        # The sphere adds to the body, whose image is smooth.
        image = results['img'][view][..., 0]
        height, width = image.shape
        u, v = np.clip(uv[0].astype(int), 1, [width - 2, height - 2])
        x1, y1, x2, y2 = box
        ring = [image[int(np.clip(y, 0, height - 1)),
                      int(np.clip(x, 0, width - 1))]
                for x, y in ((x1 - 2, v), (x2 + 2, v), (u, y1 - 2),
                             (u, y2 + 2))]
        assert image[v, u] > np.median(ring)


def test_loading_is_consistent(loaded):
    consistent(loaded())


@pytest.mark.parametrize('transform', [
    dict(type='ResizeXRay', scale=(48, 64)),
    dict(type='XRayRandomFlip', prob=1.),
    dict(type='XRayRandomRotate', max_angle=180.),
    dict(type='XRayRandomRotate', max_angle=180., step=60.),
    dict(type='XRayViewDropout', prob=1., min_views=2),
    dict(type='XRayInsertNodules', spread=30., sizes=(18., 30.),
         attenuation=(.006, .02)),
])
def test_geometric_transforms_keep_everything_together(loaded, transform):
    step = TRANSFORMS.build(transform)
    for _ in range(4):
        consistent(step(loaded()), 1.5)


def test_all_of_them_together(loaded):
    results = loaded()
    for transform in (dict(type='XRayRandomFlip', prob=1.),
                      dict(type='XRayRandomRotate'),
                      dict(type='XRayViewDropout', prob=1., min_views=3),
                      dict(type='ResizeXRay', scale=(64, 64))):
        results = TRANSFORMS.build(transform)(results)
    consistent(results, 1.5)


@pytest.mark.parametrize('transform', [
    dict(type='ResizeXRay', scale=(48, 64)),
    dict(type='XRayRandomFlip', prob=1.),
    dict(type='XRayRandomRotate', max_angle=180.),
    dict(type='XRayViewDropout', prob=1., min_views=2),
    dict(type='XRayInsertNodules', sizes=(18., 30.),
         attenuation=(.006, .02)),
])
def test_what_the_metrics_read_moves_along(loaded, transform):
    """Test pipelines may transform, too; samples of training and of tests
    have their annotations in one place."""
    results = loaded()
    assert 'ann_info' not in results
    truth = {key: results[key] for key in ANNOTATIONS}
    kept = copy.deepcopy(truth)
    results = TRANSFORMS.build(transform)(results)
    told = PackXRayInputs()(results)['data_samples'].eval_ann_info
    assert list(told) == list(ANNOTATIONS)
    consistent(dict(results, **told), 1.5)
    for key, value in kept.items():  # what was loaded has not changed
        same = (torch.equal(value.tensor, truth[key].tensor)
                if hasattr(value, 'tensor') else
                np.array_equal(value, truth[key]))
        assert same, key


def test_ignored_boxes_move_along(tmp_path):
    """The ignored sphere's boxes stay on its image."""
    make_sphere_set(tmp_path, 3, 4, 96, spheres=[
        [], [], [((50., -20, 30), 14.), ((-40., 30, 0), 12.)]])
    results = scans_of(
        tmp_path, pipeline=[dict(type='LoadXRayViews')])[2]
    np.random.seed(0)
    for transform in (dict(type='ResizeXRay', scale=(64, 48)),
                      dict(type='XRayRandomFlip', prob=1.),
                      dict(type='XRayRandomRotate'),
                      dict(type='XRayViewDropout', prob=1., min_views=2)):
        results = TRANSFORMS.build(transform)(results)
    assert len(results['ignored_bboxes']) == results['num_views']
    as_truth = dict(
        results, gt_bboxes_3d=results['ignored_bboxes_3d'],
        gt_bboxes=results['ignored_bboxes'],
        gt_bboxes_view=results['ignored_bboxes_view'],
        gt_bboxes_instance=np.zeros(results['num_views'], int))
    consistent(as_truth, 1.5)


def test_enlarging_interpolates(loaded):
    results = TRANSFORMS.build(
        dict(type='ResizeXRay', scale=(192, 192)))(loaded())
    consistent(results, 2.)
    steps = np.abs(np.diff(results['img'][0][:, 96, 0]))
    assert (steps[60:130] > 0).mean() > .9  # not every pixel twice


def test_flip_moves_the_image(loaded):
    before, after = loaded(), TRANSFORMS.build(
        dict(type='XRayRandomFlip', prob=1.))(loaded())
    np.testing.assert_array_equal(after['img'][2], before['img'][2][:, ::-1])
    np.testing.assert_allclose(
        after['gt_bboxes_3d'].gravity_center[:, 0],
        -before['gt_bboxes_3d'].gravity_center[:, 0])
    twice = TRANSFORMS.build(dict(type='XRayRandomFlip', prob=1.))(after)
    np.testing.assert_allclose(twice['ct2img'], before['ct2img'], atol=1e-9)


def test_rotation_by_one_view_is_another_order_of_views(loaded):
    before = loaded()['ct2cam'].copy()
    step = TRANSFORMS.build(
        dict(type='XRayRandomRotate', max_angle=60., step=60.))
    results = loaded()
    np.random.seed(4)  # draws 56 degrees
    rotated = step(results)
    shift = [int(np.abs(before - m).reshape(6, -1).max(1).argmin())
             for m in rotated['ct2cam']]
    assert sorted(shift) == list(range(6)) and shift != list(range(6))
    np.testing.assert_allclose(rotated['ct2cam'], before[shift], atol=1e-9)


def test_flip_and_rotate_do_nothing_at_zero(loaded):
    results = TRANSFORMS.build(dict(type='XRayRandomFlip', prob=0.))(loaded())
    results = TRANSFORMS.build(
        dict(type='XRayRandomRotate', max_angle=0.))(results)
    np.testing.assert_allclose(results['ct2img'], loaded()['ct2img'])


def ball(cells):
    axis = (np.arange(cells) + .5) / cells * 2 - 1
    return sum(a**2 for a in np.meshgrid(axis, axis, axis)) <= 1


def test_an_inserted_sphere_is_a_sphere(loaded):
    results = loaded()
    centre, radius = np.array([20., -30., 35.]), 11.
    rotation, _ = np.linalg.qr(np.random.normal(size=(3, 3)))
    sphere = Finding(centre, rotation / radius, ball(48), .02, 0)
    np.testing.assert_allclose(
        sphere.box, [*centre, *[2 * radius] * 3, 0], atol=.6)
    for view, image in enumerate(results['img']):
        rect, path = sphere.project(results['ct2img'][view], image.shape[:2])
        x1, y1, x2, y2 = rect
        found = np.zeros(image.shape[:2])
        found[y1:y2, x1:x2] = sphere.contrast * path
        info = results['images'][results['view_names'][view]]
        oracle = View('', info['cam2img'], info['lidar2cam'], 96, 96)
        expected = .02 * chord_lengths(centre, radius, oracle)
        assert np.abs(found - expected).max() < .1 * expected.max()
        assert found.sum() == pytest.approx(expected.sum(), rel=.02)
        rows, columns = np.nonzero(found > 1e-6)
        assert rect.tolist() == [columns.min(), rows.min(),
                                 columns.max() + 1, rows.max() + 1]


def test_an_inserted_shape_is_turned_with_its_box():
    """Half of a box, turned by 90 degrees about z."""
    half = np.zeros((16, 16, 16), bool)
    half[8:] = True  # x > 0
    turn = np.array([[0., 1, 0], [-1, 0, 0], [0, 0, 1]])  # y takes x's place
    finding = Finding(np.array([5., 0, 0]),
                      turn / np.array([10., 6, 4])[:, None], half, .02, 0)
    np.testing.assert_allclose(finding.box, [5, 5, 0, 12, 10, 8, 0])
    rays = np.eye(3)
    source = np.array([5., -50, 0])  # sees it along y
    assert finding.path(source, rays[1:2])[0] == pytest.approx(10, rel=.05)
    assert finding.path(np.array([-50., 5, 0]), rays[:1])[0] == pytest.approx(
        12, rel=.05)
    assert finding.path(np.array([-50., -5, 0]), rays[:1])[0] == 0


def test_inserted_nodules_are_turned_and_mirrored(loaded):
    step = XRayInsertNodules(attenuation=(.006, .02))
    bank = loaded()['bank']
    turns = np.stack([step.draw(bank).to_box for _ in range(400)])
    turns /= np.linalg.norm(turns, axis=2, keepdims=True)
    assert .4 < (np.linalg.det(turns) < 0).mean() < .6
    # Any axis of the shape points anywhere.
    assert np.abs(turns.mean(0)).max() < .12


def test_inserted_nodules_are_annotated(loaded):
    step = TRANSFORMS.build(
        dict(type='XRayInsertNodules', max_nodules=5, sizes=(10., 40.),
             attenuation=(.006, .02)))
    none = step(dict(loaded(), bank=()))
    assert len(none['gt_bboxes_3d']) == 3  # nothing to insert
    counts, sizes = [], []
    for seed in range(20):
        before = loaded()
        np.random.seed(seed)
        after = step(before)
        boxes = after['gt_bboxes_3d']
        counts.append(len(boxes) - 3)
        assert len(after['gt_labels_3d']) == len(boxes)
        assert len(after['gt_diameters']) == len(boxes)
        assert after['gt_bboxes_instance'].max() == len(boxes) - 1
        sizes += boxes.tensor[3:, 3:6].mean(1).tolist()
    assert min(counts) == 0 and max(counts) == 5
    # Three of four are in the lower half of the orders of size, 10 to 20 mm.
    assert 9.5 < min(sizes) < 12 and 30 < max(sizes) < 43
    assert .6 < np.mean(np.array(sizes) < 20) < .9
    # The loaded sample itself was not changed.
    np.testing.assert_array_equal(loaded()['img'][0], loaded()['img'][0])


def test_a_pore_takes_away_and_what_is_not_known_is_refused(loaded):
    item = dict(loaded()['bank'][0], contrast=-.09)
    measured = XRayInsertNodules(contrasts=(.5, 1.))
    drawn = [measured.draw([item]).contrast for _ in range(50)]
    assert -.09 <= min(drawn) and max(drawn) <= -.045
    unknown = dict(item, contrast=None)
    with pytest.raises(DataError, match='attenuation.*expected a range'):
        measured.draw([unknown])
    # A range says of which sign findings are.
    for low, high in ((-.1, -.08), (.006, .02)):
        ranged = XRayInsertNodules(attenuation=(low, high))
        for each in (unknown, dict(item, contrast=-np.sign(low) * .01)):
            assert low <= ranged.draw([each]).contrast <= high


def test_what_one_view_shows_is_not_inserted(loaded):
    """Neither painted nor annotated; what two show is both."""
    step = XRayInsertNodules(max_nodules=1, sizes=(10., 10.1), spread=.1,
                             attenuation=(.01, .02))
    step.draw = lambda bank: Finding(
        np.array([60., 10., 40.]), np.eye(3) / 8, ball(16), .02, 0)
    for views in (0, 1, 2):
        sample = loaded()
        # The other views look past it.
        for view in range(views, sample['num_views']):
            sample['ct2img'][view, 0] += 1e4 * sample['ct2img'][view, 2]
        before = [image.copy() for image in sample['img']]
        changed = set()
        for seed in range(6):  # some of them draw one finding
            np.random.seed(seed)
            after = step(dict(sample))
            added = len(after['gt_bboxes_3d']) - 3
            assert added in ((0, 1) if views == 2 else (0, ))
            changed |= {v for v in range(len(before)) if not np.array_equal(
                after['img'][v], before[v])}
        assert changed == (set(range(2)) if views == 2 else set())


def insert(sample, seed=0, **kwargs):
    """The sample with what is drawn, all sides of it."""
    step = XRayInsertNodules(**dict(
        dict(spread=30., attenuation=(.006, .02)), **kwargs))
    np.random.seed(seed)
    return step(sample)


def test_a_point_spread_softens_images_and_leaves_annotations(loaded):
    """Also where it is unequal, and where a finding is cut by the border."""
    hard, soft = (
        insert(loaded(), max_nodules=8, sizes=(5., 60.), spread=60.,
               point_spread=(low, low), slice_profile=(low * 2, low * 2))
        for low in (0., 2.))
    assert len(hard['gt_bboxes_3d']) > 5
    for key in ANNOTATIONS:
        if hasattr(hard[key], 'tensor'):
            assert torch.equal(hard[key].tensor, soft[key].tensor)
        else:
            np.testing.assert_array_equal(hard[key], soft[key])
    for one, two, plain in zip(hard['img'], soft['img'], loaded()['img']):
        steps = [np.abs(np.diff(image - plain, axis=0)).max()
                 for image in (one, two)]
        assert 0 < steps[1] < .8 * steps[0]


@pytest.mark.parametrize('size', [5., 10., 20., 40., 60.])
def test_findings_of_all_sizes_are_smooth_and_in_their_boxes(loaded, size):
    """What is painted is a bump of few rises and falls, not stairs."""
    item = dict(loaded()['bank'][0], shape=ball(16), centre=np.zeros(3))
    view = View('', *(loaded()['images']['CAM_00'][k]
                      for k in ('cam2img', 'lidar2cam')), 96, 96)
    zoom = np.diag([8., 8, 1, 1]) @ view.ct2img
    for seed in range(4):
        np.random.seed(seed)
        step = XRayInsertNodules(sizes=(size, size), spread=.1, texture=0.,
                                 subsolid=0., attenuation=(.01, .02))
        finding = step.draw([item])
        assert finding.box[3:6].mean() == pytest.approx(size)
        rect = finding.rectangle(zoom, (768, 768))
        shown, path = finding.project(zoom, (768, 768), (.5, .5, .8))
        # Half of the peak and more lies in the rectangle.
        rows, columns = np.nonzero(path > .5 * path.max())
        x1, y1, x2, y2 = rect - np.tile(shown[:2], 2)
        assert x1 <= columns.min() and columns.max() < x2
        assert y1 <= rows.min() and rows.max() < y2
        line = path[(y1 + y2) // 2]
        turns = np.diff(np.sign(np.diff(line[line > .02 * path.max()])))
        assert (turns != 0).sum() <= 3


def test_distractors_are_painted_and_never_annotated(loaded):
    changed = 0
    for seed in range(12):
        plain, found = loaded(), insert(
            loaded(), seed, max_nodules=0, distractors=4)
        for key in ANNOTATIONS:
            old, new = (getattr(r[key], 'tensor', r[key])
                        for r in (plain, found))
            np.testing.assert_array_equal(old, new)
        changed += any((a != b).any()
                       for a, b in zip(plain['img'], found['img']))
        both = insert(loaded(), seed, max_nodules=4, distractors=4)
        assert (both['gt_labels_3d'] >= 0).all()
        assert (both['gt_bboxes_labels'] >= 0).all()
        # They are drawn last: the findings are those drawn without them.
        alone = insert(loaded(), seed, max_nodules=4)
        assert torch.equal(both['gt_bboxes_3d'].tensor,
                           alone['gt_bboxes_3d'].tensor)
    assert changed > 6


def test_distractors_are_vessels_calcifications_and_clips(loaded):
    step, bank = XRayInsertNodules(distractors=4), loaded()['bank']
    things = [thing for _ in range(200)
              for thing in step.draw_distractors(bank)]
    edges = np.array([1 / np.linalg.norm(t.to_box, axis=1) * 2
                      for t in things])
    contrasts = np.array([t.contrast for t in things])
    long, small = edges.max(1) >= 15, edges.max(1) <= 2.5
    metal = ~long & ~small
    assert long.sum() > small.sum() > metal.sum() > 0
    assert (edges[long].min(1) >= 2).all() and edges[long].max() <= 50
    assert ((contrasts[long] >= .015) & (contrasts[long] <= .018)).all()
    assert contrasts[small].min() >= .01 and contrasts[small].max() <= .03
    assert contrasts[metal].min() >= .03 and contrasts[metal].max() <= .1
    assert {t.label for t in things} == {-1}


def test_inserted_twice_is_the_same_and_nothing_without_a_bank(loaded):
    kwargs = dict(max_nodules=9, sizes=(5., 60.), distractors=4)
    one, two = insert(loaded(), 3, **kwargs), insert(loaded(), 3, **kwargs)
    assert len(one['gt_bboxes_3d']) > 3
    for a, b in zip(one['img'], two['img']):
        assert a.tobytes() == b.tobytes() and a.dtype == np.float32
    none = insert(dict(loaded(), bank=()), 3, **kwargs)
    np.testing.assert_array_equal(none['img'], loaded()['img'])


def test_one_view_shows_distractors_alone(loaded):
    def sample():
        results = loaded()
        return dict(results, img=results['img'][:1],
                    ct2img=results['ct2img'][:1])

    for distractors in (0, 20):
        found = insert(sample(), 1, max_nodules=9, distractors=distractors)
        assert len(found['gt_bboxes_3d']) == 3
        same = np.array_equal(found['img'][0], sample()['img'][0])
        assert same == (not distractors)


def test_views_of_different_sizes_show_the_same(loaded):
    """The second view has twice the pixels and is cut below."""
    results = loaded()
    twice = np.diag([2., 2, 1, 1])
    results['ct2img'][1] = twice @ results['ct2img'][1]
    results['img'][1] = np.zeros((150, 192, 1), np.float32)
    plain = [image.copy() for image in results['img']]
    found = insert(results, 2, max_nodules=5, sizes=(20., 30.), spread=5.)
    same = insert(loaded(), 2, max_nodules=5, sizes=(20., 30.), spread=5.)
    assert len(found['gt_bboxes_3d']) == len(same['gt_bboxes_3d']) > 3
    for view in (0, 2):
        np.testing.assert_array_equal(found['img'][view], same['img'][view])
    added = (found['img'][1] - plain[1]).reshape(75, 2, 96, 2).mean((1, 3))
    expected = (same['img'][1] - loaded()['img'][1])[:75, :, 0]
    assert expected.max() > .1
    assert added.sum() == pytest.approx(expected.sum(), rel=.01)
    assert np.abs(added - expected).max() < .15 * expected.max()


def test_a_shape_of_few_voxels_is_not_blown_up(loaded):
    """Two cubes that touch at an edge are one finding only while small."""
    blocks = np.zeros((16, 16, 16), bool)
    blocks[:7, :7], blocks[9:, 9:] = True, True
    item = dict(loaded()['bank'][0], size=np.full(3, 6.), shape=blocks)
    for size, parts in ((8., 2), (40., 1)):
        step = XRayInsertNodules(sizes=(size, size), lumps=0.,
                                 attenuation=(.01, .02))
        assert label(step.draw([item]).shape)[1] == parts


def test_solids():
    np.random.seed(0)
    depth = solids.lump(0.)
    assert (depth > 0).mean() == pytest.approx(np.pi / 6, rel=.01)
    lobes = solids.lump(.25)
    assert (lobes > 0).sum() < (depth > 0).sum()
    assert label(lobes > 0)[1] == 1
    # A shape keeps its volume without its stairs.
    for shape in (ball(16), np.ones((16, 16, 16), bool)):
        smooth = solids.smoothed(shape)
        assert smooth.shape == (32, 32, 32)
        assert (smooth > 0).mean() == pytest.approx(shape.mean(), abs=.02)
    even = solids.edge(depth)
    varied = solids.add_texture(even, .25)
    assert varied.mean() == pytest.approx(even.mean(), rel=1e-4)
    inside = even == 1
    assert varied[inside].std() == pytest.approx(.25, rel=.1)
    steps = np.diff(varied, axis=0)[inside[1:] & inside[:-1]]
    assert steps.std() < .08  # smooth
    for _ in range(20):
        cored = solids.add_core(depth, .3, .4)
        core = cored > .9
        edges = [np.ptp(row) + 1 for row in np.nonzero(core)]
        assert np.mean(edges) == pytest.approx(.4 * 32, abs=2)
        assert (cored <= even + 1e-6).all() and (depth[core] > 0).all()
        assert cored[inside].min() == pytest.approx(.3)


def ramp():
    return np.linspace(2, 6, 64 * 64, dtype=np.float32).reshape(64, 64, 1)


@pytest.mark.parametrize('amounts, expected', [
    (dict(brightness=.1), lambda x: x + .4),
    (dict(contrast=.5), lambda x: 4 + 1.5 * (x - 4)),
    (dict(gamma=2.), lambda x: 2 + 4 * ((x - 2) / 4)**2),
    (dict(blur=1.), lambda x: x),  # a ramp stays a ramp away from its edge
    ({}, lambda x: x),
])
def test_photometric_on_a_ramp(amounts, expected):
    image = ramp()
    kept = image.copy()
    changed = XRayPhotometric.apply(image, amounts)
    np.testing.assert_allclose(
        changed[8:-8, 8:-8], expected(image)[8:-8, 8:-8], atol=2e-3)
    np.testing.assert_array_equal(image, kept)
    assert changed.dtype == np.float32 and changed.shape == image.shape


def test_noise_has_the_asked_deviation():
    np.random.seed(0)
    change = XRayPhotometric.apply(ramp(), dict(noise=.05)) - ramp()
    assert change.std() == pytest.approx(.05 * 4, rel=.05)


def test_salt_and_pepper_takes_the_asked_share():
    np.random.seed(0)
    image = ramp()
    changed = XRayPhotometric.apply(image, dict(salt_and_pepper=.1))
    touched = np.abs(changed - image) > 1e-4
    assert touched.mean() == pytest.approx(.1, abs=.015)
    assert set(np.round(changed[touched], 3)) <= {2., 6.}


def test_vignetting_darkens_the_corners_only():
    flat = ramp() * 0 + 3
    flat[0, 0] = 0.
    changed = XRayPhotometric.apply(flat, dict(vignetting=.4))
    assert changed[32, 32, 0] == pytest.approx(3, abs=.01)
    assert changed[-1, -1, 0] == pytest.approx(3 * .6, rel=.05)


def test_blur_smooths_a_spot():
    image = np.zeros((21, 21, 1), np.float32)
    image[10, 10] = 1
    changed = XRayPhotometric.apply(image, dict(blur=1.5))
    assert changed[10, 10, 0] < .15 and changed.sum() == pytest.approx(
        1, rel=.05)


def test_each_is_drawn_with_its_probability():
    np.random.seed(0)
    step = XRayPhotometric(prob=.5)
    drawn = [step.draw() for _ in range(400)]
    assert len(step.amounts) == 7
    for name in step.amounts:
        assert .4 < np.mean([name in d for d in drawn]) < .6
    assert XRayPhotometric(prob=0.).draw() == {}


def test_same_seed_same_picture(loaded):
    step = TRANSFORMS.build(dict(type='XRayPhotometric', prob=1.))
    one, two = (step(loaded())['img'][0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_grid_mask_hides_squares(loaded):
    results = TRANSFORMS.build(
        dict(type='XRayGridMask', prob=1., ratio=.5))(loaded())
    hidden = [np.abs(a - b)[..., 0] > 1e-6
              for a, b in zip(results['img'], loaded()['img'])]
    share = np.mean(hidden)
    assert .1 < share < .4  # half of the step in both directions


def test_dropped_views_are_gone(loaded):
    np.random.seed(1)
    results = TRANSFORMS.build(
        dict(type='XRayViewDropout', prob=1., min_views=2))(loaded())
    assert 2 <= results['num_views'] <= 6
    assert results['gt_bboxes_view'].max(initial=0) < results['num_views']
    counts = np.bincount(results['gt_bboxes_view'],
                         minlength=results['num_views'])
    assert (counts == 3).all()  # all three boxes stay in every kept view
    exactly = TRANSFORMS.build(
        dict(type='XRayViewDropout', prob=1., min_views=3, max_views=3))
    assert {exactly(loaded())['num_views'] for _ in range(9)} == {3}


def test_pose_error_has_the_asked_size(loaded):
    np.random.seed(0)
    before = loaded()
    after = TRANSFORMS.build(
        dict(type='XRayPoseError', translation=2., rotation=.5))(loaded())
    motions = np.linalg.inv(before['ct2cam']) @ after['ct2cam']
    np.testing.assert_allclose(np.linalg.norm(motions[:, :3, 3], axis=1), 2.)
    cosine = (np.trace(motions[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    np.testing.assert_allclose(np.degrees(np.arccos(cosine)), .5, rtol=1e-6)
    assert len(np.unique(motions[:, 0, 3].round(6))) == len(motions)
    np.testing.assert_allclose(after['ct2img'],
                               after['cam2img'] @ after['ct2cam'])
    # Only what is believed of the rig is wrong, not what it saw.
    np.testing.assert_array_equal(before['img'], after['img'])
    np.testing.assert_array_equal(before['gt_bboxes'], after['gt_bboxes'])


def test_views_as_a_detector_gives_them(loaded):
    plain, original = TRANSFORMS.build(dict(type='XRayAcquisition')), loaded()
    assert all(map(np.array_equal, plain(loaded())['img'], original['img']))
    changing = TRANSFORMS.build(
        dict(type='XRayAcquisition', preset='chest-tomosynthesis',
             ranges=dict(kerma=(1.5, 30.), scatter_corrected=[.5, 1.])))
    drawn = []
    for seed in (0, 0, 1):
        sample = loaded()
        np.random.seed(seed)
        drawn.append(changing(sample))
    assert all(map(np.array_equal, drawn[0]['img'], drawn[1]['img']))
    assert not np.array_equal(drawn[0]['img'][0], drawn[2]['img'][0])
    for image, before in zip(drawn[0]['img'], original['img']):
        assert image.shape == before.shape and image.dtype == np.float32
    # Nothing but grey values changes.
    for key in ('cam2img', 'ct2cam', 'ct2img', 'gt_bboxes'):
        assert np.array_equal(drawn[0][key], original[key])
    with pytest.raises(ValueError, match='found kvp'):
        TRANSFORMS.build(dict(type='XRayAcquisition', ranges=dict(kvp=120)))


@pytest.mark.parametrize('told', [
    dict(acquisition=dict(name='chest-low', kerma=2.2)),
    dict(renderer=dict(name='measured')), dict(renderer=dict(name='joseph'))])
def test_views_of_a_detector_get_no_other(tmp_path, told, monkeypatch):
    """Noise and scatter would be there twice."""
    said = []
    monkeypatch.setattr(photometric, 'print_log',
                        lambda text, **_: said.append(text))
    make_sphere_set(tmp_path, 2, 3, 32)
    for path in tmp_path.glob('*.pkl'):
        infos = load_infos(path)
        infos['metainfo'].update(told)
        dump_infos(infos, path)
    load = dict(type='LoadXRayViews')
    plain = scans_of(tmp_path, pipeline=[load])
    changed = scans_of(tmp_path, pipeline=[load, dict(
        type='XRayAcquisition', preset='chest-radiography')])
    ideal = told == dict(renderer=dict(name='joseph'))
    for i in range(2):
        assert np.array_equal(plain[i]['img'], changed[i]['img']) != ideal
    assert ['leaves the views' in text for text in said] == (
        [] if ideal else [True])
    exposure = known_views._exposure(changed)
    assert exposure == ([22., 22.] if ideal else [2.2, 2.2]
                        if 'acquisition' in told else None)


def test_no_boxes(tmp_path):
    make_sphere_set(tmp_path, 1, 3, 32, spheres=[[]])
    item = DATASETS.build(
        dict(type='XRayDataset', data_root=str(tmp_path),
             ann_file='lidc_infos_train.pkl', pipeline=[
                 dict(type='LoadXRayViews'),
                 dict(type='XRayRandomFlip', prob=1.),
                 dict(type='XRayRandomRotate'),
                 dict(type='XRayViewDropout', prob=1., min_views=1),
                 dict(type='XRayPhotometric', prob=1.),
                 dict(type='XRayGridMask', prob=1.),
                 dict(type='XRayInsertNodules'),
                 dict(type='ResizeXRay', scale=(16, 16)),
                 dict(type='PackXRayInputs')]))[0]
    assert item['inputs']['img'].shape[1:] == (1, 16, 16)
    assert item['data_samples'].gt_instances.bboxes.shape == (0, 4)


def test_views_of_different_size_need_a_resize(loaded):
    results = loaded()
    results['img'][1] = results['img'][1][:48]
    with pytest.raises(DataError, match='add ResizeXRay'):
        TRANSFORMS.build(dict(type='PackXRayInputs'))(results)


def test_packed_sample(loaded):
    packed = TRANSFORMS.build(dict(type='PackXRayInputs'))(loaded())
    sample = packed['data_samples']
    assert packed['inputs']['img'].shape == (6, 1, 96, 96)
    assert sample.gt_instances.view_ids.dtype == torch.int64
    assert sample.metainfo['token'].startswith('LIDC-IDRI')


def test_sphere_images_are_what_they_say():
    # The oracle of this file: a central ray crosses the whole diameter.
    from projects.core.rig import Rig
    view = Rig.circle(1, image_size=65).views[0]
    image = chord_lengths([0, 0, 0], 20, view)
    assert image[32, 32] == pytest.approx(40)
    assert image[0, 0] == 0
