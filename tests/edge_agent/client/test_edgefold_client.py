"""`edgefold_client`: what an application imports, with and without numpy, on the real thing."""

import ast
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import venv
from pathlib import Path

import msgspec
import numpy as np
import pytest
from asking import NAMES, Process, running
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.client import edgefold_client
from edge_agent.client.edgefold_client import (
    Answer,
    Array,
    Client,
    NoReleaseError,
    NotRunningError,
    ProtocolError,
    WrongSamplesError,
    add_samples,
    as_array,
    npy,
    npy_header,
)
from edge_agent.inference.inference_client import call
from models.protocol.npz import read_arrays, write_vector
from models.task.onnx_weights import read_weights
from models.task.params import flatten
from models.task.spec import decode_spec, encode_spec

CLIENT = Path(edgefold_client.__file__)
X = np.eye(3, 4, dtype=np.float32)
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES += ("float16", "float32", "float64")


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (1,), (4, 1, 2, 2), ()])
def test_our_npy_is_numpys(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ours = as_array(array)
    assert (ours.shape, ours.dtype) == (shape, dtype)
    file = io.BytesIO()
    np.save(file, array)
    data = npy(*ours[1:], ours[0])
    assert data == file.getvalue()
    header = npy_header(data)
    assert header[:3] == (array.dtype.str, False, shape)
    assert data[header.start :] == array.tobytes()


@given(st.binary(max_size=200), st.integers(0, 130))
def test_any_bytes_are_a_header_or_a_protocol_error(noise: bytes, at: int) -> None:
    whole = npy((2, 3), "float32", bytes(24))
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            assert 0 < npy_header(data).start <= len(data)
        except ProtocolError:
            continue


def test_every_layout_of_numpy_is_taken_as_it_reads() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (
        base.T,
        base[::2],
        np.asfortranarray(base),
        base.astype(">f4"),
        base.astype("f8"),
    ):
        taken = as_array(array, "float32")
        found = np.frombuffer(taken.data, "<f4").reshape(taken.shape)
        np.testing.assert_array_equal(found, array)


def test_lists_become_what_the_task_takes() -> None:
    assert as_array([[1, 2], [3, 4]], "uint8") == Array(b"\1\2\3\4", (2, 2), "uint8")
    assert as_array(([0.5], [1])) == Array(np.array([0.5, 1]).tobytes(), (2, 1), "float64")
    assert as_array([1, 2]).dtype == "int64"
    assert as_array([np.float32(1), np.float32(2)], "float32").shape == (2,)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([[1, 2], [3]], "differ in length"),
        ([[1, 2], 3], "differ in length"),
        ([1, "2"], "str where a number is needed"),
        ([1.5], "no uint8"),
        ([256], "no uint8"),
        (b"\1\2", "bytes without a shape"),
        (Array(b"\1\2", (3,), "uint8"), "2 bytes; uint8 of shape (3,) has 3"),
        (Array(b"\1\2", (2,), "complex64"), "dtype 'complex64'"),
        (np.array(["a"]), "no numbers"),
        (np.array([None]), "no numbers"),
        (object(), "no numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_in_a_sentence(x: object, said: str) -> None:
    with pytest.raises(WrongSamplesError) as error:
        as_array(x, "uint8")
    assert said in str(error.value)


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, np.arange(3)),
        (X.tolist(), [0, 1, 2]),
        (Array(X.tobytes(), (3, 4), "float32"), [0, 1, 2]),
    ],
)
def test_samples_arrive_as_numpy_would_write_them(tmp_path: Path, x: object, y: object) -> None:
    file = add_samples(tmp_path, x, y, dtype="float32")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with np.load(file, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["x"], X)
        assert (arrays["x"].dtype, arrays["y"].tolist()) == (np.float32, [0, 1, 2])
    assert set(read_arrays(file.read_bytes(), max_bytes=1 << 20)) == {"x", "y"}  # the agent's own


