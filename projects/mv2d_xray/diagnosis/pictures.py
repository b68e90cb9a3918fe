"""Pictures of what the stages of a model made of a scan."""

import textwrap
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from projects.core.drawing import (
    STYLE_2D,
    STYLES,
    draw_image,
    draw_rect,
    draw_view,
    line_of,
    save,
    subplots,
)

__all__ = [
    'draw_attention', 'draw_boxes_2d', 'draw_features', 'draw_finding',
    'draw_findings', 'draw_queries', 'draw_volume'
]

_STYLE_PROPOSAL = dict(edgecolor='#5ec8ff', linestyle=(0, (1, 1)))
_STYLE_ROI = dict(edgecolor='#ffd166', linestyle='-')
_STYLE_PEAK = dict(color='#c9a0ff', marker='+', linestyle='none')
_OUTLINE = [withStroke(linewidth=1.2, foreground='black')]
_PLANES = (('x', 'y', 'from the head'), ('x', 'z', 'from the front'),
           ('y', 'z', 'from the side'))
_NEAR = 30.  # mm round a finding that are enlarged
_MOST_FINDINGS = 5  # that are enlarged
_MOST_QUERIES = 12  # whose RoIs are drawn


def _wrapped(title: str, width: float) -> str:
    """A title in lines that fit a figure's width (inches)."""
    return '\n'.join(part for line in title.split('\n')
                     for part in textwrap.wrap(line, int(11 * width)))


def draw_findings(findings: List[dict], limits: dict, few: float,
                  out_file: Union[str, Path]) -> None:
    """What is missed in a set: by size, by place, by what the stages say.

    Args:
        findings (list[dict]): From :func:`~.verdicts.diagnose`.
        limits (dict): From there, too.
        few (float): Stronger places of a view up to which it shows a finding.
        out_file (str | Path): PNG to write.
    """
    figure, ((left, middle, right), ) = subplots(1, 3, 13, 4)
    hit = np.array([f['verdict'] == 'found' for f in findings], dtype=bool)
    diameter = np.array([f['diameter'] for f in findings])
    centre = np.array([f['bbox_3d'][:3] for f in findings]).reshape(-1, 3)
    bins = [3, 5, 8, 12, 20, 40]
    which = np.digitize(diameter, bins)
    places = [b for b in range(len(bins) + 1) if (which == b).any()]
    names = [f'< {bins[0]}'] + [f'{a} to {b}' for a, b in zip(
        bins, bins[1:])] + [f'> {bins[-1]}']
    left.bar([names[b] for b in places],
             [hit[which == b].mean() for b in places], color='#4477aa')
    for x, b in enumerate(places):
        left.annotate(str((which == b).sum()), (x, .02), ha='center',
                      color='w')
    left.set(xlabel='diameter (mm)', ylabel='found', ylim=(0, 1),
             title='By size (number in the bar)')
    values, label, limit, scale = _what_stages_say(findings, limits, few)
    for mask, marker, colour, kind in ((hit, 'o', '#228833', 'found'),
                                       (~hit, 'x', '#ee6677', 'missed')):
        middle.scatter(centre[mask, 0], centre[mask, 2], 4 * diameter[mask],
                       marker=marker, color=colour, label=kind)
        right.scatter(diameter[mask], values[mask], marker=marker,
                      color=colour)
    middle.set(xlabel='x, to the right (mm)', ylabel='z, to the head (mm)',
               title='By place', aspect='equal')
    middle.legend()
    right.axhline(limit, color='grey', linestyle=':')
    right.set(xscale='log', yscale=scale, xlabel='diameter (mm)',
              ylabel=label, title='By what the stages say')
    right.set_xticks(bins, [str(b) for b in bins])
    right.set_xticks([], minor=True)
    save(figure, out_file)


