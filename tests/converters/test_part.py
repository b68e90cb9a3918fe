"""The user's own CT: any format, boxes in any frame, label images, blades."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy import ndimage, stats

from data_converters import blade
from data_converters.__main__ import main
from data_converters.drr import MU_WATER, Volume, hu_to_mu, render
from data_converters.part import PartReader, find_parts, plan, read_image
from data_converters.scan import ConversionError
from projects.core import geometry
from projects.core.files import dump_json, load_json
from projects.core.infos import load_infos
from projects.core.rig import Rig
from projects.mv2d_xray.dataset import XRayDataset

SPACING = (1., 1.5, 2.)
SHAPE = (40, 32, 28)
INDEX = np.array([26., 11., 9.])  # the sphere's centre
RADIUS = 5.  # mm
# Index axes along +y, -z, -x of LPS, somewhere.
TURNED = np.array([[0, 0, -1.], [1, 0, 0], [0, -1, 0]])
ORIGIN = (12.5, -40., 100.)
HEADER = ('x', 'y', 'z', 'dx', 'dy', 'dz')


def sphere_values(dtype=np.int16):
    """Water in air, (40, 32, 28)."""
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    far = np.linalg.norm((index - INDEX) * SPACING, axis=-1)
    return np.rint(1000 * np.clip(RADIUS - far + .5, 0, 1) - 1000).astype(
        dtype)


def sphere_image(direction=TURNED, values=None):
    image = sitk.GetImageFromArray(
        (sphere_values() if values is None else values).T)
    image.SetSpacing(SPACING)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    image.SetOrigin(ORIGIN)
    return image


def write_dicom(folder, values, leave_out=(), series='1.2.3', aside=0.):
    folder.mkdir(exist_ok=True)
    for k in range(values.shape[2]):
        if k in leave_out:
            continue
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.2'
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        s = pydicom.Dataset()
        s.file_meta = meta
        s.SOPClassUID = meta.MediaStorageSOPClassUID
        s.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        s.StudyInstanceUID, s.SeriesInstanceUID = '1.2', series
        s.Modality, s.InstanceNumber = 'CT', k + 1
        s.ImagePositionPatient = [ORIGIN[0], ORIGIN[1] + k * aside,
                                  ORIGIN[2] + k * SPACING[2]]
        s.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        s.PixelSpacing = [SPACING[1], SPACING[0]]
        s.SliceThickness = SPACING[2]
        s.Rows, s.Columns = values.shape[1], values.shape[0]
        s.SamplesPerPixel, s.PhotometricInterpretation = 1, 'MONOCHROME2'
        s.BitsAllocated, s.BitsStored, s.HighBit = 16, 16, 15
        s.PixelRepresentation = 0
        s.RescaleSlope, s.RescaleIntercept = 1, -1024
        s.PixelData = (values[..., k].T + 1024).astype(np.uint16).tobytes()
        # Names say nothing of the order.
        s.save_as(folder / f'{series}.{(k * 7) % 100:03d}.dcm',
                  enforce_file_format=True)


def write_table(path, rows, header=HEADER):
    with open(path, 'w', newline='') as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def read(path, labels=None, **options):
    reader = PartReader(options.pop('classes', ['defect']), **options)
    return reader.read(find_parts([path], None, [labels] if labels else ())[0])


def refusal(*arguments):
    """The one sentence that a wrong call ends in."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert isinstance(stop.value.code, str)
    assert '\n' not in stop.value.code
    return stop.value.code


# -------------------------------------------------------------------- formats
def make(kind, folder):
    """A volume of each kind, and the axes that its sphere was given."""
    values, path = sphere_values(), folder / f'ball.{kind}'
    if kind in ('nii', 'nii.gz', 'mha', 'mhd', 'nrrd', 'nhdr'):
        sitk.WriteImage(sphere_image(), str(path))
        return path, TURNED
    if kind == 'tif':
        tifffile.imwrite(path, values.T)
    elif kind == 'pages':
        path = folder / 'ball'
        path.mkdir()
        for k, page in enumerate(values.T):  # 2 comes before 10
            tifffile.imwrite(path / f'slice{k}.tif', page)
    else:
        path = folder / 'ball'
        write_dicom(path, values)
    return path, np.eye(3)


KINDS = ('nii', 'nii.gz', 'mha', 'mhd', 'nrrd', 'nhdr', 'tif', 'pages',
         'dicom')


