"""Control messages: small, with a schema, and nothing else gets through."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError
from models.protocol.messages import (
    MAX_BYTES,
    Receipt,
    Receipts,
    Request,
    ServerStatus,
    Status,
    decode_message,
    encode_message,
)

ID = "0badcafe-17"


@pytest.mark.parametrize(
    "message",
    [
        Receipts((Receipt(ID, "folded", release=3), Receipt(ID, "partial", missing=(0, 5)))),
        Receipts((Receipt(ID, "refused", reason="not finite"),)),
        Request(receipts=(ID,), blobs={"ab" * 32: (0, 1)}, release="leaves"),
        Status(online=True, task="leaves", run="01234567", accuracy=0.5, problem="hot"),
        Status(online=False),
        ServerStatus(
            online=True, instance="0123456789abcdef", host="hub", since=1.5, tasks=("leaves",)
        ),
        ServerStatus(online=False),
    ],
)
def test_a_message_survives_the_wire(message: Receipts | Request | Status | ServerStatus) -> None:
    assert decode_message(encode_message(message), type(message)) == message


def test_what_says_nothing_takes_no_bytes() -> None:
    assert encode_message(Status(online=False)) == b'{"online":false}'
    assert encode_message(Request()) == b"{}"


def test_an_old_server_reads_a_newer_status_but_no_newer_receipt() -> None:
    assert decode_message(b'{"online":true,"shoe_size":43}', Status) == Status(online=True)
    with pytest.raises(PayloadError, match="shoe_size"):
        decode_message(b'{"receipts":[],"shoe_size":43}', Receipts)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Receipts, {"receipts": [{"update": ID, "state": "eaten"}]}),
        (Receipts, {"receipts": [{"update": "../../17", "state": "folded"}]}),
        (Receipts, {"receipts": [{"update": ID, "state": "folded", "release": -1}]}),
        (Receipts, {"receipts": [{"update": ID, "state": "partial", "missing": [0] * 257}]}),
        (Receipts, {"receipts": [{"update": ID, "state": "folded"}] * 65}),
        (Request, {"receipts": [ID] * 65}),
        (Request, {"blobs": {"abc": [1]}}),
        (Request, {"blobs": {f"{n:064x}": [1] for n in range(9)}}),
        (Status, {"online": "yes"}),
        (ServerStatus, {"online": True, "tasks": ["x"] * 101}),
        (Status, {"online": True, "samples": -3}),
        (Status, {"online": True, "problem": "x" * 401}),
    ],
)
def test_what_breaks_the_schema_is_refused(kind: type, plain: dict) -> None:
    with pytest.raises(PayloadError, match=kind.__name__):
        decode_message(json.dumps(plain).encode(), kind)


def test_a_long_message_is_not_even_parsed() -> None:
    with pytest.raises(PayloadError, match="at most"):
        decode_message(b" " * (MAX_BYTES + 1), Status)


@given(st.binary(max_size=200), st.sampled_from([Receipts, Request, Status]))
def test_any_bytes_are_a_message_or_an_error(data: bytes, kind: type) -> None:
    with contextlib.suppress(PayloadError):
        assert isinstance(decode_message(data, kind), kind)
