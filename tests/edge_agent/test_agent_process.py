"""Real agents, real children, a real broker: killed at random, starved of disk, told to stop."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from loop_disk import SmallDisk
from tiny_fleet import DEVICE, FLEET, TASK, Files, Server, blobs, infer_model, tiny_spec

from edge_agent.board.warm_children import IDLE_S, WARM
from edge_agent.client.edgefold_client import Client
from edge_agent.inference.inference_client import call
from edge_agent.inference.inference_process import INFERENCE
from edge_agent.samples.sample_store import add_samples
from edge_agent.training.governor import NOTHING_NEW
from models.errors import EdgefoldError
from models.protocol.messages import Status
from models.protocol.topics import Topics
from models.transport.link import WINDOW
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker

pytestmark = pytest.mark.slow

RSS_LIMIT_MB = 45.0  # of the resident agent


class Board:
    """A device's directory and, at times, its agent."""

    def __init__(self, directory: Path, url: str, **sections: str) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "agent.toml"
        self.log = directory / "agent.log"
        self.inbox = self.state / "inbox"
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f'[device]\nid = "{DEVICE}"\ntask = "{TASK}"\n[fleet]\nname = "{FLEET}"\n'
            f'broker = "{url}"\n[storage]\ndirectory = "state"\n'
            "[training]\nmax_load = 1000.0\nmin_free_mb = 0\ncheck_seconds = 0.2\nmin_minutes = 0\n"
            + "".join(f"[{name}]\n{lines}\n" for name, lines in sections.items())
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        name, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", "edge_agent", name, "--config", str(self.config), *rest],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def status(self) -> dict[str, object]:
        answer = self.command("status", "--json")
        assert answer.returncode == 0, answer.stderr
        found: dict[str, object] = json.loads(answer.stdout)
        return found


@pytest.fixture
def fleet(mosquitto: LocalBroker, topics: Topics) -> Iterator[Server]:
    server = Server(MqttLink(mosquitto.host, mosquitto.port, client_id="server", will=None), topics)
    yield server
    for topic in (topics.release(TASK), topics.status(DEVICE)):
        server.link.publish(topic, b"", retain=True)
    wait(server, 0.3)
    server.link.close()


@pytest.fixture
def board(tmp_path: Path, mosquitto: LocalBroker) -> Iterator[Board]:
    board = Board(tmp_path, mosquitto.url)
    yield board
    if board.process is not None and board.process.poll() is None:
        board.kill()
    if board.log.exists():
        print(board.log.read_text())


