"""Tables: every column goes somewhere, and the command says where."""

from __future__ import annotations

import json

import pytest

from cxr.cli.main import main
from encoder.errors import UserError
from train.datasets.folder import image_paths
from train.datasets.labelled import load as load_labelled
from train.datasets.table import load_table, read_table
from vlm.study import Image, Study, StudyError, load_studies, study_to_json


def table(folder, text, name="t.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_usual_names_and_labels_and_the_rest(tmp_path):
    path = table(
        tmp_path,
        "PID,Filename,View Position,Gender,Age,Reason,Report,Split,Pleural_Effusion,edema,Site,note\n"
        "p1,a.png,PA,f,63,Cough,Clear.,val,0,1.0,north,\n"
        "p2,b.png,LL,M,045Y,,Edema.,train,-1,,south,x\n",
    )
    found = read_table(path)
    assert found.studies == [
        Study(
            "a.png", "p1", "validate", [Image("a.png", "PA")], "Cough", age=63, sex="F", findings="Clear.",
            labels={"Pleural Effusion": 0, "Edema": 1}, extra={"Site": "north"},
        ),
        Study(
            "b.png", "p2", "train", [Image("b.png", "lateral")], age=45, sex="M", findings="Edema.",
            labels={"Pleural Effusion": -1}, extra={"Site": "south", "note": "x"},
        ),
    ]  # fmt: skip
    assert found.columns == {
        "PID": "patient_id", "Filename": "image", "View Position": "view", "Gender": "sex", "Age": "age",
        "Reason": "indication", "Report": "findings", "Split": "split",
        "Pleural_Effusion": "label Pleural Effusion", "edema": "label Edema",
        "Site": "extra key 'Site' of the study", "note": "extra key 'note' of the study",
    }  # fmt: skip
    assert found.notes == []


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("report", "findings"), ("Report Text", "findings"), ("pid", "patient_id"), ("patient", "patient_id"),
        ("subject_id", "patient_id"), ("path", "image"), ("image", "image"), ("FileName", "image"),
        ("gender", "sex"), ("PatientSex", "sex"), ("PatientAge", "age"), ("ViewPosition", "view"),
        ("view-position", "view"), ("clinical history", "indication"), ("conclusion", "impression"),
    ],
)  # fmt: skip
def test_names(tmp_path, column, field):
    value = {"age": "50", "sex": "F", "view": "PA"}.get(field, "x")
    found = read_table(table(tmp_path, f"study_id,{column}\ns,{value}\n"))
    assert found.columns == {"study_id": "study_id", column: field}


def test_a_second_column_for_a_field_is_kept(tmp_path):
    """Of two that would do, the likelier is taken; the other one is not lost, nor does it replace the study's own."""
    path = table(tmp_path, "id,findings,report,Findings,view,images\n1,Clear.,All of it.,Third.,PA,a.png\n")
    found = read_table(path, columns={"findings": "report"})
    assert found.columns["findings"] == "extra key 'table_findings' of the study"
    (study,) = found.studies
    assert study.findings == "All of it." and study.extra == {
        "table_findings": "Clear.",
        "Findings": "Third.",
    }
    assert study_to_json(study)["findings"] == "All of it."


def test_what_differs_between_the_rows_of_a_study_is_the_images(tmp_path):
    path = table(
        tmp_path,
        "study,image,detector,site,view\n1,a.png,A,north,PA\n1,b.png,B,,LL\n2,c.png,A,south,PA\n2,d.png,,,AP\n",
    )
    found = read_table(path)
    assert found.studies == [
        Study("1", images=[Image("a.png", "PA", {"detector": "A"}), Image("b.png", "lateral", {"detector": "B"})],
              extra={"site": "north"}),
        Study("2", images=[Image("c.png", "PA", {"detector": "A"}), Image("d.png", "AP")], extra={"site": "south"}),
    ]  # fmt: skip
    assert found.columns["detector"] == "extra key 'detector' of the images"
    # rows without images of their own have no other place than the study
    path = table(tmp_path, "study,findings,reader\n1,Clear.,X\n1,Clear.,Y\n2,Edema.,X\n")
    assert [s.extra["reader"] for s in load_table(path)] == [["X", "Y"], "X"]


