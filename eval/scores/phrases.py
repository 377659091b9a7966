"""The vocabulary of the `rules` labeller: which words mention a condition. `labels.py` applies it.

Everything matches lower-cased text with single spaces. The coverage follows the published behaviour of the CheXpert
labeller (Irvin et al. 2019, arXiv 1901.07031); `labels.py` lists where it differs.
"""

from __future__ import annotations

import re

CONDITIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""The 14 CheXpert conditions in CheXbert's order: No Finding last (the CheXpert CSV files put it first)."""

OTHER = "other abnormality"
"""Not one of the 14, but a report that asserts one of these is not "No Finding"."""


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(r"(?<![\w-])(?:" + "|".join(alternatives) + r")(?!\w)")


# A phrase here asserts the condition unless something around it denies or doubts it.
FINDINGS: dict[str, re.Pattern[str]] = {
    "Enlarged Cardiomediastinum": _words(
        r"(?:cardio)?mediastinal (?:widening|enlargement|prominence|fullness)",
    ),
    "Cardiomegaly": _words(
        r"cardiomegaly", r"cardiac enlargement", r"cardiac dilatation", r"(?:heart|cardiac) (?:is )?dilated"
    ),
    "Lung Opacity": _words(
        r"opaci(?:ty|ties|fied|fications?)",
        r"white[- ]?outs?",
        r"(?:reticulo|alveolo|broncho)?infiltrat(?:e|es|ion|ions|ive)",
        r"air[- ]?space (?:diseases?|process(?:es)?|changes?|filling|abnormalit(?:y|ies)|shadowing)",
        r"alveolar (?:diseases?|process(?:es)?)",
        r"interstitial (?:lung )?(?:diseases?|markings?|patterns?|changes?|prominence|thickening|process)",
        r"reticul(?:ar|onodular) (?:patterns?|markings?|changes?|shadowing)",
        r"reticulations?",
        r"(?:increased|patchy|hazy|streaky|airspace|lung|pulmonary|parenchymal|basilar|ill[- ]defined) densit(?:y|ies)",
        r"decreased (?:translucency|lucency)",
        r"ground[- ]glass(?: (?:change|shadowing|appearance)s?)?",
        r"(?=haz)(?<!perihilar )(?<!perihilar vascular )(?:haze|haziness)",
        r"(?=sca)(?<!pleural )(?<!pleuroparenchymal )(?<!pleural-parenchymal )(?:scars?|scarring)",
        r"peribronchial (?:thickening|cuffing)",
        r"parenchymal thickenings?",
        r"(?:coarse(?:ned)?|coarsening of|increased|prominent|accentuated) (?:the )?(?:lung |pulmonary )?markings",
        r"bronchial wall thickening",
    ),
    "Lung Lesion": _words(
        r"(?<!^calcified )(?<! calcified )(?:micro)?nodules?",
        r"nodular (?:densit(?:y|ies)|opacit(?:y|ies)|opacifications?|lesions?|shadows?)",
        r"(?:macro|micro)?nodularity",
        r"mass(?:es)?(?! effect)(?! index)",
        r"lumps?",
        r"(?:cavitary|cavitating|lung|pulmonary|parenchymal|spiculated|mass-like|space[- ]occupying) lesions?",
        r"(?:adeno|bronchogenic )?carcinomas?",
        r"neoplas(?:m|ms|tic)",
        r"tumou?rs?",
    ),
    "Edema": _words(
        r"(?<!tissue )(?<!subcutaneous )(?<!leg )(?<!ankle )o?edema(?:tous)?",
        r"(?:congestive )?(?:heart|cardiac) failure",
        r"chf",
        r"(?:cardiac|heart) decompensation",
        r"(?:pulmonary |venous |vascular |pulmonary vascular |pulmonary venous )?congesti(?:on|ve changes?)",
        r"(?:pulmonary )?(?:vascular|venous) (?:prominence|engorgement|hypertension)",
        r"(?:prominent|engorged|indistinct|ill[- ]defined) (?:pulmonary )?(?:vasculature|vascularity|vessels)",
        r"indistinctness",
        r"perihilar (?:vascular )?(?:haze|haziness)",
        r"(?:fluid|volume) overload",
        r"kerley",
        r"(?:inter)?(?:lobular )?septal (?:lines|thickening|prominence)",
    ),
    "Consolidation": _words(
        r"consolidat(?:ion|ions|ive|ed|ing)", r"(?:pulmonary |lung |parenchymal )condensations?"
    ),
    "Pneumonia": _words(
        r"(?:broncho)?pneumonias?",
        r"(?=inf)(?<!granulomatous )(?<!histoplasmosis )infections?",
        r"infectious",
    ),
    "Atelectasis": _words(
        r"atelecta(?:sis|ses|tic)",
        r"(?=col)(?<!vertebral )(?<!body )(?<!compression )collapse[ds]?(?! of (?:the )?(?:vertebra|t\d|l\d))",
    ),
    "Pneumothorax": _words(r"(?:hydro|ha?emo|pyo)?pneumothora(?:x|xes|ces)", r"ptx"),
    "Pleural Effusion": _words(
        r"(?=eff)(?<!pericardial )(?<!joint )effusions?",
        r"pleural (?:fluid|liquid|collections?)",
        r"fluid (?:in|within|along|tracking (?:in|into|along)) (?:the )?(?:\w+ )?fissures?",
        r"(?:ha?emo|hydro|chylo)(?:pneumo)?thora(?:x|ces)",
        r"empyemas?",
    ),
    "Pleural Other": _words(
        r"(?:pleural|pleuro-?parenchymal|pleural-parenchymal|pleuro-?pericardial) "
        r"(?:thickening|scars?|scarring|plaques?|calcifications?|capping|caps?|fibrosis|reaction)",
        r"(?:bi)?apical (?:thickening|capping|caps?)",
        r"thickening of the (?:\w+ )?pleura",
        r"thickened pleura",
        r"fibrothorax",
    ),
    "Fracture": _words(r"(?:micro)?fractur(?:es?|ed|ing)"),
    "Support Devices": _words(
        r"(?:central|venous|arterial|picc|midline|iv|dialysis|subclavian|jugular|femoral|port|picc|support|swan|monitoring"
        r"|ij|cvc|hickman|pa) (?:central |venous )*lines?",
        r"lines? and tubes?",
        r"tubes? and lines?",
        r"(?=lin)(?<!septal )(?<!kerley )(?<!b )(?<!pleural )(?<!fissural )(?<!interstitial )(?<!fold )(?<!lung )lines",
        r"piccs?",
        r"(?:(?!eustachian|fallopian|the|a|an|no|or|and)[a-z]+ )?tubes?",
        r"intubated",
        r"(?:micro)?catheters?",
        r"cvc",
        r"swan[- ]ganz",
        r"(?:port|medi|infus)(?:a|-a-|-)?(?:cath|port)s?",
        r"(?:chest |power)?ports?(?! of)",
        r"pace(?:r|rs|makers?)",
        r"pacing (?:devices?|leads?|wires?|electrodes?)",
        r"(?:pacemaker |icd |defibrillator )(?:leads?|wires?|generators?)",
        r"(?:a)?icd",
        r"defibrillators?",
        r"pigtails?",
        r"drains?",
        r"(?:balloon pump|iabp|lvad|impella|ecmo|tracheostomy(?: tube)?)",
        r"(?:prosthetic|mechanical|bioprosthetic|artificial|replaced) (?:\w+ )?valves?",
        r"valve (?:replacements?|prosthes[ie]s|repair)",
        r"(?:median )?sternotomy (?:wires?|sutures?|hardware)",
        r"sternal wires?",
        r"cerclage wires?",
        r"hardware",
        r"tav[ri]",
        r"trach(?: tube|ostomy)?(?! (?:is )?(?:mid|dev|shift))",
        r"(?:loop|event|rhythm) recorders?",
        r"(?:vp|ventriculo-?peritoneal|ventricular) shunts?",
        r"(?:dobb?hoff|cordis|swan|sheaths?|introducers?|vad|rvad|bivad|mitraclip|watchman|valves? prosthes[ie]s)",
        r"(?:hip|shoulder|joint|aortic|mitral|tricuspid|humeral)? ?(?<!breast )prosthes[ie]s",
        r"(?:spinal|intramedullary|harrington|fixation) rods?",
        r"leads(?! to)",
        r"arthroplast(?:y|ies)",
        r"(?:orthopa?edic |fixation |surgical |pedicle )?(?:screws?|plates?)(?!-)(?! atelectasis)",
        r"cannulas?",
        r"(?:embolization )?coils?",
        r"stents?",
        r"stimulators?",
        r"(?:monitoring|support|implanted|cardiac|medical|assist|pacing|ecg|ekg) "
        r"(?:devices?|equipment|apparatus|electrodes?)",
    ),
    OTHER: _words(
        r"(?:subcutaneous )?emphysema(?:tous)?",
        r"blunting",
        r"blunted",
        r"(?:hyper|over)[- ]?(?:inflat\w+|expan\w+|aerat\w+|disten\w+)",
        r"copd",
        r"chronic obstructive \w+(?: disease)?",
        r"bull(?:a|ae|ous)",
        r"blebs?",
        r"asthma",
        r"bronchi(?:ectasis|ectatic|tis|olitis)",
        r"(?:reactive )?airways? disease",
        r"cuffing",
        r"fibro(?:sis|tic)",
        r"(?:kypho|dextro|levo|rotatory )?scoliosis",
        r"scoliotic",
        r"kypho(?:sis|tic)",
        r"degenerat\w+",
        r"spondylo\w+",
        r"osteophyt\w+",
        r"arthr(?:itis|itic|opathy|osis)",
        r"osteo(?:penia|penic|porosis|arthritis|dystrophy)",
        r"deminerali[sz]\w+",
        r"calcifi\w+",
        r"granulomas?",
        r"granulomatous",
        r"atheroscler\w+",
        r"tortuo\w+",
        r"ectati\w+",
        r"ectasia",
        r"aneurysm\w*",
        r"hernias?",
        r"eventrations?",
        r"elevat(?:ed|ion)",
        r"volume loss",
        r"deformit(?:y|ies)",
        r"deformed",
        r"(?:lymph)?adenopathy",
        r"prominen(?:t|ce)",
        r"cephali[sz]ation",
        r"thickenings?",
        r"aspiration",
        r"contusions?",
        r"ha?emorrhage",
        r"ha?ematomas?",
        r"metasta\w+",
        r"(?:lytic|sclerotic|bony|osseous|calcified) lesions?",
        r"pneumomediastinum",
        r"pneumoperitoneum",
        r"free (?:intraperitoneal |subdiaphragmatic )?air",
        r"tuberculosis",
        r"sarcoid\w*",
        r"foreign bod(?:y|ies)",
        r"bullets?",
        r"dislocat(?:ed|ion)",
        r"wedging",
        r"(?:vertebral|compression) collapse",
        r"collapse of (?:the )?(?:[tl]\d+ )?(?:[tl]\d+|vertebra\w*)",
    ),
}

