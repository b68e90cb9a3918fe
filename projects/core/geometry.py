"""All camera maths of the project: projection, rays, boxes, triangulation.

Convention (every other module relies on it and none restates it):

- World ("ct"; mmdet3d's keys call it "lidar"): millimetres, origin at the
  centre of the CT's voxel grid, RAS+ axes (x to the patient's right, y
  anterior, z superior).
- Camera: OpenCV (x right, y down, z forward), millimetres. ``ct2cam`` maps
  world to camera, ``cam2img`` is K padded to 4x4, ``ct2img = cam2img @
  ct2cam``. Column vectors; ``a2b`` maps frame a to frame b.
- Image: pixel ``i`` spans ``[i, i + 1)``, so the detector's centre is at
  ``(W / 2, H / 2)`` and resizing an image by ``s`` multiplies ``u`` by ``s``.
- Boxes: 3D ``[x, y, z, dx, dy, dz, yaw]`` (gravity centre, yaw 0, mm); 2D
  ``[x1, y1, x2, y2]`` (px).

Shapes: V views, N points, R RoIs or boxes; ``*`` any leading dimensions.
Functions take NumPy arrays or torch tensors, but not a mixture, and never
change their arguments. Arrays alone need no torch.
"""

import math
import sys
from typing import TYPE_CHECKING, Any, Sequence, Tuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

__all__ = [
    'LPS_TO_RAS', 'are_slices', 'box_corners', 'camera_centres',
    'camera_from_points', 'circular_ct2cam', 'clamp_points', 'compose_ct2img',
    'denormalise_points', 'depth_bounds', 'epipolar_distances',
    'epipolar_planes', 'focal_lengths', 'frustum_points', 'invert_rigid',
    'mirror_view', 'moved_camera', 'nearest_rotation', 'normalise_points',
    'pixel_sizes', 'plane_traces', 'project', 'project_boxes',
    'project_rows', 'rays', 'reprojection_errors', 'rigid_motion',
    'roi_intrinsics', 'rotation_angles', 'rotation_z', 'scale_cam2img',
    'slice_camera', 'slice_normal', 'slice_offsets', 'slice_places', 'stack',
    'transform_boxes', 'triangulate', 'unproject'
]

# Of one kind in a call: what goes in as a tensor comes out as one.
Array = TypeVar('Array', np.ndarray, 'torch.Tensor')

# DICOM's axes of the patient to the world's, and back: its own inverse.
LPS_TO_RAS = np.diag([-1., -1., 1.])
LPS_TO_RAS.setflags(write=False)


# --------------------------------------------------------------- small helpers
def _is_tensor(array: Any) -> 'TypeIs[torch.Tensor]':
    torch = sys.modules.get('torch')  # without it there are none
    return torch is not None and isinstance(array, torch.Tensor)


def _inverse(matrix: Array) -> Array:
    if _is_tensor(matrix):
        return matrix.inverse()
    return np.linalg.inv(matrix)


def stack(arrays: Sequence[Array], dim: int = -1) -> Array:
    """Arrays of one kind and shape along a new axis."""
    if _is_tensor(arrays[0]):
        import torch
        return torch.stack(tuple(arrays), dim=dim)
    return np.stack(arrays, axis=dim)


def _transpose(matrix: Array) -> Array:
    if _is_tensor(matrix):
        return matrix.transpose(-1, -2)
    return np.swapaxes(matrix, -1, -2)


def _like(values, reference: Array) -> Array:
    if _is_tensor(reference):
        import torch
        return torch.as_tensor(
            values, dtype=reference.dtype, device=reference.device)
    return np.asarray(values, dtype=reference.dtype)


def _check_matrices(name: str, matrix: Array) -> None:
    if tuple(matrix.shape[-2:]) != (4, 4):
        raise ValueError(f'{name}: expected shape (*, 4, 4), found '
                         f'{tuple(matrix.shape)}')


def _check_last(name: str, array: Array, size: int) -> None:
    if array.shape[-1] != size:
        raise ValueError(f'{name}: expected last dimension {size}, found '
                         f'shape {tuple(array.shape)}')


