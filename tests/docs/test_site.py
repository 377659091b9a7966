"""The docs build as a site, strictly: every link leads to a page, every name of the code that a page shows exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.blocks import PAGES, ROOT


def test_it_builds_strictly(tmp_path):
    pytest.importorskip("zensical", reason="zensical is not installed (the extra dev has it)")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for room in ("cxr", "encoder", "vlm", "train", "eval"):
        (tmp_path / room).symlink_to(ROOT / room)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)[-3000:]
    for page in PAGES[1:]:
        place = page.relative_to(ROOT / "docs").with_suffix("")
        built = tmp_path / "site" / ("" if place.name == "index" else place) / "index.html"
        assert built.is_file(), page
        # no request to any other host
        assert not re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+"[^>]*>', built.read_text()
        )
