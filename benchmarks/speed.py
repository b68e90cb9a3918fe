"""Time and memory, each beside a plain reference in the same run.

    python benchmarks/speed.py render             X-rays of a phantom scan
    python benchmarks/speed.py load CONFIG        scans from disk
    python benchmarks/speed.py train CONFIG       a training step
    python benchmarks/speed.py infer CONFIG       boxes of one scan
    python benchmarks/speed.py parts CONFIG       what a training step is made
                                                  of, what might make it cheap
    python benchmarks/speed.py slices CONFIG ...  a step of detectors of slices
    python benchmarks/speed.py correlate          RoIs of 10, 20 and 40 views

Times are medians without the first runs, memory is the peak of a process that
does nothing else. Untrained networks find as many boxes as their config lets
them: the dearest case. ``--out`` leaves all figures as JSON.
"""

import argparse
import contextlib
import copy
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Dict, List, Optional
from unittest.mock import patch

import cv2
import numpy as np
import torch
from measure import in_process, median_seconds, peak_mb, show
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from scipy.spatial.transform import Rotation
from torch.nn.attention import SDPBackend, sdpa_kernel

from projects.core import box_correlation as matching, geometry
from projects.core.boxes import lidar_boxes
from projects.core.engine.configs import load_config
from projects.core.engine.devices import torch_device
from projects.core.engine.precision import use_half_precision
from projects.core.files import dump_json, load_json
from projects.core.rig import Rig
from projects.mv2d_xray.lifting.decoder import XRayDecoder
from projects.mv2d_xray.queries import grid as grid_head, volume
from projects.mv2d_xray.transforms.packing import PackXRayInputs

ROOT = Path(__file__).resolve().parent.parent
SCENE = [-200., -200., -200., 200., 200., 200.]


# --------------------------------------------------------------------- render
def phantom_volume():
    """A phantom CT as the converter gives it to a renderer."""
    from conversion import scan_of

    from data_converters import lidc, phantom
    uid = scan_of(133)
    with tempfile.TemporaryDirectory() as dicom:
        phantom.write_scan(phantom.make_scan(uid, 0), Path(dicom))
        return lidc.read_scan(uid, Path(dicom)).hu


def diffdrrs_own(hu, rig: Rig, device: str) -> List[np.ndarray]:
    """DiffDRR as its documentation calls it, Siddon by default; in patches,
    without which 1024² need tens of gigabytes."""
    from diffdrr.data import read
    from diffdrr.drr import DRR
    from torchio import ScalarImage
    view = rig.views[0]
    subject = read(ScalarImage(
        tensor=torch.from_numpy(np.ascontiguousarray(hu.values))[None].float(),
        affine=hu.voxel2ct))
    drr = DRR(subject, sdd=600., height=view.height,
              delx=float(600 / view.cam2img[0, 0]),
              patch_size=min(256, view.height)).to(device).float()
    step = 2 * np.pi / len(rig.views)
    return [
        drr(torch.tensor([[float(number * step), 0., 0.]], device=device),
            torch.tensor([[0., 300., 0.]], device=device),
            parameterization='euler_angles', convention='ZXY')[0, 0].cpu()
        for number in range(len(rig.views))
    ]


