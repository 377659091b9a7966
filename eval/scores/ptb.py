"""Penn-Treebank tokens as pycocoevalcap makes them, without its Java program.

    ptb_tokens("No effusion (or 8mm nodule) at 9:30 a.m.")
    ['no', 'effusion', '-lrb-', 'or', '8mm', 'nodule', '-rrb-', 'at', '9:30', 'a.m.']

pycocoevalcap runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and drops punctuation by a list.
The list is in capitals and the tokens are not: `-lrb-` and `-rrb-` stay. A run of marks (`??`, `***`) stays, too.
`benchmarks/ptb.py` compares with the program; the rules here were found and checked by asking it about strings.

How it works: at each place the longest of the rules wins, the earlier of equals. A rule may look ahead, and what it
looks at counts as length. Tokens of most words do not depend on their neighbours, so they are kept by word.

Known differences, none of them in the texts of the benchmark: emoticons other than `:-)` and its like, rare attributes
of tags, e-mail addresses and URLs beside dashes, letters that Unicode added after 2012, scripts other than Latin, Greek
and Cyrillic. The program sees a batch as one stream, so that the next text can decide whether a final "C." keeps its
period; here each text stands alone. Line separators inside a text, at which pycocoevalcap loses count of its texts, are
spaces.
"""

from __future__ import annotations

import re
from functools import lru_cache

VERSION = 1
"""Version of these tokens in signatures; raise it with every change that can change one."""

# --- what is dropped and what is written otherwise --------------------------------------------------------------------

_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_WRITTEN = {
    **_BRACKETS, "\N{POUND SIGN}": "#", "\N{CENT SIGN}": "cents", "\N{EURO SIGN}": "$", "\x80": "$",
    "\N{CURRENCY SIGN}": "$", "\N{EURO-CURRENCY SIGN}": "$",
    "\N{VULGAR FRACTION ONE QUARTER}": "1/4", "\N{VULGAR FRACTION ONE HALF}": "1/2",
    "\N{VULGAR FRACTION THREE QUARTERS}": "3/4", "\N{VULGAR FRACTION ONE THIRD}": "1/3",
    "\N{VULGAR FRACTION TWO THIRDS}": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "",
    "&ndash;": "--", "&mdash;": "--", '"': "''", "---": "--", "----": "--", "\N{HORIZONTAL ELLIPSIS}": "...",
    **dict.fromkeys("\N{EN DASH}\N{EM DASH}\u2015\x96\x97", "--"),
    **dict.fromkeys("\u2018\u2019\u201b\u2039\u203a\x91\x92", "'"),
    **dict.fromkeys("\u201c\u201d\u00ab\u00bb\x93\x94", "''"),
}  # fmt: skip

# --- words that the rules know ----------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


# With a period they are one token, in capitals or not.
_ABBREVIATIONS = _words("""
adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs
hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen sens
sfc sgt spc st ste supt supts treas vs wm
""")
# The same, and one letter may follow without a space.
_ENDINGS = _words("""
al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri
ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep sept
seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo
""")
# States, where they begin with a capital: "mass." is the end of a sentence, "Mass." is not.
_STATES = _words("ark az del ill la mass miss ore pa tex wash")
# These letters are small: "mfg." and "MfG." are abbreviations, "MFG." is not.
_SMALL = ("[Mm]f[Gg]", "[Mm]t[Gg]")
_SMALL_ENDINGS = ("[Pp]?[Pp][Tt]e[Ss]?", "[Pp]?[Pp][Tt]y[Ss]?")
# Only before a number.
_BEFORE_NUMBERS = _words("art ca fig figs no nos op pp prop")
# After "C." and one of these words a sentence begins, and the period is no part of the letter.
_SENTENCE_STARTS = _words("""
A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other
Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""")
_TWO_WORDS = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "lemme": ("lem", "me"),
    "gimme": ("gim", "me"), "wanna": ("wan", "na"), "'tis": ("'t", "is"), "'twas": ("'t", "was"),
}  # fmt: skip

