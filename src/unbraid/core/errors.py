"""The errors that Unbraid raises on purpose: each says what was given, what is accepted and what to do."""


class UnbraidError(ValueError):
    """Something the caller can mend; the command line prints it in one sentence and exits with 2."""


class AttachError(UnbraidError):
    """The model cannot be tapped as asked: no site matched, or its attention never reaches a seam."""
