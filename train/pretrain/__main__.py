"""`accelerate launch -m train.pretrain ...`"""

import sys

from train.pretrain.loop import main

if __name__ == "__main__":
    sys.exit(main())
