"""Positions as gaps and as bitmaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codec.sparse.sparse_index import (
    decode_positions,
    encode_positions,
    pack_bits,
    unpack_bits,
)
from models.errors import PayloadError
from models.protocol.varint import Reader


@given(st.integers(0, 400), st.data())
def test_positions_come_back(size: int, data: st.DataObject) -> None:
    drawn = data.draw(st.sets(st.integers(0, size - 1))) if size else set()
    positions = np.array(sorted(drawn), np.int64)
    reader = Reader(encode_positions(positions, size))
    found = decode_positions(reader, positions.size, size)
    reader.finish()
    np.testing.assert_array_equal(found, positions)


@pytest.mark.parametrize(("share", "bits"), [(0.001, 12.2), (0.01, 8.5), (0.05, 6.2), (0.5, 2.1)])
def test_random_positions_cost_close_to_their_entropy(share: float, bits: float) -> None:
    size = 400_000
    rng = np.random.default_rng(1)
    positions = np.flatnonzero(rng.random(size) < share)
    entropy = size * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert 8 * len(encode_positions(positions, size)) <= bits * positions.size
    assert 8 * len(encode_positions(positions, size)) <= 1.08 * entropy


@given(st.binary(max_size=40), st.integers(0, 50), st.integers(0, 300))
def test_any_bytes_give_a_payload_error_or_positions(data: bytes, count: int, size: int) -> None:
    try:
        positions = decode_positions(Reader(data), count, size)
    except PayloadError:
        return
    assert positions.size == count
    assert (np.diff(positions) > 0).all()
    assert count == 0 or (positions[0] >= 0 and positions[-1] < size)


@given(st.integers(0, 12), st.data())
def test_packed_bits_come_back(width: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=30))
    values = np.array(drawn, np.int64)
    packed = pack_bits(values, width)
    assert len(packed) == (width * values.size + 7) // 8
    np.testing.assert_array_equal(unpack_bits(packed, width, values.size), values)
