"""Sparse cross-attention decoder: each query reads only its own RoIs."""

from typing import Callable, List, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.models.layers import DetrTransformerDecoderLayer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
        query_chunk (int, optional): Queries that keys and values are gathered
            for at a time; in training they are gathered again for the
            gradients. They are the largest tensors of the decoder: 100 boxes
            in each of 20 views make two of 2 GB. Defaults to all queries.
    """

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 dropout: float = 0.,
                 query_chunk: Optional[int] = None,
                 init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.num_heads = num_heads
        self.query_chunk = query_chunk
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
        projected, keys, values, index, valid = self._project(
            query, query_pos, tokens, token_pos, index, valid)
        # What all queries see alike is not copied for each.
        alike = len(index) > 1 and bool(
            ((index == index[:1]) & (valid == valid[:1])).all())
        if alike:
            projected, index, valid = (
                projected.transpose(0, 2), index[:1], valid[:1])
        step = self.query_chunk or max(len(query), 1)
        out = []
        for part, chosen, real in zip(*(
                x.split(step) for x in (projected, index, valid))):
            args = part, keys, values, chosen, real
            out.append(
                checkpoint(self._attend, *args, use_reentrant=False)
                if self.query_chunk and torch.is_grad_enabled() else
                self._attend(*args))
        out = torch.cat(out)
        if alike:
            out = out.transpose(0, 2)
        out = out.transpose(1, 2).reshape(query.shape)
        return query + self.dropout(self.out_proj(out))

    def _attend(self, projected: Tensor, keys: Tensor, values: Tensor,
                index: Tensor, valid: Tensor) -> Tensor:
        """Some queries' values, (Q, heads, 1, C'), or (1, heads, Q, C')
        where one row of ``index`` is all of theirs."""
        return F.scaled_dot_product_attention(
            projected, self._gather(keys, self.null[0], index),
            self._gather(values, self.null[1], index),
            attn_mask=self._mask(valid, keys.shape[1]),
            dropout_p=self.attn_drop if self.training else 0.)

    @torch.no_grad()
    def weights(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
                token_pos: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """How much each query attends to each of its RoIs, for people.

        Arguments are those of :meth:`forward`.

        Returns:
            Tensor: (Q, 1 + K), the learned token and the RoIs of ``index``,
            mean over the heads; rows sum to 1, padding has 0.
        """
        projected, keys, _, chosen, real = self._project(
            query, query_pos, tokens, token_pos, index, valid)
        key = self._gather(keys, self.null[0], chosen)
        scores = projected @ key.transpose(2, 3) / key.shape[-1]**.5
        scores = scores.masked_fill(
            ~self._mask(real, keys.shape[1]), -torch.inf)
        weights = scores.softmax(-1).mean(1)[:, 0]
        of_rois = weights.new_zeros(index.shape)
        if len(tokens):
            of_rois = weights[:, 1:].view(*index.shape, -1).sum(-1)
        return torch.cat([weights[:, :1], of_rois], 1)

    def _project(self, query: Tensor, query_pos: Tensor, tokens: Tensor,
                 token_pos: Tensor, index: Tensor, valid: Tensor) -> tuple:
        """Query (Q, heads, 1, C'), all keys and values (R, T, C), and
        ``index`` and ``valid``, which without any RoI list none."""
        projected = self.query_proj(query + query_pos)
        projected = projected.unflatten(1, (1, self.num_heads, -1))
        listed = index.shape[1] if len(tokens) else 0
        return (projected.transpose(1, 2), self.key_proj(tokens + token_pos),
                self.value_proj(tokens), index[:, :listed], valid[:, :listed])

    def _gather(self, projected: Tensor, null: Tensor,
                index: Tensor) -> Tensor:
        """Keys or values that each query sees, (Q, heads, 1 + K T, C'), the
        learned token first."""
        queries, listed = index.shape
        # index_select's gradient is an index_add, far faster than that of
        # projected[index].
        gathered = projected.index_select(0, index.flatten())
        gathered = gathered.view(queries, listed * projected.shape[1],
                                 len(null))
        gathered = torch.cat([null.expand(queries, 1, -1), gathered], 1)
        return gathered.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _mask(valid: Tensor, num_tokens: int) -> Tensor:
        """Which of them are no padding, (Q, 1, 1, 1 + K T)."""
        mask = valid[..., None].expand(-1, -1, num_tokens).flatten(1)
        return F.pad(mask, (1, 0), value=True)[:, None, None]


class XRayDecoderLayer(DetrTransformerDecoderLayer):
    """DETR's decoder layer with sparse cross-attention."""

    def _init_layers(self) -> None:
        cross = dict(self.cross_attn_cfg)
        cross.pop('batch_first')
        # What super() builds only to be replaced knows no chunks.
        self.cross_attn_cfg.pop('query_chunk', None)
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
        query_chunk (int, optional): Of :class:`SparseCrossAttention`.
    """

    def __init__(self,
                 num_layers: int = 6,
                 embed_dims: int = 256,
                 num_heads: int = 8,
                 feedforward_channels: int = 2048,
                 dropout: float = .1,
                 query_chunk: Optional[int] = None,
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
                    dropout=dropout, query_chunk=query_chunk,
                    batch_first=True),
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
