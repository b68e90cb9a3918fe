"""The served page with a released model, in a real browser."""

import base64
import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tifffile

from tests.helpers.commands import BLADE, ROOT, command_line, error_of, tool
from tests.helpers.files import write_dicom

# What a hand does: a DataTransfer with files, dropped on the page.
DROP = '''files => {
    const data = new DataTransfer();
    for (const [name, code] of files) {
        const bytes = Uint8Array.from(atob(code), c => c.charCodeAt(0));
        data.items.add(new File([bytes], name));
    }
    document.getElementById('drop').dispatchEvent(new DragEvent('drop',
        {dataTransfer: data, bubbles: true, cancelable: true}));
}'''


@pytest.fixture
def served(tmp_path, blades):
    """Address of the page, and the folder of its temporary files."""
    began = subprocess.Popen(
        [sys.executable, *command_line('serve.py', *BLADE, '--rig',
                                       blades / 'rig.json', '--port', 0)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path),
                 OMP_NUM_THREADS='1', PATH='/usr/bin:/bin', HOME='/tmp'))
    line = began.stdout.readline()
    assert 'for this machine alone' in line, began.stderr.read()
    yield line.split()[0], tmp_path
    began.send_signal(signal.SIGINT)
    out, err = began.communicate(timeout=30)
    assert (began.returncode, out, err) == (0, 'ended\n', '')
    assert not list(tmp_path.glob('mv2d-xray-serve-*'))


def kept(folder):
    return [p for p in folder.glob('mv2d-xray-serve-*/**/*') if p.is_file()]


def coded(paths):
    return [[p.name, base64.b64encode(p.read_bytes()).decode()]
            for p in paths]


def test_from_drop_to_download(browser, served, blades, tmp_path):
    address, temporary = served
    views = sorted((blades / 'set/images/blade_001').glob('*.png'))
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(120_000)
    problems = []
    page.on('pageerror', lambda e: problems.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and
            problems.append(m.text))
    page.on('request', lambda r: r.url.startswith((address, 'data:', 'blob:'))
            or problems.append(r.url))
    page.goto(address)
    page.locator('body[data-ready]').wait_for()
    # One view is missing.
    page.evaluate(DROP, coded(views[:-1]))
    assert page.locator('#files li').count() == 9
    page.click('#find')
    page.locator('#status.wrong').wait_for()
    assert 'found none for CAM_09' in page.inner_text('#status')
    page.evaluate(DROP, coded(views[-1:]))
    page.fill('#name', 'blade <b>1</b>')
    assert page.inner_text('#rig') == 'rig'
    page.click('#find')
    report = page.frame_locator('#report')
    for part in ('views', 'scene3d'):
        report.locator(f'#{part}').scroll_into_view_if_needed()
        report.locator(f'#{part}.js-plotly-plot').wait_for()
    assert report.locator('#views image').count() == 10
    assert page.inner_text('#title') == 'blade_b_1_b'
    # These views are ideal, those of the training were not.
    assert 'as it was trained on, with ' in page.inner_text('#notes')
    assert kept(temporary)

    def download(form, threshold):
        page.frame(url=lambda u: u.endswith('/report')).evaluate('''t => {
            const slider = document.getElementById('threshold');
            slider.value = t; slider.dispatchEvent(new Event('input')); }''',
            threshold)
        told = report.locator('#told').inner_text()
        with page.expect_download() as waited:
            page.click(f'[data-format={form}]')
        waited.value.save_as(tmp_path / 'got')
        return int(told.split()[0]), (tmp_path / 'got').read_text()

    counts = []
    for threshold in (.1, .6):
        count, table = download('csv', threshold)
        assert table.count('\nblade_b_1_b,') == count
        count, marks = download('slicer', threshold)
        assert len(json.loads(marks)['markups']) == count
        counts.append(count)
    assert counts[0] > counts[1] > 0
    assert problems == []
    # The same as the command finds.
    done = tool('infer.py', *(ROOT / m for m in BLADE), '--images', *views,
                '--rig', blades / 'rig.json', '--out', tmp_path / 'b.json',
                '--device', 'cpu')
    assert done.returncode == 0
    assert len(json.loads((tmp_path / 'b.json').read_text())['boxes']
               ) == counts[0]
    page.goto('about:blank')  # the page is left
    for _ in range(100):
        if not kept(temporary):
            break
        time.sleep(.05)
    assert kept(temporary) == []
    page.close()


def test_a_detectors_images_from_drop_to_boxes(browser, served, blades,
                                               tmp_path):
    """Counts as TIFF, with dark and flat; as one raw file, with its shape;
    as DICOM, with an open field."""
    address, _ = served
    names = sorted((blades / 'set/images/blade_001').glob('*.png'))
    integrals = np.stack([cv2.imread(str(p), -1) for p in names]) * (
        np.float32(16 / 65535))
    counts = (60000 * np.exp(-integrals)).astype(np.uint16)
    cases = {name: tmp_path / name for name in ('tiff', 'raw', 'dicom')}
    for folder in cases.values():
        folder.mkdir()
    for path, image in zip(names, counts):
        tifffile.imwrite(cases['tiff'] / f'{path.stem}.tif', image + 100)
    for name, level in (('dark', 100), ('flat', 60100)):
        tifffile.imwrite(cases['tiff'] / f'{name}.tif', np.full(
            counts.shape[1:], level, np.uint16))
    counts.tofile(cases['raw'] / 'scan.raw')
    write_dicom(cases['dicom'] / 'scan.dcm', counts, relation='')
    field = {'#open_field': '0 0 256 8'}
    told = {
        'tiff': ({}, '10 views of TIFF uint16; -ln((image - dark)'),
        'raw': ({**field, '#shape': '10 256 256'},
                '10 views of raw binary uint16'),
        'dicom': (field, '10 views of DICOM uint16; -ln((image - dark) / '
                  'open field)')}
    page = browser.new_page()
    page.set_default_timeout(120_000)
    counted = set()
    for name, (said, sentence) in told.items():
        page.goto(address)
        page.locator('body[data-ready]').wait_for()
        page.evaluate(DROP, coded(sorted(cases[name].iterdir())))
        page.click('#images summary')
        for field_name, text in said.items():
            page.fill(field_name, text)
        page.click('#find')
        page.locator('#notes').wait_for()
        assert sentence in page.inner_text('#notes')
        report = page.frame_locator('#report')
        report.locator('#views.js-plotly-plot').wait_for()
        counted.add(report.locator('#told').inner_text())
    assert len(counted) == 1
    page.close()


def test_what_cannot_be_served(tmp_path, blades):
    assert 'expected a model of X-ray views' in error_of(tool(
        'serve.py', 'configs/ct_slices/'
        'faster-rcnn_small_neighbours_1500i_demo-v2-slices.py', 'none.pth'))
    rig = blades / 'rig.json'
    assert 'found "rig" twice' in error_of(
        tool('serve.py', *BLADE, '--rig', rig, rig))
    assert 'expected an address that is free' in error_of(
        tool('serve.py', *BLADE, '--port', 99999))
