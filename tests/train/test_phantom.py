"""The phantoms: reproducible, true to their words, and as hard as they were fixed to be."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from encoder.radiograph import read
from eval.scores.labels import CONDITIONS, label_report
from train.common.config import ConfigError
from train.phantom import draw_patient, render_frontal, render_lateral, write_report
from train.phantom.patient import COMMON, NODULE_MM, PREVALENCE, Finding
from train.phantom.population import write_population

COMPARISON = re.compile(r"\b(prior|previous|unchanged|increased|decreased|improved|worse|new)\b")


@pytest.fixture(scope="module")
def population():
    """(patient, study, its prior or None) of 1,500 patients, not rendered."""
    patients = [draw_patient(7, i) for i in range(1500)]
    return [(p, s, p.studies[s.index - 1] if s.index else None) for p in patients for s in p.studies]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms")
    write_population(out, studies=24, seed=3, size=160, workers=2)
    return out


def lines(folder):
    return [json.loads(line) for line in (folder / "studies.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_film_is_one_that_the_studies_file_names(tmp_path, workers):
    """However many processes draw: a second visit of an early patient makes a later patient unnecessary."""
    write_population(tmp_path, studies=8, seed=1, size=64, workers=workers)
    rows = lines(tmp_path)
    named = {image["path"] for row in rows for image in row["images"]}
    assert len(rows) == 8 and {row["study_id"][-1] for row in rows} == {"0", "1"}
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == named
    masks = {path for row in rows for path in row["masks"].values()}
    assert {f"masks/{path.name}" for path in (tmp_path / "masks").iterdir()} == masks


def test_a_patient_is_the_same_whenever_drawn():
    a, b = draw_patient(11, 42), draw_patient(11, 42)
    assert a == b
    assert a != draw_patient(11, 43) and a != draw_patient(12, 42)
    first, again = (render_frontal(p.studies[0], p.sex, 96) for p in (a, b))
    assert np.array_equal(first.attenuation, again.attenuation)
    assert write_report(a.studies[0]) == write_report(b.studies[0])


def test_every_finding_occurs_in_5_to_30_percent_of_studies(population):
    count = Counter()
    for _, study, prior in population:
        count.update(k for k, v in write_report(study, prior).labels.items() if v == 1)
    assert set(count) == set(CONDITIONS)
    shares = {name: n / len(population) for name, n in count.items()}
    assert all(0.05 <= share <= 0.30 for share in shares.values()), shares


def test_prevalence_makes_findings_more_frequent_and_none_too_frequent():
    share = {}
    for prevalence in (1.0, 3.0):
        found = [
            {f.kind for f in study.findings}
            for n in range(1500)
            for study in draw_patient(5, n, prevalence).studies
        ]
        share[prevalence] = {k: sum(k in kinds for kinds in found) / len(found) for k in PREVALENCE}
    for kind, rate in share[3.0].items():
        assert share[1.0][kind] < rate < COMMON + 0.1, (
            kind
        )  # devices and edema vary with how ill a patient is
    assert draw_patient(5, 0, 1.0) == draw_patient(5, 0)


def test_nodules_are_6_to_30_mm_and_their_masks_have_that_size():
    seen = 0
    for i in range(400):
        patient = draw_patient(5, i)
        study = patient.studies[0]
        nodules = [f for f in study.findings if f.kind == "nodule"]
        if not nodules:
            continue
        size = nodules[0].size_mm
        assert NODULE_MM[0] <= size <= NODULE_MM[1]
        film = render_frontal(study, patient.sex, 512)
        columns = np.flatnonzero(film.masks["nodule"].any(0))
        across = (columns[-1] - columns[0] + 1) * film.spacing_mm
        # The mask is where the chord exceeds half of the diameter: sqrt(3)/2 of the sphere's width, with its soft
        # edge of 0.6 mm; the shape varies by 10 %, and a pixel is 0.8 mm.
        expected = 0.866 * (size + 1.2)
        assert across == pytest.approx(expected, abs=0.11 * expected + 2 * film.spacing_mm)
        seen += 1
        if seen == 8:
            return
    raise AssertionError("too few nodules were drawn")


@pytest.mark.parametrize(("side", "half"), [("left", 1), ("right", 0)])
def test_sides_are_the_patients(side, half):
    """On a frontal film the patient's left is on the right."""
    from dataclasses import replace

    patient = draw_patient(2, 0)
    for kind, zone in (
        ("consolidation", "mid"),
        ("effusion", "lower"),
        ("pneumothorax", "upper"),
        ("nodule", "mid"),
    ):
        finding = Finding(kind, side, zone, severity=0.8, size_mm=20, seed=1)
        film = render_frontal(replace(patient.studies[0], findings=(finding,)), patient.sex, 128)
        mask = film.masks[kind]
        halves = [mask[:, :64].sum(), mask[:, 64:].sum()]
        assert halves[half] > 20 * halves[1 - half], kind


