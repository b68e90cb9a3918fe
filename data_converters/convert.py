"""Scans to X-ray views, infos and COCO files.

A converted set grows scan by scan: a scan's images, then its record (last, so
that a record means a finished scan). :func:`finish_set` makes the infos of
every split from the records.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from projects.mv2d_xray import geometry
from projects.mv2d_xray.geometry import Rig
from projects.mv2d_xray.infos import (SCHEMA_VERSION, atomic_write, build_coco,
                                      dump_infos, dump_json, load_json,
                                      pack_shape)

from . import __version__
from .drr import MU_WATER, render
from .scan import ConversionError, Scan

# One linear window for every image of every set: 16 bits hold line integrals
# up to this; 400 mm of soft tissue are 8, a large chest with spine below 14.
INTEGRAL_MAX = 16.
_LEVELS = 65535
SPLITS = ('train', 'val', 'test')

__all__ = [
    'SPLITS', 'Options', 'claim', 'convert_scan', 'convert_scans',
    'finish_set', 'split_patients'
]


@dataclass
class Options:
    """What makes a converted set what it is; one set has one of it.

    Attributes:
        rig: ``Rig.to_dict()``.
        renderer: Name in :data:`data_converters.drr.RENDERERS`.
        min_readers: Nodules of fewer readers are marked ``ignore``.
        min_diameter: Nodules below (mm) are marked ``ignore``.
        fractions: Share of the patients in 'val' and 'test'.
        seed: Of the split.
        dataset: Name in the metainfo.
        classes: Names of the labels.
        inputs: What else the set was made from.
    """
    rig: dict
    renderer: str = 'joseph'
    min_readers: int = 1
    min_diameter: float = 0.
    fractions: Dict[str, float] = field(
        default_factory=lambda: dict(val=.2, test=0.))
    seed: int = 0
    dataset: str = 'LIDC-IDRI'
    classes: List[str] = field(default_factory=lambda: ['nodule'])
    inputs: dict = field(default_factory=dict)


# ------------------------------------------------------------------- one scan
def convert_scan(scan: Scan, options: Options, out_dir: Path,
                 device: str = 'cpu') -> dict:
    """Render a scan, write its images and record; returns the sample.

    2D boxes are those of the finding's projected mask, from the same matrices
    as the image.
    """
    rig = Rig.from_dict(options.rig)
    images = render(scan.hu, rig, options.renderer, device)
    brightest = max((float(i.max()) for i in images), default=0.)
    if brightest > INTEGRAL_MAX:
        scan.repairs.append(
            f'line integrals up to {brightest:.1f} exceed the images\' '
            f'{INTEGRAL_MAX:g}: what lies on those rays is lost')
    folder = out_dir / 'images' / scan.key
    views = {}
    for view, image in zip(rig.views, images):
        path = folder / f'{view.name}.png'
        levels = np.rint(image / INTEGRAL_MAX * _LEVELS).clip(0, _LEVELS)
        ok, png = cv2.imencode('.png', levels.astype(np.uint16))
        if not ok:
            raise ConversionError(f'{path}: image cannot be encoded')
        with atomic_write(path) as stream:
            stream.write(png.tobytes())
        views[view.name] = dict(
            img_path=path.relative_to(out_dir).as_posix(),
            height=view.height, width=view.width,
            cam2img=view.cam2img.tolist(), lidar2cam=view.ct2cam.tolist(),
            lidar2img=view.ct2img.tolist(),
            sample_data_token=scan.key + view.name.replace('CAM_', 'cam'))
    instances, cam_instances = [], {name: [] for name in views}
    for number, finding in enumerate(scan.findings):
        box, mask = scan.box(finding), scan.mask(finding)
        corners = scan.corners(finding)
        seen = 0
        for view in rig.views:
            rect = _rect(corners, view)
            if rect is None:
                continue
            seen += 1
            centre = geometry.project(box[None, :3], view.ct2img)
            in_camera = view.ct2cam[:3, :3] @ box[:3] + view.ct2cam[:3, 3]
            size = np.abs(view.ct2cam[:3, :3]) @ box[3:6]
            cam_instances[view.name].append(
                dict(
                    bbox=rect.tolist(), bbox_label=finding.label,
                    bbox_cam3d=[*in_camera.tolist(), *size.tolist(), 0.],
                    center_2d=centre[0][0].tolist(),
                    depth=float(centre[1][0]), instance_idx=number))
        ignore = (finding.record.get('num_readers', np.inf)
                  < options.min_readers
                  or finding.record['diameter'] < options.min_diameter)
        instances.append(
            dict(
                bbox_3d=box.tolist(), bbox_label_3d=finding.label,
                valid_flag=seen >= 2, ignore=bool(ignore), num_views=seen,
                **finding.record,
                shape=None if mask is None else pack_shape(mask),
                contrast=scan.contrast(finding)))
    sample = dict(
        token=scan.key, lidc_id_ref=scan.patient_id,
        series_uid=scan.series_uid, frame_of_reference_uid=scan.frame_uid,
        ct2patient=scan.ct2patient.tolist(),
        volume=dict(shape=list(scan.hu.values.shape),
                    spacing=scan.hu.spacing.tolist()),
        images=views, instances=instances, cam_instances=cam_instances)
    dump_json(sample, _record(out_dir, scan.key))
    return sample


def _rect(corners: np.ndarray, view) -> Optional[np.ndarray]:
    """Rectangle of projected corners within the image, or None."""
    uv, depth = geometry.project(corners, view.ct2img)
    if (depth <= 0).any():
        return None
    low = uv.min(0).clip([0, 0], [view.width, view.height])
    high = uv.max(0).clip([0, 0], [view.width, view.height])
    return np.concatenate([low, high]) if (high - low > .5).all() else None


def _record(out_dir: Path, key: str) -> Path:
    return out_dir / 'scans' / f'{key}.json'


# ------------------------------------------------------------------ many scans
def convert_scans(keys: Iterable[str], load: Callable[[str], Scan],
                  options: Options, out_dir: Path, jobs: int = 1,
                  device: str = 'cpu', total: Optional[int] = None) -> None:
    """Convert scans that are not there yet.

    Args:
        keys: Names of the scans, as ``load`` takes them.
        load: Context manager factory that yields a :class:`Scan`; runs in
            the worker.
        options (Options): Must be those of what is already in ``out_dir``.
        out_dir (Path): Root of the set.
        jobs (int): Processes; they share the machine's cores evenly.
        device (str): Torch device of the renderer.
        total (int, optional): Number of keys, for the progress bar.

    Raises:
        ConversionError: A scan cannot be converted, or the folder holds a
            set made with other options.
    """
    claim(out_dir, options)
    with Parallel(n_jobs=jobs, return_as='generator_unordered',
                  pre_dispatch='2*n_jobs') as pool:
        results = pool(
            delayed(_convert_one)(key, load, options, out_dir, device)
            for key in keys)
        for _ in tqdm(results, total=total, desc='convert', unit='scan',
                      dynamic_ncols=True, smoothing=.1):
            pass


def _convert_one(key, load, options, out_dir, device) -> None:
    # One thread each: the order of sums, and with it the last bit of an
    # image, must not depend on the number of processes.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with load(key) as scan:
        if scan is not None and not _record(out_dir, scan.key).exists():
            convert_scan(scan, options, out_dir, device)


def claim(out_dir: Path, options: Options) -> None:
    """Refuse to mix two kinds of set in one folder."""
    path = out_dir / 'options.json'
    current = json.loads(json.dumps(asdict(options)))
    if not path.exists():
        dump_json(current, path)
        return
    # An option that the set is older than has its default.
    found = {**asdict(Options(options.rig)), **load_json(path)}
    for name, value in current.items():
        if found.get(name) != value:
            short = 'another rig' if name == 'rig' else repr(found.get(name))
            raise ConversionError(
                f'{path}: field "{name}": expected the value of this call'
                + ('' if name == 'rig' else f', {value!r}')
                + f', found {short}: the folder holds a set made with other '
                'options; choose another --out-dir or remove it')


def finish_set(out_dir: Path, options: Options,
               patients: Optional[Dict[str, str]] = None) -> Dict[str, int]:
    """Write infos and COCO files of every split from the records, and the
    rig.

    Splits are by patient and depend on the patients and the seed alone.

    Args:
        out_dir (Path): Root of the set.
        options (Options): Those of the set.
        patients (dict, optional): Split of every patient, for a set that has
            a part of them; splits without a scan are left out. Defaults to
            :func:`split_patients` of those there are.

    Returns:
        dict: Number of scans in each split.

    Raises:
        ConversionError: There is no converted scan.
    """
    samples = [load_json(p)
               for p in sorted((out_dir / 'scans').glob('*.json'))]
    if not samples:
        raise ConversionError(f'{out_dir}: scans: expected at least one '
                              'converted scan, found none')
    whole = patients is None
    if whole:
        patients = split_patients([s['lidc_id_ref'] for s in samples],
                                  options)
    counts = {}
    for split in SPLITS:
        chosen = [s for s in samples if patients[s['lidc_id_ref']] == split]
        asked_for = split == 'train' or options.fractions.get(split)
        if not chosen and not (whole and asked_for):
            continue
        infos = dict(
            metainfo=dict(
                dataset=options.dataset, schema_version=SCHEMA_VERSION,
                converter_version=__version__, classes=tuple(options.classes),
                categories={c: i for i, c in enumerate(options.classes)},
                split=split, units='mm',
                frame='ct: RAS+, origin at the centre of the voxel grid',
                rig=options.rig,
                renderer=dict(
                    name=options.renderer, mu_water=MU_WATER,
                    averaging='blocks of whole voxels, at most a pixel of '
                    'the finest view at the isocentre'),
                intensity=dict(unit='line integral of attenuation',
                               scale=INTEGRAL_MAX / _LEVELS, offset=0.),
                min_readers=options.min_readers,
                min_diameter=options.min_diameter),
            data_list=[
                _as_arrays(dict(s, sample_idx=i))
                for i, s in enumerate(chosen)
            ])
        stem = out_dir / f'lidc_infos_{split}'
        dump_infos(infos, stem.with_suffix('.pkl'))
        dump_json(build_coco(infos),
                  out_dir / f'lidc_infos_{split}_2d_anno.coco.json')
        counts[split] = len(chosen)
    rig = out_dir / 'rig.json'
    if not rig.exists():
        dump_json(options.rig, rig)
    return counts


def split_patients(patients: List[str], options: Options) -> Dict[str, str]:
    """Split of every patient."""
    names = sorted(set(patients))
    order = np.random.default_rng(options.seed).permutation(len(names))
    splits, start = {}, 0
    for split in ('test', 'val'):
        share = options.fractions.get(split, 0.)
        # At least one patient each, and one that remains for training.
        count = max(round(share * len(names)), int(share > 0))
        count = min(count, len(names) - start - 1)
        for i in order[start:start + count]:
            splits[names[i]] = split
        start += count
    return {name: splits.get(name, 'train') for name in names}


def _as_arrays(sample: dict) -> dict:
    """Matrices as float64 arrays, which every reader of pickles expects."""
    sample = dict(sample, ct2patient=np.array(sample['ct2patient']))
    sample['images'] = {
        name: {
            key: np.array(value) if key in ('cam2img', 'lidar2cam',
                                            'lidar2img') else value
            for key, value in view.items()
        }
        for name, view in sample['images'].items()
    }
    return sample

