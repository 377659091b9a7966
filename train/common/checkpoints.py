"""Run folders, and the checkpoints of our own training loop: safetensors and JSON only, complete or absent, newest
good one wins.

OUT/run.json                        what the run is; a run of another config is refused, not overwritten
OUT/checkpoints/step_00001200/      written as .step_00001200.new, then renamed
    student.safetensors ...         whatever the loop gives
    state.json                      step, and the size of every file, so that a damaged one is noticed
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from encoder.files import one_at_a_time, replace_folder, sync, write_json, write_text
from train.common.config import ConfigError
from train.common.processes import is_main

RUN = "run.json"
LOCK = ".lock"
BEFORE = ("features", "cache", LOCK)  # may lie in a run folder before there is a run
STATE = "state.json"
# Marks a checkpoint of transformers' Trainer as whole.
COMPLETE = "complete"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Names:
    """Map fields and words of older versions to their present names: old field -> new; field -> old value ->
    new."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TODAY = Names()


class CheckpointError(ConfigError):
    """A run directory that cannot be used as asked; the message says which and what to do."""


@contextmanager
def alone(run: Path, patience: float = 120.0) -> Iterator[None]:
    """Keep other runs out of the folder `run` while the block lasts; the first process does so for all of its run.

    An interrupted run may still be saving when its command is given again (`accelerate launch` leaves earlier than
    what it launched), so this waits for `patience` seconds. Raises CheckpointError if the folder is still taken then,
    or cannot be written.
    """
    if not is_main():
        yield
        return
    waiting = f"another process is at work in {run}; waiting for it to save and leave"
    with ExitStack() as held:
        try:
            run.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_at_a_time(run / LOCK, waiting, patience))
        except (FileExistsError, NotADirectoryError):
            file = next((p for p in (run, *run.parents) if p.exists() and not p.is_dir()), run)
            raise CheckpointError(f"{file} is a file; choose another --out") from None
        except Timeout:
            raise CheckpointError(
                f"another process is still at work in {run}; wait for it or stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{run} cannot be written: {error.strerror or error}; choose another --out"
            ) from error
        try:
            yield
        finally:
            # Refused before there was a run: nothing is left behind.
            with suppress(OSError):
                if [path.name for path in run.iterdir()] == [LOCK]:
                    (run / LOCK).unlink()
                    run.rmdir()


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Turn what the disk says to a write below `run` (full, over quota, read-only, gone) into a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{run} cannot be written: {why}; make room or mend that, and run the same command to resume from the last "
            "checkpoint"
        ) from error


def save(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], keep_last: int
) -> Path:
    """Write checkpoint `step`: one safetensors file for each entry of `tensors`, `state` as JSON. Returns its folder.

    Older checkpoints beyond the `keep_last` newest are removed afterwards.
    """
    root = run / "checkpoints"
    final = root / f"step_{step:08d}"
    for left in root.glob(".step_*"):  # of a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    temporary = root / f".{final.name}.new"
    temporary.mkdir(parents=True)
    sizes = {}
    for name, group in tensors.items():
        path = temporary / f"{name}.safetensors"
        save_file({key: x.detach().cpu().contiguous() for key, x in group.items()}, path)
        sizes[path.name] = path.stat().st_size
    write_json(temporary / STATE, {**state, "step": step, "files": sizes})
    for path in temporary.iterdir():
        sync(path)
    replace_folder(temporary, final)
    for _, old in _all(run)[:-keep_last]:
        shutil.rmtree(old)
    return final


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None. Damaged ones are passed over with a line on
    the screen."""
    for _, path in reversed(_all(run)):
        problem = _problem(path)
        if problem is None:
            return path
        print(f"checkpoint {path} is damaged ({problem}); trying the one before", flush=True)
    return None


def load(checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return what `save` was given: ({file: {name: tensor}}, state), on the CPU."""
    state = json.loads((checkpoint / STATE).read_text())
    return {Path(name).stem: load_file(checkpoint / name) for name in state["files"]}, state


