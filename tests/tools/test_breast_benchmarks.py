"""What the benchmarks of mammograms say."""

import boxes_in_views
import breast_pairs
import breast_spectrum
import cv2
import landmarks
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from data_converters.breast import power_law_noise
from projects.ag_rcnn.relations import CoOccurrence
from projects.core.evaluation.metric_images import recall_difference
from projects.core.files import DataError, dump_json, load_json
from tests.helpers.breasts import make_breast_set
from tests.helpers.mammograms import (
    DRAWN_LINE,
    DRAWN_NIPPLE,
    drawn_breast,
)
from tests.helpers.spheres import make_sphere_set


def found_in_space(root, found):
    """Figures by view of boxes that a function makes of a scan's spheres."""
    exams, classes = boxes_in_views.exams_of(str(root))
    return boxes_in_views.figures_of(
        {exam['token']: dict(predictions=found(n))
         for n, exam in enumerate(exams)}, exams, classes)


def test_boxes_in_space_are_measured_in_views(tmp_path):
    spheres = [[((20., -10., 15.), 12.), ((-40., 30., 0.), 10.)], [],
               [((0., 50., -30.), 9.)]]
    make_sphere_set(tmp_path, num_scans=3, split='test', spheres=spheres,
                    ignored=False)

    def true(n):
        return [dict(bbox_3d=[*centre, *[2 * radius] * 3, 0], score=.9)
                for centre, radius in spheres[n]]

    def aside(n):
        return [dict(bbox_3d=[0, -60, 60, 20, 20, 20, 0], score=.5)] + true(n)
    right, one_wrong, nothing = (found_in_space(tmp_path, found)
                                 for found in (true, aside, lambda n: []))
    assert right['R@0.5'] == right['R@0.5_centre'] == 1
    assert right['num_images'] == 15 and right['num_gt'] == 15
    # The wrong box comes last, and stands in each view.
    assert one_wrong['R@0.5'] == 1
    assert sum(not box['match'] + 1 for image in one_wrong['images']
               for box in image['predictions']) == 15
    assert nothing['R@4'] == 0
    assert recall_difference(right, nothing)[0] == 1


def test_a_box_that_no_view_shows(tmp_path):
    make_sphere_set(tmp_path, num_scans=1, split='test',
                    spheres=[[((0., 0., 0.), 12.)]])
    full = found_in_space(tmp_path, lambda n: [
        dict(bbox_3d=[0, 0, 900, 20, 20, 20, 0], score=.9)])
    assert not any(image['predictions'] for image in full['images'])


def test_boxes_of_other_scans(tmp_path):
    make_sphere_set(tmp_path, num_scans=1, split='test',
                    spheres=[[((0., 0., 0.), 12.)]])
    with pytest.raises(DataError, match='expected the scans of the test'):
        boxes_in_views.figures_of({}, [dict(token='a')], ['nodule'])


def test_landmarks_of_a_set(tmp_path, capsys):
    (tmp_path / 'images').mkdir()
    images = []
    for number, (view, truth) in enumerate([
            ('CC', dict(nipple=DRAWN_NIPPLE, pectoral=None)),
            ('MLO', dict(nipple=DRAWN_NIPPLE, pectoral=DRAWN_LINE)),
            ('MLO', None)]):
        name = f'images/{number}.png'
        cv2.imwrite(str(tmp_path / name), drawn_breast(view)
                    if truth else drawn_breast(view) * 0)
        images.append(dict(
            file_name=name, view=view, laterality='L', pixel_mm=.5,
            **(dict(truth=truth) if truth else {})))
    dump_json(dict(images=images),
              tmp_path / 'annotations' / 'instances_test.json')
    landmarks.main(['--data-root', str(tmp_path),
                    '--out-dir', str(tmp_path / 'out')])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split('|')[1:-1]]
            for line in printed.splitlines() if line.startswith('|')]
    assert [row[:3] for row in rows[1:]] == [
        ['nipple, CC', '1', '1'], ['nipple, MLO', '2', '1'],
        ['pectoral line, MLO', '2', '1']]
    assert all(float(row[3]) < 4 and row[5] == '100.0%' for row in rows[1:])
    assert '2: contour: expected a breast' in printed
    told = load_json(tmp_path / 'out/landmarks.json')
    assert told[0]['nipple'] < 2 and told[1]['pectoral'] < 2
    assert (tmp_path / 'out/1.png').exists()


