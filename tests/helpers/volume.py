"""A small volume head and the cameras of its views."""

import numpy as np
import torch

from projects.core.rig import Rig
from projects.mv2d_xray.queries.volume import XRayVolumeHead

RANGE = [-60., -60, -60, 60, 60, 60]


def head(**kwargs):
    module = XRayVolumeHead(
        in_channels=4, volume_range=RANGE, voxel_size=6., feat_channels=4,
        hidden_channels=8, num_convs=1, **kwargs)
    module.init_weights()
    return module


def ct2img(num_views=8, size=64):
    rig = Rig.circle(num_views, image_size=size)
    return torch.tensor(np.stack([v.ct2img for v in rig.views]),
                        dtype=torch.float32)
