"""The rule-based labeller by kind of error, what no error of typing may do, and which texts it does not judge."""

import itertools
import json
import random
import re
import re._parser
import textwrap
from pathlib import Path

import pytest

from eval.scores import cues, phrases
from eval.scores.labels import CONDITIONS, judged, label_matrix, label_report
from eval.scores.language import why_not_judged
from eval.scores.spelling import KNOWN, RIGHT, SHORT, plain
from tests.eval.golden.labeller_sentences import HALVES, PATH, read_sentences
from train.phantom import draw_patient, write_report

SENTENCES = read_sentences()
TUNING = [s for s in SENTENCES if s.half == "tuning"]
MISSPELT = "misspellings"
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "labeller_sentences.json"


# --- sentences by kind ------------------------------------------------------------------------------------------------


def test_the_halves_take_turns_and_hold_forty_sentences_a_kind():
    kinds = {s.kind: [t.half for t in SENTENCES if t.kind == s.kind] for s in SENTENCES}
    assert len(kinds) == 9
    for halves in kinds.values():
        assert len(halves) >= 40
        assert halves == [HALVES[i % 2] for i in range(len(halves))]
    assert len({s.text for s in SENTENCES}) == len(SENTENCES)
    assert all(set(s.labels) | set(s.any) <= set(CONDITIONS) for s in SENTENCES)


@pytest.mark.parametrize("sentence", TUNING, ids=lambda s: s.text)
def test_sentence_of_the_tuning_half(sentence):
    found = label_report(sentence.text)
    assert sentence.right(found), found


def test_the_held_back_half_by_its_counts_alone():
    """The failing ones are counted, not named: a rule written for one of them would spoil the measure."""
    saved = json.loads(RESULT.read_text())["after"]["kinds"]
    right = stated = 0
    for kind in dict.fromkeys(s.kind for s in SENTENCES):
        held = [(s, label_report(s.text)) for s in SENTENCES if s.kind == kind and s.half == "held_back"]
        assert {
            "sentences": len(held),
            "right": sum(s.right(found) for s, found in held),
            "labels": sum(len(s.labels) for s, _ in held),
            "labels_right": sum(s.labels_right(found) for s, found in held),
        } == saved[kind]["held_back"], f"{kind}: run `python benchmarks/labeller.py --sentences --save`"
        if kind != MISSPELT:
            right += saved[kind]["held_back"]["labels_right"]
            stated += saved[kind]["held_back"]["labels"]
    assert right / stated >= 0.95


# Sentences that were read wrongly, and some near them that were read rightly, by what was wrong.
MENDED = [
    json.loads(line) for line in PATH.with_name("labeller_mended.jsonl").read_text("utf-8").splitlines()
]


def test_every_mended_kind_has_sentences_that_were_read_rightly():
    kinds = {s["kind"] for s in MENDED}
    for kind, was_wrong in itertools.product(kinds, (True, False)):
        assert sum(s["kind"] == kind and s["was_wrong"] == was_wrong for s in MENDED) >= 8, kind
    assert len({s["text"] for s in MENDED}) == len(MENDED)


@pytest.mark.parametrize("sentence", MENDED, ids=lambda s: f"{s['kind']}: {s['text']!r}")
def test_mended(sentence):
    found = label_report(sentence["text"])
    assert {c: found.get(c) for c in sentence["labels"]} == sentence["labels"]
    assert judged(sentence["text"]) == bool(sentence["labels"])
    doubted = any(v and c != "Support Devices" for c, v in sentence["labels"].items())
    assert not (doubted and "No Finding" in found)


# --- properties -------------------------------------------------------------------------------------------------------


def mistyped(word: str, rng: random.Random) -> str:
    """One letter left out, added, changed, or exchanged with the next."""
    i, letter = rng.randrange(len(word) - 1), rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice(
        [
            word[:i] + word[i + 1 :],
            word[:i] + letter + word[i:],
            word[:i] + letter + word[i + 1 :],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        ]
    )


DENIALS = [
    "Without effusion.", "Negative for effusion.", "Absence of effusion.", "Effusion has resolved.",
    "Cleared effusion.", "Effusion was excluded.", "Neither effusion nor edema.",
    "Nothing to suggest effusion.", "Effusion has been drained.", "Effusion is not identified.",
    "Effusion is not visualized.", "Effusion is not demonstrated.", "Heart unremarkable.",
    "Disappearance of the effusion.", "Interval removal of the PICC.", "Effusion has disappeared.",
]  # fmt: skip