# --- characters -------------------------------------------------------------------------------------------------------

_SPACE = r"[\s\u00a0]"
# Marks that are tokens; whatever is neither these nor a letter or digit is dropped, emoji included.
_MARKS = (
    "\u00a1-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bc-\u00bf\u00d7\u00f7\u037e\u0387\u2016\u2017\u201a\u201e-\u2023"
    "\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac\u2100-\u214f"
    "\u2155-\u215e\u2190-\u2bff\u0375\u0384\u0385\u03f6"
)
# Raised, lowered, circled and fractional numbers are marks, not letters or digits.
_NUMERALS = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u207e\u2080-\u208e"
    "\u2150-\u2182\u2185-\u218f\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
)
_ACCENTS = r"[\u0300-\u036f\u0483-\u0487]"
_L, _A = rf"(?:[^\W\d_{_NUMERALS}]|{_ACCENTS})", rf"(?:[^\W_{_NUMERALS}]|{_ACCENTS})"
_Q = "['\u2019\x92]"
_HYPHEN = "[-_\u058a\u2010\u2011]"

# --- rules: (token)(what it looks at) ---------------------------------------------------------------------------------


# What could be tried from many places and fail has a bound of length, so that no text takes quadratic time.


def _any(words: list[str], *, capital: bool = False) -> str:
    """Return a pattern of words in any case, or with a capital at the beginning and any case after it."""
    return "|".join(w[0].upper() + f"(?i:{w[1:]})" if capital else f"(?i:{w})" for w in words)


_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_PRE = rf"(?:(?i:[dol]){_Q}(?={_A}{{2}}))?"
_HYPHENED = rf"{_PRE}{_A}+(?:{_HYPHEN}{_PRE}{_A}+)*"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_DOTTED = rf"[A-Za-z0-9][A-Za-z0-9.,]{{0,99}}(?:-(?:{_ACRONYM}|[A-Za-z0-9]+))+"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NUMBER = r"[-+]?(?:\d+(?:[.,:\u066b\u066c]\d+)*|(?:[.,:\u066b\u066c]\d+)+)"
_ABBREVIATION = rf"(?:{_any(_ABBREVIATIONS)}|{'|'.join(_SMALL)})\."
_ENDING = rf"(?:{_any(_ENDINGS)}|{_any(_STATES, capital=True)}|{'|'.join(_SMALL_ENDINGS)})\."
_DATE = r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"
_FILE = (
    rf"{_A}+(?:\.{_A}+)*\.(?i:bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png"
    r"|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)"
)
_FRACTION = r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/\u2044]\d{1,4}"
_PHONE = (
    r"(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])"
    r"\d{3,4}[- \u00a0]?\d{3,5}"
)
_TAG = (
    r"<(?:[!?][A-Za-z-][^>\n]{0,999}"
    r"|/?[A-Za-z][\w:.-]{0,99}(?: {1,9}[A-Za-z][\w:.-]{0,99}(?: {0,9}= {0,9}(?:'[^']{0,999}'|\"[^\"]{0,999}\"))?)*"
    r" {0,9}/?) {0,9}>"
)
_PATH = r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"
_SITE = rf"(?:www\.(?:[^\s\"<>|.!?(){{}},/]+\.)+[A-Za-z]{{2,4}}|[A-Za-z0-9]+\.(?:com|net|org|edu)){_PATH}"

_EMAIL = r"[A-Za-z0-9][^\s\"<>|()]{0,99}@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+>?"

