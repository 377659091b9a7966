"""The file of a scaling study: read and checked as a whole, before a folder is claimed or anything is trained."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from encoder.errors import UserError, did_you_mean, printable
from encoder.files import check_input, read_json, write_json
from train.common.config import ConfigError, read_yaml, recipe_path
from train.common.options import NEGATIVE, Option, note, options_of, shown

KEYS = {"recipe", "data", "fields", "amounts", "seeds", "variants", "probe"}
# Fields that the study gives itself, and where they come from.
OF_PRETRAINING = {"seed": "the study's seeds", "out": "--out"}
OF_PROBE = {"encoders": "the points", "out": "--out", "pretrained_on": "the images drawn"}
# Bytes of a variant's name: a file's may have 255, and amount, seed and suffixes of temporary files come on top.
LONGEST_NAME = 150
# NumPy's, from which images are drawn
SEEDS = 2**32
T = TypeVar("T")


@dataclass
class Point:
    """One pre-training of the study."""

    variant: str
    amount: int
    seed: int
    changes: dict[str, Any]  # fields of the pre-training
    data: list[str]

    @property
    def name(self) -> str:
        """Return the name of the point's folder: variant, images and seed, without spaces and strokes."""
        return f"{_as_folder(self.variant)}-{self.amount}-{self.seed}"

    def compare(self, out: Path, recipe: str | None) -> dict[str, Any]:
        """Return what this point is, for its file. Raises ConfigError where OUT has it with other settings."""
        file = out / "points" / f"{self.name}.json"
        about = json.loads(json.dumps({"recipe": recipe, "data": self.data, "changes": self.changes}))
        if file.is_file() and (before := read_json(file)) != about:
            rest = f"{file}, {file.with_suffix('')} and {out / 'data' / self.name}.csv"
            raise ConfigError(
                f"variant {self.variant}: {file} says that it was made with {before}, and the study now says {about}; "
                f"give the variant another name, or remove {rest}"
            )
        return about

    def claim(self, out: Path, recipe: str | None) -> None:
        """Keep what this point is. Raises ConfigError where OUT has it with other settings."""
        about = self.compare(out, recipe)
        file = out / "points" / f"{self.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, about)


def read_study(path: Path) -> dict[str, Any]:
    """Read and check the file of a scaling study; no image is looked at.

    Raises:
        ConfigError: a file that cannot be read, missing or unknown keys, values of another kind, and settings that no
            pre-training or probe accepts; the message names the file and the variant.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    study = read_yaml(path)
    if not isinstance(study, dict) or study.keys() - KEYS or {"data", "amounts", "probe"} - study.keys():
        odd = sorted(map(_said, study.keys() - KEYS)) if isinstance(study, dict) else []
        raise ConfigError(
            f"{path}: a study has {', '.join(sorted(KEYS))}" + (f", not {', '.join(odd)}" if odd else "")
        )
    study = {"recipe": None, "fields": {}, "seeds": [0], "variants": {"all": {}}, **study}
    try:
        _check_kinds(study)
        _check_fields(path, study)
        _check_configs(study)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None
    return study


def points_of(study: dict[str, Any]) -> list[Point]:
    """List the points of a study, small amounts first, so that a curve appears early."""
    made = []
    for amount in sorted(study["amounts"]):
        for seed in study["seeds"]:
            for variant, own in study["variants"].items():
                changes = {**study["fields"], **(own or {})}
                data = changes.pop("data", study["data"])
                made.append(
                    Point(variant, amount, seed, changes, [data] if isinstance(data, str) else list(data))
                )
    return made


def options(values: Mapping[str, Any]) -> list[str]:
    """Turn fields into the words of a command line."""
    words = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            # in one word, for a value may begin with a dash
            words.append(f"--{name}={value}")
    return words


def words_of_pretraining(
    point: Point, recipe: str | None, listing: Path, out: Path, threads: int
) -> list[str]:
    """Return the command line of a point's pre-training on the images in `listing`."""
    fixed = {"seed": point.seed, "data": [str(listing)], "out": str(out)}
    begun = {"recipe": recipe} if recipe else {}
    return options({**begun, "threads": threads, **point.changes, **fixed})


