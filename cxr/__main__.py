"""`python -m cxr` is the command `cxr`.

Python looks in the current folder first then, so files there that have the names of our rooms are refused.
"""

from __future__ import annotations

import sys

from cxr.rooms import refuse_strangers

if __name__ == "__main__":
    try:
        refuse_strangers("train", "vlm", "eval", "encoder")
    except ImportError as stranger:
        print(f"cxr: {stranger}; the command `cxr` itself does not look there", file=sys.stderr)
        sys.exit(2)
    from cxr.cli.main import main

    sys.exit(main())
