"""What detections rest on: python tools/explain.py CONFIG CHECKPOINT"""

import argparse
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from terminaltables import AsciiTable
from tqdm import tqdm

from projects.core.boxes import corners_of
from projects.core.drawing import draw_scans
from projects.core.engine.checkpoints import load_for_split
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import match_distance_of
from projects.core.evaluation.matching import match
from projects.core.evaluation.metric_2d import Indication2DMetric, views_of
from projects.core.evaluation.metric_3d import Indication3DMetric, scans_of
from projects.core.evaluation.metric_images import match_images
from projects.core.evaluation.ranking import threshold_at
from projects.core.explain import (
    FRACTIONS,
    METHODS,
    faithfulness,
    segmentation_game,
    summarise,
    target_of,
)
from projects.core.files import dump_json, sha256_of
from projects.core.findings import silhouettes

FIGURES = {'energy_share': 'energy inside', 'gain': 'over the area\'s',
           'deletion': 'deletion', 'insertion': 'insertion'}

MAX_VIEWS = 10  # that are drawn


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argument_parser(
        'Say which pixels the boxes that hit a finding rest on', split='val')
    parser.add_argument(
        '--out-dir', required=True, type=Path,
        help='folder for explain.json and a picture of each box')
    parser.add_argument(
        '--scans', type=int, default=5,
        help='how many with a finding are drawn at random; their boxes that '
        'hit are explained (default: %(default)s)')
    parser.add_argument(
        '--method', nargs='+', choices=list(METHODS), default=list(METHODS),
        help='default: all')
    parser.add_argument(
        '--stage', choices=['2d', '3d'], default='3d',
        help='boxes of single views or in space (default: %(default)s)')
    parser.add_argument(
        '--false-positives', type=float, default=1.,
        help='per scan, or per view of the 2D stage, at the score above which '
        'boxes are explained (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0,
                        help='of all that is random (default: %(default)s)')
    return parser.parse_args(argv)


def hits_3d(result: dict, classes: int, distance: float) -> Iterator[Dict]:
    """Boxes of one scan with the row of the finding that each hits, up to a
    distance (mm) between the centres; those that hit none have the row
    None."""
    metric = Indication3DMetric()
    metric.process({}, [result])
    labels = np.asarray(result['eval_ann_info']['gt_labels_3d'])
    for label in range(classes):
        scan, = scans_of(metric.results, label)
        yield from _hits(scan, match(scan, distance, True), label, None,
                         np.flatnonzero(labels == label))


def hits_2d(result: dict, classes: int) -> Iterator[Dict]:
    """As :func:`hits_3d`, of the boxes of each view; a centre inside the
    finding hits."""
    metric = Indication2DMetric()
    metric.process({}, [result])
    truth = result['eval_ann_info']
    for label in range(classes):
        for view, scan in enumerate(views_of(metric.results, label)):
            here = (truth['gt_bboxes_view'] == view) & (
                truth['gt_bboxes_labels'] == label)
            yield from _hits(scan, match(scan, None, False), label, view,
                             truth['gt_bboxes_instance'][here])


def hits_of_images(results: list, classes: int) -> Iterator[Dict]:
    """As :func:`hits_2d`, of the images of an exam: boxes are in the pixels
    that the network sees, a finding is its row in its image."""
    for view, sample in enumerate(results):
        found, truth = sample.pred_instances.cpu(), sample.gt_instances.cpu()
        order = found.scores.argsort(descending=True)
        boxes = found.bboxes[order].numpy() * np.tile(
            sample.scale_factor, 2)
        for label in range(classes):
            mine = (found.labels[order] == label).numpy()
            there = np.flatnonzero((truth.labels == label).numpy())
            hits, counts = match_images(
                boxes[mine], truth.bboxes.numpy()[there],
                sample.ignored_instances.bboxes.cpu().numpy(), None)
            scores = found.scores[order].numpy()[mine]
            for box, score, hit in zip(boxes[mine][counts], scores[counts],
                                       hits[counts]):
                low, high = box[:2], box[2:]
                x, y = (low + high) / 2
                yield dict(
                    box=np.array([x, y, 0, *(high - low), 0, 0]),
                    score=float(score), label=label, view=view,
                    finding=int(there[hit]) if hit >= 0 else None,
                    diameter=None)


