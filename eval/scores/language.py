"""Whether a text is an English report of a chest, so that the `rules` labeller may judge it.

The labeller knows English words of the chest. Of any other text it would find nothing, and call that No Finding. A text
is judged unless it is plainly something else: another script, another language, another part of the body, or words that
no report of a chest has. In doubt it is judged: "Normal." and "No change." are reports.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from eval.scores import phrases
from eval.scores.spelling import plain, written_out

Reason = Literal["no words", "another script", "another language", "another part of the body", "not a report"]

_LETTERS = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[a-zA-Z\u00c0-\u024f\u1e00-\u1eff]")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ENGLISH = _set(
    """
    a about above accounting across acute adequate after again all also although an and any appear appears are
    area as at away be because been before below best between both but by can cannot change changed changes
    clear clinical compared comparison complete consider consistent could current date day days demonstrate
    demonstrated demonstrates do does down due during each evaluated evaluation evidence exam examination
    except film films finding findings first focal follow following for free from further given good had has
    have he her here high his history i if image images impression in increased indication interval into is it
    its known large later lateral left less like likely limited limits low lower made male female man may mild
    mildly moderate more most multiple my negative new no none normal not noted of old on one only or other
    otherwise out over patient pain position possible post present previous prior probable radiograph
    radiographs report right scan second see seen severe shortness should show showed showing shown shows side
    since size small so some stable still study suggest than that the their then there these they this those
    to today two unchanged under unremarkable until up upper view views visible was we were what when where
    which while who with within without would x year yes you your
    """
)
"""Words that tell English from its neighbours, and that reports use."""

REPORT = _set(
    """
    normal abnormal abnormality abnormalities unremarkable clear cleared stable change changes changed
    unchanged improved improving improvement worse worsened worsening negative none nothing acute chronic
    active disease diseases process interval findings finding exam examination study film films radiograph
    radiographs xray ray ap portable view views prior previous comparison above below same similar nad wnl
    resolved resolution limited evidence impression focal degenerative vascular artery coronary parenchymal
    metastatic metastases deformity adenopathy lymphadenopathy hernia stent clips surgical postoperative
    postsurgical injury separation correlate please fracture fractures fractured mass masses lesion lesions
    edema oedema effusion effusions nodule nodules nodular swelling calcified calcification calcifications
    tube tubes line lines drain drains catheter catheters device devices wires hardware leads port bony
    osseous spine spinal scoliosis kyphosis osteopenia bones thickening scar scars scarring density densities
    shadow collapse infection inflammatory tumor tumour neoplasm carcinoma prosthesis intubated extubated
    extubation stimulator pathology pathological trapping tb volume volumes mets metastasis asbestos plaque
    plaques honeycombing miliary lymphangitic embolus pe ild nil base bases ij ng og tip stripe paratracheal
    """
)
"""Words of which a short report may consist, whatever it is of."""

CHEST = re.compile(
    r"chest|cxr|\w*thora\w*|\w*pulmon\w*|lungs?|lobes?|lobar|lingula\w*|hil(?:um|a|ar)|perihilar|\w*pleura\w*|\w*cardi\w+"
    r"|\w*pneumo\w*|hearts?|\w*mediastin\w*|aort\w+|trache\w*|\w*bronch\w+|airways?|airspace|interstiti\w+|alveol\w+"
    r"|\w*diaphragm\w*|costophrenic|cp|ribs?|clavic\w+|stern(?:um|al|otomy)|opaci\w+|consolidat\w+|infiltrat\w+|atelect\w+"
    r"|congesti\w+|\w*emphysema\w*|hyperinflat\w*|copd|granulom\w+|picc|endotracheal|pacemakers?|pacer|carina\w*|svc"
    r"|apices|apical|biapical|apex|\w*basilar|basal|fissures?|vasculature|vascularity|silhouettes?|haz[ey]|haziness|markings"
    r"|reticul\w*|covid|ards|tuberculosis|sarcoid\w*|cabg|dobb?hoff|impella|iabp|ecmo|kerley|hiatal|whiteout|aicd|icd"
    r"|hyperexpan\w*|hypoinflat\w*|bull(?:a|ae|ous)|fibrosis|empyemas?|tavr|trach|cavit\w+"
    r"|effusions?|tubes?|catheters?|central|venous|subclavian|jugular"
)
"""Words of the chest, its films and its devices, as `spelling.plain` has them."""

ELSEWHERE = _set(
    """
    abdomen pelvis pelvic liver hepatic biliary gallbladder bile duct ducts cbd kidney kidneys renal abdominal
    spleen splenic pancreas pancreatic adrenal adrenals ureter ureters bladder prostate uterus uterine ovary
    ovaries ovarian adnexa adnexal endometrium endometrial cervix bowel colon colonic appendix cecum rectum
    rectal duodenum jejunum ileum mesenteric peritoneal ascites retroperitoneal brain cerebral cerebellar
    cerebellum intracranial ventricles sulci midbrain cortex infarct skull calvarium sinuses sella pituitary
    orbit orbits knee meniscus meniscal ligament ligaments tendon tendons patella patellar femur femoral tibia
    tibial fibula ankle foot wrist scaphoid metacarpal metatarsal hip acetabulum elbow radius ulna breast
    breasts mammogram mammography mammographic birads thyroid parotid testis testes testicular scrotal lumbar
    sacrum sacral disc disk foraminal stenosis fetus fetal gestational mri mr flair diffusion weighted
    ultrasound sonographic hydronephrosis cholelithiasis gravid placenta
    """
)
"""Of another part of the body, or of another kind of examination."""

FOREIGN = _set(
    """
    el los las una unas del por con sin para que se es son está estan están como muy más pero ni hay pulmón
    pulmones pulmonar pulmonares derrame corazón tamaño neumotórax derecho derecha izquierdo izquierda
    radiografía tórax cardiomegalia consolidación normales hallazgos evidencia observa observan dentro silueta
    cardíaca lesiones costales aguda agudas agudo alteraciones alteración neumonía paciente
    le les des du une un est sont et avec sans pas dans sur au aux ne ce cette qui poumon poumons pulmonaire
    pulmonaires épanchement epanchement cœur coeur cardiaque droit droite gauche médiastin radiographie
    normale normales foyer foyers plèvre pleurale taille pneumopathie opacités opacité
    der die das den dem ein eine einer eines kein keine keinen keiner und ist sind nicht mit ohne auf bei im
    zum zur von lunge lungen lungenflügel herz herzgröße erguss pleuraerguss pleuraergüsse rechts links
    rechten linken beidseits röntgen groß unauffällig unauffälliger unauffälliges infiltrat befund stauung
    verschattung verschattungen hinweis nachweis altersentsprechend regelrecht
    os um uma uns umas da dos das não nao com sem em na nas nos ao aos pelo pela são coração pulmões pulmão
    direito esquerdo esquerda direita sinais
    il lo gli uno degli delle della dello del nel nella è sono polmone polmoni cuore versamento pleurico
    destro destra sinistro sinistra senza né segni
    het een de niet geen van met zonder zijn wordt longen hart vocht
    lorem ipsum dolor amet consectetur adipiscing elit sed eiusmod tempor incididunt labore dolore magna
    aliqua enim minim veniam quis nostrud exercitation ullamco laboris nisi aliquip commodo consequat
    och är inte med ingen inga eller
    dan dengan tidak paru jantung pada yang
    ve bir yok akciğer kalp ile
    """
)
"""Words of Spanish, French, German, Portuguese, Italian, Dutch, Swedish, Indonesian and Turkish reports, and filler."""


# The endotracheal tube, and Latin in English.
_LOOKS_FOREIGN = re.compile(r"\bet(?= ?-?(?:tubes?|tip)\b)|\bde[ -]novo\b|\bet al\b")
_ABBREVIATIONS = _set("et im na nos ao em os la le")

_REFUSAL = re.compile(
    r"\bas an ai\b|\bi(?:'m| am)? ?(?:sorry|apologi[sz]e)\b"
    r"|\bi (?:cannot|can't|can not|am unable to) (?:provide|assist|help|interpret|analy[sz]e|diagnose)\b"
)
# Names its subject: a report of a chest and a hip is judged, one of an abdomen with the bases of the lungs is not.
_PLAINLY = re.compile(r"\b(?:chest|lungs?|cxr|thorax|pneumothorax)\b")
# How many words of a text each list has, in one number: a sum counts them all in one pass. 2**24 words are enough.
_COUNT = 24
_ALL, _ENGLISH, _FOREIGN, _CHEST, _REPORT, _ELSEWHERE, _SPEAKER = (1 << _COUNT * i for i in range(7))


@lru_cache(maxsize=65536)
def _kinds(word: str) -> int:
    """Return which lists have the word; short forms and misspellings count as what they stand for."""
    read = plain(word).split()
    return (
        _ALL
        + _ENGLISH * (word in ENGLISH)
        + _FOREIGN * (word in FOREIGN and word not in ENGLISH)
        + _CHEST * any(CHEST.fullmatch(w) is not None for w in read)
        + _REPORT * any(w in REPORT for w in read)
        + _ELSEWHERE * (word in ELSEWHERE)
        + _SPEAKER * (word in ("i", "ai"))
    )


@lru_cache(maxsize=65536)
def _tally(token: str) -> int:
    """Count the words of what stands between two blanks, "w/o" and the like as the words that they stand for."""
    return sum(map(_kinds, _LETTERS.findall(written_out(token))))


def _mentions_a_finding(text: str) -> bool:
    """Tell whether the labeller would find a condition, and not its look-alike elsewhere ("knee effusion")."""
    text = plain(" ".join(text.split()))
    return any(
        not phrases.elsewhere(condition, text, *mention.span())
        for condition, pattern in phrases.FINDINGS.items()
        for mention in pattern.finditer(text)
    )


def _foreign(text: str) -> int:
    """Count the words of FOREIGN that are no term or abbreviation of an English report."""
    text = _LOOKS_FOREIGN.sub(" ", text)
    found = [word for word in _LETTERS.findall(text) if _kinds(word) // _FOREIGN & 1]
    # One of these is an abbreviation where English finds something. German "kein" is none: "Kein Pneumothorax."
    if len(found) == 1 and found[0] in _ABBREVIATIONS and _mentions_a_finding(text):
        return 0
    return len(found)


def why_not_judged(text: str) -> Reason | None:
    """Return why `text` is not a report that the labeller may judge, None where it may."""
    text = text.lower()
    tally = sum(map(_tally, text.split()))

    def count(kind: int) -> int:
        return tally // kind & (1 << _COUNT) - 1

    if not tally:
        return "no words"
    if not text.isascii():
        letters = sum(map(len, _LETTERS.findall(text)))
        if 3 * len(_LATIN.findall(text)) < 2 * letters:
            return "another script"
    if count(_FOREIGN) > count(_ENGLISH) and _foreign(text) > count(_ENGLISH):
        return "another language"
    if count(_ELSEWHERE):
        # "abdomen" and "abdominal" are one place
        chest, elsewhere = (
            len({word[:5] for word in _LETTERS.findall(text) if _kinds(word) // bit & 1})
            for bit in (_CHEST, _ELSEWHERE)
        )
        # One such word in a report that finds something may be an aside: "Fracture. The liver is normal."
        if elsewhere > chest + 3 * bool(_PLAINLY.search(text)) and (
            elsewhere > 1 or not _mentions_a_finding(text)
        ):
            return "another part of the body"
    if (count(_SPEAKER) and _REFUSAL.search(text)) or not (
        count(_CHEST) or count(_REPORT) or _mentions_a_finding(text)
    ):
        return "not a report"
    return None


def judged(text: str) -> bool:
    """Tell whether the labeller judges `text`: an English report of a chest, as far as its words tell.

    A text that is not judged has no labels at all, not even No Finding; `why_not_judged` says why. The choice is made
    by fixed lists of words, the same everywhere.
    """
    return why_not_judged(text) is None