# ------------------------------------------------------------------- matrices
def circular_ct2cam(theta: float, radius: float) -> np.ndarray:
    """Pose of a camera on a circle about z that looks at the isocentre.

    Betancur et al. §2.3 with the sign of the third row's second entry
    corrected: the source is at ``(r cos θ, r sin θ, 0)``, so the isocentre
    has depth r.

    Args:
        theta (float): Angle about z from +x (rad).
        radius (float): Source-to-isocentre distance (mm).

    Returns:
        np.ndarray: ``ct2cam`` (4, 4).
    """
    c, s = math.cos(theta), math.sin(theta)
    return np.array([[-s, c, 0, 0], [0, 0, -1, 0], [-c, -s, 0, radius],
                     [0, 0, 0, 1]], dtype=np.float64)


def invert_rigid(matrix: Array) -> Array:
    """Invert rigid motions exactly: ``[R | t]`` becomes ``[R^T | -R^T t]``.

    Args:
        matrix: (*, 4, 4).

    Returns:
        Array: (*, 4, 4).
    """
    _check_matrices('matrix', matrix)
    rotation = _transpose(matrix[..., :3, :3])
    inverse = matrix * 0 + _like(np.eye(4), matrix)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ matrix[..., :3, 3:]
    return inverse


def compose_ct2img(cam2img: Array, ct2cam: Array) -> Array:
    """World to image: ``cam2img @ ct2cam``, (*, 4, 4)."""
    _check_matrices('cam2img', cam2img)
    _check_matrices('ct2cam', ct2cam)
    return cam2img @ ct2cam


def rotation_z(angle: float) -> np.ndarray:
    """Rotation of the world by ``angle`` (rad) about z, (4, 4)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
                    dtype=np.float64)


def rigid_motion(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Rigid motion (4, 4) from a rotation vector (3,) (rad, about the origin,
    applied first) and a translation (3,) (mm)."""
    from scipy.spatial.transform import Rotation
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(rotation).as_matrix()
    motion[:3, 3] = translation
    return motion


def moved_camera(ct2cam: np.ndarray, turn: np.ndarray, shift: np.ndarray
                 ) -> np.ndarray:
    """A camera's pose (4, 4) when its source has been shifted along its axes
    (3,) (mm), and it has then been turned about them (rotation vector (3,),
    rad)."""
    moved = ct2cam.copy()
    moved[:3, 3] -= shift
    return rigid_motion(turn, np.zeros(3)) @ moved


