"""Damaged files of all kinds that are read from outside, and what becomes of them: `make fuzz N=10000 SEED=1`."""
