"""The error of a run that failed."""


class CorpusError(ValueError):
    """A run over a corpus failed. What it has written stays, and the same call goes on from there."""
