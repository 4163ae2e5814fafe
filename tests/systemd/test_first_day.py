"""A stranger's first day: README typed word for word on a clean server and a clean board.

Each is a Debian under its own systemd, with an ordinary user who may sudo (clean_machine.py). What
is typed is cut out of README and docs/install.md, not written down here. The only helps are: git
finds the project behind the address that README uses as its stand-in, and README's server address
leads to the server. ``make clean-roots`` runs every suite; CI the first one.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from birds import SAMPLES, write_data, write_model, write_photos, write_samples
from clean_machine import CleanMachine, debootstrap, repository_of, why_no_machine
from fenced import Command, blocks, commands

SOURCE = Path(__file__).parents[2]
README = (SOURCE / "README.md").read_text()
INSTALL = (SOURCE / "docs/install.md").read_text()
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)
PINS = dict(PIN.findall((SOURCE / "constraints.txt").read_text()))
KEPT = SOURCE / "build/clean-roots"  # what debootstrap made, for the next run
SUITES = ["bookworm", "trixie"] if os.environ.get("EDGEFOLD_CLEAN_ROOTS") == "all" else ["bookworm"]
PATIENCE_S = 300  # for what takes seconds where nobody else computes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Day:
    """The two machines, and what has been typed on them."""

    def __init__(self, server: CleanMachine, board: CleanMachine) -> None:
        self.server = server
        self.board = board

    def fleet(self) -> dict[str, Any]:
        """Return what the server knows."""
        facts: dict[str, Any] = json.loads(self.server.type("sudo edgefold-broker status --json"))
        return facts

    def device(self) -> dict[str, Any]:
        """Return what the board knows of itself."""
        facts: dict[str, Any] = json.loads(self.board.type("sudo edgefold-agent status --json"))
        return facts


@pytest.fixture(params=SUITES)
def day(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Day]:
    """A clean server and a clean board that can reach each other; both run."""
    if reason := why_no_machine():
        pytest.skip(reason)
    suite = debootstrap(request.param, KEPT)
    repository = repository_of(SOURCE, tmp_path / "edgefold.git")
    try:
        server = CleanMachine(suite, tmp_path / "server", repository=repository)
    except RuntimeError as error:
        pytest.skip(f"no systemd can be booted here: {error}")
    with (
        server,
        CleanMachine(suite, tmp_path / "board", repository=repository, network_of=server) as board,
    ):
        write_model(server.file("/home/pi/birds.onnx"))
        write_data(server.file("/home/pi/birds.npz"))
        write_samples(board.file("/home/pi/samples.npz"))
        write_photos(board.file("/home/pi/photos.npz"))
        for machine in (server, board):
            machine.give("/home/pi")
        yield Day(server, board)


def test_readme_works_word_for_word_on_clean_machines(day: Day) -> None:
    """From nothing to a folded update; then an upgrade, and everything is gone again."""
    at_the_centre = commands(README, "At the centre")
    on_a_board = commands(README, "On a Raspberry Pi")
    with ThreadPoolExecutor() as both:  # as on a real day: neither waits for the other
        installed = both.submit(follow, day.board, block(on_a_board, 0))
        follow(day.server, at_the_centre)
        installed.result()
    soon(lambda: day.device()["release"] == 1)
    follow(day.board, block(on_a_board, 1))
    assert last_block(on_a_board) == 1

    soon(lambda: day.device()["samples"] + day.device()["holdout"] == SAMPLES)
    soon(lambda: day.device()["updates_made"] >= 1)
    soon(lambda: received(day) >= 1)
    for machine in (day.server, day.board):
        assert_runs_what_ci_ran(machine)
    assert day.board.type("edgefold-agent --version").startswith("edgefold-agent 0.")
    assert day.server.type("edgefold-broker --version").startswith("edgefold-broker 0.")
    assert_ordinary_users_are_told(day)

    assert_a_program_asks(day.board)

    hurry(day.server)
    soon(lambda: day.fleet()["updates_folded"] >= 1)
    soon(lambda: day.device()["release"] >= 2)

    before = day.device()
    assert_an_upgrade_that_fails_changes_nothing(day.board)
    leave_half_an_upgrade(day.board)
    follow(day.board, commands(INSTALL, "Upgrade"))
    follow(day.server, commands(INSTALL, "Upgrade"))
    soon(lambda: day.device()["running"] is True)
    after = day.device()
    assert after["release"] >= before["release"]
    assert after["samples"] == before["samples"]
    assert after["updates_made"] >= before["updates_made"]
    assert day.fleet()["updates_folded"] >= 1
    assert day.fleet()["updates_missing"] == 0

    follow(day.board, commands(INSTALL, "Remove a board"))
    follow(day.server, commands(INSTALL, "Remove a server"))
    for machine in (day.server, day.board):
        assert machine.attempt("ls -d /opt/edgefold /usr/local/bin/edgefold* /etc/edgefold")[0] == 2
        left = machine.type("systemctl list-unit-files; sudo ls /var/lib /var/lib/private")
        assert "edge-" not in left


def follow(machine: CleanMachine, told: list[Command]) -> None:
    """Type each command of ``told``; what the comment beside it promises has to be printed."""
    for command in told:
        began = time.monotonic()
        printed = machine.type(command.text)
        print(f"{machine.name}$ {command.text}\n{printed}({time.monotonic() - began:.1f} s)")
        for word in promised(command):
            assert word in printed, f"{machine.name}$ {command.text}\npromises {word!r}\n{printed}"


def promised(command: Command) -> list[str]:
    """Return the words that the output of a command that shows something has to have."""
    shows = re.match(r"sudo edgefold-\w+ (\w+)", command.text)
    if shows is None or "--export" in command.text:
        return []
    return {
        ("edgefold-agent", "status"): ["release", "accuracy", "updates", "bytes"],
        ("edgefold-agent", "infer"): ["# release 1, 5 samples"],
        ("edgefold-broker", "status"): ["birds"],
        ("edgefold-broker", "releases"): ["release", "accuracy"],
    }[command.text.split()[1], shows[1]]


def block(told: list[Command], number: int) -> list[Command]:
    """Return the commands of one fenced block of a section."""
    return [command for command in told if command.block == number]


def last_block(told: list[Command]) -> int:
    """Return its number."""
    return told[-1].block


def soon(happened: Callable[[], bool]) -> None:
    """Wait for what happens by itself."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(1)


