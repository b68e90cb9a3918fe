"""A known box, written for another program and read back as it would."""

import csv
import runpy
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom import sr
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pydicom.sr.codedict import codes

from projects.core.export import export
from projects.core.files import DataError, dump_json, load_json
from projects.core.infos import build_coco, dump_infos, load_infos
from tests.helpers.series import UID, chest, edit, write_series
from tests.helpers.spheres import make_sphere_set

BOX = [30., -20., 10., 24., 20., 16., 0.]
PATIENT = np.array([[-1., 0, 0, 11], [0, -1, 0, -22], [0, 0, 1, 133],
                    [0, 0, 0, 1]])


def vector(size):
    return dict(type='array', items=dict(type='number'), minItems=size,
                maxItems=size)


# What Slicer's markups-schema-v1.0.3.json asks of an ROI.
SLICER = dict(
    type='object', required=['@schema', 'markups'], properties={
        '@schema': dict(type='string', pattern='/markups-schema-v1'),
        'markups': dict(type='array', items=dict(
            type='object', required=['type'], properties=dict(
                type=dict(enum=['ROI']), name=dict(type='string'),
                coordinateSystem=dict(enum=['LPS', 'RAS']),
                coordinateUnits=dict(enum=['mm', 'um']),
                roiType=dict(enum=['Box', 'BoundingBox']),
                center=vector(3), size=vector(3), orientation=vector(9),
                controlPoints=dict(type='array', items=dict(
                    type='object', properties=dict(
                        id=dict(type='string'), label=dict(type='string'),
                        position=vector(3), positionStatus=dict(
                            enum=['undefined', 'preview', 'defined']))))),
            # What has another name Slicer passes over without a word.
            additionalProperties=False))})


@pytest.fixture
def tested(tmp_path):
    """Results that are the truth of two scans with two spheres each, and a
    weak box."""
    two = [((30., 10, 0), 14.), ((-40., 0, 20), 9.)]
    infos = make_sphere_set(tmp_path, 2, 4, 64, spheres=[two, two])
    infos['data_list'][0]['token'] = '.: up'  # a stranger's
    for sample in infos['data_list']:
        sample['ct2patient'] = PATIENT
    path = tmp_path / 'lidc_infos_train.pkl'
    dump_infos(infos, path)
    dump_json(build_coco(infos), tmp_path / 'coco_truth.json')
    dump_json(dict(
        source=dict(ann_file=str(path)),
        scans=[dict(token=s['token'], class_name='nodule', predictions=[
            *(dict(bbox_3d=[float(v) for v in i['bbox_3d']], score=.9)
              for i in s['instances']),
            dict(bbox_3d=BOX, score=.05)])
            for s in infos['data_list']]), tmp_path / 'results.json')
    return tmp_path


