"""``edgefold task``: bundles that are whole, training that learns, one sentence for bad input."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.errors import PayloadError, UsageError
from models.nets.catalog import NETS, build_net
from models.nets.export import export_net
from models.protocol.npz import write_vector
from models.task.bundle import read_bundle
from models.task.params import flatten
from models.task.spec import Role
from tools import cli
from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import export_model, read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.labeled_data import Dataset

DIGITS = load_dataset("digits")


@pytest.fixture(scope="module")
def digits_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks") / "digits"
    write_bundle(create_task("digits", DIGITS, TaskOptions(net="mlp")), directory)
    return directory


def linear_file(path: Path, *, extra: list[onnx.NodeProto] | None = None, **change: object) -> Path:
    """Write x [batch, 4] -> Gemm -> y [batch, 3] (plus ``extra`` nodes on `h`)."""
    random = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "body.w", "body.b"], ["h" if extra else "y"])]
    graph = helper.make_graph(
        nodes + (extra or []),
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if extra else ["batch", 3])],
        [
            numpy_helper.from_array(random.normal(size=(4, 3)).astype(np.float32), "body.w"),
            numpy_helper.from_array(np.zeros(3, np.float32), "body.b"),
            numpy_helper.from_array(random.normal(size=(3, 3)).astype(np.float32), "head.w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)
    return path


def points(**change: object) -> Dataset:
    x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    base = Dataset("points", x, np.arange(60) % 3, None, np.arange(60) % 5 == 0, False)
    return base._replace(**change)


def test_a_written_bundle_is_read_back_the_same(digits_mlp: Path) -> None:
    bundle = read_bundle(digits_mlp)
    assert sorted(entry.name for entry in digits_mlp.iterdir()) == [
        "infer.onnx",
        "spec.json",
        "train.onnx",
    ]
    for model in (bundle.infer, bundle.train):
        parsed = onnx.load_from_string(model)
        assert (parsed.ir_version, parsed.opset_import[0].version) == (10, 21)
        onnx.checker.check_model(parsed, full_check=True)
    assert (bundle.spec.x.dtype, bundle.spec.x.shape) == ("uint8", (8, 8))
    assert bundle.spec.classes == 10
    assert bundle.spec.shared_size == 17226
    assert len(bundle.train) < 50_000, "no weights inside"
    session = ort.InferenceSession(bundle.infer)
    assert session.run([bundle.spec.infer_output], {"x": DIGITS.x[:3]})[0].shape == (3, 10)


@pytest.mark.slow
def test_a_child_without_torch_learns_the_digits(
    digits_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = tmp_path / "report.json", tmp_path / "trained.onnx"
    words = ["task", "train", str(digits_mlp), "--data", "digits", "--epochs", "8", "--json"]
    assert cli.main([*words, "--report", str(report), "--out", str(out)]) == 0
    facts = json.loads(report.read_text())
    assert facts == json.loads(capsys.readouterr().out)
    assert facts["accuracy_before"] < 0.3
    assert facts["accuracy_after"] > 0.9
    assert facts["steps"] == 8 * 90
    assert facts["ms_per_step"] > 0
    assert 30 < facts["peak_rss_mb"] < 110, "torch alone would have 200"
    rows = DIGITS.test_rows
    logits = ort.InferenceSession(out.read_bytes()).run(None, {"x": DIGITS.x[rows]})[0]
    assert (logits.argmax(axis=1) == DIGITS.y[rows]).mean() == facts["accuracy_after"]


@pytest.mark.slow
@pytest.mark.parametrize("net", ["cnn", "ds_cnn"])
def test_pretraining_is_in_the_bundle(net: str) -> None:
    seen: list[int] = []
    rate = {"cnn": 0.02, "ds_cnn": 0.005}[net]
    options = TaskOptions(net=net, pretrain=5, learning_rate=rate)
    bundle = create_task("a", DIGITS, options, on_epoch=lambda n, _: seen.append(n))
    logits = ort.InferenceSession(bundle.infer).run(None, {"x": DIGITS.x[DIGITS.test_rows]})[0]
    assert (logits.argmax(axis=1) == DIGITS.y[DIGITS.test_rows]).mean() > 0.8
    assert seen == [1, 2, 3, 4, 5]


def test_patterns_give_tensors_their_roles() -> None:
    options = TaskOptions(net="mlp", trainable=("3.*", "5.*"), personal=("5.*",))
    spec = create_task("a", DIGITS, options).spec
    roles = {tensor.name: tensor.role for tensor in spec.tensors}
    assert roles["1.weight"] == Role.FROZEN
    assert roles["3.weight"] == Role.SHARED
    assert roles["5.bias"] == Role.PERSONAL
    assert spec.shared_size == 64 * 128 + 64


def test_an_export_has_the_parameters_of_the_release(tmp_path: Path) -> None:
    bundle = create_task("a", DIGITS, TaskOptions(net="mlp", personal=("5.*",)))
    shared = flatten(read_tensors(bundle), bundle.spec.shared)
    model = export_model(bundle, write_vector(shared * 2))
    tensors = read_tensors(bundle._replace(infer=model))
    original = read_tensors(bundle)
    np.testing.assert_array_equal(tensors["1.weight"], 2 * original["1.weight"])
    np.testing.assert_array_equal(tensors["5.weight"], original["5.weight"])
    write_bundle(bundle, tmp_path / "a")
    (tmp_path / "release.npz").write_bytes(write_vector(shared * 2))
    parts = ["--parameters", str(tmp_path / "release.npz"), "--out", str(tmp_path / "m.onnx")]
    assert cli.main(["task", "export", str(tmp_path / "a"), *parts]) == 0
    assert (tmp_path / "m.onnx").read_bytes() == model
    with pytest.raises(PayloadError):
        export_model(bundle, write_vector(shared[:-1]))


def test_show_lists_tensors_and_their_roles(
    digits_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["task", "show", str(digits_mlp)]) == 0
    text = capsys.readouterr().out
    assert "1.weight" in text
    assert "17,226 trainable" in text
    assert cli.main(["task", "show", str(digits_mlp), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "digits"


def test_an_own_model_keeps_its_names_and_learns_only_its_head(tmp_path: Path) -> None:
    extra = [
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "head.w"], ["y"]),
    ]
    model = linear_file(tmp_path / "m.onnx", extra=extra)
    options = TaskOptions(model=model, trainable=("head.*",), pretrain=20)
    bundle = create_task("own", points(), options)
    before = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    values = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load_from_string(bundle.infer).graph.initializer
    }
    assert bundle.spec.net == "m.onnx"
    assert [tensor.name for tensor in bundle.spec.shared] == ["head.w"]
    np.testing.assert_array_equal(values["body.w"], before)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_numbers_can_be_learned_too(tmp_path: Path, loss: str) -> None:
    target = (points().x[:, :3] > 0).astype(np.float32)
    options = TaskOptions(
        model=linear_file(tmp_path / "m.onnx"), loss=loss, pretrain=60, learning_rate=0.1
    )  # type: ignore[arg-type]
    bundle = create_task("own", points(y=target), options)
    found = ort.InferenceSession(bundle.infer).run(None, {"x": points().x})[0]
    assert ((found > 0.5) == (target > 0.5)).mean() > 0.9
    if loss == "bce":
        assert ((found >= 0) & (found <= 1)).all(), "docs/bundle.md promises probabilities"


def test_the_input_conversion_is_part_of_the_model() -> None:
    """(x * scale - mean) / std, from the user's own bytes."""
    options = TaskOptions(net="mlp", scale=0.5, mean=(3.0,), std=(2.0,))
    bundle = create_task("a", DIGITS, options)
    weights = read_tensors(bundle)
    x = ((DIGITS.x[:4].astype(np.float32) * 0.5 - 3) / 2).reshape(4, -1)
    h = np.maximum(x @ weights["1.weight"].T + weights["1.bias"], 0)
    h = np.maximum(h @ weights["3.weight"].T + weights["3.bias"], 0)
    expected = h @ weights["5.weight"].T + weights["5.bias"]
    found = ort.InferenceSession(bundle.infer).run(None, {"x": DIGITS.x[:4]})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_bundle_is_replaced_and_anything_else_is_not(digits_mlp: Path, tmp_path: Path) -> None:
    bundle = read_bundle(digits_mlp)
    out = tmp_path / "out"
    write_bundle(bundle, out)
    write_bundle(bundle, out)
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds other files \(thesis.tex\)"):
        write_bundle(bundle, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing_half_done(
    digits_mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third fsync fails, as that of a full disk does: no bundle, no rubbish."""
    bundle, calls, fsync = read_bundle(digits_mlp), [0], os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bundle(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("create Bad_Name --net mlp --data digits", "task name 'Bad_Name'"),
        ("create a --net lstm --data digits", "no net 'lstm'; the zoo has mlp"),
        ("create a --net mlp --data nowhere.npz", "no data at nowhere.npz"),
        ("create a --onnx nowhere.onnx --data digits", "no file nowhere.onnx"),
        ("create a --onnx {text} --data digits", "is not an ONNX model"),
        ("create a --onnx {empty} --data digits", "is not an ONNX model"),
        ("create a --net har_cnn --data {vectors}", "har_cnn takes samples of (channels, time)"),
        ("create a --net resnet18 --data {tiny}", "at least 8x8"),
        ("create a --net mlp --data {text}", "not a valid npz file"),
        ("create a --net mlp --data digits --trainable head.*", "--trainable head.*: no such"),
        ("create a --onnx {linear} --data {vectors} --trainable bdoy.*", "did you mean 'body.w'?"),
        ("create a --onnx {linear} --data {vectors} --trainable body.W", "did you mean 'body.w'?"),
        ("create a --onnx {linear} --data {pairs}", "mse needs as many"),
        ("create a --onnx {linear} --data {vectors} --transpose 1", "has the axes 0, each"),
        ("create a --net mlp --data {vectors} --transpose 0 1", "has the axes 0, each"),
        ("create a --onnx {directory} --data {vectors}", "is a directory: give the .onnx file"),
        ("create a --net mlp --data digits --personal *", "all tensors would be personal"),
        ("create a --net mlp --data digits --loss bce", "bce needs y between 0 and 1"),
        ("create a --net mlp --data digits --classes 4", "labels up to 9, the model knows 4"),
        ("create a --net mlp --data {vectors} --resize", "samples of (4,) are not images"),
        ("create a --onnx {linear} --data digits", "[8, 8]"),
        ("create a --onnx {loop} --data {vectors}", "If"),
        ("create a --onnx {unknown} --data {vectors}", "Det"),
        ("create a --onnx {linear} --data {many}", "labels up to 6, the model knows 3 classes"),
        ("create a --onnx {linear} --data {vectors} --output z", "z"),
        ("create a --net har_cnn --data {windows}", "save np.swapaxes(x, 1, 2)"),
        ("create a --net cnn --data {deep}", "save np.moveaxis(x, -1, 1)"),
        ("create a --net cnn --data {vectors}", "images, not (4,)"),
        ("create a --net mlp --data {vectors} --classes a,b", "names 2 (a, b), and there are 3"),
        ("create a --onnx {linear} --data {vectors} --classes a,b,c,d", "names 4 (a, b, c, d)"),
        ("create a --net mlp --data {vectors} --classes a,,c", "the name of class 1 is empty"),
        (
            f"create a --net mlp --data {{vectors}} --classes a,{'b' * 300}",
            "class 1 has 300 letters",
        ),
        (
            "create a --net mlp --data {vectors} --classes a,Ku\u0308che,K\u00fcche",
            "class 1 and class 2",
        ),
        ("create a --net mlp --data {vectors} --classes a,b,a", "class 0 and class 2 are both 'a'"),
        ("create a --net mlp --data {vectors} --classes 0", "--classes 0: at least 1"),
        ("create a --onnx {linear} --data {vectors} --classes 3", "--classes NAME,NAME"),
        ("create a --net mlp --data {few_names}", "classes names 2 (a, b), and there are 3"),
        ("create a --net mlp --data {numbered}", "classes must be a list of strings"),
        ("create a --net mlp --data {targets}", "only labels have class names"),
    ],
)
def test_bad_input_to_create_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "text").write_text("not a model, not data\n")
    (work / "empty").write_bytes(b"")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 3])],
    )
    condition = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))
    )
    named = {"x": np.ones((9, 4), np.float32), "y": np.arange(9) % 3}
    files = {
        "text": work / "text",
        "empty": work / "empty",
        "linear": linear_file(work / "linear.onnx"),
        "loop": linear_file(
            work / "loop.onnx",
            extra=[
                condition,
                helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
            ],
        ),
        "unknown": linear_file(
            work / "unknown.onnx", extra=[helper.make_node("Det", ["h"], ["y"])]
        ),
        "vectors": npz(work / "v.npz", x=np.ones((9, 4), np.float32), y=np.arange(9) % 3),
        "many": npz(work / "m.npz", x=np.ones((9, 4), np.float32), y=np.arange(9) % 7),
        "tiny": npz(work / "t.npz", x=np.ones((9, 3, 3), np.uint8), y=np.arange(9) % 3),
        "windows": npz(work / "w.npz", x=np.ones((9, 64, 3), np.float32), y=np.arange(9) % 3),
        "pairs": npz(work / "p.npz", x=np.ones((9, 4), np.float32), y=np.ones((9, 2)) / 3),
        "directory": work,
        "deep": npz(work / "d.npz", x=np.ones((9, 20, 20, 2), np.float32), y=np.arange(9) % 3),
        "few_names": npz(work / "f.npz", **named, classes=np.array(["a", "b"])),
        "numbered": npz(work / "n.npz", **named, classes=np.arange(3)),
        "targets": npz(work / "y.npz", **(named | {"y": np.ones(9) / 2}), classes=np.array(["a"])),
    }
    line = ["task", *(word.format(**files) for word in words.split())]
    assert cli.main([*line, "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert says in text
    assert text.startswith("edgefold: ")
    assert text.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["work"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"x": np.ones((9, 8, 9), np.uint8), "y": np.arange(9)}, "x has shape (9, 8, 9)"),
        ({"x": np.ones((9, 8, 8), np.float32), "y": np.arange(9)}, "x is float32"),
        ({"x": np.ones((9, 8, 8), np.uint8), "y": np.arange(9) + 5}, "label 10 in row 5"),
        (
            {"x": np.ones((9, 8, 8), np.uint8), "y": np.ones(9) / 2},
            "label 0.5 in row 0 is not a whole",
        ),
    ],
)
def test_data_of_another_task_are_refused_before_training(
    digits_mlp: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: dict[str, np.ndarray],
    says: str,
) -> None:
    path = npz(tmp_path / "other.npz", **data)
    assert cli.main(["task", "train", str(digits_mlp), "--data", path, "--epochs", "1"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_divergence_in_the_child_is_one_sentence_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = np.zeros((60, 3), np.float32)
    options = TaskOptions(model=linear_file(tmp_path / "m.onnx"))
    write_bundle(create_task("own", points(y=target), options), tmp_path / "own")
    data = npz(tmp_path / "d.npz", x=points().x, y=target)
    words = ["--data", data, "--epochs", "99", "--lr", "100"]
    assert cli.main(["task", "train", str(tmp_path / "own"), *words]) == 2
    assert "lower the learning rate" in capsys.readouterr().err


def test_create_says_what_it_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    names = np.array(["open", "closed", "blocked"])
    data = npz(tmp_path / "gates.npz", x=x, y=np.arange(100) % 3, classes=names)
    words = ["task", "create", "gates", "--net", "cnn", "--data", data, "--personal", "9.*"]
    assert cli.main([*words, "--out", str(tmp_path / "gates"), "--pretrain", "1"]) == 0
    text = capsys.readouterr().out
    for said in (
        "80 for training, 20 for test (a fifth",
        "uint8 [8, 8, 3]: channels put first, [3, 8, 8], made float32, divided by 255",
        "3 classes: 0 open (34), 1 closed (33), 2 blocked (33)",
        "52,288 parameters shared, 387 personal",
        "pretrained: accuracy ",
        "next: edgefold task train",
    ):
        assert said in text
    assert read_bundle(tmp_path / "gates").spec.class_names == ("open", "closed", "blocked")
    again = ["--out", str(tmp_path / "other"), "--classes", "a,b,c", "--json"]
    assert cli.main([*words, *again]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train_rows"], found["personal"]) == (80, 387)
    assert found["classes"][1] == {"label": 1, "name": "b", "samples": 33}
    assert read_bundle(tmp_path / "other").spec.class_names == ("a", "b", "c"), "the option wins"


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, 2, 5] * 20), "no sample of classes 1, 3, 4"),
        (np.arange(60) % 3, "the classes have no names"),
        (np.array(["1", "2", "10"] * 20), "class 0 is called 1: in the y of other files integers"),
        (np.eye(4, dtype=int)[np.arange(60) % 3], "no sample of class 3"),
    ],
)
def test_what_an_author_may_not_know_of_the_labels_is_said(
    labels: np.ndarray, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = npz(tmp_path / "d.npz", x=points().x, y=labels)
    words = ["task", "create", "a", "--net", "mlp", "--data", data, "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ((8, np.uint8), np.int64, "nothing in it is above 8: if 8 is its largest value, --input"),
        ((200, np.uint8), np.int64, ""),
    ],
)
def test_what_an_author_may_not_know_of_the_numbers_is_said(
    x: tuple[int, type], y: type, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.linspace(0, x[0], 60 * 4).reshape(60, 4).astype(x[1])
    data = npz(tmp_path / "d.npz", x=values, y=(np.arange(60) % 3).astype(y))
    words = ["task", "create", "a", "--net", "mlp", "--data", data, "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert says in told
    assert says or "nothing in it is above" not in told


def test_another_bundle_is_kept_beside_where_nobody_can_be_asked_and_the_same_one_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a script that makes one bundle after the other; --force keeps nothing."""
    out, aside = tmp_path / "a", tmp_path / "a.replaced"
    words = ["task", "create", "a", "--net", "mlp", "--data", "digits", "--out", str(out)]

    def stored(directory: Path) -> bytes:
        return (directory / "infer.onnx").read_bytes()

    assert cli.main(words) == 0
    first, written = stored(out), (out / "infer.onnx").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert (out / "infer.onnx").stat().st_mtime_ns == written
    assert "was there already, the same" in capsys.readouterr().out
    assert not aside.exists()
    assert cli.main([*words, "--seed", "1"]) == 0
    assert f"the bundle that was there is now {aside}" in capsys.readouterr().out
    second = stored(out)
    assert (stored(aside), second != first) == (first, True)
    read_bundle(aside)
    assert cli.main([*words, "--seed", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replaced"] == str(aside)
    assert stored(aside) == second
    assert cli.main([*words, "--seed", "3", "--force"]) == 0
    assert stored(aside) == second
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "a.replaced"]


@pytest.mark.parametrize("pretrain", [[], ["--pretrain", "1"]])
def test_what_is_no_bundle_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pretrain: list[str]
) -> None:
    out, aside = tmp_path / "a", tmp_path / "a.replaced"
    words = ["task", "create", "a", "--net", "mlp", "--data", "digits", "--out", str(out)]
    assert cli.main(words) == 0
    before = (out / "infer.onnx").read_bytes()
    aside.mkdir()
    (aside / "thesis.tex").write_text("years of work")
    assert cli.main([*words, "--seed", "1", *pretrain]) == 2
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
    assert (out / "infer.onnx").read_bytes() == before
    assert (aside / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_on_a_terminal_a_person_is_asked(tmp_path: Path, answer: str, code: int) -> None:
    out = tmp_path / "a"
    words = ["task", "create", "a", "--net", "mlp", "--data", "digits", "--out", str(out)]
    assert cli.main(words) == 0
    before = (out / "infer.onnx").read_bytes()
    main, terminal = os.openpty()
    program = [sys.executable, "-m", "tools.cli", *words, "--seed", "1"]
    with subprocess.Popen(program, stdin=terminal, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        os.write(main, answer.encode())
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end has closed
            while data := os.read(main, 4096):
                said += data
        assert child.wait() == code
    os.close(main)
    assert b"holds another bundle (task a, mlp). Replace it? [y/N]" in said
    assert ((out / "infer.onnx").read_bytes() != before) is (code == 0)


@pytest.mark.parametrize(
    ("values", "words", "is_said"),
    [
        (np.arange(60 * 36) % 256, [], True),
        (np.arange(60 * 36) % 256, ["--input-scale", "0.00392"], False),
        (np.arange(60 * 36) % 256, ["--mean", "120"], False),
        (np.arange(60 * 36) % 2, [], False),
        (np.arange(60 * 36) % 256 / 256, [], False),
        (np.arange(60 * 36) % 256 - 128, [], False),
    ],
)
def test_pictures_of_0_to_255_as_floats_are_a_note(
    values: np.ndarray,
    words: list[str],
    is_said: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = values.reshape(60, 6, 6).astype(np.float32)
    data = npz(tmp_path / "d.npz", x=x, y=np.arange(60) % 3)
    line = ["task", "create", "a", "--net", "mlp", "--data", data, "--out", str(tmp_path / "a")]
    assert cli.main([*line, *words]) == 0
    assert ("if the model takes 0 to 1, --input-scale" in capsys.readouterr().out) is is_said


def test_what_was_understood_of_a_model_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers and loss with their reasons; constants that are trained and such as are left."""
    extra = [
        helper.make_node("Mul", ["h", "table"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], name="/softmax"),
        helper.make_node("Add", ["p", "tiny"], ["q"]),  # as people keep a logarithm finite
        helper.make_node("Identity", ["q"], ["y"]),
    ]
    path = linear_file(tmp_path / "m.onnx", extra=extra)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e-7), "tiny"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3), np.float32), "table"))
    for node in model.graph.node:
        node.input[:] = ["centered" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Sub", ["x", "center"], ["centered"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "center"))
    onnx.save(model, path)
    data = npz(tmp_path / "d.npz", x=points().x, y=points().y)
    words = ["task", "create", "a", "--onnx", str(path), "--data", data, "--trainable", "[bt]*"]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "model  answers with probabilities of 3 classes, [3], by Softmax '/softmax'" in told
    assert "left alone: center [4] (it scales or shifts the input, in front of all weights)" in told
    assert "cross_entropy, since y holds labels" in told
    assert "check  both graphs run with 3 and 7 samples at a time; answers as " in told
    assert (
        cli.main([*words, "--json", "--loss", "cross_entropy", "--out", str(tmp_path / "b")]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["answers"].startswith("probabilities of 3 classes")
    assert found["loss_reason"] == "cross_entropy, as --loss says"
    assert found["constants_trained"] == []  # a gain, as layers have
    assert found["checked"][0].startswith("both graphs run")


def test_a_model_that_fails_at_the_door_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence, nothing of onnxruntime's own beside it."""
    extra = [helper.make_node("Log", ["h"], ["y"], name="/log")]
    path = linear_file(tmp_path / "m.onnx", extra=extra)
    data = npz(tmp_path / "d.npz", x=points().x, y=points().y)
    words = ["task", "create", "a", "--onnx", str(path), "--data", data]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 2
    said = capfd.readouterr().err
    assert "first at node '/log' (Log): scale x" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_weights_that_an_exporter_merged_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch's exporter writes two layers that were equal: one tensor and an Identity."""
    extra = [
        helper.make_node("Identity", ["head.w"], ["second.w"]),
        helper.make_node("MatMul", ["h", "head.w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "second.w"], ["y"]),
    ]
    model = linear_file(tmp_path / "m.onnx", extra=extra)
    data = npz(tmp_path / "d.npz", x=points().x, y=points().y)
    words = ["task", "create", "a", "--onnx", str(model), "--data", data]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 0
    assert "head.w is also second.w): they are trained tied" in capsys.readouterr().out
    frozen = [*words, "--trainable", "body.*", "--out", str(tmp_path / "b")]
    assert cli.main(frozen) == 0
    assert "tied" not in capsys.readouterr().out, "nothing of it is trained"


def test_show_begins_with_what_is_trained_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(
        create_task("a", DIGITS, TaskOptions(net="mlp", trainable=("5.*",))), tmp_path / "a"
    )
    assert cli.main(["task", "show", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["5.weight", "5.bias", "and"]
    assert "and 4 frozen tensors of 16,576 values" in lines[4]
    assert cli.main(["task", "show", str(tmp_path / "a"), "--all"]) == 0
    assert "3.weight  frozen" in capsys.readouterr().out


def test_help_names_every_net_of_the_zoo_and_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["task", "create", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in NETS)
    assert "[channels, time]" in text


def test_compress_says_at_once_which_model_takes_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(export_net(build_net("mlp", (1, 8, 8), 10, seed=0), (1, 8, 8)), model)
    out = tmp_path / "small.npz"
    assert cli.main(["compress", str(model), "--data", "digits", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "takes float32 [1, 8, 8], digits has uint8 [8, 8]: use infer.onnx of the" in said
    assert not out.exists()
    assert cli.main(["compress", str(model), "--out", str(tmp_path / "no" / "small.npz")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_a_damaged_bundle_is_one_sentence(
    digits_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = read_bundle(digits_mlp)
    write_bundle(bundle, tmp_path / "b")
    (tmp_path / "b" / "spec.json").write_text("{}")
    assert cli.main(["task", "show", str(tmp_path / "b")]) == 2  # as one that is missing
    assert "spec.json" in capsys.readouterr().err


SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
def test_a_model_from_elsewhere_is_fine_tuned_on_real_data(tmp_path: Path) -> None:
    """VNN-COMP's 256x4 net with input [1, 784, 1], for images of [28, 28]: they are reshaped."""
    data = load_dataset(str(SHARED / "mnist_by_writer.npz"))
    rows = np.random.default_rng(0).permutation(len(data.x))[:3000]
    some = data._replace(x=data.x[rows], y=data.y[rows], user=None, test=data.test[rows])
    options = TaskOptions(model=SHARED / "onnx" / "mnist_fc_256x4.onnx", learning_rate=0.001)
    accuracy = []
    for epochs in (0.0, 2.0):
        bundle = create_task("mnist", some, replace(options, pretrain=epochs))
        session = ort.InferenceSession(bundle.infer)
        logits = session.run(None, {"x": some.x[some.test_rows]})[0]
        accuracy.append((logits.argmax(axis=1) == some.y[some.test_rows]).mean())
    assert accuracy[0] > 0.95
    assert accuracy[1] > accuracy[0] - 0.005


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the models in ../shared/data/onnx")
def test_gray_images_are_resized_for_an_imagenet_model_when_asked(tmp_path: Path) -> None:
    """Resized in the graph as torch does it; without --resize the sizes are refused."""
    model = SHARED / "onnx" / "light_squeezenet.onnx"
    some = points(x=np.random.default_rng(0).integers(0, 255, (60, 16, 16)).astype(np.uint8))
    with pytest.raises(UsageError, match="resize the data"):
        create_task("a", some, TaskOptions(model=model))
    infer = create_task("a", some, TaskOptions(model=model, resize=True)).infer
    found = ort.InferenceSession(infer).run(None, {"x": some.x[:2]})[0]
    images = torch.from_numpy(some.x[:2].astype(np.float32) / 255)[:, None].repeat(1, 3, 1, 1)
    resized = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear")
    original = ort.InferenceSession(onnx.load(model).SerializeToString())
    name = next(i.name for i in original.get_inputs() if len(i.shape) == 4 and i.shape[2] == 224)
    for row in range(2):
        (expected,) = original.run(None, {name: resized[row : row + 1].numpy()})
        np.testing.assert_allclose(found[row], expected.reshape(-1), rtol=1e-3)
