"""Folders of rows: whatever kills a run, and however many write, every row is that of its key."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from encoder import store as stores
from encoder.embed import done, read_features
from encoder.features import extract
from encoder.files import InputFileError, append, append_json
from encoder.frozen import encoder_of
from encoder.radiograph import read
from encoder.store import Store, StoreError, TensorShards
from tests.stores import (
    SIDE,
    barrier,
    embedded,
    ended,
    extracted,
    indexed,
    parent_of_sleepers,
    prepared,
    start,
)
from train.datasets.archive import Archive, index_lines
from train.datasets.folder import shrink
from train.datasets.index import index_rows


@pytest.fixture
def films(tmp_path):
    """Ten films, of which the fifth is none, and ten others."""
    rng, found = np.random.default_rng(0), []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        for i in range(10):
            found.append(folder / f"{i}.png")
            Picture.fromarray(rng.integers(0, 256, (40, 30 + i), dtype=np.uint8)).save(found[-1])
    found[4].write_bytes(b"no film")
    return found[:10], found[10:]


def tokens_of(path):
    """What the encoder itself gives: (CLS, patches)."""
    encoder = encoder_of("pixels", SIDE)
    tokens = encoder(encoder.preprocessing(read(path))[None])
    return tokens.cls_BC[0], tokens.patches_BPC[0]


def right_embedded(out) -> int:
    """How many rows there are; each is its image's."""
    count = 0
    for path, features in read_features(out):
        cls, patches = tokens_of(path)
        assert torch.allclose(features["cls"], cls, atol=1e-5), path
        assert torch.allclose(features["patches"], patches, atol=1e-5), path
        count += 1
    return count


def right_extracted(out) -> int:
    if not (out / "contents-0.jsonl").exists():
        return 0
    contents = {
        json.loads(line)["sha256"]: Path(json.loads(line)["path"])
        for line in (out / "contents-0.jsonl").read_text().splitlines()
    }
    count = 0
    for index in out.glob("*/index-0.jsonl"):
        lines = [json.loads(line) for line in index.read_text().splitlines()]
        paths = [contents[line["sha256"]] for line in lines if "file" in line]
        found = extract(encoder_of("pixels", SIDE), paths, out, patches=True, say=pytest.fail)
        for i, path in enumerate(paths):
            cls, patches = tokens_of(path)
            assert np.allclose(found.cls_NC[i], cls, atol=1e-5), path
            assert torch.allclose(found.patches([i])[0], patches, atol=2e-3), path
        count += len(paths)
    return count


def right_prepared(out) -> int:
    if not any("shard" in line for line in index_lines(out)):
        return 0
    images = Archive(out)
    for i, path in enumerate(images.paths):
        assert np.array_equal(images[i], shrink(read(path).pixels, SIDE)), path
    return len(images)


def right_indexed(out) -> int:
    rows = [row for row in index_rows(out / "index.csv") if not row["error"]]
    for row in rows:
        with Picture.open(row["file"]) as picture:
            assert (row["width"], row["height"]) == tuple(map(str, picture.size))
    return len(rows)


KINDS = [
    pytest.param(embedded, right_embedded, 9, id="embed"),
    pytest.param(extracted, right_extracted, 9, id="features"),
    pytest.param(prepared, right_prepared, 9, id="prepare"),
    pytest.param(indexed, right_indexed, 9, id="index"),
]


@pytest.mark.parametrize(("work", "right", "readable"), KINDS)
def test_two_runs_on_one_folder_mix_nothing(work, right, readable, films, tmp_path):
    """Nor do they make twice what both of them are asked for."""
    out, together = tmp_path / "out", barrier(2)
    asked = films[0] + films[1][5:], films[1]
    runs = [start(work, some, out, together=together) for some in asked]
    assert [ended(run) for run in runs] == [0, 0]
    assert right(out) == readable + 10


