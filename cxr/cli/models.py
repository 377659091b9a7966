"""`cxr export`, `cxr convert`, `cxr embed`: models from one form to another, and features of X-rays."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from cxr.cli.terminal import (
    BASE,
    DEVICE,
    UsageError,
    files_below,
    positive,
    side,
    status_of,
    tell,
)

# What shows the features that `cxr embed` has written.


def export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr export` to `parser`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="Findings model or adapter: mini, a directory or a hub id.")
    add("out", type=Path, metavar="OUT", help="Directory to write.")
    add("--base", help=BASE)
    add("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="Type of the saved weights.")
    add(
        "--run",
        type=Path,
        dest="run_folder",
        metavar="DIR",
        help="Folder of the fine-tuning, for the model card.",
    )
    add("--scores", type=Path, metavar="FILE", help="What cxr score --out wrote, for the model card.")
    add(
        "--licence",
        action="append",
        metavar="TEXT",
        help='Licence line of the model card, as "encoder: MIT"; may be repeated.',
    )
    add(
        "--base-model",
        action="append",
        type=hub_name,
        metavar="ID",
        help="Hub id of a model that this one is based on, if the card lacks it; may be repeated.",
    )


def hub_name(text: str) -> str:
    """Read a model's name on the hub (owner/name), as an option's type."""
    from encoder.hub import HUB_ID

    if not HUB_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be a hub id (owner/name), not {text[:60]!r}")
    return text


def convert_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr convert` to `parser`."""
    add = parser.add_argument
    add(
        "weights",
        metavar="IN",
        help="Encoder: mini, a hub id, a transformers directory, a .safetensors or .pth file.",
    )
    add("out", type=Path, metavar="OUT", help="Directory (transformers) or .safetensors file to write.")
    add("--to", required=True, choices=("transformers", "timm", "dinov2"), help="Format to write.")
    add(
        "--size",
        type=side,
        metavar="N",
        help="Side of the input in pixels; resamples position embeddings.",
    )
    add(
        "--heads",
        type=positive,
        metavar="N",
        help="Attention heads of a block (default: of 64 channels each).",
    )
    add("--overwrite", action="store_true", help="Replace OUT.")


