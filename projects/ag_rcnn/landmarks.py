"""Landmarks of a mammogram, from its pixels, and the graph's nodes on them.

Document 004 (slides on AG-RCNN): breast contour, nipple, pectoral line, lines
parallel to it and nodes along these; :func:`find_landmarks` names its
equations. Its numbers are used where it gives any; each other one is a choice
of this module, told beside it.

Everything is found in one frame, that of a left breast: chest wall at the
left, nipple to the right. A right breast is mirrored before and its landmarks
after. Places are (x, y) in pixels; pixel ``i`` spans ``[i, i + 1)``, as in
:mod:`projects.core.geometry`.
"""

from dataclasses import dataclass, replace
from typing import List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from scipy.interpolate import splev, splprep

from projects.core.breast import (
    breast_mask,
    chest_side,
    cut_borders,
    to_eight_bits,
)

LATERALITIES = ('L', 'R')
VIEWS = ('CC', 'MLO')

# Equation 4: sum of squares (px²) that the smoothed contour may be off, with
# a point for each pixel. The slides do not say on how large an image: with
# 1,024 px to a side they would be 40 px a point, on the scans as delivered, of
# 5,000, an eighth of that. Either is more than lets a nipple stand out on
# synthetic breasts; the least that evens out the rest is taken.
_SMOOTHING = dict(CC=100., MLO=1e7)
SMOOTHED_SIDE = 20000.
_ROUNDING = 1 / 6  # of a point's place to whole pixels, in both axes (px²)
_POINTS = 400  # of the smoothed skin line
_LEAST_BREAST = .02  # of the image
_LATERAL, _LOWER = .75, .5  # equation 6: where the nipple is, in MLO
_ENDS = .04  # of the skin line, where the border bends it
# Equation 10: shares of width and height; and where there is no line in this
# corner, a larger one.
_ROIS = (.4, .6), (.75, .75)
_BLUR = 1 / 64  # of the corner's side, deviation: texture makes no lines
_CLAHE_LIMIT, _CLAHE_TILES = 3., (8, 8)  # equation 11
_HOUGH_VOTES = 20  # equation 13
# Of the pectoral line, steeper than so against the rows, and what equation
# 15 calls angle and position: how near its slope is to the middle, and how
# near its foot on the top row is to the middle of the ROI (degrees, share).
_ANGLES, _ANGLE = (35., 85.), 62.
_WEIGHT_ANGLE, _WEIGHT_POSITION = .5, .5
_LINES = 3  # parallel lines: at 1/3, at 2/3 and the pectoral line itself

__all__ = [
    'LATERALITIES', 'SMOOTHED_SIDE', 'VIEWS', 'LandmarkError', 'Landmarks',
    'draw_landmarks', 'find_landmarks', 'node_grid'
]


class LandmarkError(ValueError):
    """A landmark cannot be found; the message is one sentence."""


@dataclass
class Landmarks:
    """Landmarks of one mammogram.

    Attributes:
        contour: (M, 2) closed outline of the breast, its skin smoothed (px).
        nipple: (2,) (px).
        pectoral: (2, 2) its upper and its lower end (px): the border of the
            pectoral muscle in MLO, the chest wall, which is vertical, in CC.
        laterality: 'L' or 'R'.
        view: 'CC' or 'MLO'.
        size: Width and height of the image (px).
    """
    contour: np.ndarray
    nipple: np.ndarray
    pectoral: np.ndarray
    laterality: str
    view: str
    size: Tuple[int, int]

    def mirrored(self) -> 'Landmarks':
        """Of the mirrored image, which shows the other side."""
        def turn(points):
            return np.array([self.size[0], 0]) + points * [-1, 1]
        return replace(
            self, contour=turn(self.contour), nipple=turn(self.nipple),
            pectoral=turn(self.pectoral),
            laterality='R' if self.laterality == 'L' else 'L')


