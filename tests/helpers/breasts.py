"""A small set of mammograms in the format of ``data_converters breast``:
half discs of tissue with bright discs in them."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

EDGE = 96  # px
VIEWS = [('L', 'CC'), ('L', 'MLO'), ('R', 'CC'), ('R', 'MLO')]


def draw_breast(laterality, masses, rng):
    """An image (H, W) uint16 and the masks of its masses (x, y, radius), x
    from the chest wall."""
    x, y = np.meshgrid(np.arange(EDGE) + .5, np.arange(EDGE) + .5)
    if laterality == 'R':
        x = EDGE - x
    breast = np.hypot(x / .8, y - EDGE / 2) < .48 * EDGE
    image = np.where(breast, .3, 0.) + rng.normal(0, .02, breast.shape)
    masks = []
    for a, b, radius in masses:
        mask = np.hypot(x - a, y - b) < radius
        image[mask] += .35
        masks.append(mask)
    return (image.clip(0, 1) * 65535).astype(np.uint16), masks


def make_breast_set(root, patients=4, split='train', left_out=(), seed=0):
    """Write a split. The first patient has no mass, the others one in the
    left breast, in both views.

    Args:
        left_out: (patient, laterality, view) that are not there.

    Returns:
        Path: The set.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    for folder in ('images', 'annotations'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations, ids = [], [], {}
    for patient in range(patients):
        a, b = rng.uniform(10, 26), rng.uniform(30, 66)
        for laterality, view in VIEWS:
            if (patient, laterality, view) in left_out:
                continue
            number = len(images) + 1
            ids[patient, laterality, view] = number
            found = [(a, b, 6.)] if patient and laterality == 'L' else []
            pixels, masks = draw_breast(laterality, found, rng)
            name = f'images/{split}_{patient}_{laterality}_{view}.png'
            cv2.imwrite(str(root / name), pixels)
            images.append(dict(
                id=number, file_name=name, width=EDGE, height=EDGE,
                patient=f'P{split}{patient}', laterality=laterality,
                view=view, pixel_mm=2., partners={}))
            for mask in masks:
                code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=number, category_id=1,
                    bbox=coco_mask.toBbox(code).tolist(),
                    area=int(mask.sum()), iscrowd=0, segmentation=dict(
                        size=code['size'],
                        counts=code['counts'].decode())))
    other = dict(CC='MLO', MLO='CC', L='R', R='L')
    for (patient, laterality, view), number in ids.items():
        images[number - 1]['partners'] = dict(
            other_view=ids.get((patient, laterality, other[view])),
            other_breast=ids.get((patient, other[laterality], view)))
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(dict(
        images=images, annotations=annotations, categories=[
            dict(id=1, name='mass'), dict(id=2, name='calcification')])))
    return root
