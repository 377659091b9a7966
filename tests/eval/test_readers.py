"""Reports in the forms that others write, and mistakes that would score something else."""

import json

import pytest

from eval import ScoreError, metric, score
from eval.scores.inputs import align, headed, patients
from eval.scores.readers import read_side

TEXTS = {"a": "The lungs are clear.", "b": "Small left effusion.", "c": "Right rib fracture, old."}
SAID = {"a": "Clear lungs.", "b": "Left effusion, small.", "c": "Rib fracture."}


def aligned(predictions, references=None):
    found = align(predictions, references)
    return dict(zip(found.study_ids, zip(found.references, found.predictions, strict=True), strict=True))


def pairs(ids=TEXTS):
    return {str(k): (TEXTS[t], SAID[t]) for k, t in zip(ids, TEXTS, strict=True)}


def csv_of(path, head, rows):
    path.write_text("\n".join([head, *(",".join(f'"{cell}"' for cell in row) for row in rows)]))
    return path


@pytest.mark.parametrize(
    "head", ["id,generated,ground_truth", "study,prediction,reference", "case_id,model_prediction,gt_report"]
)
def test_one_table_of_others(tmp_path, head):
    file = csv_of(tmp_path / "x.csv", head, [(k, SAID[k], TEXTS[k]) for k in TEXTS])
    assert aligned(file) == pairs()
    (said,) = align(file).said
    assert all(name in said for name in head.split(",") if name != "reference")


def test_findings_beside_generated_are_the_reference(tmp_path):
    """Scored against themselves they would be perfect."""
    file = csv_of(tmp_path / "x.csv", "id,findings,generated", [(k, TEXTS[k], SAID[k]) for k in TEXTS])
    assert aligned(file) == pairs()


def test_a_pair_of_files_of_cxr_report_metric(tmp_path):
    sides = [
        csv_of(tmp_path / f"{i}.csv", "study_id,report", side.items()) for i, side in enumerate((SAID, TEXTS))
    ]
    assert aligned(*sides) == pairs()


def test_r2gens_pair_of_files_without_a_heading(tmp_path):
    sides = []
    for name, side in (("res", SAID), ("gts", TEXTS)):
        sides.append(tmp_path / f"{name}.csv")
        sides[-1].write_text("".join(f'"{text}"\n' for text in side.values()))
    assert aligned(*sides) == pairs("123")
    assert "paired by order" in " ".join(align(*sides).said)
    sides[0].write_text('"Clear."\n')
    with pytest.raises(ScoreError, match="1 predictions but 3 references: without ids"):
        align(*sides)
    with pytest.raises(ScoreError, match="the predictions have no ids, and the references have"):
        align(sides[0], [{"study_id": "a", "findings": "Clear."}])


def test_rexranks_object_of_studies(tmp_path):
    """What `cxr rexrank` writes: the leaderboard's file with a prediction in every study."""
    studies = {
        k: {"image_path": ["x.png"], "context": "Age:60.", "report": TEXTS[k], "model_prediction": SAID[k]}
        for k in TEXTS
    }
    file = tmp_path / "out.json"
    file.write_text(json.dumps(studies))
    assert aligned(file, file) == aligned(file) == pairs()
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(SAID))
    assert aligned(texts, [{"study_id": k, "findings": t} for k, t in TEXTS.items()]) == pairs()


def test_json_that_is_no_reports(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"train": [1], "test": []}')
    with pytest.raises(ScoreError, match="under 'train' is list"):
        read_side(file, "prediction")
    file.write_text('{"study_id": "a", "findings": "Clear."}\n{"study_id": "b", "findings": "Clear."}\n')
    assert [r["study_id"] for r in read_side(file, "prediction").records] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "section", "expected"),
    [
        ("Findings: Clear lungs. Impression: Normal.", "findings", "Clear lungs."),
        ("FINDINGS: Clear lungs.\nIMPRESSION: Normal.", "impression", "Normal."),
        ("Findings: None. Impression: No acute disease.", "findings", None),
        ("Findings: None Impression: No acute disease.", "impression", "No acute disease."),
        ("Impression: Normal.", "findings", None),
        ("Lungs are clear. Impression of the left hilum: normal.", "findings", "Lungs are clear. Impression of the "
         "left hilum: normal."),
    ],
)  # fmt: skip
def test_headings_say_which_text_counts(text, section, expected):
    from eval.scores.inputs import SECTIONS

    read, wrong = SECTIONS[section].read({section: text})
    assert (read or None) == expected and bool(wrong) == (expected is None)


