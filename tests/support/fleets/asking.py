"""What tests of the application's side share: a real inference process, and other users."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tiny_fleet import CLASSES, FEATURES, Files, tiny_spec

from edge_agent.inference.inference_client import call
from edge_agent.inference.inference_process import INFERENCE
from models.errors import TransientError

NAMES = ("apple", "pear", "plum")
GROUP = "games"  # a group that every Debian has; nobody here is in it
APPLICATION, STRANGER = 12345, 12346  # user ids without a name


class Process:
    """An inference process as an agent starts it, with releases to load."""

    def __init__(self, folder: Path, *arguments: str, socket: Path | None = None) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self.socket = socket or folder / "inference.sock"
        self._arguments = arguments

    def start(self) -> None:
        command = [sys.executable, "-m", INFERENCE, str(self.control)]
        command += ["--socket", str(self.socket), *self._arguments]
        self.process = subprocess.Popen(command)
        wait_until(lambda: self.answers(), "the inference process answers")

    def answers(self) -> bool:
        try:
            self.ping()
        except TransientError:
            return False
        return True

    def ping(self) -> dict[str, object]:
        return call(self.control, {"do": "ping"}, timeout_s=10)[0]

    def load(self, release: int, **changes: object) -> None:
        """The outputs of release n are n times the first three numbers of a sample."""
        parameters = np.concatenate(
            [release * np.eye(FEATURES, CLASSES).ravel(), np.zeros(CLASSES)]
        )
        spec = tiny_spec(**{"class_names": NAMES, **changes})
        files = Files(release, spec=spec, parameters=parameters.astype(np.float32))
        request: dict[str, object] = {"do": "load", "release": release}
        for kind in ("infer", "spec", "parameters"):
            path = self.folder / f"{release}.{kind}"
            path.write_bytes(files.files[kind])  # type: ignore[index]
            request[kind] = str(path)
        assert call(self.control, request, timeout_s=30)[0] == {"ok": True, "release": release}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    process.start()
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine reaches, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="edgefold-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def as_user(user: int, groups: list[int], work: Callable[[], object]) -> str:
    """Return ``str(work())``, or what it raised, done by another user in a process of its own.

    A fork: an interpreter of root's cannot be started by others.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(child, 0)
    return said
