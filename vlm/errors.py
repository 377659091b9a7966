"""What goes wrong with findings models."""


class ModelError(ValueError):
    """Parts that do not belong together, or a directory that holds no findings model; the message names both sides."""
