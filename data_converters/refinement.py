"""Small errors of the views' poses, found in the views themselves.

Views of one object must agree about the integrals over planes that two
sources lie in (:mod:`projects.core.consistency`). Where poses are a little
off, they agree less; the poses in which they agree best, near the recorded
ones, are nearer to the true ones (Debbeler et al., "A new CT rawdata
redundancy measure applied to automated misalignment correction", Fully 3D,
2013; Aichert et al., "Epipolar Consistency in Transmission Imaging", IEEE
Trans. Med. Imaging 34(11), 2015).

A motion that all views have in common changes nothing that they could agree
about, so the mean of the motions that are found is none: the rig does not
drift away from where it is recorded. Neither beads nor a CT are needed, but
beads find more (:mod:`data_converters.calibration`).
"""

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
from scipy.linalg import helmert
from scipy.optimize import least_squares
from tqdm import tqdm

from projects.core import geometry
from projects.core.consistency import Consistency
from projects.core.files import DataError, dump_json, load_json
from projects.core.infos import (
    as_arrays,
    as_lists,
    build_coco,
    coco_name,
    dump_infos,
    infos_name,
    load_infos,
)
from projects.core.projections import decode_image
from projects.core.rig import Rig, View

from .convert import INTEGRAL_MAX, LEVELS, SPLITS, record_path, seen_box
from .scan import ConversionError

__all__ = [
    'MOST_VIEWS', 'REFINED', 'Refinement', 'Views', 'moved', 'read_set',
    'refine_set', 'refine_views', 'rig_of', 'table_of_refinements', 'write_set'
]

REFINED = 'refined'  # names what was done in a set's options and infos
MOST_VIEWS = 64
_POSE = 6  # parameters: turns about the world's axes, shifts along them
_COMPARED = 6000  # planes of all pairs, about, and of a pair
_PLANES = (16, 128)
_BLOCK = 8  # planes that lie beside one another are left out together
# Planes beside one another tell nearly the same, and scatter and beam
# hardening last over many: this share counts. Measured: so many make errors of
# blades' poses as large as they are said to be.
_SHARE = .02
_OUTLIER = 3.  # standard deviations, above which a plane counts for less
_STEP = .02  # of derivatives, in deviations of the poses
# Poses are kept unless this share of the error, or less, is left: of whole
# objects, and of those that images cut off. Measured, see docs/geometry.md.
_LEFT = {False: .9, True: .75}


@dataclass
class Refinement:
    """Poses that views of one object agree about, and whether these helped.

    Attributes:
        nominal: The views as they came.
        motions: (V, 6), by which the object would have to be moved in each
            view: turned about the isocentre (rotation vector, rad), then
            shifted (mm), along the world's axes.
        deviations: (V, 6), how well they are known (one standard deviation;
            those of the recorded poses are taken into account).
        before, after: (V,), the error of each view's planes
            (:meth:`~projects.core.consistency.Pairs.error`), as recorded and
            refined; each plane with poses that were found without it.
        errors: Both, of all views.
        truncated: Whether the images cut the object off.
    """
    nominal: List[View]
    motions: np.ndarray
    deviations: np.ndarray
    before: np.ndarray
    after: np.ndarray
    errors: Tuple[float, float]
    truncated: bool

    @property
    def limit(self) -> float:
        """Share of the error that may be left."""
        return _LEFT[self.truncated]

    @property
    def helped(self) -> bool:
        """Whether views agree so much better that poses are changed."""
        before, after = self.errors
        return after < self.limit * before

    @property
    def views(self) -> List[View]:
        """The refined views; the nominal ones where that did not help."""
        return moved(self.nominal, self.motions * self.helped)

    def sizes(self) -> np.ndarray:
        """(V, 2): shifts (mm) and turns (degrees)."""
        turns, shifts = np.linalg.norm(
            self.motions.reshape(-1, 2, 3), axis=-1).T
        return np.stack([shifts, np.degrees(turns)], -1)

    def pixels(self) -> np.ndarray:
        """(V,), how far the motions move the image of a cube round the
        isocentre, half as large as what all views see (px, rms)."""
        half = Rig(self.nominal).seen_half
        corners = geometry.box_corners(
            np.array([0., 0, 0, half, half, half, 0]))
        return np.array([
            np.sqrt((geometry.reprojection_errors(
                corners, geometry.project(corners, new.ct2img)[0], old.ct2img
            )**2).sum(-1).mean())
            for old, new in zip(self.nominal, moved(self.nominal,
                                                    self.motions))])

    def to_dict(self) -> dict:
        """Plain containers and numbers, for JSON."""
        pixels = self.pixels()

        def number(value) -> Optional[float]:
            return float(value) if np.isfinite(value) else None

        return dict(
            helped=self.helped, truncated=self.truncated,
            error_before=number(self.errors[0]),
            error_after=number(self.errors[1]), views=[
                dict(view=view.name, error_before=number(self.before[row]),
                     error_after=number(self.after[row]),
                     moved_px=number(pixels[row]),
                     turn_deg=np.degrees(self.motions[row, :3]).tolist(),
                     shift_mm=self.motions[row, 3:].tolist(),
                     turn_sd_deg=np.degrees(
                         self.deviations[row, :3]).tolist(),
                     shift_sd_mm=self.deviations[row, 3:].tolist())
                for row, view in enumerate(self.nominal)])


