"""Paste the README's blocks into a shell, in order, in a new copy of the repository, the install too (ten minutes and a
package index).

    python tests/smoke/readme.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.docs.blocks import FENCE, ROOT


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "cxr"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, copy], check=True)
        script = ["set -eux"]
        for found in FENCE.finditer((copy / "README.md").read_text()):
            if found["language"] == "bash":
                script.append(found["text"])
            elif found["language"] == "python":
                script.append(f"python - <<'END'\n{found['text']}END\n")
        done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=copy)
        print("every block ran" if done.returncode == 0 else f"a block failed with status {done.returncode}")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
