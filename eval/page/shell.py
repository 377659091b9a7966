"""The document of a page: its header, contents, style and script, all in one file that asks no host for anything."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from eval.page.parts import facts_of
from eval.scores.result import write_whole
from eval.signature import version

GENERATOR = "cxr eval.report"
Banner = Literal["research", "phantoms"]
BANNERS: dict[Banner, str] = {
    "research": "For research use only. Not a medical device, not for diagnosis.",
    "phantoms": "Synthetic phantoms, not patients. A demonstration for research use only, not for diagnosis.",
}


# Texts and ids are the user's. What a terminal obeys is shown by Unicode's pictures of control characters; others of
# that kind, and what turns the direction of writing, as a replacement.
_UNSEEN = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


class Section(NamedTuple):
    """A part of the page that the contents list; `html` comes below its heading."""

    anchor: str
    title: str
    html: str


def about(model: str = "", files: Sequence[object] = (), command: str = "") -> dict[str, str]:
    """Say for the header what was run on which files, today, by this version.

    Of a file its name and its folder's are said: a command has the whole path, and a phone no room for it twice.
    """
    return {
        "Model": model,
        "Files": ", ".join("/".join(Path(str(file)).parts[-2:]) for file in files),
        "Command": command,
        "Date": time.strftime("%Y-%m-%d"),
        "Version": f"cxr {version('cxr-vlm')}",
    }


def write_body(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    top: str = "",
    facts: Mapping[str, str] | None = None,
    banner: Banner = "research",
) -> None:
    """Write a page of ours: `sections` below a header with `top` (HTML: a verdict, notes) and `facts` (text)."""
    parts = [
        f"<header><h1>{escape(title)}</h1><p class='banner' role='note'>{BANNERS[banner]}</p>",
        f"{top}{facts_of(facts or {})}</header>",
        _contents(sections),
        "<main>",
        *(
            f"<section aria-labelledby='{s.anchor}'><h2 id='{s.anchor}'>{escape(s.title)}</h2>{s.html}</section>"
            for s in sections
        ),
        "</main>",
    ]
    style, script = _shipped("style.css"), _shipped("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _PAGE.format(
        generator=GENERATOR,
        title=escape(title),
        style=style,
        script=script,
        digest=digest,
        body="\n".join(parts),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.translate(_UNSEEN))


def is_page(path: Path) -> bool:
    """Tell whether a file is a page written here."""
    # A pipe would be waited for.
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="ignore") as file:
        return GENERATOR in file.read(2000)


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    links = "".join(f"<li><a href='#{s.anchor}'>{escape(s.title)}</a></li>" for s in sections)
    return f"<nav aria-label='Contents'><ul>{links}</ul></nav>"


@cache
def _shipped(name: str) -> str:
    return files("eval.page").joinpath(name).read_text(encoding="utf-8")


# The script is allowed by its digest: whatever else found its way into the page could not run.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'; form-action 'none'; base-uri 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""
