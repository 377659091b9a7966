"""What goes wrong with findings models: the same error as of encoders."""

from encoder.errors import ModelError, UserError

__all__ = ["AskedError", "ModelError", "ModelWarning"]


class AskedError(UserError, ValueError):
    """Refuse what a model cannot do: a setting out of its range, one image where several are meant."""


class ModelWarning(UserWarning):
    """A model that is loaded, but that does not do all that it did when it was made; the message says what to do."""
