"""What a message says, whatever its bytes."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st
from server_world import good_direction

import broker.receiving.incoming
import broker.receiving.update_inbox
from broker.receiving.incoming import (
    Announcement,
    ArrivedChunk,
    Asked,
    Malformed,
    SaidStatus,
    parsed,
)
from models.protocol.messages import Request, Status, encode_message
from models.protocol.topics import Topics
from models.protocol.update import UpdateHeader, decode_header, encode_update
from models.transport.link import Received

TOPICS = Topics("fleet")
PAYLOAD = b"abc"
HEADER = UpdateHeader(
    "leaves", 2, 10, 5, 1.0, 0.5, None, len(PAYLOAD), hashlib.sha256(PAYLOAD).hexdigest()
)
OURS = [
    TOPICS.update("dev-1", "0a0a0a0a-1", 0),
    TOPICS.update("dev-1", "0a0a0a0a-1", 7),
    TOPICS.status("dev-1"),
    TOPICS.request("dev-1"),
    TOPICS.receipt("dev-1"),
    TOPICS.release("leaves"),
    TOPICS.server_ask,
]


def says(topic: str, payload: bytes) -> object:
    return parsed(TOPICS, Received(topic, payload, retained=False, handle=1)).says


def test_each_topic_says_what_stands_on_it() -> None:
    status, request = Status(online=True, task="leaves", release=2), Request(release="leaves")
    assert says(TOPICS.status("dev-1"), encode_message(status)) == SaidStatus("dev-1", status)
    assert says(TOPICS.request("dev-1"), encode_message(request)) == Asked("dev-1", request)
    data = encode_update(HEADER, PAYLOAD)
    first = says(TOPICS.update("dev-1", "0a0a0a0a-1", 0), data)
    head = HEADER, len(data) - len(PAYLOAD)
    assert first == ArrivedChunk("dev-1", "0a0a0a0a-1", 0, data, head)
    later = says(TOPICS.update("dev-1", "0a0a0a0a-1", 7), data)
    assert later == ArrivedChunk("dev-1", "0a0a0a0a-1", 7, data, None)


def test_what_was_cleared_and_what_we_wrote_says_nothing() -> None:
    assert says(TOPICS.status("dev-1"), b"") is None
    assert says(TOPICS.release("leaves"), b"") is None
    assert says(TOPICS.receipt("dev-1"), b"{}") is None
    assert says(TOPICS.blob("0" * 64, 0), b"chunk") is None


def test_a_topic_of_another_fleet_is_nothing_that_we_can_read() -> None:
    assert isinstance(says("edgefold/1/other/device/dev-1/status", b"{}"), Malformed)


@settings(deadline=None, max_examples=300)
@given(topic=st.sampled_from(OURS), payload=st.binary(max_size=300))
def test_whatever_the_bytes_it_says_something_and_raises_nothing(
    topic: str, payload: bytes
) -> None:
    match says(topic, payload):
        case ArrivedChunk(_, _, number, data, head):
            assert data == payload
            assert (head is None) is (number > 0)
        case SaidStatus(device) | Asked(device):
            assert device == "dev-1"
        case Announcement(task):
            assert task == "leaves"
        case nothing:
            assert nothing is None


def test_the_header_of_an_update_in_one_chunk_is_read_once(make_world, monkeypatch) -> None:
    """Between its message and its receipt; when it is folded it is read and checked once more."""
    read: list[bytes] = []

    def counted(head: bytes):
        read.append(head)
        return decode_header(head)

    for module in (broker.receiving.incoming, broker.receiving.update_inbox):
        monkeypatch.setattr(module, "decode_header", counted)
    world = make_world("[task.aggregation]\nupdates = 2\n")
    world.run()
    sent = world.device().send_delta(good_direction())
    world.run()
    assert world.device().state(sent) == "stored"
    assert len(read) == 1
    name, data = world.device().update(good_direction())
    world.device().send(name, data[:-1] + bytes([data[-1] ^ 1]))
    world.run()
    assert world.device().state(name) != "stored", "its payload is checked all the same"
    world.device().send(name, data)
    world.run()
    assert world.device().state(name) == "folded"
