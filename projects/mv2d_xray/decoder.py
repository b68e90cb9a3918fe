"""Sparse cross-attention decoder: each query reads only its own RoIs."""

from typing import Callable, List

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmdet.models.layers import DetrTransformerDecoderLayer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

__all__ = ['SparseCrossAttention', 'XRayDecoder']


class SparseCrossAttention(BaseModule):
    """Multi-head attention of each query to the tokens of its listed RoIs.

    Keys and values are projected once for all RoIs and then gathered, so the
    cost grows with queries x listed RoIs, not with queries x all tokens. A
    learned token that every query sees keeps a query without any RoI defined.

    Args:
        embed_dims (int): C.
        num_heads (int): Heads.
        dropout (float): Of the attention weights and of the output.
    """

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 dropout: float = 0.,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.num_heads = num_heads
        self.query_proj = nn.Linear(embed_dims, embed_dims)
        self.key_proj = nn.Linear(embed_dims, embed_dims)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        self.null = nn.Parameter(torch.zeros(2, embed_dims))
        self.attn_drop = dropout
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier, as in DETR."""
        super().init_weights()
        for parameter in self.parameters():
            if parameter.dim() > 1 and parameter is not self.null:
                nn.init.xavier_uniform_(parameter)

    def forward(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
                token_pos: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """Attend.

        Args:
            query, query_pos (Tensor): (Q, C).
            tokens, token_pos (Tensor): (R, T, C), T tokens a RoI.
            index (Tensor): (Q, K), the RoIs of each query.
            valid (Tensor): (Q, K), False where ``index`` is padding.

        Returns:
            Tensor: (Q, C), with the residual added.
        """
        projected, key, value, mask = self._heads(
            query, query_pos, tokens, token_pos, index, valid)
        out = F.scaled_dot_product_attention(
            projected, key, value, attn_mask=mask,
            dropout_p=self.attn_drop if self.training else 0.)
        out = out.transpose(1, 2).reshape(query.shape)
        return query + self.dropout(self.out_proj(out))

    @torch.no_grad()
    def weights(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
                token_pos: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """How much each query attends to each of its RoIs, for people.

        Args:
            As for :meth:`forward`.

        Returns:
            Tensor: (Q, 1 + K), the learned token and the RoIs of ``index``,
            mean over the heads; rows sum to 1, padding has 0.
        """
        projected, key, _, mask = self._heads(query, query_pos, tokens,
                                              token_pos, index, valid)
        scores = projected @ key.transpose(2, 3) / key.shape[-1]**.5
        scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1).mean(1)[:, 0]
        of_rois = weights.new_zeros(index.shape)
        if len(tokens):
            of_rois = weights[:, 1:].view(*index.shape, -1).sum(-1)
        return torch.cat([weights[:, :1], of_rois], 1)

    def _heads(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
               token_pos: Tensor, index: Tensor, valid: Tensor) -> tuple:
        """Query (Q, heads, 1, C'), key and value (Q, heads, 1 + K T, C') and
        mask (Q, 1, 1, 1 + K T), the learned token first."""
        num_queries, channels = query.shape
        num_tokens = tokens.shape[1]
        heads = self.num_heads

        def gather(projected: Tensor, null: Tensor) -> Tensor:
            # index_select's gradient is an index_add, far faster than that
            # of projected[index].
            gathered = projected.index_select(0, index.flatten())
            gathered = gathered.view(
                num_queries, index.shape[1] * num_tokens, channels)
            null = null.expand(num_queries, 1, channels)
            gathered = torch.cat([null, gathered], 1)
            return gathered.unflatten(2, (heads, -1)).transpose(1, 2)

        if len(tokens) == 0:
            index = index[:, :0]
            valid = valid[:, :0]
        key = gather(self.key_proj(tokens + token_pos), self.null[0])
        value = gather(self.value_proj(tokens), self.null[1])
        mask = valid[..., None].expand(-1, -1, num_tokens).flatten(1)
        mask = F.pad(mask, (1, 0), value=True)[:, None, None]
        projected = self.query_proj(query + query_pos)
        projected = projected.reshape(num_queries, 1, heads,
                                      channels // heads).transpose(1, 2)
        return projected, key, value, mask


class XRayDecoderLayer(DetrTransformerDecoderLayer):
    """DETR's decoder layer with sparse cross-attention."""

    def _init_layers(self) -> None:
        cross = dict(self.cross_attn_cfg)
        cross.pop('batch_first')
        super()._init_layers()
        self.cross_attn = SparseCrossAttention(**cross)

    def forward(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
                token_pos: Tensor, index: Tensor, valid: Tensor,
                self_attn_mask: Tensor = None) -> Tensor:
        """See :class:`SparseCrossAttention`; shapes are the same."""
        query = self.self_attn(
            query[None], query_pos=query_pos[None], key_pos=query_pos[None],
            attn_mask=self_attn_mask)[0]
        query = self.norms[0](query)
        query = self.norms[1](
            self.cross_attn(query, query_pos, tokens, token_pos, index,
                            valid))
        return self.norms[2](self.ffn(query[None])[0])


@MODELS.register_module()
class XRayDecoder(BaseModule):
    """Stack of decoder layers that returns what each of them made.

    Args:
        num_layers (int): Layers. Defaults to 6.
        embed_dims (int): C. Defaults to 256.
        num_heads (int): Heads. Defaults to 8.
        feedforward_channels (int): Hidden width of the FFN. Defaults to 2048.
        dropout (float): Everywhere. Defaults to 0.1.
    """

    def __init__(self,
                 num_layers: int = 6,
                 embed_dims: int = 256,
                 num_heads: int = 8,
                 feedforward_channels: int = 2048,
                 dropout: float = .1,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.layers = ModuleList([
            XRayDecoderLayer(
                self_attn_cfg=dict(
                    embed_dims=embed_dims, num_heads=num_heads,
                    dropout=dropout, batch_first=True),
                cross_attn_cfg=dict(
                    embed_dims=embed_dims, num_heads=num_heads,
                    dropout=dropout, batch_first=True),
                ffn_cfg=dict(
                    embed_dims=embed_dims,
                    feedforward_channels=feedforward_channels,
                    ffn_drop=dropout,
                    act_cfg=dict(type='ReLU', inplace=True)))
            for _ in range(num_layers)
        ])

    def forward(self, query: Tensor, see: Callable[[List[Tensor]], tuple],
                self_attn_mask: Tensor = None) -> Tensor:
        """Refine queries.

        Args:
            query (Tensor): (Q, C).
            see (Callable): From what the layers so far made, the next layer's
                ``query_pos``, ``tokens``, ``token_pos``, ``index`` and
                ``valid``, with shapes as in :class:`SparseCrossAttention`.
            self_attn_mask (Tensor, optional): (Q, Q), True where a query must
                not look.

        Returns:
            Tensor: (layers, Q, C).
        """
        outputs: List[Tensor] = []
        for layer in self.layers:
            query = layer(query, *see(outputs), self_attn_mask)
            outputs.append(query)
        return torch.stack(outputs)
