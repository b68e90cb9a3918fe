"""A rig from what its views see of a bead phantom.

The phantom's beads are known (mm); where each is seen (px) is measured. Poses,
and intrinsics where they are asked for, are those with the least squares of
the residuals, once beads that were taken for others are left out. What can be
wrong with the result, and by how much, stands beside it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
from scipy.optimize import least_squares
from skimage.measure import ransac

from projects.core import geometry
from projects.core.rig import Rig, View

from .rigs import Beads, Residuals, read_beads
from .scan import ConversionError

__all__ = ['INTRINSICS', 'Calibration', 'fit_rig', 'seen_by',
           'table_of_calibration']

INTRINSICS = ('keep', 'shared', 'each')
# Of 2D distances in standard deviations of one axis: one of 3000 is farther.
_OUTLIER = 4.
# Nobody measures beads better (px): what is nearer is no outlier.
_FINEST = .02
_POSE, _INNER = 6, 3  # parameters
_AXES = ('turn_x', 'turn_y', 'turn_z', 'source_x', 'source_y', 'source_z')


@dataclass
class Calibration:
    """A rig, and how far it can be trusted.

    Attributes:
        rig: What was found.
        nominal: What it started from, if there was anything.
        residuals: Of all beads of each view, outliers, too.
        beads: Of each view.
        inliers: (N,) of each view, the beads that were used.
        sigma: Standard deviation of a coordinate (px).
        covariance: (V, 6, 6) of the turns about the camera's axes (rad), and
            of the source's place along them (mm).
    """
    rig: Rig
    nominal: Optional[Rig]
    residuals: List[Residuals]
    beads: List[Beads]
    inliers: List[np.ndarray]
    sigma: float
    covariance: np.ndarray

    @property
    def deviations(self) -> np.ndarray:
        """(V, 6) standard deviations, as the covariance has them."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))

    @property
    def used(self) -> List[Residuals]:
        """Residuals of the beads that were used, of each view."""
        return [Residuals(r.view, r.offsets[kept])
                for r, kept in zip(self.residuals, self.inliers)]

    def moved(self) -> Optional[Tuple[np.ndarray, np.ndarray]]:
        """(V,) each: how far sources are off the nominal ones (mm), and
        cameras turned (degrees)."""
        if self.nominal is None:
            return None
        new, old = (np.stack([v.ct2cam for v in rig.views])
                    for rig in (self.rig, self.nominal))
        shift = geometry.camera_centres(new) - geometry.camera_centres(old)
        return (np.linalg.norm(shift, axis=-1),
                np.degrees(geometry.rotation_angles(new, old)))

    def outliers(self) -> List[dict]:
        """``view``, ``bead`` and ``off_px`` of what was left out."""
        return [
            dict(view=r.view, bead=name, off_px=float(np.hypot(*offset)))
            for r, beads, used in zip(self.residuals, self.beads,
                                      self.inliers)
            for name, offset, kept in zip(beads.names, r.offsets, used)
            if not kept]

    def to_dict(self) -> dict:
        """Plain containers and numbers, for JSON."""
        moved = self.moved()
        return dict(
            sigma_px=self.sigma, parameters=list(_AXES),
            units='rad, mm, along the axes of the camera',
            outliers=self.outliers(), views=[
                dict(view=r.view, beads=len(these.names),
                     used=len(r.offsets), rms_px=r.rms,
                     **({} if moved is None else dict(
                         moved_mm=float(moved[0][row]),
                         turned_deg=float(moved[1][row]))),
                     covariance=self.covariance[row].tolist())
                for row, (r, these) in enumerate(zip(self.used,
                                                     self.beads))])


