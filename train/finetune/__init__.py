"""Fine-tuning of a findings model. `accelerate launch -m train.finetune --help`; see loop.py."""
