"""What goes wrong with models."""


class ModelError(ValueError):
    """Parts that do not belong together, or a directory that holds no such model; the message names both sides."""
