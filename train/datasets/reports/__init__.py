"""Data sets with reports, for `cxr studies make`. A module each, with `studies(root, ...)`."""
