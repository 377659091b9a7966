"""Words of change, invented priors, length, repetition and swapped sides: by hand, as properties, at the edges."""

import math
import random
import time

import numpy as np
import pytest

from eval.scores import safety
from eval.scores.labels import label_report
from eval.scores.safety import add_safety, per_study, prior_given, read, swapped_sides
from eval.scores.sheet import Sheet
from eval.signature import parse_signature

PRIOR = {"prior": {"findings": "Small effusion."}}
# sentence -> its temporal words, whether it compares, what has which side
SENTENCES = {
    "The heart is not enlarged.": (set(), False, {}),
    "Small left pleural effusion.": (set(), False, {"Pleural Effusion": {"left"}}),
    "Right effusion, no left pneumothorax.": (set(), False, {"Pleural Effusion": {"right"}}),
    "Patchy opacity in the right lower lobe, unchanged.": ({"unchanged"}, True, {"Lung Opacity": {"right"}}),
    "No pneumothorax on the left.": (set(), False, {}),
    "Bibasilar atelectasis has improved.": ({"improv"}, True, {"Atelectasis": {"left", "right"}}),
    "New consolidation in the right upper lobe.": ({"new"}, True, {"Consolidation": {"right"}}),
    "Stable mediastinal contours.": ({"stable"}, True, {}),
    "Old fracture of the left fifth rib.": (set(), False, {"Fracture": {"left"}}),
    "Compared with the previous examination, edema is worse.": ({"worse"}, True, {}),
    "Increased markings after prior surgery.": ({"increas"}, False, {}),
    "Right pneumothorax and left atelectasis.": (
        set(),
        False,
        {"Pneumothorax": {"right"}, "Atelectasis": {"left"}},
    ),
}


def values(references, predictions, studies=None):
    sheet = Sheet(len(references))
    add_safety(sheet, references, predictions, studies or [{} for _ in references])
    sums = sheet.stats_NK.sum(axis=0)
    return {key: float(m.of(sums)) for key, m in sheet.measures.items()}


def random_reports(seed, n=60):
    rng = random.Random(seed)
    return [" ".join(rng.choices(list(SENTENCES), k=rng.randint(1, 5))) for _ in range(n)]


def truth(report):
    """Temporal words, whether it compares, and sides of a report made of SENTENCES, from the table above."""
    said = [SENTENCES[s + "."] for s in report.rstrip(".").split(". ")] if report else []
    sides = {}
    for _, _, sided in said:
        for condition, where in sided.items():
            sides[condition] = sides.get(condition, set()) | where
    return set().union(*(words for words, _, _ in said)), any(c for _, c, _ in said), sides


def exchange(text):
    return text.replace("left", "\0").replace("right", "left").replace("\0", "right")


# --- words of change --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("The effusion has increased, the edema has decreased.", {"increas", "decreas"}),
        ("Increasing effusion. Increased effusion. An increase of the effusion.", {"increas"}),
        ("No significant interval change.", {"unchanged"}),
        ("Unchanged opacity. It has not changed.", {"unchanged"}),
        ("The opacity has changed.", {"change"}),
        ("Interval change of the tube.", {"change"}),
        ("Stable, persistent, resolving.", {"stable", "persist", "resolve"}),
        ("Newly placed line, worse edema.", {"new", "worse"}),
        ("Opacities, worse on the right.", set()),
        ("Degenerative changes of the spine, elevated hemidiaphragm, enlarged heart.", set()),
        ("Clear lungs, right larger.", {"larger"}),
        ("The lungs are clear.", set()),
        ("Clearing of the opacity, which remains.", {"clear", "remain"}),
    ],
)
def test_words_of_change(text, words):
    assert read(text).temporal == words


