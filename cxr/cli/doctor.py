"""`cxr doctor`: what is installed, what it runs on, and what is missing with the command that brings it."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cxr
from cxr.cli.terminal import NOTHING_DONE, echo, json_option, print_json

# Distribution -> oldest version we promise to work with; None: optional.
PACKAGES = {
    "torch": "2.11",
    "torchvision": "0.26",
    "transformers": "5.17",
    "peft": "0.19",
    "accelerate": "1.12",
    "timm": "1.0.22",
    "safetensors": "0.6",
    "pydicom": "3.0.2",
    "python-gdcm": "3.2.6",
    "nltk": "3.9",
    "radgraph": "0.1.18",
    "scikit-learn": "1.7",
    "triton": None,
    "pylibjpeg-libjpeg": None,
    "trl": None,
}

# The syntax whose decoder is not installed by default, because of its licence.
NOT_A_DEFAULT = "JPEG extended, 12 bit"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr doctor` to `parser`."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Say what this findings model knows, instead: mini, a directory, a hub id.",
    )
    json_option(parser, "the same as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run `cxr doctor`: return 0 if all that is needed is there."""
    if args.model:
        known = facts_of_model(args.model)
        if args.json:
            print_json(known)
        else:
            echo_lines(lines_of_model(known))
        return 0
    found = facts()
    if args.json:
        print_json(found)
    else:
        echo_lines(lines_of(found))
    return NOTHING_DONE if found["needed"] else 0


def echo_lines(lines: list[str]) -> None:
    """Print lines, each of which may hold names."""
    for line in lines:
        echo(line)


def facts_of_model(name: str) -> dict[str, Any]:
    """Return what a findings model is asked, what it was fitted to, and where its limits are.

    Raises ModelError if it is not a findings model.
    """
    from vlm.hub import check_here, resolve

    check_here(name)
    from encoder.transforms import Preprocessing
    from vlm.findings import OUTLIERS
    from vlm.model import Meta
    from vlm.outliers import Outliers

    folder = resolve(name)
    meta = Meta.load(folder)
    style = meta.prompt.to_json()
    found: dict[str, Any] = {
        "name": meta.name,
        "notice": meta.notice,
        "section": style["section"],
        "max_new_tokens": meta.max_new_tokens,
        "is_told": [field for field, value in style.items() if value is True],
        "pixels": Preprocessing.from_pretrained(folder).size,
        "licence": meta.licence or None,
        "ordinary_films": None,
    }
    if (folder / OUTLIERS).is_file():
        known = Outliers.load(folder / OUTLIERS)
        found["ordinary_films"] = {
            "count": known.reference,
            "false_alarms": known.false_alarms,
            "nats_a_token": known.words,
            "chest_films": known.chest.reference if known.chest else None,
        }
    return found


def lines_of_model(found: dict[str, Any]) -> list[str]:
    """Say what `facts_of_model` found, line by line."""
    size, known = found["pixels"], found["ordinary_films"]
    lines = [
        f"{found['name']}: {found['notice']}",
        f"  writes               {found['section']}, at most {found['max_new_tokens']} tokens",
        f"  is told              {', '.join(found['is_told']) or 'nothing'}",
        f"  sees                 {size} x {size} pixels",
        f"  licence              {found['licence'] or 'see its README'}",
    ]
    if known is None:
        return [
            *lines,
            "  limits               unknown: it never warns of unusual images (to change that: cxr outliers)",
        ]
    alarms = "" if known["false_alarms"] is None else f", {known['false_alarms']:.0%} with a warning"
    lines.append(
        f"  knows                {known['count']} films of its own domain{alarms} (out_of_distribution)"
    )
    if known["nats_a_token"] is None:
        lines.append("  words                are not checked")
    else:
        lines.append(
            f"  words                are checked: unusual above {known['nats_a_token']:.1f} nats a token "
            "(unfamiliar_words)"
        )
    if known["chest_films"] is None:
        lines.append("  not a chest film     cannot be told: findings are written about any image")
    else:
        lines.append(
            f"  not a chest film     gets no findings (abstained), by {known['chest_films']} chest films; "
            "--insist writes them"
        )
    return lines


def packages() -> list[tuple[str, str, str]]:
    """Return (name, version or 'missing', complaint or '') of every package that matters."""
    from packaging.version import Version

    rows = []
    for name, floor in PACKAGES.items():
        try:
            have = version(name)
        except PackageNotFoundError:
            hint = "" if floor is None else f"pip install '{name}>={floor}'"
            rows.append((name, "missing", hint))
            continue
        old = floor is not None and Version(have.split("+")[0]) < Version(floor)
        rows.append((name, have, f"older than {floor}: pip install -U '{name}>={floor}'" if old else ""))
    return rows