# A mention of a condition has a word with one of these in it. Words are looked at first, since expressions of many
# words are slow, and most clauses mention one condition or none. tests/eval/test_labels.py derives them from FINDINGS.
STEMS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "enlargement", "fullness", "prominence", "widening",
    ),
    "Cardiomegaly": (
        "cardiomegaly", "dilatation", "dilated", "enlargement",
    ),
    "Lung Opacity": (
        "alveolar", "bronchial", "decreased", "densit", "ground", "haz", "infiltrat", "interstitial",
        "markings", "opaci", "parenchymal", "reticul", "scar", "space", "white",
    ),
    "Lung Lesion": (
        "carcinoma", "lesion", "lump", "mass", "neoplas", "nodular", "nodule", "tumo",
    ),
    "Edema": (
        "chf", "congesti", "decompensation", "defined", "edema", "engorged", "engorgement", "failure",
        "hypertension", "indistinct", "kerley", "overload", "perihilar", "prominence", "prominent", "septal",
    ),
    "Consolidation": (
        "condensation", "consolidat",
    ),
    "Pneumonia": (
        "infection", "infectious", "pneumonia",
    ),
    "Atelectasis": (
        "atelecta", "collapse",
    ),
    "Pneumothorax": (
        "pneumothora", "ptx",
    ),
    "Pleural Effusion": (
        "chylopneumothora", "chylothora", "collection", "effusion", "emopneumothora", "emothora", "empyema", "fluid",
        "hydropneumothora", "hydrothora", "liquid",
    ),
    "Pleural Other": (
        "calcification", " cap", "fibrosis", "fibrothorax", "plaque", "reaction", "scar", "thicken",
    ),
    "Fracture": (
        "fractur",
    ),
    "Support Devices": (
        "apparatus", "arthroplast", "artificial", "balloon", "cannula", "cath", " coil", "cordis", "cvc",
        "defibrillator", "device", "drain", "ecmo", "electrode", "equipment", "extubat", "hardware", "hoff", "iabp",
        "icd",
        "impella", "introducer", "intubated", " leads", " line", "mechanical", "mitraclip", " pace", "pacing", "picc",
        "pigtail", " plate", " port", "powerport", "mediport", "mediaport", "infusport", "infusaport",
        "portport", "portaport", "prosthes", "prosthetic", "recorder", "replaced", " rod", "screw",
        "sheath", "shunt", " stent", "stimulator", " suture", "swan", " tav", " trach", " tube", "vad", "valve",
        "watchman", " wire",
    ),
    OTHER: (
        "adenopathy", "aerat", "aneurysm", "arthr", "aspiration", "asthma", "atheroscler", "bleb", "blunted",
        "blunting", "bronchi", "bull", "calcifi", "cephali", "collapse", "contusion", "copd", "cuffing",
        "deformed", "deformit", "degenerat", "deminerali", "disease", "dislocat", "disten", "ectasia",
        "ectati", "elevat", "ematoma", "emorrhage", "emphysema", "eventration", "expan", "fibro", "foreign",
        "free", "granuloma", "hernia", "inflat", "kypho", "lesion", "metasta", "obstructive", "osteo",
        "pneumomediastinum", "pneumoperitoneum", "prominen", "sarcoid", "scoliosis", "scoliotic", "spondylo",
        "thickening", "tortuo", "tuberculosis", "volume", "wedging",
    ),
}  # fmt: skip

