"""The inference process: swaps models without dropping a request, and survives its clients."""

import contextlib
import io
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_agent.client.edgefold_client import MAX_BODY
from edge_agent.inference.inference_client import Connection, call
from edge_agent.inference.inference_engine import SLICE, Engine
from edge_agent.inference.inference_process import INFERENCE
from edge_agent.inference.sample_array import parse_samples
from models.errors import PayloadError, TransientError, UsageError
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec

SPEC = TaskSpec(
    format=1,
    task="tiny",
    net="linear",
    tensors=(
        TensorSpec("w", (3, 2), Role.SHARED),
        TensorSpec("b", (2,), Role.PERSONAL),
    ),
    x=ArraySpec("float32", (3,)),
    y=ArraySpec("int64", ()),
    classes=2,
    loss="cross_entropy",
    metric="accuracy",
    optimizer="sgd",
    proximal=False,
    infer_input="x",
    infer_output="logits",
    slots=(),
)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_values(path: Path, name: str, values: object) -> str:
    np.savez(path, **{name: np.asarray(values, np.float32)})
    return str(path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """x @ w + b, with weights of zero in the file: what a release overrides is visible."""
    weights = [
        numpy_helper.from_array(np.zeros((3, 2), np.float32), "w"),
        numpy_helper.from_array(np.zeros(2, np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "infer.onnx")
    (tmp_path / "spec.json").write_bytes(encode_spec(SPEC))
    return tmp_path


def load_request(bundle: Path, release: int, **other: object) -> dict[str, object]:
    """Weights of all ``release``: so the answer itself says which release gave it."""
    values = write_values(bundle / f"{release}.npz", "parameters", np.full(6, release))
    return {
        "do": "load",
        "infer": str(bundle / "infer.onnx"),
        "spec": str(bundle / "spec.json"),
        "parameters": values,
        "release": release,
    } | other


def ask(engine: Engine, request: object, body: bytes = b"") -> tuple[dict[str, object], bytes]:
    answer = engine.answer(json.dumps(request).encode(), body)
    return answer.head, answer.body


def test_answers_with_the_parameters_of_the_release_and_the_devices_own(bundle: Path) -> None:
    engine = Engine()
    personal = write_values(bundle / "personal.npz", "personal", [10, 20])
    assert ask(engine, load_request(bundle, 3, personal=personal))[0] == {"ok": True, "release": 3}
    head, body = ask(engine, {"do": "infer"}, npy(X))
    assert head == {"ok": True, "release": 3}
    expected = X @ np.full((3, 2), 3.0) + [10, 20]
    np.testing.assert_allclose(np.load(io.BytesIO(body)), expected)


def test_a_release_that_is_only_tried_does_not_answer(bundle: Path) -> None:
    engine = Engine()
    ask(engine, load_request(bundle, 1, serves="tuned"))
    tried = load_request(bundle, 2, is_trial=True)
    assert ask(engine, tried)[0] == {"ok": True, "release": 2}
    head, _ = ask(engine, {"do": "ping"})
    assert (head["release"], head["serves"]) == (1, "tuned")
    broken = load_request(bundle, 2, is_trial=True, infer=str(bundle / "nowhere.onnx"))
    assert ask(engine, broken)[0]["ok"] is False


@pytest.mark.parametrize("what", ["personal", "parameters"])
def test_a_file_of_this_devices_own_that_is_gone_is_no_trouble_that_passes(
    bundle: Path, what: str
) -> None:
    """Nobody brings it back: whoever asks must do without, not wait."""
    load = load_request(bundle, 3, serves="tuned") | {what: str(bundle / "gone.npz")}
    head, _ = ask(Engine(), load)
    assert "gone.npz: No such file" in str(head["error"])
    assert "transient" not in head
    released = load_request(bundle, 3) | {"parameters": str(bundle / "gone.npz")}
    assert ask(Engine(), released)[0]["transient"] is True


def test_many_samples_are_answered_in_order_whatever_the_slices(bundle: Path) -> None:
    engine = Engine()
    ask(engine, load_request(bundle, 1))
    x = np.random.default_rng(0).normal(size=(2 * SLICE + 5, 3)).astype(np.float32)
    _, body = ask(engine, {"do": "infer"}, npy(x))
    np.testing.assert_allclose(np.load(io.BytesIO(body))[:, 0], x.sum(1), rtol=1e-5, atol=1e-5)


def test_without_a_model_the_answer_says_so() -> None:
    head, _ = ask(Engine(), {"do": "infer"}, npy(X))
    said = {"ok": False, "error": "no release is installed yet", "transient": True, "release": 0}
    assert head == said
    assert ask(Engine(), {"do": "describe"})[0] == said
    assert ask(Engine(), {"do": "ping"})[0]["release"] == 0


def _not_finite(bundle: Path) -> dict[str, object]:
    values = write_values(bundle / "nan.npz", "parameters", [np.nan] * 6)
    return load_request(bundle, 2, parameters=values)


def _overflows(bundle: Path) -> dict[str, object]:
    """Finite values whose answer to a zero sample is not: only the self-test can see it."""
    model = onnx.load(bundle / "infer.onnx")
    model.graph.node.insert(0, helper.make_node("Reciprocal", ["x"], ["inverse"]))
    model.graph.node[1].input[0] = "inverse"
    onnx.save(model, bundle / "overflow.onnx")
    return load_request(bundle, 2, infer=str(bundle / "overflow.onnx"))


def _other_size(bundle: Path) -> dict[str, object]:
    values = write_values(bundle / "short.npz", "parameters", [1.0] * 5)
    return load_request(bundle, 2, parameters=values)


def _other_classes(bundle: Path) -> dict[str, object]:
    (bundle / "other.json").write_bytes(encode_spec(msgspec.structs.replace(SPEC, classes=3)))
    return load_request(bundle, 2, spec=str(bundle / "other.json"))


def _no_model(bundle: Path) -> dict[str, object]:
    (bundle / "bad.onnx").write_bytes(b"\x08\x0agarbage")
    return load_request(bundle, 2, infer=str(bundle / "bad.onnx"))


def _other_shape(bundle: Path) -> dict[str, object]:
    """As many parameters as the model has, in another shape."""
    tensors = (TensorSpec("w", (2, 3), Role.SHARED), SPEC.tensors[1])
    spec = msgspec.structs.replace(SPEC, tensors=tensors)
    (bundle / "turned.json").write_bytes(encode_spec(spec))
    return load_request(bundle, 2, spec=str(bundle / "turned.json"))


def _missing_file(bundle: Path) -> dict[str, object]:
    return load_request(bundle, 2, infer=str(bundle / "nowhere.onnx"))


@pytest.mark.parametrize(
    "broken",
    [_not_finite, _overflows, _other_size, _other_classes, _no_model, _other_shape, _missing_file],
)
def test_a_release_that_fails_its_self_test_leaves_the_old_one_answering(
    bundle: Path, broken: object
) -> None:
    engine = Engine()
    ask(engine, load_request(bundle, 1))
    head, _ = ask(engine, broken(bundle))  # type: ignore[operator]
    assert head["ok"] is False
    assert str(head["error"])
    head, body = ask(engine, {"do": "infer"}, npy(X))
    assert head == {"ok": True, "release": 1}
    np.testing.assert_allclose(np.load(io.BytesIO(body)), X @ np.ones((3, 2)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not an .npy array"),
        (b"PK\x03\x04" * 10, "not an .npy array"),
        (npy(X.astype(np.float64)), "dtype <f8"),
        (npy(X.astype(">f4")), "dtype >f4"),
        (npy(X[0]), "shape (3,)"),
        (npy(X[:0]), "shape (0, 3)"),
        (npy(np.zeros((2, 4), np.float32)), "shape (2, 4)"),
        (npy(np.zeros((2, 3), np.float32, order="F")), "Fortran"),
        (npy(X)[:-1], "with 23 bytes"),
        (npy(np.array([None])), "header is damaged"),
        (npy(X).replace(b"(2, 3)", b"(999999999999, 3)"), "bytes of data"),
    ],
)
def test_samples_that_do_not_fit_the_task_are_refused_with_what_was_expected(
    bundle: Path, body: bytes, said: str
) -> None:
    engine = Engine()
    ask(engine, load_request(bundle, 1))
    head, _ = ask(engine, {"do": "infer"}, body)
    assert head["ok"] is False
    assert said in str(head["error"])


@given(st.binary(max_size=300), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_samples_or_a_payload_error(noise: bytes, at: int) -> None:
    whole = npy(X)
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        with contextlib.suppress(PayloadError):
            assert parse_samples(data, SPEC).shape[1:] == (3,)


def test_who_may_only_ask_loads_no_model_of_their_own(bundle: Path) -> None:
    """They would choose what everybody is answered, and learn which files there are."""
    engine = Engine()
    ask(engine, load_request(bundle, 1))
    for request in (load_request(bundle, 2), load_request(bundle, 2, spec="/etc/shadow")):
        answer = engine.answer(json.dumps(request).encode(), b"", may_load=False)
        assert answer.head == {
            "ok": False,
            "error": "only the agent of this device loads releases",
        }
    assert ask(engine, {"do": "ping"})[0]["release"] == 1


def test_a_description_says_what_a_model_takes_and_gives(bundle: Path) -> None:
    named = msgspec.structs.replace(SPEC, class_names=("no", "yes"))
    (bundle / "named.json").write_bytes(encode_spec(named))
    engine = Engine()
    ask(engine, load_request(bundle, 1, spec=str(bundle / "named.json")))
    head, body = ask(engine, {"do": "describe"})
    assert head == {"ok": True, "release": 1}
    facts = json.loads(body)
    assert facts.pop("at_once") * 4 * 3 <= MAX_BODY
    assert facts == {
        "task": "tiny",
        "dtype": "float32",
        "shape": [3],
        "loss": "cross_entropy",
        "metric": "accuracy",
        "classes": 2,
        "class_names": ["no", "yes"],
    }


@pytest.mark.parametrize(
    "request_",
    [{}, [], 5, {"do": "explode"}, {"do": "load"}, {"do": "ping", "more": 1}, {"do": None}],
)
def test_requests_of_no_kind_are_answered_with_an_error(request_: object) -> None:
    head, _ = ask(Engine(), request_)
    assert head["ok"] is False


# --- the process ---------------------------------------------------------------------------------


@contextlib.contextmanager
def running(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", INFERENCE, str(path)])
    try:
        await_answer(path)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def await_answer(path: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            call(path, {"do": "ping"}, timeout_s=10)
            return
        except TransientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.slow
def test_several_clients_lose_no_request_while_releases_are_swapped(bundle: Path) -> None:
    """Every request is answered, by one whole release, and releases only go up."""
    # A directory deeper than a socket's name may be long, as state directories are.
    deep = bundle / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    path = deep / "inference.sock"
    seen: list[list[float]] = [[] for _ in range(4)]
    with running(path) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        call(path, load_request(bundle, 1), timeout_s=10)
        over = threading.Event()

        def client(answers: list[float]) -> None:
            with Connection(path, timeout_s=10) as connection:
                while not over.is_set():
                    head, body = connection.call({"do": "infer"}, npy(X))
                    output = np.load(io.BytesIO(body))
                    np.testing.assert_allclose(output, X @ np.full((3, 2), head["release"]))
                    answers.append(float(output[0, 0] / 3))

        threads = [threading.Thread(target=client, args=(answers,)) for answers in seen]
        for thread in threads:
            thread.start()
        for release in range(2, 12):
            assert call(path, load_request(bundle, release), timeout_s=10)[0]["ok"] is True
            assert call(path, _no_model(bundle), timeout_s=10)[0]["ok"] is False
        over.set()
        for thread in threads:
            thread.join(20)
        head, _ = call(path, {"do": "ping"}, timeout_s=10)
        assert head["release"] == 11
        assert head["answered"] == sum(map(len, seen))
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()
    assert all(answers == sorted(answers) and answers for answers in seen)


@pytest.mark.slow
def test_clients_that_lie_stall_or_vanish_harm_nobody_else(bundle: Path) -> None:
    path = bundle / "inference.sock"
    with running(path) as process:
        call(path, load_request(bundle, 1), timeout_s=10)
        stalled = []
        for data in (
            struct.pack("<II", 1 << 31, 0),  # more than is allowed
            struct.pack("<II", 2, MAX_BODY + 1) + b"{}",
            struct.pack("<II", 16, 0) + b"{",  # stalls within a frame
            b"\x01",
            struct.pack("<II", 4, 0) + b"\xff\xfe\x00\x01",
        ):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.connect(str(path))
            client.sendall(data)
            stalled.append(client)
        with Connection(path, timeout_s=10) as patient:
            assert patient.call({"do": "no"})[0]["ok"] is False
            assert patient.call({"do": "infer"}, npy(X))[0]["ok"] is True
        for client in stalled:
            client.close()
        idle = [Connection(path, timeout_s=10) for _ in range(40)]  # more than have room
        for connection in idle:
            connection.close()
        await_answer(path)
        assert call(path, {"do": "infer"}, npy(X), timeout_s=10)[0]["ok"] is True
        assert process.poll() is None
    with pytest.raises(UsageError, match="fewer samples"):
        call_large(bundle)


def call_large(bundle: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(bundle / "other.sock"))
        listener.listen()
        call(bundle / "other.sock", {"do": "infer"}, bytes(MAX_BODY + 1), timeout_s=5)


@pytest.mark.slow
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "inference.sock"
    program = (
        f"import subprocess, sys, time; command = ['-m', {INFERENCE!r}, {str(path)!r}];"
        "c = subprocess.Popen([sys.executable, *command]);"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    await_answer(path)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    assert select.select([child], [], [], 10)[0], "the inference process outlived its parent"
    os.close(child)


def test_nobody_there_is_a_transient_error(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="no answer from the inference process"):
        call(tmp_path / "nowhere.sock", {"do": "ping"}, timeout_s=1)


def test_a_process_whose_parent_ended_before_it_could_look_ends_too(tmp_path: Path) -> None:
    """getppid() says 1 by then: it would watch over init, and stay for ever."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    process = subprocess.run(
        [sys.executable, "-m", INFERENCE, str(tmp_path / "inference.sock")],
        env={**os.environ, "EDGEFOLD_PARENT": str(gone.pid)},
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
