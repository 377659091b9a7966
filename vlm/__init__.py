"""Tokens become findings. `from vlm import Findings`; see `vlm.findings`.

After `import vlm`, transformers' AutoModelForImageTextToText knows `cxr_llava` (vlm/llava.py).
"""

import importlib
import importlib.util
import sys

__all__ = ["Findings"]

AUTO = "transformers.models.auto.modeling_auto"


def __getattr__(name: str):
    if name == "Findings":  # imported when asked for, so that `import vlm` does not import torch
        from vlm.findings import Findings

        return Findings
    raise AttributeError(f"module 'vlm' has no attribute {name!r}")


class _Registers:
    """Makes `cxr_llava` known as soon as transformers' Auto models are imported. Importing them here would cost
    seconds, also where nobody wants them (`cxr --help`); importlib.abc, of whose MetaPathFinder this is one, 0.1 s."""

    def find_spec(self, name, path=None, target=None):
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                importlib.import_module("vlm.llava")

            spec.loader.exec_module = exec_module
        return spec


if AUTO in sys.modules:
    importlib.import_module("vlm.llava")
elif not any(type(finder).__name__ == "_Registers" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Registers())
