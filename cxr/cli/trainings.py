"""The trainings. `cxr pretrain ...` reads the command line itself, so that mistakes and --help are answered at once,
and launches the training through accelerate."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NamedTuple

from cxr.cli.terminal import Options, UsageError, positive
from encoder.hub import here
from encoder.workers import MOST_WORKERS


class LaunchedTraining(NamedTuple):
    """`module` is launched; `config` reads its command line without importing torch."""

    module: str
    config: str
    help: str


TRAININGS = {
    "pretrain": LaunchedTraining("train.pretrain", "train.pretrain.config", "train an encoder on images alone"),
    "language-model": LaunchedTraining(
        "train.finetune.language_model",
        "train.finetune.language_model.config",
        "train a small language model on report texts",
    ),
    "finetune": LaunchedTraining("train.finetune", "train.finetune.config", "train a findings model on an encoder"),
    "grpo": LaunchedTraining("train.grpo", "train.grpo.config", "train a findings model on scores as rewards"),
    "probe": LaunchedTraining("train.probe", "train.probe.config", "judge what frozen encoders know of images"),
    "scaling": LaunchedTraining(
        "train.probe.scaling", "train.probe.scaling", "pre-train and probe by amounts of data"
    ),
}  # fmt: skip


# Fields that name a model, and what it is called; one that is not here is told before anything is launched.
PARTS = {"encoder": "encoder", "llm": "language model", "init": "findings model"}


def options(parser: Options) -> None:
    """Add the options of the launch; all others, and --help, are the training's own."""
    parser.add_argument("--processes", type=positive, help="Processes: one a GPU, or shares of the cores.")
    parser.add_argument(
        "--config_file",
        metavar="NAME",
        help="Launch file of accelerate, by the name of a shipped one or by path.",
    )


def run(args: argparse.Namespace) -> int:
    """Launch the training; returns its exit status. What went wrong it has told itself."""
    training = TRAININGS[args.command]
    module = import_module(training.config)
    config = module.configured(args.rest, options)
    if args.command == "scaling":
        # the file is part of the command line: its mistakes, too, are told before anything is launched
        module.read_study(config.study)
    if args.command in ("finetune", "grpo"):
        for name, what in PARTS.items():
            if given := getattr(config, name, None):
                here(given, what)
    # a launch file may name other machines
    if args.processes and args.processes > MOST_WORKERS and not args.config_file:
        raise UsageError(f"--processes must be at most {MOST_WORKERS} on this machine, not {args.processes}")
    from train.common.launcher import StepFailed, launch

    try:
        launch(training.module, *args.rest, processes=args.processes, config_file=args.config_file)
    except StepFailed as failed:
        return failed.exit_status
    return 0
