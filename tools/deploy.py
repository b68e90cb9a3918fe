"""A model without PyTorch: tools/deploy.py CONFIG CHECKPOINT --out DIR"""

import argparse
import contextlib
import io
import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

import numpy as np
import torch

from projects.core.deployed import (
    CONTENT_FILE,
    GRAPH_FILE,
    SCHEMA_VERSION,
)
from projects.core.engine.checkpoints import class_names, load_model
from projects.core.engine.command_line import (
    UserError,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import load_config
from projects.core.files import atomic_write, dump_json, sha256_of
from projects.core.fusion import ABSENT, IOU_THR
from projects.core.projections import LEVEL
from projects.core.results import load_results
from projects.core.rig import Rig
from projects.mv2d_xray.deploy import DeployedGraph, can_be_deployed

if TYPE_CHECKING:
    import onnx

METRICS = ('num_scans', 'num_gt', 'mAP_3d', 'mAP_3d_low', 'mAP_3d_high',
           'CPM', 'centre_error_mm', 'size_error_mm', 'distances_mm')
REPEATED = 1 << 12  # numbers: fewer are left as they are


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description='Write a model of X-ray views as one ONNX file and one '
        'JSON, for machines without PyTorch')
    parser.add_argument('config', help='config file (a trusted program)')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', dest='out_dir', required=True,
                        help='folder to write to')
    parser.add_argument('--results', help='--out of tools/test.py with this '
                        'checkpoint, whose figures are noted')
    return parser.parse_args(argv)


def describe(args: argparse.Namespace, cfg, model, meta: dict) -> dict:
    """The content of the JSON.

    Raises:
        UserError: The results are of another checkpoint.
    """
    sha256 = sha256_of(args.checkpoint)
    told = meta.get('dataset_meta', {})
    rig, metrics = told.get('rig'), None
    if args.results:
        full = load_results(args.results)
        if full['source'].get('sha256') != sha256:
            raise UserError(
                f'{args.results}: field "source.sha256": expected {sha256}, '
                f'of the checkpoint, found {full["source"].get("sha256")}')
        metrics = {key: full[key] for key in METRICS if key in full}
        # Of a split, on whose machine says nothing.
        metrics['ann_file'] = Path(full['source'].get('ann_file', '')).name
    step = next(s for s in cfg.test_pipeline if s['type'] == 'LoadXRayViews')
    window = dict(dict(scale=LEVEL, offset=0.),
                  **(told.get('intensity') or {}))
    window = {key: float(window[key] if step.get(key) is None else step[key])
              for key in ('scale', 'offset')}
    fusion = model.lifting_head
    maker = fusion.roi_queries if model.with_roi_queries else None
    thresholds = dict(
        score=model.volume_head.score_thr, iou=IOU_THR, absent=ABSENT
    ) if fusion is None else dict(
        score=fusion.test_cfg['score_thr'], iou=fusion.test_cfg['iou_thr'],
        absent=fusion.prior, boxes=fusion.test_cfg['max_per_img'])
    return dict(
        schema_version=SCHEMA_VERSION, units='mm',
        classes=list(class_names(args.checkpoint, meta, model)), rig=rig,
        pixel_mm=None if rig is None else float(np.median(
            [view.pixel_size for view in Rig.from_dict(rig).views])),
        intensity=window,
        thresholds=thresholds, triangulation=maker and dict(
            scene_range=list(maker.scene_range), num_depths=maker.num_depths,
            min_iou=maker.min_iou),
        checkpoint=dict(file=Path(args.checkpoint).name, sha256=sha256),
        metrics=metrics, known_views=meta.get('known_views'))


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build, load, export, write."""
    args = parse_args(argv)
    check_outputs(args, 'out_dir')
    for name in ('onnx', 'onnxscript'):
        if find_spec(name) is None:
            raise UserError(f'expected {name}, as pip install '
                            'mv2d-xray[deploy] brings it, found none')
    cfg = load_config(args.config)
    model, meta = load_model(cfg, args.checkpoint, 'cpu')
    if not can_be_deployed(model):
        raise UserError(
            f'{args.config}: model: expected one of X-ray views whose boxes '
            'are the peaks of its volume or triangulated 2D boxes of '
            'CenterNet, as mv2d-xray_small_volume_* or triangulation_*, found '
            'another, which cannot be deployed')
    content = describe(args, cfg, model, meta)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        path = Path(folder) / GRAPH_FILE
        export(DeployedGraph(model).eval(), path)
        with atomic_write(out_dir / GRAPH_FILE) as stream:
            stream.write(path.read_bytes())
    dump_json(content, out_dir / CONTENT_FILE)
    print(f'{out_dir}: {GRAPH_FILE}, {CONTENT_FILE}')


@torch.no_grad()
def export(graph: torch.nn.Module, path: Path) -> None:
    """Write the graph, for any number of views of any one size."""
    views, height, width = (
        torch.export.Dim(name, min=low, max=1 << 14) for name, low in (
            ('views', 2), ('height', 16), ('width', 16)))
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    example = (torch.rand(3, 1, 64, 96),
               torch.eye(4).expand(3, 4, 4).contiguous())
    # What the exporter tells of its steps is no user's business.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        torch.onnx.export(
            graph, example, dynamo=True, opset_version=20, external_data=False,
            dynamic_shapes=({0: views, 2: height, 3: width}, {0: views}),
            input_names=['images', 'ct2img'],
            output_names=list(graph(*example))).save(path)
    import onnx  # an extra that only this needs
    model = onnx.load(path)
    slim(model)
    onnx.save(model, path)


def slim(model: 'onnx.ModelProto') -> None:
    """Take out of a model what its nodes come from, which has the paths of
    the machine that wrote it, and keep once what repeats along an axis of a
    constant, as coordinates of a grid do; onnxruntime repeats it as it
    loads."""
    import onnx
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output,
                 *graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    del graph.value_info[:]
    for tensor in list(graph.initializer):
        whole = once = onnx.numpy_helper.to_array(tensor)
        for axis in range(whole.ndim if whole.size > REPEATED else 0):
            first = once.take([0], axis)
            once = first if (once == first).all() else once
        if once.size < whole.size:
            name, shape = tensor.name, np.array(whole.shape)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(once, f'{name}_once'))
            graph.initializer.append(
                onnx.numpy_helper.from_array(shape, f'{name}_shape'))
            graph.node.insert(0, onnx.helper.make_node(
                'Expand', [f'{name}_once', f'{name}_shape'], [name]))


if __name__ == '__main__':
    main()