def find_landmarks(image: np.ndarray, laterality: str, view: str,
                   smoothed_side: float = SMOOTHED_SIDE,
                   padding: Sequence[int] = (0, 0, 0, 0)) -> Landmarks:
    """Landmarks of a mammogram (document 004).

    - Contour: Otsu's threshold, largest piece, its skin smoothed by a B-spline
      (equations 1 to 4).
    - Nipple: the most lateral point in CC (5); in MLO the point of largest
      curvature in the lower lateral quadrant of the breast (6 to 8).
    - Pectoral line: in CC the chest wall (9); in MLO the best line among the
      edges of the bright part of the upper corner (10 to 15).

    Args:
        image: (H, W) grey values of any range, tissue brighter than air.
        laterality: 'L', nipple to the right, or 'R', to the left.
        view: 'CC' or 'MLO'.
        smoothed_side: Side of the images that equation 4 is meant for (px):
            the larger, the less is smoothed.
        padding: Columns and rows at the left, top, right and bottom that are
            beyond the film (px): there no skin ends.

    Raises:
        LandmarkError: One cannot be found, or the film ends before the
            nipple; says which.
        ValueError: Image, laterality or view are of another kind.
    """
    if image.ndim != 2:
        raise ValueError('image: expected (H, W) grey values, found the '
                         f'shape {image.shape}')
    for name, value, known in (('laterality', laterality, LATERALITIES),
                               ('view', view, VIEWS)):
        if value not in known:
            raise ValueError(f'{name}: expected one of {", ".join(known)}, '
                             f'found "{value}"')
    left, top, right, bottom = padding
    if laterality == 'R':
        return find_landmarks(image[:, ::-1], 'L', view, smoothed_side,
                              (right, top, left, bottom)).mirrored()
    grey = _eight_bits(image)
    breast = _breast(grey)
    height, width = image.shape
    film = slice(top, height - bottom), slice(left, width - right)
    _expect_nipple(breast[film], view)
    outline, skin = _outline(breast, film)
    smooth, curvature = _smoothed(skin, max(image.shape) / smoothed_side,
                                  view)
    smooth = smooth.clip(0, [width, height])
    contour = np.concatenate([smooth, outline])
    low, high = contour.min(0), contour.max(0)
    if view == 'CC':
        nipple = smooth[smooth[:, 0].argmax()]
        pectoral = np.array([[low[0], low[1]], [low[0], high[1]]])
    else:
        nipple = _nipple_by_curvature(smooth, curvature, low, high)
        pectoral = _pectoral_line(grey, breast, low, high)
    return Landmarks(contour, nipple, pectoral, laterality, view,
                     (width, height))


# ----------------------------------------------------------------- the contour
def _eight_bits(image: np.ndarray) -> np.ndarray:
    try:
        return to_eight_bits(image)
    except ValueError as error:
        raise LandmarkError(f'contour: {error}') from None


def _breast(grey: np.ndarray) -> np.ndarray:
    """Where the breast is (0 or 1)."""
    breast = breast_mask(grey)
    share = breast.mean()
    if share < _LEAST_BREAST:
        raise LandmarkError(
            'contour: expected a breast that covers at least '
            f'{_LEAST_BREAST:.0%} of the image, found {share:.1%}')
    if chest_side(breast) != 'left':
        raise LandmarkError(
            'contour: expected the chest wall at the left of a left breast, '
            'or at the right of a right one, found it at the other side')
    return breast


def _expect_nipple(breast: np.ndarray, view: str) -> None:
    """Refuse what a film shows of a breast without its nipple: it ends at the
    front, or at the top or bottom as far out as nipples are."""
    if 'front' in cut_borders(breast, 'left', view):
        raise LandmarkError('nipple: expected it in the image, found the '
                            'breast cut at the front')
    used = np.flatnonzero(breast.any(0))
    out = round(used[0] + _LATERAL * (used[-1] - used[0]))
    for name, edge in dict(top=breast[0], bottom=breast[-1]).items():
        if edge[out:].any() and (name, view) != ('top', 'MLO'):
            raise LandmarkError('nipple: expected it in the image, found the '
                                f'breast cut at the {name} near its front')


