"""Chunks follow the link: never as long as half a keepalive, never larger than allowed."""

import pytest

from edge_agent.updates.chunk_size import SMALLEST, ChunkSize

KIB = 1024


def send(chunk: ChunkSize, *, bits_per_s: float, count: int) -> list[float]:
    """Send ``count`` chunks one behind the other, four in flight; return what each took."""
    now, took, handed = 0.0, [], [0.0] * 4
    for _ in range(count):
        size = chunk.bytes
        seconds = size * 8 / bits_per_s
        now += seconds
        chunk.acknowledged(size, published=handed.pop(0), now=now)
        handed.append(now)
        took.append(seconds)
    return took


@pytest.mark.parametrize("bits_per_s", [9_600, 128_000, 2_000_000])
def test_no_chunk_outlasts_half_a_keepalive(bits_per_s: float) -> None:
    chunk = ChunkSize(64 * KIB)
    assert max(send(chunk, bits_per_s=bits_per_s, count=20)) <= 30.0
    assert SMALLEST <= chunk.bytes <= 64 * KIB


def test_a_chunk_that_broke_a_slow_link_is_halved_until_it_passes() -> None:
    chunk = ChunkSize(64 * KIB)
    for attempt in range(5):
        chunk.broke(published=100.0 * attempt, now=100.0 * attempt + 90)
    assert chunk.bytes == SMALLEST


def test_a_link_that_breaks_at_once_says_nothing_about_the_size() -> None:
    chunk = ChunkSize(64 * KIB)
    before = chunk.bytes
    chunk.broke(published=10.0, now=10.4)
    assert chunk.bytes == before


def test_a_link_that_got_faster_gets_larger_chunks_again() -> None:
    chunk = ChunkSize(64 * KIB)
    send(chunk, bits_per_s=9_600, count=5)
    assert chunk.bytes < 20 * KIB
    send(chunk, bits_per_s=2_000_000, count=10)
    assert chunk.bytes == 64 * KIB


def test_small_chunks_that_the_owner_asked_for_stay_small() -> None:
    chunk = ChunkSize(2 * KIB)
    send(chunk, bits_per_s=2_000_000, count=5)
    assert chunk.bytes == 2 * KIB
