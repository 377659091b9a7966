"""Whole ways from images to scores, for developers: `make mini`, `make real`."""
