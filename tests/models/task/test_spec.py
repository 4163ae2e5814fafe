"""What bounds everything that is decoded: a spec is sane, or it is refused."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError
from models.task.params import flatten, unflatten
from models.task.spec import (
    MAX_PARAMETERS,
    ArraySpec,
    Role,
    TaskSpec,
    TensorSpec,
    decode_spec,
    encode_spec,
)

TENSORS = (
    TensorSpec("w", (3, 4), Role.SHARED),
    TensorSpec("norm", (4,), Role.PERSONAL),
    TensorSpec("table", (9,), Role.FROZEN),
    TensorSpec("b", (), Role.SHARED),
)
SPEC = TaskSpec(
    format=1,
    task="leaves",
    net="linear",
    tensors=TENSORS,
    x=ArraySpec("float32", (3,)),
    y=ArraySpec("int64", ()),
    classes=4,
    loss="cross_entropy",
    metric="accuracy",
    optimizer="sgd",
    proximal=False,
    infer_input="x",
    infer_output="logits",
    slots=(),
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(encode_spec(SPEC)), **changes}).encode()


def test_a_spec_survives_its_file() -> None:
    assert decode_spec(encode_spec(SPEC)) == SPEC
    assert [tensor.name for tensor in SPEC.shared] == ["w", "b"]
    assert [tensor.name for tensor in SPEC.trainable] == ["w", "norm", "b"]
    assert SPEC.shared_size == 13


def test_names_of_classes_travel_and_a_spec_without_them_has_the_bytes_of_old() -> None:
    named = msgspec.structs.replace(SPEC, class_names=("oak", "ash", "elm", "birch"))
    assert decode_spec(encode_spec(named)) == named
    assert b"class_names" not in encode_spec(SPEC)


def test_norms_that_adapt_have_kinds_and_other_specs_have_the_bytes_of_old() -> None:
    tensors = (
        *TENSORS[:1],
        TensorSpec("scale", (4,), Role.PERSONAL, "norm"),
        TensorSpec("mean", (4,), Role.PERSONAL, "statistic"),
        TensorSpec("variance", (4,), Role.FROZEN, "statistic"),
    )
    spec = msgspec.structs.replace(SPEC, tensors=tensors)
    assert decode_spec(encode_spec(spec)) == spec
    assert [tensor.name for tensor in spec.trainable] == ["w", "scale", "mean"]
    assert [tensor.name for tensor in spec.learned] == ["w", "scale"]
    assert (spec.norms_adapt, SPEC.norms_adapt) == (True, False)
    assert SPEC.learned == SPEC.trainable
    assert b"kind" not in encode_spec(SPEC)


def test_momentum_is_told_where_it_is_not_the_usual_one() -> None:
    assert b"momentum" not in encode_spec(SPEC)
    assert SPEC.local_momentum == 0
    old = msgspec.structs.replace(SPEC, slots=("momentum/w", "momentum/b"))
    assert old.local_momentum == 0.9
    other = msgspec.structs.replace(old, momentum=0.5)
    assert decode_spec(encode_spec(other)).local_momentum == 0.5
    adam = msgspec.structs.replace(SPEC, slots=("adam_m/w", "adam_v/w", "adam_step"))
    assert adam.local_momentum == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff" * 9,
        b"[" * 100_000,
        changed(format=2),
        changed(task="../etc"),
        changed(tensors=[{"name": "w", "shape": [2], "role": "shared"}] * 2),
        changed(tensors=[{"name": "w", "shape": [-1], "role": "shared"}]),
        changed(tensors=[{"name": "w", "shape": [1 << 20, 1 << 20], "role": "shared"}]),
        changed(tensors=[{"name": "w", "shape": [2], "role": "secret"}]),
        changed(tensors=[{"name": "w", "shape": [2], "role": "shared", "kind": "bias"}]),
        changed(momentum=-0.1),
        changed(surprise=1),
        changed(class_names=["oak", "ash"]),
        changed(class_names=["oak", "ash", "elm", "oak"]),
        changed(class_names=["oak", "ash", "elm", ""]),
    ],
    ids=lambda data: data[:12].decode(errors="replace"),
)
def test_what_is_no_spec_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(PayloadError, match=r"^spec\.json: "):
        decode_spec(data)


def test_no_spec_is_larger_than_a_board() -> None:
    half = TensorSpec("a", (MAX_PARAMETERS // 2 + 1,), Role.SHARED)
    other = TensorSpec("b", (MAX_PARAMETERS // 2,), Role.SHARED)
    with pytest.raises(PayloadError, match="parameters"):
        decode_spec(changed(tensors=[{"name": t.name, "shape": t.shape, "role": "shared"}
                                     for t in (half, other)]))  # fmt: skip


@given(st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5))
def test_tensors_become_a_vector_and_come_back(shapes: list[list[int]]) -> None:
    order = [TensorSpec(f"t{i}", tuple(shape), Role.SHARED) for i, shape in enumerate(shapes)]
    rng = np.random.default_rng(0)
    tensors = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in order}
    vector = flatten(tensors, order)
    assert vector.dtype == np.float32
    assert vector.shape == (sum(tensor.size for tensor in order),)
    back = unflatten(vector, order)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(PayloadError, match="parameters where"):
        unflatten(np.append(vector, np.float32(0)), order)


def test_a_vector_holds_its_tensors_in_c_order_whatever_their_layout() -> None:
    order = [TensorSpec("a", (2, 3), Role.SHARED)]
    tensor = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert flatten({"a": tensor}, order).tolist() == [0, 1, 2, 3, 4, 5]
    unflatten(vector := np.zeros(6, np.float32), order)["a"][1, 2] = 7
    assert vector[5] == 7  # a view
