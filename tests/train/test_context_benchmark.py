"""benchmarks/context.py: its table, on made-up reports of which it is known what each model got right."""

import pytest

from benchmarks import context

CLEAR = "The lungs are clear."
FOUND = {
    "first": "Consolidation in the right lower lung consistent with pneumonia.",
    "later": "Small left pleural effusion, unchanged from prior.",
}


@pytest.fixture(scope="module")
def studies():
    """30 patients, each with a first study with a lateral film and a later one with the first as its prior."""
    rows = []
    for n in range(30):
        for which in ("first", "later"):
            row = {"study_id": f"{n}-{which}", "patient_id": str(n), "findings": FOUND[which]}
            row["images"] = [{"path": f"{n}-{which}.png", "view": "PA"}]
            if which == "first":
                row["images"].append({"path": f"{n}-lateral.png", "view": "lateral"})
            else:
                row["prior"] = {"images": [], "findings": FOUND["first"]}
            rows.append(row)
    return rows


def predictions(studies, write):
    return [{"study_id": s["study_id"], "findings": write(s)} for s in studies]


def test_the_table_tells_what_rose_and_what_did_not(studies):
    first = lambda s: "prior" not in s  # noqa: E731
    made = {
        # compares in half of its first studies, and sees nothing but a consolidation in every other one
        "frontal": predictions(
            studies,
            lambda s: (
                (FOUND["later"] if int(s["patient_id"]) % 2 else "Consolidation.") if first(s) else CLEAR
            ),
        ),
        "indication": predictions(studies, lambda s: s["findings"]),
        "prior": predictions(studies, lambda s: s["findings"]),
        "prior_image": predictions(studies, lambda s: CLEAR),
        "prior/exchanged": predictions([s for s in studies if "prior" in s][:20], lambda s: CLEAR),
        "lateral": predictions(studies, lambda s: "Consolidation."),
    }
    rows = {(r["given"], r["score"]): r for r in context.compare(studies, made)}
    assert len(rows) == len(context.CLAIMS)

    row = rows["indication", "pneumonia-f1"]
    assert (row["without"], row["with"], row["studies"], row["patients"]) == (0, 1, 60, 30)
    assert row["interval"] == [1, 1] and row["holds"]

    row = rows["prior", "temporal-f1"]
    assert (row["without"], row["with"], row["studies"]) == (0, 1, 30) and row["holds"]
    assert (row["exchanged"]["with"], row["exchanged"]["exchanged"], row["exchanged"]["patients"]) == (
        1,
        0,
        20,
    )
    row = rows["prior", "hallucinated-prior"]
    assert (row["without"], row["with"], row["difference"]) == (0.5, 0, -0.5)
    assert -0.75 < row["interval"][0] < -0.5 < row["interval"][1] < -0.25 and row["holds"]

    row = rows["prior_image", "temporal-f1"]  # nobody is right: no difference, and none is claimed
    assert row["difference"] == 0 and not row["holds"]

    # of 30 consolidations, 15 found and 15 effusions invented: 2 * 15 / (30 + 30); then all found, none invented
    row = rows["lateral", "hidden-f1"]
    assert (row["without"], row["with"], row["studies"]) == (0.5, 1, 30) and row["holds"]

    lines = context.table(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(context.CLAIMS)
    assert lines[2].endswith("| 0.000 | 1.000 | +1.000 [+1.000, +1.000] | yes |  |")
    assert lines[3].endswith("| yes | 0.000 |") and lines[5].endswith("| no |  |")


def test_what_is_exchanged_is_another_patients_and_nothing_else_changes(studies):
    studies = [{**s, "indication": f"I{s['study_id']}"} for s in studies[:4] + studies[5:]]
    studies = [{**s, "prior": {"findings": s["patient_id"]}} if "prior" in s else s for s in studies]
    own = {s["study_id"]: s for s in studies}
    for given, count in (("indication", len(studies)), ("prior", 30), ("prior_image", 30), ("lateral", 29)):
        rows = context.exchanged(studies, given)
        assert len(rows) == count
        for row in rows:
            before = own[row["study_id"]]
            if given == "lateral":
                assert row["images"][0] == before["images"][0] and row["images"][1] not in before["images"]
            elif given == "indication":
                assert row["indication"][1:].split("-")[0] != row["patient_id"]
            else:
                assert row["prior"]["findings"] != row["patient_id"]
            assert row.keys() == before.keys() and row["findings"] == before["findings"]


def test_models_differ_in_exactly_one_thing():
    plain = {**context.NOTHING, **context.MODELS["frontal"]}
    for name, given in context.MODELS.items():
        differing = {k for k, v in {**context.NOTHING, **given}.items() if v != plain[k]}
        assert len(differing) == (name != "frontal")
    assert {c.given for c in context.CLAIMS} == set(context.MODELS) - {"frontal"}
