"""Boxes as DICOM structured reports."""

import json
import re
import warnings
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import highdicom
import numpy as np
import pydicom
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes

from projects.core import __version__
from projects.core.export.found import Found, file_name_of, place_box
from projects.core.files import DataError, atomic_write

# Classes that have a code of their own; others get one of ours.
_FINDINGS = dict(nodule=codes.SCT.Nodule)
_SCHEME = '99MV2DXRAY'
# Edges along the box's x, y, z: across, from front to back, upright.
_EDGES = (codes.SCT.Width, codes.SCT.Depth, codes.DCM.Height)
# What an SR copies from an image, which must be there, if only empty.
_PATIENT_AND_STUDY = (
    'PatientName', 'PatientID', 'PatientBirthDate', 'PatientSex', 'StudyID',
    'StudyDate', 'StudyTime', 'AccessionNumber', 'ReferringPhysicianName')
# What the SR's list of key images says of each of them.
_IMAGE = ('Rows', 'Columns', 'PixelSpacing', 'SliceThickness',
          'ImagePositionPatient', 'ImageOrientationPatient')


def write_sr(found: Found) -> List[Path]:
    """A Comprehensive 3D SR with a measurement report (DICOM PS3.16, TID
    1500) for each scan, in the study of its CT series.

    A box is a volumetric region (TID 1411) with an ELLIPSOID in the CT's
    frame of reference: the one that the box just encloses. Its six points
    (PS3.3, C.18.9.1.2) are the centres of the box's faces at -x, +x, -y, +y,
    -z, +z of the box's own axes: their mean is the box's centre, each pair's
    distance an edge, so that nothing is lost, even of a turned box. Of what
    TID 1411 allows it is the only one that does so and is no fiction: a
    POINT has no size, ELLIPSEs and POLYGONs are outlines in slices, which
    nobody has drawn. It is also what a nodule looks like. Few viewers draw
    it yet, so the edges are there as measurements, too; for a picture of the
    boxes there is ``slicer``.

    The score is the measurement "Certainty of Finding" (%), no calibrated
    probability. The report is PARTIAL, UNVERIFIED and PRELIMINARY: boxes
    below the threshold are left out, and nobody has looked at it.

    All UIDs follow from the content, and the date is that of the results'
    file: exported twice, it is the same file.
    """
    if found.infos is None:
        raise DataError('sr: expected infos, which name the CT series of '
                        'each scan, found none')
    if found.dicom_root is None or not found.dicom_root.is_dir():
        raise DataError('sr: expected --dicom-root, the folder of the CT '
                        'series that it refers to, found '
                        f'{found.dicom_root or "none"}')
    listed: Dict[Path, Dict[Optional[str], List[Path]]] = {}
    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of headers of strangers
        files = [_find_series(scan, found.dicom_root, listed)
                 for scan in found.scans]
        for scan, slices in zip(found.scans, files):
            try:
                report = _report(scan, slices, found)
                path = found.out_dir / f'{file_name_of(scan)}.dcm'
                with atomic_write(path) as stream:
                    report.save_as(stream, enforce_file_format=True)
            except (DataError, OSError):
                raise
            except Exception as error:  # there may be anything in a header
                raise DataError(
                    f'{slices[0].parent}: expected the headers of a CT '
                    'series, of which an SR can be made, found '
                    f'{type(error).__name__}: {error}') from error
            paths.append(path)
    return paths


def _find_series(scan: dict, root: Path,
                 listed: Dict[Path, Dict[Optional[str], List[Path]]]
                 ) -> List[Path]:
    """Files of a scan's CT series.

    Where there is a folder for each patient, as TCIA has it, only the
    patient's is searched.

    Args:
        listed: Files of each series in folders that have been searched.

    Raises:
        DataError: The infos do not name a series, or it is not there.
    """
    sample = scan['sample']
    for key in ('series_uid', 'frame_of_reference_uid', 'ct2patient'):
        if sample.get(key) is None or len(sample[key]) == 0:
            raise DataError(f'scan {scan["token"]}: field "{key}": expected '
                            'that of a DICOM series, found none: it has no '
                            'DICOM SR')
    folder = root / re.sub(r'[^\w+-]', '_', str(sample.get('lidc_id_ref')))
    folder = folder if folder.is_dir() else root
    if folder not in listed:
        listed[folder] = {}
        for path in sorted(folder.rglob('*')):
            listed[folder].setdefault(_series_of(path), []).append(path)
    if sample['series_uid'] not in listed[folder]:
        raise DataError(f'{folder}: expected the CT series '
                        f'{sample["series_uid"]} of scan {scan["token"]}, '
                        'found none of its files')
    return listed[folder][sample['series_uid']]


def _series_of(path: Path) -> Optional[str]:
    """SeriesInstanceUID of a file, None where it has none."""
    if not path.is_file():  # a pipe never ends
        return None
    try:
        return pydicom.dcmread(
            path, stop_before_pixels=True,
            specific_tags=['SeriesInstanceUID']).get('SeriesInstanceUID')
    except Exception:  # not DICOM, or damaged in any way
        return None


def _uid(*content) -> str:
    """A UID that follows from what it is of."""
    return pydicom.uid.generate_uid(entropy_srcs=[json.dumps(content)])


