"""The model as people call it in a notebook: images of any kind, what is known beside them, warnings, what is shown."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import cxr
from encoder.radiograph import InputError
from tests.encoder.test_radiograph import dataset, save
from vlm import answering as room
from vlm import notices
from vlm.prompts import PromptStyle
from vlm.study import Prior, StudyError

H, W = 300, 280
MOST = 12
WHOLE = PromptStyle(demographics=True, lateral=True, prior_image=True)


def grey(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(20, 220, (H // 20, W // 20), dtype=np.uint8)
    return np.repeat(np.repeat(blocks, 20, 0), 20, 1)


@pytest.fixture
def model(findings_model):
    findings_model.meta.max_new_tokens = MOST
    return cxr.Findings(findings_model, warn=False)


@pytest.fixture
def whole(findings_model):
    """A model whose prompt has a place for everything."""
    meta = replace(findings_model.meta, prompt=WHOLE, max_new_tokens=MOST)
    return cxr.Findings(replace(findings_model, meta=meta), warn=False)


@pytest.fixture
def films(tmp_path):
    """Three different pictures, as files."""
    paths = [tmp_path / f"{name}.png" for name in ("now", "side", "before")]
    for seed, path in enumerate(paths):
        Picture.fromarray(grey(seed)).save(path)
    return paths


@pytest.fixture
def fresh(monkeypatch):
    """A process that was told nothing yet."""
    monkeypatch.setattr(notices, "_told", set())


def answer(prediction: cxr.Prediction) -> tuple:
    """The words, and how sure the model was of them, which tells pictures apart that get the same words."""
    assert prediction.error is None, prediction
    return prediction.text, [s["confidence"] for s in prediction.sentences]


def sure(model, *given, **beside) -> tuple:
    return answer(model(*given, sentences="confidence", **beside))


# --- images of every kind ---------------------------------------------------------------------------------------------


def test_equal_pixels_give_equal_answers_whatever_holds_them(model, films):
    now = films[0]
    levels, data = grey(0), now.read_bytes()
    sources = {
        "text": str(now), "bytes": data, "buffer": io.BytesIO(data), "file": now.open("rb"),
        "picture": Picture.fromarray(levels), "opened": Picture.open(now), "array": levels,
        "three channels": np.repeat(levels[..., None], 3, -1), "tensor": torch.from_numpy(levels),
        "first": torch.from_numpy(levels)[None], "radiograph": cxr.read(now), "floats": cxr.read(now).pixels,
        "float tensor": torch.from_numpy(cxr.read(now).pixels), "study": cxr.Study("s", images=[cxr.Image(str(now))]),
    }  # fmt: skip
    expected = sure(model, now)
    for name, source in sources.items():
        assert sure(model, source) == expected, name
    sources["file"].close()
    assert sure(model, grey(1)) != expected
    deep = levels.astype(np.uint16) * 200 + 9
    Picture.fromarray(deep).save(now.parent / "deep.png")
    expected = sure(model, now.parent / "deep.png")
    assert sure(model, deep) == expected and sure(model, torch.from_numpy(deep)) == expected
    given = dataset(levels.astype(np.uint16) * 11, 12)
    expected = sure(model, save(given, now.parent / "x.dcm"))
    assert sure(model, given) == expected and sure(model, cxr.read(given)) == expected


def test_a_list_gives_a_list_in_one_batch(model, films, monkeypatch):
    batches = []
    generate = room.generate_ids
    monkeypatch.setattr(
        room, "generate_ids", lambda *args, **more: batches.append(len(args[2])) or generate(*args, **more)
    )
    mixed = [films[0], grey(1), cxr.Study("named", images=[cxr.Image(str(films[2]))]), b"", grey(0)]
    found = model(mixed)
    assert batches == [4]
    assert [p.study_id for p in found] == ["now.png", "image 1", "named", "image 3", "image 4"]
    assert found[3].error == {"code": "not_an_image", "message": "the bytes given: the file is empty"}
    alone = [model(film).findings for film in (films[0], grey(1), films[2])]
    assert [found[i].findings for i in (0, 1, 2)] == alone and found[4].findings == found[0].findings
    assert (
        model([]) == [] and model((grey(0),))[0].study_id == "image 0" and model(grey(0)).study_id == "image"
    )
    assert model([cxr.Study("s", images=[cxr.Image("now.png")])], root=films[0].parent)[0].error is None


def test_what_cannot_be_used_is_an_error_of_the_prediction(model):
    refused = model(grey(0) > 100)
    assert refused.error["code"] == "unsupported_array" and "uint8" in refused.error["message"]
    with pytest.raises(
        cxr.InputError, match=r"^the array given: pixels of type bool; .*\[unsupported_array\]$"
    ):
        _ = refused.text
    for thing in (None, 7, {"path": "x"}):
        with pytest.raises(TypeError, match="accepted are a path, bytes"):
            model(thing)
    for settings in ({"batch_size": 0}, {"sentences": "all"}):
        with pytest.raises(ValueError):
            model(grey(0), **settings)


def test_generate_takes_the_same(model, films):
    found = list(model.generate([films[0], grey(1)], max_new_tokens=MOST))
    assert [p.study_id for p in found] == ["now.png", "image 1"]
    assert [p.findings for p in found] == [p.findings for p in model([films[0], grey(1)])]
    # a floor of images in memory
    swapped = list(model.generate([grey(0), grey(1)], images="shuffled", max_new_tokens=MOST))
    assert [p.findings for p in swapped] == [found[1].findings, model(grey(0)).findings]


# --- what is known beside an image ------------------------------------------------------------------------------------


def test_what_is_told_beside_an_image_is_what_a_study_would_say(whole, films):
    now, side, before = map(str, films)
    study = cxr.Study(
        "s", images=[cxr.Image(now, "PA"), cxr.Image(side, "lateral")], indication="Fever", age=63, sex="F",
        prior=Prior([cxr.Image(before)], "The lungs are clear."),
    )  # fmt: skip
    expected = sure(whole, study)
    beside = {"indication": "Fever", "age": 63, "sex": "female", "view": "pa", "lateral": grey(1)}
    was = cxr.Study("old", images=[cxr.Image(before)], findings="The lungs are clear.")
    for prior in (was, study.prior, (before, "The lungs are clear."), (grey(2), "The lungs are clear.")):
        made = whole(films[0], prior=prior, sentences="confidence", **beside)
        assert answer(made) == expected and [w["code"] for w in made.warnings] == ["cut_off"]
    text = replace(study, prior=Prior([], "The lungs are clear."))
    assert sure(whole, now, prior="The lungs are clear.", **beside) == sure(whole, text) != expected
    image = replace(study, prior=Prior([cxr.Image(before)]))
    for prior in (before, films[2], grey(2), (grey(2), None)):
        assert sure(whole, now, prior=prior, **beside) == sure(whole, image) != expected
    assert sure(whole, now, **beside) == sure(whole, replace(study, prior=None))


def test_a_text_that_ends_as_a_picture_does_is_a_picture(whole, films):
    made = whole(films[0], prior="lost.dcm")
    assert any("prior image was left out: No such file" in w["message"] for w in made.warnings)


def test_in_a_list_each_may_have_its_own(whole, films):
    singles = [
        sure(whole, f, indication=i, age=50) for f, i in zip(films, ("Fever", None, "Cough"), strict=True)
    ]
    found = whole(films, indication=["Fever", None, "Cough"], age=50, sentences="confidence")
    assert [p.text for p in found] == [text for text, _ in singles]
    # sums of a batch are rounded otherwise than those of one row
    assert [answer(p)[1] for p in found] == [pytest.approx(sure, abs=2e-3) for _, sure in singles]
    with pytest.raises(StudyError, match="indication has 2 entries for 3 images"):
        whole(films, indication=["Fever", None])
    with pytest.raises(TypeError, match="lists are for a list of images"):
        whole(films[0], indication=["Fever"])


def test_a_study_that_says_something_else_is_not_overruled(whole, films):
    now, side, before = map(str, films)
    study = cxr.Study(
        "s", "Secret^Name", images=[cxr.Image(now, "PA"), cxr.Image(side, "lateral")], indication="Fever", age=63,
        sex="F", prior=Prior([], "Clear."),
    )  # fmt: skip
    other = {
        "indication": "Cough",
        "age": 64,
        "sex": "M",
        "view": "AP",
        "lateral": before,
        "prior": "Not clear.",
    }
    for key, value in other.items():
        with pytest.raises(StudyError, match=f"study 's' has another {key} already"):
            whole(study, **{key: value})
    same = {"indication": "Fever", "age": 63.0, "sex": "f", "view": "PA"}
    assert sure(whole, study, **same) == sure(whole, study)
    bare = cxr.Study("s", images=[cxr.Image(now)])
    assert sure(whole, bare, indication="Fever", view="PA") == sure(
        whole, cxr.Study("s", images=[cxr.Image(now, "PA")], indication="Fever")
    )
    assert bare == cxr.Study("s", images=[cxr.Image(now)])


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"age": "63"}, "number of years from 0 to 130, not str"),
        ({"age": True}, "not bool"),
        ({"age": float("nan")}, "not nan"),
        ({"age": -1}, "not -1"),
        ({"sex": "X"}, "'F' or 'M'"),
        ({"sex": 1}, "'F' or 'M'"),
        ({"view": "upside down"}, "PA, AP, frontal, lateral or unknown"),
        ({"indication": 5}, "indication must be a text, not int"),
        ({"prior": (1, 2, 3)}, "it is .image, findings."),
        ({"prior": (None, None)}, "leave it out"),
        ({"prior": cxr.Study("old")}, "neither images nor findings"),
        ({"prior": (None, 7)}, "must be a text, not int"),
    ],
)
def test_keywords_of_another_kind_are_refused(model, beside, words):
    with pytest.raises(StudyError, match=words):
        model(grey(0), **beside)


def test_what_the_prompt_has_no_place_for_is_said(model, whole, films):
    """mini's style: the indication and the prior's findings enter the prompt, nothing else does."""
    now, side, before = films
    everything = {
        "indication": "Fever", "prior": (before, "Clear."), "age": 63, "sex": "F", "view": "PA", "lateral": side,
    }  # fmt: skip
    (said,) = (w["message"] for w in model(now, **everything).warnings if w["code"] == "not_used")
    assert said == "the model's prompt has no place for: age, sex, view, lateral, the prior's image"
    assert all(w["code"] != "not_used" for w in whole(now, **everything).warnings)
    assert all(w["code"] != "not_used" for w in model(now, indication="Fever", prior="Clear.").warnings)
    codes = [w["code"] for w in model(now, view="lateral").warnings]
    assert "lateral" in codes and "not_used" not in codes


# --- warnings and the notice ------------------------------------------------------------------------------------------


def told(action) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [w for w in caught if issubclass(w.category, cxr.FindingsWarning)]


def test_a_python_user_is_warned_once_a_kind(findings_model, films, fresh):
    findings_model.meta.max_new_tokens = MOST
    model = cxr.Findings(findings_model)
    small = grey(0)[::2, ::2].copy()
    first = told(lambda: model(small, view="lateral"))
    codes = [re.search(r"\[(\w+)\]", str(w.message))[1] for w in first]
    assert "lateral" in codes and "low_resolution" in codes and len(set(codes)) == len(codes)
    # at the user's own line, and without the names of files
    assert {w.filename for w in first} == {__file__}
    assert told(lambda: model(small, view="lateral")) == []
    path = films[0].parent / "Secret^Name.png"
    path.write_bytes(b"")
    (later,) = told(lambda: model(cxr.Study("Secret^Name", images=[cxr.Image(str(films[0]))]), age=5))
    assert "[not_used]" in str(later.message)
    assert told(lambda: list(model.generate([path, films[0]], max_new_tokens=1))) == []
    assert not any("Secret" in str(w.message) for w in [*first, later])
    notices._told.clear()
    quiet = cxr.Findings(findings_model, warn=False)
    assert told(lambda: quiet(small, view="lateral")) == []


def test_the_notice_is_told_once_when_a_model_is_loaded(findings_model, tmp_path, fresh):
    from vlm import model as models

    models.save(findings_model, tmp_path / "m")
    load = cxr.Findings.from_pretrained
    assert told(lambda: load(tmp_path / "m", device="cpu", warn=False)) == []
    (notice,) = told(lambda: load(tmp_path / "m", device="cpu"))
    assert str(notice.message) == "findings: For research, not for diagnosis." and notice.filename == __file__
    assert told(lambda: load(tmp_path / "m", device="cpu")) == []


def test_the_command_line_tells_it_itself(findings_model, films, tmp_path, fresh, capsys, monkeypatch):
    from cxr.cli.main import main
    from vlm import model as models

    models.save(findings_model, tmp_path / "m")
    small = tmp_path / "small.png"
    Picture.fromarray(grey(0)[::2, ::2].copy()).save(small)
    # once on the screen, and not by Python's warnings as well
    assert (
        told(lambda: main(["generate", str(small), "--model", str(tmp_path / "m"), "--device", "cpu"])) == []
    )
    shown = capsys.readouterr()
    assert shown.err.count("low_resolution") == 1 and "For research" in shown.err
    assert "FindingsWarning" not in shown.err


def test_the_old_name_of_a_studys_own_images_is_read_with_a_note(model):
    with pytest.warns(FutureWarning, match="called 'own' now") as caught:
        (old,) = model.generate([grey(0)], images="true", max_new_tokens=MOST)
    assert caught[0].filename == __file__
    (new,) = model.generate([grey(0)], max_new_tokens=MOST)
    assert {**old.to_json(), "seconds": 0} == {**new.to_json(), "seconds": 0} and "images" not in new.decoding


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_prediction_shows_its_film_and_its_warnings(model, films):
    made = model(films[0], view="lateral", lateral=films[1])
    assert made.thumbnail.dtype == np.uint8 and max(made.thumbnail.shape) == 256
    # of the frontal film
    small = np.asarray(
        Picture.fromarray(grey(0)).resize(made.thumbnail.shape[::-1], Picture.Resampling.BICUBIC), float
    )
    assert np.abs(made.thumbnail - small).mean() < 8
    assert "thumbnail" not in made.to_json()
    assert next(model.generate([films[0]], max_new_tokens=1)).thumbnail is None
    html = made._repr_html_()
    assert html.count("data:image/png;base64,") == 1 and "lateral: a lateral view" in html
    assert (
        repr(made).startswith("Prediction('now.png', '")
        and "'lateral'" in repr(made)
        and "\n" not in repr(made)
    )
    refused = model(b"nothing")
    assert "error='not_an_image'" in repr(refused) and "refused, not_an_image" in refused._repr_html_()


def test_everything_that_is_shown_is_escaped():
    evil = "<script>alert(1)</script>"
    shown = [
        cxr.Prediction(evil, findings=evil, model=evil, warnings=[{"code": evil, "message": evil}]),
        cxr.Prediction("s", error={"code": evil, "message": evil}),
        cxr.Study(
            evil, images=[cxr.Image(evil, evil)], indication=evil, findings=evil, prior=Prior([], evil)
        ),
    ]
    for thing in shown:
        html = thing._repr_html_()
        assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_model_and_a_study_say_what_they_are(model, films):
    assert repr(model) == (
        "Findings('findings', writes findings, is told indication, prior, 28 px, cpu, float32)"
    )
    assert "not for diagnosis" in model._repr_html_()
    study = cxr.Study(
        "s1", "Secret^Name", "train", [cxr.Image(str(films[0]), "PA"), cxr.Image("b.png", "lateral")], age=63, sex="F",
        indication="Fever", prior=Prior([], "Clear."), findings="The lungs are clear. " * 20,
    )  # fmt: skip
    assert repr(study).startswith(
        "Study('s1', train, 2 images (PA, lateral), F 63, indication, prior, 'The lungs are clear."
    )
    assert "Secret" not in repr(study) + study._repr_html_() and len(repr(study)) < 250
    assert "data:image/png" in study._repr_html_()
    assert repr(cxr.Study("x")) == "Study('x', 0 images, no findings)"


def test_the_shipped_model_in_one_line_each(cxr_data, fresh):
    """The hip that nobody was told of: no findings unless insisted on, and the reason said."""
    mini = cxr.Findings.from_pretrained("mini", device="cpu", warn=False)
    mini.warn = True
    hip = next((cxr_data / "dicom" / "radiograph").glob("RG2_*"))
    answers = []
    found = told(lambda: answers.append(mini(hip)))
    assert any("not_chest" in str(w.message) for w in found)
    assert answers[0].error["code"] == "abstained" and answers[0].findings is None
    with pytest.raises(InputError, match="frontal chest"):
        print(answers[0].text)
    insisting = cxr.Findings.from_pretrained("mini", device="cpu", warn=False, insist=True)
    assert insisting(hip).text
