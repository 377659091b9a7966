"""What goes wrong with findings models: the same error as of encoders."""

from encoder.errors import ModelError

__all__ = ["ModelError", "ModelWarning"]


class ModelWarning(UserWarning):
    """A model that is loaded, but that does not do all that it did when it was made; the message says what to do."""
