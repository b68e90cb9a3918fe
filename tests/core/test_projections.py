"""Readers of projections: what they read, what they refuse, and that nothing
but a sentence comes out of damaged files."""

import re
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
from pydicom.uid import RLELossless
from scipy import ndimage

from projects.core.files import DataError
from projects.core.projections import (
    Reading,
    find_objects,
    read_projections,
)
from projects.core.rig import Rig
from tests.helpers.files import mutate, write_dicom

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


def write_all(tmp_path):
    """The same object in each kind of file, with the options to read it; and
    its line integrals."""
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
    whole = pydicom.dcmread(tmp_path / 'frames.dcm')
    whole.compress(RLELossless)
    whole.save_as(tmp_path / 'rle.dcm')
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
        'rle.dcm': {},
        'scan.raw': dict(shape=[VIEWS, SIZE, SIZE], dtype='>uint16'),
        'named': {}, 'ordered': {}, 'list.txt': {}})
    return cases, integrals


def test_readers_agree(tmp_path, flat):
    """Each kind of file, one image or all in a file."""
    cases, integrals = write_all(tmp_path)
    for name, options in cases.items():
        found = read(tmp_path / name, flat=flat, **options)
        np.testing.assert_allclose(found.views, integrals, atol=2e-4,
                                   err_msg=name)
    found = read(tmp_path / 'scan.h5')
    np.testing.assert_allclose(found.views, integrals, atol=2e-4)
    assert 'flat of the file' in found.note


def test_a_part_of_a_file_is_none(tmp_path, flat):
    """However much of a file has been copied: its images, or a sentence."""
    cases, integrals = write_all(tmp_path)
    cases['scan.h5'] = {}
    files = {name: options for name, options in cases.items()
             if (tmp_path / name).is_file() and name != 'list.txt'}
    files['named'] = {}
    for name, options in files.items():
        path = tmp_path / name
        if name != 'scan.h5':
            options = dict(options, flat=flat)
        changed = path / 'CAM_01.png' if path.is_dir() else path
        content = changed.read_bytes()
        lengths = np.unique(np.r_[
            np.linspace(0, len(content) - 1, 40), len(content) - np.arange(
                1, 30)].astype(int).clip(0))
        refused = 0
        for length in lengths:
            changed.write_bytes(content[:length])
            try:
                found = read(path, **options)
            except DataError:
                refused += 1
                continue
            np.testing.assert_allclose(found.views, integrals, atol=2e-4,
                                       err_msg=f'{name} {length}')
        assert refused >= 40, name


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


@pytest.mark.parametrize('share', [0., .02, .1])
@pytest.mark.parametrize('place', [(70, 8), (60, 40)])
def test_a_beam_stop_says_how_much_scatter_there_is(tmp_path, share, place):
    """Beside the object and in front of it; what is in its shadow apart, the
    line integrals are right. The object is taken for thinner than it is by
    the scatter in it, so that the share is told a little too large."""
    side, sigma, rng = 96, 12., np.random.default_rng(0)
    rig = Rig.circle(3, image_size=side)
    y, x = np.mgrid[:side, :side] - side / 2
    ideal = np.stack([3 * np.exp(-((x - 3 * v)**2 + y**2) / 600)
                      for v in range(3)])
    through = np.exp(-ideal)
    scatter = share * ndimage.gaussian_filter(
        1 - through, (0, sigma, sigma), mode='constant', truncate=3)
    x0, y0 = place
    stop = np.ones((side, side))
    stop[y0 - 2:y0 + 8, x0 - 2:x0 + 8] = 0
    write_tiff(tmp_path / 'raw.tif', rng.poisson(
        5e5 * (through * stop + scatter)).astype(np.float32) + 100)
    write_tiff(tmp_path / 'dark.tif', np.full((side, side), 100, np.float32))
    write_tiff(tmp_path / 'flat.tif', np.full(
        (side, side), 5e5 + 100, np.float32))

    def found(**options):
        return read_projections([tmp_path / 'raw.tif'], rig.views, Reading(
            flat=[str(tmp_path / 'flat.tif')], scatter_width=sigma,
            dark=[str(tmp_path / 'dark.tif')], **options))

    region = [x0, y0, x0 + 6, y0 + 6]
    measured = found(beam_stop=region)
    away = ndimage.binary_dilation(stop == 0, iterations=8)
    error = np.abs(measured.views - ideal)[:, ~away]
    assert 'its share by the beam stop' in measured.note
    told = re.search(r'scatter of ([.\de-]+) of the beam', measured.note)
    assert float(told[1]) == pytest.approx(share, rel=.16, abs=5e-4)
    assert np.percentile(error, 99) < .1
    if share == .1:
        left_in = np.abs(found().views - ideal)[:, ~away]
        assert np.percentile(left_in, 99) > .3
    with pytest.raises(DataError, match='is the region in the shadow'):
        found(beam_stop=[0, 40, 6, 46])


def test_beam_stops_that_say_nothing(tmp_path, flat):
    for options, sentence in (
            (dict(scale=1.), 'found neither'), (dict(flat=flat, scatter=.1),
                                                'found --scatter')):
        with pytest.raises(DataError, match=f'--beam-stop.*{sentence}'):
            Reading(beam_stop=[0, 0, 2, 2], **options)
    with pytest.raises(DataError, match='--beam-stop: expected x0 < x1'):
        Reading(beam_stop=[2, 0, 2, 2], flat=flat)
    write_tiff(tmp_path / 'raw.tif', counts()[0])
    with pytest.raises(DataError, match='--beam-stop: expected within 16'):
        read(tmp_path / 'raw.tif', flat=flat, beam_stop=[0, 0, 17, 2])
    raw = np.full((VIEWS, SIZE, SIZE), 20000, np.uint16)
    raw[:, 12:, 12:] = 5000
    write_tiff(tmp_path / 'raw.tif', raw)
    with pytest.raises(DataError, match='makes scatter, found none within'):
        read(tmp_path / 'raw.tif', flat=flat, beam_stop=[0, 0, 2, 2],
             scatter_width=.5)


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
        damaged = mutate(content, [
            (where * (min(400 / len(content), 1) if near < .5 else 1), *rest)
            for where, near, *rest in changes])
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
