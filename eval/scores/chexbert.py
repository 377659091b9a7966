"""CheXbert (Smit et al. 2020, arXiv 2004.09167): reports in, the 14 CheXpert conditions and a vector out.

The checkpoint is `chexbert.pth`: a BERT and 14 linear heads on the last hidden state of [CLS], 13 of four classes
(blank, positive, negative, uncertain) and No Finding, the last, of two (blank, positive). Its name in signatures
carries the SHA-256 of the file, so that nothing else can call itself CheXbert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eval.scores.phrases import CONDITIONS
from eval.scores.readers import ScoreError
from eval.scores.weights import file_sha256

CHECKPOINT, TOKENIZER = "chexbert.pth", "bert-base-uncased"
HEADS = (*[4] * 13, 2)  # classes; in the order of CONDITIONS
VALUES = (np.nan, 1.0, 0.0, -1.0)  # of the classes blank, positive, negative, uncertain
HEAD_WIDTH = 64  # of BERT's attention, whatever its size
BATCH_TOKENS = 4096  # of a forward pass, padding counted


@dataclass(frozen=True)
class ChexbertLabels:
    """Hold what CheXbert makes of N reports. An empty report is not read: no labels, and a vector of
    zeros."""

    labels_N14: np.ndarray  # float64: 1, 0, -1, NaN where not mentioned
    vectors_NC: np.ndarray  # float32: the last hidden state of [CLS]


class CheXbert(nn.Module):
    """`CheXbert.load(folder)(reports) -> ChexbertLabels`."""

    def __init__(self, state: Mapping[str, Tensor], tokenizer, sha256: str) -> None:
        """`state` is the checkpoint's, without its prefix; the shapes are read from it. Raises ScoreError if anything
        is missing, left over or of another shape."""
        super().__init__()
        from transformers import BertConfig, BertModel

        try:
            vocabulary, width = state["bert.embeddings.word_embeddings.weight"].shape
            config = BertConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                num_hidden_layers=1
                + max(int(k.split(".")[3]) for k in state if k.startswith("bert.encoder.layer.")),
                intermediate_size=state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
                max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
                type_vocab_size=state["bert.embeddings.token_type_embeddings.weight"].shape[0],
            )
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ScoreError(f"this is not a CheXbert checkpoint: it has no {error}") from error
        self.bert = BertModel(config, add_pooling_layer=any(k.startswith("bert.pooler.") for k in state))
        self.linear_heads = nn.ModuleList(nn.Linear(width, classes) for classes in HEADS)
        # saved by some versions of transformers as a part of the model, by others not
        state = {k: v for k, v in state.items() if k != "bert.embeddings.position_ids"}
        try:
            self.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ScoreError(f"this is not a CheXbert checkpoint: {error}") from error
        if len(tokenizer) != vocabulary:
            raise ScoreError(
                f"the tokenizer knows {len(tokenizer)} pieces, the checkpoint {vocabulary}: it is not CheXbert's "
                f"({TOKENIZER})"
            )
        self.tokenizer, self.sha256 = tokenizer, sha256
        self.longest = config.max_position_embeddings
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> CheXbert:
        """Load the labeller from a folder with `chexbert.pth` and, in `bert-base-uncased/`, its tokenizer. On
        a GPU if there is one.

        Raises ScoreError, naming the file, if one is missing or is not what it should be.
        """
        folder = Path(folder)
        checkpoint, vocabulary = folder / CHECKPOINT, folder / TOKENIZER
        for path in (checkpoint, vocabulary):
            if not path.exists():
                raise ScoreError(f"CheXbert needs {path}, which is not there; see: cxr weights")
        sha256 = file_sha256(checkpoint)
        try:
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ScoreError(
                f"{checkpoint}: no checkpoint that can be read safely ({type(error).__name__}); delete it, and "
                "fetch it again"
            ) from error
        state = saved.get("model_state_dict") if isinstance(saved, Mapping) else None
        if not isinstance(state, Mapping) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
        ):
            raise ScoreError(
                f"{checkpoint}: has no model_state_dict of tensors by name, so it is not CheXbert's checkpoint"
            )
        from transformers import BertTokenizer

        try:
            model = cls(
                {k.removeprefix("module."): v for k, v in state.items()},  # of nn.DataParallel
                BertTokenizer.from_pretrained(vocabulary),
                sha256,
            )
        except (ScoreError, OSError, ValueError) as error:
            raise ScoreError(f"{folder}: {error}") from error
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @torch.no_grad()
    def forward(
        self, reports: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> ChexbertLabels:
        """Encode the texts; each is read once, however often it occurs. `progress(read, of)` is called after
        each batch."""
        clean = [" ".join(report.split()) for report in reports]
        texts = sorted({text for text in clean if text}, key=lambda t: (self._pieces(t), t), reverse=True)
        width = self.bert.config.hidden_size
        labels = {"": np.full(len(CONDITIONS), np.nan)}
        vectors = {"": np.zeros(width, np.float32)}
        done = 0
        for batch in self._batches(texts):
            tokens = self.tokenizer(
                batch, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self.bert.device)
            cls_BC = self.bert(
                tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state[:, 0]
            classes_B14 = torch.stack([head(cls_BC).argmax(-1) for head in self.linear_heads], 1)
            values_B14 = np.array(VALUES)[classes_B14.cpu().numpy()]
            labels.update(zip(batch, values_B14, strict=True))
            vectors.update(zip(batch, cls_BC.float().cpu().numpy(), strict=True))
            done += len(batch)
            if progress:
                progress(done, len(texts))
        return ChexbertLabels(
            np.array([labels[text] for text in clean]).reshape(-1, len(CONDITIONS)),
            np.array([vectors[text] for text in clean], np.float32).reshape(-1, width),
        )

    def _pieces(self, text: str) -> int:
        return min(len(self.tokenizer(text)["input_ids"]), self.longest)

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Texts of like lengths, the longest first, so that what does not fit in memory fails at once."""
        start = 0
        while start < len(texts):
            stop = start + max(1, BATCH_TOKENS // self._pieces(texts[start]))
            yield list(texts[start:stop])
            start = stop


def cosine(a_NC: np.ndarray, b_NC: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of vectors, float64 (N,); 0 where one of them is zero."""
    a, b = np.asarray(a_NC, np.float64), np.asarray(b_NC, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)
