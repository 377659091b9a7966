"""What a radiologist would say of a phantom: findings, CheXpert labels of exactly that text, an indication.

Sentences follow the usual anatomical order. Each topic draws from many wordings; what is said is always true of
the image, and the labels say what the words say: 1 present, 0 absent, -1 possible, missing = not mentioned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.phantom.patient import Examination, Finding

LABEL_OF = {
    "cardiomegaly": "Cardiomegaly",
    "wide_mediastinum": "Enlarged Cardiomediastinum",
    "edema": "Edema",
    "consolidation": "Consolidation",
    "opacity": "Lung Opacity",
    "atelectasis": "Atelectasis",
    "nodule": "Lung Lesion",
    "effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "pleural_thickening": "Pleural Other",
    "fracture": "Fracture",
    "device": "Support Devices",
}
FEBRILE = (
    "Fever and cough",
    "Cough and fever for three days",
    "Productive cough, fever",
    "Fever, leukocytosis",
)


@dataclass
class Report:
    """Hold the text of a report, and the labels (CheXpert name -> 1, 0 or -1) that its sentences assert."""

    indication: str | None
    findings: str
    labels: dict[str, int]


class Writer:
    """Collect sentences and what they assert."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.sentences: list[str] = []
        self.labels: dict[str, int] = {}

    def pick(self, *options: str) -> str:
        """Draw one of the options, all equally likely."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        """Draw True with probability `p`."""
        return bool(self.rng.random() < p)

    def say(self, sentence: str, **claims: int) -> None:
        """Add a sentence; `claims`: what it says of findings (keys of LABEL_OF, or `pneumonia`)."""
        self.sentences.append(sentence[0].upper() + sentence[1:].rstrip(".") + ".")
        for kind, value in claims.items():
            name = LABEL_OF.get(kind, kind.capitalize())
            if self.labels.get(name) != 1:  # a positive mention outweighs any other
                self.labels[name] = value


def write_report(study: Examination, prior: Examination | None = None, wording: str = "prose") -> Report:
    """Write the report of a study; `wording` is prose, or telegraphic: another hospital's habit, with a
    heading a topic."""
    rng = np.random.default_rng([study.report_seed, 21])
    w = Writer(rng)
    by_kind: dict[str, list[Finding]] = {}
    for f in study.findings:
        by_kind.setdefault(f.kind, []).append(f)
    before = {f.kind: f for f in prior.findings} if prior else None
    indication = _indication(w, by_kind)
    topics = [
        ("Tubes and lines", lambda: _devices(w, by_kind, wording)),
        ("Heart and mediastinum", lambda: _heart(w, by_kind)),
        ("Lungs", lambda: _lungs(w, by_kind, indication in FEBRILE, before)),
        ("Pleura", lambda: _pleura(w, by_kind, before)),
        ("Bones", lambda: _bones(w, by_kind)),
    ]
    parts = []
    for heading, tell in topics:
        start = len(w.sentences)
        tell()
        said = " ".join(w.sentences[start:])
        if said:
            parts.append(f"{heading}: {said}" if wording == "telegraphic" else said)
    if not any(v in (1, -1) for k, v in w.labels.items() if k != "Support Devices"):
        w.labels["No Finding"] = 1
    return Report(indication, " ".join(parts), w.labels)


def _indication(w: Writer, by_kind: dict[str, list[Finding]]) -> str | None:
    """Return an indication, a hint at best: every complaint also brings patients without the matching
    finding."""
    if w.chance(0.08):
        return None
    chest = by_kind.keys() & {"consolidation"}
    if w.chance(0.6 if chest else 0.13):
        return w.pick(*FEBRILE)
    if "fracture" in by_kind and w.chance(0.4):
        return w.pick("Fall", "Trauma", "Motor vehicle collision, chest pain")
    if "device" in by_kind and w.chance(0.35):
        return w.pick("Evaluate line placement", "Tube position", "Postoperative film", "Intubated patient")
    if by_kind.keys() & {"edema", "cardiomegaly"} and w.chance(0.4):
        return w.pick(
            "Shortness of breath",
            "Dyspnea on exertion",
            "Evaluate for heart failure",
            "Leg swelling, dyspnea",
        )
    return w.pick(
        "Chest pain",
        "Shortness of breath",
        "Preoperative evaluation",
        "Cough",
        "Weakness",
        "Hypoxia",
        "Fall",
        "Follow-up",
        "Routine examination",
        "Positive tuberculosis test",
        "Altered mental status",
        "Weight loss, smoker",
    )


def _amount(f: Finding, words: tuple[str, str, str]) -> str:
    return words[0] if f.severity < 0.42 else words[1] if f.severity < 0.75 else words[2]


def _change(w: Writer, f: Finding, before: dict[str, Finding] | None) -> str:
    """Words of comparison, only where there is something to compare with."""
    if before is None or not f.certain:
        return ""
    old = before.get(f.kind)
    if old is None:
        return w.pick(", new from the prior study", ", new since the previous examination")
    if f.severity > old.severity + 0.05:
        return w.pick(
            ", increased from prior", ", which has increased since the prior study", ", worse than before"
        )
    if f.severity < old.severity - 0.05:
        return w.pick(", decreased from prior", ", improved since the prior study", ", smaller than before")
    return w.pick(", unchanged from prior", ", similar to the prior study", ", stable compared with before")


def _side(w: Writer, f: Finding) -> str:
    return w.pick("bilateral") if f.side == "bilateral" else f.side


def _devices(w: Writer, by_kind: dict[str, list[Finding]], wording: str) -> None:
    found = by_kind.get("device", [])
    for f in found:
        s = f.side
        text = {
            "endotracheal_tube": w.pick(
                "endotracheal tube tip is above the carina",
                "an endotracheal tube is in place, its tip above the carina",
                "the patient is intubated with the endotracheal tube in standard position",
                "ET tube terminates in the mid trachea",
            ),
            "central_line": w.pick(
                f"{s} central venous catheter ends in the superior vena cava",
                f"a {s}-sided central line terminates in the SVC",
                f"{s} central venous line with its tip over the SVC",
            ),
            "picc": w.pick(
                f"{s} PICC ends in the superior vena cava",
                f"a {s} PICC line terminates in the lower SVC",
                f"{s}-sided PICC with its tip projecting over the cavoatrial junction",
            ),
            "pacemaker": w.pick(
                f"{s} chest wall pacemaker with intact leads",
                f"a {s}-sided pacemaker is present with leads in expected position",
                f"{s} pectoral pacing device with leads over the right heart",
                f"cardiac pacemaker in the {s} chest wall",
            ),
            "chest_tube": w.pick(
                f"a {s} chest tube is in place",
                f"{s}-sided chest tube projects over the {s} lung",
                f"{s} thoracostomy tube is present",
            ),
            "enteric_tube": w.pick(
                "enteric tube courses below the diaphragm",
                "a nasogastric tube extends into the stomach",
                "the feeding tube passes into the stomach",
                "NG tube with its tip below the diaphragm",
            ),
        }[f.detail]
        w.say(text, device=1)
    if not found and wording == "telegraphic":
        w.say("none", device=0)
        w.labels.pop("Support Devices", None)


def _heart(w: Writer, by_kind: dict[str, list[Finding]]) -> None:
    big = by_kind.get("cardiomegaly", [None])[0]
    wide = by_kind.get("wide_mediastinum", [None])[0]
    if big is None and wide is None and w.chance(0.75):
        w.say(
            w.pick(
                "the cardiomediastinal silhouette is normal",
                "cardiomediastinal contours are within normal limits",
                "heart and mediastinum are normal in size and contour",
                "normal cardiac and mediastinal silhouette",
                "the heart size and mediastinal contours are unremarkable",
            ),
            cardiomegaly=0,
            wide_mediastinum=0,
        )
        return
    if big is None:
        w.say(
            w.pick(
                "the heart is normal in size",
                "heart size is within normal limits",
                "cardiac silhouette is not enlarged",
                "normal heart size",
                "no cardiomegaly",
            ),
            cardiomegaly=0,
        )
    elif not big.certain:
        w.say(
            w.pick(
                "possible mild cardiomegaly",
                "the heart may be mildly enlarged",
                "questionable enlargement of the heart",
                "borderline cardiac enlargement cannot be excluded",
            ),
            cardiomegaly=-1,
        )
    else:
        much = _amount(big, ("mildly", "moderately", "severely"))
        w.say(
            w.pick(
                f"the heart is {much} enlarged",
                f"{much[:-2]} cardiomegaly",
                f"{much} enlarged cardiac silhouette",
                f"there is {much[:-2]} enlargement of the cardiac silhouette",
                f"heart size is {much} enlarged",
            ).replace("severe cardio", w.pick("severe cardio", "marked cardio")),
            cardiomegaly=1,
        )
    if wide is None:
        if w.chance(0.6):
            w.say(
                w.pick(
                    "mediastinal contours are normal",
                    "the mediastinum is not widened",
                    "no mediastinal widening",
                    "unremarkable mediastinal contours",
                ),
                wide_mediastinum=0,
            )
    elif not wide.certain:
        w.say(
            w.pick("possible mild mediastinal widening", "the mediastinum may be slightly widened"),
            wide_mediastinum=-1,
        )
    else:
        w.say(
            w.pick(
                "the mediastinum is widened",
                "there is widening of the upper mediastinum",
                "widened superior mediastinum",
                "mediastinal widening is present",
                "enlarged mediastinal silhouette",
            ),
            wide_mediastinum=1,
        )


def _lobe(w: Writer, f: Finding) -> str:
    if f.hidden and f.kind == "consolidation":
        return w.pick("the retrocardiac left lower lung", "the left lower lung behind the heart")
    if f.hidden:
        return w.pick("the retrosternal space", "the retrosternal lung")
    if f.side == "bilateral":
        return w.pick(
            f"both {f.zone} lungs", f"the {f.zone} lung zones bilaterally", f"the bilateral {f.zone} lungs"
        )
    return w.pick(
        f"the {f.side} {f.zone} lung", f"the {f.side} {f.zone} lung zone", f"the {f.side} {f.zone} lung field"
    )


def _lungs(
    w: Writer, by_kind: dict[str, list[Finding]], febrile: bool, before: dict[str, Finding] | None
) -> None:
    said = False
    for f in by_kind.get("edema", []):
        said = True
        if not f.certain:
            w.say(
                w.pick("possible mild interstitial edema", "mild pulmonary edema cannot be excluded",
                       "findings may represent early interstitial edema"),
                edema=-1,
            )  # fmt: skip
        else:
            much = _amount(f, ("mild", "moderate", "severe"))
            w.say(
                w.pick(
                    f"{much} pulmonary edema",
                    f"there is {much} interstitial pulmonary edema",
                    f"perihilar haze and septal lines in keeping with {much} pulmonary edema",
                    f"{much} pulmonary vascular congestion and edema",
                    f"{much} bilateral interstitial edema",
                )
                + _change(w, f, before),
                edema=1,
            )
    for f in by_kind.get("consolidation", []):
        said = True
        where = _lobe(w, f)
        if not f.certain:
            w.say(
                w.pick(f"possible early consolidation in {where}", f"questionable consolidation in {where}",
                       f"subtle consolidation in {where} cannot be excluded"),
                consolidation=-1,
            )  # fmt: skip
        elif febrile:
            w.say(
                w.pick(
                    f"consolidation in {where} consistent with pneumonia",
                    f"dense consolidation in {where}, compatible with pneumonia",
                    f"{where} consolidation with air bronchograms, pneumonia",
                    f"there is pneumonia with consolidation in {where}",
                )
                + _change(w, f, before),
                consolidation=1,
                pneumonia=1,
            )
        else:
            w.say(
                w.pick(
                    f"consolidation in {where}",
                    f"there is dense consolidation in {where}",
                    f"consolidation with air bronchograms is seen in {where}",
                    f"{where} is consolidated",
                    f"focal consolidation in {where}",
                )
                + _change(w, f, before),
                consolidation=1,
            )
    for f in by_kind.get("opacity", []):
        said = True
        where = _lobe(w, f)
        if not f.certain:
            w.say(
                w.pick(f"possible faint opacity in {where}", f"questionable hazy opacity in {where}"),
                opacity=-1,
            )
        else:
            w.say(
                w.pick(
                    f"hazy opacity in {where}",
                    f"there are patchy ground-glass opacities in {where}",
                    f"ill-defined opacity in {where}",
                    f"patchy opacity projects over {where}",
                    f"hazy opacities are present in {where}",
                )
                + _change(w, f, before),
                opacity=1,
            )
    for f in by_kind.get("atelectasis", []):
        said = True
        base = "basilar" if f.zone == "lower" else "mid lung"
        where = f"bi{base}" if f.side == "bilateral" and base == "basilar" else f"{f.side} {base}"
        if not f.certain:
            w.say(
                w.pick(f"possible {where} atelectasis", f"faint {where} band may represent atelectasis"),
                atelectasis=-1,
            )
        else:
            w.say(
                w.pick(
                    f"{where} atelectasis",
                    f"linear {where} atelectasis",
                    f"there is {where} platelike atelectasis",
                    f"bands of {where} subsegmental atelectasis",
                    f"streaky {where} atelectasis is noted",
                )
                + _change(w, f, before),
                atelectasis=1,
            )
    for f in by_kind.get("nodule", []):
        said = True
        where, size = _lobe(w, f), _size(w, f.size_mm)
        if not f.certain:
            w.say(
                w.pick(f"possible {size} nodule in {where}", f"questionable nodule in {where}"),
                nodule=-1,
            )
        else:
            w.say(
                w.pick(
                    f"{size} nodule in {where}",
                    f"there is a {size} nodule in {where}",
                    f"a nodule measuring {size} projects over {where}",
                    f"rounded {size} pulmonary nodule in {where}",
                    f"{where} contains a {size} nodule",
                ),
                nodule=1,
            )
    quiet = {k: 0 for k in ("consolidation", "edema") if k not in by_kind}
    if not said:
        _say_one(
            w,
            ("the lungs are clear", {}),
            ("clear lungs", {}),
            ("both lungs are clear without focal consolidation", {"consolidation": 0}),
            ("no focal consolidation or pulmonary edema", {"consolidation": 0, "edema": 0}),
            ("the lungs are well expanded and clear", {}),
            ("lungs are clear of consolidation and edema", {"consolidation": 0, "edema": 0}),
        )
    elif quiet and w.chance(0.5):
        names = {"consolidation": w.pick("focal consolidation", "consolidation"), "edema": "pulmonary edema"}
        said_names = " or ".join(names[k] for k in quiet)
        w.say(
            w.pick(f"no {said_names}", f"there is no {said_names}", f"no evidence of {said_names}"), **quiet
        )


def _say_one(w: Writer, *options: tuple[str, dict[str, int]]) -> None:
    text, claims = options[int(w.rng.integers(len(options)))]
    w.say(text, **claims)


def _size(w: Writer, mm: float) -> str:
    return f"{round(mm)} mm" if mm < 10 or w.chance(0.4) else f"{mm / 10:.1f} cm"


def _pleura(w: Writer, by_kind: dict[str, list[Finding]], before: dict[str, Finding] | None) -> None:
    fluid, air = by_kind.get("effusion", [None])[0], by_kind.get("pneumothorax", [None])[0]
    if fluid is None and air is None and w.chance(0.92):
        w.say(
            w.pick(
                "no pleural effusion or pneumothorax",
                "there is no pleural effusion or pneumothorax",
                "no pneumothorax or pleural effusion is seen",
                "no evidence of effusion or pneumothorax",
                "negative for pneumothorax or pleural effusion",
                "the pleural spaces are clear without effusion or pneumothorax",
            ),
            effusion=0,
            pneumothorax=0,
        )
    if fluid is not None:
        side = _side(w, fluid)
        plural = "s" if fluid.side == "bilateral" else ""
        if fluid.hidden:
            w.say(
                w.pick(
                    "small posterior pleural effusion on the lateral view",
                    "the lateral view shows a small pleural effusion in the posterior costophrenic angle",
                    "small pleural effusion blunts the posterior costophrenic angle",
                )
                + _change(w, fluid, before),
                effusion=1,
            )
        elif not fluid.certain:
            w.say(
                w.pick(
                    f"possible trace {side} pleural effusion{plural}",
                    f"a tiny {side} pleural effusion cannot be excluded",
                ),
                effusion=-1,
            )
        else:
            much = _amount(fluid, ("small", "moderate", "large"))
            w.say(
                w.pick(
                    f"{much} {side} pleural effusion{plural}",
                    f"there {'are' if plural else 'is a'} {much} {side} pleural effusion{plural}",
                    f"{side} pleural effusion{plural}, {much} in size",
                    f"{much} layering {side} effusion{plural}",
                )
                + _change(w, fluid, before),
                effusion=1,
            )
        if air is None and w.chance(0.7):
            w.say(
                w.pick("no pneumothorax", "there is no pneumothorax", "no evidence of pneumothorax"),
                pneumothorax=0,
            )
    if air is not None:
        if not air.certain:
            w.say(
                w.pick(
                    f"possible tiny {air.side} apical pneumothorax", f"questionable {air.side} pneumothorax"
                ),
                pneumothorax=-1,
            )
        else:
            much = _amount(air, ("small", "moderate", "large"))
            w.say(
                w.pick(
                    f"{much} {air.side} pneumothorax",
                    f"there is a {much} {air.side} apical pneumothorax",
                    f"{air.side} pneumothorax, {much} in size",
                    f"a {much} pneumothorax is present on the {air.side}",
                )
                + _change(w, air, before),
                pneumothorax=1,
            )
        if fluid is None and w.chance(0.7):
            w.say(w.pick("no pleural effusion", "there is no effusion", "no pleural fluid"), effusion=0)
    for f in by_kind.get("pleural_thickening", []):
        where = f"{f.side} apical" if f.zone == "upper" else f"{f.side} lateral"
        place = "apex" if f.zone == "upper" else "lateral chest wall"
        if not f.certain:
            w.say(
                w.pick(f"possible {where} pleural thickening", f"questionable {where} pleural thickening"),
                pleural_thickening=-1,
            )
        else:
            w.say(
                w.pick(
                    f"{where} pleural thickening",
                    f"there is {where} pleural thickening",
                    f"pleural thickening along the {f.side} {place}",
                ),
                pleural_thickening=1,
            )


def _bones(w: Writer, by_kind: dict[str, list[Finding]]) -> None:
    found = by_kind.get("fracture", [])
    for f in found:
        if f.detail == "clavicle":
            text = w.pick(
                f"displaced fracture of the {f.side} clavicle",
                f"there is a {f.side} clavicle fracture",
                f"{f.side} clavicular fracture",
            )
        else:
            text = w.pick(
                f"displaced {f.side} rib fractures",
                f"there are several {f.side} rib fractures",
                f"fractures of {f.side} {f.zone} ribs",
                f"displaced fractures of adjacent {f.side} ribs with callus",
            )
        w.say(text, fracture=1)
    if not found and w.chance(0.5):
        _say_one(
            w,
            ("no acute osseous abnormality", {}),
            ("the bones are intact", {}),
            ("no rib fracture", {"fracture": 0}),
            ("osseous structures are unremarkable", {}),
            ("no displaced fracture is seen", {"fracture": 0}),
        )
