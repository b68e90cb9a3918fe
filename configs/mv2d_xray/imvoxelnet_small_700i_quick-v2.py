_base_ = ['../_base_/datasets/quick-v2.py',
          '../_base_/models/mv2d-xray_small_volume.py',
          '../_base_/schedules/cosine-iters.py',
          '../_base_/default_runtime.py']

# Baseline: ImVoxelNet (arXiv 2106.01178), that is the mean of all views'
# features and mmdet3d's neck for it, with this project's backbone and centre
# heatmap, so that only the way of lifting differs. Its neck halves the grid
# twice: 48 x 40 x 48 voxels.
model = dict(
    data_preprocessor=_base_.bands,
    detector_2d=dict(backbone=dict(in_channels=len(_base_.bands.mean))),
    volume_head=dict(
        volume_range=[-144., -120., -144., 144., 120., 144.], voxel_size=6.,
        min_sigma=4.,
        with_deviation=False, loss_heatmap_2d=None,
        neck=dict(type='mmdet3d.IndoorImVoxelNeck', n_blocks=[1, 1, 1])))
train_cfg = dict(max_iters=700)
