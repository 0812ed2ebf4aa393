"""The error of everything that is wrong with a checkpoint's files."""


class CheckpointError(ValueError):
    """A checkpoint is damaged or incomplete, or does not fit the config or training run; nothing of it was loaded."""
