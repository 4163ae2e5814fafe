"""Flower's arm: SuperLink, one SuperNode for each client, its own FedAvg, `flwr run`."""

import contextlib
import shutil
import socket
import time
from functools import partial
from pathlib import Path

import numpy as np

from tools.bench.peers.course import ArmRun, Round
from tools.bench.peers.noted import noted, wait_for_job
from tools.bench.peers.peer_environment import environment, programs_tree
from tools.bench.peers.peer_job import PreparedJob
from tools.bench.peers.process_books import Books, Root
from tools.bench.peers.supervised import Supervised, wait_until
from tools.local_fleet.local_broker import free_port
from tools.local_fleet.tcp_relay import Relay

__all__ = ["run_flower"]

START_S = 120.0
CONNECTED_S = 8.0
AFTER_JOB_S = 10.0  # until an idle client is measured: its job has ended
APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "peers"
version = "1.0.0"
description = "The job of edgefold bench peers"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "tools.bench.peers.programs.flower_server_app:app"
clientapp = "tools.bench.peers.programs.flower_client_app:app"

[tool.flwr.app.config]
"""
CONFIG = """\
[superlink]
default = "bench"

[superlink.bench]
address = "127.0.0.1:{port}"
insecure = true
"""


def run_flower(
    name: str, job: PreparedJob, directory: Path, *, venv: Path, idle_s: float
) -> ArmRun:
    """Do the job in Flower's deployment on this machine, without TLS and without telemetry.

    Raises:
        UsageError: one of its programs failed or did not come; with what it said.
    """
    directory.mkdir(parents=True)
    app, port = programs_tree(directory / "app"), free_port()
    around = _surroundings(job, directory, app, venv, port)
    books = Books()
    with contextlib.ExitStack() as stack:

        def start(role: str, words: str, *more: object) -> Supervised:
            command = [venv / "bin" / words.split()[0], *words.split()[1:], *more]
            process = Supervised(role, command, environment=around, directory=directory)
            stack.callback(process.end)
            books.add(role, Root(process.pid, counts_itself=False))
            return process

        link = start(
            "server",
            "flower-superlink --insecure --disable-runtime-dependency-installation"
            f" --host 127.0.0.1 --port {port}",
        )
        wait_until(partial(_listens, port), START_S, what="the SuperLink", said=link.last_words)
        nodes = []
        for number in range(job.plan.devices):
            relay = stack.enter_context(Relay(("127.0.0.1", port)))
            books.add_line(relay.counted)
            settings = f"partition-id={number} num-partitions={job.plan.devices}"
            nodes.append(
                start(
                    f"client-{number + 1}",
                    f"flower-supernode --insecure --superlink 127.0.0.1:{relay.port}"
                    f" --port {free_port()} --node-config",
                    settings,
                )
            )
        for node in nodes:
            wait_until(partial(_joined, node), START_S, what=node.name, said=node.last_words)
        books.start()
        stack.callback(books.close)
        time.sleep(CONNECTED_S)
        submitted = time.time()
        start("cli", "flwr run", app, "bench").wait(START_S)
        is_over = partial(noted, directory, "server is done")
        wait_for_job(directory, lambda: bool(is_over()), said=link.last_words)
        settled, idle = time.time(), None
        if idle_s:
            time.sleep(AFTER_JOB_S)
            idle = (time.time(), time.time() + idle_s)
            time.sleep(idle_s)
    shutil.rmtree(app)
    return ArmRun(
        arm=name,
        clients=job.plan.devices,
        submitted=submitted,
        settled=settled,
        rounds=_rounds(job, directory),
        samples=tuple(books.samples),
        idle=idle,
    )


def _surroundings(
    job: PreparedJob, directory: Path, app: Path, venv: Path, port: int
) -> dict[str, str]:
    """Write Flower's settings and the app's, and return the environment of its programs."""
    (app / "pyproject.toml").write_text(APP)
    home = directory / "home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(port=port))
    return environment(
        venv,
        job,
        directory,
        app,
        FLWR_HOME=str(home),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
    )


def _rounds(job: PreparedJob, directory: Path) -> tuple[Round, ...]:
    def accuracy(path: Path) -> float:
        with np.load(path, allow_pickle=False) as file:
            return job.accuracy({key: file[key] for key in file.files})

    began = min(note["at"] for note in noted(directory, "round begins"))
    first = Round(0, began, accuracy(job.directory / "init.npz"))
    later = [
        Round(note["round"], note["at"], accuracy(directory / f"round-{note['round']}.npz"))
        for note in noted(directory, "round ends")
    ]
    return (first, *later)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


def _joined(node: Supervised) -> bool:
    with contextlib.suppress(OSError):
        return "SuperNode ID" in node.log.read_text(errors="replace")
    return False