# Each is tried where its first character may stand: a letter, a digit, or anything else.
_AT_LETTER = (
    rf"({_any([w for w in _TWO_WORDS if w.isalpha()])})()",
    rf"([A-Za-z]*[A-MO-Za-mo-z])([nN]{_Q}[tT])",
    rf"([nN]{_Q}[tT])()",
    rf"({_ENDING})({_A}?)",
    rf"({_WORD})()",
    rf"([A-Za-z])(\.{_SPACE}+(?:{'|'.join(_SENTENCE_STARTS)})(?=\s|$))",
    rf"({_ACRONYM})()",
    r"([A-Za-z]\.)()",
    rf"({_ABBREVIATION})()",
    rf"((?:{_any(_BEFORE_NUMBERS)})\.)({_SPACE}?\d)",
    r"((?i:ph)\.(?i:d)\.)()",
    rf"([A-Za-z]*[A-Ya-z])({_Q}(?i:ll|re|ve))",
    rf"([A-Za-z]+)({_Q}(?i:[smd]))",
    # O'Brien, d'Orsay, l'hopital, ma'am
    rf"([A-HJ-XZn]{_Q}{_L}{{2,}})()",
    rf"((?i:[dol]){_Q}{_A}{{2,}})()",
    rf"({_L}+[aeiouyAEIOUY]{_Q}[aeiouA-Z]{_L}*)()",
    rf"((?i:e{_Q}er|c{_Q}mon|cont{_Q}d\.|li{_Q}l|ev{_Q}ry|nat{_Q}l|s{_Q}mores|nor{_Q}easter|ol{_Q}|somethin{_Q}))()",
    rf"((?i:[djly]){_Q})()",
    rf"((?i:d{_Q}y(?:e|ou)))()",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)()",
    r"([A-Z]+\$)()",
    r"((?i:c\+\+|[cf]#))()",
    r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])()",
    rf"({_SITE})()",
)
_AT_DIGIT = (
    rf"({_NUMBER})()",
    rf"({_FRACTION})()",
    rf"({_DATE})()",
    rf"({_PHONE})()",
    rf"(\d+{_L}{_A}*)()",
)
# Words with hyphens and slashes begin with either.
_AT_BOTH = (
    rf"({_HYPHENED})()",
    # a period before a comma belongs to the word
    rf"((?:{_HYPHENED}|{_WORD}|{_DOTTED})\.)([,;:])",
    rf"({_DOTTED})()",
    rf"({_PART}(?:/{_PART}){{1,2}})()",
    rf"({_FILE})(?=[\s.,?!]|$)()",
    rf"({_EMAIL})()",
)
_AT_OTHER = (
    rf"({_NUMBER})()",
    rf"({_PHONE})()",
    rf"({_TAG})()",
    rf"(<{_EMAIL})()",
    rf"({_Q}(?i:t))((?i:is|was)(?!{_L}))",
    rf"({_Q}(?i:n){_Q}?|{_Q}(?i:em|til|till|cause))(?!{_A})()",
    rf"('(?i:ll|re|ve|[smd]))(?!{_L})()",
    r"([\u2019\x92](?i:ll|re|ve|[smd]))()",
    rf"({_Q}\d\d(?=\s|$)|{_Q}[2-9]0s)()",
    r"([<>]?[:;=]['o-]?[)(DdPp{@O|\[\]\\])(?![A-Za-z0-9])()",
    r"(&(?:amp|lt|gt|quot|nbsp|ndash|mdash);|&#\d+;)()",
    r"(#[A-Za-z]+|@[A-Za-z]\w*)()",
    r"(-(?i:[lr][rcs]b)-)()",
    r"(#+|\*+|_+|[?!]+|--+|<<|>>|\.{3}|''|``)()",
)


def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern, ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


_LETTER_RULES = _compiled((*_AT_LETTER, *_AT_BOTH))
_DIGIT_RULES = _compiled((*_AT_DIGIT, *_AT_BOTH))
_OTHER_RULES = _compiled(_AT_OTHER)
_MARK = re.compile(rf"[!-/:-@\[-`{{-~{_MARKS}\u20ac\x80]")
_CLITIC = re.compile(rf"n?{_Q}(?:[smdt]|ll|re|ve)")


