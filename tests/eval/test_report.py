"""The HTML page: self-contained, escaped, well formed, and honest about what it is."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval import score
from eval.report import write_page
from eval.scores.differences import mark_differences

EVIL = "<script>alert('x')</script> & \"quotes\""
REPORTS = {
    "s1": "Small left pleural effusion. Heart size is normal.",
    "s2": "No pleural effusion. The lungs are clear.",
    EVIL: "Mild cardiomegaly. No pneumothorax.",
}
VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline", "link", "hr"}


class Checker(HTMLParser):
    """Every tag closed in order; collects what a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


def png():
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 128).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def scores():
    refs = [{"study_id": k, "findings": t} for k, t in REPORTS.items()]
    hyps = [{"study_id": k, "findings": REPORTS["s2"]} for k in REPORTS] + [
        {"study_id": EVIL + "2", "findings": "x"}
    ]
    return score(hyps, refs, n_boot=20)


def test_full_page(tmp_path, scores):
    curves = {
        EVIL: [(i, 5 / (i + 1)) for i in range(100)],
        "short": [(0, 1.0), (10, float("nan")), (20, 0.5)],
    }
    cases = [
        {
            "study_id": EVIL,
            "image": png(),
            "reference": EVIL,
            "generated": EVIL,
            "indication": EVIL,
            "warnings": [EVIL],
        },
        {
            "study_id": "s2",
            "image": np.linspace(0, 1, 700 * 300).reshape(700, 300),
            "reference": "Clear.",
            "generated": None,
        },
        {
            "study_id": "s3",
            "image": None,
            "reference": "Clear.",
            "error": {"code": "truncated", "message": EVIL},
        },
    ]
    path = write_page(
        tmp_path / "page.html", title=EVIL, scores=scores, curves=curves, cases=cases, notes=[EVIL]
    )
    page = parse(path)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.sources and all(s.startswith("data:image/") for s in page.sources)
    raw = path.read_text()
    assert not re.search(r"https?://|url\(|@import", raw)
    assert "default-src 'none'" in raw
    text = " ".join(page.text)
    assert "research use only" in text and "not for diagnosis" in text.lower()
    assert text.count("alert('x')") >= 8  # shown as text, everywhere it was given
    for word in (
        "CheXbert F1",
        "cxr weights --fetch chexbert",
        "Not computed",
        "constant report",
        "Signatures",
        "Cardiomegaly",
        "truncated",
    ):
        assert word in text, word
    assert "prefers-color-scheme: dark" in raw and "@media print" in raw
    assert raw.count("<article>") == 3 and raw.count("<polyline") == 3


def test_page_of_nothing_but_a_title(tmp_path):
    page = parse(write_page(tmp_path / "a" / "page.html", title="Empty"))
    assert "not for diagnosis" in " ".join(page.text).lower()


def test_it_replaces_only_its_own_pages(tmp_path):
    path = write_page(tmp_path / "page.html", title="One")
    write_page(path, title="Two")
    assert "Two" in path.read_text()
    other = tmp_path / "thesis.html"
    other.write_text("years of work")
    with pytest.raises(FileExistsError, match="not a page of ours"):
        write_page(other, title="Three")
    assert other.read_text() == "years of work"
    write_page(other, title="Three", overwrite=True)


@pytest.mark.parametrize("image", [b"GIF89a", np.zeros((4, 4, 3)), np.zeros((0, 4)), b""])
def test_images_it_cannot_show_are_refused(tmp_path, image):
    with pytest.raises(ValueError, match="image"):
        write_page(
            tmp_path / "p.html", title="x", cases=[{"image": image, "reference": "a", "generated": "b"}]
        )
    assert not (tmp_path / "p.html").exists()


def test_large_arrays_are_reduced_and_keep_their_greys(tmp_path):
    import base64

    image = np.tile(np.linspace(0, 1, 2000), (1000, 1))
    path = write_page(
        tmp_path / "p.html", title="x", cases=[{"image": image, "reference": "a", "generated": "a"}]
    )
    data = re.search(r"data:image/png;base64,([^']+)", path.read_text())[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape == (256, 512) and shown[0, 0] < 3 and shown[0, -1] > 252


def test_differences():
    left, right = mark_differences(
        "Small left effusion. Heart normal.", "Heart normal. Small right effusion."
    )
    assert left == "Small <del>left</del> effusion. Heart normal."
    assert right == "Heart normal. Small <ins>right</ins> effusion."


def test_another_wording_of_the_same_labels_is_no_difference():
    a, b = (
        "The cardiomediastinal silhouette is normal. Clear.",
        "Heart and mediastinum unremarkable. Large effusion.",
    )
    left, right = mark_differences(a, b)
    assert left.startswith("The cardiomediastinal silhouette is normal.") and "<del>" in left
    assert right == "Heart and mediastinum unremarkable. <ins>Large effusion.</ins>"


def test_sides_and_devices_are_never_the_same_by_label_alone():
    left, right = mark_differences("Fluid collects: effusion on the left.", "Right pleural effusion.")
    assert "<del>" in left and "<ins>" in right
    left, right = mark_differences("Pacemaker in place.", "Endotracheal tube above the carina.")
    assert "<del>" in left and "<ins>" in right


def test_differences_are_escaped():
    assert mark_differences("", EVIL) == (
        "",
        f"<ins>{'&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quotes&quot;'}</ins>",
    )
