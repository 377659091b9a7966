"""Where a sentence of a report ends, for the `rules` labeller: full stops, list marks, and lines without full stops.

A report may be wrapped anywhere, so that a line break alone ends nothing. It ends a sentence where the line above could
stand alone, and the line below begins like a new item; `_paragraph` tells how that is decided.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

BREAK = "¶"

# These begin with a character or a set of them: `re` then skips to the places where they can match.
_LISTED = re.compile(r"[-*•\d][.)]?\s")
_ENUMERATOR = re.compile(r"(^|[.!?:;]\s+|\n\s*)(?:\d{1,2}[.)]|[-*•])\s+")
_HARD_BREAK = re.compile(r"\n\s*\n|\n(?=\s*[A-Z][A-Za-z ,/&]{2,40}:)")
_ABBREVIATION = re.compile(
    r"\.(?=\s)(?:(?<=\b(?:dr|mr|ms|st|vs|cf|ca)\.)|(?<=\b(?:mrs|e\.g|i\.e|fig)\.)|(?<=\bapprox\.))",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(
    r"\.(?=[A-Za-z])(?:(?<=[a-z]\.)(?=[A-Z][a-z])|(?<=[A-Za-z]{3}\.)(?=[A-Za-z]{3})(?!(?:for|and)\b)|(?<= \.))"
)
_SENTENCE = re.compile(rf"[ {BREAK};](?:(?<=[{BREAK};])|(?<=[.!?] ))")
_DOTS = re.compile(r"\.{2,}|…")
_CALL = re.compile(r"!(?=[^\s!])")
_BULLET = re.compile(r"[•●▪◦‣∙■□►]")
_EM_DASH = re.compile(r"\s*—\s*")
_ANSWER = re.compile(r"\?\s*(?=(?:no|none|nil|negative|yes)\s*(?:[.!,;¶]|$))", re.IGNORECASE)
_FIRST = re.compile(r"1[.):-]\s*[A-Za-z]")


def split(text: str, mentions: Callable[[str], bool]) -> list[str]:
    """Split a report into sentences, lower-cased and single-spaced; marks of lists are removed, a semicolon ends a
    sentence. `mentions` tells whether a lower-cased text is about something: lines of capitals are judged by it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip(" \t\n-*+>")
    if not text.isascii():
        text = _EM_DASH.sub(" – ", _BULLET.sub(BREAK, _DOTS.sub(". ", text)))
    if " * " in text:
        text = text.replace(" * ", f" {BREAK} ")
    if "|" in text or "!" in text or "?" in text or ".." in text:
        text = _CALL.sub("! ", _DOTS.sub(". ", text.replace("|", BREAK)))
        text = _ANSWER.sub(": ", text)
    if "\n" in text:
        text = _lines(_HARD_BREAK.sub(BREAK, text), mentions)
    if _FIRST.search(text):
        text = _numbered(text)
    if _LISTED.search(text):
        text = _ENUMERATOR.sub(rf"\1{BREAK}", text)
    text = _ABBREVIATION.sub("", " ".join(text.split()))
    text = _NO_SPACE.sub("." + BREAK, text)
    return [s.lower() for s in (part.strip() for part in _SENTENCE.split(text)) if s]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbered(text: str) -> str:
    """Put breaks for the numbers of a list that counts from one: "(1) ... (2) ...", "1- ... 2- ...", "1.A.2.B"."""
    for first in _FIRST.finditer(text):
        start = first.start()
        opening = text[start - 1] if start and text[start - 1] == "(" else ""
        before = text[max(0, start - len(opening) - 20) : start - len(opening)]
        if before.strip(" ") and before.rstrip(" ")[-1] not in f".:;!?\n{BREAK}":
            continue
        closing, pieces, at = text[start + 1], [text[: start - len(opening)]], start + 2
        for number in range(2, 100):
            where = _mark(text, f"{opening}{number}{closing}", at)
            if where < 0:
                break
            pieces.append(text[at:where])
            at = where + len(opening) + len(str(number)) + 1
        # One number alone is no list; "1. " at the beginning of a sentence is found elsewhere.
        if len(pieces) > 1:
            return BREAK.join([*pieces, text[at:]])
        return text
    return text