def rotation_angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By which angle (*,) (rad) rigid motions (*, 4, 4) turn otherwise than
    others."""
    from scipy.spatial.transform import Rotation
    between = first[..., :3, :3] @ np.swapaxes(second[..., :3, :3], -1, -2)
    return Rotation.from_matrix(between).magnitude()


def camera_from_points(points: np.ndarray, uv: np.ndarray
                       ) -> Tuple[np.ndarray, np.ndarray]:
    """The camera that sees points where they were seen.

    Direct linear transform with normalised coordinates, then an RQ
    decomposition (Hartley and Zisserman, Multiple View Geometry, 2nd ed.,
    sections 7.1 and 6.2.4). It minimises no distance in the image; with noise
    it is a start for what does.

    Args:
        points: (N, 3) (mm), six or more that are in no plane.
        uv: (N, 2) (px).

    Returns:
        tuple: ``cam2img`` and ``ct2cam``, (4, 4).

    Raises:
        ValueError: There are fewer points, they do not fix a camera, or only
            a mirrored image would show them so.
    """
    from scipy.linalg import rq
    if len(points) < 6:
        raise ValueError(f'expected at least 6 points, found {len(points)}')

    def normalised(values):
        middle = values.mean(0)
        scale = np.abs(values - middle).mean()
        to = np.eye(values.shape[1] + 1) / max(scale, 1e-12)
        to[:-1, -1] = -middle / max(scale, 1e-12)
        to[-1, -1] = 1
        return to, np.column_stack([values, np.ones(len(values))]) @ to.T

    to_world, world = normalised(np.asarray(points, float))
    to_image, image = normalised(np.asarray(uv, float))
    nothing = np.zeros_like(world)
    rows = np.concatenate([
        np.hstack([world, nothing, -image[:, :1] * world]),
        np.hstack([nothing, world, -image[:, 1:2] * world])])
    _, sizes, basis = np.linalg.svd(rows)
    if sizes[-2] < 1e-3 * sizes[0]:
        raise ValueError('expected points that fix a camera, found some in a '
                         'plane or otherwise too few')
    matrix = np.linalg.inv(to_image) @ basis[-1].reshape(3, 4) @ to_world
    homogeneous = np.column_stack([points, np.ones(len(points))])
    matrix = matrix * np.sign(np.median(homogeneous @ matrix[2]))
    inner, rotation = rq(matrix[:, :3])
    signs = np.sign(np.diag(inner))
    inner, rotation = inner * signs, signs[:, None] * rotation
    if np.linalg.det(rotation) < 0:
        raise ValueError('expected an image as it is seen from the source, '
                         'found a mirrored one')
    cam2img, ct2cam = np.eye(4), np.eye(4)
    cam2img[:3, :3] = inner / inner[2, 2]
    ct2cam[:3, :3] = rotation
    ct2cam[:3, 3] = np.linalg.solve(inner, matrix[:, 3])
    return cam2img, ct2cam


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation nearest to a matrix (3, 3), as one that was written with
    few digits; a reflection stays one, for the caller to refuse."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def scale_cam2img(cam2img: Array, scale_x: float, scale_y: float) -> Array:
    """Intrinsics after an image is resized by ``(scale_x, scale_y)``."""
    _check_matrices('cam2img', cam2img)
    return _like(np.diag([scale_x, scale_y, 1., 1.]), cam2img) @ cam2img


def slice_camera(corner: np.ndarray, column: np.ndarray, row: np.ndarray,
                 thickness: float) -> Tuple[np.ndarray, np.ndarray]:
    """A CT slice as a view: parallel rays along the slice's normal.

    ``ct2cam`` has its origin in the image's first corner, x along the columns,
    y down the rows and z off the middle of the slice (mm). The third row of
    ``cam2img`` is 0 0 0 1: every point has depth 1, so :func:`project` gives
    what it lies over, and :func:`unproject` of pixels with depth 1 gives
    their places in the slice. The fourth row has 1 in the middle of the slice
    and 0 and 2 at its faces, and so tells what the slice shows, see
    :func:`project_boxes`.

    Args:
        corner: (3,) first corner of the first pixel, in the middle of the
            slice (mm).
        column: (3,) step from a pixel to that in the next column (mm).
        row: (3,) step from a pixel to that in the next row (mm), square to
            ``column``.
        thickness: Of the slice (mm).

    Returns:
        tuple: ``cam2img`` and ``ct2cam``, (4, 4).
    """
    pitch = np.linalg.norm([column, row], axis=1)
    x, y = column / pitch[0], row / pitch[1]
    ct2cam = np.eye(4)
    ct2cam[:3, :3] = x, y, np.cross(x, y)
    ct2cam[:3, 3] = -ct2cam[:3, :3] @ corner
    cam2img = np.array([[1 / pitch[0], 0, 0, 0], [0, 1 / pitch[1], 0, 0],
                        [0, 0, 0, 1], [0, 0, 2 / thickness, 1]],
                       dtype=np.float64)
    return cam2img, ct2cam


def are_slices(ct2img: Array) -> bool:
    """Whether views (V, 4, 4) are slices, see :func:`slice_camera`, and there
    are any."""
    return len(ct2img) > 0 and bool((ct2img[:, 2, :3] == 0).all()
                                    and (ct2img[:, 2, 3] == 1).all())


def slice_normal(ct2img: np.ndarray) -> np.ndarray:
    """Unit normal (3,) of a slice (4, 4)."""
    return ct2img[3, :3] / np.linalg.norm(ct2img[3, :3])


def slice_places(ct2img: np.ndarray) -> Tuple[np.ndarray, float]:
    """Where parallel slices (S, 4, 4) of one thickness lie along their
    normal, (S,) (mm), and how thick they are (mm)."""
    scale = float(np.linalg.norm(ct2img[0, 3, :3]))
    return -(ct2img[:, 3, 3] - 1) / scale, 2 / scale


def slice_offsets(points: Array, ct2img: Array) -> Array:
    """How far points (*, N, 3) (mm) are off the middle of slices (*, 4, 4),
    in halves of their thickness, signed, (*, N): within -1 to 1 they are
    in it. 0 for views of a source."""
    _check_last('points', points, 3)
    _check_matrices('ct2img', ct2img)
    return (points @ ct2img[..., 3, :3, None])[..., 0] + (
        ct2img[..., 3, 3:] - 1)


def pixel_sizes(cam2img: np.ndarray, ct2cam: np.ndarray) -> np.ndarray:
    """Shorter edges of the pixels of views (*, 4, 4) at the isocentre's depth
    (mm), (*,)."""
    focal = np.maximum(cam2img[..., 0, 0], cam2img[..., 1, 1])
    return np.abs(ct2cam[..., 2, 3]) / focal


def focal_lengths(ct2img: Array) -> Array:
    """Geometric mean of both focal lengths (px) of cameras (*, 4, 4).

    A rotation leaves the determinant of ``cam2img`` as it is, their product.
    """
    matrix = ct2img[..., :3, :3]
    det = matrix.det() if _is_tensor(matrix) else np.linalg.det(matrix)
    return abs(det)**.5


def mirror_view(cam2img: Array, ct2cam: Array,
                width: float) -> Tuple[Array, Array]:
    """Camera that sees the world mirrored in x when its image is flipped.

    With the image flipped left-right (``u -> W - u``) and every world point
    ``(x, y, z)`` moved to ``(-x, y, z)``, the returned pair projects as the
    old pair did. The pose stays a proper rotation.

    Args:
        cam2img: (*, 4, 4).
        ct2cam: (*, 4, 4).
        width (float): Image width (px).

    Returns:
        tuple: new ``cam2img`` and ``ct2cam``.
    """
    _check_matrices('cam2img', cam2img)
    _check_matrices('ct2cam', ct2cam)
    mirror = np.diag([-1., 1., 1., 1.])
    mirror_image = mirror.copy()
    mirror_image[0, 2] = width
    flip, flip_image = _like(mirror, ct2cam), _like(mirror_image, cam2img)
    return flip_image @ cam2img @ flip, flip @ ct2cam @ flip


def roi_intrinsics(cam2img: Array, rois: Array, size: int) -> Array:
    """Equivalent intrinsics of RoIs cropped and resized to ``size``².

    MV2D (arXiv 2301.02364) §3.2: the crop moves the principal point and the
    resize scales both rows.

    Args:
        cam2img: (R, 4, 4), the camera of each RoI.
        rois: (R, 4) xyxy (px).
        size (int): Side of the resized RoI (px).

    Returns:
        Array: (R, 4, 4).
    """
    _check_matrices('cam2img', cam2img)
    _check_last('rois', rois, 4)
    out = cam2img * 1
    for row, (low, high) in enumerate(((0, 2), (1, 3))):
        length = (rois[..., high] - rois[..., low]).clip(1e-3)
        out[..., row, 2] = out[..., row, 2] - rois[..., low]
        out[..., row, :] = out[..., row, :] * (size / length)[..., None]
    return out


# ----------------------------------------------------------------- projection
def project(points: Array, ct2img: Array) -> Tuple[Array, Array]:
    """Project world points.

    Args:
        points: (*, N, 3) world points (mm).
        ct2img: (*, 4, 4); leading dimensions broadcast against those of
            ``points``, so (N, 3) with (V, 4, 4) gives every view.

    Returns:
        tuple: ``uv`` (*, N, 2) (px) and ``depth`` (*, N) (mm). Points at or
        behind the source have depth <= 0 and their ``uv`` means nothing.
    """
    _check_last('points', points, 3)
    _check_matrices('ct2img', ct2img)
    homogeneous = (
        points @ _transpose(ct2img[..., :3, :3]) +
        _transpose(ct2img[..., :3, 3:]))
    depth = homogeneous[..., 2]
    safe = depth + (abs(depth) < 1e-6) * 1e-6
    return homogeneous[..., :2] / safe[..., None], depth


def project_rows(points: Array, ct2img: Array) -> Tuple[Array, Array]:
    """As :func:`project`, with u and v as rows: an ONNX graph is slow where
    the last axis is short.

    Args:
        points: (N, 3) world points (mm).
        ct2img: (V, 4, 4).

    Returns:
        tuple: ``uv`` (V, 2, N) (px) and ``depth`` (V, N) (mm).
    """
    rows = ct2img[:, :3, :3] @ points.T + ct2img[:, :3, 3:]
    depth = rows[:, 2:]
    safe = depth + (abs(depth) < 1e-6) * 1e-6
    return rows[:, :2] / safe, depth[:, 0]


def image_derivative(point: np.ndarray, ct2img: np.ndarray) -> np.ndarray:
    """How a point's image moves with the point (3,) (mm): (2, 3) (px/mm)."""
    uv, depth = project(point[None], ct2img)
    return (ct2img[:2, :3] - uv[0][:, None] * ct2img[2, :3]) / depth


