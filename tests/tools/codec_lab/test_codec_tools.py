"""`edgefold inspect` and `edgefold compress`, and the peers of `edgefold bench codec`."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.codec.budget import Budget
from models.codec.feedback import history_digest
from models.codec.payload import compress, decompress, to_npz
from models.codec.transform.frame import draft_frame, prepare
from models.protocol.manifest import CodecPlan
from models.protocol.npz import write_vector
from models.protocol.update import Extras, UpdateHeader, encode_update
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec
from tools.cli import main
from tools.codec_lab.codec_bounds import bound_report, scalar_bytes
from tools.codec_lab.codec_inertial import ACTIVITIES, SAMPLES, inertial_windows
from tools.codec_lab.codec_peers import PEERS, WITHIN
from tools.codec_lab.codec_picture import draw

TENSORS = (TensorSpec("w", (40, 200), Role.SHARED), TensorSpec("b", (40,), Role.SHARED))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    task = TaskSpec(
        format=1,
        task="tiny",
        net="mlp",
        tensors=TENSORS,
        x=ArraySpec("float32", (200,)),
        y=ArraySpec("int64", ()),
        classes=40,
        loss="cross_entropy",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="logits",
        slots=(),
    )
    path = tmp_path / "spec.json"
    path.write_bytes(encode_spec(task))
    return path


def delta() -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 200))
    return np.concatenate([matrix.reshape(-1), rng.normal(size=40)]).astype(np.float32)


@pytest.mark.parametrize("plan", [Budget(nmse=0.1), CodecPlan(method="coreset")])
def test_inspect_tells_form_rank_and_error_of_each_tensor(plan, spec, tmp_path, capsys) -> None:
    payload = compress(delta(), TENSORS, plan)
    (tmp_path / "payload.npz").write_bytes(to_npz(payload))
    np.save(tmp_path / "wanted.npy", delta())
    command = ["inspect", str(tmp_path / "payload.npz"), "--spec", str(spec)]
    command += ["--wanted", str(tmp_path / "wanted.npy"), "--onnx", str(tmp_path / "patch.onnx")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weight = found["tensors"][0]
    missed = np.square(delta() - decompress(payload, TENSORS))[:8000].sum()
    assert weight["nmse"] == pytest.approx(missed / np.square(delta()[:8000]).sum(), abs=1e-4)
    assert found["frame_bytes"] == len(payload)
    if isinstance(plan, Budget):
        assert (weight["form"], weight["rank"]) == ("low rank", 2)
    else:
        assert len(found["centers"]) == 16
    onnx.checker.check_model(onnx.load(tmp_path / "patch.onnx"))
    assert main(command) == 0
    assert "40x200" in capsys.readouterr().out


def test_inspect_says_in_one_line_what_is_wrong(spec, tmp_path, capsys) -> None:
    (tmp_path / "bad").write_bytes(b"\xe2 this is not a payload")
    assert main(["inspect", str(tmp_path / "bad"), "--spec", str(spec)]) != 0
    assert main(["inspect", str(tmp_path / "missing"), "--spec", str(spec)]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "payload" in lines[0]


def test_inspect_reads_an_update_in_the_memory_of_its_device(spec, tmp_path, capsys) -> None:
    history = delta()[::-1].copy()
    payload = compress(delta(), TENSORS, Budget(nmse=0.1), context=history)
    header = UpdateHeader(
        task="birds",
        base=3,
        samples=64,
        steps=24,
        loss_first=1.0,
        loss_last=0.5,
        accuracy=None,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        extras=Extras(memory=history_digest(history)),
    )
    (tmp_path / "update").write_bytes(encode_update(header, payload))
    (tmp_path / "history-3.npz").write_bytes(write_vector(history, "history"))
    command = ["inspect", str(tmp_path / "update"), "--spec", str(spec)]
    assert main(command) != 0
    (line,) = capsys.readouterr().err.splitlines()
    named = f"{history_digest(history):08x}"
    assert f"made in context {named}" in line
    assert "--context" in line
    assert main([*command, "--context", str(tmp_path / "history-3.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["context"] == named
    assert found["update"]["extras"] == {"memory": history_digest(history)}, "what it says, alone"


def classifier(path: Path) -> np.ndarray:
    """Write a linear classifier of 12 classes; return its weights."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(100, 12)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 12])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return weight


def test_compress_keeps_a_model_working_in_a_tenth_of_its_bytes(tmp_path, capsys) -> None:
    weight = classifier(tmp_path / "model.onnx")
    x = np.random.default_rng(1).normal(size=(400, 100)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x @ weight).argmax(axis=1))
    paths = {name: str(tmp_path / name) for name in ("out.npz", "back.onnx", "small.onnx")}
    code = main(
        [
            "compress",
            str(tmp_path / "model.onnx"),
            "--reduction",
            "0.9",
            "--out",
            paths["out.npz"],
            "--restored",
            paths["back.onnx"],
            "--compact",
            paths["small.onnx"],
            "--data",
            str(tmp_path / "data.npz"),
            "--report",
            str(tmp_path / "report.json"),
        ]
    )
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["payload_bytes"] <= 0.1 * report["dense_bytes"]
    assert report["accuracy_before"] == 1
    assert report["accuracy_after"] > 0.75
    assert report["accuracy_compact"] > 0.85
    capsys.readouterr()


