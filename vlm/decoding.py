"""From prompts and images to words: greedy, beam and sampled decoding in batches, and how sure the model was.

Shape letters: B prompts, N tokens, H width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm.errors import AskedError
from vlm.parts import parts
from vlm.repeats import StopRepeats

if TYPE_CHECKING:
    from vlm.model import FindingsModel

METHODS = ("greedy", "beam", "sample")
# Beyond these, logits over the temperature or a length's power are no longer finite in float32.
COLDEST, HOTTEST, STEEPEST = 1e-6, 1e6, 10.0
STEP = 64  # tokens: lengths of prompts with a static cache are multiples, so that few are compiled for


@dataclass(frozen=True)
class Decoding:
    """Set how an answer is chosen. Raises AskedError for options that exclude each other."""

    max_new_tokens: int = 256
    method: str = "greedy"  # the same words in every run; beam: searched more widely; sample: drawn
    beams: int = 1  # of beam search
    length_penalty: float = 1.0  # of beam search; above 1 favours longer answers
    temperature: float = 1.0  # of sampling
    top_p: float = 1.0  # of sampling: the most probable tokens that together have this probability
    seed: int = 0  # of sampling
    # whether an answer that begins to repeat itself ends there (vlm/repeats.py)
    stop_repeats: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise AskedError(f"decoding {self.method!r} is unknown; there are {', '.join(METHODS)}")
        if (self.method == "beam") != (self.beams > 1) or self.beams < 1:
            raise AskedError(
                f"beam search needs 2 beams or more, other decoding 1; not {self.method} with {self.beams}"
            )
        if self.method != "sample" and (self.temperature, self.top_p) != (1.0, 1.0):
            raise AskedError(f"temperature and top_p apply to sampling, not to {self.method} decoding")
        if not (COLDEST <= self.temperature <= HOTTEST and 0 < self.top_p <= 1):
            raise AskedError(
                f"temperature must be from {COLDEST:g} to {HOTTEST:g}, top_p above 0 and at most 1, "
                f"not {self.temperature} and {self.top_p}"
            )
        if not abs(self.length_penalty) <= STEEPEST:
            raise AskedError(
                f"length_penalty must be from {-STEEPEST:g} to {STEEPEST:g}, not {self.length_penalty}"
            )
        if not 0 <= self.seed < 2**63:
            raise AskedError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed}")
        if self.max_new_tokens < 1:
            raise AskedError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    def to_json(self) -> dict[str, Any]:
        """Return the options that mean something for the method, as a prediction records them."""
        meant = {"beam": ("beams", "length_penalty"), "sample": ("temperature", "top_p", "seed")}.get(
            self.method, ()
        )
        said = {
            "method": self.method,
            "max_new_tokens": self.max_new_tokens,
            "stop_repeats": self.stop_repeats,
        }
        return said | {k: getattr(self, k) for k in meant}

    def arguments(self) -> dict[str, Any]:
        """Return the options as arguments of transformers' `generate`."""
        sample = self.method == "sample"
        more = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if sample else {}
        if self.method == "beam":
            more["length_penalty"] = self.length_penalty
        return {"do_sample": sample, "num_beams": self.beams, "max_new_tokens": self.max_new_tokens, **more}