def words_of_probe(
    probe: dict[str, Any], encoder: Path, listing: Path, features: Path, out: Path, threads: int
) -> list[str]:
    """Return the command line of a point's probe; `listing` names what the encoder has seen."""
    fixed = {"pretrained_on": [str(listing)], "encoders": [str(encoder)], "out": str(out)}
    return options({"threads": threads, "features_dir": str(features), **probe, **fixed})


def _check_kinds(study: dict[str, Any]) -> None:
    """Raise ConfigError for a key whose value is of another kind, for empty or repeated entries, and for names that no
    folder can have."""
    whole = "a list of whole numbers"
    kinds = {"amounts": whole, "seeds": whole, "fields": "fields", "variants": "names", "probe": "fields"}
    for key, kind in kinds.items():
        value = study[key]
        if kind == whole:
            fits = isinstance(value, list) and all(type(n) is int for n in value)
        else:
            fits = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        if not fits:
            raise ConfigError(
                f"{key} must be {kind if kind == whole else f'{kind} with values'}, not {shown(value)}"
            )
    if not study["amounts"] or min(study["amounts"]) < 1:
        raise ConfigError("amounts are numbers of images, at least 1")
    if not study["seeds"] or not all(0 <= seed < SEEDS for seed in study["seeds"]):
        raise ConfigError(
            f"seeds are whole numbers from 0 to {SEEDS - 1}, at least one, not {shown(study['seeds'])}"
        )
    for key in ("amounts", "seeds"):
        if twice := sorted({n for n in study[key] if study[key].count(n) > 1}):
            raise ConfigError(f"{key}: {shown(twice[0])} is given twice")
    if not study["variants"]:
        raise ConfigError('variants has no entry; leave it out for one that is called "all"')
    folders: dict[str, str] = {}
    for name, changes in study["variants"].items():
        _check_name(name)
        other = folders.setdefault(_as_folder(name), name)
        if other != name:
            raise ConfigError(f"variants {other} and {name} have the same name but for spaces and strokes")
        if not (changes is None or isinstance(changes, dict)):
            raise ConfigError(f"variant {name} must be fields with values, not {shown(changes)}")
    recipe = study["recipe"]
    if not (recipe is None or (isinstance(recipe, str) and recipe and printable(recipe) == recipe)):
        raise ConfigError(f"recipe must be a name or the path of a .yaml file, not {shown(recipe)}")


def _check_name(name: str) -> None:
    if not name.strip():
        raise ConfigError(f"variant {shown(name)}: a variant needs a name")
    if printable(name) != name:
        raise ConfigError(f"variant {shown(name)}: its name holds a character that cannot be shown")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(
            f"variant {shown(name)}: its name has over {LONGEST_NAME} bytes; give a shorter one"
        )


def _check_fields(path: Path, study: dict[str, Any]) -> None:
    """Raise ConfigError for fields that do not exist, that the study gives itself, or whose values have another
    structure. Old names of fields become today's, with a note."""
    from train.pretrain.config import RENAMED, PretrainConfig
    from train.probe.config import RENAMED as RENAMED_OF_PROBE
    from train.probe.config import Probe

    for name, changes in _changes(study):
        for old in [key for key in changes if key in RENAMED]:
            if RENAMED[old] in changes:
                raise ConfigError(f"{name}: {old} is {RENAMED[old]}, which is given, too; give it once")
            note(f"{path.name}: {old} is now {RENAMED[old]}; the old name goes with the next release")
            changes[RENAMED[old]] = changes.pop(old)
        # data has a check of its own, for here one path may stand alone
        others = {key: value for key, value in changes.items() if key != "data"}
        _check_values(name, others, options_of(PretrainConfig), OF_PRETRAINING, "a pre-training")
    probe = study["probe"]
    if "data" not in probe:
        raise ConfigError("probe needs data, as cxr probe takes it")
    today = {RENAMED_OF_PROBE.get(key, key): value for key, value in probe.items()}
    if len(today) < len(probe):
        raise ConfigError("probe: a field is given by its old and by its new name; give it once")
    _check_values("probe", today, options_of(Probe), OF_PROBE, "a probe")
    data = options_of(PretrainConfig)[0]
    assert data.name == "data"
    sources = [("", study["data"])]
    sources += [(f"{name}: ", changes["data"]) for name, changes in _changes(study) if "data" in changes]
    for where, value in sources:
        given = [value] if isinstance(value, str) else value
        if not given or data.problem(given) or not all(given):
            raise ConfigError(f"{where}data must be a path or a list of paths, not {shown(value)}")
        for source in given:
            check_input(source)