def _report(scan: dict, files: List[Path], found: Found
            ) -> sr.Comprehensive3DSR:
    """The SR of one scan.

    Raises:
        DataError: The series has another frame of reference than the infos.
    """
    by_uid = {}
    for path in files:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        by_uid[data.SOPInstanceUID] = data  # the same slice may be there twice
    slices = [by_uid[uid] for uid in sorted(by_uid)]
    sample = scan['sample']
    frame = sample['frame_of_reference_uid']
    other = {s.get('FrameOfReferenceUID') for s in slices} - {frame}
    if other:
        raise DataError(f'{files[0].parent}: FrameOfReferenceUID: expected '
                        f'{frame} as in the infos of scan {scan["token"]}, '
                        f'found {other.pop() or "none"}')
    for key in _PATIENT_AND_STUDY:
        if key not in slices[0]:
            setattr(slices[0], key, None)
    name, digest = found.checkpoint
    release = __version__
    finder = (sample['series_uid'], name, digest)
    algorithm = sr.AlgorithmIdentification(
        'MV2D-Xray', release, parameters=[
            f'checkpoint {name or "unknown"}, SHA-256 {digest or "unknown"}',
            f'boxes with a score of {found.score_thr:g} or more'])
    groups: list = [
        _group(box, number, scan, algorithm, finder)
        for number, box in enumerate(scan['boxes'], 1)]
    if not groups:  # a report must say something
        groups = [sr.MeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(_uid(*finder, 'none'), 'no findings'),
            algorithm_id=algorithm, qualitative_evaluations=[
                sr.QualitativeEvaluation(
                    codes.DCM.CADProcessingAndFindingsSummary,
                    codes.DCM.AllAlgorithmsSucceededWithoutFindings)])]
    device = sr.ObserverContext(
        codes.DCM.Device, sr.DeviceObserverIdentifyingAttributes(
            _uid('MV2D-Xray', release, name, digest), 'MV2D-Xray',
            manufacturer_name='MV2D-Xray', model_name=name or None))
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=device),
        codes.SCT.ComputedTomography, groups,
        referenced_images=_key_images(scan, slices))
    what = (*finder, release, highdicom.__version__, found.date.isoformat(),
            found.score_thr, scan['boxes'], scan['ct2patient'].tolist(),
            [s.SOPInstanceUID for s in slices])
    report = sr.Comprehensive3DSR(
        slices, content, _uid('series', *what), 1000, _uid('instance', *what),
        1, manufacturer='MV2D-Xray', software_versions=release,
        series_description='MV2D-Xray: found boxes, not verified',
        content_date=found.date.date(), content_time=found.date.time(),
        content_qualification='RESEARCH',
        # Names of classes and patients may be in any script.
        specific_character_set='ISO_IR 192', coding_schemes=[
            CodingSchemeIdentificationItem(
                _SCHEME, name='Classes of MV2D-Xray\'s data sets')])
    # The times of writing, which would make each file another one.
    del report.InstanceCreationDate, report.InstanceCreationTime
    for item in report.ContributingEquipmentSequence:
        if item.get('ManufacturerModelName') == 'highdicom':
            del item.ContributionDateTime
    return report


def _key_images(scan: dict, slices: Sequence[pydicom.Dataset]
                ) -> Optional[List[pydicom.Dataset]]:
    """The slices through the boxes' middles, or any where there are no
    boxes; None where the slices do not say enough of themselves.

    All slices are evidence; what the report says of one of them takes as
    long to write as a box.
    """
    known = [s for s in slices
             if all(s.get(key) not in (None, '') for key in _IMAGE)]
    if not known:
        return None
    places = np.array([s.ImagePositionPatient for s in known], float)
    normal = np.cross(*np.reshape(
        np.array(known[0].ImageOrientationPatient, float), (2, 3)))
    nearest = set()
    for box in scan['boxes']:
        centre, _ = place_box(box['bbox_3d'], scan['ct2patient'])
        nearest.add(int(np.abs((places - centre) @ normal).argmin()))
    return [known[k] for k in sorted(nearest or {0})]


def _group(box: dict, number: int, scan: dict,
           algorithm: sr.AlgorithmIdentification, finder: tuple
           ) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """A box's measurement group, see :func:`write_sr`."""
    values, sample = box['bbox_3d'], scan['sample']
    centre, axes = place_box(values, scan['ct2patient'])
    half = (axes * values[3:6]).T / 2
    ends = np.stack([centre - half, centre + half], 1).reshape(6, 3)
    # As a code's meaning may be written; some readers count bytes.
    name = re.sub(r'[\\\x00-\x1f]', '_', box['class_name'])
    name = name.encode()[:64].decode(errors='ignore')
    finding = _FINDINGS.get(name) or sr.CodedConcept(name, _SCHEME, name)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(_uid(*finder, number, box), f'{name} {number}'),
        referenced_volume_surface=sr.VolumeSurface(
            'ELLIPSOID', ends, sample['frame_of_reference_uid'],
            source_series=sr.SourceSeriesForSegmentation(
                sample['series_uid'])),
        finding_type=finding, algorithm_id=algorithm, measurements=[
            sr.Measurement(codes.DCM.CertaintyOfFinding, 100 * box['score'],
                           codes.UCUM.Percent),
            *(sr.Measurement(code, float(edge), codes.UCUM.Millimeter)
              for code, edge in zip(_EDGES, values[3:6]))])
