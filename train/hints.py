"""What a report says was seen, in one line: "Seen: left pleural effusion, possible edema."

The language model learns to write a report from such a line, which stands where the image will be (it then looks back
for it while it writes, topic by topic); the findings model learns to write the line from the image beside the report,
for in it every word depends on the image, while most words of a report only depend on the words before.
"""

from __future__ import annotations

import random
import re

from eval.scores.labels import NO_FINDING, label_report, sentences

OPENING = "Seen:"
PLACE = re.compile(
    r"\b(left|right|bilateral|both|bibasilar|upper|mid|lower|apical|small|mild|moderate|large|severe)(?:ly)?\b"
)


def hint(findings: str, shuffle: random.Random | None = None) -> str:
    """The line, by the rule-based labeller; in the report's order, or shuffled. "Seen: nothing." for a normal film."""
    seen = []
    for sentence in sentences(findings):
        where = " ".join(dict.fromkeys(PLACE.findall(sentence.lower())))
        for condition, label in label_report(sentence).items():
            if label and condition != NO_FINDING:
                words = ("possible" if label < 0 else "", where, condition.lower())
                seen.append(" ".join(word for word in words if word))
    if shuffle is not None:
        shuffle.shuffle(seen)
    return f"{OPENING} {', '.join(seen) or 'nothing'}."
