"""What somebody's model does to those who read it, as one sentence, whatever they raise.

The onnx package, our own rules and numpy meet here what no exporter wrote. Each of them has errors
of its own; whoever brought the file wants to know that it is the file, and what to do.
"""

import contextlib
import os
import resource
from collections.abc import Iterator

from models.errors import EdgefoldError, UsageError

__all__ = ["bounded_memory", "in_one_sentence"]

LONGEST = 500  # letters
LEAST_BYTES = 4 << 30  # of addresses: the libraries alone take one


@contextlib.contextmanager
def in_one_sentence(what: str) -> Iterator[None]:
    """Turn whatever reading ``what`` raises into a `UsageError` of one printable line.

    The exception itself stays the cause, for us.
    """
    try:
        yield
    except PermissionError:
        raise  # somebody else may read it
    except MemoryError as error:
        raise UsageError(f"{what}: it takes more memory than there is here") from error
    except EdgefoldError as error:
        text = str(error)
        if (short := _line(text)) == text:
            raise
        raise UsageError(short) from error
    except Exception as error:
        said = _line(str(error))
        raise UsageError(
            f"{what}: no task can be made of it ({type(error).__name__}: {said}): it may be "
            "damaged; if onnx.checker.check_model(FILE, full_check=True) finds nothing, report it"
        ) from error


def _line(text: str) -> str:
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process have three quarters of the machine's memory, so that it fails alone."""
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = max(LEAST_BYTES, here)
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
