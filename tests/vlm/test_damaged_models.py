"""Models that lie: each damage of `tests/damage.py` ends in status 2 and one line that names the file, before memory is
taken; and nothing that lies beside the weights is run."""

from __future__ import annotations

import json
import math
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.exceptions import SecurityError
from PIL import Image as Picture
from safetensors.torch import save, save_file

import train.finetune.__main__ as finetune
from cxr.cli.main import main
from encoder.errors import ModelError
from encoder.weights import WIDTHS, check_numbers, first_odd, read_header, stored_in
from tests.damage import CASES, INDEX, WEIGHTS, Case, damaged, filled, models, rewrite, sharded, tensor
from tests.tiny import SMALL, make_studies
from train.common.entry import entry
from vlm.decoding import Decoding
from vlm.errors import AskedError
from vlm.findings import Findings
from vlm.load import load_model
from vlm.room import _bytes_a_study, check_memory, free_memory


@pytest.fixture(scope="module")
def sound(tmp_path_factory, encoder_dir, llm_dir) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("sound"), encoder_dir, llm_dir)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("film") / "film.png"
    Picture.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48)).astype(np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def listing(tmp_path_factory) -> Path:
    return make_studies(tmp_path_factory.mktemp("damaged") / "studies", 10)


@pytest.fixture
def answered(sound, film, listing, tmp_path, capsys):
    """Run the command that reads a model of that kind; -> (status, what it said on the error stream)."""

    def run(kind: str, model: Path) -> tuple[int, str]:
        if kind in ("findings", "adapter"):
            words = ["generate", str(film), "--model", str(model), "--device", "cpu", "--max-new-tokens", "3"]
            return main(words), capsys.readouterr().err
        if kind == "language model":
            given = ["--encoder", str(sound["encoder"]), "--llm", str(model), "--studies", str(listing)]
            words = [*SMALL, *given, "--out", str(tmp_path / "out")]
            return entry(finetune.main, "train.finetune", words), capsys.readouterr().err
        words = ["embed", str(film), "--model", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"]
        return main(words), capsys.readouterr().err

    return run


@pytest.mark.parametrize("kind", ["findings", "adapter", "encoder"])
def test_sound_models_are_read(kind, sound, answered):
    status, err = answered(kind, sound[kind])
    assert status == 0, err


@pytest.mark.parametrize("name", CASES)
def test_damages(name, sound, answered, tmp_path):
    case = CASES[name]
    model = damaged(case, sound, tmp_path / "damaged")
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    status, err = answered(case.model, model)
    seconds, grown = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    lines = [line for line in err.splitlines() if line.startswith(("cxr ", "train."))]
    assert status == 2, err
    assert len(lines) == 1 and "Traceback" not in err and " at 0x" not in err, err
    for words in case.said:
        assert any(word in lines[0] for word in words.split("|")), lines[0]
    # all of the sizes asked for here would take gigabytes, and 100,000 layers minutes
    assert seconds < 5 and grown < 300_000, (seconds, grown)
    assert not (Path(__file__).parents[1] / "pickle_ran").exists()


def test_headers_of_every_type_agree_with_safetensors(tmp_path):
    """What is written by the library is read by the header alone, and its length is the file's."""
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
             torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
             torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3"}  # fmt: skip
    state = {name: torch.zeros(2, i + 1).to(dtype) for i, (dtype, name) in enumerate(names.items())}
    state |= {"none": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: x.shape for name, x in found.items()} == {name: tuple(x.shape) for name, x in state.items()}
    assert all(
        found[name].dtype == name and WIDTHS[name] == state[name].element_size() for name in names.values()
    )


@pytest.mark.parametrize("at", [0, 1, 7, 8, 9, 40, -1, -5])
def test_files_cut_anywhere_are_refused(at, tmp_path):
    data = save({"a": torch.arange(4.0), "b": torch.ones(2, 2)})
    (tmp_path / "x.safetensors").write_bytes(data[:at])
    with pytest.raises(ModelError, match=r"x\.safetensors cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_a_gap_is_refused(tmp_path):
    row = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}
    text = json.dumps(row).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelError, match="gap before tensor 'a'"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_odd_numbers_are_found_wherever_they_are(dtype, value):
    x = torch.linspace(-60000, 60000, 97).to(dtype)
    assert first_odd([("a", x), ("none", x[:0]), ("whole", torch.arange(3))]) is None
    for place in (0, 48, 96):
        y = x.clone()
        y[place] = value
        assert first_odd([("a", x), ("b", y)]) == "b"


def test_weights_in_parts_are_read(sound, answered, tmp_path):
    model = damaged(Case("findings", sharded, ()), sound, tmp_path / "parts")
    assert not (model / WEIGHTS).exists() and (model / INDEX).is_file()
    before, after = (load_model(folder).llava.state_dict() for folder in (sound["findings"], model))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_numbers_that_the_asked_type_cannot_hold_are_said(sound, tmp_path):
    model = damaged(Case("findings", tensor(WEIGHTS, "o_proj", filled(1e30)), ()), sound, tmp_path / "large")
    load_model(model)
    with pytest.raises(ModelError, match=r"o_proj.* holds numbers that torch.float16 has no place for"):
        load_model(model, dtype=torch.float16)


def test_sound_numbers_are_looked_at_once(sound, monkeypatch):
    """The files are opened a second time only to name what is wrong."""
    model, folder = load_model(sound["findings"]), sound["findings"]
    seen = []
    monkeypatch.setattr("safetensors.safe_open", lambda *_: pytest.fail("the files were read again"))
    monkeypatch.setattr("encoder.weights.first_odd", lambda tensors: seen.extend(name for name, _ in tensors))
    check_numbers(model.llava, folder, stored_in(folder))
    assert seen == list(model.llava.state_dict())


# --- nothing is run ---------------------------------------------------------------------------------------------------

TRAPS = {
    "a command": "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__['__builtins__']['open']('FILE', 'w') }}",
    "attributes by a filter": "{{ (messages|attr('__class__'))|attr('__base__') }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "a file": "{% include 'FILE' %}",
    "an import": "{% import 'FILE' as x %}",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_templates_of_chats_are_not_run(trap, sound, answered, tmp_path):
    """cxr writes a template and never renders a model's; transformers, asked to, does so in a sandbox."""
    target = tmp_path / "made"
    words = TRAPS[trap].replace("FILE", str(target))
    model = damaged(
        Case("findings", lambda f: (f / "chat_template.jinja").write_text(words), ()), sound, tmp_path / "m"
    )
    status, err = answered("findings", model)
    assert status == 0 and not target.exists(), err
    processor = load_model(model).processor
    assert processor.chat_template == words
    try:
        said = processor.apply_chat_template([{"role": "user", "content": "x"}])
    except Exception as error:
        # no loader: nothing can be included
        assert isinstance(error, SecurityError) or "loader" in str(error) or "undefined" in str(error), error
    else:
        # what a sandbox leaves undefined is written as nothing
        assert not str(said).strip(), said
    assert not target.exists()


@pytest.mark.parametrize("kind", ["findings", "encoder"])
def test_code_beside_the_weights_is_not_run(kind, sound, answered, tmp_path):
    target = tmp_path / "made"

    def trap(folder: Path) -> None:
        code = f"open({str(target)!r}, 'w')\nclass X: pass\n"
        (folder / "trap.py").write_text(code)
        autos = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor",
                 "AutoImageProcessor")  # fmt: skip
        places = {name: ["trap.X", "trap.X"] if name == "AutoTokenizer" else "trap.X" for name in autos}
        for file in folder.glob("*config.json"):
            rewrite(file, lambda row: row.update(auto_map=places))

    status, err = answered(kind, damaged(Case(kind, trap, ()), sound, tmp_path / "m"))
    assert status == 0 and not target.exists(), err

    def foreign(folder: Path) -> None:
        trap(folder)
        rewrite(folder / "config.json", lambda row: row.update(model_type="nonesuch"))

    begun = time.perf_counter()
    status, err = answered(kind, damaged(Case(kind, foreign, ()), sound, tmp_path / "f"))
    assert status == 2 and "config.json" in err and not target.exists(), err
    # transformers asks on the terminal, and waits for 15 seconds, unless it is told no
    assert "Do you wish to run" not in err and time.perf_counter() - begun < 10


# --- what the machine has ---------------------------------------------------------------------------------------------


def test_memory_of_a_batch_is_that_of_its_cache(findings_model):
    """The bytes that are counted are those of transformers' own cache."""
    from transformers import DynamicCache

    config = findings_model.llava.config.get_text_config()
    cache = DynamicCache()
    few, many = (_bytes_a_study(findings_model, Decoding(n)) for n in (10, 60))
    with torch.inference_mode():
        findings_model.parts.language_model(
            inputs_embeds=torch.zeros(1, 50, config.hidden_size), past_key_values=cache, use_cache=True
        )
    assert many - few == sum(4 * x.numel() for layer in cache.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize(
    ("decoding", "batch", "studies", "said"),
    [
        (
            Decoding(32, "beam", beams=10_000),
            1,
            1,
            r"beams=10000 takes about .* for one study.* use at most \d+ beams",
        ),
        (
            Decoding(32),
            100_000_000,
            1,
            r"batch_size=100000000 takes about .* use a batch_size of at most \d+",
        ),
        (Decoding(32, "beam", beams=50), 64, 64, r"batch_size=64 with 50 beams takes about .* at most \d+"),
        (Decoding(32), 3000, 1, None),
        (Decoding(32), 3000, 3000, "batch_size=3000 takes"),
        (Decoding(32), 3000, None, "batch_size=3000 takes"),
        (Decoding(32), 16, None, None),
    ],
)
def test_batches_that_do_not_fit(decoding, batch, studies, said, findings_model, monkeypatch):
    monkeypatch.setattr("vlm.room.free_memory", lambda device: 50_000_000)
    if said is None:
        check_memory(findings_model, decoding, batch, studies)
        return
    with pytest.raises(AskedError, match=said) as refused:
        check_memory(findings_model, decoding, batch, studies)
    # what it says would fit does, and one more does not
    most = int("".join(c for c in str(refused.value).rpartition("at most ")[2] if c.isdigit()))
    beams = "beams=" in str(refused.value).partition(" ")[0]
    for n, fits in ((most, True), (most + max(1, most // 50), False)):
        asked = Decoding(32, "beam", beams=n) if beams else decoding
        try:
            check_memory(findings_model, asked, 1 if beams else n, 1 if beams else n)
            assert fits, n
        except AskedError:
            assert not fits, n


def test_the_machine_is_asked(findings_model, film, answered):
    free = free_memory(torch.device("cpu"))
    assert free is not None and 10**8 < free < 10**14
    findings = Findings(findings_model, warn=False)
    with pytest.raises(AskedError, match="batch_size=100000000 takes about"):
        findings.generate([film], batch_size=100_000_000)
    assert next(findings.generate([film], batch_size=1000, max_new_tokens=2)).error is None


def test_commands_say_it(sound, film, capsys):
    for words in (["--beams", "10000000"], ["--batch-size", "100000000"]):
        assert (
            main(["generate", str(film), "--model", str(sound["findings"]), "--device", "cpu", *words]) == 2
        )
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert "takes about" in err and ("use at most" in err or "use a batch_size of at most" in err)
