_base_ = ['./ct-detr.py']

# DETR in the size of the small Deformable DETR: attention between all cells
# of one level of stride 16, fixed queries.
width = 64
attention = dict(embed_dims=width, num_heads=4, batch_first=True)
ffn = dict(embed_dims=width, feedforward_channels=256, num_fcs=2, ffn_drop=0.,
           act_cfg=dict(type='ReLU', inplace=True))
model = dict(detector_2d=dict(
    type='DETR', num_queries=20,
    backbone=dict(
        type='ResNet', depth=18, base_channels=32, num_stages=3,
        strides=(1, 2, 2), dilations=(1, 1, 1), norm_eval=False,
        out_indices=(2, )),
    neck=dict(
        type='ChannelMapper', in_channels=[128], kernel_size=1,
        out_channels=width, act_cfg=None, norm_cfg=None, num_outs=1),
    encoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(num_layers=2, return_intermediate=True, layer_cfg=dict(
        self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=width // 2, normalize=True),
    bbox_head=dict(type='DETRHead', embed_dims=width,
                   init_cfg=_base_.prior),
    test_cfg=dict(max_per_img=10)))