def _what_stages_say(findings: List[dict], limits: dict,
                     few: float) -> Tuple[np.ndarray, str, float, str]:
    """A number for each finding, its label, limit and scale: of the first
    stage that the model has."""
    kinds = {
        'peaks_2d': (lambda f: 1 + f['peaks_2d'],
                     '1 + stronger 2D peaks (median of views)', 1 + few,
                     'log'),
        'detected': (lambda f: f['detected'] / max(f['views'], 1),
                     'share of the views that detect it', .5, 'linear'),
        'peaks_3d': (lambda f: 1 + f['peaks_3d'], '1 + stronger 3D peaks',
                     1 + limits['peaks'], 'log'),
        'distances': (lambda f: min(f['distances'][-1:], default=np.nan),
                      'nearest query in the end (mm)', limits['hit'],
                      'linear'),
    }
    has = findings[0] if findings else dict(distances=[])
    key = next(k for k in kinds if k in has)
    value, label, limit, scale = kinds[key]
    return (np.array([value(f) for f in findings], dtype=float), label,
            limit, scale)


def draw_boxes_2d(views: List[dict], out_file: Union[str, Path], title: str,
                  prediction: np.ndarray, scores: np.ndarray) -> None:
    """Draw what the 2D stage makes of some views.

    Args:
        views (list[dict]): Each with ``name``, ``image`` (H, W), ``ct2img``
            (4, 4), ``truth`` and ``ignored`` (N, 4) xyxy (px) and
            ``numbers`` (N,) of the findings; perhaps ``proposals`` (M, 4)
            with ``recall`` by name, ``detections`` (K, 4) with ``scores``,
            and ``peaks`` (P, 2) of a 2D heatmap (px).
        out_file (str | Path): PNG to write.
        title (str): Above the views.
        prediction (np.ndarray): (M, 7) 3D boxes (mm), projected.
        scores (np.ndarray): (M,).
    """
    columns = min(len(views), 5 if len(views) > 4 else 2)
    rows = -(-len(views) // columns)
    side = 4. if columns > 2 else 7.
    title = _wrapped(title, side * columns)
    figure, axes = subplots(rows, columns, side * columns, (side + .3) *
                            rows + .25 * title.count('\n') + 1.2)
    for axis in axes.ravel():
        axis.axis('off')
    for axis, view in zip(axes.ravel(), views):
        name = view['name']
        if 'recall' in view and len(view['truth']):
            count, iou = len(view['truth']), 'at IoU 0.5'
            told = [f'{round(count * value)} ({key.removesuffix(iou)[:-1]})'
                    for key, value in view['recall'].items()
                    if key.endswith(iou)]
            name += f': proposed of {count}: {", ".join(told)}'
        draw_view(axis, view['image'], view['ct2img'], name,
                  dict(prediction=prediction), scores)
        for rect in view.get('proposals', ()):
            draw_rect(axis, rect, _STYLE_PROPOSAL, .9)
        for rect, score in zip(view.get('detections', ()),
                               view.get('scores', ())):
            draw_rect(axis, rect, STYLE_2D)
            axis.text(rect[0], rect[3], f'{score:.2f}', fontsize=7,
                      color=STYLE_2D['edgecolor'], va='top', ha='right',
                      clip_on=True)
        if len(view.get('peaks', ())):
            axis.plot(*view['peaks'].T, markersize=6, **_STYLE_PEAK)
        _draw_true_rects(axis, view)
    kinds = [('finding', STYLES['ground truth']),
             ('does not count', STYLES['ignored']),
             ('found in 3D, projected', STYLES['prediction'])]
    for key, label, style in (
            ('proposals', 'first 10 proposals (title: findings that the '
             'first 10, 50, all\noverlap by IoU 0.5)', _STYLE_PROPOSAL),
            ('detections', '2D detection', STYLE_2D),
            ('peaks', 'strongest places of the 2D heatmap', _STYLE_PEAK)):
        if key in views[0]:
            kinds.append((label, style))
    figure.legend(handles=[line_of(style, label) for label, style in kinds],
                  loc='outside lower center', ncols=int(side * columns / 3),
                  frameon=False)
    figure.suptitle(title)
    save(figure, out_file)


def _draw_true_rects(axis, view: dict) -> None:
    """Findings with their numbers, and those that do not count."""
    for rect in view['ignored']:
        draw_rect(axis, rect, STYLES['ignored'])
    for rect, number in zip(view['truth'], view['numbers']):
        draw_rect(axis, rect, STYLES['ground truth'], 1.5)
        axis.text(rect[0], rect[1], str(number), fontsize=10, ha='right',
                  color=STYLES['ground truth']['edgecolor'], va='bottom',
                  clip_on=True, path_effects=_OUTLINE)


def draw_features(image: np.ndarray, levels: Sequence[np.ndarray],
                  strides: Sequence[int], truth: np.ndarray,
                  out_file: Union[str, Path], title: str,
                  channels: Sequence[Sequence[int]],
                  heatmap: Optional[np.ndarray] = None,
                  heatmap_level: int = 0) -> None:
    """Draw the feature maps of one view: a row for each level, with the mean
    over the channels and those that reach the highest values, each on a
    colour scale of its own (Betancur et al. §5.2).

    Args:
        image (np.ndarray): (H, W).
        levels (Sequence[np.ndarray]): Each (C, h, w).
        strides (Sequence[int]): Pixels per cell of each level.
        truth (np.ndarray): (N, 4) xyxy (px), outlined everywhere.
        out_file (str | Path): PNG to write.
        title (str): Above.
        channels (Sequence[Sequence[int]]): Those to draw, best first.
        heatmap (np.ndarray, optional): (h, w) scores of the 2D heatmap.
        heatmap_level (int): Which level it reads.
    """
    most = max(len(c) for c in channels)
    columns = 2 + most + (heatmap is not None)
    figure, axes = subplots(len(levels), columns, 2.2 * columns,
                            2.5 * len(levels) + .5)
    for axis in axes.ravel():
        axis.axis('off')
    for row, (line, level) in enumerate(zip(axes, levels)):
        stride, shape = strides[row], level.shape
        draw_image(line[0], image, f'level {row}: 1/{stride}, {shape[0]} '
                   f'channels\n{shape[1]} x {shape[2]} cells')
        maps = [(level.mean(0), 'mean of all channels')]
        for rank, channel in enumerate(channels[row]):
            name = 'strongest' if rank == 0 else f'no. {rank + 1}'
            maps.append((level[channel], f'{name}: channel {channel}'))
        if heatmap is not None and row == heatmap_level:
            maps.append((heatmap, '2D heatmap made of it'))
        for axis, (values, name) in zip(line[1:], maps):
            axis.imshow(values, cmap='inferno', extent=(
                0, shape[2] * stride, shape[1] * stride, 0))
            axis.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
            axis.set_title(f'{name}\n{values.min():.2g} to '
                           f'{values.max():.2g}', fontsize=9)
        for axis in line[:1 + len(maps)]:
            for rect in truth:
                draw_rect(axis, rect, STYLES['ground truth'])
    figure.suptitle(f'{title}: feature maps (dark to bright: smallest to '
                    'largest value of the map); findings outlined')
    save(figure, out_file)


def draw_finding(views: List[dict], band_sigmas: Sequence[float],
                 box: np.ndarray, out_file: Union[str, Path], title: str,
                 heatmap: Optional[np.ndarray] = None,
                 axes_mm: Sequence[np.ndarray] = ()) -> None:
    """Draw what each stage shows of one finding: a line for each view, then
    the volume through its centre.

    Args:
        views (list[dict]): ``name``, ``image`` (H, W), ``bands`` (B, H, W)
            that the network sees, the finding's ``rect`` (px), and ``heat``
            (h, w) scores of the 2D heatmap or None.
        band_sigmas (Sequence[float]): Blur that each band lacks (px).
        box (np.ndarray): (7,) the finding (mm).
        out_file (str | Path): PNG to write.
        title (str): Above.
        heatmap (np.ndarray, optional): (X, Y, Z) scores of the volume.
        axes_mm (Sequence[np.ndarray]): Its voxel centres (mm).
    """
    with_heat = any(view['heat'] is not None for view in views)
    columns = max(1 + len(band_sigmas) + with_heat, 3)
    lines = len(views) + (heatmap is not None)
    figure, axes = subplots(lines, columns, 2.3 * columns, 2.5 * lines + .6)
    style = STYLES['ground truth']
    for line, view in zip(axes, views):
        shown = [(view['image'], f'{view["name"]}: the view')]
        shown += [(band, f'less its blur of {sigma:g} px')
                  for band, sigma in zip(view['bands'], band_sigmas)]
        for axis, (image, name) in zip(line, shown):
            draw_image(axis, image, name)
        if view['heat'] is not None:
            axis = line[len(shown)]
            height, width = view['image'].shape
            axis.imshow(view['heat'], cmap='inferno',
                        norm=PowerNorm(.5, 0, max(view['heat'].max(), 1e-6)),
                        extent=(0, width, height, 0))
            axis.set_title(f'2D heatmap, to {view["heat"].max():.2f}',
                           fontsize=9)
            shown.append(view['heat'])
        for axis in line[:len(shown)]:
            draw_rect(axis, view['rect'], style)
            _cut_out(axis, view['image'].shape, view['rect'])
    if heatmap is not None:
        _draw_planes(axes[-1], heatmap, axes_mm, box)
    for axis in axes.flat:
        axis.axis('off')
    figure.suptitle(_wrapped(title, 2.3 * columns))
    save(figure, out_file)


def _draw_planes(line, heatmap: np.ndarray, axes_mm: Sequence[np.ndarray],
                 box: np.ndarray) -> None:
    """A volume's scores in the three planes through a finding's centre."""
    norm = PowerNorm(.5, 0, max(float(heatmap.max()), 1e-6))
    cell = [int(np.abs(places - c).argmin())
            for places, c in zip(axes_mm, box)]
    edges = _edges(axes_mm)
    for axis, (a, b, name), through in zip(line, _PLANES, (2, 1, 0)):
        i, j = 'xyz'.index(a), 'xyz'.index(b)
        axis.imshow(
            heatmap.take(cell[through], through).T, cmap='inferno', norm=norm,
            origin='lower', extent=(*edges[i], *edges[j]))
        draw_rect(axis, [box[i] - box[3 + i] / 2, box[j] - box[3 + j] / 2,
                         box[i] + box[3 + i] / 2, box[j] + box[3 + j] / 2],
                  STYLES['ground truth'])
        axis.set_title(f'volume, {name}, to {heatmap.max():.2f}', fontsize=9)


def _edges(axes_mm: Sequence[np.ndarray]) -> List[Tuple[float, float]]:
    """Where a grid begins and ends along each axis (mm), of its voxels'
    centres."""
    edges = []
    for places in axes_mm:
        half = (places[1] - places[0]) / 2 if len(places) > 1 else .5
        edges.append((places[0] - half, places[-1] + half))
    return edges


def draw_volume(heatmap: np.ndarray, axes_mm: Sequence[np.ndarray],
                peaks: List[dict], out_file: Union[str, Path], title: str,
                truth: np.ndarray, diameters: np.ndarray) -> None:
    """Draw a volume's heatmap, its peaks and the findings.

    Args:
        heatmap (np.ndarray): (X, Y, Z) scores.
        axes_mm (Sequence[np.ndarray]): Voxel centres along x, y and z (mm).
        peaks (list[dict]): ``centre`` (mm) and ``score``, best first.
        out_file (str | Path): PNG to write.
        title (str): Above.
        truth (np.ndarray): (N, 7) findings (mm).
        diameters (np.ndarray): (N,) (mm).
    """
    title = _wrapped(title, 19)
    figure, (line, ) = subplots(1, 3, 19, 6.8 + .25 * title.count('\n'))
    norm = PowerNorm(.5, 0, max(float(heatmap.max()), 1e-6))
    edges = _edges(axes_mm)
    for axis, (a, b, name), left_out in zip(line, _PLANES, (2, 1, 0)):
        i, j = 'xyz'.index(a), 'xyz'.index(b)
        shown = axis.imshow(heatmap.max(left_out).T, cmap='inferno',
                            norm=norm, origin='lower',
                            extent=(*edges[i], *edges[j]))
        for rank, peak in enumerate(peaks):
            place = peak['centre'][i], peak['centre'][j]
            axis.plot(*place, markersize=7, **dict(_STYLE_PEAK,
                                                   color='#5ec8ff'))
            if rank < 10:
                axis.annotate(f'{peak["score"]:.2f}', place, (4, 3),
                              textcoords='offset points', fontsize=8,
                              color='#5ec8ff', clip_on=True)
        _draw_circles(axis, truth, diameters, i, j)
        axis.set(xlabel=f'{a} (mm)', ylabel=f'{b} (mm)', title=name,
                 xlim=edges[i], ylim=edges[j], facecolor='black')
    figure.colorbar(shown, ax=list(line), label='score', fraction=.02)
    figure.legend(handles=[
        line_of(STYLES['ground truth'], 'finding, to scale'),
        line_of(dict(_STYLE_PEAK, color='#5ec8ff'),
                f'the {len(peaks)} peaks that are kept, score of the first '
                'ten')], loc='outside lower center', ncols=2, frameon=False)
    figure.suptitle(title)
    save(figure, out_file)


def _draw_circles(axis, truth: np.ndarray, diameters: np.ndarray, i: int,
                  j: int) -> None:
    """Findings (mm) in one plane, with their numbers."""
    colour = STYLES['ground truth']['edgecolor']
    for number, (box, size) in enumerate(zip(truth, diameters)):
        axis.add_patch(Circle((box[i], box[j]), size / 2, fill=False,
                              edgecolor=colour, linewidth=1.5))
        axis.annotate(str(number), (box[i] - size / 2, box[j] + size / 2),
                      fontsize=10, color=colour, ha='right', clip_on=True)


def draw_queries(points: np.ndarray, scores: np.ndarray,
                 chosen: Sequence[int], out_file: Union[str, Path],
                 title: str, truth: np.ndarray,
                 diameters: np.ndarray) -> None:
    """Draw how queries move from layer to layer.

    Args:
        points (np.ndarray): (S, Q, 3), before the decoder and after each
            layer (mm).
        scores (np.ndarray): (S, Q).
        chosen (Sequence[int]): Queries that are named.
        out_file (str | Path): PNG to write.
        title (str): Above.
        truth (np.ndarray): (N, 7) findings (mm).
        diameters (np.ndarray): (N,) (mm).
    """
    enlarged = range(min(len(truth), _MOST_FINDINGS))
    columns = 1 + len(enlarged) + 1
    title = _wrapped(title, 4.2 * columns)
    figure, axes = subplots(2, columns, 4.2 * columns,
                            8.6 + .25 * title.count('\n'))
    named = np.isin(np.arange(points.shape[1]), chosen)
    colour = colormaps['viridis'](scores[-1], alpha=np.where(named, 1., .5))
    width = np.where(named, 1.8, .7)
    for line, (a, b, name) in zip(axes, _PLANES):
        i, j = 'xyz'.index(a), 'xyz'.index(b)
        for axis, at in zip(line, (None, *enlarged)):
            _draw_circles(axis, truth, diameters, i, j)
            paths = points[..., [i, j]].transpose(1, 0, 2)
            axis.add_collection(LineCollection(paths, colors=colour,
                                               linewidths=width))
            for step, marker in ((0, 'o'), (-1, 'x')):
                face = 'none' if marker == 'o' else colour
                edge = dict(edgecolors=colour) if marker == 'o' else {}
                axis.scatter(*paths[:, step].T, s=30, marker=marker,
                             facecolors=face, linewidths=width, **edge)
            for rank, query in enumerate(chosen if at is not None else ()):
                axis.annotate(f'q{query} ({scores[-1, query]:.2f})',
                              paths[query, -1], (5, -10 if rank % 2 else 3),
                              fontsize=9, textcoords='offset points',
                              clip_on=True, annotation_clip=True)
            axis.set(xlabel=f'{a} (mm)', ylabel=f'{b} (mm)', aspect='equal',
                     title=f'{name}, all' if at is None else
                     f'{name}, round finding {at}')
            if at is not None:
                axis.set(xlim=truth[at, i] + np.array([-_NEAR, _NEAR]),
                         ylim=truth[at, j] + np.array([-_NEAR, _NEAR]))
    _draw_distances(axes[0, -1], axes[1, -1], points, scores, truth)
    figure.legend(handles=[
        line_of(dict(STYLES['ground truth'], marker='o', linestyle='none',
                     fillstyle='none', markersize=10), 'finding, to scale'),
        line_of(dict(color='k', marker='o', fillstyle='none'),
                'query before the decoder'),
        line_of(dict(color='k', marker='x'), 'after the last layer (score); '
                'its colour is the score, yellow is high')],
        loc='outside lower center', ncols=3, frameon=False)
    figure.suptitle(title)
    save(figure, out_file)


def _draw_distances(above, below, points: np.ndarray, scores: np.ndarray,
                    truth: np.ndarray) -> None:
    """The nearest query of each finding by step: distance and score."""
    steps = np.arange(len(points))
    ticks = ['start', *(f'layer {s}' for s in steps[1:])]
    for number, box in enumerate(truth):
        if points.shape[1] == 0:
            break
        away = np.linalg.norm(points - box[:3], axis=-1)
        nearest = away.argmin(1)
        label = f'finding {number}'
        above.plot(steps, away[steps, nearest], marker='o', label=label)
        below.plot(steps, scores[steps, nearest], marker='o', label=label)
    above.set(title='distance of the nearest query (mm)',
              ylim=(0, 1.1 * above.get_ylim()[1]))
    below.set(title='its score', ylim=(0, 1))
    for axis in (above, below):
        axis.set_xticks(steps, ticks)
        axis.grid(alpha=.3)
    if len(truth) and points.shape[1]:
        above.legend(fontsize=8)


def draw_attention(views: List[dict], queries: List[dict],
                   out_file: Union[str, Path], title: str) -> None:
    """Draw which RoIs queries attend to: a row for each query, a column for
    each view, cut out round the RoI with the largest weight.

    Args:
        views (list[dict]): As for :func:`draw_boxes_2d`.
        queries (list[dict]): As :func:`~.diagnosis.report_scan` describes
            them, with ``attention`` in at least one layer.
        out_file (str | Path): PNG to write.
        title (str): Above.
    """
    queries = queries[:_MOST_QUERIES]
    figure, axes = subplots(len(queries), len(views),
                            max(1.9 * len(views), 7.6),
                            max(1.9, 7.6 / len(views)) * len(queries) +
                            .5 * len(queries) + 1)
    for line, query in zip(axes, queries):
        layer = query['attention'][-1]
        largest = max((r['weight'] for r in layer['rois']), default=1.)
        about = (f'q{query["query"]}, from {query["source"]}, score '
                 f'{query["scores"][-1]:.2f}')
        if query['distances']:
            about += (f', {query["distances"][-1]:.0f} mm from finding '
                      f'{query["finding"]}')
        about += f'; on nothing: {layer["nothing"]:.2f}'
        for axis, view in zip(line, views):
            rois = [r for r in layer['rois'] if r['view'] == view['name']]
            weight = sum(r['weight'] for r in rois)
            # The empty line leaves room for what is said of the query.
            draw_image(axis, view['image'], f'\n{view["name"]}: ' + (
                f'{weight:.2f}' if rois else 'none'))
            for roi in rois:
                draw_rect(axis, roi['bbox'], _STYLE_ROI,
                          .8 + 2.2 * roi['weight'] / largest)
            _draw_true_rects(axis, view)
            if rois:
                _cut_out(axis, view['image'].shape, rois[0]['bbox'])
        line[0].text(0, 1.17, about, transform=line[0].transAxes, fontsize=10,
                     weight='bold').set_in_layout(False)
    figure.legend(handles=[
        line_of(_STYLE_ROI, 'RoI (thick: large weight); number: weight of '
                'the view'),
        line_of(STYLES['ground truth'], 'finding')],
        loc='outside lower center', ncols=2, frameon=False)
    figure.suptitle(title)
    save(figure, out_file)


def _cut_out(axis, shape: Sequence[int], rect: Sequence[float]) -> None:
    """Show four times a rectangle (px), a quarter of the image at least."""
    height, width = shape
    side = max(4 * (rect[2] - rect[0]), 4 * (rect[3] - rect[1]),
               max(shape) / 4)
    side = min(side, max(shape))
    left = min(max((rect[0] + rect[2] - side) / 2, 0), max(width - side, 0))
    top = min(max((rect[1] + rect[3] - side) / 2, 0), max(height - side, 0))
    axis.set_xlim(left, left + side)
    axis.set_ylim(top + side, top)
