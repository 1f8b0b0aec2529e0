"""The error of this room, which needs no library."""


class ExportError(ValueError):
    """A model cannot be exported, or what was written is not the model."""
