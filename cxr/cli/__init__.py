"""The `cxr` command: main.py has the parser, the others what its sub-commands do."""

from cxr.rooms import refuse_strangers

refuse_strangers("encoder", "vlm", "train", "eval")
