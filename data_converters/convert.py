"""Scans to X-ray views or CT slices, infos and COCO files.

A converted set grows scan by scan: a scan's images, then its record (last, so
that a record means a finished scan). :func:`finish_set` makes the infos of
every split from the records. Whatever way a set was made, by one process or
many, at once or after any number of interruptions, its files are the same.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    cast,
)

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from projects.core import geometry
from projects.core.acquisition import Acquisition, Counts, load_preset
from projects.core.files import (
    DataError,
    atomic_write,
    dump_json,
    load_json,
)
from projects.core.infos import (
    SCHEMA_VERSION,
    as_arrays,
    build_coco,
    coco_name,
    dump_infos,
    infos_name,
    load_infos,
    pack_shape,
)
from projects.core.rig import Rig, View

from . import __version__
from .drr import MU_WATER, render, render_with_bone
from .scan import ConversionError, Scan, Shot
from .slices import Slicing, choose_images, slices_of

# One linear window for every image of every set: 16 bits hold line integrals
# up to this; 400 mm of soft tissue are 8, a large chest with spine below 14.
INTEGRAL_MAX = 16.
LEVELS = 65535
SPLITS = ('train', 'val', 'test')
MEASURED = 'measured'  # in place of a renderer
_TEMPORARY = r'\.[a-z0-9_]{8}\.tmp'  # ends what atomic_write has not finished
# What a folder may hold before it has options.json: what a run leaves that
# was killed before, and the geometry.
_EARLY = (r'rig\.json|\.lock(-\d+-of-\d+)?|\.(options|rig)\.json'
          + _TEMPORARY)

# Which slices a split's files choose: another choice writes these anew.
_CHOICE = ('negatives', 'positive_share')

__all__ = [
    'MEASURED', 'SPLITS', 'Options', 'Shard', 'convert_scan', 'convert_scans',
    'expect_own_folder', 'finish_set', 'finish_shard', 'merge_set',
    'open_set', 'record_path', 'split_of', 'split_patients', 'write_image'
]

Shard = Tuple[int, int]  # (i, n): the i-th of n, from 1


@dataclass
class Options:
    """What makes a converted set what it is; one set has one of it.

    Attributes:
        rig: ``Rig.to_dict()``; None for a set of slices.
        slices: Fields of :class:`data_converters.slices.Slicing`, for a set
            of slices in place of views.
        mammograms: Fields of :class:`data_converters.mammograms.Fitting`, for
            a set of these.
        conditions: Fields of :class:`projects.core.acquisition.Acquisition`,
            where they are not those of the preset.
        renderer: Name in :data:`data_converters.drr.RENDERERS`, or
            :data:`MEASURED`.
        acquisition: Name of a preset in :mod:`projects.core.acquisition`.
        raw: Whether the set has what the detector wrote, beside the images.
        min_readers: Nodules of fewer readers are marked ``ignore``.
        min_diameter: Nodules below (mm) are marked ``ignore``.
        fractions: Share of the patients in 'val' and 'test'; the rest is
            for training.
        seed: Of the split; sets of one seed agree about every patient.
        dataset: Name in the metainfo.
        classes: Names of the labels.
        inputs: What else the set was made from.
    """
    rig: Optional[dict]
    renderer: str = 'joseph'
    acquisition: str = 'ideal'
    raw: bool = False
    min_readers: int = 1
    min_diameter: float = 0.
    fractions: Dict[str, float] = field(
        default_factory=lambda: dict(val=.2, test=0.))
    seed: int = 0
    dataset: str = 'LIDC-IDRI'
    classes: List[str] = field(default_factory=lambda: ['nodule'])
    inputs: dict = field(default_factory=dict)
    slices: Optional[dict] = None
    mammograms: Optional[dict] = None
    conditions: Optional[dict] = None

    @property
    def detector(self) -> Acquisition:
        """What the views are acquired with."""
        if self.conditions is None:
            return load_preset(self.acquisition)
        return Acquisition(**self.conditions)

    @property
    def slicing(self) -> Optional[Slicing]:
        """How slices are made, in a set of them."""
        return None if self.slices is None else Slicing(**self.slices)

    @property
    def names(self) -> List[str]:
        """Regular expressions of its images' names."""
        if self.rig is None:
            return [r'SLICE_\d+']
        return [re.escape(view['name']) for view in self.rig['views']]

    def wants(self, split: str) -> bool:
        """Whether any patient is meant for a split."""
        if split == 'train':
            return sum(self.fractions.values()) < 1
        return self.fractions.get(split, 0.) > 0


