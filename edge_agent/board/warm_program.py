"""The child program that takes one job after the other: ``python -m …``, its line on stdin.

Each job is a child program of its own, called here instead of started; what it writes counts only
once the agent has taken it. The process ends with the first job that fails, with its exit code and
in its log, so that nothing of a failure is left for the next one; and when the line is closed.
"""

import gc
import os
import select
import socket
import sys
from importlib import import_module

import msgspec

from edge_agent.board.children import be_named, settle_in, worked_off
from edge_agent.board.process_memory import forget_peak, give_back_memory, give_way_first
from edge_agent.board.warm_children import MOST_BYTES, WARM, Given, answer_to

__all__ = ["main"]

REST_S = 0.5  # without a job, before memory is given back: a training follows a patch at once


def main() -> int:
    settle_in()
    give_way_first()
    line = socket.socket(fileno=os.dup(0))
    known: set[str] = set()
    _let_output_be(os.open(os.devnull, os.O_RDWR), 0)
    while (received := _next(line)) is not None:
        given, output = received
        _let_output_be(output, 1, 2)
        forget_peak()
        work = import_module(given.program).work
        if given.program not in known:
            known.add(given.program)
            gc.collect()  # what an earlier job left would never be found again
            gc.freeze()  # the libraries are no garbage: nobody needs to look at them after each job
        code = worked_off(given.program, work, given.arguments)
        _let_output_be(os.open(os.devnull, os.O_WRONLY), 1, 2)
        if code != 0:
            return code
        be_named(WARM)
        line.send(answer_to(given.number))
    return 0


def _next(line: socket.socket) -> tuple[Given, int] | None:
    """Wait for a job; return it and the descriptor of its log, None if none will come."""
    if not select.select([line], [], [], REST_S)[0]:
        gc.collect()
        give_back_memory()
    message, descriptors, _, _ = socket.recv_fds(line, MOST_BYTES, 1)
    if not message:
        return None
    (output,) = descriptors
    return msgspec.json.decode(message, type=Given), output


def _let_output_be(descriptor: int, *places: int) -> None:
    """Let what is written to (or read from) ``places`` go to ``descriptor``, which is taken."""
    sys.stdout.flush()
    sys.stderr.flush()
    for place in places:
        os.dup2(descriptor, place)
    os.close(descriptor)


if __name__ == "__main__":
    raise SystemExit(main())