def unproject(uv: Array, depth: Array, ct2img: Array) -> Array:
    """Inverse of :func:`project`.

    Args:
        uv: (*, N, 2) (px).
        depth: (*, N) (mm).
        ct2img: (*, 4, 4).

    Returns:
        Array: (*, N, 3) world points (mm).
    """
    _check_last('uv', uv, 2)
    _check_matrices('ct2img', ct2img)
    homogeneous = stack(
        (uv[..., 0] * depth, uv[..., 1] * depth, depth))
    img2ct = _inverse(ct2img)
    return (
        homogeneous @ _transpose(img2ct[..., :3, :3]) +
        _transpose(img2ct[..., :3, 3:]))


def camera_centres(ct2img: Array) -> Array:
    """Source positions in the world, (*, 3) (mm)."""
    _check_matrices('ct2img', ct2img)
    return _inverse(ct2img)[..., :3, 3]


def rays(uv: Array, ct2img: Array) -> Tuple[Array, Array]:
    """Rays through pixels: source (*, 1, 3) (mm), units (*, N, 3)."""
    origins = camera_centres(ct2img)[..., None, :]
    directions = unproject(uv, uv[..., 0] * 0 + 1, ct2img) - origins
    norm = (directions**2).sum(-1)[..., None]**.5
    return origins, directions / norm


