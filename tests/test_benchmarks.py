"""The ablation's variants are configs that build, and its table is theirs."""

import json

import pytest
from mmdet3d.registry import MODELS

from benchmarks.ablation import ROOT, VARIANTS, slug, table
from projects.mv2d_xray.runtime import argument_parser, config_of


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_builds(name):
    config, options = VARIANTS[name]
    command = [str(ROOT / config)]
    command += ['--cfg-options', *options] if options else []
    args = argument_parser('').parse_args(command)
    cfg = config_of(args)
    assert cfg.train_dataloader.dataset.data_root == 'data/quick/'
    assert cfg.train_dataloader.dataset.pipeline[1].type == (
        'XRayInsertNodules')
    MODELS.build(cfg.model)


def test_table_holds_what_was_finished(tmp_path):
    assert len({slug(name) for name in VARIANTS}) == len(VARIANTS)
    folder = tmp_path / slug('volume, mean only')
    (folder / 'a' / 'vis_data').mkdir(parents=True)
    (folder / 'a' / 'vis_data' / 'scalars.json').write_text(
        '\n'.join(json.dumps(dict(lr=.1, time=t)) for t in (9., .5, .7)))
    part = dict(mAP_3d=.25)
    (folder / 'results_val.json').write_text(json.dumps(dict(
        mAP_3d=.5, mAP_3d_low=.4, mAP_3d_high=.6, AP_5mm=.3, CPM=.2,
        centre_error_mm=None, by_size=dict(small=part, rest=part))))
    rows = table(tmp_path, 'val', 'volume').splitlines()
    assert len(rows) == 3
    cells = [c.strip() for c in rows[2].strip('|').split('|')]
    assert cells == ['volume, mean only', '0.500 [0.400, 0.600]', '-', '0.300',
                     '0.250', '0.250', '0.200', '-', '0.70']