def test_samples_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 samples with 2 labels"):
        add_samples(tmp_path, X, [0, 1])
    with pytest.raises(ValueError, match="0 samples"):
        add_samples(tmp_path, [], [])
    with pytest.raises(FileNotFoundError):
        add_samples(tmp_path / "missing", X, [0, 1, 2])
    assert list(tmp_path.iterdir()) == []


# --- asking --------------------------------------------------------------------------------------


def test_without_an_agent_the_error_says_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match=r"inference\.sock: no answer"):
        Client(tmp_path / "inference.sock").ask(X)


def test_the_socket_is_found_where_the_unit_or_the_environment_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (str(tmp_path / "run" / "i.sock"), str(tmp_path / "lib" / "i.sock"))
    monkeypatch.setattr(edgefold_client, "SOCKETS", places)
    assert str(Client().path) == places[0]
    (tmp_path / "lib").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(places[1])
        assert str(Client().path) == places[1]
    monkeypatch.setenv("EDGEFOLD_SOCKET", "/elsewhere")
    assert Client().path == Path("/elsewhere")
    assert Client(tmp_path).path == tmp_path


def as_lists(answer: Answer) -> list[object]:
    return [answer[0], np.asarray(answer.outputs).tolist(), *answer[2:]]


@pytest.mark.slow
def test_the_names_of_the_classes_come_back_for_arrays_lists_and_bytes(tmp_path: Path) -> None:
    with running(Process(tmp_path)) as process, Client(process.socket) as client:
        with pytest.raises(NoReleaseError, match="no release is installed yet"):
            client.ask(X)
        assert client.ping() == 0
        process.load(2)
        answer = client.ask(X)
        assert answer.release == client.ping() == 2
        np.testing.assert_array_equal(answer.outputs, 2 * X[:, :3])
        assert (answer.classes, answer.names) == ([0, 1, 2], list(NAMES))
        assert answer.scores == [2.0, 2.0, 2.0]
        for same in (X.tolist(), Array(X.tobytes(), X.shape, "float32"), X.astype(np.float64)):
            assert as_lists(client.ask(same)) == as_lists(answer)
        task = client.task()
        assert (task.task, task.dtype, task.shape) == ("blobs", "float32", (4,))
        assert (task.loss, task.classes, task.class_names) == ("cross_entropy", 3, NAMES)

        process.load(3, class_names=())
        answer = client.ask(X)
        assert (answer.release, answer.classes, answer.names) == (3, [0, 1, 2], None)
        process.load(4, loss="mse", metric="mse", classes=0, class_names=())
        answer = client.ask(X)
        assert (answer.release, *answer[2:]) == (4, None, None, None)
        np.testing.assert_array_equal(answer.outputs, 4 * X[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "said"),
    [
        (X[0], r"x is one sample of shape \(4,\): give a batch"),
        (X[:, :3], r"x has shape \(3, 3\)"),
        (X[:0], r"x has shape \(0, 4\)"),
        (np.float32(1), r"x has shape \(\)"),
        (X.astype(np.int64), "x is int64"),
        ([["a"] * 4], "x: str where a number is needed"),
    ],
)
def test_samples_that_do_not_fit_are_refused_with_what_the_task_takes(
    tmp_path: Path, x: object, said: str
) -> None:
    with running(Process(tmp_path)) as process, Client(process.socket) as client:
        process.load(1)
        with pytest.raises(WrongSamplesError, match=said) as error:
            client.ask(x)
        assert "task blobs takes float32 of shape (n, 4)" in str(error.value)
        assert client.ask(X).release == 1


