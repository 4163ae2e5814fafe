"""agent.toml: defaults in one place, and errors that name the file, the key and the remedy."""

from pathlib import Path

import pytest

from edge_agent.config import Config, parse_config, read_config
from models.errors import UsageError

GOOD = """
[device]
id = "board-1"
task = "leaves"
[fleet]
name = "orchard"
broker = "mqtt://broker.local"
"""
SOURCE = Path("/etc/edgefold/agent.toml")


def parse(text: str, *overrides: str) -> Config:
    return parse_config(text, source=SOURCE, overrides=overrides)


def test_three_names_and_a_broker_are_enough() -> None:
    config = parse(GOOD)
    assert config.device.id == "board-1"
    assert config.inbox == Path("/var/lib/edge-agent/inbox")
    assert config.samples.holdout_share == 0.2
    # What is kept on disk together stays within storage.max_mb.
    assert (
        3 * config.max_release_bytes + config.max_outbox_bytes + config.max_sample_bytes
        <= config.max_bytes
    )


def test_relative_paths_are_relative_to_the_file() -> None:
    config = parse(GOOD + '[storage]\ndirectory = "state"\n[samples]\ninbox = "../in"\n')
    assert config.storage.directory == Path("/etc/edgefold/state")
    assert config.inbox == Path("/etc/edgefold/../in")


def test_whom_the_applications_socket_lets_in_is_set() -> None:
    text = GOOD + '[inference]\nsocket = "ask"\ngroup = "cams"\nmode = "0666"\n'
    inference = parse(text).inference
    assert inference.socket == Path("/etc/edgefold/ask")
    assert (inference.group, inference.mode) == ("cams", "0666")


def test_a_setting_is_overridden_with_or_without_quotes() -> None:
    config = parse(GOOD, "samples.max_count=9", "device.id=board-2", 'fleet.name = "f"')
    assert (config.samples.max_count, config.device.id, config.fleet.name) == (9, "board-2", "f")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[device", ["agent.toml", "TOML"]),
        ("", ["agent.toml", "[device]", "'id'"]),
        (GOOD.replace('task = "leaves"', ""), ["[device]", "task = ..."]),
        (GOOD + "[sampels]\n", ["'sampels'", "did you mean 'samples'"]),
        (GOOD + "[samples]\nmaxcount = 3\n", ["samples", "did you mean 'max_count'"]),
        (GOOD + "[samples]\nmax_count = 'many'\n", ["samples.max_count", "`int`", "`str`"]),
        (GOOD + "[samples]\nmax_count = 0\n", ["samples.max_count", ">= 1"]),
        (GOOD.replace("board-1", "Board 1"), ["device.id", "a-z"]),
        (GOOD.replace("orchard", "or/chard"), ["fleet.name"]),
        (GOOD + "[storage]\ndirectory = 3\n", ["storage.directory", "path"]),
        (GOOD + "[inference]\nmode = '660'\n", ["inference", "'660'", '"0660" its group too']),
        (GOOD + "[inference]\nmode = 0o660\n", ["inference.mode", "`int`"]),
        (GOOD + "[inference]\nmode = '0777'\n", ["'0777'", '"0666" everybody']),
        (GOOD + "[inference]\nmode = '0600'\ngroup = 'cams'\n", ["keeps the group 'cams' out"]),
        (GOOD + "[inference]\nsocket = 5\n", ["inference.socket", "path"]),
        (GOOD + "[inference]\nsocket = ''\n", ["inference.socket", "path"]),
        (GOOD + "[inference]\nsocket_path = 'a'\n", ["did you mean 'socket'"]),
        (GOOD + "[inference]\ngroup = ''\n", ["inference.group"]),
        (GOOD + "password = 'a'\npassword_file = 'b'\n", ["both password and password_file"]),
        (GOOD + "username = 'a'\n", ["no password", "password_file"]),
        (GOOD + "password_file = 'b'\n", ["no username"]),
        (GOOD + "ca = 'ca.crt'\n", ["mqtts://"]),
        (GOOD.replace("mqtt:", "mqtts:") + "key = 'a.key'\n", ["no certificate"]),
    ],
)
def test_a_mistake_is_named_with_its_key_and_remedy(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    for part in ["agent.toml", *parts]:
        assert part in str(error.value)


def test_a_password_is_found_beside_the_file_and_never_shown() -> None:
    config = parse(GOOD + 'username = "board-1"\npassword_file = "agent.password"\n')
    assert config.fleet.password_file == Path("/etc/edgefold/agent.password")
    config = parse(GOOD + 'username = "board-1"\npassword = "tulips"\n')
    assert "tulips" not in f"{config!r} {config.fleet.login(SOURCE)!r}"


@pytest.mark.parametrize(
    "line", ["fleet.password=tulips", " fleet.password = tulips", "fleet.password tulips"]
)
def test_a_password_on_the_command_line_is_refused_without_repeating_it(line: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(GOOD, line)
    assert "tulips" not in str(error.value)


def test_the_refusal_names_the_way_that_is_not_seen_by_everyone() -> None:
    with pytest.raises(UsageError, match=r"list of processes.*fleet\.password_file"):
        parse(GOOD, "fleet.password=tulips")


@pytest.mark.parametrize("line", ["samples", "samples.max_count", "=3", "samples.=3"])
def test_a_malformed_override_is_explained(line: str) -> None:
    with pytest.raises(UsageError, match=r"section\.key=value"):
        parse(GOOD, line)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--config"):
        read_config(tmp_path / "agent.toml")