def _changes(study: dict[str, Any]) -> list[tuple[str, dict[Any, Any]]]:
    """Return the fields of all variants, and those of each, by what messages call them."""
    own = [(f"variant {name}", changes or {}) for name, changes in study["variants"].items()]
    return [("fields", study["fields"]), *own]


def _check_values(
    where: str, values: Mapping[Any, Any], known: tuple[Option, ...], fixed: Mapping[str, str], whose: str
) -> None:
    by_name = {option.name: option for option in known}
    for name in fixed:
        if name in values:
            raise ConfigError(f"{where}: {name} comes from {fixed[name]}; leave it out here")
    if unknown := sorted(_said(key) for key in values if key not in by_name):
        raise ConfigError(f"{where}: {whose} has no {', '.join(unknown)}{did_you_mean(unknown[0], by_name)}")
    for name, value in values.items():
        if problem := _unfit(by_name[name], value):
            raise ConfigError(f"{where}: {problem}")


def _unfit(option: Option, value: Any) -> str | None:
    """Say why a value cannot be written on a command line as this field's; None if it can."""
    several = option.several and isinstance(value, list)
    if several and not value:
        return f"{option.name} has no entry; leave it out, or give one"
    entries = value if several else [value]
    if not all(isinstance(entry, str | int | float) for entry in entries):
        return option.problem(value)
    dashed = [e for e in entries if isinstance(e, str) and e.startswith("-") and not NEGATIVE.match(e)]
    if option.several and dashed:
        return f"{option.name}: {shown(dashed[0])} begins with a dash, as options do"
    return None


def _check_configs(study: dict[str, Any]) -> None:
    """Build the config of each variant's pre-training and that of the probe. Raises ConfigError for those that cannot
    be."""
    from train.pretrain.config import configured
    from train.probe.config import configured as configured_probe

    recipe, somewhere = study["recipe"], Path("out")
    if recipe:
        recipe_path(recipe)
    made = set()
    for point in points_of(study):
        if point.variant in made:
            continue
        made.add(point.variant)
        words = words_of_pretraining(point, recipe, somewhere, somewhere, 0)
        own = study["variants"][point.variant]
        where = f"variant {point.variant}" if own else "fields" if study["fields"] else "recipe"
        _built(where, configured, words)
    words = words_of_probe(study["probe"], somewhere, somewhere, somewhere, somewhere, 0)
    _built("probe", configured_probe, words)


def _built(where: str, configured: Callable[[list[str]], T], words: list[str]) -> T:
    """Read a command line as its training will. Raises ConfigError, also for what argparse would tell by itself."""
    said = io.StringIO()
    try:
        # what is noted here is noted again when the training starts
        with redirect_stderr(said), redirect_stdout(said):
            return configured(words)
    except SystemExit:
        # cxr pretrain: argument --size: must be ...; `cxr pretrain --help` lists ...
        line = (said.getvalue().strip().splitlines() or ["its settings cannot be used"])[-1]
        line = line.partition(": ")[2].partition("; `cxr")[0] or line
        option, _, rest = line.removeprefix("argument --").partition(": ")
        raise ConfigError(f"{where}: {option} {rest}".rstrip()) from None
    except UserError as error:
        raise ConfigError(f"{where}: {error}") from None


def _as_folder(name: str) -> str:
    return name.replace(" ", "_").replace("/", "_")


def _said(key: Any) -> str:
    return key if isinstance(key, str) else shown(key)
