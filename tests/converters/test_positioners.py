"""Rigs from DICOM: vectors worked out by hand from the standard."""

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from data_converters.__main__ import main
from data_converters.geometries import read_geometry
from projects.core import geometry
from tests.helpers.rigs import (
    POINTS,
    assert_told,
    damaged,
    projected,
    refusal,
    round_trip,
)

XA = '1.2.840.10008.5.1.4.1.1.12.1'
ENHANCED = '1.2.840.10008.5.1.4.1.1.12.1.1'
BREAST = '1.2.840.10008.5.1.4.1.1.13.1.4'
SLICES = '1.2.840.10008.5.1.4.1.1.13.1.3'
# A pixel at the isocentre is a quarter of a mm.
COLUMNS, ROWS, PITCH, NEAR, WHOLE = 512, 400, .4, 750., 1200.


def filled(**fields):
    data = Dataset()
    for key, value in fields.items():
        setattr(data, key, value)
    return data


def save(path, kind, **fields):
    data = filled(**dict(dict(SOPClassUID=kind, Columns=COLUMNS, Rows=ROWS),
                         **fields))
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    data.save_as(path, enforce_file_format=True)
    return path


def xa(path, primary=0., secondary=0., **fields):
    return save(path, XA, **dict(
        dict(PositionerPrimaryAngle=primary,
             PositionerSecondaryAngle=secondary,
             DistanceSourceToDetector=WHOLE, DistanceSourceToPatient=NEAR,
             ImagerPixelSpacing=[PITCH, PITCH]), **fields))


def enhanced(path, frames, **fields):
    """``frames``: a dict of each, by macro."""
    return save(
        path, ENHANCED, NumberOfFrames=len(frames),
        SharedFunctionalGroupsSequence=[filled(
            XRayGeometrySequence=[filled(
                DistanceSourceToIsocenter=NEAR,
                DistanceSourceToDetector=WHOLE)],
            FramePixelDataPropertiesSequence=[filled(
                ImagerPixelSpacing=[PITCH, PITCH])],
            FieldOfViewSequence=[filled(FieldOfViewOrigin=[0, 0])])],
        PerFrameFunctionalGroupsSequence=[
            filled(**{k: [v] for k, v in frame.items()}) for frame in frames],
        **fields)


def seen(path, points, view=0):
    """(N, 2) in the image as it is stored (px)."""
    read = read_geometry(path)
    uv = projected(read.rig, view, points)
    return [0, ROWS] + uv * [1, -1] if read.upside_down else uv


def test_before_the_patient(tmp_path, capsys):
    """At 0 the detector is before the chest: left is right, up is up, and
    what is nearer to the detector is smaller."""
    path = xa(tmp_path / 'a.dcm')
    main(['rig', '--from', str(path), '--out', str(tmp_path / 'rig.json')])
    shown = capsys.readouterr().out
    assert 'upside down' in shown and 'faces the patient' in shown
    far = WHOLE / (NEAR + 50) / PITCH
    np.testing.assert_allclose(
        seen(path, [[0, 0, 0], [-10, 0, 0], [0, 0, 10], [-10, 50, 0]]),
        [[256, 200], [256 + 40, 200], [256, 200 - 40],
         [256 + 10 * far, 200]], atol=1e-9)
    round_trip(read_geometry(path).rig, tmp_path)


def test_at_the_patients_left(tmp_path):
    """LAO 90: the detector is at the left side, the chest at the image's
    left."""
    path = xa(tmp_path / 'a.dcm', 90)
    far = WHOLE / (NEAR + 50) / PITCH
    np.testing.assert_allclose(
        seen(path, [[0, 10, 0], [0, 0, 10], [-50, 0, 10]]),
        [[256 - 40, 200], [256, 200 - 40], [256, 200 - 10 * far]],
        atol=1e-9)


