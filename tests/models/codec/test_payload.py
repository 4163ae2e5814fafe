"""The whole codec: round trips, damage, hostile frames, and learning with error feedback."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.codec.budget import Budget
from models.codec.payload import compress, decompress, to_npz
from models.codec.transform import shared_basis
from models.codec.transform.matrices import groups_of
from models.codec.transform.shared_basis import Context, context_digest
from models.errors import PayloadError
from models.protocol.manifest import CodecPlan
from models.protocol.update import context_in
from models.task.spec import Role, TensorSpec
from tools.author.data.built_in_data import read_digits

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=0, max_size=5)


PLANS = st.one_of(
    st.builds(
        CodecPlan,
        keep=st.sampled_from([0.01, 0.5, 1.0]),
        centers=st.integers(2, 256),
        method=st.just("coreset"),
    ),
    st.integers(1, 3000).map(lambda most: Budget(bytes=most)),
    st.sampled_from([1e-4, 0.1, 0.6, 1.0]).map(lambda nmse: Budget(nmse=nmse)),
    st.just(CodecPlan()),
)
EVERY_PLAN = [CodecPlan(method="coreset"), CodecPlan(), Budget(bytes=200)]


def specs(*shapes: tuple[int, ...]) -> list[TensorSpec]:
    return [TensorSpec(f"t{i}", shape, Role.SHARED) for i, shape in enumerate(shapes)]


def delta_of(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=size) * 0.01).astype(np.float32)


@given(SHAPES, st.data())
@settings(max_examples=150, deadline=None)
def test_a_delta_of_any_shapes_and_values_comes_back_close(shapes, data) -> None:
    tensors = specs(*shapes)
    size = sum(tensor.size for tensor in tensors)
    wanted = data.draw(hnp.arrays(np.float32, size, elements=FINITE))
    payload = compress(wanted, tensors, data.draw(PLANS))
    found = decompress(payload, tensors)
    assert found.dtype == np.float32
    assert found.shape == (size,)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(decompress(to_npz(payload), tensors), found)


def test_nothing_learned_costs_a_few_bytes() -> None:
    tensors = specs((300, 1000), (1000,))
    payload = compress(np.zeros(301_000, np.float32), tensors, CodecPlan())
    assert len(payload) <= 4
    assert not decompress(payload, tensors).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_encoder_refuses_what_is_not_finite(bad: float) -> None:
    wanted = delta_of(100)
    wanted[3] = bad
    with pytest.raises(ValueError, match="finite"):
        compress(wanted, specs((100,)), CodecPlan())


def test_the_encoder_refuses_another_length_or_dtype() -> None:
    with pytest.raises(ValueError, match="expected"):
        compress(delta_of(99), specs((100,)), CodecPlan())
    with pytest.raises(ValueError, match="expected"):
        compress(delta_of(100).astype(np.float64), specs((100,)), CodecPlan())


def test_numpy_alone_opens_the_npz_form() -> None:
    payload = compress(delta_of(5000), specs((5000,)), CodecPlan())
    data = to_npz(payload)
    assert len(data) - len(payload) <= 176
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert file["z"].tobytes() == payload


@pytest.mark.parametrize("plan", EVERY_PLAN)
def test_every_truncation_is_refused(plan) -> None:
    tensors = specs((25, 40), (50,))
    payload = compress(delta_of(1050), tensors, plan)
    for whole in (payload, to_npz(payload)):
        for length in range(len(whole)):
            if whole[:length] == b"\xe1":
                continue  # the one byte that says that nothing was learned
            with pytest.raises(PayloadError):
                decompress(whole[:length], tensors)
        with pytest.raises(PayloadError):
            decompress(whole + b"\0", tensors)


PAYLOADS_OF_631 = [compress(delta_of(631), specs((20, 30), (30,), ()), p) for p in EVERY_PLAN]


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_mutated_payloads_give_a_payload_error_or_a_finite_delta(data: st.DataObject) -> None:
    tensors = specs((20, 30), (30,), ())
    payload = PAYLOADS_OF_631[data.draw(st.integers(0, 2))]
    damaged = bytearray(data.draw(st.sampled_from([payload, to_npz(payload)])))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decompress(bytes(damaged), tensors)
    except PayloadError:
        return
    assert found.shape == (631,)
    assert np.isfinite(found).all()


@given(st.binary(max_size=64))
@settings(max_examples=300)
def test_any_bytes_give_a_payload_error_or_a_delta(data: bytes) -> None:
    tensors = specs((7, 9))
    for frame in (data, b"\xe1" + data, b"\xe2\x80\x3a\x88" + data):
        try:
            assert decompress(frame, tensors).shape == (63,)
        except PayloadError:
            continue


def test_a_lying_frame_allocates_no_more_than_the_spec_allows() -> None:
    tensors = specs((10, 10))
    tracemalloc.start()
    for number in (b"\x64", b"\xff\xff\xff\xff\x7f", b"\xff" * 9):
        for rest in (b"\xff" * 50, bytes(50), b"\x01" + bytes(300)):
            with pytest.raises(PayloadError):
                decompress(b"\xe1" + number + rest, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def learn(compressed: CodecPlan | Budget | None, *, feedback: bool = True) -> float:
    """Return the accuracy after 40 rounds of 5 devices with 3 digits each, weighted equally.

    Softmax regression with one hidden layer on scikit-learn's digits, gradients by hand.
    """
    x, y = read_digits()
    x = (x.reshape(len(x), -1) / 16).astype(np.float32)
    rng = np.random.default_rng(3)
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    test_x, test_y, x, y = x[:400], y[:400], x[400:], y[400:]
    homes = [np.flatnonzero(np.isin(y, [2 * i, 2 * i + 1, (2 * i + 4) % 10])) for i in range(5)]
    tensors = specs((64, 32), (32,), (32, 10), (10,))
    edges = np.cumsum([tensor.size for tensor in tensors])
    weights = (rng.normal(size=edges[-1]) * 0.15).astype(np.float32)

    def parts(vector):
        return [
            p.reshape(t.shape) for p, t in zip(np.split(vector, edges[:-1]), tensors, strict=True)
        ]

    def forward(vector, x):
        w1, b1, w2, b2 = parts(vector)
        hidden = np.maximum(x @ w1 + b1, 0)
        return hidden, hidden @ w2 + b2

    def trained(vector, x, y):
        vector = vector.copy()
        for batch in np.array_split(rng.permutation(len(y)), max(1, len(y) // 32)):
            hidden, logits = forward(vector, x[batch])
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(batch)), y[batch]] -= 1
            p /= len(batch)
            back = (p @ parts(vector)[2].T) * (hidden > 0)
            gradient = [x[batch].T @ back, back.sum(0), hidden.T @ p, p.sum(0)]
            vector -= 0.3 * np.concatenate([g.reshape(-1) for g in gradient]).astype(np.float32)
        return vector

    owed = [np.zeros_like(weights) for _ in homes]
    for _ in range(40):
        total = np.zeros_like(weights)
        for device, home in enumerate(homes):
            wanted = trained(weights, x[home], y[home]) - weights + owed[device]
            if compressed is None:
                total += wanted
                continue
            said = decompress(compress(wanted, tensors, compressed), tensors)
            total += said
            if feedback:
                owed[device] = wanted - said
        weights = weights + total / len(homes)
    return float((forward(weights, test_x)[1].argmax(axis=1) == test_y).mean())


@pytest.mark.slow
def test_learning_with_error_feedback_ends_within_two_points_of_dense() -> None:
    plan = CodecPlan(keep=0.05, centers=16, method="coreset")
    assert learn(plan) >= learn(None) - 0.02


@pytest.mark.slow
def test_two_hundred_bytes_a_round_cost_at_most_two_points() -> None:
    """The dense delta of this net has 9,640 bytes."""
    assert learn(Budget(bytes=200)) >= learn(None) - 0.02


@pytest.mark.parametrize("most", [1, 7, 8, 12, 20, 50, 120, 300, 800, 1500, 2500, 9999])
def test_a_byte_budget_is_never_exceeded(most: int) -> None:
    tensors = specs((40, 50), (50,))
    assert len(compress(delta_of(2050), tensors, Budget(bytes=most))) <= most


@pytest.mark.parametrize("nmse", [0.01, 0.1, 0.3, 0.6, 0.9])
def test_an_error_budget_is_kept(nmse: float) -> None:
    tensors = specs((40, 50), (50,))
    delta = delta_of(2050)
    found = decompress(compress(delta, tensors, Budget(nmse=nmse)), tensors)
    assert np.square(delta - found).sum() <= 1.01 * nmse * np.square(delta).sum()


def test_the_budget_is_of_bytes_or_of_error() -> None:
    tensors = specs((40, 50))
    with pytest.raises(ValueError, match="not of both"):
        compress(delta_of(2000), tensors, Budget(bytes=9, nmse=0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        compress(delta_of(2000), tensors, Budget(nmse=0))


def low_rank_delta(seed: int, *, smooth: bool) -> np.ndarray:
    """A 60 x 400 matrix of rank 3 plus a little noise; rows the same for every ``seed``."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    right = shared.normal(size=(3, 400))
    if smooth:  # over 20 x 20 cells
        waves = np.linspace(0, 3, 20)
        cells = [np.outer(np.cos(waves * a), np.sin(waves * b)) for a, b in right[:, :2]]
        right = np.array(cells).reshape(3, 400)
    matrix = own.normal(size=(60, 3)) @ right + own.normal(size=(60, 400)) * 0.02
    return (matrix * 0.01).astype(np.float32).reshape(-1)


