"""`cxr.score`: references and predictions in whatever form people have them, brought to `eval.score`."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from eval.judges.panel import Panel
from eval.scores.clinical import Progress
from eval.scores.inputs import section_named, side_of
from eval.scores.lexical import PROFILES
from eval.scores.readers import Record, ScoreError
from eval.scores.result import Scores
from eval.scores.settings import checked
from eval.scores.suite import score as score_records
from vlm.prediction import Prediction
from vlm.study import Study, study_to_json

# A file; lists, tuples, columns (of pandas, polars or NumPy) of texts; lists of records, studies or predictions;
# {study_id: text}; a data frame.
Reports: TypeAlias = str | os.PathLike[str] | Iterable[Any] | Mapping[str, Any]
# What the column of each side may be called in a table; else it is called as the section is.
COLUMNS = {"references": ("reference", "references"), "predictions": ("prediction", "predictions")}
SWAPPED = "and references come first: cxr.score(references, predictions)"


def score(
    references: Reports,
    predictions: Reports | None = None,
    *,
    section: str = "findings",
    compare: Reports | None = None,
    floors: str | os.PathLike[str] | Mapping[str, Reports] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    intervals: bool = True,
    seed: int = 0,
    training: Reports | None = None,
    values: Reports | None = None,
    judges: Panel | None = None,
    reference_labels: str = "text",
    profiles: Sequence[str] = tuple(PROFILES),
    min_support: int = 30,
    clinical_models: str | Sequence[str] = "auto",
    weights: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score predictions against references, the references first, as in scikit-learn.

        cxr.score(["The lungs are clear."], ["No consolidation."])
        cxr.score(frame["findings"], frame["generated"])
        cxr.score(frame)                                   # columns reference and prediction; others are kept
        cxr.score(studies, model(studies))                 # Study and Prediction objects
        cxr.score("studies.jsonl", "predictions.jsonl")

    Args:
        references: texts, in the order of the predictions; {study_id: text}; Study objects, or records with a study_id
            and findings; a data frame with these columns; or a file of them (JSON Lines, CSV). Further keys that count:
            patient_id, age, sex, view, indication, labels.
        predictions: the same, of Prediction objects or of what `cxr generate` writes. Left out where a table has both
            sides: columns `reference` and `prediction` (either may be called as the section is).
        section: "findings", "impression", or "both".
        compare: other predictions for the same references, or {name: predictions} of several.
        values: what another tool or a person gave each study: a file or a data frame of study_id, name, value, better
            (higher or lower) and, for baselines and what is compared, system.

    The other options are those of `eval.score`. Texts without ids are paired by their order, everything else by
    study_id.

    Raises:
        ScoreError: there are not as many of both, the two sides seem to be swapped, they cannot be scored, or a
            setting is out of its range.
    """
    section_named(section)
    settings = checked(
        intervals=intervals, seed=seed, min_support=min_support, reference_labels=reference_labels, profiles=profiles,
        clinical_models=clinical_models, weights=weights, device=device,
    )  # fmt: skip
    groups = _groups(groups)
    if predictions is None:
        sides = _sides_of_one(references, section)
    else:
        sides = {
            "references": _side(references, "references", section),
            "predictions": _side(predictions, "predictions", section),
        }
    named = _several(compare)
    for name, given in named.items():
        sides[name] = _side(given, "predictions", section, name)
    if isinstance(floors, Mapping):
        sides |= {
            f"floor {name}": _side(given, "predictions", section, f"floor {name}")
            for name, given in floors.items()
        }
        floors = None
    elif not (floors is None or isinstance(floors, str | os.PathLike)):
        raise ScoreError(
            f"floors (baselines) are {{name: predictions}}, or the folder that cxr generate --floors wrote, "
            f"not {_kind(floors)}"
        )
    sources = _paired(sides, section)
    given_floors = {
        name.removeprefix("floor "): s for name, s in sources.items() if name.startswith("floor ")
    }
    bank = None if training is None else _side(training, "references", section, "training")
    if isinstance(bank, _Texts):
        raise ScoreError("training must be studies with a study_id each, not texts alone")
    return score_records(
        sources["predictions"],
        sources.get("references"),
        section=section,
        compare={name.removeprefix("compare "): sources[name] for name in named}
        if "compare" not in named
        else sources["compare"],
        floors=given_floors or (None if floors is None else Path(floors)),
        groups=groups,
        training=bank,
        values=None if values is None else _rows(values),
        judges=judges,
        progress=progress,
        **settings._asdict(),
    )


def _several(compare: Reports | None) -> dict[str, Reports]:
    """Return what is compared under "compare", or each of several under "compare NAME"."""
    if compare is None:
        return {}
    several = isinstance(compare, Mapping) and not all(
        isinstance(text, str) or text is None for text in compare.values()
    )
    if several:
        found: Mapping[str, Any] = cast(Mapping[str, Any], compare)
        return {f"compare {name}": given for name, given in found.items()}
    return {"compare": compare}