# --- look-alikes: the same word of another part of the body, or of a device ------------------------------------------

_ORGAN = (
    r"(?:liver|hepatic|renal|kidneys?|adrenal|spleen|splenic|pancrea\w+|gallbladder|bladder|thyroid|prostate|ovar\w+"
    r"|uter\w+|brain|intracranial|parotid|bowel|gastric|stomach|colon(?:ic)?|abdominal|pelvic|breasts?)"
)
_JOINT = r"(?:joint|knees?|hips?|shoulders?|elbows?|ankles?|wrists?|glenohumeral|middle ear|ear)"
_LIMB = (
    r"(?:legs?|foot|feet|ankles?|arms?|limbs?|extremit(?:y|ies)|skin|face|scrotum|brain|bowel|larynx|soft tissues?"
    r"|wall)"
)
_DEVICE = r"(?:wires?|leads?|catheters?|screws?|rods?|hardware|stents?|tubes?|plates?|pacemaker|electrodes?)"
_VERTEBRA = r"(?:[ctl]\d+|vertebra\w*|spin\w+|end-?plates?)"
_HOLLOW = r"(?:stomach|bowel|colon|ivc|svc|gallbladder|bladder|veins?|vena cava|esophagus)"
_IN = r" (?:in|of|within|involving|on|at) (?:the |her |his |an? )?(?:(?:left|right|lower|upper|known) )*"