def wait(server: Server, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    """Serve for so long, or until something holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        server.step(0.05)
        if until():
            return True
    return False


def has_told(server: Server, **facts: object) -> Callable[[], bool]:
    def told() -> bool:
        last: Status | None = server.statuses[-1] if server.statuses else None
        return last is not None and all(getattr(last, k) == v for k, v in facts.items())

    return told


def test_a_board_learns_answers_and_stops_in_good_order(board: Board, fleet: Server) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    add_samples(board.inbox, *blobs(100, 1))
    assert wait(fleet, 60, has_told(fleet, updates_folded=1, release=1))
    answer, _ = call(board.state / "inference.sock", {"do": "ping"}, timeout_s=5)
    assert answer["release"] == 1

    assert board.process is not None
    rss_mb = psutil.Process(board.process.pid).memory_info().rss / 1e6
    assert rss_mb <= RSS_LIMIT_MB
    assert fleet.statuses[-1].trainer_peak_rss_mb <= 110

    deadline = time.monotonic() + 60
    while not str((status := board.status())["summary"]).startswith("all is well: runs release 1"):
        assert time.monotonic() < deadline, status
        wait(fleet, 0.5)
    assert (status["running"], status["release"], status["updates_folded"]) == (True, 1, 1)
    assert status["inference_release"] == 1
    np.savez(board.directory / "new.npz", x=blobs(5, 9)[0])
    answered = board.command("infer", str(board.directory / "new.npz"), "--json")
    assert len(json.loads(answered.stdout)["classes"]) == 5
    once = board.command("train-once")
    assert once.returncode == 0
    assert "would send" in once.stdout
    facts = ("starts", "release", "samples", "holdout", "updates_made", "inference_release")
    assert [board.status()[name] for name in facts] == [status[name] for name in facts]

    assert board.kill(signal.SIGTERM) == 0
    assert wait(fleet, 5, has_told(fleet, online=False))
    assert board.status()["running"] is False
    answered = board.command("infer", str(board.directory / "new.npz"))
    assert answered.returncode == 0
    assert len(answered.stdout.splitlines()) == 6


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_lose_nothing_and_double_nothing(
    board: Board, fleet: Server, seed: int
) -> None:
    """SIGKILL in the middle of intake, training, sending and installing, again and again."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    number = 1
    fleet.publish(Files(number))
    deadline = time.monotonic() + 100
    kills = 0
    while kills < 6 and time.monotonic() < deadline:
        board.start()
        add_samples(board.inbox, *blobs(60, 100 * seed + kills))
        wait(fleet, chance.uniform(1.0, 4.0))
        if chance.random() < 0.5:
            number += 1
            fleet.publish(Files(number))
            wait(fleet, chance.uniform(0.0, 1.0))
        board.kill()
        kills += 1
    number += 1
    fleet.publish(Files(number))
    fleet.statuses.clear()
    board.start()
    assert wait(fleet, 60, lambda: bool(fleet.statuses) and fleet.statuses[-1].release == number)

    def is_settled() -> bool:
        last = fleet.statuses[-1]
        return last.updates_waiting == 0 and last.updates_made > 0 and last.state == NOTHING_NEW

    assert wait(fleet, 90, is_settled)
    last = fleet.statuses[-1]
    identity = last.installation
    assert {update.split("-")[0] for update in fleet.updates} == {identity}
    assert last.updates_made == last.updates_folded == len(fleet.updates)
    assert board.kill(signal.SIGTERM) == 0
    status = board.status()
    # Every file of samples that was handed over is there once, or still lies in the inbox.
    left = len([path for path in board.inbox.iterdir() if path.suffix == ".npz"])
    assert int(str(status["samples"])) + int(str(status["holdout"])) == 60 * (kills - left)
    for folder in ("jobs", "downloads"):
        assert list((board.state / folder).iterdir()) == []
    assert list(board.state.rglob("*.draft")) == []


WITHOUT_PILLOW = """
import importlib.abc, os, sys


class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "PIL" and not os.path.exists({flag!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""


def test_six_hundred_pictures_wait_for_pillow_and_are_taken_without_a_restart(
    fleet: Server, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    flag = tmp_path / "installed"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_PILLOW.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    spec = tiny_spec(class_names=("ape", "bee", "cat"))
    fleet.publish(Files(1, spec=spec, is_open=False))
    for name in ("ape", "1", "cat"):
        (board.inbox / name).mkdir()
        for number in range(200):
            picture = b"P5\n2 2\n255\n" + bytes([number] * 4)
            (board.inbox / name / f"{number}.pgm").write_bytes(picture)
    board.start()

    def said() -> str:
        return fleet.statuses[-1].problem if fleet.statuses else ""

    assert wait(fleet, 60, lambda: said().startswith("600 wait in the inbox"))
    assert "and 599 more: images need Pillow" in said()
    assert sum(path.is_file() for path in board.inbox.rglob("*")) == 600
    flag.touch()

    def is_empty() -> bool:
        return not any(path.is_file() for path in board.inbox.rglob("*"))

    assert wait(fleet, 90, is_empty)
    assert wait(fleet, 30, lambda: said() == "")
    found = board.status()
    assert found["samples"] + found["holdout"] == 600  # type: ignore[operator]


@pytest.mark.timeout(420)
def test_a_broker_that_is_killed_and_wiped_costs_nothing(
    tmp_path: Path, board: Board, topics: Topics
) -> None:
    with LocalBroker("mosquitto", directory=tmp_path / "mosquitto") as broker:
        (tmp_path / "mosquitto").mkdir(exist_ok=True)
        fleet = Server(MqttLink(broker.host, broker.port, client_id="server", will=None), topics)
        fleet.verdict = "stored"
        board = Board(tmp_path / "board", broker.url)
        board.start()
        wait(fleet, 0.5)
        fleet.publish(Files(1))
        add_samples(board.inbox, *blobs(100, 1))
        try:
            # Told "stored" and acknowledged: else the link repeats that word after the wipe, and
            # the agent rightly waits up to an hour for the fold that this server never announces.
            assert wait(
                fleet, 60, lambda: len(fleet.updates) == 1 and fleet.link.window() == WINDOW
            )
            broker.wipe()
            fleet.verdict = "folded"
            fleet.statuses.clear()
            broker.start()
            # Nobody tells: the agent asks, because the broker may have lost the receipt. It asks
            # on connecting, after 15 s and after 30 to 90 s more; the server may be back last.
            assert wait(fleet, 300, has_told(fleet, updates_folded=1))
            assert len(fleet.updates) == 1
        finally:
            board.kill()
            print(board.log.read_text(), fleet.requests, fleet.statuses[-3:], sep="\n")
            fleet.link.close()


def test_without_a_broker_the_agent_runs_and_stops_in_good_order(tmp_path: Path) -> None:
    board = Board(tmp_path, "mqtt://127.0.0.1:9")
    board.start()
    time.sleep(1.5)
    assert board.status()["running"] is True
    assert board.kill(signal.SIGTERM) == 0


def test_a_mistake_in_the_settings_is_a_problem_until_it_is_mended(
    board: Board, fleet: Server
) -> None:
    board.start()
    assert wait(fleet, 60, has_told(fleet, online=True))
    assert board.process is not None
    settings = board.config.read_text()
    for text, problem in ((settings + "[sampels]\n", "did you mean 'samples'"), (settings, "")):
        board.config.write_text(text)
        for _ in range(100):
            board.process.send_signal(signal.SIGHUP)
        if problem:
            assert wait(fleet, 60, lambda: "stay in force" in fleet.statuses[-1].problem)
            assert "did you mean 'samples'" in fleet.statuses[-1].problem
        else:
            assert wait(fleet, 60, has_told(fleet, problem=""))
    assert board.log.read_text().count(" connected") == 1


def test_a_board_without_its_password_works_on_and_connects_when_it_has_it(
    board: Board, fleet: Server
) -> None:
    secret = board.directory / "agent.password"
    lines = f'[fleet]\nusername = "{DEVICE}"\npassword_file = "agent.password"\n'
    board.config.write_text(board.config.read_text().replace("[fleet]\n", lines))
    add_samples(board.inbox, *blobs(100, 1))
    board.start()
    deadline = time.monotonic() + 30
    said = f"cannot log in: password_file {secret}: No such file or directory"
    while said not in board.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert board.status()["running"] is True
    secret.write_text("tulips\n")
    secret.chmod(0o600)
    assert board.process is not None
    board.process.send_signal(signal.SIGHUP)
    assert wait(fleet, 60, has_told(fleet, online=True))
    assert "tulips" not in board.log.read_text()


def test_two_agents_do_not_share_a_directory(board: Board) -> None:
    board.start()
    deadline = time.monotonic() + 20
    while not (board.state / "outbox.db").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = board.command("run")
    assert second.returncode == 1
    assert "another agent runs on" in second.stderr.splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path], SmallDisk]) -> SmallDisk:
    return mount_small_disk(tmp_path / "disk")


@pytest.fixture
def small_board(small_disk: SmallDisk, mosquitto: LocalBroker, fleet: Server) -> Iterator[Board]:
    """A board with a small disk, on release 1."""
    board = Board(small_disk.path, mosquitto.url)
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    try:
        assert wait(fleet, 60, has_told(fleet, release=1))
        yield board
    finally:
        board.kill()


def test_on_a_full_disk_the_agent_goes_on_says_so_and_recovers(
    small_disk: SmallDisk, small_board: Board, fleet: Server
) -> None:
    add_samples(small_board.inbox, *blobs(100, 1))
    small_disk.fill()
    fleet.publish(Files(2))
    assert wait(
        fleet,
        60,
        lambda: "space" in fleet.statuses[-1].problem or "full" in fleet.statuses[-1].problem,
    )
    assert fleet.statuses[-1].release == 1
    answer, _ = call(small_board.state / "inference.sock", {"do": "ping"}, timeout_s=5)
    assert answer["release"] == 1
    small_disk.drain()
    assert wait(
        fleet, 120, lambda: fleet.statuses[-1].release == 2 and fleet.statuses[-1].problem == ""
    )
    assert wait(fleet, 60, lambda: fleet.statuses[-1].updates_folded >= 1)


def test_a_start_on_a_full_disk_is_a_start(
    small_disk: SmallDisk, small_board: Board, fleet: Server
) -> None:
    """After a stop in good order, which leaves a database without its log."""
    assert small_board.kill(signal.SIGTERM) == 0
    small_disk.fill()
    small_board.start()
    assert wait(fleet, 60, lambda: fleet.statuses[-1].online and fleet.statuses[-1].boot == 2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not answers_with(small_board, release=1):
        time.sleep(0.2)
    assert answers_with(small_board, release=1)
    small_disk.drain()
    fleet.publish(Files(2))
    assert wait(fleet, 120, has_told(fleet, release=2))


def answers_with(board: Board, *, release: int) -> bool:
    try:
        answer, _ = call(board.state / "inference.sock", {"do": "ping"}, timeout_s=1)
    except EdgefoldError:
        return False
    return answer["release"] == release


def test_a_crash_of_the_inference_process_is_healed(board: Board, fleet: Server) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    assert wait(fleet, 60, has_told(fleet, release=1))
    assert board.process is not None
    (child,) = [
        child
        for child in psutil.Process(board.process.pid).children()
        if INFERENCE in " ".join(child.cmdline())
    ]
    child.kill()

    assert wait(fleet, 30, lambda: not answers_with(board, release=1))
    assert wait(fleet, 60, lambda: answers_with(board, release=1))


def test_a_release_that_does_not_run_is_refused_and_the_old_one_answers(
    board: Board, fleet: Server
) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    assert wait(fleet, 60, has_told(fleet, release=1))
    broken = Files(2)
    broken.replace("infer", infer_model()[:-40])
    fleet.publish(broken)
    assert wait(fleet, 60, lambda: "does not run here" in fleet.statuses[-1].problem)
    answer, _ = call(board.state / "inference.sock", {"do": "ping"}, timeout_s=5)
    assert answer["release"] == 1
    fleet.publish(Files(3))
    assert wait(fleet, 60, has_told(fleet, release=3, problem=""))


def test_the_agent_dies_with_its_children(board: Board, fleet: Server) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    assert wait(fleet, 60, has_told(fleet, release=1))
    assert board.process is not None
    children = psutil.Process(board.process.pid).children(recursive=True)
    assert children
    board.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def kept_child(board: Board) -> psutil.Process | None:
    """The child that takes one job after the other, if there is one."""
    assert board.process is not None
    for child in psutil.Process(board.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if WARM in child.cmdline():
                return child
    return None


def test_releases_that_follow_each_other_are_learned_by_one_child_which_then_ends(
    board: Board, fleet: Server
) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    add_samples(board.inbox, *blobs(100, 1))
    assert wait(fleet, 60, has_told(fleet, updates_folded=1, release=1))
    child = kept_child(board)
    assert child is not None
    for number in (2, 3, 4):
        fleet.publish(Files(number))
        assert wait(fleet, 60, has_told(fleet, updates_folded=number, release=number))
        assert kept_child(board) == child
    assert wait(fleet, IDLE_S + 10.0, lambda: kept_child(board) is None)
    assert not child.is_running()
    fleet.publish(Files(5))
    assert wait(fleet, 60, has_told(fleet, updates_folded=5, release=5, problem=""))


def test_a_kept_child_that_is_killed_without_work_costs_nothing(
    board: Board, fleet: Server
) -> None:
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    add_samples(board.inbox, *blobs(100, 1))
    assert wait(fleet, 60, has_told(fleet, updates_folded=1, release=1))
    child = kept_child(board)
    assert child is not None
    child.kill()
    fleet.publish(Files(2))
    assert wait(fleet, 20, has_told(fleet, updates_folded=2, release=2, problem=""))


def test_applications_ask_where_the_configuration_says_and_hear_names(
    tmp_path: Path, mosquitto: LocalBroker, fleet: Server
) -> None:
    (tmp_path / "run").mkdir()
    board = Board(tmp_path, mosquitto.url, inference='socket = "run/ask.sock"\nmode = "0666"')
    board.start()
    try:
        wait(fleet, 0.5)
        fleet.publish(Files(1, spec=tiny_spec(class_names=("apple", "pear", "plum"))))
        assert wait(fleet, 60, has_told(fleet, release=1))
        x, _ = blobs(5, 9)
        answer = Client(tmp_path / "run/ask.sock", wait_s=60).ask(x)
        assert answer.names is not None
        assert set(answer.names) <= {"apple", "pear", "plum"}
        assert board.status()["inference_socket"] == str(tmp_path / "run/ask.sock")
        np.savez(tmp_path / "new.npz", x=x)
        said = board.command("infer", str(tmp_path / "new.npz"))
        assert [line.split()[0] for line in said.stdout.splitlines()[1:]] == answer.names
        said = board.command("infer", str(tmp_path / "new.npz"), "--json")
        assert json.loads(said.stdout)["names"] == answer.names
    finally:
        board.kill()


def test_a_socket_that_cannot_be_is_a_problem_and_the_agent_goes_on(
    tmp_path: Path, mosquitto: LocalBroker, fleet: Server
) -> None:
    board = Board(tmp_path, mosquitto.url, inference='group = "no-such-group"')
    board.start()
    try:
        wait(fleet, 0.5)
        fleet.publish(Files(1))
        sentence = "there is no group 'no-such-group' on this device"
        assert wait(
            fleet,
            60,
            lambda: (
                bool(fleet.statuses)
                and fleet.statuses[-1].release == 1
                and sentence in fleet.statuses[-1].problem
            ),
        )
        np.savez(tmp_path / "new.npz", x=blobs(5, 9)[0])
        assert board.command("infer", str(tmp_path / "new.npz")).returncode == 0
        assert not (board.state / "inference.sock").exists()
    finally:
        board.kill()


def test_a_stop_that_its_children_hear_of_too_is_no_problem(board: Board, fleet: Server) -> None:
    """As systemd stops a service: SIGTERM to each of its processes."""
    board.start()
    wait(fleet, 0.5)
    fleet.publish(Files(1))
    assert wait(fleet, 60, has_told(fleet, release=1))
    assert board.process is not None
    processes = [board.process, *psutil.Process(board.process.pid).children(recursive=True)]
    assert len(processes) > 1
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert board.process.wait(30) == 0
    assert "WARNING" not in board.log.read_text().partition("release installed")[2]