def test_csv_says_both_frames(tested):
    path, = export(tested / 'results.json', tested / 'out', ['csv'])
    with open(path, newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 and rows[0]['scan'] == '.: up'
    weak = rows[2]
    world = [float(weak[f'world_ras_{a}_mm']) for a in 'xyz']
    size = [float(weak[f'size_{a}_mm']) for a in 'xyz']
    assert world + size == BOX[:6] and weak['class'] == 'nodule'
    assert float(weak['score']) == .05
    # LPS: x and y turned round, then moved.
    assert [float(weak[f'patient_lps_{a}_mm']) for a in 'xyz'] == [
        -30 + 11, 20 - 22, 10 + 133]


def corners(markup):
    """As 3D Slicer makes a ROI's corners: columns of the orientation are the
    box's axes."""
    axes = np.reshape(markup['orientation'], (3, 3))
    signs = np.array(np.meshgrid(*[(-.5, .5)] * 3)).reshape(3, -1)
    return (np.array(markup['center'])[:, None]
            + axes @ (np.array(markup['size'])[:, None] * signs)).T


def test_results_lead_to_no_other_folder(tested):
    """Those of a stranger, without infos."""
    results = load_json(tested / 'results.json')
    del results['source']
    results['scans'][0]['token'] = '../up'
    dump_json(results, tested / 'results.json')
    path, _ = export(tested / 'results.json', tested / 'out', ['slicer'])
    assert path == tested / 'out' / '___up.mrk.json' and path.exists()


def test_slicer_shows_the_box_in_the_patient(tested):
    paths = export(tested / 'results.json', tested / 'out', ['slicer'])
    assert paths[0].name == '___up.mrk.json'
    assert all(p.parent == tested / 'out' for p in paths)
    content = load_json(paths[0])
    jsonschema.validate(content, SLICER)
    assert len(content['markups']) == 3
    for markup in content['markups']:
        assert markup['type'] == 'ROI' and markup['roiType'] == 'Box'
        assert markup['coordinateSystem'] == 'LPS'
        assert markup['coordinateUnits'] == 'mm'
        assert markup['controlPoints'][0]['position'] == markup['center']
    found = corners(content['markups'][2])
    world = (found - PATIENT[:3, 3]) @ PATIENT[:3, :3]  # its own inverse
    np.testing.assert_allclose(world.min(0), [18, -30, 2])
    np.testing.assert_allclose(world.max(0), [42, -10, 18])


def test_a_turned_box_stays_turned(tested):
    turned = [*BOX[:6], .3]
    dump_json(dict(boxes=[dict(bbox_3d=turned, score=.5,
                               class_name='pore')]), tested / 'part.json')
    paths = export(tested / 'part.json', tested / 'out')
    assert [p.name for p in paths] == ['boxes.csv', 'part.mrk.json']
    markup, = load_json(paths[1])['markups']
    assert markup['coordinateSystem'] == 'RAS'  # nothing says where it lies
    assert markup['center'] == BOX[:3]
    with open(paths[0], newline='') as stream:
        row, = csv.DictReader(stream)
    assert [float(row[f'world_ras_{a}_mm']) for a in 'xyz'] == BOX[:3]
    assert row['yaw_rad'] == '0.3' and row['patient_lps_x_mm'] == ''
    c, s = np.cos(.3), np.sin(.3)
    np.testing.assert_allclose(
        np.reshape(markup['orientation'], (3, 3)) @ [1, 0, 0], [c, s, 0])


def test_coco_results_score_as_what_they_are(tested):
    path, = export(tested / 'results.json', tested / 'out', ['coco'], .1)
    truth = COCO(str(tested / 'coco_truth.json'))
    found = truth.loadRes(str(path))
    assert len(found.getAnnIds()) == len(truth.getAnnIds())
    run = COCOeval(truth, found, 'bbox')
    run.params.iouThrs = np.array([.5])
    run.evaluate()
    run.accumulate()
    # The box of a projected 3D box round a sphere is larger than its own.
    assert run.eval['precision'][0, :, 0, 0, -1].mean() > .99


def test_coco_results_are_the_boxes_corners_in_pixels(tested):
    """Pinhole by hand: the projected corners' rectangle, cut at the image."""
    path, = export(tested / 'results.json', tested / 'out', ['coco'])
    truth = COCO(str(tested / 'coco_truth.json'))
    found = truth.loadRes(str(path))
    infos = load_infos(tested / 'lidc_infos_train.pkl')
    signs = np.array(np.meshgrid(*[(-.5, .5)] * 3)).reshape(3, -1).T
    points = np.c_[BOX[:3] + signs * BOX[3:6], np.ones(8)]
    for view in infos['data_list'][0]['images'].values():
        u, v, w, _ = np.array(view['lidar2img']) @ points.T
        uv = (np.stack([u, v]) / w).clip(0, 64)
        image, = (i for i in truth.imgs.values()
                  if i['token'] == view['sample_data_token'])
        weak, = (a for a in found.loadAnns(
            found.getAnnIds(imgIds=[image['id']])) if a['score'] == .05)
        np.testing.assert_allclose(
            weak['bbox'], [*uv.min(1), *np.ptp(uv, axis=1)], atol=1e-6)


def test_csv_is_exact_far_from_the_origin(tested):
    infos = load_infos(tested / 'lidc_infos_train.pkl')
    infos['data_list'][0]['ct2patient'] = PATIENT + [
        [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, -1667.0437], [0, 0, 0, 0]]
    dump_infos(infos, tested / 'lidc_infos_train.pkl')
    path, = export(tested / 'results.json', tested / 'out', ['csv'])
    with open(path, newline='') as stream:
        weak = list(csv.DictReader(stream))[2]
    assert float(weak['patient_lps_z_mm']) == pytest.approx(
        143 - 1667.0437, abs=1e-4)


def test_a_threshold_leaves_boxes_out(tested):
    path, = export(tested / 'results.json', tested / 'out', ['csv'], .1)
    assert len(path.read_text().splitlines()) == 1 + 4
    path, = export(tested / 'results.json', tested / 'out', ['csv'], 1.)
    assert len(path.read_text().splitlines()) == 1


def test_results_that_are_none(tested):
    dump_json(dict(x=1), tested / 'x.json')
    with pytest.raises(DataError, match='fields "scans" or "boxes"'):
        export(tested / 'x.json', tested / 'out')
    dump_json(dict(boxes=[]), tested / 'y.json')
    with pytest.raises(DataError, match='coco: expected infos'):
        export(tested / 'y.json', tested / 'out', ['coco'])
    other = load_infos(tested / 'lidc_infos_train.pkl')
    other['data_list'] = other['data_list'][1:]
    dump_infos(other, tested / 'other.pkl')
    with pytest.raises(DataError, match='expected scan .: up'):
        export(tested / 'results.json', tested / 'out',
               ann_file=str(tested / 'other.pkl'))


# ------------------------------------------------------------------ DICOM SR
STUDY = Path('ct') / 'LIDC-IDRI-0000' / 'study'


@pytest.fixture
def scanned(tmp_path):
    """Results of two boxes in a prone CT series; SimpleITK knows where.

    The first box is that of the voxels 10 to 30, 5 to 17, 3 to 8, the second
    is the same, turned, and worse.
    """
    hu = chest(12)
    folder = tmp_path / STUDY
    for path in write_series(folder, hu, 100 + 2.5 * np.arange(12),
                             orientation=(-1, 0, 0, 0, -1, 0),
                             corner=(200., 300.)):
        edit(path, SliceThickness='2.5', PatientName='Doe^Jane',
             Manufacturer='somebody')
    write_series(folder / 'other', hu[:2], [0, 3], f'{UID}.9')
    (folder / 'notes.txt').write_text('no DICOM')
    (folder / 'damaged.dcm').write_bytes(b'DICM' * 99)
    image, (low, high) = image_of(folder), low_high(folder)
    # As the converter makes it (test_lidc_converter asks SimpleITK, too).
    ct2patient = np.diag([-1., -1, 1, 1])
    ct2patient[:3, 3] = image.TransformContinuousIndexToPhysicalPoint(
        [31.5, 23.5, 5.5])
    centre = np.linalg.inv(ct2patient) @ [*(low + high) / 2, 1]
    box = [*centre[:3].tolist(), *(high - low).tolist(), 0.]
    infos = make_sphere_set(tmp_path, 1, 4, 64, spheres=[[]])
    infos['data_list'][0].update(
        token='one', lidc_id_ref='LIDC-IDRI-0000', series_uid=UID,
        frame_of_reference_uid=f'{UID}.2', ct2patient=ct2patient)
    dump_infos(infos, tmp_path / 'infos.pkl')
    dump_json(dict(
        source=dict(ann_file=str(tmp_path / 'infos.pkl'),
                    checkpoint='work/iter_4.pth', sha256='ab' * 32),
        scans=[dict(token='one', class_name='nodule', predictions=[
            dict(bbox_3d=box, score=.9),
            dict(bbox_3d=[*box[:6], .3], score=.2)])]),
        tmp_path / 'results.json')
    return tmp_path


def image_of(folder):
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), UID)
    return sitk.ReadImage(names)