def _elsewhere(before: str, after: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(rf"(?<!\w)(?:{before}) $"), re.compile(rf"(?:{after})(?!\w)")


ELSEWHERE: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "Pleural Effusion": _elsewhere(
        rf"(?:cardiac|pericardial|{_JOINT})(?: joint)?", rf"{_IN}(?:{_JOINT}|pericardium|pericardial \w+)"
    ),
    "Lung Lesion": _elsewhere(rf"{_ORGAN}(?: \w+)?", rf"{_IN}{_ORGAN}"),
    "Lung Opacity": _elsewhere("skin|cutaneous|surgical skin", rf"{_IN}(?:skin|breast|abdom\w+)"),
    "Edema": _elsewhere(
        r"pedal|peripheral|cerebral|dependent|scrotal|laryngeal|facial|periorbital|marrow|lower extremity|limb|leg"
        r"|ankle|subcutaneous|soft tissue|body wall|chest wall|bowel wall|skin|vasogenic",
        rf"{_IN}{_LIMB}|{_IN}(?:bowel|chest|soft) (?:wall|tissues?)",
    ),
    "Pneumonia": _elsewhere(
        r"(?:wound|urinary|tract|skin|ear|sinus|line|catheter|device|joint|bladder|abdominal|soft tissue)",
        rf"{_IN}(?:{_LIMB}|{_JOINT}|wound|urinary|{_ORGAN})",
    ),
    "Atelectasis": _elsewhere(
        rf"{_VERTEBRA}(?: body)?|compression|{_HOLLOW}(?: (?:is|are))?",
        rf"(?: of)?(?: the)? ?(?:{_VERTEBRA}|{_HOLLOW})",
    ),
    "Fracture": _elsewhere(rf"{_DEVICE}(?: is| are)?|stress", rf"(?:{_IN}| )(?:\w+ )?(?:\w+ )?{_DEVICE}"),
    "Support Devices": _elsewhere(
        r"paraspinal|paratracheal|paravertebral|junction|skin fold|fracture|growth|eustachian|fallopian|x-ray",
        "\0",
    ),
}
"""Condition -> what stands right before, or right after, where the word does not mean the condition."""


