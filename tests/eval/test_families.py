"""One list of scores: what a package adds appears everywhere, and what is broken costs itself alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.scores import families
from eval.scores.family import Family, Reports
from eval.scores.sheet import Sheet

ROOT = Path(__file__).parents[2]
TOY = """
import numpy as np

from eval.scores.family import Family


def marks(reports):
    return np.array([float(text.count("!")) for text in reports.predictions])


FAMILY = Family.of_values("exclamations", "Exclamation marks", marks, better="lower", headline=True, version=1)
"""


def install(folder: Path, name: str, points: str, **files: str) -> dict[str, str]:
    """Lay a package of one module beside its metadata, as pip does; returns the environment that finds it."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[cxr.metrics]\n{points}\n")
    for module, text in files.items():
        (folder / f"{module}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "CXR_WEIGHTS": str(folder / "none")}


def scored(folder: Path, env: dict[str, str]) -> tuple[str, dict, str]:
    """Score by the command line: what it prints, the JSON, the page."""
    rows = [("a", "Clear.", "Clear!"), ("b", "Small effusion.", "Effusion!!"), ("c", "Edema.", "Edema.")] * 5
    for side, place in (("studies", 1), ("predictions", 2)):
        lines = [json.dumps({"study_id": f"{r[0]}{i}", "findings": r[place]}) for i, r in enumerate(rows)]
        (folder / f"{side}.jsonl").write_text("\n".join(lines))
    command = [
        sys.executable, "-m", "cxr", "score", "predictions.jsonl", "studies.jsonl", "--out",
        "scores.json", "--html", "scores.html", "--compare", "studies.jsonl",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "scores.json").read_text()), (folder / "scores.html").read_text()


def test_a_metric_of_one_file_appears_everywhere(tmp_path):
    env = install(tmp_path, "toy", 'exclamations = toy:FAMILY\nlost = "toy:ABSENT"', toy=TOY)
    table, found, page = scored(tmp_path, env)
    of = {score["name"]: score for score in found["scores"]}
    assert of["exclamations"]["value"] == pytest.approx(1) and of["exclamations"]["better"] == "lower"
    assert of["exclamations"]["signature"] == "exclamations|version:1"
    # in the first table and in its own, beside baselines, and on the page
    assert table.count("Exclamation marks") >= 3 and "Exclamation marks (lower is better)" in page
    assert any(s["name"] == "exclamations" for s in found["floors"][0]["scores"])
    difference = {d["name"]: d for d in found["comparisons"][0]["differences"]}["exclamations"]
    assert difference["difference"] == pytest.approx(1) and difference["p_holm"] is not None
    # a broken one is told of, and costs itself alone
    assert "lost" in {m["name"] for m in found["not_computed"]}
    program = (
        "import cxr; m = cxr.metric('exclamations'); "
        "print(m.per_sample(['a', 'b'], ['x!', 'y']), m(completions=['x!'], findings=['a']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout == "[1. 0.] [-1.0]\n", done.stderr


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name, family):
        self.name, self.value, self.dist, self._family = name, f"package:{name}", None, family

    def load(self):
        """Give the family, or raise it."""
        if isinstance(self._family, Exception):
            raise self._family
        return self._family


@pytest.fixture
def points(monkeypatch):
    """Let only these entry points exist."""
    given = []
    monkeypatch.setattr(families.metadata, "entry_points", lambda group: given)
    families._found.cache_clear()
    yield given
    families._found.cache_clear()


def one(name, values=lambda reports: [1.0] * len(reports)):
    return Family.of_values(name, name, values)


def test_families_of_others_that_cannot_be_used_are_named(points):
    points += [
        Point("broken", ImportError("no torch")), Point("number", 5), Point("thief", one("bleu-4")),
        Point("first", one("twice")), Point("second", one("twice")),
    ]  # fmt: skip
    assert families.families()[len(families.OURS) :] == (points[3]._family,)
    why = {missing.name: missing.reason for missing in families.unusable()}
    assert "cannot be imported (ImportError: no torch)" in why["broken"]
    assert "is int, not" in why["number"] and "those of cxr do" in why["thief"]
    assert "as those of package:first do" in why["second"]


def test_a_family_that_fails_costs_itself_alone(points):
    def broken(reports: Reports):
        raise KeyError("study")

    points += [Point("a", one("bad", broken)), Point("b", one("good"))]
    sheet, failed = families.sheet_of(Reports(["Clear."], ["Clear."], [{}]))
    assert "good" in sheet.measures and "bad" not in sheet.measures and "rouge-l/coco" not in sheet.measures
    assert [(m.name, m.reason) for m in failed] == [("bad", "it failed on these reports (KeyError: 'study')")]


