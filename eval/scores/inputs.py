"""Predictions and references brought together, with every oddity counted, listed and treated by a stated policy."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.scores.readers import Loaded, Record, ScoreError, Source, blank, keys_of, missing, read_side

_BOTH = "--section both scores findings and impression, joined by an empty line"
POLICIES = {
    "reference without findings": "left out of every score",
    "reference without impression": "left out of every score",
    "reference without findings and impression": "left out of every score",
    "reference with findings alone": f"left out of every score ({_BOTH}, of references that have both)",
    "reference with impression alone": f"left out of every score ({_BOTH}, of references that have both)",
    "duplicate reference": "the first one counts",
    "duplicate prediction": "the first one counts",
    "prediction without reference": "left out of every score",
    "no prediction": "scored as an empty report",
    "failed prediction": "scored as an empty report",
    "empty prediction": "scored as an empty report",
    "placeholder prediction": "scored as an empty report (the text is a literal None, NaN or null)",
    "reference with headings": "only its own section counts, without the heading",
    "prediction with headings": "only its own section counts, without the heading",
    "reference that is not judged": "left out of label scores: not English, or no chest report",
    "prediction that is not judged": "no labels: misses everything; not English, or no chest report",
    "prediction that is no text": "scored as an empty report (a list or a number, say)",
    "prediction with findings alone": f"scored as it is ({_BOTH}): it misses what the impression says",
    "prediction with impression alone": f"scored as it is ({_BOTH}): it misses what the findings say",
    "study without a judge's answer": "left out of that judge's scores",
    "value without study": "left out: no study that is scored has this id",
}
"""Every kind of problem and what is done about it. An empty report has no words and no labels: it misses everything."""

EMPTY = tuple(kind for kind, policy in POLICIES.items() if policy.startswith("scored as an empty report"))
"""Kinds of predictions that have no text."""

_PLACEHOLDERS = {"none", "nan", "null", "n/a", "na", "<na>", "undefined"}


@dataclass(frozen=True)
class Section:
    """Say which text of a prediction, a reference or a training study counts.

    Of two fields the texts are joined by an empty line, without headings. The scores take that for white space (but for
    BERTScore, whose tokens it is), and the labeller ends a sentence there: "No opacity" and "Pneumonia" do
    not deny.
    """

    name: str
    fields: tuple[str, ...]
    said: str  # to people
    choices: Mapping[str, str] = field(default_factory=dict)  # what signatures say of it

    def read(self, record: Record) -> tuple[str, dict[str, str]]:
        """Return the text, and what is wrong with which field (see `report_text`)."""
        texts, wrong = [], {}
        for name in self.fields:
            text, why = report_text(self.part(record, name))
            texts += [text] if text else []
            if why:
                wrong[name] = why
        return "\n\n".join(texts), wrong

    def part(self, record: Record, name: str) -> Any:
        """Return a field of a record. Of a text with headings ("Findings: ... Impression: ...") that is the part
        below the field's own; a section that is missing is looked for below its heading in the other."""
        value = record.get(name)
        for field_ in dict.fromkeys([name, *self.fields]):
            parts = headed(record.get(field_))
            if name in parts and (field_ == name or missing(value)):
                return parts[name]
        # "Impression: ..." under findings is no findings
        return None if headed(value) else value

    def has_headings(self, record: Record) -> bool:
        """Tell whether a text of the record has headings."""
        return any(headed(record.get(name)) for name in self.fields)

    def lack(self, what: str, wrong: Mapping[str, str]) -> str:
        """Return the kind of POLICIES for a record that lacks the `wrong` fields."""
        left = [name for name in self.fields if name not in wrong]
        return f"{what} with {left[0]} alone" if left else f"{what} without {' and '.join(self.fields)}"


SECTIONS = {
    s.name: s
    for s in (
        Section("findings", ("findings",), "findings"),  # what a signature is of that names no section
        Section("impression", ("impression",), "impression", {"section": "impression"}),
        Section(
            "both", ("findings", "impression"), "findings and impression as one text, an empty line between them",
            {"section": "both", "join": "empty-line", "lone_ref": "left-out"},
        ),
    )
}  # fmt: skip


