"""Five folds over real pairs: nobody is both learned from and tested on."""

from collections import Counter

from train.pipelines.real import FOLDS, folds
from vlm.study import Image, Study, load_studies, save_studies


def test_no_patient_is_in_two_splits_of_a_fold_and_every_clean_study_is_tested_once(tmp_path):
    studies = [
        Study(
            f"s{i}",
            f"p{i % 23}" if i % 7 else None,  # some studies without a known patient
            images=[Image(f"images/{i}.png")],
            findings="Clear.",
            extra={"pairing": "clean" if i % 3 else "shared_text"},
        )
        for i in range(120)
    ]
    save_studies(studies, tmp_path / "studies.jsonl")
    tests = folds(tmp_path / "studies.jsonl", tmp_path)
    tested = Counter()
    for k in range(FOLDS):
        found = load_studies(tmp_path / f"fold{k}.jsonl")
        patients = {
            split: {s.patient_id or s.study_id for s in found if s.split == split}
            for split in ("train", "validate", "test")
        }
        assert all(patients.values())
        assert not patients["test"] & (patients["train"] | patients["validate"])
        assert not patients["train"] & patients["validate"]
        in_test = [s for s in found if s.split == "test"]
        assert all(s.extra["pairing"] == "clean" for s in in_test)
        assert {s.study_id for s in in_test} == {s.study_id for s in tests[k]}
        tested.update(s.study_id for s in in_test)
    clean = {s.study_id for s in studies if s.extra["pairing"] == "clean"}
    assert set(tested) == clean and set(tested.values()) == {1}
    sizes = [len(t) for t in tests]
    assert max(sizes) - min(sizes) <= 5


def test_the_real_pairs_too(cxr_data, tmp_path):
    tests = folds(cxr_data / "pairs" / "studies.jsonl", tmp_path)
    assert sum(map(len, tests)) == 185
    for k in range(FOLDS):
        found = load_studies(tmp_path / f"fold{k}.jsonl")
        tested = {s.patient_id or s.study_id for s in found if s.split == "test"}
        assert not tested & {s.patient_id or s.study_id for s in found if s.split != "test"}