def _mark(text: str, mark: str, at: int) -> int:
    """Return where `mark` stands before a word and not behind a letter or a digit, from `at` on; -1 where nowhere."""
    while (where := text.find(mark, at)) >= 0:
        at = where + len(mark)
        after = text[at : at + 20].lstrip()
        if after[:1].isalpha() and (mark[0] == "(" or not text[where - 1].isalnum()):
            break
    return where


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# --- lines ------------------------------------------------------------------------------------------------------------

_OPEN = _set(
    """
    no not without of in on at the a an and or nor with for to by from is are was were has have had been be may might
    can could cannot than versus vs possible possibly probable probably likely suspected focal acute large small tiny
    trace minimal mild mildly moderate moderately severe severely left right bilateral unilateral upper lower middle
    mid pleural pulmonary interstitial alveolar vascular mediastinal cardiac cardiomediastinal pericardial new old any
    this that these those which there evidence dense patchy hazy linear streaky chronic stable unchanged persistent
    visible definite significant appreciable large-volume residual recurrent basilar bibasilar basal apical after
    before since during following status post into over above below between if as but also neither never appears
    remains seems enlarged widened displaced lobe rib signs sign interval increased decreased worsening improving
    sided right-sided left-sided dual-lead airspace parenchymal central peripheral covid-19
    """
)
"""A line that ends in one of these goes on."""
_JOINS = _set(
    """
    and or nor of in on at with without is are was were has have had be been cannot can could may might not to for from
    by than versus vs which that but as if kerley swan swan-ganz dobbhoff port-a-cath foley hickman covid
    covid-19 january february march april may june july august september october november december monday tuesday
    wednesday thursday friday saturday sunday
    """
)
"""A line that begins with one of these goes on with the one above; some are names, which have a capital anyway."""
_PREDICATES = _set(
    """
    due secondary consistent seen noted identified visualized visualised present absent demonstrated suspected normal
    clear intact again bilaterally size sizes contours contour silhouette
    """
)
"""So does a line in capitals that begins with one of these."""
_WRAPPED = 60  # characters: no item of a list of short lines is as long
_NUMBER = re.compile(r"\(?\d{1,2}[.):-]\D")
_STOP_WITHIN = re.compile(r"[.!?;][ \t]+\S")


def _lines(text: str, mentions: Callable[[str], bool]) -> str:
    return BREAK.join(
        _paragraph(part.split("\n"), mentions) if "\n" in part else part for part in text.split(BREAK)
    )


def _paragraph(lines: list[str], mentions: Callable[[str], bool]) -> str:
    """Join lines, by a break where a sentence ends though it has no full stop.

    It does before a mark of a list, and before a line that begins as a sentence does ("Heart ..."). Capitals and
    numbers may stand in the middle of a sentence ("PICC", or all words of a report). Before those it ends only if both
    lines are items, if the first word of the second had room on the line above, and if no line of the paragraph has a
    full stop, or the number of a list, within. A line in lower case always goes on.
    """
    width = max(map(len, lines))
    prose = any(map(_STOP_WITHIN.search, lines))
    pieces = lines[:1]
    for above, below in pairwise(map(str.strip, lines)):
        marked = below[:1] in ("-", "*", "+", ">") and below[1:2].isalpha()
        ends = marked or _begins_as_a_sentence(above, below)
        if not (ends or prose):
            ends = _items(above, below, width) and mentions(above.lower()) and mentions(below.lower())
        pieces += [BREAK if ends else "\n", below[1:] if marked else below]
    return "".join(pieces)


def _may_end(above: str, below: str) -> bool:
    """May a sentence without a full stop end between two lines?"""
    if not above or not below or above[-1] in ".!?;:,-/(" or _NUMBER.match(below):
        return False
    return (
        above.rsplit(None, 1)[-1].lower().rpartition(".")[2] not in _OPEN and _first_word(below) not in _JOINS
    )


def _first_word(line: str) -> str:
    return line.split(None, 1)[0].lower().strip(".,;")


def _begins_as_a_sentence(above: str, below: str) -> bool:
    return below[:1].isupper() and below[1:2].islower() and _may_end(above, below)


def _items(above: str, below: str, width: int) -> bool:
    """Do two lines in capitals look like items of a list, not like one sentence that was wrapped?"""
    if not (below[:1].isupper() or below[:1].isdigit()) or not _may_end(above, below):
        return False
    first = _first_word(below)
    return first not in _PREDICATES and (width <= _WRAPPED or len(above) + 1 + len(first) <= width)
