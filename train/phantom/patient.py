"""Who is examined and what is to be found: every random choice behind a phantom but pixel noise and wording.

The difficulty is fixed here, before any training: how often a finding occurs, how large and how dense it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

# P(finding in a study). Each in 5 to 30 %; about one study in five is normal.
PREVALENCE = {
    "cardiomegaly": 0.18,
    "wide_mediastinum": 0.08,
    "edema": 0.11,
    "consolidation": 0.14,
    "opacity": 0.12,
    "atelectasis": 0.14,
    "nodule": 0.12,
    "effusion": 0.20,
    "pneumothorax": 0.10,
    "pleural_thickening": 0.08,
    "fracture": 0.09,
    "device": 0.26,
}
DEVICES = ("endotracheal_tube", "central_line", "picc", "pacemaker", "chest_tube", "enteric_tube")
COMMON = 0.3  # no finding is made more frequent than this
# A finding drawn below this severity is equivocal: its film is faint and its report says "possible".
EQUIVOCAL = 0.10
NODULE_MM = (6.0, 30.0)  # diameters, uniform
SECOND_STUDY = 0.15  # patients examined twice; the second study has the first as its prior
LATERAL = 0.20  # studies with a lateral film as well
LATERAL_OF_PA = LATERAL / 0.6  # a lateral is taken of those who can stand, and they have a PA film
# What a lateral shows and a frontal does not, by kind: fluid too little to reach the lateral angle, a patch behind the
# heart, a nodule behind the sternum.
HIDDEN = {"effusion": "posterior", "consolidation": "retrocardiac", "nodule": "retrosternal"}


@dataclass(frozen=True)
class Finding:
    """One thing to be found. Sides are the patient's: the patient's left is the right half of the film."""

    kind: str
    side: str = "midline"  # left | right | bilateral | midline
    zone: str = ""  # upper | mid | lower
    severity: float = 0.5  # 0..1, of what this kind can be
    size_mm: float = 0.0  # nodule: diameter
    detail: str = ""  # device: which; fracture: rib | clavicle; of a hidden finding where, see HIDDEN
    seed: int = 0  # shape of this finding, kept from one study of a patient to the next

    @property
    def certain(self) -> bool:
        """Tell whether a report states the finding without hedging: its severity is at least EQUIVOCAL."""
        return self.severity >= EQUIVOCAL

    @property
    def hidden(self) -> bool:
        """Tell whether the frontal film shows nothing of it."""
        return HIDDEN.get(self.kind) == self.detail


@dataclass(frozen=True)
class Anatomy:
    """A body in mm; y runs down from the lung apices, x to the right of the film from the midline."""

    half_width: float  # of the rib cage at its widest, inside
    height: float  # lung apex to costophrenic angle
    wall: float  # thickness of the lateral chest wall
    ctr: float  # cardiothoracic ratio of the healthy heart
    dome: float  # height of the diaphragm's dome
    right_rise: float  # how much higher the right dome stands
    knob: float  # radius of the aortic knob
    breast: float  # 0 = none
    bone: float  # bone density, falls with age
    shape_seed: int  # ribs and vessels


@dataclass(frozen=True)
class Style:
    """Describe how a scanner and its post-processing render a body."""

    fov: float  # width of the field, mm
    aspect: float  # rows / columns
    shift_x: float
    shift_y: float  # lung apices below the upper edge, mm
    tilt: float  # radians
    scatter: float
    noise: float
    sharpen: float
    gamma: float
    window: tuple[float, float]  # quantiles shown as black and white
    collimation: float  # width of an unexposed border, fraction of the film; 0 = none
    marker: bool
    leads: int  # external monitoring leads
    film_seed: int


@dataclass(frozen=True)
class Examination:
    """One examination of a patient."""

    index: int  # 0 for the first, 1 for a follow-up
    view: str  # PA | AP
    lateral: bool
    findings: tuple[Finding, ...]
    anatomy: Anatomy
    style: Style
    report_seed: int


@dataclass(frozen=True)
class Patient:
    """Describe one patient: age in years, sex F or M, and the examinations in order of time."""

    number: int
    age: int
    sex: str
    studies: tuple[Examination, ...] = field(default=())


def draw_patient(
    seed: int,
    number: int,
    prevalence: float = 1.0,
    *,
    followups: float = SECOND_STUDY,
    laterals: float = LATERAL_OF_PA,
    hidden: float = 0.0,
) -> Patient:
    """Draw patient `number` of the population `seed`: always the same patient, on any machine and in any
    order.

    `prevalence` multiplies PREVALENCE, up to COMMON: a reader learns rare findings from fewer such patients.
    `followups` is the share of patients examined twice, `laterals` that of PA films with a lateral beside
    them.

    A share `hidden` of the patients has each finding of HIDDEN. Studies with a lateral film report it, unless
    the frontal film shows a finding of the same kind. Hidden findings have random numbers of their own, so
    that all else stays the same.
    """
    rng = np.random.default_rng([seed, number, 0xC4])
    sex = "F" if rng.random() < 0.48 else "M"
    age = int(np.clip(rng.normal(58, 18), 18, 95))
    sick = rng.random() < 0.35  # lies in bed: portable AP film, more tubes
    anatomy = _anatomy(rng, age, sex)
    findings = _findings(rng, sick, prevalence)
    first = _study(rng, 0, anatomy, findings, sick, laterals)
    studies = [first]
    if rng.random() < followups:
        later = _progress(rng, findings, prevalence)
        studies.append(_study(rng, 1, anatomy, later, sick, laterals))
    if hidden:
        behind = _hidden(np.random.default_rng([seed, number, 0x1D]), hidden)
        studies = [_with_hidden(study, behind) if study.lateral else study for study in studies]
    return Patient(number, age, sex, tuple(studies))


def _hidden(rng: np.random.Generator, share: float) -> list[Finding]:
    """Findings that only a lateral film shows, all plain to see there; a patient keeps them from study to study."""
    found = []
    for kind, where in HIDDEN.items():
        seed, chance = int(rng.integers(2**31)), rng.random()
        if kind == "effusion":  # always small; whose side it is, a lateral film does not tell
            f = Finding(kind, zone="lower", severity=float(rng.uniform(0.22, 0.41)))
        elif kind == "consolidation":
            f = Finding(kind, "left", "lower", severity=float(rng.uniform(0.22, 1.0)))
        else:
            size = float(rng.uniform(NODULE_MM[1] / 2, NODULE_MM[1]))
            f = Finding(kind, zone="upper", severity=float(rng.uniform(0.22, 1.0)), size_mm=size)
        if chance < share:
            found.append(replace(f, detail=where, seed=seed))
    return found


def _with_hidden(study: Examination, behind: list[Finding]) -> Examination:
    seen = {f.kind for f in study.findings}
    return replace(
        study, findings=tuple(_settle([*study.findings, *(f for f in behind if f.kind not in seen)]))
    )


def _anatomy(rng: np.random.Generator, age: int, sex: str) -> Anatomy:
    stature = rng.normal(1.0, 0.05)
    male = sex == "M"
    return Anatomy(
        half_width=(141 if male else 126) * stature * rng.normal(1, 0.03),
        height=(262 if male else 238) * stature * rng.normal(1, 0.05),
        wall=float(np.clip(rng.normal(30, 11), 12, 65)),
        ctr=float(np.clip(rng.normal(0.43, 0.025) + 0.0006 * (age - 50), 0.36, 0.495)),
        dome=rng.uniform(38, 62),
        right_rise=rng.uniform(4, 16),
        knob=rng.uniform(13, 17) + 0.09 * max(age - 40, 0),
        breast=0.0 if male else float(np.clip(rng.normal(0.55, 0.25), 0, 1)),
        bone=float(np.clip(rng.normal(1.12, 0.12) - 0.005 * (age - 40), 0.6, 1.4)),
        shape_seed=int(rng.integers(2**31)),
    )


def _severity(rng: np.random.Generator) -> float:
    """Mostly plain to see; about one in ten equivocal."""
    return float(rng.uniform(0, EQUIVOCAL)) if rng.random() < 0.09 else float(rng.uniform(0.22, 1.0))


def _findings(rng: np.random.Generator, sick: bool, prevalence: float) -> tuple[Finding, ...]:
    found: list[Finding] = []
    scale = {"device": 1.9 if sick else 0.55, "edema": 1.5 if sick else 0.8, "fracture": 1.0}
    side = lambda: "left" if rng.random() < 0.5 else "right"  # noqa: E731
    for kind, rate in PREVALENCE.items():
        seed = int(rng.integers(2**31))
        rate *= scale.get(kind, 1.0)
        if rng.random() >= max(rate, min(rate * prevalence, COMMON)):
            continue
        severity = _severity(rng)
        if kind in ("cardiomegaly", "wide_mediastinum"):
            found.append(Finding(kind, severity=severity, seed=seed))
        elif kind == "edema":
            found.append(Finding(kind, "bilateral", severity=severity, seed=seed))
        elif kind in ("consolidation", "opacity"):
            where = "bilateral" if kind == "opacity" and rng.random() < 0.3 else side()
            zone = str(rng.choice(["upper", "mid", "lower"], p=[0.3, 0.2, 0.5]))
            found.append(Finding(kind, where, zone, severity, seed=seed))
        elif kind == "atelectasis":
            where = "bilateral" if rng.random() < 0.3 else side()
            zone = "lower" if rng.random() < 0.8 else "mid"
            found.append(Finding(kind, where, zone, severity, seed=seed))
        elif kind == "nodule":
            size = float(rng.uniform(*NODULE_MM))
            zone = str(rng.choice(["upper", "mid", "lower"]))
            found.append(Finding(kind, side(), zone, severity, size, seed=seed))
        elif kind == "effusion":
            where = "bilateral" if rng.random() < 0.3 else side()
            found.append(Finding(kind, where, "lower", severity, seed=seed))
        elif kind == "pneumothorax":
            found.append(Finding(kind, side(), "upper", severity, seed=seed))
        elif kind == "pleural_thickening":
            zone = "upper" if rng.random() < 0.5 else "lower"
            found.append(Finding(kind, side(), zone, severity, seed=seed))
        elif kind == "fracture":
            detail = "clavicle" if rng.random() < 0.25 else "rib"
            zone = str(rng.choice(["upper", "mid", "lower"], p=[0.25, 0.5, 0.25]))
            found.append(Finding(kind, side(), zone, max(severity, 0.3), detail=detail, seed=seed))
        elif kind == "device":
            p = np.array([0.2, 0.22, 0.16, 0.2, 0.08, 0.14] if sick else [0.02, 0.24, 0.24, 0.42, 0.05, 0.03])
            for name in rng.choice(DEVICES, size=1 + int(rng.random() < 0.4), replace=False, p=p / p.sum()):
                where = side() if name != "pacemaker" or rng.random() < 0.15 else "left"
                found.append(Finding(kind, where, severity=0.7, detail=str(name), seed=seed))
    return tuple(_settle(found))


def _settle(found: list[Finding]) -> list[Finding]:
    """Keep one pleural space to one story, so that film and report cannot contradict each other."""
    effusion = next((f for f in found if f.kind == "effusion"), None)
    if effusion is not None:
        taken = {"left", "right"} if effusion.side == "bilateral" else {effusion.side}
        # Enough fluid hides whatever else is at the same base.
        found = [
            f
            for f in found
            if f.kind not in ("consolidation", "opacity", "atelectasis", "pleural_thickening", "nodule")
            or f.zone != "lower"
            or (f.side not in taken and f.side != "bilateral")
            or effusion.severity < 0.5
        ]
    air = next((f for f in found if f.kind == "pneumothorax"), None)
    if air is not None:
        found = [
            f
            for f in found
            if not (f.kind in ("pleural_thickening", "consolidation", "opacity") and f.side == air.side)
            or f.zone == "lower"
        ]
    return found


def _progress(
    rng: np.random.Generator, findings: tuple[Finding, ...], prevalence: float
) -> tuple[Finding, ...]:
    """Return the same patient days or months later: most findings stay, some change, some resolve, some are
    new."""
    later: list[Finding] = []
    for f in findings:
        if f.kind in ("fracture", "nodule", "cardiomegaly", "wide_mediastinum", "pleural_thickening"):
            later.append(f)
        elif rng.random() < 0.25:
            continue
        else:
            change = rng.choice([-0.35, 0.0, 0.35])
            later.append(replace(f, severity=float(np.clip(f.severity + change, 0.25, 1.0))))
    have = {f.kind for f in later}
    later += [f for f in _findings(rng, False, prevalence) if f.kind not in have and rng.random() < 0.4]
    return tuple(_settle(later))


def _study(
    rng: np.random.Generator,
    index: int,
    anatomy: Anatomy,
    findings: tuple[Finding, ...],
    sick: bool,
    laterals: float,
) -> Examination:
    portable = sick or any(f.detail == "endotracheal_tube" for f in findings)
    view = "AP" if portable or rng.random() < 0.08 else "PA"
    if view == "AP":  # a shallower breath, and a heart further from the detector
        anatomy = replace(anatomy, height=anatomy.height * rng.uniform(0.82, 0.94), ctr=anatomy.ctr * 1.05)
    return Examination(
        index=index,
        view=view,
        lateral=view == "PA" and bool(rng.random() < laterals),
        findings=findings,
        anatomy=anatomy,
        style=_style(rng, anatomy, view),
        report_seed=int(rng.integers(2**31)),
    )


def _style(rng: np.random.Generator, anatomy: Anatomy, view: str) -> Style:
    portable = view == "AP"
    fov = float(np.clip(2 * (anatomy.half_width + anatomy.wall) * rng.uniform(1.02, 1.2), 300, 440))
    aspect = 1.0 if rng.random() < 0.75 else float(rng.uniform(0.95, 1.18))
    room = fov * max(aspect, 1.0) - anatomy.height
    return Style(
        fov=fov,
        aspect=aspect,
        shift_x=rng.normal(0, 9 if portable else 5),
        shift_y=float(np.clip(room * rng.uniform(0.3, 0.6), 25, 90)),
        tilt=rng.normal(0, 0.05 if portable else 0.02),
        scatter=rng.uniform(0.2, 0.42) if portable else rng.uniform(0.05, 0.25),
        noise=rng.uniform(0.012, 0.03) if portable else rng.uniform(0.006, 0.018),
        sharpen=rng.uniform(0.0, 0.7),
        gamma=float(np.exp(rng.normal(0, 0.16))),
        window=(rng.uniform(0.001, 0.03), rng.uniform(0.97, 0.999)),
        collimation=rng.uniform(0.01, 0.05) if rng.random() < 0.3 else 0.0,
        marker=bool(rng.random() < 0.8),
        leads=int(rng.integers(2, 5)) if portable and rng.random() < 0.6 else 0,
        film_seed=int(rng.integers(2**31)),
    )
