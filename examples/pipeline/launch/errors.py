"""How a job ends when it does not end well: one line, and an exit code of its own."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; 1 is the trainer's own failure."""

    DONE = 0
    TRAINER_FAILED = 1
    BAD_INPUT = 2
    SERVER_DIED = 10
    SERVER_NOT_READY = 11
    SERVER_SILENT = 12
    TRAINER_STALLED = 13
    TOO_MANY_RESTARTS = 14
    NODES_UNFIT = 15
    LEFTOVERS = 16
    STOPPED = 17
    NOT_RESTARTED = 18
    CANCELED = 143


class LaunchError(ValueError):
    """A refusal or a failure that is said in one line.

    Attributes:
        code: what the script exits with.
        log: the log whose last lines explain it, if one does.
    """

    def __init__(self, message: str, code: Exit = Exit.BAD_INPUT, log: str | None = None) -> None:
        super().__init__(message)
        self.code, self.log = code, log
