"""Fixtures that several packages use: real MQTT brokers, and helpers that tests import by name."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from loop_disk import SmallDisk, why_no_mount

from models.errors import UsageError
from tools.local_fleet.local_broker import LocalBroker, find_mosquitto

# Before anything imports numpy or torch. The workers of pytest use all cores already; more threads
# than cores wait for each other in a loop, which doubles the CPU time of the tests with torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Nothing is timed on machines that do other things too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of the slow tests: at the end none waits for another.

    They are dealt by files, which may have a costly fixture in common; the last come first: whole
    fleets and simulations take longest. Workers get equal parts, and steal from each other's ends.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow: dict[Path, list[pytest.Item]] = {}
    fast: list[pytest.Item] = []
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        (slow.setdefault(item.path, []) if is_slow else fast).append(item)
    files = list(slow.values())[::-1]
    dealt: list[pytest.Item] = []
    for worker in range(workers):
        for file in files[worker::workers]:
            dealt += file
        room = max(0, len(items) * (worker + 1) // workers - len(dealt))
        dealt += fast[:room]
        del fast[:room]
    items[:] = dealt + fast


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running mosquitto, without persistence; a test may kill it, and must start it again."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with LocalBroker("mosquitto", directory=tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """The running Python broker, likewise."""
    try:
        broker = LocalBroker("embedded", directory=tmp_path_factory.mktemp("embedded"))
    except UsageError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture(scope="module", params=["mosquitto", "embedded_broker"])
def any_broker(request: pytest.FixtureRequest) -> LocalBroker:
    """Each of the two in turn."""
    broker: LocalBroker = request.getfixturevalue(request.param)
    return broker


@pytest.fixture
def mount_small_disk() -> Iterator[Callable[[Path], SmallDisk]]:
    """Return a function that mounts a disk of 8 MB; skips where that may not be."""
    if why := why_no_mount():
        pytest.skip(why)
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(SmallDisk(path, kilobytes=8192))


@pytest.fixture
def as_another_user() -> Callable[[Path, Callable[[], object]], str]:
    """Return a function that says what a claim comes to in a process that is not root.

    Paths in it are relative to the given directory: those above it are pytest's, and closed.
    """

    def ask(directory: Path, claim: Callable[[], object]) -> str:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.chdir(directory)
                if os.geteuid() == 0:
                    os.setuid(65534)
                os.write(writer, repr(claim()).encode())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            heard = pipe.read().decode()
        os.waitpid(pid, 0)
        return heard

    return ask
