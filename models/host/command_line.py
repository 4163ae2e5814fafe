"""What our command lines have in common: exit codes, and for each error a sentence and a code."""

import enum
import os
import sys
from collections.abc import Callable

from models.errors import CommandLineError, EdgefoldError, NoPermissionError
from models.host.sentences import is_forbidden, shown

__all__ = ["ExitCode", "exit_codes", "run_command", "verdict"]

_Errors = type[EdgefoldError] | tuple[type[EdgefoldError], ...]


class ExitCode(enum.IntEnum):
    """How a command ended; docs/troubleshooting.md has the same table.

    2 and 4 are those of the Linux Standard Base, and systemd knows them by name; 75 is EX_TEMPFAIL,
    no success, so that each kind of ``Restart=`` starts a service anew. From 128 on they are those
    of a shell for a program that a signal has ended.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_PERMISSION = 4
    START_ANEW = 75
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """What it says, for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "it failed; the last line says why",
    ExitCode.USAGE: "the command line is wrong, or asks for what is not there",
    ExitCode.NO_PERMISSION: "no permission; the last line says as whom to ask",
    ExitCode.START_ANEW: "`run` wants to be started anew, for new copies of secrets",
    ExitCode.INTERRUPTED: "Ctrl-C ended it",
    ExitCode.PIPE_CLOSED: "who read its output has gone, as `head` does",
    ExitCode.TERMINATED: "SIGTERM ended it before it was done",
}


def exit_codes() -> str:
    """Return the table for ``--help``."""
    return "\n".join(["exit codes:", *(f"  {code:<5d}{code.meaning}" for code in ExitCode)])


def run_command(
    program: str,
    command: Callable[[], int],
    *,
    wrong_usage: _Errors = CommandLineError,
) -> int:
    """Return the exit code of ``command``; what a person can mend becomes one line on stderr.

    ``wrong_usage``: the errors that say of the command line that it is wrong.
    """
    try:
        code = _written(command)
    except BrokenPipeError:
        _close_output()
        return ExitCode.PIPE_CLOSED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (EdgefoldError, OSError, MemoryError, ModuleNotFoundError) as error:
        sentence, code = verdict(error, wrong_usage=wrong_usage)
        if not sentence:
            raise
        label = f"{program}:"
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            label = f"\x1b[31m{label}\x1b[0m"
        print(label, sentence, file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _close_output()
    return code


def _written(command: Callable[[], int]) -> int:
    """Return what ``command`` returns; its output is written while we can say what is wrong."""
    try:
        code = command()
    except SystemExit:  # of argparse, which has printed help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _close_output() -> None:
    """What could not be written is not tried again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verdict(error: Exception, *, wrong_usage: _Errors = CommandLineError) -> tuple[str, ExitCode]:
    """Return ``error`` as one line and as an exit code; no line for what only we can mend."""
    code = ExitCode.FAILED
    match error:
        case EdgefoldError():
            text = str(error)
            if isinstance(error, NoPermissionError):
                code = ExitCode.NO_PERMISSION
            elif isinstance(error, wrong_usage):
                code = ExitCode.USAGE
        case OSError():
            text = f"{error.filename}: " if error.filename else ""
            text += error.strerror or str(error)
            if is_forbidden(error):
                code = ExitCode.NO_PERMISSION
        case MemoryError():
            text = "not enough memory"
        case ModuleNotFoundError():
            text = _missing((error.name or "").split(".")[0])
        case _:
            text = ""
    return shown(" ".join(text.split())), code


def _missing(library: str) -> str:
    from models.host.extras import EXTRAS, how_to_install  # not for an agent's whole life

    return f"this needs {library}; {how_to_install(library)}" if library in EXTRAS else ""
