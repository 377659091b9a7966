"""Data sets of the probes in miniature, with the files, columns and spellings of their releases. No real data."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from encoder.radiograph import read
from train.datasets.labelled import load, patients_across_splits
from train.datasets.labels import jsrt
from vlm.study import StudyError


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def png(path, size=(8, 8), pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    Image.fromarray(pixels).save(path)


def dicom(path, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "DX"
    ds.Rows, ds.Columns = 8, 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(range(64))
    with pydicom.config.disable_value_validation():
        for name, value in tags.items():
            setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def of(found, i):
    return dict(zip(found.names, found.labels_NL[i].tolist(), strict=True))


VINDR = [
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture",
    "Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity",
    "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening",
    "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia",
    "Tuberculosis", "Other diseases", "No finding",
]  # fmt: skip


def vindr(root):
    def votes(*positive):
        return [int(name in positive) for name in VINDR]

    images = [f"{n:032x}" for n in range(30)]
    rows = []
    for i, image in enumerate(images):
        rows += [[image, "R10", *votes("Cardiomegaly", "Other diseases")], [image, "R8", *votes("Cardiomegaly", "ILD")],
                 [image, "R9", *votes(*(["No finding"] if i else ["Other diseases"]))]]  # fmt: skip
    table(root / "annotations/image_labels_train.csv", ["image_id", "rad_id", *VINDR], *rows)
    header = ["image_id", *[name.replace("Other diseases", "Other disease") for name in VINDR]]
    table(root / "annotations/image_labels_test.csv", header, ["f" * 32, *votes("Other diseases")])
    for image in images[:29]:
        dicom(root / "train" / f"{image}.dicom", PatientSex="O", PatientAge="000Y")
    known = {"PatientSex": "F", "PatientAge": "061Y", "PatientWeight": "64", "PatientSize": "1.6"}
    dicom(root / "test" / ("f" * 32 + ".dicom"), **known)


def test_vindr(tmp_path, logged):
    vindr(tmp_path / "1.0.0")
    found = load(f"vindr-cxr:{tmp_path}")
    assert found.kind == "vindr-cxr" and len(found.paths) == 30 and len(found.names) == 28
    assert "1 of 31 images are not there" in logged.text
    first, second, last = of(found, 0), of(found, 1), of(found, -1)
    assert (first["Cardiomegaly"], first["ILD"], first["Other disease"], first["No finding"]) == (1, 0, 1, 0)
    assert (second["Other disease"], second["No finding"]) == (0, 0)
    assert last["Other disease"] == 1 and sum(last.values()) == 1 and found.splits[-1] == "test"
    assert set(found.splits[:-1]) == {"train", "validate"}
    assert np.isnan(found.numbers["age"][:-1]).all() and found.numbers["age"][-1] == 61
    assert found.numbers["bmi"][-1] == pytest.approx(25) and found.sex[-1] == "F" and found.sex[0] == ""
    assert "age" not in load("vindr-cxr", tmp_path, headers=False).numbers
    assert read(found.paths[-1]).header.sex == "F"


def test_an_even_number_of_readers_may_not_agree(tmp_path):
    vindr(tmp_path)
    rows = list(csv.reader((tmp_path / "annotations/image_labels_train.csv").open()))
    table(tmp_path / "annotations/image_labels_train.csv", *rows[:3], *rows[4:])
    assert np.isnan(of(load("vindr-cxr", tmp_path), 0)["ILD"])


def rsna(root, mapping=True):
    ids = [f"{n:08x}-00d4-4c77-8a5f-70e069fe6988" for n in range(80)]
    boxes = [[i, *([""] * 4 if n % 2 else [1.0, 2.0, 3.0, 4.0]), 1 - n % 2] for n, i in enumerate(ids)]
    table(
        root / "stage_2_train_labels.csv",
        ["patientId", "x", "y", "width", "height", "Target"],
        *boxes,
        boxes[0],
    )
    classes = ["Lung Opacity", "Normal", "Lung Opacity", "No Lung Opacity / Not Normal"] * 20
    rows = list(zip(ids, classes, strict=True))
    table(root / "stage_2_detailed_class_info.csv", ["patientId", "class"], *rows, rows[0])
    for i in ids:
        dicom(root / "stage_2_train_images" / f"{i}.dcm", PatientSex="M", PatientAge="51", PatientID=i)
    if mapping:  # two images of each of forty patients
        entries = [
            {"subset_img_id": i, "img_id": f"{n // 2:08d}_{n % 2:03d}.png", "orig_labels": ["Mass"]}
            for n, i in enumerate(ids)
        ]
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))


def test_rsna(tmp_path, logged):
    rsna(tmp_path)
    found = load("rsna", tmp_path)
    assert found.names == ["Lung Opacity", "Normal", "No Lung Opacity / Not Normal"]
    assert np.array_equal(found.labels_NL[:4], [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert len(set(found.patients)) == 40 and patients_across_splits(found) == 0
    assert set(found.splits) == {"train", "validate", "test"}
    assert found.also["nih"][2] == "00000001_000.png" and found.patients[2] == "00000001"
    assert found.numbers["age"][0] == 51 and set(found.sex) == {"M"}
    assert list(load("rsna", tmp_path).splits) == list(found.splits) and not logged.text


def test_rsna_without_what_may_be_absent(tmp_path, logged):
    rsna(tmp_path, mapping=False)
    (tmp_path / "stage_2_detailed_class_info.csv").unlink()
    found = load("rsna", tmp_path)
    assert found.names == ["Lung Opacity"] and "patients of 80 of 80 images are not known" in logged.text
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"img_id": "a"}]')
    with pytest.raises(StudyError, match="not a list of objects with subset_img_id"):
        load("rsna", tmp_path)


def candid(root, fractures="Rib_fracture_mask_rle.csv"):
    # two columns from the top left, then from row 2 of column 4: gap, length, gap, length
    drawn = "0 2048 2050 3"
    reports = [
        ["1.2.826.0.1", drawn, "P00012_20100101.dcm", "text, with a comma", "9.1"],
        ["1.2.826.0.1", "1048575 1", "P00012_20100101.dcm", "text", "9.1"],
        ["1.2.826.0.2", "-1", "P00012_20110101.dcm", "text", "9.2"],
        ["1.2.826.0.3", "", "P00345_20110101.dcm", "text", "9.3"],
    ]
    header = ["SOPInstanceUID", "EncodedPixels", "filename", "Report", "StudyInstanceUID"]
    table(root / "Pneumothorax_reports.csv", header, *reports)
    header = ["anon_SOPUID", "annotation_ref", "mask_rle"]
    table(root / "chest_tube.csv", header, ["1.2.826.0.2", "0", "5 2"], ["1.2.826.0.3", "1", "-1"])
    table(root / fractures, header, ["1.2.826.0.3", "0", "5 2"])
    png(root / "dataset/1.2.826.0.1.png", (1024, 1024))
    dicom(root / "dataset/1.2.826.0.2", PatientSex="F", PatientAge="040Y")
    dicom(root / "dataset/1.2.826.0.3")


@pytest.mark.parametrize("fractures", ["Rib_fracture_mask_rle.csv", "acute_rib_fracture.csv"])
def test_candid(tmp_path, fractures):
    candid(tmp_path, fractures)
    found = load("candid-ptx", tmp_path)
    assert found.names == found.structures == ["pneumothorax", "chest tube", "rib fracture"]
    nan = np.nan
    assert np.array_equal(found.labels_NL, [[1, 0, 0], [0, 1, 0], [nan, nan, 1]], equal_nan=True)
    assert list(found.patients) == ["12", "12", "345"] and found.splits[0] == found.splits[1]
    assert list(found.sex) == ["", "F", ""] and found.numbers["age"][1] == 40
    mask_KHW = found.mask(0)
    expected = np.zeros((1024, 1024), bool)
    expected[:, :2] = expected[2:5, 4] = expected[-1, -1] = True
    assert np.array_equal(mask_KHW[0], expected) and not mask_KHW[1:].any()
    assert found.mask(1).shape == (3, 8, 8) and not found.mask(1, "pneumothorax").any()  # shrunk to the image
    assert found.mask(2) is None and found.mask(2, "chest tube") is None
    assert list(found.masked()) == [0, 1] and list(found.masked("rib fracture")) == [0, 1, 2]


NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def nih(root, name="Data_Entry_2017_v2020.csv", comma=""):
    rows, lists = [NIH + comma], ([], [])
    for n in range(1, 31):
        for visit in range(2):
            image = f"{n:08d}_{visit:03d}.png"
            age = {1: "411Y", 2: "414", 3: "058Y"}.get(n, "41")
            findings = "Cardiomegaly|Pleural_Thickening" if n % 2 else "No Finding"
            sex, view = "MF"[n % 2], "PA" if visit else "AP"
            cells = [image, findings, visit, n, age, sex, view, 2682, 2749, 0.143, 0.143]
            rows.append(",".join(map(str, cells)) + comma)
            lists[n > 24].append(image)
            folder = "images" if name.endswith("2020.csv") else f"images_{1 + n // 16:03d}/images"
            png(root / folder / image)
    (root / name).write_text("\n".join(rows) + "\n")
    for file, images in zip(("train_val_list.txt", "test_list.txt"), lists, strict=True):
        (root / file).write_text("\n".join(images))


@pytest.mark.parametrize(("name", "comma"), [("Data_Entry_2017_v2020.csv", ""), ("Data_Entry_2017.csv", ",")])
def test_nih(tmp_path, name, comma):
    nih(tmp_path, name, comma)
    found = load("nih", tmp_path)
    assert len(found.paths) == 60 and all(path.is_file() for path in found.paths) and len(found.names) == 15
    assert [k for k, v in of(found, 0).items() if v] == ["Cardiomegaly", "Pleural_Thickening"]
    assert [k for k, v in of(found, 2).items() if v] == ["No Finding"]
    assert np.array_equal(found.numbers["age"][[0, 2, 4, 6]], [np.nan, np.nan, 58, 41], equal_nan=True)
    assert list(found.sex[:4]) == ["F", "F", "M", "M"]
    assert set(found.patients[found.part("test")]) == {f"{n:08d}" for n in range(25, 31)}
    assert patients_across_splits(found) == 0 and len(found.part("validate")) > 0
    pa = load("nih", tmp_path, view="PA")
    assert len(pa.paths) == 30 and all(path.stem.endswith("_001") for path in pa.paths)


def test_nih_of_which_a_part_is_there(tmp_path, logged):
    nih(tmp_path)
    (tmp_path / "images/00000001_000.png").unlink()
    assert len(load("nih", tmp_path).paths) == 59 and "1 of 60 images are not there" in logged.text
    (tmp_path / "test_list.txt").write_text("00000025_000.png\n")
    with pytest.raises(StudyError, match="is in 0 of train_val_list"):
        load("nih", tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(StudyError, match=r"test_list\.txt is missing"):
        load("nih", tmp_path)


def test_a_patient_in_both_official_lists_is_told(tmp_path, logged):
    nih(tmp_path)
    whole = (tmp_path / "test_list.txt").read_text().splitlines()
    (tmp_path / "test_list.txt").write_text("\n".join(whole[1:]))
    with (tmp_path / "train_val_list.txt").open("a") as file:
        file.write(f"\n{whole[0]}")
    load("nih", tmp_path)
    assert "1 patient(s) have images in several splits of the data set" in logged.text


CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
]  # fmt: skip


def chexpert(root, test=False, base="CheXpert-v1.0-small"):
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]

    def row(split, n, view, sex, age, **cells):
        path = f"{split}/patient{n:05d}/study1/view1_{view}.jpg"
        png(root / base / path)
        side = "AP" if view == "frontal" else ""
        return [
            f"{base}/{path}",
            sex,
            age,
            view.title(),
            side,
            *(cells.get(c.replace(" ", "_"), "") for c in CHEXPERT),
        ]

    train = [row("train", n, "frontal", "Female", 68, Edema="-1.0", Cardiomegaly="1.0", Fracture="0.0")
             for n in range(1, 80)]  # fmt: skip
    train += [row("train", 80, "lateral", "Male", 20), row("train", 81, "frontal", "Unknown", 0)]
    table(root / base / "train.csv", header, *train)
    zeros = {name.replace(" ", "_"): "0.0" for name in CHEXPERT}
    table(
        root / base / "valid.csv",
        header,
        row("valid", 64541, "frontal", "Male", 73, **zeros | {"Edema": "1.0"}),
    )
    if test:
        path = "test/patient64741/study1/view1_frontal.jpg"
        png(root / "CheXpert" / path)
        table(root / "CheXpert/test_labels.csv", ["Path", *CHEXPERT], [path, *[1] * 14])


def test_chexpert(tmp_path):
    chexpert(tmp_path)
    found = load("chexpert", tmp_path)
    assert found.names == CHEXPERT and len(found.paths) == 81 and all(path.is_file() for path in found.paths)
    labels = of(found, 0)
    assert np.isnan(labels["Edema"]) and (
        labels["Cardiomegaly"],
        labels["Fracture"],
        labels["Pneumonia"],
    ) == (1, 0, 0)
    assert found.patients[-1] == "patient64541" and found.splits[-1] == "test"
    assert set(found.splits[:-1]) == {"train", "validate"}
    assert (found.sex[0], found.sex[-2], found.numbers["age"][0]) == ("F", "", 68)
    assert np.isnan(found.numbers["age"][-2])
    assert len(load("chexpert", tmp_path, frontal_only=False).paths) == 82


def test_chexpert_with_the_labels_of_its_test(tmp_path):
    chexpert(tmp_path, test=True)
    found = load("chexpert", tmp_path / "CheXpert-v1.0-small")
    assert list(found.splits[-3:]) == ["train", "validate", "test"] and found.labels_NL[-1].all()
    assert found.paths[-1].is_file() and set(found.splits[:-2]) == {"train"}
    for path in (tmp_path / "CheXpert").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(StudyError, match="none of its first images is there"):
        load("chexpert", tmp_path)


def scr(root):
    clinical = root / "Clinical_Information"
    clinical.mkdir(parents=True)
    nodules = ["JPCLN001.IMG\t5\t15\t53\tmale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer",
               "JPCLN002.IMG\t5\t30\t?\tfemale\t1614\t1090\tbenign\tl.upper lobe\ttuberculoma"]  # fmt: skip
    (clinical / "CLNDAT_EN.txt").write_bytes("\r".join(nodules).encode())
    others = b"JPCNN001.IMG 57  female   non-nodule\rJPCNN002.IMG 26  male   non-nodule\r"
    (clinical / "CNNDAT_EN.TXT").write_bytes(others)
    for fold, films in (("fold1", ["JPCLN001", "JPCNN001"]), ("fold2", ["JPCLN002"])):
        for n, name in enumerate(("heart", "left lung", "right lung", "left clavicle", "right clavicle")):
            for film in films:
                mask = np.zeros((4, 4), np.uint8)
                mask[n % 4, n % 3] = 255
                path = root / "scratch" / fold / "masks" / name / f"{film}.gif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)


def test_jsrt(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jsrt, "SIDE", 8)
    scr(tmp_path)
    stored = (np.arange(64).reshape(8, 8) * 65).astype(">u2")
    films = ("JPCLN001", "JPCLN002", "JPCNN001", "JPCNN002")
    for film in films:
        (tmp_path / "All247images").mkdir(exist_ok=True)
        stored.tofile(tmp_path / "All247images" / f"{film}.IMG")
    with pytest.raises(StudyError, match=r"python -m train\.datasets\.labels\.jsrt"):
        load("jsrt", tmp_path)
    assert jsrt.main([str(tmp_path / "All247images"), str(tmp_path / "png")]) == 0
    assert "wrote 4 images" in capsys.readouterr().out
    found = load("jsrt", tmp_path)
    assert [path.stem for path in found.paths] == list(films)
    assert np.array_equal(np.asarray(Image.open(found.paths[0])), 4095 - stored.astype(int))  # dark = air
    assert read(found.paths[0]).pixels[0, 0] == 1
    assert found.names == ["Nodule"] and list(found.labels_NL[:, 0]) == [1, 1, 0, 0]
    assert np.array_equal(found.numbers["age"], [53, np.nan, 57, 26], equal_nan=True)
    assert list(found.sex) == ["M", "F", "F", "M"]
    assert found.structures == ["heart", "left lung", "right lung", "left clavicle", "right clavicle"]
    mask_KHW = found.mask(0)
    assert mask_KHW.shape == (5, 8, 8) and mask_KHW.sum() == 5 * 4  # one pixel of 4 x 4 is four of 8 x 8
    assert mask_KHW[1, 2:4, 2:4].all() and found.mask(3) is None
    assert jsrt.main([str(tmp_path / "All247images"), str(tmp_path / "png")]) == 0  # nothing anew
    assert "wrote 0 images; 4 are in" in capsys.readouterr().out
    (tmp_path / "All247images/JPCNN003.IMG").write_bytes(b"short")
    assert jsrt.main([str(tmp_path / "All247images"), str(tmp_path / "png")]) == 2
    assert "has 5 bytes, and a film 128" in capsys.readouterr().err


def test_montgomery(tmp_path):
    root = tmp_path / "MontgomerySet"
    readings = {
        "MCUCXR_0001_0": "Patient's Sex: F \nPatient's Age: 027Y\nnormal\n",
        "MCUCXR_0104_1": "Patient's Sex: M\r\nPatient's Age: 006M\r\nRUL infiltrate, 40 pack years",
    }
    for name, text in readings.items():
        png(root / "CXR_png" / f"{name}.png", (6, 4))
        (root / "ClinicalReadings").mkdir(exist_ok=True)
        (root / "ClinicalReadings" / f"{name}.txt").write_text(text)
        for n, side in enumerate(("leftMask", "rightMask")):
            mask = np.zeros((6, 4), bool)
            mask[:, 3 * n] = True
            png(root / "ManualMask" / side / f"{name}.png", pixels=mask)
    found = load(f"montgomery:{tmp_path}")
    assert list(found.labels_NL[:, 0]) == [0, 1] and found.names == ["Tuberculosis"]
    assert list(found.numbers["age"]) == [27, 0.5] and list(found.sex) == ["F", "M"]
    assert found.structures == ["left lung", "right lung"]
    mask_KHW = found.mask(1)
    assert (
        mask_KHW.shape == (2, 6, 4)
        and mask_KHW[0, :, 0].all()
        and mask_KHW[1, :, 3].all()
        and mask_KHW.sum() == 12
    )


@pytest.mark.parametrize("masks", ["mask", "shcxr-lung-mask/mask/mask"])
def test_shenzhen(tmp_path, masks):
    readings = {
        "CHNCXR_0001_0": "male 45yrs\nnormal",
        "CHNCXR_0002_0": "Female, 28yrs\nnormal",
        "CHNCXR_0003_1": "femal 64days\nPTB, onset 20 yrs ago",
        "CHNCXR_0004_1": "",
        "CHNCXR_0005_1": None,
    }
    for name, text in readings.items():
        png(tmp_path / "ChinaSet_AllFiles/CXR_png" / f"{name}.png")
        if text is not None:
            (tmp_path / "ChinaSet_AllFiles/ClinicalReadings").mkdir(exist_ok=True)
            (tmp_path / "ChinaSet_AllFiles/ClinicalReadings" / f"{name}.txt").write_text(text)
    png(tmp_path / masks / "CHNCXR_0002_0_mask.png", pixels=np.eye(8, dtype=np.uint8) * 255)
    found = load("shenzhen", tmp_path)
    assert list(found.labels_NL[:, 0]) == [0, 0, 1, 1, 1]
    assert list(found.sex) == ["M", "F", "F", "", ""]
    expected = [45, 28, 64 / 365.25, np.nan, np.nan]
    assert np.allclose(found.numbers["age"], expected, equal_nan=True)
    assert found.structures == ["lungs"] and list(found.masked()) == [1]
    assert np.array_equal(found.mask(1)[0], np.eye(8, dtype=bool))


def test_releases_with_reports(tmp_path):
    from tests.train.test_mimic_cxr import write_table

    ids = ["02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962"]
    studies = [[ids[0], "50414267", "10000032", "train"], [ids[1], "53189527", "10000033", "test"]]
    write_table(
        tmp_path / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], studies
    )
    columns = ["dicom_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    rows = [[dicom, study, "PA", "21800506", "213014.531"] for dicom, study, *_ in studies]
    write_table(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", columns, rows)
    write_table(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", "Edema", "Fracture"],
                [["10000032", "50414267", "-1.0", "1.0"]])  # fmt: skip
    report = tmp_path / "files/p10/p10000032/s50414267.txt"
    report.parent.mkdir(parents=True)
    report.write_text(" FINDINGS:  Clear.\n")
    found = load("mimic-cxr", tmp_path)
    assert found.kind == "mimic-cxr" and list(found.splits) == ["train", "test"]
    assert [path.stem for path in found.paths] == ids and list(found.patients) == ["10000032", "10000033"]
    assert found.names == ["Fracture"] and np.array_equal(found.labels_NL, [[1], [np.nan]], equal_nan=True)


def test_what_is_missing_is_named(tmp_path):
    for kind, name in (
        ("vindr-cxr", "image_labels_train.csv"),
        ("rsna", "stage_2_train_labels.csv"),
        ("candid-ptx", "Pneumothorax_reports.csv"),
        ("nih", "Data_Entry_2017_v2020.csv"),
        ("chexpert", "train.csv"),
        ("jsrt", "JPCLN001.png"),
        ("montgomery", "MontgomerySet/CXR_png"),
        ("shenzhen", "ChinaSet_AllFiles/CXR_png"),
        ("phantom", "studies.jsonl"),
    ):
        with pytest.raises(StudyError, match=name):
            load(kind, tmp_path)
    with pytest.raises(StudyError, match="does not exist"):
        load("nih", tmp_path / "nowhere")
    table(tmp_path / "stage_2_train_labels.csv", ["patientId", "Target"], ["a", "1"])
    with pytest.raises(StudyError, match="none of the 1 images of the tables is there"):
        load("rsna", tmp_path)


def test_headers_that_are_no_help_say_nothing(tmp_path, logged):
    from train.datasets.headers import dicom_header

    dicom(tmp_path / "odd.dcm", PatientSex="O", PatientAge="999Y", PatientWeight="0", PatientSize="172")
    (tmp_path / "text.dcm").write_text("no DICOM file")
    logging.getLogger().setLevel(logging.DEBUG)
    header = dicom_header(tmp_path / "odd.dcm")
    assert (header.age, header.sex, header.weight, header.height, header.rows) == (None, None, None, None, 8)
    assert dicom_header(tmp_path / "text.dcm").rows == 0
    ds = pydicom.dcmread(tmp_path / "odd.dcm")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "deflated.dcm")
    assert dicom_header(tmp_path / "deflated.dcm").rows == 0 and not logged.text