def test_towards_the_head(tmp_path):
    """CRA 30: source, isocentre and detector are on a line that rises by 30
    degrees to the front and the head."""
    path = xa(tmp_path / 'a.dcm', 0, 30)
    rise = np.array([0, np.cos(np.pi / 6), np.sin(np.pi / 6)])
    source = geometry.camera_centres(read_geometry(path).rig.views[0].ct2cam)
    np.testing.assert_allclose(source, -NEAR * rise, atol=1e-9)
    # Square to it, up and to the back.
    across = np.array([0, -np.sin(np.pi / 6), np.cos(np.pi / 6)])
    np.testing.assert_allclose(seen(path, [50 * rise, 10 * across]),
                               [[256, 200], [256, 200 - 40]], atol=1e-9)
    # Longitude, then latitude: LAO 90 leaves the front out.
    path = xa(tmp_path / 'b.dcm', 90, 30)
    source = geometry.camera_centres(read_geometry(path).rig.views[0].ct2cam)
    np.testing.assert_allclose(
        source, NEAR * np.array([np.cos(np.pi / 6), 0, -.5]), atol=1e-9)


@pytest.mark.parametrize('increments', [20., [0., 20., 40.]])
def test_a_rotation(tmp_path, increments):
    """One step for all frames, or what was added at each."""
    path = xa(tmp_path / 'a.dcm', -30, 5, NumberOfFrames=3,
              PositionerPrimaryAngleIncrement=increments,
              PositionerSecondaryAngleIncrement=0.)
    assert len(read_geometry(path).rig) == 3
    for view, angle in enumerate((-30, -10, 10)):
        np.testing.assert_allclose(
            seen(path, POINTS, view),
            seen(xa(tmp_path / 'b.dcm', angle, 5), POINTS))
    # The same as files of a folder, in their order.
    folder = tmp_path / 'run'
    folder.mkdir()
    for number, angle in ((3, 10), (1, -30), (2, -10)):
        xa(folder / f'{angle}.dcm', angle, 5, InstanceNumber=number)
    (folder / 'notes.txt').write_text('no image')
    for view in range(3):
        np.testing.assert_allclose(seen(folder, POINTS, view),
                                   seen(path, POINTS, view))


def test_orientation_that_is_told(tmp_path):
    """Of an image that was flipped, or turned by a quarter."""
    usual = seen(xa(tmp_path / 'a.dcm', 20, 10), POINTS)
    for told, expected in (
            (['L', 'F'], usual), (['LP', 'FA'], usual),
            (['R', 'F'], [COLUMNS, 0] + usual * [-1, 1]),
            (['L', 'H'], [0, ROWS] + usual * [1, -1]),
            (['F', 'L'], (usual - [256, 200])[:, ::-1] + [256, 200])):
        path = xa(tmp_path / 'b.dcm', 20, 10, PatientOrientation=told)
        assert not read_geometry(path).notes
        np.testing.assert_allclose(seen(path, POINTS), expected, atol=1e-9)


def test_frames_of_enhanced_xa(tmp_path):
    """Angles about the patient, or about the isocentre."""
    angles = [(0, 0), (35, -10), (-60, 20)]
    patient = enhanced(tmp_path / 'a.dcm', [
        dict(PositionerPositionSequence=filled(
            PositionerPrimaryAngle=p, PositionerSecondaryAngle=s))
        for p, s in angles])
    gantry = enhanced(tmp_path / 'b.dcm', [
        dict(IsocenterReferenceSystemSequence=filled(
            PositionerIsocenterPrimaryAngle=p,
            PositionerIsocenterSecondaryAngle=s,
            PositionerIsocenterDetectorRotationAngle=0.))
        for p, s in angles])
    for view, (p, s) in enumerate(angles):
        expected = seen(xa(tmp_path / 'c.dcm', p, s), POINTS)
        for path in (patient, gantry):
            np.testing.assert_allclose(seen(path, POINTS, view), expected,
                                       atol=1e-3)