def received(day: Day) -> int:
    """Return how many updates the server has, folded or not."""
    return sum(d["updates_stored"] + d["updates_folded"] for d in day.fleet()["devices"])


def hurry(server: CleanMachine) -> None:
    """Fold the next update at once, as somebody would who tries it with one board."""
    server.type(
        "sudo sed -i 's/^updates = 10 /updates = 1 /' /etc/edgefold/broker.toml"
        " && sudo systemctl restart edge-broker"
    )


def assert_a_program_asks(board: CleanMachine) -> None:
    """README's own lines and program, run by the ordinary user, answer as ``infer`` does."""
    follow(board, commands(README, "Ask it from your program"))
    (program,) = blocks(README, "Ask it from your program", "python")
    board.file("/home/pi/ask.py").write_text("\n".join(program))
    shown = board.type("cd && sudo edgefold-agent infer photos.npz").splitlines()
    answered = board.type("cd && ~/app/bin/python ask.py")
    labels = ", ".join(line.split()[0] for line in shown[1:])
    assert answered == f"{shown[0].split()[2].strip(',')} [{labels}] None\n"
    board.add_user("stranger")
    board.type("sudo cp -r ~/ask.py ~/photos.npz ~stranger && sudo chmod 755 ~")
    code, refused = board.attempt("~pi/app/bin/python ask.py", user="stranger")
    assert code == 1, refused
    assert "group edgefold" in refused.splitlines()[-1]


def assert_an_upgrade_that_fails_changes_nothing(board: CleanMachine) -> None:
    """Without a way to the packages the agent goes on, and was not even stopped."""
    started = board.type("systemctl show edge-agent -p ExecMainPID")
    code, printed = board.attempt("cd ~/edgefold && sudo systemd/install.sh", services_network=True)
    assert code != 0, printed
    assert board.type("systemctl show edge-agent -p ExecMainPID") == started
    assert board.type("systemctl is-active edge-agent").strip() == "active"


def leave_half_an_upgrade(board: CleanMachine) -> None:
    """Bring the environment into the state that a power cut within pip may leave."""
    board.type("sudo touch /opt/edgefold/.unfinished")
    board.type("sudo rm -r /opt/edgefold/lib/python3*/site-packages/numpy")


def assert_runs_what_ci_ran(machine: CleanMachine) -> None:
    """Each installed library has the version that constraints.txt pins."""
    frozen = machine.type("/opt/edgefold/bin/pip freeze --disable-pip-version-check")
    installed = dict(PIN.findall(frozen))
    assert "onnxruntime" in installed
    assert installed == {name: PINS.get(name) for name in installed}


def assert_ordinary_users_are_told(day: Day) -> None:
    """Without sudo a command says so, and not that nothing is there."""
    for machine, command in (
        (day.board, "edgefold-agent status"),
        (day.board, "edgefold-agent infer ~/photos.npz"),
        (day.server, "edgefold-broker status"),
    ):
        code, printed = machine.attempt(command)
        assert code in (1, 4), printed
        assert "ermission" in printed, printed
