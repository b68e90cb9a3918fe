"""Images with their partners: mammograms and X-ray views."""

import json
import os.path as osp
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.dataset import BaseDataset

from projects.core.dataset import ConvertedDataset
from projects.core.files import DataError, load_json

__all__ = ['PARTNERS', 'MammogramDataset', 'ViewPairDataset']

PARTNERS = ('other_view', 'other_breast')
_FIELDS = dict(id=int, file_name=str, width=int, height=int, patient=str,
               laterality=str, view=str, partners=dict)


@DATASETS.register_module()
class MammogramDataset(BaseDataset):
    """Mammograms of a set in COCO's format, as ``data_converters breast`` and
    ``mammograms`` write it: see ``docs/breast.md``.

    A sample is an exam, with all images of a patient, so that each image has
    its partners beside it, and what is computed of an image serves itself and
    its partners; or a single image.

    Args:
        ann_file (str): COCO JSON, relative to ``data_root``.
        data_root (str): Root of the set.
        exams (bool): Whether a sample is an exam.
        metainfo (dict, optional): ``classes`` to find, of the file's
            categories; what is of others neither counts nor is background.
            Defaults to masses.
        **kwargs: As for mmengine's ``BaseDataset``.

    Attributes:
        source: The file.

    Raises:
        DataError: The file is not as expected: a field, a class or a partner
            that is not in it.
    """

    METAINFO = dict(classes=('mass', ))

    def __init__(self, ann_file: str, data_root: str = '', exams: bool = True,
                 metainfo: Optional[dict] = None, **kwargs) -> None:
        self.source = osp.join(data_root, ann_file)
        self.exams = exams
        super().__init__(ann_file=ann_file, data_root=data_root,
                         metainfo=metainfo, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Samples with ``images``, each with ``instances`` (``abnormality``
        is the same number in both views, or None), ``partners`` (ids or
        None) and absolute ``img_path``; ``token`` and ``lidc_id_ref``
        (the patient) are those of a sample of scans."""
        content = load_json(self.source)
        for key in ('images', 'annotations', 'categories'):
            if not isinstance(content, dict) or not isinstance(
                    content.get(key), list):
                raise DataError(f'{self.source}: field "{key}": expected a '
                                'list, found none')
        if not content['images']:
            raise DataError(f'{self.source}: field "images": expected at '
                            'least one, found 0')
        self._metainfo['dataset'] = content.get('info', {}).get('description')
        records = self._records(content['images'])
        self._add_annotations(records, content)
        groups: Dict[str, List[dict]] = defaultdict(list)
        for record in records.values():
            groups[record['patient'] if self.exams else
                   Path(record['img_path']).stem].append(record)
        return [dict(token=token, lidc_id_ref=images[0]['patient'],
                     images=images) for token, images in groups.items()]

    def _records(self, images: List[dict]) -> Dict[int, dict]:
        """Images by their ids."""
        records: Dict[int, dict] = {}
        for row, image in enumerate(images):
            for key, kind in _FIELDS.items():
                if not isinstance(image.get(key), kind):
                    self._refuse(f'images[{row}].{key}', f'a {kind.__name__}',
                                 image.get(key))
            for key, known in (('laterality', ('L', 'R')),
                               ('view', ('CC', 'MLO'))):
                if image[key] not in known:
                    self._refuse(f'images[{row}].{key}', ' or '.join(known),
                                 image[key])
            if image['id'] in records:
                self._refuse(f'images[{row}].id', 'one of its own',
                             image['id'])
            records[image['id']] = dict(
                img_id=image['id'], height=image['height'],
                width=image['width'], patient=image['patient'],
                laterality=image['laterality'], view=image['view'],
                pixel_mm=image.get('pixel_mm'), instances=[],
                padding=image.get('padding', [0, 0, 0, 0]),
                img_path=osp.join(self.data_root or '', image['file_name']),
                partners={name: image['partners'].get(name)
                          for name in PARTNERS})
        for number, record in records.items():
            for name, partner in record['partners'].items():
                if partner is not None and partner not in records:
                    self._refuse(f'images: id {number}: partners.{name}',
                                 'the id of an image of this file, or null',
                                 partner)
        return records

    def _add_annotations(self, records: Dict[int, dict],
                         content: Dict[str, Any]) -> None:
        names = {c['id']: c['name'] for c in content['categories']}
        classes = self.metainfo['classes']
        lacking = sorted(set(classes) - set(names.values()))
        if lacking:
            self._refuse('categories', ', '.join(lacking),
                         ', '.join(names.values()))
        for row, item in enumerate(content['annotations']):
            if item.get('image_id') not in records:
                self._refuse(f'annotations[{row}].image_id',
                             'the id of an image', item.get('image_id'))
            box = item.get('bbox')
            if not isinstance(box, list) or len(box) != 4 or not (
                    np.isfinite(box).all() and min(box[2:]) > 0):
                self._refuse(f'annotations[{row}].bbox',
                             'x, y and a width and height above 0', box)
            x, y, width, height = map(float, box)
            name = names.get(item.get('category_id'))
            known = name in classes
            number = item.get('abnormality')
            records[item['image_id']]['instances'].append(dict(
                bbox=[x, y, x + width, y + height],
                label=classes.index(name) if known else 0,
                ignore=bool(item.get('iscrowd')) or not known,
                abnormality=number if isinstance(number, int) else None,
                segmentation=item.get('segmentation')))

    def _refuse(self, field: str, expected: str, found: object) -> None:
        raise DataError(f'{self.source}: field "{field}": expected '
                        f'{expected}, found {json.dumps(found)}')


@DATASETS.register_module()
class ViewPairDataset(ConvertedDataset):
    """X-ray views of a converted set, as mammograms are given: the same
    detector finds boxes in each, and another view is a partner.

    Args:
        step (int): A view's partner is this many views after it, in the order
            of the rig, the first after the last.
        **kwargs: As for
            :class:`~projects.core.dataset.ConvertedDataset`.

    Raises:
        DataError: As there.
    """

    def __init__(self, *args, step: int = 2, **kwargs) -> None:
        self.step = step
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Scans with ``images``, each with ``ct2img`` (4, 4) and a partner;
        see :class:`MammogramDataset`."""
        return [self._as_exam(scan, row) for row, scan
                in enumerate(super().load_data_list())]

    def _as_exam(self, scan: dict, row: int) -> dict:
        truth, views = scan['ann_info'], list(scan['images'].items())
        images = []
        for number, (name, view) in enumerate(views):
            instances = [
                dict(bbox=box.tolist(), label=int(label), ignore=ignore,
                     abnormality=None, segmentation=None)
                for key, ignore in (('gt', False), ('ignored', True))
                for box, label, at in zip(
                    truth[f'{key}_bboxes'], truth.get(
                        f'{key}_bboxes_labels',
                        np.zeros(len(truth[f'{key}_bboxes']))),
                    truth[f'{key}_bboxes_view']) if at == number]
            other = (number + self.step) % len(views)
            images.append(dict(
                img_id=f'{row}/{name}', img_path=view['img_path'],
                height=view['height'], width=view['width'],
                patient=scan['token'], view=name, laterality='',
                ct2img=np.asarray(view['lidar2img'], float),
                instances=instances, partners=dict(
                    other_view=None if other == number
                    else f'{row}/{views[other][0]}', other_breast=None)))
        return dict(token=scan['token'], lidc_id_ref=scan['lidc_id_ref'],
                    images=images)

    def prepare_data(self, idx: int) -> dict:
        """An exam needs nothing of what mmdet3d adds to a sample."""
        return BaseDataset.prepare_data(self, idx)
