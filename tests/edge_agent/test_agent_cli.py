"""`edgefold-agent`: what a person types, and one clear sentence when it cannot be done."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from tiny_fleet import Device, Files, blobs, make_config

from edge_agent.__main__ import main
from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker


@pytest.fixture
def config(device: Device) -> list[str]:
    """The arguments that name the configuration of ``device``."""
    path = device.directory / "agent.toml"
    config = make_config(device.directory)
    path.write_text(
        f'[device]\nid = "{config.device.id}"\ntask = "{config.device.task}"\n'
        f'[fleet]\nname = "{config.fleet.name}"\nbroker = "mqtt://127.0.0.1:9"\n'
        '[storage]\ndirectory = "state"\n'
    )
    return ["--config", str(path)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """Run a command that must fail; return its one line of error."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("edgefold-agent: ")
    return line


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "edgefold-agent infer new-images.npz" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["infer"], ["status", "--jason"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_a_missing_configuration_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "status", "--config", str(tmp_path / "agent.toml"))
    assert "agent.toml: No such file or directory; write an agent.toml there" in line


def test_a_bad_broker_address_is_one_sentence(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"storage.directory={tmp_path / 'other'}"
    line = refused(
        capsys, "run", *config, "--set", "fleet.broker=broker:1883", "--set", other, code=2
    )
    assert "mqtt://HOST:PORT" in line


def test_a_directory_of_another_device_is_refused(
    config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "belongs to device board-1" in refused(
        capsys, "run", *config, "--set", "device.id=board-2"
    )


def test_status_before_the_first_start_says_so(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"storage.directory={tmp_path / 'other'}"
    assert "no agent was ever started" in refused(capsys, "status", *config, "--set", other)


def test_status_reads_what_the_agent_has(
    config: list[str],
    device: Device,
    broker: MemoryBroker,
    topics: Topics,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Files(1).publish(broker, topics)
    device.add_samples(50)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    assert main(["status", "--json", *config]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["device"], status["release"], status["running"]) == ("board-1", 1, False)
    assert (status["updates_made"], status["updates_folded"]) == (1, 1)
    assert status["samples"] + status["holdout"] == 50
    assert main(["status", *config]) == 0
    assert "updates folded" in capsys.readouterr().out


def test_infer_and_train_need_a_release_and_samples(
    config: list[str],
    device: Device,
    broker: MemoryBroker,
    topics: Topics,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "no release is installed" in refused(capsys, "train-once", *config)
    assert "no release is installed" in refused(capsys, "infer", "x.npz", *config)
    Files(1).publish(broker, topics)
    device.run(10)
    assert "no samples yet" in refused(capsys, "train-once", *config)
    file = device.directory / "x.npz"
    assert "No such file" in refused(capsys, "infer", str(file), *config, code=2)
    file.write_bytes(b"?")
    assert "not a zip file" in refused(capsys, "infer", str(file), *config, code=2)
    np.savez(file, y=np.zeros(3))
    assert "no array 'x'" in refused(capsys, "infer", str(file), *config, code=2)
    np.savez(file, x=blobs(3, 1)[0][:, :2])
    assert "x has shape (3, 2), task blobs takes (n, 4)" in refused(
        capsys, "infer", str(file), *config, code=2
    )


def test_infer_answers_with_the_release_where_what_is_the_devices_own_is_lost(
    config: list[str],
    device: Device,
    broker: MemoryBroker,
    topics: Topics,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Files(1).publish(broker, topics)
    device.run(10)
    device.agent.stop()
    database = sqlite3.connect(device.config.storage.directory / "outbox.db")
    with database:
        database.execute("UPDATE codec SET tuned = 'tuned-1.npz'")
        database.execute("INSERT INTO facts VALUES ('serves_tuned', 1)")
    database.close()
    file = device.directory / "x.npz"
    np.savez(file, x=blobs(3, 1)[0])
    assert main(["infer", str(file), *config]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("# release 1, 3 samples")
    assert "answers without what is this device's own" in said.err
    assert "tuned-1.npz: No such file" in said.err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("edgefold-agent ")


def test_another_id_is_adopted_after_it_was_edited(
    config: list[str], device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    device.run(5)
    device.agent.parts.outbox.close()
    changed = [*config, "--set", "device.id=board-2"]
    assert "run `edgefold-agent adopt`" in refused(capsys, "run", *changed)
    assert main(["adopt", *changed]) == 0
    assert "belongs to device board-2, task blobs now" in capsys.readouterr().out
    assert main(["status", "--json", *changed]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "board-2"


def test_a_status_begins_with_one_sentence(
    config: list[str], device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    device.run(5)
    assert main(["status", *config]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "the agent does not run: start it, as with `sudo systemctl start edge-agent`"
    assert any(line.split() == ["broker", "mqtt://127.0.0.1:9"] for line in rest)


def test_a_directory_that_is_a_file_is_said(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    other = f"storage.directory={tmp_path / 'file'}"
    assert "is not a directory" in refused(capsys, "status", *config, "--set", other)


@pytest.mark.parametrize(
    "setting",
    [
        "samples",
        "samples.max_count",
        "samples.max_count=1.x=2",
        "samples.max_count=many",
        "samples.nothing=1",
        "nothing.max_count=1",
        "fleet.password=x",
        "fleet.name='two words'",
        "device.id=''",
        "device=1.5",
        "inference.mode='0777'",
        "inference.mode.x=1",
    ],
)
def test_a_setting_on_the_command_line_that_is_none_is_wrong_usage(
    config: list[str], capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    line = refused(capsys, "status", *config, "--set", setting, code=2)
    assert line.startswith("edgefold-agent: --set ")


def test_adopting_where_no_agent_ever_was_is_wrong_usage(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = ["--set", f"storage.directory={tmp_path / 'nothing'}"]
    assert main(["adopt", *config, *elsewhere]) == 2
    assert "no agent was ever started" in capsys.readouterr().err
