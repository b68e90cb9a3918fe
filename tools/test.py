"""Test a detector: python tools/test.py CONFIG CHECKPOINT [--out FILE]"""

import argparse
from typing import List, Optional

from mmengine.config import Config
from mmengine.runner import Runner

from projects.core.engine.checkpoints import (
    check_checkpoint,
    check_classes,
    inner_model,
    load_checkpoint,
    warn_of_other_slices,
    warn_of_other_views,
    warn_of_seen_patients,
)
from projects.core.engine.command_line import (
    UserError,
    argument_parser,
    check_outputs,
    one_sentence,
)
from projects.core.engine.configs import (
    build_runner,
    config_of,
    evaluators_3d_of,
    select_split,
)
from projects.core.evaluation.metric_2d import Indication2DMetric
from projects.core.evaluation.metric_3d import Indication3DMetric
from projects.core.evaluation.metric_images import ImageFROCMetric
from projects.core.files import sha256_of
from projects.core.results import dump_results
from projects.ct_slices.malignancy import MalignancyMetric


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """mmdet3d's own arguments, and ours."""
    parser = argument_parser('Test a 3D detector', amp=True)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='metrics and boxes as JSON')
    parser.add_argument(
        '--show-dir', help='folder for one picture per scan: all views with '
        'true and predicted boxes')
    parser.add_argument(
        '--score-thr', type=float, default=.3,
        help='boxes below are not drawn; metrics use all (default: '
        '%(default)s)')
    parser.add_argument(
        '--split', help='which infos of the set to test on: train, val or '
        'test; defaults to the config\'s')
    parser.add_argument(
        '--tta', action='store_true', help='fuse what is found by the '
        'config\'s tta_pipeline, as in each scan and its mirror image')
    parser.add_argument(
        '--calibration', metavar='RESULTS', help='--out of a test on the '
        'validation split: what its thresholds give on this one')
    return parser.parse_args(argv)


def draws_images(cfg: Config) -> bool:
    """Whether what is found are boxes of single images."""
    return any(step['type'] == 'PackExam'
               for step in cfg.test_dataloader.dataset.pipeline)


def metrics_of(runner: Runner, *kinds: type) -> list:
    """The metrics of a test that are of one of these kinds."""
    return [metric for metric in runner.test_evaluator.metrics
            if isinstance(metric, kinds)]


@one_sentence
def main(argv: Optional[List[str]] = None) -> None:
    """Build the runner, load the checkpoint strictly, test."""
    args = parse_args(argv)
    check_outputs(args, 'out', 'show_dir', 'work_dir')
    cfg = config_of(args)
    dataset = cfg.test_dataloader.dataset
    if args.split:
        select_split(dataset, args.split)
    evaluators = evaluators_3d_of(cfg)
    for option in ('show_dir', 'calibration'):
        if getattr(args, option) and not evaluators and not (
                option == 'show_dir' and draws_images(cfg)):
            raise UserError(
                f'{args.config}: --{option.replace("_", "-")}: expected an '
                'Indication3DMetric in test_evaluator, found none')
    for evaluator in evaluators:
        evaluator.update(calibration=args.calibration)
    if args.show_dir:
        cfg.custom_hooks = [
            *cfg.get('custom_hooks', []),
            dict(type='DrawBoxesHook', out_dir=args.show_dir,
                 score_thr=args.score_thr)
        ]
    if args.tta:
        if not (cfg.get('tta_model') and cfg.get('tta_pipeline')):
            raise UserError(f'{args.config}: --tta: expected tta_model and '
                            'tta_pipeline in the config, found none')
        dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    load_checkpoint(args.checkpoint)  # fails before anything is built
    # What a training started from would be loaded over what is tested.
    cfg.load_from, cfg.resume = None, False
    runner = build_runner(cfg)
    told = metrics_of(runner, Indication3DMetric, ImageFROCMetric,
                      MalignancyMetric)
    if args.out and not told:
        raise UserError(
            f'{args.config}: --out: expected an Indication3DMetric, an '
            'ImageFROCMetric or a MalignancyMetric in test_evaluator, found '
            'none')
    model = inner_model(runner.model)
    checkpoint = check_checkpoint(args.checkpoint, model)
    model.load_state_dict(checkpoint['state_dict'])
    meta, tested = checkpoint.get('meta', {}), runner.test_dataloader.dataset
    check_classes(args.checkpoint, meta, tested.metainfo['classes'])
    warn_of_other_views(args.checkpoint, meta, tested.metainfo.get('rig'))
    warn_of_other_slices(args.checkpoint, meta,
                         tested.metainfo.get('slices'))
    seen = warn_of_seen_patients(args.checkpoint, meta, tested)
    runner.test()
    if args.out and runner.rank == 0:  # which alone has computed figures
        boxes = metrics_of(runner, Indication2DMetric)
        dump_results(
            args.out, told[-1].full_results, dict(
                config=args.config, checkpoint=args.checkpoint,
                sha256=sha256_of(args.checkpoint),
                ann_file=tested.source,
                dataset=tested.metainfo.get('dataset'),
                patients_seen_in_training=seen),
            boxes[-1].full_results if boxes else None)


if __name__ == '__main__':
    main()