def _rows(values: Reports) -> Path | list[Record]:
    """Return a file of values, or its rows. Raises ScoreError."""
    if isinstance(values, str | os.PathLike):
        return Path(values)
    side = _read_form(values, "values", "value")
    if isinstance(side, _Texts | Path):
        raise ScoreError("values are a file or a table of study_id, name, value and better, not texts")
    return side


@dataclass(frozen=True)
class _Texts:
    """Texts without ids: what belongs together stands at the same place. `index` is that of a pandas column."""

    texts: list[Any]
    index: list[Any] | None = None

    def records(self, ids: Sequence[str], section: str) -> list[Record]:
        return [{"study_id": key, section: text} for key, text in zip(ids, self.texts, strict=True)]


_Side: TypeAlias = Path | list[Record] | _Texts
_OR_SEVERAL = {"references": " (or lists of them, where a study has several)"}


def _groups(
    given: Mapping[str, Hashable] | Sequence[Hashable] | None,
) -> Mapping[str, Hashable] | Sequence[Hashable] | None:
    """Who belongs together, of a list, a column or a mapping. Raises ScoreError for anything else."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ScoreError(f"groups are a list of patients, or {{study_id: patient}}, not {_kind(given)}")
    groups = given if isinstance(given, Mapping) else list(given)
    for patient in groups.values() if isinstance(groups, Mapping) else groups:
        if not isinstance(patient, Hashable):
            raise ScoreError(f"a patient of groups is a text or a number, not {_kind(patient)}")
    return groups


def _kind(given: object) -> str:
    return "None" if given is None else type(given).__name__


def _side(given: Reports, what: str, section: str, called: str | None = None) -> _Side:
    """Bring one side into one of three forms; records have the text under the section's name. `called` is what messages
    call it. Raises ScoreError."""
    try:
        side = _form(given, what, section)
    except ScoreError as error:
        if called and str(error).startswith(f"{what}: "):
            raise ScoreError(f"{called}: {str(error).removeprefix(f'{what}: ')}") from None
        raise
    if isinstance(side, Path):
        _check_side(_first_line(side), what, f"{side}: ")
        return side
    if isinstance(side, _Texts):
        return side
    _check_side(side[0], what)
    named: list[Record] = []
    for record in side:
        row = dict(record)
        column = next((name for name in COLUMNS[what] if name in row), None)
        if column is not None and section not in row:
            row[section] = row.pop(column)
        named.append(row)
    return named


def _form(given: Reports, what: str, section: str) -> _Side:
    """Return a file, records, or texts. Raises ScoreError for anything else, or for nothing."""
    side = _read_form(given, what, section)
    if not isinstance(side, Path) and not (side.texts if isinstance(side, _Texts) else side):
        raise ScoreError(f"there is not a single {what.removesuffix('s')}")
    return side


def _read_form(given: Reports, what: str, section: str) -> _Side:
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.is_dir():
            raise ScoreError(f"{what}: {path} is a folder; give a file")
        if not path.is_file():
            # it may be a report, which no message may show
            shown = f"{path} " if path.suffix.lower() in (".jsonl", ".csv") else "a single text "
            raise ScoreError(f"{what}: {shown}is not a file; give a file, or a list of texts")
        return path
    if isinstance(given, Prediction | Study):
        raise ScoreError(f"{what}: a single {type(given).__name__}; give a list, even for one")
    if hasattr(given, "read"):
        raise ScoreError(f"{what}: an open file; give its path")
    if isinstance(given, Mapping):
        if not all(
            isinstance(text, str) or text is None or _several_references(text, what)
            for text in given.values()
        ):
            raise ScoreError(f"{what}: as a mapping they are {{study_id: text}}{_OR_SEVERAL.get(what, '')}")
        return [{"study_id": str(key), section: text} for key, text in given.items()]
    if type(given).__name__ == "LazyFrame":
        lazy: Any = given
        given = lazy.collect()
    if hasattr(given, "columns") and hasattr(given, "to_dicts"):
        return [_plain_row(row) for row in given.to_dicts()]
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        rows = given.to_dict("records")
        index = getattr(given, "index", None)
        index = range(len(rows)) if index is None else index
        # pandas' own ids, where there is no column of ours
        return [_plain_row({"study_id": key, **row}) for key, row in zip(index, rows, strict=True)]
    if isinstance(given, set | frozenset):
        raise ScoreError(f"{what}: a set has no order, by which texts could be paired; give a list")
    if not isinstance(given, Iterable):
        raise ScoreError(
            f"{what}: {_kind(given)}; accepted are a list of texts, a column, a data frame, {{study_id: text}}, "
            "studies or predictions, or a file of them"
        )
    items = [_plain(item) for item in given]
    if all(isinstance(item, str) or item is None or _several_references(item, what) for item in items):
        index = getattr(given, "index", None)
        return _Texts(items, None if index is None or callable(index) else list(index))
    if all(isinstance(item, Prediction) for item in items):
        return [item.to_json() for item in items]
    if all(isinstance(item, Study) for item in items):
        if what == "predictions":
            raise ScoreError(f"these are studies, {SWAPPED}")
        return [study_to_json(item) for item in items]
    if all(isinstance(item, Mapping) for item in items):
        return [_plain_row(item) for item in items]
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise ScoreError(
        f"{what}: a list of {kinds}; accepted are texts{_OR_SEVERAL.get(what, '')}, or records, studies or "
        "predictions, not mixed"
    )


def _several_references(item: object, what: str) -> bool:
    """Tell whether this is one study's list of references."""
    return what == "references" and isinstance(item, list | tuple) and all(isinstance(t, str) for t in item)