def low_high(folder):
    """Corners of the first box in the patient, as SimpleITK has it."""
    ends = np.array([
        image_of(folder).TransformContinuousIndexToPhysicalPoint(index)
        for index in ([9.5, 4.5, 2.5], [30.5, 17.5, 8.5])])
    return ends.min(0), ends.max(0)


def export_sr(scanned, out='out', **more):
    path, = export(scanned / 'results.json', scanned / out, ['sr'],
                   dicom_root=scanned / 'ct', **more)
    return path


def groups_of(path):
    """The boxes' groups, as highdicom finds them."""
    return sr.srread(path).content.get_volumetric_roi_measurement_groups(
        graphic_type=sr.GraphicTypeValues3D.ELLIPSOID)


def test_sr_has_the_box_in_the_scans_frame(scanned):
    path = export_sr(scanned)
    assert path.name == 'one.dcm'
    straight, turned = groups_of(path)
    low, high = low_high(scanned / STUDY)
    ends = straight.roi.graphic_data
    np.testing.assert_allclose(ends.min(0), low, atol=1e-3)
    np.testing.assert_allclose(ends.max(0), high, atol=1e-3)
    # -x, +x, -y, +y, -z, +z of the world: x and y are those of LPS reversed.
    edges = ends[1::2] - ends[::2]
    np.testing.assert_allclose(
        edges, np.diag((high - low) * [-1, -1, 1]), atol=1e-3)
    np.testing.assert_allclose(
        ends.reshape(3, 2, 3).mean(1), [(low + high) / 2] * 3, atol=1e-3)
    # By +0.3 about z, which both frames share with one another.
    c, s = np.cos(.3), np.sin(.3)
    edges = turned.roi.graphic_data[1::2] - turned.roi.graphic_data[::2]
    np.testing.assert_allclose(
        edges, (high - low)[:, None] * [[-c, -s, 0], [s, -c, 0], [0, 0, 1]],
        atol=1e-3)
    for group, score, name in ((straight, .9, 'nodule 1'),
                               (turned, .2, 'nodule 2')):
        assert group.roi.frame_of_reference_uid == f'{UID}.2'
        assert group.roi.source_series_for_segmentation.value == UID
        assert group.finding_type == codes.SCT.Nodule
        assert group.tracking_identifier == name
        value = {m.name.meaning: (m.value, m.unit.value)
                 for m in group.get_measurements()}
        assert value['Certainty of Finding'] == (
            pytest.approx(100 * score), '%')
        for key, edge in zip(('Width', 'Depth', 'Height'), high - low):
            assert value[key] == (pytest.approx(edge), 'mm')
    assert straight.tracking_uid != turned.tracking_uid