# ------------------------------------------------------------------- one scan
def convert_scan(scan: Scan, options: Options, out_dir: Path,
                 device: str = 'cpu') -> dict:
    """Render or slice a scan, write its images and record; returns the
    sample.

    2D boxes are those of the finding's projected mask, from the same matrices
    as the image.
    """
    shots, detectors, picture = _images_of(scan, options, device)
    folder = out_dir / 'images' / scan.key
    folder.parent.mkdir(parents=True, exist_ok=True)
    _mark(out_dir, scan.key).touch()
    _discard(out_dir, scan.key, options, rendered=False)
    images = {}
    for shot in shots:
        written = write_image(out_dir, folder / f'{shot.name}.png',
                              shot.levels)
        height, width = shot.levels.shape[:2]
        images[shot.name] = dict(
            img_path=written['path'], sha256=written['sha256'],
            height=height, width=width, cam2img=shot.cam2img.tolist(),
            lidar2cam=shot.ct2cam.tolist(), lidar2img=shot.ct2img.tolist(),
            sample_data_token=shot.token, **shot.record)
    if picture is not None:
        write_image(out_dir, _lung_picture(out_dir, scan.key), picture)
    instances = []
    cam_instances: Dict[str, List[dict]] = {name: [] for name in images}
    for number, finding in enumerate(scan.findings):
        box, mask = scan.box(finding), scan.mask(finding)
        seen = 0
        for shot in shots:
            rect = shot.rects[number]
            if rect is None:
                continue
            seen += 1
            cam_instances[shot.name].append(seen_box(
                rect, finding.label, box, shot.cam2img, shot.ct2cam, number))
        ignore = (finding.record.get('num_readers', np.inf)
                  < options.min_readers
                  or finding.record['diameter'] < options.min_diameter)
        instances.append(
            dict(
                bbox_3d=box.tolist(), bbox_label_3d=finding.label,
                # The whole CT is there, so nothing in it is out of sight.
                valid_flag=seen >= 2 or options.slices is not None,
                ignore=bool(ignore), num_views=seen,
                **finding.record,
                shape=None if mask is None else pack_shape(mask),
                contrast=scan.contrast(finding)))
    sample = dict(
        token=scan.key, lidc_id_ref=scan.patient_id,
        series_uid=scan.series_uid, frame_of_reference_uid=scan.frame_uid,
        ct2patient=None if scan.ct2patient is None
        else scan.ct2patient.tolist(),
        **({} if scan.measured is not None else dict(
            volume=dict(shape=list(scan.hu.values.shape),
                        spacing=scan.hu.spacing.tolist()))),
        repairs=scan.repairs, images=images, instances=instances,
        cam_instances=cam_instances, **scan.record)
    if scan.source is not None:
        sample['source_digest'] = scan.source
    if scan.anatomy is not None:
        sample['anatomy'] = scan.anatomy
    if options.raw:
        sample['raw'] = [
            _write_counts(out_dir, scan.key, number, counts,
                          [shots[row].name for row in rows])
            for number, (rows, counts) in enumerate(detectors)]
    dump_json(sample, record_path(out_dir, scan.key))
    _mark(out_dir, scan.key).unlink()
    return sample


def seen_box(rect: np.ndarray, label: int, box: np.ndarray,
             cam2img: np.ndarray, ct2cam: np.ndarray, number: int) -> dict:
    """What a sample's ``cam_instances`` say of a finding in a view.

    Args:
        rect: (4,), its rectangle in the image (px).
        label: Of its class.
        box: (7,) (mm).
        cam2img, ct2cam: (4, 4), of the view.
        number: Of its instance.
    """
    centre, depth = geometry.project(
        box[None, :3], geometry.compose_ct2img(cam2img, ct2cam))
    in_camera = ct2cam[:3, :3] @ box[:3] + ct2cam[:3, 3]
    size = np.abs(ct2cam[:3, :3]) @ box[3:6]
    return dict(
        bbox=np.asarray(rect).tolist(), bbox_label=label,
        bbox_cam3d=[*in_camera.tolist(), *size.tolist(), 0.],
        center_2d=centre[0].tolist(), depth=float(depth[0]),
        instance_idx=number)


def _images_of(scan: Scan, options: Options, device: str
               ) -> Tuple[List[Shot], List[Tuple[List[int], Counts]],
                          Optional[np.ndarray]]:
    """A scan's images; the detectors' files of views, and the picture of the
    lungs of slices, where the set has them."""
    if options.slicing is not None:
        shots, picture = slices_of(scan, options.slicing)
        return shots, [], picture
    return *_views_of(scan, Rig.from_dict(cast(dict, options.rig)), options,
                      device), None


