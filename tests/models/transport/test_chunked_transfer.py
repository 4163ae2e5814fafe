"""Chunks in any order, with any repeats, give the payload exactly once."""

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DigestMismatchError, PayloadError
from models.protocol.chunked_transfer import MAX_CHUNK, Layout, Reassembler, split


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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


@given(payloads, chunk_sizes, st.data())
def test_any_order_with_any_repeats_gives_the_payload_exactly_once(
    payload: bytes, chunk_size: int, data: st.DataObject
) -> None:
    chunks = list(split(payload, chunk_size))
    once = data.draw(st.permutations(range(len(chunks))))
    repeats = data.draw(st.lists(st.integers(0, len(chunks) - 1), max_size=20))
    places = data.draw(st.lists(st.integers(0, len(chunks)), min_size=20, max_size=20))
    order = list(once)
    for number, place in zip(repeats, places, strict=False):
        order.insert(place, number)
    reassembler = Reassembler(Layout(len(payload), chunk_size), sha256(payload))
    given_back = []
    seen: set[int] = set()
    for number in order:
        assert reassembler.missing() == tuple(i for i in range(len(chunks)) if i not in seen)
        result = reassembler.feed(number, chunks[number])
        seen.add(number)
        if result is not None:
            given_back.append(result)
            assert len(seen) == len(chunks)
    assert given_back == [payload]
    assert reassembler.missing() == ()


@given(payloads, chunk_sizes, st.integers(-3, 310), st.binary(max_size=70))
def test_a_chunk_that_does_not_fit_is_refused_and_harms_nothing(
    payload: bytes, chunk_size: int, index: int, data: bytes
) -> None:
    layout = Layout(len(payload), chunk_size)
    reassembler = Reassembler(layout, sha256(payload))
    fits = 0 <= index < layout.count and len(data) == layout.length(index)
    if not fits:
        with pytest.raises(PayloadError):
            reassembler.feed(index, data)
        assert reassembler.missing() == tuple(range(layout.count))
        results = [reassembler.feed(i, c) for i, c in enumerate(split(payload, chunk_size))]
        assert results[-1] == payload


@given(payloads, chunk_sizes, st.data())
def test_a_damaged_transfer_is_refused_and_can_begin_anew(
    payload: bytes, chunk_size: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(payload) - 1))
    damaged = bytearray(payload)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    layout = Layout(len(payload), chunk_size)
    reassembler = Reassembler(layout, sha256(payload))
    *first, last = enumerate(split(bytes(damaged), chunk_size))
    for index, chunk in first:
        assert reassembler.feed(index, chunk) is None
    with pytest.raises(DigestMismatchError):
        reassembler.feed(*last)
    assert reassembler.missing() == tuple(range(layout.count))
    results = [reassembler.feed(i, c) for i, c in enumerate(split(payload, chunk_size))]
    assert results[-1] == payload


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [(0, 10), (-1, 10), (10, 0), (10, -5), (10, MAX_CHUNK + 1), (1 << 30, 1)],
)
def test_a_layout_that_the_protocol_does_not_have_is_refused(size: int, chunk_size: int) -> None:
    with pytest.raises(PayloadError):
        Layout(size, chunk_size)


def test_nothing_is_allocated_for_chunks_that_only_were_promised() -> None:
    tracemalloc.start()
    reassembler = Reassembler(Layout(1 << 30, MAX_CHUNK), sha256(b""))
    reassembler.feed(0, bytes(MAX_CHUNK))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MAX_CHUNK