def test_headings_are_counted_and_both_sections_are_found_below_them():
    text = "Findings: Clear lungs. Impression: Normal."
    found = score(
        [{"study_id": "a", "findings": text}], [{"study_id": "a", "findings": "Clear lungs."}],
        intervals=False, clinical_models="none",
    )  # fmt: skip
    assert found["rouge-l/coco"].value == 1 and found.problems == {"prediction with headings": ["a"]}
    both = score(
        [{"study_id": "a", "findings": text}],
        [{"study_id": "a", "findings": "Clear lungs.", "impression": "Normal."}],
        section="both", intervals=False, clinical_models="none",
    )  # fmt: skip
    assert both["rouge-l/coco"].value == 1
    assert (
        headed("Findings: a. Findings: b.") == {"findings": "a. b."}
        and headed(None) == headed("Clear.") == {}
    )


def test_swapped_sides_are_refused():
    studies = [{"study_id": k, "findings": t, "images": [{"path": "x.dcm"}]} for k, t in TEXTS.items()]
    predictions = [{"study_id": k, "findings": t, "model": "mini", "decoding": {}} for k, t in SAID.items()]
    assert aligned(predictions, studies) == pairs()
    with pytest.raises(
        ScoreError, match="these are studies, where predictions are meant: the two sides are swapped"
    ):
        align(studies, predictions)
    with pytest.raises(ScoreError, match="these are predictions, where references are meant"):
        align(predictions, predictions)


def test_several_references_a_study():
    """By hand: overlap takes the best of all, labels the closest."""
    references = [{"study_id": "a", "findings": ["Small effusion.", "The lungs are clear.", "None"]},
                  {"study_id": "b", "findings": "Rib fracture."}]  # fmt: skip
    predictions = [
        {"study_id": "a", "findings": "The lungs are clear."},
        {"study_id": "b", "findings": "Fracture."},
    ]
    found = score(predictions, references, intervals=False, clinical_models="none")
    assert found["label-f1/14/micro/neg"].value == 1
    alone = metric("rouge-l/coco")
    expected = [1.0, alone.per_sample(["Rib fracture."], ["Fracture."])[0]]
    assert found["rouge-l/coco"].value == pytest.approx(sum(expected) / 2)
    assert (
        "refs:all" in found["bleu-4/coco"].signature
        and "refs:closest" in found["label-f1/Edema/neg"].signature
    )
    several = [["Small effusion.", "The lungs are clear."], ["Rib fracture."]]
    assert list(alone.per_sample(several, ["The lungs are clear.", "Fracture."])) == pytest.approx(expected)


def test_a_metric_refuses_what_is_no_reference():
    """A text in the place of a list would be scored letter by letter, and a missing one as an empty report."""
    found = metric("rouge-l/coco")
    assert found.compute(predictions=["No effusion"], references=[["No effusion", "Clear"]]) == {
        "rouge-l/coco": 1.0
    }
    for wrong in (None, float("nan"), 5, []):
        with pytest.raises(ScoreError, match="reference"):
            found.compute(predictions=["x"], references=[wrong])
    with pytest.raises(ScoreError, match="one text, where a list of texts is meant"):
        found.compute(predictions="no effusion", references="no effusion")


def test_a_model_column_does_not_make_the_reference_the_prediction(tmp_path):
    rows = [(k, "theirs", SAID[k], TEXTS[k]) for k in TEXTS]
    file = csv_of(tmp_path / "x.csv", "study_id,model,generated,findings", rows)
    assert aligned(file) == pairs()


@pytest.mark.parametrize(
    "head", ["Study ID,Ground Truth,Generated Report", "ID;gt;prediction", "studyid\treference\tgenerated"]
)
def test_names_as_spreadsheets_write_them(tmp_path, head):
    mark = next(d for d in ",;\t" if d in head)
    rows = [mark.join((k, f'"{TEXTS[k]}"', f'"{SAID[k]}"')) for k in TEXTS]
    (tmp_path / "x.csv").write_text("\n".join([head, *rows]))
    assert aligned(tmp_path / "x.csv") == pairs()


