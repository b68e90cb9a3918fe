"""A small delivery of mammograms in CBIS-DDSM's layout, to be damaged."""

import csv

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

COLUMNS = dict(
    mass=['patient_id', 'breast_density', 'left or right breast',
          'image view', 'abnormality id', 'abnormality type', 'mass shape',
          'mass margins', 'assessment', 'pathology', 'subtlety',
          'image file path', 'cropped image file path', 'ROI mask file path'],
    calc=['patient_id', 'breast density', 'left or right breast',
          'image view', 'abnormality id', 'abnormality type', 'calc type',
          'calc distribution', 'assessment', 'pathology', 'subtlety',
          'image file path', 'cropped image file path',
          'ROI mask file path'])
HEIGHT, WIDTH = 80, 50
BOX = (20, 30, 8, 12)  # of the finding in a left breast: x, y, w, h


def mammogram(side='LEFT', seed=0):
    """(80, 50) uint16: half an ellipse with a bright finding in it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + .5
    image = np.random.default_rng(seed).integers(0, 400, (HEIGHT, WIDTH))
    image[(x / 42)**2 + ((y - 40) / 36)**2 < 1] += 30000
    left, top, width, height = BOX
    image[top:top + height, left:left + width] += 9000
    image = image.astype(np.uint16)
    return image if side == 'LEFT' else image[:, ::-1]


def mask(side='LEFT'):
    """(80, 50) uint8, 0 or 255."""
    left, top, width, height = BOX
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[top:top + height, left:left + width] = 255
    return pixels if side == 'LEFT' else pixels[:, ::-1]


def crop(side='LEFT'):
    """The finding with a margin, as large again."""
    left, top, width, height = BOX
    if side == 'RIGHT':
        left = WIDTH - left - width
    return mammogram(side)[top - height // 2:top + height + height // 2,
                           left - width // 2:left + width + width // 2]


def write_dicom(path, pixels, **changes):
    """Write an image as TCIA has it; ``changes`` are of its fields, None
    leaves one out."""
    data = pydicom.Dataset()
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    data.PatientID = path.parents[2].name
    data.Modality = 'MG'
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = 'MONOCHROME2'
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


class Delivery:
    """Folders and tables as TCIA has them: the tables' files, 000000.dcm,
    are those of another delivery, and the last cells end with a line break.

    Args:
        root: Folder to write to.
    """

    def __init__(self, root):
        self.root = root
        self.rows = {(kind, part): [] for kind in COLUMNS
                     for part in ('train', 'test')}

    def image(self, patient, side, view, kind='Mass', part='Training',
              pixels=None, **changes):
        """Write a mammogram; returns its folder's name."""
        folder = f'{kind}-{part}_{patient}_{side}_{view}'
        write_dicom(self.root / folder / 'study' / 'full' / '1-1.dcm',
                    mammogram(side) if pixels is None else pixels, **changes)
        return folder

    def finding(self, patient, side, view, kind='Mass', part='Training',
                number=1, files=None):
        """Write a finding's crop and mask, or ``files``, and its row."""
        image = f'{kind}-{part}_{patient}_{side}_{view}'
        folder = f'{image}_{number}'
        files = [crop(side), mask(side)] if files is None else files
        for index, pixels in enumerate(files, 1):
            write_dicom(self.root / folder / 'study' / 'roi'
                        / f'1-{index}.dcm', pixels)
        table = kind.lower(), dict(Training='train', Test='test')[part]
        self.rows[table].append(dict(
            dict.fromkeys(COLUMNS[table[0]], 'N/A'), patient_id=patient, **{
                'left or right breast': side, 'image view': view,
                'abnormality id': number,
                'abnormality type': dict(mass='mass', calc='calcification')[
                    table[0]], 'pathology': 'BENIGN',
                'image file path': f'{image}/1.3.6/1.3.7/000000.dcm',
                'cropped image file path':
                    f'{folder}/1.3.6/1.3.7/000000.dcm',
                'ROI mask file path':
                    f'{folder}/1.3.6/1.3.7/000001.dcm\n'}))
        return self.root / folder

    def breast(self, patient, side, **kwargs):
        """Write both views with a finding each."""
        for view in ('CC', 'MLO'):
            self.image(patient, side, view, **kwargs)
            self.finding(patient, side, view, **kwargs)

    def tables(self):
        """Write the tables; returns the root."""
        for (kind, part), rows in self.rows.items():
            path = self.root / f'{kind}_case_description_{part}_set.csv'
            with path.open('w', newline='') as stream:
                table = csv.DictWriter(stream, COLUMNS[kind])
                table.writeheader()
                table.writerows(rows)
        return self.root


# A larger one for landmarks, as a left breast.
DRAWN_SIZE = 384, 512  # width and height
DRAWN_NIPPLE = 268, 300
DRAWN_LINE = ((150, 0), (0, 300))  # from the top to the chest wall


def drawn_breast(view, seed=0):
    """A left breast: half an ellipse with a nipple; a muscle in MLO."""
    width, height = DRAWN_SIZE
    y, x = np.mgrid[:height, :width] + .5
    image = np.zeros((height, width))
    image[(x / 250)**2 + ((y - 280) / 240)**2 < 1] = 25000
    image[np.hypot(x - 252, y - DRAWN_NIPPLE[1]) < 16] = 25000
    if view == 'MLO':
        image[x < 150 - .5 * y] = 50000
    image += np.random.default_rng(seed).normal(0, 600, image.shape)
    return image.clip(0, 65535).astype(np.uint16)