def embed_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr embed` to `parser`."""
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="DICOM, PNG or JPEG file, or folder of them.")
    add(
        "--model",
        default="mini",
        help="Encoder: mini, a directory or weights file, a findings model, a hub id.",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="Folder to write.")
    add("--patches", action="store_true", help="Write patch tokens, too.")
    add("--dtype", default="fp32", choices=("fp32", "fp16"), help="Type of the features.")
    add("--size", type=side, metavar="N", help="Side of the input in pixels (default: the encoder's).")
    add("--batch-size", type=positive, metavar="N", default=16, help="Images a forward pass.")
    add("--device", help=DEVICE)


def export(args: argparse.Namespace) -> int:
    """Run `cxr export`."""
    from transformers.utils.logging import disable_progress_bar

    from encoder.errors import naming
    from encoder.files import open_to_readers
    from train.common.checkpoints import recorded
    from train.common.entry import next_command
    from vlm import model as models
    from vlm.card import hub_id, scores_of, write_card
    from vlm.findings import OUTLIERS
    from vlm.hub import resolve
    from vlm.load import load_model

    if args.scores and not args.scores.is_file():
        raise UsageError(f"{args.scores} does not exist")
    if args.scores:
        scores_of(args.scores)
    if args.run_folder and not (args.run_folder / "run.json").is_file():
        raise UsageError(f"{args.run_folder} is not the folder of a fine-tuning: it has no run.json")
    if args.run_folder and recorded(args.run_folder) is None:
        raise UsageError(f"{args.run_folder} is not the folder of a fine-tuning")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded, folder = load_model(args.model, base=args.base), resolve(args.model)
    names = (args.model, args.base, loaded.meta.base)
    bases = [*(args.base_model or ()), *(found for name in names if (found := hub_id(name, folder)))]
    model = models.merge(loaded)
    with naming(args.out):
        models.save(model, args.out, models.DTYPES[args.dtype])
        known = folder / OUTLIERS  # what the model takes for an ordinary chest
        if known.is_file():
            shutil.copy(known, args.out)
        write_card(
            model, args.out, run=args.run_folder, scores=args.scores, licences=args.licence or (), source=folder,
            base=bases,
        )  # fmt: skip
        open_to_readers(args.out)
    kind = str(getattr(model.llava.config, "model_type", ""))
    if kind != "llava":
        tell(f"{args.out} is a {kind}: plain transformers opens it after `import vlm`")
    if model.preprocessing.unsaid:
        tell(
            f"{model.preprocessing.unsaid}: here, but not by transformers' processor, which has no word for it"
        )
    tell(f"wrote {args.out}: AutoModelForImageTextToText and AutoProcessor of transformers open it")
    next_command("cxr", "generate", "FILMS", "--model", args.out, where="FILMS: X-rays, or folders of them")
    return 0


def convert(args: argparse.Namespace) -> int:
    """Run `cxr convert`."""
    from dataclasses import replace

    from encoder.convert import FILES, difference, load_backbone, save_backbone

    # by its name it is read again
    fits = args.out.suffix not in FILES if args.to == "transformers" else args.out.suffix == ".safetensors"
    if not fits:
        form = "a directory" if args.to == "transformers" else "a file, whose name ends in .safetensors"
        raise UsageError(f"--to {args.to} writes {form}; {args.out} is called otherwise")
    if args.to == "transformers" and args.out.is_file():
        raise UsageError(
            f"{args.out} is a file, and --to transformers writes a directory; choose another name"
        )
    if args.to != "transformers" and args.out.is_dir():
        raise UsageError(f"{args.out} is a folder, and --to {args.to} writes a file; choose another name")
    if args.out.exists() and not args.overwrite:
        raise UsageError(f"{args.out} exists; choose another name or give --overwrite")
    loaded = load_backbone(Path(args.weights), size=args.size, heads=args.heads)
    vit = loaded.backbone
    if args.heads not in (None, vit.heads):
        raise UsageError(f"{args.weights} says that its blocks have {vit.heads} heads; leave out --heads")
    tell(
        f"read {loaded.tensors} tensors ({loaded.dialect}): width {vit.embed_dim}, {vit.depth} layers, "
        f"{vit.heads} heads, patches of {vit.patch} px, {vit.size} px"
    )
    for what, names in (("left out (heads)", loaded.left_out), ("not in the file, zero", loaded.added)):
        if names:
            tell(f"{what}: {len(names)}: {', '.join(names[:4])}{', ...' if names[4:] else ''}")
    preprocessing = loaded.preprocessing
    if preprocessing is not None:
        preprocessing = replace(preprocessing, size=vit.size)
    save_backbone(vit, args.out, args.to, preprocessing)
    off = difference(vit, load_backbone(args.out, heads=vit.heads).backbone)
    tell(f"wrote {args.out} ({args.to}); read again, its tokens differ by {off:.1e} at most")
    return 0 if off < 1e-5 else 1


def embed(args: argparse.Namespace) -> int:
    """Run `cxr embed`."""
    from encoder.startup import importing

    with importing():
        from encoder.embed import done, embed, up_to_date
        from encoder.progress import bar
        from vlm.load import usable

    device = usable(args.device)
    paths = []
    unread: list[str] = []
    for given in args.inputs:
        if not given.exists():
            raise UsageError(f"{given} does not exist")
        paths += (
            [str(f.absolute()) for f in sorted(files_below(given, unread))]
            if given.is_dir()
            else [str(given.absolute())]
        )
    if not paths:
        raise UsageError(f"no image found in {', '.join(map(str, args.inputs))}")
    encoder, about = _encoder(args.model, args.size)
    there = len(up_to_date(paths, args.out))
    if there:
        tell(f"{there} of {len(paths)} images are in {args.out} already")
    made = embed(
        paths, encoder.to(device), args.out, about=about, patches=args.patches, dtype=args.dtype,
        batch_size=args.batch_size,
    )  # fmt: skip
    added = 0
    for row in bar(made, "images", len(paths), done=there):
        if "error" in row:
            tell(f"{row['path']}: {row['error']['code']}")
        else:
            added += 1
    # Also those that an earlier run has refused, and does not read again.
    rows = done(args.out)
    refused = sum("error" in rows.get(path, {}) for path in paths)
    tell(f"wrote {args.out}: {added} images" + (f", {refused} refused" if refused else ""))
    if refused < len(paths):
        tell(f"next, in Python: from encoder.embed import read_features; read_features({str(args.out)!r})")
    return status_of(refused + len(unread), len(paths) + len(unread))


def _encoder(name: str, size: int | None) -> tuple[Any, dict[str, Any]]:
    """Return (encoder, what to say of it): one that `encoder_of` knows, or of a findings model its tower."""
    from encoder.frozen import encoder_of, encoder_of_tower
    from vlm.hub import resolve
    from vlm.load import is_findings_model, load_model

    path = Path(name)
    if not path.is_file() and not name.startswith("random:") and name != "pixels":
        path = resolve(name)
        if is_findings_model(path):
            model = load_model(path)
            tower, meta = model.parts.vision_tower, model.meta
            encoder = encoder_of_tower(meta.name, meta.encoder_sha256, tower, model.preprocessing, size)
            return encoder, {"encoder": meta.name, "encoder_sha256": meta.encoder_sha256}
        name = str(path)
    encoder = encoder_of(name, size)
    return encoder, {"encoder": path.name if path.exists() else name, "encoder_sha256": encoder.sha256}
