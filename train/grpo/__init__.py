"""Learning from scores as rewards. `accelerate launch -m train.grpo --help`; see loop.py."""
