"""All judges and their families, and the panel of those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.judges import crimson, cxrfescore, green, radfact, ratescore, srrbert
from eval.judges.panel import PARALLEL, Panel
from eval.judges.server import TIMEOUT, Server
from eval.scores.readers import ScoreError

_ALL = (radfact, crimson, ratescore, green, cxrfescore, srrbert)
JUDGES = {module.JUDGE.name: module.JUDGE for module in _ALL}
FAMILIES = tuple(module.FAMILY for module in _ALL)


def panel(
    names: Sequence[str],
    *,
    server: str | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    baselines: bool = False,
    timeout: float = TIMEOUT,
    parallel: int = PARALLEL,
) -> Panel:
    """Return the panel of the judges of these names, for `eval.score(..., judges=)`.

    server: address of an OpenAI-compatible server on this machine, for radfact and crimson; `model` is one of those
        it lists, and may be left out where it lists one.
    weights: the folder with the weights of the others, as for clinical models; `device` is where they run.
    baselines: whether the baselines are judged, too.
    timeout: seconds to wait for an answer; `parallel` studies are judged at a time.

    Raises ScoreError for a name that is not there, and for a server that is of another machine or does not answer.
    """
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in names:
        if name not in JUDGES:
            raise ScoreError(f"no judge {name!r:.40}; there are {', '.join(JUDGES)}")
    judges = tuple(JUDGES[name] for name in names)
    found = Panel(
        judges,
        weights=Path(weights) if weights else None,
        device=device,
        baselines=baselines,
        parallel=parallel,
    )
    if asking := [judge.name for judge in judges if judge.asks]:
        if not server:
            raise ScoreError(
                f"{' and '.join(asking)}: a language model is asked; give the address of its server on this machine, "
                "--server http://127.0.0.1:8000/v1"
            )
        found.server = Server(server, timeout=timeout)
        found.model = _chosen(found.server, model)
    elif server:
        raise ScoreError(
            f"--server is for {', '.join(j.name for j in JUDGES.values() if j.asks)}; none is asked"
        )
    return found


def _chosen(server: Server, model: str | None) -> str:
    """Return the model's name as the server says it. Raises ScoreError."""
    there = server.models()
    if model and (model in there or not there):
        return model
    if not model and len(there) == 1:
        return there[0]
    listed = ", ".join(there) or "none that it lists"
    asked = f"has no model {model!r:.80}" if model else "wants --judge-model"
    raise ScoreError(f"{server.url} {asked}; there are {listed}")
