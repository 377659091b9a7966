"""The `cxr` command. A sub-command's options are read from its module only where it is asked for, and what it does is
imported only when it runs: `cxr --help` and `cxr X --help` answer at once."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from typing import NamedTuple

import cxr
from cxr.cli.terminal import no_more_readers
from cxr.cli.trainings import TRAININGS
from encoder.startup import begin_program
from train.common.options import Parser


class Command(NamedTuple):
    """`module` has a function that adds its options to a parser, and one that takes what was given."""

    module: str
    options: str
    run: str
    help: str


COMMANDS = {
    "demo": Command("cxr.cli.demo", "options", "run", "show the whole system at work in a few minutes"),
    "phantom": Command("cxr.cli.tools", "phantom_options", "phantom", "draw synthetic X-rays with reports"),
    "prepare": Command("cxr.cli.data", "prepare_options", "prepare", "shrink an archive of X-rays, for pre-training"),
    **{
        name: Command("cxr.cli.trainings", "options", "run", training.help)
        for name, training in TRAININGS.items()
    },
    "plan": Command("cxr.cli.tools", "plan_options", "plan", "say what a fine-tuning would cost, without its weights"),
    "generate": Command("cxr.cli.generate", "options", "run", "write findings for X-rays, folders or studies"),
    "verify": Command("cxr.cli.verify", "options", "run", "say which sentences of reports their films contradict"),
    "calibrate": Command("cxr.cli.verify", "calibrate_options", "calibrate", "make a model's doubts of reports sure"),
    "score": Command("cxr.cli.score", "options", "run", "score predictions, with intervals and baselines"),
    "agree": Command("cxr.cli.agree", "options", "run", "measure how well metrics agree with radiologists"),
    "rexrank": Command("cxr.cli.rexrank", "options", "run", "write findings in ReXrank's format"),
    "embed": Command("cxr.cli.models", "embed_options", "embed", "compute features of X-rays"),
    "convert": Command("cxr.cli.models", "convert_options", "convert", "convert encoder weights between formats"),
    "export": Command("cxr.cli.models", "export_options", "export", "merge an adapter, for plain transformers"),
    "outliers": Command("cxr.cli.tools", "outliers_options", "outliers", "fit what a model takes for an ordinary film"),
    "leaks": Command("cxr.cli.tools", "leaks_options", "leaks", "name images that an encoder has seen before"),
    "studies": Command("cxr.cli.data", "studies_options", "studies", "make a studies file of a data set, or check one"),
    "weights": Command("cxr.cli.score", "weights_options", "weights", "list or fetch what the clinical scores need"),
    "doctor": Command("cxr.cli.doctor", "options", "run", "list versions, devices, missing parts; or a model's facts"),
}  # fmt: skip


# Their other options, and --help, are a training's own.
PASSED_ON = (*TRAININGS, "plan")


# The end of `cxr --help`.
STATUSES = """\
exit status:
  0         done
  1         nothing could be read or done, or a check found something (doctor, leaks, studies check)
  2         an error of the user's, told in one line
  3         some files or studies were refused, which stderr names; the rest is done
  130, 143  stopped by Ctrl-C or by SIGTERM; run the same command to resume

stdout has what was asked for, stderr all else. Commands that print a result for people print it for programs with
--json. cxr COMMAND --help explains a command's options; docs/terminal.md has more for scripts."""


class WithStatuses(Parser):
    """The parser of `cxr` itself; argparse would fill the lines of an epilog."""

    def format_help(self) -> str:
        """Return argparse's help, followed by what the exit statuses mean."""
        return f"{super().format_help()}\n{STATUSES}\n"


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns its exit status, one of STATUSES or that of the training it launched."""
    if argv is None:
        begin_program()
    argv = sys.argv[1:] if argv is None else argv
    parser, chosen = build_parser(next((word for word in argv if not word.startswith("-")), None))
    try:
        try:
            args, rest = parser.parse_known_args(argv)
            if rest and args.command not in PASSED_ON:
                chosen.error(chosen.unknown(rest))
            args.rest, args.command_line = rest, shlex.join(["cxr", *argv])
            return int(args.run(args))
        finally:
            # At the end of the process Python would complain of a pipe that nobody reads and of a disk that is full.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        no_more_readers()
        return 0
    except KeyboardInterrupt as stop:
        print(f"\n{chosen.prog}: stopped", file=sys.stderr)
        return getattr(stop, "exit_status", 130)
    except Exception as error:
        # What the user can mend says what is wrong and what to do; anything else is a defect.
        from encoder.errors import not_installed, of_the_disk, printable, said_of

        error = of_the_disk(error) or not_installed(error) or error
        status = getattr(error, "exit_status", 2 if isinstance(error, OSError) else None)
        if status is None:
            raise
        if said := said_of(error):
            print(f"{chosen.prog}: {printable(said)}", file=sys.stderr)
        return int(status)


def build_parser(command: str | None) -> tuple[Parser, Parser]:
    """Return (the whole parser, that of `command`, which alone has its options)."""
    parser = WithStatuses(
        prog="cxr", description="Chest X-rays in, findings out. For research, not for diagnosis."
    )
    parser.add_argument(
        "--version", action="version", help="Show the version and exit.", version=f"cxr {cxr.__version__}"
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=Parser
    )
    chosen: Parser = parser
    for name, about in COMMANDS.items():
        training = name in PASSED_ON
        said = about.help[:1].upper() + about.help[1:] + "."
        p = commands.add_parser(name, help=about.help, description=said, add_help=not training)
        if name == command:
            chosen = p
            module = import_module(about.module)
            getattr(module, about.options)(p)
            p.set_defaults(run=getattr(module, about.run))
    return parser, chosen


if __name__ == "__main__":
    sys.exit(main())
