"""The words of reports as the `rules` labeller reads them: short forms written out, long words spelt right.

An unknown word of six letters or more that is one or two typing errors away from a word of `RIGHT` becomes that word.
Findings are among them, and so are the words that deny or doubt: a misspelt "without" must not turn "no effusion" into
an effusion.
"""

from __future__ import annotations

import re
from functools import lru_cache

SHORT = {
    "pna": "pneumonia", "pnas": "pneumonia", "pneum": "pneumonia", "ptx": "pneumothorax", "ptxs": "pneumothoraces",
    "pntx": "pneumothorax", "pnx": "pneumothorax", "pneumo": "pneumothorax", "hydroptx": "hydropneumothorax",
    "hptx": "hydropneumothorax", "eff": "effusion", "effs": "effusions", "effus": "effusion",
    "pleff": "pleural effusion", "pleffs": "pleural effusions", "pl": "pleural", "pleur": "pleural",
    "opac": "opacity", "opacs": "opacities", "opacif": "opacification", "ggo": "ground glass opacity",
    "ggos": "ground glass opacities", "infilt": "infiltrate", "infilts": "infiltrates", "infil": "infiltrate",
    "infils": "infiltrates", "consol": "consolidation", "consols": "consolidations", "atx": "atelectasis",
    "atel": "atelectasis", "atelect": "atelectasis", "atelec": "atelectasis", "cardiomeg": "cardiomegaly",
    "hrt": "heart", "mediast": "mediastinum", "cardiomed": "cardiomediastinal", "sil": "silhouette",
    "silh": "silhouette", "cms": "cardiomediastinal silhouette", "fx": "fracture", "fxs": "fractures",
    "frx": "fracture", "nod": "nodule", "nods": "nodules", "nl": "normal", "nml": "normal", "unrem": "unremarkable",
    "clr": "clear", "sz": "size", "enl": "enlarged", "vasc": "vascular", "pulm": "pulmonary",
    "interst": "interstitial", "dz": "disease", "abnl": "abnormal", "bilat": "bilateral", "bibas": "bibasilar",
    "retrocard": "retrocardiac", "sm": "small", "mod": "moderate", "lg": "large", "incr": "increased",
    "decr": "decreased", "mult": "multiple", "unch": "unchanged", "prob": "probable", "poss": "possible",
    "susp": "suspected", "neg": "negative", "evid": "evidence", "adj": "adjacent", "thickn": "thickening",
    "ett": "endotracheal tube", "etts": "endotracheal tubes", "ngt": "nasogastric tube",
    "ngts": "nasogastric tubes", "ogt": "orogastric tube", "dht": "feeding tube", "cvl": "central venous line",
    "cvls": "central venous lines", "cvcs": "central venous catheters", "tlc": "central venous catheter",
    "rij": "right jugular line", "lij": "left jugular line", "ppm": "pacemaker",
    "isnt": "is not", "arent": "are not", "wasnt": "was not", "werent": "were not", "hasnt": "has not",
    "havent": "have not", "hadnt": "had not", "doesnt": "does not", "dont": "do not", "didnt": "did not",
    "cant": "cannot", "couldnt": "could not", "wouldnt": "would not",
}  # fmt: skip
"""Short forms. What has several meanings stays as it is: PE, CM, CT, RA."""