def test_every_cell_is_found_again(tmp_path):
    """Whatever a table holds: each cell that says something is in the studies file, or its column is named."""
    columns = [
        "id",
        "path",
        "age",
        "Edema",
        "Fracture",
        "prior",
        "labels",
        "extra",
        "x y",
        "schema",
        "images",
    ]
    cells = ["s1", "a.png", "71", "1", "maybe", "P", "L", "E", "Z", "9", "I"]
    found = read_table(table(tmp_path, ",".join(columns) + "\n" + ",".join(cells) + "\n"))
    row = study_to_json(found.studies[0])
    written = json.dumps(row)
    for cell in cells:
        assert json.dumps(cell) in written or cell in ("71", "1"), cell
    assert row["age"] == 71 and row["labels"] == {"Edema": 1} and row["schema"] == 1
    # "images" is likelier than "path"
    assert list(found.columns) == columns
    assert found.notes == ["Fracture is called like a label, but holds other things than 1, 0 and -1"]


def test_cells_that_mean_nothing_are_told(tmp_path):
    found = read_table(table(tmp_path, "id,image,sex,view\n1,a,1,oblique\n2,b,2,PA\n3,c,F,unknown\n4,d,,\n"))
    assert [s.sex for s in found.studies] == [None, None, "F", None]
    assert found.notes == [
        "view: 1 cells say what names no view, and count as missing: 'oblique'; the first is in line 2",
        "sex: 2 cells say what is neither F nor M, and count as missing: '1', '2'; the first is in line 2",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,report,report\n1,a,b\n", "several columns 'report'"),
        ("id, report ,report\n1,a,b\n", "several columns 'report'"),
    ],
)
def test_columns_that_would_hide_each_other(tmp_path, text, message):
    with pytest.raises(StudyError, match=message):
        load_table(table(tmp_path, text))