def test_sr_refers_to_the_series(scanned):
    path = export_sr(scanned)
    document = sr.srread(path)
    slices = {s.SOPInstanceUID: s for s in map(
        pydicom.dcmread, (scanned / 'ct').rglob('0*.dcm'))
        if s.SeriesInstanceUID == UID}
    assert len(slices) == 12
    assert {(str(i), str(c)) for _, _, i, c in document.get_evidence()} == {
        (uid, s.SOPClassUID) for uid, s in slices.items()}
    assert document.get_evidence_series() == [(f'{UID}.1', UID)]
    assert document.StudyInstanceUID == f'{UID}.1'
    assert document.PatientID == 'somebody'
    assert document.PatientName == 'Doe^Jane'
    assert document.SeriesInstanceUID not in (UID, f'{UID}.9')
    # The key image lies at the middle of the boxes, slice 5 or 6.
    found = sr.utils.find_content_items(
        document.content[0], value_type=sr.ValueTypeValues.IMAGE,
        recursive=True)
    key, = (i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for i in found)
    middle = np.add(*low_high(scanned / STUDY))[2] / 2
    assert abs(slices[key].ImagePositionPatient[2] - middle) <= 1.25


def test_sr_says_that_a_program_wrote_it(scanned):
    document = sr.srread(export_sr(scanned))
    assert (document.CompletionFlag, document.VerificationFlag,
            document.PreliminaryFlag, document.ContentQualification) == (
        'PARTIAL', 'UNVERIFIED', 'PRELIMINARY', 'RESEARCH')
    observer, = document.content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    assert observer.observer_identifying_attributes.model_name == 'iter_4.pth'
    for group in groups_of(scanned / 'out' / 'one.dcm'):
        told = [i.value for i in group[0].ContentSequence
                if i.name in (codes.DCM.AlgorithmName,
                              codes.DCM.AlgorithmParameters)]
        assert told == ['MV2D-Xray',
                        f'checkpoint iter_4.pth, SHA-256 {"ab" * 32}',
                        'boxes with a score of 0 or more']


# Type 1 (there, with a value) and 2 (there) of the modules that PS3.3 A.35.13
# makes mandatory; the document's content is highdicom's to check.
TYPE_1 = ('StudyInstanceUID', 'Modality', 'SeriesInstanceUID', 'SeriesNumber',
          'InstanceNumber', 'CompletionFlag', 'VerificationFlag',
          'ContentDate', 'ContentTime', 'SOPClassUID', 'SOPInstanceUID',
          'CurrentRequestedProcedureEvidenceSequence', 'ValueType',
          'ConceptNameCodeSequence', 'ContinuityOfContent', 'ContentSequence')
TYPE_2 = ('PatientName', 'PatientID', 'PatientBirthDate', 'PatientSex',
          'StudyDate', 'StudyTime', 'ReferringPhysicianName', 'StudyID',
          'AccessionNumber', 'Manufacturer', 'PerformedProcedureCodeSequence',
          'ReferencedPerformedProcedureStepSequence')


@pytest.mark.parametrize('threshold', [0, 1.])
def test_sr_is_valid_dicom(scanned, threshold, monkeypatch):
    path = export_sr(scanned, score_thr=threshold)
    monkeypatch.setattr(pydicom.config.settings, 'reading_validation_mode',
                        pydicom.config.RAISE)
    data = pydicom.dcmread(path)
    assert data.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    for element in data.iterall():
        if element.VR == 'UI':
            assert element.value.is_valid
        assert not element.tag.is_private
    assert all(data[name].value for name in TYPE_1)
    assert all(name in data for name in TYPE_2)