def fit_rig(path: Path, nominal: Optional[Rig] = None,
            intrinsics: str = 'keep', size: Optional[Tuple[int, int]] = None,
            pixel_origin: float = 0.) -> Calibration:
    """The rig that sees a phantom's beads where they were seen.

    Each view is turned and moved. ``shared`` or ``each`` fit focal length and
    principal point, too, one of all views or one of each; a detector that is
    tilted against the beam is both a turn and a principal point that is off
    its centre (:meth:`~projects.core.rig.View.from_detector`), so it is
    found, too. Ratio of the pixels' edges and skew stay.

    The start is the nominal rig or, without one, the direct linear transform
    of six beads that most others agree with; then pixels are square. Cauchy's
    loss at the residuals' own scale finds the beads that belong to the rest;
    those farther off than 4 standard deviations are left out, and the others'
    squares are minimised. Covariances are the inverse of the normal matrix
    times the variance that was found, the Cramér-Rao bound of normal noise.

    Args:
        path: The table of :func:`~data_converters.rigs.read_beads`.
        nominal: The rig to start from.
        intrinsics: One of :data:`INTRINSICS`; ``keep`` needs a rig.
        size: Columns and rows (px) where there is no rig.
        pixel_origin: See :func:`~data_converters.rigs.read_rig_table`.

    Raises:
        ConversionError: The file or a value is not as expected, a view has
            too few beads, or they do not fix it.
    """
    seen = read_beads(path, nominal, pixel_origin)
    beads = list(seen.values())
    free = intrinsics != 'keep'
    least = 6 if free or nominal is None else 4
    for name, these in seen.items():
        _expect_beads(path, name, len(these.points), least)
    if nominal is None:
        assert size is not None and free
        views = [_from_none(path, name, these, *size)
                 for name, these in seen.items()]
        if intrinsics == 'shared':
            middle = np.median([v.cam2img for v in views], 0)
            views = [View(v.name, middle, v.ct2cam, *size) for v in views]
    else:
        views = nominal.views
    groups = ([list(range(len(views)))] if intrinsics == 'shared' else
              [[row] for row in range(len(views))])
    fits = [_Fit([views[row] for row in group], [beads[row] for row in group],
                 free) for group in groups]
    for fit in fits:
        fit.robust(path)
    for _ in range(2):  # what is an outlier says how large the others are
        sigma = _spread(fits)
        for fit in fits:
            fit.choose(_OUTLIER * max(sigma, _FINEST))
            for view, these, kept in zip(fit.views, fit.beads, fit.inliers):
                _expect_beads(path, view.name, int(kept.sum()), least,
                              f' within {_OUTLIER * sigma:.2g} px of the '
                              f'fit, of {len(these.points)}')
            fit.minimise(path)
    spare = sum(fit.spare for fit in fits)
    sigma = float(np.sqrt(sum(fit.squares() for fit in fits)
                          / max(spare, 1)))
    found = [view for fit in fits for view in fit.fitted()]
    covariance = [part for fit in fits for part in fit.covariance(sigma)]
    rig = Rig.from_dict(Rig(found).to_dict(), str(path))
    return Calibration(
        rig, nominal,
        [these.residuals(view) for view, these in zip(found, beads)],
        beads, [kept for fit in fits for kept in fit.inliers], sigma,
        np.array(covariance))


def seen_by(view: View, beads: Beads) -> View:
    """The view moved so that it sees most of the beads where they were seen.

    Raises:
        ConversionError: They do not fix it.
    """
    fit = _Fit([view], [beads], False)
    fit.robust(Path(view.name))
    return fit.fitted()[0]


def _expect_beads(path: Path, view: str, found: int, least: int,
                  which: str = '') -> None:
    if found < least:
        raise ConversionError(f'{path}: view {view}: expected at least '
                              f'{least} beads, found {found}{which}')