def test_compress_refuses_what_is_no_model_in_one_line(tmp_path, capsys) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    assert main(["compress", str(tmp_path / "bad.onnx")]) == 2
    classifier(tmp_path / "model.onnx")
    assert main(["compress", str(tmp_path / "model.onnx"), "--reduction", "7"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_gives_bytes_and_an_error(peer: str) -> None:
    points = list(PEERS[peer](delta()))
    assert points
    assert all(point.bytes > 0 and point.nmse >= 0 for point in points)


@pytest.mark.parametrize("peer", WITHIN)
def test_every_peer_keeps_a_limit_of_bytes_and_gets_closer_with_more(peer: str) -> None:
    wanted = delta()
    energy = np.square(wanted).sum()
    missed = []
    for most in (200, 600, 1800):
        found = WITHIN[peer](wanted, most)
        assert found.size <= most
        missed.append(np.square(wanted - found.delta).sum() / energy)
    assert missed[-1] < missed[0]
    assert max(missed) <= 1
    assert not WITHIN[peer](wanted, 3).delta.any()


def test_the_bound_report_has_each_group_and_adds_up() -> None:
    wanted = delta()
    found = bound_report(wanted, TENSORS, times=0.5)
    groups = {group["tensors"][0]: group for group in found["groups"]}
    assert groups["w"]["form"] == "low rank"
    assert groups["w"]["rank"] == 2
    total = sum(group["ideal_bytes"] for group in found["groups"])
    assert total == pytest.approx(found["ideal_bytes"], abs=1)
    assert abs(found["bytes"] - found["ideal_bytes"]) < 16 + 0.03 * found["bytes"]
    step = 0.5 * np.sqrt(np.square(wanted).mean())
    frame = draft_frame(prepare(wanted, TENSORS), step).finish()
    assert len(frame) == found["bytes"]
    missed = np.square(wanted - decompress(frame, TENSORS))[:8000].sum()
    assert groups["w"]["nmse"] == pytest.approx(missed / np.square(wanted[:8000]).sum(), abs=1e-4)
    assert groups["w"]["scalar_bytes"] > 3 * groups["w"]["ideal_bytes"]


def test_the_scalar_bound_lies_between_shannon_and_the_known_loss_of_scalar_quantizers() -> None:
    """A Gaussian's rate is log2(1/D)/2; uniform quantizers lose at most 0.255 bits to that."""
    values = np.random.default_rng(0).normal(size=50_000)
    for nmse in (0.01, 0.1, 0.5):
        shannon = 0.5 * np.log2(1 / nmse) * values.size / 8
        assert shannon < scalar_bytes(values, nmse) < shannon + 0.27 * values.size / 8


def test_inertial_windows_are_alike_for_a_user_and_differ_between_users() -> None:
    windows = inertial_windows(6, 100, seed=0)
    assert windows.x.shape == (600, 9, SAMPLES)
    assert np.array_equal(windows.x, inertial_windows(6, 100, seed=0).x)
    gravity = windows.x[:, :3].mean(axis=2)
    np.testing.assert_allclose(np.linalg.norm(gravity, axis=1), 1, atol=0.35)
    standing = windows.y == ACTIVITIES.index("standing")
    means = [gravity[standing & (windows.user == user)].mean(axis=0) for user in range(6)]
    within = np.mean(
        [gravity[standing & (windows.user == user)].std(axis=0).mean() for user in range(6)]
    )
    assert np.std(means, axis=0).mean() > 2 * within
    moving = windows.x[:, 6:].std(axis=2).mean(axis=1)
    assert moving[windows.y < 3].min() > moving[windows.y >= 3].max()


@pytest.mark.slow
def test_the_picture_has_a_panel_for_each_set_and_each_scenario(tmp_path) -> None:
    curve = [[100, 0.5], [200, 0.2]]
    loop = {"scenario": "digits_e1", "bytes": 200, "rounds": 3}
    methods = {"float32": {"accuracy": [0.9]}, "edgefold": {"accuracy": [0.8, 0.9]}}
    one_set = {"methods": {"edgefold": {"curve": curve}, "STC": {"curve": curve[:1]}}}
    sizes = []
    for sets, loops in ((1, 0), (1, 1)):
        report = {
            "sets": {"digits_e1_r01": one_set} if sets else {},
            "learning": [loop | {"methods": methods}] * loops,
        }
        draw(report, tmp_path / "picture.png")
        content = (tmp_path / "picture.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(content[16:20], "big"))
    assert sizes[1] == 2 * sizes[0]