def test_sr_is_the_same_file_every_time(scanned):
    first = export_sr(scanned)
    # The same series elsewhere, under other names, and a slice twice.
    for number, path in enumerate(sorted((scanned / STUDY).glob('0*.dcm'))):
        path.rename(path.with_name(f'{99 - number}.DCM'))
    shutil.copy(scanned / STUDY / '99.DCM', scanned / STUDY / 'copy')
    shutil.move(scanned / STUDY.parent, scanned / 'ct' / 'patient')
    again = export_sr(scanned, 'again')
    assert again.read_bytes() == first.read_bytes()
    # Another selection is another document, of the same findings.
    fewer = export_sr(scanned, 'fewer', score_thr=.5)
    assert sr.srread(fewer).SOPInstanceUID != sr.srread(first).SOPInstanceUID
    only, = groups_of(fewer)
    assert only.tracking_uid == groups_of(first)[0].tracking_uid


def test_sr_without_boxes_says_so(scanned):
    path = export_sr(scanned, score_thr=1.)
    assert groups_of(path) == []
    group, = sr.srread(path).content.get_image_measurement_groups()
    told, = group.get_qualitative_evaluations()
    assert told.value == codes.DCM.AllAlgorithmsSucceededWithoutFindings


def test_sr_takes_any_name_of_a_class_or_patient(scanned):
    name = 'L\u00fcnker \\ ' + 'x' * 70
    results = load_json(scanned / 'results.json')
    results['scans'][0]['class_name'] = name
    dump_json(results, scanned / 'results.json')
    for path in (scanned / STUDY).glob('0*.dcm'):
        edit(path, SpecificCharacterSet='ISO_IR 100', SliceThickness=None,
             PatientName='M\u00fcller^J\u00f6rg')
    path = export_sr(scanned)
    for group in groups_of(path):
        assert group.finding_type.meaning == name.replace('\\', '_')[:63]
        assert group.finding_type.scheme_designator.startswith('99')
    assert sr.srread(path).PatientName == 'M\u00fcller^J\u00f6rg'


def test_sr_that_cannot_be(scanned):
    results, ct = scanned / 'results.json', scanned / 'ct'
    out = scanned / 'out'
    with pytest.raises(DataError, match='sr: expected --dicom-root.*none'):
        export(results, out, ['sr'])
    with pytest.raises(DataError, match='sr: expected --dicom-root.*absent'):
        export(results, out, ['sr'], dicom_root=scanned / 'absent')
    dump_json(dict(boxes=[]), scanned / 'part.json')
    with pytest.raises(DataError, match='sr: expected infos'):
        export(scanned / 'part.json', out, dicom_root=ct)
    with pytest.raises(DataError, match=f'CT series {UID} of scan one'):
        export(results, out, ['sr'], dicom_root=scanned / STUDY / 'other')
    path = next(ct.rglob('004.dcm'))
    edit(path, PatientSex='UNKNOWN')
    (path.parent / '000.dcm').unlink()
    edit(path, SOPInstanceUID=f'{UID}.0')  # the first
    with pytest.raises(DataError, match='study: expected the headers'):
        export(results, out, ['sr'], dicom_root=ct)
    edit(path, FrameOfReferenceUID='1.2.3')
    with pytest.raises(DataError, match='FrameOfReferenceUID: expected '
                       f'{UID}.2 .*scan one, found 1.2.3'):
        export(results, out, ['sr'], dicom_root=ct)
    infos = load_infos(scanned / 'infos.pkl')
    infos['data_list'][0]['series_uid'] = ''
    dump_infos(infos, scanned / 'infos.pkl')
    with pytest.raises(DataError, match='scan one: field "series_uid"'):
        export(results, out, ['sr'], dicom_root=ct)
    assert not list(out.rglob('*.dcm'))


def test_export_from_the_command_line(scanned, monkeypatch, capsys):
    tool = Path(__file__).parents[2] / 'tools' / 'export.py'
    call = [str(tool), str(scanned / 'results.json'), '--out-dir',
            str(scanned / 'out')]
    for more, names in (
            ([], ['boxes.csv', 'one.mrk.json', 'coco.json']),
            (['--dicom-root', str(scanned / 'ct')],
             ['boxes.csv', 'one.mrk.json', 'coco.json', 'one.dcm'])):
        monkeypatch.setattr(sys, 'argv', call + more)
        runpy.run_path(str(tool), run_name='__main__')
        assert [Path(line).name for line in
                capsys.readouterr().out.splitlines()] == names
    monkeypatch.setattr(sys, 'argv', [*call, '--formats', 'sr'])
    with pytest.raises(SystemExit, match='export.py: error: sr: expected'):
        runpy.run_path(str(tool), run_name='__main__')
