"""Follow-ups, laterals and what only a lateral film shows: options of a population that change nothing else of it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cxr.cli.main import main as cxr
from eval.scores.labels import label_report
from train.common.config import ConfigError
from train.phantom import draw_patient, render_frontal, render_lateral, write_report
from train.phantom.patient import HIDDEN, SECOND_STUDY
from train.phantom.population import write_population
from train.phantom.report import LABEL_OF

EVERYTHING = {"followups": 1.0, "laterals": 1.0, "hidden": 0.6}


@pytest.fixture(scope="module")
def pairs():
    """(patient, study with hidden findings, the same study without, its prior) where something is hidden."""
    found = []
    for number in range(300):
        a = draw_patient(31, number, **EVERYTHING)
        b = draw_patient(31, number, **{**EVERYTHING, "hidden": 0.0})
        for study, plain in zip(a.studies, b.studies, strict=True):
            if any(f.hidden for f in study.findings):
                found.append((a, study, plain, a.studies[0] if study.index else None))
    return found


def test_patients_of_earlier_populations_are_the_same_to_the_last_bit():
    """mini was trained on them. The digest was taken of the code before there were options. It is of findings, words
    and the seeds of shapes and films, not of pixels, whose last digits differ from platform to platform."""
    digest = hashlib.sha256()
    for number in range(200):
        patient = draw_patient(100, number)
        for study in patient.studies:
            prior = patient.studies[0] if study.index else None
            report = write_report(study, prior)
            told = [study.view, study.lateral, [f.kind + f.side + f.zone + f.detail for f in study.findings]]
            seeds = [[f.seed for f in study.findings], study.report_seed, study.style.film_seed]
            digest.update(json.dumps([told, seeds, report.indication, report.findings]).encode())
    assert digest.hexdigest() == "2e54ce16c929a5dbfd9d360047bcb3c7ae2d70728d1227b10e42649def03941c"


def test_options_left_alone_are_what_they_were():
    for number in range(50):
        assert draw_patient(31, number) == draw_patient(31, number, followups=SECOND_STUDY, hidden=0.0)
    twice = [draw_patient(31, n, followups=1.0) for n in range(50)]
    once = [draw_patient(31, n, followups=0.0) for n in range(50)]
    assert all(len(p.studies) == 2 for p in twice) and all(len(p.studies) == 1 for p in once)
    assert [p.studies[0] for p in twice] == [p.studies[0] for p in once]
    films = [s for n in range(50) for s in draw_patient(31, n, laterals=1.0).studies]
    assert all(s.lateral == (s.view == "PA") for s in films)


def test_hidden_findings_leave_all_else_as_it_was(pairs):
    kinds = set()
    for _, study, plain, _ in pairs:
        assert study.lateral  # a report tells of nothing that no film shows
        hidden = {f.kind for f in study.findings if f.hidden}
        kinds |= hidden
        assert not hidden & {f.kind for f in study.findings if not f.hidden}
        assert [f for f in study.findings if not f.hidden] == list(plain.findings)
        assert replace(study, findings=plain.findings) == plain
    assert kinds == set(HIDDEN)


def test_the_frontal_film_shows_nothing_of_them_and_the_lateral_does(pairs):
    shown = dict.fromkeys(HIDDEN, 0)
    for patient, study, plain, _ in pairs[:24]:
        frontal = [render_frontal(s, patient.sex, 128) for s in (study, plain)]
        assert np.array_equal(frontal[0].attenuation, frontal[1].attenuation)
        assert frontal[0].masks.keys() == frontal[1].masks.keys()
        lateral = [render_lateral(s, patient.sex, 128) for s in (study, plain)]
        change = lateral[0].display() - lateral[1].display()
        for kind in {f.kind for f in study.findings if f.hidden}:
            mask = lateral[0].masks[kind]
            assert mask.sum() * lateral[0].spacing_mm ** 2 > 60  # mm2
            assert change[mask].mean() > 0.05, kind
            shown[kind] += 1
    assert all(shown.values())


def test_hidden_findings_lie_where_their_words_say(pairs):
    """Posterior is right on a lateral film, retrosternal left; the heart's middle is left of the chest's."""
    for patient, study, *_ in pairs[:24]:
        film = render_lateral(study, patient.sex, 128)
        lungs = np.argwhere(film.masks["lungs"])
        (top, front), (bottom, back) = lungs.min(0), lungs.max(0)
        for kind in film.masks.keys() - {"lungs"}:
            row, column = np.argwhere(film.masks[kind]).mean(0)
            down, behind = (row - top) / (bottom - top), (column - front) / (back - front)
            if kind == "nodule":
                assert behind < 0.3 and down < 0.6
            else:
                assert behind > 0.55 and down > 0.5


def test_words_and_labels_of_hidden_findings_agree(pairs):
    said = dict.fromkeys(HIDDEN, 0)
    for _, study, _, prior in pairs:
        for wording in ("prose", "telegraphic"):
            report = write_report(study, prior, wording)
            read = label_report(report.findings)
            for f in study.findings:
                if f.hidden:
                    said[f.kind] += 1
                    assert report.labels[LABEL_OF[f.kind]] == 1 == read.get(LABEL_OF[f.kind]), report.findings
    assert min(said.values()) > 20


def test_files_of_a_population_with_hidden_findings(tmp_path):
    shares = {"followups": 1, "laterals": 1, "hidden": 1}
    write_population(tmp_path / "a", studies=24, seed=31, size=96, workers=1, format="png", **shares)
    studies = [json.loads(line) for line in (tmp_path / "a" / "studies.jsonl").read_text().splitlines()]
    assert sum("prior" in s for s in studies) == len(studies) / 2
    masks = {name: path for s in studies for name, path in s["masks"].items() if name.startswith("lateral-")}
    assert masks.keys() == {f"lateral-{kind}" for kind in HIDDEN}
    assert all(np.asarray(Image.open(tmp_path / "a" / path)).any() for path in masks.values())


def test_shares_beyond_one_are_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"hidden is a share, from 0 to 1, not 1\.5"):
        write_population(tmp_path / "b", hidden=1.5)
    with pytest.raises(SystemExit) as stopped:
        cxr(["phantom", str(tmp_path / "b"), "--hidden", "1.5"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "--hidden: must be a number from 0 to 1" in said
    assert not (tmp_path / "b").exists()
