"""What a model has answered, kept on disk: an interrupted run resumes, and no question is asked twice.

An answer is found by the SHA-256 of judge, model, version of the prompts, and the texts that were sent. Answers hold
words of reports: their files can be read by their user alone, and lie in `~/.cache/cxr/judges`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.judges.server import Message, Server, Unreadable
from eval.scores.private import kept, store

Read = TypeVar("Read")


def folder() -> Path:
    """Return where answers are kept."""
    return kept("judges")


@dataclass
class Asker:
    """Ask one judge's questions of one model, through the answers that are kept. `version` is that of the prompts."""

    server: Server
    model: str
    judge: str
    version: str
    kept_in: Path = field(default_factory=folder)
    _warned: bool = False

    def __call__(
        self,
        messages: Sequence[Message],
        read: Callable[[str], Read],
        schema: dict[str, Any] | None = None,
    ) -> Read:
        """Return what `read` makes of the answer; only what it can read is kept. Raises Unreadable, ScoreError."""
        asked = json.dumps([self.judge, self.model, self.version, list(messages)])
        digest = hashlib.sha256(asked.encode()).hexdigest()
        path = self.kept_in / digest[:2] / f"{digest}.json"
        try:
            return read(json.loads(path.read_text(encoding="utf-8"))["answer"])
        # not there, or damaged: ask
        except (OSError, ValueError, LookupError, TypeError, Unreadable):
            pass
        answer = self.server.ask(self.model, messages, schema)
        found = read(answer)
        try:
            store(path, {"answer": answer})
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.kept_in}: answers are not kept ({error.strerror})", stacklevel=2)
        return found


def digest(*parts: Any) -> str:
    """Return the first digits of the SHA-256 of everything that a prompt is made of."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
