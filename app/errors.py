"""What ends a run on purpose: an exit code and one readable message."""

CONFIG, DATA, CHECKPOINT, BUG, CANNOT_WRITE, IO, TEMPORARY = 64, 65, 66, 70, 73, 74, 75
"""Exit codes after sysexits.h: wrong config, wrong data or non-finite numbers, checkpoint unusable, a bug, cannot
write, I/O error, try again later."""


class RunError(Exception):
    """A message for a person: what is wrong, where, what was found, what would be right. No traceback is shown."""

    exit_code = BUG

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(RunError):
    """A key, a value or a combination of them is wrong."""

    exit_code = CONFIG


class DataError(RunError):
    """The data is missing, unreadable or does not fit, or numbers became non-finite."""

    exit_code = DATA


class CheckpointError(RunError):
    """A checkpoint cannot be read, is damaged, or belongs to something else."""

    exit_code = CHECKPOINT


class CannotWrite(RunError):  # noqa: N818 - a statement, like the exit code's own name
    """A folder or file cannot be written."""

    exit_code = CANNOT_WRITE


class TemporaryError(RunError):
    """Worth another try: a network or a server."""

    exit_code = TEMPORARY
