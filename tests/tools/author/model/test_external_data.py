"""Weights beside an ONNX file are read, and a file that points elsewhere is refused by name."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from tools import cli
from tools.author.model.given_model import read_given_model

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def model(*, location: str = "m.onnx.data", **claims: str) -> onnx.ModelProto:
    """x [batch, 4] times a weight that lies in ``location``."""
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **claims}.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def written(folder: Path, proto: onnx.ModelProto, data: bytes | None = WEIGHT.tobytes()) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    if data is not None:
        (folder / "m.onnx.data").write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("claims", "data"),
    [
        ({}, WEIGHT.tobytes()),
        ({"offset": "0", "length": "48"}, WEIGHT.tobytes()),
        ({"offset": "4096"}, bytes(4096) + WEIGHT.tobytes() + b"more"),
    ],
)
def test_weights_beside_the_file_are_read(
    tmp_path: Path, claims: dict[str, str], data: bytes
) -> None:
    found = read_given_model(written(tmp_path, model(**claims), data))
    np.testing.assert_array_equal(numpy_helper.to_array(found.graph.initializer[0]), WEIGHT)


@pytest.mark.slow
def test_torch_s_default_export_becomes_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the defaults: two files, for the batch that was shown."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    torch.onnx.export(net.eval(), (torch.zeros(2, 6),), str(tmp_path / "a.onnx"))
    assert (tmp_path / "a.onnx.data").exists()
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=(x[:, 0] > 0).astype(int))
    words = ["--onnx", str(tmp_path / "a.onnx"), "--data", str(tmp_path / "d.npz")]
    assert cli.main(["task", "create", "a", *words, "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    (tmp_path / "a.onnx.data").unlink()
    assert cli.main(["task", "create", "a", *words, "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "a.onnx.data, which is not beside it: copy both files, or export it as one" in said


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (model(location="../../../etc/passwd"), r"'w' .* '../../../etc/passwd': only files in"),
        (model(location="/etc/passwd"), "'/etc/passwd': only files in the folder"),
        (model(location="sub/../../secret"), "only files in the folder"),
        (model(location="..\\secret"), "only files in the folder"),
        (model(location="link"), "a link to /.*secret: only files in the folder"),
        (model(location="folder/secret"), "a link to /.*secret: only files in the folder"),
        (model(location=""), "no file name"),
        (model(location="a\0b"), "no file name"),
        (model(location="absent"), "keeps its weights in absent, which is not beside it"),
        (model(location="pipe"), "is no file"),
        (model(location="."), "is no file|directory"),
        (model(offset="8"), r"has 48 bytes, but weight 'w' .* ends at 56: it is cut off"),
        (model(offset="-8"), "offset '-8'"),
        (model(offset="99999999999999999999"), "offset '9999"),
        (model(length="44"), r"has 44 bytes in m.onnx.data, but its shape \[4, 3\] needs 48"),
        (model(length="٤٨"), "length"),
    ],
)
def test_a_file_that_points_elsewhere_is_refused_by_name(
    tmp_path: Path, proto: onnx.ModelProto, says: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(WEIGHT.tobytes())
    path = written(tmp_path / "model", proto)
    (path.parent / "link").symlink_to(outside / "secret")
    (path.parent / "folder").symlink_to(outside)
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(UsageError, match=says):
        read_given_model(path)


def _negative(tensor: onnx.TensorProto) -> None:
    tensor.dims[0] = -4


def _huge(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = [1 << 20, 1 << 20]


def _strings(tensor: onnx.TensorProto) -> None:
    tensor.data_type = TensorProto.STRING


def _strange(tensor: onnx.TensorProto) -> None:
    tensor.data_type = 99


@pytest.mark.parametrize("damage", [_negative, _huge, _strings, _strange])
def test_a_weight_of_no_possible_size_is_refused(
    tmp_path: Path, damage: Callable[[onnx.TensorProto], None]
) -> None:
    proto = model()
    damage(proto.graph.initializer[0])
    with pytest.raises(UsageError, match=r"weight|weights are more than"):
        read_given_model(written(tmp_path, proto))
