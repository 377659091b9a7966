"""PTB tokens against those that Stanford's Java program gave for synthetic strings of every class of token."""

import json
import random
from pathlib import Path

import pytest

from eval.scores import ptb
from eval.scores.ptb import ptb_tokens, ptb_words

CASES = json.loads((Path(__file__).parent / "golden" / "ptb_tokens.json").read_text())["tokens"]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_tokens_equal_the_java_programs(number):
    text, tokens = CASES[number]
    assert ptb_tokens(text) == tokens


def test_words_known_by_heart_have_the_tokens_of_the_whole_text():
    """Most texts are read word by word; the rules over the whole text must give the same."""
    rng = random.Random(0)
    words = " ".join(text for text, _ in CASES).split()
    for _ in range(2000):
        text = " ".join(rng.choices(words, k=4))
        assert ptb_tokens(text) == list(ptb._kept(text)), text


def test_words_part_at_unbreakable_spaces():
    assert ptb_tokens("1 1/2 inches") == ["1\u00a01/2", "inches"]
    assert ptb_words("1 1/2 inches") == ["1", "1/2", "inches"]


def test_texts_without_words():
    for text in ("", "   ", "\n\t", "... -- !", "\ufffd", "\U0001fac1"):
        assert ptb_tokens(text) == []


def test_line_breaks_are_spaces():
    assert ptb_tokens("No\neffusion.\r\nThe\u2028heart\x0cis\x85big") == [
        "no",
        "effusion",
        "the",
        "heart",
        "is",
        "big",
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["a,", "<a ", "<!a", "a'", "a@", "1 ", "a-", "(55"])
def test_long_texts_without_end_take_linear_time(unit):
    assert len(ptb_tokens(unit * (20_000 // len(unit)))) >= 1