def test_what_may_be_an_id_is_not_paired_by_order(tmp_path):
    """Paired by order, files in other orders would score other studies."""
    for name in ("Unnamed: 0", "name of the film"):
        sides = [
            csv_of(tmp_path / f"{i}.csv", f"{name},report", side) for i, side in
            enumerate((list(SAID.items()), list(TEXTS.items())[::-1]))
        ]  # fmt: skip
        with pytest.raises(ScoreError, match=f"no column holds an id .* and '{name}' may be one"):
            align(*sides)


def test_a_heading_of_another_name_is_asked_about(tmp_path):
    for heading in ("caption", "0"):
        (tmp_path / "x.csv").write_text(f"{heading}\nClear.\n")
        with pytest.raises(ScoreError, match=f"begins with '{heading}': is that a heading or a report"):
            read_side(tmp_path / "x.csv", "prediction")
    (tmp_path / "x.csv").write_text("Findings\nClear.\n")
    assert [r["findings"] for r in read_side(tmp_path / "x.csv", "prediction").records] == ["Clear."]


def test_two_references_in_a_table_are_asked_about(tmp_path):
    file = csv_of(tmp_path / "x.csv", "study_id,prediction,gt,ground_truth", [("a", "x.", "y.", "z.")])
    with pytest.raises(ScoreError, match="which column holds the references, 'ground_truth' or 'gt'"):
        read_side(file, "prediction")


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        (
            "EXAM: CXR. INDICATION: pneumothorax. FINDINGS: The lungs are clear. IMPRESSION: Normal.",
            "The lungs are clear.",
        ),
        ("FINAL REPORT\nEXAMINATION: CXR\nFINDINGS:\nClear lungs.\nIMPRESSION:\nNormal.", "Clear lungs."),
        ("**Findings:** Clear lungs.\n**Impression:** Normal.", "Clear lungs."),
        (
            "Findings: Effusion. Prior findings: pneumothorax. Impression: x",
            "Effusion. Prior findings: pneumothorax.",
        ),
        ("Findings: A. My impression: B.", "A. My impression: B."),
    ],
)
def test_headings_of_whole_reports(text, findings):
    assert headed(text)["findings"] == findings


def test_texts_without_ids_are_compared_by_their_order(tmp_path):
    sides = []
    for name, side in (("p", SAID), ("g", TEXTS), ("q", TEXTS)):
        sides.append(csv_of(tmp_path / f"{name}.csv", "report", [(t,) for t in side.values()]))
    found = score(sides[0], sides[1], compare=sides[2], intervals=False, clinical_models="none")
    assert found.comparisons[0].scores["rouge-l/coco"].value == 1 > found["rouge-l/coco"].value


def test_of_several_references_the_closest_is_shown_and_given_labels_count():
    references = [
        {
            "study_id": "a",
            "findings": ["Small left effusion.", "The lungs are clear."],
            "labels": {"Edema": 1},
        },
        {"study_id": "b", "findings": "Small left effusion.", "labels": {"Edema": 1}},
    ]
    said = [
        {"study_id": "a", "findings": "The lungs are clear."},
        {"study_id": "b", "findings": "Small left effusion."},
    ]
    found = score(said, references, intervals=False, clinical_models="none")
    assert found.texts["a"][0] == "The lungs are clear." and found.studies[0]["rouge_l"] == 1
    given = score(said, references, reference_labels="study", intervals=False, clinical_models="none")
    assert given["label-f1/14/micro/neg"].value == 0


def test_swapped_sides_are_told_by_what_studies_have():
    studies = [{"study_id": str(i), "findings": "No effusion.", "images": ["a.png"]} for i in range(3)]
    plain = [{"study_id": str(i), "findings": "No effusion."} for i in range(3)]
    with pytest.raises(ScoreError, match=r"the predictions have 'images'.* the two sides are swapped"):
        score(studies, plain, clinical_models="none")
    told = [{**row, "age": 50, "indication": "Cough"} for row in plain]
    assert "are the two sides swapped" in " ".join(score(told, plain, clinical_models="none").said)
    assert not score(plain, told, clinical_models="none").said


def test_references_that_predictions_bring_give_way_to_those_of_the_second_file():
    brought = [{"id": str(i), "generated": "Edema.", "ground_truth": "Edema."} for i in range(3)]
    plain = [{"study_id": str(i), "findings": "No effusion."} for i in range(3)]
    scores = score(brought, plain, clinical_models="none")
    assert scores["rouge-l/coco"].value == 0
    assert any("that the predictions bring are not used" in said for said in scores.said)


