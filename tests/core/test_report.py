"""The report of a test, in a real browser."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.evaluation.ranking import curves_of, evaluate
from projects.core.files import DataError, dump_json, load_json
from projects.core.infos import build_coco, dump_infos
from projects.core.report import write_object_report
from projects.core.report.tested import write_report
from projects.core.results import dump_results, results_of
from projects.core.rig import Rig
from tests.helpers.spheres import make_sphere_set

# Text from outside must stay text.
HOSTILE = '</script><img src=x onerror="document.title=\'broken\'">'


def boxes(array):
    return LiDARInstance3DBoxes(
        torch.as_tensor(np.array(array, float).reshape(-1, 7)).float(),
        origin=(.5, .5, .5))


FIGURES = ('figure-froc', 'figure-precision', 'figure-sizes',
           'figure-training')


@pytest.fixture(scope='module')
def tested(tmp_path_factory):
    """Results on three scans of two spheres and one of none: the first is
    found with 0.9, 2 mm off; a false positive has 0.5, another 0.2."""
    root = tmp_path_factory.mktemp('report')
    two = [((30., 10, 0), 14.), ((-40., 0, 20), 9.)]
    infos = make_sphere_set(root, 4, 4, 64, spheres=[two, two, two, []])
    infos['data_list'][1]['token'] = HOSTILE
    dump_infos(infos, root / 'lidc_infos_train.pkl')
    dump_json(build_coco(infos),
              root / 'lidc_infos_train_2d_anno.coco.json')
    metric = Indication3DMetric()
    metric.dataset_meta = dict(classes=('nodule', ))
    for sample in infos['data_list']:
        truth = np.array([i['bbox_3d'] for i in sample['instances']],
                         float).reshape(-1, 7)
        found = np.concatenate([truth[:1] + [2, 0, 0, 0, 0, 0, 0],
                                [[-80., 80, 80, 9, 9, 9, 0],
                                 [80., 80, 80, 9, 9, 9, 0]]])
        metric.process({}, [dict(
            token=sample['token'],
            pred_instances_3d=dict(
                bboxes_3d=boxes(found),
                scores_3d=torch.tensor([.9, .5, .2][-len(found):]),
                labels_3d=torch.zeros(len(found), dtype=int)),
            eval_ann_info=dict(
                gt_bboxes_3d=boxes(truth),
                gt_labels_3d=np.zeros(len(truth), int),
                ignored_bboxes_3d=boxes([])))])
    metric.compute_metrics(metric.results)
    dump_results(root / 'results.json', metric.full_results,
                 dict(ann_file=str(root / 'lidc_infos_train.pkl')))
    logs = root / 'work' / 'now' / 'vis_data'
    logs.mkdir(parents=True)
    logs.joinpath('scalars.json').write_text('\n'.join(
        json.dumps(dict(step=s, loss=9. / s, lr=.01)) for s in (1, 2, 3)))
    return root


@pytest.fixture(scope='module')
def page_file(tested):
    assert write_report(tested / 'results.json', tested / 'report.html',
                        work_dir=str(tested / 'work')) == 4
    return tested / 'report.html'


@pytest.fixture(scope='module')
def opened(browser, page_file):
    """The page at a width, opened once; what went wrong or asked for the
    network is in its ``problems``."""
    pages = {}

    def open_at(width):
        if width not in pages:
            page = browser.new_page(viewport=dict(width=width, height=900))
            page.set_default_timeout(180_000)
            page.problems = []
            page.on('console', lambda m: m.type == 'error' and
                    page.problems.append(m.text))
            page.on('pageerror', lambda e: page.problems.append(str(e)))
            page.on('request', lambda r: r.url.startswith('http') and
                    page.problems.append(r.url))
            page.goto(page_file.as_uri())
            for part in (*FIGURES, 'views', 'scene3d'):
                page.locator(f'#{part}').scroll_into_view_if_needed()
                page.locator(f'#{part}.js-plotly-plot').wait_for()
            page.wait_for_function('document.body.dataset.drawn')
            pages[width] = page
        return pages[width]

    yield open_at
    for page in pages.values():
        page.close()


def moved(page, threshold):
    """Set the slider as a hand does; what is told then."""
    page.evaluate('''value => {
        const slider = document.getElementById('threshold');
        slider.value = value; slider.dispatchEvent(new Event('input'));
    }''', threshold)
    page.wait_for_function('value => document.body.dataset.drawn?.endsWith('
                           '"@" + value)', arg=threshold)
    return page.inner_text('#told')


def drawn(page):
    """Boxes in all views and points of lines in the scene, by kind."""
    return page.evaluate('''() => {
        const count = {};
        for (const id of ['views', 'scene3d'])
            for (const trace of document.getElementById(id).data) {
                const key = id + ' ' + trace.name;
                count[key] = (count[key] || 0)
                    + trace.x.filter(v => v === null).length;
            }
        return count; }''')


def test_strict_figures_stand_beside_the_3d_map(tested, page_file):
    full = load_json(tested / 'results.json')
    page = page_file.read_text()
    assert ('3D mAP</th><th scope="col">AP at 3D IoU 0.25</th><th scope="col"'
            '>AP at 3D IoU 0.5</th><th scope="col">AP within the radius</th>'
            in page)
    for name in ('AP_iou0.25', 'AP_iou0.5', 'AP_3d_radius'):
        assert (f'<td>{full[name]:.3f}<br><small>{full[f"{name}_low"]:.3f} '
                f'to {full[f"{name}_high"]:.3f}</small></td>') in page


def test_what_was_trained_on_is_on_the_page(tested, tmp_path):
    full = load_json(tested / 'results.json')
    for count, shown in ((2, True), (0, False), (None, False)):
        full['source']['patients_seen_in_training'] = count
        dump_json(full, tmp_path / 'r.json')
        write_report(tmp_path / 'r.json', tmp_path / 'r.html')
        page = (tmp_path / 'r.html').read_text()
        assert ('2 of the tested patients or parts were trained on: the '
                'figures are flattered' in page) is shown
    assert 'patients_seen_in_training: not known' in page


def test_false_positives_of_a_class_without_findings(tested, tmp_path):
    results = load_json(tested / 'results.json')
    line = '{}: no findings that count, 50 false positives at any score'
    results['classes_without_findings'] = [
        dict(class_name='a<b', predictions=60, false_positives=50,
             highest_score=.8)]
    dump_json(results, tmp_path / 'r.json')
    write_report(tmp_path / 'r.json', tmp_path / 'r.html')
    assert line.format('a&lt;b') in (tmp_path / 'r.html').read_text()


@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_renders_and_fits(opened, width):
    page = opened(width)
    assert page.problems == []
    assert page.evaluate(
        'document.documentElement.scrollWidth <= innerWidth')
    assert page.title().startswith('MV2D-Xray: 4 scans')
    for figure in FIGURES:
        assert page.locator(f'#{figure} svg .trace').count() > 0
    images = page.locator('#views image')
    assert images.count() == 4
    assert page.locator('#scene3d canvas').count() >= 1
    assert page.locator('table tr').count() == 5


def test_the_page_opens_with_what_is_in_the_window(browser, page_file):
    page = browser.new_page(viewport=dict(width=390, height=600))
    page.set_default_timeout(180_000)
    page.goto(page_file.as_uri())
    page.locator('#figure-froc.js-plotly-plot').wait_for()
    assert page.locator('#scene3d.js-plotly-plot').count() == 0
    page.close()


def test_the_slider_changes_views_and_scene_together(opened):
    page = opened(1280)
    findings = 2
    page.select_option('#scan', '0')
    told = {t: (moved(page, t), drawn(page)) for t in (.1, .3, .95)}
    assert told[.1][0] == f'1 of {findings} found, 2 false positives'
    assert told[.3][0] == f'1 of {findings} found, 1 false positive'
    assert told[.95][0] == f'0 of {findings} found, 0 false positives'
    for threshold, hits, wrong in ((.1, 1, 2), (.3, 1, 1), (.95, 0, 0)):
        count = told[threshold][1]
        assert count['views hit'] == 4 * hits
        assert count['views false positive'] == 4 * wrong
        assert count['views found finding'] == 4 * hits
        assert count['views missed finding'] == 4 * (findings - hits)
        # Twelve edges a box.
        assert count['scene3d hit'] == 12 * hits
        assert count['scene3d false positive'] == 12 * wrong
        assert count['scene3d missed finding'] == 12 * (findings - hits)
    assert page.problems == []


def test_keyboard_and_text_for_those_who_do_not_see(opened):
    page = opened(1280)
    moved(page, .3)
    page.focus('#threshold')
    page.keyboard.press('ArrowRight')
    assert page.input_value('#threshold') == '0.305'
    page.focus('#next')
    before = page.input_value('#scan')
    page.keyboard.press('Enter')
    page.wait_for_function('b => document.getElementById("scan").value !== b',
                           arg=before)
    for name in ('views', 'scene3d'):
        label = page.get_attribute(f'#{name}', 'aria-label')
        assert 'found' in label and 'false positive' in label
    assert page.get_attribute('#figure-froc', 'aria-label') == 'FROC'
    assert page.locator('label:has(#scan), label:has(#threshold)').count() == 2


def test_text_from_outside_stays_text(opened, page_file):
    page = opened(1280)
    options = page.locator('#scan option').all_inner_texts()
    assert any(HOSTILE in text for text in options)
    assert page.title().startswith('MV2D-Xray')
    assert page.locator('img').count() == 0


def test_the_file_stands_alone_and_is_small(page_file):
    text = page_file.read_text()
    assert not [word for word in ('src="http', '@import', 'rel="stylesheet')
                if word in text]
    # Four views of 64 px here; 160 scans of ten views of 320 px stay under
    # 60 MB if one scan's ten are below 0.34 MB: 25 kB a view and boxes.
    assert page_file.stat().st_size < 6e6


@pytest.mark.parametrize('count', [0, 1, 40])
def test_an_object_without_truth(browser, tmp_path, count):
    """Found boxes are neither hits nor false; the slider is the same."""
    rig = Rig.circle(4, image_size=64)
    boxes = np.tile([0., 0, 0, 9, 9, 9, 0], (count, 1))
    boxes[:, 0] = np.linspace(-50, 50, count)
    scores = np.linspace(.9, .1, count)
    write_object_report(
        tmp_path / 'r.html', HOSTILE, np.random.rand(4, 64, 64),
        np.stack([v.ct2img for v in rig.views]), [v.name for v in rig.views],
        boxes, scores, ['pore', '{{DATA}}'] * 20, 'model x', .5)
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(180_000)
    problems = []
    page.on('pageerror', lambda e: problems.append(str(e)))
    page.goto((tmp_path / 'r.html').as_uri())
    for part in ('views', 'scene3d'):
        page.locator(f'#{part}').scroll_into_view_if_needed()
        page.locator(f'#{part}.js-plotly-plot').wait_for()
    page.wait_for_function('document.body.dataset.drawn')
    for threshold in (.05, .5):
        kept = int((scores >= threshold).sum())
        assert moved(page, threshold) == (
            f'{kept} box' if kept == 1 else f'{kept} boxes')
        assert drawn(page)['views box'] == 4 * kept
        assert drawn(page)['scene3d box'] == 12 * kept
        assert not [k for k in drawn(page) if 'positive' in k]
    assert problems == []
    assert page.title() == f'MV2D-Xray: {HOSTILE}'
    assert not page.locator('#scan, table').first.is_visible()
    page.close()


def test_curves_are_those_of_the_figures(tested):
    full = load_json(tested / 'results.json')
    scans = results_of(full, 'nodule')
    figures = evaluate(scans, 0)
    assert figures['mAP_3d'] == pytest.approx(full['mAP_3d'])
    assert figures['CPM'] == pytest.approx(full['CPM'])
    curves = curves_of(scans)
    rate, found = curves['froc']
    assert found[-1] == figures['froc']['sensitivity'][-1]
    recall, precision = curves[5.]
    np.testing.assert_allclose(recall, np.arange(1, 4) / 6)
    assert precision == [1.] * 3
    assert rate == [0.] * 3


def test_distances_of_the_config_and_hits_at_the_end(tested, tmp_path):
    full = load_json(tested / 'results.json')
    full['distances_mm'] = [1., 3.]
    for part in (full, *full['by_size'].values()):
        part.update(AP_1mm=.5, AP_3mm=.5)
    scan = full['scans'][0]
    hit = next(p for p in scan['predictions'] if p['match'] >= 0)
    wrong = next(p for p in scan['predictions'] if p['match'] < 0)
    scan['predictions'] = [dict(wrong, score=.95)] * 40 + [hit]
    dump_json(full, tmp_path / 'r.json')
    write_report(tmp_path / 'r.json', tmp_path / 'r.html')
    text = (tmp_path / 'r.html').read_text(encoding='utf-8')
    data = json.loads(re.search(
        r'<script[^>]* id="data">(.*?)</script>', text, re.DOTALL)[1])
    names = [t['name'] for t in data['figures']['precision']['data']]
    assert names == ['1 mm', '3 mm']
    found, missed = data['figures']['sizes']['data']
    assert len(found['x']) == 3 and len(missed['x']) == 3


def test_a_scan_of_two_classes_is_one_scan(tested, tmp_path):
    full = load_json(tested / 'results.json')
    full['scans'] += [dict(scan, class_name='pore') for scan in full['scans']]
    dump_json(full, tmp_path / 'r.json')
    assert write_report(tmp_path / 'r.json', tmp_path / 'r.html') == 4
    assert 'MV2D-Xray: 4 scans' in (tmp_path / 'r.html').read_text('utf-8')


def test_nothing_found_and_nothing_to_find(tested, tmp_path):
    full = load_json(tested / 'results.json')
    for scan in full['scans']:
        scan.update(predictions=[], ground_truth=[])
    dump_json(full, tmp_path / 'none.json')
    assert write_report(tmp_path / 'none.json', tmp_path / 'none.html') == 4


@pytest.mark.parametrize('change, text', [
    (lambda r: r.pop('scans'), 'field "scans": expected a list'),
    (lambda r: r.pop('source'), 'field "source.ann_file": expected'),
    (lambda r: r['scans'][0].update(token='other'), 'expected scan other'),
])
def test_results_that_are_none(tested, tmp_path, change, text):
    full = copy.deepcopy(load_json(tested / 'results.json'))
    change(full)
    dump_json(full, tmp_path / 'r.json')
    with pytest.raises(DataError, match=text):
        write_report(tmp_path / 'r.json', tmp_path / 'r.html')
    assert not (tmp_path / 'r.html').exists()
