"""Chest X-rays in, findings out, and scores that can be trusted. For research, not for diagnosis.

import cxr

model = cxr.Findings.from_pretrained("mini")  # or a directory, or a hub id
prediction = model("chest.dcm")  # or bytes, an open file, a picture, an array, a tensor, a Dataset, a list of them
print(prediction.text)
print(cxr.score(references, predictions))  # lists of texts, a DataFrame, or files
cxr.metric("rouge-l/coco").per_sample(references, predictions)

Each name is imported when it is first used, so that `import cxr` takes no time. After it transformers' Auto classes
know `cxr_llava`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cxr.rooms import refuse_strangers

refuse_strangers("vlm")
import vlm  # noqa: E402, F401  (makes cxr_llava known)

if TYPE_CHECKING:
    from cxr.scoring import score
    from encoder.radiograph import InputError, Radiograph, read
    from eval.metric import metric
    from eval.scores.result import Scores
    from vlm.findings import Findings
    from vlm.notices import FindingsWarning
    from vlm.prediction import Prediction
    from vlm.study import Image, Study, load_studies, save_studies

    __version__: str

__all__ = [
    "Findings",
    "FindingsWarning",
    "Image",
    "InputError",
    "Prediction",
    "Radiograph",
    "Scores",
    "Study",
    "__version__",
    "load_studies",
    "metric",
    "read",
    "save_studies",
    "score",
]

# Where each name is, and the packages that are imported with it.
_HOME = {
    "Findings": ("vlm.findings", "vlm", "encoder"),
    "FindingsWarning": ("vlm.notices", "vlm"),
    "Image": ("vlm.study", "vlm", "encoder"),
    "InputError": ("encoder.radiograph", "encoder"),
    "Prediction": ("vlm.prediction", "vlm", "encoder"),
    "Radiograph": ("encoder.radiograph", "encoder"),
    "Scores": ("eval.scores.result", "eval"),
    "Study": ("vlm.study", "vlm", "encoder"),
    "load_studies": ("vlm.study", "vlm", "encoder"),
    "metric": ("eval.metric", "eval"),
    "read": ("encoder.radiograph", "encoder"),
    "save_studies": ("vlm.study", "vlm", "encoder"),
    "score": ("cxr.scoring", "eval", "vlm", "encoder"),
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        found: object = _version()
    elif name in _HOME:
        module, *rooms = _HOME[name]
        refuse_strangers(*rooms)
        found = getattr(import_module(module), name)
    else:
        raise AttributeError(f"module 'cxr' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cxr-vlm")
    except PackageNotFoundError:
        return "0+not.installed"
