"""Findings models by name: a directory, the shipped mini, a hub id."""

from __future__ import annotations

from encoder.hub import SHIPPED, resolve

__all__ = ["MINI", "resolve"]

MINI = SHIPPED["mini"]
