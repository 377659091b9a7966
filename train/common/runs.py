"""How a training on transformers' Trainer begins: its processes, its folder, what it reads, and what it refuses.

Everything a user can get wrong here is said before anything large is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import PartialState
from transformers.utils import logging

from encoder.files import sha256_of
from train.common.checkpoints import COMPLETE, Names, claim, recorded
from train.common.config import ConfigError
from train.common.processes import process_state, settled_precision, use_cores

# Fields that count something: 0 of it would train nothing.
AT_LEAST_1 = (
    "max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps", "eval_batch_size",
    "feature_batch_size", "projector_batch_size", "lora_rank", "lora_alpha", "reduction_factor", "vocab_size",
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "num_iterations",
)  # fmt: skip
# Fields that may be nothing, but not less.
AT_LEAST_0 = (
    "warmup_steps", "eval_steps", "eval_studies", "align_steps", "projector_steps", "max_new_tokens", "threads",
    "dataloader_num_workers", "learning_rate", "projector_learning_rate", "weight_decay", "max_grad_norm", "seed",
    "encoder_lr_mult", "projector_lr_mult", "projector_gain", "epsilon", "beta",
)  # fmt: skip
ABOVE_0 = ("temperature",)
# Shares: from 0 to 1, without 1.
SHARES = ("adam_beta2", "lora_dropout", "context_dropout")


class Trained(Protocol):
    """The fields that every training here has."""

    out: str
    studies: list[str]
    precision: Any
    threads: int
    batch_size: int
    gradient_accumulation_steps: int


@dataclass(frozen=True)
class Begun:
    """A run that was found, or may begin."""

    out: Path
    state: PartialState
    # The last complete checkpoint, to resume from.
    checkpoint: Path | None
    # Whether there is nothing left to do, which has been said.
    finished: bool
    record: Callable[[], object]

    def claim(self) -> None:
        """Make the folder that of this run. Collective.

        To be called once all that the run reads is in order: a user who mends a studies file can then begin
        anew in the same folder.
        """
        with self.state.main_process_first():
            self.record()


def start(config: Trained) -> PartialState:
    """Join the processes, divide the cores, and settle what the machine decides; the first call of a training.

    Raises:
        ConfigError: a field has a value that no training can have.
    """
    check_numbers(config)
    check_launch()
    # We print lines of our own; a bar for every file that is read is noise, and file times are not what we go by.
    logging.disable_progress_bar()
    logging.get_logger("transformers.trainer_utils").setLevel("ERROR")
    state = process_state()
    use_cores(config.threads, state.num_processes)
    before = recorded(Path(config.out)) or {}
    config.precision = settled_precision(config.precision, before.get("precision"))
    return state


def begin(
    config: Trained,
    state: PartialState,
    digests: Mapping[str, Any],
    may_differ: Iterable[str],
    renamed: Mapping[str, str],
    mark: str = "finished",
) -> Begun:
    """Find the run again, or see that its folder is free; nothing is written yet.

    Args:
        digests: of the models that the run reads; those of its studies are added.
        may_differ: fields that say how, not what, and may change when a run is resumed.
        renamed: fields' old names, which the record of an older run has.
        mark: the file in the folder that says that nothing is left to do.

    Raises:
        CheckpointError: the folder is another run's, or is not a run's.
        ConfigError: a studies file does not exist.
    """
    out = Path(config.out)
    asked = asdict(config) | dict(digests)
    asked["sha256 of studies"] = [file_sha256(path) for path in config.studies]
    # A run from before a field existed had its default.
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    record = partial(claim, out, asked, set(may_differ), defaults, Names(renamed))
    record(make=False)
    finished = (out / mark).exists()
    if finished:
        state.print(f"{out} is finished; choose another --out to train anew")
    return Begun(out, state, last_checkpoint(out), finished, record)


def merged(init: str) -> Path:
    """Return the directory of the findings model to start from. Raises ConfigError for an adapter, ModelError where
    there is none."""
    from vlm.hub import resolve

    folder = resolve(init, "findings model")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"--init {init} is an adapter: merge it first (cxr export {init} OUT)")
    return folder


def last_checkpoint(out: Path) -> Path | None:
    """Return the last complete checkpoint of a run."""
    checkpoints = [p.parent for p in out.glob(f"checkpoint-*/{COMPLETE}")]
    return max(checkpoints, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def file_sha256(path: str | Path) -> str:
    """Return a file's digest. Raises ConfigError where there is none."""
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; give the studies file in it (JSON Lines)")
    try:
        return sha256_of(Path(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give a studies file (JSON Lines)") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def check_numbers(config: Any) -> None:
    """Raise ConfigError for a field whose number no training can have."""
    for names, fits, accepted in (
        (AT_LEAST_1, lambda x: x >= 1, "at least 1"),
        (AT_LEAST_0, lambda x: x >= 0, "at least 0"),
        (ABOVE_0, lambda x: x > 0, "above 0"),
        (SHARES, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ):
        for name in names:
            value = getattr(config, name, None)
            if value is not None and not fits(value):
                raise ConfigError(f"{name} must be {accepted}, not {value}")


def check_batch(batch: int, parts: int, processes: int, name: str = "batch_size") -> None:
    """Raise ConfigError where `processes` cannot share a step's batch, each its share in `parts`."""
    if rest := batch % (parts * processes):
        near = [n for n in (batch - rest, batch - rest + parts * processes) if n]
        raise ConfigError(
            f"{name}={batch} is not divisible by {processes} process{'es' * (processes > 1)} x {parts} accumulation "
            f"step{'s' * (parts > 1)}; use {' or '.join(map(str, near))}"
        )


def check_launch() -> None:
    """Raise ConfigError for FSDP of version 1, which no training here knows."""
    if asked_for("FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "FSDP of version 1 is not supported: launch it by train/launch/fsdp2.yaml (fsdp_version: 2)"
        )


def weights_are_split() -> bool:
    """Tell whether accelerate was launched so that processes share the weights (FSDP, DeepSpeed)."""
    return asked_for("FSDP") or asked_for("DEEPSPEED")


def asked_for(what: Literal["FSDP", "DEEPSPEED"]) -> bool:
    """Tell whether accelerate was launched with it."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"
