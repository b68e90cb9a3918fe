"""A converted set of spheres, made without DICOM and with known answers."""

from pathlib import Path

import cv2
import numpy as np

from projects.core import geometry
from projects.core.files import dump_json
from projects.core.infos import (
    SCHEMA_VERSION,
    build_coco,
    coco_name,
    dump_infos,
    infos_name,
)
from projects.core.rig import Rig

SCALE = 16 / 65535


def chord_lengths(centre, radius, view) -> np.ndarray:
    """Length (mm) of each pixel's ray in a sphere, (H, W)."""
    v, u = np.mgrid[:view.height, :view.width] + .5
    source, direction = geometry.rays(
        np.stack([u.ravel(), v.ravel()], -1), view.ct2img)
    to_centre = np.asarray(centre) - source[0]
    along = direction @ to_centre
    off2 = (to_centre**2).sum() - along**2
    chord = 2 * np.sqrt(np.clip(radius**2 - off2, 0, None))
    return chord.reshape(view.height, view.width)


def sphere_rect(centre, radius, view) -> np.ndarray:
    """Rectangle round a sphere's image (px), from points on its surface."""
    phi = np.linspace(0, 2 * np.pi, 72)
    theta = np.linspace(0, np.pi, 37)
    phi, theta = (a.ravel() for a in np.meshgrid(phi, theta))
    points = np.asarray(centre) + radius * np.stack([
        np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi),
        np.cos(theta)
    ], -1)
    uv, _ = geometry.project(points, view.ct2img)
    low = uv.min(0).clip(0, [view.width, view.height])
    high = uv.max(0).clip(0, [view.width, view.height])
    return np.concatenate([low, high])


def make_sphere_set(root, num_scans=4, num_views=5, image_size=64, seed=0,
                    split='train', ignored=True, spheres=None, **sizes):
    """Write a set: scan 1 is empty, scan 2 has a finding to ignore.

    Args:
        spheres: Per scan a list of (centre, radius) (mm); random by default.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    rig = Rig.circle(num_views, image_size=image_size)
    samples = []
    for n in range(num_scans):
        token = f'LIDC-IDRI-{seed:02d}{n:02d}'
        if spheres is not None:
            these = spheres[n]
        elif n == 1:
            these = []
        else:
            count = int(rng.integers(1, 4))
            these = list(zip(rng.uniform(-70, 70, (count, 3)),
                             rng.uniform(8, 16, count)))
        images, cams = {}, {}
        for view in rig.views:
            # A soft body, so that the spheres are not on plain black.
            image = .01 * chord_lengths([0, 0, 0], 120, view)
            for centre, radius in these:
                image = image + .02 * chord_lengths(centre, radius, view)
            path = Path('images') / token / f'{view.name}.png'
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / path),
                        np.rint(image / SCALE).astype(np.uint16))
            images[view.name] = dict(
                img_path=str(path), height=image_size, width=image_size,
                cam2img=view.cam2img, lidar2cam=view.ct2cam,
                lidar2img=view.ct2img,
                sample_data_token=token + view.name.replace('CAM_', 'cam'))
            cams[view.name] = []
            for i, (centre, radius) in enumerate(these):
                uv, depth = geometry.project(
                    np.asarray(centre, float)[None], view.ct2img)
                cams[view.name].append(
                    dict(bbox=sphere_rect(centre, radius, view).tolist(),
                         bbox_label=0, bbox_cam3d=[0.] * 7,
                         center_2d=uv[0].tolist(), depth=float(depth[0]),
                         instance_idx=i))
        samples.append(
            dict(sample_idx=n, token=token, lidc_id_ref=token,
                 series_uid=f'1.2.{n}', frame_of_reference_uid='1.2',
                 ct2patient=np.eye(4), images=images,
                 instances=[
                     dict(bbox_3d=[*map(float, centre), *[2. * radius] * 3,
                                   0.],
                          bbox_label_3d=0, valid_flag=True,
                          ignore=bool(ignored and n == 2 and i == 0),
                          nodule_id=i, diameter=2. * radius, num_readers=1,
                          num_views=num_views, characteristics={})
                     for i, (centre, radius) in enumerate(these)
                 ], cam_instances=cams))
    infos = dict(
        metainfo=dict(dataset='spheres', schema_version=SCHEMA_VERSION,
                      classes=('nodule', ), categories=dict(nodule=0),
                      units='mm', split=split, rig=rig.to_dict(),
                      intensity=dict(scale=SCALE, offset=0.)),
        data_list=samples)
    dump_infos(infos, root / infos_name(split))
    dump_json(build_coco(infos), root / coco_name(split))
    rig.save(root / 'rig.json')
    return infos