def test_low_rank_and_smoothness_are_found_and_used() -> None:
    tensors = specs((60, 400))
    delta = low_rank_delta(1, smooth=True)
    sparse = compress(delta, tensors, CodecPlan(keep=0.3, method="coreset"))
    payload = compress(delta, tensors, Budget(nmse=0.1))
    assert len(payload) < 500 < len(sparse) / 8
    rough = np.random.default_rng(2).permutation(400)
    shuffled = np.ascontiguousarray(delta.reshape(60, 400)[:, rough]).reshape(-1)
    assert len(payload) < 0.8 * len(compress(shuffled, tensors, Budget(nmse=0.1)))


def test_what_both_sides_hold_makes_a_payload_smaller() -> None:
    tensors = specs((60, 400))
    before = low_rank_delta(1, smooth=False)
    before = decompress(compress(before, tensors, Budget(nmse=0.1)), tensors)
    delta = low_rank_delta(2, smooth=False)
    alone = compress(delta, tensors, Budget(nmse=0.1))
    payload = compress(delta, tensors, Budget(nmse=0.1), context=before)
    assert len(payload) < 0.85 * len(alone)
    assert context_in(payload) == context_digest(before)
    assert context_in(alone) is None
    found = decompress(payload, tensors, context=before)
    assert np.square(delta - found).sum() <= 0.1 * np.square(delta).sum()
    for other in (None, np.zeros_like(before), -before):
        with pytest.raises(PayloadError, match="context"):
            decompress(payload, tensors, context=other)


