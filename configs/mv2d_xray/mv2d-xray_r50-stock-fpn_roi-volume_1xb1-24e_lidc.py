_base_ = ['./mv2d-xray_r50_roi-volume_1xb1-24e_lidc.py']

# The feature strides of mmdet's own Faster R-CNN, 4 to 64, which the papers
# had to give up for a card of 16 GB: four times the cells.
strides = [4, 8, 16, 32, 64]
model = dict(
    feat_strides=strides,
    detector_2d=dict(
        neck=dict(start_level=0, add_extra_convs=False),
        rpn_head=dict(anchor_generator=dict(strides=strides)),
        roi_head=dict(bbox_roi_extractor=dict(featmap_strides=strides[:4]))),
    volume_level=1,
    lift_level=2)
