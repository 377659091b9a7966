"""Studies in, findings out: order, errors, batches, floors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from vlm import Findings, adapters
from vlm import model as models
from vlm.findings import OUTLIERS
from vlm.outliers import Outliers, embedding
from vlm.prompts import derangement
from vlm.study import Image, Study, load_studies

MOST = 12


@pytest.fixture
def findings(findings_model):
    return Findings(findings_model)


@pytest.fixture
def studies(studies_file):
    return load_studies(studies_file)[:7]


def run(findings, studies, root, **kwargs):
    return list(findings.generate(studies, root=root, max_new_tokens=MOST, **kwargs))


def test_three_lines(findings_model, studies_file, tmp_path):
    models.save(findings_model, tmp_path / "m")
    model = Findings.from_pretrained(tmp_path / "m", device="cpu")
    model.model.meta.max_new_tokens = MOST
    prediction = model(studies_file.parent / "images" / "0.png")
    assert prediction.text == prediction.findings and prediction.study_id == "0.png"
    assert prediction.revision == models.weights_sha256(tmp_path / "m")
    assert model.notice == "For research, not for diagnosis."


def test_a_lateral_view_is_warned_about_whoever_says_so(findings, studies_file):
    image = Image(str(studies_file.parent / "images" / "0.png"), "lateral")
    (prediction,) = run(findings, [Study("s", images=[image])], ".")
    assert "lateral" in [w["code"] for w in prediction.warnings]
    (blank,) = run(findings, [Study("s", images=[image])], ".", images="blank")
    assert "lateral" not in [w["code"] for w in blank.warnings]


@pytest.mark.parametrize("size", [2, 4, 7])
def test_a_batch_equals_its_singles(findings, studies, studies_file, size):
    lengths = {len(findings.model.prompt_ids(f"<image>\n{s.indication}")) for s in studies}
    assert len(lengths) > 1  # prompts of different lengths, or the test shows nothing
    singles = run(findings, studies, studies_file.parent, batch_size=1)
    batched = run(findings, studies, studies_file.parent, batch_size=size)
    assert [p.findings for p in batched] == [p.findings for p in singles]
    assert len({p.findings for p in singles}) > 1


def test_images_are_encoded_once_whatever_reads_them(findings_model, studies, studies_file):
    """The words that surprise the model, the findings and their scores are three passes of the language model."""
    outliers = Outliers.fit(torch.randn(80, 34, generator=torch.Generator().manual_seed(1)))
    outliers.words, outliers.threshold = 1e9, 1e9
    outliers.judged = lambda tower, pixels: [(0.0, 0.0)] * len(pixels)
    seen = []
    tower = findings_model.parts.vision_tower
    tower.register_forward_hook(lambda _, pixels, __: seen.append(len(pixels[0])))
    found = run(Findings(findings_model, outliers), studies[:3], studies_file.parent, sentences="confidence")
    assert sum(seen) == 3 and all(p.sentences[0]["confidence"] is not None for p in found)


def test_our_attention_and_eager_write_the_same(findings_model, studies, studies_file, tmp_path):
    models.save(findings_model, tmp_path / "m")
    texts = [
        [p.findings for p in run(Findings.from_pretrained(tmp_path / "m", device="cpu", attention=a), studies,
                                 studies_file.parent, batch_size=4)]
        for a in ("cxr", "sdpa", "reference")
    ]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


def test_one_bad_file_does_not_stop_the_others(findings, studies, studies_file, tmp_path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    Picture.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "black.png")
    bad = [tmp_path / "empty.dcm", tmp_path / "black.png", tmp_path / "absent.png", Study("none")]
    mixed = [studies[0], bad[0], studies[1], *bad[1:], studies[2]]
    out = run(findings, mixed, studies_file.parent, batch_size=3)
    assert [p.study_id for p in out] == ["s0", "empty.dcm", "s1", "black.png", "absent.png", "none", "s2"]
    codes = [p.error and p.error["code"] for p in out]
    assert codes == [None, "not_an_image", None, "constant_image", "unreadable", "no_images", None]
    assert all((p.findings is None) != (p.error is None) for p in out)
    alone = run(findings, studies[:3], studies_file.parent, batch_size=1)
    assert [p.findings for p in out if not p.error] == [p.findings for p in alone]
    with pytest.raises(Exception, match="empty"):
        _ = out[1].text


def test_two_runs_differ_in_seconds_alone(findings, studies, studies_file):
    rows = [
        [p.to_json() for p in run(findings, studies, studies_file.parent, batch_size=4)] for _ in range(2)
    ]
    for row in rows[0] + rows[1]:
        assert row.pop("seconds") >= 0 and row["schema"] == 1
        assert row["decoding"] == {"method": "greedy", "max_new_tokens": MOST, "stop_repeats": True}
        assert row["preprocess_sha256"] == findings.model.preprocessing.sha256
        json.dumps(row)
    assert rows[0] == rows[1]


def test_shuffled_images_are_others_images_with_ones_own_words(findings, studies, studies_file):
    out = run(findings, studies, studies_file.parent, images="shuffled", seed=3, batch_size=4)
    order = derangement(len(studies), 3)
    swapped = [
        Study(s.study_id, images=studies[order[i]].images, indication=s.indication, prior=s.prior)
        for i, s in enumerate(studies)
    ]
    assert [p.findings for p in out] == [p.findings for p in run(findings, swapped, studies_file.parent)]
    assert out[0].decoding["images"] == "shuffled" and out[0].decoding["seed"] == 3


def test_a_blank_image_says_the_same_of_everyone(findings, studies, studies_file):
    for s in studies:
        s.indication = s.prior = None
    assert len({p.findings for p in run(findings, studies, studies_file.parent, images="blank")}) == 1
    assert len({p.findings for p in run(findings, studies, studies_file.parent)}) > 1


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_a_derangement_moves_everyone(n):
    for seed in range(5):
        order = derangement(n, seed)
        assert sorted(order) == list(range(n)) and all(i != j for i, j in enumerate(order))
    assert derangement(n, 1) == derangement(n, 1)


def test_findings_that_were_cut_off_are_said_to_be(findings, studies, studies_file):
    out = next(findings.generate(studies[:1], root=studies_file.parent, max_new_tokens=1))
    assert [w["code"] for w in out.warnings if w["code"] == "cut_off"] == ["cut_off"]


def test_the_readers_warnings_are_passed_on(findings, cxr_data):
    hip = next((cxr_data / "dicom" / "radiograph").glob("RG2_*"))
    (out,) = run(findings, [hip], ".")
    assert out.findings is not None
    assert all(set(w) == {"code", "message"} for w in out.warnings)


def test_an_unusual_image_is_warned_about(findings_model, studies, studies_file, tmp_path):
    tower = findings_model.llava.model.vision_tower
    near_BCHW = 0.1 * torch.randn(64, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    reference = Outliers.fit(embedding(tower, near_BCHW), encoder_sha256=findings_model.meta.encoder_sha256)
    models.save(findings_model, tmp_path / "m")
    reference.save(tmp_path / "m" / OUTLIERS)
    out = run(Findings.from_pretrained(tmp_path / "m", device="cpu"), studies[:1], studies_file.parent)
    assert [w["code"] for w in out[0].warnings if w["code"] == "out_of_distribution"] == [
        "out_of_distribution"
    ]
    reference.encoder_sha256 = "0" * 64
    reference.save(tmp_path / "m" / OUTLIERS)
    with pytest.raises(models.ModelError, match="fit it again"):
        Findings.from_pretrained(tmp_path / "m", device="cpu")


def test_bad_arguments(findings, studies):
    with pytest.raises(ValueError, match="own, shuffled, blank"):
        next(findings.generate(studies, images="white"))
    with pytest.raises(ValueError, match="at least 1"):
        next(findings.generate(studies, batch_size=0))


def test_a_study_is_read_when_its_turn_comes(findings, studies_file):
    def endless():
        while True:
            yield Study("s", images=[Image("images/0.png")])

    stream = findings.generate(endless(), root=studies_file.parent, batch_size=2, max_new_tokens=1)
    assert [next(stream).study_id for _ in range(3)] == ["s"] * 3


@pytest.mark.parametrize("what", ["merged", "adapter"])
def test_weights_of_half_the_size(findings_model, studies, studies_file, tmp_path, what):
    """bfloat16, as a model for a smaller GPU: what was likeliest in float32 is among the likeliest still."""
    models.save(findings_model, tmp_path / "base")
    if what == "adapter":
        findings_model.llava = adapters.add_lora(findings_model.llava, 4)
        models.save_adapter(findings_model, tmp_path / "adapter", tmp_path / "base")
    folder = tmp_path / ("base" if what == "merged" else what)
    half = Findings.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    made = run(half, studies, studies_file.parent, sentences="confidence")
    assert all(p.error is None and p.decoding["dtype"] == "bfloat16" for p in made)
    whole = Findings.from_pretrained(folder, device="cpu")
    for p, q in zip(made, run(whole, studies, studies_file.parent, sentences="confidence"), strict=True):
        assert "dtype" not in q.decoding
        assert p.sentences[0]["confidence"] == pytest.approx(q.sentences[0]["confidence"], rel=0.1)