# At the beginning of a text, of a line or of a sentence, or with a capital; "prior findings:" is none. A dash counts
# as a colon does behind a capital.
_HEADING = re.compile(
    r"(?:(?:^|(?<=[\n.!?:]))[\s*#_]{0,20}(?P<name>findings?|impressions?|conclusions?)\b[*_]*"
    r"(?:\s*:|[ \t]*\n|(?P<dash>[ \t]*[-\u2013\u2014]+[ \t]+))[*_]*"
    r"|(?<=\s)(?P<inside>(?-i:F|I|C)(?:indings?|mpressions?|onclusions?))\s*:)",
    re.IGNORECASE,
)
_OTHER = (
    r"(?:final (?:radiology )?report|(?:type of )?(?:exam(?:ination)?|study|procedure)(?: (?:type|date))?|technique|"
    r"(?:clinical )?(?:indications?|history|information|data|details)|(?:clinical )?reason for (?:the )?"
    r"(?:exam(?:ination)?|study)|(?:prior |previous )?(?:comparisons?|studies)|views?|date(?: of exam)?)"
)
# What may stand before the first of them: nothing, or sections that begin with a heading of their own.
_BEFORE = re.compile(rf"[\s*#_]*(?:final report\b|{_OTHER}[*_]*\s*(?::|[-\u2013\u2014]+\s))", re.IGNORECASE)
# Findings without a heading below another section: in a paragraph of their own, or behind "Comparison: None."
_UNDER_OTHER = re.compile(
    rf"{_BEFORE.pattern}(?:(?:(?!\n\s*\n).)*\n\s*\n|\s*(?:none|no priors?|not available|n/a)\b[^.\n]*[.\n])"
    rf"(?P<text>(?!{_BEFORE.pattern}).*)",
    re.IGNORECASE | re.DOTALL,
)
# Before "FINDINGS:" any in capitals will do; before "IMPRESSION:" it may be that of the findings ("LUNGS: clear.").
_CAPITALS = re.compile(r"[\s*#_]*[A-Z][A-Z /]{3,30}\s*:")


def headed(value: object) -> dict[str, str]:
    """Return the sections of a report with headings, by name; {} for a text without. Parts of one name are joined.

    What stands before a first heading "Impression:" is the findings, unless it has a heading of another section; there
    it is what stands in a paragraph of its own.
    """
    if not isinstance(value, str):
        return {}
    marks = [m for m in _HEADING.finditer(value) if not m["dash"] or m["name"][0].isupper()]
    if not marks:
        return {}
    first = marks[0]
    before = value[: first.start()].strip()
    parts: dict[str, str] = {}
    if _name(first) == "impression" and (rest := _UNDER_OTHER.match(before)) and rest["text"].strip():
        parts["findings"] = rest["text"].strip()
    elif before.strip(" *#_\n\r\t") and not _BEFORE.match(before):
        of_findings = _name(first) == "findings"
        if of_findings and not _CAPITALS.match(before):
            return {}
        if not of_findings:
            # In the middle of a sentence it is a word like others.
            if not first["name"]:
                return {}
            parts["findings"] = before
    ends = [mark.start() for mark in marks[1:]] + [len(value)]
    for mark, end in zip(marks, ends, strict=True):
        name = _name(mark)
        parts[name] = " ".join(filter(None, (parts.get(name), value[mark.end() : end].strip())))
    return parts


def _name(mark: re.Match[str]) -> str:
    return "findings" if (mark["name"] or mark["inside"]).lower().startswith("finding") else "impression"


def section_named(name: str) -> Section:
    """Return the section of this name. Raises ScoreError if there is none."""
    if name not in SECTIONS:
        raise ScoreError(f"section is {name!r}; accepted are {', '.join(SECTIONS)}")
    return SECTIONS[name]


@dataclass
class Pairs:
    """Aligned texts of N studies, in the order of the references. A miss is the empty string."""

    study_ids: list[str]
    references: list[str]
    predictions: list[str]
    studies: list[Record]
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind of POLICIES -> study ids
    section: Section = SECTIONS["findings"]  # which of a record's texts; floors are read alike
    # All references of each study where some have several; `references` then holds the first.
    several: list[list[str]] | None = None
    # Which columns were taken for others, and whether the texts had no ids.
    said: list[str] = field(default_factory=list)
    by_order: bool = False

    def __len__(self) -> int:
        return len(self.study_ids)

    def note(self, kind: str, study_id: str) -> None:
        """Record that a study has a problem of this kind, a key of POLICIES."""
        self.problems.setdefault(kind, []).append(study_id)


def report_text(value: object) -> tuple[str, str | None]:
    """Return a report as text, and what is wrong with it: "empty", "placeholder", "no text" or None."""
    if missing(value):
        return "", "empty"
    if not isinstance(value, str):
        return "", "no text"
    text = value.strip().encode("utf-8", "replace").decode()  # half a character would stop every tokenizer
    if text.lower().rstrip(".") in _PLACEHOLDERS:
        return "", "placeholder"
    return text, None if text else "empty"