def devices() -> list[tuple[str, str]]:
    """Return rows (device, what it is): the processor, then each GPU that torch sees with its memory in
    GiB."""
    import torch

    rows = [
        (
            "processor",
            f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        )
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        rows.append(
            (f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}")
        )
    if torch.cuda.device_count() == 0:
        rows.append(("cuda", "none"))
    return rows


def attention() -> str:
    """Say what our operator runs on the best device here."""
    import torch

    if not torch.cuda.is_available():
        return "cxr on this CPU: PyTorch's fused kernel, matrix products where those are faster"
    try:
        from encoder.attention.kernel import capability
    except ImportError:
        return (
            "cxr on a GPU needs Triton, which is missing: pip install 'triton>=3.6' (--attention sdpa works)"
        )
    arch = capability(torch.device("cuda"))
    return f"cxr on sm_{arch}: our flash attention in Triton" + (", reading by TMA" if arch >= 90 else "")


def weights() -> list[dict[str, Any]]:
    """Return mini and every model that the scores need: where each is, or the command that brings it."""
    from eval.scores import weights as known
    from vlm.hub import MINI

    file = MINI / "model.safetensors"
    mini = {
        "name": "mini",
        "serves": ["cxr generate, as it is shipped"],
        "folder": str(MINI),
        "complete": file.is_file(),
        "missing": [] if file.is_file() else [file.name],
        "command": None if file.is_file() else "make mini",
    }
    # The digests take seconds, and `cxr weights` has them.
    scores = [known.state(name, hashed=False) for name in known.MODELS]
    return [mini, *({k: v for k, v in row.items() if k != "sha256"} for row in scores)]


def transfer_syntaxes() -> list[dict[str, Any]]:
    """Return, for each DICOM transfer syntax, what decodes it here, or the command that brings a decoder."""
    from encoder.radiograph import codecs
    from encoder.radiograph.decode import INSTALL, SYNTAXES

    plugins = {name: plugin for name, plugin, _ in SYNTAXES.values()}
    return [
        {
            "name": name,
            "decoder": state or None,
            "command": None if state else INSTALL[plugins[name] or "pydicom"],
        }
        for name, state in codecs().items()
    ]


def facts() -> dict[str, Any]:
    """Return the whole page for programs. `needed` and `optional` name what is missing or too old."""
    found: dict[str, Any] = {
        "cxr": cxr.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": [
            {"name": name, "version": None if have == "missing" else have, "problem": problem or None}
            for name, have, problem in packages()
        ],
        "devices": [dict(zip(("name", "what"), row, strict=True)) for row in devices()],
        "attention": attention(),
        "weights": weights(),
        "transfer_syntaxes": transfer_syntaxes(),
        "CXR_DATA": os.environ.get("CXR_DATA"),
    }
    mini, *scores = found["weights"]
    found["needed"] = [row["name"] for row in found["packages"] if row["problem"]]
    found["needed"] += [mini["name"]] if mini["command"] else []
    found["optional"] = [row["name"] for row in scores if row["command"]]
    for row in found["transfer_syntaxes"]:
        if row["command"]:
            found["optional" if row["name"] == NOT_A_DEFAULT else "needed"].append(row["name"])
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """Say what `facts` found, line by line; the last one says whether all is well."""
    lines = [f"cxr {found['cxr']} on Python {found['python']}, {found['system']}", ""]
    lines += [
        f"  {row['name']:20} {row['version'] or 'missing':16} {row['problem'] or ''}".rstrip()
        for row in found["packages"]
    ]
    lines += ["", "Devices"] + [f"  {row['name']:20} {row['what']}" for row in found["devices"]]
    lines += ["", "Attention", f"  {found['attention']}"]
    lines += ["", "Weights"]
    for row in found["weights"]:
        state = f"in {row['folder']}" if row["complete"] else f"missing: {row['command']}"
        lines.append(f"  {row['name']:20} {state}  ({'; '.join(row['serves'])})")
    lines += ["", "DICOM transfer syntaxes"]
    for row in found["transfer_syntaxes"]:
        lines.append(f"  {row['name']:34} {row['decoder'] or 'missing: ' + row['command']}")
    data = found["CXR_DATA"]
    lines += [
        "",
        f"CXR_DATA is {data}" if data else "CXR_DATA is not set (needed only for tests on real X-rays)",
        "",
    ]
    if found["needed"]:
        lines.append(f"Missing or too old: {', '.join(found['needed'])}. The commands are above.")
    elif not found["optional"]:
        lines.append("All well.")
    else:
        lines.append("What everybody needs is there.")
    if found["optional"]:
        lines.append(
            f"Some scores and films need missing parts: {'; '.join(found['optional'])}. The commands are above."
        )
    return lines