def _views_of(scan: Scan, rig: Rig, options: Options, device: str
              ) -> Tuple[List[Shot], List[Tuple[List[int], Counts]]]:
    """A scan's views, as the set's conditions let a detector have them, and
    for each detector its rows of the views and its files, if the set has
    them."""
    images, detectors = _integrals_of(scan, rig, options, device)
    brightest = max((float(i.max()) for i in images), default=0.)
    if brightest > INTEGRAL_MAX:
        scan.repairs.append(
            f'line integrals up to {brightest:.1f} exceed the images\' '
            f'{INTEGRAL_MAX:g}: what lies on those rays is lost')
    corners = [scan.corners(finding) for finding in scan.findings]
    shots = []
    for view, image in zip(rig.views, images):
        levels = np.rint(image / INTEGRAL_MAX * LEVELS).clip(0, LEVELS)
        shots.append(Shot(
            view.name, scan.key + view.name.replace('CAM_', 'cam'),
            levels.astype(np.uint16), view.cam2img, view.ct2cam,
            [_rect(points, view) for points in corners]))
    return shots, detectors


def _integrals_of(scan: Scan, rig: Rig, options: Options, device: str
                  ) -> Tuple[List[np.ndarray],
                             List[Tuple[List[int], Counts]]]:
    """Line integrals of a scan's views, and the detectors' files; what is
    random is the scan's own, whatever is converted beside it."""
    if scan.measured is not None:
        return scan.measured, []
    conditions = options.detector
    if not conditions.spectrum:
        return render(scan.hu, rig, options.renderer, device), []
    digest = hashlib.sha256(f'{options.seed} {scan.key}'.encode()).digest()
    rng = np.random.default_rng(list(digest))
    poses = conditions.taken_from(
        np.stack([v.ct2cam for v in rig.views]), rng)
    taken = Rig([replace(view, ct2cam=pose)
                 for view, pose in zip(rig.views, poses)])
    if conditions.hardened_by_bone:
        images, bones = render_with_bone(scan.hu, taken, options.renderer,
                                         device)
    else:
        images = render(scan.hu, taken, options.renderer, device)
        bones = None
    measured, written = list(images), []
    for detector in conditions.detectors(
            images, [view.pixel_size for view in rig.views], rng, bones):
        for row, view in zip(detector.rows, detector.views):
            measured[row] = view
        if options.raw:
            written.append((detector.rows, conditions.counts(detector)))
    return measured, written


def _write_counts(out_dir: Path, key: str, number: int, counts: Counts,
                  names: List[str]) -> dict:
    """Write a detector's files; returns what the sample says of them."""
    folder = out_dir / 'raw' / key
    own = folder / f'detector-{number}'
    return dict(
        views={name: write_image(out_dir, folder / f'{name}.tif', image)
               for name, image in zip(names, counts.raw)},
        flat=write_image(out_dir, own / 'flat.tif', counts.flat),
        dark=write_image(out_dir, own / 'dark.tif', counts.dark),
        dead=write_image(out_dir, own / 'dead.png', counts.dead))


def write_image(out_dir: Path, path: Path, image: np.ndarray) -> dict:
    """Write an image atomically; returns its path in the set and SHA-256."""
    ok, encoded = cv2.imencode(path.suffix, image)
    if not ok:
        raise ConversionError(f'{path}: image cannot be encoded')
    content = encoded.tobytes()
    with atomic_write(path) as stream:
        stream.write(content)
    return dict(path=path.relative_to(out_dir).as_posix(),
                sha256=hashlib.sha256(content).hexdigest())


def _rect(corners: np.ndarray, view: View) -> Optional[np.ndarray]:
    """Rectangle of projected corners within the image, or None."""
    uv, depth = geometry.project(corners, view.ct2img)
    if (depth <= 0).any():
        return None
    low = uv.min(0).clip([0, 0], [view.width, view.height])
    high = uv.max(0).clip([0, 0], [view.width, view.height])
    return np.concatenate([low, high]) if (high - low > .5).all() else None


def record_path(out_dir: Path, key: str) -> Path:
    """Where a scan's record is, or will be."""
    return out_dir / 'scans' / f'{key}.json'


def _lung_picture(out_dir: Path, key: str) -> Path:
    return out_dir / 'lungs' / f'{key}.png'


def _mark(out_dir: Path, key: str) -> Path:
    """A file that is there while a scan's images are ours, but no record
    vouches for them yet."""
    return out_dir / 'images' / f'.{key}.begun'