def test_several_references_as_python_has_them():
    import cxr

    lists = cxr.score(
        [["No effusion.", "No pleural effusion."], ["Edema."]], ["No pleural effusion.", "Edema."]
    )
    named = cxr.score(
        {"a": ["No effusion.", "No pleural effusion."], "b": "Edema."},
        {"a": "No pleural effusion.", "b": "Edema."},
    )
    for scores in (lists, named):
        assert scores["rouge-l/coco"].value == 1
        assert set(scores) == set(scores.keys()) and "rouge-l/coco" in scores
    with pytest.raises(ScoreError, match="a list of list"):
        cxr.score(["No effusion."], [["No effusion."]])


def lines_of(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("head", ["", "report\n"])
def test_a_blank_line_between_reports_is_an_empty_report(tmp_path, head):
    """Skipped, it would pair every later report with the next study's; a blank at the end of a file is none."""
    gts, res = tmp_path / "gts.csv", tmp_path / "res.csv"
    gts.write_text(f"{head}Edema.\nSmall effusion.\nRib fracture.\n\n")
    res.write_text(f"{head}Edema.\n\nRib fracture.\n")
    found = align(res, gts)
    assert found.references == ["Edema.", "Small effusion.", "Rib fracture."]
    assert found.predictions == ["Edema.", "", "Rib fracture."]
    assert found.problems == {"empty prediction": ["2"]}
    swapped = align(gts, res)
    assert swapped.predictions == ["Edema.", "Rib fracture."] and swapped.study_ids == ["1", "3"]
    assert swapped.problems == {"reference without findings": ["2"]}


def test_a_first_report_that_is_empty_and_blanks_of_tables(tmp_path):
    (tmp_path / "r.csv").write_text("\r\nEdema.\r\n")
    assert [r["findings"] for r in read_side(tmp_path / "r.csv", "prediction").records] == [None, "Edema."]
    for first in ("\n\n", ""):
        # Above a heading, and in a table of several columns, blank lines are only blank.
        (tmp_path / "h.csv").write_text(f"{first}report\nEdema.\n")
        (tmp_path / "t.csv").write_text(f"{first}study_id,report\n\na,Edema.\n\nb,Clear.\n")
        assert len(read_side(tmp_path / "h.csv", "prediction").records) == 1
        assert [r["study_id"] for r in read_side(tmp_path / "t.csv", "prediction").records] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Indication: Evaluate for pneumonia.\nFindings: Clear.\nImpression: Edema.",
         {"findings": "Clear.", "impression": "Edema."}),
        ("Technique: AP. Comparison: None. Findings: edema", {"findings": "edema"}),
        ("Clinical history: cough.\nFindings: Clear.", {"findings": "Clear."}),
        ("Lungs clear. Impression: Edema.", {"findings": "Lungs clear.", "impression": "Edema."}),
        ("LUNGS: clear. HEART: normal. IMPRESSION: Edema.",
         {"findings": "LUNGS: clear. HEART: normal.", "impression": "Edema."}),
        ("INDICATION: Cough. IMPRESSION: Edema.", {"impression": "Edema."}),
        ("Indication: Cough. Comparison: None. Impression: Edema.", {"impression": "Edema."}),
        ("Comparison: None. Lungs clear. Impression: Edema.", {"findings": "Lungs clear.", "impression": "Edema."}),
        ("EXAM: AP\nchest.\n\nClear.\n\nIMPRESSION: Edema.", {"findings": "Clear.", "impression": "Edema."}),
        ("EXAM: AP\n\nHISTORY: Cough.\n\nIMPRESSION: Edema.", {"impression": "Edema."}),
        ("FINDINGS - Clear. IMPRESSION - Edema.", {"findings": "Clear.", "impression": "Edema."}),
        # words in a sentence are no headings
        ("The findings: small effusion.", {}),
        ("Compared with prior findings: no change. The impression: edema.", {}),
        ("Lungs clear. My impression: edema.", {}),
        ("No change. findings - as before.", {}),
        ("Left-sided findings-related pain: none.", {}),
    ],
)  # fmt: skip
def test_headings_of_normal_case_and_without_one(text, expected):
    assert headed(text) == expected