def test_an_error_in_what_matters_more_is_made_smaller() -> None:
    tensors = specs((40, 50), (40, 50))
    delta = delta_of(4000)

    def errors(importance):
        payload = compress(delta, tensors, Budget(bytes=900), importance=importance)
        missed = np.square(delta - decompress(payload, tensors)).reshape(2, -1).sum(axis=1)
        return missed / np.square(delta).sum()

    first, second = errors([4.0, 0.25])
    assert first < errors(None)[0]
    assert first < second


@pytest.mark.parametrize("most", [308, 400, 500, 600, 700])
def test_a_small_budget_of_bytes_is_used_and_not_given_back(most: int) -> None:
    """Uniform weights, as an untrained layer has them: all of them round to zero at once."""
    tensors = (TensorSpec("w", (10, 256), Role.SHARED), TensorSpec("b", (10,), Role.SHARED))
    random = np.random.default_rng(0)
    wanted = random.uniform(-1 / 16, 1 / 16, 2570).astype(np.float32)
    assert 0.8 * most < len(compress(wanted, tensors, Budget(bytes=most))) <= most


def test_a_context_that_is_held_gives_the_same_bits_and_is_worked_out_once(monkeypatch) -> None:
    tensors = specs((60, 400), (30, 90))
    rng = np.random.default_rng(3)
    tail = (rng.normal(size=(30, 1)) @ rng.normal(size=(1, 90)) * 0.01).astype(np.float32)
    before = np.concatenate([low_rank_delta(1, smooth=True), tail.reshape(-1)])
    deltas = [
        np.concatenate([low_rank_delta(seed, smooth=True), seed * tail.reshape(-1)])
        for seed in (2, 3, 4)
    ]
    payloads = [compress(d, tensors, Budget(nmse=0.1), context=before) for d in deltas]
    expected = [decompress(p, tensors, context=before) for p in payloads]

    worked_out: list[object] = []
    basis_of, digest_of = shared_basis.shared_basis, shared_basis.context_digest
    monkeypatch.setattr(
        shared_basis, "shared_basis", lambda *a: worked_out.append(a[1:]) or basis_of(*a)
    )
    monkeypatch.setattr(
        shared_basis, "context_digest", lambda *a: worked_out.append("digest") or digest_of(*a)
    )
    held = Context(before)
    for payload, found in zip(payloads * 2, expected * 2, strict=True):
        assert context_in(payload) is not None
        np.testing.assert_array_equal(decompress(payload, tensors, context=held), found)
    assert len(worked_out) == 3  # the digest and two matrices, for six payloads
    assert [compress(d, tensors, Budget(nmse=0.1), context=held) for d in deltas] == payloads
    with pytest.raises(PayloadError, match="context"):
        decompress(payloads[0], tensors, context=Context(-before))


def test_senders_who_choose_every_grid_do_not_fill_the_memory() -> None:
    """A basis may be twice as large as its matrix, and a matrix may have dozens of grids."""
    (group,) = groups_of(specs((16, 1024)))
    assert len(group.grids) == 10
    held = Context(np.random.default_rng(0).normal(size=16 * 1024).astype(np.float32))
    tracemalloc.start()
    for _ in range(2):
        for grid in group.grids:
            fresh = shared_basis.shared_basis(held.vector, group, grid)
            again = held.basis(group, grid)
            np.testing.assert_array_equal(again.directions, fresh.directions)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 5 * 16 * 1024 * 8