@pytest.mark.parametrize('kind', KINDS)
def test_a_sphere_lands_where_the_matrices_say(kind, tmp_path):
    path, axes = make(kind, tmp_path)
    spacing = SPACING if kind in ('tif', 'pages') else None
    scan = read(path, spacing=spacing)
    assert (scan.key, scan.patient_id) == ('ball', 'ball')
    assert scan.repairs == [] and scan.findings == []
    # By hand: mm from the middle of the grid along the file's axes, then
    # LPS turned round z.
    offset = (INDEX - (np.array(SHAPE) - 1) / 2) * SPACING
    world = np.diag([-1., -1., 1.]) @ axes @ offset
    if kind.startswith('nii'):  # NIfTI's own library agrees
        image = nibabel.load(path)
        middle = (np.array(SHAPE) - 1) / 2
        expected = image.affine[:3, :3] @ (INDEX - middle)
        np.testing.assert_allclose(world, expected, atol=1e-4)
    water = scan.hu.values > -500
    found = np.argwhere(water).mean(0)
    found = scan.hu.voxel2ct[:3, :3] @ found + scan.hu.voxel2ct[:3, 3]
    np.testing.assert_allclose(found, world, atol=.05)
    assert water.sum() * np.prod(SPACING) == pytest.approx(
        4 / 3 * np.pi * RADIUS**3, rel=.1)
    rig = Rig.circle(3, image_size=96, detector_width=200)
    for view, image in zip(rig.views, render(scan.hu, rig)):
        v, u = np.mgrid[:96, :96] + .5
        centroid = [(u * image).sum() / image.sum(),
                    (v * image).sum() / image.sum()]
        uv, _ = geometry.project(world[None], view.ct2img)
        np.testing.assert_allclose(centroid, uv[0], atol=.15)
        # Through its middle: 10 mm of water.
        assert image.max() == pytest.approx(2 * RADIUS * MU_WATER, rel=.12)


def test_ct2patient_leads_back_to_the_file(tmp_path):
    image = sphere_image()
    sitk.WriteImage(image, str(tmp_path / 'a.nrrd'))
    scan = read(tmp_path / 'a.nrrd')
    for index in ((0, 0, 0), (3, 20, 7)):
        world = scan.hu.voxel2ct @ [*index, 1]
        np.testing.assert_allclose(
            (scan.ct2patient @ world)[:3],
            image.TransformIndexToPhysicalPoint(index), atol=1e-6)


def test_oblique_volume_is_resampled(tmp_path):
    turn = geometry.rigid_motion([.1, -.2, .3], [0, 0, 0])[:3, :3]
    sitk.WriteImage(sphere_image(turn), str(tmp_path / 'a.nrrd'))
    box = [*INDEX, *(2 * RADIUS / np.array(SPACING))]
    reader, parts = plan(
        [tmp_path / 'a.nrrd'], write_table(tmp_path / 'b.csv', [box]),
        box_unit='voxel')
    scan = reader.read(parts[0])
    assert 'oblique' in scan.repairs[0]
    np.testing.assert_allclose(
        scan.hu.voxel2ct[:3, :3], np.diag([-1, -1.5, 2.]), atol=1e-9)
    world = np.diag([-1., -1., 1.]) @ turn @ (
        (INDEX - (np.array(SHAPE) - 1) / 2) * SPACING)
    weight = scan.hu.values + 1000.
    index = np.indices(weight.shape)
    found = [(i * weight).sum() / weight.sum() for i in index]
    found = scan.hu.voxel2ct @ [*found, 1]
    np.testing.assert_allclose(found[:3], world, atol=.05)
    assert weight.sum() == pytest.approx(
        (sphere_values().astype(float) + 1000).sum(), rel=.01)
    # A ball's box stays a ball's box.
    np.testing.assert_allclose(
        scan.findings[0].box, [*world, *[2 * RADIUS] * 3, 0], atol=1e-6)
    # The middle stays the middle, also of the label image.
    labels = sphere_values() > -500
    sitk.WriteImage(sphere_image(turn, labels.astype(np.uint8)),
                    str(tmp_path / 'l.nrrd'))
    scan = read(tmp_path / 'a.nrrd', tmp_path / 'l.nrrd')
    np.testing.assert_allclose(scan.box(scan.findings[0])[:3], world, atol=1)


def test_almost_straight_is_straight(tmp_path):
    turn = geometry.rigid_motion([0, 0, 1e-4], [0, 0, 0])[:3, :3]
    sitk.WriteImage(sphere_image(turn), str(tmp_path / 'a.nrrd'))
    assert read(tmp_path / 'a.nrrd').repairs == []


