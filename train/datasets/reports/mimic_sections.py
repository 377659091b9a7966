"""The sections of a MIMIC-CXR report, split as the data set's own scripts split them.

Results are comparable only where findings are cut out in the same way, so this follows `section_parser.py` and
`create_section_files.py` (https://github.com/MIT-LCP/mimic-cxr/tree/master/txt), oddities included:

- a heading is a line's beginning in capitals, after at least one space and up to a colon with white space behind it;
  none is looked for in the line below a heading that stands alone on its line;
- "FINDINGS AND IMPRESSION" is an impression; "CHEST, PA AND LATERAL" and the like are findings;
- empty findings and impressions are dropped; where neither is left, what follows the first blank line of the last
  section is called `last_paragraph`;
- of several sections of one name the last one counts. Addenda and preliminary ("wet") reads stand above the final
  report, so the final report wins.

`___`, which stands for removed names, dates and ages, stays in the text: the published findings contain it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vlm.study import TEXTS

# After the colon, the rest of the line (the next line if the heading stood alone) is skipped in the search.
HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s(?P<rest>[^\n]*)")
BLANK_LINE = "\n \n"  # every line of a report begins with a space

# Section -> further spellings of its heading, in lower case.
SPELLINGS = {
    "findings": (
        "finding", "reference findings", "chest, two views", "findins", "findindgs", "findgings", "findngs",
        "findnings", "finidngs",
    ),
    "impression": (
        "conclusion", "findings and impression", "findings/impression", "findings/ impression", "impresson",
        "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion", "mpression", "impession",
        "ndication",  # so the official table has it
    ),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "comparison": (
        "comparisons", "reference exam", "comparison exam", "comparison film", "comparision", "comparsion",
        "comparrison", "comparisions",
    ),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation", "recommendation(s)"),
    "wet read": ("wetread",),
}  # fmt: skip
NAMES = {spelling: name for name, spellings in SPELLINGS.items() for spelling in (name, *spellings)}
# A heading that is not among the spellings but contains one of these is that section; the first one decides.
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
# Failing that, one that names the films stands above what is seen on them.
FILMS = re.compile(
    r"chest|portable|pa and lat|ap and lateral|lateral and (?:pa|ap)|frontal and|two views|one view"
    r"|(?:frontal|pa|ap|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)

# Studies that the official script leaves out of its table of sections, because the headings of their reports mislead:
# the findings may stand under "indication", say, and would give themselves away in a prompt.
MISLEADING = frozenset({
    "50058765", "50196495", "50525523", "50743547", "50798377", "50808053", "50913680", "51410602",
    "51491012", "51966317", "52035334", "52119491", "52648681", "52674888", "53071062", "53182247",
    "53202765", "53356173", "53488209", "53514462", "53607029", "54168089", "54231141", "54365831",
    "54654948", "54875119", "54986978", "55124749", "55157853", "55258338", "56412866", "56451190",
    "56482935", "56579911", "56724958", "56760320", "57150433", "57564132", "57936451", "58157373",
    "58235663", "58375018", "59003148", "59067458", "59087630", "59215320", "59279892", "59330497",
    "59363654", "59505494", "59562049", "59768032", "59889364", "59982525",
})  # fmt: skip


def section_name(heading: str) -> str:
    """Return the section that a heading (without its colon) opens; an unknown heading is itself, in lower
    case."""
    heading = heading.strip().lower()
    if heading in NAMES:
        return NAMES[heading]
    for name in CONTAINED:
        if name in heading:
            return name
    return "findings" if FILMS.search(heading) else heading


def sections(text: str) -> dict[str, str]:
    """Split a whole report, with any line ends, into section -> text with single spaces.

    What precedes the first heading is `preamble`; a report without headings is `full report`. Never fails; sections
    other than findings and impression may be empty.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    headings = list(HEADING.finditer(text))
    if headings:
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        found = [("preamble", text[: headings[0].start(1)])] + [
            (section_name(heading[1]), text[heading.start("rest") : end])
            for heading, end in zip(headings, ends, strict=True)
        ]
        found = [
            (name, body) for name, body in found if name not in ("findings", "impression") or body.strip()
        ]
    else:
        found = [("full report", text)]
    names = {name for name, _ in found}
    if "findings" not in names and "impression" not in names:
        name, body = found[-1]
        body, blank_line, rest = body.partition(BLANK_LINE)
        if blank_line:
            found[-1:] = [(name, body), ("last_paragraph", rest)]
    return {name: " ".join(body.split()) for name, body in found}


def report_fields(found: Mapping[str, str]) -> dict[str, str | None]:
    """Return the texts of a study (vlm.study.TEXTS) from its `sections`; None where there is none or it is
    empty.

    Without an indication, the history serves, or else a section such as "REASON FOR THE STUDY".
    """
    fields = {key: found.get(key) or None for key in TEXTS}
    if fields["indication"] is None:
        reasons = [text for name, text in found.items() if name.startswith("reason for") and text]
        fields["indication"] = found.get("history") or (reasons[-1] if reasons else None)
    return fields
