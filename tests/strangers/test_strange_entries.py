"""A real agent whose inbox strangers fill: nothing ends it, each good sample is stored once.

``EDGEFOLD_ENTRIES`` says how many entries; 10,000 are for the night (`make strangers`).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from strange_entries import StrangeInbox
from tiny_fleet import DEVICE, FLEET, TASK, Files, Server

from edge_agent.inbox.inbox_folder import UNFINISHED
from edge_agent.samples.sample_store import segments
from models.protocol.topics import Topics
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENTRIES = int(os.environ.get("EDGEFOLD_ENTRIES", "500"))
SEED = int(os.environ.get("EDGEFOLD_SEED", "1"))
RSS_LIMIT_MB = 45.0  # of the resident agent, plus what it remembers of each entry,
ENTRY_KB = 2.0
STATUS_BYTES = 20_000
LOG_LINES = 60  # and one for each child that took something


class Board:
    """A device with a real agent."""

    def __init__(self, directory: Path, url: str) -> None:
        self.state = directory / "state"
        self.inbox = self.state / "inbox"
        self.config = directory / "agent.toml"
        self.log = directory / "agent.log"
        self.config.write_text(
            f'[device]\nid = "{DEVICE}"\ntask = "{TASK}"\n[fleet]\nname = "{FLEET}"\n'
            f'broker = "{url}"\n[storage]\ndirectory = "state"\n[samples]\nmax_count = 1000000\n'
        )
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)],
                stderr=log,
            )

    def status(self) -> dict[str, object]:
        command = [sys.executable, "-m", "edge_agent", "status", "--json"]
        answer = subprocess.run(
            [*command, "--config", str(self.config)], capture_output=True, check=True
        )
        assert len(answer.stdout) < STATUS_BYTES
        found: dict[str, object] = json.loads(answer.stdout)
        return found

    def stored(self) -> Counter[int]:
        """Return the numbers of the samples that are stored."""
        found: Counter[int] = Counter()
        for name in ("samples", "holdout"):
            for segment in segments(self.state / name):
                found.update(np.load(segment.path)["x"][:, 0].astype(int).tolist())
        return found

    def count(self) -> int:
        folders = (self.state / "samples", self.state / "holdout")
        return sum(segment.samples for folder in folders for segment in segments(folder))

    def left(self) -> int:
        """Return how many files lie in the inbox and its folders that are to be said."""
        found: list[str] = []
        for entry in os.scandir(self.inbox):
            if entry.name != "rejected":
                is_folder = entry.is_dir(follow_symlinks=False)
                found += os.listdir(entry.path) if is_folder else [entry.name]
        # What is named as unfinished is left alone in silence, for a day.
        return sum(not name.endswith(UNFINISHED) for name in found)


@pytest.fixture
def board(tmp_path: Path, mosquitto: LocalBroker) -> Iterator[Board]:
    board = Board(tmp_path, mosquitto.url)
    yield board
    board.process.kill()
    board.process.wait()
    print(board.log.read_text()[-3000:])


def wait(seconds: float, until: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if until():
            return True
        time.sleep(0.5)
    return False


def said_to_wait(status: dict[str, object]) -> int:
    """Return how many wait, as the agent says."""
    texts = [str(p["text"]) for p in status["problems"]]  # type: ignore[attr-defined]
    found = [re.match(r"(\d+) waits? in the inbox", text) for text in texts]
    return sum(int(match[1]) for match in found if match)


def test_whatever_lies_in_the_inbox_the_good_is_stored_and_the_rest_is_said(
    board: Board, mosquitto: LocalBroker, tmp_path: Path
) -> None:
    server = Server(
        MqttLink(mosquitto.host, mosquitto.port, client_id="server", will=None), Topics(FLEET)
    )
    inbox = StrangeInbox(board.inbox, tmp_path / "o", SEED)
    inbox.fill(ENTRIES)
    server.step(0.5)
    server.publish(Files(1, is_open=False))

    def is_installed() -> bool:
        server.step(0.1)
        return board.status()["release"] == 1

    assert wait(60, is_installed)
    began, process = time.monotonic(), psutil.Process(board.process.pid)
    assert wait(60 + ENTRIES / 5, lambda: board.count() >= len(inbox.good))
    taken_s = time.monotonic() - began
    settled = wait(60 + ENTRIES / 10, lambda: said_to_wait(board.status()) == board.left())
    settled_s = time.monotonic() - began
    cpu = process.cpu_times()
    rss_mb = process.memory_info().rss / 1e6
    print(
        f"\nentries={ENTRIES} seed={SEED} good={len(inbox.good)} taken_s={taken_s:.0f} "
        f"settled_s={settled_s:.0f} agent_cpu_s={cpu.user + cpu.system:.1f} "
        f"children_cpu_s={cpu.children_user + cpu.children_system:.1f} rss_mb={rss_mb:.1f}"
    )
    status = board.status()
    assert settled, (said_to_wait(status), board.left())
    assert board.process.poll() is None
    assert board.stored() == Counter(inbox.good), "lost, or stored twice"
    assert {path.name for path in (tmp_path / "o").iterdir()} == inbox.outside_names
    reasons = (board.inbox / "rejected" / "reasons.txt").read_text().splitlines()
    aside = sum(len(files) for _, _, files in os.walk(board.inbox / "rejected"))
    assert len(reasons) == aside - 1
    assert rss_mb < RSS_LIMIT_MB + ENTRY_KB * ENTRIES / 1000
    assert len(board.log.read_text().splitlines()) < LOG_LINES + ENTRIES / 50
