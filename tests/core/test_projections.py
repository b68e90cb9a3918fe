"""Readers of projections: what they read, what they refuse, and that nothing
but a sentence comes out of damaged files."""

import struct
import zlib
from datetime import timedelta

import cv2
import h5py
import numpy as np
import psutil
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings, strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from projects.core.files import DataError
from projects.core.projections import (
    Reading,
    find_objects,
    read_projections,
)
from projects.core.rig import Rig

SIZE, VIEWS = 16, 3
RIG = Rig.circle(VIEWS, image_size=SIZE)
MEMORY = 400 << 20  # that a damaged file may take (bytes)


def counts(seed=0, kind=np.uint16, top=20000):
    """Images of a ball, and the line integrals they stand for."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    rng = np.random.default_rng(seed)
    integrals = np.stack([
        1.5 * np.exp(-((x - v)**2 + y**2) / 18)
        + .01 * rng.random((SIZE, SIZE)) for v in range(VIEWS)])
    return (top * np.exp(-integrals)).astype(kind), integrals


def write_dicom(path, frames, modality='DX', relation='LIN', sign=1, **more):
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    data.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    data.SOPClassUID, data.SOPInstanceUID = (
        '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3')
    data.Modality = modality
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = 'MONOCHROME2'
    data.NumberOfFrames = len(frames)
    data.Rows, data.Columns = frames.shape[1:]
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    if relation:
        data.PixelIntensityRelationship = relation
        data.PixelIntensityRelationshipSign = sign
    data.PixelData = frames.astype('<u2').tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def write_tiff(path, frames):
    tifffile.imwrite(path, frames, photometric='minisblack')


def write_hdf5(path, frames, name='data'):
    with h5py.File(path, 'w') as stream:
        group = stream.create_group('exchange')
        group['data'] = frames
        group['data_white'] = np.full((2, SIZE, SIZE), 20000, np.uint16)
        group['data_dark'] = np.zeros((2, SIZE, SIZE), np.uint16)


def read(place, **options):
    return read_projections([place], RIG.views, Reading(**options))


@pytest.fixture
def flat(tmp_path):
    path = tmp_path / 'flat' / 'flat.tif'
    path.parent.mkdir()
    write_tiff(path, np.full((SIZE, SIZE), 20000, np.uint16))
    return [str(path)]


def test_readers_agree(tmp_path, flat):
    """Each kind of file, one image or all in a file."""
    frames, integrals = counts()
    cases = {}
    write_tiff(tmp_path / 'pages.tif', frames)
    for name, compression in (('lzw', 5), ('deflate', 8)):
        ok, content = cv2.imencodemulti(
            '.tif', list(frames), [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        (tmp_path / f'{name}.tif').write_bytes(content.tobytes())
        cases[f'{name}.tif'] = {}
    write_tiff(tmp_path / 'float.tif', frames.astype(np.float32))
    write_tiff(tmp_path / 'long.tif', frames.astype(np.uint32))
    write_dicom(tmp_path / 'frames.dcm', frames)
    write_hdf5(tmp_path / 'scan.h5', frames)
    frames.astype('>u2').tofile(tmp_path / 'scan.raw')
    (tmp_path / 'named').mkdir()
    (tmp_path / 'ordered').mkdir()
    for view, frame in zip(RIG.views, frames):
        cv2.imwrite(str(tmp_path / 'named' / f'{view.name}.png'), frame)
    for number, frame in enumerate(frames):
        # Names in the wrong order, instance numbers in the right one.
        write_dicom(tmp_path / 'ordered' / f'{9 - number}', frame[None],
                    InstanceNumber=number + 1)
    (tmp_path / 'list.txt').write_text('\n'.join(
        f'named/{view.name}.png' for view in RIG.views))
    cases.update({
        'pages.tif': {}, 'float.tif': {}, 'long.tif': {}, 'frames.dcm': {},
        'scan.raw': dict(shape=[VIEWS, SIZE, SIZE], dtype='>uint16'),
        'named': {}, 'ordered': {}, 'list.txt': {}})
    for name, options in cases.items():
        found = read(tmp_path / name, flat=flat, **options)
        np.testing.assert_allclose(found.views, integrals, atol=2e-4,
                                   err_msg=name)
    found = read(tmp_path / 'scan.h5')
    np.testing.assert_allclose(found.views, integrals, atol=2e-4)
    assert 'flat of the file' in found.note


def test_open_field_and_corrections(tmp_path):
    """Offset, gain, a dead and a hot pixel, against the truth."""
    rng = np.random.default_rng(1)
    gain = rng.uniform(.8, 1.2, (SIZE, SIZE))
    dark = rng.uniform(90, 110, (SIZE, SIZE))
    frames, integrals = counts(kind=float)
    raw, flat = frames * gain + dark, 20000 * gain + dark
    raw[:, 5, 6] = flat[5, 6] = dark[5, 6]
    dark[9, 3] = raw[:, 9, 3] = 19000.
    for name, images in dict(raw=raw, flat=[flat, flat],
                             dark=[dark - 1, dark + 1]).items():
        write_tiff(tmp_path / f'{name}.tif', np.float32(images))
    found = read(tmp_path / 'raw.tif', flat=[str(tmp_path / 'flat.tif')],
                 dark=[str(tmp_path / 'dark.tif')])
    assert found.facts['dead_pixels'] == 2
    assert 'dark of 2 images, flat of 2 images' in found.note
    np.testing.assert_allclose(found.views, integrals, atol=.25)
    whole = np.ones((SIZE, SIZE), bool)
    whole[5, 6] = whole[9, 3] = False
    np.testing.assert_allclose(np.stack(found.views)[:, whole],
                               integrals[:, whole], atol=1e-3)
    write_tiff(tmp_path / 'even.tif', np.float32(frames))
    found = read(tmp_path / 'even.tif', open_field=[0, 0, SIZE, 2])
    beam = np.median(np.exp(-integrals[:, :2]), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.views, integrals + np.log(beam),
                               atol=1e-4)


def test_what_dicom_says(tmp_path):
    frames, integrals = counts()
    expected = integrals - integrals.min((1, 2), keepdims=True)
    write_dicom(tmp_path / 'a.dcm', frames)
    np.testing.assert_allclose(read(tmp_path / 'a.dcm').views, expected,
                               atol=.02)
    write_dicom(tmp_path / 'b.dcm', 65535 - frames, sign=-1)
    found = read(tmp_path / 'b.dcm')
    assert 'larger values are less' in found.note
    np.testing.assert_allclose(found.views, expected, atol=.02)
    # What is shown white says nothing of the beam.
    write_dicom(tmp_path / 'm.dcm', 65535 - frames, sign=-1,
                PhotometricInterpretation='MONOCHROME1')
    np.testing.assert_array_equal(read(tmp_path / 'm.dcm').views,
                                  found.views)
    write_dicom(tmp_path / 'flat.dcm', np.full((1, SIZE, SIZE), 45535),
                sign=-1)
    found = read(tmp_path / 'b.dcm', flat=[str(tmp_path / 'flat.dcm')])
    np.testing.assert_allclose(found.views, integrals, atol=2e-4)
    # Optical density in thousandths, by a slope.
    write_dicom(tmp_path / 'c.dcm', integrals * 4000, relation='LOG',
                RescaleSlope=1000 / np.log(10) / 4000, RescaleIntercept=0,
                RescaleType='OD')
    np.testing.assert_allclose(read(tmp_path / 'c.dcm').views, integrals,
                               atol=1e-3)
    write_dicom(tmp_path / 'd.dcm', frames, relation='LOG', sign=-1)
    with pytest.raises(DataError, match='LOG without a scale'):
        read(tmp_path / 'd.dcm')
    write_dicom(tmp_path / 'e.dcm', frames, modality='CT')
    with pytest.raises(DataError, match='Modality: expected a projection'):
        read(tmp_path / 'e.dcm')


@pytest.mark.parametrize('change, options, sentence', [
    (lambda f: f, {}, 'expected --flat, --open-field, or --scale'),
    (lambda f: np.where(f > 9e9, f, np.nan), dict(scale=1.), 'finite'),
    (lambda f: f * 0 + 3, dict(scale=1.), 'found 3 everywhere'),
    (lambda f: np.minimum(f / 4, 4095).astype(np.uint16), dict(scale=1.),
     'it is saturated'),
    (lambda f: f[:2], dict(scale=1.), 'expected 3, one for each'),
    (lambda f: f[:, :9], dict(scale=1.), 'image size: expected 16 x 16'),
    (lambda f: f * 0 + 20000 + f % 3, dict(open_field=[0, 0, 9, 9]),
     'it is empty'),
    (lambda f: f, dict(open_field=[0, 0, 99, 9]), '--open-field: expected'),
    (lambda f: f, dict(scale=1., frames=[0, 1, 9]), '--frames'),
])
def test_refusals(tmp_path, change, options, sentence):
    frames = change(counts(kind=np.float64)[0])
    write_tiff(tmp_path / 'a.tif', frames if frames.dtype == np.uint16
               else np.float32(frames))
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / 'a.tif', **options)


@pytest.mark.parametrize('options', [
    dict(flat=['a'], open_field=[0, 0, 1, 1]), dict(flat=['a'], scale=1.),
    dict(scale=0.), dict(scale=float('nan')), dict(shape=[3, 3]),
    dict(open_field=[3, 0, 1, 1]), dict(scatter=2.), dict(frames=[-1]),
    dict(max_saturated=-1.), dict(shape=[0, 2], dtype='uint8')])
def test_options_that_contradict(options):
    with pytest.raises(DataError, match='expected'):
        Reading(**options)


def test_objects(tmp_path):
    frames, _ = counts()
    for name in ('b', 'a10', 'a9'):
        (tmp_path / name).mkdir()
        write_tiff(tmp_path / name / 'all.tif', frames)
    assert list(find_objects([tmp_path], VIEWS, Reading())) == [
        'a9', 'a10', 'b']
    files = []
    for number, frame in enumerate(frames):
        files.append(tmp_path / f'{number}.tif')
        write_tiff(files[-1], frame)
    assert list(find_objects(files, VIEWS, Reading()).values()) == [files]
    assert len(find_objects(files, 5, Reading())) == VIEWS
    with pytest.raises(DataError, match='no other object has'):
        find_objects([tmp_path / 'b', tmp_path / 'b'], VIEWS, Reading())
    with pytest.raises(DataError, match='found neither'):
        find_objects([tmp_path / 'none'], VIEWS, Reading())


def test_data_exchange_that_leads_elsewhere(tmp_path):
    write_hdf5(tmp_path / 'secret.h5', counts()[0])
    with h5py.File(tmp_path / 'a.h5', 'w') as stream:
        stream.create_group('exchange')['data'] = h5py.ExternalLink(
            str(tmp_path / 'secret.h5'), '/exchange/data')
    with pytest.raises(DataError, match='Data Exchange'):
        read(tmp_path / 'a.h5')


# -------------------------------------------------------------------- fuzzing
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1),
              st.sampled_from(['over', 'over', 'over', 'in', 'out', 'end']),
              st.one_of(st.binary(min_size=1, max_size=8),
                        st.sampled_from([b'\xff' * 4, b'\0' * 4, b'\x7f',
                                         b'\xff\xff\xff\x7f']))),
    min_size=1, max_size=4)


def mutate(content, changes):
    """Bytes overwritten, cut out or put in; half of the changes are in the
    first 400 bytes, where headers are."""
    content = bytearray(content)
    for where, near, kind, new in changes:
        start = int(where * (min(400, len(content)) if near < .5
                             else len(content)))
        if kind == 'over':
            content[start:start + len(new)] = new
        elif kind == 'in':
            content[start:start] = new
        elif kind == 'out':
            del content[start:start + 3 * len(new)]
        else:
            del content[start:]
    return bytes(content)


def mended(content):
    """A PNG whose parts have the checksums that they need."""
    out, place = bytearray(content), 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place:place + 4], 'big')
        out[end:end + 4] = struct.pack(
            '>I', zlib.crc32(bytes(out[place + 4:end])))
        place = end + 4
    return bytes(out)


def make_file(kind, path):
    frames, _ = counts()
    if kind == 'TIFF':
        write_tiff(path, frames)
    elif kind == 'LZW':
        _, content = cv2.imencodemulti('.tif', list(frames))
        path.write_bytes(content.tobytes())
    elif kind == 'PNG':
        cv2.imwrite(str(path.with_suffix('.png')), frames[0])
        path.with_suffix('.png').rename(path)
    elif kind == 'DICOM':
        write_dicom(path, frames)
    elif kind == 'HDF5':
        write_hdf5(path, frames)
    else:
        frames.tofile(path)


@pytest.mark.parametrize('kind', ['TIFF', 'LZW', 'PNG', 'DICOM', 'HDF5',
                                  'raw'])
def test_damaged_files(kind, tmp_path):
    """500 of each are read, or refused in one line, in bounded memory."""
    path = tmp_path / 'damaged'
    make_file(kind, path)
    content = path.read_bytes()
    views = RIG.views[:1] if kind == 'PNG' else RIG.views
    reading = Reading(scale=1., **(
        dict(shape=[VIEWS, SIZE, SIZE], dtype='uint16')
        if kind == 'raw' else {}))
    read_projections([path], views, reading)
    process = psutil.Process()
    before, done = process.memory_info().rss, {True: 0, False: 0}

    @settings(max_examples=500, derandomize=True, database=None,
              deadline=timedelta(seconds=10),
              suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def run(changes):
        damaged = mutate(content, changes)
        path.write_bytes(mended(damaged) if kind == 'PNG' else damaged)
        try:
            found = read_projections([path], views, reading)
        except DataError as error:
            text = str(error)
            assert text.isprintable() and len(text) < 1000
            assert 'expected' in text and 'found' in text
            done[False] += 1
        else:
            assert all(np.isfinite(image).all() for image in found.views)
            done[True] += 1
        assert process.memory_info().rss - before < MEMORY

    run()
    assert done[False] > 20, done
    assert done[True] > (0 if kind == 'PNG' else 20), done


def test_headers_that_promise_too_much(tmp_path):
    """Sizes are compared with the rig's before pixels are read."""
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.eye(SIZE, dtype=np.uint16))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack('>II', 2**31 - 1, 2**31 - 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match='image size: expected 16 x 16'):
        read_projections([path], RIG.views[:1], Reading(scale=1.))
