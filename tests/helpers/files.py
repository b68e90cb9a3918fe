"""Files of projections, and damage to files."""

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def mutate(content, changes):
    """Bytes overwritten, cut out or put in."""
    content = bytearray(content)
    for where, kind, new in changes:
        start = int(where * len(content))
        if kind == 'over':
            content[start:start + len(new)] = new
        elif kind == 'in':
            content[start:start] = new
        elif kind == 'out':
            del content[start:start + 3 * len(new)]
        else:
            del content[start:]
    return bytes(content)


def write_dicom(path, frames, modality='DX', relation='LIN', sign=1, **more):
    """A projection of several frames (N, H, W)."""
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
