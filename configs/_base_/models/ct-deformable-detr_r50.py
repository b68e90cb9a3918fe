_base_ = ['./ct-detr.py']

# Document 003: Deformable DETR on C3 to C5 of a ResNet-50. Queries, layers and
# the fourth level are not given; they are mmdet's.
width = 256
attention = dict(embed_dims=width, num_heads=8, batch_first=True)
deformable = dict(embed_dims=width, num_levels=4, batch_first=True)
ffn = dict(embed_dims=width, feedforward_channels=1024, ffn_drop=.1)
model = dict(detector_2d=dict(
    type='DeformableDETR', num_queries=300, num_feature_levels=4,
    with_box_refine=False, as_two_stage=False,
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(1, 2, 3),
        frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True, style='pytorch', init_cfg=dict(
            type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(
        type='ChannelMapper', in_channels=[512, 1024, 2048], kernel_size=1,
        out_channels=width, act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32), num_outs=4),
    encoder=dict(num_layers=6, layer_cfg=dict(
        self_attn_cfg=deformable, ffn_cfg=ffn)),
    decoder=dict(num_layers=6, return_intermediate=True, post_norm_cfg=None,
                 layer_cfg=dict(self_attn_cfg=dict(attention, dropout=.1),
                                cross_attn_cfg=deformable, ffn_cfg=ffn)),
    positional_encoding=dict(
        num_feats=width // 2, normalize=True, offset=-.5),
    bbox_head=dict(type='DeformableDETRHead')))
