"""Every topic that is written can be read, and nothing else can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError, UsageError
from models.protocol.topics import BlobChunk, DeviceTopic, ServerTopic, Topics, UpdateChunk

TOPICS = Topics("farm")
SHA256 = "0123456789abcdef" * 4

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True)
numbers = st.integers(0, (1 << 20) - 1)


@given(names, numbers, st.integers(0, 10**18 - 1))
def test_what_is_written_is_read_back(name: str, number: int, sequence: int) -> None:
    update = f"00c0ffee-{sequence}"
    assert TOPICS.parse(TOPICS.release(name)) == name
    assert TOPICS.parse(TOPICS.blob(SHA256, number)) == BlobChunk(SHA256, number)
    assert TOPICS.parse(TOPICS.update(name, update, number)) == UpdateChunk(name, update, number)
    assert TOPICS.parse(TOPICS.status(name)) == DeviceTopic(name, "status")
    assert TOPICS.parse(TOPICS.request(name)) == DeviceTopic(name, "request")
    assert TOPICS.parse(TOPICS.receipt(name)) == DeviceTopic(name, "receipt")
    assert TOPICS.parse(TOPICS.server_status) == ServerTopic("status")
    assert TOPICS.parse(TOPICS.server_ask) == ServerTopic("ask")


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda rest: TOPICS.prefix + rest))
def test_any_other_text_is_refused_with_one_error(text: str) -> None:
    try:
        found = TOPICS.parse(text)
    except PayloadError:
        return
    assert found


@pytest.mark.parametrize(
    "rest",
    [
        "device/a/b/status",
        "device/A/status",
        "device/-a/status",
        "device/a/will",
        "device/a/update/00c0ffee-1/-1",
        "device/a/update/00c0ffee-1/1048576",
        "device/a/update/00c0ffee-1/²",
        "device/a/update/../../1",
        f"blob/{SHA256.upper()}/1",
        f"blob/{SHA256}/",
        "task//release",
        "server",
        "server/will",
    ],
)
def test_a_topic_that_is_nearly_right_is_refused(rest: str) -> None:
    with pytest.raises(PayloadError):
        TOPICS.parse(TOPICS.prefix + rest)


def test_another_fleets_topic_is_refused() -> None:
    with pytest.raises(PayloadError):
        TOPICS.parse(Topics("other").status("a"))


@pytest.mark.parametrize("name", ["", "Farm", "a/b", "a+b", "#", "-a", "a" * 65])
def test_a_fleet_that_cannot_stand_in_a_topic_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Topics(name)