def claim(
    run: Path,
    config: dict[str, Any],
    may_differ: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    names: Names = TODAY,
    make: bool = True,
) -> bool:
    """Make `run` the directory of a run with this config; True if it already is (then it is to be resumed).

    With `make` false nothing is written: the directory is only compared.

    Fields in `may_differ` do not change what is computed. A field that the stored config does not know counts as
    `defaults` has it; `names` translate what an older version wrote. Raises CheckpointError if the directory belongs to
    a run of another config, naming the fields, or holds anything of unknown origin.
    """
    config = json.loads(json.dumps(config))  # tuples become lists, as in the file
    stored = recorded(run, names)
    if stored is not None:
        before = {**json.loads(json.dumps(dict(defaults or {}))), **stored}
        free = set(may_differ)
        different = [
            key for key in {**before, **config} if key not in free and before.get(key) != config.get(key)
        ]
        if different:
            changes = ", ".join(_change(key, before.get(key), config.get(key)) for key in different)
            raise CheckpointError(
                f"{run} holds a run of another config ({changes}); choose another --out, or resume with the old values"
            )
        return True
    if run.exists() and any(p.name not in BEFORE for p in run.iterdir()):
        raise CheckpointError(f"{run} exists and is not a run of this training; choose another --out")
    if make:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / RUN, config)
    return False


def _change(key: str, before: Any, now: Any) -> str:
    """Say what a field was and is; of digests only the first digits, and what they are of."""
    digests = re.compile(r"[0-9a-f]{64}")

    def short(value: Any) -> str:
        several = value if isinstance(value, list) else [value]
        if several and all(isinstance(one, str) and digests.fullmatch(one) for one in several):
            return " ".join(one[:8] for one in several)
        return repr(value)

    said = f"{key}: {short(before)} there, {short(now)} now"
    if short(before) == repr(before) or short(now) == repr(now):
        return said
    of = key.removeprefix("sha256 of ")
    return f"{'other' if of == 'images' else 'another'} {'studies file' if of == 'studies' else of} ({said})"


def recorded(run: Path, names: Names = TODAY) -> dict[str, Any] | None:
    """Return the config that the run in this directory was begun with, in today's names; None where there is none yet.
    Raises CheckpointError if it cannot be read."""
    path = run / RUN
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); choose another --out") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not the record of a run; choose another --out")
    return {
        (name := names.renamed.get(key, key)): names.values.get(name, {}).get(value, value)
        if isinstance(value, str)
        else value
        for key, value in found.items()
    }


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str]
) -> dict[str, Tensor]:
    """Return the state of an optimizer as flat tensors, keyed `parameter name|state name`."""
    return {
        f"{names[parameter]}|{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Load the state that `optimizer_tensors` returned. Raises CheckpointError if the parameters are not the
    same."""
    by_name = {name: parameter for parameter, name in names.items()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, leaf = key.rpartition("|")
        states.setdefault(name, {})[leaf] = tensor
    if states.keys() != by_name.keys():
        odd = sorted(states.keys() ^ by_name.keys())[:5]
        raise CheckpointError(f"the optimizer's state and the parameters differ in {', '.join(odd)}")
    on_host = {
        id(p)
        for g in optimizer.param_groups
        for p in g["params"]
        if not (g.get("fused") or g.get("capturable"))
    }
    for name, state in states.items():
        parameter = by_name[name]
        optimizer.state[parameter] = {
            leaf: x.clone() if leaf == "step" and id(parameter) in on_host else _as(parameter, x)
            for leaf, x in state.items()
        }


def _as(parameter: torch.nn.Parameter, x: Tensor) -> Tensor:
    """Return a copy of x where the parameter is, and split among the processes as it is."""
    x = x.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and x.shape == parameter.shape:
        return distribute_tensor(x, parameter.device_mesh, parameter.placements)
    return x


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, which the resumed run will write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):  # cut off by a kill
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def _all(run: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in (run / "checkpoints").glob("step_*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _problem(checkpoint: Path) -> str | None:
    try:
        files = json.loads((checkpoint / STATE).read_text())["files"]
        for name, size in files.items():
            if (checkpoint / name).stat().st_size != size:
                return f"{name} has another size than was written"
            load_file(checkpoint / name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None