_NONE_OF = (
    r"effusions|nodules|masses|lesions|opacities|infiltrates|consolidations|fractures|pneumothoraces|tubes|lines"
    r"|drains|catheters"
)
_SIGNS = (
    (re.compile(r"[\u2019\u2018\u02bc\u00b4`]"), "'"), (re.compile(r"\bcan't\b"), "cannot"),
    (re.compile(r"\bwon't\b"), "will not"), (re.compile(r"(?<=[a-z])n't\b"), " not"),
    (re.compile(r"\b(there|it|that)'s\b"), r"\1 is"),
    (re.compile(r"(?<!\w)w/ ?o(?!\w)"), "without"), (re.compile(r"(?<!\w)w/(?= ?[a-z])"), "with "),
    (re.compile(r"(?<!\w)s/p(?!\w)"), "status post"), (re.compile(r"(?<!\w)c/w(?!\w)"), "consistent with"),
    (re.compile(r"(?<!\w)r/o(?!\w)"), "rule out"), (re.compile(r"(?<!\w)h/o(?!\w)"), "history of"),
    (re.compile(r"(?<!\w)b/l(?!\w)"), "bilateral"),
    (re.compile(r"(?<!\w)(?:d/c'?e?d|dc'e?d|d/c)(?!\w)"), "removed"),
    # A comma after them: each is said of what stands before it.
    (re.compile(r" ?\((?:-|\u2212|\u2013|neg)\),?"), " negative,"), (re.compile(r" ?\((?:\+|pos)\),?"), " present,"),
    (re.compile(rf"(?<!\S)0 (?=(?:[a-z]+ ){{0,2}}(?:{_NONE_OF})\b)"), "no "), (re.compile(r"  +"), " "),
)  # fmt: skip
_SIGN = re.compile(r"\([-+np\u2212\u2013]|[/'\u2019\u2018\u02bc\u00b4`]|(?<!\S)0 ")
_WORD = re.compile(r"[a-z]+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


RIGHT = _set(
    """
    cardiomegaly cardiac cardiomediastinal mediastinal mediastinum silhouette silhouettes enlarged enlargement widened
    widening opacity opacities opacification opacifications infiltrate infiltrates infiltration interstitial
    alveolar airspace nodular nodules neoplasm carcinoma vascular congestion engorgement perihilar consolidation
    consolidations consolidative pneumonia pneumonias bronchopneumonia infection infectious atelectasis atelectatic
    atelectases collapse collapsed pneumothorax pneumothoraces hydropneumothorax effusion effusions pleural hemothorax
    empyema thickening scarring plaques fracture fractures fractured
    catheter catheters endotracheal nasogastric orogastric tracheostomy pacemaker pacemakers defibrillator sternotomy
    intubated extubated subclavian jugular prosthetic stimulator
    pericardial subcutaneous emphysema vertebral compression granulomatous granuloma granulomas calcified
    degenerative hyperinflated hyperinflation scoliosis atherosclerotic
    without negative absence resolved resolution cleared removed removal withdrawn excluded exclude unremarkable
    preserved identified visualized visualised demonstrated detected observed apparent evident evidence possible
    possibly probable probably suspected suspicious questionable questioned borderline unlikely represent represents
    reflect
    suggest suggestive indicate concerning worrisome suspicion presumably unchanged previously previous neither nothing
    appreciated disappeared equivocal indeterminate excluding disappearance likelihood
    visible subsided drained resected confirmed present support explain entirely completely vanished evacuated normally
    """
)
"""Words of seven letters or more that a misspelt word may stand for."""

KNOWN = _set(
    """
    absences alveola alveoli alveolus appreciable appreciate appreciates atelectasias atheroma atheromatous
    atherosclerosis auspicious banished bordering borderland brained bronchopneumonic cannulated carcinoid
    cardia cardiacs chickening clarified cleaned clearer clearing clears cleaved collapses collapsing
    compassion completed completes compressed compressing compressional compressions compressive compressor
    concealing conceding conceiving conception concerned concerns concertina concession condemning confection
    conferred conferring confession conformed congestive connection conserving consolation consolations
    consolidate consolidated consolidating consolidator contention convection convening convention converging
    conversing converting costovertebral crucified defected defibrillate deflect degenerate degenerates
    degenerating degeneration dejected demonstrate demonstrates demonstrator detecting detects detested
    disappear disappearances disappears disinfection effused either ejaculated emaciated emphysematous
    endorsement enforcement engagement enlarge enlargements enlarger enlarging entirety epicardial evacuate
    evacuates evaluated evaluates evidenced evidences exceeding excludes explains exploding extravascular
    extubation formally fractional fractions fracturing grained granulomata granulomatosis hemithoraces
    hemithorax hyperexpanded hyperinflate hypervascular hypoinflated hypoinflation identifier identifiers
    identifies identify identifying identities inception incubated incubates indeterminant indicated indicates
    indicating indication indications indicator indicators induction infarction infarctions infected infecting
    infections infects infiltrated infiltrating infiltrative infiltrator infiltrators inflation inflection
    inflections infliction infraction injection injections insertion inspection insulated intention
    intercardiac interlobar interlobular interstitially interstitium intervertebral intimated intravascular
    intubate intubation invention livelihood livelihoods modular modules negatives neoplasma neovascular
    nodule noninfectious normalcy observe observer observes opacified opacifier opacify opacifying pacemaking
    pacification paracardial parahilar parapneumonic paravertebral parenchyma peacemaker peacemakers
    pericardia pericardiac pericardium pervious plagues plaque plaquelike pleura pleurae plural pneumatocele
    pneumatoceles pneumatosis pneumoconiosis pneumocystis pneumocyte pneumoniae pneumonic pneumonitis
    possibles precious preciously preferred presenting presents preserve preserver preservers preserves
    preserving preset presume presumed prevent prevertebral prophetic prosthesis prosthetics provable
    questioner questioning questions rained reelect reflected reflecting reflects regenerative reinfection
    reintubated rejected removals remove remover removes removing represented representing resent resented
    reserved resolutions resolve resolves resolving resorption respected reticulations revolution revolutions
    revolved scarfing scaring scarred sclerotic scoliotic silhouetted silhouetting simulator simulators
    sparring starring stimulate stimulated stimulates stimulation subjected subside subsides suggested
    suggestible suggesting suggestion suggestively suggests supports suspended suspending suspicions
    suspiciously thickened thickenings thickness ticketing tracheotomy trained unchained uncharted undetected
    unevident unidentified unlikelihood unobserved vanishes varnished vertebra vertebrae vertebrate vindicate
    visibly visualise visualises visualize visualizes wearisome withdraw withdrawal withdrawals withdrawing
    withdraws wizened
    """
)
"""Words of English or of medicine that come near RIGHT and mean something else, or another form of it."""

LONGEST = 32  # letters; hostile input is not searched


def plain(sentence: str) -> str:
    """Return a lower-cased sentence with its short forms written out and its long words spelt right."""
    sentence = written_out(sentence)
    if all(map(_stands, _WORD.findall(sentence))):
        return sentence
    return _WORD.sub(lambda found: _word(found.group()), sentence)


def written_out(sentence: str) -> str:
    """Return a lower-cased sentence with its signs and contractions as words: "w/o", "isn't", "(-)", "0 nodules"."""
    if _SIGN.search(sentence):
        for sign, words in _SIGNS:
            sentence = sign.sub(words, sentence)
    return sentence


@lru_cache(maxsize=65536)
def _stands(word: str) -> bool:
    return _word(word) == word


@lru_cache(maxsize=65536)
def _word(word: str) -> str:
    if word in SHORT:
        return SHORT[word]
    if len(word) < 6 or len(word) > LONGEST or word in RIGHT or word in KNOWN:
        return word
    return _corrected(word)


def _corrected(word: str) -> str:
    """The word of RIGHT that is nearest, if it is one error away, or two in a long word whose first letter is right."""
    # Words one error apart have a common remainder after at most one letter is left out of each.
    near = {right for left in _without(word) for right in _REMAINDERS.get(left, ())}
    # Of two that are as near, the longer: "excludd" is "excluded".
    best = min(((_distance(word, right), -len(right), right) for right in near), default=(9, 0, ""))
    if best[0] == 1:
        return best[2]
    if len(word) < 9:
        return word
    letters = _letters(word)
    likely = (
        right
        for right, has in _LONG.get(word[0], ())
        if abs(len(right) - len(word)) <= 2 and (letters ^ has).bit_count() <= 4
    )
    best = min(((_distance(word, right), -len(right), right) for right in likely), default=(9, 0, ""))
    return best[2] if best[0] == 2 else word


def _letters(word: str) -> int:
    """One bit for each letter that the word has; an error changes two of them at most."""
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) - ord("a"))
    return bits


def _without(word: str) -> set[str]:
    """`word`, and `word` without one letter."""
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _distance(a: str, b: str) -> int:
    """Letters left out, added, changed, or exchanged with their neighbour (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


_REMAINDERS: dict[str, list[str]] = {}
_LONG: dict[str, list[tuple[str, int]]] = {}  # by their first letter
for _right in sorted(RIGHT):
    for _left in _without(_right):
        _REMAINDERS.setdefault(_left, []).append(_right)
    if len(_right) >= 9:
        _LONG.setdefault(_right[0], []).append((_right, _letters(_right)))
