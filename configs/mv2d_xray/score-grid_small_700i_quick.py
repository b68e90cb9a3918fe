_base_ = ['./mv2d-xray_small_roi-volume-decoder_700i_quick.py']

# Baseline: the 2D heatmaps of all views, averaged in space, no 3D network.
model = dict(
    volume_head=dict(type='XRayScoreGrid'), lifting_head=None,
    loss_weight_2d=0.)
