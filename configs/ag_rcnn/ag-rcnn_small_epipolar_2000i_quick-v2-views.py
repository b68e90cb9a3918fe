_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/quick-v2-views.py',
    '../_base_/models/ag-mask-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# The graph where cameras are known: H_g are epipolar lines, nodes are cells
# of the views. What it finds in single views stands beside MV2D-Xray's 2D
# stage.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
train_cfg = dict(max_iters=2000)
# What it says of views is of all of a scan at once.
custom_hooks = [hook for hook in _base_.custom_hooks
                if hook['type'] != 'KnownViewsHook']
model = dict(
    # Line integrals up to 16, and the bands of MV2D-Xray: a nodule is a
    # twentieth of what the anatomy varies by.
    data_preprocessor=dict(
        mean=[.2], std=[.1], pad_mask=False,
        bands=[(1.5, 32.), (4., 12.3), (12., 4.7)]),
    detector_2d=dict(
        type='FasterRCNN', backbone=dict(in_channels=4),
        roi_head=dict(mask_head=None, mask_roi_extractor=None)),
    graph=dict(
        type='CrossViewGraph', channels=_base_.width, k=3, inception=None,
        # An edge of a node's cell: half in each view, as lines run along rows.
        relation=dict(type='EpipolarRelation', reach=16.)))
find_unused_parameters = True  # where an image has no partner
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=.01))