def test_tables_as_spreadsheets_and_pandas_write_them(tmp_path):
    found = read_table(table(tmp_path, "\ufeff;study;report\n0;s1;Clear, mostly\n1;s2;Edema\n"))
    assert [(s.study_id, s.findings, s.extra) for s in found.studies] == [
        ("s1", "Clear, mostly", {"column_1": "0"}),
        ("s2", "Edema", {"column_1": "1"}),
    ]
    long = "word " * 60_000
    assert load_table(table(tmp_path, f"study,report\ns1,{long}\n"))[0].findings == long
    lines = [{"study": "1", "report": "Clear."}, {"study": "2", "site": {"city": "X"}}]
    found = read_table(table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl"))
    assert found.studies == [Study("1", findings="Clear."), Study("2", extra={"site": {"city": "X"}})]


def make(path, out, *options):
    return main(["studies", "make", "table", str(path), "--out", str(out), *options])


def test_the_command_maps_columns_and_says_so(tmp_path, capsys):
    path = table(tmp_path, "study,Why,Text A,Wet,secret\ns1,Cough,Clear.,1,x\ns2,Fever,Edema.,,y\n")
    out = tmp_path / "o.jsonl"
    options = [
        "--column",
        "indication=Why",
        "--column",
        "findings=Text A",
        "--label",
        "Wet",
        "--drop",
        "secret",
    ]
    assert make(path, out, *options) == 0
    said = capsys.readouterr().err
    for line in (
        "column study           study_id", "column Why             indication", "column Text A          findings",
        "column Wet             label Wet", "column secret          left out",
    ):  # fmt: skip
        assert line in said.splitlines()
    assert load_studies(out) == [
        Study("s1", indication="Cough", findings="Clear.", labels={"Wet": 1}),
        Study("s2", indication="Fever", findings="Edema."),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "indicaton=Reason"], "no field is called indicaton; did you mean indication?"),
        (["--column", "indication=Raeson"], "there is no column 'Raeson'; did you mean Reason?"),
        (["--label", "Edma"], "there is no column 'Edma'; did you mean Edema?"),
        (["--drop", "nothing"], "there is no column 'nothing'; there are study, Reason, Edema"),
        (["--column", "Reason"], "--column is FIELD=COLUMN"),
        (["--column", "age=Reason", "--column", "age=Edema"], "--column gives age twice"),
        (["--column", "indication=Reason", "--drop", "Reason"], "asked for and left out"),
    ],
)
def test_what_cannot_be_mapped(tmp_path, capsys, options, message):
    path = table(tmp_path, "study,Reason,Edema\ns1,Cough,1\n")
    assert make(path, tmp_path / "o.jsonl", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o.jsonl").exists()


def test_the_table_itself_and_other_files_are_never_replaced(tmp_path, capsys):
    path = table(tmp_path, '{"study": "1", "report": "Clear."}\n', "t.jsonl")
    assert make(path, path, "--overwrite") == 2
    assert "is what this command reads" in capsys.readouterr().err
    notes = table(tmp_path, "my notes", "notes.txt")
    assert make(path, notes, "--overwrite") == 2
    assert "does not hold studies" in capsys.readouterr().err and notes.read_text() == "my notes"
    assert make(path, tmp_path / "o.jsonl") == 0 and make(path, tmp_path / "o.jsonl", "--overwrite") == 0


@pytest.mark.parametrize("odd", ["old", "130", "-1", "0x20", "045X", "nan years", "[]", "1e400"])
def test_an_age_that_means_nothing_is_left_out_and_counted(tmp_path, odd):
    found = read_table(table(tmp_path, f"id,image,age\n1,a,63\n2,b,{odd}\n3,c,045Y\n4,d,{odd}\n5,e,\n"))
    assert [s.age for s in found.studies] == [63, None, 45, None, None]
    assert found.notes == [
        f"age: 2 cells say what is neither a number of years up to 120 nor like 045Y, and count as missing: {odd!r}; "
        "the first is in line 3"
    ]


def test_ages_of_other_types_are_left_out_and_counted(tmp_path):
    file = tmp_path / "t.jsonl"
    ages = [63, "old", {"years": 3}, [63], True, 40.5]
    file.write_text("".join(json.dumps({"id": str(i), "age": age}) + "\n" for i, age in enumerate(ages)))
    found = read_table(file)
    assert [s.age for s in found.studies] == [63, None, None, None, None, 40.5]
    assert "age: 4 cells" in found.notes[0] and found.notes[0].endswith("in line 2")


# Cells that are not what their column is for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('study_id,image\n1,"abc\n2,b\n', r"t\.csv, line 2: a quote .* never closed"),
        ('study_id,image\n0,z\n\n1,"abc\n2,b\n3,"c"\n', r"t\.csv, line 4: a quote .* inside a quoted cell"),
        ('study_id,image\n1,"abc\n2,b\n3,"\n', r"t\.csv, line 2: column 'image' holds a line break"),
        ('image,study_id\na,"1\n2"\n', "line 2: column 'study_id' holds a line break"),
        ('image,pid\na,"1\r2"\n', "line 2: column 'pid' holds a line break"),
        ("image,study_id\na\0b,1\n", "line 2: column 'image'"),
        ('id,findings\n1,"Clear.\nNo effusion."\n2,Edema.,x\n', "line 4: more or fewer cells"),
        ('id,findings\n1,"' + "x" * (1 << 24) + 'y"\n', "line 2: a cell of over 16777216 characters"),
    ],
)
def test_quotes_that_are_not_closed_and_what_they_lead_to(tmp_path, text, message):
    with pytest.raises(StudyError, match=message):
        load_table(table(tmp_path, text))


def test_reports_may_have_several_lines(tmp_path):
    found = load_table(table(tmp_path, 'id,findings\n1,"Clear.\nNo ""effusion""."\n'))
    assert found == [Study("1", findings='Clear.\nNo "effusion".')]


