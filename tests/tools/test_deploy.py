"""A deployed model gives the boxes of the model that it was."""

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import threading
import venv
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import rigs
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample

from projects.core import geometry
from projects.core.boxes import gravity_boxes
from projects.core.deployed import DeployedFinder, DeployedModel
from projects.core.engine.checkpoints import load_checkpoint, load_model
from projects.core.engine.configs import load_config
from projects.core.files import DataError, load_json
from projects.core.inference import images_of
from projects.core.projections import LEVEL
from projects.core.rig import Rig
from tests.helpers.commands import ROOT, error_of, tool

NAMES = {'mv2d-xray_small_volume_5000i_quick-v2': 1.,
         'mv2d-xray_small_volume_600i_blade': .3,
         'triangulation_centernet_5400i_quick-v2': 1.}
# Of two sources, whose boxes are fused; its weights are not released.
FUSED = 'mv2d-xray_small_roi-volume_3400i_quick-v2'
OTHERS = ['faster-rcnn_small_neighbours_6000i_quick-v2-slices',
          'faster-rcnn_small_slabs_3000i_quick-v2-slabs']
RIGS = [dict(num_views=10, image_size=128), dict(num_views=2, image_size=64),
        dict(num_views=3, image_size=102, image_height=77, arc=120.),
        dict(num_views=4, image_size=96, radius=500., start=17.),
        dict(num_views=7, image_size=80, arc=60.)]


def paths(name):
    return (ROOT / f'configs/mv2d_xray/{name}.py',
            ROOT / f'checkpoints/{name}.pth')


def fused_checkpoint(path):
    """The 2D stage that the training of both sources starts from, and the
    released head of the volume, whatever it makes of these features."""
    volume, stage = (load_checkpoint(str(paths(name)[1])) for name in (
        'mv2d-xray_small_volume_5000i_quick-v2',
        'triangulation_centernet_5400i_quick-v2'))
    model = MODELS.build(load_config(str(paths(FUSED)[0])).model)
    state = model.state_dict()
    for name in state:
        part = volume if name.startswith('volume_head') else stage
        if name in part['state_dict'] and (
                part['state_dict'][name].shape == state[name].shape):
            state[name] = part['state_dict'][name]
    torch.save(dict(meta=stage['meta'], state_dict=state), path)
    return path


@pytest.fixture(scope='module', params=[*NAMES, FUSED])
def both(request, deployed, tmp_path_factory):
    """A released model, or one of two sources, as it was deployed and as it
    was, and the scale of its world."""
    config, checkpoint = paths(request.param)
    if request.param == FUSED:
        checkpoint = fused_checkpoint(
            tmp_path_factory.mktemp('fused') / checkpoint.name)
    out = deployed(request.param, checkpoint)
    assert {p.name for p in out.iterdir()} == {'model.onnx', 'model.json'}
    model, _ = load_model(load_config(str(config)), str(checkpoint), 'cpu')
    return (DeployedModel(out, 1), model, checkpoint,
            NAMES.get(request.param, 1.))


