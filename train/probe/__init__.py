"""What frozen encoders know. `accelerate launch -m train.probe --help`; see run.py."""
