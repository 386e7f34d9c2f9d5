"""Heads of PyTorch's own attention: the same output, and what each head says where the projection takes it."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn

from captum_causalseg import LayerAverageTreatmentEffect, SegmentationTarget, component_effects, regions, reveal_heads
from captum_causalseg.interventions.attention import RevealedHeads

SIZES = {
    "plain": {},
    "other widths": {"kdim": 6, "vdim": 10},
    "no bias": {"bias": False},
    "added": {"add_bias_kv": True, "add_zero_attn": True},
}
N, L, S, E = 2, 5, 7, 8


def masks_of(kind: str) -> dict[str, Tensor]:
    """By the names of the arguments. No query is without a key."""
    each = torch.rand(N * 2, L, S) > 0.7
    each[..., 0] = False
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[0, -2:] = True
    return {
        "none": {},
        "shared": {"attn_mask": each[0]},
        "each head": {"attn_mask": each},
        "added": {"attn_mask": torch.randn(L, S)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": each, "key_padding_mask": padding},
    }[kind]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("masks", ["none", "shared", "each head", "added", "padding", "both"])
def test_the_same_as_in_one_function(sizes, masks):
    torch.manual_seed(0)
    for batch_first, need_weights, average in itertools.product((True, False), repeat=3):
        attention = nn.MultiheadAttention(E, 2, batch_first=batch_first, **SIZES[sizes]).eval()
        for parameter in attention.parameters():
            nn.init.normal_(parameter)
        given = [torch.randn(N, length, width) for length, width in ((L, E), (S, attention.kdim), (S, attention.vdim))]
        given = given if batch_first else [x.transpose(0, 1) for x in given]
        options = {**masks_of(masks), "need_weights": need_weights, "average_attn_weights": average}
        wanted, weights = attention(*given, **options)
        with reveal_heads(attention):
            found, own = attention(*given, **options)
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
        assert (weights is None) == (own is None) == (not need_weights)
        if weights is not None:
            torch.testing.assert_close(own, weights, atol=1e-6, rtol=1e-5)


def test_one_sequence_self_attention_and_gradients():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, 2, batch_first=True)
    tokens = torch.randn(N, L, E, requires_grad=True)
    causal = nn.Transformer.generate_square_subsequent_mask(L)
    wanted = [
        attention(tokens[0], tokens[0], tokens[0])[0],
        attention(tokens, tokens, tokens, need_weights=False, attn_mask=causal, is_causal=True)[0],
    ]
    with reveal_heads(attention):
        found = [
            attention(tokens[0], tokens[0], tokens[0])[0],
            attention(tokens, tokens, tokens, need_weights=False, attn_mask=causal, is_causal=True)[0],
        ]
        with pytest.raises(ValueError, match=r"^attn_mask: expected the causal mask"):
            attention(tokens, tokens, tokens, is_causal=True)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), tokens)[0] for x in (one, other)))


def test_what_the_projection_takes_are_the_heads():
    """By hand, head by head."""
    torch.manual_seed(0)
    attention, tokens = nn.MultiheadAttention(E, 2).eval(), torch.randn(L, N, E)
    taken: list[Tensor] = []
    attention.out_proj.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    with reveal_heads(attention), torch.no_grad():
        attention(tokens, tokens, tokens)
    q, k, v = (tokens.transpose(0, 1) @ w.T for w in attention.in_proj_weight.detach().split(E))
    heads = [
        (q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5).softmax(-1) @ v[..., part] for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(taken[0], torch.cat(heads, -1))


def test_it_ends_and_copies_have_it():
    model = nn.TransformerEncoderLayer(E, 2, 16).eval()
    revealed = reveal_heads(model)
    assert isinstance(revealed, RevealedHeads)
    kind = type(model.self_attn)
    assert kind is not nn.MultiheadAttention
    assert type(copy.deepcopy(model).self_attn) is type(pickle.loads(pickle.dumps(model)).self_attn) is kind
    reveal_heads(model).remove()  # nothing was left to do, nor to take back
    assert type(model.self_attn) is kind
    revealed.remove()
    revealed.remove()
    assert type(model.self_attn) is nn.MultiheadAttention
    with pytest.raises(ValueError, match=r"^model: expected one that holds torch.nn.MultiheadAttention, got Linear"):
        reveal_heads(nn.Linear(1, 1))


class Decoder(nn.Module):
    """Queries, which come first, look at an image and make a mask each, as in DETR and Mask2Former."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(1, E, 4, 4), nn.Embedding(2, E)
        self.attention, self.last = nn.MultiheadAttention(E, 2), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.patches(x)
        memory = pixels.flatten(2).permute(2, 0, 1)
        queries = self.queries.weight[:, None].expand(-1, len(x), -1)
        found = self.last(queries + self.attention(queries, memory, memory, need_weights=False)[0])
        return nn.functional.interpolate(torch.einsum("qnc,nchw->nqhw", found, pixels), scale_factor=4.0)


@torch.no_grad()
def test_heads_of_a_decoder_of_queries_are_replaced_as_by_hand():
    torch.manual_seed(0)
    model = Decoder().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    image, donors = torch.rand(2, 1, 16, 16, dtype=torch.double), torch.rand(3, 1, 16, 16, dtype=torch.double)
    roi = regions.box((16, 16), 4, 8)
    target = SegmentationTarget(model, roi, metric="probability_mean")
    face = LayerAverageTreatmentEffect(target, model.attention.out_proj)
    options = {"units": "head", "attribute_to_layer_input": True, "layout": "NLC", "n_draws": 3, "n_screening_draws": 0}
    with pytest.raises(
        ValueError, match=r"^layer: .* is not called when the model runs; .* captum_causalseg.reveal_heads\(model\)"
    ):
        face.attribute(image, donors, target=1, **options)
    with reveal_heads(model):
        attribution, statistics = face.attribute(image, donors, target=1, return_statistics=True, **options)
        assert attribution.shape == (2, 2, E)
        taken: list[Tensor] = []
        handle = model.attention.out_proj.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        model(donors)
        handle.remove()
        for head in range(2):
            scores = []
            for donor in taken[0]:

                def swap(module, args, donor=donor, part=slice(4 * head, 4 * head + 4)):
                    changed = args[0].clone()
                    changed[..., part] = donor[..., part]
                    return (changed,)

                handle = model.attention.out_proj.register_forward_pre_hook(swap)
                scores.append(model(image).softmax(1)[:, 1][:, roi].mean(-1))
                handle.remove()
            expected = model(image).softmax(1)[:, 1][:, roi].mean(-1) - torch.stack(scores).mean(0)
            torch.testing.assert_close(statistics.effect[:, head, 1], expected, atol=1e-9, rtol=0)
            assert expected.abs().max() > 1e-4
        table = component_effects(target, image, "*", donors, level="head", output=1, n_draws=3, layout="NLC")
    assert set(table["module"]) == {"attention.out_proj"}
    by_head = table.sort_values(["example", "head"])["effect"].to_numpy().reshape(2, 2)
    assert by_head == pytest.approx(statistics.effect[..., 1].numpy(), abs=1e-9)
