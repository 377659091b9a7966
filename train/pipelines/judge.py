"""A model judged on studies of a file: predictions with baselines that look at another film or at none, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm.study import Study, absolute, load_studies


def generate(
    model: str | Path,
    studies: Path,
    out: Path,
    floors: Path,
    *,
    split: str,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[Study]:
    """Write findings of a split's studies to `out`, of shuffled and blank images to the folder `floors`; returns the
    studies. An interrupted run is resumed."""
    from encoder.files import sole_writer
    from vlm.decoding import Decoding
    from vlm.findings import Findings
    from vlm.predictions import write_predictions

    chosen = [absolute(s, studies.parent) for s in load_studies(studies) if s.split == split][:limit]
    findings = Findings.from_pretrained(model, warn=False)
    decoding = Decoding(findings.model.max_new_tokens)
    for images, path in (
        ("own", out), ("shuffled", floors / "shuffled.jsonl"), ("blank", floors / "blank.jsonl"),
    ):  # fmt: skip
        settings = {"batch_size": batch_size, "images": images, "decoding": decoding}
        with sole_writer(path):
            write_predictions(path, findings, chosen, settings)
    return chosen


def score(predictions: Path, references: Path, floors: Path, out: Path, page: Path) -> None:
    """Write the scores beside their baselines as JSON and as a page with the X-rays of the worst studies."""
    import eval as scoring
    from encoder.radiograph import InputError, read
    from eval.report import write_page

    scores = scoring.score(predictions, references, floors=floors)
    print(scores.table())
    scores.save(out)
    worst = {row["study_id"] for row in scores.worst(WORST)}
    images = {}
    for study in _with_images(load_studies(references), worst):
        try:
            images[study.study_id] = read(study.image_paths(references.parent)[0]).pixels
        except InputError:
            continue
    write_page(page, title="Scores", scores=scores, worst=WORST, images=images)


# studies on the page
WORST = 20


def _with_images(studies: Sequence[Study], names: set[str]) -> list[Study]:
    return [s for s in studies if s.study_id in names and s.images]