class _Transform:
    """What scikit-image's RANSAC fits: a camera by six points."""

    def __init__(self, points: np.ndarray, uv: np.ndarray) -> None:
        self.cam2img, self.ct2cam = geometry.camera_from_points(points, uv)

    @classmethod
    def from_estimate(cls, points: np.ndarray, uv: np.ndarray
                      ) -> Optional['_Transform']:
        """None where points do not fix a camera."""
        try:
            return cls(points, uv)
        except ValueError:
            return None

    def residuals(self, points: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """(N,) distances (px)."""
        return np.linalg.norm(geometry.reprojection_errors(
            points, uv, self.cam2img @ self.ct2cam), axis=1)


def _from_none(path: Path, name: str, beads: Beads, width: int, height: int
               ) -> View:
    """A view by its beads alone."""
    try:
        whole = _Transform(beads.points, beads.uv)
    except ValueError as error:
        raise ConversionError(f'{path}: view {name}: {error}') from None
    _, inliers = ransac(
        (beads.points, beads.uv), _Transform, 6,
        residual_threshold=2., max_trials=2000, stop_probability=.9999,
        rng=0)
    if inliers is not None and inliers.sum() >= 6:
        chosen = beads.of(inliers)
        whole = _Transform.from_estimate(chosen.points, chosen.uv) or whole
    cam2img = whole.cam2img.copy()
    cam2img[0, 0] = cam2img[1, 1] = np.sqrt(cam2img[0, 0] * cam2img[1, 1])
    cam2img[0, 1] = 0.
    return View(name, cam2img, whole.ct2cam, width, height)


def _spread(fits: Sequence['_Fit']) -> float:
    """Standard deviation of a coordinate (px), from the median."""
    sizes = np.concatenate([np.abs(fit.residuals()) for fit in fits])
    spare = sum(fit.spare for fit in fits)
    return float(1.4826 * np.median(sizes)
                 * np.sqrt(len(sizes) / max(spare, 1)))


class _Fit:
    """Views that are fitted together: they share their intrinsics, or there
    is one.

    Parameters are the logarithm of what focal lengths are multiplied by and
    the principal point's shift (px), where free, and of each view a turn
    about the camera's axes (rad) and the source's shift along them (mm).
    """

    def __init__(self, views: Sequence[View], beads: Sequence[Beads],
                 free: bool) -> None:
        self.views, self.beads = list(views), list(beads)
        self.inner = _INNER * free
        self.values = np.zeros(self.inner + _POSE * len(views))
        self.slopes = np.zeros((0, len(self.values)))
        self.inliers = [np.ones(len(b.points), bool) for b in beads]

    @property
    def spare(self) -> int:
        """Degrees of freedom."""
        return 2 * sum(int(k.sum()) for k in self.inliers) - len(self.values)

    def _view(self, row: int, inner: np.ndarray, pose: np.ndarray) -> View:
        old = self.views[row]
        cam2img = old.cam2img.copy()
        if self.inner:
            cam2img[:2, :2] *= np.exp(inner[0])
            cam2img[:2, 2] += inner[1:]
        return View(old.name, cam2img, geometry.moved_camera(
            old.ct2cam, pose[:3], pose[3:]), old.width, old.height)

    def _parts(self, values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        return values[:self.inner], values[self.inner:].reshape(-1, _POSE)

    def fitted(self) -> List[View]:
        """The views as they are now."""
        inner, poses = self._parts(self.values)
        return [self._view(row, inner, pose)
                for row, pose in enumerate(poses)]

    def _of_view(self, row: int, inner: np.ndarray, pose: np.ndarray
                 ) -> np.ndarray:
        these = self.beads[row].of(self.inliers[row])
        uv, _ = geometry.project(
            these.points, self._view(row, inner, pose).ct2img)
        return (uv - these.uv).ravel()

    def residuals(self, values: Optional[np.ndarray] = None) -> np.ndarray:
        """Projected less seen, of the beads that are used (px)."""
        inner, poses = self._parts(self.values if values is None else values)
        return np.concatenate([self._of_view(row, inner, pose)
                               for row, pose in enumerate(poses)])

    def squares(self) -> float:
        """Their sum (px²)."""
        return float((self.residuals()**2).sum())

    def jacobian(self, values: np.ndarray) -> np.ndarray:
        """Of :meth:`residuals`, by central differences; a view's do not
        depend on another's pose."""
        inner, poses = self._parts(values)
        blocks, start = [], 0
        for row, pose in enumerate(poses):
            both = np.concatenate([inner, pose])
            steps = np.eye(len(both)) * 1e-5
            columns = [
                (self._of_view(row, *np.split(both + step, [self.inner]))
                 - self._of_view(row, *np.split(both - step, [self.inner]))
                 ) / 2e-5 for step in steps]
            blocks.append(np.column_stack(columns))
        whole = np.zeros((sum(map(len, blocks)), len(values)))
        for row, block in enumerate(blocks):
            rows = slice(start, start + len(block))
            first = self.inner + _POSE * row
            whole[rows, :self.inner] = block[:, :self.inner]
            whole[rows, first:first + _POSE] = block[:, self.inner:]
            start += len(block)
        return whole

    def _solve(self, path: Path, **kwargs) -> np.ndarray:
        """Fit; the Jacobian where it ends."""
        for view, these in zip(self.fitted(), self.beads):
            _, depth = geometry.project(these.points, view.ct2img)
            if not (depth > 0).all():
                raise ConversionError(
                    f'{path}: view {view.name}: expected beads before its '
                    'source, found one behind: is the rig another one\'s?')
        found = least_squares(
            self.residuals, self.values, self.jacobian, x_scale='jac',
            ftol=1e-12, xtol=1e-12, gtol=1e-12, max_nfev=200, **kwargs)
        self.values = found.x
        return found.jac

    def robust(self, path: Path) -> None:
        """Fit what most beads agree on."""
        scale = np.inf
        for _ in range(10):
            last, scale = scale, max(_spread([self]), _FINEST)
            if scale > .99 * last:
                break
            self._solve(path, loss='cauchy', f_scale=scale)

    def choose(self, limit: float) -> None:
        """Use the beads within a limit (px)."""
        self.inliers = [
            np.linalg.norm(these.residuals(view).offsets, axis=1) <= limit
            for view, these in zip(self.fitted(), self.beads)]

    def minimise(self, path: Path) -> None:
        """The least squares of the beads that are used."""
        self.slopes = self._solve(path)
        # Columns of one length: what is left is how the beads lie.
        whole = self.slopes / np.linalg.norm(
            self.slopes, axis=0).clip(1e-12)
        if np.linalg.svd(whole, compute_uv=False)[-1] < 1e-5:
            raise ConversionError(
                f'{path}: view {self.views[0].name}: expected beads that fix '
                'all that is fitted, found too few directions: are they in '
                'a plane or on a line?')

    def covariance(self, sigma: float) -> List[np.ndarray]:
        """(6, 6) of each view's pose, at the least squares."""
        covariance = sigma**2 * np.linalg.inv(self.slopes.T @ self.slopes)
        starts = range(self.inner, len(self.values), _POSE)
        return [covariance[s:s + _POSE, s:s + _POSE] for s in starts]


# --------------------------------------------------------------- what is shown
def table_of_calibration(fit: Calibration) -> str:
    """What the screen shows: of each view the beads and those left out, rms
    (px), what it was moved (mm) and turned (degrees) by, and how well the
    source's place and the direction are known (one standard deviation)."""
    moved = fit.moved()
    head = f'{"view":12} beads   out    rms (px)'
    if moved is not None:
        head += '   moved (mm)  turned (deg)'
    lines = [f'{head}   +- source (mm)  +- turn (deg)']
    deviations = fit.deviations
    for row, (r, beads) in enumerate(zip(fit.used, fit.beads)):
        total = len(beads.names)
        line = (f'{r.view:12} {total:5d} {total - len(r.offsets):5d} '
                f'{r.rms:11.3f}')
        if moved is not None:
            line += f'{moved[0][row]:13.3f} {moved[1][row]:13.4f}'
        turn, place = np.linalg.norm(deviations[row].reshape(2, 3), axis=1)
        lines.append(f'{line}{place:17.3f} {np.degrees(turn):14.4f}')
    lines.append(f'a bead is seen to {fit.sigma:.3f} px (one axis)')
    lines += [f'left out: view {item["view"]}, bead {item["bead"]}: '
              f'{item["off_px"]:.1f} px off' for item in fit.outliers()]
    return '\n'.join(lines)