def test_blanks_around_ids_do_not_count(tmp_path):
    said = [{"study_id": k, "findings": "x."} for k in (" 1", "2 ", "001")]
    found = align(said, [{"study_id": k, "findings": "y."} for k in ("1", 2, "3 ")])
    assert found.study_ids == ["1", "2", "3"] and found.predictions == ["x.", "x.", ""]
    assert found.problems == {"no prediction": ["3"], "prediction without reference": ["001"]}
    with pytest.raises(ScoreError, match="needs a 'study_id'"):
        align([{"study_id": " ", "findings": "x."}], said)


def test_a_line_of_another_key_has_its_own_text(tmp_path):
    """The columns of a file are not all of its lines; no prediction becomes a reference."""
    said = lines_of(
        tmp_path / "p.jsonl",
        {"study_id": "a", "findings": "Edema."},
        {"study_id": "b", "prediction": "Small effusion."},
        {"study_id": "c", "generated": "Rib fracture."},
        {"study_id": "d", "Report": "Clear."},
    )
    loaded = read_side(said, "prediction")
    assert [r["findings"] for r in loaded.records] == ["Edema.", "Small effusion.", "Rib fracture.", "Clear."]
    assert not loaded.brings and "'prediction' (1 of 4 rows)" in loaded.said and "'Report'" in loaded.said
    with pytest.raises(ScoreError, match="there are no references"):
        align(said)
    references = lines_of(
        tmp_path / "r.jsonl",
        {"study_id": "a", "findings": "Edema."},
        {"study_id": "b", "ground_truth": "Small effusion."},
    )
    assert align(said, references).references == ["Edema.", "Small effusion."]
    assert "'ground_truth' (1 of 2 rows)" in " ".join(align(said, references).said)


def test_a_line_without_its_prediction_does_not_get_the_reference(tmp_path):
    file = lines_of(
        tmp_path / "x.jsonl",
        {"id": "a", "findings": "Edema.", "generated": "Clear."},
        {"id": "b", "findings": "Small effusion."},
    )
    assert aligned(file) == {"a": ("Edema.", "Clear."), "b": ("Small effusion.", "")}
    # A short row of a table lacks the cell, not the column.
    (tmp_path / "x.csv").write_text("id,findings,generated\na,Edema.,Clear.\nb,Small effusion.\n")
    assert aligned(tmp_path / "x.csv") == aligned(file)


def test_columns_that_are_spelt_alike_are_asked_about(tmp_path):
    (tmp_path / "x.csv").write_text("study_id,Findings,FINDINGS\na,Edema.,Clear.\n")
    with pytest.raises(ScoreError, match="which column holds 'findings', 'Findings' or 'FINDINGS'"):
        read_side(tmp_path / "x.csv", "prediction")


def test_a_patient_without_a_name_is_no_patient(tmp_path):
    """By default of pandas a missing name is written as "nan": all of them would be one patient."""
    names = ["nan", "None", "", "NaN ", "p1", " p1", "<NA>"]
    file = tmp_path / "r.csv"
    file.write_text("study_id,patient_id,findings\n" + "".join(f"{i},{n},x.\n" for i, n in enumerate(names)))
    found = patients(align([{"study_id": "0", "findings": "x."}], file), None)
    assert found == [("study", str(i)) for i in range(4)] + ["p1", "p1", ("study", "6")]


def test_age_and_sex_of_rexranks_context_make_subgroups(tmp_path):
    studies = {
        str(i): {"context": f"Age:{age}.Gender:{sex}.Indication: Cough.", "report": "Edema.", "model_prediction": "x."}
        for i, (age, sex) in enumerate([("60-70", "F"), ("20-30", "M"), ("N/A", "M")])
    }  # fmt: skip
    file = tmp_path / "out.json"
    file.write_text(json.dumps(studies))
    found = score(file, clinical_models="none")
    assert {(g.attribute, g.value): g.n for g in found.subgroups} == {
        ("sex", "F"): 1, ("sex", "M"): 2, ("age", "18 to 39"): 1, ("age", "65 to 79"): 1,
    }  # fmt: skip
    plain = [{"study_id": str(i), "findings": "Edema."} for i in range(3)]
    assert "swapped" not in " ".join(align(file, plain).said)
