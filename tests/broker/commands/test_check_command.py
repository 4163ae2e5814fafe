"""``check`` says what ``run`` refuses, in the same words, and what it costs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import CONFIG, World, linear_spec, write_bundle

from broker.__main__ import main
from broker.assembly import read_tasks
from broker.commands.check_command import check
from broker.config import load_config
from broker.contradictions import contradictions, doubts
from models.errors import UsageError
from models.protocol.manifest import FOLLOWS
from models.protocol.messages import Status
from models.task.spec import Role, TaskSpec

MakeWorld = Callable[..., World]
SHARED = linear_spec(own=Role.SHARED)
ADAM = msgspec.structs.replace(SHARED, optimizer="adam", slots=())

REFUSED: list[tuple[str, TaskSpec, str]] = [
    (
        '[task.aggregation]\nrule = "median"\n[task.learning]\nfeedback = "memory"\n',
        SHARED,
        "rule = median: with [task.learning] feedback = memory only mean keeps",
    ),
    (
        '[task.aggregation]\nrule = "mix"\nupdates = 1\n[task.learning]\nfeedback = "gd-sec"\n',
        SHARED,
        "rule = mix: with [task.learning] feedback = gd-sec only mean keeps",
    ),
    ('[task.aggregation]\nupdates = "all"\n', SHARED, "updates = all waits for the devices"),
    ('[task.codec]\ncontext = "own"\n', SHARED, "context = own needs [task.learning] feedback"),
    ("[task.learning]\ngradient = true\n", SHARED, "gradient = true is a step of gd-sec"),
    (
        '[task.learning]\nfeedback = "gd-sec"\ngradient = true\n',
        ADAM,
        "leaves was created with --optimizer adam: create it with --optimizer sgd",
    ),
    (
        '[task.learning]\nfeedback = "gd-sec"\ngradient = true\nsteps = "auto"\n',
        SHARED,
        "steps = auto: gradient = true makes one step",
    ),
    (
        '[task.evaluation]\ndata = "holdout.npz"\nmax_drop = 0.1\n',
        linear_spec(),
        "the server cannot measure personal models (of own_bias) on [task.evaluation] data",
    ),
]
ALLOWED = [
    ('[task.learning]\nfeedback = "gd-sec"\n', "the threshold sends 54-92 %"),
    (
        '[task.aggregation]\nmin_seconds = 7200\n[task.learning]\nfeedback = "memory"\n',
        "at most one unanswered update",
    ),
    ("[task.learning]\nbeta = 0.5\n", "beta = 0.5 has no effect: it is of [task.learning]"),
    ("[task.learning]\nforget_after = 9\n", "forget_after = 9 has no effect"),
    ("[task.aggregation]\nmomentum = 0.9\n", "momentum = 0.9 has no effect: it is of optimizer"),
    (
        '[task.aggregation]\nhalf_life = 9\n[task.learning]\nfeedback = "memory"\n',
        "half_life = 9 has no effect: it is of staleness = half_life, without a memory",
    ),
    ("[task.aggregation]\nstaleness_after = 9\n", "it is of staleness = hinge"),
    (
        '[task.aggregation]\noptimizer = "adam"\nlearning_rate = 1\n',
        "moves each parameter by about so much",
    ),
    (
        '[task.aggregation]\nrule = "median"\n[task.codec]\nmethod = "coreset"\n',
        "rule = median with [task.codec] method = coreset and keep = 0.05",
    ),
    (
        '[task.learning]\nfeedback = "memory"\n'
        '[task.evaluation]\ndata = "holdout.npz"\nmax_drop = 0.1\n',
        "max_drop with feedback = memory: each fold moves by the memories of all",
    ),
]


def written(directory: Path, task: str, spec: TaskSpec = SHARED) -> Path:
    write_bundle(directory / "bundle", spec)
    (directory / "broker.toml").write_text(CONFIG + task)
    return directory / "broker.toml"


@pytest.mark.parametrize(("task", "spec", "said"), REFUSED)
def test_what_cannot_work_together_is_refused_by_both_in_one_sentence(
    tmp_path: Path, hold_out: Path, task: str, spec: TaskSpec, said: str
) -> None:
    config = load_config(written(tmp_path, task, spec))
    (sentence,) = contradictions(config.task[0], spec)
    assert said in sentence
    with pytest.raises(UsageError) as error:
        read_tasks(config)
    assert str(error.value) == f"task leaves: {sentence}"
    checked = check(config)
    assert not checked.is_fine
    assert checked.tasks[0].refused == (sentence,)


@pytest.mark.parametrize(("task", "said"), ALLOWED)
def test_what_is_hardly_meant_so_is_said_and_served(
    tmp_path: Path, hold_out: Path, task: str, said: str
) -> None:
    config = load_config(written(tmp_path, task))
    assert contradictions(config.task[0], SHARED) == []
    assert any(said in sentence for sentence in doubts(config.task[0], SHARED))
    assert check(config).is_fine


def test_the_default_of_a_new_task_has_neither(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ""))
    assert (contradictions(config.task[0], SHARED), doubts(config.task[0], SHARED)) == ([], [])
    assert read_tasks(config)


def test_it_ends_with_a_code_and_tells_programs_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, '[task.learning]\nfeedback = "memory"\n')
    assert main(["check", "--config", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "run would serve"
    assert any("a device's memory takes" in line for line in lines)
    assert main(["check", "--json", "--config", str(path)]) == 0
    found: Any = msgspec.json.decode(capsys.readouterr().out)
    (task,) = found["tasks"]
    assert task["memory_of_device"] >= 4 * task["parameters"]
    assert task["newcomer"] > task["manifest"] + 8 * task["parameters"], "p and the average"
    path = written(tmp_path, '[task.aggregation]\nupdates = "all"\n')
    assert main(["check", "--config", str(path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "run would refuse this"
    (tmp_path / "bundle" / "spec.json").unlink()
    assert main(["check", "--config", str(path)]) == 1
    path.write_text("[fleet]\n")
    assert main(["check", "--config", str(path)]) == 1


def test_another_model_of_the_same_name_is_seen_beside_a_running_server(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world()
    assert check(world.config).is_fine
    write_bundle(tmp_path / "bundle", linear_spec(features=9))
    ((sentence,),) = (task.refused for task in check(world.config).tasks)
    assert "the bundle's shared tensors are not those of the newest release" in sentence


def test_devices_that_could_not_follow_are_told_before_anything_is_switched_on(
    make_world: MakeWorld,
) -> None:
    """A device of before refuses such a manifest, and learns no more."""
    world = make_world("[task.learning]\naverage = 0\n")
    for name, follows in (("dev-1", 0), ("dev-2", 0), ("dev-3", FOLLOWS)):
        status = Status(online=True, task="leaves", release=1, version="0.1.0")
        world.device(name).report(status, follows=follows)
    world.run()
    said = (
        "2 of 3 devices run 0.1.0, which cannot follow releases with these settings: "
        "update them first"
    )
    (task,) = check(world.config).tasks
    assert said not in task.doubts
    learning = msgspec.structs.replace(world.config.task[0].learning, average=0.9)
    section = msgspec.structs.replace(world.config.task[0], learning=learning)
    (task,) = check(msgspec.structs.replace(world.config, task=(section,))).tasks
    assert said in task.doubts


def test_the_costs_are_those_of_what_is_served(make_world: MakeWorld) -> None:
    world = make_world('[task.learning]\nfeedback = "memory"\n')
    manifest = world.manifest()
    (task,) = check(world.config).tasks
    assert abs(task.manifest - len(world.broker.retained[world.topics.release("leaves")])) < 250
    sizes = sum(artifact.size for artifact in manifest.artifacts.values())
    assert task.newcomer == pytest.approx(sizes + task.manifest, abs=4 * task.parameters + 400)


def test_help_names_it() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "broker", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "edgefold-broker check --config broker.toml" in text


def test_a_manifest_is_as_long_as_it_gets_when_devices_have_had_a_say(tmp_path: Path) -> None:
    sizes = []
    for more in ("", '[task.learning]\nsteps = "auto"\n[task.report]\nalone = true\n'):
        (task,) = check(load_config(written(tmp_path, more))).tasks
        sizes.append(task.manifest)
    assert sizes[1] - sizes[0] > 150