def uneven_rigs(scale, triangulated):
    """Those that are no circle, in small. On the arc triangulated depths are
    those of the rounding: 0.008 mm apart."""
    return [rig.resized(rig.views[0].width // 3, rig.views[0].height // 3)
            for name, rig in rigs.rigs(rigs.PITCH * scale).items()
            if not triangulated or name != 'arc']


def views_of(rig, scale, seed):
    """Bright spots on a slope, (V, H, W) line integrals."""
    draw = np.random.default_rng(seed)
    view = rig.views[0]
    y, x = np.mgrid[:view.height, :view.width] + .5
    images = np.tile(1 + x / view.width, (len(rig), 1, 1))
    points = np.c_[draw.uniform(-60, 60, (6, 3)) * scale, np.ones(6)]
    for image, camera in zip(images, rig.views):
        for u, v, depth, _ in points @ camera.ct2img.T:
            near = (x - u / depth)**2 + (y - v / depth)**2
            image += .5 * np.exp(-near / 8)
    return np.float32(images + draw.normal(0, .01, images.shape))


def expected(model, images, ct2img):
    matrix = ct2img
    sample = Det3DDataSample(metainfo=dict(
        cam2img=matrix, ct2cam=matrix, ct2img=matrix,
        img_shape=images.shape[1:]))
    with torch.no_grad():
        found = model.test_step(dict(
            inputs=dict(img=[torch.from_numpy(images)[:, None]]),
            data_samples=[sample]))[0].pred_instances_3d
    return (gravity_boxes(found.bboxes_3d).numpy(), found.scores_3d.numpy(),
            found.labels_3d.numpy())


def assert_same(found, expected):
    """The same boxes, scores and labels; of like scores in any order."""
    boxes, scores, labels = expected
    assert len(found[0]) == len(boxes)
    far = (np.abs(found[0][:, None] - boxes).max(-1)
           + np.abs(found[1][:, None] - scores))
    order = far.argmin(0)
    assert sorted(order) == list(range(len(boxes)))
    np.testing.assert_allclose(found[0][order], boxes, atol=.01)
    np.testing.assert_allclose(found[1][order], scores, atol=1e-4)
    np.testing.assert_array_equal(found[2][order], labels)


def test_of_each_released_checkpoint_it_is_known_whether_it_is_deployed():
    assert {path.stem for path in (ROOT / 'checkpoints').glob('*.pth')} == {
        *NAMES, *OTHERS}


def test_same_boxes_for_any_rig(both):
    deployed, model, _, scale = both
    total, draw = 0, np.random.default_rng(0)
    for seed, options in enumerate(RIGS):
        rig = Rig.circle(**{'detector_width': 800. * scale, **options})
        images = views_of(rig, scale, seed)
        ct2img = np.stack([
            view.cam2img @ geometry.moved_camera(
                view.ct2cam, draw.normal(0, .05, 3), draw.normal(0, 5, 3))
            for view in rig.views]) if seed % 2 else np.stack(
                [view.ct2img for view in rig.views])
        found = deployed.predict(images, ct2img)
        assert_same(found, expected(model, images, ct2img))
        total += len(found[0])
    assert total > 10


def test_same_boxes_for_rigs_that_are_no_circle(both):
    deployed, model, _, scale = both
    for seed, rig in enumerate(uneven_rigs(
            scale, deployed.content['triangulation'])):
        images = views_of(rig, scale, seed)
        ct2img = np.stack([view.ct2img for view in rig.views])
        found = deployed.predict(images, ct2img)
        assert len(found[0])
        assert_same(found, expected(model, images, ct2img))


@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    """The command of the runtime's wheel in an environment that has, of all
    packages, the few that the wheel names."""
    root = tmp_path_factory.mktemp('runtime')
    source = root / 'source'  # a build leaves files beside what it builds
    shutil.copytree(ROOT / 'runtime', source / 'runtime',
                    ignore=shutil.ignore_patterns('build', '*.egg-info'))
    for name in ('projects', 'tools'):
        (source / name).symlink_to(ROOT / name)

    def call(*command):
        done = subprocess.run([str(c) for c in command], cwd=root, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    call(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-index',
         '--no-build-isolation', '-w', root, source / 'runtime')
    venv.create(root / 'venv', with_pip=False)
    wheel, = root.glob('*.whl')
    call(sys.executable, '-m', 'pip', '--python', root / 'venv', 'install',
         '--no-deps', '--no-index', wheel)
    packages = next((root / 'venv').glob('lib/python*/site-packages'))
    here = Path(sysconfig.get_paths()['purelib'])
    for name in ('numpy', 'numpy.libs', 'onnxruntime', 'cv2', 'tifffile',
                 'opencv_python_headless.libs'):
        if (here / name).exists():
            (packages / name).symlink_to(here / name)
    return root / 'venv' / 'bin' / 'mv2d-xray-run'


@pytest.mark.slow
def test_the_installed_runtime_gives_the_same_boxes(both, runtime, tmp_path):
    deployed, model, _, scale = both
    for seed, options in enumerate(RIGS[::3]):
        rig = Rig.circle(**{'detector_width': 800. * scale, **options})
        levels = (views_of(rig, scale, seed) / LEVEL).clip(0).round()
        place = tmp_path / f'object {seed}'
        place.mkdir()
        rig.save(tmp_path / 'rig.json')
        for view, image in zip(rig.views, levels):
            cv2.imwrite(str(place / f'{view.name}.png'),
                        image.astype(np.uint16))
        done = subprocess.run(
            [runtime, deployed.folder, '--images', place, '--rig', 'rig.json',
             '--out-dir', 'found', '--score-thr', '0', '--trust-rig'],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={'PATH': '/usr/bin:/bin'})  # no path to this checkout
        assert done.returncode == 0, done.stderr
        found = json.loads(
            (tmp_path / f'found/{place.name}.json').read_text())['boxes']
        assert found
        assert_same([np.array([box[key] for box in found])
                     for key in ('bbox_3d', 'score', 'label')], expected(
                         model, np.float32(levels * np.float32(LEVEL)),
                         np.stack([view.ct2img for view in rig.views])))
        page = (tmp_path / f'found/{place.name}.html').read_text()
        assert 'plotly.js' in page and rig.views[0].name in page
        assert (tmp_path / f'found/object_{seed}.mrk.json').is_file()
        assert (tmp_path / 'found/boxes.csv').read_text().count('\n') > 1


@pytest.mark.slow
def test_what_the_runtime_says_of_wrong_input(both, runtime, tmp_path):
    Rig.circle(2, image_size=64).save(tmp_path / 'rig.json')
    (tmp_path / 'a').mkdir()
    for view in range(2):
        (tmp_path / f'a/CAM_{view:02d}.dcm').write_bytes(
            bytes(128) + b'DICM')
    for options, sentence in (
            (['--images', 'a'], '--rig: expected rig.json'),
            (['--images', 'a', '--rig', 'rig.json'],
             'expected the package pydicom, which reads DICOM')):
        done = subprocess.run(
            [runtime, both[0].folder, '--out', 'boxes.json', *options],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={'PATH': '/usr/bin:/bin'})
        assert sentence in error_of(done)


def test_what_is_known_of_a_model(both):
    deployed, model, checkpoint, _ = both
    told = deployed.content
    assert told['checkpoint'] == dict(
        file=checkpoint.name,
        sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    assert len(told['classes']) == (
        model.volume_head or model.lifting_head).num_classes
    assert told['metrics'] is None
    rig = Rig.from_dict(told['rig'])
    assert told['pixel_mm'] == pytest.approx(rig.views[0].pixel_size, rel=.1)
    assert told['intensity']['scale'] > 0
    known = load_checkpoint(str(checkpoint))['meta']['known_views']
    assert told['known_views'] == known and known['noise']


def test_what_the_file_holds(both):
    """No word of who made it; what the runtime's oldest onnxruntime reads;
    and no coordinates of a whole grid."""
    path = both[0].folder / 'model.onnx'
    data = path.read_bytes()
    for word in (str(ROOT), sysconfig.get_paths()['purelib'], '.py'):
        assert word.encode() not in data
    model = onnx.load_from_string(data)
    assert model.ir_version <= 10  # of onnxruntime 1.20.1, as the opset
    assert [(o.domain, o.version <= 20) for o in model.opset_import] == [
        ('', True)]
    weights = 4 * sum(p.numel() for p in both[1].parameters())
    assert len(data) < weights + 3e5


def test_the_rig_is_checked_beside_the_network(both, monkeypatch):
    """By one thread before it; either way it is refused."""
    deployed, _, _, scale = both
    rig = Rig.circle(3, image_size=64, detector_width=800. * scale)
    images = images_of(rig, 'abc', list(views_of(rig, scale, 0)))
    predict, begun, found = DeployedModel.predict, threading.Event(), []

    def begin(*args):
        begun.set()
        return predict(*args)

    def check(*args):
        assert begun.wait(60 if finder is beside else 0) is (
            finder is beside)
        if refused:
            raise DataError('turned')

    monkeypatch.setattr(DeployedModel, 'predict', begin)
    monkeypatch.setattr('projects.core.deployed.expect_as_rig', check)
    beside, before = (DeployedFinder(deployed.folder, n) for n in (2, 1))
    for finder in (beside, before):
        for refused in (True, False):
            begun.clear()
            if refused:
                with pytest.raises(DataError, match='turned'):
                    finder.predict('a', images, 0., 'rig.json')
            else:
                found.append(finder.predict('a', images, 0., 'rig.json'))
    assert found[0].told == found[1].told
    assert_same(*((f.boxes, f.scores, f.labels) for f in found))


def test_cameras_that_are_not_those_of_the_images(both):
    with pytest.raises(ValueError, match='expected images'):
        both[0].predict(np.zeros((3, 64, 64)), np.zeros((2, 4, 4)))


def test_one_view_fixes_no_place(both):
    with pytest.raises(ValueError, match='two views or more, found 1'):
        both[0].predict(np.zeros((1, 64, 64)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize('field, value, sentence', [
    ('', [], 'expected an object'),
    ('', {}, 'field "schema_version": expected 1, .* found none'),
    ('schema_version', 2, 'expected 1, .* found 2'),
    ('classes', 5, 'expected a list of names, .* found 5'),
    ('classes', [], 'expected a list of names'),
    ('classes', [1], 'expected a list of names'),
    ('thresholds', {}, r'"thresholds.score": expected a number, .* none'),
    ('thresholds', 'x', "expected an object, .* found 'x'"),
    ('thresholds.score', '0.1', "expected a number, .* found '0.1'"),
    ('thresholds.iou', None, 'expected a number, .* found none'),
    ('thresholds.absent', 0, 'expected a number between 0 and 1'),
    ('thresholds.boxes', 1.5, 'expected a whole number'),
    ('intensity', {}, '"intensity.scale": expected a number'),
    ('checkpoint', 'x', "expected an object, .* found 'x'"),
    ('checkpoint.file', 3, 'expected a text, .* found 3'),
    ('rig', {}, '"views": expected a non-empty list'),
    ('pixel_mm', 'x', 'expected a number'),
    ('metrics', 5, 'expected an object'),
    ('triangulation', {}, '"triangulation.scene_range": expected six'),
    ('known_views', 'x', "expected an object, .* found 'x'"),
    ('known_views', {}, '"known_views.line_integrals": expected an object'),
    ('known_views.line_integrals.99', [1], 'expected two numbers'),
    ('known_views.noise', .1, 'expected two numbers, .* found 0.1'),
    ('known_views.exposure', [1], 'expected two numbers or null')])
def test_a_damaged_json(both, tmp_path, field, value, sentence):
    content = json.loads(json.dumps(both[0].content))
    place = content
    *parts, last = field.split('.')
    for part in parts:
        place = place[part]
    place[last] = value
    (tmp_path / 'model.json').write_text(
        json.dumps(content if field else value))
    with pytest.raises(DataError, match=sentence) as error:
        DeployedModel(tmp_path)
    assert str(error.value).startswith(
        f'{tmp_path}/model.json: ' + f'field "{field}'[:99 * bool(field)])
    assert '\n' not in str(error.value)


def test_what_is_for_information_may_lack(both, tmp_path):
    content = {
        key: value for key, value in both[0].content.items() if key not in (
            'intensity', 'pixel_mm', 'metrics', 'rig', 'known_views')}
    shutil.copy(both[0].folder / 'model.onnx', tmp_path)
    (tmp_path / 'model.json').write_text(json.dumps(content))
    assert DeployedModel(tmp_path).content == content


def other_graph(opset=20, ir_version=10):
    """A file that onnxruntime reads: of the right inputs it gives one."""
    def tensor(name, *shape):
        return onnx.helper.make_tensor_value_info(name, 1, shape)

    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node('Identity', ['images'], ['boxes'])], 'g',
            [tensor('images', 'v', 1, 'h', 'w'), tensor('ct2img', 'v', 4, 4)],
            [tensor('boxes', 'v', 1, 'h', 'w')]), ir_version=ir_version,
        opset_imports=[onnx.helper.make_opsetid('', opset)])


def test_a_damaged_graph(both, tmp_path):
    (tmp_path / 'model.json').write_text(json.dumps(both[0].content))
    graph, outputs = other_graph(), other_graph()
    graph.graph.input.pop()
    newer = other_graph(ir_version=99)
    for data, sentence in (
            (None, 'expected an ONNX model, found none'),
            (b'none', 'expected an ONNX model .* found .*INVALID_PROTOBUF'),
            (graph, r'field "inputs": expected images \(any, 1, any, any\), '
             r'ct2img .*, found images \(v, 1, h, w\) of tensor'),
            (outputs, r'field "outputs": expected boxes \(any, 6\), .*found '
             r'boxes \(v, 1, h, w\)'),
            (newer, 'found .* model IR version: 99')):
        if data is not None:
            (tmp_path / 'model.onnx').write_bytes(
                data if isinstance(data, bytes) else data.SerializeToString())
        with pytest.raises(DataError, match=sentence) as error:
            DeployedModel(tmp_path)
        assert str(error.value).startswith(f'{tmp_path}/model.onnx: ')
        assert '\n' not in str(error.value)


def test_what_the_runtime_says_of_wrong_options(tmp_path):
    for options, sentence in (
            (['--threads', '-3', '--out', 'b.json'],
             '--threads: expected 0, which takes all cores, or more, found '
             '-3'),
            ([], '--out: expected with --images, or --out-dir, found none')):
        done = tool('run.py', 'model', '--images', 'i', *options,
                    cwd=tmp_path)
        assert sentence in error_of(done)


def test_an_object_of_one_view_is_named_once(both, tmp_path):
    Rig.circle(1, image_size=64).save(tmp_path / 'rig.json')
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / 'CAM_00.png'),
                    np.arange(4096, dtype=np.uint16).reshape(64, 64))
    options = 'run.py', both[0].folder, '--images', 'a', 'b', '--rig', (
        'rig.json')
    done = tool(*options, '--out-dir', 'out', cwd=tmp_path)
    assert ('2 of 2 objects were refused, first a: views: expected two or '
            'more of one size, found 1') in error_of(done)
    done = tool(*options, '--out', 'b.json', cwd=tmp_path)
    assert 'error: --out: expected one object, found 2' in error_of(done)


