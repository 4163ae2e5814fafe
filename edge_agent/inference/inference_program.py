"""The inference process of a device: `python -m edge_agent.inference.inference_program CONTROL`.

It answers applications over a Unix socket and swaps models under them: the old one answers until
the new one has passed its self-test. Releases are loaded over a socket of the agent's own. It has
no network, writes nothing to disk, and ends when the agent that started it does.
"""

import argparse
import logging
from pathlib import Path

from edge_agent.board.children import parent_process
from edge_agent.board.process_memory import keep_one_heap
from edge_agent.inference.application_socket import ApplicationSocket, Settings
from edge_agent.inference.inference_engine import Engine
from edge_agent.inference.inference_server import serve
from models.host.service import configure_logging

__all__ = ["main"]

log = logging.getLogger("inference")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edge_agent.inference.inference_program", description=__doc__
    )
    parser.add_argument(
        "control", type=Path, help="where the agent itself asks and loads; made with mode 0600"
    )
    parser.add_argument("--socket", type=Path, help="where applications ask")
    parser.add_argument("--group", help="give that socket to this group")
    parser.add_argument("--mode", type=lambda text: int(text, 8), help="of that socket, as 0660")
    parser.add_argument("--threads", type=int, default=1, help="threads of one model run")
    parser.add_argument(
        "--parent", type=int, default=0, metavar="PID", help="end with this process (our parent)"
    )
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args(arguments)
    configure_logging(options.log_level)
    parent = options.parent or parent_process()
    keep_one_heap()
    applications = None
    if options.socket is not None:
        applications = ApplicationSocket(Settings(options.socket, options.group, options.mode))
    try:
        serve(options.control, Engine(threads=options.threads), applications, parent=parent)
    except OSError as error:
        log.error("cannot serve socket=%s reason=%s", options.control, error.strerror or error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
