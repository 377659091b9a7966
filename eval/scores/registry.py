"""What could not be computed, why, and the command that helps.

A score without its model is reported as "not computed", never as zero and never by a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class NotComputed:
    """A score that is missing, why, and what to do."""

    name: str
    reason: str
    command: str

    def to_json(self) -> dict[str, str]:
        """Return name, reason and the command that helps, for JSON."""
        return {"name": self.name, "reason": self.reason, "command": self.command}


def merged(missing: Iterable[NotComputed]) -> list[NotComputed]:
    """Merge entries, so that a score has one even if several things are missing for it; commands that begin
    alike become one."""
    by_name: dict[str, list[NotComputed]] = {}
    for entry in missing:
        by_name.setdefault(entry.name, []).append(entry)
    found = []
    for name, entries in by_name.items():
        commands: dict[str, list[str]] = {}  # "cxr weights --fetch" -> the models
        for entry in entries:
            start, _, last = entry.command.rpartition(" ")
            commands.setdefault(start, []).append(last)
        command = "; ".join(" ".join([start, *dict.fromkeys(last)]) for start, last in commands.items())
        found.append(NotComputed(name, ", ".join(dict.fromkeys(e.reason for e in entries)), command))
    return found
