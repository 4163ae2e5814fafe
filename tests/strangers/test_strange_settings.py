"""agent.toml and broker.toml as strangers write them: settings, or one sentence what is wrong.

Mutations of good files, generated values in each place, and bytes that are no TOML.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.config import load_config
from edge_agent.config import parse_config, read_config
from models.errors import EdgefoldError

EXAMPLES = int(os.environ.get("EDGEFOLD_EXAMPLES", "50"))
LONGEST_SENTENCE = 700

AGENT = """\
[device]
id = "board-1"
task = "leaves"
[fleet]
name = "orchard"
broker = "mqtt://127.0.0.1"
protocol = "5"
[storage]
directory = "state"
max_mb = 512
[samples]
max_count = 5000
holdout_share = 0.2
[training]
enabled = true
max_load = 8.0
[inference]
threads = 1
mode = "0600"
"""
BROKER = """\
[fleet]
name = "orchard"
broker = "mqtts://h:8883"
chunk_kib = 32
[storage]
directory = "state"
keep_releases = 3
[[task]]
bundle = "leaves"
[task.aggregation]
updates = 2
seconds = 5
[task.evaluation]
data = "test.npz"
max_drop = 0.1
"""
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "agent.toml": (AGENT, read_config),
    "broker.toml": (BROKER, load_config),
}

ODD = [
    *(
        "true",
        "-0",
        "0x_",
        "1e999",
        "-1e999",
        "nan",
        "inf",
        "1" * 5000,
        "-9223372036854775809",
    ),
    *(
        "1979-05-27",
        "07:32:00",
        "[]",
        "{}",
        "[[[[]]]]",
        "[" * 3000,
        "{a=" * 3000,
        "''",
        '""',
    ),
    *(
        '"\\u0000"',
        '"\\ud800"',
        '"\\u202e"',
        '"a\\nb"',
        '"' + "x" * 5000 + '"',
        "'''\n\n'''",
    ),
    *('"mqtt://"', '"mqtt://a:b:c"', '"mqtt://[::1"', '"mqtt://\\u0000"', '"http://x"'),
    *(
        '"mqtt://h:99999"',
        '"mqtt://h:\u0663"',
        '"mqtt://u:p@h"',
        '"/dev/null"',
        '"~nobody9/x"',
    ),
    *(
        '"../../.."',
        '"#"',
        '"+"',
        '"$SYS"',
        '"a/b"',
        '"é"',
        '"e\u0301"',
        '"\ufeff"',
        "[1, 'a']",
    ),
]
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=30).map(lambda text: f'"{text}"'),
)


def outcome(path: Path, read: Callable[[Path], object]) -> str:
    """Return the sentence that refuses the file, "" if none does."""
    sentence = refusal(lambda: read(path))
    if sentence:
        assert path.name in sentence
        assert len(sentence) < LONGEST_SENTENCE + len(str(path))
    return sentence


def has_nan(value: object) -> bool:
    """Whether a setting is no number: it would compare as neither more nor less than any other."""
    if isinstance(value, dict | list | tuple):
        return any(map(has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isnan(value)


def refusal(read: Callable[[], object]) -> str:
    """Return the sentence with which ``read`` refuses, "" if it does not; nothing else happens."""
    try:
        assert not has_nan(msgspec.to_builtins(read(), enc_hook=str))
    except EdgefoldError as error:
        sentence = str(error)
    else:
        return ""
    assert sentence
    assert "\n" not in sentence.strip()
    assert "Traceback" not in sentence
    sentence.encode()
    return sentence


def quiet(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize("name", READERS)
def test_any_value_in_any_place_is_a_setting_or_one_sentence(tmp_path: Path, name: str) -> None:
    text, read = READERS[name]
    path = tmp_path / name
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if "=" in line]

    @quiet(EXAMPLES)
    @given(place=st.sampled_from(places), value=VALUES)
    def check(place: int, value: str) -> None:
        key = lines[place].partition("=")[0]
        changed = [*lines[:place], f"{key}= {value}", *lines[place + 1 :]]
        path.write_text("\n".join(changed), "utf-8", "surrogatepass")
        outcome(path, read)

    path.write_text(text)
    assert outcome(path, read) == ""
    for place in places:
        for value in ODD:
            check.hypothesis.inner_test(place, value)
    check()


@pytest.mark.parametrize("name", READERS)
def test_any_line_more_or_less_and_any_bytes_are_settings_or_one_sentence(
    tmp_path: Path, name: str
) -> None:
    text, read = READERS[name]
    path = tmp_path / name
    lines = [line.encode() for line in text.splitlines()]
    extra = st.one_of(
        st.sampled_from(
            [*lines, b"[fleet]", b"[[device]]", b"[task]", b"[a.b]", b"=", b"\xff", b"\0"]
        ),
        st.text(max_size=40).map(lambda line: line.encode("utf-8", "surrogatepass")),
        st.tuples(st.text(max_size=10), VALUES).map(lambda kv: f'"{kv[0]}" = {kv[1]}'.encode()),
    )

    @quiet(EXAMPLES)
    @given(
        place=st.integers(0, len(lines)),
        taken=st.integers(0, 3),
        put=st.lists(extra, max_size=3),
        start=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"]),
        end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    )
    @example(place=0, taken=99, put=[], start=b"", end=b"\n")
    def check(place: int, taken: int, put: list[bytes], start: bytes, end: bytes) -> None:
        path.write_bytes(start + end.join([*lines[:place], *put, *lines[place + taken :]]) + end)
        outcome(path, read)

    check()


@quiet(EXAMPLES)
@given(line=st.one_of(st.text(max_size=40), VALUES.map(lambda value: f"samples.max_count={value}")))
@example(line="storage.directory='K\udcfcche'")
@example(line="storage.directory=\udcff")
def test_any_setting_of_the_command_line_is_one_or_one_sentence(line: str) -> None:
    def read() -> object:
        config = parse_config(AGENT, source=Path("agent.toml"), overrides=[line])
        msgspec.json.encode(config, enc_hook=str)  # what is written down and sent
        return config

    assert len(refusal(read)) < LONGEST_SENTENCE


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_plain_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    _, read = READERS[name]
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for kind in ("loop", "folder", "nothing", "x" * 300):
        assert outcome(tmp_path / kind, read)
