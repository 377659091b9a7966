"""Where the clinical models' files are looked for, what is said of missing ones, and fetching without a hub."""

import hashlib
import io
import json
import tarfile

import pytest

from eval.scores import weights
from eval.scores.readers import ScoreError


def write(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def archive(path, config):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        data = json.dumps(config).encode()
        member = tarfile.TarInfo("radgraph/config.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


ENCODER = {"dataset_reader": {"token_indexers": {"bert": {"model_name": "somebody/an-encoder"}}}}


def test_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("CXR_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights.folder() == tmp_path / "cache" / "cxr" / "weights"
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "shared"))
    assert weights.folder() == tmp_path / "shared"
    assert weights.folder(tmp_path / "given") == tmp_path / "given"


def test_what_is_there_and_what_is_not(tmp_path):
    found = weights.find("chexbert", tmp_path)
    assert not found.complete and found.missing == ("chexbert.pth", "bert-base-uncased/vocab.txt")
    assert found.sha256() is None
    missing = weights.not_computed(found)
    assert [m.name for m in missing] == list(weights.MODELS["chexbert"].serves)
    assert all("chexbert.pth" in m.reason and m.command == "cxr weights --fetch chexbert" for m in missing)
    write(tmp_path / "chexbert" / "chexbert.pth", b"weights")
    assert weights.find("chexbert", tmp_path).missing == ("bert-base-uncased/vocab.txt",)
    write(tmp_path / "chexbert" / "bert-base-uncased" / "vocab.txt")
    found = weights.find("chexbert", tmp_path)
    assert found.complete and found.sha256() == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("file", ["radgraph.tar.gz", "weights.th"])
def test_radgraph_as_archive_or_extracted(tmp_path, file):
    write(tmp_path / "radgraph" / file)
    assert weights.find("radgraph", tmp_path).missing == ("*/config.json",)
    write(tmp_path / "radgraph" / "an-encoder" / "config.json")
    assert weights.find("radgraph", tmp_path).complete


def test_another_name_is_refused(tmp_path):
    with pytest.raises(ScoreError, match="no clinical model 'bert'; there are chexbert, radgraph"):
        weights.find("bert", tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A hub that is at hand: every file holds its own name."""
    import huggingface_hub

    asked = []

    def download(repository, file, local_dir):
        asked.append(f"{repository}/{file}")
        if file.endswith(".tar.gz"):
            archive(local_dir / file, ENCODER)
        else:
            write(local_dir / file, file.encode())

    class Api:
        def list_repo_files(self, repository):
            return ["config.json", "vocab.txt", "pytorch_model.bin", "modeling_own.py"]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


@pytest.mark.parametrize("name", weights.MODELS)
def test_fetching_completes_a_model(tmp_path, hub, name):
    said = []
    assert weights.fetch(name, tmp_path, said.append).complete
    assert said == hub
    assert not [
        file for file in hub if file.endswith((".py", "pytorch_model.bin"))
    ]  # no code, nothing needless
    before = list(hub)
    weights.fetch(name, tmp_path)
    assert hub == before  # what is there is not fetched again


def test_the_encoder_of_radgraph_is_the_one_its_archive_names(tmp_path, hub):
    weights.fetch("radgraph-xl", tmp_path)
    assert "somebody/an-encoder/config.json" in hub
    assert (tmp_path / "radgraph-xl" / "an-encoder" / "vocab.txt").is_file()
    write(tmp_path / "radgraph" / "radgraph.tar.gz", b"no archive")
    with pytest.raises(ScoreError, match="no RadGraph archive"):
        weights.fetch("radgraph", tmp_path)


def test_without_a_hub_it_says_what_to_copy(tmp_path, monkeypatch):
    import huggingface_hub

    def download(*args, **kwargs):
        raise ConnectionError("no route to the hub\nmore of it")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(
        ScoreError, match=r"cannot be reached or refused .no route to the hub.*Copy the files to"
    ) as e:
        weights.fetch("chexbert", tmp_path)
    assert "chexbert.pth of StanfordAIMI/RRG_scorers" in str(e.value) and "more of it" not in str(e.value)
