"""What goes wrong with run directories."""

__all__ = ["OutdatedWarning", "RunError", "TakenError", "WaitingWarning"]


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says what, where and what to do."""


class TakenError(RunError):
    """A directory that is there already, maybe since a moment ago."""


class WaitingWarning(UserWarning):
    """Another process is writing the directory."""


class OutdatedWarning(UserWarning):
    """A run whose models an earlier version evaluated wrongly."""