@pytest.mark.slow
def test_a_large_batch_travels_in_parts_and_one_release_answers_all_of_it(tmp_path: Path) -> None:
    """Releases are switched all the while: an answer of two of them would show both."""
    x = np.zeros((600_000, 4), np.float32)  # 9.6 MB; a frame holds 8
    x[:, 0] = 1
    with running(Process(tmp_path)) as process, Client(process.socket, timeout_s=60) as client:
        process.load(1)
        over = threading.Event()

        def switch() -> None:
            release = 1
            while not over.wait(1.5):
                release += 1
                process.load(release)

        thread = threading.Thread(target=switch)
        thread.start()
        try:
            answers = [client.ask(x) for _ in range(3)]
        finally:
            over.set()
            thread.join()
    for answer in answers:
        assert len(answer.outputs) == len(x)
        assert set(answer.outputs[:, 0].tolist()) == {float(answer.release)}


@pytest.mark.slow
def test_a_client_outlives_restarts_of_the_process(tmp_path: Path) -> None:
    process = Process(tmp_path)
    with Client(process.socket, wait_s=60) as client:
        for release in (1, 2):
            with running(process):
                loader = threading.Timer(1.0, process.load, (release,))
                loader.start()
                assert client.ask(X).release == release  # waits until there is a release
                loader.join()
        process.start()
        process.process.kill()
        process.process.wait()
        with pytest.raises(NotRunningError):
            Client(process.socket).ask(X)
        with running(process):
            process.load(3)
            assert client.ask(X).release == 3