def align(
    predictions: Source,
    references: Source | None = None,
    section: Section = SECTIONS["findings"],
    *,
    by_order: bool = False,
) -> Pairs:
    """Bring predictions to references by `study_id`, by the POLICIES. Without references each prediction brings its
    own, as `reference`, which is of the one section that is scored. `by_order` says that the references have numbers
    for ids, since they had none.

    Raises ScoreError if a source cannot be read, if no reference has the section, or if no prediction has it.
    """
    pairs = Pairs([], [], [], [], section=section)
    given: dict[str, Record] = {}
    read = read_side(predictions, "prediction", section.name)
    predicted = read.records
    pairs.said = [read.said] if read.said else []
    _check_side(predicted[0], "predictions", predictions)
    if references is None:
        if len(section.fields) > 1:
            raise ScoreError(
                f"--section {section.name} needs a second file, whose studies have {' and '.join(section.fields)}; a "
                "prediction's own 'reference' is one text"
            )
        listed = [{**record, section.name: record.get("reference")} for record in predicted]
        if not any(record.get("reference") for record in predicted):
            raise ScoreError(
                "there are no references: give a second file, or predictions with a 'reference' each"
            )
    else:
        other = read_side(references, "reference", section.name)
        listed = other.records
        pairs.said += [other.said] if other.said else []
        _check_side(listed[0], "references", references)
        if not (by_order and read.numbered):
            _check_order(read, other)
        elif len(predicted) != len(listed):
            raise ScoreError(
                f"{len(predicted)} predictions but {len(listed)} references: they are paired by order"
            )
        _check_fields(predicted, listed)
        if beside := _beside(predicted, listed):
            pairs.said.append(
                f"the predictions have {beside}, and the references have not: are the two sides swapped?"
            )
        if read.brings:
            pairs.said.append("the references that the predictions bring are not used; the second file's are")
    pairs.by_order = by_order or read.numbered
    _check_section(predicted, section, f"{predictions}: " if isinstance(predictions, str | Path) else "")
    for record in predicted:
        key = str(record["study_id"])
        if key in given:
            pairs.note("duplicate prediction", key)
        else:
            given[key] = record
    seen: set[str] = set()
    for study in listed:
        key = str(study["study_id"])
        if key in seen:
            pairs.note("duplicate reference", key)
            continue
        seen.add(key)
        several, wrong = _references(section, study)
        if wrong:
            pairs.note(section.lack("reference", wrong), key)
            continue
        if section.has_headings(study):
            pairs.note("reference with headings", key)
        if len(several) > 1 and pairs.several is None:
            pairs.several = [[text] for text in pairs.references]
        if pairs.several is not None:
            pairs.several.append(several)
        reference = several[0]
        pairs.study_ids.append(key)
        pairs.studies.append(study)
        pairs.references.append(reference)
        pairs.predictions.append(_prediction(pairs, key, given.get(key)))
    for key in given:
        if key not in seen:
            pairs.note("prediction without reference", key)
    if not pairs.study_ids:
        wanted = " and ".join(section.fields)
        raise ScoreError(f"no reference has {wanted}: there is nothing to score against")
    if not given.keys() & set(pairs.study_ids):
        raise ScoreError(
            "no prediction belongs to a reference: the study ids do not meet "
            f"(predictions: {next(iter(given))!r}, ...; references: {pairs.study_ids[0]!r}, ...); give both sides the "
            "same ids in `study_id`, or leave the ids out of both to pair them by order"
        )
    return pairs


def _references(section: Section, study: Record) -> tuple[list[str], dict[str, str]]:
    """Return all references of a study, and what is wrong if there is none. A list of texts under the section's name,
    or under `references`, are several; those that say nothing are left out."""
    value = study.get(section.name, study.get("references"))
    if not isinstance(value, list | tuple) or len(section.fields) > 1:
        text, wrong = section.read(study)
        return [text], wrong
    read = [section.read({section.name: text}) for text in value]
    good = [text for text, wrong in read if not wrong]
    return good, {} if good else (read[0][1] if read else {section.name: "empty"})


def side_of(row: Record) -> str:
    """Return what a record is by its fields: "predictions" of `cxr generate`, "studies" with films, or ""."""
    if "model" in row and "decoding" in row:
        return "predictions"
    images = row.get("images")
    films = isinstance(images, list) and any(isinstance(i, Mapping) and "path" in i for i in images)
    return "studies" if films else ""


def _check_side(row: Record, what: str, source: object) -> None:
    """Refuse a side that is the other one, as far as its first record tells. Raises ScoreError."""
    where = f"{source}: " if isinstance(source, str | Path) else ""
    found = side_of(row)
    if found and found != ("predictions" if what == "predictions" else "studies"):
        raise ScoreError(f"{where}these are {found}, where {what} are meant: the two sides are swapped")


