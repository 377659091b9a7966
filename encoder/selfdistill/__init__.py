"""Self-distillation with no labels: heads, losses, masks and the teacher of DINOv2."""
