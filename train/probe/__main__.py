"""`accelerate launch -m train.probe ...`"""

import sys

from train.common.trainer import entry
from train.probe.run import main

if __name__ == "__main__":
    sys.exit(entry(main))
