"""Data sets with labels or masks, for probes. A module each, with `labelled(root, ...)`."""