def _sides_of_one(given: Reports, section: str) -> dict[str, _Side]:
    """Return the two sides of one table; of a file, which brings its own references, it is scored as it
    is."""
    rows = _form(given, "references", section)
    if isinstance(rows, Path):
        return {"predictions": rows}
    keys = set() if isinstance(rows, _Texts) else {key for row in rows for key in row}
    found = {what: next((n for n in names if n in keys), section) for what, names in COLUMNS.items()}
    if not keys.issuperset(found.values()) or len(set(found.values())) < 2 or isinstance(rows, _Texts):
        raise ScoreError(
            "only one side was given: give references and predictions, or a table with the columns `reference` and "
            f"`prediction` (one of them may be called {section!r})"
        )
    if section == "both":
        raise ScoreError(
            "section 'both' needs references and predictions of their own, with both sections each"
        )
    return {
        what: [
            {**{k: v for k, v in row.items() if k not in found.values()}, section: row.get(name)}
            for row in rows
        ]
        for what, name in found.items()
    }


def _paired(sides: dict[str, _Side], section: str) -> dict[str, Path | list[Record]]:
    """Give ids to what has none, by its order."""
    without = {name for name, side in sides.items() if isinstance(side, _Texts) or _no_ids(side)}
    if not without:
        return {name: side for name, side in sides.items() if not isinstance(side, _Texts)}
    if section == "both" and any(isinstance(side, _Texts) for side in sides.values()):
        raise ScoreError("section 'both' needs records that have findings and impression, not texts alone")
    first, *others = sorted(sides, key=lambda name: name in without)
    counts: dict[str, int] = {}
    for name, side in sides.items():
        if isinstance(side, Path):
            raise ScoreError(
                f"{', '.join(sorted(without))} have no ids, by which a file is matched; give {{study_id: text}}"
            )
        counts[name] = len(side.texts) if isinstance(side, _Texts) else len(side)
    for name in others:
        if counts[name] != counts[first]:
            raise ScoreError(
                f"{counts[first]} {first} but {counts[name]} {name}: without ids they are paired in order"
            )
    indexes = [side.index for side in sides.values() if isinstance(side, _Texts) and side.index is not None]
    if any(index != indexes[0] for index in indexes[1:]):
        raise ScoreError(
            "the columns have different indexes, so their order does not pair them; align them first"
        )
    ids = [str(key) for key in indexes[0]] if indexes else [str(i) for i in range(counts[first])]
    if len(set(ids)) < len(ids):
        ids = [str(i) for i in range(len(ids))]
    known = sides[first]
    if first not in without and isinstance(known, list):
        own = [str(row["study_id"]) for row in known]
        ids = own if len(set(own)) == len(own) else ids
    paired: dict[str, Path | list[Record]] = {}
    for name, side in sides.items():
        if isinstance(side, _Texts):
            paired[name] = side.records(ids, section)
        elif isinstance(side, list):
            paired[name] = [{**row, "study_id": key} for key, row in zip(ids, side, strict=True)]
    return paired


def _no_ids(side: _Side) -> bool:
    return isinstance(side, list) and all("study_id" not in row for row in side)


def _check_side(row: object, what: str, where: str = "") -> None:
    """Refuse a side that is the other one, as far as its first record tells. Raises ScoreError."""
    if not isinstance(row, Mapping):
        return
    found = side_of(row)
    if found and found != ("predictions" if what == "predictions" else "studies"):
        raise ScoreError(f"{where}these are {found}, {SWAPPED}")


def _first_line(path: Path) -> object:
    """Return the first record of a JSON Lines file; None if there is none, which scoring itself reports."""
    if path.suffix.lower() == ".csv":
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return None


def _plain_row(row: Mapping[Any, Any]) -> Record:
    """Return a row of a table as a record; `view` is that of the image, as in a CSV file."""
    record = {str(key): _plain(value) for key, value in row.items()}
    if record.get("view") and "images" not in record:
        record["images"] = [{"view": record.pop("view")}]
    return record


def _plain(value: Any) -> Any:
    """Return a cell without NumPy's and pandas' wrappings: NaN, NaT and NA become None."""
    if value is None or isinstance(value, str | bool | int | list | Mapping | Prediction | Study):
        return value
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    try:
        return value if value == value else None
    except TypeError:
        # pandas.NA has no truth
        return None
    except ValueError:
        # an array
        return value
