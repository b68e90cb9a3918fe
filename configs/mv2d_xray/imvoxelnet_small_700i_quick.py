_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick.py']

# Baseline: ImVoxelNet (arXiv 2106.01178), that is the mean of all views'
# features and mmdet3d's neck for it, with this project's backbone and centre
# heatmap, so that only the way of lifting differs. Its neck halves the grid
# twice: 48 x 40 x 48 voxels.
model = dict(
    volume_head=dict(
        volume_range=[-144., -120., -144., 144., 120., 144.],
        with_deviation=False, loss_heatmap_2d=None,
        neck=dict(type='mmdet3d.IndoorImVoxelNeck', n_blocks=[1, 1, 1])),
    lifting_head=None, loss_weight_2d=0.)
