"""What goes wrong with findings models: the same error as of encoders."""

from encoder.errors import ModelError

__all__ = ["ModelError"]