def masks_of_images(sample: dict, hit: dict) -> np.ndarray:
    """Masks (V, H, W) of an exam's images: of the finding, in its image."""
    masks = np.zeros((len(sample['inputs']), *sample['inputs'].shape[2:]),
                     bool)
    truth = sample['data_samples'].images[hit['view']].gt_instances
    masks[hit['view']] = truth.masks.masks[hit['finding']]
    return masks


def _hits(scan, matched, label, view, rows) -> Iterator[Dict]:
    for box, score, hit, counts in zip(scan.boxes, scan.scores, *matched):
        if counts:
            yield dict(box=box, score=float(score), label=label, view=view,
                       finding=int(rows[hit]) if hit >= 0 else None,
                       diameter=float(scan.diameters[hit])
                       if hit >= 0 else None)


def explain(model, sample: dict, hit: dict, finding: Optional[dict],
            methods: List[str], rng: torch.Generator) -> tuple:
    """Maps of one box and what the judges say of each; of images without
    cameras the finding is in the sample.

    Returns:
        tuple: the target, masks (V, H, W) and maps by method, and the figures
        by method.
    """
    box = torch.as_tensor(hit['box'], dtype=torch.float32)[None]
    corners = corners_of(box)
    detection = InstanceData(
        bboxes=corners if hit['view'] is None else corners[:, [0, 1, 3, 4]],
        scores=torch.tensor([hit['score']]),
        labels=torch.tensor([hit['label']]))
    target = target_of(model, sample, detection, hit['view'])
    if finding is None:
        masks = masks_of_images(sample, hit)
    else:
        ct2img = np.asarray(sample['data_samples'].metainfo['ct2img'])
        masks = silhouettes(finding, ct2img[target.rows],
                            tuple(target.views.shape[2:]))
    maps, figures = {}, {}
    for name in methods:
        maps[name] = METHODS[name](target, rng)
        figures[name] = dict(segmentation_game(maps[name], masks),
                             **faithfulness(target, maps[name], rng))
    return target, masks, maps, figures


def draw(hit: dict, meta: dict, target, masks, maps, figures,
         path: Path) -> None:
    """A row for each method; of many views some, evenly spaced."""
    count = len(target.rows)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_VIEWS)).round()
                      .astype(int))
    which = target.rows[shown]
    middle = target.views.shape[1] // 2
    if hit['view'] is None:
        boxes = dict(prediction=hit['box'][None])
    else:
        x, y, _, dx, dy = hit['box'][:5]
        box = np.array([[x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2]])
        boxes = dict(boxes_2d=[
            box if count == 1 or row == hit['view'] else box[:0]
            for row in which])
    draw_scans([
        dict(title=f'{name}, gain {figures[name]["gain"]:.1f}',
             names=[meta['view_names'][row] for row in which],
             images=target.views[shown, middle].numpy(),
             ct2img=np.asarray(meta['ct2img'])[which],
             heat=heat.numpy()[shown], masks=masks[shown], **boxes)
        for name, heat in maps.items()
    ], path)


def summary_of(findings: List[dict], methods: List[str]) -> dict:
    """Each figure's mean over findings, and the mean of its difference to the
    random map's, with intervals."""
    summary = {}
    for name in methods:
        values = {key: np.array([f['methods'][name][key] for f in findings])
                  for key in FIGURES}
        summary[name] = {key: summarise(v) for key, v in values.items()}
        if 'random' in methods and name != 'random':
            summary[name]['less_random'] = {
                key: summarise(v - [f['methods']['random'][key]
                                    for f in findings])
                for key, v in values.items()}
    return summary


