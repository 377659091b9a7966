"""`cxr doctor`: what is installed, what it runs on, and what is missing with the command that brings it."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import cxr

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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Say what this findings model knows, instead: mini, a directory, a hub id.",
    )


def run(args: argparse.Namespace) -> int:
    """`cxr doctor`: 0 where all that is needed is there."""
    if args.model:
        print("\n".join(known_by(args.model)))
        return 0
    text, well = report()
    print(text)
    return 0 if well else 1


def known_by(name: str) -> list[str]:
    """Return lines about a findings model: what it is asked, what it was fitted to, and where its limits are.

    Raises ModelError for what is no findings model.
    """
    from encoder.transforms import Preprocessing
    from vlm.findings import OUTLIERS
    from vlm.hub import resolve
    from vlm.model import Meta
    from vlm.outliers import Outliers

    folder = resolve(name)
    meta = Meta.load(folder)
    style, size = meta.prompt.to_json(), Preprocessing.from_pretrained(folder).size
    told = [field for field, value in style.items() if value is True]
    lines = [
        f"{meta.name}: {meta.notice}",
        f"  writes               {style['section']}, at most {meta.max_new_tokens} tokens",
        f"  is told              {', '.join(told) or 'nothing'}",
        f"  sees                 {size} x {size} pixels",
        f"  licence              {meta.licence or 'see its README'}",
    ]
    if not (folder / OUTLIERS).is_file():
        return [
            *lines,
            "  limits               unknown: it warns of no unusual image (cxr outliers MODEL FILMS mends that)",
        ]
    known = Outliers.load(folder / OUTLIERS)
    alarms = "" if known.false_alarms is None else f", {known.false_alarms:.0%} of such are warned of"
    lines.append(
        f"  knows                {known.reference} films of its own domain{alarms} (out_of_distribution)"
    )
    if known.words is None:
        lines.append("  words                are not checked")
    else:
        lines.append(
            f"  words                are checked: unusual above {known.words:.1f} nats a token (unfamiliar_words)"
        )
    if known.chest is None:
        lines.append("  no chest film        is not told from others: findings are written of any image")
    else:
        lines.append(
            f"  no chest film        gets no findings (abstained), by {known.chest.reference} chest films; "
            "--insist writes them"
        )
    return lines


def packages() -> list[tuple[str, str, str]]:
    """(name, version or 'missing', complaint or '') of every package that matters."""
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
    """What our operator runs on the best device here."""
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


def weights() -> list[tuple[str, str]]:
    """(what, where it is or how to get it)."""
    rows = []
    from vlm.hub import MINI

    file = MINI / "model.safetensors"
    if file.is_file():
        rows.append(("mini (shipped)", f"{file.stat().st_size / 1e6:.1f} MB in {MINI}"))
    else:
        rows.append(("mini (shipped)", "missing: make mini"))
    return rows


def report() -> tuple[str, bool]:
    """The whole page as text, and whether everything needed is there."""
    from encoder.radiograph import codecs

    lines, well = (
        [f"cxr {cxr.__version__} on Python {platform.python_version()}, {platform.system()}", ""],
        True,
    )
    for name, have, complaint in packages():
        well &= not complaint
        lines.append(f"  {name:20} {have:16} {complaint}".rstrip())
    lines += ["", "Devices"] + [f"  {name:20} {what}" for name, what in devices()]
    lines += ["", "Attention", f"  {attention()}"]
    lines += ["", "Weights"] + [f"  {name:20} {where}" for name, where in weights()]
    lines += ["", "DICOM transfer syntaxes"]
    for name, state in codecs().items():
        lines.append(f"  {name:34} {'yes' if state is True else 'no' if state is False else state}")
    data = os.environ.get("CXR_DATA")
    lines += [
        "",
        f"CXR_DATA is {data}" if data else "CXR_DATA is not set (needed only for tests on real X-rays)",
    ]
    lines += ["", "All well." if well else "Something is missing or too old: see above."]
    return "\n".join(lines), well