def test_a_line_is_as_far_as_its_points():
    true = np.array([[10., 0.], [0., 20.]])
    assert landmarks.line_error(true, true) == pytest.approx(0)
    moved = true + [3., 0.]
    assert landmarks.line_error(moved, true) == pytest.approx(
        3 * 20 / np.hypot(10, 20))


def test_a_set_without_images(tmp_path):
    with pytest.raises(SystemExit, match='expected annotations'):
        landmarks.main(['--data-root', str(tmp_path)])


def test_exponent_of_a_known_spectrum():
    noise = power_law_noise((96, 96), 3., np.random.default_rng(0))
    assert breast_spectrum.exponent(noise, .7) == pytest.approx(3, abs=.25)


def test_the_square_lies_in_the_breast():
    left = drawn_breast('CC')
    taken = breast_spectrum.square(left, 'L', .5)
    assert taken.shape == (120, 120) and taken.min() > .3
    assert (breast_spectrum.square(left[:, ::-1], 'R', .5) == taken).all()
    with pytest.raises(SystemExit, match='expected CC images'):
        breast_spectrum.main(['--data-root', 'no/such/folder'])


# ------------------------------------------------------------ pairs of views
def test_like_nodes_are_told_from_chance():
    nodes = np.array([[8., 8.], [24., 8.], [40., 8.], [56., 8.]])

    def at(*columns):
        boxes = torch.tensor([[x - 2, 6, x + 2, 10] for x in columns])
        return DetDataSample(metainfo=dict(nodes=nodes, view='CC'),
                             gt_instances=InstanceData(bboxes=boxes.float()))

    same = [(at(x), 0, at(x), 0) for x in (8, 24, 40, 56)]
    told = breast_pairs.agreement(same, 4)
    assert told['same_node'] == told['same_line'] == 1
    assert told['same_node_by_chance'] == .25
    other = [(at(8, 24), 1, at(56), 0)]
    assert breast_pairs.agreement(other, 4)['same_node'] == 0
    assert breast_pairs.line_of(np.arange(26), 22).tolist() == [
        0, *[1] * 7, *[2] * 7, *[3] * 7, *[4] * 4]
    relation = CoOccurrence((4, 4), k=1)
    relation.counts[1, 3] = 1
    assert breast_pairs.support(other, relation) == dict(
        related=1, all_related=1 / 16)
    assert breast_pairs.support(same, relation)['related'] == 0


def test_what_one_view_could_tell_the_other():
    def image(view, *found):
        return dict(patient='P', laterality='L', view=view, ground_truth=[
            {} for _ in found], predictions=[
                dict(match=row, score=score)
                for row, score in enumerate(found)])
    results = dict(
        images=[image('CC', .9, .9, .1), image('MLO', .9, .2, .1)],
        by_class=dict(mass=dict(froc=dict(
            threshold=[.9, .5, .1],
            false_positives_per_image=[0, .5, 2]))))
    assert breast_pairs.seen(results) == dict(
        in_an_image=.5, in_both_views=pytest.approx(1 / 3),
        in_one_view_alone=pytest.approx(1 / 3), findings=3)


def test_a_set_without_pairs_is_told(tmp_path):
    """Without landmarks nothing can be said of nodes."""
    for split in ('train', 'test'):
        make_breast_set(tmp_path, 2, split)
    with pytest.raises(SystemExit, match='instances_test.json: expected find'):
        breast_pairs.main(['--data-root', str(tmp_path)])
