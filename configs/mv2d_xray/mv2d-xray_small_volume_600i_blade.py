_base_ = ['../_base_/datasets/blade.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Everything is a third of the chest's; two classes.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    volume_head=dict(
        volume_range=[-42., -30., -58., 42., 30., 58.], voxel_size=2.,
        base_size=2.5, min_sigma=1.3, num_classes=_base_.num_classes,
        # Of both classes: these parts have up to 9 findings.
        max_queries=16))
train_cfg = dict(max_iters=600)
# Leaves a checkpoint without the optimizer beside the last one.
default_hooks = dict(
    checkpoint=dict(published_keys=['meta', 'state_dict']))