def _discard(out_dir: Path, key: str, options: Options,
             rendered: bool = True) -> None:
    """Remove a scan's half-written images, and the whole ones if wanted; of
    a set with raw images those, too."""
    views = '|'.join(options.names)
    folders = {out_dir / 'images' / key: rf'({views})\.png'}
    if options.raw and options.rig is not None:
        raw = out_dir / 'raw' / key
        # A detector has a view or more. What is in a folder goes before it.
        folders = {**{raw / f'detector-{number}':
                      r'(flat|dark)\.tif|dead\.png'
                      for number in range(len(options.rig['views']))},
                   raw: rf'({views})\.tif', **folders}
    for folder, names in folders.items():
        _remove(folder, rf'\.({names}){_TEMPORARY}')
        if rendered and folder.is_dir():
            _remove(folder, names)
            if not any(folder.iterdir()):
                folder.rmdir()
    if options.slices is not None:
        name = re.escape(_lung_picture(out_dir, key).name)
        _remove(out_dir / 'lungs', rf'\.{name}{_TEMPORARY}')
        if rendered:
            _remove(out_dir / 'lungs', name)


def _remove(folder: Path, names: str) -> None:
    """Remove a folder's files of these names (a regular expression); it
    need not be there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(names, path.name) and not path.is_dir():
            path.unlink()


# ------------------------------------------------------------------ many scans
@contextmanager
def open_set(out_dir: Path, options: Options,
             shard: Optional[Shard] = None) -> Iterator[None]:
    """Hold a folder alone while a set is made in it.

    What a killed run has left half done is removed first, and nothing that
    the set has not written. Runs of different shards of the same set share
    the folder.

    Raises:
        ConversionError: Another run holds the folder, or it holds a set made
            with other options, another rig, or something else than a set.
    """
    path = out_dir / 'options.json'
    if path.exists():
        _read_options(path)
    else:
        try:
            expect_own_folder(out_dir, _EARLY, 'a converted set')
        except ConversionError:
            if not path.exists():  # a shard beside us may be the first
                raise
        _expect_rig(out_dir / 'rig.json', options)
    out_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        locks.enter_context(
            _lock(out_dir / '.lock', shared=shard is not None))
        if shard is not None:
            locks.enter_context(_lock(out_dir / '.lock-{}-of-{}'.format(
                *shard)))
        _claim(out_dir, options)
        if shard is None:
            _sweep(out_dir, options)
        yield


def _expect_rig(path: Path, options: Options) -> None:
    """Refuse a ``rig.json`` that would lie beside images of another rig, or
    beside slices."""
    if options.rig is None:
        if path.exists():
            raise ConversionError(
                f'{path}: expected none in a set of slices: choose another '
                '--out-dir')
    elif path.exists() and (Rig.load(path).to_dict()
                          != Rig.from_dict(options.rig).to_dict()):
        raise ConversionError(
            f'{path}: expected the rig of this call, with its --image-size, '
            'found another: choose another --out-dir, or move the file and '
            'name it with --rig')


def expect_own_folder(out_dir: Path, own: str, what: str) -> None:
    """Refuse to write among a user's files.

    Args:
        out_dir: Folder to write to; absent or empty is fine.
        own: Regular expression of all names that may be in it.
        what: What else than empty it may be, for the sentence.

    Raises:
        ConversionError: Something else is in it.
    """
    found = sorted(os.listdir(out_dir)) if out_dir.exists() else []
    found = [name for name in found if not re.fullmatch(own, name)]
    if found:
        raise ConversionError(
            f'{out_dir}: --out-dir: expected a new or empty folder, or '
            f'{what}, found other files ("{found[0]}"): choose another')


@contextmanager
def _lock(path: Path, shared: bool = False) -> Iterator[None]:
    """A lock that the system releases when its process ends, however."""
    with path.open('a+', encoding='utf-8', errors='replace') as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                        | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or 'runs of its shards'
            raise ConversionError(
                f'{path.parent}: expected no other run that writes here, '
                f'found {holder}: wait for its end or choose another '
                '--out-dir') from None
        if not shared:
            stream.seek(0)
            left = stream.read(80)
            if left and not left.startswith('process '):
                raise ConversionError(
                    f'{path}: expected a lock of a run, found another file: '
                    'choose another --out-dir')
            stream.truncate(0)
            stream.write(f'process {os.getpid()} on {socket.gethostname()}')
            stream.flush()
        try:
            yield
        finally:
            if not shared:
                stream.truncate(0)


def _claim(out_dir: Path, options: Options) -> None:
    """Refuse to mix two kinds of set in one folder; a set of slices may get
    another choice of them."""
    path = out_dir / 'options.json'
    current = _with_conditions(json.loads(json.dumps(asdict(options))))
    if not path.exists():
        dump_json(current, path)
        return
    # An option that the set is older than has its default.
    found = _with_conditions({**asdict(Options(options.rig)),
                              **_read_options(path)})
    other_choice = False
    for name in _CHOICE if found['slices'] and current['slices'] else ():
        other_choice |= found['slices'].get(name) != current['slices'][name]
        found['slices'][name] = current['slices'][name]
    if found['acquisition'] == current['acquisition']:
        _expect_fields(path, 'conditions', found['conditions'],
                       current['conditions'])
    _expect_fields(path, 'slices', found['slices'], current['slices'])
    told = current['inputs'].get('digests')
    if told and found['inputs'].get('chests') == current['inputs']['chests']:
        # Sets of before know their chests by name alone.
        _expect_fields(path, 'inputs.digests',
                       found['inputs'].setdefault('digests', told), told)
    for name, value in current.items():
        if found.get(name) != value:
            short = ('another rig' if name == 'rig' and value
                     else repr(found.get(name)))
            raise ConversionError(
                f'{path}: field "{name}": expected the value of this call'
                + ('' if name == 'rig' else f', {value!r}')
                + f', found {short}: the folder holds a set made with other '
                'options; choose another --out-dir or remove it')
    _expect_rig(out_dir / 'rig.json', options)
    if other_choice:
        dump_json(current, path)


def _with_conditions(found: dict) -> dict:
    """Fields of :class:`Options` with the values of their preset, which may
    be another one day; sets of before lack them."""
    if found['conditions'] is not None or found['acquisition'] == 'ideal':
        return found
    return dict(found, conditions=asdict(load_preset(found['acquisition'])))


def _expect_fields(path: Path, group: str, found: Optional[dict],
                   current: Optional[dict]) -> None:
    """Name the one field of a group of options that is another."""
    for name, value in (current or {}).items():
        other = (found or {name: value}).get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            _expect_fields(path, f'{group}.{name}', other, value)
        elif other != value:
            raise ConversionError(
                f'{path}: field "{group}.{name}": expected the value of '
                f'this call, {value!r}, found {other!r}: the folder holds a '
                'set made with other options; choose another --out-dir or '
                'remove it')


def _read_options(path: Path) -> dict:
    """Fields of :class:`Options` as a set's folder has them."""
    found = load_json(path)
    if not (isinstance(found, dict)
            and any(isinstance(found.get(kind), dict)
                    for kind in ('rig', 'slices', 'mammograms'))
            and set(found) <= {option.name for option in fields(Options)}):
        raise ConversionError(
            f'{path}: expected the options of a converted set, found none: '
            'choose another --out-dir')
    return found


