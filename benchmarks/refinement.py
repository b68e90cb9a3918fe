"""What `rig --refine` wins back of poses that are wrong by a known amount.

    python benchmarks/refinement.py SET --out-dir refinement \
        [--shift 1] [--turn .5] [--seed 0] [--scans 20]

In every view the object seems moved as XRayPoseError has it: by ``--shift``
(mm) and ``--turn`` (degrees about the isocentre), each in a random direction.
The folder gets three sets to test with tools/test.py --data-root, ``true``,
``wrong`` and ``refined``, and refinement.json and .png: how far points in the
object are seen from where they are projected (px).
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from scipy.optimize import least_squares
from terminaltables import GithubFlavoredMarkdownTable

from data_converters import refinement
from projects.core import geometry
from projects.core.drawing import draw_refinement
from projects.core.files import dump_json
from projects.core.rig import Rig, View


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('set', type=Path, help='whose poses are right')
    parser.add_argument('--out-dir', required=True, type=Path)
    parser.add_argument('--shift', type=float, default=1.,
                        help='mm; default %(default)g')
    parser.add_argument('--turn', type=float, default=.5,
                        help='degrees; default %(default)g')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scans', type=int,
                        help='the first so many of the set; default all')
    return parser.parse_args(argv)


def falsified(views: List[View], shift: float, turn: float,
              rng: np.random.Generator) -> List[View]:
    """Views whose poses are wrong by a shift (mm) and a turn (degrees)."""
    motions = rng.normal(size=(len(views), 2, 3))
    motions *= np.array([[np.radians(turn)], [shift]]) / np.linalg.norm(
        motions, axis=-1, keepdims=True)
    return refinement.moved(views, motions.reshape(-1, 6))


def errors(found: List[View], true: List[View]) -> np.ndarray:
    """(2, V): how far the corners of a cube, half as large as what all views
    see, are projected from where they are seen (px, rms), as they are and
    after the one motion of the whole object that makes it least, which no
    view can tell."""
    half = Rig(true).seen_half
    corners = geometry.box_corners(
        np.array([0., 0, 0, half, half, half, 0]))
    seen = [geometry.project(corners, v.ct2img)[0] for v in true]

    def off(motion: np.ndarray) -> np.ndarray:
        return np.stack([
            geometry.reprojection_errors(corners, uv, v.ct2img)
            for uv, v in zip(seen, refinement.moved(
                found, np.tile(motion, (len(found), 1))))])

    best = least_squares(lambda m: off(m).ravel(), np.zeros(6),
                         x_scale=[.01] * 3 + [1.] * 3).x
    return np.array([np.sqrt((off(motion)**2).sum(-1).mean(-1))
                     for motion in (np.zeros(6), best)])


def main(argv: Optional[List[str]] = None) -> None:
    """Falsify, refine, compare."""
    args = parse_args(argv)
    infos_of, views_of = refinement.read_set(args.set)
    if args.scans:
        for infos in infos_of.values():
            infos['data_list'] = infos['data_list'][:args.scans]
    samples = [(s, infos) for infos in infos_of.values()
               for s in infos['data_list']]
    true = {s['token']: views_of(s, infos).views for s, infos in samples}
    wrong = {
        token: falsified(views, args.shift, args.turn,
                         np.random.default_rng([args.seed, number]))
        for number, (token, views) in enumerate(true.items())}
    for name, poses in dict(true=true, wrong=wrong).items():
        refinement.write_set(args.set, args.out_dir / name, infos_of, poses,
                             dict(benchmark=name, shift_mm=args.shift,
                                  turn_deg=args.turn, seed=args.seed))
    found = refinement.refine_set(
        args.out_dir / 'wrong', args.out_dir / 'refined',
        args.shift or 1., args.turn or .5)
    rows: Dict[str, np.ndarray] = {
        token: np.stack([errors(wrong[token], true[token]),
                         errors(of.views, true[token])])
        for token, of in found.items()}
    draw_refinement(
        [[(v.name, *pair, px) for v, pair, px in zip(
            of.nominal, rows[token][:, 0].T, of.pixels())]
         for token, of in found.items()],
        [of.helped for of in found.values()],
        args.out_dir / 'refinement.png', 'reprojection error (px)')
    dump_json({token: dict(of.to_dict(), before_px=rows[token][0].tolist(),
                           after_px=rows[token][1].tolist())
               for token, of in found.items()},
              args.out_dir / 'refinement.json')
    rms = np.sqrt((np.stack(list(rows.values()))**2).mean((0, -1)))
    share = [of.errors[1] / of.errors[0] for of in found.values()]
    print(GithubFlavoredMarkdownTable([
        ['poses', 'reprojection error (px, rms)',
         'less the motion that all views share'],
        *([name, f'{whole:.2f}', f'{rest:.2f}']
          for name, (whole, rest) in zip(('wrong', 'refined'), rms))]).table)
    print(f'{sum(of.helped for of in found.values())} of {len(found)} objects '
          f'refined; epipolar error left: {min(share):.2f} to '
          f'{max(share):.2f}, median {np.median(share):.2f}')


if __name__ == '__main__':
    main()
