"""`accelerate launch -m train.grpo ...`"""

import sys

from train.common.trainer import entry
from train.grpo.loop import main

if __name__ == "__main__":
    sys.exit(entry(main))
