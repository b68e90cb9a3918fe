"""Beads found in rendered images: where they are, and which is which."""

import csv
import json

import cv2
import numpy as np
import pytest

from data_converters import drr
from data_converters.__main__ import main
from data_converters.beads import find_beads, open_images
from data_converters.rigs import Beads
from projects.core.rig import Rig
from tests.helpers.rigs import HELIX, errors, refusal, turned, write

DIAMETER, NOISE = 3., .02  # mm; of line integrals, a bead has about 0.5
NAMES = [f'b{n}' for n in range(len(HELIX))]
PHANTOM = Beads(HELIX, np.full((len(HELIX), 2), np.nan), NAMES)
RIG = Rig.circle(3, image_size=512, arc=300)


def phantom(points, fine=8):
    """Steel balls on a tube of plastic, voxels of 1 mm."""
    shape = np.array([150, 150, 170])
    hu = np.full(shape, -1000., np.float32)
    x, y, _ = (np.arange(n) - (n - 1) / 2 for n in shape)
    radius = np.hypot(x[:, None], y)
    hu[(radius > 62) & (radius < 66)] = 100.
    ticks = (np.arange(fine) + .5) / fine - .5
    for point in points + (shape - 1) / 2:
        voxels = [np.arange(k - 3, k + 4) for k in np.floor(point).astype(int)]
        off = [(v[:, None] + ticks).ravel() - c for v, c in zip(voxels, point)]
        inside = (off[0][:, None, None]**2 + off[1][:, None]**2
                  + off[2]**2) <= (DIAMETER / 2)**2
        share = inside.reshape([7, fine] * 3).mean((1, 3, 5))
        here = np.ix_(*voxels)
        hu[here] = hu[here] * (1 - share) + 9000 * share
    return drr.Volume.centred(hu, np.eye(3))


@pytest.fixture(scope='module')
def clean():
    return drr.render(phantom(HELIX), RIG)


def noisy(images, rng):
    return {v.name: (i + rng.normal(0, NOISE, i.shape)).astype(np.float32)
            for v, i in zip(RIG.views, images)}


def distances(found):
    """(N,) how far beads are seen from where the true views have them."""
    return [np.linalg.norm(f.beads.residuals(v).offsets, axis=1)
            for f, v in zip(found, RIG.views)]


@pytest.mark.parametrize('dark', [False, True])
def test_centres_and_names(clean, dark):
    """The rig is 5 mm and 3 degrees off; a bead that was taken for another
    would be ten pixels off, and more. Beads over one another are left out."""
    rng = np.random.default_rng(0)
    images = noisy(clean, rng)
    if dark:
        images = {k: np.exp(-v) for k, v in images.items()}
    found = list(find_beads(images, turned(RIG, rng), PHANTOM, DIAMETER))
    for item, off in zip(found, distances(found)):
        assert np.sqrt((off**2).mean()) < .12  # of both axes
        assert off.max() < .35
        assert item.expected == 40 and item.merged < 12
        assert len(off) >= 40 - item.merged - 1
        assert len(set(item.beads.names)) == len(off)
    # Those left out are indeed over others.
    assert sum(f.merged for f in found) > 0


def test_missing_beads_and_spots_that_are_none(clean):
    """Six beads have fallen off, and 30 others lie about."""
    rng = np.random.default_rng(1)
    gone = rng.permutation(40)[:6]
    images = noisy(drr.render(phantom(np.delete(HELIX, gone, 0)), RIG), rng)
    rows, columns = np.mgrid[:512, :512] + .5
    for image in images.values():
        for u, v in rng.uniform(60, 450, (30, 2)):
            image += .4 * np.exp(-((columns - u)**2 + (rows - v)**2) / 4)
    found = list(find_beads(images, turned(RIG, rng), PHANTOM, DIAMETER))
    off = np.concatenate(distances(found))
    wrong = [name for f in found for name in f.beads.names
             if name in {NAMES[g] for g in gone}]
    assert len(wrong) <= 1  # where another happens to be just there
    assert (off > 1).sum() <= 3 and np.median(off) < .1
    assert len(off) > 3 * 20


