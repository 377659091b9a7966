"""The words around a mention that the `rules` labeller reads: states, denials, doubts, and where their scope ends.

Data only; `labels.py` applies it. Everything matches lower-cased text with single spaces. The choices follow the
published behaviour of the CheXpert labeller: "likely", "suggestive of" and "consistent with" assert, "no new" doubts.

To search a clause for every cue is most of the labeller's time, and most clauses have none. A `Cue` therefore names
words and stems of which each of its matches has at least one; a test proves that of every expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cue:
    """An expression, and what a clause must have for it to match: one of `words`, of `stems` or of `signs`."""

    pattern: re.Pattern[str]
    bit: int
    words: frozenset[str]
    stems: tuple[str, ...]
    signs: str


CUES: list[Cue] = []


def _cue(pattern: re.Pattern[str] | str, words: str = "", stems: str = "", signs: str = "") -> Cue:
    cue = Cue(re.compile(pattern), 1 << len(CUES), frozenset(words.split()), tuple(stems.split()), signs)
    CUES.append(cue)
    return cue


def _any(*alternatives: str) -> re.Pattern[str]:
    """Any of the alternatives, as whole words. Where one begins with what may not stand before it, the letters that
    follow come first, as (?=...): they fail faster."""
    return re.compile(r"(?<!\w)(?:" + "|".join(alternatives) + r")(?!\w)")


_IS = r"(?:is|are|was|were)"
_MODAL = r"(?:may|might|could|would|can)"
_CANNOT = r"(?:cannot|can not|can't|could not)"
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|noted|evident|detected|demonstrated|observed|found|apparent|shown"
    r"|visible|confirmed)"
)
_MOVED = r"(?! (?:by|about|approximately|slightly|to|into|\d))"
_CHANGED = r"(?! (?:up|down|from|to|into)\b)"
_REMOVED = (
    rf"(?:resolved|cleared|disappeared|removed|withdrawn{_MOVED}|extracted|discontinued|gone{_CHANGED}|subsided|vanished|abated"
    r"|drained|resected|evacuated|excised)"
)
SIDE = r"(?:left|right)"
_SIZE = r"(?:tiny|small|trace|minimal|mild|moderate|large|bigger|larger|smaller)"

# --- states of a structure ---------------------------------------------------------------------------------------

NORMAL = _any(
    r"normal(?:ly)?", r"unremarkable", r"preserved", r"intact", r"clear", r"sharp", r"wnl", r"nonenlarged",
    r"within (?:the )?normal (?:limits?|range)", r"(?:within )?(?:the )?(?:upper )?limits? of normal",
    r"(?:not|no longer|without)(?: \w+ly)?(?: \w+)? "
    r"(?:enlarge\w*|widen\w*|blunt\w*|prominen\w*|dilated|increased|big)",
)  # fmt: skip
ABNORMAL = _any(
    r"enlarge(?:d|ment)", r"enlarging", r"widen(?:ed|ing)", r"prominen(?:t|ce)", r"increased?", r"large", r"big",
    r"bulky", r"globular", r"dilated", r"broadened", r"blunt(?:ed|ing)", r"obliterat(?:ed|ion)", r"effaced",
    r"effacement",
)  # fmt: skip
UNSETTLED = _any(
    r"borderline", r"stable", r"unchanged", r"similar", r"accentuated", r"exaggerated", r"magnified", r"obscured",
    r"(?:no|not|without)(?: \w+){0,3} chang(?:e|ed)", r"(?:difficult|hard) to (?:assess|evaluate|determine|exclude)",
    rf"{_CANNOT} be (?:\w+ly )?(?:assessed|evaluated|determined)",
    r"(?:not|no longer)(?: \w+ly)? (?:normal|unremarkable|preserved|within normal limits)",
    r"(?:not|poorly|incompletely|suboptimally) (?:\w+ly )?(?:well )?"
    r"(?:seen|evaluated|assessed|visuali[sz]ed|defined)",
)  # fmt: skip
_PLAIN = (
    r"(?:of|in|the|size|overall|upper|lower|superior|right|left|appearing|postoperative|postsurgical|central|global"
    r"|\w+ly)"
)
_STRUCTURE = (
    r"(?:heart|cardiac|cardiomediastinal|mediastinal|mediastinum|hilar|pulmonary|vascular|vascularity|vasculature"
    r"|aortic|aorta|contours?|silhouettes?|configurations?|shapes?|width|and|or)"
)
ATTACHED = re.compile(rf"(?: {_PLAIN})* ")
JOINED = re.compile(rf"(?:,? (?:{_PLAIN}|{_STRUCTURE}))* ")
"""What may stand between a state and its structure: "enlarged upper mediastinum", "normal heart and mediastinum"."""
ATTRIBUTIVE = re.compile(r" (?!(?:in|size|limits|and|or|at|for|since|from|with|to)\b)\w")
"""After a state: it belongs to the noun that follows, not to the structure before."""

PLACED = re.compile(
    r" (?:line |catheter )?(?:tips?\b|in (?:place|situ|(?:\w+ )?position)\b|terminat|ends?\b|project|remain|overl"
    r"|unchanged)"
)
"""After a device: it is there, whatever is denied before ("no pneumothorax, PICC tip in SVC")."""

# --- denials -----------------------------------------------------------------------------------------------------

_NOT_OF_CHANGE = (
    r"(?! new\b)(?! (?:longer|further|doubt)\b)(?! evidence to (?:rule out|exclude))"
    r"(?!(?: \w+){0,3} (?:changes?|changed|increase|improvement|progression|worsening|decrease)\b)"
)
_NO_WISH = r"(?<!^)(?<!^ )(?<!: )(?<!to )(?<!please )(?<!for )(?<!and )"
"""Before "exclude" and "rule out": not as what is asked for ("to rule out pneumonia")."""
NEGATED_BEFORE = _cue(
    _any(
        rf"(?:no|without){_NOT_OF_CHANGE}", r"neither", r"never(?: had)?", r"negative for", r"nil",
        rf"nor(?: (?:{_IS}|do|does|did|has|have|can)(?: there| it| i| we)?(?: been| an?)?"
        r"(?: (?:see|identify|find|have))?)?", r"rather than", r"instead of",
        r"nothing(?! but)", r"no longer (?:an?|any|the)", rf"no longer (?:\w+ly )?{_SEEN} (?:is|are)",
        r"no longer(?= $)", r"(?:do|does|did) not (?:\w+ly )?(?:show|demonstrate|reveal|have|contain)",
        r"not(?! (?:\w+ly )?(?:exclude|ruled?|changed|increased|decreased|well|clear|resolved|new|only|just"
        r"|be (?:excluded|ruled)))",
        r"(?:free|clear|cleared|clearing|void|devoid) of", r"absence of", r"lack(?:s|ing)?(?: of)?", r"den(?:y|ies)",
        r"(?=res)(?<!partial )(?<!incomplete )(?<!near )(?<!nearly )(?<!near[- ]complete )(?<!nearly complete )"
        r"(?<!almost complete )resolution of", r"disappearance of",
        r"absent(?= (?!and\b|or\b|in\b|on\b|at\b|from\b|with\b))",
        r"(?:removal|withdrawal|extraction|explantation) of", r"history of",
        r"(?=re|cl)(?<!partially )(?<!nearly )(?<!largely )(?<!mostly )(?<!almost )(?<!not )(?<!have )(?<!has )"
        r"(?:resolved|removed|cleared)(?= (?!and\b|or\b|with\b|since\b|in\b|on\b))",
        rf"(?=exc)(?<!cannot )(?<!not ){_NO_WISH}exclud(?:e|es|ing)",
        rf"(?=rul)(?<!cannot )(?<!not ){_NO_WISH}(?:rules?|ruling) out",
    ),
    "no not without neither nor never nil rather free clear void lack history rule rules ruling",
    "negative absent instead nothing cleared clearing devoid absence lacking lacks deny denies resolution resolved "
    "disappearance remov withdrawal extraction explantation exclud",
)  # fmt: skip
NEGATED_AFTER = _cue(
    _any(
        rf"(?:{_IS}|(?:has|have|had)(?: been)?|been)?,? ?\b(?:not|no longer)(?: been)?(?: \w+ly)? {_SEEN}",
        rf"{_IS} absent", r"absent",
        rf"(?:has|have|had) (?:\w+ly |since |now |been )*{_REMOVED}", r"none", r"nil", r"negative", r"removed",
        r"extracted", rf"(?:has|have|had|{_IS}) (?:\w+ly |since |now |already |been |all )*(?:ruled out|excluded)",
        r"can (?:now )?be (?:\w+ly )?(?:ruled out|excluded)", rf"gone{_CHANGED}",
        r"removal",
        rf"{_IS} (?:\w+ly |now |all )*(?:resolved|removed|excluded|ruled out|gone|resected)", r"resolved", r"vanished",
        rf"(?:can|could) (?:no longer|not now|not) be {_SEEN}",
        r"(?:has|have|did|does) not (?:recur(?:red)?|returned?)",
        r"no longer (?:exists?|persists?|there|remains?)", r"(?:regressed|cleared|gone) (?:completely|entirely|fully)",
        rf"(?:completely|entirely|fully) (?:regressed|{_REMOVED})",
        r"(?:is|are|appears?|remains?) (?:\w+ly )*(?:normal|unremarkable|within (?:normal )?limits)",
        r"(?:interval|complete) resolution", rf"{_IS} previously (?:seen|demonstrated|visuali[sz]ed)",
    ).pattern
    + r"|: ?(?:no|absent|negative|none|nil)\b|^-free\b|^ free(?=[.,;]|$)"
    r"|^[:,]? ?(?:now |\w+ly )?(?:been )?(?:ruled out|excluded)\b",
    "not none nil gone normal limits free",
    "longer absent resol clear disappear remov withdrawn extracted discontinued subsided vanished abated drained "
    "resected evacuated excised negative excluded ruled regressed unremarkable previously",
    ":",
)  # fmt: skip
RESOLVED = re.compile(
    r"resol|clear|gone|subsid|disappear|vanish|abat|regress|drain|remov|withdraw|extract|discont"
)
ALMOST = _any(
    r"nearly",
    r"almost",
    r"partial(?:ly)?",
    r"incomplete(?:ly)?",
    r"largely",
    r"mostly",
    r"near",
    r"not",
    r"essentially",
)
"""With RESOLVED: "has nearly resolved" still asserts."""
ALMOST_BEFORE = re.compile(rf"{ALMOST.pattern}(?: \w+ly| yet)?(?: been)?[ -]$")

DEVICE_GONE_AFTER = _cue(
    _any(
        r"(?=pul)(?<!not been )(?<!not )pulled(?! back)", r"(?=tak)(?<!not been )(?<!not )taken out",
        r"out(?=[.,;]|$| in the interval| now)", r"d/c",
        r"(?:not|no longer) in (?:place|situ|position)",
    ),
    "out d not longer",
    "pulled taken",
)  # fmt: skip
"""What is said of devices alone."""
OF_DEVICE = re.compile(
    r"(?:tips?|ends?|courses?|distal (?:part|portion)) of (?:(?:the|this|an?) )?(?:\w+ ){0,4}$"
)
PART_OF_DEVICE = _any(
    r"tips?", r"ends?", r"courses?", r"side[- ]?(?:ports?|holes?)", r"distal (?:part|portion)"
)
"""Where a part is not seen, the device is there all the same."""

PURPOSE = _cue(
    _any(
        r"to (?:suggest|indicate|explain|account for|support|imply|signify|warrant|justify|confirm|diagnose|raise"
        r"|represent|point to|correspond to|correlate with)",
        rf"(?:that|which) (?:{_MODAL}|should|will|is|are|suggests?|indicates?|explains?|represents?|raises?)",
        r"(?:suspicious|suggestive|concerning|worrisome|indicative|typical|characteristic|diagnostic|consistent|compatible)"
        r" (?:for|of|with)", r"pointing to(?:wards?)?", r"suggesting", r"indicating", r"in keeping with",
    ),
    "to that which pointing",
    "suspicious suggest concerning worrisome indicat typical characteristic diagnostic consistent compatible keeping",
)  # fmt: skip
"""Between what is denied and what it would be evidence of: "no opacity is seen to suggest pneumonia" denies both."""
DENIED_EVIDENCE = _cue(
    _any(
        rf"(?:no|without){_NOT_OF_CHANGE}", r"nothing(?! but)", r"none", r"neither", r"nor", r"never",
        r"not (?:\w+ly )?(?:an?|any|show|see|demonstrate|reveal|have)", r"absence of", r"lack of", r"free of",
    ),
    "no not without none neither nor never lack free",
    "nothing absence",
)  # fmt: skip
SEEN = re.compile(
    rf"(?:{_IS}|(?:has|have) been) (?:\w+ly )?(?:{_SEEN}|here|there|available|appreciated)|(?<=there )(?:is|are)"
)

# --- doubts ------------------------------------------------------------------------------------------------------

DOUBTED_BEFORE_FIRST = _cue(
    _any(
        rf"(?:{_CANNOT}|not|difficult to|hard to|unable to)(?: \w+ly)? (?:exclude|rule out)",
        r"not (?:\w+ly )?excluded",
        r"(?:no|without) new", r"no evidence to (?:rule out|exclude)",
        rf"{_MODAL} or {_MODAL} not(?: \w+ly)?(?: be| represent| have)?",
    ),
    "new may might could would can rule",
    "exclude",
)  # fmt: skip
"""Doubts that contain a negation; they are tried before the denials."""
DOUBTED_BEFORE = _cue(
    _any(
        r"possibl[ey]", r"possibility of", r"potential(?:ly)?", r"probabl[ey]", r"presumabl[ey]", r"presumed",
        r"suspect(?:ed|s)?", r"suspicious for", r"suspicion(?: (?:for|of))?", r"questionabl[ey]", r"perhaps", r"maybe",
        r"question(?:s|ed)?(?: of)?", r"equivocal", r"borderline", r"indeterminate", r"may", r"might",
        rf"{_MODAL}(?: also| well| possibly| simply| in part| partly| all)? "
        r"(?:represent|reflect|indicate|include|be|suggest|have|correspond|relate|signify|mean|imply)\w*",
        r"concern(?:ing|ed)? for", r"concern of", r"worrisome for", r"evaluation (?:for|of)",
        r"(?:evaluated?|assess|assessment|check|look|looking|screen|screening) for",
        r"(?:(?<=^)|(?<=^ )|(?<=: )|(?<=to )|(?<=please )|(?<=for )|(?<=and ))(?:exclude|rule out)", r"suggestion of",
        r"differential(?: diagnos[ei]s)?(?: considerations?)?(?: \w+){0,3} includ(?:es?|ing)", r"consider",
        r"considerations? (?:include|of|for)",
        r"(?=dou)(?<!no )(?<!without )doubt(?:s|ed|ful)?(?: (?:that|whether|if))?(?: there (?:is|are))?",
        r"(?:un|less )likely(?: to)?(?: represent| be| reflect)?", r"improbabl[ey]", r"conceivabl[ey]",
        r"(?:more likely|likelier|more probably)(?: [\w/-]+){0,6}? than", r"possibilit(?:y|ies)(?: (?:of|for|that))?",
        r"(?:little|minimal|minor|trace|tiny|small),? if any,?", r"if any", r"if (?:at all )?present",
        r"(?:whether|(?:unclear|uncertain|unsure|unknown|indeterminate|questionable) if)(?: or not)?"
        r"(?: (?:there|this|these|it|they|that)(?: (?:is|are))?)?", r"favou?r(?:s|ed|ing)?",
        r"correlat(?:e|ion)(?: clinically)? for",
    ).pattern
    + r"|\?",
    "may might could would can if maybe whether rule check look looking",
    "evaluate assess screen exclude "
    "possib potential probab presumabl presumed suspect suspicious suspicion question perhaps equivocal borderline "
    "indeterminate concern worrisome evaluation suggestion differential consider doubt likel improbabl conceivabl favo "
    "correlat",
    "?",
)  # fmt: skip
DOUBTED_AFTER = _cue(
    _any(
        rf"{_MODAL}(?: also| well| possibly)? be (?:\w+ly )?(?:present|seen|considered|there)",
        rf"{_CANNOT} (?:\w+ly )?be (?:\w+ly )?(?:excluded|ruled out)",
        r"(?:not|never) (?:\w+ly )*(?:excluded|ruled out)",
        rf"{_MODAL} not (?:\w+ )?be", r"possible", r"suspected", r"obscured", r"limited", r"in the differential",
        rf"{_IS} (?:\w+ly )?(?:questioned|questionable|considered|favou?red|equivocal|unlikely|less likely)",
        r"(?:not|poorly|incompletely|suboptimally) (?:well |\w+ly )*(?:evaluated|assessed)",
        r"not (?:well|clearly|definitely|fully|adequately) (?:\w+ )?"
        r"(?:seen|visuali[sz]ed|identified|demonstrated|defined)",
        r"(?:to|must) be (?:\w+ly )?(?:excluded|ruled out)",
        r"(?:(?:has|have|had) )?not (?:\w+ly )?(?:been )?(?:\w+ly )?(?:excluded|ruled out)",
        r"not (?:\w+ly )?appreciated", r"(?:difficult|hard) to (?:exclude|assess|evaluate)",
        rf"{_MODAL} (?:also )?have this appearance", r"should be (?:considered|excluded|ruled out)",
        r"if (?:any|at all|present|real)(?=[,.;)]|$)", r"doubtful", r"conceivable", r"improbable", r"unlikely",
        r"(?=un|qu)(?<!of )(?:uncertain|unclear|questionable)(?! (?:significance|etiology|nature|origin|cause))",
        rf"{_IS} an? (?:remote |distinct |real |less likely )?(?:possibility|consideration)",
        rf"(?:{_MODAL} be|{_IS}) (?:difficult|hard|impossible) to (?:see|detect|exclude|rule out|appreciate|identify)",
        rf"{_MODAL}(?: easily)? be (?:missed|overlooked|hidden|masked)", r"less likely",
        rf"{_CANNOT} be (?:\w+ly )?(?:decided|determined|confirmed|distinguished|differentiated)",
    ).pattern
    + r"|\?",
    "may might could would can cannot should if not poorly hard",
    "ruled possib suspected obscured limited differential question considered favo equivocal likely incompletely "
    "suboptimally difficult excluded doubtful conceivable improbable uncertain unclear consideration impossible",
    "?",
)  # fmt: skip
_EITHER = r"(?:or|versus|vs|and/or)"
_NEAR = r"(?:(?!(?:on|in|at|of|left|right|one|two|and|with)\b)[\w-]+ )"
EITHER_BEFORE = _cue(rf"\b{_EITHER} {_NEAR}{{0,4}}$", "or versus vs")
EITHER_AFTER = _cue(rf"^ {_NEAR}{{0,2}}{_EITHER} (?!(?:less|more|greater|so)\b)", "or versus vs")
"""Two findings as alternatives: both are uncertain."""

# --- where a scope ends ------------------------------------------------------------------------------------------

_HEDGED = r"(?! (?:(?:un|less |not )?likely|improbable|doubtful))"
CLAUSE = _cue(
    _any(
        r"but", r"however", rf"(?:al)?though{_HEDGED}", r"whereas", r"while", r"yet", r"except(?: for)?", r"aside from",
        r"apart from", r"other than", r"besides", r"in addition", r"otherwise", r"nevertheless",
        rf"and(?= (?:{_SIZE}|present|persists|remains) (?:on|at) the {SIDE})",
    ),
    "but yet",
    "however though whereas while except aside apart other besides addition nevertheless left right",
)  # fmt: skip
VERB = _any(
    r"is",
    r"are",
    r"was",
    r"were",
    r"has",
    r"have",
    r"had",
    r"remains?",
    r"appears?",
    r"shows?",
    r"demonstrates?",
)
IF_ANY = _any(r"if any", r"if at all", r"if present", r"if real")
STANDS_APART = _any(VERB.pattern, IF_ANY.pattern)
"""Cues to the right that belong to the mention even after a comma: "tiny effusion, if any"."""
_STOPS = (
    VERB.pattern, r"there", r"since", r"after", r"following", r"status post", r"s/p", r"compared", r"given", r"because",
    r"which", r"therefore", r"and (?:the|an?|there|no)",
    r"(?=wit)(?<!consistent )(?<!compatible )(?<!associated )(?<!in keeping )(?<!concerning )with",
)  # fmt: skip
STOP = re.compile(_any(*_STOPS).pattern + "|:")
"""Words after which a denial or doubt to the left no longer reaches."""
STOP_BACKWARD = _any(
    *_STOPS, r"(?:represent|reflect|suggest|indicat|concern)\w*", r"due to", r"secondary", r"consistent", r"compatible",
    r"keeping", r"suspicious", r"worrisome", r"likely",
)  # fmt: skip
"""Words over which a denial or doubt to the right does not reach back."""
ASSERTS = _any(
    r"small", r"tiny", r"trace", r"minimal", r"(?:mild|moderate|severe|marked)(?:ly)?", r"extensive", r"massive",
    r"stable", r"unchanged", r"persistent", r"chronic", r"old", r"healed", r"interval", r"new", r"prior", r"again",
    r"(?:increas|decreas|worsen|improv)(?:ed|ing)", r"left", r"right", r"bilateral", r"(?:bi)?basilar", r"bibasal",
    r"multiple", r"scattered", r"patchy", r"streaky", r"linear", r"hazy", r"dense", r"low", r"prominent", r"calcified",
    r"an?", r"the", r"placement", r"insertion", r"post(?:surgical|operative)", r"still", r"also",
)  # fmt: skip
"""Words that begin an assertion of their own after a comma or "and", outside a closed "A, B or C" list. "Large" is not
among them: "no consolidation, large effusion" denies."""

# --- what refers to another clause -----------------------------------------------------------------------------------

_PAST = r"(?:was|were|had|has been|have been|had been)"
_MAIN = r"(?:is|are|has|have|can|cannot|could)"
RELATIVE = _cue(
    rf",? (?:which|that) {_PAST} [^,;:]{{0,80}}?(?:,|(?= {_MAIN} ))"
    rf"|, (?:for|in|of|at|on) which [^,;:]{{0,80}},"
    rf"|, (?:previously |formerly )?(?:present|seen|noted|visible|described|reported|demonstrated|identified|suspected"
    rf"|questioned)\b[^,;:]{{0,60}},(?= {_MAIN} )",
    "which that",
    "present seen noted visible described reported demonstrated identified suspected questioned",
)
"""What was, in a relative clause; the main clause tells what is: "an effusion, which was seen before, is gone"."""
FORMER = re.compile(r"(?:previous(?:ly)?|formerly|once) $")
ONE_SIDE = _cue(
    rf"^((?:there (?:is|are) )?(?:an? )?(?:(?:{_SIZE}|new|stable|unchanged|persistent|chronic|residual|loculated) )*"
    rf"{SIDE}(?:[- ]sided)?),? (?:and|but|with) no (?:significant |definite |visible )?{SIDE}(?:[- ]sided)?(?= )",
    stems="left right",
)
"""Two sides with one noun: "small right and no left effusion"; what is left out denies the other side."""
PAST = _any(_PAST, r"previous(?:ly)?", r"prior", r"earlier", r"yesterday", r"formerly", r"before")
PRONOUN = _cue(
    r"^ ?(?:it|this|these|they|those|both)(?= (?:is|are|was|were|has|have|can|cannot|no longer)\b)",
    "it this these they those both",
)
"""At the beginning of a clause without a finding: stands for those of the clause before."""
_THERE = r"(?:is|are|it is|they are|now|still|present|seen|persists?|remains?)"
_AMOUNT = rf"(?:{_SIZE}|present|persists?|persistent|remains?|unchanged|stable|seen|(?:in|de)creased)"
ELLIPSIS = _cue(
    r"(?<!no )(?<!view )\bones?(?= (?:is|are|persists?|remains?|on|in|at|projects?|was|measures|has)\b|[.,]?$)"
    rf"|^ ?(?:(?:there is )?(?:an?|the) )?(?:{_SIZE} )?(?:{_THERE} )*(?:on|at) the {SIDE}"
    r"(?: (?:base|apex|side))?(?=[.,]?$)"
    rf"|^ ?(?:on )?(?:the )?{SIDE}(?:[- ]sided?)?(?: one| side)?(?= (?:(?:is|are|has) )?(?:still )?{_AMOUNT}\b"
    r"(?! (?:clear|normal|free|unremarkable)))",
    "one ones left right",
)
"""Another of what the clause before denied: "no effusion on the right; a small one persists on the left"."""
