"""RadGraph (Jain et al. 2021, arXiv 2106.14463) and RadGraph-XL (Delbrouck et al. 2024): the entities of a report and
how they relate, read by the package `radgraph` from local files, and scores of two reports from what was read in each.

The package (0.1.18) scores entities with their case, but relations without it; its repository has since changed to
lower case throughout, under the same version. Both rules are here: `case="released"` and `case="lower"`. The scores
need no weights, only annotations.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from eval.scores.private import store
from eval.scores.readers import ScoreError
from eval.scores.sheet import Sheet
from eval.scores.weights import file_sha256
from eval.signature import signature, version

MODELS = ("radgraph", "radgraph-xl")
LEVELS = ("simple", "partial", "complete")  # `partial` is what papers call RG_ER
CASES = ("released", "lower")
CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocabulary", "weights.th"
ADVICE = "; see: cxr weights"
TOGETHER = {"cuda": 16, "cpu": 1}
"""Reports in a forward pass, at most. On a CPU a pass of several takes as long as several passes
(`benchmarks/radgraph_passes.py`), and its sums may round otherwise."""
LONGEST = 512
"""Word pieces of a pass, where the configuration says nothing."""
FIELDS = {"tokens": str, "label": str, "start_ix": int, "end_ix": int, "relations": list}

Entities = Mapping[str, Mapping[str, Any]]
"""Of one report: number, as text -> `tokens`, `label`, `start_ix` and `end_ix` (first and last token, counted as the
package splits the report) and `relations`, pairs of a type and the number of another entity."""


class RadGraph:
    """`RadGraph.load(folder)(reports) -> a list of Entities`."""

    def __init__(self, package_model, *, model: str, sha256: str, key: str, cache: str | Path | None) -> None:
        """`key` names everything that annotations depend on besides the text; the cache is kept by it."""
        self._model, self.model, self.sha256 = package_model, model, sha256
        self.together = TOGETHER.get(package_model.device.type, 1)
        self._cache = None if cache is None else Path(cache) / f"{model}-{key[:16]}"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: str = "radgraph",
        device: str | torch.device | None = None,
        cache: str | Path | None = None,
    ) -> RadGraph:
        """Load the annotator from a folder, on a GPU if there is one.

        The folder holds `<model>.tar.gz` as published, or its contents (`config.json`, `vocabulary/`,
        `weights.th`). It also holds a folder with tokenizer and configuration of the encoder, under the last
        part of the encoder's name (`BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext`).

        `sha256` is that of `weights.th`, in or out of the archive. An archive is unpacked for the time of
        loading, into a temporary folder. `cache` is a folder for annotations: they contain words of the
        reports.

        Raises ScoreError, naming the file, if one is missing or is not what it should be.
        """
        if model not in MODELS:
            raise ScoreError(f"no RadGraph model {model!r}; there are {', '.join(MODELS)}")
        folder = Path(folder)
        with tempfile.TemporaryDirectory(prefix="radgraph-") as temporary:
            source, name = _source(folder, model, Path(temporary) / "unpacked")
            labels = [f"{VOCABULARY}/{model}__{kind}_labels.txt" for kind in ("ner", "relation")]
            for file in (CONFIG, *labels, WEIGHTS):
                if not (source / file).is_file():
                    raise ScoreError(f"{name} has no {file}, so it is not {model}{ADVICE}")
            config, encoders = _localised(source / CONFIG, folder, name)
            # As the package wants it. It also writes a lock file beside the vocabulary, hence the copy of that.
            place = Path(temporary) / "models" / model
            shutil.copytree(source / VOCABULARY, place / VOCABULARY)
            (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
            (place / WEIGHTS).symlink_to((source / WEIGHTS).resolve())
            sha256 = file_sha256(source / WEIGHTS)
            package = _package()
            try:
                with _construction():
                    # as on a CPU: there the package reads weights safely, and from whichever device they were saved
                    read = package.RadGraph(model_type=model, model_cache_dir=str(place.parent), cuda=-1)
            except Exception as error:  # whatever unpickling, AllenNLP or transformers raise
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ScoreError(
                    f"{name}: radgraph cannot load {WEIGHTS} and what belongs to it "
                    f"({type(error).__name__}: {reason}){ADVICE}"
                ) from error
            small = [source / CONFIG, *sorted((source / VOCABULARY).glob("*.txt"))]
            small += [file for e in encoders for file in sorted(e.glob("[!.]*")) if file.is_file()]
            parts = [model, version("radgraph"), sha256, *(f"{f.name} {file_sha256(f)}" for f in small)]
        read.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        read.to(read.device).requires_grad_(False)
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return cls(read, model=model, sha256=sha256, key=key, cache=cache)

    def __call__(
        self, reports: Sequence[str], progress: Callable[[int, int], None] | None = None, *, keep: bool = True
    ) -> list[Entities]:
        """Entities of N reports. Each text is read once, however often it occurs, and not at all if the cache has it;
        `keep` says whether what is read goes there. Texts without words have no entities. `progress(read, of)` is
        called after each forward pass.

        On a GPU, reports of equally many words and word pieces share a forward pass, in which nothing is padded. With
        padding the package finds relations that are not there: of a pair it masks the second entity's padding only.
        """
        texts = sorted({text for text in reports if text.strip()}, key=lambda t: (len(t), t), reverse=True)
        found: dict[str, Entities] = {}
        left = []
        for text in texts:
            stored = None if self._cache is None else _stored(self._file(text))
            if stored is None:
                left.append(text)
            else:
                found[text] = stored
        for together in self._alike(left):
            for text, entities in zip(together, self._read(together), strict=True):
                found[text] = entities
                if keep and self._cache is not None:
                    try:
                        store(self._file(text), entities)
                    except OSError as error:
                        warnings.warn(f"{self._cache}: annotations are not kept ({error})", stacklevel=3)
            if progress:
                progress(len(found), len(texts))
        if progress and not left and texts:
            progress(len(texts), len(texts))
        return [found.get(text, {}) for text in reports]

    def _file(self, text: str) -> Path:
        assert self._cache is not None
        return self._cache / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def _alike(self, texts: Sequence[str]) -> list[list[str]]:
        """Put texts together whose forward passes have one shape, at most `together` of them; those that are alone come
        in their order."""
        groups: dict[tuple[int, int] | str, list[str]] = {}
        for text in texts:
            shape = self._shape(text) if self.together > 1 else None
            groups.setdefault(shape or text, []).append(text)
        return [
            group[start : start + self.together]
            for group in groups.values()
            for start in range(0, len(group), self.together)
        ]

    def _shape(self, text: str) -> tuple[int, int] | None:
        """Return how many words and word pieces a text has; None for one that is read alone, since it is longer than a
        pass of the encoder, or has fewer than two words."""
        words = self._words(text)
        indexer = self._model.reader._token_indexers["bert"]
        pieces = len(indexer._allennlp_tokenizer.intra_word_tokenize(words)[0]) if len(words) > 1 else 0
        longest = indexer._matched_indexer._max_length or LONGEST
        return (len(words), pieces) if 0 < pieces <= longest else None

    def _words(self, text: str) -> list[str]:
        from radgraph.utils import preprocess_reports

        return preprocess_reports([text], self.model)[0]["sentences"][0]

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> list[Entities]:
        """Entities of texts of one shape, read as the sentences of one document."""
        from radgraph import radgraph as package

        sentences = [self._words(text) for text in texts]
        # Nothing is left of it, which the package cannot read.
        if not sentences[0]:
            return [{} for _ in texts]
        document = {"doc_key": "0", "sentences": sentences, "dataset": self.model}
        # It warns that a report of one token may break it, which is not so, and its DataLoader draws a random number.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            data = package.AllennlpDataset([self._model.reader.text_to_instance(document)])
            data.index_with(self._model.model.vocab)
            (batch,) = package.PyTorchDataLoader(batch_size=1, dataset=data)
            out = self._model.model(**package.batch_to_device(batch, self._model.device))
            read = self._model.model.make_output_human_readable(out).to_json()
        found = []
        begin = 0
        for i, words in enumerate(sentences):
            alone = {
                "doc_key": "0",
                "sentences": [words],
                "predicted_ner": [[[x[0] - begin, x[1] - begin, *x[2:]] for x in read["predicted_ner"][i]]],
                "predicted_relations": [
                    [[*(k - begin for k in x[:4]), *x[4:]] for x in read["predicted_relations"][i]]
                ],
            }
            made = package.postprocess_reports([alone])
            if "0" not in made:
                raise ScoreError(f"radgraph failed on a report of {len(texts[i])} characters")
            found.append(made["0"]["entities"])
            begin += len(words)
        return found


def _source(folder: Path, model: str, unpacked: Path) -> tuple[Path, Path]:
    """Return the folder with the model's files, and what to call it in errors: `folder`, or its archive
    unpacked."""
    archive = folder / f"{model}.tar.gz"
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder, folder
    if not archive.is_file():
        missing = folder / CONFIG if (folder / WEIGHTS).is_file() else archive
        raise ScoreError(f"RadGraph needs {missing}, which is not there{ADVICE}")
    try:
        with tarfile.open(archive, "r:gz") as file:
            file.extractall(unpacked, filter="data")
            while file.fileobj.read(1 << 20):
                pass  # to the end, where the checksum is
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, TypeError) as error:
        # a TypeError is that of Python before 3.11.4, which has no filters
        raise ScoreError(f"{archive}: cannot be unpacked safely ({error}){ADVICE}") from error
    return unpacked, archive


def _localised(path: Path, folder: Path, name: Path) -> tuple[dict[str, Any], list[Path]]:
    """Return the configuration with the encoder read from `folder` instead of the hub, and the folders of the
    encoder."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        places = (
            config["dataset_reader"]["token_indexers"]["bert"],
            config["model"]["embedder"]["token_embedders"]["bert"],
        )
        names = [place["model_name"].rstrip("/").rsplit("/", 1)[-1] for place in places]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoreError(
            f"{name}: {CONFIG} is not RadGraph's ({type(error).__name__}: {error}){ADVICE}"
        ) from error
    encoders = [folder / encoder for encoder in names]
    for encoder in encoders:
        if not (encoder / CONFIG).is_file():
            raise ScoreError(f"RadGraph needs {encoder / CONFIG}, which is not there{ADVICE}")
        if not any((encoder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
            raise ScoreError(f"RadGraph needs a tokenizer in {encoder} (tokenizer.json or vocab.txt){ADVICE}")
    for place, encoder in zip(places, encoders, strict=True):
        place["model_name"] = str(encoder.resolve())
    return config, sorted(set(encoders))


# ---------------------------------------------------------------------------------------------------------- the package


def _package() -> ModuleType:
    """Return the package. Its import would change how Python shows warnings, and the class of every logger
    made after it."""
    filters, set_class = list(warnings.filters), logging.setLoggerClass
    logging.setLoggerClass = lambda cls: None
    try:
        import radgraph
    except ImportError as error:  # `requests` for one: the package needs, but does not declare it
        raise ScoreError(f"RadGraph needs the package radgraph, and that {error}; pip install it") from error
    finally:
        logging.setLoggerClass = set_class
        shown = ("default", None, DeprecationWarning, None, 0)
        warnings.filters[:] = [f for f in warnings.filters if f not in filters and f != shown] + filters
        with warnings.catch_warnings():
            pass  # or Python does not notice that the filters changed
    return radgraph


@contextlib.contextmanager
def _construction() -> Iterator[None]:
    """While the package builds a model: quietly, without using up random numbers, and with transformers 5.

    transformers 5 took two methods from tokenizers that the package calls. The package's own tokenizers, and no others,
    get them back. It would also keep a second encoder for good.
    """
    from radgraph.allennlp.common import cached_transformers
    from transformers import AutoTokenizer

    get_tokenizer, models = cached_transformers.get_tokenizer, dict(cached_transformers._model_cache)
    tokenizers = {}

    def local_tokenizer(name: str, **_):
        if name not in tokenizers:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
            ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
            tokenizer.encode_plus = tokenizer.__call__
            tokenizer.build_inputs_with_special_tokens = lambda ids: [*ends[0], *ids, *ends[1]]
            tokenizers[name] = tokenizer
        return tokenizers[name]

    cached_transformers.get_tokenizer = local_tokenizer
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        cached_transformers.get_tokenizer = get_tokenizer
        cached_transformers._model_cache.clear()
        cached_transformers._model_cache.update(models)


# ------------------------------------------------------------------------------------------------------------ the cache


def _stored(path: Path) -> Entities | None:
    """Entities as they were stored; None if they were not, or if the file is damaged."""
    try:
        entities = json.loads(path.read_text(encoding="utf-8"))
        sound = all(
            isinstance(entity[field], kind) for entity in entities.values() for field, kind in FIELDS.items()
        ) and all(
            isinstance(kind, str) and target in entities
            for entity in entities.values()
            for kind, target in entity["relations"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return entities if sound else None


# ----------------------------------------------------------------------------------------------------------- the scores


def rewards(reference: Entities, predicted: Entities, case: str = "released") -> np.ndarray:
    """Return precision, recall and F1 of a report's statements, (3, 3): LEVELS by these. 0 if a side has no
    entities, also if both have none.

    `simple`: every entity, as (tokens, label). `partial`: and whether it has a relation. `complete`: every relation,
    with the tokens of its target; entities without one as in `simple`. Raises ValueError for another `case`.
    """
    if case not in CASES:
        raise ValueError(f"no case rule {case!r}; there are {', '.join(CASES)}")
    if not reference or not predicted:
        return np.zeros((len(LEVELS), 3))
    sides = zip(_statements(reference, case), _statements(predicted, case), strict=True)
    return np.array([_precision_recall_f1(ref, hyp) for ref, hyp in sides])


def _statements(entities: Entities, case: str) -> tuple[set, set, set]:
    simple, partial, complete = set(), set(), set()
    for entity in entities.values():
        tokens, label, relations = entity["tokens"], entity["label"], entity["relations"]
        named = (tokens.lower() if case == "lower" else tokens, label)
        simple.add(named)
        partial.add((*named, True) if relations else named)
        complete.update(
            (tokens.lower(), label, kind, entities[target]["tokens"].lower()) for kind, target in relations
        )
        if not relations:
            complete.add(named)
    return simple, partial, complete


def _precision_recall_f1(reference: set, predicted: set) -> tuple[float, float, float]:
    common = len(reference & predicted)
    precision = common / len(predicted) if predicted else 0.0
    recall = common / len(reference) if reference else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0


def entity_relation_f1(reference: Entities, predicted: Entities) -> float:
    """Return the mean of the F1 of entities (tokens, label) and of relations (entity, entity, type), as
    CXR-Report-Metric has it for RadCliQ: with case, and 0 for what a side has none of. An identical report
    without relations scores 0.5."""
    ref, hyp = ([(e["tokens"], e["label"]) for e in side.values()] for side in (reference, predicted))
    entities = _precision_recall_f1(set(ref), set(hyp))[2]
    return (entities + _precision_recall_f1(_relations(reference), _relations(predicted))[2]) / 2


def _relations(entities: Entities) -> set:
    named = {number: (entity["tokens"], entity["label"]) for number, entity in entities.items()}
    return {
        (named[number], named[target], kind)
        for number, entity in entities.items()
        for kind, target in entity["relations"]
    }


def add_radgraph(
    sheet: Sheet, references: Sequence[Entities], predictions: Sequence[Entities], *, model: str, sha256: str
) -> None:
    """Put the mean scores of N pairs on a sheet: `radgraph-f1/<model>/<level>`, `radgraph-precision/...` and
    `radgraph-recall/...` by the released case rule, `radgraph-f1/<model>/<level>/lower` by the other."""
    pairs = list(zip(references, predictions, strict=True))
    for case in CASES:
        scores_N33 = np.array([rewards(ref, hyp, case) for ref, hyp in pairs]).reshape(-1, len(LEVELS), 3)
        for i, level in enumerate(LEVELS):
            for j, name in enumerate(("radgraph-precision", "radgraph-recall", "radgraph-f1")):
                if case == "lower" and name != "radgraph-f1":
                    continue
                details = signature(
                    name, model=model, level=level, case=case, package=version("radgraph"),
                    ckpt=f"sha256:{sha256[:12]}",
                )  # fmt: skip
                key = f"{name}/{model}/{level}" + ("/lower" if case == "lower" else "")
                short = f"RadGraph{'-XL' if model.endswith('-xl') else ''} {name.partition('-')[2]} {level}"
                sheet.add_mean(
                    key, details, scores_N33[:, i, j], title=short.replace(" f1 ", " F1 "),
                    headline=key == f"radgraph-f1/{model}/partial",
                )  # fmt: skip
