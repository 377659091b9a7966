"""A hint says what a report says was seen, and nothing else."""

import random

from train.hints import hint

TEXT = (
    "No cardiomegaly. Moderate layering left effusion. Possible consolidation in the right lower lung. "
    "A right PICC ends in the superior vena cava. No pneumothorax."
)


def test_in_the_order_of_the_report():
    said = "moderate left pleural effusion, possible right lower consolidation, right support devices"
    assert hint(TEXT) == f"Seen: {said}."


def test_shuffled_it_says_the_same():
    said = {hint(TEXT, random.Random(seed)) for seed in range(30)}
    assert len(said) == 6  # three things, in any order
    assert len({tuple(sorted(line.removeprefix("Seen: ").rstrip(".").split(", "))) for line in said}) == 1


def test_degrees_lose_their_endings_and_a_normal_film_shows_nothing():
    assert hint("Severely enlarged heart.") == "Seen: severe cardiomegaly."
    assert hint("The lungs are clear.") == "Seen: nothing."
    assert hint("") == "Seen: nothing."
