"""The words around a mention that the `rules` labeller reads: states, denials, doubts, and where their scope ends.

Data only; `labels.py` applies it. Everything matches lower-cased text with single spaces. The choices follow the
published behaviour of the CheXpert labeller: "likely", "suggestive of" and "consistent with" assert, "no new" doubts.
"""

from __future__ import annotations

import re


def _any(*alternatives: str) -> re.Pattern[str]:
    """Any of the alternatives, as whole words."""
    return re.compile(r"(?<!\w)(?:" + "|".join(alternatives) + r")(?!\w)")


_IS = r"(?:is|are|was|were)"
_MODAL = r"(?:may|might|could|would|can)"
_CANNOT = r"(?:cannot|can not|can't|could not)"
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|noted|evident|detected|demonstrated|observed|found|apparent|shown"
    r"|visible)"
)
_REMOVED = r"(?:resolved|cleared|disappeared|removed|withdrawn|extracted|discontinued)"

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

# --- denials -----------------------------------------------------------------------------------------------------

_NOT_OF_CHANGE = (
    r"(?! new\b)(?! (?:longer|further|doubt)\b)(?! evidence to (?:rule out|exclude))"
    r"(?!(?: \w+){0,3} (?:changes?|changed|increase|improvement|progression|worsening|decrease)\b)"
)
NEGATED_BEFORE = _any(
    rf"(?:no|without){_NOT_OF_CHANGE}", r"nor", r"neither", r"never", r"negative for", r"rather than", r"instead of",
    r"not(?! (?:\w+ly )?(?:exclude|ruled?|changed|increased|decreased|well|clear|resolved|new|only|just"
    r"|be (?:excluded|ruled)))",
    r"(?:free|clear|cleared|clearing|void|devoid) of", r"absence of", r"lack(?:s|ing)?(?: of)?", r"den(?:y|ies)",
    r"(?<!partial )(?<!incomplete )(?<!near )(?<!nearly )resolution of", r"disappearance of",
    r"(?:removal|withdrawal|extraction|explantation) of", r"history of",
    r"(?<!partially )(?<!nearly )(?:resolved|removed)(?= (?!and\b|or\b|with\b|since\b|in\b|on\b)\w)",
    r"(?<!cannot )(?<!not )exclud(?:e|es|ing)", r"(?<!cannot )(?<!not )rules? out",
)  # fmt: skip
NEGATED_AFTER = re.compile(
    _any(
        rf"(?:{_IS}|(?:has|have) been|been)?,? ?(?:not|no longer)(?: \w+ly)? {_SEEN}", rf"{_IS} absent", r"absent",
        rf"(?:has|have|had) (?:\w+ly |since |now |been )*{_REMOVED}", r"none", r"negative", r"removed", r"extracted",
        rf"{_IS} (?:\w+ly |now )*(?:resolved|removed|excluded|ruled out)", r"resolved",
        r"(?:is|are|appears?|remains?) (?:\w+ly )*(?:normal|unremarkable|within (?:normal )?limits)",
        r"(?:interval|complete) resolution", rf"{_IS} previously (?:seen|demonstrated|visuali[sz]ed)",
    ).pattern
    + r"|: ?(?:no|absent|negative|none)\b"
)  # fmt: skip
RESOLVED = re.compile(r"resol|clear")
ALMOST = _any(
    r"nearly", r"almost", r"partial(?:ly)?", r"incomplete(?:ly)?", r"largely", r"mostly", r"near", r"not"
)
"""With RESOLVED: "has nearly resolved" still asserts."""

# --- doubts ------------------------------------------------------------------------------------------------------