def _sweep(out_dir: Path, options: Options) -> None:
    """Remove what a killed run of this set has left half done."""
    infos = infos_name(r'\w+', '')
    _remove(out_dir, rf'\.((options|errors|rig|{infos}(\.coco)?)\.json'
            rf'|{infos}\.pkl|check\.png){_TEMPORARY}')
    _remove(out_dir / 'scans', rf'\..+\.json{_TEMPORARY}')
    _remove(out_dir / 'shards', rf'\.\d+-of-\d+\.json{_TEMPORARY}')
    if options.mammograms is not None:
        _remove(out_dir / 'images', rf'\..+\.png{_TEMPORARY}')
        _remove(out_dir / 'annotations',
                rf'\.instances_\w+\.json{_TEMPORARY}')
    for mark in out_dir.glob('images/.*.begun'):
        key = mark.name[1:-len('.begun')]
        _discard(out_dir, key, options,
                 rendered=not record_path(out_dir, key).exists())
        mark.unlink()
    for folder in out_dir.glob('.dicom-*'):
        own = re.fullmatch(r'\.dicom-[a-z0-9_]{8}', folder.name)
        if own and folder.is_dir() and all(
                p.name.startswith('LIDC-IDRI-') for p in folder.iterdir()):
            shutil.rmtree(folder)


