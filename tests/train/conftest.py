"""Fixtures of `tests/tiny.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # plain `pytest` does not put the root there

from tests.tiny import encoder_dir, findings_model, llm_dir, studies_file  # noqa: F401
