"""Every error that a person may meet, and the exit code it ends a command with.

HeimdallError                  1    something went wrong that we did not foresee better
├── UsageError                 2    wrong usage
│   └── ConfigError            2    wrong configuration: unknown key, value out of range, unwritable folder
├── DataError                 65    the data is missing, damaged or not what the task needs
├── ServiceError              69    a service that the command cannot do without is unavailable or refuses us
├── OutputError               74    input/output: no space, no permission, a file that vanished
├── UndeliveredError          75    done, but not everything is delivered (only with --strict-tracking)
├── HoldError                  3    a gate held a model back
└── StoppedBySignal      130/143    stopped by SIGINT/SIGTERM after a checkpoint

The message is one sentence that says what is wrong; ``mend`` says what to do about it. Neither ever holds a secret.
"""

from __future__ import annotations

import signal


class HeimdallError(Exception):
    """Base of all errors that are reported as one sentence instead of a traceback."""

    exit_code: int = 1

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".strip()


class UsageError(HeimdallError):
    """The command was used in a way that cannot work."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, out of range, or points to something that cannot be used."""


class DataError(HeimdallError):
    """The data is missing, damaged, or not what the task needs."""

    exit_code = 65


class ServiceError(HeimdallError):
    """A service that the command cannot do without is unavailable or refuses us."""

    exit_code = 69


class OutputError(HeimdallError):
    """Reading or writing files failed: no space, no permission, a file that vanished."""

    exit_code = 74


class UndeliveredError(HeimdallError):
    """The work is done, but not everything reached the tracking server."""

    exit_code = 75


class HoldError(HeimdallError):
    """A gate held a model back; the verdict has been recorded."""

    exit_code = 3


class StoppedBySignal(HeimdallError):  # noqa: N818 - it is not a fault
    """The run was stopped by a signal, after a checkpoint was written."""

    def __init__(self, signal_number: int, *, mend: str = "") -> None:
        super().__init__(f"Stopped by {signal.Signals(signal_number).name}.", mend=mend)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
