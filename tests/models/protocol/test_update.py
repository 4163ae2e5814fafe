"""The update header: round trips, and damage of every kind."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import PayloadError
from models.protocol.update import (
    MAX_HEADER_BYTES,
    Extras,
    UpdateHeader,
    decode_header,
    decode_update,
    encode_update,
)

PAYLOAD = b"some payload"


def header_for(payload: bytes, **changes: object) -> UpdateHeader:
    header = UpdateHeader(
        task="digits",
        base=7,
        samples=120,
        steps=30,
        loss_first=0.5,
        loss_last=0.25,
        accuracy=0.75,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )
    return header._replace(**changes)


floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    task=st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True),
    numbers=st.tuples(*[st.integers(0, 1 << 53)] * 3),
    losses=st.tuples(floats32, floats32),
    accuracy=st.none() | st.floats(0, 1, width=32),
    payload=st.binary(max_size=64),
)
def test_an_update_comes_back_as_it_was(task, numbers, losses, accuracy, payload) -> None:
    header = UpdateHeader(
        task, *numbers, *losses, accuracy, len(payload), hashlib.sha256(payload).hexdigest()
    )
    data = encode_update(header, payload)
    assert decode_update(data) == (header, payload)
    assert decode_header(data[:MAX_HEADER_BYTES]) == (header, len(data) - len(payload))


def test_the_header_of_a_small_update_takes_58_bytes() -> None:
    assert len(encode_update(header_for(b""), b"")) == 3 + (1 + 6) + 4 + 12 + 32


def test_every_truncation_is_refused() -> None:
    data = encode_update(header_for(PAYLOAD), PAYLOAD)
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            decode_update(data[:length])


def test_every_single_byte_change_gives_an_error_or_another_header() -> None:
    data = encode_update(header_for(PAYLOAD), PAYLOAD)
    for index in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[index] ^= 1 << bit
            try:
                header, payload = decode_update(bytes(damaged))
            except PayloadError:
                continue
            assert payload == PAYLOAD
            assert header != header_for(PAYLOAD)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_give_a_payload_error_or_a_value(data: bytes) -> None:
    for attempt in (data, b"EU\x01" + data, b"EU\x01\x01a" + data):
        try:
            header, _ = decode_header(attempt)
        except PayloadError:
            continue
        assert math.isfinite(header.loss_first)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "Upper"},
        {"task": ""},
        {"base": -1},
        {"samples": 1 << 54},
        {"loss_first": math.nan},
        {"loss_last": math.inf},
        {"loss_last": 1e300},
        {"accuracy": 1.5},
        {"payload_size": 3},
        {"payload_sha256": "0" * 64},
    ],
)
def test_the_encoder_refuses_what_no_decoder_would_take(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        encode_update(header_for(PAYLOAD, **changes), PAYLOAD)


measures = st.floats(0, 1e30)
extras = st.builds(
    Extras,
    memory=st.integers(0, (1 << 32) - 1),
    accuracy_shared=st.none() | st.floats(0, 1),
    accuracy_after=st.none() | st.floats(0, 1),
    accuracy_alone=st.none() | st.floats(0, 1),
    rho=st.none() | measures,
    beta=st.none() | measures,
    gradient_norm=st.none() | measures,
    seconds=measures,
    ms_per_step=measures,
    effective=measures,
)


@given(extras)
def test_extras_come_back_and_fit_into_the_longest_header(found: Extras) -> None:
    header = header_for(PAYLOAD, task="t" * 64, base=1 << 53, samples=1 << 53, extras=found)
    data = encode_update(header, PAYLOAD)
    assert data[2] == 2
    assert decode_header(data[:MAX_HEADER_BYTES]) == (header, len(data) - len(PAYLOAD))


def test_without_extras_the_bytes_are_those_of_version_1() -> None:
    assert encode_update(header_for(b""), b"")[:4] == b"EU\x01\x06"


def with_extras(packed: bytes) -> bytes:
    plain = encode_update(header_for(PAYLOAD), PAYLOAD)
    head = plain[: -len(PAYLOAD)]
    return b"EU\x02" + head[3:] + bytes([len(packed)]) + packed + PAYLOAD


def test_extras_of_a_newer_version_are_passed_over_and_nonsense_is_refused() -> None:
    import msgspec

    pack = msgspec.msgpack.encode
    header, _ = decode_header(with_extras(pack({"m": 5, "later": [1, 2]})))
    assert header.extras == Extras(memory=5)
    for wrong in ({"m": -1}, {"s": math.nan}, {"s": math.inf}, {"aa": 1.5}, {"k": "no"}, [1]):
        with pytest.raises(PayloadError, match="extras"):
            decode_header(with_extras(pack(wrong)))
    with pytest.raises(PayloadError, match="version 1 or 2"):
        decode_header(b"EU\x03" + encode_update(header_for(PAYLOAD), PAYLOAD)[3:])
