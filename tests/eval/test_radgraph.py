"""RadGraph on files of the published layout with random numbers, against the package run in its own way; scores."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import stat
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, PreTrainedTokenizerBase

from eval.scores import radgraph
from eval.scores.radgraph import LEVELS, RadGraph, add_radgraph, entity_relation_f1, rewards
from eval.scores.readers import ScoreError
from eval.scores.sheet import Sheet
from eval.signature import parse_signature
from tests.clinical import ENCODER, LABELS, configuration, patch_package, write_archive, write_extracted
from tests.tiny import FAST_START

MODELS = tuple(LABELS)

REPORTS = [
    "No pleural effusion.",
    "The heart is mildly\nenlarged,  the lungs are clear. No left pneumothorax.",
    "",
    "Clear",  # one token
    "Small right-basal opacity increased; 50% (xyz)",
    " \n ",
    "The left lung is unusual " * 9,  # longer than the encoder reads at once
    "No pleural effusion.",
]


def everything_in(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(model, "extracted" or "archive") -> folder."""
    base, made = tmp_path_factory.mktemp("weights"), {}
    radgraph._package()  # or importing it would change the warnings of all tests
    for model in MODELS:
        made[model, "extracted"] = write_extracted(base / "extracted" / model, model)
        made[model, "archive"] = write_archive(made[model, "extracted"], base / "archive" / model, model)
    return made


@pytest.fixture(scope="module")
def xl(folders):
    return RadGraph.load(folders["radgraph-xl", "extracted"], model="radgraph-xl", device="cpu")


@pytest.fixture
def cached(folders, tmp_path):
    return RadGraph.load(folders["radgraph", "extracted"], device="cpu", cache=tmp_path / "a" / "cache")


def count_reads(model, monkeypatch):
    read, real = [], model._read
    monkeypatch.setattr(model, "_read", lambda texts: read.extend(texts) or real(texts))
    return read


@pytest.mark.filterwarnings("ignore:Document . has a sentence with a single token")
@pytest.mark.parametrize("layout", ["extracted", "archive"])
@pytest.mark.parametrize("model", MODELS)
def test_annotations_are_the_packages_own(folders, tmp_path, monkeypatch, model, layout):
    source = folders[model, "extracted"]
    place = tmp_path / model
    (place / "vocabulary").mkdir(parents=True)
    for file in (source / "vocabulary").glob("*.txt"):
        (place / "vocabulary" / file.name).write_bytes(file.read_bytes())
    (place / "weights.th").write_bytes((source / "weights.th").read_bytes())
    (place / "config.json").write_text(json.dumps(configuration(str(source / ENCODER.split("/")[-1]))))
    with monkeypatch.context() as patch:
        patch_package(patch)
        package = radgraph._package().RadGraph(model_type=model, model_cache_dir=str(tmp_path), cuda=-1)
        texts = [text for text in REPORTS if text.strip()]
        wanted = dict(zip(texts, package(texts).values(), strict=True))
    seen = []
    ours = RadGraph.load(folders[model, layout], model=model, device="cpu")
    found = ours(REPORTS, progress=lambda *n: seen.append(n))
    assert found == [wanted[text]["entities"] if text.strip() else {} for text in REPORTS]
    assert seen == [(n, 5) for n in range(1, 6)]
    entities = [entity for report in found for entity in report.values()]
    spans = sum(len(wanted[text]["text"].split()) * 3 for text in texts)
    assert 20 < len(entities) < spans / 2  # or the test shows nothing
    assert len({e["label"] for e in entities}) > 1
    assert len({kind for e in entities for kind, _ in e["relations"]}) > 1
    assert {e["tokens"] for e in entities} - {e["tokens"].lower() for e in entities}


def test_models_have_names(folders):
    loaded = [RadGraph.load(folders["radgraph", layout], device="cpu") for layout in ("extracted", "archive")]
    assert loaded[0].sha256 == loaded[1].sha256 == radgraph.file_sha256(
        folders["radgraph", "extracted"] / "weights.th"
    )  # fmt: skip
    with pytest.raises(ScoreError, match="no RadGraph model 'echograph'"):
        RadGraph.load(folders["radgraph", "archive"], model="echograph")