def elsewhere(condition: str, text: str, start: int, end: int) -> bool:
    """Tell whether the mention text[start:end] of `condition` is of another part of the body, or of a device."""
    if condition not in ELSEWHERE:
        return False
    before, after = ELSEWHERE[condition]
    return bool(before.search(text[max(0, start - 40) : start]) or after.match(text, end))


TAKEN_OUT = _words(r"(?:self-)?extubat(?:ed|ion)")
"""Says that a device was removed, and is a mention of it."""

# Words that are always doubtful as evidence of the condition, as the CheXpert labeller has it.
ALWAYS_UNCERTAIN: dict[str, re.Pattern[str]] = {
    "Edema": re.compile(
        r"congestion|congestive change|vascular|venous|vessels|indistinct|haz[ei]|kerley|septal"
    ),
}
# "CHF" and "heart failure" also raise the question of a large heart (published behaviour of the CheXpert labeller).
HEART_FAILURE = re.compile(r"(?:heart|cardiac) failure|chf")

_CONTOUR = r"(?:contours?|silhouettes?|outlines?|shadows?|configurations?|structures?|margins?|sizes?|width)"
_JOINED = r"(?:(?:,| and| or|/| ?&)+ ?\w+){0,3}"  # "cardiac, mediastinal and hilar contours"

# Structures: what is said of them depends on the state that the sentence gives them.
STRUCTURES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("cardiomediastinal", _words(r"cardio-?mediastin(?:um|al)" + rf"(?:{_JOINED} {_CONTOUR})?(?: sizes?)?")),
    (
        "Enlarged Cardiomediastinum",
        _words(rf"mediastinal{_JOINED} {_CONTOUR}", r"mediastinum", r"paratracheal stripe"),
    ),
    (
        "Cardiomegaly",
        _words(
            rf"(?:cardiac|cardio-?pericardial|pericardial|heart){_JOINED} {_CONTOUR}",
            r"heart(?! (?:failure|rate|disease|valve|block|surgery|border|transplant|decompensation|sounds?|tones?))",
            r"cardiothoracic (?:ratio|index)",
        ),
    ),
    (
        "Pleural Effusion",
        _words(
            r"costophrenic(?: and cardiophrenic)? (?:angles?|sulc(?:us|i)|recess(?:es)?|xxxx)", r"cp angles?"
        ),
    ),
)
STRUCTURE_STEMS: dict[str, tuple[str, ...]] = {
    "cardiomediastinal": ("mediastin",),
    "Enlarged Cardiomediastinum": ("mediastin", "paratracheal"),
    "Cardiomegaly": ("cardi", "heart"),
    "Pleural Effusion": ("costophrenic", "cp"),
}
"""As STEMS."""
