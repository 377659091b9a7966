"""The HTML page: self-contained, escaped, well formed, and honest about what it is."""

import base64
import hashlib
import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval import score
from eval.page.cases import compared
from eval.page.verdict import outcomes, sentence, verdict
from eval.probes.page import short_names
from eval.report import write_page
from eval.scores.differences import mark_differences
from eval.scores.sheet import SheetScore

EVIL = "<script>alert('x')</script> & \"quotes\""
REPORTS = {
    "s1": "Small left pleural effusion. Heart size is normal.",
    "s2": "No pleural effusion. The lungs are clear.",
    EVIL: "Mild cardiomegaly. No pneumothorax.",
}
VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline", "link", "hr", "input"}


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
    return score(hyps, refs)


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
    assert "link" not in page.tags and "iframe" not in page.tags
    assert any(s.startswith("data:image/") for s in page.sources)
    assert all(s.startswith(("data:image/", "#")) for s in page.sources)
    raw = path.read_text()
    assert not re.search(r"https?://|url\(|@import", raw)
    assert "default-src 'none'" in raw
    # One script, which the policy allows by its digest: nothing else could run.
    (script,) = re.findall(r"<script>(.*?)</script>", raw, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.tags.count("script") == 1 and f"script-src 'sha256-{digest}'" in raw
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
    assert raw.count("<article ") == 3 and raw.count("<polyline") == 3


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
    image = np.tile(np.linspace(0, 1, 2000), (1000, 1))
    path = write_page(
        tmp_path / "p.html", title="x", cases=[{"image": image, "reference": "a", "generated": "a"}]
    )
    data = re.search(r"data:image/jpeg;base64,([^']+)", path.read_text())[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape == (512, 1024) and shown[0, 0] < 3 and shown[0, -1] > 252


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
    assert left == "The cardiomediastinal silhouette is normal. <del class='wording'>Clear.</del>"
    assert right == "Heart and mediastinum unremarkable. <ins>Large effusion.</ins>"


def test_sides_and_devices_are_never_the_same_by_label_alone():
    left, right = mark_differences("Fluid collects: effusion on the left.", "Right pleural effusion.")
    assert "<del>" in left and "<ins>" in right
    left, right = mark_differences("Pacemaker in place.", "Endotracheal tube above the carina.")
    assert "<del>" in left and "<ins>" in right


@pytest.mark.parametrize(
    ("reference", "generated", "left", "right"),
    [
        # Wording of what the labeller reads alike is not marked.
        ("There is evidence of cardiomegaly.", "The heart shows cardiomegaly.", "", ""),
        ("No evidence of effusion or pneumothorax.", "There is no pneumothorax or pleural effusion.", "", ""),
        ("Bilateral pleural effusions.", "Left and right pleural effusions.", "", ""),
        ("Mild cardiomegaly.", "Minimal cardiomegaly.", "", ""),
        # Clinical: present against denied, another side, degree, change or device.
        ("No pleural effusion.", "Small pleural effusion.", "del No", "ins Small"),
        ("Heart size is normal.", "Heart size is enlarged.", "del normal.", "ins enlarged."),
        ("Small left effusion.", "Large left effusion.", "del Small", "ins Large"),
        ("Stable cardiomegaly.", "Increasing cardiomegaly.", "del Stable", "ins Increasing"),
        ("Endotracheal tube in place.", "Nasogastric tube in place.", "del Endotracheal", "ins Nasogastric"),
        # Possible is not denied: against nothing it is clinical, against present it is wording.
        ("Possible pneumonia.", "", "del Possible pneumonia.", ""),
        (
            "Possible pneumonia.",
            "Pneumonia in the base.",
            "wording Possible pneumonia.",
            "wording Pneumonia in the base.",
        ),
        # A denial that the other does not make, and what no label covers, are faint.
        ("No pneumothorax. Cardiomegaly.", "Cardiomegaly.", "wording No pneumothorax.", ""),
        ("Cardiomegaly.", "Moderate cardiomegaly.", "", "wording Moderate"),
    ],
)
def test_clinical_disagreement_is_marked_strongly_and_wording_faintly(reference, generated, left, right):
    def marks(html):
        found = re.findall(r"<(del|ins)( class='wording')?>(.*?)</", html)
        return ", ".join(f"{'wording' if faint else tag} {text}" for tag, faint, text in found)

    shown = mark_differences(reference, generated)
    assert (marks(shown[0]), marks(shown[1])) == (left, right)
    assert [re.sub("<.*?>", "", text) for text in shown] == [reference, generated]


def test_uncertain_findings_are_a_value_of_their_own():
    found = dict(
        reversed(chip)
        for chip in compared(
            "Possible pneumonia. Cardiomegaly. Possible edema.", "Pneumonia. Possible edema. Pneumothorax."
        )
    )
    assert found == {
        "missed: Cardiomegaly": "missed",
        "not in the reference: Pneumothorax": "extra",
        "present, uncertain in the reference: Pneumonia": "doubt",
        "✓ uncertain in both: Edema": "unsure",
        **{k: v for k, v in found.items() if "Lung Opacity" in k},
    }


def at(value, low, high, name="x"):
    return SheetScore(name, value, low, high, 50, name)


def test_outcomes_are_of_intervals_that_do_not_overlap():
    """By hand; RadCliQ is better where it is lower, and touching intervals decide nothing."""
    ours = {
        "a": at(0.5, 0.4, 0.6),
        "b": at(0.1, 0.05, 0.2),
        "c": at(0.3, 0.2, 0.4),
        "radcliq/v1": replace(at(1, 0.9, 1.1), better="lower"),
    }
    theirs = {
        "a": at(0.2, 0.1, 0.3),
        "b": at(0.5, 0.4, 0.6),
        "c": at(0.5, 0.4, 0.6),
        "radcliq/v1": replace(at(2, 1.8, 2.2), better="lower"),
        "d": at(float("nan"), 0, 0),
    }
    found = outcomes({**ours, "d": at(0.5, 0.4, 0.6)}, theirs, [*ours, "d", "absent"])
    assert found == {"a": "better", "b": "worse", "c": "open", "radcliq/v1": "better"}
    assert sentence(found, "one report for all") == (
        "Better than one report for all on 2 of 4 scores, worse on 1, undecided on 1."
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("wwwbb", "Worse than X on 3 of 5 scores, better on 2."),
        ("bbbb", "Better than X on 4 of 4 scores."),
        ("wb", "Worse than X on 1 of 2 scores, better on 1."),
        ("oo", "Not better than X on any of 2 scores, nor worse: the intervals overlap."),
    ],
)
def test_the_sentence_counts(found, said):
    kinds = {"w": "worse", "b": "better", "o": "open"}
    assert sentence({str(i): kinds[k] for i, k in enumerate(found)}, "X") == said


def many(text_of, n=12):
    findings = ("Left pleural effusion.", "Cardiomegaly.", "The lungs are clear.")
    refs = [{"study_id": str(i), "findings": findings[i % 3]} for i in range(n)]
    return [{"study_id": r["study_id"], "findings": text_of(r["findings"])} for r in refs], refs


def test_the_verdict_is_honest():
    right, refs = many(lambda text: text)
    wrong, _ = many(lambda text: "Right pneumothorax.")
    good, bad = score(right, refs), score(wrong, refs, compare=right)
    assert verdict(good)[0].startswith("Better than one report for all on ")
    assert "Whether the images were used is not known" in verdict(good)[1]
    assert not verdict(bad)[0].startswith("Better")
    assert verdict(bad)[-1].startswith("Worse than the other predictions on ")
    assert verdict(bad)[-1].endswith("(tested in pairs).")
    looked = score(right, refs, floors={"shuffled": wrong})
    assert "Better than the model with shuffled images on " in verdict(looked)[1]
    few = score(right[:3], refs[:3])
    assert verdict(few)[0] == "Too few patients for a verdict: 3 patients, and at least 10 are needed."
    good.floors.clear()
    assert verdict(good)[0] == "No verdict: no baseline was scored beside these predictions."


def test_short_names_tell_encoders_apart():
    names = ["runs/a/encoder", "runs/b/encoder/", "microsoft/rad-dino", "random:microsoft/rad-dino", "pixels"]
    assert list(short_names(names).values()) == [
        "a/encoder",
        "b/encoder",
        "microsoft/rad-dino",
        "random:microsoft/rad-dino",
        "pixels",
    ]
    assert short_names(["a/b/c", "random:a/b/c"]) == {"a/b/c": "c", "random:a/b/c": "random:c"}


def test_differences_are_escaped():
    assert mark_differences("", EVIL) == (
        "",
        f"<ins class='wording'>{'&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quotes&quot;'}</ins>",
    )


def test_control_characters_are_shown_and_not_obeyed(tmp_path):
    name = "a\x1b[31m\x00b\u202ec"
    scores = score(
        [{"study_id": name, "findings": "Edema.\x07\x85 Clear.\tNo\neffusion."}],
        [{"study_id": name, "findings": "Edema.\x1b]0;x\x07"}],
        clinical_models="none",
    )  # fmt: skip
    page = write_page(tmp_path / "p.html", title=f"T{name}", scores=scores, worst=5, cases=[
        {"study_id": name, "reference": "Edema.\x1b", "generated": "\x7f Clear."}
    ]).read_text()  # fmt: skip
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", page)
    assert "a\u241b[31m\u2400b\ufffdc" in page and "\u2421" in page
    # The script is still the one whose digest is allowed.
    script = re.search("<script>(.*?)</script>", page, re.S)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page


@pytest.mark.parametrize("sentence", ["Small left effusion, number {}. ", "a{}. ", "left effusion {} "])
def test_long_texts_are_compared_in_seconds(sentence):
    """All pairs of 130 KB took minutes and gigabytes; a report beyond MOST sentences is cut, and says so."""
    text = "".join(sentence.format(i) for i in range(130_000 // len(sentence)))
    start = time.process_time()
    left, right = mark_differences(text, text.replace("left", "right"))
    assert time.process_time() - start < 8
    assert (
        ("not compared from here on" in left) == ("." in sentence) == ("not compared from here on" in right)
    )
    assert len(re.sub("<.*?>", "", left)) >= len(text.strip())


def test_differences_without_an_interval_say_why(tmp_path):
    rows = [{"study_id": f"s{i}", "findings": "Edema."} for i in range(6)]
    scores = score(rows, rows, compare=rows, clinical_models="none")
    page = write_page(tmp_path / "p.html", title="T", scores=scores).read_text()
    assert "+0.000 <span class='quiet'>(equal for all patients)</span>" in page
    assert "(equal for all patients)" in " ".join(str(scores).split()) and "[+.000 +.000]" not in str(scores)