DOUBTED_BEFORE_FIRST = _any(
    rf"(?:{_CANNOT}|not|difficult to|hard to|unable to)(?: \w+ly)? (?:exclude|rule out)", r"not (?:\w+ly )?excluded",
    r"(?:no|without) new", r"no evidence to (?:rule out|exclude)",
)  # fmt: skip
"""Doubts that contain a negation; they are tried before the denials."""
DOUBTED_BEFORE = re.compile(
    _any(
        r"possibl[ey]", r"possibility of", r"potential(?:ly)?", r"probabl[ey]", r"presumabl[ey]", r"presumed",
        r"suspect(?:ed|s)?", r"suspicious for", r"suspicion(?: (?:for|of))?", r"questionabl[ey]", r"perhaps", r"maybe",
        r"question(?:s|ed)?(?: of)?", r"equivocal", r"borderline", r"indeterminate", r"may", r"might",
        rf"{_MODAL}(?: also| well| possibly| simply| in part| partly| all)? "
        r"(?:represent|reflect|indicate|include|be|suggest|have|correspond|relate|signify|mean|imply)\w*",
        r"concern(?:ing|ed)? for", r"concern of", r"worrisome for", r"evaluation (?:for|of)", r"suggestion of",
        r"differential(?: diagnos[ei]s)?(?: considerations?)?(?: \w+){0,3} includ(?:es?|ing)", r"consider",
        r"considerations? (?:include|of|for)", r"favou?r(?:s|ed|ing)?", r"correlat(?:e|ion)(?: clinically)? for",
    ).pattern
    + r"|\?"
)  # fmt: skip
DOUBTED_AFTER = re.compile(
    _any(
        rf"{_MODAL}(?: also| well| possibly)? be (?:\w+ly )?(?:present|seen|considered|there)",
        rf"{_CANNOT} (?:\w+ly )?be (?:\w+ly )?(?:excluded|ruled out)",
        r"(?:not|never) (?:\w+ly )*(?:excluded|ruled out)",
        rf"{_MODAL} not (?:\w+ )?be", r"possible", r"suspected", r"obscured", r"limited", r"in the differential",
        rf"{_IS} (?:\w+ly )?(?:questioned|questionable|considered|favou?red|equivocal|unlikely|less likely)",
        r"(?:not|poorly|incompletely|suboptimally) (?:well |\w+ly )*(?:evaluated|assessed)",
        r"not (?:well|clearly|definitely|fully|adequately) (?:\w+ )?"
        r"(?:seen|visuali[sz]ed|identified|demonstrated|defined)",
        r"not (?:\w+ly )?appreciated", r"(?:difficult|hard) to (?:exclude|assess|evaluate)",
        rf"{_MODAL} (?:also )?have this appearance", r"should be considered",
    ).pattern
    + r"|\?"
)  # fmt: skip
_EITHER = r"(?:or|versus|vs|and/or)"
_NEAR = r"(?:(?!(?:on|in|at|of|left|right|one|two|and|with)\b)[\w-]+ )"
EITHER_BEFORE = re.compile(rf"\b{_EITHER} {_NEAR}{{0,4}}$")
EITHER_AFTER = re.compile(rf"^ {_NEAR}{{0,2}}{_EITHER} (?!(?:less|more|greater|so)\b)")
"""Two findings as alternatives: both are uncertain."""

# --- where a scope ends ------------------------------------------------------------------------------------------

CLAUSE = _any(
    r"but", r"however", r"although", r"though", r"whereas", r"while", r"yet", r"except(?: for)?", r"aside from",
    r"apart from", r"other than", r"besides", r"in addition", r"otherwise", r"nevertheless",
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
_STOPS = (
    VERB.pattern, r"there", r"since", r"after", r"following", r"status post", r"s/p", r"compared", r"given", r"because",
    r"which", r"therefore", r"and (?:the|an?|there|no)",
    r"(?<!consistent )(?<!compatible )(?<!associated )(?<!in keeping )(?<!concerning )with",
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
    r"an?", r"the", r"post(?:surgical|operative)", r"still", r"also",
)  # fmt: skip
"""Words that begin an assertion of their own after a comma or "and", outside a closed "A, B or C" list. "Large" is not
among them: "no consolidation, large effusion" denies."""