def test_a_misspelling_never_turns_a_negative_into_a_positive():
    rng, tried = random.Random(7), 0
    # A second error in a word that has one already is beyond any promise.
    for sentence in (*DENIALS, *(s.text for s in TUNING if s.kind != MISSPELT)):
        labels = label_report(sentence)
        denied = [c for c, label in labels.items() if label == 0]
        for word in re.finditer(r"[A-Za-z]{7,}", sentence) if denied else ():
            for _ in range(6):
                wrong = mistyped(word[0], rng)
                # Another word, such as "remove" for "removed", is no misspelling.
                if wrong.lower() in KNOWN:
                    continue
                text = sentence[: word.start()] + wrong + sentence[word.end() :]
                found = label_report(text)
                tried += 1
                assert all(found.get(c) != 1 for c in denied), text
    assert tried > 1000


@pytest.mark.parametrize(
    "normal",
    [
        "The trachea is midline.", "Lungs are otherwise clear.", "No free air under the diaphragm.",
        "The liver is normal.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["before", "after"])
def test_an_unrelated_normal_sentence_never_removes_a_positive(normal, place):
    for sentence in TUNING:
        positive = [c for c, v in label_report(sentence.text).items() if v == 1 and c != "No Finding"]
        text = f"{normal} {sentence.text}" if place == "before" else f"{sentence.text} {normal}"
        found = label_report(text)
        assert all(found.get(c) == 1 for c in positive), text


def test_case_and_line_breaks_do_not_matter():
    for sentence in SENTENCES:
        expected = label_report(sentence.text)
        assert label_report(sentence.text.upper()) == expected
        assert label_report(sentence.text.lower()) == expected
        assert label_report(sentence.text.replace(" ", "\n")) == expected
        assert label_report(sentence.text.replace(" ", " \r\n ")) == expected


ITEMS = {
    "No pneumothorax": {"Pneumothorax": 0}, "No edema or consolidation": {"Edema": 0, "Consolidation": 0},
    "Without fracture": {"Fracture": 0}, "Possible pneumonia": {"Pneumonia": -1}, "Cardiomegaly": {"Cardiomegaly": 1},
    "Widened mediastinum": {"Enlarged Cardiomediastinum": 1}, "Pleural effusion": {"Pleural Effusion": 1},
    "PICC line in SVC": {"Support Devices": 1}, "Lung nodule": {"Lung Lesion": 1},
}  # fmt: skip
ENDS = {
    "lines": "{}\n{}\n{}", "numbered lines": "1. {}\n2. {}\n3. {}", "indented lines": " {}\r\n  {}\r\n {}\n",
    "dots": "{}.{}.{}.", "calls": "{}!{}! {}", "ellipses": "{}…{}...{}", "bars": "{}|{} | {}",
    "bullets": "• {} • {} •{}",
    "stars": "* {} * {} * {}", "brackets": "(1) {} (2){} (3) {}", "half brackets": "1){} 2) {} 3) {}",
    "dashes behind numbers": "1- {} 2- {} 3- {}", "dots behind numbers": "1.{}.2.{}.3.{}.",
    "dashes before lines": "-{}\n-{}\n- {}", "dashes": "{} \u2013 {} \u2014 {}", "headed": "FINDINGS: {}\n{}\n{}",
}  # fmt: skip


@pytest.mark.parametrize("form", ENDS)
@pytest.mark.parametrize("case", [str, str.upper], ids=["as written", "capitals"])
def test_an_item_says_nothing_of_the_next(form, case):
    for items in itertools.permutations(ITEMS, 3):
        text = case(ENDS[form].format(*items))
        found = label_report(text)
        found.pop("No Finding", None)
        assert found == {c: v for item in items for c, v in ITEMS[item].items()}, text


def test_a_report_may_be_wrapped_anywhere(cxr_data):
    path = cxr_data / "iu_text" / "studies.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    studies = map(json.loads, path.read_text(encoding="utf-8").splitlines()[::8])
    texts = {" ".join(f"{s.get('findings') or ''} {s.get('impression') or ''}".split()) for s in studies}
    assert len(texts) > 250
    for text, width, case in itertools.product(texts, (80, 60, 40), (str, str.upper)):
        wrapped = case("\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)))
        assert label_report(wrapped) == label_report(text), wrapped


LETTERS = [list(re._parser.parse(kind)) for kind in (r"\w", r"[\w-]")]


def certain(tree: list, keys: tuple[str, ...], run: str = "") -> bool:
    """Tell whether every match of a parsed expression has one of `keys` in it, where a key is a stem, or a word between
    blanks. `run` stands right before it, and a blank in it for the border of a word."""
    for i, (op, value) in enumerate(tree):
        rest = tree[i + 1 :]
        if op is re._parser.LITERAL:
            run += chr(value) if chr(value).isalpha() or chr(value) in "?:" else " "
            continue
        if any(key in run for key in keys):
            return True
        if op is re._parser.IN and all(o is re._parser.LITERAL for o, _ in value):
            return all(certain([letter, *rest], keys, run) for letter in value)
        # Branches that begin alike are parsed as their beginning, then the rest of each.
        if op is re._parser.BRANCH:
            return all(certain([*branch, *rest], keys, run) for branch in value[1])
        if op is re._parser.SUBPATTERN:
            return certain([*value[3], *rest], keys, run)
        if op is re._parser.MAX_REPEAT and value[0] > 0:
            return certain([*value[2], *rest], keys, run)
        if op is re._parser.MAX_REPEAT:
            return certain(rest, keys, run) and certain([*value[2], *rest], keys, run)
        if op is re._parser.ASSERT and value[0] > 0 and certain(list(value[1]), keys, run):
            return True
        if op in (re._parser.ASSERT, re._parser.ASSERT_NOT, re._parser.AT):
            border = op is re._parser.AT or (op is re._parser.ASSERT_NOT and list(value[1]) in LETTERS)
            run += " " * border
            continue
        # A class of characters: what stood before is over.
        run = ""
    return any(key in run for key in keys)


EXPRESSIONS = [(c, p, phrases.STEMS[c]) for c, p in phrases.FINDINGS.items()]
EXPRESSIONS += [(s, p, phrases.STRUCTURE_STEMS[s]) for s, p in phrases.STRUCTURES]
EXPRESSIONS += [
    (name, cue.pattern, (*cue.stems, *(f" {word} " for word in cue.words), *cue.signs))
    for name, cue in vars(cues).items()
    if isinstance(cue, cues.Cue)
]


@pytest.mark.parametrize(
    ("name", "pattern", "keys"), EXPRESSIONS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_match_has_a_stem_or_a_word(name, pattern, keys):
    assert all(key.strip().isalpha() or key in "?:" for key in keys)
    assert certain(list(re._parser.parse(pattern.pattern)), keys)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no efusion", "no effusion"), ("wihtout effusion", "without effusion"), ("s/p fx", "status post fracture"),
        ("no ptx/eff", "no pneumothorax/effusion"), ("ett d/c'd", "endotracheal tube removed"),
        ("w/o pna", "without pneumonia"), ("infusion, module, confusion, infarction, either, hemithorax",) * 2,
        ("pe, cm, ra, ct",) * 2,
    ],
)  # fmt: skip
def test_words_are_written_out_and_spelt_right(written, read):
    assert plain(written) == read


def test_lists_of_words_do_not_contradict_each_other():
    assert not RIGHT & KNOWN
    assert not SHORT.keys() & (RIGHT | KNOWN)
    assert all(plain(word) == word for word in RIGHT | KNOWN)


@pytest.mark.timeout(20)
def test_hostile_words_end():
    for word in (
        "a" * 1_000_000,
        "effusio" * 100_000,
        " ".join(f"effus{i:x}n".translate({48: 103}) for i in range(3000)),
    ):
        label_report(word)


# --- what is not judged -----------------------------------------------------------------------------------------------

NOT_JUDGED = {
    "another language": [
        "No se observa derrame pleural. Corazón de tamaño normal.", "Derrame pleural derecho.", "Sin alteraciones.",
        "Pas d'épanchement pleural. Silhouette cardiaque normale.", "Cardiomégalie. Épanchement pleural droit.",
        "Kein Pneumothorax. Herz normal groß.", "Die Lungen sind frei. Kein Infiltrat, kein Erguss.",
        "Coração de dimensões normais. Pulmões sem consolidações.", "Lorem ipsum dolor sit amet, consectetur.",
    ],
    "another script": ["फेफड़े साफ हैं। कोई बहाव नहीं।", "Лёгкие без очаговых изменений.", "肺野清晰，未见积液。"],
    "another part of the body": [
        "MRI abdomen: the liver is normal in size. No hepatic lesion. The gallbladder and the kidneys are normal.",
        "MRI abdomen. Liver, spleen, pancreas and kidneys are normal. The bases of the lungs are clear.",
        "The brain parenchyma is normal. No intracranial hemorrhage. The ventricles are normal in size.",
        "There is a tear of the medial meniscus. The ligaments of the knee are intact.",
    ],
    "not a report": [
        "The quick brown fox jumps over the lazy dog.", "hello world", "asdf qwer zxcv",
        "I'm sorry, but I cannot interpret this chest X-ray.",
    ],
    "no words": ["", " \n", "12 34", "?!"],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in NOT_JUDGED.items() for t in texts])
def test_not_judged(reason, text):
    assert why_not_judged(text) == reason and not judged(text)
    assert label_report(text) == {}
    # Not a label, and above all not No Finding.
    assert all(x != x for x in label_matrix([text])[0])


@pytest.mark.parametrize(
    "text",
    [
        "Normal.", "No change.", "Clear lungs", "Stable.", "Unchanged.", "Negative.", "NAD", "WNL", "AP portable",
        "ETT, NGT", "PNA", "Bilat effs", "Cardiomegally", "No PTX", "Improved.", "Worse.", "As above.",
        "No active disease.",
        "White-out of the left hemithorax", "No free air. Nonobstructive bowel gas pattern. Lungs are clear.",
        "Nasogastric tube ends in the stomach, in the upper abdomen.", "Small effusion. The abdomen is normal.",
    ],
)  # fmt: skip
def test_short_and_mixed_reports_are_judged(text):
    assert judged(text)


def test_all_reports_at_hand_are_judged(cxr_data):
    count = 0
    for folder in ("iu_text", "pairs"):
        path = cxr_data / folder / "studies.jsonl"
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            study = json.loads(line)
            sections = [study[name] for name in ("findings", "impression") if study.get(name)]
            for text in {*sections, " ".join(sections)} - {""}:
                count += 1
                assert judged(text) or not re.search(r"[A-Za-z]", text), f"{folder}, line {number}"
    assert count > 8000


@pytest.mark.parametrize("wording", ["prose", "telegraphic"])
def test_reports_of_phantoms_are_judged(wording):
    for number in range(100):
        patient = draw_patient(97, number)
        for study in patient.studies:
            prior = patient.studies[study.index - 1] if study.index else None
            assert judged(write_report(study, prior, wording).findings)


# Sentences that an earlier version read wrongly: condition -> the labels that will do; None for a text without labels.
ONCE_WRONG = {
    "No focal opacity is seen to suggest pneumonia.": {"Pneumonia": {0}},
    "No longer visualized is the right pneumothorax.": {"Pneumothorax": {0}},
    "Pleural effusions are gone.": {"Pleural Effusion": {0}},
    "Resolved pneumothorax with residual opacity.": {"Pneumothorax": {0}, "Lung Opacity": {1}},
    "A pneumothorax, which was seen previously, is not identified.": {"Pneumothorax": {0}},
    "No pneumothorax on the right; a small one persists on the left.": {"Pneumothorax": {1}},
    "Doubt pneumonia.": {"Pneumonia": {0, -1}},
    "Opacity unlikely to represent pneumonia.": {"Pneumonia": {0, -1}},
    "Tiny pneumothorax, if any.": {"Pneumothorax": {-1}},
    "The lungs are clear, nor is there evidence of effusion.": {"Pleural Effusion": {0}},
    "ETT, NGT in place.": {"Support Devices": {1}},
    "Trach in place.": {"Support Devices": {1}},
    "ETT in place. NG tube removed.": {"Support Devices": {1}},
    "PNA vs atelectasis.": {"Pneumonia": {-1}, "Atelectasis": {-1}},
    "Sm L pl eff.": {"Pleural Effusion": {1}},
    "Left rib fx.": {"Fracture": {1}},
    "Bilat effs.": {"Pleural Effusion": {1}},
    "Cardiomegally with bilateral pleural efusions.": {"Cardiomegaly": {1}, "Pleural Effusion": {1}},
    "White-out of the left hemithorax.": {"Lung Opacity": {1}},
    "El corazón está agrandado.": None,
    "Épanchement pleural gauche.": None,
    "Lorem ipsum dolor sit amet.": None,
}


@pytest.mark.parametrize("text", ONCE_WRONG)
def test_sentences_that_were_read_wrongly(text):
    labels, accepted = label_report(text), ONCE_WRONG[text]
    if accepted is None:
        assert labels == {}
        return
    assert all(labels.get(condition) in allowed for condition, allowed in accepted.items()), labels
    assert "No Finding" not in labels or not any(
        v & {1, -1} for c, v in accepted.items() if c != "Support Devices"
    )
