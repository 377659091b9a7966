"""Loops: pre-training, fine-tuning, rewards, probes, and the data they read."""

from train.names import refuse_strangers

# before anything of theirs is imported, and run
refuse_strangers("encoder", "vlm", "eval")
