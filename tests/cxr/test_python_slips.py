"""Slips of a hurried user in Python: told at once by a UserError that says what is accepted; columns are lists."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import cxr
from encoder.errors import UserError
from vlm.decoding import Decoding
from vlm.errors import AskedError
from vlm.given import column_of, images_of, one_each
from vlm.study import Prior, StudyError, validate


class Column:
    """As much of a pandas Series as is needed, with its missing value, which has no truth."""

    class NA:
        def __ne__(self, other):
            return self

        def __bool__(self):
            raise TypeError("boolean value of NA is ambiguous")

    def __init__(self, entries):
        self.entries, self.shape = entries, (len(entries),)

    def tolist(self):
        return list(self.entries)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.png"
    blocks = np.random.default_rng(0).integers(20, 220, (15, 14), dtype=np.uint8)
    Picture.fromarray(np.repeat(np.repeat(blocks, 20, 0), 20, 1)).save(path)
    return path


@pytest.fixture
def model(findings_model):
    findings_model.meta.max_new_tokens = 4
    return cxr.Findings(findings_model, warn=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number of at least 1, not 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be .*, not -1"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be .*, not '5'"),
        ({"max_new_tokens": True}, "max_new_tokens must be .*, not True"),
        ({"sentences": "all"}, "sentences='all' is unknown; there are none, confidence"),
        ({"decoding": "beam"}, r"decoding must be a Decoding, as Decoding\(method='beam'.*, not 'beam'"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(model, film, settings, words):
    with pytest.raises(AskedError, match=words) as refused:
        model(film, **settings)
    assert isinstance(refused.value, UserError) and isinstance(refused.value, ValueError)
    with pytest.raises(AskedError, match=words):
        model.generate([film], **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"images": "mine"}, "images='mine' is unknown; there are own, shuffled, blank"),
        ({"images": "shuffled", "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"only": "film.png"}, "only is a set of study ids, not one: {'film.png'}"),
    ],
)
def test_a_setting_of_generate_out_of_its_range_is_refused(model, film, settings, words):
    with pytest.raises(AskedError, match=words):
        model.generate([film, film], **settings)


def test_numpys_whole_numbers_are_whole_numbers(model, film):
    (made,) = model.generate([film], batch_size=np.int64(2), max_new_tokens=np.int32(3))
    assert made.decoding["max_new_tokens"] == 3 and type(made.decoding["max_new_tokens"]) is int


@pytest.mark.parametrize("method", ["guess", "beam"])
def test_a_decoding_that_cannot_be_is_the_users_error(method):
    with pytest.raises(AskedError):
        Decoding(method=method)


def test_one_image_where_several_are_meant(model, film, tmp_path):
    """Letters of a path and rows of an array are not images."""
    pixels = np.asarray(Picture.open(film))
    one = [
        str(film), film, film.read_bytes(), Picture.open(film), pixels, torch.tensor(pixels), cxr.read(film),
        cxr.Study("a"), cxr.Image(str(film)), {"a": film},
    ]  # fmt: skip
    for given in one:
        for ask in (model.generate, lambda x: list(model.features(x))):
            with pytest.raises(AskedError, match=f"one {type(given).__name__} was given, where several"):
                ask(given)
    with film.open("rb") as file, pytest.raises(AskedError, match="where several are meant"):
        model.generate(file)
    with pytest.raises(AskedError, match="not NoneType"):
        model.generate(None)
    with pytest.raises(AskedError, match=r"cxr\.load_studies\('studies\.jsonl'\)"):
        model.generate("studies.jsonl")


def test_features_take_what_findings_take(model, film):
    pixels = np.asarray(Picture.open(film))
    study = cxr.Study("a", images=[cxr.Image(str(film))])
    first, *others = model.features([study, film, str(film), pixels, cxr.Image(str(film))])
    assert all(np.array_equal(first, other) for other in others) and len(others) == 4


def test_an_image_of_a_study_is_an_image(model, film, tmp_path):
    for image, root in ((cxr.Image(str(film)), "."), (cxr.Image(film.name), tmp_path)):
        made = model(image, root=root)
        assert made.text == model(film).text and made.study_id == film.name
        model(film, lateral=image, prior=image, root=root)
        model(film, prior=(image, "Clear."), root=root)


@pytest.mark.parametrize("image", ["film.png", None, cxr.Image(None)])
def test_images_of_a_study_that_are_none_are_told(model, image):
    study = cxr.Study("a", images=[image])
    with pytest.raises(StudyError, match=r"study 'a': an image of a study is cxr\.Image\(path, view\)"):
        model(study)
    with pytest.raises(StudyError, match=r"cxr\.Image\(path, view\)"):
        list(model.generate([study]))


def test_columns_are_lists(model, film):
    names = [str(film), str(film)]
    for column in (np.array(names), Column(names)):
        assert [made.study_id for made in model(column)] == [film.name] * 2
    assert [made.error["code"] for made in model([np.array([1, 2], np.uint8)])] == ["unsupported_array"]
    assert model(np.array([1, 2], np.uint8)).error["code"] == "unsupported_array"
    nan = float("nan")
    told = {"age": Column([63, nan]), "sex": np.array(["F", None], object), "indication": ("Fever.", None),
            "view": Column(["PA", Column.NA()]), "prior": Column(["Clear.", nan])}  # fmt: skip
    assert one_each(told, 2) == [
        {"age": 63, "sex": "F", "indication": "Fever.", "view": "PA", "prior": "Clear."},
        dict.fromkeys(told),
    ]
    assert one_each({"age": torch.tensor([5, 6])}, 2) == [{"age": 5}, {"age": 6}]
    # of a prior a tuple is (image, findings), and an array is an image
    pixels = np.zeros((4, 4), np.uint8)
    assert [each["prior"] for each in one_each({"prior": ("a.png", "Clear.")}, 2)] == [
        ("a.png", "Clear.")
    ] * 2
    assert one_each({"prior": pixels}, 1)[0]["prior"] is pixels
    with pytest.raises(StudyError, match="age has 1 entry for 2 images"):
        one_each({"age": Column([63])}, 2)
    assert column_of("text") is None and column_of(5) is None and column_of(pixels) is None
    assert images_of("text") is None and images_of(pixels) is None


def test_a_model_by_its_name_and_types_by_theirs():
    with pytest.raises(AskedError, match=r"use Findings\.from_pretrained\('mini'\)"):
        cxr.Findings("mini")
    for dtype in ("fp31", torch.int8, np.float16, "int8"):
        with pytest.raises(AskedError, match=r"is not a type of weights; there are fp32, fp16, bf16"):
            cxr.Findings.from_pretrained("mini", dtype=dtype, warn=False)
    for dtype in ("bf16", "bfloat16", torch.bfloat16):
        assert "bfloat16" in repr(cxr.Findings.from_pretrained("mini", device="cpu", dtype=dtype, warn=False))
    assert "float32" in repr(cxr.Findings.from_pretrained("mini", device="cpu", dtype="fp32", warn=False))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"indication": 5}, "indication must be a text, not int"),
        ({"age": "x"}, "age must be a number of years from 0 to 130, not str"),
        ({"sex": 5}, "sex must be a text, not int"),
        ({"prior": 7}, r"prior must be a cxr\.Prior\(images, findings\), not int"),
        ({"prior": Prior(findings=["Clear."])}, "the prior's findings must be a text, not list"),
    ],
)
@pytest.mark.parametrize("images", ["own", "shuffled"])
def test_a_study_with_a_field_of_the_wrong_kind_costs_that_study(model, film, fields, words, images):
    good, bad = (
        cxr.Study("good", images=[cxr.Image(str(film))]),
        cxr.Study("bad", images=[cxr.Image(str(film))]),
    )
    bad = replace(bad, **fields)
    first, second, third = model.generate([good, bad, replace(good, study_id="third")], images=images)
    assert second.error["code"] == "bad_study" and re.fullmatch(
        f"study 'bad': {words}", second.error["message"]
    )
    assert {first.error is None, third.error is None} == ({True} if images == "own" else {True, False})
    if images == "own":
        assert model(bad).error == second.error
        with pytest.raises(UserError, match=words):
            _ = model(bad).text


@pytest.mark.parametrize("age", [-4, 1e300, 10**299, 10**400, float("inf")])
def test_an_age_that_cannot_be_is_left_out_and_said(model, film, age):
    model.model.meta.prompt = replace(model.model.meta.prompt, demographics=True)
    study = cxr.Study("a", images=[cxr.Image(str(film))], age=age)
    (made,) = model.generate([study])
    assert [w["code"] for w in made.warnings].count("bad_age") == 1 and made.error is None
    assert made.text == next(model.generate([replace(study, age=None)])).text
    assert [p.code for p in validate([study], ".")].count("bad_age") == 1
    with pytest.raises(StudyError, match="age must be a number of years from 0 to 130, not "):
        model(film, age=age)


@pytest.mark.parametrize("shown", [False, True])
def test_a_prior_image_that_is_not_there_is_said(model, film, shown):
    model.model.meta.prompt = replace(model.model.meta.prompt, prior_image=shown)
    study = cxr.Study("a", images=[cxr.Image(str(film))], prior=Prior([cxr.Image("absent.png")], "Clear."))
    (made,) = model.generate([study])
    assert made.error is None and sum("the prior image" in w["message"] for w in made.warnings) == 1
    (made,) = model.generate([replace(study, prior=Prior([cxr.Image(str(film))], "Clear."))])
    assert not any("the prior image" in w["message"] for w in made.warnings)
