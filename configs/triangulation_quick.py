_base_ = ['./mv2d-xray_quick_roi-volume_quick.py']

# Baseline: the 2D stage's boxes, matched over the views and triangulated; the
# 3D loss is off, so that the lifting head leaves them as they are.
model = dict(volume_head=None, loss_weight_3d=0.)