def triangulate(uv: Array, ct2img: Array, weights: Array | None = None
                ) -> Array:
    """Least-squares intersection of one ray per view.

    Args:
        uv: (V, N, 2) where view v sees point n (px).
        ct2img: (V, 4, 4).
        weights: (V, N) non-negative weights; 0 leaves a view out. Defaults
            to 1 everywhere.

    Returns:
        Array: (N, 3) world points (mm); NaN where the weighted rays do not
        fix a point (none are more than a tenth of a degree apart).
    """
    origins, directions = rays(uv, ct2img)
    if weights is None:
        weights = uv[..., 0] * 0 + 1
    eye = _like(np.eye(3), uv)
    # I - d d^T projects onto the plane normal to each ray.
    normal = eye - directions[..., :, None] * directions[..., None, :]
    normal = normal * weights[..., None, None]
    lhs = normal.sum(0)
    rhs = (normal @ origins[..., None])[..., 0].sum(0)
    scale = weights.sum(0).clip(1e-12)
    scaled = lhs / scale[..., None, None]
    det = scaled.det() if _is_tensor(scaled) else np.linalg.det(scaled)
    good = det > 1e-6
    lhs = lhs + (~good)[..., None, None] * eye
    solution = (_inverse(lhs) @ rhs[..., None])[..., 0]
    solution[~good] = float('nan')
    return solution


def reprojection_errors(points: np.ndarray, uv: np.ndarray,
                        ct2img: np.ndarray) -> np.ndarray:
    """How far points are seen from where a camera projects them.

    Args:
        points: (N, 3) world points (mm).
        uv: (N, 2) where they are seen (px).
        ct2img: (4, 4).

    Returns:
        np.ndarray: (N, 2), seen less projected (px); infinite for points at
        or behind the source.
    """
    expected, depth = project(points, ct2img)
    return np.where(depth[:, None] > 0, uv - expected, np.inf)


