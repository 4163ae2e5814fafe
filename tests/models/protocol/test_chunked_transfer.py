"""How a payload is cut into chunks, and which chunks fit."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError
from models.protocol.chunked_transfer import MAX_CHUNK, Layout, split

payloads = st.binary(min_size=1, max_size=300)
chunk_sizes = st.integers(min_value=1, max_value=64)


@given(payloads, chunk_sizes)
def test_chunks_in_order_are_the_payload_and_all_but_the_last_are_full(
    payload: bytes, chunk_size: int
) -> None:
    chunks = list(split(payload, chunk_size))
    layout = Layout(len(payload), chunk_size)
    assert b"".join(chunks) == payload
    assert layout.count == len(chunks)
    assert [len(chunk) for chunk in chunks] == [layout.length(i) for i in range(layout.count)]
    assert all(len(chunk) == chunk_size for chunk in chunks[:-1])
    assert chunks[-1]


@given(payloads, chunk_sizes, st.integers(-3, 310), st.binary(max_size=70))
def test_a_chunk_that_does_not_fit_is_refused(
    payload: bytes, chunk_size: int, index: int, data: bytes
) -> None:
    layout = Layout(len(payload), chunk_size)
    for number, chunk in enumerate(split(payload, chunk_size)):
        layout.check(number, chunk)
    fits = 0 <= index < layout.count and len(data) == layout.length(index)
    if not fits:
        with pytest.raises(PayloadError):
            layout.check(index, data)


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [(0, 10), (-1, 10), (10, 0), (10, -5), (10, MAX_CHUNK + 1), (1 << 30, 1)],
)
def test_a_layout_that_the_protocol_does_not_have_is_refused(size: int, chunk_size: int) -> None:
    with pytest.raises(PayloadError):
        Layout(size, chunk_size)


def test_nothing_is_allocated_for_chunks_that_only_were_promised() -> None:
    tracemalloc.start()
    Layout(1 << 30, MAX_CHUNK).check(0, bytes(MAX_CHUNK))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MAX_CHUNK
