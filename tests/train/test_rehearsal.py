"""What a report says was seen, and how its words are scattered over the places of patch tokens."""

import random

from train.rehearsal import COPIES, scatter, seen

TEXT = (
    "No cardiomegaly. Moderate layering left effusion. Possible consolidation in the right lower lung. "
    "A right PICC ends in the superior vena cava. No pneumothorax."
)


def test_what_was_seen_and_nothing_else():
    assert seen(TEXT) == [
        "moderate left pleural effusion",
        "possible right lower consolidation",
        "right support devices",
    ]
    assert seen("Severely enlarged heart.") == ["severe cardiomegaly"]
    assert seen("The lungs are clear.") == seen("") == []


def test_phrases_are_whole_and_the_rest_is_empty():
    phrases = [[5, 6, 7], [8], [9, 10]]
    for seed in range(50):
        grid = scatter(phrases, 40, 0, random.Random(seed))
        assert len(grid) == 40
        text = " ".join(map(str, grid))
        for phrase in phrases:
            copies = text.count(" ".join(map(str, phrase)))
            assert grid.count(phrase[0]) == grid.count(phrase[-1]) == copies <= COPIES
    assert scatter([], 9, 3, random.Random(0)) == [3] * 9
    assert scatter([[1] * 20], 9, 3, random.Random(0)) == [3] * 9  # what does not fit is left out