def test_command(tmp_path, clean, capsys):
    """From images on disk to a rig as good as the beads are."""
    rng = np.random.default_rng(2)
    (tmp_path / 'images').mkdir()
    for name, image in noisy(clean, rng).items():
        grey = np.clip(image * 20000 + 2000, 0, 65535).astype(np.uint16)
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), grey)
    start = turned(RIG, rng)
    start.save(tmp_path / 'nominal.json')
    table = write(tmp_path / 'phantom.csv', ('x', 'y', 'z', 'bead'),
                  [[*p, n] for p, n in zip(HELIX, NAMES)])
    call = ['rig', '--fit', str(table), '--beads-in-images',
            str(tmp_path / 'images'), '--bead-mm', str(DIAMETER), '--rig',
            str(tmp_path / 'nominal.json'), '--out',
            str(tmp_path / 'rig.json'), '--picture',
            str(tmp_path / 'fit.png'), '--report', str(tmp_path / 'fit.json')]
    main(call)
    shown = capsys.readouterr().out
    assert 'over one another' in shown and 'rig.beads.csv: ' in shown
    off = errors(Rig.load(tmp_path / 'rig.json'), RIG)
    assert np.abs(off[:, 3:5]).max() < .15 and np.abs(off[:, 5]).max() < .15
    assert np.degrees(np.abs(off[:, :3])).max() < .05
    assert json.loads((tmp_path / 'fit.json').read_text())['sigma_px'] < .1
    with open(tmp_path / 'rig.beads.csv') as stream:
        rows = list(csv.DictReader(stream))
    assert {row['view'] for row in rows} == {v.name for v in RIG.views}
    assert cv2.imread(str(tmp_path / 'fit.png')).std() > 5
    # The table is that of --fit and --check.
    main(['rig', '--check', str(tmp_path / 'rig.beads.csv'), '--rig',
          str(tmp_path / 'rig.json'), '--max-residual', '1'])
    # Another name, or three files in the views' order.
    main([*call[:4], *(str(tmp_path / 'images' / f'{v.name}.png')
                       for v in RIG.views), *call[5:11],
          '--beads-out', str(tmp_path / 'seen.csv')])
    assert (tmp_path / 'seen.csv').read_bytes() == (
        tmp_path / 'rig.beads.csv').read_bytes()


def test_wrong_calls(tmp_path, clean):
    RIG.save(tmp_path / 'rig.json')
    table = write(tmp_path / 'phantom.csv', ('x', 'y', 'z'), HELIX)
    (tmp_path / 'images').mkdir()
    for view, image in zip(RIG.views, clean):
        cv2.imwrite(str(tmp_path / 'images' / f'{view.name}.tif'), image)
    first = tmp_path / 'images' / 'CAM_00.tif'

    def told(*more, images=tmp_path / 'images', phantom_table=table):
        return refusal('--fit', phantom_table, '--beads-in-images', images,
                       '--out', tmp_path / 'new.json', *more)

    rig = ('--rig', tmp_path / 'rig.json')
    assert '--rig' in told('--bead-mm', 3, '--image-size', 512)
    assert '--bead-mm' in told(*rig)
    assert '--bead-mm' in told(*rig, '--bead-mm', 'nan')
    assert 'expected 3 images' in told(*rig, '--bead-mm', 3, images=first)
    assert 'at least 6 beads' in told(
        *rig, '--bead-mm', 3, phantom_table=write(
            tmp_path / 'few.csv', ('x', 'y', 'z'), HELIX[:5]))
    # Another phantom's beads are not found.
    text = told(*rig, '--bead-mm', 3, phantom_table=write(
        tmp_path / 'other.csv', ('x', 'y', 'z'), np.random.default_rng(
            0).uniform(-60, 60, (40, 3))))
    assert 'view CAM_00' in text and '--bead-mm right?' in text
    cv2.imwrite(str(first), clean[0][:100])
    assert '512 x 512 pixels, found 512 x 100' in told(*rig, '--bead-mm', 3)
    first.write_bytes(b'no image')
    assert 'none that can be read' in told(*rig, '--bead-mm', 3)
    cv2.imwrite(str(first), np.full((512, 512), np.nan, np.float32))
    assert 'finite' in told(*rig, '--bead-mm', 3)
    cv2.imwrite(str(first), np.zeros((512, 512), np.uint8))
    assert 'among 0 spots' in told(*rig, '--bead-mm', 3)
    assert not (tmp_path / 'new.json').exists()
    assert not (tmp_path / 'new.beads.csv').exists()


def test_images_by_name_or_in_order(tmp_path, clean):
    for name in 'cab':
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.full(
            (512, 512), ord(name), np.uint8))
    images = open_images([tmp_path], RIG)
    assert [i[0, 0] for i in images.values()] == list(map(ord, 'abc'))
    for view, name in zip(RIG.views, 'cab'):
        (tmp_path / f'{name}.png').rename(tmp_path / f'{view.name}.png')
    images = open_images([tmp_path], RIG)
    assert [i[0, 0] for i in images.values()] == list(map(ord, 'cab'))
