"""rANS, contexts, quantization and transforms, each by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec.transform.entropy import (
    CLASSES,
    ESCAPE,
    LEVEL_MEANS,
    SYMBOLS,
    ContextModel,
    Rows,
    level_of,
)
from models.codec.transform.matrices import (
    cosines,
    forward_whole,
    from_frequencies,
    groups_of,
    to_frequencies,
)
from models.codec.transform.quantize import (
    MatrixReader,
    Offsets,
    Writer,
    reconstruct,
    step_code,
    step_of,
)
from models.codec.transform.rans import SCALE, RansDecoder, RansEncoder, uniform
from models.codec.transform.shared_basis import UNIT_BITS, shared_basis
from models.errors import PayloadError
from models.protocol.varint import Reader, varint
from models.task.spec import Role, TensorSpec


def table_of(rng: np.random.Generator, classes: int, symbols: int) -> np.ndarray:
    weights = rng.integers(1, 100, (classes, symbols))
    table = 1 + weights * (SCALE - symbols) // weights.sum(axis=1, keepdims=True)
    table[:, 0] += SCALE - table.sum(axis=1)
    return table


@given(st.integers(0, 300), st.integers(1, 5), st.integers(2, 16), st.integers(0, 99))
def test_symbols_come_back_in_order_and_cost_their_entropy(count, classes, symbols, seed) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(rng, classes, symbols)
    kinds = rng.integers(0, classes, count)
    drawn = np.array([rng.choice(symbols, p=table[k] / SCALE) for k in kinds], np.int64)
    encoder = RansEncoder()
    encoder.put(table, kinds, drawn)
    encoder.put_uniform(2, 7)
    code = encoder.finish()
    decoder = RansDecoder(code)
    np.testing.assert_array_equal(decoder.take(table, kinds), drawn)
    assert decoder.take_uniform(7) == 2
    assert decoder.finish() == len(code)
    bits = np.log2(SCALE / table[kinds, drawn]).sum() + np.log2(7)
    assert 8 * len(code) <= bits * 1.001 + 34


def test_the_bytes_of_the_entropy_coder_are_pinned() -> None:
    """One wire format for ever: a change of these bytes needs a new tag."""
    encoder = RansEncoder()
    table = np.array([[SCALE - 300, 200, 100], [1000, 10000, SCALE - 11000]])
    encoder.put(table, np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 2, 2, 0]))
    encoder.put_uniform(5, 30)
    assert encoder.finish().hex() == GOLDEN_RANS


GOLDEN_RANS = "c09f06003a03"


@given(st.binary(max_size=60))
def test_any_bytes_give_symbols_or_a_payload_error(data: bytes) -> None:
    try:
        decoder = RansDecoder(data)
        symbols = decoder.take(uniform(5), np.zeros(50, np.int64))
        decoder.finish()
    except PayloadError:
        return
    assert symbols.max() < 5


def test_frequencies_always_add_up_and_none_is_zero() -> None:
    model = ContextModel()
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = rng.integers(0, 3, 1000)
        model.learn(classes, np.minimum(rng.geometric(0.9, 1000) - 1, ESCAPE))
        model.learn_level(int(rng.integers(32)))
    for table in (model.table, model.level_table):
        assert (table.sum(axis=1) == SCALE).all()
        assert table.min() >= 1
    assert model.table.shape == (CLASSES, SYMBOLS)


def test_contexts_find_columns_and_neighborhoods_that_are_busy() -> None:
    """Magnitudes that follow a column scale cost clearly less than their memoryless entropy."""
    rng = np.random.default_rng(3)
    busy = np.repeat(rng.gamma(0.3, size=40), 16)
    values = rng.laplace(size=(30, 640)) * busy
    writer = Writer()
    coded = writer.matrix(values, 0.1, Rows(writer.model, 640))
    _, counts = np.unique(coded.quantized, return_counts=True)
    memoryless = float((counts * np.log2(counts.sum() / counts)).sum())
    assert coded.row_bits.sum() < 0.75 * memoryless
    assert len(writer.finish()) <= writer.bytes_expected + 6


@given(
    st.integers(1, 6), st.integers(1, 70), st.floats(0.05, 300), st.booleans(), st.integers(0, 9)
)
@settings(deadline=None)
def test_a_matrix_comes_back_as_it_was_quantized(rows, columns, size, local, seed) -> None:
    values = np.random.default_rng(seed).laplace(size=(rows, columns)) * size
    writer = Writer()
    coded = writer.matrix(values, 0.05, Rows(writer.model, columns, local=local))
    reader = MatrixReader(writer.finish())
    found = reader.matrix(rows, columns, Rows(reader.model, columns, local=local))
    reader.finish()
    np.testing.assert_array_equal(found, coded.quantized)
    assert np.abs(found - values).max() <= max(1.5, np.abs(values[found == 0]).max(initial=0))


def test_row_levels_are_half_octaves() -> None:
    assert level_of(np.zeros(5)) == 0
    for level in range(1, 32):
        assert level_of(np.full(3, LEVEL_MEANS[level])) == level
    np.testing.assert_allclose(LEVEL_MEANS[3:] / LEVEL_MEANS[1:-2], 2)


@given(st.floats(1e-38, 1e38))
def test_a_step_is_kept_to_half_a_percent(step: float) -> None:
    assert step_of(step_code(step)) == pytest.approx(step, rel=0.005)


def test_impossible_steps_are_refused() -> None:
    for code in (0, 0x7F80, 0x7FC0, 0x8000, 0xBF80):
        with pytest.raises(PayloadError, match="step"):
            step_of(code)
    for step in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="step"):
            step_code(step)


def test_offsets_move_ones_and_twos_only() -> None:
    assert Offsets.of(Offsets(-3, 7).code) == Offsets(-3, 7)
    found = reconstruct(np.array([-3, -2, -1, 0, 1, 2, 3], np.int32), Offsets(-4, 2))
    assert found.tolist() == [-768, -544, -192, 0, 192, 544, 768]


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (7, 7), (1, 25), (2, 5)])
def test_the_cosine_transform_is_orthonormal_and_its_inverse_exact_to_a_step(grid) -> None:
    cells = grid[0] * grid[1]
    values = np.random.default_rng(0).normal(size=(4, 6 * cells)) * 1000
    frequencies = to_frequencies(values, grid)
    assert np.square(frequencies).sum() == pytest.approx(np.square(values).sum())
    whole = np.rint(frequencies * 256)
    assert np.abs(from_frequencies(whole, grid) / 256 - values).max() < 1e-3 * 4000
    rounded = np.rint(values)
    assert np.abs(forward_whole(rounded, grid) - to_frequencies(rounded, grid)).max() < 4
    if cells > 1:
        flat = to_frequencies(np.ones((1, cells)), grid)[0]
        assert np.count_nonzero(np.abs(flat) > 1e-9) == 1


def test_no_whole_transform_depends_on_the_last_bit_of_a_cosine() -> None:
    """No entry is near a half, so that every machine rounds it to the same whole number."""
    for size in range(2, 33):
        assert np.abs(cosines(size) @ cosines(size).T - np.eye(size)).max() < 1e-12
        scaled = cosines(size) * 2.0**12
        assert np.abs(np.abs(scaled - np.floor(scaled)) - 0.5).min() > 1e-9


def test_groups_cover_every_value_once() -> None:
    shapes = [(), (0,), (5,), (1200,), (40, 50), (50, 40), (16, 8, 3, 3), (64, 2, 25), (3, 900)]
    tensors = [TensorSpec(f"t{i}", shape, Role.SHARED) for i, shape in enumerate(shapes)]
    size = sum(tensor.size for tensor in tensors)
    vector = np.arange(size, dtype=np.float32)
    copy = np.full(size, -1, np.float32)
    for group in groups_of(tensors):
        matrix = group.take(vector)
        assert matrix.shape == (group.rows, group.columns)
        assert group.rows <= group.columns
        assert all(group.columns % (a * b) == 0 for a, b in group.grids)
        group.put(copy, matrix)
    np.testing.assert_array_equal(copy, vector)


def test_the_shared_basis_is_orthogonal_and_holds_the_leading_rows() -> None:
    tensors = [TensorSpec("m", (40, 300), Role.SHARED)]
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(40, 5)) * 2.0 ** -np.arange(5)) @ rng.normal(size=(5, 300))
    (group,) = groups_of(tensors)
    basis = shared_basis(matrix.astype(np.float32).reshape(-1), group, (1, 1))
    assert basis is not None
    unit = basis.directions * 2.0**-UNIT_BITS
    np.testing.assert_allclose(unit @ unit.T, np.eye(len(unit)), atol=0.02)
    right = np.linalg.svd(matrix, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.linalg.norm(right @ unit.T, axis=1), 1, atol=0.01)
    assert (basis.directions == np.rint(basis.directions)).all()
    assert shared_basis(np.zeros(12_000, np.float32), group, (1, 1)) is None


@given(st.integers(0, (1 << 56) - 1))
def test_a_varint_comes_back(number: int) -> None:
    reader = Reader(varint(number))
    assert reader.varint((1 << 56) - 1) == number
    reader.finish()


def test_varints_that_are_too_large_or_too_long_are_refused() -> None:
    for data in (b"\x80\x00", b"\xff" * 9, b"\x80", b"\x7f"):
        with pytest.raises(PayloadError):
            Reader(data).varint(100)
    for number in (-1, 1 << 56):
        with pytest.raises(ValueError, match="not between"):
            varint(number)