def _outline(breast: np.ndarray, film: Tuple[slice, slice]
             ) -> Tuple[np.ndarray, np.ndarray]:
    """The rest of the outline, and its skin, (N, 2) from the top down (px):
    the longest part that is neither on the film's border nor on the chest
    wall."""
    outlines, _ = cv2.findContours(breast, cv2.RETR_EXTERNAL,
                                   cv2.CHAIN_APPROX_NONE)
    points = max(outlines, key=len)[:, 0]
    rows, columns = film
    first = points[:, 0].min()
    border = ((points[:, 0] <= first) | (points[:, 0] >= columns.stop - 1)
              | (points[:, 1] <= rows.start) | (points[:, 1] >= rows.stop - 1))
    if border.all() or not border.any():
        raise LandmarkError('contour: expected a skin line from the chest '
                            'wall and back, found none')
    points = np.roll(points, -int(border.argmax()), 0)
    border = np.roll(border, -int(border.argmax()))
    steps = np.flatnonzero(np.diff(border.astype(int), append=1))
    start, end = max(zip(steps[::2], steps[1::2]),
                     key=lambda run: run[1] - run[0])
    skin = points[start + 1:end + 1]
    rest = np.concatenate([points[end + 1:], points[:start + 1]])
    if len(skin) < 16:
        raise LandmarkError('contour: expected a skin line, found '
                            f'{len(skin)} px of it')
    if skin[0, 1] > skin[-1, 1]:
        skin, rest = skin[::-1], rest[::-1]
    return rest + .5, skin + .5


