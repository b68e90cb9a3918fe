"""Decoders of GDCM, through SimpleITK, in a process of their own.

They know what pydicom needs further packages for (JPEG lossless, JPEG-LS),
but a damaged file can crash them, or keep them busy for minutes. Neither may
end a conversion.
"""

import os
import select
import subprocess
import sys
import tempfile
from typing import IO, Optional, cast

import numpy as np
import pydicom

_SECONDS = 30  # for one slice; a sound one takes a hundredth
# It gets a line for each file to decode and answers with one.
_SERVE = '''
import resource, sys
import numpy, SimpleITK
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
for line in sys.stdin:
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName("slice.dcm")
        image = SimpleITK.GetArrayFromImage(reader.Execute())
        numpy.save("slice.npy", image, allow_pickle=False)
        print("done", flush=True)
    except Exception:
        print("failed", flush=True)
'''
_FIELDS = ('SOPClassUID', 'SOPInstanceUID', 'Rows', 'Columns',
           'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated',
           'BitsStored', 'HighBit', 'PixelRepresentation', 'PixelData')

__all__ = ['decode']


class _Worker:
    """The process; it ends with ours, whose end closes its input."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(  # noqa: S603  our own code
            [sys.executable, '-c', _SERVE], cwd=self.folder.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        self.requests = cast(IO[bytes], self.process.stdin)
        self.answers = cast(IO[bytes], self.process.stdout)

    def decode(self, data: pydicom.Dataset) -> np.ndarray:
        path = os.path.join(self.folder.name, 'slice')
        ready = True
        data.save_as(f'{path}.dcm', enforce_file_format=True)
        try:
            self.requests.write(b'next\n')
            self.requests.flush()
            ready = bool(select.select([self.answers], [], [], _SECONDS)[0])
            answer = self.answers.readline() if ready else b''
        except BrokenPipeError:
            answer = b''
        if answer == b'done\n':
            return np.load(f'{path}.npy', allow_pickle=False)
        if answer == b'failed\n':
            raise ValueError('the decoder found it damaged')
        self.close()
        raise ValueError('the decoder crashed' if ready else
                         f'the decoder took more than {_SECONDS} s')

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


_worker: Optional[_Worker] = None


def decode(data: pydicom.Dataset) -> np.ndarray:
    """Stored values of a DICOM image, (rows, columns).

    Raises:
        ValueError: They cannot be decoded; other errors where the data set
            lacks fields.
    """
    global _worker
    # GDCM's reader rescales, so it sees a file without rescaling.
    bare = pydicom.Dataset()
    for field in _FIELDS:
        bare[field] = data[field]
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if _worker is None or _worker.process.poll() is not None:
        _worker = _Worker()
    pixels = _worker.decode(bare)
    if pixels.ndim != 3 or len(pixels) != 1:
        raise ValueError(f'it has the shape {pixels.shape}')
    return pixels[0]
