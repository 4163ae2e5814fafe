"""Each file that a command names: where it is wrong, one line says which, and the code why."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.codec.budget import Budget
from models.codec.payload import compress, to_npz
from models.task.bundle import read_bundle
from tools.cli import main

COMMANDS = {  # one file of each is FILE
    "inspect": "inspect FILE --spec BUNDLE/spec.json",
    "inspect --spec": "inspect PAYLOAD --spec FILE",
    "inspect --context": "inspect PAYLOAD --spec BUNDLE/spec.json --context FILE",
    "inspect --wanted": "inspect PAYLOAD --spec BUNDLE/spec.json --wanted FILE",
    "compress": "compress FILE",
    "compress --data": "compress BUNDLE --data FILE",
    "task create --onnx": "task create a --onnx FILE --data DATA --out OUT",
    "task create --data": "task create a --net mlp --data FILE --out OUT",
    "task show": "task show FILE",
    "task train": "task train FILE --data DATA --epochs 1",
    "task train --data": "task train BUNDLE --data FILE --epochs 1",
    "task export": "task export FILE --parameters DATA --out OUT",
    "task export --parameters": "task export BUNDLE --parameters FILE --out OUT",
    "simulate --energy": "simulate --devices 1 --hours 1 --energy FILE",
    "simulate --data": "simulate --devices 1 --hours 1 --task BUNDLE --data FILE",
}
KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\0"),
    "text": lambda path: path.write_text("no such thing = [\n"),
    "folder": lambda path: path.mkdir(),
    "below a file": lambda path: path.parent.with_suffix(".file").rename(path.parent),
}

SOMEBODY = 65534


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the names in `COMMANDS`: all that is good."""
    root = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    data, bundle, payload = root / "data.npz", root / "bundle", root / "payload.npz"
    np.savez(data, x=rng.normal(size=(64, 4)).astype(np.float32), y=np.arange(64) % 3)
    assert (
        main(["task", "create", "a", "--net", "mlp", "--data", str(data), "--out", str(bundle)])
        == 0
    )
    shared = read_bundle(bundle).spec.shared
    delta = rng.normal(size=sum(tensor.size for tensor in shared)).astype(np.float32)
    payload.write_bytes(to_npz(compress(delta, shared, Budget(nmse=0.1))))
    return {"DATA": str(data), "BUNDLE": str(bundle), "PAYLOAD": str(payload)}


def filled(command: str, words: dict[str, str]) -> list[str]:
    for name, path in words.items():
        command = command.replace(name, path)
    return command.split()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_wrong_with_a_file_is_wrong_usage_in_its_name(
    command: str,
    kind: str,
    words: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "place.file").write_bytes(b"a file") if kind == "below a file" else (
        tmp_path / "place"
    ).mkdir()
    file = tmp_path / "place" / "given"
    KINDS[kind](file)
    everything = words | {"FILE": str(file), "OUT": str(tmp_path / "out")}
    assert main(filled(COMMANDS[command], everything)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("edgefold: ")
    assert str(file) in said


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere/file", "there is no directory"), ("folder", "is a directory")]
)
@pytest.mark.parametrize(
    "command",
    [
        "inspect PAYLOAD --spec BUNDLE/spec.json --onnx FILE",
        "compress BUNDLE --out FILE",
        "compress BUNDLE --restored FILE",
        "compress BUNDLE --compact FILE",
        "compress BUNDLE --report FILE",
        "task train BUNDLE --data DATA --epochs 100000 --out FILE",
        "task train BUNDLE --data DATA --epochs 100000 --report FILE",
        "task export BUNDLE --parameters PAYLOAD --out FILE",
        "simulate --devices 100000 --hours 100000 --report FILE",
        "bench train --report FILE",
        "bench idle --report FILE",
        "bench server --report FILE",
        "bench compress --report FILE",
        "bench codec --report FILE",
        "bench codec --picture FILE",
    ],
)
def test_a_result_that_has_no_place_is_refused_before_the_work(
    command: str,
    name: str,
    reason: str,
    words: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    assert main(filled(command, words | {"FILE": str(tmp_path / name)})) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"edgefold: {tmp_path / name}")
    assert reason in said


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    os.setegid(SOMEBODY)
    os.seteuid(SOMEBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_belongs_to_somebody_else_is_no_permission(
    command: str, words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, closed = tmp_path / "missing", tmp_path / "closed"
    closed.mkdir(mode=0o700)
    everything = words | {"OUT": str(tmp_path / "out")}
    assert main(filled(COMMANDS[command], everything | {"FILE": str(missing)})) == 2
    capsys.readouterr()  # and all is imported: somebody else may not read our programs
    for folder in (tmp_path, Path(words["DATA"]).parent):
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(0o755)
    with somebody_else():
        code = main(filled(COMMANDS[command], everything | {"FILE": str(closed / "given")}))
    said = capsys.readouterr().err.splitlines()
    assert (code, len(said)) == (4, 1), said
    assert said[0].startswith("edgefold: ")