@torch.inference_mode()
def generate_ids(
    llava: nn.Module,
    model: FindingsModel,
    prompts: list[list[int]],
    pixels: Tensor,
    decoding: Decoding,
    *,
    static: bool = False,
    synced: bool = False,
    seen: Tensor | None = None,
) -> list[list[int]]:
    """Generate the token ids after each prompt, up to and with the end-of-sequence token. `pixels` (images,
    3, H, W) are those of the first prompt, then of the second, ...; or features (images, tokens, C) where a
    FeatureTower stands in for it. `seen`: what `image_tokens` made of them before.

    `static` keeps keys and values in memory of one size, for which transformers compiles the step on a GPU; attention
    is PyTorch's then, for ours needs the cache to grow. `synced` continues until all processes have finished,
    which share the weights.
    """
    tokenizer = model.tokenizer
    embeds_BNH, mask_BN = embed(
        llava, model, prompts, pixels, left=True, multiple=STEP if static else 1, seen=seen
    )
    with (
        torch.random.fork_rng(
            devices=[pixels.device] if pixels.is_cuda else [], enabled=decoding.method == "sample"
        ),
        _with_sdpa(llava) if static else nullcontext(),
    ):
        if decoding.method == "sample":
            torch.manual_seed(decoding.seed)
        # embeddings, not pixels: beams repeat their inputs row by row, and a prompt may have several images
        rows = llava.generate(
            inputs_embeds=embeds_BNH,
            attention_mask=mask_BN,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=True,
            synced_gpus=synced,
            **({"logits_processor": [StopRepeats(tokenizer)]} if decoding.stop_repeats else {}),
            **({"cache_implementation": "static"} if static else {}),
            **decoding.arguments(),
        ).tolist()
    eos = tokenizer.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@contextmanager
