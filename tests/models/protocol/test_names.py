"""One pattern for each kind of name, whoever reads it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from models.protocol.names import NAME, SHA256, UPDATE_ID, Digest, Name, UpdateId, checked_name

KINDS = [(NAME, Name, "leaf-7"), (SHA256, Digest, "0f" * 32), (UPDATE_ID, UpdateId, "0000000a-12")]


@given(st.data())
def test_a_type_takes_what_its_pattern_takes(data: st.DataObject) -> None:
    pattern, kind, _ = data.draw(st.sampled_from(KINDS))
    text = data.draw(st.from_regex(pattern, fullmatch=True) | st.text(max_size=70))
    if pattern.fullmatch(text):
        assert msgspec.convert(text, kind) == text
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, kind)


@pytest.mark.parametrize(("pattern", "kind", "name"), KINDS)
def test_a_name_does_not_end_with_its_line(pattern: object, kind: type[str], name: str) -> None:
    assert msgspec.convert(name, kind) == name
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name + "\n", kind)


def test_a_name_that_cannot_stand_in_a_topic_is_said() -> None:
    assert checked_name("fleet", "orchard") == "orchard"
    with pytest.raises(UsageError, match="fleet 'a/b' is not usable"):
        checked_name("fleet", "a/b")