# ---------------------------------------------------------------- attenuation
def test_grey_values_become_attenuation(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 60000, (5, 6, 7)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(values.T), str(tmp_path / 'a.mha'))
    scan = read(tmp_path / 'a.mha', mu_per_value=5e-6, mu_offset=-.05)
    expected = np.clip(5e-6 * values.astype(float) - .05, 0, None)
    np.testing.assert_allclose(hu_to_mu(scan.hu.values), expected, rtol=1e-5,
                               atol=1e-7)
    # Without them they are Hounsfield units, and a guess is told.
    scan = read(tmp_path / 'a.mha')
    np.testing.assert_array_equal(scan.hu.values, values)
    assert '--mu-per-value' in scan.repairs[0]


# ---------------------------------------------------------------------- boxes
@pytest.fixture
def ball(tmp_path):
    sitk.WriteImage(sphere_image(), str(tmp_path / 'ball.nii.gz'))
    return tmp_path / 'ball.nii.gz'


def boxes_of(volume, table, **options):
    reader, parts = plan([volume], table, **options)
    scan = reader.read(parts[0])
    return np.array([scan.box(f) for f in scan.findings])


def test_frames_and_units_agree(ball, tmp_path):
    """One box of 4 x 6 x 8 voxels, told in four ways."""
    centre, size = np.array([20., 10., 8.5]), np.array([4., 6., 8.])
    image = sphere_image()
    lps = np.array(
        image.TransformContinuousIndexToPhysicalPoint(centre.tolist()))
    ras = nibabel.load(ball).affine @ [*centre, 1]
    mm = np.abs(TURNED) @ (size * SPACING)
    middle = image.TransformContinuousIndexToPhysicalPoint(
        ((np.array(SHAPE) - 1) / 2).tolist())
    world = (lps - middle) * [-1, -1, 1]
    expected = [[*world, *mm, 0]]
    for place, edges, options in (
            (centre, size, dict(box_unit='voxel')),
            (lps, mm, dict(box_frame='patient')),
            (ras[:3], mm, dict(box_frame='ras')),
            (world, mm, dict(box_frame='world'))):
        table = write_table(tmp_path / 'b.csv', [[*place, *edges]])
        np.testing.assert_allclose(boxes_of(ball, table, **options), expected,
                                   atol=1e-4)
    (tmp_path / 'b.json').write_text(json.dumps(
        [dict(zip(HEADER, [*centre, *size]), diameter=3.5)]))
    reader, parts = plan([ball], tmp_path / 'b.json', box_unit='voxel')
    # As a worker process gets them.
    reader, parts = pickle.loads(pickle.dumps((reader, parts)))
    finding, = reader.read(parts[0]).findings
    np.testing.assert_allclose(finding.box, expected[0], atol=1e-4)
    assert finding.record['diameter'] == 3.5


