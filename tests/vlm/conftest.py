"""Fixtures of `tests/tiny.py`."""

from __future__ import annotations

from tests.tiny import calibrated_model, encoder_dir, findings_model, llm_dir, studies_file, tower_dirs  # noqa: F401