def _with_sdpa(llava: nn.Module) -> Iterator[None]:
    """Return the language model with PyTorch's attention."""
    config = parts(llava).language_model.config
    before, config._attn_implementation = config._attn_implementation, "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def embed(
    llava: nn.Module,
    model: FindingsModel,
    rows: list[list[int]],
    pixels: Tensor,
    *,
    left: bool,
    multiple: int = 1,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed token ids with image tokens, and images: (embeddings (B, N, H), mask (B, N)), padded on the left
    or right to a `multiple`. `seen`: what `image_tokens` made of the images before. Raises ValueError if the
    image tokens are not those of the images."""
    ids_BN, mask_BN = padded(rows, model.tokenizer.pad_token_id, left, multiple)
    ids_BN, mask_BN = ids_BN.to(pixels.device), mask_BN.to(pixels.device)
    embeds_BNH = llava.get_input_embeddings()(ids_BN)
    image_BN = (ids_BN == llava.config.image_token_id) & mask_BN.bool()
    tokens_NH = (image_tokens(llava, pixels) if seen is None else seen).to(embeds_BNH.dtype)
    if int(image_BN.sum()) != len(tokens_NH):
        raise ValueError(
            f"the prompts have {int(image_BN.sum())} image tokens, their images {len(tokens_NH)}"
        )
    return embeds_BNH.masked_scatter(image_BN[..., None], tokens_NH), mask_BN


def image_tokens(llava: nn.Module, pixels: Tensor) -> Tensor:
    """Return what the language model reads of images (images, 3, H, W): the projected tokens of all, one
    after another (N, H).

    The encoder is most of the work on short texts, so what reads the same images again is given them.
    """
    return torch.cat(list(parts(llava).base.get_image_features(pixels).pooler_output))


def padded(rows: list[list[int]], pad: int, left: bool, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, N), N a `multiple`."""
    n = -(-max(map(len, rows)) // multiple) * multiple
    ids_BN = torch.full((len(rows), n), pad)
    mask_BN = torch.zeros_like(ids_BN)
    for i, row in enumerate(rows):
        where = slice(n - len(row), n) if left else slice(0, len(row))
        ids_BN[i, where] = torch.tensor(row)
        mask_BN[i, where] = 1
    return ids_BN, mask_BN


@torch.inference_mode()
def answer_logprobs(
    llava: nn.Module,
    model: FindingsModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    pixels: Tensor,
    seen: Tensor | None = None,
) -> list[list[float]]:
    """Return the natural log-probability of every token of each answer after its prompt, by teacher forcing,
    unaltered by temperature or beams. `seen`: what `image_tokens` made of the pixels before."""
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    embeds_BNH, mask_BN = embed(llava, model, rows, pixels, left=False, seen=seen)
    keep = max(map(len, rows)) - min(map(len, prompts)) + 1
    logits_BKV = llava(inputs_embeds=embeds_BNH, attention_mask=mask_BN, logits_to_keep=keep).logits
    start = embeds_BNH.shape[1] - logits_BKV.shape[1]
    found = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        first = len(prompt) - 1 - start
        logp_AV = logits_BKV[i, first : first + len(answer)].float().log_softmax(-1)
        found.append(logp_AV.gather(1, torch.tensor(answer, device=logp_AV.device)[:, None])[:, 0].tolist())
    return found


def branch_logprobs(
    llava: nn.Module,
    model: FindingsModel,
    prompt: list[int],
    answer: list[int],
    branches: list[tuple[int, list[int]]],
    pixels: Tensor,
    seen: Tensor | None = None,
) -> list[list[float]]:
    """Return the natural log-probability of every token of each branch: what might have been written after the prompt
    and the first tokens of the answer, as many as the branch says.

    All in one pass: prompt and answer stand once, each branch sees them up to its place, and itself. `pixels` and
    `seen` as in `answer_logprobs`.
    """
    if seen is None:
        with torch.inference_mode():
            seen = image_tokens(llava, pixels)
    return branch_logprobs_of(llava, model, prompt, answer, branches, pixels, seen[None])[0]


@torch.inference_mode()
def branch_logprobs_of(
    llava: nn.Module,
    model: FindingsModel,
    prompt: list[int],
    answer: list[int],
    branches: list[tuple[int, list[int]]],
    pixels: Tensor,
    seen_VMH: Tensor,
) -> list[list[list[float]]]:
    """Return `branch_logprobs` under each of V variants of what the model sees of the images, (V, tokens, H)."""
    rows = [prompt + answer + [token for _, ids in branches for token in ids]]
    embeds_1NH, _ = embed(llava, model, rows, pixels, left=False, seen=seen_VMH[0])
    embeds_VNH = embeds_1NH.repeat(len(seen_VMH), 1, 1)
    image_N = torch.tensor(rows[0], device=embeds_1NH.device) == model.config.image_token_id
    embeds_VNH[:, image_N] = seen_VMH.to(embeds_VNH.dtype)
    trunk, N = len(prompt) + len(answer), len(rows[0])
    sees_NN = torch.ones(N, N, dtype=torch.bool, device=embeds_1NH.device).tril()
    positions_N = torch.arange(N, device=embeds_1NH.device)
    starts, start = [], trunk
    for place, ids in branches:
        end, after = start + len(ids), len(prompt) + place
        sees_NN[start:end, after:start] = False
        positions_N[start:end] = torch.arange(after, after + len(ids))
        starts.append(start)
        start = end
    mask_11NN = torch.zeros(1, 1, N, N, dtype=embeds_1NH.dtype, device=embeds_1NH.device)
    mask_11NN.masked_fill_(~sees_NN, torch.finfo(embeds_1NH.dtype).min)
    with _with_sdpa(llava):
        logits_VKW = llava(
            inputs_embeds=embeds_VNH,
            attention_mask=mask_11NN.expand(len(embeds_VNH), -1, -1, -1),
            position_ids=positions_N[None].expand(len(embeds_VNH), -1),
            use_cache=False,
            logits_to_keep=N - len(prompt) + 1,
        ).logits
    found: list[list[list[float]]] = []
    for logits_KW in logits_VKW:
        logp_KW = logits_KW.float().log_softmax(-1)
        found.append([])
        for (place, ids), start in zip(branches, starts, strict=True):
            # A token's probability stands at the token before it: of the first, in the trunk.
            at = [len(prompt) + place - 1, *range(start, start + len(ids) - 1)]
            places = torch.tensor(at, device=logp_KW.device) - (len(prompt) - 1)
            found[-1].append(logp_KW[places, torch.tensor(ids, device=logp_KW.device)].tolist())
    return found
