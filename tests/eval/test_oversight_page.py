"""The page of `cxr verify`: what is on it, where its maps lie, and that texts of others are only texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from eval.page.oversight import write_verdicts

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> effusion"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str, **wanted: str) -> list[dict]:
        return [a for t, a in self.found if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def sentence(text: str, verdict: str, **more) -> dict:
    return {"text": text, "verdict": verdict, "probability": 0.5, "kind": "side", **more}


ROWS = [
    {
        "study_id": "a<b>",
        "sentences": [
            sentence("Left effusion.", "contradicted", better="Right effusion.", map=[[0.0, 1.0], [-1.0, 2.0]]),
            sentence(HOSTILE, "supported"),
        ],
        "omissions": [{"condition": "Edema", "text": "Mild edema.", "probability": 0.9, "denied": True}],
        "warnings": [{"code": "lateral", "message": HOSTILE}],
    },
    {"study_id": "c", "sentences": [sentence("Clear.", "supported")]},
    {"study_id": "d", "error": {"code": "report_not_judged", "message": HOSTILE}},
]  # fmt: skip


def page(tmp_path) -> tuple[str, Tags]:
    film = {"image": np.zeros((100, 80), np.uint8), "view": "PA", "box": (0.25, 0.1, 0.5, 0.8)}
    write_verdicts(
        tmp_path / "page.html", ROWS, {"a<b>": {"films": [film], "indication": "Cough", "age": 50}}
    )
    text = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(text)
    return text, tags


def test_what_is_on_it(tmp_path):
    text, tags = page(tmp_path)
    assert "1 of 2 reports have a sentence that their film contradicts; 1 leave a finding out." in text
    assert [a["data-kinds"] for a in tags.of("article")] == ["contradicted omitted", "supported", "error"]
    assert "rather: Right effusion." in text and "and the report denies it" in text
    assert len(tags.of("script")) == 1 and not tags.of("img")
    assert "&lt;script&gt;" in text


def test_a_map_lies_over_what_the_model_saw(tmp_path):
    _, tags = page(tmp_path)
    (group,) = tags.of("g", **{"class": "map"})
    assert group["visibility"] == "hidden" and tags.of("li", **{"data-map": group["id"]})
    # The box of 0.25 to 0.75 of 80 and 0.1 to 0.9 of 100, in two by two cells; only those for the other sentence.
    found = [tuple(float(r[k]) for k in ("x", "y", "width", "height")) for r in tags.of("rect")]
    assert found == [(40.0, 10.0, 20.0, 40.0), (40.0, 50.0, 20.0, 40.0)]
    opacity = [float(r["opacity"]) for r in tags.of("rect")]
    assert opacity[1] == 2 * opacity[0]


def test_it_asks_no_host_for_anything(tmp_path):
    text, _ = page(tmp_path)
    assert not re.findall(r"(?:src|href)=['\"](?:https?:)?//", text)
