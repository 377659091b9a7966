"""`accelerate launch -m train.finetune ...`"""

import sys

from train.common.trainer import entry
from train.finetune.loop import main

if __name__ == "__main__":
    sys.exit(entry(main))