# What studies have and predictions do not, but for those that `cxr generate` writes.
_OF_STUDIES = ("images", "labels", "indication", "technique", "comparison", "age", "sex")


def _alone(predicted: Sequence[Record], listed: Sequence[Record]) -> list[str]:
    """Return the fields of studies that the predictions have and the references have not."""
    # ReXrank's context stands in its predictions, too.
    has = [
        {name for row in rows if not row.get("context") for name in _OF_STUDIES if row.get(name)}
        for rows in (predicted, listed)
    ]
    if any(side_of(row) == "predictions" for row in predicted[:1]):
        return []
    return [name for name in _OF_STUDIES if name in has[0] - has[1]]


def _check_fields(predicted: Sequence[Record], listed: Sequence[Record]) -> None:
    """Refuse predictions with films or labels where the references have none. Raises ScoreError."""
    if found := [name for name in _alone(predicted, listed) if name in ("images", "labels")]:
        raise ScoreError(
            f"the predictions have {' and '.join(map(repr, found))}, as studies have, and the references have not: the "
            "two sides are swapped; if they are not, leave that out of the predictions"
        )


def _beside(predicted: Sequence[Record], listed: Sequence[Record]) -> str:
    return " and ".join(map(repr, _alone(predicted, listed)))


def _check_order(predictions: Loaded, references: Loaded) -> None:
    """Refuse what can be paired neither by ids nor by order. Raises ScoreError."""
    if predictions.numbered == references.numbered:
        counts = len(predictions.records), len(references.records)
        if predictions.numbered and counts[0] != counts[1]:
            raise ScoreError(
                f"{counts[0]} predictions but {counts[1]} references: without ids they are paired by their order"
            )
        return
    without, with_ids = (
        ("predictions", "references") if predictions.numbered else ("references", "predictions")
    )
    raise ScoreError(f"the {without} have no ids, and the {with_ids} have: name a column 'study_id' in both")


def _prediction(pairs: Pairs, key: str, record: Record | None) -> str:
    if record is None:
        pairs.note("no prediction", key)
        return ""
    if record.get("error") and not any(record.get(name) for name in pairs.section.fields):
        pairs.note("failed prediction", key)
        return ""
    text, wrong = pairs.section.read(record)
    if pairs.section.has_headings(record):
        pairs.note("prediction with headings", key)
    if text and wrong:
        pairs.note(pairs.section.lack("prediction", wrong), key)
    elif wrong:
        kind = next((w for w in wrong.values() if w != "empty"), "empty")
        pairs.note("prediction that is no text" if kind == "no text" else f"{kind} prediction", key)
    return text


def _check_section(predicted: Sequence[Record], section: Section, where: str) -> None:
    """Refuse predictions if none has a field of the section. "" will do: a model that wrote nothing is
    scored."""
    absent = [
        name
        for name in section.fields
        if all(missing(section.part(r, name)) and r.get(name) != "" for r in predicted)
    ]
    there = [name for name in SECTIONS["both"].fields if any(report_text(r.get(name))[0] for r in predicted)]
    if set(there) & set(absent):
        hint = "its texts have headings, but none of this section"
    elif there:
        hint = f"there is {there[0]!r}: give --section {there[0]}"
    elif any(r.get("error") or any(name in r for name in section.fields) for r in predicted):
        return  # all of them failed or are empty
    else:
        hint = f"the first one's keys are {keys_of(predicted[0])}"
    if absent:
        named = " and no ".join(map(repr, absent))
        raise ScoreError(f"{where}no prediction has {named}, the text to be scored; {hint}")


def patients(pairs: Pairs, groups: Mapping[str, Hashable] | Sequence[Hashable] | None) -> list[Hashable]:
    """Return the patient of every pair: from `groups` (study id -> patient, or one entry a pair), else the
    study's own `patient_id`, else the study by itself. Raises ScoreError if `groups` does not cover the
    pairs."""
    if groups is None:
        return [
            ("study", key) if blank(s.get("patient_id")) else str(s["patient_id"]).strip()
            for key, s in zip(pairs.study_ids, pairs.studies, strict=True)
        ]
    if isinstance(groups, Mapping):
        named = {key.strip() if isinstance(key, str) else key: patient for key, patient in groups.items()}
        unnamed = [key for key in pairs.study_ids if key not in named]
        if unnamed:
            raise ScoreError(f"groups name no patient for {len(unnamed)} studies, e.g. {unnamed[0]!r}")
        return [named[key] for key in pairs.study_ids]
    if len(groups) != len(pairs):
        raise ScoreError(
            f"{len(groups)} groups for {len(pairs)} scored studies; give a mapping from study id to patient"
        )
    return list(groups)
