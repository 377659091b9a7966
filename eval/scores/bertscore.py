"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) with the settings of RadCliQ: distilroberta-base, its fifth layer,
F1, rescaled with the English baseline of bert-score 0.3.13.

Every token is matched with the most similar one of the other text by the cosine of their vectors; also <s> and </s> can
be matched, but they have no weight of their own. With `idf` tokens weigh by how rare they are among the references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.scores.readers import ScoreError
from eval.scores.weights import file_sha256

FOLDER, LAYER, BASELINE = "distilroberta-base", 5, 0.8473319
PAIRS = 32  # of a forward pass


class BertScore:
    """`BertScore.load(folder).f1(references, predictions)`."""

    def __init__(self, model, tokenizer, sha256: str) -> None:
        if len(model.encoder.layer) < LAYER:
            raise ScoreError(f"BERTScore reads layer {LAYER}, this model has {len(model.encoder.layer)}")
        model.encoder.layer = model.encoder.layer[:LAYER]  # those above are not needed
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.sha256 = tokenizer, sha256
        # RoBERTa's positions start behind the padding index
        self.longest = model.config.max_position_embeddings - model.config.pad_token_id - 1

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> BertScore:
        """Load the scorer from a transformers directory of distilroberta-base (`model.safetensors` or
        `pytorch_model.bin`).

        Raises ScoreError, naming the file, if one is missing.
        """
        import transformers
        from transformers import AutoTokenizer, RobertaModel

        folder = Path(folder)
        files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
        weights = next((path for path in files if path.is_file()), None)
        if weights is None or not (folder / "config.json").is_file():
            raise ScoreError(
                f"BERTScore needs {folder} with config.json and {files[0].name}; see: cxr weights"
            )
        logging = transformers.utils.logging
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # or it reports the head of the language model, which is not needed
        try:
            model, info = RobertaModel.from_pretrained(
                folder, add_pooling_layer=False, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ScoreError(f"{folder}: {error}") from error
        finally:
            logging.set_verbosity(level)
        if info["missing_keys"]:
            raise ScoreError(f"{weights} lacks {sorted(info['missing_keys'])[0]}, so it is not {FOLDER}")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), tokenizer, file_sha256(weights))

    def f1(
        self,
        references: Sequence[str],
        predictions: Sequence[str],
        *,
        idf: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Return the rescaled F1 of every pair, float64 (N,): 1 for equal texts, about 0 for unrelated ones.
        An empty text counts 0 before rescaling, as in bert-score.

        Raises ScoreError for `idf` over fewer than 2 references: all weights would be 0, and with them the score.
        """
        return self.f1s(references, predictions, (idf,), progress=progress)[0]

    def f1s(
        self,
        references: Sequence[str],
        predictions: Sequence[str],
        idfs: Sequence[bool],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Return `f1` with and without weights, in the order of `idfs`, (len(idfs), N); the model reads each text
        once. Raises ScoreError as `f1` does."""
        if any(idfs) and len(references) < 2:
            raise ScoreError(
                f"IDF weights over {len(references)} reference are all zero; score without idf, or more studies"
            )
        ref_ids, hyp_ids = self._ids(references), self._ids(predictions)
        weights = [self._weights(ref_ids, hyp_ids, idf) for idf in idfs]
        f1_KN = np.zeros((len(idfs), len(references)))
        order = sorted(range(len(references)), key=lambda n: -max(len(ref_ids[n]), len(hyp_ids[n])))
        for start in range(0, len(order), PAIRS):
            rows = order[start : start + PAIRS]
            ref, hyp = ([side[n] for n in rows] for side in (ref_ids, hyp_ids))
            weighed = [[[side[n] for n in rows] for side in sides] for sides in weights]
            f1_KN[:, rows] = self._match(ref, hyp, weighed)
            if progress:
                progress(start + len(rows), len(order))
        return (f1_KN - BASELINE) / (1 - BASELINE)

    def _weights(self, ref_ids, hyp_ids, idf: bool) -> list[list[list[float]]]:
        weight = self._idf(ref_ids) if idf else {}
        unseen = math.log(len(ref_ids) + 1) if idf else 1.0
        edges = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        return [
            [[0.0 if i in edges else weight.get(i, unseen) for i in ids] for ids in side]
            for side in (ref_ids, hyp_ids)
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # the first word is to be the same token as the same word in the middle, which has a space before it
        spaced = [" " + text.strip() if text.strip() else "" for text in texts]
        return [
            self.tokenizer(text, truncation=True, max_length=self.longest)["input_ids"] for text in spaced
        ]

    @staticmethod
    def _idf(documents: Sequence[Sequence[int]]) -> dict[int, float]:
        counts = Counter(token for ids in documents for token in set(ids))
        return {token: math.log((len(documents) + 1) / (count + 1)) for token, count in counts.items()}

    @torch.no_grad()
    def _match(self, ref_ids, hyp_ids, weights) -> np.ndarray:
        """Return F1 (K, B) for K pairs of weights of the references and the predictions."""
        (r_BMC, r_BM), (h_BNC, h_BN) = self._embed(ref_ids), self._embed(hyp_ids)
        similar_BNM = (h_BNC @ r_BMC.transpose(1, 2)) * (h_BN[:, :, None] * r_BM[:, None, :])
        empty = torch.tensor([len(a) <= 2 or len(b) <= 2 for a, b in zip(ref_ids, hyp_ids, strict=True)])
        found = []
        for ref_weights, hyp_weights in weights:
            precision = self._mean(similar_BNM.amax(2), hyp_weights)
            recall = self._mean(similar_BNM.amax(1), ref_weights)
            f1 = 2 * precision * recall / (precision + recall)
            found.append(f1.masked_fill(empty | f1.isnan(), 0.0).numpy())
        return np.stack(found)

    def _embed(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return unit vectors (B, N, C) and which are real (B, N)."""
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        ids_BN = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids])
        real_BN = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        device = self.model.device
        out = self.model(ids_BN.to(device), attention_mask=real_BN.to(device)).last_hidden_state
        return torch.nn.functional.normalize(out.float(), dim=-1).cpu(), real_BN.float()

    @staticmethod
    def _mean(best_BN: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
        w_BN = torch.zeros(best_BN.shape, dtype=torch.float64)
        for row, values in zip(w_BN, weights, strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.float64)
        return (best_BN.double() * w_BN).sum(1) / w_BN.sum(1)
