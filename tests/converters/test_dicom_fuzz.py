"""Thousands of damaged DICOM files: each series is read, or refused in one
line; nothing else may come out of it, and nothing may take long."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydicom.data import get_testdata_file

from data_converters.dicom import list_series, read_series
from data_converters.scan import ConversionError
from tests.helpers.files import mutate
from tests.helpers.series import UID, chest, write_series

HEIGHTS = np.arange(6) * 1.5
FOLDER = Path(get_testdata_file('CT_small.dcm')).parent
FILES = sorted(p for p in FOLDER.rglob('*')
               if p.is_file() and p.stat().st_size < 400_000)
FIELDS = (
    'BitsAllocated', 'BitsStored', 'Columns', 'FrameOfReferenceUID',
    'HighBit', 'ImageOrientationPatient', 'ImagePositionPatient',
    'InstanceNumber', 'Modality', 'NumberOfFrames', 'PatientID',
    'PhotometricInterpretation', 'PixelData', 'PixelPaddingValue',
    'PixelRepresentation', 'PixelSpacing', 'PlanarConfiguration',
    'RescaleIntercept', 'RescaleSlope', 'Rows', 'SOPClassUID',
    'SamplesPerPixel', 'SeriesInstanceUID', 'SpecificCharacterSet')
VALUES = st.sampled_from([
    b'', b'0', b'1', b'-1', b'7', b'16', b'4095', b'\0\0', b'\1\0',
    b'\x10\0', b'\xff\xff', b'1e308', b'-1e-320', b'nan', b'inf', b'0\\0',
    b'1\\1', b'0\\0\\0', b'-0\\-0\\3', b'1\\0\\0\\0\\1\\0',
    b'0\\1\\0\\1\\0\\0', b'nan\\nan\\nan', b'\\\\\\', b'a\nb', b'\xff' * 9,
    b'ISO 2022 IR 87', b'MONOCHROME1', b'RGB', b'\x1b$B', b'1' * 300])


def fuzz(examples):
    return settings(
        max_examples=examples, derandomize=True, database=None,
        deadline=timedelta(seconds=20),
        suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clean')
    return write_series(folder, chest(6, 16, 16), HEIGHTS)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'series'


def check(folder, uid=UID, heights=HEIGHTS):
    """What must hold for whatever a folder has."""
    try:
        series = read_series(folder, uid, heights)
    except ConversionError as error:
        text = str(error)
        assert text.isprintable() and text.encode() and len(text) < 1000
        assert 'expected' in text and 'found' in text
        return False
    assert series.values.shape[2] == len(heights)
    assert np.isfinite(series.values).all()
    assert np.isfinite(series.index2lps).all()
    assert all(text.isprintable() for text in series.repairs)
    return True


def spread(clean, place, contents):
    """A series whose first files have other contents."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for k, path in enumerate(clean):
        if k < len(contents):
            (place / path.name).write_bytes(contents[k])
        else:
            os.link(path, place / path.name)


CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True),
              st.sampled_from(['over', 'over', 'over', 'in', 'out', 'end']),
              st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@pytest.mark.slow
def test_changed_bytes(clean, place):
    """In a slice that may be missing, or the first; half of a file is its
    header."""
    contents = [path.read_bytes() for path in clean[:3]]
    counts = {True: 0, False: 0}

    @fuzz(1100)
    @given(st.sampled_from([0, 2]), CHANGES)
    def run(k, changes):
        damaged = list(contents)
        damaged[k] = mutate(contents[k], changes)
        spread(clean, place, damaged)
        counts[check(place)] += 1

    run()
    assert min(counts.values()) > 50, counts


def split(path):
    """A file's bytes before its data set, and those of its elements."""
    data = pydicom.dcmread(path)
    elements = {}
    for element in data:
        stream = pydicom.filebase.DicomBytesIO()
        stream.is_little_endian, stream.is_implicit_VR = True, False
        pydicom.filewriter.write_data_element(stream, element)
        elements[element.tag] = stream.getvalue()
    content = path.read_bytes()
    return content[:-sum(map(len, elements.values()))], elements


@pytest.mark.slow
def test_changed_fields(clean, place):
    """Fields with values of any kind, or without; in one slice or in all."""
    counts = {True: 0, False: 0}
    parts = [split(path) for path in clean]
    for path, (start, elements) in zip(clean, parts):
        assert path.read_bytes() == start + b''.join(elements.values())

    @fuzz(700)
    @given(st.dictionaries(st.sampled_from(FIELDS),
                           st.one_of(st.none(), VALUES), min_size=1,
                           max_size=3), st.sampled_from(['one', 'all']))
    def run(fields, where):
        contents = []
        for start, elements in parts:
            elements = dict(elements)
            for name, value in fields.items():
                tag = pydicom.tag.Tag(name)
                elements.pop(tag, None)
                if value is None:
                    continue
                value += b' ' * (len(value) % 2)
                vr = pydicom.datadict.dictionary_VR(tag)[:2].encode()
                size = len(value).to_bytes(4, 'little')
                elements[tag] = (
                    tag.group.to_bytes(2, 'little')
                    + tag.element.to_bytes(2, 'little') + vr
                    + (b'\0\0' + size if vr in (b'OB', b'OW') else size[:2])
                    + value)
            contents.append(start + b''.join(
                elements[tag] for tag in sorted(elements)))
        if where == 'one':
            contents = [p.read_bytes() for p in clean[:2]] + contents[2:3]
        spread(clean, place, contents)
        counts[check(place)] += 1

    run()
    assert min(counts.values()) > 50, counts


def make_series(path, folder):
    """Three slices of one image."""
    data = pydicom.dcmread(path)
    data.SeriesInstanceUID = UID
    data.Modality = 'CT'
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [1, 1]
    for k in range(3):
        data.ImagePositionPatient = [0, 0, k]
        data.save_as(folder / f'{k}.dcm')


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_files_of_pydicom(path, tmp_path):
    """As they are, and as three slices where that can be made of them."""
    shutil.copy(path, tmp_path / 'as-it-is.dcm')
    for uid in {'', '1.2.3', *list_series(tmp_path)}:
        check(tmp_path, uid)
    try:
        make_series(path, tmp_path)
    except Exception:  # it is not an image, or meant to be damaged
        return
    check(tmp_path, UID, np.arange(3.))


@pytest.mark.slow
def test_changed_bytes_of_pydicoms_files(tmp_path):
    """Slices of other syntaxes, compressed ones among them."""
    kinds = []
    for name in ('CT_small', 'MR_small_RLE', 'MR_small_bigendian',
                 'MR_small_implicit', 'MR_small_jp2klossless', 'image_dfl'):
        folder = tmp_path / name
        folder.mkdir()
        make_series(FOLDER / f'{name}.dcm', folder)
        kinds.append([(folder / f'{k}.dcm').read_bytes() for k in range(3)])
    place = tmp_path / 'series'
    place.mkdir()

    @fuzz(250)
    @given(st.sampled_from(kinds), CHANGES)
    def run(contents, changes):
        contents = [contents[0], mutate(contents[1], changes), contents[2]]
        for k, content in enumerate(contents):
            (place / f'{k}.dcm').write_bytes(content)
        check(place, UID, np.arange(3.))

    run()