def test_place_of_the_isocentre(tmp_path):
    """Elements of 0.2 mm, two to a pixel: 10 pixels to the right of the
    middle and 7 above it."""
    frame = dict(PositionerPositionSequence=filled(
        PositionerPrimaryAngle=0, PositionerSecondaryAngle=0))
    place = [2 * (200 - 7) - .5, 2 * (256 + 10) - .5]
    path = enhanced(tmp_path / 'a.dcm', [frame],
                    PositionOfIsocenterProjection=place,
                    DetectorElementSpacing=[.2, .2])
    np.testing.assert_allclose(seen(path, [[0, 0, 0], [-10, 0, 0]]),
                               [[266, 193], [306, 193]], atol=1e-3)
    path = enhanced(tmp_path / 'b.dcm', [frame],
                    PositionOfIsocenterProjection=place)
    read = read_geometry(path)
    assert any('is not used' in note for note in read.notes)
    np.testing.assert_allclose(seen(path, [[0, 0, 0]]), [[256, 200]])


SYSTEM = dict(
    XRaySourceIsocenterPrimaryAngle=0., XRaySourceIsocenterSecondaryAngle=0.,
    DetectorIsocenterPrimaryAngle=0., DetectorIsocenterSecondaryAngle=0.,
    DetectorXPositionToIsocenter=0., DetectorYPositionToIsocenter=0.,
    DetectorZPositionToIsocenter=-50.,
    # The first pixel is at the gantry's left and rear; rows go to the front.
    DetectorActiveAreaTLHCPosition=[-51.1, 39.9, 0.],
    DetectorActiveAreaOrientation=[1., 0, 0, 0, -1., 0])


def breast(path, *systems, **fields):
    return save(path, BREAST, NumberOfFrames=len(systems),
                SharedFunctionalGroupsSequence=[filled(
                    XRayGeometrySequence=[filled(
                        DistanceSourceToIsocenter=600.)],
                    FramePixelDataPropertiesSequence=[filled(
                        ImagerPixelSpacing=[.2, .2])])],
                PerFrameFunctionalGroupsSequence=[
                    filled(IsocenterReferenceSystemSequence=[filled(
                        **dict(SYSTEM, **system))]) for system in systems],
                **fields)


def test_tomosynthesis(tmp_path):
    """The source goes to the gantry's right: what is over the detector goes
    to its left. From above, the image is as it is."""
    path = breast(tmp_path / 'a.dcm', {}, dict(
        XRaySourceIsocenterPrimaryAngle=15.))
    read = read_geometry(path)
    assert not read.upside_down
    np.testing.assert_allclose(
        projected(read.rig, 0, [[0, 0, 0], [10, 0, -50], [0, 10, -50]]),
        [[256, 200], [306, 200], [256, 150]], atol=1e-6)
    source = 600 * np.array([np.sin(np.pi / 12), 0, np.cos(np.pi / 12)])
    np.testing.assert_allclose(geometry.camera_centres(
        read.rig.views[1].ct2cam), source, atol=1e-6)
    shift = 50 * np.tan(np.pi / 12) / .2
    np.testing.assert_allclose(
        projected(read.rig, 1, [[0, 0, 0], [10, 0, -50]]),
        [[256 - shift, 200], [306, 200]], atol=1e-6)
    round_trip(read.rig, tmp_path)


def test_tomosynthesis_whose_detector_turns(tmp_path):
    """As one with the source: the isocentre stays in its middle."""
    turn = np.radians(10.)
    path = breast(tmp_path / 'a.dcm', dict(
        XRaySourceIsocenterPrimaryAngle=10., DetectorIsocenterPrimaryAngle=10.,
        DetectorXPositionToIsocenter=-50 * np.sin(turn),
        DetectorZPositionToIsocenter=-50 * np.cos(turn)))
    rig = read_geometry(path).rig
    across = np.array([np.cos(turn), 0, -np.sin(turn)])
    np.testing.assert_allclose(
        projected(rig, 0, [[0, 0, 0], 12 * across]),
        [[256, 200], [256 + 12 * 650 / 600 / .2, 200]], atol=1e-6)
    # A source that is tilted to the rear.
    rig = read_geometry(breast(tmp_path / 'b.dcm', dict(
        XRaySourceIsocenterSecondaryAngle=5.))).rig
    source = geometry.camera_centres(rig.views[0].ct2cam)
    assert source[1] == pytest.approx(600 * np.sin(np.radians(5)))