def test_labels_are_what_the_words_say(population):
    """The rule-based labeller, written without knowledge of the templates' code, reads the true labels back."""
    truth, read_back = [], []
    for _, study, prior in population[:600]:
        for wording in ("prose", "telegraphic"):
            report = write_report(study, prior, wording)
            found = label_report(report.findings)
            truth.append([report.labels.get(c) == 1 for c in CONDITIONS])
            read_back.append([found.get(c) == 1 for c in CONDITIONS])
    assert f1_score(truth, read_back, average="micro") >= 0.98
    assert f1_score(truth, read_back, average="macro") >= 0.98


def test_reports_vary_and_compare_only_with_a_prior(population):
    texts = []
    for _, study, prior in population:
        report = write_report(study, prior)
        texts.append(report.findings)
        if prior is None:
            assert not COMPARISON.search(report.findings), report.findings
    assert len(set(texts)) >= 0.95 * len(texts)


def test_no_finding_means_nothing_but_devices(population):
    for _, study, prior in population:
        labels = dict(write_report(study, prior).labels)
        labels.pop("Support Devices", None)
        assert ("No Finding" in labels) == (
            not any(v in (1, -1) for k, v in labels.items() if k != "No Finding")
        )


def test_files_are_what_the_listing_says(folder):
    studies = lines(folder)
    assert len(studies) >= 24
    splits = {}
    for study in studies:
        assert splits.setdefault(study["patient_id"], study["split"]) == study["split"]
        for image in study["images"]:
            film = read(folder / image["path"])
            assert film.header.view == image["view"]
            assert film.header.patient_id == study["patient_id"]
            assert film.pixels.min() == 0 and film.pixels.max() == 1
        for mask in study["masks"].values():
            assert (folder / mask).is_file()
        if "prior" in study:
            assert study["prior"]["findings"] and (folder / study["prior"]["images"][0]["path"]).is_file()
    assert any("prior" in study for study in studies)


def test_dicom_shows_what_was_rendered_whatever_its_encoding(tmp_path):
    """12 and 16 bits, MONOCHROME1 and 2: windowing and inversion give back the film as it should look."""
    from train.phantom.population import save_dicom

    kinds = set()
    for i in range(30):
        patient = draw_patient(9, i)
        film = render_frontal(patient.studies[0], patient.sex, 96)
        save_dicom(tmp_path / f"{i}.dcm", film, patient, patient.studies[0], "PA")
        radiograph = read(tmp_path / f"{i}.dcm")
        kinds.add((radiograph.header.photometric, radiograph.header.bits))
        shown = film.display()
        assert np.abs(radiograph.pixels - shown).max() < 2e-3
    assert kinds == {(p, b) for p in ("MONOCHROME1", "MONOCHROME2") for b in (12, 16)}


# 750 films are drawn
@pytest.mark.slow
def test_raw_pixels_do_not_give_the_findings_away():
    """The difficulty that was fixed before any training: PCA + logistic regression on 800 patients stays at mean AUROC
    <= 0.85. On 500, as here, it is worse by 0.02 (two seeds)."""
    rows, labels = [], []
    for i in range(750):
        patient = draw_patient(21, i)
        study = patient.studies[0]
        film = render_frontal(study, patient.sex, 64).display()
        rows.append(film[: (film.shape[0] // 2) * 2, :64][:64].ravel())
        labels.append([write_report(study).labels.get(c) == 1 for c in CONDITIONS])
    x, y = np.stack(rows), np.array(labels)
    train, test = slice(0, 500), slice(500, None)
    z = PCA(100, svd_solver="randomized", random_state=0).fit(x[train]).transform(x)
    z = (z - z[train].mean(0)) / z[train].std(0)
    aurocs = []
    for k in range(len(CONDITIONS)):
        probe = LogisticRegression(C=0.01, max_iter=300).fit(z[train], y[train, k])
        aurocs.append(roc_auc_score(y[test, k], probe.decision_function(z[test])))
    assert 0.6 < np.mean(aurocs) <= 0.83, aurocs


def test_lateral_films_render():
    patient = draw_patient(4, 1)
    film = render_lateral(patient.studies[0], patient.sex, 96)
    assert np.isfinite(film.attenuation).all() and film.masks["lungs"].mean() > 0.05


def test_nothing_is_overwritten(folder):
    before = (folder / "studies.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists; choose another folder"):
        write_population(folder, studies=2)
    assert (folder / "studies.jsonl").read_bytes() == before