@pytest.mark.slow
def test_threads_may_share_a_client(tmp_path: Path) -> None:
    with running(Process(tmp_path)) as process, Client(process.socket) as client:
        process.load(1)
        found: list[bool] = []

        def work(column: int) -> None:
            x = np.zeros((2, 4), np.float32)
            x[:, column] = 1
            found.extend(client.ask(x).names == [NAMES[column]] * 2 for _ in range(50))

        threads = [threading.Thread(target=work, args=(column,)) for column in (0, 1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 150


def outside(program: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``program`` where only the client's file and the standard library can be imported."""
    shutil.copy(CLIENT, folder)
    program = f"import sys; sys.path.append({str(folder)!r})\n{program}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_an_application_without_numpy_asks_and_feeds(tmp_path: Path) -> None:
    """Through a path that is longer than a socket's name may be, as another process."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    program = """
import json
from edgefold_client import *
with Client(sys.argv[1]) as model:
    answer = model.ask(json.loads(sys.argv[2]))
print(json.dumps(answer))
print(add_samples(sys.argv[3], json.loads(sys.argv[2]), [0, 1, 2], dtype="float32"))
try:
    model.ask(complex(1))
except WrongSamplesError as error:
    print(error)
assert "numpy" not in sys.modules
"""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "lib").mkdir()
    with running(Process(tmp_path, socket=deep / "inference.sock")) as process:
        process.load(2)
        x = json.dumps(X.tolist())
        done = outside(program, process.socket, x, tmp_path / "inbox", folder=tmp_path / "lib")
        assert done.returncode == 0, done.stderr
        answer, file, refusal = done.stdout.splitlines()
        assert json.loads(answer) == as_lists(Client(process.socket).ask(X))
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["x"], X)
    assert "complex needs numpy, which is not installed; give nested lists" in refusal


@pytest.mark.slow
def test_a_bundle_of_the_authors_tools_answers_with_its_class_names(tmp_path: Path) -> None:
    from tools.author.bundle.bundle_directory import write_bundle
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.data.datasets import load_dataset

    data = load_dataset("digits")
    write_bundle(create_task("digits", data, TaskOptions(net="mlp")), tmp_path / "bundle")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    spec = decode_spec((tmp_path / "bundle/spec.json").read_bytes())
    spec = msgspec.structs.replace(spec, class_names=names)
    (tmp_path / "spec.json").write_bytes(encode_spec(spec))
    weights = read_weights((tmp_path / "bundle/infer.onnx").read_bytes(), spec.shared)
    values = {name: np.array(value) for name, value in weights.items()}
    (tmp_path / "parameters").write_bytes(write_vector(flatten(values, spec.shared)))
    request: dict[str, object] = {
        "do": "load",
        "infer": str(tmp_path / "bundle/infer.onnx"),
        "spec": str(tmp_path / "spec.json"),
        "parameters": str(tmp_path / "parameters"),
        "release": 1,
    }
    with running(Process(tmp_path)) as process, Client(process.socket) as client:
        assert call(process.control, request, timeout_s=30)[0]["ok"] is True
        x = data.x[:20]
        answer = client.ask(x)
        assert answer.outputs.shape == (20, 10)
        assert answer.names == [names[label] for label in answer.outputs.argmax(-1)]
        assert client.ask(x.tolist()).names == answer.names


@pytest.mark.slow
def test_the_client_is_a_distribution_of_its_own(tmp_path: Path) -> None:
    """Built from a copy, as `pip install ./edge_agent/client` does, into an empty environment."""
    shutil.copytree(
        CLIENT.parent, tmp_path / "client", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = sorted(path.name for path in (tmp_path / "client").iterdir())
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--disable-pip-version-check", tmp_path / "client"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if "No matching distribution found for flit_core" in done.stderr:
        pytest.skip("the build backend cannot be fetched here")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "client").iterdir()) == before
    program = (
        "import edgefold_client, importlib.metadata as m; print(edgefold_client.__file__);"
        "print(m.version('edgefold-client'), m.requires('edgefold-client'))"
    )
    said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    file, about = said.stdout.splitlines()
    assert file == str(next((tmp_path / "venv").glob("lib/*/site-packages/edgefold_client.py")))
    assert about == f"{edgefold_client.__version__} None"
    with running(Process(tmp_path)) as process:
        process.load(1)
        program = f"from edgefold_client import Client; print(Client().ask({X.tolist()}).names)"
        said = subprocess.run(
            [python, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "EDGEFOLD_SOCKET": str(process.socket)},
        )
    assert said.stdout.strip() == str(list(NAMES))


def test_it_is_written_for_the_oldest_python_that_its_distribution_allows() -> None:
    """Annotations are texts, and what is run knows no `int | None`."""
    assert 'requires-python = ">=3.9"' in CLIENT.with_name("pyproject.toml").read_text()
    tree = ast.parse(CLIENT.read_text(), feature_version=(3, 9))
    assert any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
    aliases = [node for node in tree.body if isinstance(node, ast.Assign)]
    assert not [n for a in aliases for n in ast.walk(a) if isinstance(n, ast.BitOr)]


@pytest.mark.parametrize("version", ["3.9", "3.10"])
def test_an_older_python_can_use_it(version: str) -> None:
    program = "import edgefold_client as e; print(e.as_array([[1, 2]]).shape)"
    try:
        done = subprocess.run(
            [f"python{version}", "-c", program],
            capture_output=True,
            text=True,
            check=False,
            cwd=CLIENT.parent,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYENV_VERSION": version},
        )
    except FileNotFoundError:
        pytest.skip(f"no Python {version} here")
    if "pyenv:" in done.stderr:
        pytest.skip(f"no Python {version} here")
    assert done.stdout == "(1, 2)\n", done.stderr


@pytest.mark.parametrize(
    "x",
    [
        pytest.param([np.zeros(3), np.zeros(4)], id="arrays of several lengths"),
        pytest.param(Array(memoryview(X.T), (4, 3), "float32"), id="data in another order"),
        pytest.param(Array("text", (1, 4), "uint8"), id="data that are no bytes"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_array_is_refused_in_our_own_words(x: object) -> None:
    with pytest.raises(WrongSamplesError):
        as_array(x, "float32")


def test_lists_of_numbers_of_numpy_are_numbers() -> None:
    rows = [list(row) for row in X]
    assert as_array(rows, "float32") == as_array(X)
    assert as_array([[row] for row in X]).shape == (3, 1, 4)
