"""What all trainings share: configs and recipes, processes, checkpoints, the loop on transformers.Trainer."""
