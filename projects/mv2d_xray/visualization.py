"""Pictures of what was found, for people; drawn without a screen."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook

from . import geometry
from .boxes import gravity_boxes

__all__ = ['XRayDrawHook', 'draw_scans', 'draw_views']

# Colour and line style both tell the kinds apart.
_STYLES = {
    'ground truth': dict(edgecolor='#35d461', linestyle='-'),
    'ignored': dict(edgecolor='#9aa0a6', linestyle=':'),
    'prediction': dict(edgecolor='#ff5a4f', linestyle='--'),
}
_STYLE_2D = dict(edgecolor='#ffd166', linestyle='-.')
_OUTLINE = '#4cc9f0'


def draw_views(images: np.ndarray,
               ct2img: np.ndarray,
               out_file: Optional[Union[str, Path]] = None,
               title: str = '',
               names: Optional[Sequence[str]] = None,
               scores: Optional[np.ndarray] = None,
               **boxes: np.ndarray) -> Figure:
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
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows + .8),
                    layout='constrained')
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis('off')
    for view, (axis, image) in enumerate(zip(axes, images)):
        _draw_view(axis, image, ct2img[view],
                   names[view] if names else f'view {view}', boxes, scores)
    handles = [
        Line2D([], [], color=s['edgecolor'], linestyle=s['linestyle'],
               label=f'{kind} '
               f'({len(boxes.get(kind.replace(" ", "_"), ()))})')
        for kind, s in _STYLES.items()
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=3,
                  frameon=False)
    figure.suptitle(title)
    if out_file:
        Path(out_file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out_file, dpi=100)
    return figure


def _draw_view(axis, image: np.ndarray, ct2img: np.ndarray, title: str,
               boxes: Dict[str, np.ndarray],
               scores: Optional[np.ndarray] = None) -> None:
    """One view and the rectangles round its projected boxes."""
    axis.axis('off')
    low, high = np.percentile(image, [1, 99.8])
    axis.imshow(image, cmap='gray', vmin=low, vmax=max(high, low + 1e-6),
                extent=(0, image.shape[1], image.shape[0], 0))
    axis.set_title(title, fontsize=9)
    for kind, style in _STYLES.items():
        these = boxes.get(kind.replace(' ', '_'))
        if these is None or len(these) == 0:
            continue
        rects, depth = geometry.project_boxes(
            np.asarray(these, dtype=np.float64), ct2img[None])
        for i, rect in enumerate(rects[0]):
            if depth[0, i] <= 0:
                continue
            _draw_rect(axis, rect, style)
            if kind == 'prediction' and scores is not None:
                axis.text(rect[2], rect[1], f'{scores[i]:.2f}', fontsize=7,
                          color=style['edgecolor'], va='bottom')
    axis.set_xlim(0, image.shape[1])
    axis.set_ylim(image.shape[0], 0)


def _draw_rect(axis, rect: np.ndarray, style: dict) -> None:
    x1, y1, x2, y2 = rect
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False,
                             linewidth=1.2, **style))


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
    figure = Figure(figsize=(2.4 * columns, 2.7 * len(scans) + .5),
                    layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(scans), columns, squeeze=False)
    for row, scan in zip(axes, scans):
        for axis in row:
            axis.axis('off')
        for view, (axis, image) in enumerate(zip(row, scan['images'])):
            name = scan['names'][view]
            _draw_view(axis, image, scan['ct2img'][view],
                       f'{scan["title"]}, {name}' if view == 0 else name,
                       scan)
            for rect in scan['boxes_2d'][view] if 'boxes_2d' in scan else ():
                _draw_rect(axis, rect, _STYLE_2D)
            size = (0, image.shape[1], image.shape[0], 0)
            if 'heat' in scan:
                strength = scan['heat'][view] / max(scan['heat'].max(), 1e-12)
                axis.imshow(strength, cmap='inferno', extent=size, vmin=0,
                            vmax=1, alpha=.8 * strength**.5)
            if 'masks' in scan and scan['masks'][view].any():
                axis.contour(scan['masks'][view], [.5], extent=size,
                             origin='upper', colors=_OUTLINE, linewidths=.9)
    styles = {'ground_truth': ('3D box, projected', _STYLES['ground truth']),
              'ignored': ('3D box that does not count', _STYLES['ignored']),
              'prediction': ('box that was found', _STYLES['prediction']),
              'boxes_2d': ('2D box', _STYLE_2D),
              'masks': ('outline', dict(edgecolor=_OUTLINE, linestyle='-'))}
    styles = [style for key, style in styles.items()
              if any(key in scan for scan in scans)]
    figure.legend(
        handles=[Line2D([], [], color=style['edgecolor'],
                        linestyle=style['linestyle'], label=label)
                 for label, style in styles],
        loc='outside lower center', ncols=max(len(styles), 1), frameon=False)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=100)


@HOOKS.register_module()
class XRayDrawHook(Hook):
    """Draws what is found: one picture per tested scan as a file, and the
    first validation scans for the visualizer's backends.

    Args:
        out_dir (str, optional): Folder of a test's PNGs. Without it a test is
            not drawn.
        score_thr (float): Predictions below are not drawn.
        max_scans (int, optional): Scans of a validation that are drawn.
            Defaults to 4.
    """

    def __init__(self, out_dir: Optional[str] = None, score_thr: float = .3,
                 max_scans: int = 4) -> None:
        self.out_dir = Path(out_dir) if out_dir else None
        self.score_thr = score_thr
        self.max_scans = max_scans

    def _draw(self, images, sample, out_file: Optional[Path] = None
              ) -> Figure:
        meta, truth = sample.metainfo, sample.eval_ann_info
        found = sample.pred_instances_3d
        found = found[found.scores_3d >= self.score_thr]
        return draw_views(
            images[:, 0].cpu().numpy(), np.asarray(meta['ct2img']), out_file,
            title=meta['token'], scores=found.scores_3d.cpu().numpy(),
            ground_truth=gravity_boxes(truth['gt_bboxes_3d']).numpy(),
            ignored=gravity_boxes(truth['ignored_bboxes_3d']).numpy(),
            prediction=gravity_boxes(found.bboxes_3d).cpu().numpy())

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        """Write the pictures of one batch."""
        if self.out_dir is None:
            return
        for images, sample in zip(data_batch['inputs']['img'], outputs):
            self._draw(images, sample,
                       self.out_dir / f'{sample.metainfo["token"]}.png')

    def after_val_iter(self, runner, batch_idx, data_batch=None,
                       outputs=None) -> None:
        """Show the first scans."""
        batch = zip(data_batch['inputs']['img'], outputs)
        for index, (images, sample) in enumerate(
                batch, batch_idx * len(outputs)):
            if index < self.max_scans and runner.rank == 0:
                figure = self._draw(images, sample)
                figure.canvas.draw()
                runner.visualizer.add_image(
                    f'val_{sample.metainfo["token"]}',
                    np.asarray(figure.canvas.buffer_rgba())[..., :3],
                    step=runner.iter)