def test_labels_and_table_give_the_same_boxes(ball, tmp_path):
    """Two findings of class 2, one of class 1; touching by a corner is
    touching."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 4:6, 5:9] = 2
    labels[7, 6, 9] = 2
    labels[20:23, 20:22, 11:12] = 2
    labels[30:35, 3:9, 2:5] = 1
    sitk.WriteImage(sphere_image(values=labels), str(tmp_path / 'l.nii.gz'))
    scan = read(ball, tmp_path / 'l.nii.gz', classes=['a', 'b'])
    table = write_table(tmp_path / 'b.csv', [
        [32, 5.5, 3, 5, 6, 3, 'a'], [5, 5, 7, 5, 3, 5, 'b'],
        [21, 20.5, 11, 3, 2, 1, 'b']], (*HEADER, 'class'))
    reader, parts = plan([ball], table, box_unit='voxel')
    boxed = reader.read(parts[0])
    assert reader.classes == ['a', 'b']
    for one, other in zip(scan.findings, boxed.findings, strict=True):
        np.testing.assert_allclose(scan.box(one), other.box, atol=1e-4)
        assert one.label == other.label
    volume = 5 * 6 * 3 * np.prod(SPACING)
    assert scan.findings[0].record == dict(
        nodule_id=0, volume_mm3=pytest.approx(volume),
        diameter=pytest.approx((6 * volume / np.pi)**(1 / 3)))
    # Each value a finding: value 2 is one, wherever it is.
    scan = read(ball, tmp_path / 'l.nii.gz', label_values='findings')
    assert [f.label for f in scan.findings] == [0, 0]
    assert scan.findings[1].record['volume_mm3'] == pytest.approx(
        (4 * 2 * 4 + 1 + 6) * np.prod(SPACING))
    empty = sphere_image(values=np.zeros(SHAPE, np.uint8))
    sitk.WriteImage(empty, str(tmp_path / 'l.nii.gz'))
    assert read(ball, tmp_path / 'l.nii.gz').findings == []


ROW = [0, 0, 0, 2, 2, 2]


def changed(**values):
    return [[values.get(c, v) for c, v in zip(HEADER, ROW)]]


@pytest.mark.parametrize('header, rows, message', [
    (HEADER, changed(x=28.5), 'within the volume ball'),
    (HEADER, changed(z=-24.1), 'column "z"'),
    (HEADER, changed(dy=500), 'within the volume'),
    (HEADER, changed(dx=-2), 'column "dx": expected a positive number'),
    (HEADER, changed(dz=0), 'column "dz": expected a positive number'),
    (HEADER, changed(y='nan'), 'column "y": expected a finite number'),
    (HEADER, changed(y=''), 'row 2: column "y"'),
    (HEADER, [ROW, ROW[:4]], 'row 3: expected 6 columns, found 4'),
    (HEADER[:5], [ROW[:5]], 'column "dz": expected it among'),
    (HEADER[:5], [], 'column "dz": expected it among'),
    ((*HEADER, 'clas'), [[*ROW, 'pore']], 'column "clas"'),
    ((*HEADER, 'class'), [[*ROW, '']], 'column "class": expected a name'),
    ((*HEADER, 'scan'), [[*ROW, 'bal']], 'column "scan": expected a volume'),
    ((*HEADER, 'diameter'), [[*ROW, -1]], 'column "diameter"'),
    ((*HEADER, 'x'), [[*ROW, 0]], 'different columns'),
])
def test_wrong_tables(ball, tmp_path, header, rows, message):
    table = write_table(tmp_path / 'boxes.csv', rows, header)
    text = refusal('volume', '--volume', ball, '--boxes', table,
                   '--box-frame', 'world', '--num-views', 2, '--image-size',
                   32, '--out-dir', tmp_path / 'out')
    assert message in text and 'boxes.csv' in text
    assert 'found' in text or 'expected only' in text


def test_wrong_json_tables(ball, tmp_path):
    path = tmp_path / 'boxes.json'
    item = dict(zip(HEADER, ROW))
    for content, message in (
            ('{', 'is not JSON'), ('{"a": 1}', 'expected a list'),
            (json.dumps([item, dict(item, x=[1])]), '[1]: column "x"'),
            (json.dumps([dict(item, x=True)]), 'column "x"'),
            (json.dumps([dict(item, y=float('nan'))]), 'column "y"')):
        path.write_text(content)
        text = refusal('volume', '--volume', ball, '--boxes', path,
                       '--box-frame', 'world', '--out-dir', tmp_path / 'out')
        assert message in text and 'boxes.json' in text


@pytest.mark.parametrize('more, message', [
    ([], '--box-frame: expected the frame'),
    (['--box-frame', 'ras', '--box-unit', 'voxel'], '--box-frame'),
    (['--box-frame', 'ras', '--mu-offset', '1'], '--mu-per-value'),
    (['--box-frame', 'ras', '--mu-per-value', '0'], '--mu-per-value'),
    (['--box-frame', 'ras', '--mu-per-value', 'nan'], '--mu-per-value'),
    (['--box-frame', 'ras', '--classes', 'a', 'a'], '--classes'),
    (['--box-frame', 'ras', '--classes', 'pore'], 'column "class"'),
    (['--box-frame', 'ras', '--spacing', '1', '0', '1'], '--spacing'),
    (['--box-frame', 'ras', '--val-fraction', '1.1'], '--val-fraction'),
    (['--box-frame', 'ras', '--radius', '-3'], '--radius')])
def test_wrong_calls(ball, tmp_path, more, message):
    table = write_table(tmp_path / 'boxes.csv', [ROW])
    text = refusal('volume', '--volume', ball, '--boxes', table, *more,
                   '--out-dir', tmp_path / 'out')
    assert message in text and 'found' in text


# -------------------------------------------------------------------- volumes
def write_values(path, values):
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False),
                    str(path))
    return path


def with_nan(folder):
    values = sphere_values(np.float32)
    values[3, 4, 5] = np.nan
    return write_values(folder / 'a.mha', values)


def two_series(folder):
    for series in ('1.2.3', '1.2.4'):
        write_dicom(folder / 'a', sphere_values()[:8, :8, :4], (), series)
    return folder / 'a'


def gap(folder):
    write_dicom(folder / 'a', sphere_values()[:8, :8, :9], (3, 4))
    return folder / 'a'


def tilted(folder):
    write_dicom(folder / 'a', sphere_values()[:8, :8, :5], aside=.4)
    return folder / 'a'


def text_file(folder, name='a.nii.gz'):
    (folder / name).write_text('not a volume')
    return folder / name


def empty_folder(folder):
    (folder / 'a').mkdir()
    return folder / 'a'


def uneven_pages(folder):
    (folder / 'a').mkdir()
    for k, size in enumerate((5, 5, 6)):
        tifffile.imwrite(folder / 'a' / f'{k}.tif',
                         np.zeros((size, 5), np.uint16))
    return folder / 'a'


def truncated(folder):
    sitk.WriteImage(sphere_image(), str(folder / 'a.nrrd'))
    content = (folder / 'a.nrrd').read_bytes()
    (folder / 'a.nrrd').write_bytes(content[:len(content) // 2])
    return folder / 'a.nrrd'


def sheared(folder):
    affine = np.eye(4)
    affine[0, 1] = .5
    nibabel.save(nibabel.Nifti1Image(sphere_values(), affine),
                 folder / 'a.nii')
    return folder / 'a.nii'


@pytest.mark.parametrize('build, message', [
    (lambda f: f / 'none.nii', 'expected a file or a folder, found none'),
    (lambda f: text_file(f, 'a.stl'), 'file type: expected .nii'),
    (text_file, 'cannot be read'), (truncated, 'cannot be read'),
    (sheared, 'cannot be read'), (with_nan, 'found NaN'),
    (empty_folder, 'found 0 DICOM series'), (two_series, 'found 2 DICOM'),
    (gap, 'slices missing'), (tilted, 'tilted gantry'),
    (uneven_pages, 'cannot be read'),
    (lambda f: write_values(f / 'a.mha', np.zeros((9, 9), np.int16)),
     'found 9 x 9 voxels'),
    (lambda f: write_values(f / 'a.nrrd', np.zeros((2, 9, 9, 9), np.int16)),
     'found 9 x 9 x 9 x 2 voxels'),
    (lambda f: write_values(f / 'a.tif', np.zeros((9, 9), np.uint16)),
     'found 9 x 9 voxels'),
])
def test_wrong_volumes(tmp_path, build, message):
    path = build(tmp_path)
    spacing = (1, 1, 1) if path.suffix == '.tif' or (
        path.name == 'a' and list(path.glob('*.tif'))) else None
    with pytest.raises(ConversionError) as error:
        read(path, spacing=spacing)
    assert message in str(error.value) and path.name in str(error.value)
    assert '\n' not in str(error.value)


def test_what_tiff_does_not_say(tmp_path):
    path, _ = make('tif', tmp_path)
    with pytest.raises(ConversionError, match='--spacing'):
        read_image(path)


def test_one_time_step_is_a_volume(tmp_path):
    nibabel.save(nibabel.Nifti1Image(sphere_values()[..., None], np.eye(4)),
                 tmp_path / 'a.nii')
    assert read(tmp_path / 'a.nii').hu.values.shape == SHAPE


def test_names_of_volumes(tmp_path, ball):
    other = tmp_path / 'more'
    other.mkdir()
    sitk.WriteImage(sphere_image(), str(other / 'ball.mha'))
    with pytest.raises(ConversionError, match='no other volume has'):
        find_parts([ball, other / 'ball.mha'])
    sitk.WriteImage(sphere_image(), str(other / 'a.nii.gz'))
    assert [p.key for p in find_parts([other])] == ['a', 'ball']
    pages = Path(make('pages', tmp_path)[0])
    assert [p.path for p in find_parts([pages])] == [pages]
    with pytest.raises(ConversionError, match='name: expected letters'):
        find_parts([tmp_path / 'a$b.nii'])


@pytest.mark.parametrize('change, message', [
    (lambda i: i[:-1], 'size: expected'),
    (lambda i: i.SetSpacing((1, 1, 2)), 'spacing: expected'),
    (lambda i: i.SetOrigin((0, 0, 0)), 'origin: expected'),
    (lambda i: i.SetDirection(np.eye(3).ravel()), 'direction: expected'),
    (lambda i: i + 3, 'values: expected whole numbers from 0 to 1'),
    (lambda i: sitk.Cast(i, sitk.sitkFloat32) + .5, 'values: expected')])
def test_wrong_label_images(ball, tmp_path, change, message):
    image = sphere_image(values=(sphere_values() > -500).astype(np.uint8))
    image = change(image) or image
    sitk.WriteImage(image, str(tmp_path / 'l.nii.gz'))
    text = refusal('volume', '--volume', ball, '--labels',
                   tmp_path / 'l.nii.gz', '--num-views', 2, '--image-size',
                   32, '--out-dir', tmp_path / 'out')
    assert message in text and 'l.nii.gz' in text
    text = refusal('volume', '--volume', ball, '--labels', ball, ball,
                   '--out-dir', tmp_path / 'out')
    assert '--labels: expected 1 label images' in text


# ------------------------------------------------------------------- commands
def test_volume_makes_a_set(tmp_path, capsys):
    """Three parts of two classes: files, splits, classes and 2D boxes."""
    rows = []
    for i in range(3):
        sitk.WriteImage(sphere_image(np.eye(3)), str(tmp_path / f'p{i}.nrrd'))
        kind = ('pore', 'inclusion')[i % 2]
        rows.append([*INDEX, *(2 * RADIUS / np.array(SPACING)), kind,
                     ('p0', 'p1', 'p2.nrrd')[i]])
    table = write_table(tmp_path / 'b.csv', rows, (*HEADER, 'class', 'scan'))
    call = ['volume', '--volume', *map(str, sorted(tmp_path.glob('*.nrrd'))),
            '--boxes', str(table), '--box-unit', 'voxel', '--image-size', '64',
            '--num-views', '3', '--classes', 'pore', 'inclusion',
            '--val-fraction', '.3', '--out-dir', str(tmp_path / 'set')]
    main(call)
    told = capsys.readouterr().out
    assert 'for train | 2 ' in told and 'for val   | 1 ' in told
    samples = []
    for split in ('train', 'val'):
        infos = load_infos(tmp_path / f'set/lidc_infos_{split}.pkl')
        assert infos['metainfo']['classes'] == ('pore', 'inclusion')
        samples += infos['data_list']
    assert sorted(s['token'] for s in samples) == ['p0', 'p1', 'p2']
    for sample in samples:
        instance, = sample['instances']
        assert instance['bbox_label_3d'] == int(sample['token'] == 'p1')
        assert instance['valid_flag'] and not instance['ignore']
        assert instance['diameter'] == pytest.approx(2 * RADIUS)
        for name, view in sample['images'].items():
            box, = sample['cam_instances'][name]
            image = cv2.imread(str(tmp_path / 'set' / view['img_path']), -1)
            rows, columns = np.nonzero(image > image.max() / 10)
            x1, y1, x2, y2 = box['bbox']
            assert x1 - 1 < columns.min() and columns.max() < x2 + 1
            assert y1 - 1 < rows.min() and rows.max() < y2 + 1
    dataset = XRayDataset(
        'lidc_infos_train.pkl', str(tmp_path / 'set'),
        coco_file='lidc_infos_train_2d_anno.coco.json', lazy_init=False,
        pipeline=[dict(type='LoadXRayViews'), dict(type='PackXRayInputs')])
    assert dataset.metainfo['classes'] == ('pore', 'inclusion')
    item = dataset[0]
    assert item['inputs']['img'].shape == (3, 1, 64, 64)
    assert len(item['data_samples'].gt_instances_3d.bboxes_3d) == 1
    # The same call again redoes nothing; with another table it is another
    # set.
    before = (tmp_path / 'set/scans/p0.json').stat().st_mtime_ns
    main(call)
    assert (tmp_path / 'set/scans/p0.json').stat().st_mtime_ns == before
    with open(table, 'a') as stream:
        stream.write('1,1,1,2,2,2,pore,p0\n')
    assert 'field "inputs"' in refusal(*call)


@pytest.mark.parametrize('kind', ['nii.gz', 'mhd', 'dicom'])
def test_a_replaced_volume_is_refused(kind, tmp_path):
    """Another volume of the same name, also where its header is the same."""
    path = tmp_path / 'p' / f'ball.{kind}'
    path.parent.mkdir()

    def write(values):
        if kind == 'dicom':
            write_dicom(path, values)
        else:
            sitk.WriteImage(sphere_image(values=values), str(path))

    def convert(folder):
        main(['volume', '--volume', str(path), '--boxes', str(table),
              '--box-frame', 'world', '--image-size', '32', '--num-views',
              '2', '--out-dir', str(tmp_path / folder)])

    table = write_table(tmp_path / 'b.csv', [])
    values = sphere_values()
    write(values)
    convert('set')
    record = next((tmp_path / 'set' / 'scans').iterdir())
    before = record.read_bytes()
    # The same files moved are the same, whatever lies beside them.
    shutil.copytree(path.parent, tmp_path / 'q')
    path = tmp_path / 'q' / path.name
    (path if kind == 'dicom' else path.parent).joinpath('a.txt').touch()
    convert('set')
    assert record.read_bytes() == before
    values[5:9, 5:9, 5:9] = 500
    write(values)
    with pytest.raises(SystemExit, match='volume has been replaced; remove'):
        convert('set')
    assert record.read_bytes() == before
    record.unlink()
    convert('set')
    convert('anew')
    for twin in (tmp_path / 'anew').rglob('*'):
        if twin.is_file():
            name = twin.relative_to(tmp_path / 'anew')
            assert (tmp_path / 'set' / name).read_bytes() == twin.read_bytes()
    # Sets that were made before records said what they are of.
    content = load_json(record)
    del content['source_digest']
    dump_json(content, record)
    write(sphere_values())
    convert('set')
    assert 'source_digest' not in load_json(record)
    main(['check', str(tmp_path / 'set')])


def test_one_part_is_for_training(ball, tmp_path, capsys):
    labels = (sphere_values() > -500).astype(np.uint8)
    sitk.WriteImage(sphere_image(values=labels), str(tmp_path / 'l.nii.gz'))
    main(['volume', '--volume', str(ball), '--labels',
          str(tmp_path / 'l.nii.gz'), '--image-size', '32', '--num-views',
          '2', '--mu-per-value', '1e-3', '--mu-offset', '1', '--out-dir',
          str(tmp_path / 'set')])
    told = capsys.readouterr().out
    assert 'for train | 1 ' in told
    assert 'for "val": training needs scans for train and val;' in told
    infos = load_infos(tmp_path / 'set/lidc_infos_train.pkl')
    instance, = infos['data_list'][0]['instances']
    assert instance['contrast'] == pytest.approx(.9, abs=.1)
    assert load_json(tmp_path / 'set/options.json')['inputs'][
        'mu_per_value'] == 1e-3


def test_saturated_rays_are_told(ball, tmp_path):
    table = write_table(tmp_path / 'b.csv', [])
    main(['volume', '--volume', str(ball), '--boxes', str(table),
          '--box-frame', 'world', '--image-size', '32', '--num-views', '2',
          '--mu-per-value', '.02', '--mu-offset', '20', '--out-dir',
          str(tmp_path / 'set')])
    sentence, = load_json(tmp_path / 'set/errors.json')['repaired']['ball']
    assert 'exceed the images\' 16' in sentence


# --------------------------------------------------------------------- blades
@pytest.fixture(scope='module')
def blades(tmp_path_factory):
    folder = tmp_path_factory.mktemp('blades')
    main(['blade', '--out-dir', str(folder), '--num-parts', '2', '--seed',
          '3'])
    return folder


@pytest.mark.parametrize('name', ['boxes.csv', 'blade_000.nii.gz',
                                  'blade_of_mine.nii.gz', 'notes.txt'])
def test_blades_overwrite_nothing_else(tmp_path, name):
    (tmp_path / name).write_text('mine')
    assert 'expected' in refusal('blade', '--out-dir', tmp_path,
                                 '--num-parts', '1')
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == 'mine'


def test_blades_are_made_again_in_their_folder(blades, tmp_path):
    shutil.copytree(blades, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'rig.json').touch()
    (tmp_path / 'boxes.csv').unlink()
    (tmp_path / '.blade_001.nii.gz').write_bytes(b'half')
    main(['blade', '--out-dir', str(tmp_path), '--num-parts', '2', '--seed',
          '3'])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'blade_000.nii.gz', 'blade_001.nii.gz', 'boxes.csv', 'rig.json']
    assert (tmp_path / 'boxes.csv').read_bytes() == (
        blades / 'boxes.csv').read_bytes()


def test_blades_are_reproducible(blades, tmp_path):
    main(['blade', '--out-dir', str(tmp_path), '--num-parts', '1', '--seed',
          '3'])
    name = 'blade_000.nii.gz'
    assert (tmp_path / name).read_bytes() == (blades / name).read_bytes()
    lines = (tmp_path / 'boxes.csv').read_text().splitlines()
    assert (blades / 'boxes.csv').read_text().splitlines()[:len(lines)
                                                           ] == lines
    assert (blades / name).read_bytes() != (
        blades / 'blade_001.nii.gz').read_bytes()
    # A series goes on in another folder, under names of its own.
    main(['blade', '--out-dir', str(tmp_path / 'more'), '--num-parts', '1',
          '--seed', '3', '--first', '1'])
    name = 'blade_001.nii.gz'
    assert (tmp_path / 'more' / name).read_bytes() == (
        blades / name).read_bytes()
    assert (tmp_path / 'more/boxes.csv').read_text().splitlines()[1:] == (
        blades / 'boxes.csv').read_text().splitlines()[len(lines):]
    name = 'blade_000.nii.gz'
    other, _ = blade.make_blade(4, 0)
    first = read_image(blades / name)
    first = sitk.GetArrayFromImage(first).T * blade.MU_PER_VALUE
    assert first.shape == blade.SHAPE == other.shape
    assert np.abs(other - first).max() > .05


def test_defects_are_in_the_blade_and_in_its_boxes(blades):
    """The file's values in each box differ from the metal as they should,
    and nowhere else."""
    reader, parts = plan(
        sorted(blades.glob('*.nii.gz')), blades / 'boxes.csv',
        box_frame='world', mu_per_value=blade.MU_PER_VALUE)
    assert reader.classes == ['inclusion', 'pore']
    for part in parts:
        scan = reader.read(part)
        assert 4 <= len(scan.findings) <= 9
        mu = hu_to_mu(scan.hu.values)
        np.testing.assert_allclose(scan.hu.voxel2ct[:3, :3],
                                   np.eye(3) * blade.SPACING, atol=1e-6)
        other = mu > blade.MU_ALLOY * 1.1
        for finding in scan.findings:
            box = finding.box
            low, high = (
                (box[:3] + sign * (box[3:6] / 2 + .5)
                 - scan.hu.voxel2ct[:3, 3]) / blade.SPACING
                for sign in (-1, 1))
            inside = tuple(slice(int(np.ceil(a)), int(b) + 1)
                           for a, b in zip(low, high))
            middle = tuple(np.rint((low + high) / 2).astype(int))
            if reader.classes[finding.label] == 'pore':
                # What the point spread lets into a ball of its volume.
                radius = finding.record['diameter'] / 2
                let_in = stats.chi.sf(radius / blade.POINT_SPREAD, 3)
                assert mu[middle] < (let_in + .1) * blade.MU_ALLOY
                assert mu[inside].max() > .8 * blade.MU_ALLOY
            else:
                assert mu[middle] > blade.MU_ALLOY * 1.3
            other[inside] = False
        assert not other.any()


def test_defects_show_in_their_2d_boxes(blades):
    """With and without a defect the images differ inside its 2D boxes, and
    there alone."""
    rig = Rig.circle(3, 300, 600, 256, 256.)
    mu, defects = blade.make_blade(3, 0)
    rng = np.random.default_rng([3, 0])
    without = ndimage.gaussian_filter(
        blade.MU_ALLOY * blade._metal(rng),
        blade.POINT_SPREAD / blade.SPACING)

    def images(attenuation):
        return render(Volume.centred(1000 * (attenuation / MU_WATER - 1),
                                     np.eye(3) * blade.SPACING), rig)

    boxes = np.array([[*d.centre, *d.size, 0] for d in defects])
    for view, a, b in zip(rig.views, images(mu), images(without)):
        assert .5 < a.max() < 16
        change = a - b
        rects, _ = geometry.project_boxes(boxes, view.ct2img[None])
        free = np.ones_like(change, bool)
        for defect, (x1, y1, x2, y2) in zip(defects, rects[0]):
            # The point spread reaches 3 px beyond.
            rows = slice(int(y1) - 3, int(y2) + 5)
            columns = slice(int(x1) - 3, int(x2) + 5)
            free[rows, columns] = False
            strongest = np.abs(change[rows, columns]).max()
            # Its diameter times how much it differs.
            assert strongest > .5 * defect.diameter * abs(
                defect.mu - blade.MU_ALLOY)
        assert np.abs(change[free]).max() < 5e-3