@pytest.mark.parametrize('fields, message', [
    (dict(DistanceSourceToDetector=None), 'DistanceSourceToDetector: '
     'expected 1 finite numbers, found none'),
    (dict(DistanceSourceToPatient=-1), 'more than 0 mm'),
    (dict(ImagerPixelSpacing=None), 'ImagerPixelSpacing'),
    (dict(ImagerPixelSpacing=[0, 1]), 'more than 0 mm'),
    (dict(PositionerPrimaryAngle=None), 'PositionerPrimaryAngle'),
    (dict(NumberOfFrames=3, PositionerPrimaryAngleIncrement=[1., 2.]),
     'expected 3 finite numbers'),
    (dict(NumberOfFrames=0), 'whole numbers'),
    (dict(PositionerType='MAMMOGRAPHIC'), 'mammography'),
    (dict(DistanceSourceToDetector=700), 'isocentre'),
])
def test_what_a_file_must_say(tmp_path, fields, message):
    path = xa(tmp_path / 'a.dcm', **fields)
    text = refusal('--from', path, '--out', tmp_path / 'rig.json')
    assert message in text and 'a.dcm' in text
    assert not (tmp_path / 'rig.json').exists()


@pytest.mark.parametrize('system, message', [
    (dict(XRaySourceIsocenterPrimaryAngle=90.), 'above the isocentre'),
    (dict(DetectorIsocenterSecondaryAngle=1.), 'expected 0, found 1'),
    (dict(DetectorActiveAreaOrientation=[1., 0, 0, 1, 0, 0]), 'right angles'),
    (dict(DetectorZPositionToIsocenter=np.nan), 'finite'),
    (dict(DetectorZPositionToIsocenter=700.), 'found both'),
])
def test_wrong_tomosynthesis(tmp_path, system, message):
    path = breast(tmp_path / 'a.dcm', {}, system)
    text = refusal('--from', path, '--out', tmp_path / 'rig.json')
    assert message in text and 'a.dcm' in text
    assert not (tmp_path / 'rig.json').exists()


def test_other_files(tmp_path):
    out = ('--out', tmp_path / 'rig.json')
    (tmp_path / 'a.dcm').write_text('no image')
    assert 'found another one' in refusal('--from', tmp_path / 'a.dcm', *out)
    (tmp_path / 'none').mkdir()
    assert 'found none' in refusal('--from', tmp_path / 'none', *out)
    assert 'slices that were reconstructed' in refusal(
        '--from', save(tmp_path / 'b.dcm', SLICES), *out)
    assert 'missing.dcm' in refusal('--from', tmp_path / 'missing.dcm', *out)
    xa(tmp_path / 'none' / '1.dcm')
    xa(tmp_path / 'none' / '2.dcm', Rows=100)
    assert 'one size' in refusal('--from', tmp_path / 'none', *out)


def test_damaged_files_end_in_a_sentence(tmp_path):
    """Five hundred of each kind."""
    rng = np.random.default_rng(0)
    xa(tmp_path / 'a.dcm', 10, 5, NumberOfFrames=3,
       PatientOrientation=['L', 'F'],
       PositionerPrimaryAngleIncrement=[0., 20., 40.])
    enhanced(tmp_path / 'b.dcm', [
        dict(PositionerPositionSequence=filled(
            PositionerPrimaryAngle=p, PositionerSecondaryAngle=0))
        for p in (0, 9)], PositionOfIsocenterProjection=[99., 99.],
        DetectorElementSpacing=[.2, .2])
    breast(tmp_path / 'c.dcm', {}, {})
    for name in ('a.dcm', 'b.dcm', 'c.dcm'):
        whole = (tmp_path / name).read_bytes()
        for path in damaged(tmp_path / name, whole, rng, 500):
            assert_told(path, tmp_path / 'rig.json')
