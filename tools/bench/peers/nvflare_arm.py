"""NVFLARE's arm: its POC deployment (mTLS), `nvflare job submit`, its own FedAvg on numpy."""

import contextlib
import datetime
import io
import socket
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from models.errors import UsageError
from tools.bench.peers.course import ArmRun, Round
from tools.bench.peers.noted import noted, wait_for_job
from tools.bench.peers.peer_environment import environment, programs_tree
from tools.bench.peers.peer_job import PreparedJob
from tools.bench.peers.process_books import Books, Root
from tools.bench.peers.supervised import Supervised, wait_until
from tools.local_fleet.tcp_relay import Relay

__all__ = ["run_nvflare"]

PORTS = (8002, 8003)  # what POC takes: for the sites, and for who administers
START_S = 120.0
CONNECTED_S = 8.0
AFTER_JOB_S = 10.0
SITE = "localhost:8002"  # what a site's settings say of the server


def run_nvflare(
    name: str, job: PreparedJob, directory: Path, *, venv: Path, idle_s: float
) -> ArmRun:
    """Do the job in NVFLARE's deployment on this machine.

    Raises:
        UsageError: its ports are taken; a program of it failed or did not come.
    """
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            raise UsageError(f"nvflare needs port {port}, on which something listens: end that")
    directory.mkdir(parents=True)
    tree = programs_tree(directory / "programs")
    around = environment(venv, job, directory, tree)
    books = Books()
    with contextlib.ExitStack() as stack:

        def start(role: str, *command: object) -> Supervised:
            process = Supervised(role, command, environment=around, directory=directory)
            stack.callback(process.end)
            return process

        def site(role: str, folder: str) -> Supervised:
            process = start(role, "bash", production / folder / "startup" / "start.sh")
            books.add(role, Root(process.pid, counts_itself=False))
            return process

        program = venv / "bin" / "nvflare"
        start("configured", program, "poc", "config", "--pw", directory / "poc").wait(START_S)
        devices = job.plan.devices
        start("prepared", program, "poc", "prepare", "-n", devices, "--force").wait(START_S)
        recipe = "tools.bench.peers.programs.nvflare_recipe"
        (directory / "job").mkdir()
        start("recipe", venv / "bin" / "python", "-m", recipe, directory / "job").wait(START_S)
        production = directory / "poc" / "example_project" / "prod_00"
        server = site("server", "server")
        wait_until(partial(_listens, PORTS[0]), START_S, what="server", said=server.last_words)
        for number in range(1, devices + 1):
            relay = stack.enter_context(Relay(("127.0.0.1", PORTS[0])))
            books.add_line(relay.counted)
            _send_through(relay.port, production / f"site-{number}" / "startup" / "fed_client.json")
            site(f"client-{number}", f"site-{number}")
        for number in range(1, devices + 1):
            log = production / f"site-{number}" / "log.txt"
            wait_until(partial(_registered, log), START_S, what=f"site-{number}")
        books.start()
        stack.callback(books.close)
        time.sleep(CONNECTED_S)
        submitted = time.time()
        submit = start("cli", program, "job", "submit", "-j", directory / "job" / "bench")
        books.add("cli", Root(submit.pid, counts_itself=False))
        submit.wait(START_S)
        storage = directory / "poc" / "jobs-storage"
        wait_for_job(directory, partial(_is_over, storage), said=server.last_words)
        settled, idle = time.time(), None
        if idle_s:
            time.sleep(AFTER_JOB_S)
            idle = (time.time(), time.time() + idle_s)
            time.sleep(idle_s)
    return ArmRun(
        arm=name,
        clients=devices,
        submitted=submitted,
        settled=settled,
        rounds=_rounds(job, directory, storage),
        samples=tuple(books.samples),
        idle=idle,
    )


def _rounds(job: PreparedJob, directory: Path, storage: Path) -> tuple[Round, ...]:
    """Return the models: the times are those at which the server saved them."""
    with zipfile.ZipFile(_workspace(storage)) as file:
        said = file.read("log.txt").decode(errors="replace").splitlines()
        last = np.load(io.BytesIO(file.read("models/server.npy")), allow_pickle=False)
    saved = [_time(line) for line in said if "NPModelPersistor" in line and "peer=" in line]
    rounds = job.plan.rounds
    if len(saved) != rounds:
        raise UsageError(f"nvflare saved {len(saved)} models in {rounds} rounds: see {directory}")
    began = min(note["at"] for note in noted(directory, "begin"))
    models = [
        np.load(directory / f"round-{number}.npy", allow_pickle=False) for number in range(rounds)
    ]
    return tuple(
        Round(number, at, job.accuracy(vector.ravel()))
        for number, (at, vector) in enumerate(zip([began, *saved], [*models, last], strict=True))
    )


def _time(line: str) -> float:
    """Return when a line was logged; its clock is UTC, as TZ is not set."""
    when = datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")
    return when.replace(tzinfo=datetime.UTC).timestamp()


def _workspace(storage: Path) -> Path:
    return next(path for path in storage.rglob("workspace") if path.is_file())


def _is_over(storage: Path) -> bool:
    return storage.is_dir() and any(path.is_file() for path in storage.rglob("workspace"))


def _send_through(port: int, settings: Path) -> None:
    """Let a site reach the server by way of a relay."""
    text = settings.read_text()
    if SITE not in text:
        raise UsageError(f"nvflare's {settings} does not name {SITE}: another version?")
    settings.write_text(text.replace(SITE, f"localhost:{port}"))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


def _registered(log: Path) -> bool:
    with contextlib.suppress(OSError):
        return "registered" in log.read_text(errors="replace")
    return False