def _stanford(text: str) -> list[str]:
    """Return all tokens of a text, punctuation included."""
    # a soft hyphen is no character
    text = text.replace("\u00ad", "").replace("&apos;", "'")
    tokens: list[str] = []
    at, end = 0, len(text)
    while at < end:
        char = text[at]
        if char.isspace():
            at += 1
            continue
        rules = _LETTER_RULES if char.isalpha() else _DIGIT_RULES if char.isdecimal() else _OTHER_RULES
        longest, stop = -1, at
        for rule in rules:
            if (match := rule.match(text, at)) and match.end() > longest:
                longest, stop = match.end(), match.end(1)
        if stop == at:
            stop = at + 1
            if not _MARK.match(char) and char not in _WRITTEN:
                at = stop
                continue
        tokens += _written(text[at:stop], split=longest == stop)
        at = stop
    return tokens


def _written(token: str, *, split: bool) -> tuple[str, ...]:
    """Return a token as it is printed: in small letters, brackets by name, spaces inside it unbreakable."""
    low = token.lower()
    if split and low in _TWO_WORDS:
        return _TWO_WORDS[low]
    if token in _WRITTEN:
        return (_WRITTEN[token],) if _WRITTEN[token] else ()
    if _CLITIC.fullmatch(low):
        return (low.replace("\u2019", "'").replace("\x92", "'"),)
    if low[0] != "<":
        low = low.replace("(", "-lrb-").replace(")", "-rrb-")
    return (low.replace("&amp;", "&").replace(" ", "\u00a0"),)


# --- words by heart ---------------------------------------------------------------------------------------------------

# Places where a token may reach beyond a space: numbers in a row and tags. Such texts are read as a whole.
_REACHES = re.compile(r"[\d)][ \u00a0]\d|<|\xad")
_PLAIN = re.compile(r"[a-z]+[.,;:]?", re.IGNORECASE | re.ASCII)
_STARTS = frozenset(_SENTENCE_STARTS)
_PERIOD_MATTERS = frozenset(
    (*_ABBREVIATIONS, *_ENDINGS, *_STATES, *_BEFORE_NUMBERS, *_words("mfg mtg pte ptes pty ptys ppte ppty pptes pptys"))
)  # fmt: skip


def _kept(text: str) -> tuple[str, ...]:
    return tuple(token for token in _stanford(text) if token not in _DROPPED)


@lru_cache(maxsize=1 << 17)
def _of_word(word: str, after: str) -> tuple[str, ...]:
    """Return the tokens of what stands between two spaces, before `after` where that matters."""
    if _PLAIN.fullmatch(word):
        low = word.lower()
        bare = low.rstrip(".,;:")
        if bare not in _TWO_WORDS and (len(bare) == len(low) or not (low[-1] == "." and _may_keep(bare))):
            return (bare,)
    tokens = _kept(f"{word} {after}" if after else word)
    return tokens[: len(tokens) - len(_kept(after))] if after else tokens


def _may_keep(bare: str) -> bool:
    return len(bare) == 1 or bare in _PERIOD_MATTERS


@lru_cache(maxsize=1 << 14)
def _of_text(text: str) -> tuple[str, ...]:
    if _REACHES.search(text):
        return _kept(text)
    tokens: list[str] = []
    words = text.split()
    for i, word in enumerate(words):
        after = ""
        if word[-1] == "." and i + 1 < len(words):
            # only a number or the beginning of a sentence can change what a period belongs to
            following = words[i + 1]
            after = "3" if following[0].isdecimal() else following if following in _STARTS else ""
        tokens += _of_word(word, after)
    return tuple(tokens)


def ptb_tokens(text: str) -> list[str]:
    """Return the tokens of pycocoevalcap's PTBTokenizer: small letters, no punctuation.

    Numbers in a row may be one token with an unbreakable space in it ("1\u00a01/2", a telephone number).
    """
    return list(_of_text(text))


def ptb_words(text: str) -> list[str]:
    """Return the tokens as pycocoevalcap's BLEU and CIDEr count them: split at unbreakable spaces, too."""
    tokens = _of_text(text)
    return " ".join(tokens).split() if "\u00a0" in text or _REACHES.search(text) else list(tokens)