# ------------------------------------------------------------ epipolar planes
def epipolar_planes(sources: np.ndarray, others: np.ndarray,
                    angles: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Planes through the sources of two views.

    Args:
        sources, others: (P, 3) of P pairs of views (mm).
        angles: (P, K) about the line through both (rad).
        towards: (P, 3) direction that lies in the plane of angle 0, but for
            its share along that line.

    Returns:
        np.ndarray: Unit normals (P, K, 3); NaN where both sources are at one
        place.
    """
    line = others - sources
    length = np.linalg.norm(line, axis=-1, keepdims=True)
    line = np.where(length > 1e-6, line, np.nan) / length.clip(1e-6)
    first = towards - (towards * line).sum(-1, keepdims=True) * line
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = np.cross(line, first)
    return (np.cos(angles)[..., None] * second[..., None, :]
            - np.sin(angles)[..., None] * first[..., None, :])


def plane_traces(normals: np.ndarray, ct2img: np.ndarray) -> np.ndarray:
    """Lines in which planes through a view's source meet its detector.

    Args:
        normals: (*, K, 3).
        ct2img: (*, 4, 4).

    Returns:
        np.ndarray: (*, K, 3), ``a u + b v + c = 0`` (px). The sum is also the
        normal's product with the ray through (u, v) whose depth is 1 (mm).
    """
    _check_last('normals', normals, 3)
    _check_matrices('ct2img', ct2img)
    return normals @ _inverse(ct2img[..., :3, :3])


def epipolar_distances(uv: np.ndarray, ct2img: np.ndarray,
                       others: np.ndarray, other2img: np.ndarray
                       ) -> np.ndarray:
    """How far places in another view are from the lines on which what is seen
    at places in one view must lie.

    Args:
        uv: (N, 2) in the one view (px).
        ct2img: (4, 4) of it.
        others: (M, 2) in the other view (px).
        other2img: (4, 4) of it.

    Returns:
        np.ndarray: (N, M) (px); infinite where both sources are at one place,
        and no place is told from another.
    """
    sources = [camera_centres(matrix) for matrix in (ct2img, other2img)]
    normals = np.cross(rays(uv, ct2img)[1], sources[1] - sources[0])
    lines = plane_traces(normals, other2img)
    length = np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    apart = np.abs(lines[:, :2] @ others.T + lines[:, 2:])
    return np.where(length > 1e-9 * np.abs(lines).max(initial=0.),
                    apart / length.clip(1e-300), np.inf)


# ---------------------------------------------------------------------- boxes
def box_corners(boxes: Array) -> Array:
    """Corners of axis-aligned boxes.

    Args:
        boxes: (*, 6 or more) ``[x, y, z, dx, dy, dz, ...]`` (mm).

    Returns:
        Array: (*, 8, 3) (mm).
    """
    signs = _like([[x, y, z] for x in (-.5, .5) for y in (-.5, .5)
                   for z in (-.5, .5)], boxes)
    return boxes[..., None, :3] + signs * boxes[..., None, 3:6]


def project_boxes(boxes: Array, ct2img: Array) -> Tuple[Array, Array]:
    """Bounding rectangles of projected 3D boxes.

    Args:
        boxes: (R, 6 or more) (mm).
        ct2img: (V, 4, 4).

    Returns:
        tuple: xyxy (V, R, 4) (px, not clipped) and the depth of the boxes'
        centres (V, R) (mm). A box that a view does not show has depth <= 0:
        one with a corner at or behind the source, or that a slice does not
        cut.
    """
    corners = box_corners(boxes)
    uv, depth = project(corners.reshape(-1, 3), ct2img)
    uv = uv.reshape(*uv.shape[:-2], len(boxes), 8, 2)
    depth = depth.reshape(*depth.shape[:-1], len(boxes), 8)
    # Off a slice, in halves of its thickness; 0 of all that a source sees.
    off = slice_offsets(corners, ct2img[:, None])
    behind = ((depth <= 0).any(-1) | (off >= 1 - 1e-4).all(-1)
              | (off <= 1e-4 - 1).all(-1))
    centre = depth.mean(-1)
    if _is_tensor(uv):
        import torch
        rect = torch.cat([uv.amin(-2), uv.amax(-2)], -1)
    else:
        rect = np.concatenate([uv.min(-2), uv.max(-2)], -1)
    return rect, centre * ~behind + (behind * -1.)


def transform_boxes(boxes: Array, matrix: Array) -> Array:
    """Move axis-aligned boxes by a rotation or reflection about the origin.

    The result is axis-aligned again: sizes are those of the ellipsoid
    inscribed in the box after the motion, ``dx'^2 = sum_j (R_xj d_j)^2``. That
    is exact for multiples of 90° and for mirrors, and the natural reading for
    roundish indications otherwise (a rotated box's hull would grow).

    Args:
        boxes: (R, 7) (mm).
        matrix: (4, 4) or (3, 3) orthogonal.

    Returns:
        Array: (R, 7).
    """
    _check_last('boxes', boxes, 7)
    rotation = _like(matrix, boxes)[:3, :3]
    out = boxes * 1
    out[..., :3] = boxes[..., :3] @ rotation.T
    out[..., 3:6] = (boxes[..., 3:6]**2 @ (rotation.T**2))**.5
    return out


# ---------------------------------------------------------------- scene, depth
def clamp_points(points: Array, scene_range: Sequence[float]) -> Array:
    """Points (N, 3) (mm) moved to the nearest place in the scene box."""
    scene = _like(scene_range, points)
    return points.clip(scene[:3], scene[3:])


def normalise_points(points: Array, scene_range: Sequence[float]) -> Array:
    """World points (*, 3) (mm) to [0, 1] of the scene box.

    Args:
        points: (*, 3).
        scene_range: ``[x0, y0, z0, x1, y1, z1]`` (mm).
    """
    scene = _like(scene_range, points)
    return (points - scene[:3]) / (scene[3:] - scene[:3])


def denormalise_points(points: Array, scene_range: Sequence[float]) -> Array:
    """Inverse of :func:`normalise_points`."""
    scene = _like(scene_range, points)
    return points * (scene[3:] - scene[:3]) + scene[:3]


def depth_bounds(ct2cam: Array,
                 scene_range: Sequence[float],
                 minimum: float = 1.) -> Array:
    """Nearest and farthest depth of the scene box in each view.

    Args:
        ct2cam: (V, 4, 4), or ``ct2img``: both have depth in their third row.
        scene_range: ``[x0, y0, z0, x1, y1, z1]`` (mm).
        minimum (float): Lower bound (mm), for sources inside the scene box.

    Returns:
        Array: (V, 2) (mm).
    """
    scene = np.asarray(scene_range, dtype=np.float64)
    box = np.concatenate([(scene[:3] + scene[3:]) / 2, scene[3:] - scene[:3]])
    corners = _like(box_corners(box), ct2cam)
    depth = corners @ ct2cam[..., 2, :3, None] + ct2cam[..., 2, 3:, None]
    depth = depth[..., 0].clip(minimum)
    if _is_tensor(ct2cam):
        import torch
        return torch.stack([depth.amin(-1), depth.amax(-1)], -1)
    return np.stack([depth.min(-1), depth.max(-1)], -1)


def frustum_points(height: int, width: int, stride: float,
                   ct2img: 'torch.Tensor', bounds: 'torch.Tensor',
                   num_depths: int) -> 'torch.Tensor':
    """World points along the rays of a feature map's cells.

    PETR (arXiv 2203.05625) §3.2, with depths spaced uniformly between each
    view's bounds, since the scene is as deep as it is wide.

    Args:
        height, width (int): Size of the feature map (cells).
        stride (float): Pixels per cell.
        ct2img: (V, 4, 4) torch tensor.
        bounds: (V, 2) nearest and farthest depth (mm).
        num_depths (int): D.

    Returns:
        torch.Tensor: (V, height, width, D, 3) (mm).
    """
    import torch
    ys = (torch.arange(height, device=ct2img.device) + .5) * stride
    xs = (torch.arange(width, device=ct2img.device) + .5) * stride
    v, u = torch.meshgrid(ys, xs, indexing='ij')
    uv = torch.stack([u, v], -1).to(ct2img).reshape(1, -1, 1, 2)
    steps = torch.linspace(0, 1, num_depths).to(ct2img)
    depth = bounds[:, :1] + steps * (bounds[:, 1:] - bounds[:, :1])
    views = len(ct2img)
    cells = height * width
    uv = uv.expand(views, -1, num_depths, 2).reshape(views, cells * num_depths,
                                                     2)
    depth = depth[:, None].expand(-1, cells, -1).reshape(views,
                                                         cells * num_depths)
    return unproject(uv, depth, ct2img).reshape(views, height, width,
                                                num_depths, 3)
