"""From a loaded sample to what the network takes."""

import torch
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.registry import TRANSFORMS
from mmengine.structures import InstanceData

from projects.core.files import DataError

__all__ = ['PackXRayInputs']

# As XRayDataset.parse_ann_info gives them.
ANNOTATIONS = ('gt_bboxes_3d', 'gt_labels_3d', 'gt_diameters',
               'ignored_bboxes_3d', 'ignored_diameters', 'gt_bboxes',
               'gt_bboxes_labels', 'gt_bboxes_view', 'gt_bboxes_instance',
               'ignored_bboxes', 'ignored_bboxes_view')


@TRANSFORMS.register_module()
class PackXRayInputs(Pack3DDetInputs):
    """Pack a sample as mmdet3d does, with 2D boxes flattened over views.

    ``inputs['img']`` is (V, 1, H, W). The data sample has, besides mmdet3d's
    fields, ``gt_instances`` (``bboxes``, ``labels``, ``view_ids``,
    ``instance_ids``), ``ignored_instances`` (``bboxes``, ``view_ids``) and
    ``ignored_instances_3d`` (``bboxes_3d``); and all annotations as
    ``eval_ann_info``, where metrics and tools find them whatever the sample
    is for.
    """

    def __init__(self) -> None:
        super().__init__(
            keys=('img', 'gt_bboxes_3d', 'gt_labels_3d'),
            meta_keys=('cam2img', 'ct2cam', 'ct2img', 'img_shape',
                       'num_views', 'view_names', 'img_paths', 'token',
                       'lidc_id_ref', 'sample_idx', 'ct2patient',
                       'frame_of_reference_uid', 'box_type_3d',
                       'box_mode_3d', 'world_augmentation'))

    def pack_single_results(self, results: dict) -> dict:
        """Pack one sample."""
        shapes = {i.shape[:2] for i in results['img']}
        if len(shapes) > 1:
            raise DataError(
                f'scan {results.get("token")}: views of one size are '
                f'expected after loading, found {sorted(shapes)}; add '
                'ResizeXRay to the pipeline')
        if 'gt_bboxes' in results:
            results = dict(results, eval_ann_info={
                key: results[key] for key in ANNOTATIONS if key in results})
        packed = super().pack_single_results(results)
        sample = packed['data_samples']
        if 'gt_bboxes' in results:
            sample.gt_instances = InstanceData(
                bboxes=torch.as_tensor(results['gt_bboxes']),
                labels=torch.as_tensor(results['gt_bboxes_labels']),
                view_ids=torch.as_tensor(results['gt_bboxes_view']),
                instance_ids=torch.as_tensor(results['gt_bboxes_instance']))
            sample.ignored_instances = InstanceData(
                bboxes=torch.as_tensor(results['ignored_bboxes']),
                view_ids=torch.as_tensor(results['ignored_bboxes_view']))
            sample.ignored_instances_3d = InstanceData(
                bboxes_3d=results['ignored_bboxes_3d'])
        return packed