@pytest.mark.slow
@pytest.mark.parametrize(("work", "right", "readable"), KINDS)
def test_killed_at_any_moment_it_loses_nothing_that_it_had_written(
    work, right, readable, films, tmp_path, monkeypatch
):
    """Nor does it promise what is not there; and nothing that lay there is written again, or left behind."""
    # as the writers set it, who also write in this process
    monkeypatch.setattr("encoder.features.MOST", 4)
    monkeypatch.setattr("train.datasets.index.PER_FLUSH", 4)
    for moment in range(1, 99):
        out = tmp_path / f"out{moment}"
        code = ended(start(work, films[0][:6], out, die_at=moment))
        whole = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.suffix in (".safetensors", ".tar")}
        rows = right(out)
        # in this process, which spares one more
        work(films[0][:6], out)
        assert right(out) == readable - 4
        kept = {f: f.stat().st_mtime_ns for f in whole}
        # The last shard may have been whole without its lines.
        assert sum(kept[f] != whole[f] for f in whole) <= 1
        assert len(whole) <= -(-rows // 4) + 1
        assert not [f for f in out.rglob("*") if f.suffix in (".new", ".part")]
        if code == 0:
            break
    assert code == 0 and moment > 4


def test_who_reads_an_index_leaves_it_alone(films, tmp_path):
    """Its last line may be in the middle of being written; it is cut off when the next is added."""
    out = tmp_path / "out"
    embedded(films[0], out)
    prepared(films[0], tmp_path / "archive")
    for index, lines in (
        (out / "index.jsonl", lambda: done(out)),
        (tmp_path / "archive" / "index.jsonl", None),
    ):
        lines = lines or (lambda: index_lines(tmp_path / "archive"))
        before = len(lines())
        with index.open("a") as file:
            file.write('{"path": "half a li')
        content = index.read_bytes()
        assert len(lines()) == before and index.read_bytes() == content
    embedded(films[1][:1], out)
    assert len(done(out)) == 11 and all(json.loads(x) for x in (out / "index.jsonl").read_text().splitlines())


def test_rows_and_reasons(tmp_path):
    store = Store(tmp_path, "key", shard="{file}")
    (tmp_path / "0").touch()
    store.append([{"key": "a", "error": "once"}, {"key": "b", "file": "0", "row": 0}])
    store.append([{"key": "b", "error": "later"}, {"key": "c", "file": "gone", "row": 1}])
    store.append([{"key": "a", "file": "0", "row": 2}, {"key": "d", "error": "x"}])
    assert store.rows() == {
        "a": {"key": "a", "file": "0", "row": 2},
        "b": {"key": "b", "file": "0", "row": 0},
        "d": {"key": "d", "error": "x"},
    }


def test_indexes_of_several_processes_are_read_together(tmp_path):
    for process in range(2):
        Store(tmp_path, "key", index="index-*.jsonl", process=process).append([{"key": process}])
    append_json(tmp_path / "other.jsonl", [{"key": "of somebody else"}])
    store = Store(tmp_path, ("key",), index="index-*.jsonl")
    assert set(store.rows()) == {(0,), (1,)}
    store.clear()
    assert not store.rows() and (tmp_path / "other.jsonl").exists()


def test_paths_that_are_not_utf8_are_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xe2\x80\xa8.png")
    store = Store(tmp_path, "path")
    store.append([{"path": name}])
    assert list(store.rows()) == [name]
    (tmp_path / "index.jsonl").read_text(encoding="utf-8")
    # As earlier versions wrote it.
    line = json.dumps({"path": name + "2"}, ensure_ascii=False) + "\n"
    append(tmp_path / "index.jsonl", line.encode("utf-8", "surrogateescape"))
    assert list(store.rows()) == [name, name + "2"]


def test_what_rows_were_made_with_is_compared(tmp_path):
    store = Store(tmp_path / "s", "key")
    store.refuse_other("about.json", "store")
    with store.writing():
        store.agree("about.json", {"side": 32, "bits": 8})
        store.agree("about.json", {"bits": 8, "side": 32})
        with pytest.raises(StoreError, match=r"side 32 \(now 64\), more None \(now 1\)"):
            store.agree("about.json", {"side": 64, "bits": 8, "more": 1})
    store.refuse_other("about.json", "store")
    with pytest.raises(StoreError, match="is not empty and no archive"):
        store.refuse_other("prepared.json", "archive")
    (tmp_path / "s" / "about.json").write_text('{"side": 3')
    with pytest.raises(InputFileError, match="damaged"):
        store.agree("about.json", {"side": 32})
    with pytest.raises(StoreError, match="is a file"), Store(tmp_path / "s" / "about.json", "key").writing():
        pass


def test_the_second_waits_and_says_so(tmp_path):
    store, said, order = Store(tmp_path, "key"), [], []

    def second():
        with store.writing(say=said.append):
            order.append("second")

    with store.writing():
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"] and "waiting" in said[0] and str(tmp_path) in said[0]


def test_what_a_killed_run_left_is_swept_up(tmp_path):
    mine, others = tmp_path / ".k1.json.0123abcd.new", tmp_path / ".k2.json.0123abcd.new"
    mine.touch()
    others.touch()
    with Store(tmp_path, "row", own="k1").writing():
        assert not mine.exists() and others.exists()


def test_slow_rows_are_written_before_a_file_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE", -1)
    store = Store(tmp_path, "key", shard="{file}")
    shards = TensorShards(store, "{:05d}.safetensors", {}, full=1000)
    assert [line["row"] for line in shards.add([{"key": 1}, {"key": 2}], {"x": torch.zeros(2, 3)})] == [0, 1]
    monkeypatch.setattr(stores, "PATIENCE", 99)
    assert len(shards.add([{"key": 3}], {"x": torch.zeros(1, 3)})) == 1
    assert not shards.add([{"key": 4}], {"x": torch.zeros(1, 3)}) and len(store.rows()) == 3
    assert len(shards.write()) == 1 and len(store.rows()) == 4
    # Whoever resumes counts on from what is promised.
    assert TensorShards(store, "{:05d}.safetensors", store.rows(), 9).number == 3


def test_workers_end_with_a_killed_parent(tmp_path):
    assert ended(start(parent_of_sleepers, tmp_path / "pids")) == -9
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    deadline = time.monotonic() + 30
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Lines of an index that a disk, or somebody, has damaged.
DAMAGED = (
    "{}", "[1]", "1", "null", '"x"', '{"path": 1}', '{"path": [1]}', '{"path": "x.png"}', '{"path": null, "shard": 0}',
    '{"path": "x", "shard": "../../etc", "offset": 0, "size": 1, "file": "../../etc", "row": 0}',
    '{"path": "x", "shard": -1, "offset": -5, "size": 1, "file": "", "row": -1}',
    '{"path": "x", "shard": 0, "offset": 1.5, "size": true, "file": 7, "row": "0"}',
    '{"path": "x", "error": 5}', '{"path": "x", "error": {"code": 5}}', "9" * 5000, "[" * 90_000,
    '{"path": "x", "shard": 0, "offset": 0, "size": 99999999999, "file": "nowhere", "row": 0}',
)  # fmt: skip


@pytest.mark.parametrize("kind", ["prepare", "embed"])
def test_damaged_lines_count_as_not_there(films, tmp_path, kind):
    out = tmp_path / "out"
    write, right = (prepared, right_prepared) if kind == "prepare" else (embedded, right_embedded)
    write(films[0], out)
    before = right(out)
    append(out / "index.jsonl", "".join(line + "\n" for line in DAMAGED).encode())
    write(films[0], out)
    assert right(out) == before


@pytest.mark.parametrize("kind", ["prepare", "embed"])
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_shards_that_were_cut_off_are_made_again(films, tmp_path, kind, keep, capfd):
    out = tmp_path / "out"
    write, right = (prepared, right_prepared) if kind == "prepare" else (embedded, right_embedded)
    pattern = "*.tar" if kind == "prepare" else "*.safetensors"
    write(films[0], out)
    before = right(out)
    shard = min(out.glob(pattern))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: keep if keep >= 0 else len(whole) // 2])
    write(films[0], out)
    assert right(out) == before
    assert f"{shard} is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "[" * 90_000, "9" * 5000, "{", "null", ""])
@pytest.mark.parametrize("kind", ["prepare", "embed"])
def test_a_damaged_account_of_a_folder_is_named(films, tmp_path, kind, text):
    out = tmp_path / "out"
    write, name = (prepared, "prepared.json") if kind == "prepare" else (embedded, "embed.json")
    write(films[0], out)
    (out / name).write_text(text)
    with pytest.raises(InputFileError, match=f"{name} is damaged: it is not a JSON object"):
        write(films[0], out)
