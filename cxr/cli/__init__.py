"""The `cxr` command: main.py has the parser, the others what its sub-commands do."""