@pytest.mark.parametrize('tool_name, package', [
    ('run.py', 'onnxruntime'), ('deploy.py', 'onnxscript')])
def test_without_the_extra(tool_name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    Rig.circle(2, image_size=64).save(tmp_path / 'rig.json')
    (tmp_path / 'a').mkdir()
    for view in range(2):
        cv2.imwrite(str(tmp_path / f'a/CAM_{view:02d}.png'),
                    np.arange(4096, dtype=np.uint16).reshape(64, 64))
    words = dict(deploy=['c.py', 'c.pth', '--out', 'out'], run=[
        'model', '--images', 'a', '--rig', 'rig.json', '--out', 'b.json'])
    done = tool(tool_name, *words[tool_name[:-3]], cwd=tmp_path)
    assert (f'expected {package}, as pip install mv2d-xray[deploy] brings it, '
            'found none') in error_of(done)


def test_a_json_of_another_graph(both, tmp_path):
    content = dict(both[0].content)
    shutil.copy(both[0].folder / 'model.onnx', tmp_path)
    if content['triangulation']:
        content['triangulation'], field = None, 'triangulation'
    else:
        content['classes'], field = [*content['classes'], 'other'], 'classes'
    (tmp_path / 'model.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=f'json: field "{field}": expected'):
        DeployedModel(tmp_path)


@pytest.mark.parametrize('name', OTHERS)
def test_what_cannot_be_deployed(name, tmp_path):
    done = tool('deploy.py', ROOT / f'configs/ct_slices/{name}.py',
                paths(name)[1], '--out', tmp_path / 'out')
    assert 'which cannot be deployed' in error_of(done)
    assert not (tmp_path / 'out').exists()


def test_figures_of_a_test_say_of_what_they_are(tmp_path, monkeypatch):
    config, checkpoint = paths('mv2d-xray_small_volume_600i_blade')
    results = load_json(ROOT / 'tests/core/results.json')
    results['source'] = dict(
        sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        ann_file='/data/set/lidc_infos_val.pkl')
    monkeypatch.setattr('tools.deploy.load_results', lambda path: dict(
        results, distances_mm=[1., 2., 3., 5.]))
    monkeypatch.setattr('tools.deploy.export',
                        lambda graph, path: path.write_bytes(b'graph'))
    done = tool('deploy.py', config, checkpoint, '--out', tmp_path,
                '--results', 'results.json')
    assert done.returncode == 0, done.stderr[-2000:]
    told = load_json(tmp_path / 'model.json')['metrics']
    assert told['ann_file'] == 'lidc_infos_val.pkl'
    assert told['distances_mm'] == [1, 2, 3, 5]
    assert (told['mAP_3d'], told['num_scans'], told['num_gt']) == (1, 2, 3)


def test_results_of_another_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr('tools.deploy.load_results',
                        lambda path: dict(source=dict(sha256='0')))
    done = tool('deploy.py', *paths(next(iter(NAMES))), '--out',
                tmp_path / 'out', '--results', 'results.json')
    assert 'of the checkpoint, found 0' in error_of(done)
