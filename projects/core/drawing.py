"""Pictures of what was found, for people; drawn without a screen."""

from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Dict,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from projects.core import geometry
from projects.core.files import atomic_write
from projects.core.rig import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    'STYLES', 'STYLE_2D', 'draw_beads', 'draw_image', 'draw_images',
    'draw_rect', 'draw_refinement', 'draw_scans', 'draw_view', 'draw_views',
    'line_of', 'middle_channel', 'save', 'shown_views', 'subplots'
]

# Colour and line style both tell the kinds apart.
STYLES = {
    'ground truth': dict(edgecolor='#35d461', linestyle='-'),
    'ignored': dict(edgecolor='#9aa0a6', linestyle=':'),
    'prediction': dict(edgecolor='#ff5a4f', linestyle='--'),
}
STYLE_2D = dict(edgecolor='#ffd166', linestyle='-.')
_SILHOUETTE = '#4cc9f0'
MAX_SLICES = 10  # of a scan, that are drawn


def subplots(rows: int, columns: int, width: float,
             height: float) -> Tuple['Figure', np.ndarray]:
    """A figure (inches) that needs no screen, and its axes (rows,
    columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: 'Figure', out_file: Union[str, Path]) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(out_file) as stream:
        figure.savefig(stream, format='png', dpi=100)


def draw_views(images: np.ndarray,
               ct2img: np.ndarray,
               out_file: Optional[Union[str, Path]] = None,
               title: str = '',
               names: Optional[Sequence[str]] = None,
               scores: Optional[np.ndarray] = None,
               **boxes: np.ndarray) -> 'Figure':
    """Draw 3D boxes over every view of a scan.

    Args:
        images (np.ndarray): (V, H, W), any grey values.
        ct2img (np.ndarray): (V, 4, 4).
        out_file (str | Path, optional): PNG to write.
        title (str): Above the views.
        names (Sequence[str], optional): V names of the views.
        scores (np.ndarray, optional): (N,) of ``prediction``.
        **boxes: ``ground_truth``, ``ignored`` and ``prediction``, each (N, 7)
            (mm).

    Returns:
        Figure: What was drawn.
    """
    count = len(images)
    columns = min(count, 5)
    rows = -(-count // columns)
    figure, axes = subplots(rows, columns, 3.2 * columns, 3.2 * rows + .8)
    axes = axes.ravel()
    for axis in axes:
        axis.axis('off')
    for view, (axis, image) in enumerate(zip(axes, images)):
        draw_view(axis, image, ct2img[view],
                  names[view] if names else f'view {view}', boxes, scores)
    handles = [
        line_of(s, f'{kind} ({len(boxes.get(kind.replace(" ", "_"), ()))})')
        for kind, s in STYLES.items()
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=3,
                  frameon=False)
    figure.suptitle(title)
    if out_file:
        save(figure, out_file)
    return figure


def draw_view(axis, image: np.ndarray, ct2img: np.ndarray, title: str,
              boxes: Dict[str, np.ndarray],
              scores: Optional[np.ndarray] = None) -> None:
    """One view and the rectangles round its projected boxes."""
    draw_image(axis, image, title)
    for kind, style in STYLES.items():
        these = boxes.get(kind.replace(' ', '_'))
        if these is None or len(these) == 0:
            continue
        rects, depth = geometry.project_boxes(
            np.asarray(these, dtype=np.float64), ct2img[None])
        for i, rect in enumerate(rects[0]):
            if depth[0, i] <= 0:
                continue
            draw_rect(axis, rect, style)
            if kind == 'prediction' and scores is not None:
                axis.text(rect[2], rect[1], f'{scores[i]:.2f}', fontsize=7,
                          color=style['edgecolor'], va='bottom',
                          clip_on=True)


def shown_views(ct2img: np.ndarray, boxes: np.ndarray,
                most: int = MAX_SLICES) -> List[int]:
    """Rows of those of a scan's images that a person wants to see: all views;
    of slices those nearest to the centres of boxes.

    Args:
        ct2img: (V, 4, 4).
        boxes: (N, 7) (mm), what matters most first.
        most: Slices at most.

    Returns:
        list[int]: In their order. Without any box that of the slice in the
        middle.
    """
    if not geometry.are_slices(ct2img):
        return list(range(len(ct2img)))
    kept: List[int] = []
    for centre in np.asarray(boxes, dtype=np.float64).reshape(-1, 7)[:, :3]:
        off = geometry.slice_offsets(centre[None], np.asarray(ct2img))
        near = int(np.abs(off[:, 0]).argmin())
        if near not in kept and len(kept) < most:
            kept.append(near)
    return sorted(kept or [len(ct2img) // 2])


def draw_image(axis, image: np.ndarray, title: str) -> None:
    """One view or slice, in px."""
    axis.axis('off')
    image = middle_channel(image)
    low, high = np.percentile(image, [1, 99.8])
    axis.imshow(image, cmap='gray', vmin=low, vmax=max(high, low + 1e-6),
                extent=(0, image.shape[1], image.shape[0], 0))
    axis.set_title(title, fontsize=9)
    axis.set_xlim(0, image.shape[1])
    axis.set_ylim(image.shape[0], 0)


def middle_channel(image: np.ndarray) -> np.ndarray:
    """Of an image (H, W) or (H, W, C): a slice is between its neighbours."""
    return image if image.ndim == 2 else image[..., image.shape[2] // 2]


def draw_rect(axis, rect: np.ndarray, style: dict,
              linewidth: float = 1.2) -> None:
    """A box ``[x1, y1, x2, y2]`` (px)."""
    from matplotlib.patches import Rectangle
    x1, y1, x2, y2 = rect
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False,
                             linewidth=linewidth, **style))


def line_of(style: dict, label: str) -> 'Line2D':
    """A line of a legend."""
    from matplotlib.lines import Line2D
    style = dict(style)
    style['color'] = style.pop('edgecolor', style.get('color'))
    return Line2D([], [], label=label, **style)


def draw_images(images: Sequence[dict],
                out_file: Optional[Union[str, Path]] = None) -> 'Figure':
    """Draw images side by side, each with 2D boxes of its own.

    Args:
        images: At least one, each with ``title``, ``image`` (H, W) and boxes
            (N, 4) xyxy (px) ``ground_truth``, ``ignored`` and ``prediction``,
            and the ``scores`` (N,) of the last.
        out_file (str | Path, optional): PNG to write.
    """
    figure, axes = subplots(1, len(images), 3.2 * len(images), 3.8)
    for axis, item in zip(axes[0], images):
        draw_image(axis, item['image'], item['title'])
        for kind, style in STYLES.items():
            for row, rect in enumerate(item[kind.replace(' ', '_')]):
                draw_rect(axis, rect, style)
                if kind == 'prediction':
                    axis.text(rect[2], rect[1], f'{item["scores"][row]:.2f}',
                              fontsize=7, color=style['edgecolor'],
                              va='bottom', clip_on=True)
    figure.legend(
        handles=[line_of(style, kind) for kind, style in STYLES.items()],
        loc='outside lower center', ncols=3, frameon=False)
    if out_file:
        save(figure, out_file)
    return figure


def draw_scans(scans: List[dict], out_file: Union[str, Path]) -> None:
    """Draw a sheet: a row of views for each scan, with 3D and 2D boxes.

    Args:
        scans (list[dict]): Each with ``title``, ``names``, ``images`` and
            ``ct2img`` as for :func:`draw_views`, and what there is of
            ``ground_truth``, ``ignored`` and ``prediction`` (N, 7) (mm),
            ``boxes_2d`` (per view (N, 4) xyxy, px), ``heat`` (V, H, W, not
            negative) and ``masks`` (V, H, W, outlined).
        out_file (str | Path): PNG to write.
    """
    columns = max(len(scan['images']) for scan in scans)
    figure, axes = subplots(len(scans), columns, 2.4 * columns,
                            2.7 * len(scans) + .5)
    for row, scan in zip(axes, scans):
        for axis in row:
            axis.axis('off')
        for view, (axis, image) in enumerate(zip(row, scan['images'])):
            name = scan['names'][view]
            draw_view(axis, image, scan['ct2img'][view],
                      f'{scan["title"]}, {name}' if view == 0 else name,
                      scan)
            for rect in scan['boxes_2d'][view] if 'boxes_2d' in scan else ():
                draw_rect(axis, rect, STYLE_2D)
            size = (0, image.shape[1], image.shape[0], 0)
            if 'heat' in scan:
                strength = scan['heat'][view] / max(scan['heat'].max(), 1e-12)
                axis.imshow(strength, cmap='inferno', extent=size, vmin=0,
                            vmax=1, alpha=.8 * strength**.5)
            if 'masks' in scan and scan['masks'][view].any():
                axis.contour(scan['masks'][view], [.5], extent=size,
                             origin='upper', colors=_SILHOUETTE, linewidths=.9)
    known = {'ground_truth': ('3D box, projected', STYLES['ground truth']),
             'ignored': ('3D box that does not count', STYLES['ignored']),
             'prediction': ('box that was found', STYLES['prediction']),
             'boxes_2d': ('2D box', STYLE_2D),
             'masks': ('outline', dict(edgecolor=_SILHOUETTE, linestyle='-'))}
    styles = [style for key, style in known.items()
              if any(key in scan for scan in scans)]
    figure.legend(
        handles=[line_of(style, label) for label, style in styles],
        loc='outside lower center', ncols=max(len(styles), 1), frameon=False)
    save(figure, out_file)


def draw_beads(views: Sequence[View], seen: Sequence[np.ndarray],
               offsets: Sequence[np.ndarray], used: Sequence[np.ndarray],
               out_file: Path,
               images: Optional[Sequence[np.ndarray]] = None) -> None:
    """Draw where a phantom's beads are seen in each view, and how far off.

    Args:
        views: With names and sizes.
        seen: Of each view (N, 2) (px).
        offsets: Of each view (N, 2), seen less projected (px): drawn many
            times longer, those of beads that were not used as they are.
        used: Of each view (N,), the beads that the views were fitted to.
        out_file: PNG.
        images: Of each view (H, W), what the beads were found in.
    """
    columns = min(len(views), 5)
    rows = -(-len(views) // columns)
    figure, grid = subplots(rows, columns, 3. * columns, 3.2 * rows + .5)
    axes = grid.ravel()
    longest = max(np.linalg.norm(o[k], axis=1).max(initial=0)
                  for o, k in zip(offsets, used))
    factor = 10.**np.floor(np.log10(
        .1 * max(v.width for v in views) / max(longest, 1e-6)))
    for axis in axes[len(views):]:
        axis.set_axis_off()
    for row, (axis, view, uv, off, kept) in enumerate(zip(
            axes, views, seen, offsets, used)):
        if images is not None:
            low, high = np.percentile(images[row], (1, 99.9))
            axis.imshow(images[row], 'gray', vmin=low, vmax=high,
                        extent=(0, view.width, view.height, 0))
        if images is None:
            axis.plot(*uv[kept].T, '.', color='C0', markersize=3)
        else:  # rings, through which the beads are seen
            axis.plot(*uv[kept].T, 'o', color='C0', markersize=5,
                      fillstyle='none', markeredgewidth=.7)
        axis.plot(*uv[~kept].T, 'x', color='red', markersize=5)
        for point, move in zip(uv[kept], off[kept]):
            axis.plot(*np.stack([point, point + factor * move], 1),
                      color='C0', linewidth=1)
        for point, move in zip(uv[~kept], off[~kept]):
            axis.plot(*np.stack([point - move, point], 1), color='red',
                      linewidth=.7)
        axis.set(xlim=(0, view.width), ylim=(view.height, 0), aspect='equal',
                 xticks=[], yticks=[])
        rms = np.sqrt((off[kept]**2).sum(1).mean())
        axis.set_title(f'{view.name}: rms {rms:.2f} px', fontsize=8)
    figure.suptitle(f'Beads; residuals {factor:g} times as long; red: left '
                    'out, from where they should be', fontsize=10)
    save(figure, out_file)


def draw_refinement(objects: Sequence[Sequence[tuple]],
                    helped: Sequence[bool], out_file: Path,
                    errors: str = 'epipolar error') -> None:
    """Draw how well the views of objects agree, before and after their poses
    were refined, and how far these were moved.

    Args:
        objects: Of each object its views: name, error before and after, and
            how far the image was moved (px).
        helped: Of each object, whether its poses were changed.
        out_file: PNG.
        errors: What the errors are.
    """
    names = list(dict.fromkeys(view[0] for views in objects
                               for view in views))
    figure, grid = subplots(1, 2, 11., 3.8)
    panels = (((1, 'before', -.15, 'C3'), (2, 'after', .15, 'C0')),
              ((3, 'moved', 0., 'C0'), ))
    for axis, kinds in zip(grid[0], panels):
        for column, label, aside, color in kinds:
            for views, changed in zip(objects, helped):
                axis.plot([names.index(view[0]) + aside for view in views],
                          [view[column] for view in views], 'o',
                          color=color, markersize=4, alpha=.7,
                          fillstyle='full' if changed else 'none')
            middle = [np.median([view[column] for views in objects
                                 for view in views if view[0] == name])
                      for name in names]
            axis.plot(np.arange(len(names)) + aside, middle, '_',
                      color=color, markersize=14, label=f'{label}: median')
        axis.set_xticks(range(len(names)), names, rotation=45, ha='right',
                        fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(axis='y', alpha=.3)
        axis.legend(fontsize=8)
    grid[0, 0].set_ylabel(errors)
    grid[0, 1].set_ylabel('image moved by (px)')
    figure.suptitle(f'{sum(helped)} of {len(objects)} objects refined (full '
                    'dots); a dot is a view of an object', fontsize=10)
    save(figure, out_file)
