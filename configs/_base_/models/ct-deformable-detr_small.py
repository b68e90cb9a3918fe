_base_ = ['./ct-detr.py']

# Deformable DETR that trains from scratch on a CPU: the small Faster R-CNN's
# backbone, levels of strides 8, 16 and 32, two layers, each of which refines
# the boxes of the one before (Deformable DETR's paper). Its two stages need
# the full width in mmdet.
width = 64
attention = dict(embed_dims=width, num_heads=4, batch_first=True)
deformable = dict(attention, num_levels=3)
ffn = dict(embed_dims=width, feedforward_channels=256, ffn_drop=0.)
model = dict(detector_2d=dict(
    type='DeformableDETR', num_queries=20, num_feature_levels=3,
    with_box_refine=True, as_two_stage=False,
    backbone=dict(
        type='ResNet', depth=18, base_channels=32, num_stages=3,
        strides=(1, 2, 2), dilations=(1, 1, 1), norm_eval=False,
        out_indices=(1, 2)),
    neck=dict(
        type='ChannelMapper', in_channels=[64, 128], kernel_size=1,
        out_channels=width, act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=8), num_outs=3),
    encoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=dict(deformable, dropout=0.), ffn_cfg=ffn)),
    decoder=dict(num_layers=2, return_intermediate=True, post_norm_cfg=None,
                 layer_cfg=dict(self_attn_cfg=attention,
                                cross_attn_cfg=dict(deformable, dropout=0.),
                                ffn_cfg=ffn)),
    positional_encoding=dict(
        num_feats=width // 2, normalize=True, offset=-.5),
    bbox_head=dict(type='DeformableDETRHead', embed_dims=width),
    test_cfg=dict(max_per_img=10)))