def _smoothed(skin: np.ndarray, scale: float, view: str
              ) -> Tuple[np.ndarray, np.ndarray]:
    """Points of the smoothed skin line and its curvature (1/px) there, above
    0 where it bends as a breast does."""
    step = max(len(skin) // _POINTS, 1)
    points = skin[::step]
    # A sum of squares over a point for each pixel goes as the side cubed;
    # below what the rounding to pixels is there is nothing to follow.
    allowed = max(_SMOOTHING[view] * scale**3 / step,
                  _ROUNDING * len(points))
    curve, _ = splprep(points.T, s=allowed)
    at = np.linspace(0, 1, _POINTS)
    x1, y1 = splev(at, curve, der=1)
    x2, y2 = splev(at, curve, der=2)
    curvature = (x1 * y2 - y1 * x2) / np.maximum(
        (x1**2 + y1**2)**1.5, 1e-9)
    return np.stack(splev(at, curve), 1), curvature * np.sign(
        np.median(curvature))


# ------------------------------------------------------------------ the nipple
def _nipple_by_curvature(skin: np.ndarray, curvature: np.ndarray,
                         low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where the skin line bends most, in the lower lateral quadrant of the
    breast, which reaches from ``low`` to ``high``.

    Equation 8 takes the curvature's absolute value; the dents beside a nipple
    bend as much as its tip, so here they do not count.
    """
    limit = low + (high - low) * [_LATERAL, _LOWER]
    margin = round(_ENDS * len(skin))
    wanted = (skin >= limit).all(1)
    wanted[:margin] = wanted[len(skin) - margin:] = False
    if not wanted.any():
        raise LandmarkError('nipple: expected skin in the lower lateral '
                            'quadrant, found none')
    return skin[np.where(wanted, curvature, -np.inf).argmax()]


# ----------------------------------------------------------- the pectoral line
def _pectoral_line(grey: np.ndarray, breast: np.ndarray, low: np.ndarray,
                   high: np.ndarray) -> np.ndarray:
    """Border of the pectoral muscle, (2, 2): where it meets the top of the
    breast and the chest wall."""
    x0, y0 = np.floor(low).astype(int)
    best: Optional[np.ndarray] = None
    best_score = 0.
    for roi in _ROIS:
        width, height = np.ceil((high - low) * roi).astype(int)
        corner = (slice(y0, y0 + height), slice(x0, x0 + width))
        for line in _lines(grey[corner], breast[corner]):
            score = _line_score(line, width)
            if score > best_score:
                best, best_score = line, score
        if best is not None:
            break
    else:
        raise LandmarkError('pectoral line: expected one that falls towards '
                            'the chest wall, found none')
    (xa, ya), (xb, yb) = best + [x0, y0]
    # To the top of the breast and to the chest wall.
    slope = (xb - xa) / (yb - ya)
    return np.array([[xa + (low[1] - ya) * slope, low[1]],
                     [low[0], ya + (low[0] - xa) / slope]])


def _lines(roi: np.ndarray, inside: np.ndarray) -> List[np.ndarray]:
    """Straight edges of the bright part of the ROI, (2, 2) each (px)."""
    side = max(roi.shape)
    smooth = cv2.GaussianBlur(roi, (0, 0), max(_BLUR * side, .5))
    clear = cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(smooth)
    _, bright = cv2.threshold(clear, 0, 255,
                              cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # The neighbourhood is not stated: half the ROI, so that the muscle's
    # inside is bright beside what surrounds it.
    adaptive = cv2.adaptiveThreshold(
        clear, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY,
        side // 2 * 2 + 1, 0)
    both = cv2.bitwise_and(bright, adaptive)
    both[inside == 0] = 0
    reach = max(side // 24, 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE,
                                       (2 * reach + 1, 2 * reach + 1))
    both = cv2.morphologyEx(both, cv2.MORPH_CLOSE, kernel)
    both = cv2.morphologyEx(both, cv2.MORPH_OPEN, kernel)
    edges = cv2.Canny(both, 50, 150)
    found = cv2.HoughLinesP(edges, 1, np.pi / 180, _HOUGH_VOTES,
                            minLineLength=side // 6, maxLineGap=side // 12)
    lines = [] if found is None else found.reshape(-1, 2, 2) + .5
    return [line[line[:, 1].argsort()] for line in lines]


def _line_score(line: np.ndarray, width: int) -> float:
    """Equation 15, or 0 where the slope is wrong (equation 14)."""
    (xa, ya), (xb, yb) = line
    if not (yb > ya and xb < xa):
        return 0.
    angle = float(np.degrees(np.arctan2(yb - ya, xa - xb)))
    if not _ANGLES[0] <= angle <= _ANGLES[1]:
        return 0.
    foot = xa + ya * (xa - xb) / (yb - ya)
    position = max(1 - abs(foot / width - .75) / .75, 0)
    steepness = 1 - abs(angle - _ANGLE) / max(
        _ANGLE - _ANGLES[0], _ANGLES[1] - _ANGLE)
    return float(np.hypot(xb - xa, yb - ya) * (
        _WEIGHT_POSITION * position + _WEIGHT_ANGLE * steepness))


# ------------------------------------------------------------------- the nodes
def node_grid(landmarks: Landmarks, num_nodes: Union[int, Sequence[int]]
              ) -> np.ndarray:
    """Nodes of the graph (document 004, graph construction).

    The first node is the nipple, then come, from the top down, those on the
    lines parallel to the pectoral line at 1/3 and 2/3 of the way from the
    nipple to it, and on the line itself. So node ``i`` of CC and node ``i``
    of MLO are in the like place. What MLO has more than CC lies on a line
    within the muscle, half way to the image's corner: (22, 26) are a nipple,
    three lines of seven and four in the muscle.

    Args:
        landmarks: Of an image.
        num_nodes: In CC and in MLO; one number for both.

    Returns:
        np.ndarray: (N, 2) (px), N of the landmarks' view.

    Raises:
        ValueError: Fewer than a nipple and two nodes on each line, or fewer
            in MLO than in CC.
        LandmarkError: A line does not cross the breast.
    """
    in_cc, in_mlo = ((num_nodes, num_nodes) if isinstance(num_nodes, int)
                     else num_nodes)
    if in_cc < 1 + 2 * _LINES or in_mlo < in_cc:
        raise ValueError(
            'num_nodes: expected at least 7 in CC and as many or more in '
            f'MLO, found {in_cc} and {in_mlo}')
    if landmarks.laterality == 'R':
        points = node_grid(landmarks.mirrored(), num_nodes)
        return np.array([landmarks.size[0], 0]) + points * [-1, 1]
    top, bottom = landmarks.pectoral
    along = (bottom - top) / np.linalg.norm(bottom - top)
    foot = top + along * ((landmarks.nipple - top) @ along)
    nodes = [landmarks.nipple[None]]
    for line in range(_LINES):
        count = (in_cc - 1 + line) // _LINES
        through = landmarks.nipple + (foot - landmarks.nipple) * (
            (line + 1) / _LINES)
        nodes.append(_along(landmarks, through, along, count))
    more = in_mlo - in_cc
    if landmarks.view == 'MLO' and more:
        corner = np.array([0., 0.])
        normal = np.array([-along[1], along[0]])
        normal *= np.sign((corner - top) @ normal) or 1.
        through = top + normal * np.linalg.norm(corner - top) / 2
        nodes.append(_along(landmarks, through, along, more))
    return np.concatenate(nodes).clip(0, landmarks.size)


def _along(landmarks: Landmarks, through: np.ndarray, along: np.ndarray,
           count: int) -> np.ndarray:
    """Evenly from where a line enters the breast to where it leaves it."""
    normal = np.array([-along[1], along[0]])
    contour = landmarks.contour
    offset = (contour - through) @ normal
    place = (contour - through) @ along
    after = np.roll(offset, -1)
    # The chest wall is itself a part of the contour.
    touching = np.abs(offset) < .75
    crossing = (offset * after < 0)
    share = offset[crossing] / (offset - after)[crossing]
    ends = np.concatenate([
        place[touching],
        place[crossing] + share * (np.roll(place, -1) - place)[crossing]])
    if len(ends) < 2 or ends.max() - ends.min() < 1:
        raise LandmarkError('nodes: expected a line that crosses the breast, '
                            'found one beside it')
    at = np.linspace(ends.min(), ends.max(), count) if count > 1 else (
        np.array([(ends.min() + ends.max()) / 2]))
    return through + at[:, None] * along


# ----------------------------------------------------------------- the picture
def draw_landmarks(image: np.ndarray, landmarks: Landmarks,
                   nodes: Optional[np.ndarray] = None) -> np.ndarray:
    """The image with its landmarks.

    Args:
        image: (H, W) grey values.
        landmarks: Its landmarks.
        nodes: (N, 2) (px).

    Returns:
        np.ndarray: (H, W, 3) 8-bit BGR: contour green, nipple red, pectoral
        line blue, nodes yellow.
    """
    picture = cv2.cvtColor(_eight_bits(image), cv2.COLOR_GRAY2BGR)
    thick = max(round(max(image.shape) / 400), 1)

    def pixels(points):
        return np.floor(points).astype(np.int32)

    cv2.polylines(picture, [pixels(landmarks.contour)], True, (60, 200, 60),
                  thick)
    top, bottom = pixels(landmarks.pectoral).tolist()
    cv2.line(picture, top, bottom, (255, 120, 60), thick)
    for point in [] if nodes is None else pixels(nodes).tolist():
        cv2.circle(picture, point, 2 * thick, (60, 220, 250), -1)
    cv2.circle(picture, pixels(landmarks.nipple).tolist(), 3 * thick,
               (60, 60, 240), -1)
    return picture
