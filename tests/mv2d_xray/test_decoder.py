"""Sparse attention is attention, only to what a query may see."""

import pytest
import torch
import torch.nn.functional as F

from projects.mv2d_xray.lifting.decoder import (
    SparseCrossAttention,
    XRayDecoder,
)


def inputs(queries=5, rois=4, tokens=6, channels=16):
    torch.manual_seed(1)
    return dict(
        query=torch.randn(queries, channels),
        query_pos=torch.randn(queries, channels),
        tokens=torch.randn(rois, tokens, channels),
        token_pos=torch.randn(rois, tokens, channels))


def test_equals_dense_attention_with_a_mask():
    module = SparseCrossAttention(16, 2)
    module.init_weights()
    torch.nn.init.normal_(module.null)
    data = inputs()
    index = torch.tensor([[0, 1], [2, 0], [3, 3], [1, 2], [0, 0]])
    valid = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1], [0, 0]]).bool()
    sparse = module(**data, index=index, valid=valid)
    # The same with every token and a mask.
    allowed = torch.zeros(5, 4, dtype=torch.bool)
    for row in range(5):
        allowed[row, index[row][valid[row]]] = True
    key = module.key_proj(data['tokens'] + data['token_pos']).flatten(0, 1)
    value = module.value_proj(data['tokens']).flatten(0, 1)
    key = torch.cat([module.null[:1], key])
    value = torch.cat([module.null[1:], value])
    mask = F.pad(allowed.repeat_interleave(6, 1), (1, 0), value=True)

    def heads(x):
        return x.reshape(len(x), 2, 8).transpose(0, 1)

    query = module.query_proj(data['query'] + data['query_pos'])
    dense = F.scaled_dot_product_attention(
        heads(query), heads(key), heads(value), attn_mask=mask)
    dense = data['query'] + module.out_proj(
        dense.transpose(0, 1).reshape(5, 16))
    torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize('listed', [0, 1, 3])
def test_what_all_see_alike_is_seen_as_by_each_alone(listed):
    module = SparseCrossAttention(16, 2)
    module.init_weights()
    data = inputs()
    index = torch.tensor([[2, 0, 3]])[:, :listed]
    valid = torch.tensor([[True, True, False]])[:, :listed]
    together = module(**data, index=index.expand(5, -1),
                      valid=valid.expand(5, -1))
    for row in range(5):
        alone = {k: v[row:row + 1] if 'query' in k else v
                 for k, v in data.items()}
        torch.testing.assert_close(
            module(**alone, index=index, valid=valid)[0], together[row])


@pytest.mark.parametrize('num_queries', [0, 1, 5])
def test_chunks_of_queries_change_nothing(num_queries):
    found = []
    for chunk in (None, 2):
        torch.manual_seed(0)
        module = SparseCrossAttention(16, 2, query_chunk=chunk)
        module.init_weights()
        data = {k: v[:num_queries] if 'query' in k else v
                for k, v in inputs().items()}
        data['tokens'].requires_grad_()
        index = torch.tensor([[0, 1], [2, 0], [3, 3], [1, 2], [0, 0]])
        valid = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1], [0, 0]]).bool()
        out = module(**data, index=index[:num_queries],
                     valid=valid[:num_queries])
        out.square().sum().backward()
        found.append([out, data['tokens'].grad, module.null.grad,
                      *(p.grad for p in module.key_proj.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_other_rois_do_not_matter():
    module = SparseCrossAttention(16, 2)
    module.init_weights()
    data = inputs()
    index = torch.tensor([[0]] * 5)
    valid = torch.ones(5, 1, dtype=torch.bool)
    before = module(**data, index=index, valid=valid)
    data['tokens'][1:] += 5
    torch.testing.assert_close(
        module(**data, index=index, valid=valid), before)
    data['tokens'][0] += 1
    assert not torch.allclose(
        module(**data, index=index, valid=valid), before)


def test_no_rois_and_no_valid_roi_are_finite():
    module = SparseCrossAttention(16, 2)
    module.init_weights()
    data = inputs(rois=0)
    out = module(**data, index=torch.zeros(5, 3, dtype=torch.long),
                 valid=torch.zeros(5, 3, dtype=torch.bool))
    assert torch.isfinite(out).all()


def test_weights_are_those_of_the_forward_pass():
    module = SparseCrossAttention(16, 1)
    module.init_weights()
    torch.nn.init.normal_(module.null)
    data = inputs(tokens=1)
    data['index'] = torch.tensor([[0, 1], [2, 0], [3, 3], [1, 2], [0, 0]])
    data['valid'] = torch.tensor(
        [[1, 1], [1, 0], [1, 0], [1, 1], [0, 0]]).bool()
    weights = module.weights(**data)
    assert (weights[:, 1:][~data['valid']] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert weights[4].tolist() == [1, 0, 0]
    value = module.value_proj(data['tokens'])[:, 0][data['index']]
    value = torch.cat([module.null[1].expand(5, 1, 16), value], 1)
    read = (weights[..., None] * value).sum(1)
    torch.testing.assert_close(
        module(**data), data['query'] + module.out_proj(read))
    # Heads and tokens of a RoI are summed up.
    module = SparseCrossAttention(16, 4)
    module.init_weights()
    weights = module.weights(**dict(data, **{
        k: v.expand(-1, 6, -1) for k, v in data.items() if 'token' in k}))
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    none = dict(data, tokens=torch.zeros(0, 1, 16),
                token_pos=torch.zeros(0, 1, 16))
    assert module.weights(**none)[:, 0].tolist() == [1] * 5


def test_every_layer_is_returned():
    decoder = XRayDecoder(num_layers=3, embed_dims=16, num_heads=2,
                          feedforward_channels=32, dropout=0.)
    decoder.init_weights()
    data, counts = inputs(), []

    def see(outputs):
        counts.append(len(outputs))
        return (*list(data.values())[1:],
                torch.zeros(5, 1, dtype=torch.long),
                torch.ones(5, 1, dtype=torch.bool))

    out = decoder(data['query'], see)
    assert out.shape == (3, 5, 16)
    assert not torch.allclose(out[0], out[2])
    assert counts == [0, 1, 2]


def test_papers_size_by_default():
    decoder = XRayDecoder()
    layer = decoder.layers[0]
    assert len(decoder.layers) == 6 and layer.embed_dims == 256
    assert layer.cross_attn.num_heads == 8
    assert layer.ffn.feedforward_channels == 2048
