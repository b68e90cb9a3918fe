_base_ = ['./ct-detr.py']

# Document 003's ablation: DETR without deformable attention, on C5 alone. As
# mmdet's, but for the focal loss, which it has here, too.
width = 256
attention = dict(embed_dims=width, num_heads=8, dropout=.1, batch_first=True)
ffn = dict(embed_dims=width, feedforward_channels=2048, num_fcs=2, ffn_drop=.1,
           act_cfg=dict(type='ReLU', inplace=True))
model = dict(detector_2d=dict(
    type='DETR', num_queries=100,
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(3, ),
        frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True, style='pytorch', init_cfg=dict(
            type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(
        type='ChannelMapper', in_channels=[2048], kernel_size=1,
        out_channels=width, act_cfg=None, norm_cfg=None, num_outs=1),
    encoder=dict(num_layers=6, layer_cfg=dict(
        self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(num_layers=6, return_intermediate=True, layer_cfg=dict(
        self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=width // 2, normalize=True),
    bbox_head=dict(type='DETRHead', embed_dims=width,
                   init_cfg=_base_.prior)))
