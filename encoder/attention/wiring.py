"""Where our attention enters other people's models: timm's `attn_layer`, transformers' AttentionInterface.

Importing this module registers the names `cxr_attention` and `cxr_reference` (the explicit formula) with transformers.
(A name with "flash" in it would be taken for a kernel on the hub; without a mask function of the same name, padded
batches would silently lose their mask.)
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import NamedTuple

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

import encoder.attention as cxr

NAME, REFERENCE = "cxr_attention", "cxr_reference"
TRANSFORMERS = {
    "cxr": NAME,
    "sdpa": "sdpa",
    "reference": REFERENCE,
}  # what a model is asked for, by --attention


class TimmAttention(Attention):
    """timm's Attention with the same parameters and state-dict keys, through `encoder.attention.attention`, or another
    of its CHOICES that the attribute `attention` names.

    Besides timm's (B, N, C) it takes packed tokens (T, C) with `cu_seqlens` and `max_seqlen`.
    """

    attention = "cxr"

    def forward(
        self,
        x_BNC: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Attend within each image: (B, N, C) -> (B, N, C), or packed tokens (T, C) with `cu_seqlens`.

        Raises:
            ValueError: a mask, dropout on attention weights, or gated attention: no kernel here has them.
        """
        if attn_mask is not None:
            raise ValueError("TimmAttention takes no mask: unpad the batch and pass cu_seqlens")
        if self.training and self.attn_drop.p > 0:
            raise ValueError("TimmAttention has no dropout on attention weights; set attn_drop to 0")
        if getattr(self, "gate", None) is not None:
            raise ValueError(
                "TimmAttention does not gate its output; build the model without gated attention"
            )
        qkv = self.qkv(x_BNC).unflatten(-1, (3, self.num_heads, self.head_dim))
        q_BNHD, k_BNHD, v_BNHD = qkv.unbind(-3)
        q_BNHD, k_BNHD = self.q_norm(q_BNHD).to(v_BNHD.dtype), self.k_norm(k_BNHD).to(v_BNHD.dtype)
        out_BNHD = cxr.CHOICES[self.attention](
            q_BNHD,
            k_BNHD,
            v_BNHD,
            causal=is_causal,
            scale=self.scale,
            cu_seqlens_q=cu_seqlens,
            max_seqlen_q=max_seqlen,
        )
        return self.proj_drop(self.proj(self.norm(out_BNHD.flatten(-2))))


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention: str = "cxr",
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Serve as transformers' AttentionInterface function: q, k, v are (B, H, N, D), the mask is what
    `padding_mask` made.

    A pack of several sequences in one row (B = 1) is given by `cu_seq_lens_q`, `max_length_q` and the same of
    k, as transformers' FlashAttentionKwargs have them. Give an attention mask of ones with them; otherwise
    transformers takes the restarting position_ids for a pattern of its own.

    Raises ValueError for what the contract cannot say (dropout, soft cap, a sliding window, position bias,
    4-D masks).
    """
    pack = _pack(query, attention_mask, kwargs)
    window = kwargs.pop("sliding_window", None)
    if window is not None and (pack["max_seqlen_k"] if pack else key.shape[2]) > window:
        kwargs["sliding_window"] = window
    for name in ("softcap", "position_bias", "sliding_window", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{NAME} does not support {name}; load the model with attn_implementation='sdpa'"
            )
    if dropout:
        raise ValueError(f"{NAME} has no attention dropout; set the model's attention dropout to 0")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    # Under autocast rotary embeddings leave q and k in float32 beside a v in lower precision.
    query, key = query.to(value.dtype), key.to(value.dtype)
    q_BNHD, k_BNHD, v_BNHD = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if pack:
        out_THD = cxr.CHOICES[attention](
            q_BNHD[0], k_BNHD[0], v_BNHD[0], causal=causal, scale=scaling, **pack
        )
        return out_THD[None], None
    if attention_mask is None:
        return cxr.CHOICES[attention](q_BNHD, k_BNHD, v_BNHD, causal=causal, scale=scaling), None
    if attention_mask.dim() != 2:
        raise ValueError(
            f"{NAME} takes padding masks (batch, keys), got {tuple(attention_mask.shape)}; "
            "load the model with attn_implementation='sdpa' for masks of another form"
        )
    if attention == "cxr" and _is_decoding(attention_mask, query.shape[2], causal):
        return _decoded(query, key, value, attention_mask, scaling), None
    return _unpadded(q_BNHD, k_BNHD, v_BNHD, attention_mask, cxr.CHOICES[attention], causal, scaling), None


def _is_decoding(mask_BM: Tensor, n_q: int, causal: bool) -> bool:
    """Tell whether every row asks with its last token alone, as at every step of generation after the
    first."""
    if n_q > 1 or not causal:
        return False
    found = _paddings.setdefault(mask_BM, {})
    if "decoding" not in found:
        found["decoding"] = bool(mask_BM[:, -1].all())
    return found["decoding"]


def _decoded(q_BH1D: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, mask_BM: Tensor, scale: float | None) -> Tensor:
    """One query a row over keys that lie where the cache has them: to pack them would copy the whole cache at every
    layer of every step. The query heads of a key head go in as its queries, so that no key is repeated either."""
    batch, heads, _, width = q_BH1D.shape
    q_BHGD = q_BH1D.reshape(batch, k_BHMD.shape[1], -1, width)
    out_BHGD = nn.functional.scaled_dot_product_attention(
        q_BHGD, k_BHMD, v_BHMD, attn_mask=mask_BM.bool()[:, None, None], scale=scale
    )
    return out_BHGD.reshape(batch, 1, heads, width)


def _pack(query: Tensor, attention_mask: Tensor | None, kwargs: dict) -> dict | None:
    """Return the lengths of a pack in our words; None if there is none. Takes them out of `kwargs`."""
    theirs = {f"{ours}_{side}": kwargs.pop(f"{name}_{side}", None) for side in "qk" for ours, name in (
        ("cu_seqlens", "cu_seq_lens"), ("max_seqlen", "max_length"))}  # fmt: skip
    if theirs["cu_seqlens_q"] is None:
        return None
    if query.shape[0] != 1 or attention_mask is not None or any(x is None for x in theirs.values()):
        raise ValueError(
            f"{NAME} takes a pack as one row, with cu_seq_lens and max_length of q and k and no padding; got "
            f"{query.shape[0]} rows, mask {'given' if attention_mask is not None else 'none'}"
        )
    return theirs


class Padding(NamedTuple):
    """Say where the real tokens of a padded batch are, and the pack that they make."""

    q: tuple[Tensor, Tensor]  # row and position of each
    k: tuple[Tensor, Tensor]
    lengths: dict  # of the pack, as `encoder.attention.attention` takes them


# A mask serves all layers of a model: what has to ask the device is done once a mask, not once a layer.
# (`padding_mask` makes a new one at every forward pass.)
_paddings: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _padding(mask_BM: Tensor, n_q: int, causal: bool) -> Padding | None:
    """None if there is no real query. Causal queries are the last `n_q` positions of the keys, and padding where those
    are; of others the mask says nothing (they may be another sequence's: cross-attention), so all are taken for real.
    """
    found = _paddings.setdefault(mask_BM, {})
    if (n_q, causal) in found:
        return found[n_q, causal]
    real_BM = mask_BM.bool()
    if causal:
        q_real_BN = real_BM[:, real_BM.shape[1] - n_q :]
    else:
        q_real_BN = real_BM.any(1, keepdim=True).expand(-1, n_q)
    rows = q_real_BN.any(1)  # a row with no query of its own is left out, for a pack has no empty sequences
    q_lens, k_lens = q_real_BN.sum(1)[rows], real_BM.sum(1)[rows]
    if not q_lens.numel():
        return found.setdefault((n_q, causal), None)
    max_q, max_k = torch.stack([q_lens.max(), k_lens.max()]).tolist()
    lengths = {
        "cu_seqlens_q": _cumulated(q_lens), "max_seqlen_q": max_q,
        "cu_seqlens_k": _cumulated(k_lens), "max_seqlen_k": max_k,
    }  # fmt: skip
    q, k = (x.nonzero(as_tuple=True) for x in (q_real_BN, real_BM & rows[:, None]))
    return found.setdefault((n_q, causal), Padding(q, k, lengths))


def _unpadded(
    q_BNHD, k_BNHD, v_BNHD, mask_BM: Tensor, attention, causal: bool, scale: float | None
) -> Tensor:
    """Padded batch -> pack -> padded batch; padding positions come out as zeros."""
    padding = _padding(mask_BM, q_BNHD.shape[1], causal)
    if padding is None:
        return torch.zeros_like(q_BNHD, memory_format=torch.contiguous_format)
    q_THD, k_THD, v_THD = q_BNHD[padding.q], k_BNHD[padding.k], v_BNHD[padding.k]
    out_THD = attention(q_THD, k_THD, v_THD, causal=causal, scale=scale, **padding.lengths)
    out_BNHD = out_THD.new_zeros(
        q_BNHD.shape
    )  # under autocast of a lower precision than q (caches keep float32)
    out_BNHD[padding.q] = out_THD
    return out_BNHD


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs,
) -> Tensor | None:
    """Serve as transformers' AttentionMaskInterface function: return None, or a bool mask (batch, keys) that
    is False at padding."""
    if _is_causal(mask_function, kv_offset + kv_length, kwargs.get("local_size")):
        mask_function = causal_mask_function
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError(
            f"{NAME} knows causal and bidirectional attention with padding; this model asks for another pattern "
            "(sliding window, packed position_ids, ...): load it with attn_implementation='sdpa'"
        )
    if mask_function is causal_mask_function and int(q_offset) + q_length != kv_length + kv_offset:
        raise ValueError(
            f"{NAME} needs a dynamic cache (a static one has unused slots); use attn_implementation='sdpa'"
        )
    if attention_mask is None:
        return None
    if attention_mask.shape[1] < kv_offset + kv_length:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[1]} positions, but there are {kv_offset + kv_length} keys"
        )
    real_BM = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return None if real_BM.all() else real_BM


def _is_causal(mask_function, keys: int, window: int | None) -> bool:
    """Tell whether it is the causal one after all: a sliding window (Mistral, Phi-3) that no key has left
    yet."""
    parts = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    if len(parts) != 2 or parts[1] is not causal_mask_function or window is None:
        return False
    return parts[0].__qualname__.startswith("sliding_window_overlay") and int(keys) <= window


def _cumulated(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


for _choice in ("cxr", "reference"):
    AttentionInterface.register(TRANSFORMERS[_choice], partial(transformers_attention, attention=_choice))
    AttentionMaskInterface.register(TRANSFORMERS[_choice], padding_mask)
