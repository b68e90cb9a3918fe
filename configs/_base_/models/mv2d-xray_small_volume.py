_base_ = ['./mv2d-xray_small.py']

# `volume` alone: its peaks are the result.
model = dict(lifting_head=None, loss_weight_2d=0.)