def test_temporal_scores_by_hand():
    references = ["Stable effusion, new opacity.", "Clear lungs.", "Improved edema.", "No effusion."]
    predictions = ["Stable effusion.", "Unchanged heart.", "Improving edema.", "No opacity."]
    found = values(references, predictions)
    # {stable, new} : {stable} -> 1, 1/2, 2/3; {} : {unchanged} -> 0; {improve} twice -> 1; {} : {} is left out
    assert found["temporal-f1/reports"] == 3
    assert found["temporal-precision"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["temporal-recall"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found["temporal-f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


# --- priors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, categories",
    [
        ("Compared to the prior study, the effusion is smaller.", ["examination"]),
        ("The effusion is smaller than on the previous chest radiograph.", ["examination"]),
        ("Comparison is made to a film of May.", ["examination"]),
        ("The nodule is similar to prior.", ["examination"]),
        ("The previously seen nodule is small.", ["examination"]),
        ("The nodule was not seen on the comparison.", ["examination"]),
        ("Unchanged effusion.", ["stability"]),
        ("No significant change. Again seen is a nodule.", ["stability"]),
        ("No new consolidation.", ["new"]),
        ("Interval removal of the tube.", ["change"]),
        ("The effusion has slightly increased.", ["change"]),
        ("New opacity, worsened edema, stable heart, no prior.", ["stability", "new", "change"]),
        # no comparison with an examination
        ("Median sternotomy wires from prior surgery.", []),
        ("Evidence of previous granulomatous disease. Prior cholecystectomy.", []),
        ("Changes of a prior right chest tube.", []),
        ("Old healed fracture of the right clavicle.", []),
        ("Degenerative changes. Increased interstitial markings.", []),
        ("The right hemidiaphragm is high compared to the left.", []),
        ("Opacities, worse on the right.", []),
        ("The remaining lung is clear.", []),
        # says that there is none
        ("No prior studies are available for comparison. Clear lungs.", []),
        ("No comparison. The heart is normal.", []),
        ("Without previous radiographs for comparison, clear lungs.", []),
        ("Prior examination is not available.", []),
        ("No prior studies are available. Unchanged heart.", ["stability"]),
    ],
)
def test_comparison_with_an_earlier_examination(text, categories):
    assert read(text).comparison == tuple(categories)


@pytest.mark.parametrize(
    "study, given",
    [
        ({}, False),
        ({"prior": None}, False),
        ({"prior": {}}, False),
        ({"prior": {"images": [], "findings": ""}}, False),
        ({"comparison": "Radiograph of last week."}, False),
        (PRIOR, True),
        ({"prior": {"images": [{"path": "a.png"}]}}, True),
        ({"prior": "Small effusion."}, True),
    ],
)
def test_what_counts_as_a_prior_given(study, given):
    assert prior_given(study) is given


def test_hallucinated_priors_count_only_where_none_was_given():
    references = ["Clear lungs.", "Stable heart.", "Unchanged.", "Clear."]
    predictions = ["Unchanged heart.", "Clear lungs.", "New opacity.", "Interval increase."]
    found = values(references, predictions, [{}, {}, PRIOR, {}])
    assert found["hallucinated-prior/reports"] == 3
    assert found["hallucinated-prior"] == pytest.approx(2 / 3)
    assert found["hallucinated-prior/reference"] == pytest.approx(1 / 3)
    flags = per_study(references, predictions, [{}, {}, PRIOR, {}])
    assert [f["invented_prior"] for f in flags] == [["stability"], [], [], ["change"]]


def test_no_study_without_a_prior():
    found = values(["Clear."], ["New opacity."], [PRIOR])
    assert found["hallucinated-prior/reports"] == 0
    assert math.isnan(found["hallucinated-prior"]) and math.isnan(found["hallucinated-prior/reference"])


# --- length and repetition --------------------------------------------------------------------------------------------


def test_length_by_hand():
    found = values(["One two three, four.", "Five six."], ["One.", ""])  # 4 and 2 words against 1 and none
    assert found["words/reference"] == 3 and found["words/generated"] == 0.5
    assert found["words/ratio"] == pytest.approx(1 / 6)
    assert found["empty"] == 0.5
    assert found["truncated"] == 0 and found["truncated/reference"] == 0


@pytest.mark.parametrize(
    "text, truncated",
    [
        ("Clear.", False),
        ("Clear. ", False),
        ('He wrote "clear."', False),
        ("(No effusion.)", False),
        ("Clear?", False),
        ("There is a small", True),
        ("No effusion,", True),
        ("Heart: normal; lungs:", True),
        ("", False),
        ("...", False),
    ],
)
def test_truncated(text, truncated):
    assert read(text).truncated is truncated


def test_repeated_4_grams_and_sentences():
    twice = read("There is no effusion. There is no effusion.")  # 5 4-grams, the first comes again
    assert twice.repeated_4_grams == pytest.approx(1 / 5) and twice.repeated_sentence
    assert read("No effusion. No, effusion.").repeated_sentence  # punctuation does not tell them apart
    once = read("There is no effusion. There is no mass.")
    assert once.repeated_4_grams == 0 and not once.repeated_sentence
    assert not read("Normal. Normal.").repeated_sentence  # one word is no sentence
    assert read("One two three.").repeated_4_grams == 0
    found = values(["Clear."] * 2, ["There is no effusion. There is no effusion.", "Clear."])
    assert found["repeated-4-grams"] == pytest.approx(1 / 10) and found["repeated-sentence"] == 0.5
    assert found["repeated-4-grams/reference"] == 0 and found["repeated-sentence/reference"] == 0


def test_unique():
    found = values(["A.", "B.", "C.", "D."], ["Clear lungs.", "clear  lungs.", "Effusion.", "Clear lungs"])
    assert found["unique"] == pytest.approx(3 / 4) and found["unique/reference"] == 1
    assert values(["A."] * 5, [""] * 5)["unique"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_halve_unique(seed):
    reports = random_reports(seed)
    once, twice = values(reports, reports)["unique"], values(reports * 2, reports * 2)["unique"]
    assert once == pytest.approx(len(set(reports)) / len(reports))
    assert twice == pytest.approx(once / 2)


# --- sides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, sides",
    [
        ("Small left pleural effusion.", {"Pleural Effusion": "left"}),
        ("There is consolidation in the RUL.", {"Consolidation": "right"}),
        ("Bilateral effusions.", {"Pleural Effusion": "both"}),
        ("Left effusion. Right effusion.", {"Pleural Effusion": "both"}),
        ("Right greater than left pleural effusions.", {"Pleural Effusion": "both"}),
        ("Left effusion and right pneumothorax.", {"Pleural Effusion": "left", "Pneumothorax": "right"}),
        ("No left effusion, but small right effusion.", {"Pleural Effusion": "right"}),
        ("Left effusion without right pneumothorax.", {"Pleural Effusion": "left"}),
        ("Opacity in the right upper and left lower lobes.", {"Lung Opacity": "both"}),
        ("In the left lung, there is consolidation.", {"Consolidation": "left"}),
        ("Right lung is clear, left lung shows consolidation.", {"Consolidation": "left"}),
        ("Effusion. Left lung is clear.", {}),
        ("No left effusion or right pneumothorax.", {}),
        ("Possible right pneumonia.", {}),
        ("The left effusion has resolved.", {}),
        ("Right pneumothorax on the left lateral view.", {"Pneumothorax": "right"}),
        ("Pacemaker on the left. Enlarged heart, left more than right.", {}),
        ("Effusion reaches the right atrium and the left ventricle.", {}),
        ("", {}),
    ],
)
def test_sides_of_asserted_conditions(text, sides):
    assert {c: s for c, s in dict(read(text).sides).items() if c != "Lung Lesion"} == sides


def test_swaps_by_hand():
    references = [
        "Left effusion. Right pneumothorax.",
        "Bilateral effusions.",
        "No left effusion.",
        "Left rib fracture.",
        "Right effusion.",
    ]
    predictions = [
        "Right effusion. Right pneumothorax.",  # one of two is swapped
        "Left effusion.",  # bilateral: not compared
        "Right effusion.",  # denied: not compared
        "Effusion. Fracture.",  # no side: not compared
        "Left effusion and right effusion.",  # both: not compared
    ]
    found = values(references, predictions)
    assert found["side-swap/conditions"] == 2 and found["side-swap"] == 0.5
    flags = per_study(references, predictions, [{}] * 5)
    assert [f["swapped"] for f in flags] == [["Pleural Effusion"], [], [], [], []]


@pytest.mark.parametrize("seed", range(3))
def test_left_for_right_swaps_all(seed):
    reports = [r.lower() for r in random_reports(seed)]
    same, other = values(reports, reports), values(reports, [exchange(r) for r in reports])
    assert same["side-swap"] == 0 and other["side-swap"] == 1
    assert same["side-swap/conditions"] == other["side-swap/conditions"] > 0
    for text in reports:
        compared, swapped = swapped_sides(read(text), read(exchange(text)))
        assert compared == swapped
        assert all(label_report(text)[c] == 1 for c in swapped)


# --- the sheet --------------------------------------------------------------------------------------------------------


def test_identical_texts():
    reports = random_reports(1)
    found = values(reports, reports)
    assert found["temporal-f1"] == found["temporal-precision"] == found["temporal-recall"] == 1
    assert found["words/ratio"] == 1
    for key in ("hallucinated-prior", "truncated", "repeated-4-grams", "repeated-sentence", "unique"):
        assert found[key] == found[f"{key}/reference"]


@pytest.mark.parametrize("seed", range(3))
def test_the_sheet_equals_a_count_report_by_report(seed):
    references, predictions = random_reports(seed), [*random_reports(seed + 9, 58), "", ""]
    studies = [PRIOR if i % 3 == 0 else {} for i in range(60)]
    f1, lone, compares, grams, swaps = [], 0, 0, [], []
    for ref, hyp, study in zip(references, predictions, studies, strict=True):
        (ref_words, _, ref_sides), (hyp_words, hyp_compares, hyp_sides) = truth(ref), truth(hyp)
        if ref_words | hyp_words:
            f1.append(2 * len(ref_words & hyp_words) / (len(ref_words) + len(hyp_words)))
        if study is not PRIOR:
            lone += 1
            compares += hyp_compares
        words = "".join(c if c.isalnum() else " " for c in hyp.lower()).split()
        all_grams = [" ".join(words[i : i + 4]) for i in range(len(words) - 3)]
        grams.append(sum(g in all_grams[:i] for i, g in enumerate(all_grams)) / max(len(all_grams), 1))
        for condition in ref_sides.keys() & hyp_sides.keys():
            if len(ref_sides[condition]) == len(hyp_sides[condition]) == 1:
                swaps.append(ref_sides[condition] != hyp_sides[condition])
    found = values(references, predictions, studies)
    assert found["temporal-f1"] == pytest.approx(np.mean(f1)) and found["temporal-f1/reports"] == len(f1)
    assert found["hallucinated-prior"] == pytest.approx(compares / lone)
    assert found["repeated-4-grams"] == pytest.approx(np.mean(grams))
    assert found["side-swap"] == pytest.approx(np.mean(swaps))
    assert found["side-swap/conditions"] == len(swaps)
    assert found["empty"] == 2 / 60
    assert found["unique"] == pytest.approx(len(set(predictions)) / 60)
    flags = per_study(references, predictions, studies)
    assert sum(map(bool, (f["invented_prior"] for f in flags))) == compares
    assert [f["empty"] for f in flags[-3:]] == [False, True, True]


def test_intervals_of_the_sheet():
    references, predictions = random_reports(4), random_reports(5)
    sheet = Sheet(60)
    add_safety(sheet, references, predictions, [{}] * 60)
    scores = sheet.scores([i // 2 for i in range(60)])
    for key, s in scores.items():
        counted = key.endswith(("/reports", "/conditions"))
        assert counted or s.low <= s.value <= s.high or s.no_interval or math.isnan(s.value), key
    assert scores["temporal-f1"].low < scores["temporal-f1"].high
    few = sheet.scores(rows_N=np.arange(60) < 3)
    assert few["words/generated"].n == 3


def test_signatures_tell_the_choices():
    sheet = Sheet(1)
    add_safety(sheet, ["Clear."], ["Clear."], [{}])
    signatures = {key: m.signature for key, m in sheet.measures.items()}
    assert len(set(signatures.values())) == len(signatures)
    assert all(parse_signature(s)[0] == key for key, s in signatures.items())
    assert parse_signature(signatures["temporal-f1"])[1]["words"] == safety.LEXICON
    assert parse_signature(signatures["side-swap"])[1]["both-sides"] == "left-out"


def test_flags_hold_no_text():
    texts = ["Left effusion unchanged. Left effusion unchanged"]
    (flags,) = per_study(["Right effusion."], texts, [{}])
    assert flags == {
        "swapped": ["Pleural Effusion"],
        "invented_prior": ["stability"],
        "repeated_4_grams": 0.0,
        "repeated_sentence": True,
        "truncated": True,
        "empty": False,
    }


# --- edges ------------------------------------------------------------------------------------------------------------


def test_nothing_to_score():
    found = values([], [], [])
    assert found["temporal-f1/reports"] == 0 and math.isnan(found["unique"])
    assert per_study([], [], []) == []


def test_empty_reports():
    found = values(["Stable left effusion."] * 3, ["", " \n", "?!"])
    assert found["empty"] == 1 and found["words/generated"] == 0 and found["truncated"] == 0
    assert found["temporal-f1"] == 0 and found["temporal-f1/reports"] == 3
    assert found["hallucinated-prior"] == 0 and found["hallucinated-prior/reference"] == 1
    assert found["side-swap/conditions"] == 0 and math.isnan(found["side-swap"])
    undefined = {key for key, value in found.items() if math.isnan(value)}
    assert undefined == {"side-swap"}


def test_unequal_counts():
    for case in ((["A."], [], []), (["A."], ["A."], [])):
        with pytest.raises(ValueError):
            add_safety(Sheet(1), *case)
        with pytest.raises(ValueError):
            per_study(*case)


@pytest.mark.parametrize(
    "text",
    [
        "left effusion and " * 3_000,
        "left " * 10_000,
        "no significantly " * 5_000,
        "prior chest " * 5_000,
        "has " * 10_000 + "left effusion, right effusion",
        "!.?;," * 10_000,
        " " * 50_000 + "left",
        "x" * 50_000,
        "\0\ud800 left\u2028effusion",
    ],
)
def test_hostile_texts_take_no_time(text):
    start = time.perf_counter()
    read(text)
    assert time.perf_counter() - start < 3
