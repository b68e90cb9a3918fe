"""Converted sets as an mmdet3d data set, whatever their images show."""

import logging
import os.path as osp
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmdet3d.datasets import Det3DDataset
from mmengine.logging import print_log

from projects.core.boxes import lidar_boxes
from projects.core.files import DataError, load_json
from projects.core.infos import (
    check_coco,
    coco_name,
    infos_name,
    load_infos,
    unpack_shape,
)

__all__ = ['ConvertedDataset']


class ConvertedDataset(Det3DDataset):
    """Images of one object per sample, with 3D and 2D boxes.

    ``lidar`` in mmdet3d's names is the CT world of
    :mod:`projects.core.geometry`. Findings marked ``ignore`` or not
    ``valid_flag`` are kept apart: neither object nor background. So are those
    of classes that ``metainfo`` leaves out; by default the classes are the
    file's.

    Args:
        ann_file (str): Info pickle, relative to ``data_root``.
        data_root (str): Root of the set.
        scene_range (Sequence[float], optional): ``[x0, y0, z0, x1, y1, z1]``
            (mm), all that the model knows of space. In training a finding
            with its centre outside is ignored; where most are outside, the
            box is not this set's. In a test it counts: it is missed. How many
            there are is logged.
        coco_file (str, optional): COCO JSON, relative to ``data_root``, that
            must agree with the infos.
        min_diameter (float): Findings below (mm) are ignored, too. Where the
            file has no diameter, the box's mean edge is taken.
        filter_empty_gt (bool): Leave out samples without findings in
            training. Defaults to False.
        patients (Sequence[str], optional): Names (``lidc_id_ref``) of those
            patients or parts whose samples are taken; by default all.
        metainfo (dict, optional): ``classes`` to use, of the file's.
        **kwargs: As for ``Det3DDataset``.

    Raises:
        DataError: The files are damaged or contradict each other or the
            arguments.
    """

    METAINFO = dict(classes=('nodule', ))

    def __init__(self,
                 ann_file: str,
                 data_root: str = '',
                 scene_range: Optional[Sequence[float]] = None,
                 coco_file: Optional[str] = None,
                 min_diameter: float = 0.,
                 filter_empty_gt: bool = False,
                 patients: Optional[Sequence[str]] = None,
                 metainfo: Optional[dict] = None,
                 **kwargs) -> None:
        self.scene_range = scene_range
        self.patients = patients
        self.min_diameter = min_diameter
        self.source = osp.join(data_root, ann_file)
        self._check_there()
        self._infos = load_infos(self.source)
        if coco_file is not None:
            path = osp.join(data_root, coco_file)
            check_coco(self._infos, load_json(path), path)
        # Classes are data: the file's, not this class's.
        known = tuple(self._infos['metainfo']['classes'])
        self.METAINFO = dict(classes=known)
        metainfo = dict(metainfo or {})
        unknown = set(metainfo.setdefault('classes', known)) - set(known)
        if unknown:
            raise DataError(
                f'{self.source}: field "metainfo.classes": expected '
                f'{sorted(unknown)} of the dataset\'s metainfo, found '
                f'{list(known)}')
        super().__init__(
            ann_file=ann_file, data_root=data_root, metainfo=metainfo,
            data_prefix=dict(img=''), box_type_3d='LiDAR',
            modality=dict(use_lidar=False, use_camera=True),
            filter_empty_gt=filter_empty_gt, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Samples of the info pickle, with absolute image paths."""
        infos = self._infos
        del self._infos  # large
        for key, value in infos['metainfo'].items():
            self._metainfo.setdefault(key, value)
        samples, counting, outside = [], 0, {}
        if not infos['data_list']:
            raise DataError(f'{self.source}: field "data_list": expected at '
                            'least one sample, found 0')
        for sample in self._chosen(infos['data_list']):
            self._check_sample(sample)
            kept, _, rows = self._counting(sample['instances'])
            counting += len(kept)
            if rows:
                outside[sample['token']] = [
                    sample['instances'][i]['bbox_3d'][:3] for i in rows]
            samples.append(self.parse_data_info(sample))
            samples[-1]['intensity'] = infos['metainfo'].get('intensity')
        if outside:
            self._tell_outside(outside, counting)
        return samples

    def _chosen(self, samples: List[dict]) -> List[dict]:
        if self.patients is None:
            return samples
        left = set(self.patients) - {s.get('lidc_id_ref') for s in samples}
        if left or not self.patients:
            raise DataError(
                f'{self.source}: field "lidc_id_ref": expected '
                + (f'{min(left)}, which the dataset\'s patients name'
                   if left else 'at least one of the dataset\'s patients')
                + f', found {len(samples)} samples without')
        return [s for s in samples
                if s.get('lidc_id_ref') in self.patients]

    def _counting(self, instances: List[dict]
                  ) -> Tuple[List[int], np.ndarray, List[int]]:
        """Rows of the findings that count, all diameters (mm), and rows of
        those outside the scene box, which count in a test alone."""
        diameters = np.array(
            [item.get('diameter') or np.mean(
                np.asarray(item['bbox_3d'][3:6], dtype=np.float64))
             for item in instances], dtype=np.float64)
        rows = [
            i for i, item in enumerate(instances)
            if item['valid_flag'] and not item['ignore']
            and diameters[i] >= self.min_diameter
            and self.label_mapping[item['bbox_label_3d']] >= 0
        ]
        outside = [i for i in rows if not self._in_scene(instances[i])]
        if not self.test_mode:
            rows = [i for i in rows if i not in outside]
        return rows, diameters, outside

    def _in_scene(self, instance: dict) -> bool:
        if self.scene_range is None:
            return True
        low, high = np.reshape(self.scene_range, (2, 3))
        centre = np.asarray(instance['bbox_3d'][:3], dtype=np.float64)
        return bool(((centre >= low) & (centre <= high)).all())

    def findings(self, instances: List[dict]) -> List[dict]:
        """What those of a record's instances that count are: ``centre`` and
        ``size`` (mm), ``label``, ``contrast`` (1/mm) and ``shape``."""
        found = []
        for row in self._counting(instances)[0]:
            item = instances[row]
            box = np.asarray(item['bbox_3d'], dtype=np.float64)
            found.append(
                dict(
                    centre=box[:3], size=box[3:6],
                    label=self.label_mapping[item['bbox_label_3d']],
                    contrast=item.get('contrast'),
                    shape=unpack_shape(item['shape'], self.source)
                    if item.get('shape') else None))
        return found

    def _check_there(self) -> None:
        path = Path(self.source)
        if path.is_file():
            return
        others = sorted(
            p.name for p in path.parent.glob(infos_name('*', path.suffix))
            if not p.match(coco_name('*')))
        if others:
            raise DataError(f'{path}: expected infos of this split, found '
                            f'{", ".join(others)} in the set')

    def _check_sample(self, sample: dict) -> None:
        """Refuse a sample that is not what the models of a project take."""

    def _tell_outside(self, outside: Dict[str, list], counting: int) -> None:
        """Log what lies outside the scene box: centres (mm) by scan; as many
        findings as ``counting`` lie inside.

        Raises:
            DataError: Fewer findings to train on lie inside than outside.
        """
        count = sum(map(len, outside.values()))
        token, centres = next(iter(outside.items()))
        box = f'the scene box {np.array(self.scene_range, float).tolist()} mm'
        place = f'{np.round(centres[0], 1).tolist()} mm'
        if not self.test_mode and count > counting:
            raise DataError(
                f'{self.source}: scan {token}: field "bbox_3d": expected a '
                f'centre within {box}, as of most findings, found {place}, '
                f'and {count} of {count + counting} outside')
        print_log(
            f'{self.source}: {count} finding{"s" * (count > 1)} of '
            f'{len(outside)} scan{"s" * (len(outside) > 1)} outside {box}, '
            f'the first at {place} in scan {token}: '
            + ('counted, and missed' if self.test_mode
               else 'ignored in training'),
            logger='current', level=logging.WARNING)

    def parse_data_info(self, info: dict) -> dict:
        """Absolute image paths; annotations, for training and testing alike,
        in ``ann_info``."""
        info = dict(info, images={
            name: dict(view, img_path=osp.join(self.data_root or '',
                                               view['img_path']))
            for name, view in info['images'].items()
        })
        info['ann_info'] = self.parse_ann_info(info)
        return info

    def parse_ann_info(self, info: dict) -> dict:
        """Annotations of one sample.

        Returns:
            dict: ``gt_bboxes_3d`` and ``ignored_bboxes_3d`` (mmdet3d boxes,
            mm), ``gt_labels_3d``, ``gt_diameters``, ``ignored_diameters``
            (mm); 2D boxes of all views (px): ``gt_bboxes`` (N, 4),
            ``gt_bboxes_labels``, ``gt_bboxes_view``, ``gt_bboxes_instance``
            (index into ``gt_bboxes_3d``), ``ignored_bboxes``,
            ``ignored_bboxes_view``.
        """
        instances = info['instances']
        kept, diameters, _ = self._counting(instances)
        place = {instance: row for row, instance in enumerate(kept)}
        left_out = [i for i in range(len(instances)) if i not in place]
        counted: List[tuple] = []
        other: List[tuple] = []
        for view, name in enumerate(info['images']):
            for box in info.get('cam_instances', {}).get(name, ()):
                row = place.get(box['instance_idx'], -1)
                (counted if row >= 0 else other).append(
                    (*box['bbox'], self.label_mapping[box['bbox_label']],
                     view, row))
        boxes = np.array(counted, dtype=np.float32).reshape(-1, 7)
        ignored = np.array(other, dtype=np.float32).reshape(-1, 7)
        labels = [self.label_mapping[instances[i]['bbox_label_3d']]
                  for i in kept]
        for label in labels:
            self.num_ins_per_cat[label] += 1

        def boxes_3d(rows):
            tensor = np.array([instances[i]['bbox_3d'] for i in rows],
                              dtype=np.float32).reshape(-1, 7)
            return lidar_boxes(tensor)

        return dict(
            gt_bboxes_3d=boxes_3d(kept),
            gt_labels_3d=np.array(labels, dtype=np.int64),
            gt_diameters=diameters[kept],
            ignored_bboxes_3d=boxes_3d(left_out),
            ignored_diameters=diameters[left_out],
            gt_bboxes=boxes[:, :4],
            gt_bboxes_labels=boxes[:, 4].astype(np.int64),
            gt_bboxes_view=boxes[:, 5].astype(np.int64),
            gt_bboxes_instance=boxes[:, 6].astype(np.int64),
            ignored_bboxes=ignored[:, :4],
            ignored_bboxes_view=ignored[:, 5].astype(np.int64))