def convert_scans(scans: Iterable[Tuple[str, object]],
                  load: Callable[[Any], ContextManager[Any]],
                  options: Options, out_dir: Path, jobs: int = 1,
                  device: str = 'cpu', total: Optional[int] = None,
                  dask_scheduler: Optional[str] = None,
                  digest: Optional[Callable[[object], str]] = None,
                  convert: Callable[..., object] = convert_scan
                  ) -> Dict[str, str]:
    """Convert scans that are not there yet.

    Call within :func:`open_set`.

    Args:
        scans: Unique name of each scan and what ``load`` takes for it.
        load: Context manager factory that yields a :class:`Scan`, or what
            ``convert`` takes in its place; runs in the worker.
        options (Options): Those of the set.
        out_dir (Path): Root of the set.
        jobs (int): Processes; one scan each is in memory.
        device (str): Torch device of the renderer.
        total (int, optional): Number of scans, for the progress bar.
        dask_scheduler (str, optional): Address of a Dask scheduler whose
            workers, which must see the same files, take the processes' place.
        digest (callable, optional): ``Scan.source`` from what ``load`` takes:
            scans that are there must not have changed since.
        convert (callable): Writes a scan's images and record, takes what
            :func:`convert_scan` takes.

    Returns:
        dict: Names of the scans that cannot be converted, with the reason.

    Raises:
        ConversionError: There is no such scheduler, a worker was killed, or
            a converted scan has changed.
        OSError: The files cannot be written.
    """
    skipped = {}
    out_dir = out_dir.resolve()
    if digest is not None:
        scans = list(scans)
        for name, source in scans:
            _expect_same(record_path(out_dir, name), source, digest)
    with _workers(jobs, dask_scheduler) as pool:
        results = pool(
            delayed(_convert_one)(name, source, load, convert, options,
                                  out_dir, device) for name, source in scans)
        bar = tqdm(results, total=total, desc='convert', unit='scan',
                   dynamic_ncols=True, smoothing=.1)
        for name, reason in bar:
            if reason:
                skipped[name] = reason
                bar.write(f'{name}: skipped: {reason}')
    return skipped


def _expect_same(record: Path, source: object,
                 digest: Callable[[object], str]) -> None:
    """Refuse a scan that is no longer what its record was made from."""
    if not record.exists():
        return
    # Records of older sets do not say it.
    found = load_json(record).get('source_digest')
    if found is not None and found != (now := digest(source)):
        raise ConversionError(
            f'{record}: field "source_digest": expected {now}, that of scan '
            f'"{record.stem}" as it is now, found {found}: its volume has '
            'been replaced; remove this file to convert it anew, or choose '
            'another --out-dir')


