"""Files in one piece, lines that were cut off, digests."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder import files
from encoder.files import (
    append,
    append_json,
    read_json_lines,
    replace_folder,
    sha256_of,
    sweep,
    whole_lines,
    write_atomically,
    write_json,
    write_text,
)


def test_the_old_content_is_there_until_the_new_is_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with write_atomically(path) as part:
        part.write_text("half")
        assert path.read_text() == '{\n "a": 1\n}\n'
        part.write_text("whole")
    assert path.read_text() == "whole" and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path, error):
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(error), write_atomically(path) as part:
        part.write_text("new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]
    with pytest.raises(TypeError):
        write_json(path, object())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_what_is_taken_back_is_not_written(tmp_path):
    with write_atomically(tmp_path / "x") as part:
        part.write_text("new")
        part.unlink()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    """safetensors' own files are for their owner alone."""
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        write_text(tmp_path / "text", "x")
        with write_atomically(tmp_path / "tensors") as part:
            save_file({"x": torch.arange(3)}, part)
        modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("plain", "text", "tensors")]
    finally:
        os.umask(before)
    assert modes == [0o666 & ~umask] * 3
    assert load_file(tmp_path / "tensors")["x"].tolist() == [0, 1, 2]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []

    def watched(descriptor, real=os.fsync):
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "x").exists()))
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched)
    write_text(tmp_path / "x", "content")
    (first, before), (second, after) = seen
    assert first.startswith(str(tmp_path / ".x.")) and not before and second == str(tmp_path) and after


def test_leftovers_of_killed_processes_are_swept_up(tmp_path):
    for name in (".a.json.0123abcd.new", ".ab.0123abcd.new", ".b.0123abcd.new", ".a.new", "a.0123abcd.new"):
        (tmp_path / name).touch()
    sweep(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == [".a.new", ".b.0123abcd.new", "a.0123abcd.new"]
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.new", "a.0123abcd.new"]


def test_lines_that_were_cut_off(tmp_path):
    path = tmp_path / "lines"
    append(path, b"")
    assert not path.exists() and read_json_lines(path) == []
    append_json(path, [{"a": 1}, {"a": 2}])
    with path.open("ab") as file:
        file.write(b'{"a": 3')
    assert whole_lines(path) == b'{"a": 1}\n{"a": 2}\n' and read_json_lines(path) == [{"a": 1}, {"a": 2}]
    assert path.read_bytes().endswith(b'{"a": 3')
    append_json(path, [{"a": 4}])
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 4}\n'
    path.write_bytes(b"no line at all")
    append(path, b"x\n")
    assert path.read_bytes() == b"x\n"
    # Earlier versions ended a line that was cut off, and went on.
    path.write_bytes(b'{"a": 1}\n{"a": 2, "b\n{"a": 3}\n')
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]


def test_digests_are_hashlibs(tmp_path):
    contents = [b"one", b"", os.urandom((4 << 20) + 5)]
    paths = [tmp_path / str(i) for i in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert sha256_of(*paths) == hashlib.sha256(b"".join(contents)).hexdigest()
    assert sha256_of(paths[0]) == hashlib.sha256(b"one").hexdigest()
    with pytest.raises(OSError, match="absent"):
        sha256_of(tmp_path / "absent")


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert os.listdir(tmp_path) == ["final"] and os.listdir(tmp_path / "final") == ["new"]
