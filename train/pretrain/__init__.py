"""Image-only pre-training. `accelerate launch -m train.pretrain --help`; see loop.py."""