@contextmanager
def _workers(jobs: int, dask_scheduler: Optional[str]) -> Iterator[Parallel]:
    """joblib's processes, here or in a Dask cluster."""
    options = dict(return_as='generator_unordered', pre_dispatch='2*n_jobs')
    try:
        if dask_scheduler is None:
            with Parallel(n_jobs=jobs, **options) as pool:
                yield pool
            return
        from distributed import Client
        try:
            client = Client(dask_scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise ConversionError(
                f'--dask-scheduler: expected the address of a Dask scheduler, '
                f'as tcp://host:8786, found "{dask_scheduler}": {error}'
            ) from None
        with client, parallel_config('dask'), Parallel(**options) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise ConversionError(
            '--jobs: a worker process was killed, as systems do that run out '
            'of memory: start again with fewer; what is done is kept'
        ) from error


def _convert_one(name, source, load, convert, options, out_dir, device
                 ) -> Tuple[str, Optional[str]]:
    """Name of a scan, and why it cannot be converted if so."""
    # One thread each: the order of sums, and with it the last bit of an
    # image, must not depend on the number of processes.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if record_path(out_dir, name).exists():
        return name, None
    with ExitStack() as stack:
        try:
            scan = stack.enter_context(load(source))
        except ConversionError as error:
            return name, str(error)
        except Exception as error:  # one bad scan does not end a night's work
            return name, f'cannot be read: {type(error).__name__}: {error}'
        try:
            convert(scan, options, out_dir, device)
        except OSError:  # the disk's fault, not the scan's
            raise
        except Exception as error:
            _discard(out_dir, scan.key, options)
            _mark(out_dir, scan.key).unlink(missing_ok=True)
            return name, f'cannot be rendered: {type(error).__name__}: {error}'
    return name, None


def finish_shard(out_dir: Path, shard: Shard,
                 skipped: Dict[str, str]) -> None:
    """Say that a shard is done; :func:`merge_set` waits for all."""
    dump_json(dict(skipped=skipped), out_dir / 'shards' / '{}-of-{}.json'
              .format(*shard))


def merge_set(out_dir: Path, **kwargs) -> Dict[str, int]:
    """Finish a set that was made in shards; see :func:`finish_set`.

    Raises:
        ConversionError: A shard is not done, or there is none.
    """
    if not (out_dir / 'options.json').exists():
        raise ConversionError(f'{out_dir}: expected a set made with --shard, '
                              'found none')
    options = Options(**_read_options(out_dir / 'options.json'))
    with open_set(out_dir, options):
        done = {p.stem: load_json(p)['skipped']
                for p in sorted((out_dir / 'shards').glob('*-of-*.json'))}
        numbers = {name.split('-of-')[1] for name in done}
        if len(numbers) != 1:
            raise ConversionError(
                f'{out_dir / "shards"}: expected all shards of one number, '
                f'found {", ".join(done) or "none"}')
        count, = numbers
        missing = [f'{i}/{count}' for i in range(1, int(count) + 1)
                   if f'{i}-of-{count}' not in done]
        if missing:
            raise ConversionError(
                f'{out_dir}: expected {count} shards that are done, found '
                f'{len(done)}: run --shard {", ".join(missing)} first')
        skipped = {k: v for part in done.values() for k, v in part.items()}
        counts = finish_set(out_dir, options, skipped=skipped, **kwargs)
        _remove(out_dir / 'shards', r'\d+-of-\d+\.json')
        if not any((out_dir / 'shards').iterdir()):
            (out_dir / 'shards').rmdir()
        _remove(out_dir, r'\.lock-\d+-of-\d+')
    return counts


def finish_set(out_dir: Path, options: Options,
               patients: Optional[Dict[str, str]] = None,
               skipped: Optional[Dict[str, str]] = None,
               strict: bool = False, suffix: str = '.pkl') -> Dict[str, int]:
    """Write infos and COCO files of every split from the records, the rig,
    and ``errors.json``: what was skipped and what was repaired.

    Splits are by patient, see :func:`split_patients`.

    Args:
        out_dir (Path): Root of the set.
        options (Options): Those of the set.
        patients (dict, optional): Split of every patient, for a set that has
            a part of them; splits without a scan are left out. Defaults to
            :func:`split_patients` of those there are.
        skipped (dict, optional): What :func:`convert_scans` returned.
        strict (bool): Whether any skipped or repaired scan is an error.
        suffix (str): Of the infos: ``.pkl`` or ``.json``.

    Returns:
        dict: Number of scans in each split.

    Raises:
        ConversionError: There is no converted scan, or strictness forbids to
            finish; ``errors.json`` is there all the same.
    """
    samples = [load_json(p)
               for p in sorted((out_dir / 'scans').glob('*.json'))]
    write_errors(out_dir, skipped or {}, {
        s['token']: s['repairs'] for s in samples if s.get('repairs')},
        bool(samples), strict)
    whole = patients is None
    if patients is None:
        patients = split_patients([s['lidc_id_ref'] for s in samples],
                                  options)
    _tell_moved(out_dir, patients, suffix)
    counts: Dict[str, int] = {}
    for split in SPLITS:
        chosen = [s for s in samples if patients[s['lidc_id_ref']] == split]
        if not chosen and not (whole and options.wants(split)):
            continue
        looked_at = None if options.slicing is None else choose_images(
            chosen, split, options.slicing, options.seed)
        infos = dict(
            metainfo=dict(
                dataset=options.dataset, schema_version=SCHEMA_VERSION,
                converter_version=__version__, classes=tuple(options.classes),
                categories={c: i for i, c in enumerate(options.classes)},
                split=split, units='mm',
                frame='ct: RAS+, origin at the centre of the voxel grid',
                min_readers=options.min_readers,
                min_diameter=options.min_diameter, **_meta_of(options)),
            data_list=[
                as_arrays(dict(s, sample_idx=i, **(
                    {} if looked_at is None else dict(
                        selected=looked_at[s['token']]))))
                for i, s in enumerate(chosen)
            ])
        dump_infos(infos, out_dir / infos_name(split, suffix))
        dump_json(build_coco(infos), out_dir / coco_name(split))
        counts[split] = len(chosen)
    rig = out_dir / 'rig.json'
    if options.rig is not None and not rig.exists():
        dump_json(options.rig, rig)
    return counts


def write_errors(out_dir: Path, skipped: Dict[str, str],
                 repaired: Dict[str, list], converted: bool, strict: bool,
                 what: str = 'scan', **others: Dict[str, str]) -> None:
    """Write ``errors.json`` of a set.

    Args:
        out_dir (Path): Root of the set.
        skipped (dict): Why, by name.
        repaired (dict): What, by name.
        converted (bool): Whether the set has anything.
        strict (bool): Whether any skipped or repaired one is an error.
        what (str): One of what is converted.
        **others: What else is told, and is no fault.

    Raises:
        ConversionError: Nothing was converted, or strictness forbids to
            finish; the file is there all the same.
    """
    skipped = dict(sorted(skipped.items()))
    dump_json(dict(skipped=skipped, repaired=repaired, **others),
              out_dir / 'errors.json')
    if not converted:
        first = next((f', as {name}: {reason}' for name, reason
                      in skipped.items()), '')
        raise ConversionError(
            f'{out_dir}: {what}s: expected at least one converted {what}, '
            f'found none and {len(skipped)} skipped{first}')
    if strict and (skipped or repaired):
        raise ConversionError(
            f'{out_dir}: --strict: expected no {what} with a fault, found '
            f'{len(skipped)} skipped and {len(repaired)} repaired; '
            'errors.json says which')


def _meta_of(options: Options) -> dict:
    """What the infos say of how the images were made."""
    if options.slicing is not None:
        return dict(slices=options.slices, **options.slicing.meta())
    meta = dict(
        rig=options.rig,
        renderer=dict(name=MEASURED) if options.renderer == MEASURED else dict(
            name=options.renderer, mu_water=MU_WATER,
            averaging='blocks of whole voxels, at most a pixel of the finest '
            'view at the isocentre'),
        intensity=dict(unit='line integral of attenuation',
                       scale=INTEGRAL_MAX / LEVELS, offset=0.))
    if options.acquisition != 'ideal':
        meta['acquisition'] = dict(name=options.acquisition,
                                   **asdict(options.detector))
    if options.raw:
        meta['raw'] = dict(
            unit='counts', quanta_per_count=1.,
            line_integral='-log((raw - dark) / (flat - dark))')
    return meta


def _tell_moved(out_dir: Path, patients: Dict[str, str],
                suffix: str) -> None:
    """Say who was in another split in the infos that are replaced: a set of a
    few has grown, or was split by a rule of before."""
    moved: Dict[str, str] = {}
    for split in SPLITS:
        try:
            infos = load_infos(out_dir / infos_name(split, suffix))
        except DataError:  # not there, or damaged and written anew
            continue
        moved.update(
            (name, split) for name in (s['lidc_id_ref']
                                       for s in infos['data_list'])
            if patients.get(name, split) != split)
    if moved:
        name, split = min(moved.items())
        print(f'{out_dir}: {len(moved)} patients or parts are in another '
              f'split than before, as {name}: {patients[name]}, before '
              f'{split}; a test of what was trained before may be on what it '
              'was trained on', file=sys.stderr)


def split_patients(patients: Iterable[str],
                   options: Options) -> Dict[str, str]:
    """Split of every patient.

    A patient's place in [0, 1) is a hash of the name and the seed, whoever
    else there is: below the share of 'test' it is a test's, at the other end
    validation's. So a set grows without moving anyone, and of two sets with
    other scans or shares none tests on what the other validates on.

    Every split that is wanted has somebody, training first: where it has
    none, it gets those who are nearest to its end. Only in such a set, of a
    few patients, somebody may move when it grows. Nobody does where splits
    have chests of their own.

    Args:
        patients (Iterable[str]): Names, in any order, as often as one likes.
        options (Options): With ``fractions`` and ``seed``.
    """
    chests = options.inputs.get('chests', {}).values()
    if any(of_split != other for of_split in chests for other in chests):
        return {name: split_of(name, options) for name in patients}
    places = {name: _place_of(name, options.seed) for name in patients}
    order = sorted(places, key=lambda name: (places[name], name))
    shares = {split: options.fractions.get(split, 0.)
              for split in ('test', 'val')}
    least, free = {}, len(order)
    for split in ('train', 'test', 'val'):
        least[split] = min(int(options.wants(split)), free)
        free -= least[split]
    tested = sum(place < shares['test'] for place in places.values())
    tested = min(max(tested, least['test']),
                 len(order) - least['train'] - least['val'])
    validated = sum(place >= 1 - shares['val'] for place in places.values())
    validated = min(max(validated, least['val']),
                    len(order) - least['train'] - tested)
    rest = len(order) - tested - validated
    return dict(zip(order, ['test'] * tested + ['train'] * rest
                    + ['val'] * validated))


def split_of(patient: str, options: Options) -> str:
    """Of a patient in a set that is not tiny, or whose splits have chests of
    their own, see :func:`split_patients`."""
    place = _place_of(patient, options.seed)
    if place < options.fractions.get('test', 0.):
        return 'test'
    return 'val' if place >= 1 - options.fractions.get('val', 0.) else 'train'


def _place_of(patient: str, seed: int) -> float:
    """In [0, 1), the same in every set."""
    digest = hashlib.sha256(f'split {seed} {patient}'.encode()).hexdigest()
    return int(digest[:13], 16) / 16**13  # as many bits as a float has