def test_nothing_else_is_changed(folders, monkeypatch, tmp_path, capsys):
    from radgraph.allennlp.common import cached_transformers

    monkeypatch.setattr(radgraph.tempfile, "tempdir", str(tmp_path))
    folder = folders["radgraph", "archive"]
    before, attributes = everything_in(folder), set(dir(PreTrainedTokenizerBase)) | set(dir(BertTokenizer))
    kept = cached_transformers.get_tokenizer, dict(cached_transformers._model_cache)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        model = RadGraph.load(folder, device="cpu")
        assert not any(p.requires_grad for p in model._model.parameters())
        assert model(["Clear"])
        assert list(warnings.filters) == filters
    assert not shown
    assert torch.equal(torch.rand(3), wanted)
    assert set(dir(PreTrainedTokenizerBase)) | set(dir(BertTokenizer)) == attributes
    assert not hasattr(PreTrainedTokenizerBase, "encode_plus")
    assert kept == (cached_transformers.get_tokenizer, cached_transformers._model_cache)
    assert everything_in(folder) == before
    assert not any(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


# in a process of its own, which imports torch, transformers and the package
@pytest.mark.slow
def test_importing_the_package_changes_nothing():
    """In a process of its own, where the package is not imported yet."""
    code = """
import logging, sys, warnings
import torch, transformers  # they may change what they like
from eval.scores import radgraph
assert "radgraph" not in sys.modules
before = list(warnings.filters), logging.getLoggerClass(), logging.setLoggerClass
radgraph._package()
assert sys.modules["radgraph"].RadGraph
assert logging.getLoggerClass() is before[1] is logging.Logger and logging.setLoggerClass is before[2]
assert {type(x) for x in logging.root.manager.loggerDict.values()} <= {logging.Logger, logging.PlaceHolder}
added = [f for f in warnings.filters if f not in before[0]]
assert [f for f in warnings.filters if f in before[0]] == before[0]
assert not any(f[2] is DeprecationWarning for f in added), added
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", FAST_START + code], cwd=root, check=True)


def test_a_package_that_cannot_be_imported(monkeypatch, folders):
    for name in [name for name in sys.modules if name.split(".")[0] == "radgraph"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "requests", None)
    before = logging.setLoggerClass
    with pytest.raises(ScoreError, match=r"needs the package radgraph.*requests"):
        RadGraph.load(folders["radgraph", "extracted"])
    assert logging.setLoggerClass is before


# ---------------------------------------------------------------------------------------------- files and archives


def link(source, target, without=()):
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name not in without:
            (target / path.name).symlink_to(path)
    return target


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (["weights.th"], r"needs .*radgraph\.tar\.gz, which is not there"),
        (["config.json"], r"needs .*config\.json, which is not there"),
        (["vocabulary"], r"has no vocabulary/radgraph__ner_labels\.txt"),
        (["Tiny-BERT-uncased"], r"needs .*Tiny-BERT-uncased/config\.json, which is not there"),
    ],
)
def test_what_is_missing_is_named(folders, tmp_path, without, message):
    link(folders["radgraph", "extracted"], tmp_path, without)
    with pytest.raises(ScoreError, match=message + ".*; see: cxr weights$"):
        RadGraph.load(tmp_path)


def test_the_other_model_is_refused(folders):
    with pytest.raises(
        ScoreError, match=r"has no vocabulary/radgraph-xl__ner_labels\.txt, so it is not radgraph-xl"
    ):
        RadGraph.load(folders["radgraph", "extracted"], model="radgraph-xl")


def test_an_encoder_without_a_tokenizer_is_refused(folders, tmp_path):
    link(folders["radgraph", "extracted"], tmp_path, ["Tiny-BERT-uncased"])
    (tmp_path / "Tiny-BERT-uncased").mkdir()
    (tmp_path / "Tiny-BERT-uncased" / "config.json").write_text("{}")
    with pytest.raises(ScoreError, match=r"needs a tokenizer in .*Tiny-BERT-uncased .*; see: cxr weights$"):
        RadGraph.load(tmp_path)


class Unsafe:
    def __reduce__(self):
        return os.putenv, ("UNSAFE", "1")


@pytest.mark.parametrize("kind", ["not a checkpoint", "unsafe", "another model"])
def test_wrong_weights_are_refused(folders, tmp_path, kind):
    link(folders["radgraph", "extracted"], tmp_path, ["weights.th"])
    if kind == "not a checkpoint":
        (tmp_path / "weights.th").write_bytes(b"not a checkpoint")
    else:
        torch.save({"x": Unsafe()} if kind == "unsafe" else {"x": torch.zeros(1)}, tmp_path / "weights.th")
    with pytest.raises(ScoreError, match=r"radgraph cannot load weights\.th.*; see: cxr weights$"):
        RadGraph.load(tmp_path)


def test_weights_saved_on_a_gpu_load(folders, tmp_path, xl, monkeypatch):
    link(folders["radgraph-xl", "extracted"], tmp_path, ["weights.th"])
    state = torch.load(folders["radgraph-xl", "extracted"] / "weights.th", weights_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(state, tmp_path / "weights.th")
    assert b"cuda:0" in (tmp_path / "weights.th").read_bytes()
    assert RadGraph.load(tmp_path, model="radgraph-xl", device="cpu")(REPORTS) == xl(REPORTS)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"dataset_reader": 1}'])
def test_another_configuration_is_refused(folders, tmp_path, config):
    link(folders["radgraph", "extracted"], tmp_path, ["config.json"])
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ScoreError, match=r"config\.json is not RadGraph's .*; see: cxr weights$"):
        RadGraph.load(tmp_path)


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../escaped"),
        member("vocabulary/../../escaped"),
        member("weights.th", tarfile.SYMTYPE, "/etc/hostname"),
        member("weights.th", tarfile.LNKTYPE, "../../escaped"),
        member("weights.th", tarfile.FIFOTYPE),
    ],
    ids=lambda m: f"{m.name} {m.linkname}",
)
def test_an_archive_that_reaches_outside_is_refused(folders, tmp_path, monkeypatch, evil):
    temporary, folder = tmp_path / "tmp", tmp_path / "weights"
    temporary.mkdir()
    monkeypatch.setattr(radgraph.tempfile, "tempdir", str(temporary))
    link(folders["radgraph", "archive"], folder, ["radgraph.tar.gz"])
    with tarfile.open(folder / "radgraph.tar.gz", "w:gz") as archive:
        archive.addfile(member("config.json"), io.BytesIO(b"{}  "))
        archive.addfile(evil, io.BytesIO(b"evil"))
    with pytest.raises(
        ScoreError, match=r"radgraph\.tar\.gz: cannot be unpacked safely .*; see: cxr weights$"
    ):
        RadGraph.load(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tmp", "weights"]
    assert not any(temporary.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:2000] + bytes(2000) + b[4000:],
        lambda b: b[:-6] + bytes(6),
        lambda b: b"no archive",
        lambda b: b"",
    ],
    ids=["cut", "overwritten", "checksum", "no archive", "empty"],
)
def test_a_damaged_archive_is_refused(folders, tmp_path, damage):
    link(folders["radgraph", "archive"], tmp_path, ["radgraph.tar.gz"])
    whole = (folders["radgraph", "archive"] / "radgraph.tar.gz").read_bytes()
    (tmp_path / "radgraph.tar.gz").write_bytes(damage(whole))
    with pytest.raises(ScoreError, match=r"radgraph\.tar\.gz: .*; see: cxr weights$"):
        RadGraph.load(tmp_path)


def test_an_interrupted_extraction_leaves_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(radgraph.tempfile, "tempdir", str(tmp_path))
    folder = folders["radgraph", "archive"]
    before, seen = everything_in(folder), []
    real = tarfile.TarFile.makefile

    def interrupted(self, info, path):
        seen.append(path)
        if len(seen) == 3:
            raise KeyboardInterrupt
        real(self, info, path)

    monkeypatch.setattr(tarfile.TarFile, "makefile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RadGraph.load(folder)
    assert len(seen) == 3
    assert not any(tmp_path.iterdir())
    assert everything_in(folder) == before


# ---------------------------------------------------------------------------------------------- the cache


def test_the_cache_saves_reading(cached, folders, tmp_path, monkeypatch):
    read = count_reads(cached, monkeypatch)
    first = cached(REPORTS)
    assert len(read) == len(set(read)) == 5
    assert cached(REPORTS) == first
    assert len(read) == 5
    again = RadGraph.load(folders["radgraph", "archive"], device="cpu", cache=tmp_path / "a" / "cache")
    monkeypatch.setattr(again, "_read", lambda texts: pytest.fail("was read again"))
    assert again(REPORTS) == first


def test_the_cache_is_for_one_model(cached, folders, tmp_path, monkeypatch):
    cached(REPORTS[:1])
    cache = tmp_path / "a" / "cache"
    other = link(folders["radgraph", "extracted"], tmp_path / "other", ["weights.th"])
    state = torch.load(folders["radgraph", "extracted"] / "weights.th", weights_only=True)
    torch.save({name: values * 0.9 for name, values in state.items()}, other / "weights.th")
    model = RadGraph.load(other, device="cpu", cache=cache)
    read = count_reads(model, monkeypatch)
    model(REPORTS[:1])
    assert read == REPORTS[:1]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"\xff", b"[1]", b'{"1": {}}', b"null",
     b'{"1": {"tokens": "a", "label": "b", "start_ix": 0, "end_ix": 0, "relations": [["modify", "7"]]}}'],
)  # fmt: skip
def test_a_damaged_cache_is_read_anew(cached, monkeypatch, damaged):
    wanted = cached(REPORTS[:2])
    files = list(cached._cache.iterdir())
    for file in files:
        file.write_bytes(damaged)
    read = count_reads(cached, monkeypatch)
    assert cached(REPORTS[:2]) == wanted
    assert len(read) == 2
    assert all(json.loads(file.read_bytes()) for file in files)


def test_the_cache_is_private_and_holds_no_report(cached, tmp_path):
    found = cached(["Small right-basal opacity increased"])
    for path in (tmp_path / "a" / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    (file,) = cached._cache.iterdir()
    assert json.loads(file.read_text()) == found[0]
    assert "opacity" not in str(file)
    assert stat.S_IMODE((tmp_path / "a" / "cache").stat().st_mode) == 0o700


def test_what_is_not_to_be_kept_is_not(cached, monkeypatch):
    cached(REPORTS[:1], keep=False)
    assert not cached._cache.exists()
    cached(REPORTS[:1])
    read = count_reads(cached, monkeypatch)
    cached(REPORTS[:2], keep=False)
    assert read == REPORTS[1:2]
    assert len(list(cached._cache.iterdir())) == 1


def test_an_interrupted_write_leaves_nothing(cached, monkeypatch):
    def interrupted(entities, file):
        file.write("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(radgraph.json, "dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(REPORTS[:1])
    assert not any(cached._cache.iterdir())


def test_a_cache_that_cannot_be_written_is_said(cached, tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="annotations are not kept"):
        assert cached(REPORTS[:1]) == cached(REPORTS[:1], keep=False)


def test_texts_without_words_have_no_entities(xl):
    assert xl(["", " ", "\\n"]) == [{}, {}, {}]
    assert xl([]) == []


# ---------------------------------------------------------------------------------------------- the scores


def annotations(seed, relations=True):
    """Entities at random, with few words, so that pairs have something in common."""
    rng = random.Random(seed)
    numbers = [str(n + 1) for n in range(rng.randint(1, 6))]
    return {
        number: {
            "tokens": rng.choice(["Heart", "heart", "lung", "Lung", "clear"]),
            "label": rng.choice(LABELS["radgraph-xl"][0][:2]),
            "start_ix": int(number),
            "end_ix": int(number),
            "relations": [
                [rng.choice(["modify", "located_at"]), rng.choice(numbers)] for _ in range(rng.randint(0, 2))
            ]
            if relations
            else [],
        }
        for number in numbers
    }


@pytest.mark.parametrize("seed", range(20))
def test_rewards_are_the_packages(seed):
    from radgraph.rewards import compute_reward

    ref, hyp = annotations(seed), annotations(seed + 1000)
    wanted = compute_reward({"entities": hyp}, {"entities": ref}, "all")
    got = rewards(ref, hyp)
    assert list(got[:, 2]) == pytest.approx(list(wanted), abs=1e-15)
    np.testing.assert_array_equal(rewards(hyp, ref), got[:, [1, 0, 2]])
    assert entity_relation_f1(ref, hyp) == entity_relation_f1(hyp, ref)
    lowered = [{k: {**e, "tokens": e["tokens"].lower()} for k, e in side.items()} for side in (ref, hyp)]
    np.testing.assert_array_equal(rewards(ref, hyp, "lower"), rewards(*lowered, "released"))


def test_identical_and_empty_reports(xl):
    for entities in (annotations(1), annotations(2, relations=False), *filter(None, xl(REPORTS))):
        for case in radgraph.CASES:
            assert (rewards(entities, entities, case) == 1).all()
            assert not rewards(entities, {}, case).any()
            assert not rewards({}, entities, case).any()
            assert not rewards({}, {}, case).any()
        related = any(e["relations"] for e in entities.values())
        assert entity_relation_f1(entities, entities) == (1 if related else 0.5)
    assert entity_relation_f1({}, {}) == entity_relation_f1(annotations(1), {}) == 0
    with pytest.raises(ValueError, match="no case rule 'upper'"):
        rewards({}, {}, "upper")


def test_the_sheet():
    refs, hyps = [annotations(n) for n in range(9)], [annotations(n + 50) for n in range(9)]
    hyps[3] = {}
    sheet = Sheet(9)
    add_radgraph(sheet, refs, hyps, model="radgraph-xl", sha256="0123456789abcdef")
    scores = sheet.scores()
    assert set(scores) == {
        f"radgraph-{kind}/radgraph-xl/{level}" for kind in ("precision", "recall", "f1") for level in LEVELS
    } | {f"radgraph-f1/radgraph-xl/{level}/lower" for level in LEVELS}
    for i, level in enumerate(LEVELS):
        for key, case, j in (("precision", "released", 0), ("recall", "released", 1), ("f1", "released", 2)):
            wanted = np.mean([rewards(r, h, case)[i, j] for r, h in zip(refs, hyps, strict=True)])
            assert scores[f"radgraph-{key}/radgraph-xl/{level}"].value == pytest.approx(wanted)
        lower = np.mean([rewards(r, h, "lower")[i, 2] for r, h in zip(refs, hyps, strict=True)])
        assert scores[f"radgraph-f1/radgraph-xl/{level}/lower"].value == pytest.approx(lower)
    partial = scores["radgraph-f1/radgraph-xl/partial"].signature
    assert parse_signature(partial) == (
        "radgraph-f1",
        {"model": "radgraph-xl", "level": "partial", "case": "released",
         "package": radgraph.version("radgraph"), "ckpt": "sha256:0123456789ab"},
    )  # fmt: skip
    assert len({score.signature for score in scores.values()}) == len(scores)


SHORT = ["No pleural effusion .", "The heart is enlarged", "Left basal opacity increased", "a b 1 2"]
LONGER = ["No left pleural effusion , clear .", "The right lungs are mildly increased .", "a b 1 2 a b ."]


@pytest.mark.parametrize("model", MODELS)
def test_reports_of_one_shape_are_read_together_and_alike(folders, monkeypatch, model):
    """In one pass, and with the very answers of one at a time."""
    ours = RadGraph.load(folders[model, "extracted"], model=model, device="cpu")
    texts = [*SHORT, *LONGER, *(f"{a} {b}" for a in SHORT for b in LONGER)]
    # on a CPU nothing is saved, so that each is alone
    assert ours.together == 1 and ours._alike(texts) == [[text] for text in texts]
    alone = [ours([text])[0] for text in texts]
    ours.together = 16
    passes, real = [], ours._read
    monkeypatch.setattr(ours, "_read", lambda group: passes.append(len(group)) or real(group))
    assert ours(texts) == alone and sum(passes) == len(set(texts))
    assert max(passes) > 2 and len(passes) < len(texts) / 2
    assert len({json.dumps(entities, sort_keys=True) for entities in alone}) > len(texts) / 2
    assert any(e["relations"] for report in alone for e in report.values())
    ours.together, passes[:] = 2, []
    assert ours(texts) == alone and max(passes) == 2
