"""CBIS-DDSM's layout to images, COCO, partners; and what is wrong in it."""

import json
import shutil

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_converters.__main__ import main
from data_converters.check import check_set
from tests.helpers.mammograms import (
    BOX,
    HEIGHT,
    WIDTH,
    Delivery,
    crop,
    mammogram,
    mask,
    write_dicom,
)

SIZE = 160  # twice the mammograms' height


def convert(root, out, *args):
    main(['mammograms', '--dicom-root', str(root), '--out-dir', str(out),
          '--image-size', str(SIZE), *args])
    return {split: json.loads(
        (out / f'annotations/instances_{split}.json').read_text())
        for split in ('train', 'val', 'test')}


def errors(out):
    return json.loads((out / 'errors.json').read_text())


def by_name(coco):
    return {image['file_name'].split('/')[-1][:-4]: image
            for image in coco['images']}


@pytest.fixture
def delivery(tmp_path):
    return Delivery(tmp_path / 'tcia' / 'manifest' / 'CBIS-DDSM')


def refusal(argv):
    with pytest.raises(SystemExit) as error:
        main(list(map(str, argv)))
    return str(error.value.code)


def test_a_delivery_becomes_a_set(delivery, tmp_path):
    for number in range(1, 7):
        delivery.breast(f'P_0000{number}', 'LEFT')
    delivery.breast('P_00001', 'RIGHT')
    delivery.breast('P_00009', 'RIGHT', kind='Calc', part='Test')
    delivery.tables()
    out = tmp_path / 'out'
    sets = convert(tmp_path / 'tcia', out, '--val-fraction', '.4',
                   '--tables', str(delivery.root))
    assert [c['name'] for c in sets['train']['categories']] == [
        'mass', 'calcification']
    patients = {split: {i['patient'] for i in coco['images']}
                for split, coco in sets.items()}
    assert patients['test'] == {'P_00009'}
    assert patients['val'] and patients['train']
    assert not patients['val'] & patients['train']
    split = next(s for s in sets if 'P_00001' in patients[s])
    images = by_name(sets[split])
    image = images['P_00001_LEFT_CC']
    assert (image['width'], image['height']) == (SIZE, SIZE)
    assert (image['laterality'], image['view']) == ('L', 'CC')
    assert image['partners'] == dict(
        other_view=images['P_00001_LEFT_MLO']['id'],
        other_breast=images['P_00001_RIGHT_CC']['id'])
    assert image['pixel_mm'] is None
    # Twice as large, and black away from the chest wall.
    assert image['padding'] == [0, 0, SIZE - 2 * WIDTH, 0]
    assert images['P_00001_RIGHT_CC']['padding'] == [
        SIZE - 2 * WIDTH, 0, 0, 0]
    pixels = cv2.imread(str(out / image['file_name']), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16
    halved = cv2.resize(pixels[:, :2 * WIDTH], (WIDTH, HEIGHT),
                        interpolation=cv2.INTER_AREA)
    assert np.corrcoef(halved.ravel(), mammogram().ravel())[0, 1] > .99
    assert np.median(np.abs(halved - mammogram().astype(float))) < 60
    (found, ) = [a for a in sets[split]['annotations']
                 if a['image_id'] == image['id']]
    assert found['bbox'] == [2 * v for v in BOX]
    assert found['area'] == 4 * BOX[2] * BOX[3]
    decoded = coco_mask.decode(found['segmentation'])
    assert decoded.shape == (SIZE, SIZE) and decoded.sum() == found['area']
    (right, ) = [a for a in sets[split]['annotations']
                 if a['image_id'] == images['P_00001_RIGHT_CC']['id']]
    assert right['bbox'][0] == SIZE - 2 * (BOX[0] + BOX[2])
    assert {a['category_id'] for a in sets['test']['annotations']} == {2}
    assert not errors(out)['skipped'] and not errors(out)['repaired']
    assert list(check_set(out)) == []


def test_a_stopped_run_goes_on(delivery, tmp_path, capsys):
    delivery.breast('P_00001', 'LEFT')
    delivery.breast('P_00002', 'LEFT')
    root = delivery.tables()
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    convert(root, once, '--jobs', '2')
    convert(root, twice)
    (twice / 'scans/P_00001_LEFT_CC.json').unlink()
    (twice / 'annotations/instances_train.json').unlink()
    (twice / 'images/.P_00001_LEFT_CC.png.abcdefgh.tmp').write_text('half')
    convert(root, twice)
    files = [sorted(p.relative_to(d) for p in d.rglob('*') if p.is_file())
             for d in (once, twice)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.name != '.lock':
            assert (once / name).read_bytes() == (twice / name).read_bytes()
    message = refusal(['mammograms', '--dicom-root', root, '--out-dir', twice,
                       '--image-size', SIZE, '--crop'])
    assert 'options.json: field "mammograms"' in message


def test_an_image_without_a_row_is_without_a_finding(delivery, tmp_path):
    delivery.breast('P_00001', 'LEFT')
    delivery.image('P_00001', 'RIGHT', 'CC')
    sets = convert(delivery.tables(), tmp_path / 'out')
    images = by_name(sets['train'])
    alone = images['P_00001_RIGHT_CC']
    assert alone['partners'] == dict(
        other_view=None, other_breast=images['P_00001_LEFT_CC']['id'])
    assert alone['id'] not in {
        a['image_id'] for a in sets['train']['annotations']}
    assert errors(tmp_path / 'out')['alone'] == {
        'P_00001_RIGHT_CC':
            'expected P_00001_RIGHT_MLO of the same breast, found none'}


def test_mass_and_calcification_of_one_image(delivery, tmp_path):
    """Which CBIS-DDSM has twice."""
    for kind in ('Mass', 'Calc'):
        delivery.breast('P_00001', 'LEFT', kind=kind)
    delivery.image('P_00002', 'LEFT', 'CC', kind='Calc')
    root = delivery.tables()
    both = convert(root, tmp_path / 'both')
    masses = convert(root, tmp_path / 'masses', '--findings', 'mass')
    name = 'P_00001_LEFT_CC'
    for sets, kinds in ((both, [1, 2]), (masses, [1])):
        coco = next(c for c in sets.values() if name in by_name(c))
        assert sorted(
            a['category_id'] for a in coco['annotations']
            if a['image_id'] == by_name(coco)[name]['id']) == kinds
    assert len(masses['train']['images'] + masses['val']['images']) == 2


def test_a_patient_of_both_parts_is_tested(delivery, tmp_path):
    delivery.breast('P_00001', 'LEFT')
    delivery.breast('P_00001', 'RIGHT', kind='Calc', part='Test')
    delivery.breast('P_00002', 'LEFT')
    sets = convert(delivery.tables(), tmp_path / 'out')
    assert len(sets['test']['images']) == 4
    assert 'was put into the test' in str(errors(tmp_path / 'out'))


def test_cropping_keeps_the_finding_in_place(delivery, tmp_path):
    delivery.breast('P_00001', 'LEFT')
    image = np.zeros((200, 150), np.uint16)
    image[60:60 + HEIGHT, :WIDTH] = mammogram()
    large = np.zeros(image.shape, np.uint8)
    large[60:60 + HEIGHT, :WIDTH] = mask()
    delivery.image('P_00001', 'RIGHT', 'CC', pixels=image[:, ::-1],
                   ImagerPixelSpacing=[.1, .1])
    delivery.finding('P_00001', 'RIGHT', 'CC', files=[large[:, ::-1]])
    sets = convert(delivery.tables(), tmp_path / 'out', '--crop')
    coco = sets['train']
    image = by_name(coco)['P_00001_RIGHT_CC']
    x, y, w, h = next(a['bbox'] for a in coco['annotations']
                      if a['image_id'] == image['id'])
    pixels = cv2.imread(str(tmp_path / 'out' / image['file_name']),
                        cv2.IMREAD_UNCHANGED)
    bright = np.argwhere(pixels > 35000)
    assert np.abs(np.array([y, x, y + h, x + w]) - [
        *bright.min(0), *(bright.max(0) + 1)]).max() <= 2
    # The breast is 72 px high, and 2 % at either end.
    assert image['pixel_mm'] == pytest.approx(.1 * 75 / SIZE, rel=.03)


# ------------------------------------------------------------- what is mended
def only_repair(out, name='P_00001_LEFT_CC'):
    (text, ) = errors(out)['repaired'][name]
    return text


def one(delivery, files=None, **changes):
    delivery.image('P_00001', 'LEFT', 'CC', **changes)
    return delivery.finding('P_00001', 'LEFT', 'CC', files=files)


def only_box(sets):
    (found, ) = sets['train']['annotations']
    return found['bbox']


def test_monochrome1_is_inverted(delivery, tmp_path):
    one(delivery, pixels=65535 - mammogram(),
        PhotometricInterpretation='MONOCHROME1')
    sets = convert(delivery.tables(), tmp_path / 'out')
    assert only_repair(tmp_path / 'out') == (
        '1-1.dcm is MONOCHROME1: was inverted')
    pixels = cv2.imread(str(
        tmp_path / 'out' / sets['train']['images'][0]['file_name']), -1)
    assert pixels[SIZE // 2, 10] > 25000 and pixels[2, 95] < 1000


@pytest.mark.parametrize('pixels', [mask(), mask().max() - mask()])
def test_the_mask_is_what_is_little(delivery, tmp_path, pixels):
    """Whatever a MONOCHROME1 file means by white."""
    folder = one(delivery, [pixels, crop()])
    write_dicom(folder / 'study/roi/1-1.dcm', pixels,
                PhotometricInterpretation='MONOCHROME1')
    sets = convert(delivery.tables(), tmp_path / 'out')
    assert only_box(sets) == [2 * v for v in BOX]
    inverted = pixels[0, 0] == 0
    assert ('was inverted' in str(errors(tmp_path / 'out')['repaired'])
            ) == inverted


def test_bits_are_stretched(delivery, tmp_path):
    one(delivery, pixels=mammogram() >> 4, BitsStored=12, HighBit=11)
    sets = convert(delivery.tables(), tmp_path / 'out')
    pixels = cv2.imread(str(
        tmp_path / 'out' / sets['train']['images'][0]['file_name']), -1)
    assert abs(int(pixels[SIZE // 2, 10]) - 30200) < 400


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_the_mask_is_known_by_its_pixels(delivery, tmp_path, order):
    files = [crop(), mask()]
    folder = one(delivery, [files[i] for i in order])
    for row in delivery.rows['mass', 'train']:
        row['ROI mask file path'] = f'{folder.name}/study/roi/1-2.dcm'
    sets = convert(delivery.tables(), tmp_path / 'out')
    assert only_box(sets) == [2 * v for v in BOX]
    repaired = errors(tmp_path / 'out')['repaired']
    if order == (0, 1):
        assert not repaired
    else:
        assert only_repair(tmp_path / 'out') == (
            'finding 1: column "ROI mask file path" names 1-2.dcm, the crop: '
            '1-1.dcm was taken')


def test_a_mask_of_another_size_is_resized(delivery, tmp_path):
    one(delivery, [mask()[::2, ::2]])
    sets = convert(delivery.tables(), tmp_path / 'out')
    assert only_repair(tmp_path / 'out') == (
        'mask of finding 1: expected 50 x 80 px, found 25 x 40 px: was '
        'resized')
    assert np.abs(np.array(only_box(sets)) - 2 * np.array(BOX)).max() <= 2


def test_a_lost_mask_is_made_up_for_by_the_crop(delivery, tmp_path):
    one(delivery, [crop()])
    sets = convert(delivery.tables(), tmp_path / 'out')
    x, y, w, h = BOX
    assert only_box(sets) == pytest.approx(
        [2 * (x - w / 2), 2 * (y - h / 2), 4 * w, 4 * h], abs=3)
    assert 'has no mask' in only_repair(tmp_path / 'out')


@pytest.mark.parametrize('view, side, change, text', [
    ('CC', 'LEFT', lambda p: p[10:], 'cut at the top border'),
    ('MLO', 'LEFT', lambda p: p[:60], 'cut at the bottom border'),
    ('CC', 'RIGHT', lambda p: p[:, 15:], 'cut at the front border'),
    ('CC', 'LEFT', lambda p: p[:, ::-1],
     'the chest wall of a L breast is at the right'),
])
def test_what_the_image_does_not_show_is_told(delivery, tmp_path, view, side,
                                              change, text):
    pixels = change(mammogram(side))
    delivery.image('P_00001', side, view, pixels=pixels)
    convert(delivery.tables(), tmp_path / 'out')
    assert text in only_repair(tmp_path / 'out', f'P_00001_{side}_{view}')


def test_mlo_goes_on_beyond_the_top(delivery, tmp_path):
    delivery.image('P_00001', 'LEFT', 'MLO', pixels=mammogram()[10:])
    convert(delivery.tables(), tmp_path / 'out')
    assert not errors(tmp_path / 'out')['repaired']


# ------------------------------------------------------------- what is refused
def remove_file(folder):
    (folder / 'study/roi/1-2.dcm').unlink()
    (folder / 'study/roi/1-1.dcm').unlink()


@pytest.mark.parametrize('spoil, text', [
    (shutil.rmtree, 'mass_case_description_train_set.csv: row 2: column '
     '"ROI mask file path": expected a file in '),
    (remove_file, 'column "ROI mask file path": expected a file in '),
    (lambda f: write_dicom(f / 'study/roi/1-2.dcm', mask()[:40]),
     'expected a mask of the mammogram\'s 50 x 80 px, or of its shape, found '
     '50 x 40 px'),
    (lambda f: (remove_file(f), write_dicom(
        f / 'study/roi/1-1.dcm', np.random.default_rng(1).integers(
            0, 9999, (20, 20)).astype(np.uint16))),
     'expected a mask, or a crop that is in the mammogram, found neither '
     'among 1 files'),
    (lambda f: (f / 'study/roi/1-2.dcm').write_bytes(b'no DICOM'),
     '1-2.dcm: is not DICOM'),
    (lambda f: (f.parent / f.name[:-2] / 'study/full/1-1.dcm').unlink(),
     'expected a DICOM file of the mammogram, found none'),
    (lambda f: write_dicom(f.parent / f.name[:-2] / 'study/full/1-1.dcm',
                           mammogram(), Modality='CT'),
     'Modality: expected MG, found CT'),
    (lambda f: write_dicom(f.parent / f.name[:-2] / 'study/full/1-1.dcm',
                           mammogram(), PixelRepresentation=1),
     'PixelRepresentation: expected 0, found 1'),
    (lambda f: write_dicom(f.parent / f.name[:-2] / 'study/full/1-1.dcm',
                           np.full((80, 50), 7, np.uint16)),
     'expected a breast that is brighter than air, found one grey value'),
])
def test_a_bad_image_is_skipped_in_a_sentence(delivery, tmp_path, spoil,
                                              text):
    delivery.image('P_00002', 'LEFT', 'CC')
    spoil(one(delivery))
    convert(delivery.tables(), tmp_path / 'out')
    skipped = errors(tmp_path / 'out')['skipped']
    assert list(skipped) == ['P_00001_LEFT_CC']
    assert text in skipped['P_00001_LEFT_CC']
    assert '\n' not in skipped['P_00001_LEFT_CC']
    message = refusal(['mammograms', '--dicom-root', delivery.root,
                       '--out-dir', tmp_path / 'strict', '--strict'])
    assert '--strict: expected no mammogram with a fault' in message


def test_a_row_without_its_image_is_told(delivery, tmp_path):
    shutil.rmtree(one(delivery).parent
                  / 'Mass-Training_P_00001_LEFT_CC')
    delivery.image('P_00002', 'LEFT', 'CC')
    convert(delivery.tables(), tmp_path / 'out')
    assert 'expected the folder Mass-Training_P_00001_LEFT_CC' in errors(
        tmp_path / 'out')['skipped']['P_00001_LEFT_CC']


@pytest.mark.parametrize('column, value, text', [
    ('image view', 'LM', 'column "image view": expected CC or MLO, found '
     '"LM"'),
    ('left or right breast', 'both', 'expected LEFT or RIGHT'),
    ('abnormality id', 'x', 'column "abnormality id": expected a finite'),
    ('abnormality type', 'scar', 'expected mass or calcification'),
])
def test_a_bad_row_ends_the_run(delivery, tmp_path, column, value, text):
    one(delivery)
    delivery.rows['mass', 'train'][0][column] = value
    message = refusal(['mammograms', '--dicom-root', delivery.tables(),
                       '--out-dir', tmp_path / 'out'])
    assert text in message and 'row 2' in message
    assert not (tmp_path / 'out').exists()


def test_nothing_to_convert(delivery, tmp_path):
    base = ['mammograms', '--out-dir', tmp_path / 'out', '--dicom-root']
    assert 'cannot be read' in refusal([*base, tmp_path / 'none'])
    (tmp_path / 'empty').mkdir()
    assert 'expected folders as Mass-Training_P_00001_LEFT_CC' in refusal(
        [*base, tmp_path / 'empty'])
    one(delivery)
    assert 'expected tables as mass_case_description_train_set.csv' in (
        refusal([*base, delivery.root]))


@pytest.mark.parametrize('spoil, text', [
    (lambda out, coco: coco['images'][0].update(width=99),
     'expected uint16 of (160, 99)'),
    (lambda out, coco: coco['images'][0]['partners'].update(other_view=1),
     'field "partners.other_view": expected an image with this one'),
    (lambda out, coco: coco['annotations'][0].update(bbox=[0, 0, 1, 1]),
     'field "bbox": expected that of its mask'),
    (lambda out, coco: coco['annotations'][0].update(image_id=77),
     'field "image_id": expected an image of this file, found 77'),
    (lambda out, coco: coco['images'].pop(),
     'expected in the COCO file of a split, found in none'),
    (lambda out, coco: (out / coco['images'][0]['file_name']).unlink(),
     'cannot be read: No such file'),
])
def test_check_finds_a_planted_fault(delivery, tmp_path, spoil, text):
    delivery.breast('P_00001', 'LEFT')
    out = tmp_path / 'out'
    coco = convert(delivery.tables(), out)['train']
    spoil(out, coco)
    (out / 'annotations/instances_train.json').write_text(json.dumps(coco))
    assert text in '\n'.join(check_set(out))