def moved(views: Sequence[View], motions: np.ndarray) -> List[View]:
    """Views of an object that is moved in each by (V, 6), see
    :class:`Refinement`."""
    return [
        View(v.name, v.cam2img,
             v.ct2cam @ geometry.rigid_motion(m[:3], m[3:]), v.width,
             v.height) for v, m in zip(views, motions)]


def refine_views(images: Sequence[np.ndarray], views: Sequence[View],
                 shift: float = 1., turn: float = .5,
                 source: str = 'views') -> Refinement:
    """The poses near the recorded ones in which views agree best.

    Robust least squares (Cauchy's loss) of what two views say of a plane, one
    less the other, and of the motions over the deviations that poses are
    expected to have. Whether it helped is judged on planes that it did not
    see: poses are fitted twice more, to either half of the planes.

    Args:
        images: V line integrals (H, W).
        views: V, with the recorded poses.
        shift: Expected error of a pose (mm, standard deviation).
        turn: The same (degrees).
        source: Names the views in errors.

    Raises:
        ConversionError: There are fewer than two views, more than
            :data:`MOST_VIEWS`, slices, or an image is not of finite numbers.
    """
    if not 2 <= len(views) <= MOST_VIEWS:
        raise ConversionError(
            f'{source}: expected 2 to {MOST_VIEWS} views to compare with one '
            f'another, found {len(views)}')
    pairs = len(views) * (len(views) - 1) // 2
    try:
        consistency = Consistency(
            images, np.stack([view.ct2img for view in views]),
            int(np.clip(_COMPARED // pairs, *_PLANES)))
    except ValueError as error:
        raise ConversionError(f'{source}: {error}') from None
    deviations = np.repeat([np.radians(turn), shift], 3) / np.sqrt(3)
    fit = _Fit(consistency, views, deviations)
    half = np.arange(fit.planes) // _BLOCK % 2 == 0
    motions, covariance = fit.solve(np.ones(fit.planes, bool))
    sums = np.zeros((2, 2, pairs))  # before and after, of either kind
    for seen in (half, ~half):
        other = fit.solve(seen)[0]
        for row, values in enumerate((np.zeros_like(other), other)):
            sums[row] += fit.sums(values, ~seen)
    of_view = np.array([(consistency.views == row).any(-1)
                        for row in range(len(views))])
    with np.errstate(invalid='ignore'):
        before, after = ((part[0] @ of_view.T) / (part[1] @ of_view.T)
                         for part in sums)
        whole = sums[:, 0].sum(-1) / sums[:, 1].sum(-1)
    return Refinement(
        list(views), motions,
        np.sqrt(np.diagonal(covariance)).reshape(-1, _POSE), before, after,
        (float(whole[0]), float(whole[1])), consistency.truncated)


class _Fit:
    """Motions of views, in deviations of the poses; their sum is 0."""

    def __init__(self, consistency: Consistency, views: Sequence[View],
                 deviations: np.ndarray) -> None:
        self.consistency, self.views = consistency, list(views)
        self.planes = consistency.angles.shape[1]
        # Parameters to all views' motions; its columns are orthonormal.
        self.basis = np.kron(helmert(len(views)).T, np.eye(_POSE))
        self.deviations = np.tile(deviations, len(views))
        pairs = consistency.compare()
        squares = pairs.sums()[1].sum() / max(2 * pairs.weights.sum(), 1.)
        self.scale = float(np.sqrt(squares)) or 1.

    def _motions(self, values: np.ndarray) -> np.ndarray:
        return (values * self.deviations).reshape(-1, _POSE)

    def _compare(self, motions: np.ndarray, views: Sequence[int] = ()):
        return self.consistency.compare(
            np.stack([v.ct2img for v in moved(self.views, motions)]), views)

    def sums(self, motions: np.ndarray, planes: np.ndarray) -> np.ndarray:
        """(2, P): see :meth:`~projects.core.consistency.Pairs.sums`."""
        pairs = self._compare(motions)
        pairs.weights = pairs.weights * planes
        return np.stack(pairs.sums())

    def _differences(self, values: np.ndarray, planes: np.ndarray,
                     views: Sequence[int] = ()) -> np.ndarray:
        """(P, K) of the pairs of some views, or all."""
        pairs = self._compare(self._motions(values), views)
        return (np.sqrt(pairs.weights) * (
            pairs.values[:, 0] - pairs.values[:, 1]))[:, planes] / self.scale

    def _slopes(self, values: np.ndarray, planes: np.ndarray) -> np.ndarray:
        """Of the differences by the parameters; a view's motion changes its
        own pairs only."""
        pairs = self.consistency.views
        slopes = np.zeros((len(pairs), planes.sum(), len(values)))
        here = self._differences(values, planes)
        for number in range(len(values)):
            view = number // _POSE
            step = np.zeros(len(values))
            step[number] = _STEP
            rows = (pairs == view).any(-1)
            slopes[rows, :, number] = (self._differences(
                values + step, planes, [view]) - here[rows]) / _STEP
        return slopes.reshape(-1, len(values)) @ self.basis

    def solve(self, planes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Motions (V, 6) by some planes (K,) of each pair, and their
        covariance (6 V, 6 V)."""
        free = self.basis.shape[1]
        found, slopes = np.zeros(free), np.eye(free)
        for _ in range(2):
            sizes = np.abs(self._differences(self.basis @ found, planes))
            if not sizes.any():  # nothing can be compared, or nothing differs
                break
            sigma = 1.4826 * np.median(sizes[sizes > 0]) / np.sqrt(_SHARE)
            fit = least_squares(
                self._residuals, found, self._jacobian, loss=_loss(free),
                f_scale=_OUTLIER * np.sqrt(_SHARE), ftol=1e-3, xtol=1e-3,
                max_nfev=5, args=(planes, sigma))
            found, slopes = fit.x, fit.jac
        spread = self.deviations[:, None] * self.basis
        return (self._motions(self.basis @ found),
                spread @ np.linalg.solve(slopes.T @ slopes, spread.T))

    def _residuals(self, x: np.ndarray, planes: np.ndarray, sigma: float
                   ) -> np.ndarray:
        return np.concatenate([
            self._differences(self.basis @ x, planes).ravel() / sigma, x])

    def _jacobian(self, x: np.ndarray, planes: np.ndarray, sigma: float
                  ) -> np.ndarray:
        return np.concatenate([
            self._slopes(self.basis @ x, planes) / sigma, np.eye(len(x))])



def _loss(last: int) -> Callable[[np.ndarray], np.ndarray]:
    """Cauchy's, as ``least_squares`` takes it, but for the last residuals,
    whose squares count."""
    def loss(squares: np.ndarray) -> np.ndarray:
        weight = 1 / (1 + squares)
        rho = np.stack([np.log1p(squares), weight, -weight**2])
        rho[:, -last:] = np.stack([squares, squares * 0 + 1, squares * 0]
                                  )[:, -last:]
        return rho

    return loss


# ----------------------------------------------------------------------- a set
@dataclass
class Views:
    """An object of a set.

    Attributes:
        token: Its name.
        views: In their order.
        images: V line integrals (H, W).
    """
    token: str
    views: List[View]
    images: List[np.ndarray]


def rig_of(root: Path, token: str) -> Path:
    """The rig of an object, in a set whose objects have their own."""
    return Path(root) / 'rigs' / f'{token}.json'


def read_set(root: Path) -> Tuple[Dict[Path, dict], Callable]:
    """A set of views.

    Returns:
        tuple: Infos by their file, and a function that makes :class:`Views`
        of a sample of some infos.

    Raises:
        DataError: There is no set, or a file is damaged.
        ConversionError: It is one of slices.
    """
    found = {path: load_infos(path) for split in SPLITS
             for suffix in ('.pkl', '.json')
             if (path := root / infos_name(split, suffix)).exists()}
    if not found:
        raise DataError(f'{root}: expected a converted set with '
                        f'{infos_name("test")} or another split, found none')
    for path, infos in found.items():
        if 'slices' in infos['metainfo']:
            raise ConversionError(f'{path}: expected a set of views, found '
                                  'slices, whose poses are not measured')

    def views_of(sample: dict, infos: dict) -> Views:
        window = {**dict(scale=INTEGRAL_MAX / LEVELS, offset=0.),
                  **(infos['metainfo'].get('intensity') or {})}
        views, images = [], []
        for name, view in sample['images'].items():
            path = root / view['img_path']
            image = decode_image(path)
            shape = (view['height'], view['width'])
            if image is None or image.shape != shape:
                raise DataError(
                    f'{path}: expected a grey image {shape}, found '
                    + ('none' if image is None else f'{image.shape}'))
            images.append(image * np.float32(window['scale'])
                          + np.float32(window['offset']))
            views.append(View(name, view['cam2img'], view['lidar2cam'],
                              view['width'], view['height']))
        return Views(sample['token'], views, images)

    return found, views_of


def refine_set(root: Path, out_dir: Path, shift: float, turn: float
               ) -> Dict[str, Refinement]:
    """Refine the poses of every object of a set, and write it with them.

    Args:
        root, out_dir: See :func:`write_set`.
        shift, turn: See :func:`refine_views`.

    Returns:
        dict: By token.

    Raises:
        DataError, ConversionError: See :func:`read_set`,
            :func:`refine_views` and :func:`write_set`.
    """
    _expect_new(root, out_dir)
    infos_of, views_of = read_set(root)
    todo = [(sample, infos) for infos in infos_of.values()
            for sample in infos['data_list']]
    found = {}
    for sample, infos in tqdm(todo, desc='refine', unit='object',
                              dynamic_ncols=True):
        these = views_of(sample, infos)
        found[these.token] = refine_views(
            these.images, these.views, shift, turn,
            f'{root}: object {these.token}')
    write_set(root, out_dir, infos_of,
              {token: of.views for token, of in found.items()},
              dict(shift_mm=shift, turn_deg=turn, objects=[
                  token for token, of in found.items() if of.helped]))
    return found


def write_set(root: Path, out_dir: Path, found: Dict[Path, dict],
              poses: Dict[str, List[View]], told: dict) -> None:
    """Write a set again whose objects have other poses; it is there as a
    whole or not at all. 2D boxes go with their findings' projections.

    Args:
        root: The set, which stays as it is.
        out_dir: A new or empty folder.
        found: See :func:`read_set`.
        poses: Views by token.
        told: What was done, for the infos and options.

    Raises:
        ConversionError: The folder is not empty, or within the set.
    """
    with _new_folder(root, out_dir) as folder:
        for name in ('images', 'raw', 'lungs', 'scans'):
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name,
                                ignore=shutil.ignore_patterns('.*'))
        for name in ('rig.json', 'errors.json'):
            if (root / name).exists():
                shutil.copy(root / name, folder)
        if (root / 'options.json').exists():
            options = load_json(root / 'options.json')
            options['inputs'] = {**options.get('inputs', {}), REFINED: told}
            dump_json(options, folder / 'options.json')
        for path, infos in found.items():
            samples = []
            for sample in infos['data_list']:
                views = poses[sample['token']]
                samples.append(_with_poses(sample, views))
                rig = rig_of(folder, sample['token'])
                rig.parent.mkdir(parents=True, exist_ok=True)
                Rig(views).save(rig)
                record = record_path(root, sample['token'])
                if record.exists():
                    changed = {key: samples[-1][key] for key in (
                        'images', 'instances', 'cam_instances')}
                    dump_json(
                        as_lists({**load_json(record), **changed}),
                        record_path(folder, sample['token']))
            infos = dict(
                metainfo={**infos['metainfo'], REFINED: told},
                data_list=[as_arrays(sample) for sample in samples])
            dump_infos(infos, folder / path.name)
            split = infos['metainfo'].get('split') or next(
                s for s in SPLITS if path.stem == infos_name(s, ''))
            dump_json(build_coco(infos), folder / coco_name(split))


def _expect_new(root: Path, out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConversionError(f'{out_dir}: --out: expected a new or empty '
                              'folder, found other files: choose another')
    if root.resolve() in [out_dir.resolve(), *out_dir.resolve().parents]:
        raise ConversionError(f'{out_dir}: --out: expected a folder outside '
                              f'of the set {root}, found one in it')


@contextmanager
def _new_folder(root: Path, out_dir: Path) -> Iterator[Path]:
    """A folder that gets its name at the end."""
    _expect_new(root, out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(
        prefix=f'.{out_dir.name}.', suffix='.tmp', dir=out_dir.parent))
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        os.replace(folder, out_dir)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _with_poses(sample: dict, views: Sequence[View]) -> dict:
    """A sample whose views have other matrices, and 2D boxes where these see
    the findings."""
    boxes = np.array([item['bbox_3d'] for item in sample['instances']],
                     float).reshape(-1, 7)
    images: Dict[str, dict] = {}
    seen: Dict[str, List[dict]] = {}
    for view in views:
        old = sample['images'][view.name]
        images[view.name] = dict(
            old, cam2img=view.cam2img.tolist(),
            lidar2cam=view.ct2cam.tolist(), lidar2img=view.ct2img.tolist())
        before, after = (geometry.project(boxes[:, :3], matrix)[0]
                         for matrix in (old['lidar2img'], view.ct2img))
        seen[view.name] = []
        for box in sample['cam_instances'].get(view.name, []):
            row = box['instance_idx']
            rect = (np.reshape(box['bbox'], (2, 2)) + after[row]
                    - before[row]).clip(0, [view.width, view.height])
            if (rect[1] > rect[0]).all():
                seen[view.name].append({**box, **seen_box(
                    rect.ravel(), box['bbox_label'], boxes[row],
                    view.cam2img, view.ct2cam, row)})
    return dict(sample, images=images, cam_instances=seen)


def table_of_refinements(found: Dict[str, Refinement]) -> str:
    """What the screen shows: of each object the error of its views before
    and after, what they were moved and turned by (rms), and whether its poses
    were changed."""
    width = max([6, *map(len, found)])
    lines = [f'{"object":{width}}  error before   after   moved (mm)  '
             'turned (deg)']
    for token, of in found.items():
        shift, turn = np.sqrt((of.sizes()**2).mean(0))
        lines.append(
            f'{token:{width}}  {of.errors[0]:12.4f} {of.errors[1]:7.4f} '
            f'{shift:12.2f} {turn:13.3f}   '
            + ('refined' if of.helped else 'kept as it was'))
    helped = sum(of.helped for of in found.values())
    lines.append(
        f'{helped} of {len(found)} objects refined' if helped else
        'no object was refined: in no other poses do the views agree much '
        'better than in the recorded ones')
    return '\n'.join(lines)