def table_of(told: dict) -> str:
    """The summary as people read it."""

    def row(name, values):
        return [name] + [
            '-' if values[key]['mean'] is None else '{mean:.3f} [{low:.3f}, '
            '{high:.3f}]'.format(**values[key]) for key in FIGURES]

    rows = [row(name, values) for name, values in told['summary'].items()]
    rows += [row(f'{name} less random', values['less_random'])
             for name, values in told['summary'].items()
             if 'less_random' in values]
    return AsciiTable([['map', *FIGURES.values()], *rows],
                      f'{len(told["findings"])} boxes, score > '
                      f'{told["threshold"]:.2f}').table


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Find, draw lots, explain, judge, tabulate."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    cfg, model, data = load_for_split(args)
    if args.stage == '2d' and not model.with_2d:
        raise UserError(f'{args.config}: model: expected 2D heads that run, '
                        'found none')
    hits_of = hits_2d if args.stage == '2d' else partial(
        hits_3d, distance=match_distance_of(cfg))
    exams = hasattr(data[0]['data_samples'], 'images')
    if exams and args.stage != '2d':
        raise UserError(f'{args.config}: --stage: expected 2d, as of boxes in '
                        f'single images, found {args.stage}')
    hits, wrong, places = [], [], 0
    with_findings = []
    for number, sample in enumerate(tqdm(data, desc='detect', unit='scan',
                                         dynamic_ncols=True)):
        with torch.no_grad():
            result = model.test_step(pseudo_collate([sample]))
        if exams:
            places += len(result)
            true = any(len(image.gt_instances) for image in result)
            found = hits_of_images(result, len(data.metainfo['classes']))
        else:
            result = result[0].cpu().to_dict()
            places += 1 if args.stage == '3d' else len(result['view_names'])
            true = len(result['eval_ann_info'][
                'gt_labels_3d' if args.stage == '3d' else 'gt_bboxes_labels'])
            found = hits_of(result, len(data.metainfo['classes']))
        if true:
            with_findings.append(number)
        for hit in found:
            if hit['finding'] is None:
                wrong.append(hit['score'])
            else:
                hits.append(dict(hit, scan=number))
    threshold = threshold_at(sorted(wrong, reverse=True),
                             args.false_positives, places)
    hits = [hit for hit in hits if hit['score'] > threshold]
    # In the order drawn: more scans are the same ones and others. Whatever is
    # found in them, so that detectors have the same ones.
    drawn = np.random.default_rng(args.seed).permutation(
        with_findings).astype(int)[:args.scans]
    chosen = [hit for scan in drawn for hit in hits if hit['scan'] == scan]
    tokens = {scan: data.get_data_info(int(scan))['token'] for scan in drawn}
    missed = [tokens[scan] for scan in drawn
              if not any(hit['scan'] == scan for hit in chosen)]
    rng = torch.Generator().manual_seed(args.seed)
    told = dict(stage=args.stage, split=args.split, seed=args.seed,
                config=args.config, checkpoint=args.checkpoint,
                sha256=sha256_of(args.checkpoint),
                ann_file=data.source, scans=list(tokens.values()),
                scans_without_hit=missed, threshold=threshold,
                hits=len(hits), fractions=FRACTIONS, findings=[])

    def write():
        told['summary'] = summary_of(told['findings'], args.method)
        dump_json(told, args.out_dir / 'explain.json')

    args.out_dir.mkdir(parents=True, exist_ok=True)
    write()
    for hit in tqdm(chosen, desc='explain', unit='box', dynamic_ncols=True):
        sample = data[hit['scan']]
        record = data.get_data_info(hit['scan'])
        finding = None if exams else data.findings(
            record['instances'])[hit['finding']]
        explained = explain(model, sample, hit, finding, args.method, rng)
        name = f'{record["token"]}_{len(told["findings"]):03d}.png'
        meta = sample['data_samples'].metainfo
        if exams:
            images = sample['data_samples'].images
            meta = dict(ct2img=np.zeros((len(images), 4, 4)), view_names=[
                f'{image.laterality} {image.view}' for image in images])
        draw(hit, meta, *explained, args.out_dir / name)
        told['findings'].append(
            dict(hit, box=hit['box'].tolist(), token=record['token'],
                 picture=name, methods=explained[-1]))
        write()  # each takes a minute: what is done is not lost
    if chosen:
        print(table_of(told))
    if missed:
        print(f'{len(missed)} of the {len(drawn)} scans drawn have no box '
              f'that hits: {", ".join(missed)}')
    if not chosen:
        print(f'no box with a score above {threshold:.2f} hits a finding of '
              'the scans drawn: there is nothing to explain')
    print(f'{args.out_dir}/explain.json, {len(chosen)} pictures of '
          f'{len(hits)} boxes that hit')


if __name__ == '__main__':
    main()