def tilted(rig: Rig) -> Rig:
    """The same cameras turned by 3 degrees in and by 3 out of the image's
    plane, so that no line of pixels is along an axis of the volume."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('zx', [3, 3],
                                       degrees=True).as_matrix()
    return Rig([replace(view, ct2cam=turn @ view.ct2cam)
                for view in rig.views])


@torch.no_grad()
def render_one(renderer: str, hu, rig: Rig, repeats: int,
               device: str) -> Dict:
    """Time of one renderer, what memory it takes beside the prepared volume,
    views included, and its pictures; preparation apart."""
    from data_converters.drr import RENDERERS, prepare
    begin = time.process_time()
    mu = prepare(hu, rig) if renderer else hu
    prepared = time.process_time() - begin
    work = RENDERERS[renderer] if renderer else diffdrrs_own
    work(mu, rig.resized(8, 8), device)  # compiles
    images, cpu = [], []

    def timed():
        images.clear()
        begin = time.process_time()
        images.extend(work(mu, rig, device))
        cpu.append(time.process_time() - begin)

    before = peak_mb(device, anew=True)
    seconds = median_seconds(timed, repeats, device, warm_up=0)
    return dict(seconds=seconds / len(rig.views),
                cpu_seconds=float(np.median(cpu)) / len(rig.views),
                prepare_cpu_seconds=prepared,
                peak_mb=peak_mb(device),
                beside_mb=peak_mb(device) - before,
                images=np.stack([np.asarray(i) for i in images]))


def rtks_own(python: Path, hu, rig: Rig, args) -> Dict:
    """RTK's CPU Joseph in an environment that has it, of what ours is given
    after preparation. Its time is that of the projection alone."""
    from data_converters.drr import prepare
    from data_converters.geometries import write_geometry
    mu, view = prepare(hu, rig), rig.views[0]
    pixel = 600. / view.cam2img[[0, 1], [0, 1]]
    size = np.array([view.width, view.height])
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, 'volume.npy'), mu.values)
        write_geometry(rig, Path(folder, 'rig.xml'), 600.)
        dump_json(dict(
            origin=mu.voxel2ct[:3, 3].tolist(), spacing=mu.spacing.tolist(),
            direction=(mu.voxel2ct[:3, :3] / mu.spacing).tolist(),
            size=size.tolist(), pixel=pixel.tolist(),
            corner=(-(size - 1) / 2 * pixel).tolist(),
            threads=args.threads, repeats=args.repeats),
            Path(folder, 'about.json'))
        subprocess.run(  # noqa: S603  a person's own Python
            [str(python), str(ROOT / 'benchmarks/rtk_render.py'), folder],
            check=True)
        return dict(load_json(Path(folder, 'took.json')),
                    images=np.load(Path(folder, 'image.npy')))


def render(args) -> None:
    """Every renderer against the first, DiffDRR's own call if all are asked
    for; pictures against Siddon. ``joseph`` and RTK see tilted detectors,
    too."""
    from data_converters.drr import RENDERERS
    hu = phantom_volume()
    rig = Rig(Rig.circle(10, image_size=args.image_size).views[:args.views])
    rows, siddon = [], None
    names = (args.only or ['', *RENDERERS]) + ['rtk'] * bool(args.rtk)
    for name, seen in [
            (name, seen) for name in names for seen in (rig, tilted(rig))
            if seen is rig or name in ('joseph', 'rtk')]:
        row = rtks_own(args.rtk, hu, seen, args) if name == 'rtk' else (
            in_process(render_one, name, hu, seen, args.repeats, args.device,
                       threads=args.threads))
        images = row.pop('images')
        siddon = images if name == 'siddon' else siddon
        rows.append(dict(
            renderer=dict({'': 'DiffDRR\'s own call'}, rtk='RTK').get(
                name, name) + ', tilted' * (seen is not rig), **row,
            images_per_second=1 / row['seconds'],
            times_faster=(rows[0] if rows else row)['seconds'] /
            row['seconds'],
            difference_percent=100 * float(
                np.abs(images - siddon).mean() / siddon.mean())
            if siddon is not None and seen is rig else None))
    show(rows, ['renderer', 'seconds', 'cpu_seconds', 'images_per_second',
                'times_faster', 'prepare_cpu_seconds', 'peak_mb', 'beside_mb',
                'difference_percent'],
         args.out, command='render', image_size=args.image_size,
         views=args.views, device=args.device, threads=args.threads)


# ----------------------------------------------------------------------- load
def load(args) -> None:
    """The training pipeline, with and without workers, against OpenCV."""
    cfg = load_config(args.config)
    init_default_scope('mmdet3d')
    loader = cfg.train_dataloader
    loader.pop('persistent_workers', None)
    if args.data_root:
        loader.dataset.data_root = args.data_root
    count = args.repeats * 8
    data = loader.dataset = DATASETS.build(loader.dataset)
    infos = [data.get_data_info(i % len(data)) for i in range(count)]

    def read():
        for info in infos:
            for view in info['images'].values():
                if cv2.imread(view['img_path'], -1) is None:
                    raise SystemExit(f'{view["img_path"]}: expected an image')

    rows = [dict(what='cv2.imread of the views', seconds=median_seconds(
        read, args.repeats) / count)]
    steps = data.pipeline.transforms
    spent = np.zeros(len(steps))
    for index in range(count):
        sample = data.get_data_info(index % len(data))
        for row, transform in enumerate(steps):
            start = time.process_time()
            sample = transform(sample)
            spent[row] += time.process_time() - start
    rows += [dict(what=f'of the training pipeline: {type(step).__name__}',
                  seconds=seconds / count)
             for step, seconds in zip(steps, spent)]
    for workers in sorted({0, 1, args.workers}):
        loader.num_workers = workers
        batches = chain.from_iterable(  # epoch after epoch
            repeat(Runner.build_dataloader(loader, seed=0)))
        next(batches)  # workers have started
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        rows.append(dict(what=f'training pipeline, {workers} workers',
                         seconds=(time.perf_counter() - start) / count))
        del batches
    for row in rows:
        row.update(scans_per_second=1 / row['seconds'],
                   to_the_first=row['seconds'] / rows[0]['seconds'])
    show(rows, ['what', 'seconds', 'scans_per_second', 'to_the_first'],
         args.out, command='load', config=args.config)


# -------------------------------------------------------------- train, infer
def made_up_scan(num_views: int, size: int, seed: int = 0) -> dict:
    """A packed training sample: noise for images, three findings."""
    rng = np.random.default_rng(seed)
    rig = Rig.circle(num_views, image_size=size)
    matrices = {
        'cam2img': np.stack([v.cam2img for v in rig.views]),
        'ct2cam': np.stack([v.ct2cam for v in rig.views]),
        'ct2img': np.stack([v.ct2img for v in rig.views])
    }
    boxes = np.zeros((3, 7), np.float32)
    boxes[:, :3], boxes[:, 3:6] = rng.uniform(-60, 60, (3, 3)), 12.
    rects, _ = geometry.project_boxes(boxes, matrices['ct2img'])
    rects = rects.reshape(-1, 4).clip(0, size).astype(np.float32)
    none = LiDARInstance3DBoxes(np.zeros((0, 7), np.float32))
    return PackXRayInputs().transform(dict(
        matrices,
        img=[rng.uniform(0, 6, (size, size, 1)).astype(np.float32)
             for _ in rig.views],
        img_shape=(size, size), num_views=num_views,
        gt_bboxes_3d=lidar_boxes(boxes),
        gt_labels_3d=np.zeros(3, np.int64), gt_bboxes=rects,
        gt_bboxes_labels=np.zeros(len(rects), np.int64),
        gt_bboxes_view=np.repeat(np.arange(num_views), 3),
        gt_bboxes_instance=np.tile(np.arange(3), num_views),
        ignored_bboxes=np.zeros((0, 4), np.float32),
        ignored_bboxes_view=np.zeros(0, np.int64), ignored_bboxes_3d=none))


def plain_pool(sampled, seen, epsilon):
    """Mean and deviation over the views, as one would write them."""
    count = seen.sum(0).clamp(min=1)
    mean = (sampled * seen).sum(0) / count
    variance = ((sampled - mean)**2 * seen).sum(0) / count
    return mean, (variance + epsilon).sqrt()


def plain_convs(convs, x):
    """1x1 convolutions as such."""
    return torch.cat([conv(x) for conv in convs], 1)


@contextlib.contextmanager
def without_savings(model):
    """The same model with textbook code in place of ours."""
    with patch.object(model, 'memory_format', torch.contiguous_format), \
            patch.object(grid_head._PoolViews, 'apply', plain_pool), \
            patch.object(grid_head, '_compiled', lambda *_: False), \
            patch.object(volume, 'pointwise', plain_convs), \
            patch.object(volume, '_SMALL', -1), \
            sdpa_kernel(SDPBackend.MATH):
        yield


def model_of(config: str, plain: bool) -> tuple:
    """Config and untrained model; plain ones keep all they compute."""
    cfg = load_config(config)
    init_default_scope('mmdet3d')
    cfg.model.detector_2d.backbone.pop('init_cfg', None)
    if plain:
        cfg.model.view_chunk = None
        cfg.model.detector_2d.backbone.pop('with_cp', None)
        if cfg.model.lifting_head and cfg.model.lifting_head.get('decoder'):
            cfg.model.lifting_head.decoder.query_chunk = None
    torch.manual_seed(0)
    return cfg, MODELS.build(cfg.model)


def step_once(what: str, config: str, plain: bool, amp: bool,
              args) -> Dict:
    """Time and memory of a training step or an inference."""
    cfg, model = model_of(config, plain)
    model = model.to(args.device)
    scan = made_up_scan(args.views, args.image_size)
    batch = pseudo_collate([scan])
    with without_savings(model) if plain else contextlib.nullcontext():
        if what == 'train':
            if amp:
                use_half_precision(cfg)
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
            model.train()
            torch.manual_seed(1)
            work = partial(model.train_step, batch, wrapper)
        else:
            model.eval()

            @torch.no_grad()
            def work():
                with torch.autocast(torch.device(args.device).type,
                                    enabled=amp):
                    model.test_step(batch)
        seconds = median_seconds(work, args.repeats, args.device,
                                 warm_up=args.warm_up)
    return dict(seconds=seconds, images_per_second=args.views / seconds,
                peak_mb=peak_mb(args.device))


def step(args) -> None:
    """A config beside the same model written plainly, in float32."""
    reference = args.plain_config or args.config
    settings = [('plain', reference, True, False),
                ('ours', args.config, False, False),
                ('ours, --amp', args.config, False, True)]
    if reference != args.config:
        settings += [('plain\'s config, ours, --amp', reference, False, True)]
    rows = []
    for name, config, plain, amp in settings:
        row = in_process(
            step_once, args.command, config, plain, amp, args,
            threads=args.threads, gpu_gb=None if plain else args.gpu_gb)
        rows.append(dict(model=name, config=Path(config).stem, **row))
        if 'seconds' in row and 'seconds' in rows[0]:
            rows[-1]['times_faster'] = rows[0]['seconds'] / row['seconds']
    show(rows, ['model', 'config', 'seconds', 'images_per_second', 'peak_mb',
                'times_faster', 'failed'], args.out, command=args.command,
         image_size=args.image_size, views=args.views, device=args.device,
         threads=args.threads, gpu_gb=args.gpu_gb)


# ---------------------------------------------------------------------- parts
# Operators by a part of their names, the first that fits.
KINDS = {'conv': 'convolutions', 'batch_norm': 'norms',
         '_Pool': 'views pooled on the grid', 'copy_': 'copies',
         'mm': 'products of matrices', 'ptimizer': 'optimizer',
         '_foreach': 'optimizer'}


def kinds_of(work, repeats: int, device: str) -> Dict[str, float]:
    """Seconds of a piece of work by kinds of operators."""
    from torch.profiler import ProfilerActivity, profile
    cuda = torch.device(device).type == 'cuda'
    time_of = attrgetter(
        f'self_{"device" if cuda else "cpu"}_time_total')
    with profile(activities=[ProfilerActivity.CPU]
                 + [ProfilerActivity.CUDA] * cuda) as profiler:
        for _ in range(repeats):
            work()
    spent: Dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for part, kind in KINDS.items()
                     if part in event.key), 'all else')
        spent[kind] = (spent.get(kind, 0.)
                       + time_of(event) / 1e6 / repeats)
    return spent


def compiled(model) -> None:
    """Let torch.compile have the networks, for any number of views."""
    stage, head = model.detector_2d, model.volume_head
    for name in ('backbone', 'neck', 'bbox_head'):
        part = getattr(stage, name, None)
        if part is not None:
            part.compile(dynamic=True)
    if head is not None:
        head._net = torch.compile(head._net, dynamic=True)


def parts(args) -> None:
    """What a training step is made of, and steps with half of the cells and
    with torch.compile beside it, in turn; CPU seconds on a CPU."""
    def step_of(scale: float = 1.):
        cfg, model = model_of(args.config, False)
        if scale != 1:
            model.volume_head.voxel_size *= scale
        model = model.to(args.device).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        return model, [partial(model.train_step, batch, wrapper)
                       for batch in batches]

    def seconds(work) -> float:
        return median_seconds(work, 1, args.device, 0, time.process_time)

    batches = [pseudo_collate([made_up_scan(views, args.image_size)])
               for views in args.views]
    model, works = step_of()
    others = {'half of the cells': step_of(2**(1 / 3))[1]}
    fast, others['torch.compile'] = step_of()
    compiled(fast)
    rows, first = [], {}
    for name, those in {'a step': works, **others}.items():
        start = time.process_time()
        losses = [work()['loss'].item() for work in those]
        first[name] = dict(warm_up=time.process_time() - start,
                           losses=losses)
    times = np.array([[[seconds(those[number])
                        for those in (works, *others.values())]
                       for number in range(len(works))]
                      for _ in range(args.repeats)]).reshape(
                          -1, 1 + len(others))
    ratios = np.median(times[:, :1] / times, axis=0)
    for name, spent, ratio in zip(first, np.median(times, axis=0), ratios):
        rows.append(dict(what=name, seconds=float(spent),
                         times_faster=float(ratio), **first[name]))
    images = torch.cat(batches[0]['inputs']['img']).to(args.device)
    bands, whole = (median_seconds(
        work, args.repeats, args.device, clock=time.process_time)
        for work in (partial(model.data_preprocessor.bands, images),
                     works[0]))
    rows.append(dict(what='bands', share=bands / whole))
    kinds = kinds_of(works[0], args.repeats, args.device)
    # A profile is of the clock, which other work on the machine stretches.
    rows += [dict(what=name, share=value / sum(kinds.values()))
             for name, value in sorted(kinds.items(), key=lambda x: -x[1])]
    show(rows, ['what', 'seconds', 'share', 'times_faster', 'warm_up'],
         args.out, command='parts', config=args.config,
         image_size=args.image_size, views=args.views, device=args.device,
         threads=args.threads)


# --------------------------------------------------------------------- slices
def slices_once(path: str, size: int, batch: int, amp: bool, repeats: int,
                device: str) -> Dict:
    """Time and memory of a training step on slices of noise, one finding in
    each."""
    cfg = load_config(path)
    init_default_scope('mmdet3d')
    cfg.model.detector_2d.backbone.pop('init_cfg', None)
    if amp:
        use_half_precision(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    samples = []
    for _ in range(batch):
        sample = DetDataSample(metainfo=dict(
            img_shape=(size, size), ori_shape=(size, size),
            scale_factor=(1., 1.)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[20., 20., 32., 30.]]),
            labels=torch.zeros(1, dtype=int))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    images = list(torch.randint(0, 255, (batch, 3, size, size),
                                dtype=torch.uint8))
    seconds = median_seconds(
        lambda: model.train_step(dict(
            inputs=images, data_samples=copy.deepcopy(samples)), wrapper),
        repeats, device)
    return dict(seconds=seconds, peak_mb=peak_mb(device),
                million_parameters=sum(
                    p.numel() for p in model.parameters()) / 1e6)


def slices(args) -> None:
    """Detectors of slices side by side; an epoch is extrapolated from a
    step."""
    rows = []
    for path in args.configs:
        for amp in (False, True):
            row = in_process(slices_once, path, args.image_size, args.batch,
                             amp, args.repeats, args.device,
                             threads=args.threads)
            rows.append(dict(
                config=Path(path).stem + ', --amp' * amp, **row,
                epoch_hours=row['seconds'] * args.epoch / args.batch / 3600))
    show(rows, ['config', 'million_parameters', 'seconds', 'peak_mb',
                'epoch_hours'],
         args.out, command=args.command, image_size=args.image_size,
         batch=args.batch, epoch=args.epoch, device=args.device,
         threads=args.threads)


# ------------------------------------------------------------------ correlate
def per_pair(rois, views, ct2img, bounds, num_depths):
    """Box correlation as a loop over pairs of boxes."""
    best = rois.new_zeros(len(rois), len(rois))
    steps = torch.linspace(0, 1, num_depths).to(rois)
    for i, (roi, view) in enumerate(zip(rois, views)):
        near, far = bounds[view]
        depth = (near + steps * (far - near))[None]
        cubes = matching.cubes_at_depth(roi[None], depth,
                                        ct2img[view, None])[0]
        for j, (other, into) in enumerate(zip(rois, views)):
            if into == view:
                continue
            rects, ahead = geometry.project_boxes(cubes, ct2img[into, None])
            overlap = bbox_overlaps(rects[0], other[None])[:, 0]
            best[i, j] = (overlap * (ahead[0] > 0)).max()
    return best


def boxes_of_views(num_views: int, per_view: int, size: int) -> tuple:
    """Random RoIs and what the correlation needs of their cameras."""
    rig = Rig.circle(num_views, image_size=size)
    ct2img = torch.tensor(np.stack([v.ct2img for v in rig.views])).float()
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(num_views * per_view, 2, generator=generator) * size
    half = 8 + 16 * torch.rand(len(centre), 1, generator=generator)
    views = torch.arange(num_views).repeat_interleave(per_view)
    bounds = geometry.depth_bounds(ct2img, SCENE)
    return (torch.cat([centre - half, centre + half], 1), views, ct2img,
            bounds)


def correlate(args) -> None:
    """The correlation against a loop over pairs, and how it and the decoder
    grow with the views."""
    inputs = [x.to(args.device) for x in
              boxes_of_views(10, args.loop_rois, args.image_size)]
    ours = partial(matching.sweep_overlaps, *inputs, 32)
    loop = partial(per_pair, *inputs, 32)
    torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-4)
    rows = [dict(what=name, views=10, rois=10 * args.loop_rois,
                 seconds=median_seconds(work, repeats, args.device,
                                        warm_up=0))
            for name, work, repeats in (('loop over pairs', loop, 1),
                                        ('correlation', ours, args.repeats))]
    for row in rows:
        row['times_faster'] = rows[0]['seconds'] / row['seconds']
    torch.manual_seed(0)
    decoder = XRayDecoder(query_chunk=128).to(args.device).eval()
    decoder.requires_grad_(False)
    for num_views in (10, 20, 40):
        rois, views, *cameras = (x.to(args.device) for x in boxes_of_views(
            num_views, args.rois, args.image_size))
        overlaps = matching.sweep_overlaps(rois, views, *cameras, 32)
        index, valid = matching.relevant_rois(overlaps, views, num_views,
                                              'topk', .1)
        tokens = torch.randn(2, len(rois), 49, 256, device=args.device)
        query = torch.randn(2, len(rois), 256, device=args.device)
        seen = query[1], *tokens, index, valid
        for what, work in (
                ('correlation', partial(matching.sweep_overlaps, rois, views,
                                        *cameras, 32)),
                ('decoder', partial(decoder, query[0],
                                    lambda _, seen=seen: seen))):
            with torch.no_grad():
                seconds = median_seconds(work, args.repeats, args.device)
            pairs = len(rois) * num_views
            rows.append(dict(what=what, views=num_views, rois=len(rois),
                             seconds=seconds,
                             us_per_roi_and_view=1e6 * seconds / pairs))
    show(rows, ['what', 'views', 'rois', 'seconds', 'us_per_roi_and_view',
                'times_faster'], args.out, command='correlate',
         device=args.device, threads=args.threads)


# ----------------------------------------------------------------------- main
def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """One subcommand each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument('--device', type=torch_device, default='cpu')
    shared.add_argument('--threads', type=int, default=os.cpu_count())
    shared.add_argument('--repeats', type=int, default=5)
    shared.add_argument('--image-size', type=int, default=1024)
    shared.add_argument('--out', type=Path, help='JSON to write')
    of_render = commands.add_parser('render', parents=[shared])
    of_render.add_argument('--views', type=int, default=1)
    of_render.add_argument('--only', nargs='+', help='renderers, in place of '
                           'all and DiffDRR\'s own call')
    of_render.add_argument('--rtk', type=Path, metavar='PYTHON',
                           help='of an environment with itk-rtk: RTK\'s CPU '
                           'Joseph, too')
    of_load = commands.add_parser('load', parents=[shared])
    of_load.add_argument('config')
    of_load.add_argument('--data-root')
    of_load.add_argument('--workers', type=int, default=os.cpu_count())
    for name in ('train', 'infer'):
        sub = commands.add_parser(name, parents=[shared])
        sub.add_argument('config')
        sub.add_argument('--plain-config', help='what it is compared with, '
                         'without any saving; defaults to CONFIG')
        sub.add_argument('--views', type=int, default=10)
        sub.add_argument('--warm-up', type=int, default=2)
        sub.add_argument('--gpu-gb', type=float, help='GiB of the GPU that '
                         'ours may use, to stand for a smaller one')
    of_parts = commands.add_parser('parts', parents=[shared])
    of_parts.add_argument('config')
    of_parts.add_argument('--views', type=int, nargs='+', default=[6],
                          help='a scan each (default: 6)')
    of_slices = commands.add_parser('slices', parents=[shared])
    of_slices.add_argument('configs', nargs='+')
    of_slices.add_argument('--batch', type=int, default=8)
    of_slices.add_argument('--epoch', type=int, default=10000,
                           help='slices in an epoch (default: %(default)s)')
    of_correlate = commands.add_parser('correlate', parents=[shared])
    of_correlate.add_argument('--rois', type=int, default=20,
                              help='RoIs of each view')
    of_correlate.add_argument('--loop-rois', type=int, default=10,
                              help='RoIs of each view for the loop')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    dict(render=render, load=load, train=step, infer=step, parts=parts,
         slices=slices, correlate=correlate)[args.command](args)


if __name__ == '__main__':
    main()
