"""Whoever may not look is told so, with the remedy and an exit code: not that nothing is there."""

import os
import sys
from pathlib import Path

import pytest
from tiny_fleet import Device, Files, Server

from edge_agent.__main__ import main

# Before the fork: somebody else may not read these programs, nor Python's codecs, either.
for codec in ("idna", "utf-8-sig"):
    "a".encode(codec)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user"),
]

SOMEBODY = 65534


@pytest.fixture
def config(device: Device, server: Server, tmp_path: Path) -> Path:
    """The configuration of a stopped device whose state is root's alone, as under its unit."""
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    device.agent.parts.outbox.close()
    (tmp_path / "x.npz").write_bytes(b"")
    path = tmp_path / "agent.toml"
    path.write_text(
        '[device]\nid = "board-1"\ntask = "blobs"\n[fleet]\nname = "orchard"\n'
        'broker = "mqtt://127.0.0.1:9"\n[storage]\ndirectory = "state"\n'
        "[inference]\nenabled = false\n"
    )
    path.chmod(0o644)
    (tmp_path / "x.npz").chmod(0o644)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    device.config.storage.directory.chmod(0o700)
    return path


def asked(config: Path, command: str, *arguments: str) -> tuple[int, str]:
    """Give a command as somebody else; return its exit code and its last word."""
    said = config.parent / "said"
    said.touch()
    said.chmod(0o666)
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(said, os.O_WRONLY), 2)
            os.setgroups([])
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
            sys.stderr = os.fdopen(2, "w")
            code = main([command, "--config", str(config), *arguments])
            sys.stderr.flush()
            os._exit(code)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text().strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["status"], ["infer", "x.npz"], ["train-once"], ["adopt"], ["run"]]
)
def test_the_state_belongs_to_the_service(config: Path, arguments: list[str]) -> None:
    code, said = asked(config, *arguments)
    assert code == 4, said
    assert f"the state in {config.parent / 'state'} belongs to the service" in said
    assert "run this with sudo" in said


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [
        ("installation.json", ["status"]),
        ("agent.lock", ["status"]),
        ("active.json", ["status"]),
        ("active.json", ["infer", "x.npz"]),
        ("slot-a.json", ["infer", "x.npz"]),
        ("artifacts", ["train-once"]),
        ("outbox.db", ["status"]),
        ("outbox.db", ["train-once"]),
        ("samples", ["status"]),
        ("samples", ["train-once"]),
        ("downloads", ["status"]),
    ],
)
def test_one_closed_file_is_not_taken_for_none(
    config: Path, closed: str, arguments: list[str]
) -> None:
    state = config.parent / "state"
    (state / "agent.lock").touch()
    for path in (state, *state.rglob("*")):
        path.chmod(0o755)
    (state / closed).chmod(0)
    code, said = asked(config, *arguments)
    assert code == 4, said
    assert closed in said or "outbox.db" in said  # which comes first


def test_a_closed_configuration_is_not_a_missing_one(config: Path) -> None:
    config.chmod(0o600)
    code, said = asked(config, "status")
    assert code == 4, said
    assert "no permission to read it: run this with sudo" in said
    assert "write an agent.toml there" not in said
