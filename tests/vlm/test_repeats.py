"""Answers that go round in a circle end; answers that do not are left as they are, in batches as alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlm.decoding import Decoding, generate_ids
from vlm.model import FindingsModel
from vlm.repeats import CIRCLING, StopRepeats, circle, first_repeat, without_repeats
from vlm.study import load_studies


class Letters:
    """A tokenizer of single characters; 0 ends."""

    eos_token_id = 0

    def __len__(self):
        return 128

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]

    def ids(self, text):
        return [ord(c) for c in text]


LETTERS = Letters()


@pytest.mark.parametrize(
    "text, kept",
    [
        (
            "The heart is big. The lungs are clear. The heart is big.",
            "The heart is big. The lungs are clear. ",
        ),
        ("The heart is big. the HEART, is big. More.", "The heart is big. "),
        ("No change. No change. No change.", None),  # two words may come again
        ("The heart is big. The heart is not big.", None),
        ("", None),
        ("A mass of 1.5 cm. A mass of 2.5 cm.", None),
        # what the findings said, the impression may say
        ("No pleural effusion.\nImpression: No pleural effusion.", None),
        ("A b c.\nImpression: D e f. D e f.", "A b c.\nImpression: D e f. "),
        # without a full stop: one round of the circle stays
        ("Lungs: " + "ab c" * 12, "Lungs: ab c"),
    ],
)
def test_what_is_said_twice_is_cut(text, kept):
    ids = LETTERS.ids(text)
    cut, repeats = without_repeats(LETTERS, [*ids, 0])
    assert repeats == (kept is not None)
    assert LETTERS.decode(cut) == (text if kept is None else kept) and cut[-1] == 0


@pytest.mark.parametrize("period", [1, 2, 7, 12])
def test_circles_are_what_they_are_made_of(period):
    generator = torch.Generator().manual_seed(period)
    ring = torch.randperm(100, generator=generator)[:period].tolist()
    around = [5, 6, *ring * 40]
    assert circle(around) == period and circle(around[: CIRCLING - 1]) == 0
    # a token that is out of place
    assert circle([*around[:-3], 101, *around[-2:]]) == 0


def test_a_row_that_repeats_may_only_end_and_others_are_untouched():
    processor, scores = StopRepeats(LETTERS), torch.randn(3, 128)
    rows = ["The heart is big. The heart is big. N", "The heart is big. The lungs are clear", "A b. "]
    for i, text in enumerate(rows):
        ids = torch.tensor([LETTERS.ids(text)])
        out = processor(ids, scores[i : i + 1].clone())
        if i == 0:
            assert out.argmax() == 0 and torch.isneginf(out[0, 1:]).all()
        else:
            torch.testing.assert_close(out, scores[i : i + 1], rtol=0, atol=0)
    # the sentence that is just being written may go on otherwise
    being = torch.tensor([LETTERS.ids("The heart is big. The heart is big.")])
    torch.testing.assert_close(processor(being, scores[:1].clone()), scores[:1], rtol=0, atol=0)


@pytest.fixture
def looping(findings_model) -> FindingsModel:
    """A model that has learned nothing goes round in a circle sooner or later; a nudge makes it sooner."""
    return findings_model


@pytest.mark.parametrize("how", ["greedy", "beam", "sample"])
def test_batches_give_what_singles_give(looping, studies_file, how):
    """The end of one answer does not depend on the answers beside it."""
    from vlm import Findings

    model = Findings(looping, warn=False)
    studies = load_studies(studies_file)[:4]
    decoding = {
        "greedy": Decoding(80),
        "beam": Decoding(40, "beam", 2),
        "sample": Decoding(60, "sample", temperature=1e-4),
    }[how]
    many = list(model.generate(studies, root=studies_file.parent, decoding=decoding, batch_size=4))
    alone = [next(model.generate([s], root=studies_file.parent, decoding=decoding)) for s in studies]
    assert [p.findings for p in many] == [p.findings for p in alone]
    assert [[w["code"] for w in p.warnings] for p in many] == [[w["code"] for w in p.warnings] for p in alone]
    if how == "greedy":
        # this model does: the test is worth something
        assert any(w["code"] == "repeats" for p in many for w in p.warnings)
        loose = replace(decoding, stop_repeats=False)
        free = list(model.generate(studies, root=studies_file.parent, decoding=loose))
        for kept, whole in zip(many, free, strict=True):
            assert whole.findings.startswith(kept.findings.rstrip("\ufffd"))
            assert [w["code"] for w in kept.warnings].count("repeats") <= 1
            if kept.findings != whole.findings:
                assert "the findings repeat themselves" in str(whole.warnings)


def test_a_training_generates_without_it(looping):
    """What a policy or a judged model writes in training is not touched."""
    from vlm.given import as_study
    from vlm.prompts import prompt_for

    study = as_study(torch.rand(32, 32).numpy())
    prompts = [looping.prompt_ids(prompt_for(study, looping.meta.prompt))]
    pixels = torch.zeros(1, 3, looping.preprocessing.size, looping.preprocessing.size)
    free = generate_ids(looping.llava, looping, prompts, pixels, Decoding(80, stop_repeats=False))
    guarded = generate_ids(looping.llava, looping, prompts, pixels, Decoding(80))
    first = first_repeat(looping.tokenizer, free[0])
    assert first is None or len(guarded[0]) < len(free[0]) or len(free[0]) < 80