def test_a_family_makes_its_own_keys_alone():
    family = Family("mine", "Mine", lambda sheet, reports: sheet.add_mean("yours", "yours", [1.0]))
    with pytest.raises(ValueError, match="the family 'mine' made the score 'yours'"):
        family.put(Sheet(1), Reports(["a"], ["b"], [{}]))


@pytest.mark.parametrize("of", [lambda sums: 1 / 0, lambda sums: sums, lambda sums: 1.0])
def test_functions_of_sums_that_fail_cost_their_family_alone(points, of):
    points.append(Point("p", Family.of_sums("bad", "Bad", lambda reports: [[1.0]] * len(reports), of)))
    sheet, failed = families.sheet_of(Reports(["Clear."] * 2, ["Clear."] * 2, [{}] * 2))
    assert "bad" not in sheet.measures and [m.name for m in failed] == ["bad"]


def test_a_package_that_ends_the_program_costs_itself_alone(points):
    def end(reports):
        raise SystemExit(5)

    points += [Point("a", one("ends", end)), Point("b", SystemExit(3))]
    _, failed = families.sheet_of(Reports(["Clear."], ["Clear."], [{}]))
    assert [m.name for m in failed] == ["ends"] and [m.name for m in families.unusable()] == ["b"]


def scored_with(points, family, **more):
    """Score seven studies, of both sexes, beside their own references."""
    from eval import score

    points.append(Point("p", family))
    families._found.cache_clear()
    texts = [
        "Lungs are clear.",
        "Small left effusion.",
        "Edema.",
        "No pneumothorax.",
        "Pneumonia.",
        "Clear.",
        "COPD.",
    ]
    studies = [{"study_id": f"s{i}", "sex": "MF"[i % 2], "findings": text} for i, text in enumerate(texts)]
    said = [{"study_id": f"s{i}", "findings": texts[i * 3 % 7]} for i in range(7)]
    return score(said, studies, compare=studies, clinical_models="none", **more)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e308, 1j])
def test_numbers_that_are_not_finite_are_no_scores(points, recwarn, value):
    family = Family.of_values("bad", "Bad", lambda reports: [value] * 2 + [1.0] * 5, headline=True)
    found = scored_with(points, family)
    assert "bad" not in found and "bad" in {m.name for m in found.not_computed}
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_a_study_without_a_value_is_left_out_without_a_warning(points, recwarn):
    import numpy as np

    family = Family.of_values(
        "logs", "Logs", lambda reports: np.log(np.arange(7.0)) * 0 + np.arange(7.0), headline=True
    )
    assert scored_with(points, family)["logs"].n == 6
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("where", ["without a patient", "a subgroup", "permutations", "the end"])
def test_a_family_that_fails_later_costs_itself_alone(points, where):
    import numpy as np

    def of(sums):
        n = np.max(sums[..., 1])
        if (where == "without a patient" and n == 6) or (where == "a subgroup" and n < 6):
            raise ZeroDivisionError("few")
        if where == "permutations" and sums.ndim == 2 and len(sums) > 7:
            raise ZeroDivisionError("many")
        if where == "the end" and sums.ndim == 2 and len(sums) > 7:
            raise SystemExit(3)
        return sums[..., 0] / sums[..., 1]

    family = Family.of_sums(
        "late", "Late", lambda reports: [[float(i), 1.0] for i in range(7)], of, headline=True
    )
    found = scored_with(points, family)
    assert "late" not in found and "late" in {m.name for m in found.not_computed}
    assert all("late" not in group.scores for group in found.subgroups)
    (compared,) = found.comparisons
    assert "late" not in {d.name for d in compared.differences} and len(compared.differences) == 4
    assert all(d.p == d.p for d in compared.differences)


def test_a_family_cannot_change_what_others_see(points):
    def spoil(reports: Reports):
        reports.predictions.clear()
        reports.references[0] = "Edema."
        reports.studies[0]["findings"] = ""
        for matrix_N14, _ in reports.labels.values():
            matrix_N14[:] = 1
        return [1.0] * 7

    def empty(sheet: Sheet, reports: Reports):
        sheet.measures.clear()

    expected = scored_with(points, one("quiet", lambda reports: [1.0] * 7))
    for family in (one("spoils", spoil), Family("empties", "E", empty)):
        points.clear()
        found = scored_with(points, family)
        assert found.conditions == expected.conditions and found.texts == expected.texts
        own = {k: v.to_json() for k, v in expected.scores.items() if k != "quiet"}
        assert {k: v.to_json() for k, v in found.scores.items() if k != "spoils"} == own