@pytest.mark.parametrize(
    "field", ["study_id", "patient_id", "split", "sex", "findings", "indication", "impression"]
)
@pytest.mark.parametrize(
    ("value", "kind"),
    [({"a": 1}, "an object"), ([1], "a list"), (True, "true or false"), (False, "true or false")],
)
def test_json_that_is_no_text_is_refused_where_a_text_is_meant(tmp_path, field, value, kind):
    rows = [{"study_id": "0", "Col": None}, {"study_id": "1"} | {"Col": value}]
    text = "\n".join(json.dumps(row | {"study_id": None} if field == "study_id" else row) for row in rows)
    text = text.replace('"study_id": null', '"image": "a"')
    with pytest.raises(StudyError, match=rf"t\.jsonl, line 2: column 'Col' must hold a text, not {kind}"):
        load_table(table(tmp_path, text, "t.jsonl"), columns={field: "Col"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1", "images": [{"file": "a"}]}, "line 1: column 'images': an image has no 'path'"),
        ({"id": "1", "images": [["a"]]}, "line 1: column 'images' must hold a text, not a list"),
        ({"id": "1", "images": True}, "line 1: column 'images' must hold a text, not true or false"),
        ({"id": "1", "images": [{"path": {}}]}, "line 1: column 'images' must hold a text, not an object"),
        ({"id": "1", "images": [{"path": "a", "view": 1 == 1}]}, "line 1: column 'images' must hold a text"),
        (
            {"id": "1", "images": [{"path": "a", "view": "PA"}], "view": "AP"},
            "line 1: the images have views of their",
        ),
        (
            {"id": "1", "image": "a", "view": [{"b": 2}]},
            "line 1: column 'view' must hold a text, not an object",
        ),
        ({"id": "1", "diagnoses": [True]}, "line 1: column 'diagnoses' must hold a text, not true or false"),
    ],
)
def test_json_lists_of_the_wrong_things(tmp_path, row, message):
    with pytest.raises(StudyError, match=message):
        load_table(table(tmp_path, json.dumps(row), "t.jsonl"))


def test_images_of_json_are_paths_or_objects(tmp_path):
    """As in a studies file; what else an object says is kept."""
    row = {"id": 7, "images": [{"path": "a", "view": "PA", "kvp": 120}, "b", {"path": "c", "view": "lat"}]}
    one = {"id": 8, "image": {"path": "d"}, "diagnoses": ["x", None]}
    found = read_table(
        table(tmp_path, f"{json.dumps(row)}\n{json.dumps(one)}\n", "t.jsonl"), columns={"image": "images"}
    )
    assert found.studies[0] == Study(
        "7", images=[Image("a", "PA", {"kvp": 120}), Image("b"), Image("c", "lateral")]
    )
    found = read_table(table(tmp_path, json.dumps(one), "t.jsonl"))
    assert found.studies == [Study("8", images=[Image("d")], diagnoses=["x"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"study_id": ' + "9" * 5000 + "}", "line 2: a number of thousands of digits"),
        ('{"study_id": "1", "x": 1e999}', "line 2: column 'x' holds a number that is too large"),
        ('{"study_id": "1", "y": {"z": [1, -1e999]}}', "line 2: column 'y' holds a number that is too large"),
        ('{"study_id": "1", "y": ' + "[" * 100_000, "line 2: nested too deeply"),
    ],
)
def test_json_numbers_that_no_file_can_hold(tmp_path, capsys, text, message):
    path = table(tmp_path, '{"study_id": "0"}\n' + text, "t.jsonl")
    assert make(path, tmp_path / "o.jsonl") == 2
    assert f"t.jsonl, {message}" in capsys.readouterr().err


def test_a_column_that_is_missing_is_missing_in_no_line(tmp_path):
    with pytest.raises(StudyError, match=r"t\.csv: there is no column 'why'"):
        read_table(table(tmp_path, "id,findings\n1,Clear.\n"), columns={"indication": "why"})


# The other commands that take a table read it with the same reader.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'path\n"' + b"x" * 200_000 + b"\n", r"t\.csv, line 2: a quote"),
        (b"path\n\xff\xfe\n", r"t\.csv is not UTF-8"),
        (b'path,split\n"a\nb",train\n', r"t\.csv, line 2: column 'path' holds a line break"),
        (b'path\n"a\nb\n', r"t\.csv, line 2: a quote"),
        (b"path,split\na\n", r"t\.csv, line 2: more or fewer cells"),
    ],
)
def test_a_list_of_images_is_read_as_strictly(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        image_paths(tmp_path / "t.csv")
    with pytest.raises(UserError, match=message):
        load_labelled(str(tmp_path / "t.csv"))
    assert main(["prepare", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o")]) == 2


def test_a_list_of_images_with_long_cells_or_semicolons(tmp_path):
    (tmp_path / "t.csv").write_text(f'path;note\na.png;"{"x" * 200_000}"\n')
    assert image_paths(tmp_path / "t.csv") == [tmp_path / "a.png"]
