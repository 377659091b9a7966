"""The attention contract against explicit softmax in float64, and its place in timm and transformers."""

import math

import pytest
import torch
from timm.layers import Attention
from torch import nn
from transformers import (
    AttentionInterface,
    BartConfig,
    BartModel,
    Dinov2Config,
    Dinov2Model,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from encoder.attention import attention, reference
from encoder.attention.wiring import NAME, REFERENCE, TimmAttention
from tests.calls import Calls


def qkv(B, Nq, Nk, H, Hk, D, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(B, Nq, H, D), make(B, Nk, Hk, D), make(B, Nk, Hk, D)


def by_hand(q, k, v, causal=False, scale=None):
    """One query, one head at a time."""
    B, Nq, H, D = q.shape
    Nk, groups = k.shape[1], H // k.shape[2]
    out = torch.zeros(B, Nq, H, v.shape[-1], dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(Nq):
                n = max(0, min(Nk, i + Nk - Nq + 1)) if causal else Nk
                if n:
                    scores = (k[b, :n, h // groups] @ q[b, i, h]) * (scale or 1 / math.sqrt(D))
                    out[b, i, h] = scores.exp() @ v[b, :n, h // groups] / scores.exp().sum()
    return out


CASES = [  # Nq, Nk, H, Hk, causal, scale
    (5, 5, 2, 2, False, None),
    (5, 5, 2, 2, True, None),
    (1, 7, 4, 2, True, None),
    (3, 7, 4, 1, True, 0.3),
    (7, 3, 2, 2, True, None),
    (2, 9, 2, 1, False, 1.7),
    (1, 1, 1, 1, True, None),
]


@pytest.mark.parametrize(("Nq", "Nk", "H", "Hk", "causal", "scale"), CASES)
@pytest.mark.parametrize("function", [attention, reference.attention_math, reference.attention_sdpa])
def test_dense_equals_softmax_by_hand(function, Nq, Nk, H, Hk, causal, scale):
    q, k, v = qkv(2, Nq, Nk, H, Hk, 16)
    out = function(q, k, v, causal=causal, scale=scale)
    torch.testing.assert_close(out, by_hand(q, k, v, causal, scale), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal):
    inputs = [x.requires_grad_() for x in qkv(1, 4, 6, 2, 1, 4)]
    for function in (attention, reference.attention_math):
        assert torch.autograd.gradcheck(lambda q, k, v, f=function: f(q, k, v, causal=causal), inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q_lengths", "k_lengths"),
    [
        ([3, 3, 2], [3, 3, 2]),  # two runs of equal lengths
        ([1, 4, 2, 7, 3, 5], [1, 4, 2, 7, 3, 5]),  # many lengths
        ([1, 1, 1, 1, 1, 1], [4, 9, 1, 7, 3, 5]),  # cached decoding
        ([2, 5, 1, 4, 3, 3], [4, 2, 6, 4, 1, 9]),  # some queries see nothing if causal
    ],
)
def test_packed_equals_each_sequence_alone(q_lengths, k_lengths, causal):
    H, Hk, D = 4, 2, 8
    g = torch.Generator().manual_seed(1)
    q = torch.randn(sum(q_lengths), H, D, generator=g, dtype=torch.float64, requires_grad=True)
    k = torch.randn(sum(k_lengths), Hk, D, generator=g, dtype=torch.float64, requires_grad=True)
    v = torch.randn(sum(k_lengths), Hk, D, generator=g, dtype=torch.float64, requires_grad=True)
    pack = {
        "cu_seqlens_q": torch.tensor([0, *q_lengths]).cumsum(0).int(),
        "cu_seqlens_k": torch.tensor([0, *k_lengths]).cumsum(0).int(),
        "max_seqlen_q": max(q_lengths),
        "max_seqlen_k": max(k_lengths),
    }
    alone = torch.cat(
        [
            reference.attention_math(a[None], b[None], c[None], causal=causal)[0]
            for a, b, c in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
        ]
    )
    out = attention(q, k, v, causal=causal, **pack)
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-12)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64)
    wanted = torch.autograd.grad((alone * weights).sum(), (q, k, v))
    torch.testing.assert_close(
        torch.autograd.grad((out * weights).sum(), (q, k, v)), wanted, rtol=1e-9, atol=1e-11
    )
    del pack["max_seqlen_q"], pack["max_seqlen_k"]
    torch.testing.assert_close(reference.attention_math(q, k, v, causal=causal, **pack), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("N", [1, 50, 197])
def test_error_is_that_of_pytorch_in_the_same_dtype(dtype, N):
    """FlashAttention's rule: at most twice the error of the formula computed in that dtype, plus a rounding step.

    With one key the gradients of q and k are 0, as the difference of two equal sums of 64 products; the rounding is
    then that of the sums, and whether it shows depends on the order in which a CPU's vector unit adds them.
    """
    inputs = [x.requires_grad_() for x in qkv(2, N, N, 3, 3, 64, dtype)]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = reference.attention_math(*exact_inputs)
    q, k, v = (x.transpose(1, 2) for x in inputs)
    torch_out = (torch.softmax((q * 64**-0.5) @ k.transpose(-1, -2), dim=-1) @ v).transpose(1, 2)
    ours = attention(*inputs)
    assert ours.dtype == dtype
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = [
        [out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), leaves)]
        for out, leaves in ((ours, inputs), (torch_out, inputs), (exact, exact_inputs))
    ]
    q, k, v = exact_inputs
    cancelled = (weights * v).sum(-1, keepdim=True) * 64**-0.5 * torch.maximum(q.abs(), k.abs())
    for x, theirs, truth in zip(*results, strict=True):
        sums = truth if truth.any() else cancelled
        rounding = torch.finfo(dtype).eps * max(1.0, sums.abs().max().item())
        allowed = 2 * (theirs.double() - truth).abs().max() + 2 * rounding
        assert (x.double() - truth).abs().max() <= allowed


def test_extreme_logits_stay_finite():
    q, k, v = qkv(1, 9, 9, 1, 1, 16, torch.float32)
    for factor in (100, -100):
        out = attention(q * factor, k * 10, v)
        torch.testing.assert_close(
            out, reference.attention_math(q.double() * factor, k.double() * 10, v.double()).float()
        )


def test_strided_views_need_no_copy():
    fused = torch.randn(2, 7, 3, 4, 8)
    q, k, v = fused.unbind(2)
    wanted = attention(q.contiguous(), k.contiguous(), v.contiguous())
    torch.testing.assert_close(attention(q, k, v), wanted)


CU = torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("shapes", "pack", "message"),
    [
        (((1, 2, 2, 8), (1, 2, 2), (1, 2, 2, 8)), {}, "expected"),
        (((1, 2, 2, 8), (1, 3, 2, 8), (1, 2, 2, 8)), {}, "do not fit"),
        (((1, 2, 2, 8), (1, 2, 2, 4), (1, 2, 2, 4)), {}, "do not fit"),
        (((2, 2, 2, 8), (1, 2, 2, 8), (1, 2, 2, 8)), {}, "do not fit"),
        (((1, 2, 3, 8), (1, 2, 2, 8), (1, 2, 2, 8)), {}, "multiple"),
        (((1, 0, 2, 8), (1, 2, 2, 8), (1, 2, 2, 8)), {}, "nothing to attend"),
        (((0, 2, 8),) * 3, {"cu_seqlens_q": CU, "max_seqlen_q": 3}, "nothing to attend"),
        (((5, 2, 8),) * 3, {"cu_seqlens_q": CU}, "max_seqlen_q"),
        (((5, 2, 8),) * 3, {"cu_seqlens_q": CU, "max_seqlen_q": 2}, "has 3 tokens"),
        (((6, 2, 8),) * 3, {"cu_seqlens_q": CU, "max_seqlen_q": 3}, "runs from 0 to 5"),
        (((5, 2, 8),) * 3, {"cu_seqlens_q": CU[:1], "max_seqlen_q": 3}, "at least one sequence"),
        (((5, 2, 8),) * 3, {"cu_seqlens_q": CU.float(), "max_seqlen_q": 3}, "int32"),
        (((5, 2, 8),) * 3, {"cu_seqlens_k": CU, "max_seqlen_k": 3}, "without cu_seqlens_q"),
        (((5, 2, 8), (4, 2, 8), (4, 2, 8)), {"cu_seqlens_q": CU, "max_seqlen_q": 3}, "runs from 0 to 5"),
        (
            ((5, 2, 8),) * 3,
            {"cu_seqlens_q": torch.tensor([0, 0, 5]), "max_seqlen_q": 5},
            "sequence 0 of cu_seqlens_q is empty",
        ),
        (
            ((5, 2, 8),) * 3,
            {"cu_seqlens_q": CU, "max_seqlen_q": 3, "cu_seqlens_k": torch.tensor([0, 5]), "max_seqlen_k": 5},
            "2 sequences",
        ),
    ],
)
def test_refusals(shapes, pack, message):
    with pytest.raises(ValueError, match=message):
        attention(*(torch.zeros(shape) for shape in shapes), **pack)


def test_refuses_mixed_dtypes():
    q, k, v = qkv(1, 2, 2, 1, 1, 8, torch.float32)
    with pytest.raises(ValueError, match="dtype"):
        attention(q, k.double(), v)


@pytest.fixture
def calls():
    with Calls() as mode:
        yield mode.made


def test_timm_attention_is_timms(calls):
    torch.manual_seed(0)
    theirs = Attention(48, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
    ours = TimmAttention(48, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 48)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    cu = torch.tensor([0, 4, 11], dtype=torch.int32)
    packed = ours(x[0], cu_seqlens=cu, max_seqlen=7)
    wanted = torch.cat([theirs(x[:1, :4]), theirs(x[:1, 4:])], 1)[0]
    torch.testing.assert_close(packed, wanted, rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="mask"):
        ours(x, attn_mask=torch.zeros(11, 11))


def tiny_llama(implementation, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation=implementation,
    )
    return LlamaForCausalLM(config).eval()


def padded(sequences, side):
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), 0)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        where = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), None)
        ids[row, where] = torch.tensor(sequence)
        mask[row, where] = 1
    return ids, mask


SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_llama_padded_logits_equal_unpadded(side, calls):
    model = tiny_llama(NAME)
    ids, mask = padded(SEQUENCES, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert len(calls) == 2
    assert calls[0][1]["causal"] and calls[0][1]["cu_seqlens_q"].tolist() == [0, 7, 9, 13]
    for row, sequence in enumerate(SEQUENCES):
        alone = model(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(logits[row, mask[row].bool()], alone, rtol=1e-4, atol=1e-5)
        with_sdpa = tiny_llama("sdpa")(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(alone, with_sdpa, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_llama_cached_decoding_with_unequal_lengths(calls):
    model = tiny_llama(NAME)
    ids, mask = padded(SEQUENCES, "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    following = torch.tensor([[20, 21], [22, 23], [24, 25]])  # two tokens at once, then one
    mask = torch.cat([mask, torch.ones_like(following)], 1)
    step = model(
        following,
        attention_mask=mask,
        position_ids=positions[:, -1:] + torch.tensor([[1, 2]]),
        past_key_values=out.past_key_values,
        use_cache=True,
    )
    mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
    last = model(
        torch.full((3, 1), 30),
        attention_mask=mask,
        position_ids=positions[:, -1:] + 3,
        past_key_values=step.past_key_values,
        use_cache=True,
    )
    for row, sequence in enumerate(SEQUENCES):
        alone = model(torch.tensor([[*sequence, *following[row].tolist(), 30]])).logits[0]
        torch.testing.assert_close(step.logits[row], alone[-3:-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last.logits[row], alone[-1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_a_decoding_step_leaves_the_keys_where_they_are(heads, calls):
    """One query a row: equal to the explicit formula of the unpadded rows, without a pack; a row whose last token is
    padding goes through the pack and comes out as zeros."""
    _, mask = padded(SEQUENCES, "left")
    torch.manual_seed(0)
    module = torch.nn.Module()
    q, k, v = (
        torch.randn(3, h, n, 8) for h, n in zip((heads[0], heads[1], heads[1]), (1, 7, 7), strict=True)
    )
    functions = [AttentionInterface()[name] for name in (NAME, REFERENCE)]
    ours, formula = (f(module, q, k, v, mask.bool(), scaling=0.3, is_causal=True)[0] for f in functions)
    assert ours.shape == (3, 1, heads[0], 8) and not calls
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-6)
    mask[1, -1] = 0
    ours, formula = (f(module, q, k, v, mask.bool(), scaling=0.3, is_causal=True)[0] for f in functions)
    assert len(calls) == 1 and not ours[1].any()
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_llama_with_a_cache_under_autocast(side):
    """The cache keeps values in the float32 that rotary embeddings leave keys in; attention answers in bfloat16."""
    ids, mask = padded(SEQUENCES, side)
    found = {}
    for name in (NAME, "sdpa", REFERENCE):
        model, cache = tiny_llama(name), DynamicCache()
        with torch.autocast("cpu", torch.bfloat16):
            first = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
            more = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
            step = model(ids[:, :1], attention_mask=more, past_key_values=cache, use_cache=True).logits
        found[name] = torch.cat([first.float()[mask.bool()], step.float()[:, 0]])
    for name in (NAME, REFERENCE):
        torch.testing.assert_close(found[name], found["sdpa"], rtol=0.05, atol=0.05)


def test_llama_generates_as_with_sdpa():
    ids, mask = padded(SEQUENCES, "left")
    texts = [
        tiny_llama(name).generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for name in (NAME, "sdpa", REFERENCE)
    ]
    assert torch.equal(*texts[:2]) and torch.equal(*texts[1:])


def test_llama_packed_logits_and_gradients_equal_each_sequence_alone(calls):
    """A pack as transformers' FlashAttentionKwargs say it: no sequence sees another, nothing is padded."""
    lengths = torch.tensor([len(s) for s in SEQUENCES])
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    row = torch.tensor([[token for s in SEQUENCES for token in s]])
    pack = {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None], "attention_mask": torch.ones_like(row),
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 7, "max_length_k": 7,
    }  # fmt: skip
    model, alone = tiny_llama(NAME), tiny_llama("sdpa")
    logits = model(row, **pack).logits
    assert [call[1]["cu_seqlens_k"].tolist() for call in calls] == [[0, 7, 9, 13]] * 2
    wanted = torch.cat([alone(torch.tensor([s])).logits[0] for s in SEQUENCES])
    torch.testing.assert_close(logits[0], wanted, rtol=1e-4, atol=1e-5)
    logits.square().sum().backward()
    wanted.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="as one row"):
        model(row.repeat(2, 1), **{**pack, "attention_mask": None, "position_ids": None})
    with pytest.raises(ValueError, match="max_length"):
        model(row, **{**pack, "max_length_k": None})


@torch.no_grad()
def test_what_a_mask_says_is_worked_out_once_a_forward(monkeypatch):
    """And not once a layer: on a GPU it has to wait for the device."""
    model, asked = tiny_llama(NAME), []
    nonzero = torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda *a, **k: asked.append(1) or nonzero(*a, **k))
    ids, mask = padded(SEQUENCES, "right")
    model(ids, attention_mask=mask)
    assert len(asked) == 2  # queries and keys, for both layers
    model(ids, attention_mask=mask.clone())
    assert len(asked) == 4


def test_llama_gradients_of_a_padded_batch_equal_sdpa():
    ids, mask = padded(SEQUENCES, "right")
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for name in (NAME, "sdpa"):
        model = tiny_llama(name).train()
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 7])  # of the other sequence: shorter, and as long as the keys
def test_cross_attention_takes_the_mask_for_the_keys(length):
    generator = torch.Generator().manual_seed(1)
    ids, mask = padded([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]], "right")
    others = torch.randint(3, 40, (2, length), generator=generator)
    outputs = []
    for name in (NAME, REFERENCE, "sdpa"):
        torch.manual_seed(0)
        config = BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
        )
        model = BartModel._from_config(config, attn_implementation=name).eval()
        outputs.append(model(input_ids=ids, attention_mask=mask, decoder_input_ids=others).last_hidden_state)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[1], outputs[2], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_dinov2_equals_sdpa(calls):
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    outputs = []
    for name in (NAME, "sdpa"):
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=56)
        model = Dinov2Model._from_config(config, attn_implementation=name).eval()
        outputs.append(model(x).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    assert len(calls) == 3
    assert not calls[0][1]["causal"]


@torch.no_grad()
def test_what_cannot_be_expressed_is_refused():
    ids, mask = padded(SEQUENCES, "left")
    window = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=3,
        attn_implementation=NAME,
    )
    with pytest.raises(ValueError, match="sdpa"):
        MistralForCausalLM(window).eval()(ids, attention_mask=mask)
    model = tiny_llama(NAME)
    with pytest.raises(ValueError, match="static"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
    with pytest.raises(ValueError, match="padding masks"):
        model(ids, attention_mask=torch.zeros(3, 1, 7, 7))
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="dropout"):
        model.train()(ids)
