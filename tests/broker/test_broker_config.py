"""broker.toml: defaults, and one clear sentence for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
from server_world import linear_spec, write_bundle

from broker.__main__ import main
from broker.assembly import lock_directory, read_tasks
from broker.config import load_config
from models.errors import UsageError

GOOD = """
[fleet]
name = "orchard"
broker = "mqtt://localhost"
[storage]
directory = "state"
[[task]]
bundle = "bundle"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "broker.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.path(config.task[0].bundle) == tmp_path / "bundle"
    assert config.path("/elsewhere") == Path("/elsewhere")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("", None),
        ("seconds = 60", "seconds = 60 is shorter than min_seconds = 3600, which counts"),
        ("min_seconds = 0", "min_seconds = 0 makes releases as fast as updates come"),
        ("seconds = 60\nmin_seconds = 60", None),
    ],
)
def test_a_pace_that_is_hardly_meant_so_is_said_in_a_sentence(
    tmp_path: Path, policy: str, said: str | None
) -> None:
    config = load_config(write(tmp_path, GOOD + f"[task.aggregation]\n{policy}\n"))
    assert len(config.doubts) == (said is not None)
    assert said is None or said in config.doubts[0]


def test_the_training_plan_closes_with_the_last_release(tmp_path: Path) -> None:
    (task,) = load_config(write(tmp_path, GOOD + "releases = 3\n")).task
    assert [task.training_plan(number, repeat=True).open for number in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fleet\n", "is not TOML"),
        (GOOD.replace('name = "orchard"', ""), "[fleet]"),
        (GOOD.replace('name = "orchard"', ""), "lacks 'name'"),
        (GOOD.replace("orchard", "Or chard"), "Or chard"),
        (GOOD + "[task.codec]\nkeep = 2.0\n", "[task.codec] (number 1) keep"),
        (GOOD + "[task.codec]\nkep = 0.1\n", "kep"),
        (GOOD + '[task.aggregation]\nrule = "mode"\n', "trimmed_mean"),
        (GOOD + '[task.aggregation]\nrule = "mix"\n', "mix is FedAsync: updates = 1, not 10"),
        (GOOD + '[task.aggregation]\nstaleness = "old"\n', "half_life"),
        (GOOD + "[task.learning]\naverage = 1.0\n", "expected `float` < 1.0; see docs"),
        (GOOD + "[task.learning]\naverage = '0.9'\n", "write the number without quotes"),
        (GOOD + "[task.learning]\nsteps = 1.5\n", 'take "epochs", "auto" or a number'),
        (GOOD + "[task.learning]\nfeedback = 3\n", 'known are "residual", "memory", "gd-sec"'),
        (GOOD + "[task.training]\nbatch = 'x'\n", "[task.training] (number 1) batch"),
        (GOOD.split("[[task]]", maxsplit=1)[0], "[[task]] is missing"),
        ("origin = '/'\n" + GOOD, "origin"),
        (GOOD.replace("[storage]", "password = 'a'\n[storage]"), "no username"),
        (GOOD.replace("[storage]", "username = 'a'\n[storage]"), "no password"),
        (GOOD.replace("[storage]", "ca = 'ca.crt'\n[storage]"), "mqtts://"),
        ("log_level = 'loud'\n" + GOOD, "log_level"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_a_password_is_found_beside_the_file_and_never_shown(tmp_path: Path) -> None:
    lines = "username = 'server'\npassword_file = 'broker.password'\n[storage]"
    path = write(tmp_path, GOOD.replace("[storage]", lines))
    assert load_config(path).login(path).password_file == tmp_path / "broker.password"
    write(
        tmp_path, GOOD.replace("[storage]", "username = 'server'\npassword = 'tulips'\n[storage]")
    )
    assert "tulips" not in f"{load_config(path)!r} {load_config(path).login(path)!r}"


def test_a_command_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", str(tmp_path / "none.toml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("edgefold-broker: cannot read")
    assert error.count("\n") == 1


def test_a_server_that_never_started_has_no_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--config", str(write(tmp_path, GOOD))]) == 1
    assert "did the server ever start there" in capsys.readouterr().err


def test_missing_bundles_and_samples_are_named(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD + '[task.evaluation]\ndata = "x.npz"\n'))
    with pytest.raises(UsageError, match=r"cannot read infer\.onnx"):
        read_tasks(config)
    write_bundle(tmp_path / "bundle", linear_spec())
    with pytest.raises(UsageError, match=r"x\.npz"):
        read_tasks(config)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", linear_spec())
    with pytest.raises(UsageError, match="leaves"):
        read_tasks(load_config(write(tmp_path, GOOD + '[[task]]\nbundle = "bundle"\n')))


def test_two_servers_cannot_share_a_directory(tmp_path: Path) -> None:
    lock_directory(tmp_path / "state")
    with pytest.raises(UsageError, match="another server is running"):
        lock_directory(tmp_path / "state")


def test_help_shows_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker", "--help"], capture_output=True, text=True, check=True
    )
    assert "edgefold-broker run --config" in done.stdout
