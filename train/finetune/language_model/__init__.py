"""A small language model from nothing. `accelerate launch -m train.finetune.language_model --help`; see loop.py."""
