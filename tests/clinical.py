"""Files of the clinical models as they are published, at a thousandth of the size and with random numbers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
)

ENCODER = "encoders/Tiny-BERT-uncased"  # as config.json names it; the folder has the last part
WORDS = [
    "no", "pleural", "effusion", ".", ",", "the", "heart", "is", "mildly", "enlarged", "lungs", "are", "clear", "left",
    "right", "pneumothorax", "small", "-", "##s", "basal", "opacity", "increased", "a", "b", "1", "2",
]  # fmt: skip
LABELS = {
    "radgraph": (["OBS-DP", "ANAT-DP", "OBS-DA", "OBS-U"], ["located_at", "modify", "suggestive_of"]),
    "radgraph-xl": (
        ["Observation::definitely present", "Anatomy::definitely present", "Observation::definitely absent",
         "Observation::uncertain", "Observation::measurement::definitely present"],
        ["modify", "located_at", "suggestive_of"],
    ),
}  # fmt: skip
MODELS = tuple(LABELS)


def write_chexbert(folder, seed=0, change=lambda state: state, prefix="module."):
    """chexbert.pth (dict, model_state_dict, names of nn.DataParallel) and the tokenizer."""
    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "bert-base-uncased").mkdir(parents=True)
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    bert = BertModel(config)
    state = {f"bert.{k}": v for k, v in bert.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    for i in range(14):
        classes = 4 if i < 13 else 2
        state[f"linear_heads.{i}.weight"] = torch.randn(classes, 128) * 0.5
        state[f"linear_heads.{i}.bias"] = torch.randn(classes) * 0.1
    saved = {"epoch": 3, "model_state_dict": {prefix + k: v for k, v in change(state).items()}}
    torch.save(saved, folder / "chexbert.pth")
    return folder


def write_distilroberta(folder, texts: Iterable[str]):
    """A transformers directory, its tokenizer trained on `texts`."""
    torch.manual_seed(0)
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([*texts] * 5, vocab_size=320, min_frequency=1, special_tokens=special)
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=32, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


def configuration(encoder: str, longest: int = 32) -> dict:
    bert = {"model_name": encoder, "max_length": longest}
    return {
        "dataset_reader": {
            "type": "dygie",
            "max_span_width": 3,
            "token_indexers": {"bert": {"type": "pretrained_transformer_mismatched", **bert}},
        },
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": {"type": "pretrained_transformer_mismatched", **bert}}},
            "initializer": {"regexes": []},
            "module_initializer": {"regexes": []},
            "feature_size": 4,
            "feedforward_params": {"dropout": 0.4, "hidden_dims": 16, "num_layers": 2},
            "loss_weights": {"coref": 0.0, "events": 0.0, "ner": 0.2, "relation": 1.0},
            "max_span_width": 3,
            "modules": {
                "coref": {"coref_prop": 0, "max_antecedents": 10, "spans_per_word": 0.3},
                "events": {
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"arguments": 1.0, "trigger": 1.0},
                    "trigger_spans_per_word": 0.3,
                },
                "ner": {},
                "relation": {"spans_per_word": 0.5},
            },
            "target_task": "relation",
        },
        "random_seed": 13370,
    }


def patch_package(patch):
    """The two methods that transformers 5 took away, for every tokenizer there is."""
    patch.setattr(PreTrainedTokenizerBase, "encode_plus", PreTrainedTokenizerBase.__call__, raising=False)
    special = lambda self, ids: [self.cls_token_id, *ids, self.sep_token_id]  # noqa: E731
    patch.setattr(PreTrainedTokenizerBase, "build_inputs_with_special_tokens", special, raising=False)


def random_weights(folder, model, longest=32):
    """The state of a model of the package, with numbers (and seeds) by which some spans, not all, are entities."""
    from radgraph.allennlp.data import Vocabulary
    from radgraph.allennlp.modules import text_field_embedders, token_embedders
    from radgraph.dygie.models.dygie import DyGIE

    config = configuration(str(folder / ENCODER.split("/")[-1]))["model"]
    bert = config.pop("embedder")["token_embedders"]["bert"]
    torch.manual_seed({"radgraph": 5, "radgraph-xl": 4}[model])
    embedder = token_embedders.PretrainedTransformerMismatchedEmbedder(bert["model_name"], max_length=longest)
    for name in ("type", "initializer", "module_initializer"):
        del config[name]
    network = DyGIE(
        vocab=Vocabulary.from_files(str(folder / "vocabulary"), "@@PADDING@@", "@@UNKNOWN@@"),
        embedder=text_field_embedders.BasicTextFieldEmbedder({"bert": embedder}),
        **config,
    )
    state = network.state_dict()
    for name, values in state.items():
        if "transformer_model" in name or not values.is_floating_point():
            continue
        state[name] = torch.randn(values.shape) * (0.5 if values.ndim == 1 else 2 / values.shape[-1] ** 0.5)
        if values.shape[0] in (3, 4, 5) and values.ndim == 1:
            state[name] -= 2  # of the classes; or everything would be an entity
    return state


def write_extracted(folder, model, words=WORDS, longest=32, **bert):
    """config.json, vocabulary/, weights.th and the folder of the encoder: the published files at a ten-thousandth, or
    with an encoder of another vocabulary and size."""
    encoder = folder / ENCODER.split("/")[-1]
    (folder / "vocabulary").mkdir(parents=True)
    encoder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (encoder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer.from_pretrained(encoder).save_pretrained(encoder)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        **bert,
    }
    BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=longest + 8, initializer_range=0.3, **size
    ).save_pretrained(encoder)  # fmt: skip
    entities, relations = LABELS[model]
    (folder / "vocabulary" / f"{model}__ner_labels.txt").write_text("\n".join(["", *entities]) + "\n")
    (folder / "vocabulary" / f"{model}__relation_labels.txt").write_text("\n".join(relations) + "\n")
    (folder / "vocabulary" / "non_padded_namespaces.txt").write_text("*tags\n*labels\n")
    (folder / "config.json").write_text(json.dumps(configuration(ENCODER, longest)))
    with pytest.MonkeyPatch.context() as patch:
        patch_package(patch)
        torch.save(random_weights(folder, model, longest), folder / "weights.th")
    return folder


def write_archive(extracted, folder, model):
    """The same as `<model>.tar.gz` beside the folder of the encoder."""
    name = ENCODER.split("/")[-1]
    (folder / name).mkdir(parents=True)
    for file in (extracted / name).iterdir():
        (folder / name / file.name).write_bytes(file.read_bytes())
    with tarfile.open(folder / f"{model}.tar.gz", "w:gz") as archive:
        for part in ("config.json", "vocabulary", "weights.th"):
            archive.add(extracted / part, part)
    return folder
