"""Small DICOM series of an image that looks like a chest in Hounsfield units,
to be damaged."""

import os
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

UID = '1.2.826.0.1.3680043.8.498.1'


def chest(slices, rows=48, columns=64):
    """HU, (slices, rows, columns) int16; no two voxels of a region are the
    same, and no axis can be mistaken for another."""
    k, r, c = np.meshgrid(*map(np.arange, (slices, rows, columns)),
                          indexing='ij')
    texture = (7 * k + 3 * r // 4 + c // 2) % 60

    def disc(row, column, height, width):
        return (((r / rows - row) / height)**2 +
                ((c / columns - column) / width)**2) < 1

    hu = np.full(k.shape, -1000)
    hu = np.where(disc(.5, .5, .42, .45), texture + 20, hu)
    hu = np.where(disc(.45, .3, .2, .13) | disc(.5, .7, .25, .13),
                  texture - 850, hu)
    return np.where(disc(.8, .52, .06, .05), texture + 500, hu).astype(
        np.int16)


def write_series(folder, hu, heights, uid=UID, spacing=(.8, .6), names=None,
                 orientation=(1, 0, 0, 0, 1, 0), corner=(-20., -15.),
                 intercept=-1024, bits=12):
    """Write a series.

    Args:
        folder: Where to.
        hu: (N, rows, columns).
        heights: (N,) z (mm).
        spacing: Between rows and between columns (mm).
        corner: x and y of all slices (mm).

    Returns:
        list[Path]: One file for each slice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = pydicom.uid.CTImageStorage
    data.Modality = 'CT'
    data.PatientID = 'somebody'
    data.StudyInstanceUID = f'{uid}.1'
    data.SeriesInstanceUID = uid
    data.FrameOfReferenceUID = f'{uid}.2'
    data.ImageOrientationPatient = list(orientation)
    data.PixelSpacing = [f'{v:.10g}' for v in spacing]
    data.Rows, data.Columns = hu.shape[1:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = 'MONOCHROME2'
    data.BitsAllocated = 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(intercept == 0)
    data.RescaleSlope, data.RescaleIntercept = 1, intercept
    paths = []
    for k, (image, z) in enumerate(zip(hu, heights)):
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f'{uid}.3.{k}'
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [*corner, f'{z:.10g}']
        stored = image.astype(np.int32) - intercept
        data.PixelData = stored.astype('<i2').tobytes()
        name = names[k] if names is not None else f'{k:03d}.dcm'
        data.save_as(folder / name, enforce_file_format=True)
        paths.append(folder / name)
    return paths


def edit(path, **fields):
    """Set fields of a file, or delete those that are None; the file is made
    anew, its links keep the old content."""
    data = pydicom.dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    save(path, data)


def save(path, data):
    """Replace a file, as :func:`edit` does."""
    path = Path(path)
    path.unlink(missing_ok=True)
    data.save_as(path)


def replace(path, content):
    """Replace a file by other bytes."""
    Path(path).unlink()
    Path(path).write_bytes(content)


def link_tree(source, target):
    """A copy of a folder whose files are hard links."""
    for path in Path(source).rglob('*'):
        if path.is_file():
            copy = Path(target) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy)
